"""Figures of attribution, the logit lens, attention and heads."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from neurosae.report.style import (
    DIVERGING,
    FAINT,
    INK,
    MINUS,
    MUTED,
    PAPER,
    PLUS,
    REST,
    SEQUENTIAL,
    canvas,
    drawn,
    note_of,
    plain,
    shorten,
    tidy,
)
from neurosae.report.tables import is_found
from neurosae.report.wording import digits

UNITS = {"logit_diff": "LD, logits", "log_prob": "log p, nats", "prob": "p", "rank": "median rank"}
MOST_NUMBERS = 60  # squares up to which the numbers are printed in them
DARK, LIGHT = "#101418", "#fdfdfd"  # on coloured squares, in light and in dark mode
PER_ROW = 4  # panels


@drawn
def lens(table: pd.DataFrame, rows: pd.DataFrame, *, measure: str = "logit_diff", alpha: float = 0.05) -> Figure:
    """What the stream of every layer would predict: layers from below, cells of the design from the left.

    Parameters
    ----------
    table : DataFrame of `cell layer n` and the measures
    rows : results rows of one effect, whose `feature` is the layer; a dot stands beside the layers that were found
    """
    cells, layers = list(dict.fromkeys(table["cell"])), sorted(set(table["layer"]))
    square = table.pivot(index="layer", columns="cell", values=measure).loc[layers, cells].to_numpy(dtype=float)
    figure = canvas(2.3 + max(0.72 * len(cells), 2.2), 1.5 + 0.42 * len(layers))
    axes = figure.add_subplot()
    norm = _around_zero(square) if measure == "logit_diff" else Normalize(float(square.min()), float(square.max()))
    colours = DIVERGING if measure == "logit_diff" else SEQUENTIAL
    mesh = axes.pcolormesh(square, cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1.2)
    mesh.set_gid(note_of("; ".join(f"{c}: {digits(v)}" for c, v in zip(cells, square[-1], strict=True))))
    if square.size <= MOST_NUMBERS:
        for i, j in np.ndindex(square.shape):
            shade = colours(norm(square[i, j]))
            text = DARK if np.dot(shade[:3], (0.3, 0.59, 0.11)) > 0.45 else LIGHT
            axes.text(j + 0.5, i + 0.5, digits(square[i, j]), ha="center", va="center", fontsize=8, color=text)
    found = {int(j) for j in rows.loc[is_found(rows, alpha), "feature"].dropna()}
    names = [("embedding" if k == 0 else f"after layer {k - 1}") + (" •" if k in found else "") for k in layers]
    axes.set_yticks(np.arange(len(layers)) + 0.5, names)
    axes.set_xticks(np.arange(len(cells)) + 0.5, [plain(shorten(c, 16)) for c in cells])
    _bar(figure, axes, mesh, label=UNITS[measure])
    tidy(axes)
    axes.tick_params(length=0)
    return figure


@drawn
def head_grid(table: pd.DataFrame, *, column: str = "estimate", alpha: float = 0.05, marked: str = "") -> Figure:
    """A value per head, a panel per place or score: layers from below, heads from the left.

    Parameters
    ----------
    table : results rows with `x_head` (L2H5) and `panel`; a dot marks corrected p of at most alpha
    column : what colours show
    marked : beginning of `x_verdict` of the heads that get a frame
    """
    panels = list(dict.fromkeys(table["panel"]))
    place = table["x_head"].dropna().astype(str).str.extract(r"L(\d+)H(\d+)").astype(int)
    n_layers, n_heads = int(place[0].max()) + 1, int(place[1].max()) + 1
    columns = 3 if len(panels) in (5, 6) else min(len(panels), PER_ROW)
    lines = -(-len(panels) // columns)
    wide, high = max(0.21 * n_heads, 1.3) + 1.05, max(0.21 * n_layers, 0.8) + 0.75
    figure = canvas(columns * wide, lines * high)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(lines, columns, number + 1)
        own = table[(table["panel"] == panel).to_numpy() & table["x_head"].notna().to_numpy()]
        square = np.full((n_layers, n_heads), np.nan)
        at = own["x_head"].astype(str).str.extract(r"L(\d+)H(\d+)").astype(int).to_numpy()
        square[at[:, 0], at[:, 1]] = own[column].to_numpy(dtype=float, na_value=np.nan)
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(square), cmap=DIVERGING, norm=_around_zero(square), edgecolors=PAPER, linewidth=0.6
        )
        mesh.set_gid(note_of(f"{panel}: {digits(float(np.nanmin(square)))} to {digits(float(np.nanmax(square)))}")
                     if np.isfinite(square).any() else note_of(str(panel)))  # fmt: skip
        for (layer, head), hit in zip(at, is_found(own, alpha), strict=True):
            if hit:
                axes.plot(head + 0.5, layer + 0.5, "o", color=INK, markersize=2.6, markeredgewidth=0)
        if marked and "x_verdict" in own:
            chosen = own["x_verdict"].fillna("").astype(str).str.startswith(marked).to_numpy()
            for layer, head in at[chosen]:
                axes.add_patch(_frame(head, layer))
        axes.set_aspect("equal")
        axes.set_title(plain(shorten(panel, 26)), fontsize=9)
        step = max(1, n_heads // 8)
        axes.set_xticks(np.arange(0, n_heads, step) + 0.5, [str(h) for h in range(0, n_heads, step)], fontsize=7.5)
        step = max(1, n_layers // 8)
        axes.set_yticks(np.arange(0, n_layers, step) + 0.5, [str(h) for h in range(0, n_layers, step)], fontsize=7.5)
        axes.set_xlabel("head", fontsize=8)
        axes.set_ylabel("layer" if number % columns == 0 else "", fontsize=8)
        _bar(figure, axes, mesh, label="")
        tidy(axes)
        axes.tick_params(length=0)
    return figure


def _frame(head: int, layer: int) -> Rectangle:
    return Rectangle((head, layer), 1, 1, fill=False, edgecolor=INK, linewidth=1.4, zorder=4)


@drawn
def attention_regions(
    table: pd.DataFrame, heads: list[tuple[str, int]], *, weights: Mapping[str, float], ends: tuple[str, str]
) -> Figure:
    """Attention from region to region of some heads: mean of the - cells, of the + cells, and their difference.

    Parameters
    ----------
    table : DataFrame of `key region feature cell mean`
    heads : (name, feature) of each head, a row of panels
    weights : of the cells in the effect;  ends : names of its - and + cells
    """
    queries, keys = list(dict.fromkeys(table["region"])), list(dict.fromkeys(table["key"]))
    figure = canvas(3 * (0.62 * len(keys) + 1.5), len(heads) * (0.42 * len(queries) + 0.85) + 0.3)
    for number, (name, feature) in enumerate(heads):
        own = table[table["feature"] == feature]
        sides = [
            _mean_of(own, queries, keys, weights={c: max(sign * w, 0) for c, w in weights.items()}) for sign in (-1, 1)
        ]
        parts = [*sides, sides[1] - sides[0]]
        most = float(np.nanmax(sides)) if np.isfinite(sides).any() else 1.0
        for k, (square, title) in enumerate(zip(parts, (ends[0], ends[1], "difference"), strict=True)):
            axes = figure.add_subplot(len(heads), 3, 3 * number + k + 1)
            norm = _around_zero(square) if k == 2 else Normalize(0, most or 1.0)
            colours = DIVERGING if k == 2 else SEQUENTIAL
            axes.pcolormesh(np.ma.masked_invalid(square), cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1)
            for i, j in np.ndindex(square.shape):
                if np.isfinite(square[i, j]):
                    shade = colours(norm(square[i, j]))
                    text = DARK if np.dot(shade[:3], (0.3, 0.59, 0.11)) > 0.45 else LIGHT
                    axes.text(j + 0.5, i + 0.5, digits(square[i, j], 2), ha="center", va="center", fontsize=7.5,
                              color=text)  # fmt: skip
            axes.set_xticks(np.arange(len(keys)) + 0.5, [plain(shorten(key, 12)) for key in keys], fontsize=8)
            shown = [plain(shorten(q, 14)) for q in queries] if k == 0 else [""] * len(queries)
            axes.set_yticks(np.arange(len(queries)) + 0.5, shown, fontsize=8)
            axes.invert_yaxis()
            axes.set_title(plain(f"{name}: {shorten(title, 18)}"), fontsize=8.5)
            tidy(axes)
            axes.tick_params(length=0)
    return figure


def _mean_of(table: pd.DataFrame, queries: list[str], keys: list[str], *, weights: Mapping[str, float]) -> np.ndarray:
    """Weighted mean over cells (n_queries, n_keys)."""
    w = table["cell"].map(weights).fillna(0.0).to_numpy(dtype=float)
    out = np.full((len(queries), len(keys)), np.nan)
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            at = ((table["region"] == query) & (table["key"] == key)).to_numpy()
            if w[at].sum() > 0:
                out[i, j] = np.average(table["mean"].to_numpy(dtype=float)[at], weights=w[at])
    return out


@drawn
def screen(table: pd.DataFrame, *, alpha: float = 0.05, n_labels: int = 6) -> Figure:
    """What the gradient said against what ablating each feature did; on the line both agree.

    Parameters
    ----------
    table : DataFrame of `feature set approximate exact p_corr`
    """
    known = table[table["exact"].notna() & table["approximate"].notna()]
    figure = canvas(5.2, 4.4)
    axes = figure.add_subplot()
    x, y = known["approximate"].to_numpy(dtype=float), known["exact"].to_numpy(dtype=float)
    ends = np.array([min(x.min(initial=0), y.min(initial=0)), max(x.max(initial=0), y.max(initial=0))])
    axes.plot(ends, ends, color=FAINT, linewidth=1, zorder=0)
    axes.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.6, zorder=0)
    found = known["p_corr"].to_numpy(dtype=float, na_value=1.0) <= alpha
    top = (known["set"] == "screened").to_numpy(dtype=bool)
    for chosen, marker, name in ((~top, "x", "random others"), (top, "o", "screened")):
        for hit in (False, True):
            at = chosen & (found == hit)
            colours = np.where(y[at] > 0, PLUS, MINUS) if hit else [REST] * int(at.sum())
            axes.scatter(x[at], y[at], s=26, c=colours, marker=marker, linewidths=1.1 if marker == "x" else 0, zorder=2)
        axes.scatter([], [], s=26, c=MUTED, marker=marker, linewidths=1.1 if marker == "x" else 0, label=name)
    best = known.iloc[np.argsort(-np.abs(y))[:n_labels]]
    for row in best.itertuples():
        axes.annotate(f"{row.site}/{row.feature}", (row.approximate, row.exact), xytext=(5, 3),
                      textcoords="offset points", fontsize=7.5, color=INK)  # fmt: skip
    axes.set_xlabel("approximate change of LD, logits")
    axes.set_ylabel("exact change of LD, logits")
    axes.legend(loc="upper left")
    tidy(axes)
    return figure


@drawn
def components(table: pd.DataFrame, *, alpha: float = 0.05, top: int = 16) -> Figure:
    """The components with the largest direct part of LD: estimate and interval, filled where it was found.

    Parameters
    ----------
    table : results rows of one effect with `x_component`
    """
    rows = table[table["estimate"].notna()]
    rows = rows.iloc[np.argsort(-rows["estimate"].abs().to_numpy(dtype=float), kind="stable")[:top]][::-1]
    figure = canvas(5.6, 0.9 + 0.24 * max(len(rows), 3))
    axes = figure.add_subplot()
    found = is_found(rows, alpha)
    value = rows["estimate"].to_numpy(dtype=float)
    for k, (v, hit) in enumerate(zip(value, found, strict=True)):
        colour = (PLUS if v > 0 else MINUS) if hit else REST
        (bar,) = axes.barh(k, v, height=0.66, color=colour, linewidth=0)
        bar.set_gid(note_of(f"{rows['x_component'].iloc[k]}: {digits(v)}"))
    low, high = (rows[name].to_numpy(dtype=float, na_value=np.nan) for name in ("ci_low", "ci_high"))
    axes.hlines(np.arange(len(rows)), low, high, color=INK, linewidth=1)
    names = [row.x_component if pd.notna(row.x_component) else f"{row.site}/{row.feature}" for row in rows.itertuples()]
    axes.set_yticks(np.arange(len(rows)), [plain(n) for n in names], fontsize=8)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel("direct part of LD, logits")
    tidy(axes, grid="x")
    return figure


def _around_zero(values: np.ndarray) -> Normalize:
    """Colours around 0, as far on either side."""
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    return TwoSlopeNorm(0.0, -(most or 1.0), most or 1.0)


def _bar(figure: Figure, axes: Axes, mesh: object, *, label: str) -> None:
    bar = figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.02, aspect=16)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5)
