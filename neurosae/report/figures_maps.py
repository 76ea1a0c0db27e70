"""Figures of maps: an effect over sites and positions, with contours around what was found."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
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
    canvas,
    drawn,
    note_of,
    plain,
    shorten,
    tidy,
)
from neurosae.report.tables import distinct, first_known, is_found
from neurosae.report.wording import digits
from neurosae.spec.results import directed

DARK, LIGHT = "#101418", "#fdfdfd"  # on coloured squares, in light and in dark mode
GAP = 0.3  # between regions, whose positions are no neighbours
MOST_NUMBERS = 60  # cells of a map up to which the heights are printed in them
LARGEST = {"maxT": "z", "cluster": "cluster mass", "tfce": "TFCE"}


class Grid(NamedTuple):
    """Where the cells of a map are drawn: sites from below, positions from the left, a gap between regions.

    at : (site, region, position) -> (left, lower);  columns : (region, position, left);  sites : from below
    """

    at: dict[tuple[str, str, int], tuple[float, int]]
    columns: list[tuple[str, int, float]]
    sites: list[str]


@drawn
def heat(table: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """A map of one effect: signed height of every cell, and contours around cells or clusters with p of at most alpha.

    Parameters
    ----------
    table : DataFrame
        Results rows of one effect of a map: its cells, and its clusters where it has some. `x_height` is drawn, in the
        unit `x_scale`; `x_cluster` says which clusters hold a cell. Hatched cells were not tested.
    alpha : float
    """
    cells, grid = cells_of(table), layout(table)
    left, right = grid.columns[0][2], grid.columns[-1][2] + 1
    width = min(0.62, 9.5 / (right - left))
    figure = canvas(2.2 + width * (right - left), 1.25 + 0.42 * max(len(grid.sites), 2))
    axes = figure.add_subplot()
    heights = cells["x_height"].to_numpy(dtype=float, na_value=np.nan)
    limit = max(float(np.nanmax(np.abs(heights))) if np.isfinite(heights).any() else 1.0, 1e-9)
    scale = ScalarMappable(colors.Normalize(-limit, limit), DIVERGING)
    for row, height in zip(cells.itertuples(), heights, strict=True):
        _square(axes, grid.at[_key(row)], row, scale=scale, height=height, number=len(cells) <= MOST_NUMBERS)
    for members, name in found_sets(table, alpha):
        _contour(axes, [grid.at[key] for key in members], name)
    _ticks(axes, grid)
    axes.set_xlim(left - 0.06, right + 0.06)
    axes.set_ylim(-0.06, len(grid.sites) + 0.06)
    bar = figure.colorbar(scale, ax=axes, shrink=0.85, pad=0.02, aspect=18)
    bar.set_label(plain(_unit(cells)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    return figure


@drawn
def largest(null: np.ndarray, table: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """The largest value of the map under each relabelling, its threshold, and the cells or clusters that were observed.

    Parameters
    ----------
    null : array of shape (n_permutations,)
    table : DataFrame
        Results rows of all effects of a map, which share the null.
    alpha : float
    """
    rows = observed_of(table)
    values, signs = _against(rows), np.sign(rows["value"].to_numpy(dtype=float))
    ordered = np.sort(np.asarray(null, dtype=float))[::-1]
    threshold = float(ordered[max(int(np.floor(alpha * len(ordered))) - 1, 0)])
    figure = canvas(5.6, 2.7)
    axes = figure.add_subplot()
    axes.hist(ordered, bins=min(60, max(10, len(ordered) // 40)), color=REST, alpha=0.75, linewidth=0)
    axes.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.18)
    axes.annotate(
        f"threshold {digits(threshold)}", (threshold, top * 1.17), va="top", fontsize=8, color=MUTED, xytext=(3, 0),
        textcoords="offset points",
    )  # fmt: skip
    for row, at, sign in zip(rows.itertuples(), values, signs, strict=True):
        name = f"cluster {row.x_cluster}" if pd.isna(row.site) else " · ".join(map(str, _key(row)))
        (mark,) = axes.plot([at, at], [0, top * 0.16], color=PLUS if sign > 0 else MINUS, linewidth=1.6)
        mark.set_gid(note_of(f"{row.effect}, {name}: {digits(at)}, p {digits(row.p_corr)}"))
    axes.set_xlabel(f"largest {LARGEST[first_known(table['p_adjust'], 'maxT')]} of the map")
    axes.set_ylabel("relabellings")
    tidy(axes, grid="y")
    return figure


def observed_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose p_corr comes from the maximum over the map: clusters, or cells."""
    rows = clusters_of(table) if first_known(table["p_adjust"]) == "cluster" else cells_of(table)
    return rows[rows["p_corr"].notna().to_numpy()]


def _against(rows: pd.DataFrame) -> np.ndarray:
    """Observed values on the scale of the null."""
    if first_known(rows["p_adjust"]) != "maxT":
        return np.abs(rows["value"].to_numpy(dtype=float))
    return directed(rows["x_z"].to_numpy(dtype=float), first_known(rows["alternative"], "two-sided"))


def cells_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells; those of clusters have no site."""
    return table[table["site"].notna().to_numpy()]


def clusters_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of clusters."""
    return table[table["site"].isna().to_numpy()]


def layout(table: pd.DataFrame) -> Grid:
    """Place the cells of a map: sites and regions in the order of the table, positions by number."""
    cells = cells_of(table)
    sites, columns, left = distinct(cells["site"]), [], 0.0
    for region in distinct(cells["region"]):
        for position in sorted(set(cells.loc[(cells["region"] == region).to_numpy(), "position"].astype(int))):
            columns.append((region, position, left))
            left += 1
        left += GAP
    at = {(site, region, position): (x, y) for y, site in enumerate(sites) for region, position, x in columns}
    return Grid(at, columns, sites)


def found_sets(table: pd.DataFrame, alpha: float) -> Iterator[tuple[list[tuple[str, str, int]], str]]:
    """Cells to draw a contour around, and a name: every found cluster, or the found cells of either sign."""
    cells = cells_of(table)
    if len(clusters_of(table)) or first_known(table["p_adjust"]) == "cluster":
        held = cells["x_cluster"].fillna("").str.split(", ") if "x_cluster" in cells else pd.Series(dtype=object)
        for row in clusters_of(table)[is_found(clusters_of(table), alpha)].itertuples():
            yield [_key(c) for c in cells[held.map(lambda k, n=row.x_cluster: n in k)].itertuples()], row.x_cluster
        return
    found = cells[is_found(cells, alpha)]
    for sign in (1, -1):
        members = [_key(c) for c in found[np.sign(found["x_height"].astype(float)) == sign].itertuples()]
        if members:
            yield members, ""


def _key(row) -> tuple[str, str, int]:
    return str(row.site), str(row.region), int(row.position)


def _square(axes: Axes, at: tuple[float, int], row, *, scale: ScalarMappable, height: float, number: bool) -> None:
    """One cell, with its numbers as a tooltip; hatched where nothing was tested."""
    known = np.isfinite(height)
    colour = colors.to_hex(scale.to_rgba(height)) if known else "none"
    box = Rectangle(at, 1, 1, facecolor=colour, edgecolor=PAPER if known else FAINT, linewidth=1.0)
    if not known:
        box.set(hatch="////", linewidth=0.0)
    place = f"{row.site} · {row.region} · position {int(row.position)}"
    said = f"{row.x_scale} = {digits(height)}, p {digits(row.p_unc)}" if known else f"{row.status}: {row.note}"
    corrected = f", corrected {digits(row.p_corr)}" if known and pd.notna(row.p_corr) else ""
    box.set_gid(note_of(f"{place}: {said}{corrected}"))
    axes.add_patch(box)
    if known and number:
        ink = LIGHT if abs(height) > 0.7 * scale.norm.vmax else DARK
        words = f"{height:.1f}".replace("-", "−")
        axes.text(at[0] + 0.5, at[1] + 0.5, words, ha="center", va="center", fontsize=7.5, color=ink)


def _contour(axes: Axes, places: list[tuple[float, int]], name: str) -> None:
    """The outline of a set of cells, with a number in the corner of its first one."""
    inside = set(places)
    for x, y in places:
        for dx, dy, ends in (
            (-1, 0, ((x, x), (y, y + 1))),
            (1, 0, ((x + 1, x + 1), (y, y + 1))),
            (0, -1, ((x, x + 1), (y, y))),
            (0, 1, ((x, x + 1), (y + 1, y + 1))),
        ):
            if (x + dx, y + dy) not in inside:
                axes.plot(*ends, color=DARK, linewidth=2.0, solid_capstyle="projecting", zorder=4)
    if name:
        x, y = min(places, key=lambda place: (-place[1], place[0]))
        axes.text(x + 0.08, y + 0.92, name, ha="left", va="top", fontsize=7, weight="bold", color=DARK, zorder=5)


def _ticks(axes: Axes, grid: Grid) -> None:
    """Sites at the left; below, the regions, and their positions where a region has several."""
    several = len(grid.columns) > len({region for region, _, _ in grid.columns})
    middle = [x + 0.5 for _, _, x in grid.columns]
    if several:
        axes.set_xticks(middle, [str(p).replace("-", "−") for _, p, _ in grid.columns])
        for region in dict.fromkeys(region for region, _, _ in grid.columns):
            own = [x for r, _, x in grid.columns if r == region]
            axes.annotate(
                shorten(region, max(6, 9 * len(own))), ((own[0] + own[-1] + 1) / 2, 0),
                xycoords=axes.get_xaxis_transform(), xytext=(0, -19), textcoords="offset points", ha="center", va="top",
                fontsize=8.5, color=INK, annotation_clip=False,
            )  # fmt: skip
        axes.set_xlabel("position in region", labelpad=16, color=MUTED, fontsize=8)
    else:
        axes.set_xticks(middle, [shorten(region, 16) for region, _, _ in grid.columns])
        if max(len(region) for region, _, _ in grid.columns) > 9:
            axes.tick_params(axis="x", rotation=30)
    axes.set_yticks(np.arange(len(grid.sites)) + 0.5, [shorten(site) for site in grid.sites])
    tidy(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _unit(cells: pd.DataFrame) -> str:
    """What the colour is, in words."""
    if first_known(cells["x_scale"], "z") == "t":
        return "t"
    strongest = "x_feature" in cells and cells["x_feature"].notna().any()
    return "z of the strongest feature" if strongest else "z"
