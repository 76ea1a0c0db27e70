"""What the page says of effects on whole patterns, with a reading of abstraction in words."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import by_effect, held, n_units, named_cautions, shared_cautions, where, why_untested
from neurosae.report.figures_factorial import abstraction, pattern_effects, shares
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, first_known, is_found, place_names
from neurosae.report.wording import digits, listed, p_words, plural, slug

SAID = {
    "contrast_length": ("in the pattern of all features together (contrast length D_c)", "D_c"),
    "cvmanova": ("in the pattern of the features (cross-validated MANOVA)", "D"),
    "manova": ("in the main components of the pattern (MANOVA)", "Pillai's V"),
    "decoding": ("by decoding held-out items", "AUC"),
    "ccgp": ("by a decoder trained in other conditions (cross-condition generalization)", "AUC"),
    "parallelism": ("as a direction that is the same in other conditions (parallelism)", "cosine"),
    "permanova": ("in the distances between patterns (PERMANOVA)", "F"),
}
"""Statistic -> how an effect was found by it, and the name of its value."""
ANY = "At least one feature answers to a found effect; a pattern does not say which one."
NULL = "Not found is no proof of absence: the pattern may carry less than this number of items can show."
METHODS = {
    "contrast_length": "the cross-validated length of the effect's contrast over all features, each divided by a "
    "standard deviation that no relabelling changes [allefeld2014; walther2016]",
    "cvmanova": "cross-validated MANOVA, the covariance of the error shrunk to its diagonal, with flips of whole folds "
    "[allefeld2014]",
    "manova": "Pillai's trace of a few principal components that know no labels, under relabelling",
    "decoding": "the AUC of the difference of class means on held-out items, folds never splitting an item",
    "ccgp": "the AUC of the difference of class means in a condition that training left out, on held-out items; a "
    "second null permutes the features of every cell's mean pattern, which keeps its length and takes its direction "
    "[bernardi2020]",
    "parallelism": "the cross-validated cosine of the effect's directions in different conditions [bernardi2020]",
    "permanova": "the F of the squared distances between patterns [anderson2001], with the comparison of the distances "
    "to the spatial median of each side",
    "demixed": "the share of the cross-validated variance between cells that lies along each effect [kobak2016], "
    "described and not tested",
}


def pattern_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect; shares of variance are one statement."""
    if first_known(rows["stat"]) == "demixed":
        yield _described(test, rows)
        return
    for effect, part in by_effect(rows):
        yield _statement(study, test, effect, rows=part)


def _statement(study: Study, test: str, effect: str, *, rows: pd.DataFrame) -> Statement:
    alpha, localizer = alpha_of(study), distinct(rows["split"]) == ["localizer"]
    known = rows[rows["value"].notna() & rows["p_corr"].notna()]
    if not len(known):
        text = f"{effect} could not be tested{where(rows)}."
        return Statement(test, effect, "untested", "–", text, why_untested(rows), localizer)
    kind = first_known(known["stat"])
    how, name = SAID[kind]
    found = known[is_found(known, alpha)]
    places = pd.Series(place_names(known).to_numpy(), index=known.index)
    best = known.loc[known["x_z"].astype(float).idxmax()]
    chosen = " of the chosen features" if "x_p_controls" in known and known["x_p_controls"].notna().any() else ""
    how = how.replace(" of all features together", chosen) if chosen else how
    if len(found):
        there = f" ({listed(places[found.index])})" if len(known) > 1 else ""
        text = f"{effect} is found {how} at {len(found)} of {plural(len(known), 'place')}{there}."
    else:
        text = f"{effect} is not found {how}{where(known)}."
    if len(known) == 1:
        text = f"{effect} is {'found' if len(found) else 'not found'} {how}{where(known)}."
    p = p_words(best["p_corr"], best.get("x_p_low"), best.get("x_p_high"))
    at = "" if len(known) == 1 else f" at {places[best.name]}"
    detail = f"{held(known, alpha)} The strongest{at}: {name} = {digits(best['value'])}, p corrected {p}."
    detail += "".join(f" {one}" for one in _beside(best))
    cautions = [ANY, *shared_cautions(found), *named_cautions(study, test, effect)] if len(found) else [NULL]
    if kind == "permanova" and len(found):
        cautions.insert(0, _dispersion(found, alpha))
    verdict = "found" if len(found) else "nothing"
    number = f"{len(found)}/{len(known)}"
    return Statement(test, effect, verdict, number, text, detail, localizer, tuple(filter(None, cautions)))


def _beside(best: pd.Series) -> Iterator[str]:
    """What stands beside the statistic of the strongest place."""
    if best["stat"] == "ccgp":
        yield reading(best)
    if pd.notna(best.get("x_p_controls")):
        yield (
            f"Of {int(best['x_n_controls'])} random sets matched in number, density and energy, the share that "
            f"reaches this value gives p {digits(best['x_p_controls'])} "
            f"(median of the sets {digits(best['x_control_median'])})."
        )
    if pd.notna(best.get("x_p_dispersion")):
        yield (
            f"Dispersion: mean distance to the spatial median {digits(best['x_dispersion_plus'])} on the + side, "
            f"{digits(best['x_dispersion_minus'])} on the − side (p {digits(best['x_p_dispersion'])})."
        )
    if pd.notna(best.get("x_p_parametric")):
        yield f"Parametric, beside it: Wilks' lambda {digits(best['x_wilks'])}, p {digits(best['x_p_parametric'])}."


def reading(row: pd.Series, alpha: float = 0.05) -> str:
    """Decoding, generalization and interaction of one place in words.

    Examples
    --------
    >>> row = pd.Series({"value": 0.97, "p_corr": 0.01, "x_decoding": 0.98, "x_p_geometry": 0.001,
    ...     "x_parallelism": 1.0, "x_p_interaction": 0.4, "x_interaction": 0.1})
    >>> print(reading(row).partition("Reading: ")[2])
    an abstract, additive code, as far as this goes: it generalizes beyond chance geometry, and no interaction is found.
    """
    parts = [f"Within conditions AUC {digits(row['x_decoding'])}"]
    cosine = row.get("x_parallelism")
    parts.append("parallelism undefined" if pd.isna(cosine) else f"parallelism {digits(cosine)}")
    parts.append(f"against shuffled geometries p {digits(row['x_p_geometry'])}")
    p_both = row.get("x_p_interaction")
    if pd.notna(p_both):
        parts.append(f"effect x condition D_c {digits(row['x_interaction'])} (p {digits(p_both)})")
    across = row["p_corr"] <= alpha and row["x_p_geometry"] <= alpha
    apart = pd.notna(p_both) and p_both <= alpha
    if across and not apart:
        words = (
            "an abstract, additive code, as far as this goes: it generalizes beyond chance geometry, and no "
            "interaction is found"
        )
    elif across:
        words = "a code that generalizes and is changed by the condition as well"
    elif apart:
        words = "a context-bound code: it is not found to generalize, and it differs between conditions"
    else:
        words = "undecided: neither generalization beyond chance geometry nor an interaction is found"
    return f"{'; '.join(parts)}. Reading: {words}."


def _dispersion(found: pd.DataFrame, alpha: float) -> str:
    """A caution where the two sides also differ in spread."""
    n = int((found["x_p_dispersion"] <= alpha).sum())
    if not n:
        return ""
    return f"At {plural(n, 'found place')} the spread differs too, which alone would give a large F."


def _described(test: str, rows: pd.DataFrame) -> Statement:
    """The largest share of variance, described."""
    known = rows[rows["value"].notna()]
    localizer = distinct(rows["split"]) == ["localizer"]
    if not len(known):
        text = f"No variance between cells can be shared out{where(rows)}."
        return Statement(test, "", "untested", "–", text, why_untested(rows), localizer)
    best = known.loc[known["x_total"].astype(float).idxmax()]
    here = known[(known[["site", "region", "position"]] == best[["site", "region", "position"]]).all(axis=1)]
    parts = listed(f"{effect} {value:.0%}" for effect, value in zip(here["effect"], here["value"], strict=True))
    text = f"Where cells differ most ({best['site']} · {best['region']}), the variance between them is {parts}."
    detail = f"Cross-validated over {plural(n_units(known), 'item')}: noise adds nothing on average, and shares may be "
    detail += "negative or above 100 %. Described, not tested; the contrast length says what is significant."
    return Statement(test, "", "exploratory", f"{best['value']:.0%}", text, detail, localizer)


def draw_factorial(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Effects by place; decoding against generalization; shares of variance."""
    alpha, name = alpha_of(study), slug(test)
    source = f"Drawn from {plural(n_units(rows), 'item')} of split {listed(distinct(rows['split']))}."
    kind = first_known(rows["stat"])
    if kind == "demixed":
        if rows["x_variance"].notna().any():
            words = (
                "The cross-validated variance between cells along each effect, features divided by their standard "
                f"deviations. Noise alone is 0 on average, so bars may be negative. {source}"
            )
            yield Drawing(f"{name}-shares", "shares", test, "Variance by effect", words, shares(rows), wide=True)
        return
    if "x_z" in rows and rows["x_z"].notna().sum() > 1:
        words = (
            "The statistic of every effect at every place, minus the mean and divided by the standard deviation over "
            f"relabellings. Filled: corrected p ≤ {alpha:g}. {source}"
        )
        figure = pattern_effects(rows, alpha=alpha)
        yield Drawing(f"{name}-patterns", "patterns", test, "Effects by place", words, figure)
    if kind == "ccgp" and rows["value"].notna().any():
        words = (
            "Far right and high: the same direction serves in all conditions. Far right and at the dashed line: "
            f"decoded in each condition, by directions that have nothing in common. "
            f"Filled: corrected p ≤ {alpha:g}. {source}"
        )
        figure = abstraction(rows, alpha=alpha)
        yield Drawing(f"{name}-abstraction", "abstraction", test, "Decoding and generalization", words, figure)


def factorial_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Statistic, relabelling and correction of every factorial test."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(dtype=bool)]
        kind, adjust = first_known(part["stat"]), first_known(part["p_adjust"])
        yield f"{test}: the effects {listed(distinct(part['effect']))} were measured by {METHODS[kind]}."
        if not adjust:
            continue
        n = part["n_perm"].dropna()
        unit = "fold of items" if kind == "cvmanova" else first_known(part["unit"], "item")
        over = "over places, then by Holm's method over effects" if adjust == "maxT+holm" else "over places"
        yield (
            f"Whole units ({unit}) were relabelled ({digits(int(n.max()))} relabellings, the same at all places); p is "
            f"one-sided, corrected by the maximum of the standardized statistic {over} {CITED.get(adjust, '')}."
        )
        ask = section(study.analysis, "tests", test)
        if ask.get("features"):
            yield (
                "The features were chosen beforehand; random sets matched in number, density and energy stand beside "
                "them."
            )


FACTORIAL = Section(pattern_statements, draw_factorial, factorial_methods)
