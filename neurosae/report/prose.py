"""What was found, in plain words, test by test and effect by effect; nothing found is said as plainly."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from neurosae.design.confounds import lexical_table
from neurosae.report.stored import Study, alpha_of, compiled_effects, effect_ends, section, tested_stimuli
from neurosae.report.tables import counts, distinct, first_known, is_found, p_intervals, ranked, rows_found, rows_tested
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


RANKED = 0.3  # reliability of an RDM below which models are not ranked


@dataclass(frozen=True)
class Statement:
    """One sentence of the summary.

    Attributes
    ----------
    test, effect : what it speaks about
    verdict : "found", "nothing", "untested" or "exploratory"
    number : the figure in large print, e.g. "31"
    text : the sentence
    detail : how it was corrected, and the strongest example
    localizer : whether it only chose features for later tests
    """

    test: str
    effect: str
    verdict: str
    number: str
    text: str
    detail: str
    localizer: bool


def statements(study: Study) -> list[Statement]:
    """The summary: one statement per contrast and per RSA test, in the order of the tests; localizers come last."""
    out: list[Statement] = []
    for test in distinct(study.results["test"]):
        rows = study.results[study.results["test"] == test]
        if first_known(rows["kind"]) == "rsa" or (not rows["feature"].notna().any() and rows["value"].notna().any()):
            out.append(_pattern(study, test, rows))
        else:
            out.extend(_contrast(study, part, name=(test, effect)) for effect, part in _by_effect(rows))
    return sorted(out, key=lambda s: s.localizer)


def _by_effect(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for effect in distinct(rows["effect"]) or [""]:
        yield effect, rows[rows["effect"] == effect] if effect else rows


def _where(rows: pd.DataFrame) -> str:
    regions, sites = distinct(rows["region"]), distinct(rows["site"])
    at = f" at {listed(regions)}" if regions else ""
    return f"{at} in {listed(sites) if len(sites) <= 4 else plural(len(sites), 'site')}" if sites else at


def _contrast(study: Study, rows: pd.DataFrame, *, name: tuple[str, str]) -> Statement:
    (test, effect), alpha, tested = name, alpha_of(study), rows_tested(rows)
    localizer, place = distinct(rows["split"]) == ["localizer"], _where(rows)
    if not len(tested):
        text = f"No feature could be tested for {effect}{place}."
        return Statement(test, effect, "untested", "–", text, _why_untested(rows), localizer)
    found, held = rows_found(tested, alpha), _held(tested, alpha)
    n_tested, n_found = _n_features(tested), _n_features(found)
    several = n_tested < len(tested)
    if not len(found):
        of = f"{plural(n_tested, 'tested feature')}{f' ({len(tested):,} tests)' if several else ''}"
        detail = f"{held} The most extreme is {_example(ranked(tested).iloc[0])}."
        return Statement(
            test, effect, "nothing", "0", f"None of {of} is found to respond to {effect}{place}.", detail, localizer
        )
    exploratory = first_known(tested["p_adjust"], "none") == "none" or first_known(tested["p_method"]) == "parametric"
    more = int((found["value"] > 0).sum())
    ways = _directions(more, len(found) - more, effect_ends(study).get(effect, ("− cells", "+ cells")))
    tests = f", in {len(found):,} of {len(tested):,} tests" if several else ""
    verb = "responds" if n_found == 1 else "respond"
    text = f"{n_found:,} of {plural(n_tested, 'tested feature')} {verb} to {effect}{place}{tests}: {ways}."
    detail = f"{held} The strongest is {_example(ranked(tested).iloc[0])}.{_same_words(study, effect, found)}"
    return Statement(test, effect, "exploratory" if exploratory else "found", f"{n_found:,}", text, detail, localizer)


def _same_words(study: Study, effect: str, found: pd.DataFrame) -> str:
    """A caution where features were found at a region whose own words differ between the + and - cells."""
    made = compiled_effects(study).get(effect)
    regions = tuple(r for r in distinct(found["region"]) if f"{r}_start" in study.stimuli)
    if made is None or not regions:
        return ""
    table = lexical_table(study.design, tested_stimuli(study), {effect: made}, regions=regions)
    there = [str(r) for r in table.loc[table["differ"] > 0, "region"]]
    return (
        f" At {listed(there)} the words themselves differ, and may be what these features respond to." if there else ""
    )


def _n_features(rows: pd.DataFrame) -> int:
    return len(rows[["site", "feature"]].drop_duplicates())


def _directions(more: int, less: int, ends: tuple[str, str]) -> str:
    parts = [f"{n:,} more active for {end}" for n, end in ((more, ends[1]), (less, ends[0])) if n]
    return listed(parts)


def _units(rows: pd.DataFrame) -> int:
    known = rows["n_units"].dropna()
    return int(known.max()) if len(known) else 0


def _held(rows: pd.DataFrame, alpha: float) -> str:
    adjust = first_known(rows["p_adjust"], "none")
    words = CORRECTIONS.get(adjust, adjust)
    if adjust == "none":
        return f"Not corrected: {words}; about {alpha:.0%} of features without an effect would be counted."
    sizes = rows["n_family"].dropna()
    size = f" over {plural(int(sizes.max()), 'test')}" if len(sizes) else ""
    unit = first_known(rows["unit"], "item")
    items = plural(_units(rows), "item") + ("" if unit == "item" else f" (exchanged: {unit})")
    return f"Corrected{size}, {words}, at {alpha:g}; {items}."


def _example(row: pd.Series) -> str:
    bounds = p_intervals(row.to_frame().T).iloc[0]
    interval = ""
    if pd.notna(row["ci_low"]) and pd.notna(row["ci_high"]):
        interval = f" [{digits(row['ci_low'])}, {digits(row['ci_high'])}]"
    kind = "p corrected" if first_known(pd.Series([row["p_adjust"]]), "none") != "none" else "p"
    p = row["p_corr"] if pd.notna(row["p_corr"]) else row["p_unc"]
    size = f"{row['eftype']} = {digits(row['effsize'])}, " if pd.notna(row["effsize"]) else ""
    estimate = f"estimate {digits(row['estimate'])}{interval}, " if pd.notna(row["estimate"]) else ""
    name = feature_name(row["site"], row["feature"])
    return f"{name} at {row['region']} ({size}{estimate}{kind} {p_words(p, bounds['low'], bounds['high'])})"


def _why_untested(rows: pd.DataFrame) -> str:
    by = rows.assign(n=rows["n_features"].astype(float).fillna(1)).groupby("status")["n"].sum()
    parts = [f"{int(n):,} {status}" for status, n in by.items()]
    reasons = distinct(rows["note"])[:3]
    return f"Features: {listed(parts)}. {' '.join(reasons)}".strip()


def _pattern(study: Study, test: str, rows: pd.DataFrame) -> Statement:
    """One statement on all models of an RSA test."""
    alpha, place, localizer = alpha_of(study), _where(rows), distinct(rows["split"]) == ["localizer"]
    known = rows[rows["value"].notna()]
    tested = known[known["p_corr"].notna()]
    if not len(known):
        return Statement(
            test, "", "untested", "–", f"No model could be compared{place}.", _why_untested(rows), localizer
        )
    names, found = distinct(tested["effect"]), tested[is_found(tested, alpha)]
    seen = [n for n in names if (found["effect"] == n).any()]
    parts = []
    if seen:
        parts.append(f"The geometry carries {listed(_in_places(n, found, tested) for n in seen)}{place}")
    if missing := [n for n in names if n not in seen]:
        parts.append(
            f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} not found in it"
            if seen
            else f"The geometry{place} is not found to carry {listed(missing, last='or')}"
        )
    if other := [n for n in distinct(known["effect"]) if n not in names]:
        parts.append(f"{listed(other)} {'is' if len(other) == 1 else 'are'} described, not tested")
    best = known.loc[known["value"].idxmax()]
    kind = f"{str(best['stat']).replace('_', ' ')} = {digits(best['value'])}"
    fit = f"The best fit is {best['effect']} at {best['site']} · {best['region']}, {kind}{_ceiling(best)}"
    held = f"{_held(tested, alpha)} " if len(tested) else ""
    verdict = "found" if seen else "nothing" if names else "exploratory"
    number = f"{len(seen)}/{len(names)}" if names else digits(best["value"], 2)
    return Statement(test, "", verdict, number, "; ".join(parts) + ".", f"{held}{fit}.", localizer)


def _in_places(name: str, found: pd.DataFrame, tested: pd.DataFrame) -> str:
    n, of = int((found["effect"] == name).sum()), int((tested["effect"] == name).sum())
    return name if of == 1 else f"{name} ({n} of {of} places)"


def _ceiling(row: pd.Series) -> str:
    known = {c: row.get(f"x_{c}") for c in ("ceiling", "reliability")}
    known = {c: float(v) for c, v in known.items() if v is not None and pd.notna(v)}
    parts = [f"{c.replace('ceiling', 'noise ceiling')} {digits(v)}" for c, v in known.items()]
    low = "; too unreliable to rank models" if known.get("reliability", 1) < RANKED else ""
    return f" ({', '.join(parts)}{low})" if parts else ""


def headline(study: Study) -> list[tuple[str, str]]:
    """Numbers for the head of the page: (number, what it counts)."""
    rows = study.results[study.results["feature"].notna()]
    held_out = rows[(rows["split"] != "localizer").fillna(True)]
    out = [(f"{_n_items(study):,}", "test items")]
    sites = distinct(study.results["site"])
    out.append((f"{len(sites):,}", "site" if len(sites) == 1 else "sites"))
    tested = rows_tested(held_out)
    if len(tested):
        features = tested[["site", "feature"]].drop_duplicates()
        found = rows_found(tested, alpha_of(study))[["site", "feature"]].drop_duplicates()
        out += [(f"{len(features):,}", "features tested"), (f"{len(found):,}", "features found")]
    patterns = study.results[study.results["kind"] == "rsa"]
    if len(patterns) and not len(tested):
        n = int(is_found(patterns, alpha_of(study)).sum())
        out += [(f"{len(patterns):,}", "model fits"), (f"{n:,}", "above chance")]
    return out


def _n_items(study: Study) -> int:
    stimuli = study.stimuli
    kept = stimuli[stimuli["split"].astype(str) == "test"] if "split" in stimuli else stimuli
    return int((kept if len(kept) else stimuli)["item"].nunique())


def limits(study: Study) -> list[str]:
    """What the results do not show; only sentences that apply to this study."""
    results, design = study.results, study.design
    kinds, adjusts = set(results["kind"].dropna()), set(results["p_adjust"].dropna())
    out = [
        "The results hold for this model and dictionary, over items like these. Dictionaries trained from other seeds "
        "share only part of their features, so a feature index is not expected to replicate; sets, contrasts and "
        "geometries are.",
        "Items are seldom a random sample of a language; exchangeability rests on how they were matched.",
    ]
    if len(design.frames) >= 1:
        n = len(design.frames)
        out.append(
            f"Frames fixed: the {plural(n, 'sentence frame')} {'is' if n == 1 else 'are'} averaged "
            "within items, and no "
            "claim is made about other frames."
        )
    if "contrast" in kinds:
        out.append(
            "A feature that responds to an effect carries information that differs between the cells; "
            "it need not be used "
            "by the model, and a word that itself differs between the cells can be the whole reason (see the check)."
        )
        out.append(
            "A family-wise claim is about at least one feature of the family; each named feature is "
            "also held at the same level."
        )
    if "fdr_bh" in adjusts:
        out.append(
            "The Benjamini–Hochberg method assumes positive dependence; the max-T correction does "
            "not, and neither does "
            "Benjamini–Yekutieli's (fdr_by)."
        )
    if "none" in adjusts or "parametric" in set(results["p_method"].dropna()):
        out.append("Uncorrected or parametric p-values are exploratory.")
    if any(_is_interaction(e) for e in section(study.analysis, "effects").values()):
        out.append(
            "An interaction of activations is not integration: it appears also where features merely "
            "co-activate. One-sided "
            "claims from skewed interaction contrasts are not made."
        )
    if "rsa" in kinds:
        out.append(
            "A model that fits the geometry is not thereby the only one that does; compare it with "
            "the noise ceiling, and do "
            "not rank models where the reliability is below .3."
        )
    if any(len(f.levels) >= 3 for f in design.factors.values()):
        out.append(
            "With graded factors (three levels or more), an interaction can be removed by a monotone change of scale."
        )
    if study.analysis.get("positions", {}) and section(study.analysis, "positions").get("align") not in (
        None,
        "region",
    ):
        out.append("Positions are aligned by rule, and no claim about onset is made.")
    if not design.partition:
        out.append(
            "There is no localizer split: effect sizes of features that were chosen on the same items are optimistic."
        )
    return out


def _is_interaction(effect: Any) -> bool:
    return isinstance(effect, Mapping) and len(effect) > 1


def totals(study: Study) -> pd.DataFrame:
    """Counts of features per test, effect and place (see `tables.counts`)."""
    return counts(study.results, alpha_of(study))
