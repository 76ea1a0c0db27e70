"""Small questions asked of a results table; the figures, the words and the page all use the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.report.wording import count_interval
from neurosae.spec.results import is_found, ranked

__all__ = [
    "KEY", "PLACE", "counts", "distinct", "first_known", "has_numbers", "is_found", "p_intervals", "place_names",
    "place_word", "ranked", "rows_found", "rows_tested",
]  # fmt: skip
PLACE = ["site", "region", "position"]
KEY = [*PLACE, "effect", "feature"]


ON_THE_MODEL = ("attribution", "attention", "heads", "logit_lens")
"""Kinds of test whose features are heads or layers, or whose values are no activations."""


def of_activations(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of tests on activations of features."""
    return table[~table["kind"].isin(ON_THE_MODEL).to_numpy(dtype=bool)]


def rows_tested(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of single features that were tested."""
    return table[table["feature"].notna().to_numpy() & has_numbers(table)]


def has_numbers(table: pd.DataFrame) -> np.ndarray:
    """Whether each row was tested: its status is ok, or degenerate (a variance of 0, and still a p)."""
    return table["status"].isin(["ok", "degenerate"]).to_numpy(dtype=bool)


def rows_found(table: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """The tested rows whose corrected p is at most alpha, the most extreme first."""
    rows = rows_tested(table)
    return ranked(rows[is_found(rows, alpha)])


def place_names(rows: pd.DataFrame, columns: Sequence[str] = PLACE) -> pd.Series:
    """A short name of each row's place: its site, and of the rest only what differs between the rows."""
    shown = [c for c in columns if c == "site" or rows[c].nunique(dropna=False) > 1]
    parts = [rows[c].map(lambda v, c=c: place_word(c, v)).astype(str) for c in shown]
    names = parts[0]
    for part in parts[1:]:
        names = names + " · " + part
    return names.astype(object)


def place_word(column: str, value: Any) -> str:
    """One part of a place in words; positions count from the aligned token, 0."""
    if value is None or pd.isna(value):
        return "–"
    return f"position {int(value)}".replace("-", "−") if column == "position" else str(value)


def first_known(values: pd.Series, default: str = "") -> str:
    """The first value that is not missing."""
    known = values.dropna()
    return str(known.iloc[0]) if len(known) else default


def distinct(values: pd.Series) -> list[str]:
    """The values that occur, in order of appearance."""
    return [str(v) for v in dict.fromkeys(values.dropna())]


def p_intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Monte-Carlo interval of each corrected p, columns `low` and `high`; NA where p was not counted by sampling.

    Stored bounds are used where they are given. Enumerating all 2^n flips is no sampling and has no interval.
    """
    rows = rows.reset_index(drop=True)
    bounds = np.full((len(rows), 2), np.nan)
    if {"x_p_low", "x_p_high"} <= set(rows.columns):
        bounds = rows[["x_p_low", "x_p_high"]].to_numpy(dtype=float)
    by_flips = (rows["p_adjust"].eq("holm") & rows["p_method"].eq("flips")).fillna(False)
    counted = rows["p_adjust"].isin(["maxT", "stepdown"]) | by_flips
    units = rows["n_units"].astype("Float64").astype(float).fillna(np.inf).clip(upper=1000)
    sampled = rows["n_perm"].astype("Float64").astype(float) < 2.0 ** (units - 1)
    for i in np.flatnonzero((counted & sampled & rows["p_corr"].notna()).to_numpy() & np.isnan(bounds[:, 0])):
        bounds[i] = count_interval(rows["p_corr"].iloc[i], rows["n_perm"].iloc[i])
    return pd.DataFrame(bounds, columns=["low", "high"])


def counts(results: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """What became of every feature that was asked about: one row per test, effect, place and split.

    `size` = `tested` + `untestable` + `dead` + `failed` features; `degenerate` and `found` of the tested ones; `rows`
    of the table.
    """
    key = ["test", "kind", "effect", *PLACE, "split"]
    part = results.assign(
        n=results["n_features"].astype(float).fillna(1.0), found=is_found(results, alpha), rows=1,
        tested=has_numbers(results),
    )  # fmt: skip
    out = []
    for names, rows in part.groupby(key, sort=False, dropna=False):
        by = {s: int(rows.loc[rows["status"] == s, "n"].sum()) for s in ("untestable", "dead", "failed", "degenerate")}
        tested = rows[rows["tested"]]
        other = int(rows["n"].sum() - tested["n"].sum()) - by["untestable"] - by["dead"] - by["failed"]
        out.append({
            **dict(zip(key, names, strict=True)), "size": int(rows["n"].sum()), "tested": int(tested["n"].sum()), **by,
            "other": other, "found": int(tested["found"].sum()), "rows": len(rows),
        })  # fmt: skip
    last = ["size", "tested", "untestable", "dead", "failed", "other", "degenerate", "found", "rows"]
    return pd.DataFrame(out, columns=[*key, *last])
