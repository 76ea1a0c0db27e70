"""What the page says of the integration battery: the grade of every place, what it rests on, what it does not say."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from neurosae.report.claims import n_units
from neurosae.report.figures_integration import (
    WHERE,
    cells_2x2,
    coupling_by_context,
    emergent_shares,
    requirement_table,
    rungs,
)
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import first_known
from neurosae.report.wording import digits, listed, plural, slug

GRADES = {
    0: "co-activation",
    1: "conjunctive selectivity",
    2: "representational integration",
    3: "functional integration",
}
LIMITS = (
    "The grade is for this model and dictionary, over items like these, frames fixed. Grade 2 says that co-activation "
    "of the parts, under any gain of a stimulus, does not explain the responses; it does not say that the model uses "
    "them, which takes the causal read-out.",
    "A gain of its own for every feature counts as integration here. Run the same file on a model with random weights "
    "and on a second dictionary before the grade is interpreted.",
    "A dictionary that is narrower than what the model tells apart merges features that occur together, so a feature "
    "for a conjunction can be the work of its width: the grade should hold in dictionaries of twice and four times as "
    "many features, and their training text should have the parts apart as well as together.",
)
EXPLORATORY = "Synergy and the predictive ladder are exploratory: they raise no grade."


def integration_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per place."""
    for number, (_, part) in enumerate(rows.groupby(WHERE, sort=False, dropna=False)):
        yield _statement(study, test, part, first=number == 0)


def _statement(study: Study, test: str, rows: pd.DataFrame, *, first: bool) -> Statement:
    by = {str(row["effect"]): row for _, row in rows.iterrows()}
    grade, evidence = (int(by["grade"][f"x_grade{k}"]) for k in ("", "_evidence"))
    place = f"{by['grade']['region']} in {by['grade']['site']}"
    pair = listed(_parts(study, test))
    why = _why((grade, evidence), by, alpha=alpha_of(study))
    text = f"Integration of {pair} at {place}: grade {grade} of 3, {GRADES[grade]}. {why}"
    parts = (_code_words(by), _gate_words(by), _conj_words(by), _causal_words(by), _read_words(by), _design(by, rows))
    detail = " ".join(said for said in parts if said)
    cautions = (*LIMITS, EXPLORATORY) if first else ()
    verdict = "found" if grade >= 2 else "nothing"
    return Statement(test, str(by["grade"]["set"]), verdict, f"{grade}/3", text, detail, False, cautions)


def _parts(study: Study, test: str) -> tuple[str, ...]:
    parts = section(study.analysis, "tests", test).get("parts") or ("first part", "second part")
    return tuple(str(p) for p in parts)


def _levels(study: Study, pair: tuple[str, str]) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Words for the two levels of either part, where they are not its absence and presence."""
    found = []
    for part in pair:
        effect = section(study.analysis, "effects", part)
        weights = next(iter(effect.values()), None)
        if not isinstance(weights, Mapping) or {"absent", "no"} & {str(level) for level in weights}:
            return None
        low, high = (min(weights, key=weights.__getitem__), max(weights, key=weights.__getitem__))
        found.append((f"{part} {low}", f"{part} {high}"))
    return found[0], found[1]


def _held(by: Mapping[str, pd.Series], name: str, alpha: float) -> bool:
    return name in by and pd.notna(by[name]["p_corr"]) and bool(by[name]["p_corr"] <= alpha)


def _why(grades: tuple[int, int], by: Mapping[str, pd.Series], *, alpha: float) -> str:
    """Which tests carry the grade, in words that claim no more than they show."""
    grade, evidence = grades
    if evidence > grade:
        return f"The evidence alone reaches grade {evidence}; what the design lacks limits it."
    if grade >= 2:
        ways = []
        if _held(by, "code", alpha):
            row = by["code: D-perp"]
            size = f", {digits(100 * row['effsize'], 2)} % of the squared length of the parts' own effects" * pd.notna(
                row["effsize"]
            )
            more = ", and more of it in the phrase than in the list" if "code: list control" in by else ""
            ways.append(f"the pair has a code outside the plane of its parts{size}{more}")
        if _held(by, "gate", alpha):
            closer = by["gate"]["value"] > 0
            weaker = "" if closer else " (a dependence on context, not a stronger binding)"
            how = "more" if closer else "less"
            ways.append(f"the two sets are coupled {how} closely in the phrase than in the list{weaker}")
        used = "; and both sets act on the outcome jointly, not as the sum of their effects alone" if grade == 3 else ""
        return f"Co-activation is rejected: {listed(ways)}{used}."
    if grade == 1:
        return (
            "Features answer to the pair otherwise than to the sum of its parts; a threshold, a normalization or a "
            f"detector of word pairs does that too, so no integration is claimed.{_listed_too(by, alpha)}"
        )
    if "does not answer" in str(by["grade"]["note"]):
        return "A set does not answer to its own part on the test items, so there is nothing that could be integrated."
    if more := _listed_too(by, alpha):
        return f"Integration was not found.{more}"
    return "Neither a code outside the plane of the parts nor a coupling that depends on the context was found."


def _listed_too(by: Mapping[str, pd.Series], alpha: float) -> str:
    """That the pair has a code of its own, but one that the list has as well."""
    plane, control = by.get("code: D-perp"), by.get("code: list control")
    if plane is None or control is None or not (plane["p_unc"] <= alpha < control["p_unc"]):
        return ""
    return (
        " The pair has a code outside the plane of its parts (uncorrected), but no more of it in the phrase than in "
        "the list, so it is one of the two words and not of how they are composed."
    )


def _code_words(by: Mapping[str, pd.Series]) -> str:
    plane, control, code = (by.get(name) for name in ("code: D-perp", "code: list control", "code"))
    if plane is None:
        return ""
    if pd.isna(plane["value"]):
        return f"Code: not testable ({plane['note']})."
    said = "the parts have no effect of their own, so there is no emergent share"
    if pd.notna(low := plane.get("x_loo_low")):  # no place may have one, as in a network with random weights
        without = f"{digits(low)} to {digits(plane['x_loo_high'])} without any one item"
        said = f"emergent share {digits(plane['effsize'])} ({without})"
    said = f"Code: {said}, D-perp p {digits(plane['p_unc'])}"
    if control is not None and pd.notna(control["value"]):
        said += f", list control p {digits(control['p_unc'])}"
    return said + (f", corrected p {digits(code['p_corr'])}." if code is not None else ".")


def _gate_words(by: Mapping[str, pd.Series]) -> str:
    gate = by.get("gate")
    if gate is None:
        return ""
    if pd.isna(gate["value"]):
        return f"Gate: not testable ({gate['note']})."
    r = f"r {digits(gate['x_r_phrase'], 2)} in the phrase, {digits(gate['x_r_list'], 2)} in the list"
    return f"Gate: {r}, recorded gain taken out, corrected p {digits(gate['p_corr'])}."


def _conj_words(by: Mapping[str, pd.Series]) -> str:
    conj = by.get("conj")
    if conj is None:
        return ""
    n = int(conj["x_n_found"])
    return f"Activations: {plural(n, 'feature')} of {digits(int(conj['n_features']))} superadditive or subadditive."


def _causal_words(by: Mapping[str, pd.Series]) -> str:
    """The causal read-out, which counts beside grade 2 alone."""
    row = by.get("causal")
    if row is None:
        return ""
    if row["status"] != "ok":
        reason = str(row["note"]).partition(": ")[2].partition(";")[0]
        return f"Causal read-out ({row['set']}): it does not count, {reason}."
    size = f"I {digits(row['value'], 2)} logits, " if pd.notna(row["value"]) else ""
    return f"Causal read-out ({row['set']}): {size}corrected p {digits(row['p_corr'])} ({row['note']})."


def _read_words(by: Mapping[str, pd.Series]) -> str:
    """The exploratory members in a sentence."""
    last, both = by.get("read: link"), [row for name, row in by.items() if name.startswith("synergy: ")]
    said = []
    if both and pd.notna(both[0]["p_corr"]):
        said.append(f"synergy above additive surrogates, p corrected {listed(digits(r['p_corr'], 2) for r in both)}")
    if last is not None and pd.notna(last["p_unc"]):
        gained = f"change of held-out R² {digits(last['effsize'], 2)}"
        said.append(f"products beyond a monotone link, p {digits(last['p_unc'], 2)}, {gained}")
    return f"Exploratory: {'; '.join(said)}." if said else ""


def _design(by: Mapping[str, pd.Series], rows: pd.DataFrame) -> str:
    note = str(by["grade"]["note"])
    missing = note.partition("missing: ")[2].partition(";")[0]
    said = f"Design: lacks {missing}." if missing else "Design: every requirement is met."
    more = " No causal read-out was made, so grade 3 is out of reach." if "no causal read-out" in note else ""
    more = " The causal read-out does not count, so grade 3 is out of reach." if "does not count" in note else more
    return f"{said}{more} {plural(n_units(_by_item(rows)), 'item')}; Holm over code and gate at all places."


def _by_item(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that count items; synergy counts stimuli."""
    return rows[rows["unit"].eq("item") & ~rows["effect"].eq("causal")]


def draw_integration(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Requirements, set scores, emergent shares, coupling, ladder."""
    parts, name = _parts(study, test), slug(test)
    pair = (parts[0], parts[1])
    asked = section(study.analysis, "tests", test, "context")
    contexts = {"control": str(asked.get("control", "list")), "composed": str(asked.get("composed", "phrase"))}
    source = f"Drawn from {plural(n_units(_by_item(rows)), 'test item')}; features were chosen on other items."
    lacks = study.extras.get((test, "requirements"))
    if lacks is not None and len(lacks):
        one = lacks[lacks[WHERE].eq(lacks[WHERE].iloc[0]).all(axis=1)]
        words = "What a design needs before a grade means what it says. A number: the largest grade without it."
        first = "" if len(lacks) == len(one) else f" Shown for {one['region'].iloc[0]} in {one['site'].iloc[0]}."
        yield Drawing(
            f"{name}-requirements",
            "requirements",
            test,
            "Design requirements",
            words + first,
            requirement_table(one),
            wide=True,
        )
    plane = rows[rows["effect"].isin(["code: D-perp", "code: list control"]) & rows["value"].notna()]
    if len(plane):
        words = (
            "Orange: cross-validated squared length of the interaction outside the plane of mean and main effects, as "
            "a share of the main effects; the bar is its range when any one item is left out. Blue: the same minus "
            f"that of the list. 0 is expected under co-activation. {source.partition(';')[0]}."
        )
        yield Drawing(f"{name}-shares", "shares", test, "Emergent share", words, emergent_shares(plane), wide=True)
    scores = study.extras.get((test, "scores"))
    if scores is not None and len(scores):
        words = (
            "Mean pre-activation of the two feature sets, relative to its value at x = 0, with 95 % intervals over "
            f"items. Lines that are not parallel are an interaction, which a gain of the stimulus gives too. {source}"
        )
        figure = cells_2x2(scores, names=pair, contexts=contexts, levels=_levels(study, pair))
        yield Drawing(f"{name}-cells", "cells_2x2", test, "Set scores in the four cells", words, figure, wide=True)
    coupled = study.extras.get((test, "coupling"))
    if coupled is not None and len(coupled):
        words = (
            "One point per item in the cell that has both parts; recorded gain taken out, standard units. The line has "
            f"the slope r. {source}"
        )
        figure = coupling_by_context(coupled, names=pair, contexts=contexts)
        yield Drawing(f"{name}-coupling", "coupling", test, "Coupling of the two sets", words, figure, wide=True)
    read = rows[rows["effect"].str.startswith("read: ") & rows["p_unc"].notna()]
    if len(read):
        words = (
            "Do products of the two sets predict the target beyond an additive base? Linear; with squares (curvature); "
            "with the target as normal scores (skew); through a monotone link. An effect that falls on a later rung "
            f"needed no product. Exploratory. {source}"
        )
        figure = rungs(read, alpha=alpha_of(study))
        yield Drawing(f"{name}-rungs", "rungs", test, "Predictive ladder", words, figure, wide=True)


def integration_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Null hypotheses, statistics and corrections of the members."""
    for test, part in rows.groupby("test", sort=False):
        asked = section(study.analysis, "tests", str(test))
        n_perm, n = int(part["n_perm"].max()), n_units(_by_item(part))
        context = section(asked, "context")
        named = f" in {context.get('composed')} and {context.get('control')} contexts" if context else ""
        yield (
            f"{test}: integration of {listed(_parts(study, str(test)))}{named} was tested on the pre-activations of "
            f"{n} test items, relative to their value at x = 0. The null hypothesis of co-activation is that every "
            "stimulus multiplies a sum of parts by a gain of its own. The code was tested by the cross-validated "
            "length [allefeld2014] of the interaction outside the span of mean and main effects (features weighted by "
            f"their mean square, ridge .001, {n_perm:,} sign flips of whole items), joined with its list control "
            "[bemis2011] by the larger p."
        )
        if part["effect"].eq("gate").any():
            gain = listed(asked.get("gain") or ("norm", "n_tokens"))
            yield (
                "Coupling of the two feature sets in the cell with both parts was compared between contexts by "
                f"Fisher's z, {gain} taken out, under swaps of the contexts within items [mclaren2012]."
            )
        yield "Code and gate at all places were corrected by Holm's method [holm1979]."
        if part["effect"].eq("causal").any():
            yield (
                "Grade 3 also asks the joint clamp at the same region and site: both directions are run, each that has "
                "matched controls must show a joint effect beyond the sum of the single ones, over items and among "
                "matched pairs, free and with every normalization frozen, of one sign; the largest p counts, Holm over "
                "places."
            )
        if part["x_role"].eq("exploratory").any():
            yield (
                "Exploratory measures: synergy against surrogates whose target adds the two sources "
                "[bertschinger2014], and products of the two sets on four additive bases with residuals exchanged "
                "between items [freedman1983]."
            )
        first = first_known(part.loc[part["effect"] == "grade", "note"])
        yield f"The grade (0 to 3) is limited by what the design lacks: {first}."


INTEGRATION = Section(integration_statements, draw_integration, integration_methods)
