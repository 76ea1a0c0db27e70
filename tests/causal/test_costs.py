"""What edits cost on neutral text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import neurosae as ns
from neurosae.causal.costs import neutral_costs
from neurosae.causal.edits import Edit
from neurosae.dictionary.kinds import neuron_dictionary
from neurosae.errors import DataError
from neurosae.extraction.tokens import token_ids

HOOK = "blocks.0.hook_resid_post"
TOY = dict(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=48, d_vocab=257, act_fn="gelu", seed=0)
TEXTS = ["some text", "more of it", "a third"]


@pytest.fixture(scope="module")
def toy():
    """A seeded model."""
    return ns.load_model(TOY)


def up(dose, where="all"):
    """An edit of two coordinates."""
    raw = neuron_dictionary(HOOK, 16)
    return Edit(HOOK, "steer", where, dictionary=raw, features=(2, 21), dose=dose)


def test_costs_agree_with_direct_passes(toy):
    """KL and surprisal of every document by hand: BOS is not edited, and what follows BOS is not counted."""
    found = neutral_costs(toy, [(), (up(3.0),)], TEXTS)
    kl, surprisal = [], []
    for text in TEXTS:
        ids = torch.tensor(token_ids(toy.tokens, [text]))

        def hook(x, hook):
            x = x.clone()
            x[:, 1:, 2] += 3
            x[:, 1:, 5] -= 3
            return x

        with torch.inference_mode():
            base = toy.bridge(ids, return_type="logits")[0, 1:-1].log_softmax(-1)
            with toy.bridge.hooks(fwd_hooks=[(HOOK, hook)]):
                new = toy.bridge(ids, return_type="logits")[0, 1:-1].log_softmax(-1)
        kl.append(float((base.exp() * (base - new)).sum(-1).mean()))
        surprisal.append(float(-new.gather(1, ids[0, 2:, None]).mean()))
    np.testing.assert_allclose(found.kl_of[:, 1], kl, rtol=1e-4)
    np.testing.assert_allclose(found.surprisal_of[:, 1], surprisal, rtol=1e-5)
    assert found.n_tokens.tolist() == [8, 9, 6]
    np.testing.assert_allclose(found.kl[1], np.average(kl, weights=[8, 9, 6]), rtol=1e-4)


def test_no_edit_costs_nothing(toy):
    """A dose of 0 leaves text and perplexity as they are; larger doses cost more."""
    found = neutral_costs(toy, [(), (up(0.0),), (up(1.0),), (up(4.0),)], TEXTS)
    np.testing.assert_allclose(found.kl[:2], 0, atol=1e-9)
    np.testing.assert_allclose(found.perplexity_ratio[:2], 1, rtol=1e-6)
    assert found.kl[3] > found.kl[2] > 0


def test_costs_read_no_more_tokens_than_asked(toy):
    """Documents in order until n_tokens are read."""
    assert len(neutral_costs(toy, [()], TEXTS, n_tokens=9).n_tokens) == 1


def test_costs_refuse_other_places_and_empty_texts(toy):
    """Neutral text has no regions, and one token predicts nothing."""
    with pytest.raises(DataError, match="at all tokens"):
        neutral_costs(toy, [(up(1.0, "generated"),)], TEXTS)
    with pytest.raises(DataError, match="no two tokens"):
        neutral_costs(toy, [()], ["a"])
