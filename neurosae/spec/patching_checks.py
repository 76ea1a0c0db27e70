"""What patching may ask of its analysis and of its design, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.design import region_names
from neurosae.spec.patching import PLACES
from neurosae.spec.words import Problem, Where, short


def patching_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with a patching inside its analysis, whatever the design."""
    where: Where = ("tests", name)
    for family, members in analysis.inference.families.items():
        if name in members:
            text = f"'{name}' is corrected over its own grid and shares no maximum; take it out."
            yield ("inference", "families", family), text
    if analysis.inference.nuisance:
        yield where, "regresses no nuisance out; keep patching in an analysis without nuisance."


def patching_design_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What is wrong with a patching given its design: no target, unknown levels or regions, no partner."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    (factor, levels), *_ = block.between.items()
    if design.target is None:
        text = f"scores {block.outcome}, but the design has no target; add target: {{slot: …, foil: …}} to it."
        yield (*where, "outcome"), text
    if factor not in design.factors:
        yield (*where, "between"), unknown("factor", short(factor), design.factors)
        return
    for level in levels:
        if level not in design.factors[factor].levels:
            yield (*where, "between", factor), unknown("level", short(level), design.factors[factor].levels)
    if design.factors[factor].varies == "between" and block.replace == "paired":
        text = f"'{factor}' varies between items, so no text has a partner; use replace: random."
        yield (*where, "replace"), text
    known = [*region_names(design), *PLACES]
    for key in ("region", "keys"):
        for region in getattr(block, key):
            if region not in known:
                yield (*where, key), unknown("region", short(region), known)
