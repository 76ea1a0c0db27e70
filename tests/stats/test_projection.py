"""One regressor beside nuisance under relabelled residuals: literal refits, PALM, rounding, calibration, sparseness."""

from __future__ import annotations

import itertools
import json

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.spec.results import counted_p
from neurosae.stats.flips import maxima, step_counts, take, to_t, to_z
from neurosae.stats.multiplicity import step_down
from neurosae.stats.nuisance import fit_model, residual_squares, slopes
from neurosae.stats.projection import project
from neurosae.stats.relabel import Relabelling, flips, labels, permutations, signs


def sparse(n=40, m=60, *, density=0.4, seed=0):
    """Values of which some columns have few entries, none explained by a few regressors."""
    Y = sp.random(n, m, density, "csc", random_state=seed, data_rvs=np.random.default_rng(seed).standard_normal)
    return Y[:, np.diff(Y.indptr) > 6].tocsc()


def nuisance(n=40, k=2, seed=5):
    """Nuisance differences whose mean is not 0."""
    return 0.5 + np.random.default_rng(seed).standard_normal((n, k))


def literal(Y, X, Z, *, moves):
    """Freedman and Lane as they wrote it: relabel residuals of the reduced model, refit the full one; t (B, m)."""
    fit = Z @ np.linalg.lstsq(Z, Y, rcond=None)[0]
    full = np.column_stack([X, Z])
    return np.array([[sm.OLS(y, full).fit().tvalues[0] for y in (fit + move(Y - fit)).T] for move in moves])


def few_moves(how: Relabelling, numbers):
    """Some relabellings of a set as functions of an (n, m) array."""
    if how.kind == "flip":
        S = signs(how)
        return [lambda E, s=S[b]: s[:, None] * E for b in numbers]
    order = labels(how).astype(int)  # item i gets the regressor of item order[b, i], so residuals move the other way
    return [lambda E, o=order[b]: E[np.argsort(o)] for b in numbers]


def relabelled(columns, how):
    """Every column under every relabelling, (n_permutations, m): the maximum of a single column is its signed value."""
    return np.column_stack(
        [maxima(take(columns, np.array([j])), how, two_sided=False)[0] for j in range(len(columns.u))]
    )


NUMBERS = [0, 1, 77, 511, 512, 700]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_flips_agree_with_literal_refits(k):
    """Sign-flipped residuals of uncentred nuisance differences, refitted by statsmodels one by one."""
    Y, Z, how = sparse(m=12), nuisance(k=k), flips(np.arange(40), 701, seed=3)
    columns = project(Y, fit_model(np.ones(40), Z))
    t = to_t(relabelled(columns, how), columns.df)
    assert_allclose(t[NUMBERS], literal(Y.toarray(), np.ones(40), Z, moves=few_moves(how, NUMBERS)), atol=1e-9)


@pytest.mark.parametrize("regressor", ["number", "group"])
def test_permutations_in_blocks_agree_with_literal_refits(regressor):
    """A covariate, or two groups, beside nuisance and an intercept, permuted inside blocks."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal(40) if regressor == "number" else np.arange(40) % 2.0
    Y, Z, blocks = sparse(m=12), nuisance(), np.repeat([0, 1, 2], [10, 10, 20])
    how = permutations(np.arange(40), np.arange(40), 701, blocks=blocks, seed=3)
    columns = project(Y, fit_model(X, Z, fixed=np.ones((40, 1))))
    t = to_t(relabelled(columns, how), columns.df)
    expected = literal(Y.toarray(), X, np.column_stack([Z, np.ones(40)]), moves=few_moves(how, NUMBERS))
    assert_allclose(t[NUMBERS], expected, atol=1e-9)
    assert all((blocks[o] == blocks).all() for o in labels(how).astype(int))


def test_slope_without_nuisance_agrees_with_literal_refits():
    """Permuted ranks of a covariate with ties, the intercept alone beside it."""
    x = np.repeat(np.arange(20.0), 2)
    Y, codes = sparse(m=12), np.unique(x, return_inverse=True)[1]
    how = permutations(np.arange(40), codes, 701, seed=3)
    columns = project(Y, fit_model(x, np.empty((40, 0)), fixed=np.ones((40, 1))))
    dense, one = Y.toarray(), np.ones(40)
    moved = np.unique(x)[labels(how).astype(int)]
    expected = [[sm.OLS(y, np.column_stack([moved[b], one])).fit().tvalues[0] for y in dense.T] for b in NUMBERS]
    assert_allclose(to_t(relabelled(columns, how), columns.df)[NUMBERS], expected, atol=1e-9)


def test_slopes_agree_with_statsmodels():
    """Coefficient and standard error per unit of the regressor."""
    rng = np.random.default_rng(4)
    X, Z, Y = 3 + 2 * rng.standard_normal(40), nuisance(), sparse(m=10)
    fits = [sm.OLS(y, np.column_stack([X, Z, np.ones(40)])).fit() for y in Y.toarray().T]
    b, se = slopes(Y, fit_model(X, Z, fixed=np.ones((40, 1))))
    assert_allclose(b, [f.params[0] for f in fits], rtol=1e-10)
    assert_allclose(se, [f.bse[0] for f in fits], rtol=1e-10)


def test_a_perfect_fit_has_no_variance():
    """What regressor and nuisance explain altogether has a standard error of exactly 0 and r = 1."""
    Z = nuisance()
    Y = sp.csc_matrix((2.0 + Z @ np.array([1.0, -3.0]))[:, None])
    model = fit_model(np.ones(40), Z)
    assert slopes(Y, model)[1][0] == 0.0
    assert_allclose(project(Y, model).u, 1.0, atol=1e-12)


def test_maxima_agree_with_all_values():
    """Maxima and counts are those of the table of all values; pruned maxima are the same bit for bit."""
    Y, Z = sparse(m=40, density=0.2), nuisance()
    blocks = np.repeat([0, 1], 20)
    cases = [
        (fit_model(np.ones(40), Z), flips(np.arange(40), 600, seed=4)),
        (
            fit_model(np.arange(40.0), Z, fixed=np.ones((40, 1))),
            permutations(np.arange(40), np.arange(40), 600, blocks=blocks, seed=4),
        ),
        (
            fit_model(np.arange(40.0), Z[:, :0], fixed=np.ones((40, 1))),
            permutations(np.arange(40), np.arange(40), 600, seed=4),
        ),
    ]
    Y = Y[:, np.min([residual_squares(Y, model.Q) for model, _ in cases], axis=0) > 0]
    for model, how in cases:
        for d0 in (0.0, 4.0, np.inf):
            columns = project(Y, model, d0=d0, s02=np.linspace(0.5, 2.0, Y.shape[1]))
            table = relabelled(columns, how)
            top, reached = maxima(columns, how)
            assert_allclose(top, np.abs(table).max(axis=1), rtol=1e-9)
            assert_array_equal(reached, (np.abs(table) >= np.abs(columns.u) - 2e-9).sum(axis=0))
            assert_array_equal(top, maxima(columns, how, prune=False)[0])
            top, reached = maxima(columns, how, two_sided=False)
            assert_allclose(top, table.max(axis=1), rtol=1e-9)
            assert_array_equal(reached, (table >= columns.u - 2e-9).sum(axis=0))


def test_bounds_hold():
    """No relabelled value exceeds the bound by which columns are passed over."""
    Y, Z = sparse(m=120, density=0.15), nuisance(k=1)
    for model, how in (
        (fit_model(np.ones(40), Z), flips(np.arange(40), 600, seed=4)),
        (
            fit_model(np.arange(40.0), Z, fixed=np.ones((40, 1))),
            permutations(np.arange(40), np.arange(40), 600, seed=4),
        ),
    ):
        columns = project(Y[:, residual_squares(Y, model.Q) > 0], model)
        assert (relabelled(columns, how) ** 2 <= columns.V.bound).all()
        assert (columns.V.bound < 1).any()


def test_step_down_is_never_above_single_step():
    """It is single step for the largest value, and counts the rest without the columns already passed."""
    Y, Z = sparse(m=80), nuisance()
    columns, how = project(Y, fit_model(np.ones(40), Z), d0=3.0, s02=0.7), flips(np.arange(40), 999, seed=4)
    size, null = np.abs(columns.z), to_z(maxima(columns, how)[0], columns.df)
    reached, single = step_counts([columns], how)[0], counted_p(null, size)
    stepped = step_down(reached, size, how.n)
    assert (stepped <= single + 1e-12).all()
    assert stepped[size.argmax()] == single[size.argmax()]
    last = np.argsort(size)[0]
    assert reached[last] / how.n == (np.abs(relabelled(columns, how)[:, last]) >= np.abs(columns.u[last]) - 1e-9).mean()


def test_invariant_to_the_place_of_items():
    """Items that are some of those that a relabelling moves keep their own signs."""
    Y, Z = sparse(m=30), nuisance()
    model, rows = fit_model(np.ones(40), Z), np.arange(3, 83, 2)
    alone, among = flips(rows, 999, seed=4), flips(np.arange(90), 999, seed=4)
    columns = project(Y, model)
    placed = columns.how.place(columns, rows)
    assert_array_equal(maxima(columns, alone)[1], maxima(placed, among)[1])
    assert_array_equal(maxima(columns, alone)[0], maxima(placed, among)[0])


def test_moderated_agrees_with_its_equation():
    """d0 s0^2 joins the squared error and d0 the degrees of freedom; with d0 = inf s0^2 is the variance."""
    Y, Z, s02 = sparse(m=8), nuisance(), np.linspace(0.2, 3.0, 8)
    model = fit_model(np.ones(40), Z)
    b, se = slopes(Y, model)
    s2 = (se * model.length) ** 2
    shrunk = np.sqrt((5.0 * s02 + 37 * s2) / 42) / model.length
    columns = project(Y, model, d0=5.0, s02=s02)
    assert columns.df == 42
    assert_allclose(to_t(columns.u, columns.df), b / shrunk, rtol=1e-10)
    known = project(Y, model, d0=np.inf, s02=s02)
    assert_allclose(known.u, b / np.sqrt(s02) * model.length, rtol=1e-10)


def test_sign_flips_agree_with_palm(oracles):
    """All flips of ten items beside one nuisance difference: t, p and family-wise p; our counts keep mirrored ties."""
    D, Z = (np.loadtxt(oracles(f"inputs/flz_{x}.csv"), delimiter=",", ndmin=2) for x in "Dz")
    palm = json.loads(oracles("palm.json").read_text())
    columns, how = project(sp.csc_matrix(D), fit_model(np.ones(10), Z)), flips(np.arange(10), 1024, seed=0)
    top, reached = maxima(columns, how)
    assert how.n == 512
    assert_allclose(to_t(columns.u, columns.df), palm["r2_dat_tstat"], atol=6e-5)
    assert_allclose(reached / 512, palm["r2_dat_tstat_uncp"], atol=1 / 1024 + 6e-5)
    assert_allclose(counted_p(top, np.abs(columns.u)), palm["r2_dat_tstat_fwep"], atol=1 / 1024 + 6e-5)


def test_permutations_in_blocks_agree_with_palm(oracles):
    """Eight blocks of two: p = 8/256 and family-wise p = 18/256, where PALM loses ties to rounding elsewhere."""
    Y, X, blocks = (np.loadtxt(oracles(f"inputs/flb_{x}.csv"), delimiter=",", ndmin=2) for x in ("Y", "X", "blocks"))
    palm = json.loads(oracles("palm.json").read_text())
    model = fit_model(X[:, 0], X[:, 1:2], fixed=X[:, 2:])
    how = permutations(np.arange(16), np.arange(16), 1000, blocks=blocks.ravel(), seed=0)
    columns = project(sp.csc_matrix(Y), model)
    top, reached = maxima(columns, how)
    assert how.n == 256
    assert_allclose(to_t(columns.u, columns.df), palm["r3_dat_tstat"], atol=6e-5)
    assert_allclose(reached / 256, palm["r3_dat_tstat_uncp"], atol=1 / 256 + 6e-5)
    p = counted_p(top, np.abs(columns.u))
    assert (reached[0], round(p[0] * 256)) == (8, 18)
    assert_allclose(p, palm["r3_dat_tstat_fwep"], atol=1 / 256 + 6e-5)


def test_exhaustive_two_sided_counts_are_even():
    """A relabelling and its mirror have the same |t|, so that counts over all flips are even."""
    Y, Z = sparse(n=9, m=40, density=0.9), nuisance(9, 1)
    columns = project(Y, fit_model(np.ones(9), Z))
    whole, half = flips(np.arange(9), 600, seed=0, two_sided=False), flips(np.arange(9), 600, seed=0)
    reached = maxima(columns, whole)[1]
    assert (reached % 2 == 0).all()
    assert_array_equal(reached, 2 * maxima(columns, half)[1])


def test_tied_regressors_keep_their_ties():
    """Two groups and one informative item each: every relabelling is at least as extreme."""
    Y = sp.csc_matrix((np.array([0.7, 0.7]), ([2, 7], [0, 0])), shape=(12, 1))
    model = fit_model(np.arange(12) % 2.0, np.empty((12, 0)), fixed=np.ones((12, 1)))
    how = permutations(np.arange(12), np.arange(12) % 2, 1000, seed=0)
    assert maxima(project(Y, model), how)[1][0] == how.n


def test_invariant_to_threads_order_scale_and_origin():
    """Threads, feature order and units change nothing; where there is an intercept neither does the nuisance's zero."""
    Y, Z, X = sparse(m=100), nuisance(), np.arange(40.0)
    how = permutations(np.arange(40), np.arange(40), 2000, seed=4)
    columns = project(Y, fit_model(X, Z, fixed=np.ones((40, 1))))
    before, found = numba.get_num_threads(), []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        found.append(maxima(columns, how))
    numba.set_num_threads(before)
    assert_array_equal(found[0][0], found[1][0])
    assert_array_equal(found[0][1], found[1][1])
    order = np.random.default_rng(0).permutation(Y.shape[1])
    other = project(-3.7 * Y[:, order], fit_model(2 * X + 5, Z - Z.mean(axis=0), fixed=np.ones((40, 1))))
    top, reached = maxima(other, how)
    assert_allclose(top, found[0][0], rtol=1e-9)
    assert_array_equal(reached, found[0][1][order])


def false_positives(n_sets=25, m=200, *, n=24, sd=1.0, shift=0.0):
    """Share of p <= .05 where a condition is about one token longer (slope .6): ignored, centred, uncentred."""
    rng, rates = np.random.default_rng(9), []
    how = flips(np.arange(n), 400, seed=2)
    for _ in range(n_sets):
        z = 1 + sd * rng.standard_normal((n, 1))
        D = sp.csc_matrix(0.6 * z + shift + rng.standard_normal((n, m)))
        models = [fit_model(np.ones(n), Z) for Z in (z[:, :0], z - z.mean(), z)]
        rates.append([(maxima(project(D, model), how)[1] / how.n <= 0.05).mean() for model in models])
    return np.mean(rates, axis=0)


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_controls_centred_nuisance_gives_the_confound_back(sd):
    """False positives without an effect: ignored and centred above .5, uncentred near .05."""
    ignored, centred, uncentred = false_positives(sd=sd)
    assert ignored > 0.5
    assert centred > 0.5
    assert 0.033 <= uncentred <= 0.069


def test_recovers_an_effect_at_equal_nuisance():
    """An effect of .9 beside the nuisance is found in most features."""
    assert false_positives(n_sets=8, shift=0.9)[2] > 0.6


def sparse_world(rng, n=32, m=60, *, density=0.2):
    """Differences of features whose latent drive grows with length, one token more in the + condition."""
    z = 1 + rng.standard_normal(n)
    latent = np.sqrt(0.5) * rng.standard_normal((n, m // 10)).repeat(10, axis=1)  # features in blocks of ten
    threshold = np.quantile(rng.standard_normal(20_000), 1 - density)

    def fire(length):
        drive = latent + np.sqrt(0.5) * rng.standard_normal((n, m)) + length
        return np.where(drive > threshold, np.exp(0.4 * rng.standard_normal((n, m))), 0.0)

    D = fire(0.3 * z[:, None]) - fire(np.zeros((n, 1)))
    return sp.csc_matrix(D), z[:, None]


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_controls_family_wise_error_of_sparse_features(density):
    """Length shifts a latent drive, so the linear model is wrong: max-T keeps its level, ignoring does not."""
    rng, how, errors = np.random.default_rng(3), flips(np.arange(32), 300, seed=5), []
    for _ in range(200):
        D, z = sparse_world(rng, density=density)
        kept = np.flatnonzero(np.diff(D.indptr) >= 6)
        D = sp.csc_matrix(D[:, kept])
        rejected = []
        for Z in (z, z[:, :0]):
            columns = project(D, fit_model(np.ones(32), Z))
            top = maxima(columns, how)[0]
            rejected.append(bool((counted_p(top, np.abs(columns.u)) <= 0.05).any()))
        errors.append(rejected)
    adjusted, ignored = np.mean(errors, axis=0)
    assert adjusted <= 0.095
    assert ignored > 2 * adjusted


def test_calibrated_permutations_between_groups():
    """Two unequal groups whose items differ in a nuisance: p is uniform beside it."""
    rng, rates = np.random.default_rng(8), []
    group = (np.arange(30) < 10).astype(float)
    how = permutations(np.arange(30), np.arange(30), 400, seed=2)
    for _ in range(25):
        z = group + rng.standard_normal(30)
        Y = sp.csc_matrix(0.8 * z[:, None] + rng.standard_normal((30, 200)))
        models = [fit_model(group, Z, fixed=np.ones((30, 1))) for Z in (z[:, None], np.empty((30, 0)))]
        rates.append([(maxima(project(Y, m), how)[1] / how.n <= 0.05).mean() for m in models])
    adjusted, ignored = np.mean(rates, axis=0)
    assert 0.03 <= adjusted <= 0.072
    assert ignored > 0.2


@pytest.mark.parametrize(
    ("X", "Z", "words"),
    [
        (np.ones(12), np.full((12, 1), 2.0), "cannot be told from it; change the stimuli"),
        (np.ones(12), np.arange(12.0)[:, None] * [1, -2], "combination of the others"),
        (np.ones(3), np.arange(6.0).reshape(3, 2) ** 2, "too few"),
    ],
)
def test_refuses_what_cannot_be_told_apart(X, Z, words):
    """An aliased or collinear nuisance, and too few items, are refused with the reason."""
    with pytest.raises(DataError, match=words):
        fit_model(X, Z)


def test_refuses_a_column_that_the_nuisance_explains():
    """Nothing is left to be relabelled."""
    Z = nuisance()
    with pytest.raises(DataError, match="explained by the nuisance"):
        project(sp.csc_matrix(Z @ np.array([[1.0], [2.0]])), fit_model(np.ones(40), Z))


def test_all_permutations_of_a_whole_item():
    """Enumerated permutations are all n! of them, each item whole."""
    how = permutations(np.arange(5), np.arange(5), 1000, seed=0)
    assert sorted(map(tuple, labels(how).tolist())) == sorted(itertools.permutations(range(5)))
