"""What differs between the + and - cells beside the factor."""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.testing import assert_allclose

from neurosae.design.confounds import confound_table, crossed, lexical_table, measures, repeated_cells, spearman
from neurosae.design.expand import expand
from neurosae.design.weights import compile_effect
from neurosae.spec.design import region_names

NUMBER, NEAR = {"subject": {"pl": 1, "sg": -1}}, {"attractor": {"pl": 1, "sg": -1}}


def tables(design, **written):
    stimuli = expand(design)
    effects = {name: compile_effect(design, effect) for name, effect in written.items()}
    words = lexical_table(design, stimuli, effects, regions=region_names(design))
    numbers = confound_table(design, stimuli, effects, numbers=measures(stimuli, region_names(design)))
    return words.set_index(["region", "effect"]), numbers.set_index(["effect", "measure"])


def test_lexical_table_recovers_the_printed_example(designs):
    """Agreement: head is the subject, local the attractor, the verb's neighbour is free of the subject."""
    words, _ = tables(designs["agreement"](4), s=NUMBER, a=NEAR, x=NUMBER | NEAR)
    expected = {"head": (8, 0, 0), "local": (0, 8, 0), "pre_verb": (0, 8, 0), "verb": (8, 0, 0)}
    for region, counts in expected.items():
        assert tuple(words["differ"][region, effect] for effect in "sax") == counts, region
        assert (words.loc[region]["n"] == 8).all()
    assert words["seen"]["head", "a"] == 0
    assert words["seen"]["pre_verb", "x"] == 8


def test_interaction_compares_words_as_a_whole(designs):
    """A span of two words has the same four words in + and - cells of their interaction."""
    items = {"red_boat": {"a": {"no": "some", "yes": "red"}, "b": {"no": "thing", "yes": "boat"}}}
    parts = {
        "factors": {"adj": ["no", "yes"], "noun": ["no", "yes"]},
        "frames": {"f": "One {a:adj} {b:noun}"},
        "items": items,
    }
    design = designs["make"](**parts, regions={"both": {"span": ["a", "b"]}})
    words, _ = tables(
        design, x={"adj": {"yes": 1, "no": -1}, "noun": {"yes": 1, "no": -1}}, m={"adj": {"yes": 1, "no": -1}}
    )
    assert words["differ"]["both", "x"] == 0
    assert words["differ"]["both", "m"] == 1


def test_confound_table_agrees_with_scipy(designs):
    """Mean differences are those of the cell means, correlations those of scipy."""
    design = designs["agreement"](6)
    _, numbers = tables(design, s=NUMBER)
    stimuli = expand(design)
    length, plural = stimuli["text"].str.len(), stimuli["subject"] == "pl"
    row = numbers.loc["s", "length in characters"]
    assert_allclose(row["difference"], length[plural].mean() - length[~plural].mean())
    assert_allclose(row["rho"], scipy.stats.spearmanr(plural, length).statistic)
    assert row["differ"] == row["n"] == 12
    assert (numbers.loc["s"]["differ"].drop("length in characters") == 0).all()


def test_spearman_agrees_with_scipy_on_ties():
    """Ties share their rank; a constant gives 0, not NaN."""
    x, y = np.random.default_rng(1).integers(0, 4, (2, 50))
    assert_allclose(spearman(x, y), scipy.stats.spearmanr(x, y).statistic)
    assert spearman(np.ones(5), np.arange(5)) == 0


def test_confounds_are_invariant_to_row_order_and_scale_of_weights(designs):
    """Shuffled stimuli and rescaled weights give the same table; a turned effect turns the sign."""
    design = designs["agreement"](6)
    stimuli, made = expand(design), compile_effect(design, NUMBER)
    shuffled = stimuli.sample(frac=1, random_state=1)
    turned = compile_effect(design, {"subject": {"pl": -3, "sg": 3}})
    a = confound_table(design, stimuli, {"e": made}, numbers=measures(stimuli, ("head",)))
    b = confound_table(design, shuffled, {"e": turned}, numbers=measures(shuffled, ("head",)))
    assert_allclose(a["difference"], -b["difference"]) and assert_allclose(a["rho"], -b["rho"])
    assert a["differ"].tolist() == b["differ"].tolist()


def test_repeated_cells_recover_one_text_for_all_items(designs):
    """With one filler for all items the absent cell is one text; up to an earlier region even more cells are."""
    items = {
        name: {"a": {"no": "some", "yes": name}, "b": {"no": "thing", "yes": f"{name}er"}} for name in ("hot", "wet")
    }
    factors = {"adj": ["no", "yes"], "noun": ["no", "yes"]}
    design = designs["make"](factors=factors, frames={"f": "One {a:adj} {b:noun}"}, items=items)
    effect = compile_effect(design, {"adj": {"yes": 1, "no": -1}, "noun": {"yes": 1, "no": -1}})
    stimuli = expand(design)
    assert repeated_cells(design, stimuli, effect) == [("no/no", "One some thing", 2)]
    assert [cell for cell, *_ in repeated_cells(design, stimuli, effect, region="a")] == ["no/no", "no/yes"]


def test_crossed_tells_interactions_from_simple_effects(designs):
    """Two factors whose weights sum to 0 make an interaction; a held level does not."""
    design = designs["agreement"]()
    assert crossed(design, NUMBER | NEAR)
    assert not crossed(design, NUMBER)
    assert not crossed(design, NUMBER | {"attractor": {"pl": 1}})
    assert not crossed(design, {"cells": {"a": 1, "b": -1}})
