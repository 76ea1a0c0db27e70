"""Figures of geometry beyond its matrices: conditions in a plane, agreement of places, divided variance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from neurosae.report.style import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    PAPER,
    REST,
    SEQUENTIAL,
    canvas,
    drawn,
    note_of,
    shorten,
    tidy,
)
from neurosae.report.tables import place_names
from neurosae.report.wording import digits

LABELLED = 24  # conditions that are named in a plane


@drawn
def plane(table: pd.DataFrame) -> Figure:
    """Conditions in two dimensions, one panel per place; ellipses hold 95 % of the bootstrapped positions.

    Parameters
    ----------
    table : DataFrame
        `site region position condition x y xx xy yy share`; the covariances may be missing.
    """
    groups = list(table.groupby(place_names(table), sort=False))
    columns = min(len(groups), 3)
    rows = -(-len(groups) // max(columns, 1))
    figure = canvas(0.4 + 2.9 * columns, 0.4 + 2.9 * rows)
    for number, (place, part) in enumerate(groups):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        for row in part.itertuples():
            if np.isfinite(row.xx):  # pyright: ignore
                _ellipse(axes, row)
            (point,) = axes.plot(row.x, row.y, "o", color=ACCENT, markersize=5, zorder=3)  # pyright: ignore
            point.set_gid(note_of(f"{row.condition}: {digits(row.x)}, {digits(row.y)}"))
            if len(part) <= LABELLED:
                axes.annotate(shorten(str(row.condition), 16), (row.x, row.y), xytext=(4, 4),  # pyright: ignore
                              textcoords="offset points", fontsize=8, color=INK, zorder=4)  # fmt: skip
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.18)
        axes.set_title(f"{shorten(str(place), 34)} ({part['share'].iloc[0]:.0%})", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        tidy(axes)
    return figure


def _ellipse(axes, row) -> None:
    value, vector = np.linalg.eigh(np.array([[row.xx, row.xy], [row.xy, row.yy]]))
    width, height = 2 * np.sqrt(5.991 * np.maximum(value[::-1], 0))  # chi-squared with 2 df
    angle = float(np.degrees(np.arctan2(vector[1, 1], vector[0, 1])))
    axes.add_patch(Ellipse((row.x, row.y), width, height, angle=angle, color=REST, alpha=0.35, linewidth=0, zorder=1))


@drawn
def agreement(table: pd.DataFrame) -> Figure:
    """How alike the geometries of all pairs of places are: a matrix per measure; dots mark corrected p <= alpha.

    Parameters
    ----------
    table : DataFrame
        Results rows with `x_first`, `x_second`, `stat`, `value` and `p_corr`.
    """
    known = table[table["value"].notna()]
    measures = list(dict.fromkeys(known["stat"]))
    names = list(dict.fromkeys([*table["x_first"], *table["x_second"]]))
    size = min(max(0.34 * len(names), 1.6), 5.0)
    columns = 2 if len(measures) > 1 else 1
    rows = -(-len(measures) // columns) if measures else 1
    figure = canvas(columns * (size + 1.9), rows * (size + 1.3))
    for number, measure in enumerate(measures):
        axes = figure.add_subplot(rows, columns, number + 1)
        square = np.full((len(names), len(names)), np.nan)
        for row in known[known["stat"] == measure].itertuples():
            i, j = names.index(row.x_first), names.index(row.x_second)  # pyright: ignore
            square[i, j] = square[j, i] = row.value  # pyright: ignore
            if pd.notna(row.p_corr) and row.p_corr <= 0.05:  # pyright: ignore
                axes.plot([i + 0.5, j + 0.5], [j + 0.5, i + 0.5], ".", color=INK, markersize=4, zorder=3)
        low = min(0.0, float(np.nanmin(square))) if np.isfinite(square).any() else 0.0
        mesh = axes.pcolormesh(np.ma.masked_invalid(square), cmap=SEQUENTIAL, vmin=low, vmax=1, edgecolors=PAPER)
        shown = [shorten(n, 22) for n in names]
        axes.set_xticks(np.arange(len(names)) + 0.5, shown, rotation=90, fontsize=7.5)
        axes.set_yticks(
            np.arange(len(names)) + 0.5, shown if number % columns == 0 else [""] * len(names), fontsize=7.5
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_title(measure.replace("_", " "), fontsize=9)
        figure.colorbar(mesh, ax=axes, shrink=0.6, pad=0.03)
        tidy(axes)
    return figure


@drawn
def divided(table: pd.DataFrame) -> Figure:
    """What models explain alone and together: a bar per part, and what the reliability leaves to explain as a line.

    Parameters
    ----------
    table : DataFrame
        `site region position models n_models part ceiling`.
    """
    groups = list(table.groupby(place_names(table), sort=False))
    figure = canvas(5.6, 0.6 + sum(0.28 * len(part) + 0.7 for _, part in groups))
    panels = figure.subplots(max(len(groups), 1), 1, sharex=True, squeeze=False)
    for axes, (place, part) in zip(panels[:, 0], groups, strict=False):
        part = part.sort_values(["n_models"], kind="stable").reset_index(drop=True)
        for number, row in part.iterrows():
            colour = ACCENT if row["n_models"] == 1 else REST
            (bar,) = axes.barh(number, row["part"], height=0.62, color=colour, edgecolor=INK, linewidth=0.6)
            bar.set_gid(note_of(f"{row['models']}: {digits(row['part'])}"))
        axes.set_yticks(range(len(part)), [shorten(m, 34) for m in part["models"]], fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color=FAINT, linewidth=0.9)
        if np.isfinite(part["ceiling"].iloc[0]):
            axes.axvline(part["ceiling"].iloc[0], color=MUTED, linewidth=1.2, linestyle="--")
        axes.set_title(shorten(str(place), 40), fontsize=9)
        tidy(axes, grid="x")
    panels[-1, 0].set_xlabel("share of the data RDM (orange: unique, grey: shared)")
    return figure
