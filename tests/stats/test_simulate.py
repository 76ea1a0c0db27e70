"""Simulated responses have the densities and effects that they claim."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from neurosae.errors import DataError
from neurosae.extraction.responses import check_responses
from neurosae.stats.simulate import Firing, Planted, example_design, simulate


def test_simulate_recovers_its_densities():
    """Share of active stimuli equals the request, on average over features."""
    fake = simulate(example_design(400), n_features=40, density=0.2, seed=0)
    check_responses(fake)
    assert (fake.X.toarray() > 0).mean() == pytest.approx(0.2, abs=0.02)


def test_simulate_recovers_its_effects():
    """Planted features fire more in the + level, the others equally often."""
    fake = simulate(example_design(200), n_features=40, effects={"number": 10}, density=0.3, shift=3.0, seed=0)
    plus = (fake.obs["number"] == "pl").to_numpy()
    fires = fake.X.toarray() > 0
    gain = fires[plus].mean(axis=0) - fires[~plus].mean(axis=0)
    assert (gain[:10] > 0.2).all()
    assert abs(gain[10:].mean()) < 0.03
    assert fake.var["planted"].tolist() == ["number"] * 10 + [""] * 30


def test_simulate_invariant_to_nothing_but_the_seed():
    """Same seed, same numbers."""
    one, two, other = (simulate(example_design(8), n_features=20, density=0.4, seed=s).X.toarray() for s in (1, 1, 2))
    assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_simulate_refuses_unknown_factors_and_too_many_features():
    """The message names the factor, or both counts."""
    with pytest.raises(DataError, match=r"unknown factor 'nummer'\. Did you mean 'number'"):
        simulate(example_design(8), n_features=20, effects={"nummer": 2}, seed=0)
    with pytest.raises(DataError, match="30 features, but n_features is 20"):
        simulate(example_design(8), n_features=20, effects={"number": 30}, seed=0)


def test_simulate_recovers_planted_densities_and_magnitudes():
    """A difference of densities and a factor on the magnitude come out as planted; features without them stay."""
    planted = {"number": Planted(20, density=0.2, magnitude=2.0)}
    fake = simulate(example_design(1500), n_features=40, effects=planted, density=Firing(0.3), seed=0)
    X, plus = fake.X.toarray(), (fake.obs["number"] == "pl").to_numpy()
    gain = (X[plus] > 0).mean(axis=0) - (X[~plus] > 0).mean(axis=0)
    both = (X[plus] > 0) & (X[~plus] > 0)
    ratio = np.log(X[plus], where=both, out=np.zeros(both.shape)) - np.log(
        X[~plus], where=both, out=np.zeros(both.shape)
    )
    ratio = np.exp(ratio.sum(axis=0) / both.sum(axis=0))
    assert gain[:20].mean() == pytest.approx(0.2, abs=0.01)
    assert ratio[:20].mean() == pytest.approx(2.0, abs=0.05)
    assert gain[20:].mean() == pytest.approx(0.0, abs=0.01)
    assert ratio[20:].mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("item", "cell", "frame"), [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (0.3, 0.2, 0.0), (0.0, 0.0, 0.4)]
)
def test_simulate_recovers_the_shares_of_its_drive(item, cell, frame):
    """At density .5 the signs of two drives that share a part of the variance agree by 2 arcsin(share) / pi."""
    firing = Firing(0.5, item=item, cell=cell, frame=frame)
    fake = simulate(example_design(500, n_frames=4), n_features=200, density=firing, regions=("noun",), seed=1)
    table = pd.DataFrame({"item": fake.obs["item"], "number": fake.obs["number"], "frame": fake.obs["frame"]})
    order = table.reset_index(drop=True).sort_values(["item", "number", "frame"], kind="stable").index
    signs = np.sign(fake.X.toarray() - 1e-9)[order].reshape(500, 2, 4, 200)
    expected = {"frames": item + cell, "cells": item, "items": frame}
    same = {
        "frames": (signs[:, :, 0] * signs[:, :, 1]).mean(),
        "cells": (signs[:, 0, 0] * signs[:, 1, 1]).mean(),
        "items": (signs[::2, 0, 0] * signs[1::2, 1, 0]).mean(),
    }
    for pair, share in expected.items():
        assert same[pair] == pytest.approx(2 / np.pi * np.arcsin(share), abs=0.05)


def test_simulate_refuses_shares_that_leave_nothing():
    """The shares are named with their values."""
    with pytest.raises(DataError, match=r"item 0\.8, cell 0\.3.* sum is below 1"):
        simulate(example_design(8), n_features=20, density=Firing(0.2, item=0.8, cell=0.3), seed=0)
