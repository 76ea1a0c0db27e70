"""The statistics of a contrast: what is computed from the items' values, ready to be recomputed under relabelling.

| name | within items | between items |
|---|---|---|
| `mean` | mean of d | weighted difference of group means |
| `t` | mean / (sd / sqrt(n)) | pooled t; Welch's where group sizes differ |
| `moderated_t` | variance shrunk to a trend over activity | the same, prior on the total variance |
| `signed_rank` | sum s R / sqrt(sum R^2), mid-ranks of non-zero abs(d) | rank sum |
| `slope` | t of the slope on a covariate, as t is for such effects; nuisance beside t: see `projection` | the same |
| `hurdle` | z_fire^2 + z_mag^2: fires more often, or more strongly, see `hurdle` | the same of groups |
| `F` | all levels of a factor at once, see `levels`; t and moderated_t become F there | the same |

A new statistic is one function and one entry in `STATISTICS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.flips import Columns, Ready, flip_columns, group_columns
from neurosae.stats.hurdle import hurdle
from neurosae.stats.levels import compares_levels, of_levels
from neurosae.stats.moderation import fit_prior
from neurosae.stats.projection import regression
from neurosae.stats.ranks import ranks_from_zero, size_ranks
from neurosae.stats.units import ItemData, activity, errors_of


def _elsewhere(data: ItemData, kept: np.ndarray, name: str) -> Ready | None:
    """A statistic of levels that change places, or beside a regression; None for flips and labels of groups."""
    if compares_levels(data):
        return of_levels(data, kept, name)
    return None if data.beside is None else regression(data, kept, name)


def _mean(data: ItemData, kept: np.ndarray) -> Ready:
    if (ready := _elsewhere(data, kept, "mean")) is not None:
        return ready
    D = _columns(data.D, kept)
    if data.codes is not None:
        return Ready(_grouped(data, D, mode=0), None, "mean")
    scale = np.full(D.shape[1], float(data.n))  # pyright: ignore[reportOptionalSubscript]
    return Ready(flip_columns(D, scale=scale, df=np.inf), D, "mean")


def _t(data: ItemData, kept: np.ndarray) -> Ready:
    if (ready := _elsewhere(data, kept, "t")) is not None:
        return ready
    D, n = _columns(data.D, kept), data.n
    if data.codes is not None:
        mode = _mode(data)
        return Ready(_grouped(data, D, mode=mode), None, "t" if mode == 1 else "welch_t")
    return Ready(flip_columns(D, scale=np.sqrt(n * _squares(D)), df=n - 1.0), D, "t")


def _moderated(data: ItemData, kept: np.ndarray) -> Ready:
    if (ready := _elsewhere(data, kept, "moderated_t")) is not None:
        return ready
    D, n = _columns(data.D, kept), data.n
    trend = activity(data, kept)
    if data.codes is not None:
        mode, total = _mode(data), np.asarray(D.sum(axis=0)).ravel()
        d0, s02 = fit_prior(np.maximum(_squares(D) - total**2 / n, 0) / (n - 1), n - 1, trend)
        shrink = np.column_stack(
            [np.full(len(kept), -1.0), s02] if np.isinf(d0) else [np.full(len(kept), d0), d0 * s02]
        )
        name = "moderated_t" if mode == 1 else "moderated_welch_t"
        return Ready(_grouped(data, D, mode=mode, shrink=shrink), None, name, d0)
    q = _squares(D)
    d0, s02 = fit_prior(q / n, n, trend)
    if np.isinf(d0):
        return Ready(flip_columns(D, scale=np.sqrt(n * s02), df=np.inf), D, "moderated_t", d0)
    return Ready(flip_columns(D, scale=np.sqrt(n * (q + d0 * s02)), df=n - 1 + d0), D, "moderated_t", d0)


def signed_rank(data: ItemData, kept: np.ndarray) -> Ready:
    """Signed ranks of non-zero differences, or the rank sum between groups, as normal deviates."""
    if (ready := _elsewhere(data, kept, "signed_rank")) is not None:
        return ready
    D = _columns(data.D, kept)
    if data.codes is not None:
        R = ranks_from_zero(D)  # the constant that is left out has weight 0 in every contrast of groups
        codes, weights = data.grouping
        n, total = data.n, np.asarray(R.sum(axis=0)).ravel()
        variance = (n * _squares(R) - total**2) / (n * (n - 1))  # of half integers: exactly 0 where all are one tie
        scale = np.sqrt(variance * (weights**2 / np.bincount(codes)).sum())
        R.data /= np.repeat(np.where(scale > 0, scale, 1.0), np.diff(R.indptr))
        return Ready(_grouped(data, R, mode=0), None, "rank_sum")
    R = D.copy()
    R.data = np.sign(D.data) * size_ranks(D, errors_of(data, kept))
    return Ready(flip_columns(R, scale=np.sqrt(_squares(R)), df=np.inf), R, "signed_rank")


def _columns(D: sp.csc_matrix, kept: np.ndarray) -> sp.csc_matrix:
    return sp.csc_matrix(D[:, kept])


def _squares(D: sp.csc_matrix) -> np.ndarray:
    n_columns = D.shape[1]  # pyright: ignore[reportOptionalSubscript]
    return np.bincount(np.repeat(np.arange(n_columns), np.diff(D.indptr)), D.data**2, n_columns)


def _mode(data: ItemData) -> int:
    """Pooled variance where groups have equal sizes; separate ones where not: then pooling is not robust."""
    return 1 if len(set(np.bincount(data.grouping[0]).tolist())) == 1 else 2


def _grouped(data: ItemData, D: sp.csc_matrix, *, mode: int, shrink: np.ndarray | None = None) -> Columns:
    shrink = np.zeros((D.shape[1], 2)) if shrink is None else shrink  # pyright: ignore[reportOptionalSubscript]
    d0 = np.inf if len(shrink) and shrink[0, 0] < 0 else (shrink[0, 0] if len(shrink) else 0.0)
    codes, weights = data.grouping
    df = np.inf if mode == 0 else data.n - len(weights) + d0
    return group_columns(D, codes, weights=weights, mode=mode, shrink=shrink, df=df)


def _slope(data: ItemData, kept: np.ndarray) -> Ready:
    if data.beside is None or not data.beside.slope:
        raise DataError("statistic slope needs an effect on a covariate, {slope: frequency}; use moderated_t.")
    return regression(data, kept, "slope")


def _all_levels(data: ItemData, kept: np.ndarray) -> Ready:
    if data.beside is not None:
        return regression(data, kept, "F")
    return of_levels(data, kept, "F")


STATISTICS: dict[str, Callable[[ItemData, np.ndarray], Ready]] = {
    "mean": _mean,
    "t": _t,
    "moderated_t": _moderated,
    "signed_rank": signed_rank,
    "hurdle": hurdle,
    "F": _all_levels,
    "slope": _slope,
}
