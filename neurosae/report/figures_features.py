"""Figures of single features: what the found ones do over places, items and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from neurosae.report.style import (
    ACCENT,
    DIVERGING,
    INK,
    MINUS,
    MUTED,
    PAPER,
    PLUS,
    REST,
    canvas,
    drawn,
    note_of,
    plain,
    shorten,
    swarm,
    tidy,
)
from neurosae.report.tables import KEY, first_known, place_word, rows_found, rows_tested
from neurosae.report.wording import digits, feature_name


@drawn
def profile(table: pd.DataFrame, *, alpha: float = 0.05, top: int = 20) -> Figure:
    """The found features (rows) over every effect and place that was asked (columns): signed effect size.

    Parameters
    ----------
    table : DataFrame
        Results rows of all contrasts of a study.
    alpha : float
        Bound on `p_corr`; the rows are features found somewhere, a dot marks where.
    top : int
        At most this many features.
    """
    rows = rows_tested(table).copy()
    rows["name"] = [feature_name(s, f) for s, f in zip(rows["site"], rows["feature"], strict=True)]
    varying = [c for c in ("region", "position") if rows[c].nunique(dropna=False) > 1]
    words = [rows["effect"].astype(str), *(rows[c].map(lambda v, c=c: place_word(c, v)) for c in varying)]
    rows["column"] = list(zip(*words, strict=True))
    names = list(dict.fromkeys(n for n in rows.loc[rows_found(rows, alpha).index, "name"]))[:top]
    names.sort(key=lambda n: list(dict.fromkeys(rows["site"])).index(n.rsplit("/", 1)[0]))
    columns = list(dict.fromkeys(rows["column"]))
    # Two tests may ask the same thing; the one with the smaller corrected p is shown.
    first = rows.sort_values("p_corr", kind="stable").drop_duplicates(["name", "column"])
    grid = first.pivot(index="name", columns="column", values="effsize").reindex(index=names, columns=columns)
    sure = first.assign(p=first["p_corr"].where(first["status"] == "ok"))  # a degenerate row is never found
    p = sure.pivot(index="name", columns="column", values="p").reindex(index=names, columns=columns)
    figure = canvas(1.9 + 1.05 * len(columns), 1.3 + max(0.235 * len(names), 1.1))
    axes = figure.add_subplot()
    values = grid.to_numpy(dtype=float, na_value=np.nan)
    units = np.array([first_known(first.loc[[c == column for c in first["column"]], "eftype"]) for column in columns])
    for unit in dict.fromkeys(units.tolist()):  # d and d_z are no common scale: each has colours and a bar of its own
        part = np.where(units == unit, values, np.nan)
        _coloured(axes, part, f"effect size {unit}")
    marks = np.argwhere(p.to_numpy(dtype=float, na_value=np.nan) <= alpha)
    axes.scatter(marks[:, 1] + 0.5, marks[:, 0] + 0.5, s=12, c="#101418", linewidths=0, zorder=3)
    axes.set_xticks(np.arange(len(columns)) + 0.5, ["\n".join(map(shorten, c)) for c in columns])
    axes.set_yticks(np.arange(len(names)) + 0.5, [shorten(n) for n in names])
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    tidy(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _coloured(axes: Axes, values: np.ndarray, label: str) -> None:
    """Squares of signed sizes, white where there is none, with their colour bar."""
    limit = max(float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0, 1e-9)
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=DIVERGING, vmin=-limit, vmax=limit, edgecolors=PAPER, linewidth=1.2
    )
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.6, pad=0.02, aspect=22)
    bar.set_label(plain(label))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


@drawn
def items(table: pd.DataFrame, *, ends: Mapping[str, tuple[str, str]] | None = None, top: int = 8) -> Figure:
    """What the top features do, item by item: a line from the - to the + cells, or two groups of dots.

    Parameters
    ----------
    table : DataFrame
        Long table `site region position effect feature item difference plus minus`; features in order of appearance.
        Items that have only one of `plus` and `minus` (factors between items) are drawn as groups.
    ends : mapping from effect to (name of its - end, name of its + end), optional
    top : int
        At most this many features.
    """
    table = table.assign(**{c: table[c].astype(object) for c in KEY})
    groups = list(table.groupby(KEY, sort=False, dropna=False))[:top]
    figure = canvas(*_grid_size(len(groups)))
    for number, (key, rows) in enumerate(groups):
        axes = figure.add_subplot(*_grid_shape(len(groups)), number + 1)
        names = (ends or {}).get(str(key[3]), ("− cells", "+ cells"))
        paired = rows[rows["plus"].notna() & rows["minus"].notna()]
        if len(paired):
            _pairs(axes, paired)
        else:
            _two_groups(axes, rows)
        axes.set_xlim(-0.45, 1.45)
        axes.set_xticks([0, 1], [shorten(n, 14) for n in names])
        _head(axes, feature_name(key[0], key[4]), f"{_subtitle(key, table)}, {_tally(rows)}")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        tidy(axes, grid="y")
        if number % _grid_shape(len(groups))[1] == 0:
            axes.set_ylabel("activation")
    return figure


def _head(axes: Axes, name: str, words: str) -> None:
    axes.set_title(shorten(name), fontsize=9, pad=17)
    axes.annotate(
        words, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points", fontsize=8, color=MUTED
    )


def _tally(rows: pd.DataFrame) -> str:
    low, high = rows["minus"].astype(float), rows["plus"].astype(float)
    if not (low.notna() & high.notna()).any():
        return f"{low.notna().sum()} and {high.notna().sum()} items"
    return f"{(high > low).sum()}↑ {(high < low).sum()}↓ of {len(rows)}"


def _subtitle(key: tuple, table: pd.DataFrame) -> str:
    shown = [c for c in ("effect", "region", "position") if table[c].nunique(dropna=False) > 1] or ["region"]
    return plain(" · ".join(place_word(c, key[KEY.index(c)]) for c in shown))


def _grid_shape(n: int) -> tuple[int, int]:
    rows = max(-(-n // 4), 1)
    return rows, max(-(-n // rows), 1)


def _grid_size(n: int) -> tuple[float, float]:
    rows, columns = _grid_shape(n)
    return 0.5 + 1.85 * columns, 2.35 * rows


def _pairs(axes: Axes, rows: pd.DataFrame) -> None:
    low, high = rows["minus"].to_numpy(dtype=float), rows["plus"].to_numpy(dtype=float)
    for item, a, b in zip(rows["item"], low, high, strict=True):
        colour = REST if a == b else PLUS if b > a else MINUS
        (line,) = axes.plot([0, 1], [a, b], color=colour, linewidth=0.9, alpha=0.55, marker="o", markersize=2.6)
        line.set_gid(note_of(f"{item}: {digits(a)} to {digits(b)}"))
    axes.plot([0, 1], [low.mean(), high.mean()], color=INK, linewidth=2.2, marker="o", markersize=6, zorder=4)


def _two_groups(axes: Axes, rows: pd.DataFrame) -> None:
    for x, (column, colour) in enumerate((("minus", MINUS), ("plus", PLUS))):
        values = rows[column].dropna().to_numpy(dtype=float)
        offsets = swarm(values, 0.22)
        axes.scatter(x + offsets, values, s=13, c=colour, alpha=0.7, linewidths=0, zorder=2)
        if len(values):
            axes.plot([x - 0.28, x + 0.28], [values.mean()] * 2, color=INK, linewidth=2.2, zorder=4)


@drawn
def cells(
    table: pd.DataFrame,
    *,
    factors: Mapping[str, Sequence[str]] | None = None,
    named: Mapping[str, Sequence[str]] | None = None,
    top: int = 8,
) -> Figure:
    """Mean activation per cell of the top features; with two factors or more the lines of an interaction plot.

    Parameters
    ----------
    table : DataFrame
        Long table `site region position effect feature cell mean density n`; `cell` joins levels by "/" in the
        order of `factors`. The area of a dot shows the share of items in which the feature is active.
    factors : mapping from factor to its levels, in design order, optional
    named : mapping from effect to the factors it names, optional; they are drawn, the others averaged
    top : int
        At most this many features.
    """
    table, levels = table.assign(**{c: table[c].astype(object) for c in KEY}), factors or {}
    groups = list(table.groupby(KEY, sort=False, dropna=False))[:top]
    figure, pairs = canvas(*_grid_size(len(groups))), set()
    for number, (key, rows) in enumerate(groups):
        axes = figure.add_subplot(*_grid_shape(len(groups)), number + 1)
        parts = rows["cell"].astype(str).str.split("/", expand=True)
        if len(levels) >= 2 and parts.shape[1] >= len(levels):
            first = [f for f in (named or {}).get(str(key[3]), ()) if f in levels]
            shown = (*first, *(f for f in levels if f not in first))[:2]
            pairs.add(shown)
            _lines(axes, rows, levels, shown=shown)
        else:
            _dots(axes, rows, levels)
        _head(axes, feature_name(key[0], key[4]), _subtitle(key, table))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(0, None) if (rows["mean"] >= 0).all() else None
        axes.margins(x=0.25)
        tidy(axes, grid="y")
        if number % _grid_shape(len(groups))[1] == 0:
            axes.set_ylabel("mean activation")
    _legends(figure, pairs)
    return figure


def _legends(figure: Figure, pairs: set[tuple[str, ...]]) -> None:
    """One legend where all panels draw the same lines, else one in each."""
    for axes in figure.axes:
        lines = axes.get_legend_handles_labels()
        if lines[0] and len(pairs) == 1:
            title = plain(next(iter(pairs))[1])
            figure.legend(*lines, title=title, loc="outside right upper", title_fontsize=8.5)
            return
        if lines[0]:
            axes.legend(fontsize=7, handlelength=1.2, title=plain(axes.get_label()), title_fontsize=7)


def _areas(rows: pd.DataFrame) -> np.ndarray:
    return 8 + 60 * rows["density"].fillna(0).to_numpy(dtype=float)


def _lines(axes: Axes, rows: pd.DataFrame, factors: Mapping[str, Sequence[str]], *, shown: Sequence[str]) -> None:
    across, lines = (factors[f] for f in shown)
    parts, order = rows["cell"].astype(str).str.split("/", expand=True), list(factors)
    rows = rows.assign(a=parts[order.index(shown[0])], b=parts[order.index(shown[1])])
    # Further factors are averaged: cells count equally.
    means = rows.groupby(["a", "b"], sort=False)[["mean", "density"]].mean().reset_index()
    colours = (MINUS, PLUS, ACCENT, *[MUTED] * len(lines))
    styles = ("-", (0, (4, 2)), (0, (1, 1.5)), *["-."] * len(lines))
    for level, colour, style in zip(lines, colours, styles, strict=False):
        one = means[means["b"] == level].set_index("a").reindex(list(across))
        axes.plot(range(len(across)), one["mean"], color=colour, linewidth=1.6, linestyle=style, label=plain(level))
        axes.scatter(range(len(across)), one["mean"], s=_areas(one), c=colour, linewidths=0, zorder=3)
    axes.set_xticks(range(len(across)), [shorten(level, 12) for level in across])
    axes.set_xlabel(plain(shown[0]), fontsize=8)
    axes.set_label(shown[1])


def _dots(axes: Axes, rows: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> None:
    order = [level for levels in list(factors.values())[:1] for level in levels]
    names = list(dict.fromkeys(rows["cell"].astype(str)))
    names.sort(key=lambda n: order.index(n) if n in order else len(order))
    one = rows.drop_duplicates("cell").set_index(rows.drop_duplicates("cell")["cell"].astype(str)).loc[names]
    axes.plot(range(len(names)), one["mean"], color=MUTED, linewidth=1.2, zorder=1)
    axes.scatter(range(len(names)), one["mean"], s=_areas(one), c=ACCENT, linewidths=0, zorder=3)
    axes.set_xticks(range(len(names)), [shorten(n, 10) for n in names], rotation=30 if len(names) > 3 else 0)
