"""Removing a planted difference: what is removed, what it costs, and what controls do."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from neurosae.causal.edits import Edit
from neurosae.causal.material import place_of, stimuli_for
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.removal import removal
from neurosae.causal.removing import METHODS, level_means, matched_strength
from neurosae.errors import DataError
from neurosae.spec.design import Design
from tests.causal.levels import EFFECT, HOOK, directions, world

SETTINGS = {"region": "role", "effect": EFFECT, "n_tokens": 1500, "strengths": [0.5, 1.0]}


@cache
def planted():
    """The features that carry the levels."""
    w = world()
    return removal(w.stimuli, w.model, w.dictionary, features=[0, 1], settings=SETTINGS, texts=w.texts, seed=1)


def row(found, name):
    """The one row whose set begins so."""
    rows = found.table[found.table["set"].str.startswith(name).to_numpy(bool)]
    assert len(rows) == 1
    return rows.iloc[0]


def levels_of(features):
    """Means of the localizer's levels."""
    w = world()
    design = Design.from_json(w.stimuli.attrs["design"])
    place = place_of(
        stimuli_for(w.stimuli, design, region="role", split="localizer"), w.model, w.dictionary, region="role"
    )
    return level_means(place, features, factor="group", levels=("m", "f"))


def test_removal_recovers_a_planted_difference():
    """The bias is there; every method takes it away, more than its controls do."""
    found = planted()
    assert row(found, "no edit")["p_corr"] < 0.01
    assert row(found, "no edit")["estimate"] > 0.3
    claims = found.table[
        found.table["p_adjust"].eq("holm").fillna(False).to_numpy(bool) & found.table["p_corr"].notna()
    ]
    assert claims["x_method"].tolist() == list(METHODS)
    np.testing.assert_allclose(claims["x_share_removed"][:2], 1, atol=0.02)
    assert 0.6 < claims["x_share_removed"].iloc[2] < 1.1  # a direction from 12 items is not the planted one
    np.testing.assert_allclose(claims["x_p_controls"], 0.01)
    assert (claims["p_corr"] < 0.05).all()


def test_removal_claims_nothing_for_features_without_effect():
    """Features off the direction change the bias by next to nothing, as their controls do."""
    w = world()
    settings = {**SETTINGS, "methods": ["ablate"]}
    found = removal(w.stimuli, w.model, w.dictionary, features=[5, 9], settings=settings, texts=w.texts, seed=1)
    full = row(found, "ablate of named features, strength 1")
    assert abs(full["x_share_removed"]) < 0.2
    assert full["x_p_controls"] > 0.05
    assert full["p_corr"] == pytest.approx(max(full["x_p_items"], full["x_p_controls"]))


def test_half_the_strength_removes_half():
    """The model reads the direction linearly, but for the norm: half an edit removes about half."""
    found = planted().extras["strengths"].query("strength == 0.5 and not matched")
    np.testing.assert_allclose(found["bias"] / found["clean"], 0.5, atol=0.12)


def test_methods_are_compared_at_equal_divergence():
    """All methods cost the same at their matched strengths, and the table says what they leave."""
    table = planted().extras["strengths"].query("matched")
    np.testing.assert_allclose(table["kl"], table["kl"].min(), rtol=0.05)
    pairs = planted().table[planted().table["set"].str.contains("at equal KL").to_numpy(bool)]
    assert len(pairs) == 6
    assert pairs["p_adjust"].eq("maxT").sum() == 3


@pytest.mark.parametrize("method", list(METHODS))
def test_edits_agree_with_their_equations(method):
    """Logit differences under each edit are those of the equation, applied by hand at every token but BOS."""
    w, levels = world(), levels_of([0, 1, 7])
    W = w.dictionary.W_dec[[0, 1, 7]]
    u = torch.as_tensor(levels.difference.mean(0) / np.linalg.norm(levels.difference.mean(0)), dtype=torch.float32)
    c, mu = (torch.as_tensor(a, dtype=torch.float32) for a in (levels.center, levels.mean))

    def hook(x, hook):
        x, s = x.clone(), 0.7
        own = x[:, 1:]
        f = torch.relu(own @ W.T)
        change = {"ablate": -f @ W, "mean": (mu - f) @ W, "direction": -((own - c) @ u)[..., None] * u}[method]
        x[:, 1:] = own + s * change
        return x

    some = w.stimuli.iloc[:6]
    some.attrs = w.stimuli.attrs
    got = edited_outcomes(some, w.model, [METHODS[method](w.dictionary, levels, 0.7)]).values["logit_diff"][:, 0]
    backend = w.model.tokens.backend
    for text, target, foil, value in zip(some["text"], some["target"], some["foil"], got, strict=True):
        ids = [0, *backend.encode(text, add_special_tokens=False).ids[:-1]]
        with torch.inference_mode(), w.model.bridge.hooks(fwd_hooks=[(HOOK, hook)]):
            logits = w.model.bridge(torch.tensor([ids]), return_type="logits")[0, -1]
        pair = [backend.token_to_id(word.strip()) for word in (target, foil)]
        assert value == pytest.approx(float(logits[pair[0]] - logits[pair[1]]), abs=1e-4)


def test_level_means_weigh_items_equally_and_find_the_direction():
    """Every item counts once; the difference points from the - to the + level."""
    levels = levels_of([0, 1])
    assert levels.difference.shape == (12, 48)
    v = levels.difference.mean(0)
    assert float(v @ directions()[0].numpy()) > 0.8 * np.linalg.norm(v)
    assert levels.mean[0] == pytest.approx(levels.mean[1], rel=0.2)


def test_matched_strength_refuses_what_no_strength_reaches():
    """A divergence beyond the strongest edit is not extrapolated."""
    with pytest.raises(DataError, match="add larger strengths"):
        matched_strength(lambda s: s**2, 2.0, known=[(0.5, 0.25), (1.0, 1.0)])


def test_an_edit_of_other_features_is_no_removal():
    """The planted features alone read the levels: without them the direction is still removed by `direction`."""
    w, levels = world(), levels_of([7])
    some = w.stimuli.iloc[:4]
    some.attrs = w.stimuli.attrs
    kept = edited_outcomes(some, w.model, [METHODS["ablate"](w.dictionary, levels, 1.0)])
    gone = edited_outcomes(some, w.model, [METHODS["direction"](w.dictionary, levels, 1.0)])
    assert (kept.values["logit_diff"][:, 0] / kept.clean["logit_diff"] > 0.8).all()
    assert gone.values["logit_diff"].mean() / gone.clean["logit_diff"].mean() < 0.7
    assert isinstance(METHODS["mean"](w.dictionary, levels, 1.0)[1], Edit)
