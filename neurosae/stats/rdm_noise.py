r"""Gram matrices of patterns: plain, in the metric of a shrunk noise covariance, of rates; never features x features.

With R (n x m) the residuals, every shrunk covariance is a I + b R'R (after dividing columns by their residual sd for
shrinkage towards the diagonal), so the inner products in the metric of its inverse need n x n matrices only (Woodbury):

    Y P Y' = [Y Y' - Y R' (a/b I + R R')^-1 R Y'] / a.

The residuals of a design are projections of the patterns themselves, R = Q Y, so that all three products come from one
Gram matrix Y Y'. Memory O(n^2) whatever m is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from neurosae.errors import DataError, choose
from neurosae.stats.pair_kernels import add_outer, column_counts, mirror, split_columns

DENSE = 0.1  # columns denser than this are multiplied by BLAS, the rest entry by entry
NOISE = ("shrinkage_diag", "shrinkage_eye")
CHUNK = 4096  # columns that are dense at a time
RATE, WEIGHT = 1.0, 0.1  # prior of the Poisson distance, as in rsatoolbox


def gram(X: sp.csr_matrix) -> np.ndarray:
    """Inner products of all rows, X X', of shape (n_rows, n_rows).

    Examples
    --------
    >>> gram(sp.csr_matrix([[1.0, 0.0], [2.0, 3.0]]))
    array([[ 1.,  2.],
           [ 2., 13.]])
    """
    n_rows, n_columns = X.shape  # pyright: ignore[reportGeneralTypeIssues]
    if not X.has_canonical_format:  # an entry that is there twice has one product with itself, of its sum
        X = X.copy()
        X.sum_duplicates()
    count = np.empty(n_columns, dtype=np.int64)
    column_counts(X.indices, count)
    dense = count > DENSE * n_rows
    bounds = np.concatenate([[0], np.cumsum(count[~dense])])
    place = np.empty(n_columns, dtype=np.int64)
    place[dense], place[~dense] = -1 - np.arange(dense.sum()), bounds[:-1]
    rows, values = np.empty(bounds[-1], dtype=np.int32), np.empty(bounds[-1])
    block = np.zeros((n_rows, int(dense.sum())))
    split_columns((X.indptr, X.indices, X.data), place=place, rows=rows, values=values, block=block)
    G = block @ block.T
    add_outer(bounds, rows, values, G=G)
    mirror(G)
    return G


def poisson_products(U: sp.csr_matrix) -> np.ndarray:
    r"""Products u_k' log u_l of rates, whose squared distances are symmetrised Kullback-Leibler divergences.

    Rates are pulled towards a prior, u = (y + lam w) / (1 + w), lam = 1 and w = 0.1 as in rsatoolbox; log u is the
    constant log(lam w / (1 + w)) plus log1p(y / (lam w)), so only sparse products are needed.

    Examples
    --------
    >>> K = poisson_products(sp.csr_matrix([[1.0, 0.0], [3.0, 0.0]]))
    >>> round(float(K[0, 0] + K[1, 1] - K[0, 1] - K[1, 0]) / 2, 6)  # (u - v) (log u - log v) / 2 features
    0.941902
    """
    if U.nnz and U.data.min() < 0:
        raise DataError("the Poisson distance is of rates, but some responses are negative; use euclidean, crossnobis.")
    F = U.shape[1]  # pyright: ignore[reportOptionalSubscript]
    small = RATE * WEIGHT
    logs = U.copy()
    logs.data = np.log1p(U.data / small)  # pyright: ignore
    base = np.log(small / (1 + WEIGHT))
    sums, log_sums = (np.asarray(M.sum(axis=1)).ravel() for M in (U, logs))
    products = (U @ logs.T).toarray() + base * sums[:, None] + small * log_sums[None, :] + small * base * F
    return products / (1 + WEIGHT)


def noise_gram(
    X: sp.csr_matrix, groups: Sequence[np.ndarray], *, dof: int, method: str = "shrinkage_diag"
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all rows in the metric of the inverse noise covariance, estimated from the rows themselves.

    Residuals are the rows without the mean of their group, for one grouping, or without the means of two crossed
    groupings (each pair of groups once), the grand mean added back.

    Parameters
    ----------
    X : of shape (n_rows, n_features)
    groups : one or two int arrays of shape (n_rows,)
    dof : residual degrees of freedom
    method : "shrinkage_diag" (Schaefer & Strimmer 2005) or "shrinkage_eye" (Ledoit & Wolf 2004)

    Returns
    -------
    G : array of shape (n_rows, n_rows)
    kept : indices of the features that have residual variance; the others were dropped

    References
    ----------
    Ledoit & Wolf (2004), J. Multivariate Analysis 88:365. Schaefer & Strimmer (2005), Stat. Appl. Genet. Mol. Biol. 4.
    """
    choose("noise", method, dict.fromkeys(NOISE, True))
    centre = _centring(groups)
    columns = sp.csc_matrix(X)
    square, fourth, size = (np.concatenate(v) for v in zip(*_moments(columns, centre), strict=True))
    kept = np.flatnonzero(square > 1e-12 * size)
    if not len(kept):
        raise DataError("no feature varies inside conditions, so there is no noise covariance; set noise: none.")
    w = dof / square[kept] if method == "shrinkage_diag" else np.ones(len(kept))
    G = gram(sp.csr_matrix(columns[:, kept] @ sp.diags(np.sqrt(w))))
    YR = centre(G.T).T
    return _woodbury(G, YR, centre(YR), r4=float((fourth[kept] * w**2).sum()), dof=dof, shape=(len(kept), method)), kept


def shrunk_gram(
    U: sp.csr_matrix, residuals: sp.csr_matrix, *, dof: int | None = None, method: str = "shrinkage_diag"
) -> np.ndarray:
    """Inner products of patterns in the metric of the inverse of a covariance estimated from other rows.

    Equal to `U P U'` with P of rsatoolbox's `prec_from_residuals(residuals, dof, method)`, for any number of features.

    Parameters
    ----------
    U : of shape (n_patterns, n_features)
    residuals : of shape (n_rows, n_features); their mean is subtracted. Every feature must vary in them
    dof : degrees of freedom; left out, n_rows - 1

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> U, R = sp.csr_matrix(rng.standard_normal((3, 50))), sp.csr_matrix(rng.standard_normal((20, 50)))
    >>> shrunk_gram(U, R).shape
    (3, 3)
    """
    choose("noise", method, dict.fromkeys(NOISE, True))
    n, F = residuals.shape  # pyright: ignore[reportGeneralTypeIssues]
    dof = n - 1 if dof is None else dof
    columns = sp.csc_matrix(residuals)
    p = [_column_sums(columns, k) for k in (1, 2, 3, 4)]
    mean = p[0] / n
    square = p[1] - n * mean**2
    if (square <= 1e-12 * p[1]).any():
        raise DataError(f"{int((square <= 1e-12 * p[1]).sum())} features have no residual variance; drop them first.")
    w = dof / square if method == "shrinkage_diag" else np.ones(F)
    fourth = p[3] - 4 * mean * p[2] + 6 * mean**2 * p[1] - 3 * n * mean**4
    both = sp.csr_matrix(sp.vstack([U, residuals]) @ sp.diags(np.sqrt(w)))
    G, g, k = gram(both), both @ (mean * np.sqrt(w)), U.shape[0]  # pyright: ignore[reportOptionalSubscript]
    UR = G[:k, k:] - g[:k, None]
    RR = G[k:, k:] - g[k:, None] - g[None, k:] + float(mean**2 @ w)
    return _woodbury(G[:k, :k], UR, RR, r4=float((fourth * w**2).sum()), dof=dof, shape=(F, method))


def _woodbury(
    YY: np.ndarray, YR: np.ndarray, RR: np.ndarray, *, r4: float, dof: int, shape: tuple[int, str]
) -> np.ndarray:
    """Y P Y' from the three products; r4 = sum of r^4 over all residuals, in the scaled columns."""
    (F, method), n = shape, len(RR)
    length = np.diag(RR)
    if method == "shrinkage_eye":
        size, middle = float((RR**2).sum()) / n**2, float(length.sum()) / n / F
        spread = size - middle**2 * F
        error = min(spread, (float((length**2).sum()) / n - size) / n)
        a, b = error / spread * middle * n / dof, (spread - error) / spread / dof
    else:
        off = float((RR**2).sum()) / (n - 1) ** 2 - F * (dof / (n - 1)) ** 2
        noise = (float((length**2).sum()) - r4) / (n - 1)
        a = float(np.clip(n / dof**2 * (noise - off) / off, 0, 1)) if off > 0 else 1.0
        b = (1 - a) / dof
    if a <= 0:
        raise DataError("the noise covariance would not be shrunk at all and has no inverse; set noise: none.")
    if b <= 0:
        return YY / a
    inner = RR + np.eye(n) * (a / b)
    return (YY - YR @ scipy.linalg.solve(inner, YR.T, assume_a="pos")) / a


def _centring(groups: Sequence[np.ndarray]):
    """A function that subtracts group means from the rows of an array, and adds the grand mean back for two groups."""
    makers = []
    for codes in groups:
        Z = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
        makers.append((Z, np.asarray(Z.sum(axis=1))))

    def centre(A: np.ndarray) -> np.ndarray:
        out = A.copy()
        for (Z, count), codes in zip(makers, groups, strict=True):
            out -= (Z @ A / count)[codes]
        return out + A.mean(axis=0) if len(groups) > 1 else out

    return centre


def _moments(columns: sp.csc_matrix, centre):
    """Sums of squares and of fourth powers of the residuals of every feature, and its own sum of squares."""
    m = columns.shape[1]  # pyright: ignore[reportOptionalSubscript]
    for start in range(0, m, CHUNK):
        A = columns[:, start : start + CHUNK].toarray()
        R = centre(A)
        yield (R**2).sum(axis=0), (R**4).sum(axis=0), (A**2).sum(axis=0)


def _column_sums(columns: sp.csc_matrix, power: int) -> np.ndarray:
    return np.asarray(columns.power(power).sum(axis=0)).ravel()
