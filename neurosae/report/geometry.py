"""What the page says of geometry beyond fits: second-order agreement, shares of features, searchlights, courses."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import by_effect, example, held, where, why_untested
from neurosae.report.figures import draw_pattern
from neurosae.report.figures_geometry import agreement, divided, plane
from neurosae.report.methods import pattern_methods
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.prose import pattern_statements
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, is_found
from neurosae.report.wording import digits, listed, plural, slug
from neurosae.spec.results import strongest


def _localizer(rows: pd.DataFrame) -> bool:
    return distinct(rows["split"]) == ["localizer"]


def draw_geometry(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Matrices and fits, then the conditions in a plane and the parts of what models explain."""
    models = rows[~rows["stat"].fillna("").str.startswith("difference")]
    yield from draw_pattern(study, test, models)
    if (long := study.extras.get((test, "plane"))) is not None and len(long):
        words = (
            "Classical scaling of the data RDM; near points are alike. In brackets the share of the positive "
            "dimensions "
            "that the plane shows. Ellipses: 95 % of 100 bootstrapped sets of items, turned onto the plane of "
            "all items."
        )
        yield Drawing(f"{slug(test)}-plane", "plane", test, "Conditions in a plane", words, plane(long), wide=True)
    if (long := study.extras.get((test, "partition"))) is not None and len(long):
        words = (
            "Share of the data RDM that each model explains alone and that models share, with non-negative weights. A "
            "negative part: models explain more together. Dashed: the most that the reliability leaves to explain. "
            "Descriptive: explained shares are above 0 whatever the data are, and are never tested."
        )
        yield Drawing(f"{slug(test)}-parts", "parts", test, "Unique and shared parts", words, divided(long), wide=True)


def geometry_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """Models against the data; then which models fit better than which."""
    pairs = rows["stat"].fillna("").str.startswith("difference")
    yield from pattern_statements(study, test, rows[~pairs])
    asked = rows[pairs.to_numpy(dtype=bool)]
    if not len(asked):
        return
    alpha, tested = alpha_of(study), asked[asked["p_corr"].notna()]
    if not len(tested):
        yield Statement(test, "", "untested", "–", "Models were not ranked.", why_untested(asked), _localizer(asked))
        return
    found = tested[is_found(tested, alpha)]
    said = [
        f"{row['effect']} = {digits(row['value'])} at {row['site']} · {row['region']}" for _, row in found.iterrows()
    ]
    text = f"{len(found)} of {plural(len(tested), 'pair')} of models differ in fit: {listed(said)}." if said else (
        f"None of {plural(len(tested), 'pair')} of models is found to differ in fit."
    )  # fmt: skip
    extra = ""
    if (
        "x_p_equivalent" in tested
        and (alike := tested[(tested["x_p_equivalent"] <= alpha).fillna(False)])["effect"].size
    ):
        margin = float(tested["x_margin"].dropna().iloc[0])
        extra = f" Equivalent within {digits(margin)}: {listed(distinct(alike['effect']))} (two one-sided tests)."
    yield Statement(
        test, "", "found" if said else "nothing", f"{len(found)}", text, f"{held(tested, alpha)}{extra}", False
    )


def geometry_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """How RDMs, models and p were made."""
    yield from pattern_methods(study, rows)
    for test in distinct(rows["test"]):
        ask = section(study.analysis, "tests", test)
        how = str(ask.get("p_from", "item_flips"))
        if str(ask.get("noise") or "none") != "none":
            yield (
                f"Distances of {test} are in the metric of the residual covariance, shrunk ({ask['noise']}) and "
                f"inverted "
                "through rows x rows [walther2016]; the fit without it stands beside."
            )
        elif str(ask.get("distance", "crossnobis")) == "crossnobis":
            yield f"No noise covariance was used for {test}: its distances are cross-validated squared Euclidean ones."
        if how == "condition_labels":
            yield f"p of {test} comes from permuted labels of conditions, one-sided, the maximum over places."
        if how == "bootstrap":
            over = str(ask.get("over", "item_folds")).replace("_", " ")
            yield f"p of {test} comes from the corrected two-factor bootstrap over conditions and {over} [schutt2023]."
        if any(str(s).startswith("difference") for s in distinct(rows.loc[rows["test"] == test, "stat"])):
            yield f"Pairs of models of {test} were compared over bootstrap samples, with Holm's correction over pairs."


def second_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """The range of agreement, and how many pairs are alike beyond chance."""
    known = rows[rows["value"].notna()]
    if not len(known):
        yield Statement(
            test, "", "untested", "–", "No two geometries could be compared.", why_untested(rows), _localizer(rows)
        )
        return
    alpha, tested = alpha_of(study), known[known["p_corr"].notna()]
    first = known[known["stat"] == distinct(known["stat"])[0]]
    low, high = first.loc[first["value"].idxmin()], first.loc[first["value"].idxmax()]
    measure = str(first["stat"].iloc[0]).replace("_", " ")
    span = "" if pd.isna(high["ci_low"]) else f" [{digits(high['ci_low'])}, {digits(high['ci_high'])}]"
    text = (
        f"Geometries of {plural(len(first), 'pair')} of places agree by {measure} from {digits(low['value'])} "
        f"({low['effect']}) to {digits(high['value'])}{span} ({high['effect']})."
    )
    found = tested[is_found(tested, alpha)]
    by = listed([str(stat).replace("_", " ") for stat in distinct(tested["stat"])]) if len(tested) else ""
    detail = f"{len(found)} of {len(tested)} comparisons by {by} are above chance. {held(tested, alpha)}" if by else ""
    if len(rest := known[known["p_corr"].isna() & known["note"].fillna("").str.contains("No p: ")]):
        why = str(rest["note"].iloc[0]).partition("No p: ")[2].rstrip(".")
        detail = f"{detail} {plural(len(rest), 'comparison')} without p: {why}.".strip()
    verdict = "found" if len(found) else "exploratory" if not len(tested) else "nothing"
    yield Statement(test, "", verdict, f"{len(found)}", text, detail, _localizer(rows))


def draw_second(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """A matrix of places per measure."""
    if rows["value"].notna().any():
        words = (
            "Agreement of the geometries of all pairs of sites, regions and positions. Dots: corrected p ≤ .05. "
            "RDMs of fewer than 8 conditions have intervals over items in the table and no p."
        )
        yield Drawing(
            f"{slug(test)}-agreement", "agreement", test, "Which places are alike", words, agreement(rows), wide=True
        )


def second_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Measures and inference."""
    for test in distinct(rows["test"]):
        part = rows[rows["test"] == test]
        yield (
            f"Second-order geometry ({test}): all pairs of places were compared by {listed(distinct(part['stat']))}. "
            "Agreements of RDMs have percentile intervals over bootstrapped items (where items are no conditions). "
            f"{_permuted(part)}"
        )


def _permuted(rows: pd.DataFrame) -> str:
    """What was permuted for p; nothing where nothing was tested."""
    tested = rows[rows["p_unc"].notna()]
    kernels = tested["stat"].fillna("").str.startswith("cka")
    what = ["the conditions" if len(tested[~kernels]) else "", "whole items (CKA)" if kernels.any() else ""]
    if not (said := listed([one for one in what if one])):
        return "None was tested."
    return f"p comes from permuting {said} of the second place, alike for all pairs, with the maximum over pairs."


def share_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many features carry the geometry of each effect, and how much of it they make up."""
    for effect, part in by_effect(rows):
        features = part[part["feature"].notna()]
        tested = features[features["p_corr"].notna()]
        if not len(tested):
            text = f"Shares of features in the geometry of {effect} are described, not tested{where(part)}."
            yield Statement(test, effect, "exploratory", "–", text, why_untested(part), _localizer(part))
            continue
        alpha = alpha_of(study)
        found = tested[is_found(tested, alpha)]
        whole = "Together they have" if len(found) != 1 else "It has"
        made = ""
        if found["x_share"].notna().any():
            made = f" {whole} {digits(float(found['x_share'].sum()))} of the whole share (1 is all features)."
        elif len(found):
            made = " Their share of the fit is undefined: over all features the fit is not above 0."
        text = f"{len(found):,} of {plural(len(tested), 'tested feature')} carry the geometry of {effect}{where(part)}."
        again = part[part["set"].fillna("").str.contains("reweighted")]
        row = again[again["value"].notna()]
        if len(row):
            made += (
                f" On other items reweighted features fit {digits(float(row['value'].iloc[0]))}, all alike "
                f"{digits(float(row['x_unweighted'].iloc[0]))}."
            )
        detail = f"{held(tested, alpha)} The strongest is {example(strongest(tested))}.{made}"
        yield Statement(
            test, effect, "found" if len(found) else "nothing", f"{len(found):,}", text, detail, _localizer(part)
        )


def share_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What a share is, and how it is tested."""
    for test in distinct(rows["test"]):
        yield (
            f"Feature shares ({test}): cross-validated squared distances add over features, so the inner product "
            f"of the "
            "centred model with the distances of one feature is its exact share of the fit. Labels of the factor were "
            "swapped inside whole items, all features alike; the statistic is the share over the feature's sum "
            "of squares, "
            "one-sided, with the maximum over features. Leave-one-out and Shapley values are descriptive."
        )


def set_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many sets carry the effect, and how many of those beat matched random sets."""
    for effect, part in by_effect(rows):
        tested = part[part["p_corr"].notna()]
        if not len(tested):
            text = f"No set of features could be tested for {effect}{where(part)}."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), _localizer(part))
            continue
        alpha = alpha_of(study)
        found = tested[is_found(tested, alpha)]
        beat = int((found["x_p_control"] <= alpha).sum()) if len(found) else 0
        text = f"{len(found):,} of {plural(len(tested), 'set')} of features carry {effect}{where(part)}."
        more = (
            f" {beat:,} of them are longer than matched random sets (uncorrected p ≤ {alpha:g})." if len(found) else ""
        )
        row = strongest(tested)
        best = f"The strongest is {row['set']} at {row['site']} (D_c {digits(row['estimate'])})."
        detail = f"{held(tested, alpha)} {best}{more}"
        yield Statement(
            test, effect, "found" if len(found) else "nothing", f"{len(found):,}", text, detail, _localizer(part)
        )


def set_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Sets, statistic and controls."""
    for test in distinct(rows["test"]):
        ask = section(study.analysis, "tests", test)
        kind = (
            "the nearest decoder directions of each feature"
            if ask.get("sets", "decoder") == "decoder"
            else "communities"
        )
        yield (
            f"Searchlight ({test}): the cross-validated length of the effect in sets made of {kind}, in standard "
            f"deviations "
            f"of its own null, maximum over all sets; beside each {ask.get('n_controls', 199)} random sets "
            f"matched in size, "
            "density and energy."
        )


def course_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What is correlated, and what is permuted."""
    for test in distinct(rows["test"]):
        yield (
            f"Temporal RSA ({test}): courses of each feature over tokens were correlated between texts; the "
            f"statistics are "
            "the mean correlation within minus across categories, and within one category minus within the "
            "other. Pairs "
            "share texts, so labels of whole items were permuted, not pairs; maximum over features and both forms."
        )


def feature_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many features have courses that tell categories apart."""
    for effect, part in by_effect(rows):
        tested = part[part["p_corr"].notna()]
        if not len(tested):
            text = f"No course could be tested for {effect}{where(part)}."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), _localizer(part))
            continue
        alpha = alpha_of(study)
        found = tested[is_found(tested, alpha)]
        text = f"Courses of {len(found):,} of {plural(len(tested), 'tested feature')} differ for {effect}{where(part)}."
        detail = f"{held(tested, alpha)} The strongest is {example(strongest(tested))}."
        yield Statement(
            test, effect, "found" if len(found) else "nothing", f"{len(found):,}", text, detail, _localizer(part)
        )


def _nothing(study: Study, test: str, rows: pd.DataFrame) -> tuple[Drawing, ...]:
    return ()


GEOMETRY = {
    "rsa": Section(geometry_statements, draw_geometry, geometry_methods),
    "second_order": Section(second_statements, draw_second, second_methods),
    "feature_geometry": Section(share_statements, _nothing, share_methods),
    "searchlight": Section(set_statements, _nothing, set_methods),
    "temporal_rsa": Section(feature_statements, _nothing, course_methods),
}
"""What tests of geometry add to the page."""
