"""Everything that can be said or refused about a design and an analysis before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurosae.design.cautions import Ask, region_warnings, stimulus_warnings
from neurosae.design.check_report import CheckReport
from neurosae.design.confounds import (
    cell_weights,
    confound_table,
    crossed,
    lexical_table,
    measures,
    repeated_cells,
    within_items,
)
from neurosae.design.exchange import exchangeability
from neurosae.design.expand import SPLITS, expand
from neurosae.design.intervention_checks import (
    intervention_lines,
    intervention_problems,
    intervention_warnings,
    is_edit,
)
from neurosae.design.model_checks import length_problem, model_facts, model_folder, model_problems
from neurosae.design.orthogonal import choice_by_other_effect, inner_product
from neurosae.design.requirements import grade_limits
from neurosae.design.units import shared_forms
from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import SpecError
from neurosae.spec.design import Design, region_names
from neurosae.spec.factorial import effects_named
from neurosae.spec.geometry_checks import geometry_notes
from neurosae.spec.load import parse_yaml
from neurosae.spec.subjects import subject_notes

ALPHA = 0.05
SHOWN = ("kind", "unit", "n_units", "n_relabellings", "p_min", "exact", "words", "note")
EXCHANGE = ["test", "effect", "split", *SHOWN, "h0", "vector"]


def check(
    design: Design,
    spec: Any = None,
    stimuli: pd.DataFrame | None = None,
    *,
    tokenizer: Any = None,
    path: str | Path | None = None,
) -> CheckReport:
    """Check a design, and an analysis of it, without a model.

    Parameters
    ----------
    design : Design
    spec : the analysis, or None
    stimuli : its stimuli; default `expand(design)`
    tokenizer : a model folder with `tokenizer.json`, or a tokenizer; adds token counts, borders and targets
    path : file of the analysis (of the design, where no analysis is given), so that a refusal names its line

    Returns
    -------
    CheckReport
        `.text()` is what `neurosae check` prints.

    Raises
    ------
    SpecError
        A test that cannot reach alpha, an effect that cannot be estimated or exchanged, an interaction one of whose
        cells is the same text in all items, a folder or layer that the model does not have, or a text that is longer
        than its context.

    Examples
    --------
    >>> words = {"box": "boxes", "key": "keys", "cup": "cups", "car": "cars", "map": "maps", "pen": "pens"}
    >>> items = {sg: {"noun": {"sg": sg, "pl": pl}} for sg, pl in words.items()}
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "number", "factors": {"number": ["sg",
    ...     "pl"]}, "frames": {"f": "The {noun:number} here"}, "regions": {"end": {"words": [-1, -1]}}, "items": items})
    >>> print(check(design).text())
    number: 12 stimuli in 2 cells, balanced: every cell has the same items and frames.
    number  localizer  test  frames  stimuli
    sg              0     6       1        6
    pl              0     6       1        6
    <BLANKLINE>
    number varies within item: whole items are sign-flipped, one flip for all features, positions and sites.
      6 test items: 2^6 = 64 relabellings; smallest two-sided p 0.031,
      so max-T can reach .05 over any number of features, Holm or a first fdr_bh discovery over 1.
      H0 number: no difference between number pl and sg   [-1 sg, +1 pl]
    <BLANKLINE>
    items x frames whose words at a region differ between the + and - cells of an effect:
    region  number
    noun       6/6  <- also the word itself: number
    end        0/6  <- free of its words: number
    <BLANKLINE>
    length, and position of regions in words, + cells minus - cells (differs in how many items x frames):
      number: length in characters +1.17 (Spearman 0.97, 6/6); never differs: length in words, position of noun, ...
    """
    stimuli = expand(design) if stimuli is None else stimuli
    try:
        _refuse_model(design, stimuli, spec, tokenizer=tokenizer)
        return check_design(design, stimuli, spec, tokenizer=tokenizer)
    except _Refusal as refusal:
        raise refusal.located(path) from None


class _Refusal(SpecError):
    """A refusal that knows its place in the analysis file."""

    def __init__(self, where: tuple[str, ...], text: str):
        super().__init__(f"{'.'.join(where)}: {text}" if where else text)
        self.where, self.sentence = where, text

    def located(self, path: str | Path | None) -> SpecError:
        if path is None or not self.where:
            return SpecError(str(self))
        return parse_yaml(Path(path).read_text(encoding="utf-8"), name=str(path)).error(self.where, self.sentence)


def check_design(design: Design, stimuli: pd.DataFrame, analysis: Any = None, *, tokenizer: Any = None) -> CheckReport:
    """The same as `check`, from an expanded design."""
    written = dict(analysis.effects) if analysis is not None and analysis.effects else default_effects(design)
    effects = {
        name: _compiled(design, effect, ("effects", name) if analysis else ()) for name, effect in written.items()
    }
    asks = list(_asks(design, analysis, effects))
    alpha = ALPHA if analysis is None else analysis.inference.alpha
    rows = [_exchange_row(design, stimuli, effects[ask.effect], ask=ask) for ask in asks]
    exchange = pd.DataFrame(rows, columns=EXCHANGE)  # an analysis may ask for no effect, as second-order tests do
    repeated = [
        text for ask in asks for text in _repeated(design, stimuli, (ask, written, effects), strict=bool(analysis))
    ]
    _refuse_too_few(exchange, asks, alpha) if analysis is not None else None
    for where, text in intervention_problems(design, stimuli, analysis):
        raise _Refusal(tuple(map(str, where)), text)
    regions = _regions(design, analysis)
    compared = {name: effect for name, effect in effects.items() if effect.factors} or effects  # no slopes alone
    lexical = lexical_table(design, stimuli, compared, regions=region_names(design))
    inside = {name: within_items(stimuli, cell_weights(design, stimuli, effect)) for name, effect in compared.items()}
    lexical["within"] = lexical["effect"].map(inside).astype(bool)
    tokens, problems = _tokens(design, stimuli, regions, analysis=analysis, tokenizer=tokenizer)
    reach = [*_reach_warnings(exchange, alpha), *intervention_warnings(analysis)]
    warnings, notes = stimulus_warnings(design, stimuli, tested=_tested_regions(asks))
    chosen = [*_choices(design, stimuli, effects, analysis=analysis), *grade_limits(design, stimuli, analysis)]
    at_regions, free = region_warnings(lexical, [ask for ask in asks if ask.effect in compared], regions=regions)
    return CheckReport(
        name=design.name,
        alpha=alpha,
        cells=cell_table(design, stimuli),
        exchange=exchange,
        words_at=lexical[lexical["region"].isin(regions)].reset_index(drop=True),
        confounds=confound_table(design, stimuli, compared, numbers=measures(stimuli, regions)),
        forms=shared_forms(design),
        tokens=tokens,
        interventions=dict(intervention_lines(design, stimuli, analysis)),
        warnings=tuple(dict.fromkeys([*warnings, *repeated, *reach, *chosen, *at_regions, *problems])),
        notes=tuple(
            dict.fromkeys(
                [
                    *subject_notes(analysis),
                    *geometry_notes(analysis, design),
                    *notes,
                    *free,
                    *_overlaps(design, stimuli, effects, analysis=analysis),
                ]
            )
        ),
    )


def _refuse_model(design: Design, stimuli: pd.DataFrame, spec: Any, *, tokenizer: Any) -> None:
    """Refuse folders and layers that are not there, and texts that the model cannot read at once."""
    for where, text in model_problems(spec) if spec is not None else ():
        raise _Refusal(tuple(map(str, where)), text)
    if tokenizer is None:
        return
    from neurosae.design.token_checks import as_tokenizer

    own = None if spec is None else model_folder(spec.model.name)
    folder = own or (Path(tokenizer) if isinstance(tokenizer, str | Path) else None)
    facts = None if folder is None else model_facts(folder)
    if (found := length_problem(stimuli, as_tokenizer(tokenizer), facts)) is not None:
        item, text = found
        raise _Refusal(("design",) if spec is not None else ("items", item) if design.frames else ("lists",), text)


# ------------------------------------------------------------------ what is asked


def default_effects(design: Design) -> dict[str, dict[str, Any]]:
    """Main effects, last level against first (every level against the first where there are more than two), and the
    interactions of pairs of two-level factors of one kind.

    Examples
    --------
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "mood", "factors": {"mood": {"levels":
    ...     ["sad", "glad"], "varies": "between"}}, "lists": {"sad": ["She wept."], "glad": ["He sang."]}})
    >>> default_effects(design)
    {'mood': {'mood': {'glad': 1, 'sad': -1}}}
    """
    found: dict[str, dict[str, Any]] = {}
    for name, factor in design.factors.items():
        first, *others = factor.levels
        for level in others:
            found[name if len(others) == 1 else f"{name}: {level}"] = {name: {level: 1, first: -1}}
    for a, b in combinations([name for name, factor in design.factors.items() if len(factor.levels) == 2], 2):
        if design.factors[a].varies == design.factors[b].varies:
            found[f"{a} x {b}"] = found[a] | found[b]
    return found


def _compiled(design: Design, effect: Mapping[str, Any], where: tuple[str, ...]) -> Effect:
    try:
        return compile_effect(design, effect)
    except SpecError as error:
        raise _Refusal(where, str(error)) from None


def _asks(design: Design, analysis: Any, effects: Mapping[str, Effect]) -> Iterator[Ask]:
    if analysis is None or not analysis.tests:
        yield from (Ask("", name, (None,), "test") for name in effects)
        return
    for name, block in analysis.tests.items():
        named = block.region if isinstance(getattr(block, "region", ()), tuple | list) else (block.region,)
        regions = tuple(dict.fromkeys(region.partition("@")[0] for region in named))
        known = tuple(region if region in region_names(design) else None for region in regions) or (None,)
        models = getattr(block, "models", {}).values()
        one = getattr(block, "effect", ()) or getattr(block, "parts", ()) or ()
        asked = [one] if isinstance(one, str) else [*one, *(m.effect for m in models if m.effect is not None)]
        alternative = getattr(block, "alternative", None) or analysis.inference.alternative
        split = getattr(block, "split", "test")
        edits = is_edit(block)
        flips = edits or block.test in ("rsa", "equivalence")
        yield from (Ask(name, effect, known, split, alternative, flips, edits) for effect in asked)


def _regions(design: Design, analysis: Any) -> tuple[str, ...]:
    named = getattr(analysis.positions, "regions", None) if analysis is not None else None
    return tuple(named) if named else region_names(design)


def _tested_regions(asks: list[Ask]) -> set[str]:
    return {region for ask in asks for region in ask.regions if region is not None and ask.test}


# ------------------------------------------------------------------ cells, exchangeability


def cell_table(design: Design, stimuli: pd.DataFrame) -> pd.DataFrame:
    """One row per cell that occurs: factors, number of items in either split, of frames, and of stimuli."""
    rows = []
    for cell, part in stimuli.groupby(list(design.factors), observed=True):
        items = part.groupby("split", observed=False)["item"].nunique()
        counts = {split: int(items.get(split, 0)) for split in SPLITS}
        rows.append({**dict(zip(design.factors, cell, strict=True)), **counts, "frames": part["frame"].nunique()})
        rows[-1]["stimuli"] = len(part)
    return pd.DataFrame(rows)


def usable_items(stimuli: pd.DataFrame, split: str, region: str | None) -> list[str]:
    """Items of a split with at least one frame that has the region in all of the frame's cells."""
    part = stimuli[stimuli["split"] == split]
    if region is not None:
        complete = (
            part[f"{region}_start"].notna().groupby([part["item"], part["frame"]], observed=True).transform("all")
        )
        part = part[complete.to_numpy()]
    return list(dict.fromkeys(part["item"]))


def _exchange_row(design: Design, stimuli: pd.DataFrame, effect: Effect, *, ask: Ask) -> dict[str, Any]:
    items = min((usable_items(stimuli, ask.split, region) for region in ask.regions), key=len)
    where = ("tests", ask.test) if ask.test else ()
    if not items:
        regions = " or ".join(str(region) for region in ask.regions)
        raise _Refusal(where, f"no item of split '{ask.split}' has a text with region {regions} in all of its cells.")
    try:
        how = exchangeability(design, effect, items=items, flips_only=ask.flips)
    except SpecError as error:
        raise _Refusal(where, f"effect '{ask.effect}': {error}") from None
    row = {"test": ask.test, "effect": ask.effect, "split": ask.split}
    return row | {name: getattr(how, name) for name in SHOWN} | {"h0": effect.h0, "vector": effect.vector}


def _refuse_too_few(exchange: pd.DataFrame, asks: list[Ask], alpha: float) -> None:
    rows: list[Any] = list(exchange.itertuples())
    for row, ask in zip(rows, asks, strict=True):
        one_sided = ask.alternative != "two-sided"
        smallest = 1 / row.n_relabellings if one_sided else row.p_min
        if ask.split != "test" or not ask.test or smallest <= alpha:
            continue
        least = int(np.ceil(np.log2(1 / alpha) + (0 if one_sided else 1) - 1e-9))
        flips = row.kind == "flip"
        what, remedy = (
            ("sign flips", f"at least {least} items") if flips else ("label permutations", "more items per level")
        )
        side = ask.alternative if one_sided else "two-sided"
        raise _Refusal(
            ("tests", ask.test),
            f"{row.n_units} {'item' if row.n_units == 1 else 'items'} in split '{ask.split}' allow "
            f"{row.n_relabellings} {what}; the smallest {side} p is {smallest:.2g}, above alpha {alpha:g}. "
            f"Use {remedy}.",
        )


def _reach_warnings(exchange: pd.DataFrame, alpha: float) -> list[str]:
    few: list[Any] = list(exchange[exchange["p_min"] > alpha].itertuples())
    return [
        f"{row.test + ': ' if row.test else ''}'{row.effect}' has {row.n_units} {row.split} items; its smallest "
        f"two-sided p is {row.p_min:.2g}, above alpha {alpha:g}: it can rank features, but no test can reject."
        for row in few
    ]


def _repeated(
    design: Design, stimuli: pd.DataFrame, given: tuple[Ask, Mapping[str, Any], Mapping[str, Effect]], *, strict: bool
) -> list[str]:
    """Cells that are one text counted once per item; an interaction with such a cell is refused."""
    ask, written, effects = given
    found = []
    for region in (None,) if ask.edits else ask.regions:
        for cell, text, n in repeated_cells(design, stimuli, effects[ask.effect], region=region):
            where = f" up to region '{region}'" if region else ""
            sentence = f"cell '{cell}' is the same text in all {n} items{where} ('{text}'): one text counted {n} times"
            if strict and ask.test and crossed(design, written[ask.effect]):
                fix = "give every item forms of its own there, e.g. other fillers."
                raise _Refusal(("tests", ask.test), f"effect '{ask.effect}' cannot be tested: {sentence}; {fix}")
            found.append(f"{sentence} by '{ask.effect}'; give every item forms of its own there.")
    return found


def _items_per_cell(design: Design, stimuli: pd.DataFrame) -> dict[Any, float]:
    counts = stimuli.groupby(list(design.factors), observed=True)["item"].nunique()
    return {key if isinstance(key, tuple) else (key,): float(value) for key, value in counts.items()}


def _choices(design: Design, stimuli: pd.DataFrame, effects: Mapping[str, Effect], *, analysis: Any) -> Iterator[str]:
    """A caution for features that another effect chooses on the same items; a refusal where they share evidence."""
    for problem, caution in choice_by_other_effect(analysis, effects, _items_per_cell(design, stimuli)):
        if problem is not None:
            raise _Refusal(tuple(map(str, problem[0])), problem[1])
        yield caution


def _overlaps(design: Design, stimuli: pd.DataFrame, effects: Mapping[str, Effect], *, analysis: Any) -> Iterator[str]:
    """Pairs of effects that are not orthogonal, c1'(X'X)^-1 c2 != 0 with X the cells of the items, and their use."""
    n = _items_per_cell(design, stimuli)
    both = combinations(((name, effect) for name, effect in effects.items() if effect.slope is None), 2)
    pairs = {(a, b) for (a, first), (b, second) in both if abs(inner_product(first, second, n)) > 1e-12}
    if pairs:
        shown = ", ".join(f"{a} and {b}" for a, b in sorted(pairs))
        yield f"not orthogonal, so they share their evidence: {shown}."
    tests = analysis.tests if analysis is not None else {}
    for name, block in tests.items():
        choice = getattr(block, "features", None)
        source = getattr(choice, "from_", None)
        if source not in tests or is_edit(block):
            continue  # an edit is judged among features that are alike, not by the mean activity of the rest
        chooser = tests[source]
        for effect in effects_named(block):
            if effect not in chooser.effect:
                yield (
                    f"{name}: features are chosen by {', '.join(chooser.effect)} and tested for {effect} on other "
                    "items; chosen features still differ in mean activity from the rest."
                )


def _tokens(
    design: Design, stimuli: pd.DataFrame, regions: tuple[str, ...], *, analysis: Any, tokenizer: Any
) -> tuple[pd.DataFrame | None, list[str]]:
    if tokenizer is None:
        return None, []
    from neurosae.design.token_checks import as_tokenizer, growing_problem, target_problems, token_numbers, token_table

    ours = as_tokenizer(tokenizer)
    straddle = bool(analysis is not None and analysis.positions.allow_straddle)
    numbers, borders = token_numbers(stimuli, ours, regions=regions, allow_straddle=straddle)
    asked = None if analysis is None else analysis.positions
    if asked is not None and asked.tokens in ("max", "sum") and not asked.length_match:
        factors = list(design.factors)
        if problem := growing_problem(stimuli, numbers, rule=asked.tokens, factors=factors, regions=regions):
            raise _Refusal(("positions", "tokens"), problem)
    targets = target_problems(design, stimuli, ours)
    found = [f"{borders[0]} ({len(borders)} such borders)"] if borders else []
    if targets:
        more = f", and {len(targets) - 4} more" if len(targets) > 4 else ""
        found.append(f"not one token: {'; '.join(targets[:4])}{more}. logit_diff is not scored for them.")
    return token_table(design, stimuli, numbers), found
