"""What the page says of ANOVA tables of a few features."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import n_units, where, why_untested
from neurosae.report.parts import Section, Statement
from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import distinct, is_found, ranked
from neurosae.report.wording import digits, feature_name, listed, plural

PARAMETRIC = (
    "Parametric p of few selected features, which assume normal errors: read them beside the p of relabelling in the "
    "table. They describe features that were chosen elsewhere and are no search for features."
)


def anova_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per test: which terms are found in how many features."""
    alpha, localizer = alpha_of(study), distinct(rows["split"]) == ["localizer"]
    table = rows[(rows["stat"] == "F").to_numpy(dtype=bool) & rows["value"].notna().to_numpy()]
    if not len(table):
        text = f"No ANOVA could be made{where(rows)}."
        yield Statement(test, "", "untested", "–", text, why_untested(rows), localizer)
        return
    n = len(table[["site", "feature"]].drop_duplicates())
    parts = []
    for effect in distinct(table["effect"]):
        part = table[table["effect"] == effect]
        hits = part[is_found(part, alpha)][["site", "feature"]].drop_duplicates()
        parts.append(f"{effect.replace(':', ' × ')} {len(hits)}")
    found = table[is_found(table, alpha)]
    text = f"ANOVA of {plural(n, 'selected feature')}{where(table)}: found in {listed(parts)} of them."
    best = ranked(table).iloc[0]
    beside = best.get("x_p_permutation")
    also = f", by relabelling p {digits(beside)}" if beside is not None and pd.notna(beside) else ""
    detail = (
        f"Holm's method over features, term by term; {plural(n_units(table), 'item')}. The strongest is "
        f"{best['effect'].replace(':', ' × ')} of {feature_name(best['site'], best['feature'])} "
        f"(F({digits(best['x_df1'])}, {digits(best['dof'])}) = {digits(best['value'])}, partial η² "
        f"{digits(best['effsize'])}, p corrected {digits(best['p_corr'])}{also})."
    )
    verdict = "exploratory" if len(found) else "nothing"
    yield Statement(test, "", verdict, f"{len(found):,}", text, detail, localizer, (PARAMETRIC,))


def anova_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Sums of squares, sphericity, effect sizes, corrections."""
    del study
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        simple = (part["stat"] != "F").any()
        yield (
            f"{test}: analyses of variance with type III sums of squares on cell means, the item being the unit; where "
            "a term within items has more than one degree of freedom, p is corrected by Greenhouse and Geisser's "
            "epsilon [greenhouse1959] and Mauchly's test stands beside it [mauchly1940]; effect sizes are partial and "
            "generalized eta squared [olejnik2003]; p is corrected over features by Holm's method [holm1979]."
        )
        if simple:
            yield "Simple effects and post-hoc comparisons are t tests, corrected by Holm's method inside each feature."


ANOVA = Section(anova_statements, lambda study, test, rows: (), anova_methods)
