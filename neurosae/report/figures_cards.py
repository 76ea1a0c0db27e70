"""One feature: how often and how strongly it fires, in which cells, at which levels, and how well its label fits."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

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
ROWS = 12  # cells, or levels of a factor, that are shown
PANELS = 6  # factors
SCORES = ("0 not there", "1 same topic", "2 loosely", "3 exactly")
"""The rubric of `examine.labels`, in short."""


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
        right.set_ylabel(shorten(" · ".join(_factors(pooled)), 40))
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
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * (1.35 + 0.3 * len(rows)))  # room for the words above the bars
    axes.set_title("Activation where it is active")
    axes.set_xlabel("activation (log)")
    axes.set_ylabel("share of active tokens")
    if len(rows):
        axes.legend(loc="upper left", fontsize=7.5, handlelength=1.2)
    tidy(axes)


def _log_ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two, evenly spread in the logarithm where they span decades.

    Examples
    --------
    >>> _log_ticks(0.3, 400), _log_ticks(11.8, 22.4), _log_ticks(1.9, 17)
    ([1.0, 10.0, 100.0], [12.0, 14.0, 16.0, 18.0, 20.0, 22.0], [2.0, 5.0, 10.0])
    """
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1.0,), (1.0, 2.0, 5.0)):
        ticks = [float(f"{m * 10**d:.12g}") for d in decades for m in steps if low <= m * 10**d <= high]
        if len(ticks) > 2:
            return ticks[:: -(-len(ticks) // 6)]
    return [float(f"{t:.12g}") for t in MaxNLocator(6).tick_values(low, high) if low <= t <= high]


def _cells(pooled: pd.DataFrame) -> list[tuple[str, np.ndarray]]:
    """Name and values of every cell, in the order of the table; factors one by one where cells are many."""
    factors = _factors(pooled)
    if not len(pooled) or not factors:
        return []
    keys = pooled[factors].astype(str)
    joined = keys.agg(" · ".join, axis=1)
    if joined.nunique() > ROWS:
        made = [(f"{f}: {level}", keys[f].eq(level)) for f in factors for level in distinct(keys[f])][:ROWS]
    else:
        made = [(name, joined.eq(name)) for name in distinct(joined)]
    return [(name, pooled.loc[inside, "value"].to_numpy(float)) for name, inside in made]


def _factors(pooled: pd.DataFrame) -> list[str]:
    return [str(c) for c in pooled if c not in ("site", "feature", "stimulus", "value")]


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


@drawn
def tuning_levels(levels: pd.DataFrame) -> Figure:
    """Mean activation at every level of every factor, a panel for each factor; bars are intervals over items.

    Parameters
    ----------
    levels : DataFrame
        Rows of one feature: `factor level n_items mean mean_low mean_high density`.
    """
    factors = distinct(levels["factor"])[:PANELS]
    sizes = [int(levels["factor"].eq(factor).sum()) for factor in factors]
    figure = canvas(max(3.2, 1.4 + 0.62 * sum(min(n, ROWS) for n in sizes)), 2.5)
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False, width_ratios=[min(n, ROWS) for n in sizes])[0]
    for axes, factor in zip(panels, factors, strict=True):
        rows = levels[levels["factor"].eq(factor)].iloc[:ROWS]
        _level_points(axes, rows)
        axes.set_title(plain(shorten(factor, 30)))
        tidy(axes, grid="y")
    panels[0].set_ylabel("mean activation")
    drawn_rows = levels[levels["factor"].isin(factors)]
    ends = drawn_rows[["mean", "mean_low", "mean_high"]].to_numpy(float)
    low, high = min(0.0, np.nanmin(ends, initial=0.0)), np.nanmax(ends, initial=0.0)
    panels[0].set_ylim(low, high + 0.08 * ((high - low) or 1.0))
    return figure


def _level_points(axes: Axes, rows: pd.DataFrame) -> None:
    """A point and a bar per level; under its name, how often the feature is active there and in how many items."""
    x, mean = np.arange(len(rows)), rows["mean"].to_numpy(float)
    low, high = (rows[f"mean_{end}"].to_numpy(float) for end in ("low", "high"))
    axes.vlines(x, low, high, color=ACCENT, linewidth=1.6)
    axes.scatter(x, mean, s=26, color=ACCENT, zorder=3)
    names = [
        f"{plain(shorten(row['level'], 14))}\n{digits(100 * row['density'])} %\n{int(row['n_items'])} items"
        for _, row in rows.iterrows()
    ]
    axes.set_xticks(x, names, fontsize=7.5)
    axes.set_xlim(-0.6, len(rows) - 0.4)


@drawn
def label_deciles(label: pd.Series) -> Figure:
    """Mean score of a judge by tenth of the active range, beside silent examples and the label of another feature.

    Parameters
    ----------
    label : Series
        A row of `label_features` with a judge: `deciles deciles_n deciles_other mean_silent n_silent`.
    """
    figure = canvas(4.6, 2.6)
    axes = figure.subplots()
    x = np.arange(1, 11)
    own, other, n = (np.asarray(label[name], dtype=float) for name in ("deciles", "deciles_other", "deciles_n"))
    for values, colour, words in ((other, MUTED, "label of another feature"), (own, ACCENT, "its label")):
        known = ~np.isnan(values)
        axes.plot(x[known], values[known], color=colour, marker="o", markersize=4.5, linewidth=1.2, label=words)
    for place, height, count in zip(x, own, n, strict=True):
        if not np.isnan(height):
            axes.annotate(f"{int(count)}", (place, height), (0, 5), textcoords="offset points", ha="center",
                          fontsize=7, color=MUTED)  # fmt: skip
    if pd.notna(label["mean_silent"]):
        silent = label["mean_silent"]
        axes.scatter([0], [silent], marker="s", s=24, color=INK, label="its label, silent tokens", zorder=3)
        axes.annotate(f"{int(label['n_silent'])}", (0, silent), (0, 5), textcoords="offset points",
                      ha="center", fontsize=7, color=MUTED)  # fmt: skip
    axes.set_xticks([0, *x], ["silent", *map(str, x)])
    axes.set_yticks(range(4), SCORES, fontsize=7.5)
    axes.set_ylim(-0.2, 3.9)
    axes.set_xlabel("tenth of the active range")
    axes.legend(loc="upper left", fontsize=7, ncols=3, columnspacing=1.0, handlelength=1.2)
    tidy(axes, grid="y")
    return figure
