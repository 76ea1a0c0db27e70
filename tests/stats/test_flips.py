"""Maxima over features: against dense algebra, PALM, multtest and MNE, whatever the threads, tiles or order."""

from __future__ import annotations

import json

import numba
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from neurosae.spec.results import counted_p
from neurosae.stats.flips import Columns, flip_columns, group_columns, maxima, step_counts, to_t, to_z
from neurosae.stats.multiplicity import step_down
from neurosae.stats.relabel import flips, labels, permutations, signs

WEIGHTS = np.array([-1.0, 1.0])


def sparse_differences(n=30, m=400, *, density=0.3, seed=0):
    D = sp.random(n, m, density, "csc", random_state=seed, data_rvs=np.random.default_rng(seed).standard_normal)
    return D[:, np.diff(D.indptr) > 1].tocsc()


def t_columns(D, drop=False):
    D = sp.csc_matrix(D)
    D.eliminate_zeros()
    q, n = np.asarray(D.power(2).sum(axis=0)).ravel(), D.shape[0]
    return flip_columns(D, scale=np.sqrt(n * q), df=n - 1.0)


def corrected(columns: Columns, how, two_sided=True):
    null = to_z(maxima(columns, how, two_sided=two_sided)[0], columns.df).astype(np.float32)
    z = to_z(columns.u, columns.df)
    return counted_p(null, np.abs(z) if two_sided else z)


def test_t_agrees_with_scipy():
    """The statistic is the one-sample t of the item differences."""
    D = sparse_differences()
    assert_allclose(to_t(t_columns(D).u, 29), stats.ttest_1samp(D.toarray(), 0).statistic, rtol=1e-9)


@pytest.mark.parametrize("two_sided", [True, False])
def test_maxima_agree_with_dense_algebra(two_sided):
    """Float32 masked sums equal the float64 matrix product, with pruning and without, bit for bit among themselves."""
    D = sparse_differences()
    columns, how = t_columns(D), flips(np.arange(30), 1500, seed=4)
    V = D.toarray() / np.sqrt(30 * (D.toarray() ** 2).sum(axis=0))
    dense = signs(how) @ V
    found = maxima(columns, how, two_sided=two_sided)[0]
    assert_allclose(found, (np.abs(dense) if two_sided else dense).max(axis=1), atol=3e-7)
    assert_array_equal(found, maxima(columns, how, two_sided=two_sided, prune=False)[0])


def mixed_differences(n=80, *, seed=3):
    """200 columns without zeros among 300 sparse ones, in mixed order."""
    rng = np.random.default_rng(seed)
    filled = np.where(np.arange(500) % 5 < 2, 1.0, 0.2)
    return sp.csc_matrix(rng.standard_normal((n, 500)) * (rng.random((n, 500)) < filled))


@pytest.mark.parametrize("two_sided", [True, False])
def test_dense_columns_agree_with_dense_algebra(two_sided):
    """Columns without zeros go through a matrix product, the sparse ones beside them through masked sums."""
    D = mixed_differences()
    columns, how = t_columns(D), flips(np.arange(80), 1500, seed=4)
    ready = columns.how.prepare(columns)
    assert ready.dense.shape == (200, 80)
    assert len(ready.u) == 300
    V = D.toarray() / np.sqrt(80 * (D.toarray() ** 2).sum(axis=0))
    exact = signs(how) @ V
    found = maxima(columns, how, two_sided=two_sided)[0]
    assert_allclose(found, (np.abs(exact) if two_sided else exact).max(axis=1), atol=3e-7)
    assert_array_equal(found, maxima(columns, how, two_sided=two_sided, prune=False)[0])


def test_dense_columns_invariant_to_threads():
    """Bit for bit the same on one thread and on all, and in a larger relabelling; few dense columns stay sparse."""
    columns, how = t_columns(mixed_differences()), flips(np.arange(80), 5000, seed=4)
    many = maxima(columns, how)[0]
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    one = maxima(columns, how)[0]
    numba.set_num_threads(before)
    assert_array_equal(many, one)
    few = t_columns(mixed_differences()[:, :100])
    assert few.how.prepare(few) is few
    placed = columns.how.place(columns, np.arange(80) + 3)
    larger = flips(np.arange(90) - 3, 512, seed=4)
    assert_allclose(maxima(placed, larger)[0][1:], maxima(columns, flips(np.arange(80), 512, seed=4))[0][1:], atol=3e-7)


def test_maxima_invariant_to_threads():
    """Bit for bit the same on one thread and on all."""
    columns, how = t_columns(sparse_differences()), flips(np.arange(30), 5000, seed=4)
    groups = permutations(np.arange(30), np.arange(30) % 2, 3000, seed=4)
    between = group_columns(
        sparse_differences(), np.arange(30) % 2, weights=WEIGHTS, mode=2, shrink=np.zeros((400, 2)), df=28
    )
    results, before = [], numba.get_num_threads()
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        results.append((maxima(columns, how)[0], *maxima(between, groups), step_counts([columns], how)[0]))
    numba.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert_array_equal(one, many)


def test_maxima_invariant_to_order_scale_and_sign():
    """Units, feature order and the direction of the contrast change no p."""
    D, how = sparse_differences(), flips(np.arange(30), 999, seed=1)
    order = np.random.default_rng(2).permutation(D.shape[1])
    assert_array_equal(corrected(t_columns(-3.7 * D[:, order]), how), corrected(t_columns(D), how)[order])


def test_max_t_agrees_with_palm_and_mne(oracles):
    """All 1024 flips of ten items: t and family-wise p of three programs."""
    D = np.loadtxt(oracles("inputs/flip_D0.csv"), delimiter=",")
    palm = json.loads(oracles("palm.json").read_text())
    mne = json.loads(oracles("mne_nilearn.json").read_text())["maxt"]
    columns, how = t_columns(D), flips(np.arange(10), 1024, seed=0)
    assert_allclose(to_t(columns.u, 9), palm["r0_dat_tstat"], atol=6e-5)
    assert_allclose(to_t(columns.u, 9), mne["t"], atol=1e-6)
    assert_allclose(corrected(columns, how), palm["r0_dat_tstat_fwep"], atol=6e-5)
    assert_allclose(corrected(columns, how), mne["mne_p"], atol=2e-3)


def test_max_t_agrees_with_palm_on_few_informative_items(oracles):
    """Ties are the rule here; PALM loses some mirrored ones to rounding (.996 and .998 where 1 is right)."""
    D = np.loadtxt(oracles("inputs/flip_D.csv"), delimiter=",")[:, :10]
    palm = json.loads(oracles("palm.json").read_text())
    p = corrected(t_columns(D), flips(np.arange(10), 1024, seed=0))
    assert_allclose(p, palm["r1_dat_tstat_fwep"], atol=4e-3)


def test_single_step_and_step_down_agree_with_multtest(oracles):
    """A one-item feature takes part, the dead one is left out; step-down is never above single step."""
    D = np.loadtxt(oracles("inputs/flip_D.csv"), delimiter=",")
    kept = np.flatnonzero((D != 0).any(axis=0))
    known = json.loads(oracles("signflip.json").read_text())["maxt"]
    columns, how = t_columns(D[:, kept]), flips(np.arange(10), 1024, seed=0)
    single, reached = corrected(columns, how), step_counts([columns], how)[0]
    stepped = step_down(reached, np.abs(columns.u), how.n)
    assert_allclose(single, np.array(known["p_fwe_single"], dtype=float)[kept], rtol=0, atol=1e-12)
    assert_allclose(stepped, np.array(known["multtest_adjp"], dtype=float)[kept], rtol=0, atol=1e-12)
    assert (stepped <= single).all()


def test_a_tied_feature_has_p_one():
    """d = (a, -b): every flip is at least as extreme, although rounding says otherwise half of the time."""
    D = np.zeros((10, 1))
    D[[2, 7], 0] = 0.3, -1.1
    assert corrected(t_columns(D), flips(np.arange(10), 1024, seed=0))[0] == 1.0
    assert corrected(t_columns(D), flips(np.arange(10), 300, seed=0, enumerate_all=False))[0] == 1.0


def test_exhaustive_counts_of_mirrored_halves():
    """Adding the mirrored half of the flips changes no two-sided p."""
    D = sparse_differences(n=9, m=40)
    half, whole = flips(np.arange(9), 600, seed=0), flips(np.arange(9), 600, seed=0, two_sided=False)
    assert (half.n, whole.n) == (256, 512)
    assert_array_equal(corrected(t_columns(D), half), corrected(t_columns(D), whole))


def two_groups(oracles):
    Y, g = (np.loadtxt(oracles(f"inputs/two_{x}.csv"), delimiter=",") for x in "Yg")
    return Y, g.astype(int), permutations(np.arange(12), g.astype(int), 1000, seed=0)


def test_pooled_t_agrees_with_palm(oracles):
    """All 792 relabellings of groups of 5 and 7: t, p, family-wise p."""
    Y, g, how = two_groups(oracles)
    palm = json.loads(oracles("palm.json").read_text())
    columns = group_columns(sp.csc_matrix(Y), g, weights=WEIGHTS, mode=1, shrink=np.zeros((8, 2)), df=10)
    assert_allclose(to_t(columns.u, 10), stats.ttest_ind(Y[g == 1], Y[g == 0]).statistic, rtol=1e-10)
    assert_allclose(to_t(columns.u, 10), palm["r4_dat_tstat"], atol=6e-5)
    assert_allclose(maxima(columns, how)[1] / 792, palm["r4_dat_tstat_uncp"], atol=6e-5)
    assert_allclose(corrected(columns, how), palm["r4_dat_tstat_fwep"], atol=6e-5)


def test_welch_agrees_with_palm_and_enumeration(oracles):
    """Statistic as PALM's v; p as counted by scipy over all relabellings, variances following the labels."""
    Y, g, how = two_groups(oracles)
    palm = json.loads(oracles("palm.json").read_text())
    columns = group_columns(sp.csc_matrix(Y), g, weights=WEIGHTS, mode=2, shrink=np.zeros((8, 2)), df=10)
    assert_allclose(to_t(columns.u, 10), palm["r5_dat_vstat"], atol=6e-5)
    T = np.abs([stats.ttest_ind(Y[r == 1], Y[r == 0], equal_var=False).statistic for r in labels(how)])
    assert_allclose(maxima(columns, how)[1] / 792, (T >= T[0] - 1e-9).mean(axis=0), atol=1e-12)
    assert_allclose(corrected(columns, how), (T.max(axis=1)[:, None] >= T[0] - 1e-9).mean(axis=0), atol=1e-12)


def test_z_agrees_with_scipy_and_stays_finite():
    """The normal equivalent has the same two-sided p as t, far into the tail too."""
    t = np.array([0.1, 2.0, -5.0, 30.0])
    assert_allclose(stats.norm.logsf(np.abs(to_z(t / np.sqrt(23 + t**2), 23))), stats.t.logsf(np.abs(t), 23), rtol=1e-9)
    z = to_z(np.array([0.9, 0.999, 1 - 1e-7, 1.0]), 800.0)
    assert np.isfinite(z).all()
    assert (np.diff(z) >= 0).all()


def test_step_down_joins_blocks_of_other_degrees_of_freedom():
    """Two blocks on the z scale: never above single step over both, equal for the most extreme feature."""
    D, how = sparse_differences(), flips(np.arange(30), 999, seed=1)
    D = sp.hstack([sp.csc_matrix(np.linspace(1, 2, 30)[:, None]), D], format="csc")
    half = D.shape[1] // 2
    q = np.asarray(D.power(2).sum(axis=0)).ravel()
    blocks = [t_columns(D[:, :half]), flip_columns(D[:, half:], scale=np.sqrt(30 * (q[half:] + 4.0)), df=33.0)]
    null = np.maximum.reduce([to_z(maxima(b, how)[0], b.df) for b in blocks])
    size = np.abs(np.concatenate([to_z(b.u, b.df) for b in blocks]))
    stepped = step_down(np.concatenate(step_counts(blocks, how)), size, how.n)
    single = counted_p(null, size)
    assert (stepped <= single + 1e-12).all()
    assert stepped[size.argmax()] == single[size.argmax()]
