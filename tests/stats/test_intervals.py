"""Intervals against scipy, their coverage, and what must leave them as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats
from scipy.stats._resampling import BootstrapResult

from neurosae.errors import DataError
from neurosae.stats.contrast import contrast
from neurosae.stats.intervals import (
    Piece,
    _of_auc,
    _of_sums,
    bca_interval,
    centred,
    draw_items,
    make_intervals,
    selected_intervals,
)
from neurosae.stats.moderation import fit_prior, shrink
from neurosae.stats.relabel import flips, permutations, signs
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}


def data_of(D, *, between=False):
    """Item data with the given contrasts (within) or item values (between)."""
    n, m = D.shape
    fake = simulate(example_design(n, between=between), n_features=m, density=0.3, seed=3)
    data = item_data(fake, example_design(n, between=between), NUMBER, region="noun")
    Y = (
        np.abs(D[data.row_unit])
        if between
        else np.maximum(np.where(data.row_cell[:, None] == 0, -1, 1) * D[data.row_unit], 0)
    )
    return replace(data, D=sp.csc_matrix(D), Y=sp.csr_matrix(Y))


def piece_of(data, *, n=400, seed=1):
    two = {"seed": seed, "split": "test"}
    how = flips(data.numbers, n, **two) if data.codes is None else permutations(data.numbers, data.codes, n, **two)
    return Piece(data, np.arange(data.D.shape[1]), how)


def scipy_bca(samples, statistic, boot):
    """scipy's BCa interval of a bootstrap distribution that it did not draw."""
    given = BootstrapResult(None, boot, np.std(boot))
    return stats.bootstrap(
        samples, statistic, n_resamples=0, bootstrap_result=given, method="BCa", vectorized=False
    ).confidence_interval


def test_bca_agrees_with_scipy_for_equal_draws():
    """Mean of one group, difference of two means and AUC of two groups: the same draws give the same interval."""
    rng = np.random.default_rng(0)
    x, codes, one = np.exp(rng.standard_normal((14, 3))), np.repeat([0, 1], [6, 8]), np.zeros(14, dtype=int)
    counts = draw_items(np.arange(14), one, n_draws=500, seed=4).astype(float)
    low, high = _of_sums(x, np.full(14, 1 / 14), one, counts=counts, level=0.95)
    for j in range(3):
        assert_allclose((low[j], high[j]), scipy_bca((x[:, j],), np.mean, counts @ x[:, j] / 14), rtol=1e-9)
    counts = draw_items(np.arange(14), codes, n_draws=500, seed=4).astype(float)
    low, high = _of_sums(x, np.where(codes, 1 / 8, -1 / 6), codes, counts=counts, level=0.95)
    known = scipy_bca(
        (x[:6, 1], x[6:, 1]), lambda a, b: b.mean() - a.mean(), counts @ (x[:, 1] * np.where(codes, 1 / 8, -1 / 6))
    )
    assert_allclose((low[1], high[1]), known, rtol=1e-9)

    def auc(a, b):
        return stats.mannwhitneyu(b, a).statistic / len(a) / len(b)

    sign = np.where(codes, 1.0, -1.0)
    low, high = _of_auc(x, sign, counts=counts, codes=codes, level=0.95)
    boot = [auc(np.repeat(x[:6, 2], c[:6].astype(int)), np.repeat(x[6:, 2], c[6:].astype(int))) for c in counts]
    assert_allclose((low[2], high[2]), scipy_bca((x[:6, 2], x[6:, 2]), auc, np.array(boot)), rtol=1e-9)


def test_bca_agrees_with_scipys_own_draws():
    """Other draws: within Monte-Carlo error, and skewed the same way."""
    x = np.exp(np.random.default_rng(5).standard_normal(25))
    counts = draw_items(np.arange(25), np.zeros(25, dtype=int), n_draws=4000, seed=0).astype(float)
    low, high = _of_sums(x[:, None], np.full(25, 0.04), np.zeros(25, dtype=int), counts=counts, level=0.95)
    known = stats.bootstrap((x,), np.mean, n_resamples=4000, rng=1).confidence_interval
    assert_allclose((low[0], high[0]), known, rtol=0.03)
    assert high[0] - x.mean() > 1.2 * (x.mean() - low[0])


def test_draws_invariant_to_the_items_beside():
    """A draw depends on seed, split, number of the draw and the item's number alone."""
    numbers, codes = np.array([3, 8, 9, 20]), np.zeros(4, dtype=int)
    counts = draw_items(numbers, codes, n_draws=50, seed=7)
    assert (counts.sum(axis=1) == 4).all()
    assert (draw_items(numbers, codes, n_draws=20, seed=7) == counts[:20]).all()
    assert (draw_items(numbers, codes, n_draws=50, seed=7, split="localizer") != counts).any()
    uneven = draw_items(np.arange(2000), np.repeat([0, 1], 1000), n_draws=4, seed=0)
    assert (uneven[:, :1000].sum(axis=1) == 1000).all()
    assert_allclose((uneven == 0).mean(), np.exp(-1), atol=0.02)  # Poisson counts


def test_no_bca_interval_where_every_draw_is_the_same():
    """An AUC of 1 in every item has no bootstrap interval."""
    low, high = bca_interval(np.ones((1, 100)), np.ones(1), [np.zeros((8, 1))])
    assert np.isnan([low[0], high[0]]).all()


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("kind", ["flip_t", "bca", "simultaneous"])
def test_intervals_invariant_to_a_shift_of_the_truth(kind, between):
    """Adding a constant to the contrast moves its interval by exactly that, and leaves the other features alone."""
    D = np.random.default_rng(6).standard_normal((20, 12)) + 5.0
    plain = data_of(D, between=between)
    moved = replace(plain, D=sp.csc_matrix(D + _pattern(plain, D.shape)))
    one, other = (make_intervals([piece_of(x)], kind)[0] for x in (plain, moved))
    for name in ("ci_low", "ci_high"):
        assert_allclose(other[name][2], one[name][2] + 3.0, rtol=1e-5)
        assert_allclose(np.delete(other[name], 2), np.delete(one[name], 2), rtol=1e-5)


def _pattern(data, shape):
    """3 more of the contrast in feature 2: in every item, or in the items of the + group."""
    shift = np.zeros(shape)
    shift[:, 2] = 3.0 if data.codes is None else np.where(data.grouping[1][data.codes] > 0, 3.0, 0.0)
    return shift


def test_flip_t_agrees_with_sums_by_hand():
    """All flips of 8 items: the quantile of the moderated t of centred contrasts, feature by feature."""
    D = np.random.default_rng(8).standard_normal((8, 4)) + 0.5
    data = data_of(D)
    piece = piece_of(data, n=1000)
    E = D - D.mean(axis=0)
    d0, s02 = fit_prior(E.var(axis=0, ddof=1) * 8 / 8, 7, np.log(np.asarray(data.Y.mean(axis=0)).ravel()))
    M = signs(piece.relabelling)[1:] @ E / 8
    se = np.sqrt(shrink(((E**2).sum(axis=0) - 8 * M**2) / 7, 7, d0=d0, s02=s02) / 8)
    c = np.quantile(np.abs(M / se), 0.95, axis=0, method="higher")
    half = c * np.sqrt(shrink(E.var(axis=0, ddof=1), 7, d0=d0, s02=s02) / 8)
    made = make_intervals([piece], "flip_t")[0]
    assert_allclose(made["ci_low"], D.mean(axis=0) - half, rtol=1e-5)
    assert set(made["x_ci_method"]) == {"flip t"}


def test_simultaneous_intervals_agree_with_their_two_bounds():
    """The larger of two bounds: the quantile of the largest |t| over all flips, and Bonferroni's moderated t."""
    D = np.random.default_rng(9).standard_normal((24, 30))
    data = data_of(D)
    whole = piece_of(data)
    made, base = make_intervals([whole], "simultaneous")[0], centred(data, whole.kept)
    bonferroni = stats.t.isf(0.025 / 30, base.columns.df if np.isfinite(base.columns.df) else 1e9)
    assert (made["ci_high"] - base.estimate >= bonferroni * base.se * (1 - 1e-9)).all()
    rng, longer = np.random.default_rng(1), []
    for x in (rng.standard_normal(8), np.tile([1.0, -1.0], 4) + 1e-3 * rng.standard_normal(8)):
        piece = piece_of(data_of(x[:, None]), n=1000)  # one feature, all 128 flips: no moderation
        e = x - x.mean()
        t = stats.ttest_1samp(signs(piece.relabelling)[1:] * e, 0, axis=1).statistic
        c = np.quantile(np.abs(t), 0.95, method="higher")
        half = max(c, stats.t.isf(0.025, 7)) * x.std(ddof=1) / np.sqrt(8)
        made = make_intervals([piece], "simultaneous")[0]
        assert_allclose(made["ci_high"] - x.mean(), half, rtol=1e-5)
        longer.append(bool(c > stats.t.isf(0.025, 7)))
    assert longer == [False, True]


def sparse_pairs(rng, n, m, *, density):
    """Differences of two sparse activations, 5 features shifted, and the true mean difference."""
    shift = np.where(np.arange(m) < 5, 2.0, 0.0)
    limit = stats.norm.isf(density) * np.sqrt(3.25)
    item = 1.5 * rng.standard_normal((n, m))
    y = [
        np.where(item + s + rng.standard_normal((n, m)) > limit, np.exp(0.64 * rng.standard_normal((n, m))), 0)
        for s in (0, shift)
    ]
    level = stats.norm.sf((limit - shift) / np.sqrt(3.25)) - density
    return y[1] - y[0], np.exp(0.64**2 / 2) * level


def test_intervals_control_their_coverage():
    """Sparse responses, 32 items, k >= 10: all features at once, one by one, and the AUC of null features, .5."""
    rng, hits, single, auc = np.random.default_rng(10), [], [], []
    for _ in range(60):
        D, truth = sparse_pairs(rng, 32, 60, density=0.2)
        kept = np.flatnonzero((D != 0).sum(axis=0) >= 10)
        piece = piece_of(data_of(D[:, kept]), n=300, seed=int(rng.integers(1e6)))
        made = make_intervals([piece], "simultaneous")[0]
        hits.append(((made["ci_low"] <= truth[kept]) & (truth[kept] <= made["ci_high"])).all())
        some = piece._replace(kept=piece.kept[5:17])
        made = make_intervals([some], "flip_t")[0]
        single.append(((made["ci_low"] <= truth[kept[5:17]]) & (truth[kept[5:17]] <= made["ci_high"])).mean())
        made = make_intervals([some], "bca")[0]
        auc.append(((made["x_auc_low"] <= 0.5) & (made["x_auc_high"] >= 0.5)).mean())
    assert np.mean(hits) >= 0.88
    assert np.mean(single) >= 0.92
    assert np.mean(auc) >= 0.92


@pytest.mark.parametrize("kind", ["flip_t", "bca", "simultaneous"])
def test_contrast_names_the_interval_that_was_asked_for(kind):
    """The method travels with the row; estimate and p are those of the default, and few items carry a warning."""
    fake = simulate(example_design(24), n_features=60, effects={"number": 3}, density=0.3, shift=4.0, seed=2)
    rule = {"n_permutations": 300}
    table = contrast(fake, NUMBER, region="noun", inference=rule | {"intervals": kind}, seed=1)
    plain = contrast(fake, NUMBER, region="noun", inference=rule, seed=1)
    rows = table[table["status"] == "ok"]
    known = plain[plain["status"] == "ok"]
    assert rows["x_ci_method"].nunique() == 1
    assert set(known["x_ci_method"]) == {"t"}
    assert set(known["x_ci_dof"]) == {23.0}
    assert_allclose(rows["estimate"], known["estimate"])
    assert_allclose(rows["p_corr"], known["p_corr"])
    assert ((rows["ci_low"] < rows["estimate"]) & (rows["estimate"] < rows["ci_high"])).all()
    few = rows["n_informative"] < 10
    assert rows.loc[few, "note"].str.contains("interval unreliable").all()
    if kind == "simultaneous":
        assert (rows["ci_high"] - rows["ci_low"] > (known["ci_high"] - known["ci_low"]) * 0.9).mean() > 0.9
    if kind == "bca":
        inside = rows["x_auc_low"].notna()
        assert ((rows["x_auc_low"] <= rows["x_auc"]) & (rows["x_auc"] <= rows["x_auc_high"]))[inside].all()


def test_selected_intervals_agree_with_student():
    """R of m found features: t intervals at level 1 - R alpha / m, and nothing of the others."""
    fake = simulate(example_design(24), n_features=60, effects={"number": 4}, density=0.4, shift=5.0, seed=2)
    table = contrast(fake, NUMBER, region="noun", inference={"n_permutations": 500}, seed=1)
    found = selected_intervals(table)
    share = len(found) / int(table["n_family"].iloc[0]) * 0.05
    assert 2 <= len(found) < 20
    assert_allclose(found["ci_level"], 1 - share)
    half = stats.t.isf(share / 2, 23) * found["se"]
    assert_allclose(found["ci_high"], found["estimate"] + half)


def test_selected_intervals_refuse_intervals_without_a_level():
    """Bootstrap intervals were made at one level."""
    fake = simulate(example_design(24), n_features=40, effects={"number": 4}, density=0.4, shift=5.0, seed=2)
    rule = {"n_permutations": 200, "intervals": "bca"}
    with pytest.raises(DataError, match="intervals: marginal"):
        selected_intervals(contrast(fake, NUMBER, region="noun", inference=rule, seed=1))
