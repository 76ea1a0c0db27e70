"""What the page says of attribution, the logit lens, attention and heads, and what each of them is no evidence for."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from neurosae.report.claims import by_effect, held, why_untested
from neurosae.report.figures_attribution import attention_regions, components, head_grid, lens, screen
from neurosae.report.parts import Drawing, Section, Statement
from neurosae.report.stored import Study, alpha_of, compiled_effects, effect_ends, section
from neurosae.report.tables import distinct, first_known, has_numbers, is_found, ranked
from neurosae.report.wording import digits, listed, p_words, plural, slug

READ = "Reading a layer is not intervening on it: the first layer where it differs is not where the model decides."
LOOK = "Attention is not effect: what a head writes depends on its values too."
ALONE = (
    "Each feature was set to its baseline alone, with the normalisation free; the random others are not matched, so a "
    "causal claim needs `test: intervention` with matched controls."
)
DIRECT = "Direct parts alone: what a component does through later layers is not in them, and the scale is held fixed."
MOST = 3  # heads whose regions are drawn


def _localizer(rows: pd.DataFrame) -> bool:
    return distinct(rows["split"]) == ["localizer"]


def _named(measure: str) -> str:
    """A measure in words."""
    return {"logit_diff": "logit difference", "log_prob": "log probability", "prob": "probability"}.get(
        measure, measure
    )


Said = Callable[..., tuple[str, str, str]]
"""Of an effect, its rows, the tested and the found ones: the sentence, what follows the count, and a caution."""


def _statements(study: Study, test: str, rows: pd.DataFrame, *, what: str, said: Said) -> Iterator[Statement]:
    """One statement per effect: what `said` makes of it, or why nothing could be tested."""
    alpha = alpha_of(study)
    for effect, part in by_effect(rows):
        tested, localizer = part[has_numbers(part)], _localizer(part)
        if not len(tested):
            text = f"{what} could not be tested."
            yield Statement(test, effect, "untested", "–", text, why_untested(part), localizer)
            continue
        found = tested[is_found(tested, alpha)]
        text, more, caution = said(effect, part, tested, found=found)
        detail, verdict = f"{held(tested, alpha)} {more}".strip(), "found" if len(found) else "nothing"
        yield Statement(test, effect, verdict, f"{len(found):,}", text, detail, localizer, (caution,))


def _named_figure(test: str, effect: str, rows: pd.DataFrame) -> tuple[str, str]:
    """How the figures of an effect are called, and what their titles add, where a test has several effects."""
    several = len(distinct(rows["effect"])) > 1
    return (f"{slug(test)}-{slug(effect)}", f": {effect}") if several else (slug(test), "")


def _mean(effect: str, what: str) -> str:
    """An effect in a sentence: the mean over all cells, or the contrast that is named."""
    return what if effect == "mean" else f"the contrast {effect} of {what}"


# ------------------------------------------------------------------ attribution


def _is_direct(rows: pd.DataFrame) -> bool:
    return bool((rows["site"] == "direct").any())


def attribution_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many features (or components) change LD, by how much, and what the screen misses."""
    yield from _statements(study, test, rows, what="Attribution", said=_attribution_words)


def _attribution_words(
    effect: str, part: pd.DataFrame, tested: pd.DataFrame, *, found: pd.DataFrame
) -> tuple[str, str, str]:
    if _is_direct(part):
        return _direct_words(found, tested, effect), _strongest_change(tested), DIRECT
    return _screen_words(found, part, effect), _strongest_change(tested), ALONE


def _direct_words(found: pd.DataFrame, tested: pd.DataFrame, effect: str) -> str:
    n = plural(len(tested), "component")
    return f"{len(found):,} of {n} have a direct part in {_mean(effect, 'the logit difference')} that differs from 0."


def _screen_words(found: pd.DataFrame, ablated: pd.DataFrame, effect: str) -> str:
    top = found["set"].eq("screened").fillna(False).to_numpy(dtype=bool)
    n_top = int(ablated["set"].eq("screened").fillna(False).sum())
    others, bound = ablated["x_missed"].dropna(), ablated["x_missed_bound"].dropna()
    missed = ""
    if len(others):
        n = int(ablated["set"].eq("random others").fillna(False).sum())
        missed = (
            f" Of {plural(n, 'random other')} {len(found) - int(top.sum()):,} were found, so at most "
            f"{float(bound.max()):.1%} of what was not ablated (95 %) would be."
        )
    n_less = int((found["estimate"][top] < 0).sum())
    ways = f", {n_less:,} of them lower it" if n_less else ""
    return (
        f"Setting single features to their baseline changes {_mean(effect, 'the logit difference')} for "
        f"{int(top.sum()):,} of {n_top:,} screened features{ways}.{missed}"
    )


def _strongest_change(tested: pd.DataFrame) -> str:
    row = ranked(tested).iloc[0]
    name = row.get("x_component")
    name = f"{row['site']}/{int(row['feature'])}" if name is None or pd.isna(name) else str(name)
    control = row.get("x_p_others")
    beside = f", among the random others p = {digits(control)}" if control is not None and pd.notna(control) else ""
    interval = f" [{digits(row['ci_low'])}, {digits(row['ci_high'])}]" if pd.notna(row["ci_low"]) else ""
    return (
        f"The strongest is {name} ({digits(row['estimate'])}{interval} logits, over items p corrected "
        f"{p_words(row['p_corr'])}{beside})."
    )


def draw_attribution(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Approximate against exact effects; or the components with the largest direct parts."""
    alpha = alpha_of(study)
    for effect, part in by_effect(rows):
        name, of = _named_figure(test, effect, rows)
        long = study.extras.get((test, "screen"))
        if long is not None and len(own := long[long["effect"] == effect]) and own["exact"].notna().any():
            r = first_known(part["x_agreement"])
            words = (
                "One point per feature that was ablated, on the tested items; colours: corrected p of the exact change "
                f"at most {alpha:g}. Correlation of both: {digits(float(r)) if r else '–'}. {ALONE}"
            )
            yield Drawing(
                f"{name}-screen", "screen", test, f"Screen against ablation{of}", words, screen(own, alpha=alpha)
            )
        elif "x_component" in part and part["x_component"].notna().any() and has_numbers(part).any():
            words = f"The components with the largest direct part; colours: corrected p at most {alpha:g}. {DIRECT}"
            figure = components(part[has_numbers(part)], alpha=alpha)
            yield Drawing(f"{name}-components", "components", test, f"Direct parts of LD{of}", words, figure)


def attribution_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """How effects were approximated, which features were ablated, and against what they were tested."""
    for test in distinct(rows["test"]):
        ask = section(study.analysis, "tests", test)
        method = str(ask.get("method", "act_x_grad"))
        if method == "direct":
            yield (
                f"Direct attribution ({test}): the last residual stream is the sum of what embedding, heads and MLPs "
                "wrote; with the scale of the final normalisation held fixed, each component has a linear part of the "
                "logit difference between target and foil, and the parts add up to it (checked to 1e-4) [elhage2021]."
            )
            continue
        how = "one backward pass (activation times gradient) [nanda2023]"
        if method == "integrated_gradients":
            gap = rows.loc[rows["test"] == test, "x_completeness"].dropna()
            worst = f"; largest completeness error {digits(float(gap.max()))} logits" if len(gap) else ""
            how = f"integrated gradients over {ask.get('steps', 8)} midpoints [sundararajan2017]{worst}"
        yield (
            f"Attribution ({test}): on the items of the other split the change of the logit difference between target "
            f"and foil when a feature is set to its baseline ({ask.get('baseline', 'zero')}) was approximated for all "
            f"features by {how}. The largest, and others drawn at random, were then set to it exactly on the tested "
            "items, one at a time, with the dictionary's reconstruction error kept and the normalisation free."
        )


# ------------------------------------------------------------------ logit lens


def lens_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """Layers where the target can be read."""
    yield from _statements(study, test, rows, what="The logit lens", said=_lens_words)


def _lens_words(effect: str, part: pd.DataFrame, tested: pd.DataFrame, *, found: pd.DataFrame) -> tuple[str, str, str]:
    said = _mean(effect, f"the {_named(first_known(tested['x_measure'], 'logit_diff'))} read out of the stream")
    layers = listed("the embedding" if j == 0 else f"layer {int(j) - 1}" for j in found["feature"])
    at = f": {layers}" if len(found) else ""
    text = f"{said} differs from 0 at {len(found):,} of {plural(len(tested), 'depth')}{at}."
    row = ranked(tested).iloc[0]
    more = f"Largest: {digits(row['estimate'])} at depth {int(row['feature'])}."
    return text[0].upper() + text[1:], more, READ


def draw_lens(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Layers x cells."""
    long, alpha = study.extras.get((test, "lens")), alpha_of(study)
    if long is None or not len(long):
        return
    for effect, part in by_effect(rows):
        measure, (name, _) = first_known(part["x_measure"], "logit_diff"), _named_figure(test, effect, rows)
        words = (
            f"Mean {_named(measure)} over items and frames, by depth (from below) and cell. A dot beside a "
            f"depth: {_mean(effect, 'the mean over cells')} differs from 0 there, corrected p ≤ {alpha:g}. {READ}"
        )
        figure = lens(long, part, measure=measure, alpha=alpha_of(study))
        yield Drawing(f"{name}-lens", "lens", test, "The logit lens", words, figure, wide=long["cell"].nunique() > 6)


def lens_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What was read, and how it was tested."""
    for test in distinct(rows["test"]):
        yield (
            f"Logit lens ({test}): the residual stream before the first and after every layer, at the token that "
            "predicts the target, was given to the final normalisation and the unembedding [nostalgebraist2020]; "
            f"{_named(first_known(rows.loc[rows['test'] == test, 'x_measure'], 'logit_diff'))} was tested "
            "like a response, with one correction over depths."
        )


# ------------------------------------------------------------------ attention


def attention_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """How many heads attend differently, and which most."""
    yield from _statements(study, test, rows, what="Attention", said=_attention_words)


def _attention_words(
    effect: str, part: pd.DataFrame, tested: pd.DataFrame, *, found: pd.DataFrame
) -> tuple[str, str, str]:
    n, row = plural(len(tested), "head and place", "heads and places"), ranked(tested).iloc[0]
    more = (
        f"The strongest is {row['x_head']} from {row['region']} to {str(row['site']).removeprefix('attn->')} "
        f"(difference {digits(row['estimate'])} of its attention [{digits(row['ci_low'])}, {digits(row['ci_high'])}], "
        f"p corrected {p_words(row['p_corr'])})."
    )
    return f"{len(found):,} of {n} have attention that differs with {effect}.", more, LOOK


def draw_attention(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """All heads by place; then region-to-region matrices of the most extreme heads."""
    alpha, long = alpha_of(study), study.extras.get((test, "attention"))
    for effect, part in by_effect(rows):
        tested = part[has_numbers(part)]
        if not len(tested):
            continue
        name, of = _named_figure(test, effect, rows)
        panel = tested["region"].astype(str) + " → " + tested["site"].str.removeprefix("attn->").astype(str)
        words = (
            "Difference of the share of attention, + cells minus − cells, of every head; each panel has a scale of its "
            f"own. Dots: corrected p ≤ {alpha:g}. {LOOK}"
        )
        figure = head_grid(tested.assign(panel=panel), alpha=alpha)
        yield Drawing(f"{name}-heads", "heads", test, f"Heads{of}", words, figure, wide=panel.nunique() > 2)
        weights = _weights(study, effect)
        best = ranked(tested).drop_duplicates("feature").head(MOST)
        if long is not None and weights and (long["region"].nunique() > 1 or long["key"].nunique() > 1):
            heads = [(str(h), int(j)) for h, j in zip(best["x_head"], best["feature"], strict=True)]
            found = is_found(best, alpha)
            said = "found" if found.all() else f"{int(found.sum())} of them found"
            words = (
                f"Mean share of attention from query regions (rows) to key regions (columns) of the most extreme heads "
                f"({said}), in the − cells, in the + cells, and the difference."
            )
            figure = attention_regions(long, heads, weights=weights, ends=effect_ends(study).get(effect, ("−", "+")))
            yield Drawing(f"{name}-regions", "regions", test, f"From region to region{of}", words, figure,
                          wide=True)  # fmt: skip


def _weights(study: Study, effect: str) -> Mapping[str, float]:
    made = compiled_effects(study).get(effect)
    if made is None or made.contrasts is not None or made.slope is not None:
        return {}
    return {"/".join(cell): float(w) for cell, w in zip(made.cells, made.weights, strict=True)}


def attention_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """What a value is."""
    for test in distinct(rows["test"]):
        yield (
            f"Attention ({test}): the pattern of every head was summed over the tokens of a key region and averaged "
            "over those of a query region, and tested like a response whose features are heads. A key region of more "
            "tokens gets more attention for its length alone; attention does not show what a head does [jain2019]."
        )


# ------------------------------------------------------------------ heads


def head_statements(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Statement]:
    """Which heads pass all three tests of induction, and how strongly; the strongest previous-token head."""
    alpha = alpha_of(study)
    copy, verdict = rows[rows["effect"] == "copy"].iloc[0], rows["x_verdict"].fillna("").astype(str)
    heads = rows[verdict.str.startswith("induction head").to_numpy()]
    n = rows.loc[rows["effect"] == "induction", "feature"].nunique()
    loss = (
        f"The second copy is predicted by {digits(-copy['estimate'])} nats per token better than the first "
        f"({digits(copy['x_first'])} and {digits(copy['x_second'])}; p {p_words(copy['p_corr'])})."
    )
    if len(heads):
        rise = rows[rows["effect"] == "ablation"].set_index("feature")["x_rise"]
        said = [
            f"{row['x_head']} ({row['x_repeated']:.1%} of its attention, {row['x_control']:.1%} without repetition; "
            f"replaced, the loss rises by {digits(rise.loc[row['feature']])} nats)"
            for _, row in ranked(heads).iterrows()
        ]
        text = f"{len(heads)} of {n} heads pass all three tests of an induction head: {listed(said)}."
    else:
        text = f"None of {n} heads passes all three tests of an induction head."
    weak = bool(len(heads)) and float(heads["x_repeated"].max()) < 0.5
    cautions = ["A share below one half is weak induction: most of the head's attention goes elsewhere."] * weak
    cautions.append("Random tokens are far from text; what a head does here it need not do there.")
    tested = rows[rows["p_corr"].notna()]
    over = held(tested[tested["effect"] == "induction"], alpha)
    over = over.replace("items (exchanged: sequence)", "sequences")
    yield Statement(
        test, "induction", "found" if len(heads) else "nothing", f"{len(heads)}", text,
        f"{loss} {over}", _localizer(rows), tuple(cautions),
    )  # fmt: skip
    best = rows[rows["effect"] == "previous"].sort_values("estimate", ascending=False).iloc[0]
    yield Statement(
        test, "previous", "exploratory", best["x_head"],
        f"The head that attends most to the previous token is {best['x_head']}: {best['x_control']:.1%} of its "
        f"attention, where even attention gives {best['x_uniform']:.1%}.",
        "Described; the reference is uniform attention.", _localizer(rows),
    )  # fmt: skip


def draw_heads(study: Study, test: str, rows: pd.DataFrame) -> Iterator[Drawing]:
    """Every score of every head."""
    alpha = alpha_of(study)
    shown = rows[rows["effect"].isin(["previous", "duplicate", "induction", "sink", "ablation"])]
    words = {"ablation": "loss by ablation"}
    figure = head_grid(
        shown.assign(panel=shown["effect"].map(lambda e: words.get(e, e))), alpha=alpha, marked="induction head"
    )
    text = (
        "Scores of every head on repeated random tokens, minus their reference: duplicate and induction "
        "against the same offset without repetition, previous and sink against even attention. Loss by "
        "ablation: rise of the second copy's loss beyond that of heads matched on the length of what they "
        f"write, nats per token. Dots: corrected p ≤ {alpha:g}. Framed: heads that pass all three tests of "
        "induction. Each panel has a scale of its own."
    )
    yield Drawing(f"{slug(test)}-heads", "heads", test, "Heads on repeated tokens", text, figure, wide=True)


def head_methods(study: Study, rows: pd.DataFrame) -> Iterator[str]:
    """Sequences, references, ablation."""
    for test in distinct(rows["test"]):
        own = rows[rows["test"] == test]
        n = int(own["n_units"].max())
        yield (
            f"Heads ({test}): {n} sequences of random distinct tokens that repeat once, each with a control "
            "that repeats nothing, are the units. A head is called an induction head only if it attends more "
            "to what followed the earlier occurrence than to the same offset in the control, the second copy "
            "is predicted better than the first, and replacing the head by its mean raises the second copy's "
            "loss by more than replacing heads of its layer that write vectors of similar length "
            "[olsson2022]."
        )


ATTRIBUTION = Section(attribution_statements, draw_attribution, attribution_methods)
LENS = Section(lens_statements, draw_lens, lens_methods)
ATTENTION = Section(attention_statements, draw_attention, attention_methods)
HEADS = Section(head_statements, draw_heads, head_methods)
CIRCUITS = {"attribution": ATTRIBUTION, "logit_lens": LENS, "attention": ATTENTION, "heads": HEADS}
"""Kind of test -> what it adds to the page."""
