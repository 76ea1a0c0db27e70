"""Rows of the results table for maps: one per cell, and one per cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.spec.blocks import Inference
from neurosae.spec.results import as_results
from neurosae.stats.family import Cell, Place
from neurosae.stats.heights import Cluster, Field
from neurosae.stats.multiplicity import monte_carlo_interval
from neurosae.stats.rows import LEVEL, constants, denominator, effect_sizes, eftype_of
from neurosae.stats.units import ItemData

NO_ONSET = (
    "a cluster p never licenses 'onset at', 'begins at' or 'extends to'; claims about single cells need statistic maxT"
)
EXTENT = "the p of a cell borrows from its neighbours and does not say that the effect is at this cell"
WHOLE = ("x_feature", "x_n_cells", "x_n_untestable", "x_n_dead")


class Told(NamedTuple):
    """What all rows of a map say: its family, its statistic, the set it shows (name, size), and the rules."""

    family: str
    n_family: int
    statistic: str
    members: tuple[str, int] | None
    inference: Inference


def map_table(rows: Sequence[dict[str, Any]], told: Told) -> pd.DataFrame:
    """Rows of cells, of clusters and of cells that could not be tested, as one table with its family."""
    columns: dict[str, Any] = {
        name: [row.get(name) for row in rows] for name in dict.fromkeys(k for r in rows for k in r)
    }
    for name, values in columns.items():
        if name in WHOLE:
            columns[name] = pd.array(values, dtype="Int64")
        elif name in ("x_z", "x_height", "x_p_low", "x_p_high", "x_d0"):
            columns[name] = pd.array([np.nan if v is None else float(v) for v in values], dtype="float64")
        elif name.startswith("x_"):
            columns[name] = pd.array([pd.NA if v is None else v for v in values], dtype="string")
    known = {"kind": "map", "family": told.family, "n_family": told.n_family, "p_adjust": told.statistic}
    return as_results(columns | known | {"alternative": told.inference.alternative}, n_rows=len(rows))


def silent_row(place: Place, data: ItemData | None, dead: int, *, reason: str, told: Told) -> dict[str, Any]:
    """The row of a cell that could not be tested: dead, untestable, or failed."""
    status = "failed" if data is None else "dead" if data.Y.nnz == 0 else "untestable"
    size = {} if data is None else {"n_features": told.members[1] if told.members else len(data.features)}
    own = {} if data is None else constants(data) | {"x_n_dead": dead}
    return place._asdict() | {"set": _set(told)} | size | own | {"status": status, "note": reason}


def cell_row(cell: Cell, field: Field, k: int, *, dead: int, told: Told) -> dict[str, Any]:
    """The row of tested cell k."""
    data, ready, relabelling, best = cell.data, field.ready[k], field.relabellings[k], field.strongest[k]
    m, n = len(cell.kept), relabelling.n
    value = float(ready.columns.value[best]) if told.statistic != "tfce" else float(field.score[k])
    sizes = effect_sizes(data, cell.kept).iloc[0] if m == 1 else {}
    flat = not np.isfinite(ready.columns.value[best]) or (m == 1 and sizes["se"] == 0)
    shown = ("estimate", "se", "effsize", "ci_low", "ci_high") if m == 1 else ()
    numbers = {name: float(sizes[name]) for name in shown if name in sizes}
    p = float(field.p_corr[k])
    return cell.place._asdict() | numbers | constants(data) | _interval(p, field, k) | {
        "set": _set(told),
        "n_features": told.members[1] if told.members else m,
        "stat": "tfce" if told.statistic == "tfce" else ready.name,
        "value": value if np.isfinite(value) else np.nan,
        "dof": np.nan if told.statistic == "tfce" else denominator(ready.columns.df),
        "eftype": eftype_of(data) if m == 1 else None,
        "ci_level": LEVEL if m == 1 else np.nan,
        "p_unc": float(field.p_unc[k]),
        "p_corr": p,
        "p_method": _method(field, k),
        "n_informative": int(data.informative[cell.kept[0]]) if m == 1 else None,
        "n_perm": n,
        "p_min": max(data.exchange.p_min, 1 / n),
        "status": "degenerate" if flat else "ok",
        "note": _note(cell, flat=flat, told=told),
        "x_feature": None if told.members else int(data.features[cell.kept[best]]),
        "x_z": float(ready.columns.z[best]),
        "x_height": float(field.height[k]),
        "x_scale": field.scale,
        "x_d0": ready.d0,
        "x_cluster": ", ".join(str(j) for j, c in enumerate(field.clusters, 1) if k in c.cells) or None,
        "x_n_untestable": None if told.members else len(data.features) - m - dead,
        "x_n_dead": None if told.members else dead,
    }  # fmt: skip


def cluster_row(cells: Sequence[Cell], field: Field, number: int, *, told: Told) -> dict[str, Any]:
    """The row of a cluster; it has no place of its own, but a peak and its cells."""
    cluster: Cluster = field.clusters[number - 1]
    peak, first = cells[cluster.peak], field.relabellings[0]
    names = [cell_name(cells[k].place) for k in cluster.cells]
    return constants(peak.data) | _interval(cluster.p, field, cluster.peak) | {
        "test": peak.place.test,
        "effect": peak.place.effect,
        "split": peak.place.split,
        "set": f"cluster {number}",
        "n_features": int(sum(len(cells[k].kept) for k in cluster.cells)),
        "stat": "cluster_mass",
        "value": cluster.mass,
        "p_corr": cluster.p,
        "p_method": _method(field, cluster.peak),
        "n_perm": first.n,
        "p_min": max(peak.data.exchange.p_min, 1 / first.n),
        "h0": f"in no cell of the map: {peak.data.effect.h0}",
        "status": "ok",
        "note": NO_ONSET,
        "x_height": float(field.height[cluster.peak]),
        "x_scale": field.scale,
        "x_cluster": str(number),
        "x_peak": names[int(np.flatnonzero(cluster.cells == cluster.peak)[0])],
        "x_n_cells": len(names),
        "x_cells": ", ".join(names),
    }  # fmt: skip


def cell_name(place: Place) -> str:
    """`site/region/position`.

    Examples
    --------
    >>> cell_name(Place("where", "number", "late", "head", -1, "test", None))
    'late/head/-1'
    """
    return f"{place.site}/{place.region}/{place.position}"


def _set(told: Told) -> str:
    if told.members:
        return f"mean of {told.members[0]}"
    return f"strongest of the features informative in at least {told.inference.min_informative} items"


def _method(field: Field, k: int) -> str:
    return field.relabellings[k].method()


def _interval(p: float, field: Field, k: int) -> dict[str, float]:
    """Monte-Carlo interval of a counted p; enumerating all relabellings is no sampling."""
    if np.isnan(p) or field.relabellings[k].exhaustive:
        return {}
    low, high = monte_carlo_interval(np.array([p]), field.relabellings[k].n)
    return {"x_p_low": float(low[0]), "x_p_high": float(high[0])}


def _note(cell: Cell, *, flat: bool, told: Told) -> str | None:
    parts = ["the differences are all equal, so their variance is 0"] if flat else []
    parts += [EXTENT] if told.statistic == "tfce" else []
    parts += [text for text in (cell.data.exchange.note, cell.data.dropped) if text]
    if cell.place.split == "localizer":
        parts.append("localizer items: for choosing features, effect sizes are optimistic")
    return "; ".join(parts) or None
