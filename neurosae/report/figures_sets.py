"""Figures of feature sets: what every item says, set by set."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import INK, MINUS, MUTED, PLUS, canvas, drawn, shorten, swarm, tidy
from neurosae.report.tables import is_found, place_names

SET_KEY = ["site", "region", "position", "effect", "set"]
ROWS = 24


@drawn
def set_items(rows: pd.DataFrame, items: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """Contrast of every item, one line per set and place, with the mean and its interval where there is one.

    Parameters
    ----------
    rows : DataFrame
        Results rows of one effect, at most 24 are drawn.
    items : DataFrame
        Long table `site region position effect set item difference`.
    alpha : float
        Bound on `p_corr`; sets found are drawn in colour.
    """
    rows = rows.head(ROWS)
    places = place_names(rows).to_numpy()
    several = len(set(places)) > 1
    found, by_key = is_found(rows, alpha), dict(list(items.groupby(SET_KEY, sort=False, dropna=False)))
    figure = canvas(6.2, 0.9 + 0.42 * len(rows))
    axes = figure.add_subplot()
    names = []
    for at, (_, row) in enumerate(rows.iterrows()):
        values = by_key[tuple(row[k] for k in SET_KEY)]["difference"].to_numpy(dtype=float)
        mean = float(row["estimate"])
        colour = (PLUS if mean > 0 else MINUS) if found[at] else MUTED
        axes.scatter(values, at + swarm(values, 0.3), s=9, c=colour, alpha=0.55, linewidths=0)
        axes.plot([mean, mean], [at - 0.34, at + 0.34], color=INK, linewidth=1.6)
        if pd.notna(row["ci_low"]):
            axes.plot([row["ci_low"], row["ci_high"]], [at, at], color=INK, linewidth=1.2)
        names.append(shorten(row["set"], 28) + (f"\n{shorten(places[at], 28)}" if several else ""))
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_yticks(np.arange(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("contrast of each item, activation units")
    tidy(axes, grid="x")
    return figure
