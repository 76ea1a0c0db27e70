"""Figures of designs and of geometry: weights over cells, dissimilarity matrices, model fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurosae.report.style import (
    ACCENT,
    DIVERGING,
    FAINT,
    INK,
    MUTED,
    PAPER,
    REST,
    SEQUENTIAL,
    canvas,
    drawn,
    note_of,
    plain,
    shorten,
    tidy,
)
from neurosae.report.tables import PLACE, first_known, is_found, place_names
from neurosae.report.wording import digits

DARK, LIGHT = "#101418", "#fdfdfd"  # numbers inside coloured squares keep their ink in dark mode


@drawn
def weights(table: pd.DataFrame) -> Figure:
    """The design matrix of the effects: the weight of every cell, as written.

    Parameters
    ----------
    table : DataFrame of shape (n_effects, n_cells)
        Index: names of effects; columns: cells, levels joined by "/".
    """
    values = table.to_numpy(dtype=float)
    figure = canvas(1.7 + 0.78 * table.shape[1], 0.85 + 0.42 * table.shape[0])
    axes = figure.add_subplot()
    limit = max(float(np.abs(values).max()) if values.size else 1.0, 1e-9)
    axes.pcolormesh(values, cmap=DIVERGING, vmin=-limit, vmax=limit, edgecolors=PAPER, linewidth=1.5)
    for (i, j), value in np.ndenumerate(values):
        ink = LIGHT if abs(value) > 0.75 * limit else DARK
        words = "0" if value == 0 else f"{value:+.3g}".replace("-", "−")
        axes.text(j + 0.5, i + 0.5, words, ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(
        np.arange(table.shape[1]) + 0.5,
        ["\n".join(shorten(level, 14) for level in c.split("/")) for c in table.columns],
    )
    axes.set_yticks(np.arange(table.shape[0]) + 0.5, [shorten(e) for e in table.index])
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    _bare(axes)
    return figure


def _bare(axes: Axes) -> None:
    tidy(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)


@drawn
def rdms(table: pd.DataFrame) -> Figure:
    """Dissimilarity matrices side by side: the data of each place first, then the models.

    Parameters
    ----------
    table : DataFrame
        Long table `site region position name kind row column value`; `kind` is "data" or "model".
    """
    panels = _panels(table)
    rows = max(-(-len(panels) // 5), 1)
    columns = max(-(-len(panels) // rows), 1)
    figure = canvas(0.6 + 2.05 * columns, 0.5 + 2.15 * rows)
    for number, (title, part) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        names = list(dict.fromkeys([*part["row"].astype(str), *part["column"].astype(str)]))
        grid = part.assign(row=part["row"].astype(str), column=part["column"].astype(str))
        square = grid.pivot_table(index="row", columns="column", values="value", sort=False).reindex(
            index=names, columns=names
        )
        full = square.to_numpy(dtype=float)
        full = np.where(np.isnan(full), full.T, full)
        np.fill_diagonal(full, np.nan)
        mesh = axes.pcolormesh(np.ma.masked_invalid(full), cmap=SEQUENTIAL, edgecolors=PAPER, linewidth=0.8)
        axes.set_title(title, fontsize=8.5)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        few = len(names) <= 12
        ticks = np.arange(len(names)) + 0.5 if few else []
        axes.set_xticks(
            ticks, [shorten(n, 14) for n in names] if few else [], rotation=90 if len(names) > 2 else 0, fontsize=7.5
        )
        show = few and number % columns == 0
        axes.set_yticks(ticks, [shorten(n, 14) for n in names] if show else [""] * len(ticks), fontsize=7.5)
        bar = figure.colorbar(
            mesh,
            ax=axes,
            shrink=0.55,
            pad=0.03,
            aspect=14,
            ticks=[np.nanmin(full), np.nanmax(full)] if np.isfinite(full).any() else [],
        )
        bar.ax.set_yticklabels(
            [digits(np.nanmin(full)), digits(np.nanmax(full))] if np.isfinite(full).any() else [], fontsize=7
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        _bare(axes)
    return figure


def _panels(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    table = table.assign(**{c: table[c].astype(object) for c in (*PLACE, "name", "kind")})
    data = table[table["kind"] == "data"]
    models = table[table["kind"] != "data"]
    places = place_names(data)
    found = [(f"data: {shorten(place)}", data[places == place]) for place in dict.fromkeys(places)]
    for name, part in models.groupby("name", sort=False, dropna=False):
        # A model looks the same at every site unless it is a nuisance of the stimuli at one region.
        unique = part.drop_duplicates(["row", "column"])
        found.append((f"model: {shorten(name)}", unique))
    return found


@drawn
def fits(table: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """How well each model fits: a bar per model and place, its interval, and the noise ceiling as a band.

    Parameters
    ----------
    table : DataFrame
        Results rows of one RSA test, one per model and place; `x_ceiling`, or `x_ceiling_low` and `x_ceiling_high`,
        draw the ceiling where they are given. Filled bars have a corrected p of at most alpha.
    alpha : float
    """
    rows = table[table["value"].notna()]
    rows = rows.assign(place=place_names(rows))
    groups = list(rows.groupby("place", sort=False))
    height = sum(0.34 * len(part) + 0.75 for _, part in groups) if groups else 1.2
    figure = canvas(5.6, 0.5 + height)
    panels = figure.subplots(
        max(len(groups), 1), 1, sharex=True, squeeze=False, height_ratios=[len(p) for _, p in groups] or [1]
    )
    for axes, (place, part) in zip(panels[:, 0], groups, strict=False):
        _bars(axes, part.reset_index(drop=True), alpha)
        axes.set_title(shorten(place, 40), fontsize=9)
    panels[-1, 0].set_xlabel(plain(f"fit ({first_known(rows['stat']).replace('_', ' ')})"))
    return figure


def _bars(axes: Axes, rows: pd.DataFrame, alpha: float) -> None:
    found = is_found(rows, alpha)
    low, high = _ceiling(rows)
    if np.isfinite(high):
        axes.axvspan(low, high if high > low else low + 0.004, color=REST, alpha=0.35, linewidth=0, zorder=0)
        axes.annotate(
            "noise ceiling", (low, 1), xycoords=axes.get_xaxis_transform(), fontsize=7.5, color=MUTED, va="bottom",
            ha="center",
        )  # fmt: skip
    each: list[Any] = list(rows.itertuples())
    for number, row in enumerate(each):
        colour = ACCENT if found[number] else "none"
        (bar,) = axes.barh(number, row.value, height=0.62, color=colour, edgecolor=ACCENT, linewidth=1.1, zorder=2)
        bar.set_gid(note_of(f"{row.effect}: {digits(row.value)}, p {digits(row.p_corr)}"))
        if pd.notna(row.ci_low) and pd.notna(row.ci_high):
            axes.plot([row.ci_low, row.ci_high], [number, number], color=INK, linewidth=1.3, zorder=3)
    axes.set_yticks(range(len(rows)), [shorten(e, 28) for e in rows["effect"]])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.axvline(0, color=FAINT, linewidth=0.9, zorder=1)
    tidy(axes, grid="x")
    axes.spines["left"].set_visible(False)


def _ceiling(rows: pd.DataFrame) -> tuple[float, float]:
    known = [rows[c].dropna() for c in ("x_ceiling_low", "x_ceiling", "x_ceiling_high") if c in rows]
    values = [float(v.iloc[0]) for v in known if len(v)]
    return (min(values), max(values)) if values else (np.nan, np.nan)
