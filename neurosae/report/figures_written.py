"""Figures of steered texts and removed differences: items beside control sets, what is left against what it costs."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import INK, MINUS, MUTED, PLUS, canvas, drawn, shorten, swarm, tidy
from neurosae.report.tables import is_found

MARKS = ("o", "s", "^", "D", "v")


@drawn
def steering(
    rows: pd.DataFrame, items: pd.DataFrame, controls: pd.DataFrame, *, unit: str, alpha: float = 0.05
) -> Figure:
    """Change of the score of every item under every condition, and beside it those of the control sets.

    Parameters
    ----------
    rows : results rows, one per condition
    items : long table `item condition plain steered`
    controls : long table `condition control change`; control -1 is the target
    unit : what the score is in
    """
    found, names = is_found(rows, alpha), list(dict.fromkeys(items["condition"]))
    figure = canvas(7.4, 1.2 + 0.55 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    for at, (condition, (_, row)) in enumerate(zip(names, rows.iterrows(), strict=True)):
        own = items[(items["condition"] == condition).to_numpy(bool)]
        values = (own["steered"] - own["plain"]).to_numpy(float)
        colour = (PLUS if values.mean() > 0 else MINUS) if found[at] else MUTED
        left.scatter(values, at + swarm(values, 0.3), s=9, c=colour, alpha=0.55, linewidths=0)
        left.plot([values.mean()] * 2, [at - 0.34, at + 0.34], color=INK, linewidth=1.6)
        if pd.notna(row["ci_low"]):
            left.plot([row["ci_low"], row["ci_high"]], [at, at], color=INK, linewidth=1.2)
        mine = controls[(controls["condition"] == condition).to_numpy(bool)]
        others = mine.loc[(mine["control"] >= 0).to_numpy(bool), "change"].to_numpy(float)
        right.scatter(others, at + swarm(others, 0.3), s=7, c=MUTED, alpha=0.6, linewidths=0)
        right.scatter([values.mean()], [at], s=42, c=colour, marker="D", edgecolors=INK, linewidths=0.8, zorder=3)
    for axes in (left, right):
        axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
        tidy(axes, grid="x")
    left.set_yticks(np.arange(len(names)), [shorten(name, 34) for name in names])
    left.invert_yaxis()
    left.set_xlabel(f"each item, {unit}")
    right.set_xlabel("means: features (diamond), controls")
    return figure


@drawn
def removal_costs(strengths: pd.DataFrame) -> Figure:
    """What is left of a difference against the divergence on neutral text, one line per method.

    Parameters
    ----------
    strengths : long table `method strength kl bias half clean matched`
    """
    figure = canvas(5.6, 3.4)
    axes = figure.add_subplot()
    clean = float(strengths["clean"].iloc[0])
    colours = (PLUS, MINUS, INK, MUTED)
    for k, (method, part) in enumerate(strengths.groupby("method", sort=False)):
        own = part[~part["matched"].to_numpy(bool)].sort_values("strength")
        x, y = np.r_[0, own["kl"]], np.r_[clean, own["bias"]]
        colour, mark = colours[k % len(colours)], MARKS[k % len(MARKS)]
        axes.plot(x, y, color=colour, linewidth=1.3, marker=mark, markersize=5, label=str(method))
        axes.vlines(own["kl"], own["bias"] - own["half"], own["bias"] + own["half"], color=colour, linewidth=1)
    matched = strengths[strengths["matched"].to_numpy(bool)]
    if len(matched):
        axes.axvline(float(matched["kl"].mean()), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_xlabel("cost: KL on neutral text, nats per token")
    axes.set_ylabel("bias left, logit difference")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    tidy(axes, grid="y")
    return figure


@drawn
def removal_cells(cells: pd.DataFrame) -> Figure:
    """Mean logit difference of every cell, before any edit and after each method at full strength.

    Parameters
    ----------
    cells : long table `cell method strength logit_diff`
    """
    kept = cells[(cells["strength"].isin([0.0, 1.0])).to_numpy(bool)].drop_duplicates(["cell", "method"])
    methods, names = list(dict.fromkeys(kept["method"])), list(dict.fromkeys(kept["cell"]))
    figure = canvas(5.6, 1.0 + 0.42 * len(names))
    axes = figure.add_subplot()
    colours = (MUTED, PLUS, MINUS, INK)
    for k, method in enumerate(methods):
        own = kept[(kept["method"] == method).to_numpy(bool)].set_index("cell")["logit_diff"]
        at = np.arange(len(names)) + (k - (len(methods) - 1) / 2) * 0.13
        axes.scatter(own.reindex(names), at, s=34, c=colours[k % 4], marker=MARKS[k % len(MARKS)], label=method)
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_yticks(np.arange(len(names)), [shorten(name, 30) for name in names])
    axes.set_ylim(len(names) - 0.55, -0.45)
    axes.set_xlabel("mean logit difference towards the form of the own level")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    tidy(axes, grid="x")
    return figure
