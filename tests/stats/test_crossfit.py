"""Cross-fitting: against plain loops; its error rate where the choice is repeated, and where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.extraction.responses import design_of
from neurosae.stats.crossfit import Rule, cross_fit, deal, item_order
from neurosae.stats.moderation import fit_prior
from neurosae.stats.relabel import flips, labels, permutations, signs
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import ItemData, item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}


def data(n_items: int = 16, *, between: bool = False, seed: int = 0, **options) -> tuple[ItemData, np.ndarray]:
    """Item data of a small simulated study, and the columns with six informative items."""
    options = {"n_features": 60, "density": 0.3} | options
    fake = simulate(example_design(n_items, between=between), seed=seed, **options)
    made = item_data(fake, design_of(fake), NUMBER, region="noun")
    return made, np.flatnonzero(np.diff(made.D.indptr) >= 6)


def reference(D: np.ndarray, fold: np.ndarray, rule: Rule, *, activity: np.ndarray) -> np.ndarray:
    """Held-out means by loops: features ranked by |sum| / sqrt(scale) on the other folds, counted in that direction."""
    x = np.empty(len(D))
    for q in range(rule.folds):
        train = D[fold != q]
        square = (train**2).sum(axis=0)
        d0, s02 = fit_prior(square / len(train), len(train), activity)
        scale = {"t": square, "mean": np.ones_like(square), "moderated_t": s02 if np.isinf(d0) else square + d0 * s02}
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(square > 0, train.sum(axis=0) / np.sqrt(scale[rule.statistic]), 0)
        key = {"both": np.abs(score), "plus": score, "minus": -score}[rule.direction]
        best = [f for f in np.argsort(-key, kind="stable")[: rule.top] if key[f] > 0]
        turn = np.sign(score[best]) if rule.direction == "both" else np.ones(len(best))
        x[fold == q] = D[fold == q][:, best] @ turn / max(len(best), 1)
    return x


def null_sets(n_sets: int, n_items: int, *, between: bool = False):
    """The same study with new random contrasts, nothing planted, items of unequal strength, features correlated."""
    made, _ = data(n_items, between=between)
    for seed in range(n_sets):
        rng = np.random.default_rng(seed)
        D = rng.standard_normal((n_items, 60)) + 0.7 * np.repeat(rng.standard_normal((n_items, 12)), 5, axis=1)
        D = D * np.exp(rng.standard_normal((n_items, 1))) * (rng.random((n_items, 60)) < 0.6)
        yield seed, replace(made, D=sp.csc_matrix(D)), np.flatnonzero((D != 0).sum(axis=0) >= 6)


@pytest.mark.parametrize("statistic", ["moderated_t", "t", "mean"])
@pytest.mark.parametrize("direction", ["both", "plus", "minus"])
def test_cross_fit_agrees_with_plain_loops(statistic, direction):
    """Held-out values and t of the observed data and of other flips, feature by feature, item by item."""
    made, kept = data()
    how, rule = flips(made.numbers, 70, seed=1, two_sided=False), Rule(4, 5, direction, statistic)
    found = cross_fit(made, kept, how, place=None, rule=rule)
    D, S = made.D[:, kept].toarray(), signs(how)
    activity = np.log(np.asarray(made.Y.mean(axis=0)).ravel()[kept])
    assert_allclose(found.x, reference(D, found.fold, rule, activity=activity), rtol=1e-10)
    for b in (0, 3, 69):
        x = reference(S[b][:, None] * D, found.fold, rule, activity=activity)
        expected = x.mean() if statistic == "mean" else scipy.stats.ttest_1samp(x, 0).statistic
        assert_allclose(found.t[b], expected, rtol=1e-9)


def test_cross_fit_between_items_agrees_with_plain_loops():
    """Folds dealt anew for the permuted labels, pooled choice on training items, x centred in folds, pooled t."""
    made, kept = data(24, between=True)
    how, rule = permutations(made.numbers, made.codes, 40, seed=1), Rule(3, 4, "both", "t")
    found = cross_fit(made, kept, how, place=None, rule=rule)
    Y, order = made.D[:, kept].toarray(), item_order(made, seed=1, split="test")
    for b in (0, 1, 39):
        codes = labels(how)[b].astype(int)
        fold, x = deal(codes, order, 3), np.empty(24)
        for q in range(3):
            T, c = Y[fold != q], codes[fold != q]
            score = sum(w * T[c == g].mean(axis=0) for g, w in enumerate(made.groups))
            spread = ((T - T.mean(axis=0)) ** 2).sum(axis=0)
            score = np.where(spread > 1e-12, score / np.sqrt(np.where(spread > 0, spread, 1)), 0)
            best = np.argsort(-np.abs(score), kind="stable")[:4]
            x[fold == q] = Y[fold == q][:, best] @ np.sign(score[best]) / 4
            x[fold == q] -= x[fold == q].mean()
        groups = [x[codes == g] for g in np.argsort(-made.groups)]
        assert_allclose(found.t[b], scipy.stats.ttest_ind(*groups).statistic, rtol=1e-9)
        if b == 0:
            assert_array_equal(found.fold, fold)


def test_cross_fit_controls_false_positives():
    """Nothing there, 300 sets: the exact test is in its band, a choice on the same items always finds something."""
    rejected, naive, same = 0, 0, 0
    for seed, made, kept in null_sets(300, 16):
        found = cross_fit(made, kept, flips(made.numbers, 100, seed=seed), place=None, rule=Rule(4, 10))
        rejected += (np.abs(found.t) >= abs(found.t[0]) - 1e-9).mean() <= 0.05
        naive += scipy.stats.ttest_1samp(found.x, 0).pvalue <= 0.05
        D = made.D[:, kept].toarray()
        best = np.argsort(-np.abs(D.sum(axis=0)) / np.sqrt((D**2).sum(axis=0)))[:10]
        x = D[:, best] @ np.sign(D[:, best].sum(axis=0))
        same += scipy.stats.ttest_1samp(x, 0).pvalue <= 0.05
    low, high = scipy.stats.binom.interval(0.999, 300, 0.05)
    assert low <= rejected <= high
    assert same >= 270
    assert naive > rejected  # folds share training items, so their t test rejects too often


def test_cross_fit_between_items_controls_false_positives():
    """The same for labels permuted over items, 200 sets."""
    rejected = 0
    for seed, made, kept in null_sets(200, 24, between=True):
        how = permutations(made.numbers, made.codes, 100, seed=seed)
        found = cross_fit(made, kept, how, place=None, rule=Rule(3, 8))
        rejected += (np.abs(found.t) >= abs(found.t[0]) - 1e-9).mean() <= 0.05
    assert rejected <= scipy.stats.binom.ppf(0.9995, 200, 0.05)
    assert rejected > 0


def test_cross_fit_recovers_planted_features_of_either_sign():
    """Half of the planted features are turned over: `both` counts each in its direction, a plain mean would cancel."""
    made, kept = data(24, effects={"number": 10}, shift=3.0, density=0.3, seed=4)
    D = made.D.tolil()
    D[:, :5] *= -1
    turned = replace(made, D=D.tocsc())
    found = cross_fit(turned, kept, flips(made.numbers, 999, seed=1), place=None, rule=Rule(4, 10))
    assert (np.abs(found.t) >= abs(found.t[0])).mean() < 0.01
    assert found.x.mean() > 0
    one = cross_fit(turned, kept, flips(made.numbers, 999, seed=1), place=None, rule=Rule(4, 5, "plus"))
    planted = [set(np.flatnonzero(w)) for w in one.chosen]
    assert all(len(p & {int(np.searchsorted(kept, f)) for f in range(5, 10)}) >= 2 for p in planted)


def test_cross_fit_never_tests_an_item_that_chose():
    """Items of a fold, however extreme, change nothing about the features that the fold is tested with."""
    made, kept = data()
    how, rule = flips(made.numbers, 1, seed=1, enumerate_all=False), Rule(4, 5, "both", "t")
    first = cross_fit(made, kept, how, place=None, rule=rule)
    D = made.D.copy().tolil()
    inside = np.flatnonzero(first.fold == 2)
    D[inside] = D[inside].toarray()[:, ::-1] * 50
    moved = cross_fit(replace(made, D=D.tocsc()), kept, how, place=None, rule=rule)
    assert_array_equal(first.chosen[2], moved.chosen[2])
    assert not np.array_equal(first.chosen[0], moved.chosen[0])


def test_deal_makes_folds_alike():
    """Sizes differ by at most one, in all items and in every group, whatever the order."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat([0, 1, 2], [11, 7, 5]))
    fold = deal(codes, rng.permutation(23), 4)
    for part in (np.ones(23, bool), *(codes == g for g in range(3))):
        assert np.ptp(np.bincount(fold[part], minlength=4)) <= 1


def test_item_order_invariant_to_other_items():
    """The order of two items is theirs alone: leaving out others does not change it; another seed does."""
    made, _ = data(12)
    order = made.numbers[item_order(made, seed=3, split="test")]
    fewer = replace(made, numbers=made.numbers[2:9], names=made.names[2:9])
    part = fewer.numbers[item_order(fewer, seed=3, split="test")]
    assert_array_equal(part, [k for k in order if k in set(fewer.numbers)])
    assert not np.array_equal(order, made.numbers[item_order(made, seed=4, split="test")])


def test_cross_fit_invariant_to_threads_and_scale():
    """Bits are the same on one thread and two; units change nothing but the mean."""
    import numba

    made, kept = data()
    how, rule = flips(made.numbers, 300, seed=2), Rule(4, 6)
    first = cross_fit(made, kept, how, place=None, rule=rule)
    before = numba.get_num_threads()
    try:
        for threads in sorted({1, before}):
            numba.set_num_threads(threads)
            assert_array_equal(cross_fit(made, kept, how, place=None, rule=rule).t, first.t)
    finally:
        numba.set_num_threads(before)
    scaled = replace(made, D=made.D * 7.0)
    assert_allclose(
        cross_fit(scaled, kept, how, place=None, rule=rule._replace(statistic="t")).t,
        cross_fit(made, kept, how, place=None, rule=rule._replace(statistic="t")).t,
        rtol=1e-9,
    )


def test_cross_fit_flipping_everything_changes_nothing():
    """s and -s choose the same features in opposite directions: all 2^n flips come in pairs of equal t."""
    made, kept = data(8, density=0.8)
    how = flips(made.numbers, 10_000, seed=0, two_sided=False)
    t = cross_fit(made, kept, how, place=None, rule=Rule(2, 5)).t
    assert len(t) == 256
    assert_allclose(np.sort(t)[::2], np.sort(t)[1::2], atol=1e-12)
