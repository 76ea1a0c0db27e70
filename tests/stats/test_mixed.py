"""REML of (1 | item) for all features: agreement with lme4 and statsmodels, boundaries, error rate, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.regression.mixed_linear_model import MixedLM

from neurosae.errors import DataError
from neurosae.stats import mixed_kernels
from neurosae.stats.glm import basis, ols, sparse_columns
from neurosae.stats.mixed import GRID, _balanced, check_levels, item_sums, reml


def oracle(oracles):
    """Responses, design with an intercept, items, the rows of the unbalanced fit, and what lme4 says."""
    read = {name: np.loadtxt(oracles(f"inputs/lmm_{name}.csv"), delimiter=",") for name in ("Y", "X", "item", "keep")}
    X = np.column_stack([np.ones(len(read["X"])), read["X"]])
    return read["Y"], X, read["item"], read["keep"] == 1, json.loads(oracles("lmm.json").read_text())


def worlds(n_items=24, n_rows=4, n_features=60, *, ratio=1.0, seed=0):
    """Null responses of two groups of items, with a variance between items."""
    rng = np.random.default_rng(seed)
    items = np.repeat(np.arange(n_items), n_rows)
    Y = rng.standard_normal((len(items), n_features))
    Y += np.sqrt(ratio) * rng.standard_normal((n_items, n_features))[items]
    group = items % 2
    return Y, np.column_stack([group == 0, group == 1]).astype(float), items


def deviance(y, X, items, *, theta):
    """-2 log REML likelihood by the definition, dense."""
    n, k = X.shape
    V = np.eye(n) + theta * (items[:, None] == items)
    root = np.linalg.cholesky(V)
    x, z = np.linalg.solve(root, X), np.linalg.solve(root, y)
    left = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
    s2 = left @ left / (n - k)
    logs = 2 * np.log(np.diag(root)).sum() + np.linalg.slogdet(x.T @ x)[1]
    return (n - k) * (np.log(2 * np.pi * s2) + 1) + logs


@pytest.mark.parametrize("rows", ["balanced", "unbalanced"])
def test_reml_agrees_with_lme4(oracles, rows):
    """Estimates, errors, variances, likelihood and Satterthwaite df; boundary fits are exactly 0."""
    Y, X, items, keep, known = oracle(oracles)
    known, sub = known[rows], keep if rows == "unbalanced" else np.ones(len(Y), dtype=bool)
    fit, se = reml(Y[sub], X[sub], items[sub], contrasts=np.eye(5)), np.array(known["se"])
    assert np.abs((fit.estimate - known["estimate"]) / se).max() < 1e-6
    assert_allclose(fit.se, se, rtol=1e-6)
    assert_allclose(fit.var_item, known["var_item"], atol=1e-6)
    assert_allclose(fit.var_resid, known["var_resid"], atol=1e-6)
    assert_allclose(fit.deviance, known["minus2_reml"], atol=1e-8)
    assert_allclose(fit.dof, known["df_satterthwaite"], rtol=1e-4)
    boundary = np.array(known["var_item"]) < 1e-6
    assert (fit.var_item[boundary] == 0).all()
    assert ((fit.state == 1) == boundary).all()


def test_reml_agrees_with_statsmodels_in_the_interior():
    """Where MixedLM converges: estimates within 1e-3 s.e., variances within 1 %."""
    Y, X, items = worlds(n_features=6, ratio=2.0)
    keep = np.random.default_rng(3).random(len(items)) < 0.8
    Y, X, items = Y[keep], X[keep], items[keep]
    fit, seen = reml(Y, X, items, contrasts=np.eye(2)), 0
    for j in range(6):
        known = MixedLM(Y[:, j], X, groups=items).fit(reml=True)
        if known.converged and fit.state[j] == 0:
            seen += 1
            assert (np.abs(known.fe_params - fit.estimate[j]) < 1e-3 * fit.se[j]).all()
            assert_allclose(fit.var_item[j], known.cov_re[0, 0], rtol=1e-2)
            assert_allclose(fit.deviance[j], -2 * known.llf, rtol=1e-6)
    assert seen >= 4


@pytest.mark.parametrize("balanced", [True, False])
def test_reml_agrees_with_the_criterion_minimized_directly(balanced):
    """No other variance ratio has a smaller -2 log REML, on the boundary or inside."""
    Y, X, items = worlds(n_items=12, n_features=20, ratio=0.1, seed=4)
    if not balanced:
        Y, X, items = Y[5:], X[5:], items[5:]
    order = np.random.default_rng(0).permutation(len(items))
    fit = reml(Y[order], X[order], items[order], contrasts=np.eye(2))
    for j in range(20):
        best = minimize_scalar(
            lambda u, y=Y[:, j]: deviance(y, X, items, theta=np.expm1(u)), bounds=(0, 6), method="bounded"
        )
        at = deviance(Y[:, j], X, items, theta=fit.var_item[j] / fit.var_resid[j])
        assert fit.deviance[j] == pytest.approx(at, abs=1e-9)
        assert at <= min(best.fun, deviance(Y[:, j], X, items, theta=0.0)) + 1e-9
    assert 0 < (fit.state == 1).sum() < 20


def test_reml_at_the_boundary_agrees_with_least_squares():
    """No variance between items: the estimates, errors and N - K of ordinary least squares, exactly."""
    Y, X, items = worlds(n_features=60, ratio=0.0, seed=1)
    fit, plain = reml(Y, X, items, contrasts=np.eye(2)), ols(Y, X, np.eye(2))
    zero = fit.state == 1
    assert zero.sum() > 10
    assert (fit.var_item[zero] == 0).all()
    assert_allclose(fit.estimate[zero], plain.estimate[zero], rtol=1e-12)
    assert_allclose(fit.se[zero], plain.se[zero], rtol=1e-12)
    assert (fit.dof[zero] == plain.dof).all()


def test_both_ways_to_fit_agree():
    """The path of equal items and the general one find the same ratio."""
    Y, X, items = worlds(n_features=40, ratio=0.5)
    sums, sizes = item_sums(sparse_columns(Y), made := basis(X), check_levels(items, "items", len(items)))
    general = np.empty(40)
    mixed_kernels.fit_unequal(sums, sizes, GRID, n=float(len(items)), out=general)
    assert_allclose(_balanced(sums, sizes, made.shape), general, atol=1e-9)


def test_reml_between_items_controls_the_error_rate():
    """Two groups of items, no difference: p <= .05 in a share inside the binomial 99.9 % band, on n - 2 df."""
    Y, X, items = worlds(n_features=2000, ratio=1.5, seed=7)
    fit = reml(Y, X, items, contrasts=np.array([[-1.0, 1.0]]))
    p = 2 * stats.t.sf(np.abs(fit.estimate / fit.se), fit.dof)[:, 0]
    low, high = stats.binom.interval(0.999, 2000, 0.05)
    assert low <= (p <= 0.05).sum() <= high
    assert_allclose(np.median(fit.dof), 22, rtol=1e-3)


def test_reml_says_where_nothing_varies_within_items():
    """Rows of an item are equal: the ratio has no bound, so there are no numbers and the state says why."""
    Y, X, items = worlds(n_features=3)
    Y[:, 1] = np.arange(24.0)[items] ** 0.5
    fit = reml(Y, X, items, contrasts=np.eye(2))
    assert fit.state.tolist() == [0, 2, 0]
    assert np.isnan([fit.estimate[1, 0], fit.se[1, 0], fit.dof[1, 0], fit.var_item[1]]).all()


def test_reml_invariant_to_scale_and_neighbours():
    """Units change no degrees of freedom; other features change nothing."""
    Y, X, items = worlds(n_features=30)
    full, part = reml(Y, X, items, contrasts=np.eye(2)), reml(-4 * Y[:, [9]], X, items, contrasts=np.eye(2))
    assert_allclose(part.estimate[0], -4 * full.estimate[9], rtol=1e-9)
    assert_allclose(part.dof[0], full.dof[9], rtol=1e-9)


def test_reml_refuses_levels_that_carry_no_variance():
    """Fewer than 5 items; one row per item."""
    Y, X, items = worlds(n_items=4)
    with pytest.raises(DataError, match=r"4 items are too few .* at least 5"):
        reml(Y, X, items, contrasts=np.eye(2))
    with pytest.raises(DataError, match="every row is one of the items"):
        reml(Y, X, np.arange(len(items)), contrasts=np.eye(2))
    with pytest.raises(DataError, match="3 entries for 16 rows"):
        reml(Y, X, np.arange(3), contrasts=np.eye(2))
