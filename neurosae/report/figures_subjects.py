"""Figure of subjects: one number per seed or model, effect by effect."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neurosae.report.style import GROUPS, INK, MUTED, canvas, drawn, note_of, shorten, swarm, tidy
from neurosae.report.tables import is_found, place_names
from neurosae.report.wording import digits

ROWS = 24
AXES = {
    "contrast_length": "contrast length D_c of each subject, standard deviations of its null",
    "mean_contrast": "mean standardized contrast of each subject",
    "length_difference": "D_c of the first effect minus that of the second",
}


@drawn
def subject_numbers(rows: pd.DataFrame, *, alpha: float = 0.05) -> Figure:
    """A line per effect and place with one dot per subject; a bar marks what the test compares, coloured where found.

    Parameters
    ----------
    rows : DataFrame
        Results rows of one `subjects` test: site `all` is the test, other sites the subjects.
    alpha : float
        Bound on `p_corr`.
    """
    whole = rows[(rows["site"] == "all").to_numpy(dtype=bool) & rows["p_corr"].notna().to_numpy()].head(ROWS)
    each = rows[(rows["site"] != "all").to_numpy(dtype=bool)]
    measure, places, found = (
        each["stat"].iloc[0],
        place_names(whole.assign(site=whole["region"]), ["site", "position"]),
        is_found(whole, alpha),
    )
    figure = canvas(6.2, 1.0 + 0.42 * len(whole))
    axes, names = figure.add_subplot(), []
    for at, (hit, (_, row)) in enumerate(zip(found, whole.iterrows(), strict=True)):
        mine = each[(each[["effect", "region", "position"]] == row[["effect", "region", "position"]]).all(axis=1)]
        values = mine["x_z" if measure == "contrast_length" else "value"].to_numpy(dtype=float)
        for x, dy, site in zip(values, swarm(values, 0.3), mine["site"], strict=True):
            (dot,) = axes.plot(x, at + dy, "o", markersize=4.5, color=GROUPS[0] if hit else MUTED, alpha=0.8)
            dot.set_gid(note_of(f"{site}: {digits(x)}"))
        mark = values.min() if measure == "contrast_length" else values.mean()
        axes.plot([mark, mark], [at - 0.34, at + 0.34], color=INK, linewidth=1.6)
        if pd.notna(row["ci_low"]):
            axes.plot([row["ci_low"], row["ci_high"]], [at, at], color=INK, linewidth=1.2)
        names.append(shorten(row["effect"], 28) + (f"\n{shorten(places.iloc[at], 28)}" if len(whole) > 1 else ""))
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(AXES[measure])
    tidy(axes, grid="x")
    return figure
