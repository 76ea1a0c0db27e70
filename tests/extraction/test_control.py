"""Random controls keep the architecture and lose what was learned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from neurosae.errors import ModelError
from neurosae.extraction.model import hooked_pass, load_model, random_control
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract

IDS = np.array([[5, 6, 7, 8, 9]])


def stream(model):
    """The last residual stream of one text."""
    place = dict(hooks=[model.last_hook], rows=[0] * 5, cols=range(5))
    return hooked_pass(model, IDS, IDS * 0 + 1, **place)[model.last_hook].numpy()


def weights(model):
    """The matrices of a model, entries sorted, by shape."""
    found = [p.detach().flatten().sort().values.numpy() for p in model.bridge.parameters() if p.dim() > 1]
    return sorted(found, key=lambda w: (len(w), float(np.abs(w).sum())))


@pytest.mark.parametrize("mode", ["reinit", "shuffle"])
@pytest.mark.parametrize("family", ["toy", "gpt2", "llama"])
def test_random_control_is_seeded_and_leaves_the_model_alone(request, family, mode):
    """The same seed gives the same weights, another seed others, and the model itself stays as it was."""
    if family == "toy":
        model = load_model(request.getfixturevalue("toy_settings"), device="cpu")
    else:
        model = load_model(request.getfixturevalue("checkpoint")(family), device="cpu", packing="trie")
    before = stream(model)
    one, again, other = (random_control(model, mode, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(stream(model), before)
    np.testing.assert_array_equal(stream(one), stream(again))
    assert np.abs(stream(one) - stream(other)).max() > 1e-2
    assert np.abs(stream(one) - before).max() > 1e-1
    assert (one.d_model, one.n_layers, one.n_vocab, one.packing) == (
        model.d_model, model.n_layers, model.n_vocab, model.packing
    )  # fmt: skip
    assert one.provenance["control"] == {"mode": mode, "seed": 1}
    assert one.provenance["weights_hash"] == again.provenance["weights_hash"]
    assert one.provenance["weights_hash"] not in {m.provenance["weights_hash"] for m in (model, other)}


def test_shuffling_keeps_the_distribution_of_every_matrix(checkpoint):
    """Entries are permuted within their matrix: the same numbers in other places."""
    model = load_model(checkpoint("llama"), device="cpu")
    for ours, theirs in zip(weights(random_control(model, "shuffle")), weights(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_control_is_another_key_and_a_warning(toy_model, toy_stimuli, tiny):
    """Responses of a control are never taken for those of the model, and the reader is told."""
    out = extract(toy_stimuli, random_control(toy_model, seed=3), {"s": tiny(1)}, positions={"regions": ["head"]})["s"]
    plain = extract(toy_stimuli, toy_model, {"s": tiny(1)}, positions={"regions": ["head"]})["s"]
    assert provenance_of(out)["responses_hash"] != provenance_of(plain)["responses_hash"]
    assert "the weights are a random control (reinit, seed 3)" in provenance_of(out)["warnings"]


def test_random_control_refuses(toy_model):
    """Another mode, or a model whose weights cannot be read again."""
    with pytest.raises(ModelError, match=r"unknown control 'shuffel'\. Did you mean 'shuffle'"):
        random_control(toy_model, "shuffel")
    memory = dataclasses.replace(toy_model, provenance={**toy_model.provenance, "source": "memory"})
    with pytest.raises(ModelError, match="save the model with save_pretrained"):
        random_control(memory)
