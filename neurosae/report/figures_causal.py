"""Figures of interventions: joint clamps, controls, doses, the dose x dose surface, and the sanity ladder."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import ACCENT, DIVERGING, INK, MINUS, MUTED, PLUS, REST, canvas, drawn, shorten, tidy
from neurosae.report.wording import digits


@drawn
def clamp_lines(table: pd.DataFrame, *, names: tuple[str, str]) -> Figure:
    """Mean outcome without edit, with either set and with both; normalization free beside frozen.

    Parameters
    ----------
    table : DataFrame
        Long table `site region mode norm first second mean low high`.
    names : tuple of str
        The two sets; `first` and `second` say whether each acts.
    """
    groups = list(table.groupby(["site", "region", "mode"], sort=False))
    figure = canvas(6.6, 0.7 + 2.2 * len(groups))
    grid = figure.subplots(len(groups), 2, squeeze=False, sharey="row")
    for row, ((site, region, mode), part) in enumerate(groups):  # pyright: ignore
        for axes, norm in zip(grid[row], ("free", "frozen"), strict=True):
            one = part[part["norm"] == norm]
            for second, colour in ((0, MUTED), (1, PLUS)):
                line = one[one["second"] == second].sort_values("first")
                mean = line["mean"].to_numpy(dtype=float)
                bars = np.abs(line[["low", "high"]].to_numpy(dtype=float).T - mean)
                word = f"{'with' if second else 'without'} {shorten(names[1], 16)}"
                axes.errorbar([0, 1], mean, yerr=bars, color=colour, marker="o", ms=4, lw=1.4, label=word)
            axes.set_xticks([0, 1], [f"no {shorten(names[0], 12)}", shorten(names[0], 12)])
            axes.set_xlim(-0.35, 1.35)
            axes.set_title(f"{mode}, norms {norm}", fontsize=9)
            tidy(axes, grid="y")
        grid[row, 0].set_ylabel(f"{shorten(f'{region} · {site}', 24)}\nlogit difference")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


@drawn
def control_histogram(table: pd.DataFrame) -> Figure:
    """What matched controls do, and where the target lies among them.

    Parameters
    ----------
    table : DataFrame
        Long table `site region mode contrast set value is_slope`; set -1 is the target. `label` names another measure.
    """
    groups = list(table.groupby(["site", "region", "mode", "contrast", "feature"], sort=False, dropna=False))[:12]
    n_columns = min(3, len(groups))
    figure = canvas(0.5 + 2.3 * n_columns, 0.4 + 1.9 * -(-len(groups) // n_columns))
    grid = figure.subplots(-(-len(groups) // n_columns), n_columns, squeeze=False).ravel()
    for axes, (key, part) in zip(grid, groups, strict=False):
        controls = part.loc[part["set"] >= 0, "value"].to_numpy(dtype=float)
        target = float(part.loc[part["set"] < 0, "value"].iloc[0])
        if len(controls):
            axes.hist(controls, bins=min(20, max(5, len(controls) // 6)), color=REST)
        axes.axvline(target, color=PLUS if target > 0 else MINUS, lw=2)
        axes.axvline(0, color=MUTED, lw=0.8, ls=":")
        axes.set_title(f"{shorten(f'{key[2]}: {key[3]}', 26)}\n{shorten(f'{key[1]} · {key[0]}', 26)}", fontsize=8)
        measure = "slope" if bool(part["is_slope"].iloc[0]) else "mean change"
        axes.set_xlabel(shorten(part["label"].iloc[0]) if "label" in part else measure, fontsize=8)
        tidy(axes)
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    return figure


@drawn
def dose_response(table: pd.DataFrame) -> Figure:
    """Mean change of the target at every dose with 95 % intervals, over the middle 95 % of its controls.

    Parameters
    ----------
    table : DataFrame
        Long table `site region mode contrast feature label dose mean low high control control_low control_high`.
    """
    groups = list(table.groupby(["site", "region", "mode", "contrast", "feature"], sort=False, dropna=False))[:12]
    n_columns = min(3, len(groups))
    figure = canvas(0.5 + 2.4 * n_columns, 0.4 + 2.0 * -(-len(groups) // n_columns))
    grid = figure.subplots(-(-len(groups) // n_columns), n_columns, squeeze=False).ravel()
    for axes, (key, part) in zip(grid, groups, strict=False):
        part = part.sort_values("dose")
        x, mean = part["dose"].to_numpy(dtype=float), part["mean"].to_numpy(dtype=float)
        axes.fill_between(x, part["control_low"], part["control_high"], color=REST, alpha=0.5, linewidth=0)
        axes.plot(x, part["control"], color=MUTED, lw=1.0)
        bars = np.abs(part[["low", "high"]].to_numpy(dtype=float).T - mean)
        axes.errorbar(x, mean, yerr=bars, color=PLUS, marker="o", ms=4, lw=1.4)
        axes.axhline(0, color=MUTED, lw=0.8, ls=":")
        axes.set_title(f"{shorten(f'{key[2]}: {key[3]}', 26)}\n{shorten(f'{key[1]} · {key[0]}', 26)}", fontsize=8)
        axes.set_xlabel("dose, activation units", fontsize=8)
        tidy(axes, grid="y")
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    grid[0].set_ylabel("change of the outcome")
    return figure


@drawn
def dose_surface(table: pd.DataFrame, *, names: tuple[str, str]) -> Figure:
    """Mean interaction of two sets at every pair of doses, norms free beside frozen; a ring: corrected p <= .05.

    Parameters
    ----------
    table : DataFrame
        Long table `site region first second free frozen p_corr`.
    names : tuple of str
        The two sets.
    """
    groups = list(table.groupby(["site", "region"], sort=False))
    figure = canvas(6.4, 0.6 + 2.4 * len(groups))
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for row, ((site, region), part) in enumerate(groups):  # pyright: ignore
        rows, columns = list(dict.fromkeys(part["first"])), list(dict.fromkeys(part["second"]))
        top = float(np.nanmax(np.abs(part[["free", "frozen"]].to_numpy(dtype=float)))) or 1.0
        for axes, norm in zip(grid[row], ("free", "frozen"), strict=True):
            square = part.pivot_table(index="first", columns="second", values=norm, sort=False).loc[rows, columns]
            axes.pcolormesh(square.to_numpy(dtype=float), cmap=DIVERGING, vmin=-top, vmax=top, edgecolors="none")
            for i, first in enumerate(rows):
                for j, second in enumerate(columns):
                    axes.text(j + 0.5, i + 0.5, digits(square.iloc[i, j], 2), ha="center", va="center", color=INK)
                    one = part[(part["first"] == first) & (part["second"] == second)]
                    if norm == "frozen" and pd.notna(one["p_corr"].iloc[0]) and one["p_corr"].iloc[0] <= 0.05:
                        axes.plot(j + 0.5, i + 0.18, marker="o", ms=5, mfc="none", color=ACCENT)
            axes.set_xticks(np.arange(len(columns)) + 0.5, [shorten(c, 8) for c in columns])
            axes.set_yticks(np.arange(len(rows)) + 0.5, [shorten(r, 8) for r in rows])
            axes.set_xlabel(f"dose of {shorten(names[1], 16)}")
            axes.set_title(f"norms {norm}", fontsize=9)
            tidy(axes)
        grid[row, 0].set_ylabel(f"{shorten(f'{region} · {site}', 24)}\ndose of {shorten(names[0], 16)}")
    return figure


@drawn
def ladder_bars(rows: pd.DataFrame) -> Figure:
    """The change by the features beside those by the rungs of the sanity ladder, one contrast.

    Parameters
    ----------
    rows : DataFrame
        Results rows of one contrast, site and region, with `x_rung`, `estimate`, `ci_low`, `ci_high`; the features'
        own row has no rung.
    """
    figure = canvas(6.4, 0.7 + 0.3 * len(rows))
    axes = figure.add_subplot()
    names = [str(name) if pd.notna(name) else "the features" for name in rows["x_rung"]]
    at = np.arange(len(rows))
    values = rows["estimate"].to_numpy(dtype=float)
    axes.barh(at, np.nan_to_num(values), color=[PLUS if n == "the features" else REST for n in names], height=0.62)
    for k, (low, high) in enumerate(rows[["ci_low", "ci_high"]].to_numpy(dtype=float)):
        if np.isfinite(low):
            axes.plot([low, high], [k, k], color=INK, lw=1.2)
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_yticks(at, [shorten(name, 34) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("change of the outcome")
    tidy(axes, grid="x")
    return figure
