"""Figures of whole patterns: effects by place, abstraction, shares of variance, and rules that choose features."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import (
    ACCENT,
    FAINT,
    GROUPS,
    INK,
    MARKERS,
    MUTED,
    canvas,
    drawn,
    note_of,
    plain,
    shorten,
    tidy,
)
from neurosae.report.tables import distinct, is_found, place_names
from neurosae.report.wording import digits

CHANCE = 0.5


@drawn
def pattern_effects(rows: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """One dot per effect and place: the statistic in standard deviations of its null, filled where it was found.

    Parameters
    ----------
    rows : DataFrame
        Results rows of one factorial test with `x_z`.
    alpha : float
        Bound on `p_corr`.
    """
    rows = rows[rows["x_z"].notna()].reset_index(drop=True)
    places, effects = place_names(rows), distinct(rows["effect"])
    names, found = list(dict.fromkeys(places)), is_found(rows, alpha)
    figure = canvas(6.2, 0.9 + 0.34 * len(names) + 0.2 * len(effects))
    axes = figure.add_subplot()
    step = 0.64 / max(len(effects), 1)
    for k, effect in enumerate(effects):
        colour, marker = GROUPS[k % len(GROUPS)], MARKERS[k % len(MARKERS)]
        mine = (rows["effect"] == effect).to_numpy(dtype=bool)
        at = np.array([names.index(place) for place in places[mine]]) + (k - (len(effects) - 1) / 2) * step
        for x, y, hit, value, p in zip(
            rows["x_z"][mine], at, found[mine], rows["value"][mine], rows["p_corr"][mine], strict=True
        ):
            face = colour if hit else "none"
            (dot,) = axes.plot(x, y, marker=marker, markersize=6, color=colour, markerfacecolor=face, linewidth=0)
            dot.set_gid(note_of(f"{effect}: {digits(value)}, p corrected {digits(p)}"))
        axes.plot([], [], marker=marker, color=colour, linewidth=0, label=plain(effect))
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [shorten(name, 32) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("statistic, standard deviations of its null")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(effects), 4), borderaxespad=0)
    tidy(axes, grid="x")
    return figure


@drawn
def abstraction(rows: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """Generalization against decoding, one point per effect and place; both axes are AUC, dashed is chance.

    Parameters
    ----------
    rows : DataFrame
        Results rows of a `ccgp` test: `value` is the AUC across conditions, `x_decoding` that within them.
    alpha : float
        Filled where the AUC across conditions was found.
    """
    rows = rows[rows["value"].notna()].reset_index(drop=True)
    figure = canvas(5.2, 4.0)
    axes = figure.add_subplot()
    found, effects, places = is_found(rows, alpha), distinct(rows["effect"]), place_names(rows)
    for k, effect in enumerate(effects):
        colour, mine = GROUPS[k % len(GROUPS)], (rows["effect"] == effect).to_numpy(dtype=bool)
        for i in np.flatnonzero(mine):
            face = colour if found[i] else "none"
            x, y = rows["x_decoding"].iloc[i], rows["value"].iloc[i]
            (dot,) = axes.plot(x, y, marker=MARKERS[k % len(MARKERS)], markersize=7, color=colour, markerfacecolor=face)
            dot.set_gid(note_of(f"{effect} at {places.iloc[i]}: across {digits(y)}, within {digits(x)}"))
        axes.plot([], [], marker=MARKERS[k % len(MARKERS)], color=colour, linewidth=0, label=plain(effect))
    numbers = np.concatenate([rows["value"], rows["x_decoding"]]).astype(float)
    low, high = min(float(np.nanmin(numbers)), CHANCE) - 0.05, max(float(np.nanmax(numbers)), CHANCE) + 0.05
    axes.plot([low, high], [low, high], color=FAINT, linewidth=0.9, zorder=0)
    axes.axhline(CHANCE, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.axvline(CHANCE, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("decoding: AUC, all conditions in training")
    axes.set_ylabel("generalization: AUC in the condition left out")
    axes.legend(loc="upper left")
    tidy(axes, grid="both")
    return figure


@drawn
def shares(rows: pd.DataFrame) -> Figure:
    """Share of the variance between cells along each effect, a bar per effect and place.

    Parameters
    ----------
    rows : DataFrame
        Results rows of a `demixed` test; cross-validated shares may be negative, and undefined ones are left out.
    """
    rows = rows[rows["x_variance"].notna()].reset_index(drop=True)
    places, effects = place_names(rows), distinct(rows["effect"])
    names = list(dict.fromkeys(places))
    figure = canvas(6.2, 0.9 + 0.2 * len(rows) + 0.12 * len(names))
    axes = figure.add_subplot()
    height = 0.8 / max(len(effects), 1)
    for k, effect in enumerate(effects):
        mine = (rows["effect"] == effect).to_numpy(dtype=bool)
        at = np.array([names.index(place) for place in places[mine]]) + (k - (len(effects) - 1) / 2) * height
        values = rows["x_variance"][mine].to_numpy(dtype=float)
        axes.barh(at, values, height=0.86 * height, color=GROUPS[k % len(GROUPS)], label=plain(effect))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(names)), [shorten(name, 32) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("cross-validated variance between cells along the effect, squared standardized units")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(effects), 4), borderaxespad=0)
    tidy(axes, grid="x")
    return figure


@drawn
def rule_curves(curves: pd.DataFrame) -> Figure:
    """Accuracy over the number of chosen features, a line per rule with its intervals, a panel per site and region.

    Parameters
    ----------
    curves : DataFrame
        Long table `site region rule k accuracy low high`.
    """
    panels = list(curves.groupby(["site", "region"], sort=False))
    several = curves["region"].nunique() > 1
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = canvas(0.9 + 2.75 * columns, 0.7 + 2.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    names = distinct(curves["rule"])
    for axes, ((site, region), part) in zip(grid.ravel(), panels, strict=False):
        for j, rule in enumerate(names):
            line = part[part["rule"] == rule].sort_values("k")
            colour = GROUPS[j % len(GROUPS)]
            at = line["k"] * 2.0 ** ((j - (len(names) - 1) / 2) * 0.07)  # side by side, so that intervals stay apart
            axes.vlines(at, line["low"], line["high"], color=colour, linewidth=1.1, alpha=0.5)
            axes.plot(
                at, line["accuracy"], color=colour, marker=MARKERS[j % len(MARKERS)], markersize=4.5,
                linewidth=1.5, label=plain(rule.replace("_rsa", " RSA")),
            )  # fmt: skip
        axes.axhline(CHANCE, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(curves["k"])), [str(k) for k in sorted(set(curves["k"]))])
        axes.minorticks_off()
        axes.set_title(shorten(f"{site} · {region}" if several else site, 30))
        tidy(axes, grid="y")
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("chosen features, k")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy on held-out items")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 3 if columns < 2 else 6))
    return figure


@drawn
def rule_differences(rows: pd.DataFrame, *, alpha: float = 0.05, most: int = 24) -> Figure:
    """Differences of accuracy between rules and between sites, with their intervals; filled where they were found.

    Parameters
    ----------
    rows : DataFrame
        Results rows of `stat` "accuracy difference", the largest differences are drawn.
    alpha : float
    most : int
    """
    order = rows["estimate"].abs().sort_values(ascending=False, kind="stable").index[:most]
    rows = rows.loc[order].sort_values("estimate", kind="stable").reset_index(drop=True)
    found = is_found(rows, alpha)
    figure = canvas(6.4, 0.8 + 0.24 * len(rows))
    axes = figure.add_subplot()
    for i, row in rows.iterrows():
        axes.plot([row["ci_low"], row["ci_high"]], [i, i], color=MUTED, linewidth=1.4)
        face = ACCENT if found[i] else "none"
        (dot,) = axes.plot(row["estimate"], i, marker="o", markersize=5.5, color=ACCENT, markerfacecolor=face)
        dot.set_gid(note_of(f"{row['set']}: {digits(row['estimate'])}, p corrected {digits(row['p_corr'])}"))
    axes.axvline(0, color=INK, linewidth=0.8, zorder=0)
    several = rows["site"].nunique() > 1
    names = [
        f"{row['set']} ({row['site']})" if several and pd.notna(row["site"]) else row["set"]
        for _, row in rows.iterrows()
    ]
    axes.set_yticks(range(len(rows)), [shorten(name.replace("_rsa", " RSA"), 52) for name in names])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("difference of accuracy, mean over k")
    tidy(axes, grid="x")
    return figure
