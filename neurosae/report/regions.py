"""What the page says of regions of interest (sets of features) and of pairs of features."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import CORRECTIONS, by_effect, held, n_units, where, why_untested
from neurosae.report.figures_sets import ROWS, SET_KEY, set_items
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.references import CITED
from neurosae.report.stored import Study, alpha_of
from neurosae.report.tables import distinct, first_known, has_numbers, is_found, ranked
from neurosae.report.wording import digits, listed, p_words, plural, slug

SOME = "A found set says that some of its features respond, not which of them."
SCREEN = "A screen for co-activation; not evidence of integration by itself."


def roi_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect: how many sets were found, and the strongest."""
    for effect, part in by_effect(rows):
        tested = part[has_numbers(part)]
        yield _statement(study, (test, effect), part, tested=tested, noun="set", caution=SOME)


def pair_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per effect: how many pairs of how many were found."""
    for effect, part in by_effect(rows):
        tested = part[has_numbers(part)]
        yield _statement(study, (test, effect), part, tested=tested, noun="pair", caution=SCREEN)


def _statement(
    study: Study, name: tuple[str, str], rows: pd.DataFrame, *, tested: pd.DataFrame, noun: str, caution: str
) -> Statement:
    (test, effect), alpha = name, alpha_of(study)
    localizer = distinct(rows["split"]) == ["localizer"]
    if not len(tested):
        text = f"No {noun} could be tested for {effect}{where(rows)}."
        return Statement(test, effect, "untested", "–", text, why_untested(rows), localizer)
    found = tested[is_found(tested, alpha)]
    n = int(tested["n_features"].sum()) if noun == "pair" else len(tested)
    of = f"{plural(n, f'tested {noun}')} of features"
    said = "respond" + ("s" if len(found) == 1 else "")
    number = f"{len(found):,}" if len(found) else "None"
    more = int((found["value"] > 0).sum())
    ways = [f"{k:,} {w}" for k, w in ((more, "more in the + cells"), (len(found) - more, "more in the − cells")) if k]
    text = f"{number} of {of} {said} to {effect}{where(rows)}{f': {listed(ways)}' if ways else ''}."
    detail = f"{held(tested, alpha)} {_strongest(tested)}"
    verdict = "found" if len(found) else "nothing"
    cautions = (caution, *([_CHOSEN] if tested["note"].str.contains("on the same items").any() else []))
    return Statement(test, effect, verdict, f"{len(found):,}", text, detail, localizer, cautions)


_CHOSEN = (
    "Features were chosen by another effect on the same items: the test needs equal variances and covariances of all "
    "cells, which the responses can refute but not prove."
)


def _strongest(tested: pd.DataFrame) -> str:
    row = ranked(tested[tested["estimate"].notna()]).iloc[0]
    p = p_words(row["p_corr"], row.get("x_p_low"), row.get("x_p_high"))
    kind = str(row["stat"]).replace("_", " ")
    said = f"{row['set']} at {row['region']} ({row['site']}; {kind} = {digits(row['value'])}"
    return f"The strongest is {said}, p corrected {p})." if pd.notna(row["p_corr"]) else f"The strongest is {said})."


def draw_roi(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Every item's contrast, set by set; one figure per effect."""
    items = study.extras.get((test, "items"))
    effects = distinct(rows["effect"])
    if items is None or "set" not in items:
        return
    for effect, part in by_effect(rows):
        known = set(map(tuple, items[SET_KEY].drop_duplicates().itertuples(index=False)))
        paired = (part["eftype"] == "d_z").to_numpy(dtype=bool, na_value=False)  # between items a unit has no contrast
        shown = part[has_numbers(part) & paired]
        shown = ranked(shown[[tuple(row) in known for row in shown[SET_KEY].itertuples(index=False)]])
        if not len(shown):
            continue
        name = f"{slug(test)}-sets" if len(effects) == 1 else f"{slug(test)}-{slug(effect)}-sets"
        held_out = "held-out contrast" if "fold" in items else "contrast"
        first = f"The {ROWS} strongest of {len(shown):,} sets. " if len(shown) > ROWS else ""
        caption = (
            f"{first}Each dot is the {held_out} of one item, averaged over the features of the set; the upright line "
            f"is the mean, the level one its interval where there is one. Colour: corrected p ≤ {alpha_of(study):g}, "
            f"orange + cells, blue − cells. Drawn from {plural(n_units(part), 'item')} of split "
            f"{listed(distinct(part['split']))}."
        )
        figure = set_items(shown, items, alpha=alpha_of(study))
        yield Drawing(name, "sets", test, f"Item by item: {effect}", caption, figure, wide=True)


def roi_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """How sets were chosen, and how the choice was kept from the test."""
    for test, part in rows.groupby("test", sort=False):
        notes = " ".join(distinct(part["note"]))
        if "inside every relabelling" in notes:
            how = (
                "features were chosen on all folds of items but one and tested on that one, and the choice was "
                "repeated inside every relabelling"
            )
        elif "on the same items" in notes:
            how = "features were chosen by another effect, verified to be orthogonal on the cells and over items"
        elif "chosen on" in notes:
            how = "features were chosen by a contrast on other items"
        else:
            how = "sets were chosen without looking at the tested responses"
        sets = plural(part["set"].nunique(), "set")
        yield f"{test}: the mean response of {sets} of features was tested; {how} [kriegeskorte2009]; {_held(part)}."


def pair_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What was multiplied, which pairs were kept, and why the test of those is exact."""
    for test, part in rows.groupby("test", sort=False):
        n = int(part.loc[has_numbers(part), "n_features"].sum())
        yield (
            f"{test}: the products of the activations of all pairs of features were tested like single features, "
            f"{digits(n)} of {digits(int(part['n_features'].sum()))} pairs having fired together in enough stimuli and "
            "differed in enough items, which are counts that no relabelling changes; " + f"{_held(part)}. {SCREEN}"
        )


def _held(rows: pd.DataFrame) -> str:
    adjust = first_known(rows["p_adjust"], "none")
    cited = CITED.get(adjust, "")
    return f"{CORRECTIONS.get(adjust, adjust)}{f' {cited}' if cited else ''}"


ROI = Section(roi_statements, draw_roi, roi_methods)
PAIRS = Section(pair_statements, lambda study, test, rows: (), pair_methods)
