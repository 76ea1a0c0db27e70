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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.kernels import FAST, LANES, compiled
from neurosae.stats.nuisance import Model, column_sums, residual_squares
from neurosae.stats.relabel import Relabelling, flip_mask, labels

PART = 128  # relabellings whose (1 + k) lanes of all items are held at a time; they stay in the second cache
TINY = 1e-12  # of a bracket whose start is 1: what is less is rounding
TIE = 1e-9  # of r, relative to 1 + |r|: ties that rounding broke count as ties


class Columns(NamedTuple):
    """Columns of y over sqrt(|R y|^2 + d0 s0^2), so that the bracket of r begins at 1; CSC, float64."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray


@dataclass(frozen=True)
class Projected:
    """Features made ready for relabelling beside nuisance.

    V : kernel columns, in feature order;  u : observed r (t where df is infinite), array of shape (m,), float64
    df : degrees of freedom that turn u into t, prior included; inf where u already is t
    model : the regression
    """

    V: Columns
    u: np.ndarray
    df: float
    model: Model


def project(Y: sp.csc_matrix, model: Model, *, d0: float = 0.0, s02: np.ndarray | float = 0.0) -> Projected:
    """Columns for `maxima`: t of the model's regressor, its variance shrunk by d0 degrees of freedom towards s02.

    Parameters
    ----------
    Y : CSC float64 of shape (n, m), one value per item and feature
    model : from `fit_model`
    d0, s02 : prior, a function of invariant numbers; d0 = inf puts s02 in the place of the variance

    Raises
    ------
    DataError
        If nothing of a column is left beside the nuisance: it cannot be tested.
    """
    Y = sp.csc_matrix(Y)
    left = residual_squares(Y, model.Q)
    if (left == 0).any():
        raise DataError(f"column {int(np.argmin(left))} is explained by the nuisance altogether; it cannot be tested.")
    scale = np.sqrt(np.broadcast_to(s02, left.shape) if np.isinf(d0) else left + d0 * s02)
    val = Y.data / np.repeat(scale, np.diff(Y.indptr))
    u = column_sums(Y, val * model.x[Y.indices])
    V = Columns(Y.indptr.astype(np.int64), Y.indices.astype(np.int32), val)
    return Projected(V, u, np.inf if np.isinf(d0) else model.df + d0, model)


# ------------------------------------------------------------------ relabelling


def maxima(
    columns: Projected, relabelling: Relabelling, *, two_sided: bool = True, count: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum over the columns per relabelling, and per column the number of relabellings that reach its own value.

    Parameters
    ----------
    columns : from `project`
    relabelling : sign flips, or permutations whose codes name a value of the regressor (a whole item, where nuisance
        is permuted with it)
    two_sided : bool
    count : bool
        False leaves the second array at 0 and visits only columns that can still raise a maximum.

    Returns
    -------
    maxima : array of shape (n_permutations,), on the scale of `Projected.u`
    reached : int array of shape (m,)

    Examples
    --------
    >>> from neurosae.stats.relabel import flips
    >>> from neurosae.stats.nuisance import fit_model
    >>> d, z = np.array([1.0, 3.0, 2.0, 4.0, -1.0, 2.0]), np.array([[1.0], [0.0], [2.0], [1.0], [-1.0], [0.0]])
    >>> columns = project(sp.csc_matrix(d[:, None]), fit_model(np.ones(6), z))
    >>> maxima(columns, flips(np.arange(6), 100, seed=0))[1] / 32
    array([0.15625])
    """
    bound = np.full(len(columns.u), np.inf) if count else _bounds(columns, relabelling)
    order = np.argsort(-bound, kind="stable")
    size = np.abs(columns.u) if two_sided else columns.u
    limit = (size - TIE * (1 + np.abs(size)))[order]
    V, bound = _take(columns.V, order), bound[order]

    def part(W: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        mx, reached = np.empty(lanes), np.zeros(len(limit), dtype=np.int64)
        tops(V, W, mx, limit=limit * np.abs(limit), two_sided=two_sided, reached=reached, bound=bound)
        return np.sign(mx) * np.sqrt(np.abs(mx)), reached

    done = each_part(columns, relabelling, part)
    reached = np.zeros(len(limit), dtype=np.int64)
    if count:
        reached[order] = np.sum([n for _, n in done], axis=0)
    return np.concatenate([mx for mx, _ in done]), reached


def relabelled(columns: Projected, relabelling: Relabelling) -> np.ndarray:
    """The r (t where df is infinite) of every column under every relabelling, (n_permutations, m), for few columns."""

    def part(W: np.ndarray, lanes: int) -> np.ndarray:
        out = np.empty((len(columns.u), lanes))
        values(columns.V, W, out)
        return out.T

    return np.concatenate(each_part(columns, relabelling, part))


def each_part(columns: Projected, r: Relabelling, task: Callable) -> list:
    """Results of task(W, lanes) over all relabellings in order, on as many threads as numba may use.

    W (n, (1 + k) lanes) holds w, then u_1 … u_k, of `lanes` relabellings side by side.
    """
    model = columns.model
    first = model.Q.shape[1] if np.isinf(columns.df) else model.n_fixed
    B = np.ascontiguousarray(np.column_stack([model.x, model.Q[:, first:]]))

    def tile(start: int) -> list:
        lanes, out = min(LANES, r.n - start), []
        moved = flip_mask(r, start) if r.kind == "flip" else _sources(r, start, lanes)
        for a in range(0, lanes, PART):
            n = min(PART, lanes - a)
            W = np.empty((len(model.x), B.shape[1] * n))
            (signed_lanes if r.kind == "flip" else permuted_lanes)(B, W, moved=moved, first=a)
            take_out(model.Q, W)
            out.append(task(W, n))
        return out

    starts = range(0, r.n, LANES)
    threads = min(numba.get_num_threads(), len(starts))
    if threads <= 1:
        return [one for a in starts for one in tile(a)]
    with ThreadPoolExecutor(threads) as pool:
        return [one for some in pool.map(tile, starts) for one in some]


def _sources(r: Relabelling, first: int, count: int) -> np.ndarray:
    """Whose regressor (and nuisance) each item gets, int array of shape (n, count)."""
    representative = np.unique(r.codes, return_index=True)[1]
    return np.ascontiguousarray(representative[np.searchsorted(np.unique(r.codes), labels(r, first, count))].T)


def _take(V: Columns, order: np.ndarray) -> Columns:
    """The same columns in another order."""
    lengths = np.diff(V.indptr)[order]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.repeat(V.indptr[:-1][order] - indptr[:-1], lengths) + np.arange(indptr[-1])
    return Columns(indptr, V.idx[place], V.val[place])


def _bounds(columns: Projected, relabelling: Relabelling) -> np.ndarray:
    """What r^2 of a column cannot exceed under any relabelling; inf where nothing is known.

    |R y| <= |y| + sum_l |q_l| |q_l'y| item by item. Flips leave |x| in its place; permutations put it anywhere, at
    worst the largest beside the largest.
    """
    V, model = columns.V, columns.model
    col = np.repeat(np.arange(len(columns.u)), np.diff(V.indptr))
    size, at, m = np.abs(V.val), V.idx, len(columns.u)
    if relabelling.kind != "flip":
        order = np.lexsort([-size, col])
        size, at = size[order], np.arange(len(col)) - V.indptr[col]
    inside = [np.abs(np.bincount(col, V.val * q[V.idx], m)) for q in model.Q.T]

    def most(vector: np.ndarray) -> np.ndarray:
        """Bound on |(P'vector)'R y| for every column."""
        ranked = [np.abs(v) if relabelling.kind == "flip" else -np.sort(-np.abs(v)) for v in (vector, *model.Q.T)]
        total = np.bincount(col, size * ranked[0][at], m)
        for k in range(model.n_fixed, model.Q.shape[1]):
            total += inside[k] * (ranked[0] * ranked[1 + k]).sum()
        return total

    top = most(model.x) ** 2
    if np.isinf(columns.df):
        return top * (1 + 1e-9)
    left = 1 - np.sum([most(q) ** 2 for q in model.Q.T[model.n_fixed :]], axis=0)
    return np.where(left > 0, top / np.where(left > 0, left, 1), np.inf) * (1 + 1e-9)


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
    n, L = acc.size, left.size
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
    for j in range(L):
        left[j] = 1.0
    for k in range(1, n // L):
        for j in range(L):
            left[j] -= acc[k * L + j] * acc[k * L + j]
    for j in range(L):
        left[j] = max(left[j], TINY)


@compiled(fastmath=FAST)
def tops(V, W, mx, *, limit, two_sided, reached, bound):
    """mx[lane] = maximum over columns of r |r|; reached[f] grows by the lanes whose r |r| is at least limit[f].

    Columns come by falling bound on r^2: once it is not above the smallest running maximum no later column can raise
    any lane, so stopping there is exact. Returns the number of columns visited.
    """
    acc, left, low = np.empty(W.shape[1]), np.empty(mx.size), -1e30
    mx[:] = low
    for f in range(limit.size):
        if bound[f] <= low:
            return f
        _lanes(V, f, (W, acc, left))
        n, least = 0, limit[f]
        for j in range(mx.size):
            g = acc[j] * (abs(acc[j]) if not two_sided else acc[j])
            n += g >= least * left[j]
            mx[j] = max(mx[j], g / left[j])
        reached[f] += n
        if f % 32 == 31:
            low = mx[0]
            for j in range(mx.size):
                low = min(low, mx[j])
    return limit.size


@compiled(fastmath=FAST)
def values(V, W, out):
    """out[f, lane] = r of column f."""
    L = out.shape[1]
    acc, left = np.empty(W.shape[1]), np.empty(L)
    for f in range(out.shape[0]):
        _lanes(V, f, (W, acc, left))
        for j in range(L):
            out[f, j] = acc[j] / math.sqrt(left[j])
