"""Inversion: the exact swap against single runs, the search against everything, gradients against differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.dictionary.record import neuron_dictionary
from neurosae.dictionary.vectors import vector_dictionary
from neurosae.errors import DataError
from neurosae.examine.inversion import (
    Target,
    _gradient,
    _shortlist,
    embedding_cosines,
    invert_feature,
    swap_scores,
)
from neurosae.extraction.model import hooked_pass, logits_of

IDS = [256, 64, 70, 80, 65]


def value(model, dictionary, ids, *, feature=9):
    """z at the last token of one sequence, one run."""
    ids = np.array([ids])
    x = hooked_pass(model, ids, np.ones_like(ids), hooks=[dictionary.hook], rows=[0], cols=[ids.shape[1] - 1])
    return float(dictionary.preactivations(x[dictionary.hook], [feature])[0, 0])


def test_swap_scores_agree_with_single_runs(toy, made_dictionary):
    """Every candidate's value is that of its own run, at the place that is read."""
    dictionary = made_dictionary(1)
    found = swap_scores(toy, dictionary, 9, ids=IDS, place=2)
    for token in (0, 77, 256):
        assert_allclose(found[token], value(toy, dictionary, [*IDS[:2], token, *IDS[3:]]), atol=1e-4)
    assert_allclose(
        swap_scores(toy, dictionary, 9, ids=IDS, place=2, read=2)[77], value(toy, dictionary, [*IDS[:2], 77]), atol=1e-4
    )
    with pytest.raises(DataError, match="must not come after"):
        swap_scores(toy, dictionary, 9, ids=IDS, place=3, read=2)


def test_gradient_agrees_with_differences(toy, made_dictionary):
    """The gradient at an embedding is that of z: checked by moving the embedding matrix."""
    dictionary = made_dictionary(1)
    gradient = _gradient(Target(toy, dictionary, 9, 4), IDS)[2].cpu().numpy()
    W = next(p for n, p in toy.bridge.embed.named_parameters() if p.shape == (257, 16))
    old, numeric = W.detach().clone(), np.zeros(16)
    for i in range(16):
        for sign in (1, -1):
            with torch.no_grad():
                W[70, i] = old[70, i] + sign * 1e-2
            numeric[i] += sign * value(toy, dictionary, IDS) / 2e-2
        with torch.no_grad():
            W.copy_(old)
    assert_allclose(gradient, numeric, atol=2e-2 * np.abs(numeric).max())


def test_invert_feature_recovers_the_best_of_all_pairs(toy, made_dictionary):
    """A search over a short vocabulary ends where no single swap is better, and says how much it ran."""
    dictionary = made_dictionary(1)
    found = invert_feature(toy, dictionary, 9, text="ab", n_tokens=2, shortlist=None).iloc[-1]
    ids = [256, 64, 65, *found["token_ids"]]
    for place in (3, 4):
        everything = swap_scores(toy, dictionary, 9, ids=ids, place=place)[:256]
        assert everything.max() <= found["z"] + 1e-4
    assert_allclose(found["z"], value(toy, dictionary, ids), atol=1e-4)
    short = invert_feature(toy, dictionary, 9, text="ab", n_tokens=2, shortlist=16).iloc[-1]
    assert short["n_run"] < found["n_run"]
    one = invert_feature(toy, dictionary, 9, text="ab", shortlist=8, settings={"rounds": 1}).iloc[-1]
    everything = swap_scores(toy, dictionary, 9, ids=[256, 64, 65, 0], place=3)[:256]
    assert (everything > one["z"]).mean() < 0.05  # 8 of 256 that the gradient proposed hold one of the best


def test_invert_feature_pays_for_surprisal(toy, made_dictionary):
    """With a heavy penalty the found string is what the model expects; the rule's verdict stands beside it."""
    dictionary = made_dictionary(1)
    free = invert_feature(toy, dictionary, 9, text="ab", shortlist=None).iloc[-1]
    rule = {"penalty": 1e3, "rule": lambda text: False}
    paid = invert_feature(toy, dictionary, 9, text="ab", shortlist=None, settings=rule).iloc[-1]
    assert paid["surprisal"] < free["surprisal"]
    assert paid["z"] < free["z"]
    assert (bool(paid["predicted"]), free["predicted"]) == (False, free["predicted"])
    ids = np.array([[256, 64, 65]])
    x = hooked_pass(toy, ids, np.ones_like(ids), hooks=[toy.last_hook], rows=[0], cols=[2])[toy.last_hook]
    expected = int(logits_of(toy, x)[0][:256].argmax())
    assert paid["token_ids"] == [expected]


def test_the_shortlist_of_a_place_is_that_of_its_own_gradient(toy, made_dictionary):
    """First-order scores by hand, at a place that is not the last."""
    target, usual = Target(toy, made_dictionary(1), 9, 4), np.arange(256)
    E = toy.bridge.W_E.detach().float().numpy()
    for place in (1, 2, 4):
        score = (E - E[IDS[place]]) @ _gradient(target, IDS)[place].numpy()
        assert _shortlist(target, IDS, place=place, usual=usual, n=5).tolist() == np.argsort(-score[:256])[:5].tolist()


def test_surprisal_is_in_bits_of_the_searched_tokens(toy, made_dictionary):
    """-log2 p of every found token given all before it, their mean, from one pass over the whole string."""
    found = invert_feature(toy, made_dictionary(1), 9, text="ab", n_tokens=3, shortlist=8, settings={"rounds": 1})
    ids = torch.tensor([[256, 64, 65, *found["token_ids"].iloc[-1]]])
    with torch.inference_mode():
        p = toy.bridge(ids, return_type="logits").softmax(-1)[0]
    by_hand = [-np.log2(float(p[at - 1, ids[0, at]])) for at in (3, 4, 5)]
    assert_allclose(found["surprisal"].iloc[-1], np.mean(by_hand), rtol=1e-4)


def test_specials_are_never_tried_and_the_start_follows_the_seed(toy, made_dictionary):
    """A feature that BOS drives highest is not answered with BOS; other seeds start from other strings."""
    dictionary, every = made_dictionary(1), np.arange(257)
    ids = np.column_stack([np.full(257, 256), np.full(257, 64), every])
    x = hooked_pass(toy, ids, np.ones_like(ids), hooks=[dictionary.hook], rows=every, cols=np.full(257, 2))
    x = x[dictionary.hook].numpy()
    bos = vector_dictionary(x[256] - x.mean(axis=0), hook=dictionary.hook)
    assert swap_scores(toy, bos, 0, ids=ids[0], place=2).argmax() == 256
    assert invert_feature(toy, bos, 0, text="a", shortlist=None)["token_ids"].iloc[-1] != [256]
    narrow = {"rounds": 1, "penalty": 0.0}
    starts = [
        invert_feature(toy, dictionary, 9, n_tokens=3, shortlist=1, settings=narrow | {"seed": seed})["text"].iloc[0]
        for seed in (0, 0, 1, 2)
    ]
    assert starts[0] == starts[1]
    assert len(set(starts)) > 1


def test_embedding_cosines_agree_with_numpy(toy):
    """For raw coordinates: the tokens whose embedding has the largest share there."""
    E = toy.bridge.W_E.detach().numpy()
    found = embedding_cosines(toy, neuron_dictionary("blocks.0.hook_resid_pre", 16), 3, n=4)
    share = E[:, 3] / np.linalg.norm(E, axis=1)
    assert found["token_id"].tolist() == np.argsort(-share)[:4].tolist()
    assert_allclose(found["cosine"], np.sort(share)[::-1][:4], atol=1e-5)


def test_invert_feature_refuses(toy, made_dictionary):
    """Unknown settings, nothing to search, more than the context."""
    cases: tuple[dict[str, Any], ...] = (
        {"n_tokens": 0},
        {"shortlist": 0},
        {"settings": {"penlty": 1}},
        {"n_tokens": 50},
    )
    for wrong in cases:
        with pytest.raises(DataError):
            invert_feature(toy, made_dictionary(1), 9, **wrong)


def test_a_penalty_needs_a_surprisal(toy, made_dictionary):
    """One token with nothing before it has no surprisal: refused, where the search would never leave its start."""
    bare = replace(toy, tokens=replace(toy.tokens, prefix=()))
    with pytest.raises(DataError, match="no token before it"):
        invert_feature(bare, made_dictionary(1), 9, settings={"penalty": 1.0})
    assert len(invert_feature(bare, made_dictionary(1), 9, text="a", settings={"penalty": 1.0})) > 0
