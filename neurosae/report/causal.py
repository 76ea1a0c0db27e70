"""What the page says of interventions: what moved, by both p-values, at what dose and cost, and what was not shown."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from neurosae.report.claims import CORRECTIONS, n_units
from neurosae.report.figures_causal import clamp_lines, control_histogram, dose_response, dose_surface, ladder_bars
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, first_known
from neurosae.report.wording import digits, listed, plural, slug

LIMITS = (
    "The result is about these features in this model and dictionary, over items like these. An edit does not run the "
    "competition of a TopK dictionary again, and later layers may compensate for what was removed.",
)
JOINT_LIMITS = (
    "An interaction of edits is no integration by itself: it is the causal member of the integration battery and "
    "counts beside grade 2 alone.",
)
MODES = {
    "ablate": "Setting them to 0",
    "clamp": "Clamping them to natural doses",
    "conditional": "Clamping them where they are active",
    "scale": "Scaling them",
    "steer": "Adding to them",
}


def _claims(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["x_role"] == "claim"]


def statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per claim: mode, contrast, place."""
    alpha = alpha_of(study)
    for number, (_, row) in enumerate(_claims(rows).iterrows()):
        place = f"{row['region']} in {row['site']}"
        who = f"feature {row['feature']}" if pd.notna(row["feature"]) else str(row["set"])
        what = "the outcome" if row["x_contrast"] == "mean" else f"the contrast {row['x_contrast']} of the outcome"
        cautions = (*LIMITS, *_cautions(row)) if number == 0 else _cautions(row)
        if row["status"] != "ok":
            text = (
                f"{MODES.get(row['x_mode'], row['x_mode'])} at {place} ({who}): no claim about {what}. {row['note']}."
            )
            yield Statement(test, str(row["effect"]), "untested", "–", text, _detail(row, alpha), False, cautions)
            continue
        held = pd.notna(row["p_corr"]) and row["p_corr"] <= alpha
        moved = f"{'moves' if held else 'is not shown to move'} {what}{_amount(row) if held else ''}"
        text = f"{MODES.get(row['x_mode'], row['x_mode'])} at {place} ({who}) {moved}{_why_not(row, alpha, held=held)}."
        yield Statement(
            test, str(row["effect"]), "found" if held else "nothing", digits(row["x_change"], 2), text,
            _detail(row, alpha), False, cautions,
        )  # fmt: skip
    yield from _over_features(test, rows[rows["x_role"] == "population"], alpha)


def _over_features(test: str, rows: pd.DataFrame, alpha: float) -> Iterator[Statement]:
    """What features of a kind do, each edited alone: the mixed model over items and features."""
    for _, row in rows.iterrows():
        what = "the outcome" if row["x_contrast"] == "mean" else f"the contrast {row['x_contrast']} of the outcome"
        how = f"{MODES.get(row['x_mode'], row['x_mode'])}, one feature at a time, at {row['region']} in {row['site']}"
        beside = (
            f"min-F' {digits(row['x_min_f'])} on 1 and {digits(row['x_min_f_dof'])} degrees of freedom, "
            f"p {digits(row['x_p_min_f'])}. {row['note']}."
        )
        if row["status"] != "ok":
            text = f"{how}: no claim about {what} over features. {row['note']}."
            yield Statement(test, str(row["effect"]), "untested", "–", text, f"Beside it, {beside}", False, ())
            continue
        held = pd.notna(row["p_corr"]) and row["p_corr"] <= alpha
        size = f"mean {'slope' if 'slope' in row['stat'] else 'change'} {digits(row['estimate'])}"
        moved = "moves" if held else "is not shown to move"
        text = (
            f"{how} {moved} {what} over items like these and features like these "
            f"({size}, {plural(row['n_features'], 'feature')})."
        )
        detail = (
            f"Mixed model, items and features random: {size} [{digits(row['ci_low'])}, {digits(row['ci_high'])}], "
            f"t {digits(row['value'])} on {digits(row['dof'])} degrees of freedom, p {digits(row['p_unc'])}"
            + (f", corrected {digits(row['p_corr'])}" if pd.notna(row["p_corr"]) else "")
            + f"; variances: items {digits(row['x_var_item'])}, features {digits(row['x_var_feature'])}, rest "
            f"{digits(row['x_var_resid'])}. {beside}"
        )
        verdict = "found" if held else "nothing"
        yield Statement(test, str(row["effect"]), verdict, digits(row["estimate"], 2), text, detail, False, ())


def _amount(row: pd.Series) -> str:
    by = f" by {digits(row['x_change'])} at dose {row['x_dose']}"
    return by + (f", {digits(100 * row['x_share'], 2)} % of its clean value" if pd.notna(row["x_share"]) else "")


def _why_not(row: pd.Series, alpha: float, *, held: bool) -> str:
    if held:
        return ""
    if row["x_p_items"] <= alpha < row["x_p_controls"]:
        return f" more than matched features do: it changes by {digits(row['x_change'])}, but so it does for controls"
    if row["x_p_controls"] <= alpha < row["x_p_items"]:
        return " reliably over items, although the mean change is larger than that of controls"
    return ""


def _detail(row: pd.Series, alpha: float) -> str:
    """Both p-values, matching, size, equivalence, cost: everything a claim rests on."""
    said = [
        f"Over items p {digits(row['x_p_items'])}; among {_count(row)} matched controls p {digits(row['x_p_controls'])}"
    ]
    if pd.notna(row["p_corr"]):
        said.append(f"claim p {digits(row['p_unc'])}, corrected {digits(row['p_corr'])}")
    said.append(f"worst standardized difference of controls {digits(row['x_worst_smd'], 2)}")
    said.append(f"clean {digits(row['x_clean'])}, norms frozen: {row['x_freeze']}")
    if "x_p_equivalent" in row and pd.notna(row["x_p_equivalent"]):
        small = row["x_p_equivalent"] <= alpha
        interval = f"90 % interval {digits(row['x_ci90_low'])} to {digits(row['x_ci90_high'])}"
        verdict = "smaller than what would matter" if small else "not shown to be smaller than what would matter"
        said.append(f"{verdict} ({digits(row['x_smallest'])}; {interval})")
    return "; ".join([*said, *_cost(row)]) + "."


def _cost(row: pd.Series) -> list[str]:
    """What the edit costs on text that it is not about; nothing where that was not measured."""
    if "x_kl" not in row or pd.isna(row["x_kl"]):
        return []
    return [
        f"off target, on reference text edited everywhere: KL {digits(row['x_kl'])} nats per token, perplexity x "
        f"{digits(row['x_perplexity_ratio'])}"
    ]


def _count(row: pd.Series) -> str:
    return digits(int(row["x_n_controls"])) if pd.notna(row["x_n_controls"]) else "no"


def _cautions(row: pd.Series) -> tuple[str, ...]:
    outside = "x_outside" in row and bool(row["x_outside"] is True or row["x_outside"] == True)  # noqa: E712
    said = ["The highest dose lies outside the natural range of these features."] if outside else []
    if "not matched:" in str(row["note"]):
        said.append(
            f"Controls were{str(row['note']).partition('not matched:')[2].join([' not matched in all: ', ''])}."
        )
    return tuple(said)


def drawings(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Dose response, controls, cells, ladder."""
    name = slug(test)
    source = f"Drawn from {plural(n_units(rows), 'test item')}."
    doses = study.extras.get((test, "doses"))
    if doses is not None and len(doses) and doses.groupby(["mode", "contrast"])["dose"].nunique().max() > 1:
        several = doses[doses.groupby(["site", "region", "mode", "contrast", "feature"])["dose"].transform("size") > 1]
        words = (
            "Orange: mean change from the clean run at every dose, with 95 % intervals over items. Grey: the middle "
            f"95 % of the matched controls at their own doses, and their median. {source}"
        )
        yield Drawing(f"{name}-doses", "doses", test, "Dose response", words, dose_response(several), wide=True)
    controls = study.extras.get((test, "controls"))
    if controls is not None and len(controls):
        yield _control_drawing(test, controls, source)
    for number, (key, part) in enumerate(_rungs(rows)):
        words = (
            f"{key[0]} at {key[2]} in {key[1]}: the features beside edits as long that are not theirs, and upper "
            f"bounds. Bars: 95 % intervals over items. No rung is corrected. {source}"
        )
        title = f"Sanity ladder: {key[3]}"
        yield Drawing(f"{name}-{number}-ladder", "ladder", test, title, words, ladder_bars(part), wide=True)


def _control_drawing(test: str, controls: pd.DataFrame, source: str) -> Drawing:
    words = (
        "Histogram: what matched controls do; line: the target. A claim needs the target to stand out here and to be "
        f"reliable over items. {source}"
    )
    figure = control_histogram(controls)
    return Drawing(f"{slug(test)}-controls", "controls", test, "Target among controls", words, figure, wide=True)


def _rungs(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str, str], pd.DataFrame]]:
    """Rows of every ladder, the features' own first; at most four."""
    if "x_rung" not in rows or not rows["x_rung"].notna().any():
        return
    found = 0
    for key, part in rows[rows["x_rung"].notna()].groupby(["x_mode", "site", "region", "x_contrast"], sort=False):
        mode, site, region, contrast = key  # pyright: ignore
        own = rows[(rows["x_mode"] == mode) & (rows["site"] == site) & (rows["region"] == region)]
        own = own[(own["x_contrast"] == contrast) & (own["x_role"] == "claim")]
        if not len(own) or found >= 4:
            continue
        found += 1
        mine = own.head(1).assign(estimate=own["x_change"].iloc[0], ci_low=float("nan"), ci_high=float("nan"))
        yield key, pd.concat([mine.dropna(axis=1, how="all"), part.dropna(axis=1, how="all")])  # pyright: ignore


def methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """How edits, controls and p were made."""
    for test, part in rows.groupby("test", sort=False):
        claims = _claims(part)
        adjust = first_known(claims["p_adjust"], "none")
        asked = section(study.analysis, "tests", str(test))
        match = listed(asked.get("match", ("density", "size", "cosine")))
        yield (
            f"{test}: features were edited in delta form, x + (f' - f) W_dec, which keeps the dictionary's error "
            f"({listed(distinct(claims['x_mode']))}; norms frozen: {listed(distinct(claims['x_freeze']))}). p over "
            "items is that of sign flips of whole items, p among controls the rank of the mean change among "
            f"{first_known(claims['x_n_controls'], 'no')} sets matched on {match}; the claim's p is the larger one, "
            f"{CORRECTIONS.get(adjust, adjust)}. Doses are quantiles of the active values on reference text, and the "
            "absence of a change was tested by two one-sided tests [schuirmann1987; lakens2017]."
        )
        if (part["x_role"] == "population").any():
            yield (
                f"{test}: each feature was also edited alone, and its item slopes (changes, with one dose) were fitted "
                "by REML with crossed random effects of items and features (Satterthwaite's degrees of freedom), with "
                "min-F' beside it [clark1973]; Holm over these rows."
            )


def joint_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One statement per direction and place."""
    alpha = alpha_of(study)
    for number, (_, row) in enumerate(_claims(rows).iterrows()):
        place = f"{row['region']} in {row['site']}"
        how = "Clamped together" if row["x_mode"] == "clamp" else "Ablated together"
        detail = (
            f"I free {digits(row['x_estimate_free'])} (items p {digits(row['x_p_items_free'])}, pairs p "
            f"{digits(row['x_p_controls_free'])}); frozen {digits(row['x_estimate'])} "
            f"(items p {digits(row['x_p_items'])}, "
            f"pairs p {digits(row['x_p_controls'])}); I / (|A| + |B|) {digits(row['x_share_free'], 2)} free; "
            f"{_count(row)} matched pairs, worst standardized difference {digits(row['x_worst_smd'], 2)}"
        )
        detail = "; ".join([detail, *_cost(row)]) + "."
        cautions = JOINT_LIMITS if number == 0 else ()
        if row["status"] != "ok":
            text = f"{how} at {place}, {row['set']}: no claim, {row['note']}."
            yield Statement(test, str(row["effect"]), "untested", "–", text, detail, False, cautions)
            continue
        held = pd.notna(row["p_corr"]) and row["p_corr"] <= alpha
        more = "more" if row["estimate"] > 0 else "less"
        said = (
            f"do {more} than the sum of their single effects, by {digits(row['estimate'])} logits with norms frozen"
            if held
            else "are not shown to do anything but add up"
        )
        if not held and row["x_p_items_free"] <= alpha < row["x_p_items"]:
            said += "; what differs from a sum is the work of the normalization, and vanishes when it is frozen"
        verdict = "found" if held else "nothing"
        text = f"{how} at {place}, {row['set']} {said}."
        yield Statement(test, str(row["effect"]), verdict, digits(row["estimate"], 2), text, detail, False, cautions)
    more = rows[rows["x_role"] == "exploratory"]
    if len(more):
        text = (
            f"Shapley-Taylor interactions of {plural(len(more), 'pair')} of sets are described; they have no controls."
        )
        yield Statement(test, "", "exploratory", "–", text, "", False, JOINT_LIMITS)


def joint_drawings(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """The 2 x 2 clamp, its controls, the dose x dose surface."""
    name, source = slug(test), f"Drawn from {plural(n_units(rows), 'test item')}."
    first, _, second = first_known(rows["set"], "first x second").partition(" x ")
    clamps = study.extras.get((test, "clamps"))
    if clamps is not None and len(clamps):
        words = (
            "Mean logit difference with 95 % intervals over items. Lines that are not parallel are an interaction; "
            f"with norms free any linear network has one. {source}"
        )
        figure = clamp_lines(clamps, names=(first, second))
        yield Drawing(f"{name}-clamps", "clamps", test, "Joint and single edits", words, figure, wide=True)
    controls = study.extras.get((test, "controls"))
    if controls is not None and len(controls):
        yield _control_drawing(test, controls, source)
    grid = study.extras.get((test, "surface"))
    if grid is not None and len(grid):
        words = (
            "Interaction at every pair of doses. A bilinear one grows with the product of the doses; saturation "
            f"flattens it or turns its sign. Ring: p <= .05 over the grid (max-T), norms frozen. {source}"
        )
        figure = dose_surface(grid, names=(first, second))
        yield Drawing(f"{name}-surface", "surface", test, "Dose by dose", words, figure, wide=True)


def joint_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What was clamped where, and what a claim needs."""
    for test in distinct(rows["test"]):
        yield (
            f"{test}: I = L(AB) - L(A) - L(B) + L(0) of the logit difference, by clamping into texts without "
            "either part and by ablating from texts with both, with scales of normalizations free and frozen at the "
            "run without edits. A claim needs all of four: flips of I over items and its rank among matched pairs of "
            "control sets (distance from the median), free and frozen; Holm over directions and places. The cost off "
            "target is that of both sets together, edited at all tokens of reference text."
        )


INTERVENTION = Section(statements, drawings, methods)
JOINT_CLAMP = Section(joint_statements, joint_drawings, joint_methods)
