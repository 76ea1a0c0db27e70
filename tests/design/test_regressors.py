"""Slopes on a covariate: their words, number and smallest p, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from neurosae.design.exchange import exchangeability
from neurosae.design.regressors import Regressor
from neurosae.design.weights import compile_effect
from neurosae.errors import SpecError

from .conftest import make, plural

NUMBER = {"number": {"pl": 1, "sg": -1}}


def carried(values, **parts):
    """Items of two forms that carry a frequency."""
    words = [f"w{chr(97 + k)}" for k in range(len(values))]
    items = {w: {"noun": plural(w), "frequency": float(v)} for w, v in zip(words, values, strict=True)}
    base = {
        "factors": {"number": ["sg", "pl"]},
        "covariates": ["frequency"],
        "frames": {"f": "The {noun:number}"},
        "items": items,
    }
    return make(**(base | parts))


def how(design, effect):
    return exchangeability(design, compile_effect(design, effect), items=list(design.items))


def test_recovers_a_slope_of_item_means():
    """Every cell counts equally; n! permutations, halved by nothing where the values have no mirror image."""
    found = how(carried([1, 2, 3, 5, 8, 13, 21]), {"slope": "frequency"})
    assert (found.kind, found.n_relabellings, found.p_min) == ("permute_values", math.factorial(7), 1 / 5040)
    assert found.datum.tolist() == [0.5, 0.5]
    assert found.regressor.values.tolist() == [1, 2, 3, 5, 8, 13, 21]
    assert found.exact
    assert "frequency is a number of every item: its values are permuted over items" in found.words


def test_recovers_a_slope_of_differences():
    """Beside a factor within items the datum is the difference; H0 says so."""
    design = carried([1, 2, 3, 4, 5, 6, 7])
    effect = compile_effect(design, {"slope": "frequency"} | NUMBER)
    assert effect.h0 == "an item's contrast number (pl minus sg) does not depend on its frequency (slope 0)"
    found = how(design, {"slope": "frequency"} | NUMBER)
    assert found.datum.tolist() == [-1, 1]
    assert found.p_min == 2 / math.factorial(7)


@pytest.mark.parametrize("values", [[1, 1, 2, 3, 9], [0, 1, 2, 3, 4], [2, 2, 2, 5, 5], [0, 0, 1, 2, 2]])
def test_counts_agree_with_enumeration(values):
    """Number and smallest p of all distinct permutations of values with ties and mirror images."""
    found = Regressor("x", np.array(values, float), np.zeros(5, int), np.zeros(5, int))
    orders = np.array(sorted(set(itertools.permutations(values))), float)
    y = np.array([0.3, 1.7, 3.1, -2.2, 5.9])
    r = np.abs((orders - orders.mean()) @ (y - y.mean()))
    assert found.count()[0] == len(orders)
    assert found.count()[1] >= np.isclose(r, r.max()).mean() - 1e-12


def test_values_stay_inside_strata_and_groups():
    """Two strata of three items each: 3! x 3! permutations, none between them."""
    items = {
        f"{topic}{k}": {"noun": plural(f"{topic}{k}"), "frequency": float(k * k), "topic": topic}
        for topic in ("sea", "sky")
        for k in range(3)
    }
    design = carried([1], items=items, labels=["topic"], strata="topic")
    found = how(design, {"slope": "frequency"})
    assert (found.n_relabellings, found.strata.tolist()) == (36, [0, 0, 0, 1, 1, 1])
    assert "inside each topic" in found.words


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ({"slope": "frequence"}, "unknown covariate 'frequence'. Did you mean 'frequency'"),
        ({"slope": 3}, "is the number 3; write the name of a covariate"),
        ({"slope": "frequency", "number": "all"}, "takes weights beside it, not `all`"),
        ({"slope": "frequency", "number": {"pl": 1}}, "sum to 1, not 0"),
    ],
)
def test_refuses(effect, words):
    """Unknown covariates and effects without a single weight vector."""
    with pytest.raises(SpecError, match=words):
        compile_effect(carried([1, 2, 3]), effect)


def test_refuses_a_covariate_that_does_not_vary():
    """A slope needs values that differ."""
    with pytest.raises(SpecError, match="the same for all items"):
        how(carried([2, 2, 2]), {"slope": "frequency"})


def test_refuses_a_design_without_covariates():
    """The refusal says where covariates are written."""
    design = carried([1], covariates=[], items={"a": {"noun": plural("a")}})
    with pytest.raises(SpecError, match="no `covariates:`"):
        compile_effect(design, {"slope": "frequency"})
