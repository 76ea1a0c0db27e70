"""What tests of interventions may ask of their analysis and of their design, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.causal import JointClampBlock
from neurosae.spec.effects import omnibus, sloped
from neurosae.spec.integration import part_problem
from neurosae.spec.words import Problem, Where, short


def causal_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with an intervention inside its analysis, whatever the design."""
    where: Where = ("tests", name)
    for family, members in analysis.inference.families.items():
        if name in members:
            text = f"'{name}' is corrected over its own claims, with controls, and shares no maximum; take it out."
            yield ("inference", "families", family), text
    if analysis.inference.nuisance:
        yield where, "regresses no nuisance out; keep interventions in an analysis without nuisance."


def causal_design_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What is wrong with an intervention given its design: no target, levels and effects that it cannot have."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    if design.target is None:
        text = f"scores {block.outcome}, but the design has no target; add target: {{slot: …, foil: …}} to it."
        yield (*where, "outcome"), text
    for factor, level in block.only.items():
        if factor not in design.factors:
            yield (*where, "only"), unknown("factor", short(factor), design.factors)
        elif level not in design.factors[factor].levels:
            yield (*where, "only", factor), unknown("level", short(level), design.factors[factor].levels)
    if isinstance(block, JointClampBlock):
        for part in block.parts:
            effect = analysis.effects.get(part)
            if effect is not None and (problem := part_problem(effect, design)) is not None:
                yield (*where, "parts"), f"'{part}' {problem}"
        return
    for effect in block.effect:
        written = analysis.effects.get(effect, {})
        if omnibus(written) is not None or sloped(written) is not None:
            yield (*where, "effect"), f"'{effect}' is no single contrast of cells; write weights of levels."
            continue
        own = [f for f in written if f in design.factors and design.factors[f].varies == "between"]
        if own:
            text = f"'{effect}' compares items with each other ({own[0]}); a change is tested within items."
            yield (*where, "effect"), text
        unused = [f for f in block.only if f in written]
        if unused:
            yield (*where, "effect"), f"'{effect}' weighs levels of {unused[0]}, of which `only` keeps one."
