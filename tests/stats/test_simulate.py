"""Simulated responses have the densities and effects that they claim."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from neurosae.errors import DataError
from neurosae.extraction.responses import check_responses
from neurosae.stats.simulate import example_design, simulate


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
