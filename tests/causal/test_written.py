"""Steering a planted direction: what is recovered, what controls do, what is refused."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from neurosae.causal.edits import Edit
from neurosae.causal.material import as_dose
from neurosae.causal.prompted import next_word_odds, prompts_of
from neurosae.causal.pushes import Push, Steered, material_of, measured, pushed
from neurosae.causal.scoring import Lexicon
from neurosae.causal.written import generation
from neurosae.errors import DataError
from neurosae.spec.generation import GenerationBlock
from tests.causal.levels import HOOK, world

WORDS = {"plus": ["he"], "minus": ["she"]}
NEXT = {"region": "pronoun", "words": WORDS, "score": "next_word", "dose": 1.0, "n_tokens": 1500}


@cache
def planted():
    """Both features of the planted direction, pushed both ways by one and two units."""
    w = world()
    settings = {**NEXT, "times": [1, 2]}
    return generation(
        w.stimuli, w.model, w.dictionary, features={0: 1, 1: -1}, settings=settings, texts=w.texts, seed=1
    )


def test_steering_recovers_a_planted_direction():
    """The odds of `he` rise towards plus and fall towards minus, with the dose, more than any control moves them."""
    table = planted().table
    estimate = table["estimate"].to_numpy()
    assert estimate[1] > estimate[0] > 0 > estimate[2] > estimate[3]
    np.testing.assert_allclose(table["x_p_controls"], 0.01)
    assert (table["p_corr"] <= 0.05).all()
    assert (table["p_unc"] >= table[["x_p_items", "x_p_controls"]].max(axis=1) - 1e-12).all()
    np.testing.assert_allclose(table["x_steered"] - table["x_plain"], estimate)
    assert (np.diff(table["x_kl"].to_numpy())[[0, 2]] > 0).all()


def test_steering_claims_nothing_for_features_without_effect():
    """Directions that the model does not read move the odds no more than their controls do."""
    w = world()
    found = generation(w.stimuli, w.model, w.dictionary, features={5: 1, 9: 1}, settings=NEXT, texts=w.texts, seed=1)
    assert (found.table["x_p_controls"] > 0.05).all()
    assert (found.table["p_corr"] > 0.05).all()
    assert len(found.extras["controls"]) == 2 * 100


def test_controls_are_their_own_doses_against_the_plain_score():
    """Two control sets, each at its own p90, by hand: mean change of the odds from those without an edit."""
    w = world()
    ask = GenerationBlock.model_validate(
        {"test": "generation", **NEXT, "dose": "p90", "times": [2], "towards": "minus", "features": {"ids": [0, 1]}}
    )
    material = material_of(w.stimuli, (w.model, w.dictionary), ask, texts=w.texts, seed=1)
    usual = np.flatnonzero(material.reference.density * material.reference.n_tokens >= 20)
    sets = np.array([usual[usual > 1][:2], usual[usual > 1][2:4]])
    own = as_dose("p90", material.reference, [0, 1])
    doses = [as_dose("p90", material.reference, one) for one in sets]
    assert all(not np.allclose(dose, own) for dose in doses)
    chosen = Steered(np.array([0, 1]), np.array([1, -1]), "named")
    found = measured(material, chosen, ask, pushes=[Push(-1, 2)], sets=sets)
    prompts = material.asked.prompts
    for k, (one, dose) in enumerate(zip(sets, doses, strict=True)):
        amount = -2 * np.array([1, -1]) * dose
        edit = Edit(HOOK, "steer", "all", dictionary=w.dictionary, features=tuple(one.tolist()), dose=amount)
        odds = next_word_odds(w.model, prompts["prompt"].tolist(), [(), (edit,)], lexicon=Lexicon(("he",), ("she",)))[0]
        change = odds[1] - odds[0]
        by_item = [change[(prompts["item"] == item).to_numpy()].mean() for item in dict.fromkeys(prompts["item"])]
        assert found.controls[0, k] == pytest.approx(np.mean(by_item), abs=1e-5)


def test_written_texts_are_scored_item_by_item():
    """Sampled texts: the same random numbers for both, samples averaged, every pair in the table."""
    w = world()
    settings = {**NEXT, "score": "balance", "times": [4], "n_samples": 2, "n_new": 4, "towards": "plus"}
    found = generation(
        w.stimuli, w.model, w.dictionary, features={0: 1, 1: -1}, settings=settings, texts=w.texts, seed=1
    )
    row, texts, items = found.table.iloc[0], found.extras["texts"], found.extras["items"]
    assert row["x_p_items"] < 0.05
    assert row["estimate"] > 0
    prompts = prompts_of(w.stimuli, "pronoun")
    assert len(texts) == 2 * len(prompts)
    assert row["n_units"] == prompts["item"].nunique() == 12
    mean = texts.groupby(["item", "prompt"])["score_steered"].mean().groupby("item").mean()
    np.testing.assert_allclose(items.set_index("item")["steered"].sort_index(), mean.sort_index())
    assert row["x_text_perplexity"] > 0


def test_next_word_odds_agree_with_a_direct_pass():
    """Two clamped features by hand, and log P(he) / P(she) from the logits of one pass."""
    w = world()
    prompts = ["m0 then", "so f3 now then", "m5 then"]
    edit = Edit(HOOK, "clamp", "all", dictionary=w.dictionary, features=(0, 1), dose=np.array([2.0, 0.0]))
    found = next_word_odds(w.model, prompts, [(), (edit,)], lexicon=Lexicon(("he", "so"), ("she",)))[0][1]
    W, backend = w.dictionary.W_dec[[0, 1]], w.model.tokens.backend

    def hook(x, hook):
        x = x.clone()
        x[:, 1:] += (torch.tensor([2.0, 0.0]) - torch.relu(x[:, 1:] @ W.T)) @ W
        return x

    for prompt, value in zip(prompts, found, strict=True):
        ids = torch.tensor([[0, *backend.encode(prompt, add_special_tokens=False).ids]])
        with torch.inference_mode(), w.model.bridge.hooks(fwd_hooks=[(HOOK, hook)]):
            p = w.model.bridge(ids, return_type="logits")[0, -1].softmax(-1)
        he, so, she = (float(p[backend.token_to_id(word)]) for word in ("he", "so", "she"))
        assert value == pytest.approx(np.log((he + so) / she), abs=1e-4)


def test_pushes_turn_round_with_their_sign():
    """Towards plus, features of the + cells go up and those of the - cells down; clamp sets the latter to 0."""
    features, signs, dose = np.array([3, 8]), np.array([1, -1]), np.array([2.0, 5.0])
    found = {
        (sign, mode): pushed(Push(sign, 3.0), features, signs, dose=dose, mode=mode).doses
        for sign in (1, -1)
        for mode in ("steer", "clamp")
    }
    assert found[1, "steer"] == {3: 6.0, 8: -15.0}
    assert found[-1, "steer"] == {3: -6.0, 8: 15.0}
    assert found[1, "clamp"] == {3: 6.0, 8: 0.0}
    assert found[-1, "clamp"] == {3: 0.0, 8: 15.0}


def test_prompts_count_once_per_item_and_frame():
    """Cells that agree so far give one prompt; localizer items give none."""
    w = world()
    before, through = prompts_of(w.stimuli, "pronoun"), prompts_of(w.stimuli, "role", through=True)
    assert len(before) == len(through) == 12 * 2 * 2
    assert set(through["prompt"].str.split().str[-1].str[0]) == {"m", "f"}
    with pytest.raises(DataError, match="nothing stands before region 'role'"):
        prompts_of(w.stimuli, "role")
    with pytest.raises(DataError, match="no region 'verb'"):
        prompts_of(w.stimuli, "verb")


def test_notes_say_what_lies_outside_the_natural_range():
    """A dose beyond the largest activity of the reference text is flagged, a small one is not."""
    w = world()
    settings = {**NEXT, "times": [0.1, 9.0], "towards": "plus"}
    found = generation(w.stimuli, w.model, w.dictionary, features={5: 1}, settings=settings, texts=w.texts, seed=1)
    assert found.table["x_outside"].tolist() == [0, 1]
    assert "outside the natural range" not in found.table["note"].iloc[0]
    assert "outside the natural range: 1 of 1" in found.table["note"].iloc[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"where": "generated"}, "scored before anything is"),
        ({"n_controls": 50}, "at least 99"),
        ({"dose": "p0"}, "is no dose"),
        ({"dose": -1.0}, "write a positive number"),
        ({"words": {"plus": ["Good"], "minus": ["bad"]}}, "no single word in lower case"),
        ({"words": {"plus": ["good"], "minus": ["bad", "good"]}}, "stands under plus as well"),
        ({"score": "balance", "temperature": 0.0}, "at temperature 0 all are the same"),
        ({"times": [1.0, 1.0]}, "names a multiple twice"),
        ({"region": ["role", "pronoun"]}, "name one region"),
        ({"split": "localizer"}, "leave it out"),
    ],
)
def test_blocks_refuse_what_cannot_be_tested(settings, said):
    """Refused when the file is read."""
    with pytest.raises(ValueError, match=said):
        GenerationBlock.model_validate({"test": "generation", "features": {"ids": [1]}, **NEXT, **settings})
