"""Figures of the integration battery: set scores by cell, emergent shares, coupling, ladder, requirements."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from neurosae.report.style import ACCENT, INK, MINUS, MUTED, PLUS, REST, canvas, drawn, shorten, tidy
from neurosae.report.wording import digits

WHERE = ["site", "region", "position"]
CONTEXTS = {"control": "list", "composed": "phrase"}


def _places(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of every place, with its name."""
    groups = table.groupby(WHERE, sort=False, dropna=False)
    several = table["position"].nunique() > 1
    return [(f"{key[1]} · {key[0]}" + (f" · {key[2]}" if several else ""), rows) for key, rows in groups]  # pyright: ignore


@drawn
def cells_2x2(
    table: pd.DataFrame,
    *,
    names: tuple[str, str],
    contexts: dict[str, str] | None = None,
    levels: tuple[tuple[str, str], tuple[str, str]] | None = None,
) -> Figure:
    """Mean score of both feature sets in the four cells, phrase and list, with 95 % intervals over items.

    Parameters
    ----------
    table : DataFrame
        Long table `site region position part context first second item value`.
    names : tuple of str
        The two parts; `first` and `second` say whether each is present.
    contexts : dict, optional
        Names of `control` and `composed`.
    levels : pair of pairs of str, optional
        Words for either part, without and with it: (("subject sg", "subject pl"), …); left out, "no X", "X".
    """
    words = levels or ((f"no {names[0]}", names[0]), (f"without {names[1]}", f"with {names[1]}"))
    said, places = contexts or CONTEXTS, _places(table)
    shown = [c for c in ("control", "composed") if (table["context"] == c).any()]
    parts = list(dict.fromkeys(table["part"]))
    n_columns = len(parts) * len(shown)
    figure = canvas(1.0 + 1.75 * n_columns, 0.6 + 1.75 * len(places))
    grid = figure.subplots(len(places), n_columns, squeeze=False)
    for row, (place, rows) in enumerate(places):
        for k, part in enumerate(parts):
            block = grid[row, k * len(shown) : (k + 1) * len(shown)]
            for axes, context in zip(block, shown, strict=True):
                one = rows[(rows["part"] == part) & (rows["context"] == context)]
                _lines(axes, one, words)
                if row == 0:
                    axes.set_title(f"{shorten(part, 16)} set\n{shorten(said[context], 16)}", fontsize=9)
            low, high = (min(a.get_ylim()[0] for a in block), max(a.get_ylim()[1] for a in block))
            for number, axes in enumerate(block):  # the two contexts of a set are read against each other
                axes.set_ylim(low, high)
                if number:
                    axes.set_yticklabels([])
        grid[row, 0].set_ylabel(shorten(place, 26))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, words: tuple[tuple[str, str], tuple[str, str]]) -> None:
    """One panel: the first part along x, a line for each level of the second."""
    for second, colour in ((0, MUTED), (1, PLUS)):
        mean, half = [], []
        for first in (0, 1):
            values = rows.loc[(rows["first"] == first) & (rows["second"] == second), "value"].to_numpy(dtype=float)
            mean.append(values.mean())
            half.append(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
        axes.errorbar([0, 1], mean, yerr=half, color=colour, marker="o", ms=4, lw=1.4, label=words[1][second])
    axes.set_xticks([0, 1], [shorten(word, 12) for word in words[0]], fontsize=7.5)
    axes.set_xlim(-0.35, 1.35)
    tidy(axes, grid="y")


@drawn
def emergent_shares(rows: pd.DataFrame) -> Figure:
    """Emergent share of every place, with its range when one item is left out, and its difference to the list.

    Parameters
    ----------
    rows : DataFrame
        Results rows with effect `code: D-perp` and `code: list control`.
    """
    places = _places(rows)
    figure = canvas(6.4, 0.9 + 0.55 * len(places))
    axes = figure.add_subplot()
    for at, (_, part) in enumerate(places):
        plane, control = (part[part["effect"] == f"code: {name}"] for name in ("D-perp", "list control"))
        if len(plane) and pd.notna(plane["effsize"].iloc[0]):
            row = plane.iloc[0]
            axes.plot([row["x_loo_low"], row["x_loo_high"]], [at - 0.12] * 2, color=INK, lw=2.2, solid_capstyle="butt")
            axes.scatter(row["effsize"], at - 0.12, s=42, color=PLUS, zorder=3, label="phrase")
        if len(control) and pd.notna(control["effsize"].iloc[0]):
            axes.scatter(
                control["effsize"].iloc[0], at + 0.18, s=34, color=MINUS, marker="D", zorder=3, label="minus list"
            )
    axes.axvline(0, color=MUTED, lw=0.8, zorder=0)
    axes.set_yticks(range(len(places)), [shorten(name, 30) for name, _ in places])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("out-of-plane / main effects (squared lengths)")
    by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(by_label.values(), by_label.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes, grid="x")
    return figure


@drawn
def coupling_by_context(
    table: pd.DataFrame, *, names: tuple[str, str], contexts: dict[str, str] | None = None
) -> Figure:
    """Scores of the two sets in the full cell, one point per item, list and phrase; recorded gain taken out.

    Parameters
    ----------
    table : DataFrame
        Long table `site region position context item seed target`.
    names : tuple of str
        The two parts.
    contexts : dict, optional
        Names of `control` and `composed`.
    """
    said, places = contexts or CONTEXTS, _places(table)
    figure = canvas(6.4, 0.5 + 2.3 * len(places))
    grid = figure.subplots(len(places), 2, squeeze=False, sharex=True, sharey=True)
    for row, (place, rows) in enumerate(places):
        for axes, context in zip(grid[row], ("control", "composed"), strict=True):
            one = rows[rows["context"] == context]
            x, y = one["seed"].to_numpy(dtype=float), one["target"].to_numpy(dtype=float)
            r = float(np.corrcoef(x, y)[0, 1])
            axes.axhline(0, color=MUTED, lw=0.6, zorder=0)
            axes.axvline(0, color=MUTED, lw=0.6, zorder=0)
            axes.scatter(x, y, s=12, color=PLUS if context == "composed" else MINUS, alpha=0.7, linewidths=0)
            axes.plot([-2, 2], [-2 * r, 2 * r], color=INK, lw=1.4)
            axes.set_title(f"{shorten(said[context], 18)}: r = {digits(r, 2)}", fontsize=9)
            tidy(axes)
        grid[row, 0].set_ylabel(f"{shorten(place, 26)}\n{shorten(names[1], 18)} set")
    for axes in grid[-1]:
        axes.set_xlabel(f"{shorten(names[0], 18)} set, standard units")
    return figure


@drawn
def rungs(rows: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """Evidence for products of the two sets on every rung of the predictive ladder, place by place.

    Parameters
    ----------
    rows : DataFrame
        Results rows whose effect begins with `read: `.
    alpha : float
    """
    places = _places(rows)
    figure = canvas(6.4, 0.9 + 1.2 * len(places))
    grid = figure.subplots(len(places), 1, squeeze=False, sharex=True)[:, 0]
    top = max(1.5, float(-np.log10(rows["p_unc"].min())) * 1.1)
    for axes, (place, part) in zip(grid, places, strict=True):
        names = part["effect"].str.removeprefix("read: ").tolist()
        heights = -np.log10(part["p_unc"].to_numpy(dtype=float))
        axes.barh(np.arange(len(names)), heights, color=REST, height=0.62)
        axes.axvline(-np.log10(alpha), color=MUTED, lw=0.9, ls="--")
        axes.set_yticks(np.arange(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, top)
        gained = digits(float(part["effsize"].iloc[0]), 2)
        axes.set_title(f"{shorten(place, 40)}    gain in held-out R²: {gained}", fontsize=9)
        tidy(axes, grid="x")
    grid[-1].set_xlabel("−log₁₀ p, uncorrected (dashed: alpha)")
    return figure


@drawn
def requirement_table(table: pd.DataFrame) -> Figure:
    """What the design has and lacks: a mark, the requirement, what was seen.

    Parameters
    ----------
    table : DataFrame
        `name met seen cap remedy`, one row per requirement.
    """
    figure = canvas(7.4, 0.35 + 0.27 * len(table))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(table) - 0.5, -0.6)
    for at, row in enumerate(table.itertuples()):
        met = bool(row.met)
        axes.text(0.0, at, "met" if met else f"≤ {row.cap}", color=ACCENT if met else PLUS, weight="bold", va="center")
        axes.text(0.08, at, shorten(row.name, 48), color=INK, va="center")
        axes.text(0.52, at, shorten(row.seen, 62), color=MUTED, va="center", fontsize=8)
    return figure
