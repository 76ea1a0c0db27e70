"""What the page says of seeds or models as subjects: in how many of them, or on their mean, and on which items."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import by_effect, n_units, named_cautions, where, why_untested
from neurosae.report.figures_subjects import subject_numbers
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import distinct, first_known, is_found
from neurosae.report.wording import digits, listed, p_words, plural, slug

FIXED = "All subjects read the same items: nothing is claimed over other items, nor over other models."
NULL = "Not found is no proof of absence: few subjects, or items, may show less than there is."
MEASURES = {
    "contrast_length": "the contrast length D_c",
    "mean_contrast": "the mean standardized contrast",
    "length_difference": "the difference of two contrast lengths",
}


def _whole(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[(rows["site"] == "all").to_numpy(dtype=bool)]


def statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect."""
    for effect, part in by_effect(_whole(rows)):
        yield _statement(study, test, effect, rows=part)


def _statement(study: Study, test: str, effect: str, *, rows: pd.DataFrame) -> Statement:
    alpha, localizer = alpha_of(study), distinct(rows["split"]) == ["localizer"]
    known = rows[rows["p_corr"].notna()]
    at = where(rows.assign(site=pd.array([pd.NA] * len(rows), "string")))
    if not len(known):
        text = f"{effect} could not be tested over subjects{at}."
        return Statement(test, effect, "untested", "–", text, why_untested(rows), localizer)
    found = known[is_found(known, alpha)]
    n, best = n_units(known), known.loc[known["p_corr"].astype(float).idxmin()]
    regions = f" at {listed(distinct(found['region']))}" if len(found) else at
    p = p_words(best["p_corr"], None, None)
    if first_known(known["stat"]) == "minimum over subjects":
        share = f"more than {float(best['x_gamma0']):.0%} of subjects like these {n}"
        text = f"{effect} is {'found' if len(found) else 'not found'} in {share}{regions}."
        low = best["x_gamma_low"]
        bound = f"at least {float(low):.0%} of them have it" if pd.notna(low) else "no share above 0 is shown"
        detail = f"Prevalence by the smallest of {n} contrast lengths: p corrected {p}; {bound}."
        detail += f" That no subject has it: p corrected {digits(best['x_p_global_corr'])}."
    else:
        text = f"{effect} {'differs' if len(found) else 'is not found to differ'} from 0 over {n} subjects{regions}."
        interval = f" [{digits(best['ci_low'])}, {digits(best['ci_high'])}]"
        detail = f"Mean over subjects {digits(best['estimate'])}{interval}, d_z = {digits(best['effsize'])}, whole "
        detail += f"subjects flipped, p corrected {p} (the smallest possible is {digits(best['p_min'])})."
    cautions = [FIXED, *named_cautions(study, test, effect)] if len(found) else [NULL]
    verdict, number = ("found" if len(found) else "nothing"), f"{len(found)}/{len(known)}"
    return Statement(test, effect, verdict, number, text, detail, localizer, tuple(filter(None, cautions)))


def drawings(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Every subject's number."""
    known = _whole(rows)
    if not known["p_corr"].notna().any():
        return
    alpha = alpha_of(study)
    bar = "smallest" if first_known(known["stat"]) == "minimum over subjects" else "mean"
    words = (
        f"One dot per subject; the bar is the {bar}, which is tested; lines: 95 % t interval of a mean. "
        f"Coloured: corrected p ≤ {alpha:g}. {plural(n_units(known), 'subject')}."
    )
    yield Drawing(f"{slug(test)}-subjects", "subjects", test, "Subjects", words, subject_numbers(rows, alpha=alpha))


def methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What a subject's number is, and what was relabelled."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        known, each = _whole(part), part[(part["site"] != "all").to_numpy(dtype=bool)]
        if not len(each):
            continue
        subjects, measure = distinct(each["site"]), MEASURES[first_known(each["stat"])]
        adjust = first_known(known["p_adjust"])
        said = f"{test}: the dictionaries {listed(subjects)} were subjects, each with {measure} as its one number; "
        if first_known(known["stat"]) == "minimum over subjects":
            gamma0 = first_known(known["x_gamma0"])
            said += f"that more than {float(gamma0):.0%} of such subjects have the effect was tested by the minimum "
            said += "statistic [allefeld2016], every relabelling of the items being the same in all subjects"
        else:
            n = known["n_perm"].dropna()
            said += f"whole subjects were sign-flipped ({digits(int(n.max()))} flips)" if len(n) else "not tested"
        yield f"{said}; p was corrected over effects, regions and positions {CITED.get(adjust, '')}."


SUBJECTS = Section(statements, drawings, methods)
