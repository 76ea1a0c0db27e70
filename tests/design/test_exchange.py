"""Relabellings that follow from a design."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from neurosae.design.exchange import count_permutations, exchangeability
from neurosae.design.units import items_of
from neurosae.design.weights import compile_effect
from neurosae.errors import SpecError

NUMBER, NEAR = {"subject": {"pl": 1, "sg": -1}}, {"attractor": {"pl": 1, "sg": -1}}
OUTCOME, COURSE = {"outcome": {"won": 1, "lost": -1}}, {"course": {"going": 1, "ending": -1}}
VALENCE, POLARITY = {"valence": {"good": 1, "bad": -1}}, {"polarity": {"yes": 1, "no": -1}}


def how(design, effect, **keywords):
    return exchangeability(design, compile_effect(design, effect), items=list(items_of(design)), **keywords)


@pytest.mark.parametrize("effect", [NUMBER, NUMBER | NEAR, NUMBER | {"attractor": {"pl": 1}}])
def test_within_items_recovers_flips(designs, effect):
    """Main effect, interaction and simple effect within items: 2^n flips, p from 2^(1-n), exact."""
    found = how(designs["agreement"](8), effect)
    assert (found.kind, found.unit, found.n_units, found.n_relabellings) == ("flip", "item", 8, 256)
    assert found.p_min == 2 / 256
    assert found.exact
    assert found.groups is None
    assert not found.note
    assert "whole items are sign-flipped" in found.words


@pytest.mark.parametrize(("n", "p"), [(3, 0.1), (4, 2 / 70), (5, 2 / 252)])
def test_between_items_agrees_with_binomials(designs, n, p):
    """n words per level allow comb(2n, n) splits; two-sided p from 2 of them."""
    found = how(designs["mixed"]((n, n)), VALENCE)
    assert (found.kind, found.n_relabellings) == ("permute_labels", comb(2 * n, n))
    assert found.exact
    assert_allclose(found.p_min, p)
    assert_allclose(found.datum[found.datum != 0], 0.5)  # the mean over the two polarities


def test_count_permutations_agrees_with_enumeration():
    """Distinct relabellings inside blocks, and the share that reaches the largest |T|, counted one by one."""
    rng = np.random.default_rng(5)
    for groups, blocks in [
        ([0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1]),
        ([0, 1, 1, 0, 1, 1], [0] * 6),
        ([0, 1, 2, 2], [0] * 4),
    ]:
        groups, blocks = np.array(groups), np.array(blocks)
        weights = np.array([-1.0, 1.0]) if groups.max() == 1 else np.array([-1.0, 0.4, 0.6])
        distinct = {
            labels
            for labels in product(range(3), repeat=len(groups))
            if all(sorted(np.array(labels)[blocks == b]) == sorted(groups[blocks == b]) for b in set(blocks))
        }
        n, p_min = count_permutations(groups, blocks, weights)
        y = rng.normal(size=len(groups))
        means = [[y[np.array(labels) == g].mean() for g in range(len(weights))] for labels in distinct]
        t = np.abs(np.array(means) @ weights)
        assert n == len(distinct)
        assert round(p_min * n) == (t >= t.max() - 1e-9).sum()


@pytest.mark.parametrize("effect", [VALENCE, POLARITY, VALENCE | POLARITY, POLARITY | {"valence": {"good": 1}}])
def test_datum_agrees_with_cell_means(designs, effect):
    """Whatever the group sizes, the tested statistic is the effect as written on cell means."""
    design = designs["mixed"]((5, 3))
    made, found = compile_effect(design, effect), how(designs["mixed"]((5, 3)), effect)
    items = items_of(design)
    y = np.random.default_rng(2).normal(size=(len(items), len(made.cells)))
    own = np.array([[cell[0] == item.levels["valence"] for cell in made.cells] for item in items.values()])
    cell_means = np.where(own, y, 0).sum(axis=0) / own.sum(axis=0)
    at = [list(items).index(name) for name in found.items]
    d = (np.where(own, y, 0)[at] @ found.datum) * found.scale
    if found.kind == "flip":
        estimate = d.mean()
    else:
        estimate = found.group_weights @ [d[found.groups == g].mean() for g in range(len(found.group_weights))]
    assert_allclose(estimate, made.weights @ cell_means)


def test_mixed_effects_recover_their_relabelling(designs):
    """Within main effect: flips; between main effect and interaction: labels over items."""
    design = designs["mixed"]((5, 3))
    assert how(design, POLARITY).kind == "flip"
    assert how(design, POLARITY).n_relabellings == 2**8
    assert how(design, VALENCE | POLARITY).kind == "permute_labels"
    assert how(design, VALENCE | POLARITY).n_relabellings == comb(8, 3)
    assert how(design, VALENCE).p_min == 1 / comb(8, 3)  # groups of different size have no mirror
    only_good = how(design, POLARITY | {"valence": {"good": 1}})
    assert only_good.n_units == 5
    assert len(only_good.items) == 5


def test_lists_permute_inside_strata_and_other_factors(designs):
    """A main effect moves labels inside topic x the other factor; an interaction is labelled approximate."""
    found = how(designs["lists"](4), OUTCOME)
    assert found.n_relabellings == comb(4, 2) ** 4
    assert found.exact
    assert found.unit == "item in stratum"
    assert "inside each topic x course" in found.words
    both = how(designs["lists"](4), OUTCOME | COURSE)
    assert not both.exact
    assert both.note.startswith("approximate")
    assert len(both.group_cells) == 4
    free = how(designs["lists"](4, strata=None), OUTCOME)
    assert free.n_relabellings == comb(8, 4) ** 2


def test_a_stratum_with_one_label_is_named(designs):
    """It contributes nothing, and the note says so."""
    design = designs["mixed"]((3, 3))
    found = how(design, VALENCE, strata=["a", "b", "a", "a", "a", "a"])
    assert found.n_relabellings == comb(5, 2)
    assert "'b' has one label and contributes nothing" in found.note


@pytest.mark.parametrize(
    ("weights", "n_orders"), [((2, -1, -1), 3), ((1, -1, -1, 1), None), ((-1, 0, 1), None), ((2, -1, 0, -1), 3)]
)
def test_effects_without_reversal_permute_levels(designs, weights, n_orders):
    """2, -1, -1 cannot be turned round by exchanging levels; 1, -1, -1, 1 and a trend can."""
    levels = "abcd"[: len(weights)]
    items = {name: {"w": {level: f"{name}{level}" for level in levels}} for name in ("x", "y")}
    design = designs["make"](factors={"k": list(levels)}, frames={"f": "{w:k} it"}, items=items)
    found = how(design, {"k": dict(zip(levels, weights, strict=True))})
    assert found.exact
    assert found.kind == ("flip" if n_orders is None else "permute_levels")
    assert found.n_relabellings == (4 if n_orders is None else n_orders**2)
    assert found.p_min == (0.5 if n_orders is None else n_orders**-2.0)
    if n_orders is not None:
        assert found.levels.weights.tolist() == [w for w in weights if w]
        assert "3 levels of the effect change places inside every item" in found.words


def three_by_two(designs, varies="within", n=4):
    """Dose (3 levels) x polarity; dose within or between items."""
    doses, names = ["low", "mid", "high"], "abcdefghijkl"[: n if varies == "within" else 3 * n]
    neg = {"yes": "so", "no": "not"}
    if varies == "within":
        items = {name: {"w": {d: f"{name}{d}" for d in doses}, "neg": neg} for name in names}
        return designs["make"](
            factors={"dose": doses, "polarity": ["no", "yes"]}, frames={"f": "{neg:polarity} {w:dose} it"}, items=items
        )
    items = {name: {"dose": doses[k % 3], "w": name, "neg": neg} for k, name in enumerate(names)}
    factors = {"dose": {"levels": doses, "varies": "between"}, "polarity": ["no", "yes"]}
    return designs["make"](factors=factors, frames={"f": "{neg:polarity} {w} it"}, items=items)


@pytest.mark.parametrize("other", [{}, POLARITY, {"polarity": {"yes": 1}}])
def test_all_levels_within_items_permute_them(designs, other):
    """(3!)^n relabellings, p from 3! of them; the value at a level keeps the weights of the other factor."""
    found = how(three_by_two(designs), {"dose": "all"} | other)
    assert (found.kind, found.n_relabellings, found.p_min) == ("permute_levels", 6**4, 6 / 6**4)
    assert found.levels.weights is None
    assert sorted(set(found.levels.of_cell.tolist())) == [0, 1, 2]
    expected = {0: [0.5, 0.5], 1: [-1, 1], 2: [0, 1]}[0 if not other else 1 if other is POLARITY else 2]
    assert_allclose(found.levels.datum.reshape(3, 2), [expected] * 3)


def test_all_levels_between_items_permute_labels(designs):
    """12!/(4!)^3 relabellings, of which 3! give the largest F; two contrasts of three group means."""
    found = how(three_by_two(designs, "between"), {"dose": "all"})
    assert (found.kind, found.n_relabellings) == ("permute_labels", 34650)
    assert_allclose(found.p_min, 6 / 34650)
    assert_allclose(found.contrasts, [[-1, 1, 0], [-1, 0, 1]])
    assert_allclose(found.datum[found.datum != 0], 0.5)
    assert found.group_weights is None


def test_all_levels_beside_a_contrast_between_items_are_refused(designs):
    """No relabelling is known for it; the remedy is weights."""
    neg = {"yes": "so", "no": "not", "maybe": "perhaps"}
    items = {name: {"valence": "bad" if k % 2 else "good", "adj": name, "neg": neg} for k, name in enumerate("abcd")}
    factors = {"valence": {"levels": ["bad", "good"], "varies": "between"}, "polarity": ["no", "yes", "maybe"]}
    design = designs["make"](factors=factors, frames={"f": "{neg:polarity} {adj} it"}, items=items)
    with pytest.raises(SpecError, match="write polarity with weights"):
        how(design, VALENCE | {"polarity": "all"})


def test_shared_forms_make_units(designs):
    """Items linked by a form that carries the factor are one unit; target and words without a factor link none."""
    items = {
        f"{adj}_{noun}": {"adj": {"no": filler, "yes": adj}, "noun": noun, "verb": {"no": "is", "yes": "was"}}
        for adj, filler, noun in [
            ("red", "some", "boat"),
            ("red", "any", "box"),
            ("cold", "any", "tea"),
            ("wet", "one", "tea"),
        ]
    }
    parts = {"frames": {"f": "It had {adj:colour} {noun} {verb:colour}"}, "items": items, "target": {"slot": "verb"}}
    design = designs["make"](factors={"colour": ["no", "yes"]}, unit="shared_forms", **parts)
    found = how(design, {"colour": {"yes": 1, "no": -1}})
    assert found.units.tolist() == [0, 0, 0, 1]
    assert found.n_units == 2
    assert found.unit == "shared forms"
    assert "4 items make 2 units" in found.note


def test_p_min_is_invariant_to_sign_scale_and_item_order(designs):
    """The direction and unit of an effect change neither group nor reach."""
    design = designs["lists"](4)
    a, b = how(design, OUTCOME), how(design, {"outcome": {"won": -2.5, "lost": 2.5}})
    items = list(items_of(design))[::-1]
    c = exchangeability(design, compile_effect(design, OUTCOME), items=items)
    assert (a.n_relabellings, a.p_min, a.words) == (b.n_relabellings, b.p_min, b.words)
    assert (a.n_relabellings, a.p_min, a.words) == (c.n_relabellings, c.p_min, c.words)


def test_relabellings_control_the_error_rate(designs):
    """Null data with strong strata: permutation inside the derived blocks rejects at the nominal rate."""
    found = how(designs["lists"](4), OUTCOME)
    rng, rejected, n_sets = np.random.default_rng(3), 0, 400
    signs = np.sign(found.group_weights)[found.groups]
    for _ in range(n_sets):
        y = rng.normal(size=len(signs)) + 5 * found.strata
        keys = rng.random((199, len(y)))
        order = np.lexsort((keys, np.broadcast_to(found.strata, keys.shape)), axis=-1)
        labels = np.empty_like(keys)
        np.put_along_axis(labels, order, np.broadcast_to(signs[np.argsort(found.strata, kind="stable")], keys.shape), 1)
        rejected += (1 + (np.abs(labels @ y) >= abs(signs @ y) - 1e-9).sum()) / 200 <= 0.05
    low, high = scipy.stats.binom.interval(0.999, n_sets, 0.05)
    assert low <= rejected <= high


def test_exchangeability_refuses(designs):
    """What no relabelling of whole items tests is refused with what would do."""
    design = designs["mixed"]((5, 3))
    with pytest.raises(SpecError, match="no product of a part between items and a part within them"):
        how(design, {"cells": {"good/yes": 1, "bad/no": -1}})
    with pytest.raises(SpecError, match="weights between items do not sum to 0"):
        how(design, {"cells": {"good/yes": 2, "good/no": -2, "bad/yes": -1, "bad/no": 1}})
    effect = compile_effect(design, VALENCE)
    with pytest.raises(SpecError, match=r"unknown item 'kee'\. Did you mean 'key'"):
        exchangeability(design, effect, items=["kee"])
    simple = compile_effect(design, POLARITY | {"valence": {"good": 1}})
    with pytest.raises(SpecError, match="none of these items has a weight in the effect"):
        exchangeability(design, simple, items=["lid"])


def test_shared_forms_across_levels_are_refused(designs):
    """A unit cannot have two labels."""
    items = {"a": {"side": "l", "w": {"x": "ab", "y": "cd"}}, "b": {"side": "r", "w": {"x": "ab", "y": "ef"}}}
    factors = {"side": {"levels": ["l", "r"], "varies": "between"}, "k": ["x", "y"]}
    design = designs["make"](factors=factors, frames={"f": "It {w:k}"}, items=items, unit="shared_forms")
    with pytest.raises(SpecError, match=r"merges items of different levels or strata \(a, b\)"):
        how(design, {"side": {"r": 1, "l": -1}, "k": {"y": 1, "x": -1}})
