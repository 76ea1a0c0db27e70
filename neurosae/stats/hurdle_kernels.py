"""Compiled loops of the hurdle statistic: sums of both parts under flips and permuted labels, and tails of H."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from neurosae.stats.kernels import FAST, _advance, compiled
from neurosae.stats.tails import _saddle, _signed_sums


class HurdleColumns(NamedTuple):
    """Columns of both parts, normalised: of column f the first `split` entries fire on one side, the rest on both."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    split: np.ndarray
    total: np.ndarray
    bound: np.ndarray


@compiled()
def hurdle_tails(indptr, data, p, *, n_fire, net, largest):
    """p[f] = P(H >= observed) over all flips; `n_fire` items fire on one side, `net` more on one than the other."""
    size = 1 << ((largest + 1) // 2)
    A, B, spare = np.empty(size), np.empty(size), np.empty(size)
    for f in range(p.size):
        d, a = data[indptr[f] : indptr[f + 1]], n_fire[f]
        square, weight, total, low, high = 0.0, 0.0, 0.0, 0, 0
        for v in d:
            square += v * v
            weight += abs(v)
            total += v
        if 0 < d.size <= largest:
            low, high = _signed_sums(d[: d.size // 2], A, spare), _signed_sums(d[d.size // 2 :], B, spare)
        h = (net[f] * net[f] / a if a > 0 else 0.0) + (total * total / square if square > 0.0 else 0.0)
        out, steps = 0.0, a + 1
        for j in range(steps):
            left = h - ((2 * j - a) ** 2 / a if a > 0 else 0.0) - 1e-9 * (1.0 + h)
            share = math.exp(math.lgamma(a + 1.0) - math.lgamma(j + 1.0) - math.lgamma(a - j + 1.0) - a * math.log(2.0))
            x = math.sqrt(max(left, 0.0) * square)
            if left <= 0.0:
                out += share
            elif x > weight * (1.0 + 1e-12) or d.size == 0:
                continue
            elif d.size > largest:
                tail = 2.0 ** -float(d.size) if x >= weight * (1.0 - 1e-9) else _saddle(d, x, square)
                out += share * 2.0 * tail
            else:
                out += share * 2.0 * _pairs_above(A[:low], B[:high], x) / 2.0**d.size
        p[f] = min(out, 1.0)


@compiled()
def _pairs_above(A, B, x):
    """Number of pairs with A + B >= x; both lists rise."""
    j, count = B.size, 0
    for i in range(A.size):
        while j > 0 and A[i] + B[j - 1] >= x:
            j -= 1
        count += B.size - j
    return count


@compiled(fastmath=FAST)
def _part_lanes(V, span, state):
    """Add to out[lane] the square of one part's signed sum."""
    (start, stop, total), (W, acc, out) = span, state
    zero = np.float32(0)
    for j in range(acc.size):
        acc[j] = zero
    for p in range(start, stop):
        v, keep = V.val[p], W[V.idx[p]]
        for j in range(acc.size):
            acc[j] += v if keep[j] else zero
    for j in range(acc.size):
        s = np.float32(2) * acc[j] - total
        out[j] += s * s


@compiled()
def _hurdle_lanes(V, f, state):
    """out[lane] = H of column f under each flip of the tile."""
    state[2][:] = 0
    middle = V.indptr[f] + V.split[f]
    _part_lanes(V, (V.indptr[f], middle, V.total[f, 0]), state)
    _part_lanes(V, (middle, V.indptr[f + 1], V.total[f, 1]), state)


@compiled()
def hurdle_maxima(V, W, mx, *, prune):
    """As `kernels.flip_maxima`: columns come by falling bound."""
    L = W.shape[1]
    acc, out, low = np.empty(L, np.float32), np.empty(L, np.float32), np.float32(-1)
    mx[:] = low
    for f in range(V.bound.size):
        if prune and V.bound[f] <= low:
            return f
        _hurdle_lanes(V, f, (W, acc, out))
        for j in range(L):
            mx[j] = max(mx[j], out[j])
        if prune and f % 32 == 31:
            low = mx.min()
    return V.bound.size


@compiled()
def hurdle_steps(V, W, running, *, tables, limit, reached):
    """As `kernels.flip_steps`."""
    acc, out = np.empty(W.shape[1], np.float32), np.empty(W.shape[1], np.float32)
    for f in range(V.bound.size):
        _hurdle_lanes(V, f, (W, acc, out))
        reached[f] += _advance((out, True, limit[f]), running, tables[0][tables[1][f]])


class GroupScores(NamedTuple):
    """Columns of both parts between items: val (nnz, 2) of the firing items, divided by the standard deviation of z."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray


@compiled(fastmath=FAST)
def _score_lanes(V, f, state):
    """out[lane] = H of column f under each relabelling of the groups."""
    labels, share, first, second, out = state
    for j in range(out.size):
        first[j], second[j] = 0.0, 0.0
    for p in range(V.indptr[f], V.indptr[f + 1]):
        row, a, b = labels[V.idx[p]], V.val[p, 0], V.val[p, 1]
        for j in range(out.size):
            k = share[row[j]]
            first[j] += k * a
            second[j] += k * b
    for j in range(out.size):
        out[j] = first[j] * first[j] + second[j] * second[j]


@compiled()
def score_values(V, labels, out, *, share):
    """out[f] = H of column f under the first relabelling of the tile."""
    work = np.empty((3, labels.shape[1]))
    for f in range(out.size):
        _score_lanes(V, f, (labels, share, work[0], work[1], work[2]))
        out[f] = work[2, 0]


@compiled()
def score_maxima(V, labels, mx, *, share, limit, reached):
    """As `kernels.group_maxima`."""
    work = np.empty((3, labels.shape[1]))
    mx[:] = -1.0
    for f in range(limit.size):
        _score_lanes(V, f, (labels, share, work[0], work[1], work[2]))
        n = 0
        for j in range(mx.size):
            mx[j] = max(mx[j], work[2, j])
            n += work[2, j] >= limit[f]
        reached[f] += n


@compiled()
def score_steps(V, labels, running, *, share, tables, limit, reached):
    """As `kernels.group_steps`."""
    work = np.empty((3, labels.shape[1]))
    for f in range(limit.size):
        _score_lanes(V, f, (labels, share, work[0], work[1], work[2]))
        reached[f] += _advance((work[2], True, limit[f]), running, tables[0][tables[1][f]])
