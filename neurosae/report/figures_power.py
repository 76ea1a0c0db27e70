"""The figure of a power analysis: power over the number of items, one line per method."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import FAINT, GROUPS, MARKERS, MUTED, canvas, drawn, file_bytes, plain, tidy
from neurosae.spec.files import write_atomic

NAMES = {"maxT": "max-T", "fdr_bh": "BH", "fdr_by": "BY", "stepdown": "step-down", "set": "all features together"}


@drawn
def power_curves(table: pd.DataFrame, *, target: float = 0.8) -> Figure:
    """Power over the number of items: a line with its interval per method, the noncentral t dashed.

    Parameters
    ----------
    table : DataFrame
        As `power` returns it.
    target : float
        The power that is asked for, drawn as a line.
    """
    figure = canvas(5.8, 4.0)
    axes = figure.add_subplot()
    axes.axhline(target, color=FAINT, linewidth=0.9, zorder=0)
    simulated = [method for method in table["method"].unique() if method != "analytic"]
    for k, method in enumerate(simulated):
        rows = table[table["method"] == method].sort_values("n_items")
        x, colour = rows["n_items"].to_numpy(), GROUPS[k % len(GROUPS)]
        axes.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
        axes.plot(x, rows["power"], color=colour, marker=MARKERS[k], markersize=4.5, label=NAMES.get(method, method))
    rows = table[table["method"] == "analytic"].sort_values("n_items")
    if len(rows):
        axes.plot(
            rows["n_items"], rows["power"], color=MUTED, linewidth=1.1, linestyle=(0, (4, 3)), label="noncentral t"
        )
    axes.set_ylim(0, 1.02)
    axes.set_xticks(sorted(table["n_items"].unique()))
    axes.set_xlabel("number of items")
    axes.set_ylabel("power")
    axes.set_title(plain(f"noise: {table['noise'].iloc[0]}"), fontweight="normal")
    axes.legend(loc="upper left", handlelength=1.6)
    tidy(axes, grid="y")
    return figure


def write_power(folder: Path, table: pd.DataFrame) -> tuple[Path, Path]:
    """Write the figure of a power table into a folder, as power.svg and power.png."""
    svg, png = file_bytes(power_curves(table))
    paths = folder / "power.svg", folder / "power.png"
    for path, content in zip(paths, (svg, png), strict=True):
        write_atomic(path, content)
    return paths
