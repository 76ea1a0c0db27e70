"""Rows of the results table for contrasts, and the long tables of the best features that the report draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from neurosae.spec.blocks import Inference
from neurosae.spec.results import COLUMNS, as_results
from neurosae.stats.adjusted import adjusted_effects
from neurosae.stats.effects import FEW, Pairs, group_effects, paired_effects
from neurosae.stats.family import Cell, Outcome, Place, placed
from neurosae.stats.flips import maxima
from neurosae.stats.levels import level_effects
from neurosae.stats.multiplicity import CORRECTIONS, monte_carlo_interval
from neurosae.stats.statistics import signed_rank
from neurosae.stats.tails import flip_p
from neurosae.stats.units import ItemData, firing

CHUNK = 2048  # features made dense at a time
LEVEL = 0.95


def feature_rows(cell: Cell, outcome: Outcome, *, inference: Inference) -> pd.DataFrame:
    """One row per tested feature of a cell; family columns are added by `join_rows`."""
    data, n_perm = cell.data, outcome.relabelling.n
    sizes = effect_sizes(data, cell.kept)
    informative = data.informative[cell.kept]
    flat = (sizes["se"] == 0).to_numpy() | ~np.isfinite(outcome.value)
    from_max = CORRECTIONS[inference.correction] is None
    counted = from_max and not outcome.relabelling.exhaustive
    low, high = monte_carlo_interval(outcome.p_corr, n_perm) if counted else (np.nan, np.nan)
    df = outcome.ready.columns.df
    value = np.where(np.isfinite(outcome.value), outcome.value, np.nan)
    columns = cell.place._asdict() | cast(dict[str, Any], sizes.to_dict("series")) | {
        "kind": "contrast",
        "feature": data.features[cell.kept],
        "n_features": 1,
        "stat": outcome.ready.name,
        "value": value,
        "dof": _dof(outcome, sizes),
        "eftype": eftype_of(data),
        "ci_level": np.nan if data.omnibus else LEVEL,
        "p_unc": outcome.p_unc,
        "p_corr": outcome.p_corr,
        "p_method": outcome.p_method,
        "n_informative": informative,
        "n_perm": n_perm,
        "p_min": _smallest_p(data, informative, outcome=outcome, inference=inference),
        "status": np.where(flat, "degenerate", "ok"),
        "note": _notes(cell, outcome, informative, flat=flat),
        "x_z": outcome.z,
        "x_p_low": low,
        "x_p_high": high,
        "x_p_by": outcome.p_by,
        "x_rank_agrees": _rank_agrees(cell, outcome, alpha=inference.alpha),
        "x_d0": outcome.ready.d0,
        **_plain_interval(data, sizes, flat),
        **outcome.beside,
        **constants(data),
    }  # fmt: skip
    columns.pop("x_dof", None)
    columns |= {"x_df1": df[0]} if isinstance(df, tuple) else {}
    extras = outcome.ready.extras
    return as_results(columns | dict(extras(outcome.relabelling) if extras is not None else {}))


def eftype_of(data: ItemData) -> str:
    """Name of the effect size of an effect."""
    if data.beside is not None and data.beside.slope:
        return "r"
    return "eta2_p" if data.omnibus else "d_z" if data.codes is None else "d"


def _plain_interval(data: ItemData, sizes: pd.DataFrame, flat: np.ndarray) -> dict[str, object]:
    """What the interval of the effect sizes is, and its degrees of freedom, which are not those of a moderated t."""
    if data.omnibus:
        return {"x_ci_method": pd.NA, "x_ci_dof": np.nan}
    groups = data.codes if data.beside is None else None
    separate = groups is not None and len(set(np.bincount(groups).tolist())) > 1
    dof = sizes["x_dof"].to_numpy(dtype=float) if "x_dof" in sizes else np.full(len(sizes), data.n - 1.0)
    return {"x_ci_method": "Welch t" if separate else "t", "x_ci_dof": np.where(flat, np.nan, dof)}


def _dof(outcome: Outcome, sizes: pd.DataFrame) -> Any:
    """Degrees of freedom of the statistic; of Welch's every feature has its own."""
    own = outcome.ready.dof
    if own is not None:
        return np.where(np.isfinite(own), own, np.nan)
    return sizes["x_dof"] if outcome.ready.name == "welch_t" else denominator(outcome.ready.columns.df)


def denominator(df: Any) -> float:
    """Degrees of freedom of t, or those of the denominator of F; NA where the statistic has none."""
    rest = df[1] if isinstance(df, tuple) else df
    return np.nan if np.isinf(rest) else rest


def constants(data: ItemData) -> dict[str, object]:
    """What all rows of an effect at a place share: the unit, how many of them, H0 and the weights."""
    return {
        "unit": data.exchange.unit,
        "n_units": data.n,
        "h0": data.effect.h0,
        "x_weights": data.effect.vector,
    }


def effect_sizes(data: ItemData, kept: np.ndarray) -> pd.DataFrame:
    """Effect sizes of the kept columns, made dense a chunk at a time."""
    parts = []
    for start in range(0, len(kept), CHUNK):
        columns = kept[start : start + CHUNK]
        if data.omnibus:
            parts.append(level_effects(data, columns))
            continue
        d = data.D[:, columns].toarray()
        plus, minus, fires_plus, fires_minus = firing(data, columns)
        if data.codes is None or (data.beside is not None and data.beside.slope):
            parts.append(paired_effects(Pairs(d, plus, minus, fires_plus, fires_minus), level=LEVEL))
        else:
            fires = np.maximum(fires_plus, fires_minus)
            codes, weights = data.grouping
            separate = len(set(np.bincount(codes).tolist())) > 1
            parts.append(group_effects(d, fires, codes=codes, weights=weights, separate=separate))
    made = pd.concat(parts, ignore_index=True)
    return made if data.beside is None else adjusted_effects(data, kept, made)


def _smallest_p(data: ItemData, informative: np.ndarray, *, outcome: Outcome, inference: Inference) -> np.ndarray:
    """Smallest uncorrected p a row could reach: 2^(1-k) by its k informative items; counted p stop at 1/B."""
    if (inside := data.exchange.levels) is not None:
        own = np.array([inside.count(int(k))[1] for k in informative])
    elif data.codes is None and data.beside is None:
        own = 2.0 ** ((1 if inference.alternative == "two-sided" else 0) - informative)
    else:
        own = np.full(len(informative), data.exchange.p_min)
    return np.maximum(own, 1 / outcome.relabelling.n) if outcome.ready.counted else own


def _notes(cell: Cell, outcome: Outcome, informative: np.ndarray, *, flat: np.ndarray) -> list[object]:
    data, ready = cell.data, outcome.ready
    beside = "" if data.beside is None else data.beside.note
    common = [text for text in (beside, data.exchange.note, data.dropped) if text]
    if cell.place.split == "localizer":
        common.append("localizer items: for choosing features, effect sizes are optimistic")
    alike = "the levels differ alike in all items" if data.omnibus else "the differences are all equal"
    notes: list[object] = []
    for k, same, of_statistic in zip(informative, flat, ready.notes or [""] * len(flat), strict=True):
        own = [f"{alike}, so their variance is 0"] if same else []
        own += [f"interval unreliable: {k} informative items"] if k < FEW and not data.omnibus else []
        notes.append("; ".join(filter(None, [*own, of_statistic, *common])) or pd.NA)
    return notes


def _rank_agrees(cell: Cell, outcome: Outcome, *, alpha: float) -> Any:
    """For discoveries: whether the signed-rank (rank-sum) test of the same relabellings has p <= .05; NA elsewhere."""
    agrees = pd.array([pd.NA] * len(cell.kept), dtype="boolean")
    p = np.where(np.isnan(outcome.p_corr), outcome.p_unc, outcome.p_corr)
    found = np.flatnonzero(p <= alpha)
    if not len(found) or cell.data.beside is not None:
        return agrees
    ranks = signed_rank(cell.data, cell.kept[found])
    if ranks.scores is not None:
        agrees[found] = flip_p(ranks.scores)[0] <= 0.05
    else:
        columns = placed(ranks.columns, cell.data, outcome.relabelling)
        agrees[found] = maxima(columns, outcome.relabelling)[1] / outcome.relabelling.n <= 0.05
    return agrees


def inactive_rows(
    place: Place,
    *,
    features: np.ndarray | None = None,
    n_features: int = 1,
    informative: np.ndarray | None = None,
    data: ItemData | None = None,
    reason: str | None = None,
) -> pd.DataFrame:
    """Rows without numbers: untestable features one by one, dead ones together, or a cell that failed, with why."""
    columns: dict[str, object] = place._asdict() | {"kind": "contrast", "n_features": n_features}
    columns |= constants(data) if data is not None else {}
    if features is None or informative is None or data is None:
        status = "dead" if reason is None else "failed"
        why = reason or "no activity in any tested row"
        return as_results(columns | {"status": status, "note": why}, n_rows=1)
    note = [reason or _why_untestable(k) for k in informative]
    return as_results(
        columns
        | {"feature": data.features[features], "n_informative": informative, "status": "untestable", "note": note}
    )


def _why_untestable(k: int) -> str:
    if k == 0:
        return "active, but the contrast is zero in every item"
    return f"{k} informative item{'s' if k > 1 else ''}: too few for a test"


def join_rows(tables: Sequence[pd.DataFrame], *, family: str, n_family: int, inference: Inference) -> pd.DataFrame:
    """All rows of a test, sorted by effect, site, region, position and feature, with their family."""
    tables = [t for t in tables if len(t)]
    names = list(dict.fromkeys([*COLUMNS, *(name for t in tables for name in t.columns)]))
    joined = {name: _joined(name, tables) for name in names}
    known = {"family": family, "n_family": n_family, "p_adjust": inference.correction}
    table = as_results(joined | known | {"alternative": inference.alternative})
    keys = [table["feature"].fillna(np.iinfo(np.int64).max).to_numpy(dtype=np.int64)]
    keys += [table["position"].to_numpy(dtype=int)]
    for name in ("region", "site", "effect"):
        rank = {value: k for k, value in enumerate(dict.fromkeys(table[name]))}
        keys.append(np.array([rank[value] for value in table[name]]))
    return table.iloc[np.lexsort(keys)].reset_index(drop=True)


def _joined(name: str, tables: Sequence[pd.DataFrame]) -> Any:
    """One column of several tables; a table without it has NA there."""
    dtype = cast(Any, next(t[name].dtype for t in tables if name in t))
    parts = [t[name] if name in t else pd.Series(pd.array([None] * len(t), dtype=dtype)) for t in tables]
    return pd.concat([part.astype(dtype) for part in parts], ignore_index=True).array


def top_features(cells: Sequence[Cell], outcomes: Sequence[Outcome], *, top: int) -> dict[str, pd.DataFrame]:
    """Item values and cell means of the best features by |value| of each cell, long, for figures.

    items: site region position effect feature item split difference plus minus (mean over the + and - cells).
    cells: site region position effect feature cell mean density n.
    """
    items, means = [], []
    for cell, outcome in zip(cells, outcomes, strict=True) if top else ():
        best = cell.kept[np.lexsort([cell.kept, -np.abs(outcome.z)])[:top]]
        items.append(_item_table(cell, best))
        means.append(_cell_table(cell, best))
    if not items:
        return {}
    return {"items": pd.concat(items, ignore_index=True), "cells": pd.concat(means, ignore_index=True)}


def _item_table(cell: Cell, best: np.ndarray) -> pd.DataFrame:
    data, n = cell.data, cell.data.n
    plus, minus, *_ = firing(data, best)
    signed = data.weights[data.row_cell]
    has = [np.bincount(data.row_unit, np.maximum(sign * signed, 0), n) > 0 for sign in (1, -1)]
    table = {
        "feature": np.repeat(data.features[best], n),
        "item": np.tile(np.array(data.names, dtype=object), len(best)),
        "split": cell.place.split,
        "difference": data.D[:, best].toarray().T.ravel(),
        "plus": np.where(has[0][:, None], plus, np.nan).T.ravel(),
        "minus": np.where(has[1][:, None], minus, np.nan).T.ravel(),
    }
    return pd.DataFrame(_where(cell.place) | table)


def _cell_table(cell: Cell, best: np.ndarray) -> pd.DataFrame:
    data, Y = cell.data, cell.data.Y[:, best].toarray()
    counts = np.bincount(data.row_cell, minlength=len(data.cells))
    rows = [np.flatnonzero(data.row_cell == c) for c in range(len(data.cells))]
    used = [c for c in range(len(data.cells)) if counts[c]]
    names = ["/".join(data.cells[c]) for c in used]
    table = {
        "feature": np.repeat(data.features[best], len(used)),
        "cell": np.tile(np.array(names, dtype=object), len(best)),
        "mean": np.array([[Y[rows[c], j].mean() for c in used] for j in range(len(best))]).ravel(),
        "density": np.array([[(Y[rows[c], j] != 0).mean() for c in used] for j in range(len(best))]).ravel(),
        "n": np.tile(counts[used], len(best)),
    }
    return pd.DataFrame(_where(cell.place) | table)


def _where(place: Place) -> dict[str, object]:
    return {name: getattr(place, name) for name in ("site", "region", "position", "effect")}
