"""How often and how strongly one feature fires: on all tokens of every source, and text by text in every cell."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurosae.report.style import (
    ACCENT,
    FAINT,
    GROUPS,
    INK,
    MUTED,
    canvas,
    drawn,
    plain,
    shorten,
    swarm,
    tidy,
)
from neurosae.report.tables import distinct
from neurosae.report.wording import digits

SOURCES = {"study": "the study's texts", "text": "other text"}
MANY = 60  # points of a row above which they are drawn as one picture
ROWS = 12  # cells that are shown


@drawn
def feature_card(distributions: pd.DataFrame, pooled: pd.DataFrame) -> Figure:
    """Left: activations of the active tokens, per source; right: the largest activation of every text, per cell.

    Parameters
    ----------
    distributions : DataFrame
        Rows of one feature, with `bins` and `counts`; those without a factor are drawn.
    pooled : DataFrame
        One row per text of the study: `value`, and a column per factor; may be empty.
    """
    cells = _cells(pooled)
    figure = canvas(7.4, max(1.9, 0.75 + 0.24 * len(cells)))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15]) if cells else (figure.subplots(), None)
    _histogram(left, distributions[distributions["factor"].isna()])
    if right is not None:
        _strips(right, cells)
    return figure


def _histogram(axes: Axes, rows: pd.DataFrame) -> None:
    """Share of active tokens per bin of log10 activation; how many tokens are silent stands in the legend."""
    for number, (_, row) in enumerate(rows.iterrows()):
        counts, edges = np.asarray(row["counts"], dtype=float), np.asarray(row["bins"], dtype=float)
        source = SOURCES.get(str(row["source"]), str(row["source"]))
        words = f"{source}: active on {digits(100 * row['density'])} %\nof {digits(int(row['n_tokens']))} tokens"
        if counts.sum():
            share = counts / counts.sum()
            axes.stairs(share, 10**edges, color=(ACCENT, MUTED)[number % 2], linewidth=1.4, fill=False, label=words)
        else:
            axes.plot([], [], color=(ACCENT, MUTED)[number % 2], label=words)
    axes.set_xscale("log")
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * (1.35 + 0.3 * len(rows)))  # room for the words above the bars
    axes.set_title("Activation where it is active")
    axes.set_xlabel("activation (log)")
    axes.set_ylabel("share of active tokens")
    axes.legend(loc="upper left", fontsize=7.5, handlelength=1.2)
    tidy(axes)


def _cells(pooled: pd.DataFrame) -> list[tuple[str, np.ndarray]]:
    """Name and values of every cell, in the order of the table; factors one by one where cells are many."""
    factors = [c for c in pooled if c not in ("site", "feature", "stimulus", "value")]
    if not len(pooled) or not factors:
        return []
    keys = pooled[factors].astype(str)
    joined = keys.agg(" · ".join, axis=1)
    if joined.nunique() > ROWS:
        made = [(f"{f}: {level}", keys[f].eq(level)) for f in factors for level in distinct(keys[f])][:ROWS]
    else:
        made = [(name, joined.eq(name)) for name in distinct(joined)]
    return [(name, pooled.loc[inside, "value"].to_numpy(float)) for name, inside in made]


def _strips(axes: Axes, cells: list[tuple[str, np.ndarray]]) -> None:
    """A point per text; the bar is the mean over all texts of the cell, silent ones included."""
    top = max((values.max() for _, values in cells if len(values)), default=1.0) or 1.0
    for row, (_, values) in enumerate(cells):
        colour = GROUPS[row % len(GROUPS)]
        cloud = axes.scatter(values, row + swarm(values, 0.3), s=8, c=colour, alpha=0.5, linewidths=0)
        cloud.set_rasterized(len(values) > MANY)
        axes.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.6)
        share = digits(100 * float((values > 0).mean()))
        axes.text(1.0, row, plain(f" {share} %"), transform=axes.get_yaxis_transform(), va="center", fontsize=7.5,
                  color=MUTED)  # fmt: skip
    axes.set_yticks(range(len(cells)), [shorten(name, 26) for name, _ in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlim(-0.03 * top, 1.06 * top)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_title("Largest activation per text")
    axes.set_xlabel("activation")
    tidy(axes, grid="x")
