r"""Mixed models y ~ X + (1 | item) by REML for all features at once: a labelled alternative to relabelling.

V = s_e^2 (I + theta Z Z') with theta = s_item^2 / s_e^2; s_e^2 V^-1 = I - sum_i theta / (1 + n_i theta) 1_i 1_i',
so X'y, y'y and the sums of items are all that is needed. With X = QR and one g_s = theta / (1 + n_s theta) per size,

    A = I - sum_s g_s X_s,   c = Q'y - sum_s g_s x_s,   q = y'y - sum_s g_s h_s - c'A^-1 c,
    -2 log REML = (N - K) log q + sum_i log(1 + n_i theta) + log|A| + constants.

Minimized over u = log(1 + n theta) (n the mean size of an item): best of a grid, then Newton steps with exact
derivatives. u = 0, no variance between items, is the rule for sparse features; it is compared explicitly and returned
exactly. Where all items have n rows, A is made diagonal once for all features and an evaluation costs K operations.

(1 | item) is no valid error term of an effect that varies within items: items react differently, and the test then
rejects .09-.10 of true hypotheses at .05. The model that is, (1 + effect | item), is in balanced data the paired t test
of the items' differences.

References
----------
Patterson & Thompson (1971), Biometrika 58:545. Giesbrecht & Burns (1985), Biometrics 41:477 (degrees of freedom).
Barr, Levy, Scheepers & Tily (2013), J. Memory and Language 68:255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats import mixed_kernels as kernels
from neurosae.stats.glm import Basis, Sparse, basis, project, sorted_rows, sparse_columns

GRID = np.linspace(0.0, 12.0, 33)  # u
FEWEST = 5  # levels below which a variance over them cannot be estimated
INTERIOR, ZERO, UNBOUNDED = 0, 1, 2  # states of a fit: a variance, none between items, none within them


class MixedFit(NamedTuple):
    """REML fits of m alive features, C contrasts.

    features : (m,) column numbers;  estimate, se, dof : (m, C), Satterthwaite's degrees of freedom, N - K where the
    variance between items is 0;  var_item, var_resid : (m,);  deviance : (m,) -2 log REML likelihood
    state : (m,) 0 interior, 1 no variance between items, 2 no variance within items (numbers are nan)
    """

    features: np.ndarray
    estimate: np.ndarray
    se: np.ndarray
    dof: np.ndarray
    var_item: np.ndarray
    var_resid: np.ndarray
    deviance: np.ndarray
    state: np.ndarray


class Sums(NamedTuple):
    """What REML needs of each feature: Q'y (m, K), y'y (m,); per size of item sum (Q sums)(y sum) and sum (y sum)^2."""

    cy: np.ndarray
    ss: np.ndarray
    by: np.ndarray
    hs: np.ndarray


class Sizes(NamedTuple):
    """Distinct sizes of items, how many items have each, and per size sum (Q sums)(Q sums)' (S, K, K)."""

    size: np.ndarray
    count: np.ndarray
    XX: np.ndarray


class Terms(NamedTuple):
    """q and log determinant d of the criterion with two derivatives, and per contrast v = w'A^-1 w with one."""

    q: np.ndarray
    d: np.ndarray
    v: np.ndarray


def reml(
    Y: sp.csc_matrix | np.ndarray,
    X: np.ndarray,
    items: np.ndarray,
    *,
    contrasts: np.ndarray,
    names: Sequence[str] | None = None,
) -> MixedFit:
    """Fit y ~ X + (1 | item) to every column of Y.

    Parameters
    ----------
    Y : CSC float64 of shape (N, m), activation units
    X : array of shape (N, K), of full rank
    items : array of shape (N,), the item of each row, in any order
    contrasts : array of shape (C, K)
    names : of the columns of X, for refusals

    Raises
    ------
    DataError
        Fewer than 5 items, one row per item (the two variances cannot be told apart), or an aliased column.

    Notes
    -----
    H0: c'beta = 0. Assumed: normal item effects and residuals of equal variance. Only for effects between items.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> items, group = np.repeat(np.arange(20), 4), np.repeat(np.arange(20) % 2, 4)
    >>> y = rng.standard_normal((80, 1)) + rng.standard_normal(20)[items][:, None] + group[:, None]
    >>> X = np.column_stack([group == 0, group == 1]).astype(float)
    >>> fit = reml(y, X, items, contrasts=np.array([[-1.0, 1.0]]))
    >>> fit.dof.round(6).item(), fit.state.item()
    (18.0, 0)
    """
    V, made = sparse_columns(Y), basis(X, names)
    code = check_levels(items, "items", len(made.Q[0]))
    sums, sizes = item_sums(V, made, code)
    W = made.weights(np.atleast_2d(np.asarray(contrasts, dtype=float)))[: made.shape[1]]
    n, k = made.shape
    if len(sizes.size) == 1:
        u = _balanced(sums, sizes, (n, k))
    else:
        u = np.empty(len(sums.ss))
        kernels.fit_unequal(sums, sizes, GRID, n=float(n), out=u)
    return _finish(V, made, u, sums=sums, sizes=sizes, W=W)


def check_levels(codes: np.ndarray, what: str, n_rows: int) -> np.ndarray:
    """Numbers of the levels of a random effect; refused where its variance cannot be estimated."""
    names, code = np.unique(codes, return_inverse=True)
    if len(code) != n_rows:
        raise DataError(f"{what} has {len(code)} entries for {n_rows} rows.")
    if len(names) < FEWEST:
        raise DataError(f"{len(names)} {what} are too few for a variance over {what}; use at least {FEWEST}.")
    if len(names) == n_rows:
        raise DataError(f"every row is one of the {what}, so their variance cannot be told from the residual; use ols.")
    return code


def item_sums(V: Sparse, made: Basis, code: np.ndarray) -> tuple[Sums, Sizes]:
    """Sufficient statistics of all features, in one pass over the non-zeros."""
    k, order = made.shape[1], np.argsort(code, kind="stable")
    b, ss = project(V, made.Q)
    if (np.diff(code) < 0).any():
        V, code = sorted_rows(V, order), code[order]
    rows = np.bincount(code)
    size, of = np.unique(rows, return_inverse=True)
    XS = np.add.reduceat(made.dense()[order], np.searchsorted(code, np.arange(len(rows))), axis=0)
    XX = np.stack([XS[of == s].T @ XS[of == s] for s in range(len(size))])
    by, hs = np.zeros((len(ss), len(size), k)), np.zeros((len(ss), len(size)))
    kernels.merge_items(V, code, XS, of=of, by=by, hs=hs)
    sizes = Sizes(size.astype(float), np.bincount(of).astype(float), XX)
    return Sums(np.ascontiguousarray(b[:, :k]), ss, by, hs), sizes


def _balanced(sums: Sums, sizes: Sizes, shape: tuple[int, int]) -> np.ndarray:
    """Best u where all items have equal size: A is diagonal in the eigenvectors of its between-item part."""
    size, count = sizes.size[0], sizes.count[0]
    lb, E = np.linalg.eigh(sizes.XX[0] / size)
    lb = np.clip(lb, 0, 1)
    ab = sums.by[:, 0] @ (E / size)
    aw, sb = sums.cy @ E - ab, sums.hs[:, 0] / size
    parts = np.column_stack([np.maximum(sums.ss - sb, 0), sb])
    logdet = np.log((1 - lb) + np.exp(-GRID)[:, None] * lb).sum(axis=1) + count * GRID
    u = np.empty(len(sb))
    kernels.fit_balanced(aw, ab, parts, lb=lb, grid=(GRID, logdet), sizes=(float(shape[0] - shape[1]), count), out=u)
    return u


def _finish(V: Sparse, made: Basis, u: np.ndarray, *, sums: Sums, sizes: Sizes, W: np.ndarray) -> MixedFit:
    n, k = made.shape
    m, C = len(u), W.shape[1]
    beta, terms = np.empty((m, k)), Terms(np.empty((m, 3)), np.empty((m, 3)), np.empty((m, C, 2)))
    kernels.evaluate(sums, sizes, u, W=W, beta=beta, terms=terms)
    state = np.where(u <= 0, ZERO, np.where(u >= GRID[-1] - 1e-6, UNBOUNDED, INTERIOR))
    state = np.where(terms.q[:, 0] <= 1e-12 * sums.ss, UNBOUNDED, state)
    s2 = np.where(state == UNBOUNDED, np.nan, terms.q[:, 0] / (n - k))
    theta = np.expm1(u) * sizes.count.sum() / n
    dof = np.where((state == ZERO)[:, None], float(n - k), satterthwaite(terms, float(n - k)))
    offset = 2 * np.log(np.abs(np.diag(made.R))).sum() + (n - k) * (np.log(2 * np.pi) + 1)
    known = np.isfinite(s2)
    return MixedFit(
        features=V.alive,
        estimate=np.where(known[:, None], beta @ W, np.nan),
        se=np.sqrt(s2[:, None] * terms.v[:, :, 0]),
        dof=np.where(known[:, None], dof, np.nan),
        var_item=theta * s2,
        var_resid=s2,
        deviance=(n - k) * np.log(np.where(known, s2, np.nan)) + terms.d[:, 0] + offset,
        state=state,
    )


def satterthwaite(terms: Terms, n: float) -> np.ndarray:
    """Degrees of freedom 2 v^2 / (g'Ag) of each contrast, A = 2 H^-1, in the coordinates (u, log s^2).

    H is the Hessian of -2 log REML and g the gradient of the variance v of the contrast, both at the minimum, where
    the ratio does not depend on the coordinates.
    """
    q, d, v = terms.q, terms.d, terms.v
    q0 = np.where(q[:, 0] > 0, q[:, 0], np.nan)
    s2 = q0 / n
    h_uu, h_us, h_ss = q[:, 2] / s2 + d[:, 2], -q[:, 1] / s2, q0 / s2
    gu, gs = v[:, :, 1] / v[:, :, 0], 1.0
    det = (h_uu * h_ss - h_us**2)[:, None]
    return det / (gu**2 * h_ss[:, None] - 2 * gu * gs * h_us[:, None] + gs**2 * h_uu[:, None])
