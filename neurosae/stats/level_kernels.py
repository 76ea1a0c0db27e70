"""Compiled loops for statistics of K labels: the share of the sum of squares between them, and single contrasts.

Letters as in `stats/kernels.py`; labels (R, L) are the new label of every row in every relabelling of a tile. Rows are
items, or for levels inside items (i, k) in row i K + k, so that the rows of an item are neighbours in a column.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from neurosae.stats.kernels import FAST, _advance, compiled

LINEAR, STUDENT, SHARE, CHI2, WELCH = 0, 1, 2, 3, 4
FLOOR = 1e-8  # of the mean square: the least variance of a group, so that groups without one have large, finite weights


class LabelColumns(NamedTuple):
    """Columns in float64: `total` = sum V; `size` divides or is added to the sum of squares, see `LabelTile`."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    total: np.ndarray
    size: np.ndarray


class LabelTile(NamedTuple):
    """A tile of labels, and what is made of the sums S_c over the rows of label c.

    mode LINEAR : u = sum_c w_c S_c / size
    mode STUDENT : u = sum_i d_i / sqrt(n (sum_i d_i^2 + size)), with d_i = sum_c w_c y_ic, `per` rows to an item
    mode SHARE : h = |projections S|^2, u = sqrt(h / (size - sum_c S_c^2 inverse_c + h))
    mode CHI2 : u = sqrt(h' / (1 + h')) with h' = h / size
    mode WELCH : u = sqrt(h / (df + h)), h = q F of Welch and Johansen with variances of their own, see
        `levels.welch_f`; the K degrees of freedom of the variances and df are in `weights`, `projections` are the
        contrasts, `size` is added to the sums of squares; where df is infinite, size is the variance
    """

    labels: np.ndarray
    weights: np.ndarray
    projections: np.ndarray
    inverse: np.ndarray
    n: int
    per: int
    mode: int


@compiled(fastmath=FAST)
def _contrast_lanes(V, f, state):
    """work[0][lane] = u of a single contrast: one masked add per label and non-zero."""
    tile, work = state
    out, d, square = work[0], work[1], work[2]
    L, w, last = out.size, tile.weights, -1
    for j in range(L):
        out[j], square[j], d[j] = 0.0, 0.0, 0.0
    for p in range(V.indptr[f], V.indptr[f + 1]):
        item = V.idx[p] // tile.per
        if item != last:
            for j in range(L):
                out[j] += d[j]
                square[j] += d[j] * d[j]
                d[j] = 0.0
            last = item
        row, base = tile.labels[V.idx[p]], w[0] * V.val[p]
        for j in range(L):
            d[j] += base
        for c in range(1, w.size):
            more = (w[c] - w[0]) * V.val[p]
            for j in range(L):
                d[j] += more if row[j] == c else 0.0
    for j in range(L):
        out[j] += d[j]
        square[j] += d[j] * d[j]
        if tile.mode == LINEAR:
            out[j] /= V.size[f]
        else:
            scale = tile.n * (square[j] + V.size[f])
            out[j] = out[j] / math.sqrt(scale if scale > 0.0 else 1.0)


@compiled(fastmath=FAST)
def _label_sums(V, f, state):
    """Rows 4 … of work: sums over labels 1 …; row 3: over label 0, by difference; row 1: their squares over counts."""
    tile, work = state
    between, first = work[1], work[3]
    L = first.size
    for j in range(L):
        first[j], between[j] = V.total[f], 0.0
    for c in range(1, tile.inverse.size):
        s, k = work[3 + c], tile.inverse[c]
        for j in range(L):
            s[j] = 0.0
        for p in range(V.indptr[f], V.indptr[f + 1]):
            row, v = tile.labels[V.idx[p]], V.val[p]
            for j in range(L):
                s[j] += v if row[j] == c else 0.0
        for j in range(L):
            first[j] -= s[j]
            between[j] += k * s[j] * s[j]
    for j in range(L):
        between[j] += tile.inverse[0] * first[j] * first[j]


@compiled(fastmath=FAST)
def _share_lanes(V, f, state):
    """work[0][lane] = u of all labels at once; what is left of a sum by rounding counts as 0."""
    tile, work = state
    out, between, part = work[0], work[1], work[2]
    L, size, chi2 = out.size, V.size[f], tile.mode == CHI2
    _label_sums(V, f, state)
    for j in range(L):
        out[j] = 0.0
    for q in range(tile.projections.shape[0]):
        for j in range(L):
            part[j] = 0.0
        for c in range(tile.inverse.size):
            s, k = work[3 + c], tile.projections[q, c]
            for j in range(L):
                part[j] += k * s[j]
        for j in range(L):
            out[j] += part[j] * part[j]
    for j in range(L):
        h = out[j] / size if chi2 else out[j]
        total = h + 1.0 if chi2 else h + size - between[j]
        out[j] = (math.sqrt(h / total) if h < total else 1.0) if h > 1e-13 * total else 0.0


@compiled(fastmath=FAST)
def _own_moments(V, f, state):
    """Rows 3 … of work: means of the labels; rows 3 + K …: their variances, never quite 0."""
    tile, work = state
    K, dof, least = tile.inverse.size, tile.weights, 0.0
    for p in range(V.indptr[f], V.indptr[f + 1]):
        least += FLOOR / tile.n * V.val[p] * V.val[p]
    for c in range(K):
        s, v, k = work[3 + c], work[3 + K + c], tile.inverse[c]
        for j in range(s.size):
            s[j], v[j] = 0.0, 0.0
        for p in range(V.indptr[f], V.indptr[f + 1]):
            row, x = tile.labels[V.idx[p]], V.val[p]
            for j in range(s.size):
                y = x if row[j] == c else 0.0
                s[j] += y
                v[j] += y * y
        for j in range(s.size):
            s[j] *= k
            left = max(v[j] - s[j] * s[j] / k, 0.0)
            v[j] = k * max((V.size[f] + left) / dof[c] if dof[c] < 1e300 else V.size[f], least)


@compiled(fastmath=FAST)
def _welch_lanes(V, f, state):
    """work[0][lane] = u of all labels at once with variances of their own."""
    tile, work = state
    K, q, df = tile.inverse.size, tile.projections.shape[0], tile.weights[-1]
    out = work[0]
    _own_moments(V, f, state)
    A, x, g = np.empty((q, q)), np.empty(q), np.empty(q)
    for j in range(out.size):
        if q == K - 1:
            h, spread = _one_way(work, j, tile.weights)
            _to_u(out, j, (h / (1.0 + 2.0 * (q - 1.0) / (q * (q + 2.0)) * spread), df))
            continue
        for a in range(q):  # the covariance of the contrasts, and its Cholesky factor below the diagonal
            x[a] = 0.0
            for c in range(K):
                x[a] += tile.projections[a, c] * work[3 + c, j]
            for b in range(a + 1):
                s = 0.0
                for c in range(K):
                    s += tile.projections[a, c] * tile.projections[b, c] * work[3 + K + c, j]
                for k in range(b):
                    s -= A[a, k] * A[b, k]
                A[a, b] = math.sqrt(max(s, 1e-300)) if a == b else s / A[b, b]
        h, spread = _squares_of(A, x), 0.0
        for c in range(K):
            for a in range(q):
                g[a] = tile.projections[a, c]
            share = work[3 + K + c, j] * _squares_of(A, g)
            spread += share * share / tile.weights[c]
        _to_u(out, j, (h / (1.0 + 2.0 * (q - 1.0) / (q * (q + 2.0)) * spread), df))


@compiled(fastmath=FAST)
def _to_u(out, j, given):
    h, df = given
    total = h + (df if df < 1e300 else 1.0)
    out[j] = math.sqrt(h / total) if h > 1e-13 * total else 0.0


@compiled(fastmath=FAST)
def _one_way(work, j, dof):
    """All levels of one factor: weighted squares around the weighted mean, which keeps the digits of large weights."""
    K, total, mean, h, spread = dof.size - 1, 0.0, 0.0, 0.0, 0.0
    for c in range(K):
        total += 1.0 / work[3 + K + c, j]
        mean += work[3 + c, j] / work[3 + K + c, j]
    for c in range(K):
        w, left = 1.0 / work[3 + K + c, j], work[3 + c, j] - mean / total
        h += w * left * left
        spread += (1.0 - w / total) ** 2 / dof[c]
    return h, spread


@compiled(fastmath=FAST)
def _squares_of(A, x):
    """|L^-1 x|^2 for the lower triangle L of A; x is overwritten."""
    total = 0.0
    for a in range(x.size):
        for k in range(a):
            x[a] -= A[a, k] * x[k]
        x[a] /= A[a, a]
        total += x[a] * x[a]
    return total


@compiled()
def _lanes(V, f, state):
    if state[0].mode <= STUDENT:
        _contrast_lanes(V, f, state)
    elif state[0].mode == WELCH:
        _welch_lanes(V, f, state)
    else:
        _share_lanes(V, f, state)


@compiled()
def label_values(V, tile, out):
    """out[f] = u of column f under the first relabelling of the tile."""
    work = np.empty((4 + 2 * tile.inverse.size, tile.labels.shape[1]))
    for f in range(V.total.size):
        _lanes(V, f, (tile, work))
        out[f] = work[0, 0]


@compiled()
def label_maxima(V, tile, mx, *, limit, two_sided, reached):
    """mx[lane] = maximum over columns; reached[f] grows by the lanes whose statistic is at least limit[f]."""
    work = np.empty((4 + 2 * tile.inverse.size, tile.labels.shape[1]))
    mx[:] = -1e30
    for f in range(V.total.size):
        _lanes(V, f, (tile, work))
        out, n = work[0], 0
        for j in range(mx.size):
            u = abs(out[j]) if two_sided else out[j]
            mx[j] = max(mx[j], u)
            n += u >= limit[f]
        reached[f] += n


@compiled()
def label_steps(V, tile, running, *, tables, limit, two_sided, reached):
    """As `kernels.flip_steps`, for these statistics."""
    work = np.empty((4 + 2 * tile.inverse.size, tile.labels.shape[1]))
    for f in range(V.total.size):
        _lanes(V, f, (tile, work))
        reached[f] += _advance((work[0], two_sided, limit[f]), running, tables[0][tables[1][f]])
