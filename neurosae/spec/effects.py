"""Named effects as they are written: weights of levels or cells, never expressions.

{subject: {pl: 1, sg: -1}}                                  a main effect
{subject: {pl: 1, sg: -1}, attractor: {pl: 1, sg: -1}}      an interaction
{subject: {pl: 1, sg: -1}, attractor: {pl: 1}}              a simple effect
{load: linear}                                              a trend over the factor's `values:`
{load: all}                                                 all levels at once (F), no single weights
{slope: frequency}                                          the slope on a covariate that items carry
{slope: frequency, subject: {pl: 1, sg: -1}}                the slope of an item's difference
{cells: {pl/sg: 1, sg/pl: -1}}                              anything else, cell by cell
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import fsum, isfinite
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.frames import unknown_level
from neurosae.spec.words import Problem, Where, describe, short

TRENDS = {"linear": 2, "quadratic": 3, "cubic": 4}
"""Trends over the values of a factor, and how many levels each needs."""
ALL = "all"
"""Instead of weights: do the levels of this factor differ at all?"""
SLOPE = "slope"
"""Beside factors, or alone: the covariate on which the items' means or differences are regressed."""


def omnibus(effect: Mapping[str, Any]) -> str | None:
    """The factor whose levels an effect compares all at once, if there is one.

    Examples
    --------
    >>> omnibus({"load": "all"}), omnibus({"load": "linear"})
    ('load', None)
    """
    return next((factor for factor, written in effect.items() if isinstance(written, str) and written == ALL), None)


def shape_problems(effect: Any, where: Where = ()) -> Iterator[Problem]:
    """What is wrong with an effect whatever the design.

    Examples
    --------
    >>> list(shape_problems({"subject": {"pl": "+1"}}))
    [(('subject', 'pl'), "is the word '+1'; a weight is a number.")]
    """
    if not isinstance(effect, Mapping) or not effect:
        yield where, f"is {describe(effect or None)}; write {{factor: {{level: weight, level: weight}}}}."
        return
    if "cells" in effect and len(effect) > 1:
        yield where, "has `cells` beside factors; write either cells or factors."
    for factor, weights in effect.items():
        inner = (*where, factor)
        if factor == SLOPE and not isinstance(weights, Mapping):
            yield from _slope_shape(effect, inner)
        elif isinstance(weights, str) and factor != "cells":
            if weights not in (*TRENDS, ALL):
                yield inner, unknown("trend", short(weights), (*TRENDS, ALL))
        elif not isinstance(weights, Mapping) or not weights:
            trends = "" if factor == "cells" else f", or one of {', '.join((*TRENDS, ALL))}"
            yield inner, f"is {describe(weights or None)}; write {{name: weight, name: weight}}{trends}."
        else:
            yield from _weight_problems(weights, inner)
    if (
        len(several := [factor for factor, weights in effect.items() if isinstance(weights, str) and weights == ALL])
        > 1
    ):
        text = f"writes `all` for {' and '.join(several)}; write it for one of them, and weights for the others"
        yield where, f"{text}, e.g. {{{several[0]}: all, {several[1]}: {{level: 1, level: -1}}}}."


def sloped(effect: Mapping[str, Any]) -> str | None:
    """The covariate of an effect `{slope: covariate}`, if it is one.

    Examples
    --------
    >>> sloped({"slope": "frequency", "subject": {"pl": 1, "sg": -1}}), sloped({"load": "linear"})
    ('frequency', None)
    """
    name = effect.get(SLOPE)
    return name if isinstance(name, str) else None


def _slope_shape(effect: Mapping[str, Any], where: Where) -> Iterator[Problem]:
    if not isinstance(effect[SLOPE], str) or not effect[SLOPE]:
        yield where, f"is {describe(effect[SLOPE])}; write the name of a covariate, {{slope: frequency}}."
    elif "cells" not in effect and omnibus(effect) is not None:
        yield where, f"takes weights beside it, not `all`; write {{{omnibus(effect)}: {{level: 1, level: -1}}}}."


def _slope_problems(effect: Mapping[str, Any], design: Any, where: Where) -> Iterator[Problem]:
    if effect[SLOPE] not in design.covariates:
        none = "" if design.covariates else " The design has no `covariates:`, numbers that items carry."
        yield (*where, SLOPE), unknown("covariate", short(effect[SLOPE]), design.covariates) + none
    for factor in effect:
        if factor in design.factors and design.factors[factor].varies == "between":
            yield (*where, factor), f"'{factor}' varies between items, as the slope does; leave it out: {_INSIDE}."


_INSIDE = "the slope is that inside its levels"


def _weight_problems(weights: Mapping[str, Any], where: Where) -> Iterator[Problem]:
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not isfinite(weight):
            yield (*where, name), f"is {describe(weight)}; a weight is a number."
    if all(weight == 0 for weight in weights.values()):
        yield where, "has only weights of 0, which select nothing; give at least one another weight."


def effect_problems(effect: Mapping[str, Any], design: Any, where: Where = ()) -> Iterator[Problem]:
    """What is wrong with a well-shaped effect in a design: names, trends, and weights that do not sum to 0.

    The weight of a cell is the product of its level weights, so the sum over cells is 0 exactly when the weights of
    one factor sum to 0.
    """
    if "cells" in effect:
        yield from _cell_problems(effect["cells"], design, (*where, "cells"))
        return
    problems = []
    if sloped(effect) is not None:
        problems += _slope_problems(effect, design, where)
        effect = {factor: weights for factor, weights in effect.items() if factor != SLOPE}
    for factor, weights in effect.items():
        inner = (*where, factor)
        if factor not in design.factors:
            problems.append((inner, unknown("factor", short(factor), design.factors)))
        elif weights == ALL:
            continue
        elif isinstance(weights, str):
            problems += _trend_problems(weights, factor, design, where=inner)
        else:
            levels = design.factors[factor].levels
            bad = (level for level in weights if level not in levels)
            problems += [((*inner, level), unknown_level(level, factor, levels)) for level in bad]
    yield from problems
    sums = [fsum(weights.values()) for weights in effect.values() if not isinstance(weights, str)]
    if not problems and effect and len(sums) == len(effect) and all(abs(total) > 1e-9 for total in sums):
        yield where, _unbalanced(effect, sums)


def _trend_problems(trend: str, factor: str, design: Any, *, where: Where) -> Iterator[Problem]:
    levels, values = design.factors[factor].levels, design.factors[factor].values
    if len(levels) < TRENDS[trend]:
        yield where, f"a {trend} trend needs {TRENDS[trend]} levels; '{factor}' has {len(levels)}."
    elif values is None:
        example = ", ".join(f"{level}: {i}" for i, level in enumerate(levels))
        yield where, f"a {trend} trend needs numbers; give '{factor}' in the design `values: {{{example}}}`."


def _cell_problems(weights: Mapping[str, float], design: Any, where: Where) -> Iterator[Problem]:
    bad = [cell for cell in weights if not _is_cell(cell, design)]
    for cell in bad:
        example = "/".join(factor.levels[0] for factor in design.factors.values())
        yield (*where, cell), f"'{short(cell)}' is no cell; write {'/'.join(design.factors)}, for example {example}."
    total = fsum(weights.values())
    if not bad and abs(total) > 1e-9:
        yield where, f"the weights of the cells sum to {total:g}, not 0: {_WHY} Make them sum to 0."


def _is_cell(cell: str, design: Any) -> bool:
    parts = cell.split("/")
    levels = [factor.levels for factor in design.factors.values()]
    return len(parts) == len(levels) and all(part in known for part, known in zip(parts, levels, strict=True))


_WHY = "this would test whether features are active at all, not a difference."


def _unbalanced(effect: Mapping[str, Any], sums: list[float]) -> str:
    total = 1.0
    for part in sums:
        total *= part
    plain = {factor: dict(weights) for factor, weights in effect.items()}
    remedy = "Give one factor weights that sum to 0, e.g. {pl: 1, sg: -1}."
    return f"the weights of {plain} sum to {total:g}, not 0: {_WHY} {remedy}"
