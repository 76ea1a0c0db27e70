"""What tests of geometry may ask of their design, and what a reader must know of it, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.frames import slots_of
from neurosae.spec.geometry import (
    FEW,
    FeatureGeometryBlock,
    RsaBlock,
    SearchlightBlock,
    SecondOrderBlock,
    TemporalBlock,
)
from neurosae.spec.load import is_file
from neurosae.spec.words import Problem, Where, short

COLUMNS = ("n_tokens", "position", "norm", "surprisal", "logit_diff")
"""Numbers that every stimulus or response has, for model RDMs."""


def geometry_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What is wrong with conditions, models and inference of one geometry, as far as the design shows it."""
    block, where = analysis.tests[name], ("tests", name)
    if isinstance(block, SearchlightBlock):
        return
    if isinstance(block, TemporalBlock):
        yield from _temporal_problems(block, analysis, design, where=where)
        return
    known, inner = (
        [*design.factors, "frame", *(("item",) if isinstance(block, RsaBlock | SecondOrderBlock) else ())],
        (*where, "conditions"),
    )
    for condition in block.conditions:
        if condition not in known:
            yield inner, unknown("factor", short(condition), known)
            return
    n = n_conditions(block.conditions, design)
    if n < 3:
        yield inner, f"give {n} conditions, that is {n * (n - 1) // 2} distance; add a factor, or use a contrast."
    if isinstance(block, SecondOrderBlock):
        yield from _block_problems(block, design, where)
    if isinstance(block, RsaBlock):
        yield from _inference_problems(block, design, where, n=n)
        yield from _model_problems(block, analysis, design, where=where)


def n_conditions(conditions: tuple[str, ...], design: Any) -> int:
    """Number of conditions: combinations of levels, times frames, times items."""
    n = 1
    for name in conditions:
        if name == "frame":
            n *= len(design.frames)
        elif name != "item":
            between = "item" in conditions and design.factors[name].varies == "between"
            n *= 1 if between else len(design.factors[name].levels)
    return n * (_n_items(design) if "item" in conditions else 1)


def _n_items(design: Any) -> int:
    def leaves(tree: Any) -> int:
        return len(tree) if isinstance(tree, list | tuple) else sum(leaves(part) for part in tree.values())

    return leaves(design.lists) if design.lists is not None else len(design.items)


def _inference_problems(block: RsaBlock, design: Any, where: Where, *, n: int) -> Iterator[Problem]:
    if block.p_from != "item_flips" and n < FEW:
        text = f"{block.p_from} needs at least {FEW} conditions, not {n}: so few labels have too few permutations"
        yield (*where, "p_from"), f"{text}; use item_flips with models of effects."
    if block.compare == "spearman" and n < FEW:
        yield (
            (*where, "compare"),
            f"spearman ranks {n * (n - 1) // 2} distances only, which says little; use cosine_cov.",
        )
    if block.over == "frames" and len(design.frames) < 3 and block.p_from == "bootstrap":
        yield (*where, "over"), f"frames are {len(design.frames)} here; a bootstrap needs at least 3 RDMs."
    if "item" in block.conditions and block.p_from == "bootstrap" and block.over == "item_folds":
        yield (*where, "over"), "item_folds divides items, but they are the conditions; use over: frames or sites."
    yield from _block_problems(block, design, where)


def _block_problems(block: RsaBlock | SecondOrderBlock, design: Any, where: Where) -> Iterator[Problem]:
    for name in block.blocks or ():
        known = [*design.factors, *design.labels]
        if name not in known:
            yield (*where, "blocks"), unknown("factor or label", short(name), known)
        elif name not in block.conditions and "item" not in block.conditions:
            text = f"'{name}' is averaged over by the conditions {', '.join(block.conditions)}; add it to `conditions`."
            yield (*where, "blocks"), text


def _model_problems(block: RsaBlock, analysis: Any, design: Any, *, where: Where) -> Iterator[Problem]:
    columns = [*COLUMNS, *design.covariates]
    for name, model in block.models.items():
        inner = (*where, "models", name)
        if model.column is not None and model.column not in columns:
            yield inner, unknown("column", short(model.column), columns)
        if model.site is not None and model.site not in analysis.sites:
            yield inner, unknown("site", short(model.site), analysis.sites)
        for key in ("matrix", "norms"):
            path = getattr(model, key)
            if path is not None and not is_file(Path(path)):
                yield (*inner, key), f"there is no file {short(str(path), 300)}; give a csv file."
        regions = ["all", *slots_of(design), *design.regions]
        if model.edit is not None and model.edit not in regions:
            yield inner, unknown("region", short(model.edit), regions)
        effect = analysis.effects.get(model.effect or "", {})
        needed = [f for f in (design.factors if "cells" in effect else effect) if f in design.factors]
        free = "item" in block.conditions  # an item has one level of every factor that varies between items
        missing = [
            f for f in needed if f not in block.conditions and not (free and design.factors[f].varies == "between")
        ]
        if missing:
            text = f"the effect '{model.effect}' needs {' and '.join(missing)} among the conditions; add it there."
            yield inner, text


def _temporal_problems(block: TemporalBlock, analysis: Any, design: Any, *, where: Where) -> Iterator[Problem]:
    if block.factor not in design.factors:
        yield (*where, "factor"), unknown("factor", short(block.factor), design.factors)
        return
    known = design.factors[block.factor].levels
    for level in block.levels or ():
        if level not in known:
            yield (*where, "levels"), unknown("level", short(level), known)
    if analysis.positions.tokens != "all":
        text = "compares courses over tokens, but positions.tokens makes one response of them; set `tokens: all`."
        yield where, text


# ------------------------------------------------------------------ notes of `check`


def geometry_notes(analysis: Any, design: Any) -> Iterator[str]:
    """What is permuted where it is not plain from the effect, and which rows will have no p, test by test."""
    for name, block in () if analysis is None else analysis.tests.items():
        if not isinstance(block, RsaBlock | SecondOrderBlock | FeatureGeometryBlock):
            continue
        known = [c for c in block.conditions if c in design.factors]
        between = [c for c in known if design.factors[c].varies == "between"]
        if isinstance(block, FeatureGeometryBlock):
            yield from _untested_shares(name, block, analysis, design=design)
        if between and len(between) < len(known) and "item" not in block.conditions:
            yield f"{name}: {_in_some(block, between)}"
        n = n_conditions(block.conditions, design)
        if isinstance(block, SecondOrderBlock) and n < FEW and any(not m.startswith("cka") for m in block.measures):
            yield (
                f"{name}: {n} conditions have too few permutations, so agreements of RDMs get an interval and no p "
                f"(from {FEW} conditions on; `conditions: [item]` makes every word one); cka permutes items."
            )


def _in_some(block: Any, between: list[str]) -> str:
    """How items are exchanged that are in some of the conditions only."""
    said = f"items are in some of its conditions only, as {' and '.join(between)} varies between them"
    permuted = isinstance(block, SecondOrderBlock) or (isinstance(block, RsaBlock) and block.p_from != "item_flips")
    if permuted and not set(between) <= set(block.blocks or ()):
        return (
            f"{said}: conditions of one group share items and those of two groups do not, so permuting all of them is "
            f"approximate; `blocks: [{', '.join(between)}]` permutes inside groups."
        )
    if permuted:
        return f"{said}: conditions are permuted inside its groups of items."
    return f"{said}: within items levels move inside the item's own conditions, between items whole items move."


def _untested_shares(name: str, block: FeatureGeometryBlock, analysis: Any, *, design: Any) -> Iterator[str]:
    for effect in block.effect:
        written = analysis.effects.get(effect, {})
        kinds = {design.factors[f].varies for f in written if f in design.factors}
        if len(kinds) > 1:
            yield (
                f"{name}: '{effect}' compares levels within items between groups of items; no permutation of whole "
                "items tests shares of it, so they are described without p. `test: factorial` tests its length."
            )
