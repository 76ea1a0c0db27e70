"""What the page says of equivalence: which features answer less than would matter, never that one does not answer."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import CORRECTIONS, by_effect, held, where, why_untested
from neurosae.report.parts import Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import distinct, first_known, has_numbers, is_found
from neurosae.report.wording import plural

OPEN = (
    "For the others nothing is known: neither that they answer nor that they do not. Features with fewer than 10 "
    "informative items cannot show an absence."
)


def statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect: how many features answer less than the smallest effect that would matter."""
    alpha = alpha_of(study)
    for effect, part in by_effect(rows):
        tested = part[has_numbers(part)]
        localizer = distinct(part["split"]) == ["localizer"]
        if not len(tested):
            text = f"For no feature could the absence of {effect} be tested{where(part)}."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), localizer)
            continue
        found = tested[is_found(tested, alpha)]
        number = f"{len(found):,}" if len(found) else "None"
        said = "answers" if len(found) == 1 else "answer"
        text = f"{number} of {plural(len(tested), 'tested feature')} {said} to {effect}{where(part)} less than would "
        text += f"matter ({_bound(tested)})."
        verdict = "found" if len(found) else "nothing"
        yield Statement(test, effect, verdict, f"{len(found):,}", text, held(tested, alpha), localizer, (OPEN,))


def _bound(tested: pd.DataFrame) -> str:
    said = first_known(tested["h0"], "")
    return said.removeprefix("the effect is ").partition(" or more")[0]


def methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What was bounded, on which scale, by which relabelling, and how p was corrected."""
    for test, part in rows.groupby("test", sort=False):
        tested = part[has_numbers(part)]
        adjust = first_known(part["p_adjust"], "none")
        cited = CITED.get(adjust, "")
        flipped = tested["p_method"].isin(["exact", "saddlepoint"]).all() if len(tested) else False
        how = "sign flips about the bounds" if flipped else "t distributions"
        bound = f" of {_bound(tested)}" if len(tested) else ""
        yield (
            f"{test}: the absence of an effect was tested by two one-sided tests against a smallest effect of "
            f"interest{bound} [schuirmann1987; lakens2017], with p from {how}; "
            f"{CORRECTIONS.get(adjust, adjust)}{f' {cited}' if cited else ''}."
        )


EQUIVALENCE = Section(statements, lambda study, test, rows: (), methods)
