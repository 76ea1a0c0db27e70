"""Patching between texts, on planted circuits where every place's share is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.causal.passes import edited_outcomes
from neurosae.causal.patching import DENOISING, NOISING, Patching, patch, patch_grid
from neurosae.causal.replacements import Thing
from neurosae.errors import DataError, ModelError
from tests.causal.circuits import HOOK, A, B

BETWEEN = {"a": ("present", "absent")}


def shares(table):
    """Share of the difference that every place carries, by direction, thing and region."""
    sums = table.assign(whole=table["y_clean"] - table["y_other"]).groupby(["direction", "thing", "region"])
    return sums["effect"].sum() / sums["whole"].sum()


def test_patching_finds_where_the_difference_is(linear_circuit):
    """Before attention the difference lies at the word itself, after it at the last token; both directions agree."""
    made = linear_circuit(False)
    things = ["hook_embed", HOOK, "blocks.1.hook_resid_post"]
    table = patch(made.stimuli, made.model, things, between=BETWEEN, regions=["first", "second", "last"])
    share = shares(table)
    for direction in (NOISING, DENOISING):
        found = share[direction]
        assert_allclose(found["hook_embed"], [1, 0, 0], atol=1e-3)
        for late in things[1:]:
            assert_allclose(found[late][["first", "last", "second"]], [0, 1, 0], atol=1e-3)
    assert len(table) == 2 * 9 * len(made.stimuli) / 2


def test_patching_features_and_heads(linear_circuit):
    """Concept A alone carries factor a, B nothing; the four heads share what attention carries."""
    made = linear_circuit(False)
    concepts = [Thing(HOOK, made.dictionary, (j,), "concepts") for j in (A, B)]
    heads = [f"blocks.0.attn.hook_z.h{h}" for h in range(4)]
    table = patch(made.stimuli, made.model, [*concepts, *heads], between=BETWEEN, regions=["last"])
    share = shares(table).xs("last", level="region")
    for direction in (NOISING, DENOISING):
        assert share[direction, f"concepts/{A}"] == pytest.approx(1, abs=2e-3)
        assert share[direction, f"concepts/{B}"] == pytest.approx(0, abs=1e-3)
        assert share[direction][heads].sum() == pytest.approx(1, abs=1e-3)
        assert share[direction][heads].abs().max() < 0.9


def test_and_neuron_is_necessary_and_sufficient(and_circuit):
    """The hidden vector of the MLP carries the whole conjunction, where the other concept is there."""
    table = patch(and_circuit.stimuli, and_circuit.model, ["blocks.1.mlp.hook_post"], between=BETWEEN, regions=["last"])
    by_b = table["clean"].str.endswith("/present")
    for direction in (NOISING, DENOISING):
        here = table["direction"] == direction
        assert_allclose(table.loc[here & by_b, "effect"], 4.0, atol=0.1)
        assert_allclose(table.loc[here & ~by_b, "effect"], 0.0, atol=0.01)


def test_zero_and_mean_and_noise(linear_circuit):
    """Zero takes the concept away; the mean leaves half of it; noise of the concept's plane leaves its mean."""
    made = linear_circuit(False)
    concept = [Thing(HOOK, made.dictionary, (A,), "concepts")]
    effect = {}
    for replace in ("zero", "mean"):
        settings = Patching(replace=replace)
        found = patch(made.stimuli, made.model, concept, between=BETWEEN, regions=["last"], settings=settings)
        assert set(found["direction"]) == {NOISING}
        assert found["y_other"].isna().all()
        effect[replace] = found["effect"]
    assert_allclose(effect["zero"], 4.0, atol=0.02)
    assert_allclose(effect["mean"], 2.0, atol=0.02)  # concept A is there in half of the texts
    settings = Patching(replace="noise", n_draws=30)
    found = patch(made.stimuli[:40], made.model, ["hook_embed"], between=BETWEEN, regions=["first"], settings=settings)
    sd = made.stimuli[:40]["a"].eq("present").std(ddof=0)  # along A; noise is drawn for each dimension alone
    sd *= float(made.dictionary.W_dec[A].pow(4).sum().sqrt())
    assert np.abs(found["effect"].mean()) < 4 * 4 * sd / np.sqrt(30 * 20)
    assert found["effect"].std() == pytest.approx(4 * sd / np.sqrt(30), rel=0.5)


def test_mean_leaves_the_own_item_out(linear_circuit):
    """With two items, the mean that an item gets is the other item's mean."""
    made = linear_circuit(False)
    two = made.stimuli[made.stimuli["item"].isin(["i0", "i1"])]
    grid = patch_grid(two, made.model, [HOOK], between=BETWEEN, regions=["last"], settings=Patching(replace="mean"))
    by_item = {}
    clean = edited_outcomes(two, made.model, [()]).clean["logit_diff"]
    for item in ("i0", "i1"):
        by_item[item] = clean[(two["item"] == item).to_numpy()].mean()
    # what is read is linear but for the norm, whose scale hardly varies: outcome of the mean = mean outcome
    wanted = grid.pairs["item"].map({"i0": by_item["i1"], "i1": by_item["i0"]})
    assert_allclose(grid.patched[:, 0], wanted, atol=5e-3)
    assert abs(by_item["i0"] - by_item["i1"]) > 0.05


def test_random_partners_are_of_other_items(linear_circuit):
    """Never the own item, always the other level and the same other factors; seeded."""
    made = linear_circuit(False)
    few = made.stimuli[made.stimuli["item"].isin(["i0", "i1", "i2"])]
    settings = Patching(replace="random", n_draws=2)
    made_of = {"between": BETWEEN, "regions": ["last"], "settings": settings}
    grids = [patch_grid(few, made.model, [HOOK], **made_of, seed=seed) for seed in (1, 1, 2, 3, 4, 5)]
    pd.testing.assert_frame_equal(grids[0].pairs, grids[1].pairs)
    assert_allclose(grids[0].patched, grids[1].patched)
    pairs = pd.concat([grid.pairs for grid in grids])
    source = pairs["other"].str.split("/", expand=True)
    assert (source[0] != pairs["item"]).all()
    assert (source[2] == "absent").all()
    assert (source[3] == pairs["b"]).all()
    assert source[0].nunique() == 3


def test_both_directions_score_the_target_of_the_clean_text(linear_circuit):
    """Texts without concept A have targets of their own; the other text is scored with the clean one's all the same."""
    made = linear_circuit(False)
    stimuli = made.stimuli[:16].copy()
    absent = (stimuli["a"] == "absent").to_numpy()
    stimuli.loc[absent, ["target", "foil"]] = [" no", " yes"]
    stimuli.attrs = made.stimuli.attrs
    table = patch(stimuli, made.model, [HOOK], between=BETWEEN, regions=["last"])
    assert_allclose(table["y_clean"] - table["y_other"], 4.0, atol=0.02)
    assert_allclose(table["effect"], 4.0, atol=0.02)


def test_regions_of_unequal_length_are_aligned_at_the_end(linear_circuit):
    """A region of two tokens takes the last one of the other text; the row says so."""
    made = linear_circuit(False)
    stimuli = made.stimuli.copy()
    longer = stimuli["a"] == "present"
    stimuli.loc[longer, "first_start"] = stimuli.loc[longer, "word_start"]
    stimuli.attrs = made.stimuli.attrs
    table = patch(stimuli, made.model, ["hook_embed"], between=BETWEEN, regions=["first"])
    assert table["note"].str.contains("64 of 64 pairs the numbers of tokens differ").all()
    assert_allclose(shares(table), 1.0, atol=1e-3)


def test_places_that_lead_nowhere_are_marked(linear_circuit):
    """After the last layer an earlier token reaches nothing that is scored: idle in a grid, an error where all are."""
    made = linear_circuit(False)
    last = "blocks.1.hook_resid_post"
    grid = patch_grid(made.stimuli, made.model, [last], between=BETWEEN, regions=["first", "last"])
    assert grid.idle.tolist() == [True, False, True, False]
    with pytest.raises(ModelError, match="no logit that is scored"):
        patch_grid(made.stimuli, made.model, [last], between=BETWEEN, regions=["first"])


def test_patching_refuses(linear_circuit, and_circuit):
    """Unknown factors, levels, heads and replacements, missing partners, noise on features."""
    made = linear_circuit(False)
    ask = dict(between=BETWEEN, regions=["last"])
    with pytest.raises(DataError, match="unknown factor 'c'"):
        patch(made.stimuli, made.model, [HOOK], between={"c": ("x", "y")}, regions=["last"])
    with pytest.raises(DataError, match="unknown level 'here'"):
        patch(made.stimuli, made.model, [HOOK], between={"a": ("present", "here")}, regions=["last"])
    with pytest.raises(ModelError, match="there are 4 heads, h0 to h3"):
        patch(made.stimuli, made.model, ["blocks.1.attn.hook_z.h9"], **ask)
    with pytest.raises(DataError, match=r"unknown replacement 'pared'\. Did you mean 'paired'"):
        patch(made.stimuli, made.model, [HOOK], **ask, settings=Patching(replace="pared"))
    half = made.stimuli[(made.stimuli["a"] == "present") | (made.stimuli["item"] != "i3")]
    with pytest.raises(DataError, match="2 texts have no partner"):
        patch(half, made.model, [HOOK], **ask)
    thing = Thing(HOOK, made.dictionary, (A,))
    with pytest.raises(DataError, match="noise is added to vectors"):
        patch(made.stimuli, made.model, [thing], **ask, settings=Patching(replace="noise"))
