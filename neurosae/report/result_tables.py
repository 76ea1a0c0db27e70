"""Results as rows of text for the page: what became of every feature, families, and the table of each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import counts, distinct, first_known, has_numbers, is_found, p_intervals, ranked
from neurosae.report.wording import digits, feature_name, p_words, slug

MAX_ROWS = 200
HIDDEN = ["x_z", "x_p_low", "x_p_high", "x_weights", "x_ci_method", "x_ci_dof"]
# Columns of contrasts that stay in results.csv: others on the page say the same in another unit.
DETAILS = ["x_g", "x_density_plus", "x_density_minus", "x_odds_ratio", "x_auc", "x_sign_prob", "x_d0", "x_dof"]
Cell = dict[str, Any]
Column = tuple[dict[str, str], list[Cell]]


def count_rows(study: Study) -> list[dict[str, Any]]:
    """The counts of `tables.counts`, as text."""
    others = ["factorial", "choosing", "generation", "removal"]  # their rows are not of features
    whole = study.results["kind"].isin(others).to_numpy(dtype=bool)
    table = counts(study.results[~whole], alpha_of(study))
    for name in ("position", "split", "failed", "other", "degenerate"):  # columns that would say the same in every row
        if table[name].nunique(dropna=False) <= 1 and not (name in ("failed", "degenerate") and table[name].any()):
            table = table.drop(columns=name)
    return [
        {str(k): ("" if pd.isna(v) else v) for k, v in row.items()}
        for row in table.drop(columns="kind").to_dict("records")
    ]


def families(study: Study) -> list[dict[str, Any]]:
    """Every family over which a corrected p holds, with its size, correction and smallest p."""
    rows = study.results[study.results["p_corr"].notna()]
    out = []
    for (family, adjust), part in rows.groupby(["family", "p_adjust"], sort=False, dropna=False):
        sizes = part["n_family"].dropna()
        out.append(
            {
                "family": _said(family),
                "adjust": _said(adjust),
                "n": digits(int(sizes.max())) if len(sizes) else "–",
                "tests": ", ".join(distinct(part["test"])),
                "h0": distinct(part["h0"])[:4],
                "statistic": ", ".join(distinct(part["stat"])),
                "n_perm": ", ".join(digits(int(n)) for n in sorted(set(part["n_perm"].dropna()))),
                "p_min": digits(part["p_corr"].min()),
                "p_method": ", ".join(distinct(part["p_method"])),
                "reach": digits(part["p_min"].min()),
            }
        )
    return out


def smallest_holm(study: Study) -> str:
    """The smallest corrected p over all families of the study, adjusted over families by Holm's method."""
    rows = study.results[study.results["p_corr"].notna()]
    smallest = rows.groupby(["family", "p_adjust"], dropna=False)["p_corr"].min().to_numpy(dtype=float)
    return digits(min(1.0, float(smallest.min()) * len(smallest))) if len(smallest) else "–"


def result_table(study: Study, test: str) -> dict[str, Any]:
    """The rows of one test, the strongest first, at most MAX_ROWS of them, and an account of all the others."""
    alpha = alpha_of(study)
    rows = study.results[study.results["test"] == test]
    numbered = ranked(rows[has_numbers(rows)])
    shown = numbered.head(MAX_ROWS).reset_index(drop=True)
    remarks, shown["note"] = _shared_notes(shown["note"])
    columns = [(head, cells) for head, cells in _columns(shown) if any(c["text"] not in ("", "–") for c in cells)]
    columns = columns or [
        ({"label": "row", "about": "", "kind": "text"}, [{"text": "", "sort": "", "class": ""}] * len(shown))
    ]
    found = is_found(shown, alpha)
    silent = rows[~has_numbers(rows)]
    notes = silent.assign(n=silent["n_features"].astype(float).fillna(1)).groupby(
        ["status", "note"], sort=False, dropna=False
    )["n"]
    silenced: list[Any] = list(notes.sum().items())
    return {
        "id": slug(test),
        "heads": [h for h, _ in columns],
        "rows": [{"found": bool(found[i]), "cells": [cells[i] for _, cells in columns]} for i in range(len(shown))],
        "n_shown": len(shown),
        "n_numbered": len(numbered),
        "n_rows": len(rows),
        "n_found": int(is_found(numbered, alpha).sum()),
        "silent": [{"status": _said(s), "note": _said(n), "n": f"{int(total):,}"} for (s, n), total in silenced],
        "n_silent_rows": len(silent),
        "remarks": remarks,
    }


def _shared_notes(notes: pd.Series) -> tuple[list[str], pd.Series]:
    """The parts of the notes that every row has, said once, and what is left of each note."""
    parts = [_said(note).split("; ") for note in notes]
    shared = [p for p in dict.fromkeys(parts[0] if parts else []) if p and all(p in other for other in parts)]
    left = ["; ".join(p for p in own if p not in shared) for own in parts]
    return shared, pd.Series(left, index=notes.index, dtype="string")


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    """Heads and cells in display order; a column that says the same for every row is left out by what follows."""
    for key, label, about in (
        ("name", "feature", "site / index of the feature in its dictionary"),
        ("effect", "effect", "effect or model"),
        ("site", "site", "hook point and dictionary"),
        ("region", "region", "where in the text"),
        ("position", "position", "0 is the aligned token"),
        ("set", "set", "name of the feature set"),
    ):
        cells = _words(rows, key)
        if key == "name" and not rows["feature"].notna().any():
            continue
        if key == "site" and rows["feature"].notna().all():
            continue
        one = len({c["text"] for c in cells}) <= 1  # what is the same in every row is said above the table
        if key == "name" or not one or (key == "effect" and rows["feature"].isna().all()):
            yield {"label": label, "about": about, "kind": "text"}, cells
    yield from _numbers(rows)
    for key, label in (("status", "status"), ("note", "note")):
        cells = _words(rows, key)
        if len({c["text"] for c in cells}) > 1:  # what all rows share is a remark above the table
            yield {"label": label, "about": "", "kind": "text long" if key == "note" else "text"}, cells


def _yes(values: pd.Series) -> list[Cell]:
    texts = ["" if pd.isna(v) else "yes" if v else "no" for v in values]
    return [{"text": t, "sort": t, "class": ""} for t in texts]


def _words(rows: pd.DataFrame, key: str) -> list[Cell]:
    if key == "name":
        texts = [feature_name(s, f) for s, f in zip(rows["site"], rows["feature"], strict=True)]
    else:
        texts = [_said(v) for v in rows[key]]
    return [{"text": t, "sort": t, "class": ""} for t in texts]


def _numbers(rows: pd.DataFrame) -> Iterator[Column]:
    level = rows["ci_level"].dropna()
    method = ", ".join(distinct(rows["x_ci_method"])) if "x_ci_method" in rows else ""
    interval = (
        f"estimate and {level.iloc[0]:.0%} interval{f' ({method})' if method else ''}" if len(level) else "estimate"
    )
    each, bounds = [rows.iloc[i] for i in range(len(rows))], p_intervals(rows)
    corrected = [p_words(*p) for p in zip(rows["p_corr"], bounds["low"], bounds["high"], strict=True)]
    yield _column(
        "estimate", interval, rows["estimate"], texts=[_with_interval(r, "estimate") for r in each], sign=True
    )
    yield _column("effect size", ", ".join(distinct(rows["eftype"])), rows["effsize"], sign=True)
    yield _column("statistic", ", ".join(distinct(rows["stat"])), rows["value"], sign=True)
    yield _column("p", "uncorrected: " + ", ".join(distinct(rows["p_method"])), rows["p_unc"])
    about = "with its Monte-Carlo interval; " + ", ".join(distinct(rows["p_adjust"]))
    yield _column("p corrected", about, rows["p_corr"], texts=corrected)
    hidden = HIDDEN if first_known(rows["kind"]) != "contrast" else HIDDEN + DETAILS
    hidden = [name for name in hidden if name != "x_auc" or first_known(rows["eftype"]) == "d_z"]
    about = "units whose contrast is not zero"
    yield _column("informative", about, rows["n_informative"], texts=[_of(r) for r in each])
    for name in rows.columns:
        if name.startswith("x_") and name not in hidden:
            label = name[2:].replace("_", " ")
            if pd.api.types.is_bool_dtype(rows[name]):
                yield {"label": label, "about": name, "kind": "text"}, _yes(rows[name])
            elif pd.api.types.is_numeric_dtype(rows[name]):
                yield _column(label, name, rows[name].astype("Float64"))
            else:
                yield {"label": label, "about": name, "kind": "text"}, _words(rows, name)


def _column(label: str, about: str, values: pd.Series, *, texts: list[str] | None = None, sign: bool = False) -> Column:
    """A column of numbers: three digits to read, the stored number to sort by."""
    numbers = values.to_numpy(dtype=float, na_value=np.nan)
    classes = [("plus" if v > 0 else "minus" if v < 0 else "") if sign else "" for v in numbers]
    cells = [
        {"text": t, "sort": "" if np.isnan(v) else repr(float(v)), "class": c}
        for t, v, c in zip(texts or [digits(v) for v in numbers], numbers, classes, strict=True)
    ]
    return {"label": label, "about": about, "kind": "number"}, cells


def _with_interval(row: pd.Series, column: str) -> str:
    if pd.isna(row["ci_low"]) or pd.isna(row["ci_high"]) or pd.isna(row[column]):
        return digits(row[column])
    return f"{digits(row[column])} [{digits(row['ci_low'])}, {digits(row['ci_high'])}]"


def _of(row: pd.Series) -> str:
    if pd.isna(row["n_informative"]):
        return "–"
    return (
        f"{int(row['n_informative'])} of {int(row['n_units'])}"
        if pd.notna(row["n_units"])
        else str(int(row["n_informative"]))
    )


def _said(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(value)
