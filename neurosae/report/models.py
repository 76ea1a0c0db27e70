"""What the page says of parametric models: labelled as such, with what they assume and the p of relabellings beside."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import CORRECTIONS, by_effect, example, held, where, why_untested
from neurosae.report.parts import Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import distinct, first_known, is_found, ranked, rows_tested
from neurosae.report.wording import plural

MODELS = {
    "t": ("least squares with one row per item", ""),
    "t_hc3": ("least squares with one row per item and HC3 errors", "[mackinnon1985]"),
    "t_cluster": ("least squares with errors by item (CR1)", "[liang1986]"),
    "t_mixed": ("the mixed model (1 | item) by REML, with Satterthwaite's degrees of freedom", "[patterson1971]"),
    "t_crossed": (
        "the mixed model (1 | item) + (1 | frame) of item differences by REML, with Satterthwaite's degrees of freedom",
        "[patterson1971]",
    ),
    "min_f": ("min-F' over items and frames", "[clark1973]"),
    "moderated_t": ("a moderated t with a trend of the variances over activity", "[smyth2004]"),
}
"""Statistic of a parametric row -> the model in words, and what it cites."""


def model_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many features the model finds, and how many of them the relabellings support."""
    alpha, localizer = alpha_of(study), distinct(rows["split"]) == ["localizer"]
    for effect, part in by_effect(rows):
        tested = rows_tested(part)
        if not len(tested):
            text = f"No feature could be tested for {effect}{where(part)}."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), localizer)
            continue
        found = tested[is_found(tested, alpha)]
        words, _ = _model(part)
        text = (
            f"{len(found):,} of {plural(len(tested), 'tested feature')} respond to {effect}{where(part)} by {words}: a "
            "parametric result."
        )
        detail = f"{held(tested, alpha)} The strongest is {example(ranked(tested).iloc[0])}. {_beside(found, alpha)}"
        cautions = (first_known(part["note"]).partition("; ")[0].capitalize() + ".",)
        verdict = "found" if len(found) else "nothing"
        yield Statement(test, effect, verdict, f"{len(found):,}", text, detail.strip(), localizer, cautions)


def _model(rows: pd.DataFrame) -> tuple[str, str]:
    stat = first_known(rows["stat"])
    return MODELS.get(stat, (stat.replace("_", " "), ""))


def _beside(found: pd.DataFrame, alpha: float) -> str:
    """How many of the found rows have a small p when whole items are relabelled."""
    p = found["x_p_flips"].astype(float).dropna() if "x_p_flips" in found else pd.Series(dtype=float)
    if not len(p):
        return "The design admits no relabelling for it." if len(found) else ""
    return (
        f"By relabelling whole items, {(p <= alpha).sum():,} of the {len(p):,} found have p ≤ {alpha:g} (uncorrected)."
    )


def model_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """The model of each test, what it assumes, its null hypothesis, and how p was corrected."""
    del study
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        adjust, (words, cited) = first_known(part["p_adjust"], "none"), _model(part)
        assumed = first_known(part.loc[part["stat"].notna(), "note"]).partition("; ")[0]
        said = [f"{test} is a parametric alternative to relabelling: {words} {cited}".strip()]
        said += [assumed] if assumed.startswith("parametric") else []
        said += [f"the null hypothesis was {first_known(part['h0'])}", CORRECTIONS.get(adjust, adjust)]
        yield "; ".join(said) + f" {CITED.get(adjust, '')}".rstrip() + "."


PARAMETRIC = Section(model_statements, lambda study, test, rows: (), model_methods)
