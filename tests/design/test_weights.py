"""Effects as weights over cells."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from neurosae.design.weights import compile_effect
from neurosae.errors import SpecError

NUMBER, NEAR = {"subject": {"pl": 1, "sg": -1}}, {"attractor": {"pl": 1, "sg": -1}}


def test_compile_effect_recovers_main_effect_interaction_and_simple_effect(designs):
    """The three kinds of effects are one rule; weights are used as written."""
    design = designs["agreement"]()
    assert compile_effect(design, NUMBER).weights.tolist() == [-0.5, -0.5, 0.5, 0.5]
    assert compile_effect(design, NUMBER | NEAR).weights.tolist() == [1, -1, -1, 1]
    assert compile_effect(design, NUMBER | {"attractor": {"pl": 1}}).weights.tolist() == [0, -1, 0, 1]
    assert compile_effect(design, {"cells": {"pl/sg": 2, "sg/pl": -2}}).weights.tolist() == [0, -2, 2, 0]
    assert compile_effect(design, {"subject": {"pl": 3, "sg": -3}}).weights.tolist() == [-1.5, -1.5, 1.5, 1.5]


@pytest.mark.parametrize(("trend", "degree"), [("linear", 1), ("quadratic", 2), ("cubic", 3)])
def test_trends_agree_with_least_squares(designs, trend, degree):
    """A trend is the highest coefficient of the polynomial that numpy fits to the level means."""
    values = {"none": 0, "low": 1, "mid": 4, "high": 9}
    factors = {"load": {"levels": list(values), "values": values}, "side": ["l", "r"]}
    items = {"a": {"v": {k: k for k in values}, "s": {"l": "left", "r": "right"}}}
    design = designs["make"](factors=factors, frames={"f": "{v:load} {s:side}"}, items=items)
    effect = compile_effect(design, {"load": trend})
    y = np.random.default_rng(1).normal(size=(4, 2))
    assert_allclose(effect.weights @ y.ravel(), np.polyfit(list(values.values()), y.mean(axis=1), degree)[0])


def test_weights_are_invariant_to_the_order_of_writing(designs):
    """Order of levels and factors in the file of the analysis changes nothing; cells follow the design."""
    design = designs["agreement"]()
    a = compile_effect(design, {"subject": {"sg": -1, "pl": 1}} | NEAR)
    b = compile_effect(design, NEAR | NUMBER)
    assert a.cells == b.cells
    assert a.weights.tolist() == b.weights.tolist()
    assert a.h0 == b.h0
    assert a.factors == b.factors


def test_null_hypotheses_are_written_from_the_weights(designs):
    """H0 names levels in the direction of the weights, and what is held or averaged."""
    design = designs["agreement"]()
    simple = compile_effect(design, NUMBER | {"attractor": {"pl": 1}})
    assert simple.h0 == "no difference between subject pl and sg, at attractor pl"
    both = compile_effect(design, NUMBER | NEAR)
    assert both.h0 == "the difference between subject pl and sg is the same at attractor pl as at sg"
    assert both.vector == "+1 sg/sg, -1 sg/pl, -1 pl/sg, +1 pl/pl"
    cells = compile_effect(design, {"cells": {"pl/sg": 1, "sg/pl": -1}})
    assert cells.h0 == "no difference between the cells pl/sg and sg/pl"


def test_null_of_a_three_way_interaction_names_all_factors(designs):
    """Two factors interact, the third changes how."""
    factors = {name: ["x", "y"] for name in "abc"}
    slots = {f"s{name}": {"x": f"{name}1", "y": f"{name}2"} for name in "abc"}
    design = designs["make"](factors=factors, frames={"f": "{sa:a} {sb:b} {sc:c}"}, items={"one": slots})
    effect = compile_effect(design, {name: {"y": 1, "x": -1} for name in "abc"})
    assert effect.h0 == "the interaction of a and b is the same at c y as at x"


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        ({"subject": {"pl": 1}}, r"sum to 1, not 0: .* Give one factor weights that sum to 0"),
        ({"subjekt": {"pl": 1, "sg": -1}}, r"unknown factor 'subjekt'\. Did you mean 'subject'"),
        ({"subject": {"plural": 1, "sg": -1}}, r"subject\.plural: unknown level"),
        ({"subject": "linear"}, r"give 'subject' in the design `values:"),
        ({"cells": {"pl/sg": 1}}, r"weights of the cells sum to 1, not 0"),
        ({}, r"write \{factor: \{level: weight"),
    ],
)
def test_compile_effect_refuses(designs, effect, message):
    """The message names what is wrong and what would do."""
    with pytest.raises(SpecError, match=message):
        compile_effect(designs["agreement"](), effect)


def test_compile_effect_refuses_a_cell_without_items(designs):
    """Cells of lists may be empty; an effect that weighs one cannot be estimated, a simple effect beside it can."""
    design = designs["lists"]()
    texts = {**design.lists, "won": {**design.lists["won"], "going": []}}
    gap = designs["lists"](lists=texts)
    with pytest.raises(SpecError, match=r"cell 'won/going' has no items, so the effect cannot be estimated"):
        compile_effect(gap, {"outcome": {"won": 1, "lost": -1}})
    assert compile_effect(gap, {"outcome": {"won": 1, "lost": -1}, "course": {"ending": 1}}).weights.any()


def test_all_levels_are_contrasts_with_the_first(designs):
    """K - 1 rows, at the weights of the other factors; H0 names the levels, or the difference that is the same."""
    factors = {"load": ["none", "low", "high"], "side": ["l", "r"]}
    items = {"a": {"v": {k: k for k in factors["load"]}, "s": {"l": "left", "r": "right"}}}
    design = designs["make"](factors=factors, frames={"f": "{v:load} {s:side}"}, items=items)
    every = compile_effect(design, {"load": "all"})
    assert every.rows.tolist() == [[-0.5, -0.5, 0.5, 0.5, 0, 0], [-0.5, -0.5, 0, 0, 0.5, 0.5]]
    assert every.h0 == "no difference between the levels of load (none, low, high), averaged over side"
    assert every.vector == "-0.5 none/l, -0.5 none/r, +0.5 low/l, +0.5 low/r; -0.5 none/l, -0.5 none/r, " + (
        "+0.5 high/l, +0.5 high/r"
    )
    both = compile_effect(design, {"load": "all", "side": {"r": 1, "l": -1}})
    assert both.rows.tolist() == [[1, -1, -1, 1, 0, 0], [1, -1, 0, 0, -1, 1]]
    assert both.h0 == "the difference between side r and l is the same at all levels of load"
    assert compile_effect(design, {"load": "all", "side": {"r": 1}}).h0.endswith(", at side r")
    with pytest.raises(SpecError, match="writes `all` for load and side"):
        compile_effect(design, {"load": "all", "side": "all"})
