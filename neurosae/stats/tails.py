"""Sign-flip p of single features without random numbers: exact by meeting in the middle, else by saddlepoint."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp

from neurosae.stats.kernels import FAST, compiled

LARGEST = 24  # informative items up to which p is exact
TIE, TIE_FLOAT32 = 1e-10, 2e-7  # of sums of float64 numbers; of numbers made of float32 responses


def flip_p(D: sp.csc_matrix, *, alternative: str = "two-sided", tie: float = TIE) -> tuple[np.ndarray, np.ndarray]:
    """Sign-flip p of the sum of every column: exact up to 24 informative items, by saddlepoint beyond.

    Equal for mean, t and moderated t, which are monotone in |sum_i s_i d_i|; for signed ranks give those instead of D.

    Parameters
    ----------
    D : CSC float64 of shape (n_items, m), without stored zeros
    alternative : "two-sided", "greater" or "less"
    tie : sums closer than this share of sum |d| are equal; larger where the numbers come from float32 responses

    Returns
    -------
    p : array of shape (m,), nan for empty columns;  exact : bool array of shape (m,)

    Examples
    --------
    Darwin's 15 pairs of maize plants (p = 1726 / 32768):

    >>> maize = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    >>> flip_p(sp.csc_matrix(maize[:, None]))[0] * 32768
    array([1726.])
    """
    D = sp.csc_matrix(D)
    k = np.diff(D.indptr)
    indptr, data = D.indptr.astype(np.int64), D.data.astype(float)
    tail, strict, smooth = np.empty(len(k)), np.empty(len(k)), np.empty(len(k))
    exact_tails(indptr, data, tail, largest=LARGEST, slack=-tie)
    exact = (k > 0) & (k <= LARGEST)
    if not exact.all():
        saddle_tails(indptr, data, smooth)
        tail = np.where(exact, tail, smooth)
    if alternative == "two-sided":
        return np.minimum(1, 2 * tail), exact
    exact_tails(indptr, data, strict, largest=LARGEST, slack=tie)
    total = np.asarray(D.sum(axis=0)).ravel() * (1 if alternative == "greater" else -1)
    return np.where(total >= 0, tail, 1 - np.where(exact, strict, tail)), exact


@compiled()
def _signed_sums(d, out, spare):
    """All signed sums of d in rising order: one more value merges list - |d| with list + |d|."""
    n = 1
    out[0] = 0.0
    for k in range(d.size):
        x, i, j = abs(d[k]), 0, 0
        for q in range(2 * n):
            if i < n and (j >= n or out[i] - x <= out[j] + x):
                spare[q] = out[i] - x
                i += 1
            else:
                spare[q] = out[j] + x
                j += 1
        n *= 2
        out[:n] = spare[:n]
    return n


@compiled()
def exact_tails(indptr, data, tail, *, largest, slack):
    """tail[f] = P(sum s d >= |sum d| + slack sum |d|) over all flips of the k non-zero d; nan where k > `largest`.

    Meet in the middle: the signed sums of two halves in order, then two pointers; 2^(k/2) steps. Exact ties are the
    rule with few items, hence a tolerance absolute in sum|d|: slack is negative, positive where `>` is meant.
    """
    size = 1 << ((largest + 1) // 2)
    A, B, spare = np.empty(size), np.empty(size), np.empty(size)
    for f in range(indptr.size - 1):
        d = data[indptr[f] : indptr[f + 1]]
        k = d.size
        if k == 0 or k > largest:
            tail[f] = np.nan
            continue
        weight, x = 0.0, 0.0
        for v in d:
            weight += abs(v)
            x += v
        x = abs(x) + slack * weight
        low, high = _signed_sums(d[: k // 2], A, spare), _signed_sums(d[k // 2 :], B, spare)
        j, count = high, 0
        for i in range(low):
            while j > 0 and A[i] + B[j - 1] >= x:
                j -= 1
            count += high - j
        tail[f] = count / 2.0**k


@compiled(fastmath=FAST)
def _saddle(d, x, square):
    """P(sum s d >= x) by Lugannani-Rice in r* form: K(u) = sum log cosh(u d), K'(u) = x by damped Newton steps."""
    u, cap = x / square, 2 / math.sqrt(square)
    for _ in range(100):
        k1, k2 = 0.0, 0.0
        for v in d:
            th = math.tanh(u * v)
            k1 += v * th
            k2 += v * v * (1 - th * th)
        step = min((x - k1) / max(k2, 1e-300), cap)
        u += step
        if abs(step) * math.sqrt(square) < 1e-9:
            break
    K, k2 = 0.0, 0.0
    for v in d:
        z, th = abs(u * v), math.tanh(u * v)
        K += z + math.log1p(math.exp(-2 * z)) - math.log(2.0)
        k2 += v * v * (1 - th * th)
    w, v = math.sqrt(max(2 * (u * x - K), 0.0)), u * math.sqrt(k2)
    r = w + math.log(v / w) / w if w > 1e-3 else w
    return min(0.5, 0.5 * math.erfc(r / math.sqrt(2.0)))


@compiled(fastmath=FAST)
def saddle_tails(indptr, data, tail):
    """The tails of `exact_tails` by saddlepoint, for columns with many non-zeros; one sign throughout gives 2^-k."""
    for f in range(indptr.size - 1):
        d = data[indptr[f] : indptr[f + 1]]
        x, square, weight = 0.0, 0.0, 0.0
        for v in d:
            x += v
            square += v * v
            weight += abs(v)
        if d.size == 0:
            tail[f] = np.nan
        elif abs(x) <= 1e-10 * weight:
            tail[f] = 0.5
        elif abs(x) >= weight * (1 - 1e-9):
            tail[f] = 2.0 ** -float(d.size)
        else:
            tail[f] = _saddle(d, abs(x), square)
