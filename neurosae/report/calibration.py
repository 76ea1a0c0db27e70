"""The calibration as a page: from its table to Markdown, and nothing else."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from neurosae.stats.calibrate import CELL

INTRODUCTION = """# Calibration

How often each method errs on data whose truth is known. This page and `calibration.csv` are made by

    {command}

with {n_sets} data sets per cell, seed {seed}, version {version}. alpha = .05; a rate whose true value is .05 lies in
{low:.3f}–{high:.3f} in 99 % of runs, and below {limit:.3f} in 99.9 %.

Data: sparse responses of {n_items} items in 4 frames, 200 features in blocks of 10 that correlate by .5, items reacting
differently to the condition (a fifth of the latent variance), and no effect. Rates are means over densities .01, .05,
.2, .5 and intra-item correlations 0, .3, .6 of the latent drive; the largest cell stands in parentheses. Below the band
is no error: rare features allow few values of p.

Columns in *italics* are no tests of this package. *t table* is the parametric alternative, *prompts as n* counts every
frame as an observation, and rows *plain means* average unequal numbers of frames per cell; the last two are shown
because they fail.
"""

LEVELS = """## No effect: several levels, and slopes; familywise error

100 features; `3 levels` within 32 items, groups of items of the sizes shown, or a covariate of 32 items; intra-item
correlation .3. Columns are densities. All levels at once are an F; 2 / -1 / -1 is a contrast without mirror image.
"""


def calibration_page(table: pd.DataFrame, *, command: str) -> str:
    """The calibration as a page in Markdown, made from its table alone."""
    null = table[table["kind"] == "no effect"]
    first = null.iloc[0]
    words = {key: first[key] for key in ("n_sets", "seed", "version", "low", "high", "limit", "n_items")}
    parts = [INTRODUCTION.format(command=command, **words), "## No effect: familywise error, or false discovery rate\n"]
    parts.append(_summary(null))
    worst = null[null["verdict"].eq("above") & null["role"].eq("tested")]
    high = null[null["verdict"].eq("high") & null["role"].eq("tested")]
    n_rates = null["role"].eq("tested").sum()
    parts.append(
        f"\nOf {n_rates} rates of tested methods in single cells {len(worst)} lie above the 99.9 % band, and "
        f"{len(high)} between the 99 % and the 99.9 % band.\n"
    )
    titles = {
        "effects": "## 5 % of 400 features differ: errors and power\n\nDensities .3-50 %, drive + 1.5 in one cell.\n",
        "intervals": "## Coverage of 95 % intervals of the mean difference\n\nOne at a time: features with at least 10 "
        "informative items, at least .92 wanted. Joint: the share of data sets in which all intervals cover, at least "
        ".86 (with rare features the nominal .95 is not reached).\n",
        "items x frames": "## Items and frames both random: rejections of a single test\n\nNo effect; items and frames "
        "react differently to the condition (`sd item`, `sd frame`; rest .7).\n",
    }
    for kind, title in titles.items():
        rows = table[table["kind"] == kind]
        if len(rows):
            parts += ["\n" + title, _by_cell(rows, kind)]
    levels = table[table["kind"] == "levels"]
    if len(levels):
        parts += ["\n" + LEVELS, _by_method(levels)]
    return "\n".join(parts).rstrip() + "\n"


def _by_method(rows: pd.DataFrame) -> str:
    """One line per design and method, one column per density."""
    densities, lines = sorted(rows["density"].unique()), []
    for (balance, method), part in rows.groupby(["balance", "method"], sort=False):
        rate = part.set_index("density")["rate"]
        lines.append([str(balance), str(method), *(_short(rate[d]) for d in densities)])
    return _markdown(["design", "method", *(f"{d:g}" for d in densities)], lines)


def _summary(null: pd.DataFrame) -> str:
    """Mean over cells and the largest cell, per design, balance and method."""
    lines, methods = [], list(dict.fromkeys(null["method"]))
    for (design, balance), rows in null.groupby(["design", "balance"], sort=False):
        cells = []
        for method in methods:
            rates = rows.loc[rows["method"] == method, "rate"]
            cells.append(f"{_short(rates.mean())} ({_short(rates.max())})" if len(rates) else "–")
        must_fail = " (must fail)" if balance == "plain means" else ""
        lines.append(
            [f"{design}, {balance}{must_fail}", str(rows[["density", "icc"]].drop_duplicates().shape[0]), *cells]
        )
    outside = set(null.loc[null["role"] != "tested", "method"]) - set(null.loc[null["role"] == "tested", "method"])
    head = [f"*{method}*" if method in outside else method for method in methods]
    return _markdown(["design", "cells", *head], lines)


def _by_cell(rows: pd.DataFrame, kind: str) -> str:
    """One line per cell, one column per method and measure."""
    names = list(dict.fromkeys(zip(rows["method"], rows["measure"], strict=True)))
    names = sorted(names, key=lambda name: name[1] == "power")  # errors first
    lines = []
    for key, part in rows.groupby(CELL, sort=False):
        trial = dict(zip(CELL, key, strict=True))
        place = [str(trial["n_items"]), f"{trial['density']:g}"]
        if kind == "items x frames":
            place = [f"{trial['n_items']} x {trial['balance']}", f"{trial['icc']:g}", f"{trial['density']:g}"]
        if kind == "effects":
            place = place[:1]
        values = [part.loc[(part["method"] == m) & (part["measure"] == q), "rate"] for m, q in names]
        lines.append([*place, *(_short(v.iloc[0]) if len(v) else "–" for v in values)])
    heads = {"effects": ["items"], "items x frames": ["items x frames", "sd item", "sd frame"]}
    plain = {"single test", "coverage"}
    return _markdown(
        [*heads.get(kind, ["items", "density"]), *(m if q in plain else f"{m}: {q}" for m, q in names)], lines
    )


def _short(rate: float) -> str:
    """Three digits without the leading zero."""
    return f"{rate:.3f}".removeprefix("0") if np.isfinite(rate) else "–"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
