"""Effects as written: shapes, names and sums."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurosae.spec.design import Design
from neurosae.spec.effects import effect_problems, shape_problems

LEVELS = {"a": ["x", "y", "z"], "b": ["p", "q"]}
DESIGN = Design.model_validate(
    {
        "schema": "neurosae/design/1",
        "name": "two",
        "factors": {"a": {"levels": LEVELS["a"], "values": {"x": 0, "y": 1, "z": 4}}, "b": LEVELS["b"]},
        "frames": {"f": "{s:a} {t:b}"},
        "items": {"i": {"s": {"x": "1st", "y": "2nd", "z": "3rd"}, "t": {"p": "one", "q": "two"}}},
    }
)
WEIGHT = st.integers(-2, 2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(a=st.dictionaries(st.sampled_from(LEVELS["a"]), WEIGHT), b=st.dictionaries(st.sampled_from(LEVELS["b"]), WEIGHT))
def test_effect_problems_agree_with_sum_over_cells(a, b):
    """Weights are refused exactly when their products over all cells do not sum to 0."""
    total = sum(a.get(x, 0) * b.get(y, 0) for x, y in itertools.product(*LEVELS.values()))
    assert bool(list(effect_problems({"a": a, "b": b}, DESIGN))) == (total != 0)


@pytest.mark.parametrize(
    "effect", [{"a": "linear"}, {"a": "quadratic", "b": {"p": 1}}, {"cells": {"x/p": 1, "z/q": -1}}]
)
def test_effect_problems_accept_trends_and_cells(effect):
    """Trends sum to 0 by construction; cells name a level of every factor."""
    assert not list(shape_problems(effect))
    assert not list(effect_problems(effect, DESIGN))


@pytest.mark.parametrize(
    "effect",
    [
        None,
        [],
        {},
        {"a": []},
        {"a": {"x": True, "y": -1}},
        {"a": {"x": float("nan")}},
        {"cells": {"x/p": 1}, "a": {"x": 1}},
    ],
)
def test_shape_problems_refuse_what_is_no_weighting(effect):
    """An effect is a non-empty mapping of finite weights, of factors or of cells."""
    assert list(shape_problems(effect))
