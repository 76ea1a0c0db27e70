"""What the results of a study do not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neurosae.report.stored import Study, section
from neurosae.report.wording import plural


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
    out += _of_alignment(str(section(study.analysis, "positions").get("align", "region")))
    if not design.partition:
        out.append(
            "There is no localizer split: effect sizes of features that were chosen on the same items are optimistic."
        )
    return out


def _of_alignment(rule: str) -> list[str]:
    out = [] if rule == "region" else ["Positions are aligned by rule, and no claim about onset is made."]
    if rule in ("xcorr", "reference"):
        out.append(
            "Shifts that were found in the responses sharpen any course, that of noise too: contrasts between "
            "conditions stand, the height, latency and shape of a peak are exploratory."
        )
    return out


def _is_interaction(effect: Any) -> bool:
    return isinstance(effect, Mapping) and len(effect) > 1
