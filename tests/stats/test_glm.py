"""Least squares of all features: agreement with statsmodels, R's sandwich and limma, lost digits, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.stats.glm import CLUSTERED, POWERS, basis, moderated, ols, robust_errors


def sparse_data(n_items=15, n_features=40, *, k=5, seed=0):
    """Sparse responses of four rows per item, a design of k columns, items of unequal weight."""
    rng = np.random.default_rng(seed)
    items = np.repeat(np.arange(n_items), 4)
    n = len(items)
    Y = rng.gamma(2.0, 1.0, (n, n_features)) * (rng.random((n, n_features)) < rng.uniform(0.15, 0.9, n_features))
    Y[:, 3] = 0
    X = np.column_stack([np.ones(n), rng.standard_normal((n, k - 1)) * np.exp(rng.standard_normal(k - 1))])
    X[:, 1] = rng.standard_normal(n_items)[items]
    return sp.csc_matrix(Y), X, items


def statsmodels_errors(Y, X, kind, *, items):
    """Standard errors of all coefficients, column by column."""
    fits = [sm.OLS(y, X).fit() for y in Y.toarray().T]
    if kind is None:
        return np.array([fit.bse for fit in fits])
    if kind in CLUSTERED:
        options = {"groups": items, "use_correction": kind == "CR1"}
        return np.array([fit.get_robustcov_results("cluster", **options).bse for fit in fits])
    return np.array([fit.get_robustcov_results(kind).bse for fit in fits])


@pytest.mark.parametrize("k", [5, 11])
def test_ols_agrees_with_statsmodels(k):
    """Estimates, errors and t of every contrast, also where X needs two blocks; dead columns are left out."""
    Y, X, _ = sparse_data(k=k)
    contrasts = np.vstack([np.eye(k)[:3], np.r_[0, 1, -2, np.zeros(k - 3)]])
    fit = ols(Y, X, contrasts)
    assert_array_equal(fit.features, np.setdiff1d(np.arange(40), [3]))
    for row, column in enumerate(fit.features):
        known = sm.OLS(Y[:, [column]].toarray().ravel(), X).fit().t_test(contrasts)
        assert_allclose(fit.t[row], known.tvalue, rtol=1e-9)
        assert_allclose(fit.estimate[row], known.effect, rtol=1e-9, atol=1e-12)
        assert_allclose(fit.se[row], known.sd, rtol=1e-9)
    assert fit.dof == len(X) - k


@pytest.mark.parametrize("k", [5, 11])
@pytest.mark.parametrize("kind", [*POWERS, *CLUSTERED])
def test_robust_errors_agree_with_statsmodels(kind, k):
    """All kinds, items in any order of rows."""
    Y, X, items = sparse_data(k=k)
    order = np.random.default_rng(1).permutation(len(items))
    Y, X, items = Y[order], X[order], items[order] * 7 % 15
    se, dof = robust_errors(Y, ols(Y, X, np.eye(k)), kind=kind, items=items)
    assert_allclose(se, statsmodels_errors(Y[:, np.setdiff1d(np.arange(40), [3])], X, kind, items=items), rtol=1e-9)
    assert dof == (14 if kind in CLUSTERED else len(X) - k)


def test_robust_errors_agree_with_sandwich(oracles):
    """HC0-HC3 and cluster errors of R's sandwich package."""
    known = json.loads(oracles("robust_glm.json").read_text())
    item, *rest = np.loadtxt(oracles("inputs/rob.csv"), delimiter=",").T
    X, y = np.column_stack([np.ones(len(item)), *rest[:2]]), rest[2][:, None]
    fit = ols(y, X, np.eye(3))
    assert_allclose(fit.estimate[0], known["coef"], rtol=1e-10)
    assert_allclose(fit.se[0], known["ols_se"], rtol=1e-10)
    for kind in [*POWERS, *CLUSTERED]:
        se, _ = robust_errors(y, fit, kind=kind, items=item)
        # vcovCL(type = "HC0") still multiplies the variance by G / (G - 1), G = 16 items
        factor = np.sqrt(16 / 15) if kind == "CR0" else 1.0
        assert_allclose(factor * se[0], known[{"CR1": "CR1_sandwich"}.get(kind, kind)], rtol=1e-10)


def test_ols_recovers_digits_of_a_nearly_perfect_fit():
    """Where |e|^2 is 1e-15 of |y|^2, all errors are computed from the residuals."""
    _, X, items = sparse_data()
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(len(X))
    noise -= X @ np.linalg.lstsq(X, noise, rcond=None)[0]
    y = (X @ np.arange(1, 6.0) + 1e-7 * noise)[:, None]
    fit = ols(y, X, np.eye(5))
    assert_allclose(fit.se[0], 1e-7 * sm.OLS(noise, X).fit().bse, rtol=1e-6)
    for kind in ("HC3", "CR1"):
        known = statsmodels_errors(sp.csc_matrix(noise[:, None]), X, kind, items=items)
        assert_allclose(robust_errors(y, fit, kind=kind, items=items)[0], 1e-7 * known, rtol=1e-6)


def test_ols_gives_no_t_where_nothing_is_left():
    """A column that the design explains wholly has no error, so its t is nan and not infinite."""
    fit = ols(np.repeat([[1.0], [3.0]], 3, axis=0), np.repeat(np.eye(2), 3, axis=0), np.array([[-1.0, 1.0]]))
    assert fit.estimate[0, 0] == pytest.approx(2)
    assert fit.se[0, 0] == 0
    assert np.isnan(fit.t[0, 0])


def test_moderated_agrees_with_limma(oracles):
    """t and prior of a regression, with and without a trend."""
    known = json.loads(oracles("limma_ebayes.json").read_text())
    y, X = (np.loadtxt(oracles(f"inputs/{name}.csv"), delimiter=",") for name in ("eb_reg", "eb_X"))
    fit = ols(y.T, X, np.eye(X.shape[1])[[1]])
    for name, covariate in (("regression", None), ("regression_trend", y.mean(axis=1))):
        t, dof, d0 = moderated(fit, covariate)
        assert_allclose(t[:, 0], known[name]["t"], rtol=1e-9)
        assert_allclose([d0, dof], [known[name]["df_prior"], known[name]["df_total"][0]], rtol=1e-9)


def test_ols_invariant_to_order_scale_and_other_features():
    """A feature's numbers do not depend on its neighbours, nor t on its unit."""
    Y, X, items = sparse_data()
    full, part = ols(Y, X, np.eye(5)), ols(-3 * Y[:, [20, 7]], X, np.eye(5))
    row = np.searchsorted(full.features, [20, 7])
    assert_allclose(part.t, -full.t[row], rtol=1e-12)
    se, _ = robust_errors(Y, full, kind="CR1", items=items)
    assert_allclose(robust_errors(-3 * Y[:, [20, 7]], part, kind="CR1", items=items)[0], 3 * se[row], rtol=1e-12)


def test_basis_refuses_an_aliased_column():
    """The message names the column and what it is made of."""
    X = np.column_stack([np.ones(6), np.arange(6.0), np.arange(6.0) ** 2, 3 + 2 * np.arange(6.0)])
    with pytest.raises(DataError, match="'len' is aliased: it is a combination of one and n;"):
        basis(X, ["one", "n", "square", "len"])
    with pytest.raises(DataError, match="'x1' is zero"):
        basis(np.column_stack([np.ones(4), np.zeros(4)]))
    with pytest.raises(DataError, match="2 rows and 2 columns"):
        basis(np.eye(2))


def test_robust_errors_refuse_what_does_not_exist():
    """HC3 with a row of leverage 1, CR1 of one item, values that are not finite, an unknown kind."""
    X = np.column_stack([np.ones(5), np.eye(5)[:, 2]])
    y = np.arange(1.0, 6)[:, None]
    fit = ols(y, X, np.eye(2))
    with pytest.raises(DataError, match="row 2 alone decides"):
        robust_errors(y, fit, kind="HC3")
    with pytest.raises(DataError, match="one item"):
        robust_errors(y, fit, kind="CR1", items=np.zeros(5))
    with pytest.raises(DataError, match="give `items`"):
        robust_errors(y, fit, kind="CR1")
    with pytest.raises(DataError, match="Did you mean 'HC3'"):
        robust_errors(y, fit, kind="HC33")
    with pytest.raises(DataError, match="not finite"):
        ols(np.full((5, 1), np.nan), X, np.eye(2))


@pytest.mark.parametrize("near", [0.0, 1e-2, 1e-5, 1e-8])
def test_basis_recovers_an_orthonormal_basis(near):
    """X = QR and Q'Q = 1 to the last digits, for columns of very unequal size and for columns that are nearly alike."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 10))
    X[:, 9] = near * X[:, 9] + X[:, 2] if near else X[:, 9]
    X *= 10.0 ** np.arange(-5, 5)
    made = basis(X)
    assert_allclose(made.dense().T @ made.dense(), np.eye(10), atol=1e-14)
    assert_allclose(made.dense() @ made.R / np.linalg.norm(X, axis=0), X / np.linalg.norm(X, axis=0), atol=1e-14)
    assert not made.Q[1, :, 2:].any()
