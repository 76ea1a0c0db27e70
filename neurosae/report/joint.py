"""What the page says of conjunctions (all of several effects) and of combinations (at least one of several parts)."""

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
from neurosae.report.tables import distinct, first_known, has_numbers, is_found, ranked
from neurosae.report.wording import listed, plural

ALL = "Every one of the effects is claimed of a found feature; nothing is said about their interaction."
ONE = "The claim is that at least one of the parts differs, not which; the same features may be tested part by part."


def conjunction_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many features respond to all of the effects."""
    for name, part in by_effect(rows):
        effects = name.split(" & ")
        said = f"to both {listed(effects)}" if len(effects) == 2 else f"to all of {listed(effects)}"
        yield _statement(study, part, (test, name), said=f"respond {said}{where(part)}", caution=ALL)


def combination_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many features differ in at least one of the parts."""
    for name, part in by_effect(rows):
        # "no difference in any of the positions -1, 0; rejected: at least one"
        parts = first_known(part["h0"]).partition(" of the ")[2].partition(";")[0]
        placed = part.assign(region=pd.array([pd.NA] * len(part), "string")) if parts.startswith("regions") else part
        place = "" if parts.startswith("sites") else where(placed)
        said = f"differ in at least one of the {parts}{place}"
        yield _statement(study, part, (test, name), said=said, caution=ONE)


def _statement(study: Study, rows: pd.DataFrame, name: tuple[str, str], *, said: str, caution: str) -> Statement:
    (test, effect), alpha = name, alpha_of(study)
    localizer, tested = distinct(rows["split"]) == ["localizer"], rows[has_numbers(rows)]
    if not len(tested):
        text = f"No feature could be tested for {effect}{where(rows)}."
        return Statement(test, effect, "untested", "–", text, why_untested(rows), localizer)
    found = tested[is_found(tested, alpha)]
    detail = f"{held(tested, alpha)} The most extreme is {example(ranked(tested).iloc[0])}."
    if not tested["feature"].notna().any():  # one row for all features
        n = int(tested["n_features"].max())
        text = f"{'At least one' if len(found) else 'None'} of {plural(n, 'tested feature')} is found to {said}."
    else:
        of = plural(len(tested), "tested feature")
        number = f"{len(found):,}" if len(found) else "None"
        text = f"{number} of {of} {'is' if len(found) < 2 else 'are'} found to {said}."
    verdict = "found" if len(found) else "nothing"
    return Statement(test, effect, verdict, f"{len(found):,}", text, detail, localizer, (caution,))


def joint_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """The null hypothesis of each test, its statistic, and how it was corrected."""
    del study
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        adjust = first_known(part["p_adjust"], "none")
        names = listed(name.replace("_", " ") for name in distinct(part["stat"])) or "no statistic"
        how = {
            "conjunction": "the weakest of the effects (minimum statistic) was compared with the maximum over features "
            "and effects [nichols2005]",
            "combination": "the p of the parts were combined inside every relabelling [winkler2016]",
        }[first_known(part["kind"])]
        cited = CITED.get(adjust, "")
        held = f"{CORRECTIONS.get(adjust, adjust)}{f' {cited}' if cited else ''}"
        yield f"{test} ({names}; null hypothesis: {first_known(part['h0'])}): {how}; {held}."


CONJUNCTION = Section(conjunction_statements, lambda study, test, rows: (), joint_methods)
COMBINATION = Section(combination_statements, lambda study, test, rows: (), joint_methods)
