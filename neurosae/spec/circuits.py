"""What the tests of attribution, the logit lens, attention and heads may be asked, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.attribution import PLACES, AttentionBlock, AttributionBlock, CircuitBlock, HeadsBlock
from neurosae.spec.design import Design, region_names
from neurosae.spec.effects import omnibus, sloped
from neurosae.spec.words import Problem, Where, short


def named_effects(block: Any) -> Iterator[tuple[Where, str]]:
    """Effects that a block of this kind names."""
    if isinstance(block, CircuitBlock):
        yield from (((), effect) for effect in getattr(block, "effect", ()))


def circuit_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with one of these tests, as far as it can be seen before a model is loaded."""
    block, where = analysis.tests[name], ("tests", name)
    rules = analysis.inference
    if rules.nuisance and not isinstance(block, HeadsBlock):
        yield where, f"regresses no nuisance out; keep `test: {block.test}` in an analysis without nuisance."
    if isinstance(block, HeadsBlock):
        return
    for effect in block.effect:
        written = analysis.effects.get(effect, {})
        if omnibus(written) is not None or sloped(written) is not None:
            text = f"takes weights of levels, and '{effect}' has none; use `test: contrast` for it."
            yield (*where, "effect"), text
    if rules.intervals != "marginal" and not block.effect:
        yield where, f"a mean over all cells has no {rules.intervals} intervals; use marginal, or name an effect."
    correction = block.correction or rules.correction
    if correction == "bb":
        yield (*where, "correction"), "bb is for features of several sites; use maxT, holm or fdr_bh."
    statistic = block.statistic or rules.statistic
    if statistic not in ("mean", "t", "moderated_t", "signed_rank"):
        yield (*where, "statistic"), f"{statistic} is for activations; use moderated_t, t, mean or signed_rank."


def circuit_design_problems(name: str, analysis: Any, design: Design) -> Iterator[Problem]:
    """What is wrong with one of these tests for its design."""
    block, where = analysis.tests[name], ("tests", name)
    if isinstance(block, HeadsBlock):
        return
    needs_target = not isinstance(block, AttentionBlock) or "target" in (*block.region, *block.keys)
    if needs_target and design.target is None:
        yield where, "needs a target and a foil; give the design `target: {slot: …, foil: …}`."
    if isinstance(block, AttributionBlock) and block.method != "direct" and design.partition is None:
        text = "screens features on other items than it tests; give the design a partition: {localizer: 24, seed: 7}."
        yield where, text
    if isinstance(block, AttentionBlock):
        yield from _places(block.keys, design, (*where, "keys"))
    yield from _places(block.region, design, (*where, "region"))


def _places(named: tuple[str, ...], design: Design, where: Where) -> Iterator[Problem]:
    known = (*region_names(design), *PLACES)
    for region in named:
        if region not in known:
            yield where, unknown("region", short(region), known)
