"""The t of one regressor beside nuisance, under relabelled residuals, without a refit and without residual vectors.

With Q an orthonormal basis of the nuisance Z, R = 1 - QQ' and x the tested regressor as a unit vector inside R, the
residuals e = R y of the reduced model are relabelled by an orthogonal matrix P (sign flips of items, or a permutation
of items inside blocks) and regressed on [x, Z] again (Freedman & Lane 1983). Because |Pe| = |e| and R is applied to
both sides, the refit collapses into inner products with the sparse columns y themselves,

    w = R P'x,   u_k = R P'q_k,   r^2 = (w'y)^2 / (|R y|^2 + d0 s0^2 - sum_k (u_k'y)^2),   t = r sqrt(df / (1 - r^2)),

df = n - 1 - k + d0. What no relabelling moves (the intercept, and indicators of the blocks, under permutations) has
u_k = 0 and costs nothing. |R y|^2 is invariant, so a prior fitted to |R y|^2 / (n - k) leaves the test as it is.

References
----------
Freedman & Lane (1983), J. Bus. Econ. Stat. 1, 292-298. Winkler et al. (2014), NeuroImage 92, 381-397.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats import flips, kernels
from neurosae.stats.kernels import FAST, compiled
from neurosae.stats.moderation import fit_prior
from neurosae.stats.nuisance import Model, column_sums, residual_squares
from neurosae.stats.relabel import Relabelling, flip_mask, labels
from neurosae.stats.units import ItemData

PART = 128  # relabellings whose (1 + k) lanes of all items are held at a time; they stay in the second cache
TINY = 1e-12  # of a bracket that begins at 1: what is less is rounding


class BesideColumns(NamedTuple):
    """Columns of y over sqrt(|R y|^2 + d0 s0^2), so that the bracket of r begins at 1; `bound` on r^2; float64."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    bound: np.ndarray


class Beside(NamedTuple):
    """What the columns share: the vectors that are relabelled (n, 1 + k), the nuisance basis, rows in a relabelling."""

    moved: np.ndarray
    Q: np.ndarray
    rows: np.ndarray


def project(Y: sp.csc_matrix, model: Model, *, d0: float = 0.0, s02: np.ndarray | float = 0.0) -> flips.Columns:
    """Columns for `flips.maxima`: t of the model's regressor, its variance shrunk by d0 degrees of freedom to s02.

    Parameters
    ----------
    Y : CSC float64 of shape (n, m), one value per item and feature
    model : from `nuisance.fit_model`; without an intercept signs are flipped, with one whole items are permuted
    d0, s02 : prior, a function of invariant numbers; d0 = inf puts s02 in the place of the variance

    Raises
    ------
    DataError
        If nothing of a column is left beside the nuisance: it cannot be tested.

    Examples
    --------
    >>> from neurosae.stats.nuisance import fit_model
    >>> from neurosae.stats.relabel import flips as sign_flips
    >>> d, z = np.array([1.0, 3.0, 2.0, 4.0, -1.0, 2.0]), np.array([[1.0], [0.0], [2.0], [1.0], [-1.0], [0.0]])
    >>> columns = project(sp.csc_matrix(d[:, None]), fit_model(np.ones(6), z))
    >>> flips.maxima(columns, sign_flips(np.arange(6), 100, seed=0))[1] / 32
    array([0.15625])
    """
    Y = sp.csc_matrix(Y)
    left = residual_squares(Y, model.Q)
    if (left == 0).any():
        raise DataError(f"column {int(np.argmin(left))} is explained by the nuisance altogether; it cannot be tested.")
    known = np.isinf(d0)
    scale = np.sqrt(np.broadcast_to(s02, left.shape) if known else left + d0 * s02)
    val = Y.data / np.repeat(scale, np.diff(Y.indptr))
    u = column_sums(Y, val * model.x[Y.indices])
    V = BesideColumns(Y.indptr.astype(np.int64), Y.indices.astype(np.int32), val, np.empty(0))
    moved = np.column_stack([model.x, model.Q[:, model.Q.shape[1] if known else model.n_fixed :]])
    beside = Beside(np.ascontiguousarray(moved), model.Q, np.arange(len(model.x)))
    made = V._replace(bound=_bounds(V, model, known=known))
    return flips.Columns(made, u, np.inf if known else model.df + d0, PROJECTED, beside)


def regression(data: ItemData, kept: np.ndarray, name: str) -> flips.Ready:
    """The t or moderated t of an effect beside nuisance, or of the slope on a covariate; p is counted.

    The prior of the moderated t is fitted to |R y|^2 / (n - k), which no relabelling changes.

    Raises
    ------
    DataError
        If the statistic is another one, which knows no nuisance.
    """
    assert data.beside is not None
    model, names = data.beside.model, " and ".join(data.beside.names)
    if name not in ("t", "moderated_t", "slope"):
        what = f"nuisance {names} is regressed out of" if names else "a slope on a covariate is tested by"
        raise DataError(f"{what} t and moderated_t alone, not {name}; set `statistic: moderated_t`.")
    D = sp.csc_matrix(data.D[:, kept])
    if name != "moderated_t":
        return flips.Ready(project(D, model), None, name)
    df = data.n - model.Q.shape[1]
    activity = np.log(np.maximum(np.asarray(data.Y.mean(axis=0)).ravel()[kept], 1e-300))
    d0, s02 = fit_prior(residual_squares(D, model.Q) / df, df, activity)
    return flips.Ready(project(D, model, d0=d0, s02=s02), None, name, d0)


def _bounds(V: BesideColumns, model: Model, *, known: bool) -> np.ndarray:
    """What r^2 of a column cannot exceed under any relabelling; inf where nothing is known.

    |R y| <= |y| + sum_l |q_l| |q_l'y| item by item. Flips leave |x| in its place; permutations put it anywhere, at
    worst the largest beside the largest.
    """
    m, flipped = len(V.indptr) - 1, model.n_fixed == 0
    col = np.repeat(np.arange(m), np.diff(V.indptr))
    inside = [np.abs(np.bincount(col, V.val * q[V.idx], m)) for q in model.Q.T]
    size, at = np.abs(V.val), V.idx
    if not flipped:
        size, at = size[np.lexsort([-size, col])], np.arange(len(col)) - V.indptr[col]

    def most(vector: np.ndarray) -> np.ndarray:
        """Bound on |(P'vector)'R y| for every column."""
        ranked = [np.abs(v) if flipped else -np.sort(-np.abs(v)) for v in (vector, *model.Q.T)]
        total = np.bincount(col, size * ranked[0][at], m)
        for k in range(model.n_fixed, model.Q.shape[1]):
            total += inside[k] * (ranked[0] * ranked[1 + k]).sum()
        return total

    top = most(model.x) ** 2
    taken = [most(q) ** 2 for q in model.Q.T[model.n_fixed :] if not known]
    left = 1 - np.sum(taken, axis=0) if taken else np.ones(m)
    return np.where(left > 0, top / np.where(left > 0, left, 1), np.inf) * (1 + 1e-9)


# ------------------------------------------------------------------ what runs them


def _parts(beside: Beside, r: Relabelling, first: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Relabelled vectors beside the nuisance: start and stop in the tile, and W (n, (1 + k) lanes), part by part."""
    lanes = min(kernels.LANES, r.n - first)
    if r.kind == "flip":
        moved, fill = flip_mask(r, first)[beside.rows], signed_lanes
    else:
        representative = np.unique(r.codes, return_index=True)[1]
        place = np.searchsorted(r.codes[representative], labels(r, first, lanes))
        moved, fill = np.ascontiguousarray(representative[place].T), permuted_lanes
    for a in range(0, lanes, PART):
        n = min(PART, lanes - a)
        W = np.empty((len(beside.moved), beside.moved.shape[1] * n))
        fill(beside.moved, W, moved=moved, first=a)
        take_out(beside.Q, W)
        yield a, a + n, W


def _tile(columns: flips.Columns, r: Relabelling, first: int, *, two_sided: bool, prune: bool, limit: np.ndarray):
    mx, reached = np.empty(min(kernels.LANES, r.n - first)), np.zeros(len(limit), dtype=np.int64)
    least = limit * np.abs(limit)
    for a, b, W in _parts(columns.more, r, first):
        tops(columns.V, W, mx[a:b], limit=least, two_sided=two_sided, prune=prune, reached=reached)
    return np.sign(mx) * np.sqrt(np.abs(mx)), reached


def _step(columns: flips.Columns, r: Relabelling, first: int, *, tables: tuple, limit: np.ndarray, two_sided: bool):
    reached = np.zeros(len(limit), dtype=np.int64)
    for a, b, W in _parts(columns.more, r, first):
        running = np.full(b - a, -1e30)
        steps(columns.V, W, running, tables=tables, limit=limit, two_sided=two_sided, reached=reached)
    return reached


def _negate(columns: flips.Columns) -> flips.Columns:
    return replace(columns, V=columns.V._replace(val=-columns.V.val), u=-columns.u)


def _place(columns: flips.Columns, rows: np.ndarray) -> flips.Columns:
    return replace(columns, more=columns.more._replace(rows=rows))


PROJECTED = flips.Run(_tile, _step, flips.by_bound, lambda _: 1.0, flips.to_t, flips.to_z, _negate, _place)


# ------------------------------------------------------------------ compiled loops


@compiled()
def signed_lanes(B, W, *, moved, first):
    """Lanes of every column of B with the signs of relabellings first …; moved (n, count) is True where + stays."""
    L = W.shape[1] // B.shape[1]
    for i in range(B.shape[0]):
        for k in range(B.shape[1]):
            v = B[i, k]
            for j in range(L):
                W[i, k * L + j] = v if moved[i, first + j] else -v


@compiled()
def permuted_lanes(B, W, *, moved, first):
    """Lanes of every column of B with its rows moved as in relabellings first …; moved (n, count): whose row."""
    L = W.shape[1] // B.shape[1]
    for i in range(B.shape[0]):
        for k in range(B.shape[1]):
            for j in range(L):
                W[i, k * L + j] = B[moved[i, first + j], k]


@compiled(fastmath=FAST)
def take_out(Q, W):
    """W - Q Q'W in place: relabelled vectors beside the nuisance."""
    inner = np.zeros((Q.shape[1], W.shape[1]))
    for i in range(Q.shape[0]):
        for k in range(Q.shape[1]):
            for j in range(W.shape[1]):
                inner[k, j] += Q[i, k] * W[i, j]
    for i in range(Q.shape[0]):
        for k in range(Q.shape[1]):
            for j in range(W.shape[1]):
                W[i, j] -= Q[i, k] * inner[k, j]


@compiled(fastmath=FAST)
def _lanes(V, f, tile):
    """Fill acc = W'y of column f, and left[lane] = 1 - sum_k (u_k'y)^2, floored."""
    W, acc, left = tile
    n = acc.size
    for j in range(n):
        acc[j] = 0.0
    p, stop = V.indptr[f], V.indptr[f + 1]
    while p + 4 <= stop:
        a, b, c, d = V.val[p], V.val[p + 1], V.val[p + 2], V.val[p + 3]
        wa, wb, wc, wd = W[V.idx[p]], W[V.idx[p + 1]], W[V.idx[p + 2]], W[V.idx[p + 3]]
        for j in range(n):
            acc[j] += a * wa[j] + b * wb[j] + c * wc[j] + d * wd[j]
        p += 4
    while p < stop:
        a, wa = V.val[p], W[V.idx[p]]
        for j in range(n):
            acc[j] += a * wa[j]
        p += 1
    _bracket(acc, left)


@compiled(fastmath=FAST)
def _bracket(acc, left):
    """Fill left[lane] = 1 - sum_k (u_k'y)^2, in one pass for up to two k: short columns spend their time here."""
    L = left.size
    if acc.size == L:
        for j in range(L):
            left[j] = 1.0
    elif acc.size == 2 * L:
        for j in range(L):
            left[j] = max(1.0 - acc[L + j] * acc[L + j], TINY)
    elif acc.size == 3 * L:
        for j in range(L):
            left[j] = max(1.0 - acc[L + j] * acc[L + j] - acc[2 * L + j] * acc[2 * L + j], TINY)
    else:
        for j in range(L):
            left[j] = 1.0
        for k in range(1, acc.size // L):
            for j in range(L):
                left[j] -= acc[k * L + j] * acc[k * L + j]
        for j in range(L):
            left[j] = max(left[j], TINY)


@compiled(fastmath=FAST)
def tops(V, W, mx, *, limit, two_sided, prune, reached):
    """mx[lane] = maximum over columns of r |r|; reached[f] grows by the lanes whose r |r| is at least limit[f].

    Columns come by falling bound on r^2: one whose bound is not above the smallest running maximum, nor reaches its own
    limit, can change nothing and is passed over.
    """
    acc, left, low = np.empty(W.shape[1]), np.empty(mx.size), -1e30
    mx[:] = low
    for f in range(limit.size):
        if prune and V.bound[f] <= low and V.bound[f] < limit[f]:
            continue
        _lanes(V, f, (W, acc, left))
        reached[f] += _raise(acc, left, (mx, limit[f], two_sided))
        if f % 32 == 31:
            low = mx[0]
            for j in range(mx.size):
                low = min(low, mx[j])


@compiled(fastmath=FAST)
def _raise(acc, left, tile):
    """Raise the running maxima of r |r| by one column; returns how many lanes reach its own value.

    Only a column that raises some lane is divided by its bracket.
    """
    mx, least, two_sided = tile
    reached, higher = 0, 0
    for j in range(mx.size):
        g = acc[j] * acc[j] if two_sided else acc[j] * abs(acc[j])
        reached += g >= least * left[j]
        higher += g > mx[j] * left[j]
    if higher:
        for j in range(mx.size):
            g = acc[j] * acc[j] if two_sided else acc[j] * abs(acc[j])
            mx[j] = max(mx[j], g / left[j])
    return reached


@compiled(fastmath=FAST)
def steps(V, W, running, *, tables, limit, two_sided, reached):
    """Columns come by rising observed z: running[lane] = maximum so far, reached[f] counts it against limit[f]."""
    acc, left = np.empty(W.shape[1]), np.empty(running.size)
    for f in range(limit.size):
        _lanes(V, f, (W, acc, left))
        for j in range(running.size):
            left[j] = acc[j] / math.sqrt(left[j])
        reached[f] += kernels._advance((left, two_sided, limit[f]), running, tables[0][tables[1][f]])
