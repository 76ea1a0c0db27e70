"""Figures of patching: which places carry the difference between two texts, as a grid of things and regions."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from neurosae.report.style import DIVERGING, FAINT, INK, canvas, drawn, note_of, plain, shorten, tidy
from neurosae.report.tables import distinct, is_found
from neurosae.report.wording import digits, feature_name

DARK, LIGHT = "#101418", "#fdfdfd"  # on coloured squares, in light and in dark mode
MOST_ROWS = 64  # things that are drawn; more are cut to those with the largest effect
MOST_NUMBERS = 80


def thing_name(row: pd.Series) -> str:
    """What was patched, short: layer and hook point, layer and head, or site and feature.

    Examples
    --------
    >>> row = pd.Series({"site": "blocks.2.attn.hook_z.h3", "feature": None, "set": "whole vector"})
    >>> thing_name(row), thing_name(row.replace("blocks.2.attn.hook_z.h3", "blocks.0.hook_resid_post"))
    ('layer 2, head 3', 'layer 0, resid_post')
    >>> thing_name(row.replace("blocks.2.attn.hook_z.h3", "blocks.2.attn.hook_q.h3"))
    'layer 2, head 3 q'
    >>> thing_name(pd.Series({"site": "blocks.2.attn.hook_pattern.h3", "feature": None, "set": "attention to noun"}))
    'layer 2, head 3, attention to noun'
    >>> thing_name(pd.Series({"site": "late", "feature": 12, "set": "feature"}))
    'late/12'
    """
    site = str(row["site"])
    found = re.fullmatch(r"blocks\.(\d+)\.(?:(?:attn|mlp)\.)?hook_(\w+?)(?:\.h(\d+))?", site)
    if found and pd.isna(row["feature"]) and found[2] == "pattern":
        return f"layer {found[1]}, head {found[3]}, {row['set']}"
    if found and pd.isna(row["feature"]) and row["set"] == "whole vector":
        part = "" if found[2] == "z" else f" {found[2]}"
        return f"layer {found[1]}, " + (f"head {found[3]}{part}" if found[3] else found[2])
    name = feature_name(site, row["feature"])
    return name if pd.notna(row["feature"]) or row["set"] == "whole vector" else f"{name}, {row['set']}"


@drawn
def patching(rows: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """Share of the difference that every place carries; noising and denoising side by side.

    Parameters
    ----------
    rows : DataFrame
        Results rows of one test of patching. `x_share` is drawn, or the change in units of the outcome where no place
        has a share. A frame marks corrected p of at most `alpha`; hatched places lead nowhere or hold the same in both
        texts.
    alpha : float
    """
    rows = rows.assign(thing=[thing_name(row) for _, row in rows.iterrows()], found=is_found(rows, alpha))
    shared = "x_share" in rows and rows["x_share"].notna().any()
    values = rows["x_share" if shared else "estimate"].to_numpy(dtype=float, na_value=np.nan)
    rows = rows.assign(drawn=values)
    size = rows.groupby("thing")["drawn"].apply(lambda v: v.abs().max()).fillna(0).sort_values(ascending=False)
    kept = set(size.index[:MOST_ROWS])
    things = [name for name in distinct(rows["thing"]) if name in kept]
    regions, effects = distinct(rows["region"]), distinct(rows["effect"])
    width = 0.75 if len(regions) > 2 else 0.9
    figure = canvas(2.4 + width * len(regions) * len(effects) + 0.5, 1.5 + 0.27 * max(len(things), 3))
    panels = np.atleast_1d(figure.subplots(1, len(effects), sharey=True))
    limit = max(float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0, 1.0 if shared else 1e-9)
    scale = ScalarMappable(colors.Normalize(-limit, limit), DIVERGING)
    for axes, effect in zip(panels, effects, strict=True):
        part = rows[(rows["effect"] == effect) & rows["thing"].isin(things)]
        for _, row in part.iterrows():
            at = regions.index(row["region"]), things.index(row["thing"])
            _square(axes, at, row, scale=scale, number=len(things) * len(regions) <= MOST_NUMBERS)
        axes.set_title(plain(f"{part['x_direction'].iloc[0]}: {shorten(effect, 22)}"), fontsize=8.5)
        axes.set_xticks(np.arange(len(regions)) + 0.5, [shorten(region, 14) for region in regions])
        axes.set_yticks(np.arange(len(things)) + 0.5, [shorten(name, 26) for name in things])
        axes.set_xlim(-0.05, len(regions) + 0.05)
        axes.set_ylim(len(things) + 0.05, -0.05)
        for side in axes.spines.values():
            side.set_visible(False)
        tidy(axes)
    tall = 1.5 + 0.27 * max(len(things), 3)
    bar = figure.colorbar(scale, ax=list(panels), shrink=min(0.85, 2.2 / tall), pad=0.02, aspect=14)
    bar.set_label("share of the difference" if shared else "change of the outcome")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    return figure


def _square(axes: Axes, at: tuple[int, int], row: pd.Series, *, scale: ScalarMappable, number: bool) -> None:
    left, top = at
    value = row["drawn"]
    name = f"{row['thing']} at {row['region']}"
    if pd.isna(value):
        reason = "" if pd.isna(row["note"]) else f": {row['note']}"
        hatched = Rectangle((left + 0.03, top + 0.03), 0.94, 0.94, facecolor="none", edgecolor=FAINT, hatch="////")
        hatched.set_linewidth(0)
        hatched.set_gid(note_of(f"{name}{reason}"))
        axes.add_patch(hatched)
        return
    colour = scale.to_rgba(value)
    edge = INK if row["found"] else "none"
    square = Rectangle((left + 0.03, top + 0.03), 0.94, 0.94, facecolor=colour, edgecolor=edge, linewidth=1.3)
    square.set_gid(note_of(f"{name}: {digits(value)}, p corrected {digits(row['p_corr'])}"))
    axes.add_patch(square)
    if number:
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.55
        text = f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
        axes.text(left + 0.5, top + 0.52, text, ha="center", va="center", fontsize=7, color=DARK if dark else LIGHT)
