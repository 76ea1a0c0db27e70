"""The statistics written out per feature, within and between items."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from neurosae.stats.family import relabelled
from neurosae.stats.flips import to_t
from neurosae.stats.moderation import fit_prior, shrink
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.statistics import STATISTICS
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}


def data_of(*, between=False, without=()):
    design = example_design(24, between=between)
    fake = simulate(design, n_features=300, density=(0.2, 0.6), seed=5)
    fake = fake[~fake.obs["item"].isin(without).to_numpy()].copy()
    data = item_data(fake, design, NUMBER, region="noun")
    kept = np.flatnonzero(np.diff(data.D.indptr) >= 6)
    return data, kept, data.D[:, kept].toarray(), np.log(np.asarray(data.Y.mean(axis=0)).ravel()[kept])


def test_moderated_t_agrees_with_its_equation():
    """t = mean / sqrt(v~ / n), v~ = (d0 s0^2 + (n-1) v) / (d0 + n - 1), prior on q/n with a trend over activity."""
    data, kept, d, activity = data_of()
    made = STATISTICS["moderated_t"](data, kept)
    d0, s02 = fit_prior((d**2).mean(axis=0), 24, activity)
    t = d.mean(axis=0) / np.sqrt(shrink(d.var(axis=0, ddof=1), 23, d0=d0, s02=s02) / 24)
    assert_allclose(to_t(made.columns.u, made.columns.df), t, rtol=1e-9)
    assert made.columns.df == 23 + d0


@pytest.mark.parametrize("without", [(), ("pl.1", "pl.2", "pl.3")])
def test_moderated_t_between_items_agrees_with_its_equation(without):
    """Prior on the total variance; pooled where groups are equal, Welch's form where not."""
    data, kept, y, activity = data_of(between=True, without=without)
    made = STATISTICS["moderated_t"](data, kept)
    d0, s02 = fit_prior(y.var(axis=0, ddof=1), len(y) - 1, activity)
    groups = [y[data.codes == g] for g in (0, 1)]
    sizes, estimate = [len(g) for g in groups], data.groups @ [g.mean(axis=0) for g in groups]
    if without:
        parts = [shrink(g.var(axis=0, ddof=1), len(g) - 1, d0=d0, s02=s02) / len(g) for g in groups]
        se2 = parts[0] + parts[1]
    else:
        pooled = sum((len(g) - 1) * g.var(axis=0, ddof=1) for g in groups) / (len(y) - 2)
        se2 = shrink(pooled, len(y) - 2, d0=d0, s02=s02) * sum(1 / n for n in sizes)
    assert_allclose(to_t(made.columns.u, made.columns.df), estimate / np.sqrt(se2), rtol=1e-9)


def test_mean_agrees_with_numpy():
    """No variance in it, within or between items."""
    for between in (False, True):
        data, kept, d, _ = data_of(between=between)
        expected = data.groups @ [d[data.codes == g].mean(axis=0) for g in (0, 1)] if between else d.mean(axis=0)
        assert_allclose(STATISTICS["mean"](data, kept).columns.u, expected, rtol=1e-9, atol=1e-12)


def test_prior_invariant_to_flips():
    """What is shrunk towards must not know the signs, or max-T is no longer exact."""
    data, kept, *_ = data_of()
    flipped = relabelled(data, np.random.default_rng(0).choice([-1.0, 1.0], data.n), None)
    one, other = (STATISTICS["moderated_t"](d, kept) for d in (data, flipped))
    assert one.d0 == pytest.approx(other.d0, rel=1e-12)
    assert_allclose(np.abs(one.columns.V.val), np.abs(other.columns.V.val), rtol=1e-6)
