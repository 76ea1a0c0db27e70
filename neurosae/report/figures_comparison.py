"""Figures of a comparison of dictionaries: what each found, and how alike the geometries are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import GROUPS, MUTED, SEQUENTIAL, canvas, drawn, shorten, tidy


@drawn
def hits(contrasts: pd.DataFrame) -> Figure:
    """Share of the tested features that were found: a group of bars per effect and place, a bar per dictionary.

    Parameters
    ----------
    contrasts : `test effect region position split site tested found share`
    """
    names = contrasts["effect"].astype(str) + " · " + contrasts["region"].astype(str)
    groups, sites = list(dict.fromkeys(names)), list(dict.fromkeys(contrasts["site"]))
    figure = canvas(6.6, 1.1 + 0.24 * len(groups) * (len(sites) + 1))
    axes = figure.subplots()
    height = 0.8 / len(sites)
    for i, site in enumerate(sites):
        rows = contrasts[contrasts["site"] == site].set_axis(names[contrasts["site"] == site], axis=0)
        rows = rows[~rows.index.duplicated()].reindex(groups)
        share = rows["share"].to_numpy(dtype=float)
        at = np.arange(len(groups)) + (i - (len(sites) - 1) / 2) * height
        axes.barh(at, 100 * np.nan_to_num(share), height * 0.9, color=GROUPS[i % len(GROUPS)], label=shorten(site))
        for y, value, found, tested in zip(at, share, rows["found"], rows["tested"], strict=True):
            words = f"{int(found)} of {int(tested):,}" if np.isfinite(value) else "not tested"
            axes.text(100 * np.nan_to_num(value) + 0.5, y, words, va="center", fontsize=7, color=MUTED)
    axes.set_yticks(range(len(groups)), [shorten(name, 32) for name in groups])
    axes.invert_yaxis()
    axes.set_xlabel("found, % of the tested features")
    axes.set_xlim(0, max(5, 100 * float(contrasts["share"].max()) * 1.2 if contrasts["share"].notna().any() else 5))
    figure.legend(loc="outside upper left", ncols=min(len(sites), 6))
    tidy(axes, grid="x")
    return figure


@drawn
def agreement(pairs: pd.DataFrame, sites: list[str]) -> Figure:
    """Rank correlation of the distances between stimuli, a square per place, a cell per two dictionaries.

    Parameters
    ----------
    pairs : `one other region position rho`
    sites : order of rows and columns
    """
    places = list(pairs[["region", "position"]].drop_duplicates().itertuples(index=False, name=None))
    side = 0.62 * len(sites) + 1.3
    figure = canvas(min(side * len(places), 11.5), side)
    for axes, (region, position) in zip(np.atleast_1d(figure.subplots(1, len(places))), places, strict=True):
        square = np.full((len(sites), len(sites)), np.nan)
        for row in pairs[(pairs["region"] == region) & (pairs["position"] == position)].itertuples():
            i, j = sites.index(str(row.one)), sites.index(str(row.other))
            square[i, j] = square[j, i] = row.rho
        axes.imshow(square, cmap=SEQUENTIAL, vmin=0, vmax=1)
        for (i, j), value in np.ndenumerate(square):
            if np.isfinite(value):
                light = value < 0.6
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if light else "black"
                )
        axes.set_xticks(range(len(sites)), [shorten(s, 14) for s in sites], rotation=45, ha="right")
        axes.set_yticks(range(len(sites)), [shorten(s, 14) for s in sites])
        axes.set_title(shorten(region) + (f", position {position}" if position else ""))
        for spine in axes.spines.values():
            spine.set_visible(False)
        tidy(axes)
    return figure
