"""Relabellings of whole items, the maxima they give, and p-values of single features without random numbers.

One relabelling is applied to all features, positions and sites at once: their dependence is kept and the maximum is
calibrated. What no relabelling changes (the sum of squares of a column, its number of informative items) is divided out
beforehand, so only signed sums are recomputed. With D (n x m) the item contrasts and s in {-1, +1}^n,

    u_j = s'D_j / sqrt(n (q_j + d0 s0_j^2)),   t_j = u_j sqrt(df / (1 - u_j^2)),   df = n - 1 + d0,

q_j = sum_i D_ij^2; d0 = 0 is the plain t. Blocks of features with different df are joined on the normal-equivalent
scale z(t), monotone within a block. Relabelling 0 is the identity, and p = #{T* >= T} / B, so p is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse as sp
from scipy import special

from neurosae.stats import kernels
from neurosae.stats.dense_columns import as_rows, find_dense, one_blas_thread, raise_maxima
from neurosae.stats.relabel import Relabelling, flip_mask, labels

COUNTED = 2e-7  # of statistics in float64 made of float32 responses, relative to 1 + |u|
TIE = 1e-5  # of a float32 maximum on the z scale, relative to 1 + |z|


class Run(NamedTuple):
    """How columns of one kind are recomputed under relabellings: plain functions, the same for every statistic of it.

    tile(columns, relabelling, first, *, two_sided, prune, limit) : one tile, from relabelling `first` on -> maxima over
        the columns (lanes,), and the number of lanes in which each column reaches its `limit` (m,)
    step(columns, relabelling, first, *, tables, limit, two_sided) : the same for a step-down, see `kernels.flip_steps`
    order(columns) : the order in which `tile` wants the columns
    rounding(columns) : size of the rounding errors in u
    to_value(u, df), to_z(u, df) : the statistic that is reported; its normal equivalent, monotone in u
    negate(columns) : columns of the opposite contrast; None where the statistic has no sign
    place(columns, rows) : the same columns, item i now in row rows[i] of a larger relabelling
    bounded : |u| <= 1; otherwise u is compared as it is in a step-down
    prepare(columns) : what `tile` runs on, made once for all tiles
    """

    tile: Callable[..., tuple[np.ndarray, np.ndarray]]
    step: Callable[..., np.ndarray]
    order: Callable[[Columns], np.ndarray]
    rounding: Callable[[Columns], np.ndarray | float]
    to_value: Callable[[np.ndarray, Any], np.ndarray]
    to_z: Callable[[np.ndarray, Any], np.ndarray]
    negate: Callable[[Columns], Columns] | None
    place: Callable[[Columns, np.ndarray], Columns]
    bounded: bool = True
    prepare: Callable[[Columns], Columns] = lambda columns: columns


@dataclass(frozen=True)
class Columns:
    """A block of features made ready for relabelling.

    V : kernel columns, in feature order: a named tuple that begins with the CSC arrays indptr, idx, val; its other
        arrays have one entry or row per column
    u : observed statistics (m,), float64, on the kernel's scale: in [-1, 1], or the statistic itself
    df : degrees of freedom that turn u into t; inf where u already is the statistic; of F a pair
    how : what runs them;  more : what the kernel needs besides, the same for all columns
    dense : columns without zeros that were taken out of V, as rows (n_dense, n_items)
    """

    V: Any
    u: np.ndarray
    df: Any
    how: Run
    more: Any = None
    dense: np.ndarray | None = None

    @property
    def value(self) -> np.ndarray:
        """The observed statistics as they are reported."""
        return self.how.to_value(self.u, self.df)

    @property
    def z(self) -> np.ndarray:
        """The normal equivalents of the observed statistics."""
        return self.how.to_z(self.u, self.df)


@dataclass(frozen=True)
class Ready:
    """Columns to relabel, what gives the uncorrected p, and how the statistic is called.

    scores : CSC whose column sums the flip p is about; None where p is counted over relabellings
    name : for the column `stat`;  d0 : prior degrees of freedom, nan without a prior
    extras(relabelling) : further columns of the results by name, `x_...`, arrays of shape (n_kept,)
    tails() : p and whether it is exact, where the statistic has a p of its own that needs no relabellings
    notes : what the reader must know of each feature, "" for nothing
    dof : degrees of freedom of each feature's statistic, where they are not those of all columns
    """

    columns: Columns
    scores: sp.csc_matrix | None
    name: str
    d0: float = np.nan
    extras: Callable[[Relabelling], Mapping[str, Any]] | None = None
    tails: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    notes: Sequence[str] | None = None
    dof: np.ndarray | None = None

    @property
    def counted(self) -> bool:
        """Whether the uncorrected p is counted over the relabellings."""
        return self.scores is None and self.tails is None


def flip_columns(D: sp.csc_matrix, *, scale: np.ndarray, df: float, n_items: int | None = None) -> Columns:
    """Columns for sign flips: V_j = D_j / scale_j, exact zeros dropped.

    Parameters
    ----------
    D : CSC float64 of shape (n_items, m), item contrasts or signed ranks
    scale : array of shape (m,), a quantity that no flip changes
    df : degrees of freedom of t; inf where s'V is the statistic itself
    """
    D = sp.csc_matrix(D)
    n_columns = D.shape[1]  # pyright: ignore[reportOptionalSubscript]
    scaled = D.data / np.repeat(scale, np.diff(D.indptr))
    col = np.repeat(np.arange(n_columns), np.diff(D.indptr))
    u = np.bincount(col, scaled, n_columns)
    bound = np.bincount(col, np.abs(scaled), n_columns) * (1 + 1e-5)
    val = scaled.astype(np.float32)
    V = kernels.FlipColumns(
        D.indptr.astype(np.int64), D.indices.astype(np.int32), val, u.astype(np.float32), bound.astype(np.float32)
    )
    return Columns(V, u, df, FLIPPED)


def group_columns(
    Y: sp.csc_matrix, codes: np.ndarray, *, weights: np.ndarray, mode: int, shrink: np.ndarray, df: float
) -> Columns:
    """Columns for label permutations; modes and `shrink` as in `kernels.GroupColumns` and `kernels.Labels`."""
    Y = sp.csc_matrix(Y)
    n_columns = Y.shape[1]  # pyright: ignore[reportOptionalSubscript]
    col = np.repeat(np.arange(n_columns), np.diff(Y.indptr))
    total, square = np.bincount(col, Y.data, n_columns), np.bincount(col, Y.data**2, n_columns)
    V = kernels.GroupColumns(
        Y.indptr.astype(np.int64),
        Y.indices.astype(np.int32),
        Y.data.astype(float),
        total,
        square,
        np.ascontiguousarray(shrink, dtype=float),
    )
    counts = np.bincount(codes, minlength=len(weights)).astype(np.int64)
    none = np.empty((0, 0, 0), dtype=np.bool_)
    groups = kernels.Labels(none, np.asarray(weights, dtype=float), counts, mode)
    u = np.empty(n_columns)
    kernels.group_values(V, groups._replace(masks=_cell_masks(np.asarray(codes)[None], len(weights))), u)
    return Columns(V, u, df, GROUPED, groups)


def _cell_masks(codes: np.ndarray, n_cells: int) -> np.ndarray:
    return np.ascontiguousarray(codes.T[None] == np.arange(1, n_cells)[:, None, None])


def same_run(a: Columns, b: Columns) -> bool:
    """Whether one pass of the same kernel can run both."""
    if a.how is not b.how or type(a.more) is not type(b.more):
        return False
    return a.more is None or all(np.array_equal(x, y) for x, y in zip(a.more, b.more, strict=True))


def take(columns: Columns, order: np.ndarray) -> Columns:
    """The same columns in another order."""
    V, lengths = columns.V, np.diff(columns.V.indptr)[order]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    place = np.empty(indptr[-1], dtype=np.int32 if indptr[-1] < 2**31 else np.int64)
    kernels.column_places(V.indptr, order, place)
    made = type(V)(indptr, V.idx[place], V.val[place], *[np.ascontiguousarray(array[order]) for array in V[3:]])
    return replace(columns, V=made, u=columns.u[order])


def place_items(columns: Columns, rows: np.ndarray) -> Columns:
    """The same columns with item i in row rows[i] of a larger relabelling."""
    return replace(columns, V=columns.V._replace(idx=rows[columns.V.idx].astype(np.int32)))


def maxima(
    columns: Columns, relabelling: Relabelling, *, two_sided: bool = True, prune: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum over the columns per relabelling, and per column the number of relabellings that reach its own value.

    Returns
    -------
    maxima : array of shape (n_permutations,), on the scale of `Columns.u`
    reached : int array of shape (m,); 0 for flips of sums, which are not counted: their p is exact (`flip_p`)
    """
    how, order = columns.how, columns.how.order(columns)
    ready = take(columns, order)
    limit = np.abs(ready.u) if two_sided else ready.u
    limit = limit - COUNTED * (1 + np.abs(ready.u)) * how.rounding(ready)
    ready = how.prepare(ready)
    run = partial(how.tile, ready, relabelling, two_sided=two_sided, prune=prune, limit=limit)
    with one_blas_thread(ready.dense is not None):
        out = each_tile(run, relabelling)
    reached = np.empty(len(limit), dtype=np.int64)
    reached[order] = np.sum([n for _, n in out], axis=0)
    return np.concatenate([mx for mx, _ in out])[: relabelling.n], reached


def each_tile(task: Callable, relabelling: Relabelling) -> list:
    """One task per tile on as many threads as numba may use; the order of the results is that of the tiles."""
    starts = range(0, relabelling.n, kernels.LANES)
    threads = min(numba.get_num_threads(), len(starts))
    if threads <= 1:
        return [task(a) for a in starts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, starts))


def step_counts(blocks: Sequence[Columns], relabelling: Relabelling, *, two_sided: bool = True) -> list[np.ndarray]:
    """Westfall-Young step-down over all columns of several blocks: counts of maxima over the features not yet passed.

    Returns one int array per block; divided by `relabelling.n` and made monotone they are adjusted p
    (`multiplicity.step_down`).
    """
    u = np.concatenate([b.u for b in blocks])
    tables = np.stack([_z_table(b) for b in blocks])
    which = np.repeat(np.arange(len(blocks)), [len(b.u) for b in blocks])
    on_scale = np.array([kernels.z_of(float(x), tables[k]) for x, k in zip(u, which, strict=True)])
    size = np.abs(on_scale) if two_sided else on_scale
    order = np.argsort(size, kind="stable")
    joined = take(_joined(blocks), order)
    limit = size[order] - TIE * (1 + np.abs(size[order]))
    tables = (tables, which[order])
    run = partial(joined.how.step, joined, relabelling, tables=tables, limit=limit, two_sided=two_sided)
    reached = np.empty(len(u), dtype=np.int64)
    reached[order] = np.sum(each_tile(run, relabelling), axis=0)
    return np.split(reached, np.cumsum([len(b.u) for b in blocks])[:-1])


def _joined(blocks: Sequence[Columns]) -> Columns:
    V = [b.V for b in blocks]
    starts = np.concatenate([[0], np.cumsum([v.indptr[-1] for v in V])])
    indptr = np.concatenate([v.indptr[:-1] + a for v, a in zip(V, starts, strict=False)] + [starts[-1:]]).astype(
        np.int64
    )
    rest = [np.concatenate(parts) for parts in zip(*[v[1:] for v in V], strict=True)]
    return replace(blocks[0], V=type(V[0])(indptr, *rest), u=np.concatenate([b.u for b in blocks]))


def to_t(u: np.ndarray, df: float) -> np.ndarray:
    """Turn u into t = u sqrt(df / (1 - u^2)); u itself where df is infinite; +-inf where no variance is left.

    Examples
    --------
    >>> to_t(np.array([0.0, 0.6]), 9).round(3)
    array([0.  , 2.25])
    """
    if np.isinf(df):
        return u
    left = 1 - u * u
    flat = left < 1e-12
    return np.where(flat, np.copysign(np.inf, u), u * np.sqrt(df / np.where(flat, 1, left)))


def to_z(u: np.ndarray, df: float) -> np.ndarray:
    """Signed normal equivalent of u = t / sqrt(df + t^2): the z with the same two-sided p; u where df is infinite.

    With x = 1 - u^2 the two-sided p of t is the incomplete beta I_x(df/2, 1/2); beyond float64 its series is used.

    Examples
    --------
    >>> from scipy import stats
    >>> bool(np.isclose(2 * stats.norm.sf(to_z(np.array([0.6]), 9))[0], 2 * stats.t.sf(2.25, 9)))
    True
    """
    u = np.asarray(u, dtype=np.float64)
    if np.isinf(df):
        return u
    return np.copysign(tail_z(u, df / 2, 0.5), u)


def tail_z(u: np.ndarray, a: float, b: float) -> np.ndarray:
    """Normal deviate z >= 0 whose two-sided p is I_x(a, b), x = 1 - u^2; beyond float64 by the series of the beta tail.

    Of t with df degrees of freedom a = df/2, b = 1/2; of F with q and df, u^2 = q F / (q F + df), a = df/2, b = q/2.
    """
    x = 1 - np.minimum(np.abs(u), 1 - 1e-6) ** 2
    p = special.betainc(a, b, x)
    tiny = p < 1e-290
    log_p = np.log(np.where(tiny, 1, p))
    if tiny.any():
        xt = x[tiny]
        series = special.hyp2f1(a + b, 1.0, a + 1.0, xt)
        log_p[tiny] = a * np.log(xt) + b * np.log1p(-xt) - np.log(a) - special.betaln(a, b) + np.log(series)
    return np.maximum(-special.ndtri_exp(log_p - np.log(2)), 0.0)


def _z_table(columns: Columns) -> np.ndarray:
    if not columns.how.bounded or (columns.how.to_z is to_z and np.isinf(columns.df)):
        return np.full(4097, np.nan)
    return columns.how.to_z(np.tanh(np.linspace(0, kernels.STEEPEST, 4097)), columns.df)


# ------------------------------------------------------------------ what runs flips, and labels between items


def by_bound(columns: Columns) -> np.ndarray:
    """Order of falling bounds, which lets a kernel stop early."""
    return np.argsort(-columns.V.bound, kind="stable")


def as_given(columns: Columns) -> np.ndarray:
    """Order of the features."""
    return np.arange(len(columns.u))


def _flip_prepare(columns: Columns) -> Columns:
    V, n_items = columns.V, int(columns.V.idx.max(initial=-1)) + 1
    dense = find_dense(V.indptr, n_items)
    if not dense.any():
        return columns
    block = take(columns, np.flatnonzero(dense)).V
    return replace(
        take(columns, np.flatnonzero(~dense)), dense=as_rows(block.indptr, block.idx, block.val, n_items=n_items)
    )


def _flip_tile(columns: Columns, r: Relabelling, first: int, *, two_sided: bool, prune: bool, limit: np.ndarray):
    mx, W = np.full(kernels.LANES, -1e30, dtype=np.float32), flip_mask(r, first)
    if columns.dense is not None:
        raise_maxima(columns.dense, W[: columns.dense.shape[1]], mx, two_sided=two_sided)
    kernels.flip_maxima(columns.V, W, mx, two_sided=two_sided, prune=prune)
    return mx, np.zeros(1, dtype=np.int64)  # not counted: flips of sums have an exact p


def _flip_step(columns: Columns, r: Relabelling, first: int, *, tables: tuple, limit: np.ndarray, two_sided: bool):
    lanes = min(kernels.LANES, r.n - first)
    running, reached = np.full(lanes, -1e30), np.zeros(len(limit), dtype=np.int64)
    kernels.flip_steps(
        columns.V, flip_mask(r, first), running, tables=tables, limit=limit, two_sided=two_sided, reached=reached
    )
    return reached


def _flip_negate(columns: Columns) -> Columns:
    V = columns.V
    return replace(columns, V=V._replace(val=-V.val, total=-V.total), u=-columns.u)


def _group_tile(columns: Columns, r: Relabelling, first: int, *, two_sided: bool, prune: bool, limit: np.ndarray):
    del prune  # the statistic has no bound that labels leave as it is
    lanes = min(kernels.LANES, r.n - first)
    mx, reached = np.empty(lanes), np.zeros(len(limit), dtype=np.int64)
    label = columns.more._replace(masks=_cell_masks(labels(r, first, lanes), len(columns.more.counts)))
    kernels.group_maxima(columns.V, label, mx, limit=limit, two_sided=two_sided, reached=reached)
    return mx, reached


def _group_step(columns: Columns, r: Relabelling, first: int, *, tables: tuple, limit: np.ndarray, two_sided: bool):
    lanes = min(kernels.LANES, r.n - first)
    running, reached = np.full(lanes, -1e30), np.zeros(len(limit), dtype=np.int64)
    label = columns.more._replace(masks=_cell_masks(labels(r, first, lanes), len(columns.more.counts)))
    kernels.group_steps(columns.V, label, running, tables=tables, limit=limit, two_sided=two_sided, reached=reached)
    return reached


def _group_rounding(columns: Columns) -> np.ndarray | float:
    """1 for bounded statistics, the size of the summands where u is a mean."""
    groups, V = columns.more, columns.V
    if groups.mode != 0:
        return 1.0
    size = np.bincount(np.repeat(np.arange(len(V.total)), np.diff(V.indptr)), np.abs(V.val), len(V.total))
    return size * np.abs(groups.weights / groups.counts).max()


def _group_negate(columns: Columns) -> Columns:
    return replace(columns, more=columns.more._replace(weights=-columns.more.weights), u=-columns.u)


FLIPPED = Run(
    _flip_tile, _flip_step, by_bound, lambda _: 1.0, to_t, to_z, _flip_negate, place_items, prepare=_flip_prepare
)
GROUPED = Run(_group_tile, _group_step, as_given, _group_rounding, to_t, to_z, _group_negate, place_items)
