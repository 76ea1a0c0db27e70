r"""ANOVA of one response in a design of factors within and between items: type III on cell means, any number of either.

For a subset of the within factors, M (cells x d) holds their orthonormal contrasts times the mean over the others, and
S = Y M are the scores of the items. In the linear model S = X B + E, X sum-coded over the between factors,

    F = (tr(B'L' (L (X'X)^-1 L')^-1 L B) / (r d)) / (tr(E'E) / (d (n - rank X)))

is the test of a between term L beside this within term; the intercept is the within term itself. Sphericity is a
property of E'E: epsilon (Greenhouse and Geisser) multiplies both degrees of freedom, Mauchly's W tests it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from neurosae.errors import DataError


class Term(NamedTuple):
    """One line of the table.

    factors : its factors;  F, df1, df2 : uncorrected degrees of freedom;  p : with Greenhouse and Geisser's epsilon
    p_plain : without it;  epsilon, W, p_sphericity : NaN where there is nothing to correct
    eta2_p, eta2_g : partial, and generalized eta squared for manipulated factors
    """

    factors: tuple[str, ...]
    F: float
    df1: float
    df2: float
    p: float
    p_plain: float
    epsilon: float
    W: float
    p_sphericity: float
    eta2_p: float
    eta2_g: float


class _Squares(NamedTuple):
    """Sums of squares of a term and of its error; numbers of contrasts between and within, and of error df."""

    factors: tuple[str, ...]
    ss: float
    error: float
    sizes: tuple[int, int, int]
    sphere: tuple[float, float, float]


def anova_table(Y: np.ndarray, *, within: Mapping[str, int], between: Mapping[str, np.ndarray]) -> list[Term]:
    """All main effects and interactions.

    Parameters
    ----------
    Y : array of shape (n_items, n_cells), cells in the order of `within`, the last factor fastest
    within : number of levels of every factor within items
    between : level number of every item, of every factor between items

    Raises
    ------
    DataError
        If a between cell has no item, or nothing is left for the error.

    References
    ----------
    Greenhouse & Geisser (1959), Psychometrika 24:95. Mauchly (1940), Ann. Math. Stat. 11:204. Olejnik & Algina (2003),
    Psychological Methods 8:434.

    Examples
    --------
    >>> Y = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 4.0], [1.0, 3.0]])
    >>> (term,) = anova_table(Y, within={"a": 2}, between={})
    >>> round(term.F, 6), term.df2  # t = 1.5 / (0.57735 / 2) = 5.196
    (27.0, 3.0)
    """
    n = len(Y)
    terms, X = _between_terms(between, n)
    rank = np.linalg.matrix_rank(X)
    if rank < X.shape[1]:
        raise DataError("a combination of levels between items has no item, so its interaction cannot be estimated.")
    if n <= rank:
        raise DataError(f"{n} items in {rank} cells leave nothing for the error; use more items.")
    inverse = np.linalg.inv(X.T @ X)
    found, errors = [], 0.0
    for inside in _subsets(tuple(within)):
        S = Y @ _contrasts(within, inside)
        B = inverse @ X.T @ S
        E = S - X @ B
        sphere = _sphericity(E.T @ E, n - rank)
        errors += float((E**2).sum())
        for names, columns in terms.items():
            if not names and not inside:
                continue
            b = B[columns]
            ss = float(np.trace(b.T @ np.linalg.solve(inverse[np.ix_(columns, columns)], b)))
            sizes = (len(columns), S.shape[1], n - int(rank))
            found.append(_Squares(inside + names, ss, float((E**2).sum()), sizes, sphere))
    order = list(within) + list(between)
    lines = [_term(one, errors=errors) for one in found]
    return sorted(lines, key=lambda one: (len(one.factors), [order.index(f) for f in one.factors]))


def _term(made: _Squares, *, errors: float) -> Term:
    names, ss, sse, (r, d, rest), (epsilon, W, p_sphericity) = made
    df1, df2 = float(r * d), float(rest * d)
    F = (ss / df1) / (sse / df2) if sse > 0 else float("nan")
    share = 1.0 if np.isnan(epsilon) else epsilon
    return Term(
        names, F, df1, df2,
        float(stats.f.sf(F, share * df1, share * df2)), float(stats.f.sf(F, df1, df2)),
        epsilon, W, p_sphericity,
        ss / (ss + sse) if ss + sse > 0 else float("nan"), ss / (ss + errors) if ss + errors > 0 else float("nan"),
    )  # fmt: skip


def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [part for size in range(len(names) + 1) for part in combinations(names, size)]


def _orthonormal(n: int) -> np.ndarray:
    """Orthonormal contrasts of n levels (n, n - 1)."""
    Q = np.linalg.qr(np.c_[np.ones(n), np.eye(n)[:, 1:]])[0]
    return Q[:, 1:]


def _contrasts(within: Mapping[str, int], inside: tuple[str, ...]) -> np.ndarray:
    """Contrasts of some within factors, averaged over the others (n_cells, d)."""
    parts = [_orthonormal(n) if name in inside else np.ones((n, 1)) / np.sqrt(n) for name, n in within.items()]
    return reduce(np.kron, parts, np.ones((1, 1)))


def _between_terms(between: Mapping[str, np.ndarray], n: int) -> tuple[dict[tuple[str, ...], np.ndarray], np.ndarray]:
    """Columns of every between term, the empty one the intercept, and the sum-coded model matrix (n, r)."""
    coded = {}
    for name, codes in between.items():
        K = int(codes.max()) + 1
        coded[name] = np.r_[np.eye(K - 1), -np.ones((1, K - 1))][codes]
    blocks, terms, first = [], {}, 0
    for names in _subsets(tuple(between)):
        block = np.ones((n, 1))
        for name in names:
            block = np.einsum("ij,ik->ijk", block, coded[name]).reshape(n, -1)
        terms[names] = np.arange(first, first + block.shape[1])
        first += block.shape[1]
        blocks.append(block)
    return terms, np.concatenate(blocks, axis=1)


def _sphericity(C: np.ndarray, df: int) -> tuple[float, float, float]:
    """Epsilon of Greenhouse and Geisser, Mauchly's W and its p (Box's second-order chi-square)."""
    d = len(C)
    if d < 2 or not np.trace(C) > 0:
        return float("nan"), float("nan"), float("nan")
    epsilon = float(np.trace(C) ** 2 / (d * np.sum(C**2)))
    values = np.maximum(np.linalg.eigvalsh(C), 0.0)
    W = float(np.prod(values / values.mean()))
    if df <= d or W <= 0:
        return epsilon, W, float("nan")
    free = d * (d + 1) / 2 - 1
    rho = 1 - (2 * d**2 + d + 2) / (6 * d * df)
    w2 = (d + 2) * (d - 1) * (d - 2) * (2 * d**3 + 6 * d**2 + 3 * d + 2) / (288 * (d * df * rho) ** 2)
    x = -df * rho * np.log(W)
    p = stats.chi2.sf(x, free)
    return epsilon, W, float(min(1.0, p + w2 * (stats.chi2.sf(x, free + 4) - p)))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p; NaN stays NaN and counts for nothing.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    out, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * (len(order) - np.arange(len(order)))
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return out
