"""Parts of sentences that the summaries of all kinds of tests share: where, how corrected, the strongest, why not."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.tables import distinct, first_known, p_intervals
from neurosae.report.wording import digits, feature_name, listed, p_words, plural

CORRECTIONS = {
    "maxT": "family-wise error held by the distribution of the maximum (max-T)",
    "stepdown": "family-wise error held by step-down max-T",
    "holm": "family-wise error held by Holm's method",
    "fdr_bh": "false discovery rate held by Benjamini and Hochberg's method",
    "fdr_by": "false discovery rate held by Benjamini and Yekutieli's method",
    "maxT+holm": "family-wise error held by max-T over places and Holm's method over models",
    "none": "no correction for multiple tests",
}
STATISTICS = {
    "mean": "the mean item contrast",
    "t": "the t statistic of the item contrasts",
    "moderated_t": "the moderated t statistic of the item contrasts",
    "signed_rank": "the signed-rank statistic of the item contrasts",
    "welch_t": "Welch's t statistic of the item means",
}


def by_effect(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each effect, in order of appearance."""
    for effect in distinct(rows["effect"]) or [""]:
        yield effect, rows[rows["effect"] == effect] if effect else rows


def where(rows: pd.DataFrame) -> str:
    """` at <regions> in <sites>`, with its leading blank."""
    regions, sites = distinct(rows["region"]), distinct(rows["site"])
    at = f" at {listed(regions)}" if regions else ""
    return f"{at} in {listed(sites) if len(sites) <= 4 else plural(len(sites), 'site')}" if sites else at


def n_units(rows: pd.DataFrame) -> int:
    """How many units the rows rest on."""
    known = rows["n_units"].dropna()
    return int(known.max()) if len(known) else 0


def held(rows: pd.DataFrame, alpha: float) -> str:
    """How the p of these rows was corrected, over how many tests, on how many items."""
    adjust = first_known(rows["p_adjust"], "none")
    words = CORRECTIONS.get(adjust, adjust)
    if adjust == "none":
        return f"Not corrected: {words}; about {alpha:.0%} of features without an effect would be counted."
    sizes = rows["n_family"].dropna()
    size = f" over {plural(int(sizes.max()), 'test')}" if len(sizes) else ""
    unit = first_known(rows["unit"], "item")
    items = plural(n_units(rows), "item") + ("" if unit == "item" else f" (exchanged: {unit})")
    return f"Corrected{size}, {words}, at {alpha:g}; {items}."


def example(row: pd.Series) -> str:
    """One row as `site/feature at region (size, estimate, p)`."""
    bounds = p_intervals(row.to_frame().T).iloc[0]
    interval = ""
    if pd.notna(row["ci_low"]) and pd.notna(row["ci_high"]):
        interval = f" [{digits(row['ci_low'])}, {digits(row['ci_high'])}]"
    kind = "p corrected" if first_known(pd.Series([row["p_adjust"]]), "none") != "none" else "p"
    p = row["p_corr"] if pd.notna(row["p_corr"]) else row["p_unc"]
    size = f"{row['eftype']} = {digits(row['effsize'])}, " if pd.notna(row["effsize"]) else ""
    estimate = f"estimate {digits(row['estimate'])}{interval}, " if pd.notna(row["estimate"]) else ""
    name = feature_name(row["site"], row["feature"])
    name = f"{name}/{row['set']}" if pd.isna(row["feature"]) and pd.notna(row["set"]) else name
    return f"{name} at {row['region']} ({size}{estimate}{kind} {p_words(p, bounds['low'], bounds['high'])})"


def why_untested(rows: pd.DataFrame) -> str:
    """What became of features that have no numbers."""
    by = rows.assign(n=rows["n_features"].astype(float).fillna(1)).groupby("status")["n"].sum()
    parts = [f"{int(n):,} {status}" for status, n in by.items()]
    reasons = distinct(rows["note"])[:3]
    return f"Features: {listed(parts)}. {' '.join(reasons)}".strip()
