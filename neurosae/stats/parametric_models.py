"""The parametric models by name: how each is fitted to the rows of a layout, and what it assumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from neurosae.errors import DataError
from neurosae.spec.parametric import NO_STRATA
from neurosae.stats.crossed import check_frames, combine_f, crossed_reml
from neurosae.stats.glm import moderated, ols, robust_errors
from neurosae.stats.layout import BLOCK, Layout
from neurosae.stats.mixed import UNBOUNDED, reml


class Numbers(NamedTuple):
    """What a model says of each feature (m,): statistic, degrees of freedom, estimate, error, two-sided p, extras."""

    stat: str
    value: np.ndarray
    dof: np.ndarray
    estimate: np.ndarray
    se: np.ndarray
    p: np.ndarray
    extras: dict[str, np.ndarray]


def _least_squares(rows: Layout) -> Numbers:
    fit = ols(rows.Y, rows.X, rows.weights[None], names=rows.names)
    return _t_numbers("t", fit.t[:, 0], fit.dof, fit.estimate[:, 0], fit.se[:, 0])


def _hc3(rows: Layout) -> Numbers:
    fit = ols(rows.Y, rows.X, rows.weights[None], names=rows.names)
    se, dof = robust_errors(rows.Y, fit, kind="HC3")
    return _t_numbers("t_hc3", _ratio(fit.estimate, se), dof, fit.estimate[:, 0], se[:, 0])


def _cluster(rows: Layout) -> Numbers:
    fit = ols(rows.Y, rows.X, rows.weights[None], names=rows.names)
    se, dof = robust_errors(rows.Y, fit, kind="CR1", items=rows.unit)
    return _t_numbers("t_cluster", _ratio(fit.estimate, se), dof, fit.estimate[:, 0], se[:, 0])


def _limma(rows: Layout) -> Numbers:
    fit = ols(rows.Y, rows.X, rows.weights[None], names=rows.names)
    t, dof, d0 = moderated(fit, np.log(np.maximum(rows.activity[fit.features], 1e-300)))
    se = np.abs(_ratio(fit.estimate, t))
    made = _t_numbers("moderated_t", t[:, 0], dof, fit.estimate[:, 0], se)
    return made._replace(extras={"x_d0": np.full(len(t), d0)})


def _item_intercept(rows: Layout) -> Numbers:
    if rows.is_difference or not rows.is_between:
        raise DataError(
            "the effect varies within items, and items react to it differently: (1 | item) is then no valid error "
            "term (it rejects .09-.10 of true hypotheses at .05). The model that is one, (1 + effect | item), is in "
            "balanced data the paired t test of the items' differences: use model ols."
        )
    fit = reml(rows.Y, rows.X, rows.unit, contrasts=rows.weights[None], names=rows.names)
    made = _t_numbers("t_mixed", _ratio(fit.estimate, fit.se), fit.dof[:, 0], fit.estimate[:, 0], fit.se[:, 0])
    keep = fit.state != UNBOUNDED
    extras = {"x_var_item": np.where(keep, fit.var_item, np.nan), "x_var_resid": fit.var_resid}
    return made._replace(extras=extras)


def _crossed(rows: Layout) -> Numbers:
    check_frames(rows.n_frames)
    if rows.is_between:
        raise DataError(
            "the effect compares groups of items, and each frame differs between them in its own way: intercepts of "
            "items and frames are no valid error term. Use model min_f."
        )
    fit = crossed_reml(rows.Y, rows.X, rows.unit, frames=rows.frame, contrasts=rows.weights[None], names=rows.names)
    made = _t_numbers("t_crossed", _ratio(fit.estimate, fit.se), fit.dof[:, 0], fit.estimate[:, 0], fit.se[:, 0])
    extras = {"x_var_item": fit.var_item, "x_var_frame": fit.var_frame, "x_var_resid": fit.var_resid}
    return made._replace(extras=extras)


def _min_f(rows: Layout) -> Numbers:
    """F1 over the units that have all frames, F2 over frames of the weighted means of their groups."""
    check_frames(rows.n_frames)
    if any(name.startswith(BLOCK) for name in rows.names):
        raise DataError(NO_STRATA)
    whole = np.flatnonzero(np.bincount(rows.unit, minlength=rows.unit.max() + 1) == rows.n_frames)
    if len(whole) < 2:
        raise DataError("fewer than 2 items stand in all frames; min-F' needs complete items: use model crossed.")
    inside = np.flatnonzero(np.isin(rows.unit, whole))
    unit, frame = np.searchsorted(whole, rows.unit[inside]), rows.frame[inside]
    groups = rows.X[inside][np.unique(unit, return_index=True)[1]]
    if (groups.sum(axis=0) < 2).any():
        raise DataError("a group has fewer than 2 items that stand in all frames; a variance needs at least 2.")
    Y = rows.Y.toarray()[inside]
    d = np.zeros((len(whole), rows.n_frames, Y.shape[1]))
    d[unit, frame] = Y
    by_item = ols(d.mean(axis=1), groups, rows.weights[None], names=rows.names)
    share = groups / groups.sum(axis=0) @ rows.weights
    by_frame = ols(np.einsum("i,ifm->fm", share, d), np.ones((rows.n_frames, 1)), np.ones((1, 1)))
    F1, F2, estimate = np.full((3, Y.shape[1]), np.nan)
    F1[by_item.features], F2[by_frame.features] = by_item.t[:, 0] ** 2, by_frame.t[:, 0] ** 2
    estimate[by_item.features] = by_item.estimate[:, 0]
    found = combine_f(F1, F2, dof=(by_item.dof, by_frame.dof))
    with np.errstate(divide="ignore", invalid="ignore"):
        se = np.where(found.value > 0, np.abs(estimate) / np.sqrt(found.value), np.nan)
    return Numbers("min_f", found.value, found.dof, estimate, se, found.p, {"x_F1": F1, "x_F2": F2})


def _t_numbers(stat: str, t: np.ndarray, dof: np.ndarray | float, *rest: np.ndarray) -> Numbers:
    estimate, se = rest
    t = np.ravel(t)
    dof = np.broadcast_to(np.asarray(dof, dtype=float), t.shape)
    return Numbers(stat, t, dof, estimate, se, 2 * stats.t.sf(np.abs(t), dof), {})


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient of single contrasts, nan where b is 0 up to rounding."""
    a, b = a[:, 0], b[:, 0]
    kept = np.abs(b) > 1e-14 * np.abs(a)
    return np.where(kept, a / np.where(kept, b, 1), np.nan)


class Model(NamedTuple):
    """Rows by default first, whether rows count as independent, how it is fitted, and what it assumes in words."""

    rows: tuple[str, ...]
    is_independent: bool
    fit: Callable[[Layout], Numbers]
    assumed: str


FIXED = "frames fixed: no claim over frames"
MODELS: dict[str, Model] = {
    "ols": Model(
        ("items", "cells", "stimuli"), True, _least_squares,
        f"parametric: assumes independent, normal items of equal variance; {FIXED}",
    ),
    "hc3": Model(
        ("items", "cells", "stimuli"), True, _hc3,
        f"parametric: assumes independent items, enough of them for HC3 errors; {FIXED}",
    ),
    "limma_trend": Model(
        ("items", "cells", "stimuli"), True, _limma,
        f"parametric screen: assumes normal items, and variances that scatter around a trend over activity; {FIXED}",
    ),
    "cluster": Model(
        ("cells", "stimuli"), False, _cluster,
        f"parametric: errors by item (CR1), which assume many independent items; {FIXED}",
    ),
    "item_intercept": Model(
        ("stimuli", "cells"), False, _item_intercept,
        f"parametric: REML of (1 | item), assumes normal item effects and residuals; {FIXED}",
    ),
    "crossed": Model(
        ("frames",), False, _crossed,
        "parametric: REML of (1 | item) + (1 | frame) on differences, assumes all three normal",
    ),
    "min_f": Model(
        ("frames",), False, _min_f,
        "parametric: min-F' of F1 over items and F2 over frames, assumes normal means; conservative",
    ),
}  # fmt: skip
"""Model -> its rows, its fit, and what its rows are said to assume."""
