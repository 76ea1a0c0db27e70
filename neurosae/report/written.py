"""What the page says of steered texts and of removed differences: item p and control p, dose, range, cost, texts."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from neurosae.report.claims import n_units
from neurosae.report.figures_written import removal_cells, removal_costs, steering
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.stored import Study, alpha_of, section
from neurosae.report.tables import distinct, first_known, has_numbers, is_found
from neurosae.report.wording import digits, listed, p_words, plural, slug

UNITS = {"balance": "words per 100", "log_odds": "log odds of words", "next_word": "log odds of the next word"}
WARNED = ("outside", "steer may", "controls are badly", "costs on", "not scored")
SHOWN = 12  # pairs of texts on the page, as many of every condition
LISTS = (
    "Scores count words of two lists; they know neither negation nor sense, and a text that is made of such words "
    "alone "
    "scores best."
)
FRAMES = (
    "This holds for the tested frames, roles and forms. A smaller difference in these logits is no evidence that the "
    "model is without bias elsewhere."
)


# ------------------------------------------------------------------ steered texts


def generation_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """One sentence per direction and dose, with both p-values and the cost."""
    alpha = alpha_of(study)
    effect = first_known(rows["effect"], "")
    known = rows[has_numbers(rows)]
    if not len(known):
        note = first_known(rows["note"], "no score changed")
        yield Statement(test, effect, "untested", "–", f"Steering {effect} changed no item's score.", note, False)
        return
    found = known[is_found(known, alpha)]
    what = "the next word" if first_known(known["x_score"], "") == "next_word" else "what is written"
    words = listed(_change(row) for _, row in (found if len(found) else known).iterrows())
    if len(found):
        text = f"Steering {_features(known)}{_from(known)} changes {what}: {words}."
    else:
        text = f"Steering {_features(known)}{_from(known)} is not shown to change {what}: {words}."
    cost = listed(_cost(row) for _, row in known.iterrows())
    detail = (
        f"{plural(n_units(known), 'item')}; p over items and among {int(known['x_n_controls'].iloc[0])} sets of "
        "matched "
        f"control features, of which the larger counts, Holm over {plural(len(known), 'condition')}. Cost on neutral "
        "text: "
        f"{cost}."
    )
    cautions = (LISTS, *_warnings(known["note"]))
    yield Statement(
        test, effect, "found" if len(found) else "nothing", f"{len(found)}/{len(known)}", text, detail, False, cautions
    )


def _warnings(notes: pd.Series) -> list[str]:
    """What notes say that speaks against a result; how controls were drawn stands in the table."""
    parts = dict.fromkeys(part for note in notes.dropna() for part in str(note).split("; "))
    return [part[0].upper() + part[1:] + "." for part in parts if part.startswith(WARNED)]


def _from(rows: pd.DataFrame) -> str:
    """` of <site>, in texts that go on at <region>`."""
    return f" of {listed(distinct(rows['site']))}, in texts that go on at {listed(distinct(rows['region']))},"


def _features(rows: pd.DataFrame) -> str:
    return plural(int(rows["n_features"].iloc[0]), "feature")


def _change(row: pd.Series) -> str:
    unit = UNITS.get(str(row["x_score"]), "")
    name = str(row["set"]).rpartition(", towards ")[2]
    return (
        f"towards {name} {digits(row['x_plain'])} → {digits(row['x_steered'])} {unit} "
        f"(change {digits(row['estimate'])} [{digits(row['ci_low'])}, {digits(row['ci_high'])}], "
        f"items p = {p_words(row['x_p_items'])}, controls p = {p_words(row['x_p_controls'])})"
    )


def _cost(row: pd.Series) -> str:
    name = str(row["set"]).rpartition(", towards ")[2]
    text = f"{name}: KL {digits(row['x_kl'])} nats per token, perplexity × {digits(row['x_perplexity_ratio'])}"
    if pd.notna(row.get("x_text_perplexity")):
        plain, own = digits(row["x_text_perplexity_plain"]), digits(row["x_text_perplexity"])
        text += f", texts have perplexity {own} for the unedited model (plain texts {plain})"
    return text


def draw_generation(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Items and control sets."""
    items, controls = study.extras.get((test, "items")), study.extras.get((test, "controls"))
    if items is None or controls is None or not has_numbers(rows).any():
        return
    words = (
        f"Left: change of the score of each of {plural(n_units(rows), 'item')} against the plain text from the same "
        "random numbers, mean and 95 % interval. Right: mean changes of matched control sets (grey) beside that of the "
        "features (diamond). Coloured: both p-values hold after correction."
    )
    unit = UNITS.get(first_known(rows["x_score"], ""), "")
    figure = steering(rows, items, controls, unit=unit, alpha=alpha_of(study))
    yield Drawing(f"{slug(test)}-steering", "steering", test, "Steered against plain", words, figure, wide=True)


def generation_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Prompts, samples, doses, scores and inference."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(bool)]
        ask = section(study.analysis, "tests", test)
        n_samples, score = ask.get("n_samples", 4), ask.get("score", "balance")
        written = "" if score == "next_word" else (
            f"continued by up to {ask.get('n_new', 24)} tokens, {plural(n_samples, 'sample')} each at temperature "
            f"{ask.get('temperature', 1.0):g}, "
        )  # fmt: skip
        yield (
            f"{test}: the text {ask.get('prompt', 'before')} {listed(distinct(part['region']))} of each of "
            f"{plural(n_units(part), 'item')} was {written}once plainly and once with {_features(part)} edited in "
            "delta "
            f"form at {ask.get('where', 'all')} tokens (mode {ask.get('mode', 'steer')}, dose {ask.get('dose', 'p90')} "
            "of "
            f"each feature's natural activity), with the same random numbers. Scored was {UNITS.get(score, score)} of "
            "two "
            "lists of words. Samples and prompts were averaged inside items; item changes were tested by sign flips, "
            "and "
            f"ranked among {int(part['x_n_controls'].iloc[0])} sets of control features matched in density and "
            "size; the "
            "larger p counts, Holm [holm1979] over the conditions."
        )


# ------------------------------------------------------------------ removed differences


def removal_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """The bias, what removes it, and what does so at least cost."""
    alpha, effect = alpha_of(study), first_known(rows["effect"], "")
    bias = rows[rows["set"].eq("no edit").to_numpy(bool)].iloc[0]
    full = rows[
        rows["p_adjust"].eq("holm").fillna(False).to_numpy(bool) & rows["x_strength"].eq(1).fillna(False).to_numpy(bool)
    ]
    found = full[is_found(full, alpha)]
    text = (
        f"Before any edit the preference for the own level's form is {digits(bias['estimate'])} "
        f"[{digits(bias['ci_low'])}, {digits(bias['ci_high'])}] in logits (items p = "
        f"{p_words(bias['p_corr'])}). "
        + (
            f"It is changed by {_removed(found)}."
            if len(found)
            else f"No edit is shown to change it: {_removed(full)}."
        )
    )
    left = rows[rows["set"].str.startswith("left after").to_numpy(bool)]
    pairs = rows[rows["p_adjust"].eq("maxT").fillna(False).to_numpy(bool)]
    detail = f"At equal cost (KL {digits(left['x_kl'].mean())} nats per token) there is left: {_left(left)}; "
    apart = pairs[is_found(pairs, alpha)]
    differ = listed(f"{row['set'].partition(', at')[0]} {digits(row['estimate'])}" for _, row in apart.iterrows())
    detail += f"differences between methods: {differ or 'none'} (max-T over {plural(len(pairs), 'pair')})."
    notes = dict.fromkeys(str(n) for n in full["note"].dropna() if "badly" in str(n))
    yield Statement(
        test, effect, "found" if len(found) else "nothing", f"{len(found)}/{len(full)}", text, detail, False,
        (FRAMES, *notes),
    )  # fmt: skip


def _removed(rows: pd.DataFrame) -> str:
    return listed(
        f"{row['x_method']} ({digits(row['estimate'])}, {_share(row['x_share_removed'])}, items p = "
        f"{p_words(row['x_p_items'])}, controls p = {p_words(row['x_p_controls'])})"
        for _, row in rows.iterrows()
    )


def _share(removed: float) -> str:
    return f"{100 * removed:.0f} % removed" if removed >= 0 else f"{-100 * removed:.0f} % added"


def _left(rows: pd.DataFrame) -> str:
    return listed(
        f"{row['x_method']} {digits(row['estimate'])} [{digits(row['ci_low'])}, {digits(row['ci_high'])}] at strength "
        f"{digits(row['x_strength'])}"
        for _, row in rows.iterrows()
    )


def draw_removal(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Bias against cost, and the cells."""
    strengths, cells = study.extras.get((test, "strengths")), study.extras.get((test, "cells"))
    if strengths is not None and len(strengths):
        words = (
            f"Mean bias over {plural(n_units(rows), 'item')} with its 95 % interval against what the same edit costs "
            "on "
            "neutral text; every line begins at the unedited model. Dashed: the divergence at which methods are "
            "compared."
        )
        yield Drawing(f"{slug(test)}-removal", "removal", test, "Bias against cost", words, removal_costs(strengths))
    if cells is not None and len(cells):
        words = (
            "Mean logit difference between the form of the text's own level and that of the other level, by cell, "
            "before "
            "any edit and after every method at full strength. Above 0: the model expects the form of the level."
        )
        yield Drawing(f"{slug(test)}-removal_cells", "removal_cells", test, "Cells", words, removal_cells(cells))


def removal_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Bias, edits, controls, matching."""
    for test in distinct(rows["test"]):
        part = rows[(rows["test"] == test).to_numpy(bool)]
        ask = section(study.analysis, "tests", test)
        yield (
            f"{test}: bias is the mean over an item's cells of the logit difference between the form of the text's own "
            f"level and that of the other level ({plural(n_units(part), 'item')}). It was removed by "
            f"{listed(ask.get('methods', ('ablate', 'mean', 'direction')))}: features set to 0, features set to their "
            "mean "
            "over both levels, and the component along the difference of means taken out, always in delta form and at "
            "all "
            "tokens; means come from localizer items. At full strength the change was tested by flips of whole items "
            "and "
            "ranked among control edits (matched feature sets; differences of means with levels exchanged in half of "
            "the "
            "items); the larger p counts, Holm [holm1979] over methods. Methods were compared at strengths of equal "
            "divergence on neutral text."
        )


# ------------------------------------------------------------------ texts side by side


def steered_texts(study: Study, test: str) -> dict[str, Any] | None:
    """Pairs of texts of a test, the first sample of evenly spaced prompts: chosen by place, never by score."""
    table = study.extras.get((test, "texts"))
    if table is None or not len(table):
        return None
    conditions = distinct(table["condition"])
    each = max(1, SHOWN // len(conditions))
    rows = []
    for condition in conditions:
        own = table[((table["condition"] == condition) & (table["sample"] == 0)).to_numpy(bool)]
        step = max(1, len(own) // each)
        rows.extend(_pair(row) for _, row in own.iloc[::step].head(each).iterrows())
    return {"rows": rows, "n": len(table), "warning": content_warning(study)}


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "condition": str(row["condition"]), "item": str(row["item"]), "prompt": str(row["prompt"]),
        "plain": str(row["plain"]), "steered": str(row["steered"]),
        "score_plain": digits(row["score_plain"]), "score_steered": digits(row["score_steered"]),
    }  # fmt: skip


def content_warning(study: Study) -> str:
    """The sentence behind which texts are folded away; empty where there is none."""
    return str(section(study.analysis, "report").get("content_warning") or "")


GENERATION = Section(generation_statements, draw_generation, generation_methods)
REMOVAL = Section(removal_statements, draw_removal, removal_methods)
