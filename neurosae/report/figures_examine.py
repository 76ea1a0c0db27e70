"""The dashboard of a site: leading features of every list, text by text, category by category, and where they lie."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.examine.profiles import leading
from neurosae.report.style import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    PLUS,
    REST,
    SEQUENTIAL,
    canvas,
    drawn,
    note_of,
    shorten,
    tidy,
)
from neurosae.report.tables import distinct
from neurosae.report.wording import digits

LISTS = {
    "strongest": ("Strongest", "max", "largest activation"),
    "frequent": ("Most frequent", "density", "share of texts, active"),
    "selective": ("Most selective", "sparseness", "lifetime sparseness"),
    "legacy": ("Fewest strong texts", "n_strong", "strong texts"),
    "composite": ("Composite", "composite", "100 × share strong × mean"),
    "specialist": ("Specialists", "z", "z of the leading category"),
}
"""Lists of the dashboard: title, column of the scores, what the axis says."""


@drawn
def leaders(scores: pd.DataFrame, *, alpha: float = 0.05, top: int = 10) -> Figure:
    """The first features of every list at one site, a panel per list; specialists that were found are filled.

    Parameters
    ----------
    scores : DataFrame
        Extra `scores` of a `specialists` test, rows of one site and region.
    alpha : float
        Bound on the corrected p of the leading category.
    top : int
    """
    figure = canvas(8.6, 1.5 + 2 * (0.2 * top + 0.5))
    grid = figure.subplots(2, 3)
    for axes, (name, (title, column, words)) in zip(grid.ravel(), LISTS.items(), strict=True):
        rows = leading(scores, name, top).reset_index(drop=True)
        found = (rows["p_corr"] <= alpha).to_numpy(dtype=bool)
        for i, row in rows.iterrows():
            filled = name == "specialist" and found[i]
            (bar,) = axes.barh(i, row[column], height=0.7, color=ACCENT if filled else REST)
            bar.set_gid(note_of(_about(row)))
        own = [f"{row['feature']} {row['category']}" if name == "specialist" else str(row["feature"])
               for _, row in rows.iterrows()]  # fmt: skip
        axes.set_yticks(range(len(rows)), [shorten(label, 16) for label in own])
        axes.set_ylim(top - 0.4, -0.6)
        axes.set_title(title)
        axes.set_xlabel(words + _tied(scores, name, column, top=top))
        tidy(axes, grid="x")
    return figure


def _tied(scores: pd.DataFrame, name: str, column: str, *, top: int) -> str:
    """How many features share the last shown value, where not all of them are shown."""
    every = leading(scores, name, len(scores))[column].round(9)
    last = every.iloc[min(top, len(every)) - 1] if len(every) else np.nan
    n = int((every == last).sum())
    return f"\n({n} features share {digits(last)})" if n > int((every.iloc[:top] == last).sum()) else ""


def _about(row: pd.Series) -> str:
    said = (
        f"feature {row['feature']}: largest {digits(row['max'])}, active in {row['n_active']} of {row['n_texts']}, "
        f"strong in {row['n_strong']}"
    )
    if pd.isna(row["category"]):
        return said
    return f"{said}; leads {row['category']}: z {digits(row['z'])}, p corrected {digits(row['p_corr'])}"


def found_first(scores: pd.DataFrame, features: list[int], *, alpha: float, most: int) -> pd.DataFrame:
    """Features in the order of a heat map: found specialists by category and z, then the rest by z."""
    rows = scores[scores["feature"].isin(features) & scores["z"].notna()].copy()
    rows["found"] = rows["p_corr"] <= alpha
    rows = rows.sort_values(["found", "z", "feature"], ascending=[False, False, True], kind="stable").head(most)
    order = distinct(rows["category"])
    rows["at"] = [order.index(category) for category in rows["category"]]
    return rows.sort_values(["found", "at", "z"], ascending=[False, True, False], kind="stable").reset_index(drop=True)


@drawn
def text_map(texts: pd.DataFrame, scores: pd.DataFrame, *, alpha: float = 0.05, most: int = 24) -> Figure:
    """Features x texts grouped by category: activation as a share of the feature's largest.

    Parameters
    ----------
    texts : DataFrame
        Extra `profiles` of a `specialists` test, rows of one site and region.
    scores : DataFrame
        Extra `scores`, rows of the same site and region; found specialists stand first, above a line.
    alpha : float
    most : int
        Rows of the map.
    """
    rows = found_first(scores, texts["feature"].unique().tolist(), alpha=alpha, most=most)
    columns = texts.drop_duplicates("stimulus")
    groups = distinct(columns["category"])
    columns = columns.assign(at=columns["category"].map(groups.index)).sort_values("at", kind="stable")
    wide = texts.pivot(index="feature", columns="stimulus", values="activation")
    X = wide.loc[rows["feature"], columns["stimulus"]].to_numpy()
    X = X / np.where(X.max(axis=1, keepdims=True) > 0, X.max(axis=1, keepdims=True), 1)
    figure = canvas(8.6, 1.2 + 0.19 * len(rows))
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(X, cmap=SEQUENTIAL, vmin=0, vmax=1, rasterized=True)
    edges = np.flatnonzero(np.diff(columns["at"].to_numpy())) + 1
    axes.vlines(edges, 0, len(rows), color="white", linewidth=1.4)
    n_found = int(rows["found"].sum())
    if 0 < n_found < len(rows):
        axes.axhline(n_found, color=PLUS, linewidth=1.6)
    middle = np.r_[0, edges, len(columns)]
    axes.set_xticks((middle[:-1] + middle[1:]) / 2, [shorten(group, 14) for group in groups])
    names = [f"{row['feature']} {row['category']}" + (" *" if row["found"] else "") for _, row in rows.iterrows()]
    axes.set_yticks(np.arange(len(rows)) + 0.5, [shorten(name, 22) for name in names])
    axes.invert_yaxis()
    tidy(axes)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.025, pad=0.01)
    bar.set_label("share of its largest activation")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    return figure


@drawn
def category_bars(texts: pd.DataFrame, scores: pd.DataFrame, *, alpha: float = 0.05, most: int = 9) -> Figure:
    """Share of strong texts in every category, a panel per leading feature; its own category is coloured.

    Parameters
    ----------
    texts, scores : DataFrame
        Extras of a `specialists` test, rows of one site and region.
    alpha : float
        The own category is filled where it was found.
    most : int
    """
    rows = found_first(scores, texts["feature"].unique().tolist(), alpha=alpha, most=most)
    groups = distinct(texts["category"])
    share = texts.groupby(["feature", "category"], sort=False)["strong"].mean()
    columns = min(len(rows), 3)
    lines = -(-len(rows) // columns)
    figure = canvas(0.8 + 2.6 * columns, 0.5 + 1.75 * lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (_, row) in zip(grid.ravel(), rows.iterrows(), strict=False):
        values = [float(share[row["feature"], group]) for group in groups]
        for k, (group, value) in enumerate(zip(groups, values, strict=True)):
            own = group == row["category"]
            filled = own and row["found"]
            (bar,) = axes.barh(
                k, value, height=0.72, color=(ACCENT if filled else "none") if own else REST,
                edgecolor=ACCENT if own else REST,
            )  # fmt: skip
            bar.set_gid(note_of(f"{group}: strong in {digits(value)} of its texts"))
        axes.set_title(shorten(f"{row['feature']} · {row['category']}", 26))
        axes.set_yticks(range(len(groups)), [shorten(group, 14) for group in groups])
        axes.set_xlim(0, 1)
        tidy(axes, grid="x")
    for axes in grid.ravel()[len(rows) :]:
        axes.set_axis_off()
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("share of strong texts")
    return figure


@drawn
def landscape(scores: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """Where features lie: how many texts they are active in against their selectivity, and how dense they are.

    Parameters
    ----------
    scores : DataFrame
        Extra `scores` of a `specialists` test, rows of one site and region.
    alpha : float
        Specialists with a corrected p at most this are coloured and named.
    """
    figure = canvas(8.2, 3.3)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    found = (scores["p_corr"] <= alpha).to_numpy(dtype=bool)
    left.scatter(scores["density"][~found], scores["sparseness"][~found], s=9, color=REST, linewidths=0)
    for _, row in scores[found].sort_values("z", ascending=False).iterrows():
        dot = left.scatter(row["density"], row["sparseness"], s=22, color=ACCENT, linewidths=0)
        dot.set_gid(note_of(_about(row)))
    taken: list[tuple[float, float]] = []
    for _, row in scores[found].nlargest(8, "z").iterrows():
        x, y = float(row["density"]), float(row["sparseness"])
        if all(abs(x - a) > 0.25 or abs(y - b) > 0.07 for a, b in taken):  # names that would lie on each other
            label = shorten(f"{row['feature']} {row['category']}", 20)
            left.annotate(label, (x, y), (6, 5), textcoords="offset points", color=INK)
            taken.append((x, y))
    left.set_xlabel("share of texts where it is active")
    left.set_ylabel("lifetime sparseness")
    left.set_title("Every feature that is active")
    tidy(left, grid="both")
    right.hist(scores["density"], bins=np.linspace(0, 1, 21), color=REST, edgecolor=FAINT)
    if found.any():
        right.hist(scores["density"][found], bins=np.linspace(0, 1, 21), color=ACCENT)
    right.set_yscale("log")
    right.set_xlabel("share of texts where it is active")
    right.set_ylabel("features", color=MUTED)
    right.set_title("Densities")
    tidy(right, grid="y")
    return figure
