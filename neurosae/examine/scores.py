r"""Scores of features over texts: how strong, how often, how selective, and how much one category has of them.

All start from one matrix, the pooled activation a_sj of feature j in text s (S texts, sparse, never negative), and a
threshold theta_j above which a text counts as strong:

| score | formula |
|---|---|
| strongest | max_s a_sj |
| frequency, density | n = #{a_sj > 0}, n / S |
| lifetime sparseness | (1 - (mean_s a)^2 / mean_s a^2) / (1 - 1/S) |
| legacy selectivity | #{s: a_sj > theta_j}: the fewer, the more selective |
| composite | 100 P_s(a > theta) x mean_s a |
| specialist of C | #{strong in C} - #{strong outside C} |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import norm

from neurosae.errors import DataError
from neurosae.stats.ranks import ranks_from_zero


class TextScores(NamedTuple):
    """Scores of every feature, arrays of shape (m,).

    Attributes
    ----------
    largest, text : strongest activation, and the row where it stands
    n_active, n_strong : texts with any activation, and with more than the threshold
    mean, mean_active : over all texts, and over those where the feature is active (NaN where none is)
    sparseness : lifetime sparseness, 0 (equal in all texts) to 1 (one text); NaN where it is never active
    composite : 100 x share of strong texts x mean
    """

    largest: np.ndarray
    text: np.ndarray
    n_active: np.ndarray
    n_strong: np.ndarray
    mean: np.ndarray
    mean_active: np.ndarray
    sparseness: np.ndarray
    composite: np.ndarray


def as_columns(values: Any) -> sp.csc_matrix:
    """Texts x features as CSC float64, exact zeros dropped; negative values are refused."""
    A = sp.csc_matrix(values, dtype=np.float64)
    A.eliminate_zeros()
    if len(A.data) and A.data.min() < 0:
        raise DataError("activations are negative; these scores are for features that are active or not (0).")
    A.sort_indices()
    return A


def active_median(A: sp.csc_matrix) -> np.ndarray:
    """Median of the active values of every feature (m,); NaN where it is never active.

    Examples
    --------
    >>> active_median(as_columns([[0.0, 1.0], [2.0, 3.0], [0.0, 8.0]])).tolist()
    [2.0, 3.0]
    """
    n = np.diff(A.indptr)
    ordered = A.data[np.lexsort((A.data, np.repeat(np.arange(len(n)), n)))]
    low, high = A.indptr[:-1] + np.maximum(n - 1, 0) // 2, A.indptr[:-1] + n // 2
    out = np.full(len(n), np.nan)
    here = n > 0
    out[here] = (ordered[low[here]] + ordered[high[here]]) / 2
    return out


def strong_texts(A: sp.csc_matrix, theta: np.ndarray | float) -> sp.csc_matrix:
    """1 where a text is above the feature's threshold (strictly), else 0; a threshold of NaN is never exceeded.

    Examples
    --------
    >>> strong_texts(as_columns([[5.0, 5.1, 9.0]]), 5.0).toarray().tolist()
    [[0.0, 1.0, 1.0]]
    """
    limit = np.broadcast_to(np.asarray(theta, dtype=np.float64), (A.shape[1],))  # pyright: ignore
    if (limit < 0).any():
        raise DataError("a threshold is negative, so texts without the feature would count as strong; use 0 or more.")
    with np.errstate(invalid="ignore"):
        above = A.data > np.repeat(limit, np.diff(A.indptr))
    out = sp.csc_matrix((above.astype(np.float64), A.indices, A.indptr), shape=A.shape, copy=True)
    out.eliminate_zeros()  # of a copy: the arrays of A would be cut too
    return out


def text_scores(values: Any, theta: np.ndarray | float) -> TextScores:
    r"""All scores of a matrix of pooled activations; the formulas stand at the head of this module.

    Parameters
    ----------
    values : array or sparse matrix of shape (S, m), activations >= 0
    theta : threshold, or one per feature (m,)

    Examples
    --------
    In all of 70 texts, with a mean of 9.92: composite 992.

    >>> round(float(text_scores(np.full((70, 1), 9.92), 5.0).composite[0]), 9)
    992.0

    One strong text of 70: as selective as can be.

    >>> float(text_scores(np.eye(70)[:, :1] * 8, 5.0).sparseness[0].round(9))
    1.0
    """
    A = as_columns(values)
    S, m = A.shape  # pyright: ignore[reportGeneralTypeIssues]
    n, filled = np.diff(A.indptr), np.diff(A.indptr) > 0
    largest, text = np.zeros(m), np.zeros(m, dtype=np.int64)
    starts = A.indptr[:-1][filled]
    if len(starts):
        largest[filled] = np.maximum.reduceat(A.data, starts)
        hit = np.flatnonzero(A.data == np.repeat(largest, n))
        column = np.repeat(np.arange(m), n)[hit]
        first = np.unique(column, return_index=True)[1]
        text[column[first]] = A.indices[hit[first]]
    n_strong = np.diff(strong_texts(A, theta).indptr)
    mean = np.asarray(A.mean(axis=0)).ravel()
    square = np.asarray(A.power(2).mean(axis=0)).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        sparseness = np.where(filled, (1 - mean**2 / square) / (1 - 1 / S), np.nan) if S > 1 else np.full(m, np.nan)
        mean_active = np.where(filled, mean * S / n, np.nan)
    return TextScores(largest, text, n, n_strong, mean, mean_active, sparseness, 100 * n_strong / S * mean)


def specialist_counts(strong: Any, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strong texts inside and outside a category, and their difference, the specialist score; (m,) each.

    Parameters
    ----------
    strong : of `strong_texts`, or any 0/1 matrix (S, m)
    inside : bool (S,), the texts of the category

    Examples
    --------
    Strong in 7 of the 10 texts of a category and in 1 of 60 others: +6.

    >>> strong = np.r_[np.ones(7), np.zeros(3), np.ones(1), np.zeros(59)][:, None]
    >>> [int(x[0]) for x in specialist_counts(strong, np.arange(70) < 10)]
    [7, 1, 6]
    """
    rows, inside = sp.csr_matrix(strong), np.asarray(inside, dtype=bool)
    within, without = (np.asarray(rows[chosen].sum(axis=0)).ravel() for chosen in (inside, ~inside))
    return within, without, within - without


def auroc(values: Any, inside: np.ndarray) -> np.ndarray:
    """P(a text of the category has more of the feature than one outside) + half of ties, (m,).

    Examples
    --------
    >>> auroc(np.array([[3.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), np.array([True, True, False, False])).tolist()
    [0.875, 0.5]
    """
    A, inside = as_columns(values), np.asarray(inside, dtype=bool)
    n, k = len(inside), int(inside.sum())
    if not 0 < k < n:
        raise DataError(f"{k} of {n} texts are inside the category; an AUROC needs some inside and some outside.")
    ranks = ranks_from_zero(A)
    total, own = (np.asarray(sp.csr_matrix(ranks)[rows].sum(axis=0)).ravel() for rows in (slice(None), inside))
    return 0.5 + (own / k - (total - own) / (n - k)) / n


def d_prime(values: Any, inside: np.ndarray) -> np.ndarray:
    """Difference of the two means in units of the root of the mean of the two variances, (m,); NaN without variance.

    Examples
    --------
    >>> d_prime(np.array([[4.0], [6.0], [0.0], [2.0]]), np.array([True, True, False, False])).round(6).tolist()
    [2.828427]
    """
    rows, inside = sp.csr_matrix(as_columns(values)), np.asarray(inside, dtype=bool)
    means, variances = [], []
    for chosen in (inside, ~inside):
        part, k = rows[chosen], int(chosen.sum())
        mean = np.asarray(part.mean(axis=0)).ravel()
        square = np.asarray(part.power(2).mean(axis=0)).ravel()
        means.append(mean)
        variances.append(np.maximum(square - mean**2, 0) * k / (k - 1) if k > 1 else np.full(len(mean), np.nan))
    spread = np.sqrt((variances[0] + variances[1]) / 2)
    return np.divide(means[0] - means[1], spread, out=np.full(len(spread), np.nan), where=spread > 0)


def score_interval(successes: np.ndarray, n: int, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson interval of a share, (low, high); successes may be fractions where a unit is a mean over its texts.

    References
    ----------
    Wilson (1927), JASA 22:209.

    Examples
    --------
    >>> [float(x.round(4)) for x in score_interval(np.array(7), 10)]
    [0.3968, 0.8922]
    """
    z = float(norm.isf((1 - level) / 2))
    p = np.asarray(successes, dtype=float) / n
    middle, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.maximum((middle - half) / (1 + z**2 / n), 0), np.minimum((middle + half) / (1 + z**2 / n), 1)


def rate_difference(inside: tuple[np.ndarray, int], outside: tuple[np.ndarray, int], *, level: float = 0.95) -> tuple:
    """Difference of two shares and its hybrid score interval: (difference, low, high).

    Parameters
    ----------
    inside, outside : (successes (m,), n)

    References
    ----------
    Newcombe (1998), Statistics in Medicine 17:873, method 10.

    Examples
    --------
    Newcombe's example a, 56/70 against 48/80:

    >>> [float(x.round(4)) for x in rate_difference((np.array(56), 70), (np.array(48), 80))]
    [0.2, 0.0524, 0.3339]
    """
    (x1, n1), (x2, n2) = inside, outside
    p1, p2 = x1 / n1, x2 / n2
    (l1, u1), (l2, u2) = score_interval(x1, n1, level=level), score_interval(x2, n2, level=level)
    low = p1 - p2 - np.sqrt((p1 - l1) ** 2 + (u2 - p2) ** 2)
    return p1 - p2, low, p1 - p2 + np.sqrt((u1 - p1) ** 2 + (p2 - l2) ** 2)
