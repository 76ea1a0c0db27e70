"""The two-part hurdle statistic: does a feature fire more often, or more strongly where it fires, or either?

Within items, with y1 and y0 the mean responses of an item over the + and the - cells, F = [y1 > 0] - [y0 > 0] and,
where both fire, L = log(y1 / y0), under the same sign flips s of whole items,

    H = z_fire^2 + z_mag^2,   z_fire = sum s F / sqrt(sum F^2),   z_mag = sum s L / sqrt(sum L^2).

No item belongs to both parts, so they are independent under flips, and the p of H is a sum over the values of z_fire:
P(H >= h) = sum_f P(z_fire = f) P(z_mag^2 >= h - f^2), exact where at most 24 items fire on both sides, else by
saddlepoint. The flip p of z_fire is McNemar's exact test. Between items, with the weights w_g of the groups,

    z = sum_g w_g mean_g(x) / sqrt(var(x) sum_g w_g^2 / n_g),

of x = [y > 0] and of x = log y minus its mean over the items that fire (0 for those that do not), under the same
permutations of labels. A part without data is left out of H, and said so.

References
----------
Lachenbruch (1976), Biom. J. 18, 215-220 (two-part statistics). McNemar (1947), Psychometrika 12, 153-157.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import special

from neurosae.errors import DataError
from neurosae.stats import kernels
from neurosae.stats.flips import Columns, Ready, Run, as_given, by_bound, group_columns, maxima, place_items
from neurosae.stats.hurdle_kernels import (
    GroupScores,
    HurdleColumns,
    hurdle_maxima,
    hurdle_steps,
    hurdle_tails,
    score_maxima,
    score_steps,
    score_values,
)
from neurosae.stats.relabel import Relabelling, flip_mask, labels
from neurosae.stats.tails import LARGEST, flip_p
from neurosae.stats.units import ROUNDING, ItemData


def hurdle(data: ItemData, kept: np.ndarray) -> Ready:
    """Both parts of every feature, ready to be relabelled."""
    _refuse(data, kept)
    if data.codes is not None:
        return _between(data, kept)
    parts = sides(data, kept)
    z = [_sum(part) / np.sqrt(np.maximum(_sum(part.power(2)), 1e-300)) for part in parts]
    there = [np.diff(part.indptr) > 0 for part in parts]
    return Ready(
        hurdle_columns(*parts),
        None,
        "hurdle",
        extras=lambda _: _columns_of_parts(z, [flip_p(part)[0] for part in parts], there),
        tails=lambda: hurdle_p(*parts),
        notes=_missing(there),
    )


def _refuse(data: ItemData, kept: np.ndarray) -> None:
    what = data.effect.words
    if data.Y[:, kept].data.min(initial=0) < 0:
        raise DataError("hurdle asks whether a feature fires, and negative responses leave that open; use moderated_t.")
    if data.levels is not None or data.omnibus:
        raise DataError(f"hurdle compares two sides, but {what} compares levels that change places; use moderated_t.")
    if data.beside is not None:
        raise DataError(f"hurdle has no linear model of {what} to regress anything out of; use moderated_t.")
    if data.codes is not None and data.D.data.min(initial=0) < 0:
        raise DataError(
            f"hurdle asks whether an item fires, but {what} is tested on differences inside items; use moderated_t, or "
            "test a simple effect."
        )


def _sum(part: sp.csc_matrix) -> np.ndarray:
    return np.asarray(part.sum(axis=0)).ravel()


# ------------------------------------------------------------------ within items


def sides(data: ItemData, kept: np.ndarray) -> tuple[sp.csc_matrix, sp.csc_matrix]:
    """F and L of every item and feature, CSC (n, m) without stored zeros; items count equally, whatever their group."""
    Y, signed = sp.csc_matrix(data.Y[:, kept]), data.weights[data.row_cell]
    means = []
    for sign in (1, -1):
        w = np.maximum(sign * signed, 0)
        w = w / np.maximum(np.bincount(data.row_unit, w, data.n), 1e-300)[data.row_unit]
        A = sp.csr_matrix((w, (data.row_unit, np.arange(len(w)))), shape=(data.n, len(w)))
        mean = sp.csc_matrix(A @ Y)
        mean.data = np.maximum(mean.data, 0)
        mean.eliminate_zeros()
        means.append(mean)
    plus, minus = means
    fires = sp.csc_matrix(plus.sign() - minus.sign())
    both = plus.sign().multiply(minus.sign())
    logs = [mean.copy() for mean in means]
    for mean in logs:
        mean.data = np.log(mean.data)
    ratio = sp.csc_matrix(both.multiply(logs[0]) - both.multiply(logs[1]))
    ratio.data[np.abs(ratio.data) <= 2 * ROUNDING] = 0.0
    out = []
    for part in (fires, ratio):
        flipped = part if data.signs is None else sp.csc_matrix(sp.diags_array(data.signs) @ part)
        flipped.eliminate_zeros()
        flipped.sort_indices()
        out.append(flipped)
    return out[0], out[1]


def hurdle_columns(fires: sp.csc_matrix, ratio: sp.csc_matrix) -> Columns:
    """Columns of H under flips; u is H itself."""
    m = fires.shape[1]  # pyright: ignore[reportOptionalSubscript]
    scaled, totals, bounds = [], [], []
    for part in (fires, ratio):
        col = np.repeat(np.arange(m), np.diff(part.indptr))
        val = part.data / np.sqrt(np.bincount(col, part.data**2, m))[col]
        scaled.append((col, part.indices, val))
        totals.append(np.bincount(col, val, m))
        bounds.append(np.bincount(col, np.abs(val), m))
    col, idx, val = (np.concatenate(x) for x in zip(*scaled, strict=True))
    order = np.argsort(col, kind="stable")  # the part that fires on one side comes first
    indptr = np.concatenate([[0], np.cumsum(np.bincount(col, minlength=m))]).astype(np.int64)
    bound = (bounds[0] ** 2 + bounds[1] ** 2) * (1 + 1e-5)
    V = HurdleColumns(
        indptr,
        idx[order].astype(np.int32),
        val[order].astype(np.float32),
        np.diff(fires.indptr).astype(np.int64),
        np.column_stack(totals).astype(np.float32),
        bound.astype(np.float32),
    )
    return Columns(V, totals[0] ** 2 + totals[1] ** 2, np.inf, HURDLE_FLIPPED)


def hurdle_p(fires: sp.csc_matrix, ratio: sp.csc_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Flip p of H (m,), and whether it is exact: at most 24 items fire on both sides.

    Examples
    --------
    Five items start to fire, two fire on both sides, more strongly on one; 4 of 128 flips reach H:

    >>> F = sp.csc_matrix(np.array([[1.0, 1, 1, 1, 1, 0, 0]]).T)
    >>> L = sp.csc_matrix(np.array([[0.0, 0, 0, 0, 0, 0.3, 0.2]]).T)
    >>> hurdle_p(F, L)[0] * 128
    array([4.])
    """
    n_fire = np.diff(fires.indptr).astype(np.int64)
    net = np.abs(np.asarray(fires.sum(axis=0)).ravel())
    p = np.empty(len(n_fire))
    hurdle_tails(ratio.indptr.astype(np.int64), ratio.data.astype(float), p, n_fire=n_fire, net=net, largest=LARGEST)
    return p, np.diff(ratio.indptr) <= LARGEST


def _flip_tile(columns: Columns, r: Relabelling, first: int, *, two_sided: bool, prune: bool, limit: np.ndarray):
    del two_sided  # H has no sign
    mx = np.empty(kernels.LANES, dtype=np.float32)
    hurdle_maxima(columns.V, flip_mask(r, first), mx, prune=prune)
    return mx, np.zeros(len(limit), dtype=np.int64)


def _flip_step(columns: Columns, r: Relabelling, first: int, *, tables: tuple, limit: np.ndarray, two_sided: bool):
    del two_sided
    running, reached = np.full(min(kernels.LANES, r.n - first), -1e30), np.zeros(len(limit), dtype=np.int64)
    hurdle_steps(columns.V, flip_mask(r, first), running, tables=tables, limit=limit, reached=reached)
    return reached


# ------------------------------------------------------------------ between items


class GroupShares(NamedTuple):
    """What a unit of each group adds to z: w_g / n_g."""

    share: np.ndarray


def _between(data: ItemData, kept: np.ndarray) -> Ready:
    (codes, weights), Y = data.grouping, sp.csc_matrix(data.D[:, kept])
    Y.sort_indices()
    m, n, counts = len(kept), data.n, np.bincount(data.grouping[0])
    col = np.repeat(np.arange(m), np.diff(Y.indptr))
    logs, k = np.log(Y.data), np.diff(Y.indptr)
    logs -= (np.bincount(col, logs, m) / np.maximum(k, 1))[col]
    logs[np.abs(logs) <= 2 * ROUNDING] = 0.0
    scale = (weights**2 / counts).sum() / (n - 1)
    sizes = [np.sqrt(x * scale) for x in (k - k**2 / n, np.bincount(col, logs**2, m))]
    there = [size > 0 for size in sizes]
    one, two = (np.where(t, 1 / np.where(t, size, 1), 0.0)[col] for t, size in zip(there, sizes, strict=True))
    V = GroupScores(Y.indptr.astype(np.int64), Y.indices.astype(np.int32), np.column_stack([one, logs * two]))
    more = GroupShares(weights / counts)
    u = np.empty(m)
    score_values(V, codes.astype(np.uint8)[:, None], u, share=more.share)
    parts = [sp.csc_matrix((V.val[:, p], Y.indices, Y.indptr), shape=Y.shape) for p in (0, 1)]
    plain = [group_columns(part, codes, weights=weights, mode=0, shrink=np.zeros((m, 2)), df=np.inf) for part in parts]

    def extras(how: Relabelling) -> Mapping[str, Any]:
        p = [maxima(part, how)[1] / how.n for part in plain]
        return _columns_of_parts([part.u for part in plain], p, there)

    return Ready(Columns(V, u, np.inf, HURDLE_GROUPED, more), None, "hurdle", extras=extras, notes=_missing(there))


def _group_tile(columns: Columns, r: Relabelling, first: int, *, two_sided: bool, prune: bool, limit: np.ndarray):
    del two_sided, prune
    given = np.ascontiguousarray(labels(r, first, min(kernels.LANES, r.n - first)).T)
    mx, reached = np.empty(given.shape[1]), np.zeros(len(limit), dtype=np.int64)
    score_maxima(columns.V, given, mx, share=columns.more.share, limit=limit, reached=reached)
    return mx, reached


def _group_step(columns: Columns, r: Relabelling, first: int, *, tables: tuple, limit: np.ndarray, two_sided: bool):
    del two_sided
    given = np.ascontiguousarray(labels(r, first, min(kernels.LANES, r.n - first)).T)
    running, reached = np.full(given.shape[1], -1e30), np.zeros(len(limit), dtype=np.int64)
    score_steps(columns.V, given, running, share=columns.more.share, tables=tables, limit=limit, reached=reached)
    return reached


# ------------------------------------------------------------------ what is reported


def hurdle_z(u: np.ndarray, df: float) -> np.ndarray:
    """Normal deviate z >= 0 with the two-sided p of a chi^2 of two degrees of freedom; monotone in H."""
    del df
    return np.maximum(-special.ndtri_exp(-np.asarray(u, dtype=float) / 2 - np.log(2)), 0.0)


def _columns_of_parts(z: Sequence[np.ndarray], p: Sequence[np.ndarray], there: Sequence[np.ndarray]):
    """The parts, and their p by Holm over the two; NA where a part has no data."""
    one, two = (np.where(known, part, np.nan) for part, known in zip(p, there, strict=True))
    n, smaller = there[0].astype(int) + there[1], np.fmin(one, two)
    holm = [np.minimum(1, np.where(part == smaller, n * part, np.maximum(part, n * smaller))) for part in (one, two)]
    fire, mag = (np.where(known, part, np.nan) for part, known in zip(z, there, strict=True))
    return {"x_z_fire": fire, "x_z_mag": mag, "x_p_fire": holm[0], "x_p_mag": holm[1]}


def _missing(there: Sequence[np.ndarray]) -> list[str]:
    """What is said of features of which a part has no data."""
    fire = "no item fires on one side only, so there is no part about how often it fires"
    mag = "no item differs in strength where both sides fire, so there is no part about how strongly it fires"
    return ["; ".join([fire] * (not a) + [mag] * (not b)) for a, b in zip(*there, strict=True)]


def _value(u: np.ndarray, df: float) -> np.ndarray:
    del df
    return u


def _one(columns: Columns) -> float:
    del columns
    return 1.0


HURDLE_FLIPPED = Run(_flip_tile, _flip_step, by_bound, _one, _value, hurdle_z, None, place_items, bounded=False)
HURDLE_GROUPED = Run(_group_tile, _group_step, as_given, _one, _value, hurdle_z, None, place_items, bounded=False)
