"""Compiled loops over the non-zeros of alive columns; everything statistical about them is said in `stats/flips.py`.

Letters: n items, m columns, L lanes (the relabellings of one tile), W (n, L) masks, V the columns in CSC (indptr, idx,
val). Relabelling b of item i is a pure function of (seed, stream, b, i) through Philox4x32-10, so no number depends on
threads, tiles or the order of work. Kernels release the interpreter lock; one tile is one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba as nb
import numpy as np

LANES = 512
STEEPEST = math.atanh(1.0 - 1e-6)  # beyond it u = t / sqrt(df + t^2) has no digits left in float32
FAST = {"reassoc", "contract", "arcp", "nsz"}  # fastmath without the promise that nan and inf never occur
LOW, HALF, ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1)
M0, M1, K0, K1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


class FlipColumns(NamedTuple):
    """Columns for sign flips: float32, sorted by falling `bound` = sum |V|; `total` = sum V."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    total: np.ndarray
    bound: np.ndarray


class GroupColumns(NamedTuple):
    """Columns for label permutations: float64; `square` = sum V^2; `shrink` (m, 2) = (d0, d0 s0^2), or (-1, s0^2)."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    total: np.ndarray
    square: np.ndarray
    shrink: np.ndarray


class Labels(NamedTuple):
    """A tile of labels: `masks` (C-1, n, L) of cells 1 … C-1; `weights` and `counts` of the C cells; `mode`."""

    masks: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    mode: int


class Scratch(NamedTuple):
    """Sums and sums of squares per cell and lane (C, L); squared standard error and statistic per lane (L,)."""

    sums: np.ndarray
    squares: np.ndarray
    se2: np.ndarray
    out: np.ndarray


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` without the lock, its machine code kept on disk, or in memory where no folder is writable."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return nb.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # numba found no writable cache folder
            return nb.njit(nogil=True, **options)(function)

    return decorate


@compiled()
def philox(counter, key):
    """Ten rounds of Philox4x32 (Salmon et al. 2011): four counters and two keys give four 32-bit words (as uint64)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & LOW, (p0 >> HALF) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + K0) & LOW, (k1 + K1) & LOW
    return c0, c1, c2, c3


@compiled()
def fill_signs(W, rows, *, seed, stream, first):
    """Fill W (n, L), True = keep, for relabellings first … first+L-1 (both multiples of 128) of the items `rows`."""
    key, zero = (seed & LOW, seed >> HALF), np.uint64(0)
    words = np.empty(4, np.uint64)
    for i in range(W.shape[0]):
        for g in range(W.shape[1] // 128):
            counter = (np.uint64(first // 128 + g), np.uint64(rows[i]), stream, zero)
            words[0], words[1], words[2], words[3] = philox(counter, key)
            for q in range(4):
                for j in range(32):
                    W[i, 128 * g + 32 * q + j] = (words[q] >> np.uint64(j)) & ONE == ONE
    if first == 0:
        W[:, 0] = True  # relabelling 0 is the identity


@compiled()
def fill_all_signs(W, first):
    """Enumerate flips: item i is flipped in relabelling b where bit n-1-i of b is set, so item 0 flips last of all."""
    n = W.shape[0]
    for i in range(n):
        for j in range(W.shape[1]):
            W[i, j] = ((first + j) >> (n - 1 - i)) & 1 == 0


@compiled()
def sort_keys(keys, rows, *, seed, stream, first):
    """Fill 64-bit keys (count, n): sorting row b permutes the items in relabelling first + b."""
    key, zero = (seed & LOW, seed >> HALF), np.uint64(0)
    for b in range(keys.shape[0]):
        for i in range(rows.size):
            counter = (np.uint64(first + b), np.uint64(rows[i] // 2), stream, zero)
            c0, c1, c2, c3 = philox(counter, key)
            keys[b, i] = ((c0 << HALF) | c1) if rows[i] % 2 == 0 else ((c2 << HALF) | c3)


@compiled()
def _order(keys, out):
    """Ranks of a few keys, ties by place."""
    for k in range(keys.size):
        rank = 0
        for j in range(keys.size):
            rank += keys[j] < keys[k] or (keys[j] == keys[k] and j < k)
        out[k] = rank


@compiled()
def fill_levels(out, rows, *, seed, stream, first):
    """Fill out (n, K, L): the level that takes the value of level k of item i in relabellings first … first+L-1."""
    key, (n, K, L) = (seed & LOW, seed >> HALF), out.shape
    keys, ranks = np.empty(K + 1, np.uint64), np.empty(K, np.int64)
    for i in range(n):
        for j in range(L):
            for k in range(0, K, 2):
                counter = (np.uint64(first + j), np.uint64(rows[i]), stream, np.uint64(k // 2))
                c0, c1, c2, c3 = philox(counter, key)
                keys[k], keys[k + 1] = (c0 << HALF) | c1, (c2 << HALF) | c3
            _order(keys[:K], ranks)
            for k in range(K):
                out[i, k, j] = k if first + j == 0 else ranks[k]


@compiled()
def fill_all_levels(out, orders, first):
    """Enumerate: the number of the order of item i is digit n-1-i of the relabelling, so item 0 moves last of all."""
    n, K, L = out.shape
    for j in range(L):
        left = first + j
        for i in range(n - 1, -1, -1):
            for k in range(K):
                out[i, k, j] = orders[left % orders.shape[0], k]
            left //= orders.shape[0]


@compiled(fastmath=FAST)
def flip_lanes(V, f, tile):
    """acc[lane] = sum_i s_i V_if; masked adds, four non-zeros at a time, in float32."""
    W, acc = tile
    L, zero = acc.size, np.float32(0)
    for j in range(L):
        acc[j] = zero
    p, stop = V.indptr[f], V.indptr[f + 1]
    while p + 4 <= stop:
        a, b, c, d = V.val[p], V.val[p + 1], V.val[p + 2], V.val[p + 3]
        wa, wb, wc, wd = W[V.idx[p]], W[V.idx[p + 1]], W[V.idx[p + 2]], W[V.idx[p + 3]]
        for j in range(L):
            acc[j] += (a if wa[j] else zero) + (b if wb[j] else zero) + (c if wc[j] else zero) + (d if wd[j] else zero)
        p += 4
    while p < stop:
        a, wa = V.val[p], W[V.idx[p]]
        for j in range(L):
            acc[j] += a if wa[j] else zero
        p += 1
    total = V.total[f]
    for j in range(L):
        acc[j] = np.float32(2) * acc[j] - total


@compiled(fastmath=FAST)
def flip_maxima(V, W, mx, *, two_sided, prune):
    """Raise mx[lane] to the maximum over columns of |sum s V|, or of sum s V; returns the number of columns visited.

    Columns come by falling bound: once the bound is not above the smallest running maximum, no later column can raise
    any lane, so stopping there is exact.
    """
    L = W.shape[1]
    acc, low = np.empty(L, np.float32), mx.min()
    for f in range(V.total.size):
        if prune and V.bound[f] <= low:
            return f
        flip_lanes(V, f, (W, acc))
        if two_sided:
            for j in range(L):
                mx[j] = max(mx[j], abs(acc[j]))
        else:
            for j in range(L):
                mx[j] = max(mx[j], acc[j])
        if prune and f % 32 == 31:
            low = mx[0]
            for j in range(L):
                low = min(low, mx[j])
    return V.total.size


@compiled(fastmath=FAST)
def _group_lanes(V, f, tile):
    """out[lane] = the statistic of column f under each relabelling of the items' cells.

    mode 0: sum_c w_c mean_c. 1: t with the pooled, 2: t with separate variances, shrunk, as u = t / sqrt(df + t^2) with
    df = N - C + d0 (t itself where d0 is infinite). The sums of cell 0 follow by difference.
    """
    labels, work = tile
    rest, rest2, L = work.sums[0], work.squares[0], work.out.size
    for j in range(L):
        rest[j], rest2[j], work.out[j] = V.total[f], V.square[f], 0.0
    for c in range(1, labels.counts.size):
        s, q = work.sums[c], work.squares[c]
        for j in range(L):
            s[j], q[j] = 0.0, 0.0
        for p in range(V.indptr[f], V.indptr[f + 1]):
            mask, v, v2 = labels.masks[c - 1, V.idx[p]], V.val[p], V.val[p] * V.val[p]
            for j in range(L):
                s[j] += v if mask[j] else 0.0
            if labels.mode == 2:
                for j in range(L):
                    q[j] += v2 if mask[j] else 0.0
        for j in range(L):
            rest[j] -= s[j]
            rest2[j] -= q[j]
    for c in range(labels.counts.size):
        s, w = work.sums[c], labels.weights[c] / labels.counts[c]
        for j in range(L):
            work.out[j] += w * s[j]
    if labels.mode != 0:
        _squared_errors(V, f, tile)
        _studentize(V, f, tile)


@compiled(fastmath=FAST)
def _studentize(V, f, tile):
    """Turn estimates into u, the same in every lane; rounding instead of an estimate becomes 0."""
    labels, work = tile
    d0, N, out, se2 = V.shrink[f, 0], labels.counts.sum(), work.out, work.se2
    a, b = (1.0, 0.0) if d0 < 0 else (N - labels.counts.size + d0, 1.0)
    small = 1e-10 * math.sqrt(V.square[f] / N)
    for j in range(out.size):
        e = out[j] if abs(out[j]) > small else 0.0
        size = a * se2[j] + b * e * e
        out[j] = e / math.sqrt(size if size > 0.0 else 1.0)


@compiled(fastmath=FAST)
def _squared_errors(V, f, tile):
    """se2[lane] = squared standard error of the estimate, from pooled (mode 1) or separate (mode 2) shrunk variance."""
    labels, work = tile
    se2, floor, N, C = work.se2, 1e-10 * V.square[f], labels.counts.sum(), labels.counts.size
    d0, prior = V.shrink[f]
    for j in range(se2.size):
        se2[j] = V.square[f] if labels.mode == 1 else 0.0
    scale = 0.0
    for c in range(C):
        s, q, n, k = work.sums[c], work.squares[c], 1.0 / labels.counts[c], labels.weights[c] ** 2 / labels.counts[c]
        scale += k
        a = k / max(d0 + labels.counts[c] - 1.0, 1.0)
        for j in range(se2.size):
            if labels.mode == 1:
                se2[j] -= s[j] * s[j] * n
            else:
                left = q[j] - s[j] * s[j] * n
                se2[j] += a * (prior + (left if left > floor else 0.0))  # a variance below rounding is zero
    for j in range(se2.size):
        if d0 < 0:
            se2[j] = scale * prior
        elif labels.mode == 1:
            se2[j] = scale * (prior + (se2[j] if se2[j] > floor else 0.0)) / (d0 + N - C)


@compiled()
def group_values(V, labels, out):
    """out[f] = the statistic of column f under the first relabelling of the tile."""
    C, L = labels.counts.size, labels.masks.shape[2]
    work = Scratch(np.empty((C, L)), np.empty((C, L)), np.empty(L), np.empty(L))
    for f in range(V.total.size):
        _group_lanes(V, f, (labels, work))
        out[f] = work.out[0]


@compiled()
def group_maxima(V, labels, mx, *, limit, two_sided, reached):
    """mx[lane] = maximum over columns; reached[f] grows by the lanes whose statistic is at least limit[f]."""
    C, L = labels.counts.size, labels.masks.shape[2]
    work = Scratch(np.empty((C, L)), np.empty((C, L)), np.empty(L), np.empty(L))
    mx[:] = -1e30
    for f in range(V.total.size):
        _group_lanes(V, f, (labels, work))
        n = 0
        for j in range(mx.size):
            u = abs(work.out[j]) if two_sided else work.out[j]
            mx[j] = max(mx[j], u)
            n += u >= limit[f]
        reached[f] += n


@compiled()
def z_of(u, table):
    """Normal equivalent of u in [-1, 1] by linear interpolation over atanh|u|; a table of nan is the identity."""
    if math.isnan(table[0]):
        return u
    x = math.atanh(min(abs(u), 1.0 - 1e-6)) / STEEPEST * (table.size - 1)
    k = min(int(x), table.size - 2)
    return math.copysign(table[k] + (x - k) * (table[k + 1] - table[k]), u)


@compiled()
def _advance(lanes, running, table):
    """Raise the running maxima of a step-down by one column; returns how many of them reach the column's own value."""
    out, two_sided, limit = lanes
    n = 0
    for j in range(running.size):
        z = z_of(float(out[j]), table)
        running[j] = max(running[j], abs(z) if two_sided else z)
        n += running[j] >= limit
    return n


@compiled()
def flip_steps(V, W, running, *, tables, limit, two_sided, reached):
    """Columns come by rising observed z: running[lane] = maximum so far, reached[f] counts it against limit[f].

    tables = (T (K, points), which (m,)): column f is put on the z scale by row which[f] of T.
    """
    acc = np.empty(W.shape[1], np.float32)
    for f in range(V.total.size):
        flip_lanes(V, f, (W, acc))
        reached[f] += _advance((acc, two_sided, limit[f]), running, tables[0][tables[1][f]])


@compiled()
def group_steps(V, labels, running, *, tables, limit, two_sided, reached):
    """As `flip_steps`, for labels permuted between items."""
    C, L = labels.counts.size, labels.masks.shape[2]
    work = Scratch(np.empty((C, L)), np.empty((C, L)), np.empty(L), np.empty(L))
    for f in range(V.total.size):
        _group_lanes(V, f, (labels, work))
        reached[f] += _advance((work.out, two_sided, limit[f]), running, tables[0][tables[1][f]])


@compiled()
def column_places(indptr, order, place):
    """Fill `place` with where the entries of columns `order` stand, one column after the other."""
    at = 0
    for f in order:
        for p in range(indptr[f], indptr[f + 1]):
            place[at] = p
            at += 1
