"""Figures of feature-wise contrasts: a table in, a Figure out; nothing is read, written or remembered."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neurosae.report.style import (
    FAINT,
    INK,
    MARKERS,
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
from neurosae.report.tables import first_known, is_found, place_names, ranked, rows_tested
from neurosae.report.wording import digits, feature_name, plural
from neurosae.spec.results import directed

MANY = 3000  # more points than this are drawn as one picture inside the vector figure


@drawn
def volcano(table: pd.DataFrame, *, alpha: float = 0.05, n_labels: int = 6) -> Figure:
    """Effect size against evidence: one point per tested feature, filled where it was found.

    Parameters
    ----------
    table : DataFrame
        Results rows of one effect; every row with a value, an effect size and p is one point.
    alpha : float
        Bound on `p_corr` that counts as found.
    n_labels : int
        How many of the found features are named.
    """
    rows = rows_tested(table)
    rows = rows[rows["effsize"].notna() & rows["p_unc"].notna()]
    rows = rows.assign(x=rows["effsize"].astype(float), y=-np.log10(rows["p_unc"].astype(float)))
    found = is_found(rows, alpha)
    figure = canvas(5.6, 5.9)
    axes = figure.add_subplot()
    sites = list(dict.fromkeys(rows["site"]))
    for number, site in enumerate(sites):
        here, marker = (rows["site"] == site).to_numpy(), MARKERS[number % len(MARKERS)]
        rest, hits = rows[here & ~found], rows[here & found]
        cloud = axes.scatter(rest["x"], rest["y"], s=11, c=REST, marker=marker, alpha=0.55, linewidths=0)
        cloud.set_rasterized(len(rows) > MANY)
        for row in hits.itertuples():
            _point(axes, row, marker)
        axes.scatter([], [], s=22, c=MUTED, marker=marker, linewidths=0, label=plain(site))
    _room(axes, rows, found)
    _threshold(axes, rows, found)
    _name_points(axes, ranked(rows[found]).head(n_labels))
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel(plain(f"effect size {first_known(rows['eftype'])} (signed)"))
    axes.set_ylabel("−log₁₀ p, uncorrected")
    axes.set_ylim(bottom=0, top=max(1.0, float(rows["y"].max() if len(rows) else 1) * 1.12))
    noun = "test" if rows.duplicated(["site", "feature"]).any() else "tested feature"
    axes.set_title(f"{found.sum():,} of {plural(len(rows), noun)} found")
    if len(sites) > 1:
        axes.legend(loc="lower right", title="site", title_fontsize=8.5, handletextpad=0.2)
    tidy(axes, grid="y")
    return figure


def _point(axes: Axes, row: object, marker: str) -> None:
    colour = PLUS if row.x > 0 else MINUS
    dot = axes.scatter(row.x, row.y, s=30, c=colour, marker=marker, linewidths=0.6, edgecolors=PAPER, zorder=3)
    words = f"{feature_name(row.site, row.feature)} at {row.region}: {digits(row.x)}, p corrected {digits(row.p_corr)}"
    dot.set_gid(note_of(words))


def _room(axes: Axes, rows: pd.DataFrame, found: np.ndarray) -> None:
    """Room for names: the plot is widened on the sides that have found points."""
    low, high = (float(rows["x"].min()), float(rows["x"].max())) if len(rows) else (-1.0, 1.0)
    width = max(high - low, 1e-9)
    sides = rows.loc[found, "x"]
    axes.set_xlim(
        low - width * (0.26 if (sides < 0).any() else 0.05), high + width * (0.26 if (sides > 0).any() else 0.05)
    )


def _threshold(axes: Axes, rows: pd.DataFrame, found: np.ndarray) -> None:
    """A line under the lowest found point: sharp where one cut separates found from not found, dotted elsewhere."""
    if not found.any():
        return
    lowest = float(rows.loc[found, "y"].min())
    clean = not (rows.loc[~found, "y"] >= lowest).any()
    axes.axhline(lowest, color=INK, linewidth=0.9, linestyle=(0, (5, 3)) if clean else (0, (1, 3)), zorder=1)
    words = "found from here up" if clean else "nothing found below"
    # The words stand on the side with fewer found points.
    x, side = (0.005, "left") if np.sign(rows.loc[found, "x"]).sum() > 0 else (0.995, "right")
    axes.annotate(
        words, (x, lowest), xycoords=axes.get_yaxis_transform(), ha=side, va="bottom", fontsize=8, color=MUTED,
        xytext=(0, 2), textcoords="offset points",
    )  # fmt: skip


def _name_points(axes: Axes, rows: pd.DataFrame) -> None:
    """Names in a column beyond the outermost found point of each side, with a line to the point."""
    top = max(float(rows["y"].max()), 1.0) * 1.12 if len(rows) else 1.0
    for side in (1, -1):
        part = rows[np.sign(rows["x"]) == side].sort_values(["y", "x"], ascending=[False, side < 0], kind="stable")
        edge, last = part["x"].abs().max() + 0.09 * _spread(axes) if len(part) else 0.0, np.inf
        for row in part.itertuples():
            last = min(float(row.y), last - 0.042 * top)
            axes.annotate(
                shorten(feature_name(row.site, row.feature)), (row.x, row.y), xytext=(side * edge, last),
                ha="left" if side > 0 else "right", va="center", fontsize=8, zorder=4,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            )  # fmt: skip


def _spread(axes: Axes) -> float:
    low, high = axes.get_xlim()
    return (high - low) / 2


@drawn
def strip(table: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """Where the effect lies: the statistic of every tested feature, one row per site, region and position.

    Parameters
    ----------
    table : DataFrame
        Results rows of one effect; every row with a value is one point.
    alpha : float
        Bound on `p_corr` that counts as found.
    """
    rows = rows_tested(table)
    rows = rows[rows["value"].notna()]
    rows = rows.assign(place=place_names(rows), x=rows["value"].astype(float))
    places = list(dict.fromkeys(rows["place"]))
    figure = canvas(5.6, 1.1 + 0.62 * max(len(places), 1))
    axes = figure.add_subplot()
    found = is_found(rows, alpha)
    heights = np.concatenate(
        [[]] + [swarm(rows.loc[rows["place"] == p, "x"].to_numpy()) + i for i, p in enumerate(places)]
    )
    rows = pd.concat([rows[rows["place"] == p] for p in places]) if places else rows
    rows, found = rows.assign(y=heights), is_found(rows, alpha)
    cloud = axes.scatter(rows.loc[~found, "x"], rows.loc[~found, "y"], s=8, c=REST, alpha=0.55, linewidths=0)
    cloud.set_rasterized(len(rows) > MANY)
    hits = rows[found]
    axes.scatter(
        hits["x"], hits["y"], s=20, c=np.where(hits["x"] > 0, PLUS, MINUS), linewidths=0.5, edgecolors=PAPER, zorder=3
    )
    for number, name in enumerate(places):
        n = int((hits["place"] == name).sum())
        axes.annotate(
            f"{n:,} found", (1.0, number), xycoords=axes.get_yaxis_transform(), ha="left", va="center", fontsize=8.5,
            color=INK if n else MUTED, xytext=(6, 0), textcoords="offset points", annotation_clip=False,
        )  # fmt: skip
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(places)), [shorten(p, 34) for p in places])
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_xlabel(plain(f"{first_known(rows['stat']).replace('_', ' ')}, one point per tested feature"))
    tidy(axes, grid="x")
    axes.spines["left"].set_visible(False)
    return figure


@drawn
def null_maximum(null: np.ndarray, table: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """The maximum of the family under each relabelling, its threshold, and the statistics that were observed.

    Parameters
    ----------
    null : array of shape (n_permutations,)
        Entry 0 is the identity, that is the observed maximum.
    table : DataFrame
        Results rows of the same family; `x_z` is on the scale of `null`.
    alpha : float
    """
    rows = rows_tested(table)
    rows = rows[rows["x_z"].notna()]
    side = str(rows["alternative"].dropna().iloc[0]) if rows["alternative"].notna().any() else "two-sided"
    z = directed(rows["x_z"].to_numpy(dtype=float), side)
    null = np.asarray(null, dtype=float)
    null = null[np.isfinite(null)]
    threshold = float(np.sort(null)[::-1][max(int(np.floor(alpha * len(null))) - 1, 0)]) if len(null) else np.nan
    figure = canvas(5.6, 2.9)
    axes = figure.add_subplot()
    axes.hist(null, bins=min(60, max(10, len(null) // 40)), color=REST, alpha=0.75, linewidth=0)
    axes.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    upper = axes.get_ylim()[1]
    axes.set_ylim(0, upper * 1.18)
    axes.annotate(
        f"threshold {digits(threshold)}", (threshold, upper * 1.17), ha="left", va="top", fontsize=8, color=MUTED,
        xytext=(3, 0), textcoords="offset points",
    )  # fmt: skip
    order = np.argsort(-z, kind="stable")[:15]
    signs = np.sign(rows["x_z"].to_numpy(dtype=float)[order])
    for rank, (at, sign, row) in enumerate(zip(z[order], signs, rows.iloc[order].itertuples(), strict=True)):
        name = feature_name(row.site, row.feature)
        (mark,) = axes.plot([at, at], [0, upper * 0.16], color=PLUS if sign > 0 else MINUS, linewidth=1.6)
        mark.set_gid(note_of(f"{name} at {row.region}: {digits(at)}"))
        if rank == 0:
            axes.annotate(shorten(name), (at, upper * 0.18), ha="center", va="bottom", fontsize=8)
    axes.set_xlabel("largest statistic of the family (normal-equivalent z)")
    axes.set_ylabel("relabellings")
    tidy(axes, grid="y")
    return figure
