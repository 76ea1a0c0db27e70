"""Designs expanded to stimuli."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurosae.design.expand import expand
from neurosae.design.units import form_at
from neurosae.errors import SpecError
from neurosae.spec.design import Design, load_design

WORD = st.text("abzéß漢🙂-'.,", min_size=1, max_size=6)
FORM = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


@st.composite
def random_designs(draw):
    """Well-formed designs: 1-3 factors of 2-3 levels, frames with slots of any factors, one frame depending on one."""
    factors = {f"f{i}": [f"l{j}" for j in range(draw(st.integers(2, 3)))] for i in range(draw(st.integers(1, 3)))}
    slots = {f"s{i}": draw(st.permutations(list(factors)))[: draw(st.integers(0, len(factors)))] for i in range(3)}
    slots["every"] = draw(st.permutations(list(factors)))
    written = [f"{{{':'.join(filter(None, (name, ','.join(by))))}}}" for name, by in slots.items()]

    def template():
        parts = draw(st.permutations([*written, *draw(st.lists(WORD, max_size=3))]))
        glue = [draw(st.sampled_from([" ", " ", ", "])) for _ in parts]
        return "".join(a + b for a, b in zip(parts, glue, strict=True)).strip(" ,")

    def forms(by):
        if not by:
            return draw(FORM)
        return {level: forms(by[1:]) for level in factors[by[0]]}

    first = next(iter(factors))
    frames = {"plain": template(), "by": {first: {level: template() for level in factors[first]}}}
    items = {f"i{k}": {name: forms(by) for name, by in slots.items()} for k in range(draw(st.integers(1, 3)))}
    regions = {
        "pre": {"before": "every"},
        "post": {"after": "every"},
        "both": {"span": ["s0", "every"]},
        "w": {"words": [0, -1]},
    }
    parts = {"factors": factors, "frames": frames, "items": items, "regions": regions}
    return Design.model_validate({"schema": "neurosae/design/1", "name": "random", **parts}), slots


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_designs())
def test_expand_recovers_the_form_of_every_slot(case):
    """In every row of any design, the characters of a slot are its form, and whole words of the text for the rest."""
    design, slots = case
    stimuli = expand(design)
    n_cells = len(list(product(*(factor.levels for factor in design.factors.values()))))
    assert len(stimuli) == n_cells * len(design.items) * 2
    assert stimuli.index.is_unique
    for row in stimuli.to_dict("records"):
        for slot, by in slots.items():
            text = row["text"][row[f"{slot}_start"] : row[f"{slot}_end"]]
            assert text == form_at(design.items[row["item"]][slot], by, row)
        assert row["text"][row["w_start"] : row["w_end"]] == row["text"].strip()
        assert row["both_start"] <= min(row["s0_start"], row["every_start"]) < row["both_end"]
        if not pd.isna(row["pre_end"]):
            assert row["pre_end"] <= row["every_start"]
            assert not set(row["text"][row["pre_end"] : row["every_start"]]) - {" "}


def test_expand_recovers_the_printed_design(designs):
    """Text, target, foil and regions of the first item, written out by hand; capitals stay as in the frame."""
    rows = expand(designs["agreement"]())
    row = rows.loc["key/rc/pl/sg"]
    assert row["text"] == "The keys that the lid hides are"
    assert (row["target"], row["foil"]) == (" are", " is")
    assert row["text"][row["pre_verb_start"] : row["pre_verb_end"]] == "hides"
    assert pd.isna(row["prep_start"])
    assert pd.isna(row["prep_end"])


def test_expand_keeps_the_order_of_levels_and_types(designs):
    """Levels are ordered as in the design, not alphabetically; spans are Int64; what is not there is NA."""
    rows = expand(designs["lists"](covariates=["year"], lists=_with_years(designs["lists"]().lists)))
    assert list(rows["outcome"].cat.categories) == ["lost", "won"]
    assert rows["outcome"].cat.ordered
    assert str(rows["last_start"].dtype) == "Int64"
    assert rows["year"].dtype == float
    assert rows["target"].isna().all()
    assert (rows["frame"] == "-").all()
    assert rows.iloc[0]["item"] == "lost.ending.1"
    assert rows.index[0] == "lost.ending.1/-/lost/ending"


def _with_years(nest):
    return {
        a: {b: [entry | {"year": 1900 + i} for i, entry in enumerate(v)] for b, v in w.items()} for a, w in nest.items()
    }


def test_expand_fills_a_slot_of_two_factors_and_a_frame_of_one(designs):
    """Nested forms follow the order written in the slot; each level of the frame's factor has its own text."""
    design = designs["make"](
        factors={"tense": ["now", "then"], "who": ["he", "they"], "mood": ["plain", "asked"]},
        frames={"f": {"mood": {"plain": "The cat {be:who,tense} here", "asked": "{be:who,tense} the cat {where}?"}}},
        shared={"where": "here"},
        items={"a": {"be": {"he": {"now": "is", "then": "was"}, "they": {"now": "are", "then": "were"}}}},
    )
    texts = expand(design)["text"]
    assert texts["a/f/then/they/plain"] == "The cat were here"
    assert texts["a/f/now/he/asked"] == "is the cat here?"


def test_foil_may_be_a_slot_of_the_items(designs):
    """With more than two levels the foil is named; it may vary as the target does, or not at all."""
    factors, frames = {"n": ["one", "two", "many"]}, {"f": "Now {verb:n}"}
    verb = {"one": "is", "two": "are", "many": "were"}
    foils = {"a": "be", "b": {"one": "are", "two": "is", "many": "was"}}
    items = {name: {"verb": verb, "rival": foil} for name, foil in foils.items()}
    design = designs["make"](factors=factors, frames=frames, items=items, target={"slot": "verb", "foil": "rival"})
    assert list(expand(design)["foil"]) == [" be", " be", " be", " are", " is", " was"]


def test_partition_is_drawn_by_cell_and_stratum(designs):
    """Every between-item cell gives its share, and inside it every topic."""
    rows = expand(designs["lists"](8, partition={"localizer": 8, "seed": 3}))
    drawn = rows[rows["split"] == "localizer"]
    assert (drawn.groupby(["outcome", "course", "topic"], observed=True).size() == 1).all()
    assert len(drawn) == 8


def test_partition_agrees_with_frozen_draw(designs):
    """The draw is a function of seed and names alone, the same on every platform and library."""
    rows = expand(designs["agreement"](6, partition={"localizer": 2, "seed": 7}))
    assert sorted(set(rows["item"][rows["split"] == "localizer"])) == ["car", "key"]
    other = expand(designs["agreement"](6, partition={"localizer": 2, "seed": 8}))
    assert not rows["split"].equals(other["split"])


def test_partition_is_invariant_to_the_order_of_items(designs):
    """Items moved around in the file stay in their split; shared forms stay together."""
    design = designs["agreement"](8, partition={"localizer": 3, "seed": 1})
    other = design.model_copy(update={"items": dict(reversed(design.items.items()))})
    one, two = (expand(d).drop_duplicates("item").set_index("item")["split"] for d in (design, other))
    assert one.astype(str).to_dict() == two.astype(str).to_dict()
    linked = expand(_linked(designs)).drop_duplicates("item").set_index("item")["split"]
    assert all(linked[f"{name}{i}"] == linked[f"{name}0"] for name in "abcd" for i in (0, 1))


def _linked(designs):
    """Pairs of items that share an adjective."""
    items = {f"{a}{i}": {"adj": {"low": f"un{a}", "high": f"{a}{i}"}} for a in "abcd" for i in (0, 1)}
    parts = {"factors": {"degree": ["low", "high"]}, "frames": {"f": "It is {adj:degree}"}, "items": items}
    return designs["make"](**parts, unit="shared_forms", partition={"localizer": 4, "seed": 2})


def test_partition_refuses_groups_that_are_too_large(designs):
    """One item cannot be set apart from the items it is linked with."""
    design = _linked(designs)
    small = design.model_copy(update={"partition": design.partition.model_copy(update={"localizer": 1})})
    with pytest.raises(SpecError, match=r"partition\.localizer: 1 is less than every group of items that share a form"):
        expand(small)


def test_expand_is_invariant_to_a_round_trip_through_json(designs):
    """The design stored with responses gives the same stimuli."""
    for name in ("agreement", "lists", "mixed"):
        design = designs[name]()
        pd.testing.assert_frame_equal(expand(design), expand(Design.from_json(design.to_json())))


def test_shipped_designs_expand(request):
    """All shipped designs give unique stimuli whose slots are where they say."""
    for path in sorted((request.config.rootpath / "stimuli").glob("*.yaml")):
        stimuli = expand(load_design(path))
        assert stimuli.index.is_unique, path
        assert not stimuli["text"].str.contains("  ").any(), path
