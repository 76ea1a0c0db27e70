r"""Least squares for every feature in one pass over the non-zeros: labelled alternatives to relabelling.

With X = QR, b = Q'y, w = R^-T c and a = Q w, the contrast c'beta of a sparse column y is b'w, and no column is made
dense:

    |e|^2 = |y|^2 - |b|^2,   t = b'w / (|w| sqrt(|e|^2 / (N - K)))
    HC:  g_j = a_j^2 / (1 - h_j)^k:             var = sum g y^2 - 2 b'(sum g y q) + b'(sum g q q') b
    CR:  s_i = sum_{j in i} a_j y_j, M_i alike:  var = sum s_i^2 - 2 b'(sum s_i M_i) + b'(sum M_i M_i') b

Columns are never centred: the intercept lies in the span of Q. Where such a difference falls below 1e-8 of its first
term it has lost its digits and is computed again from the residuals. p-values from these errors rest on assumptions
that sparse features break (rare features between unequal groups: family-wise error up to .9), so they are printed only
beside the p of the relabellings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import scipy.sparse as sp
from scipy.linalg import solve_triangular

from neurosae.errors import DataError, choose
from neurosae.stats import glm_kernels as kernels
from neurosae.stats.moderation import fit_prior, shrink

WIDTH = 8  # columns of Q in one register of eight float64
LOST = 1e-8  # share of the first term below which a difference has no digits left
POWERS = {"HC0": 0.0, "HC1": 0.0, "HC2": 1.0, "HC3": 2.0}
CLUSTERED = ("CR0", "CR1")


class Sparse(NamedTuple):
    """The alive columns of a matrix in CSC: their numbers in it, and pointers, rows and values of them alone."""

    alive: np.ndarray
    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the columns of X.

    Q : (n_blocks, N, 8), padded with zeros;  R : (K, K), X = QR;  names : of the columns of X
    """

    Q: np.ndarray
    R: np.ndarray
    names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of X."""
        return self.Q.shape[1], len(self.R)

    def dense(self) -> np.ndarray:
        """Q without its padding, (N, K)."""
        return np.concatenate(list(self.Q), axis=1)[:, : len(self.R)]

    def weights(self, contrasts: np.ndarray) -> np.ndarray:
        """R^-T c of each contrast (C, K), as columns (8 n_blocks, C)."""
        W = np.zeros((WIDTH * len(self.Q), len(contrasts)))
        W[: len(self.R)] = solve_triangular(self.R.T, contrasts.T, lower=True)
        return W


@dataclass(frozen=True)
class Fit:
    """Least squares of the alive columns of Y; m of them, C contrasts.

    features : (m,) their column numbers;  estimate, se, t : (m, C);  sigma2 : (m,) residual variance
    dof : N - K;  b : (m, 8 n_blocks) = Q'y;  W : (8 n_blocks, C);  basis : Basis
    """

    features: np.ndarray
    t: np.ndarray
    sigma2: np.ndarray
    dof: float
    b: np.ndarray
    W: np.ndarray
    basis: Basis

    @property
    def estimate(self) -> np.ndarray:
        """c'beta, (m, C)."""
        return self.b @ self.W

    @property
    def se(self) -> np.ndarray:
        """Standard errors under equal variances, (m, C)."""
        return np.sqrt(self.sigma2)[:, None] * self.unscaled

    @property
    def unscaled(self) -> np.ndarray:
        """Standard errors at residual variance 1, (C,)."""
        return np.sqrt((self.W * self.W).sum(axis=0))


def sparse_columns(Y: sp.csc_matrix | np.ndarray) -> Sparse:
    """The columns with any non-zero; values that are not finite are refused."""
    M = cast(Any, Y)
    if not (sp.issparse(Y) and M.format == "csc" and M.dtype == np.float64):
        M = cast(Any, sp.csc_matrix(Y, dtype=np.float64))
    M = M if M.has_sorted_indices else M.sorted_indices()
    if not np.isfinite(M.data).all():
        raise DataError("the responses hold values that are not finite; find out where they come from.")
    alive, indptr = kernels.find_alive(M.indptr)
    return Sparse(alive, indptr, np.asarray(M.indices, dtype=np.int32), M.data)


def basis(X: np.ndarray, names: Sequence[str] | None = None) -> Basis:
    """Orthonormal basis of a design matrix of full rank.

    Raises
    ------
    DataError
        A column is a combination of those before it, or no degrees of freedom are left.

    Examples
    --------
    >>> basis(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1.0]]), ["intercept", "a", "b"])
    Traceback (most recent call last):
    neurosae.errors.DataError: column 'b' is aliased: it is a combination of intercept and a; leave one of them out.
    """
    X = np.asarray(X, dtype=float)
    n, k = X.shape
    labels = tuple(f"x{j}" for j in range(k)) if names is None else tuple(names)
    if not np.isfinite(X).all():
        raise DataError("the design matrix holds values that are not finite.")
    if n <= k:
        raise DataError(f"{n} rows and {k} columns leave no degrees of freedom; use more rows or fewer columns.")
    quick = _orthonormal(X)
    if quick is not None:
        return Basis(*quick, labels)
    scale = np.sqrt((X**2).sum(axis=0))
    Q, R = np.linalg.qr(X / np.where(scale > 0, scale, 1))
    for j in np.flatnonzero(np.abs(np.diag(R)) < 1e-9)[:1]:
        _refuse_aliased(X, labels, int(j))
    return Basis(blocks(Q), R * scale, labels)


def _orthonormal(X: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Blocks of Q and R by two Cholesky steps, several times faster than Householder; None where X is near-aliased.

    The first step loses eps / min(diag)^2 of orthogonality, the second restores it to eps (CholeskyQR2, Yamamoto et
    al. 2015, ETNA 44:306).
    """
    n, k = X.shape
    Q, R = np.zeros((n, WIDTH * -(-k // WIDTH))), np.eye(k)
    Q[:, :k] = X
    for _ in range(2):
        gram = (Q.T @ Q)[:k, :k]
        scale = np.sqrt(gram.diagonal())
        if not (scale > 1e-150).all():  # a column of zeros, or numbers whose squares are lost
            return None
        try:
            step = np.linalg.cholesky(gram / np.outer(scale, scale)).T
        except np.linalg.LinAlgError:
            return None
        if step.diagonal().min() < 1e-3:
            return None
        back = np.zeros((Q.shape[1], Q.shape[1]))
        back[:k, :k] = np.linalg.inv(step) / scale[:, None]
        Q, R = Q @ back, (step * scale) @ R
    return np.ascontiguousarray(Q.reshape(n, -1, WIDTH).transpose(1, 0, 2)), R


def blocks(Q: np.ndarray) -> np.ndarray:
    """Columns (N, K) in blocks of eight, (n_blocks, N, 8), the last padded with zeros."""
    n, k = Q.shape
    padded = np.zeros((n, WIDTH * -(-k // WIDTH)))
    padded[:, :k] = Q
    return np.ascontiguousarray(padded.reshape(n, -1, WIDTH).transpose(1, 0, 2))


def _refuse_aliased(X: np.ndarray, names: tuple[str, ...], j: int) -> None:
    if not X[:, j].any():
        raise DataError(f"column '{names[j]}' is zero in all rows; leave it out.")
    part = np.linalg.lstsq(X[:, :j], X[:, j], rcond=None)[0]
    used = [names[i] for i in np.flatnonzero(np.abs(part) > 1e-6 * np.abs(part).max())]
    listed = " and ".join([", ".join(used[:-1]), used[-1]] if len(used) > 1 else used)
    raise DataError(f"column '{names[j]}' is aliased: it is a combination of {listed}; leave one of them out.")


def ols(
    Y: sp.csc_matrix | np.ndarray, X: np.ndarray, contrasts: np.ndarray, *, names: Sequence[str] | None = None
) -> Fit:
    """Least squares of every column of Y on X, and the t of several contrasts, in one pass over the non-zeros.

    Parameters
    ----------
    Y : CSC float64 of shape (N, m), activation units
    X : array of shape (N, K), of full rank; one row per independent unit
    contrasts : array of shape (C, K)
    names : of the columns of X, for refusals

    Returns
    -------
    Fit
        Of the columns with any non-zero; t is nan where the fit leaves no residual.

    Notes
    -----
    H0: c'beta = 0. Assumed: rows independent, normal, of equal variance. Rows of one item are not independent.

    Examples
    --------
    >>> y = np.array([[1.0], [2.0], [4.0], [5.0]])
    >>> fit = ols(y, np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]]), np.array([[-1.0, 1.0]]))
    >>> fit.estimate.round(3), fit.t.round(3)
    (array([[3.]]), array([[4.243]]))
    """
    V, made = sparse_columns(Y), basis(X, names)
    b, ss = project(V, made.Q)
    W = made.weights(np.atleast_2d(np.asarray(contrasts, dtype=float)))
    n, k = made.shape
    sse = np.empty(len(V.alive))
    kernels.squares_left(b, ss, sse)
    for f in np.flatnonzero(sse < LOST * ss):
        sse[f] = (_residuals(V, made, b, f=f) ** 2).sum()
    sse[sse < 1e-26 * ss] = 0.0
    t = (W / np.sqrt((W * W).sum(axis=0) / (n - k))).T @ b.T
    kernels.over_residual(t, sse)
    return Fit(V.alive, t.T, sse / (n - k), float(n - k), b, W, made)


def project(V: Sparse, Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q'y and y'y of the alive columns: (m, 8 n_blocks) and (m,)."""
    m = len(V.alive)
    b, ss = np.empty((m, WIDTH * len(Q))), np.empty(m)
    for k, block in enumerate(Q):
        kernels.project_block(V, block, b[:, WIDTH * k : WIDTH * (k + 1)], ss=ss)
    return b, ss


def _residuals(V: Sparse, made: Basis, b: np.ndarray, *, f: Any) -> np.ndarray:
    y, at = np.zeros(made.shape[0]), slice(V.indptr[f], V.indptr[f + 1])
    y[V.idx[at]] = V.val[at]
    Q = made.dense()
    left = y - Q @ b[f, : made.shape[1]]
    return left - Q @ (Q.T @ left)  # once more, for the last digits


def robust_errors(
    Y: sp.csc_matrix | np.ndarray, fit: Fit, *, kind: str = "HC3", items: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Standard errors that allow unequal variances (HC0-HC3) or dependence inside items (CR0, CR1).

    Parameters
    ----------
    Y : the matrix that `fit` was made from
    kind : HC0, HC1 (times N / (N - K)), HC2, HC3 (leverage h: divided by (1 - h), (1 - h)^2), CR0, or CR1, which is
        CR0 times n_items / (n_items - 1) (N - 1) / (N - K)
    items : int array of shape (N,), for CR; in any order

    Returns
    -------
    se : array of shape (m, C);  dof : N - K, or n_items - 1

    References
    ----------
    MacKinnon & White (1985), J. Econometrics 29:305. Liang & Zeger (1986), Biometrika 73:13.

    Examples
    --------
    >>> y = np.array([[1.0], [2.0], [4.0], [9.0]])
    >>> fit = ols(y, np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]]), np.array([[-1.0, 1.0]]))
    >>> robust_errors(y, fit, kind="HC3")[0].round(4)
    array([[3.6056]])
    """
    choose("standard error", kind, dict.fromkeys([*POWERS, *CLUSTERED]))
    V = sparse_columns(Y)
    if kind in CLUSTERED:
        if items is None:
            raise DataError(f"{kind} needs the item of every row; give `items`.")
        return _cluster_errors(V, fit, np.asarray(items), kind=kind)
    n, k = fit.basis.shape
    Q = fit.basis.dense()
    h = (Q * Q).sum(axis=1)
    row = int(h.argmax())
    if POWERS[kind] and h[row] > 1 - 1e-9:
        raise DataError(f"row {row} alone decides a coefficient (leverage 1), so there is no {kind}; use HC1 or OLS.")
    factor = n / (n - k) if kind == "HC1" else 1.0
    out = np.empty_like(fit.t)
    for c in range(out.shape[1]):
        a = Q @ fit.W[:k, c]
        out[:, c] = np.sqrt(_weighted_squares(V, fit, a * a / (1 - h) ** POWERS[kind]) * factor)
    return out, fit.dof


def _weighted_squares(V: Sparse, fit: Fit, g: np.ndarray) -> np.ndarray:
    """sum_j g_j e_j^2 of every column."""
    Q, b, k = fit.basis.dense(), fit.b, fit.basis.shape[1]
    u, s = np.empty_like(b), np.empty(len(b))
    for block in range(len(fit.basis.Q)):
        kernels.weigh_block(V, fit.basis.Q[block], g, u=u[:, WIDTH * block : WIDTH * (block + 1)], s=s)
    T = np.zeros((b.shape[1], b.shape[1]))
    T[:k, :k] = (Q * g[:, None]).T @ Q
    out = s.copy()
    kernels.subtract_fit(out, b, u, T=T)
    for f in np.flatnonzero(out < LOST * s):
        out[f] = (g * _residuals(V, fit.basis, b, f=f) ** 2).sum()
    return out


def _cluster_errors(V: Sparse, fit: Fit, items: np.ndarray, *, kind: str) -> tuple[np.ndarray, float]:
    names, code = np.unique(items, return_inverse=True)
    n, k = fit.basis.shape
    count = len(names)
    if count < 2:
        raise DataError("all rows are of one item; standard errors by item need at least 2 items.")
    order = np.argsort(code, kind="stable")
    if (np.diff(code) < 0).any():  # items are merged while a column is walked, so their rows must be adjacent
        V, code = sorted_rows(V, order), code[order]
    factor = count / (count - 1) * (n - 1) / (n - k) if kind == "CR1" else 1.0
    Q, out = fit.basis.dense()[order], np.empty_like(fit.t)
    for c in range(out.shape[1]):
        a = Q @ fit.W[:k, c]
        out[:, c] = np.sqrt(_item_squares(V, fit, a, Q=Q, code=code) * factor)
    return out, float(count - 1)


def sorted_rows(V: Sparse, order: np.ndarray) -> Sparse:
    """The same columns with their rows in another order."""
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    moved = sp.csc_matrix((V.val, place[V.idx], V.indptr), shape=(len(order), len(V.indptr) - 1)).sorted_indices()
    return Sparse(V.alive, V.indptr, moved.indices.astype(np.int32), moved.data)


def _item_squares(V: Sparse, fit: Fit, a: np.ndarray, *, Q: np.ndarray, code: np.ndarray) -> np.ndarray:
    """sum_i (sum_{j in i} a_j e_j)^2 of every column."""
    count, k = code[-1] + 1, Q.shape[1]
    starts = np.searchsorted(code, np.arange(count))
    M = np.zeros((count, fit.b.shape[1]))
    M[:, :k] = np.add.reduceat(a[:, None] * Q, starts, axis=0)
    v, s = np.empty_like(fit.b), np.empty(len(fit.b))
    for k0 in range(0, M.shape[1], WIDTH):
        kernels.merge_block(V, a, code, M=np.ascontiguousarray(M[:, k0 : k0 + WIDTH]), v=v[:, k0 : k0 + WIDTH], s=s)
    out = s.copy()
    kernels.subtract_fit(out, fit.b, v, T=M.T @ M)
    for f in np.flatnonzero(out < LOST * s):
        y = np.zeros(len(a))
        at = slice(V.indptr[f], V.indptr[f + 1])
        y[V.idx[at]] = V.val[at]
        e = y - Q @ (Q.T @ y)
        out[f] = (np.add.reduceat(a * (e - Q @ (Q.T @ e)), starts) ** 2).sum()
    return out


def moderated(fit: Fit, covariate: np.ndarray | None = None) -> tuple[np.ndarray, float, float]:
    """Moderated t of a fit: residual variances shrunk towards a trend over the features' activity (limma-trend).

    Parameters
    ----------
    fit : Fit
    covariate : array of shape (m,), e.g. the log of the mean response; None: one prior for all features

    Returns
    -------
    t : array of shape (m, C);  dof : min(d0 + N - K, m (N - K));  d0 : prior degrees of freedom

    References
    ----------
    Smyth (2004), Stat. Appl. Genet. Mol. Biol. 3:3. Law et al. (2014), Genome Biology 15:R29.

    Examples
    --------
    >>> y = np.array([[1.0, 2.0, 0.0], [2.0, 2.5, 1.0], [4.0, 2.0, 3.0]])
    >>> moderated(ols(y, np.ones((3, 1)), np.ones((1, 1))))[0].round(2).ravel()
    array([3.22, 6.22, 1.84])
    """
    d0, s02 = fit_prior(fit.sigma2, fit.dof, covariate)
    post = shrink(fit.sigma2, fit.dof, d0=d0, s02=s02)
    se = np.sqrt(post)[:, None] * fit.unscaled
    return fit.estimate / np.where(se > 0, se, np.nan), min(d0 + fit.dof, fit.dof * len(post)), d0
