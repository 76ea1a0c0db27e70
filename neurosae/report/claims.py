"""Parts of sentences that the summaries of all kinds of tests share: where, how corrected, the strongest, why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pandas as pd

from neurosae.report.parts import Statement
from neurosae.report.stored import Study, compiled_effects
from neurosae.report.tables import PLACE, distinct, first_known, p_intervals, place_word
from neurosae.report.wording import digits, feature_name, listed, p_words, plural
from neurosae.spec.results import MIXED

CORRECTIONS = {
    "maxT": "family-wise error held by the distribution of the maximum (max-T)",
    "stepdown": "family-wise error held by step-down max-T",
    "holm": "family-wise error held by Holm's method",
    "fdr_bh": "false discovery rate held by Benjamini and Hochberg's method",
    "fdr_by": "false discovery rate held by Benjamini and Yekutieli's method",
    "storey": "false discovery rate held by Storey's q",
    "bb": "false discoveries held inside sites that were selected first (Benjamini and Bogomolov)",
    "maxT+holm": "family-wise error held by max-T over places and Holm's method over models or effects",
    "cluster": "family-wise error held by the largest cluster mass of the map",
    "tfce": "family-wise error held by the largest exact TFCE of the map",
    "none": "no correction for multiple tests",
}
STATISTICS = {
    "mean": "the mean item contrast",
    "t": "the t statistic of the item contrasts",
    "moderated_t": "the moderated t statistic of the item contrasts",
    "signed_rank": "the signed-rank statistic of the item contrasts",
    "welch_t": "Welch's t statistic of the item means",
    "slope": "the t statistic of the slope on a covariate",
}


UNRELIABLE = r"interval unreliable: \d+ informative items"
OWN = re.compile(UNRELIABLE + "|the differences are all equal|localizer items:")
"""Notes about one row; what else stands in a note is about the whole test."""


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
    few = re.search(UNRELIABLE, "" if pd.isna(row["note"]) else str(row["note"]))
    weak = f"; {few[0]}" if few and interval else ""
    return f"{name} at {row['region']} ({size}{estimate}{kind} {p_words(p, bounds['low'], bounds['high'])}{weak})"


def why_untested(rows: pd.DataFrame) -> str:
    """What became of features that have no numbers."""
    by = rows.assign(n=rows["n_features"].astype(float).fillna(1)).groupby("status")["n"].sum()
    parts = [f"{int(n):,} {status}" for status, n in by.items()]
    reasons = distinct(rows["note"])[:3]
    return f"Features: {listed(parts)}. {' '.join(reasons)}".strip()


def flat_rows(tested: pd.DataFrame, alpha: float) -> str:
    """Rows that reach alpha without any variance between items: said, and not counted as found."""
    flat = tested[(tested["status"] == "degenerate") & (tested["p_corr"].astype(float) <= alpha)]
    if not len(flat):
        return ""
    it = "it is" if len(flat) == 1 else "they are"
    return (
        f" {plural(len(flat), 'more test')} reached p ≤ {alpha:g} with the same difference in every item (no variance, "
        f"so no effect size or interval); {it} not counted as found."
    )


def shared_cautions(rows: pd.DataFrame) -> list[str]:
    """What the notes of the found rows say about the whole test: an approximate relabelling, items left out."""
    parts = dict.fromkeys(p for note in rows["note"].dropna().unique() for p in str(note).split("; "))
    said = "; ".join(part.rstrip(".") for part in parts if part and not OWN.match(part))
    return [f"{said}.", *mixed_families(rows)] if said else mixed_families(rows)


def mixed_families(rows: pd.DataFrame) -> list[str]:
    """Families that join tests which are relabelled in different ways, in a sentence each."""
    return [
        f"The tests of this family are {MIXED}{family.partition(MIXED)[2]}."
        for family in distinct(rows["family"])
        if MIXED in family
    ]


def named_cautions(study: Study, test: str, effect: str) -> list[str]:
    """The recorded warnings that name this test, its effect, or a factor of the effect."""
    made = compiled_effects(study).get(effect)
    names = (effect, *(made.factors if made is not None else ()))
    said = [str(w) for w in study.provenance.get("warnings") or []]
    about = "|".join(rf"'{re.escape(name)}'|(carries|with) {re.escape(name)}\b" for name in names if name)
    return [w for w in said if w.startswith(f"{test}:") or (about and re.search(about, w))]


def other_cautions(study: Study, statements: Iterable[Statement]) -> list[str]:
    """The recorded warnings that stand beside no statement."""
    beside = {caution for one in statements for caution in one.cautions}
    return [str(w) for w in study.provenance.get("warnings") or [] if str(w) not in beside]


def failures(rows: pd.DataFrame) -> str:
    """The places where a test could not be computed, each with its reason: one row stands for all features there."""
    failed = rows[rows["status"].eq("failed").to_numpy(dtype=bool)]
    if not len(failed):
        return ""
    names = [
        " · ".join(place_word(c, row[c]) for c in PLACE if c != "site" and pd.notna(row[c])) or str(row["site"])
        for _, row in failed.iterrows()
    ]
    reasons = " ".join(f"{str(note).rstrip('.')}." for note in distinct(failed["note"])[:3])
    return f" Failed at {listed(dict.fromkeys(names))}: {reasons}"
