"""What features write: logit weights against derivatives of the logits, neighbours, links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.dictionary.record import neuron_dictionary
from neurosae.errors import DataError, ModelError
from neurosae.examine.directions import (
    feature_link,
    logit_weights,
    nearest_features,
    read_direct,
    stream_rows,
    vocabulary_weights,
)
from neurosae.extraction.model import hooked_pass, load_model, logits_of
from tests.examine.conftest import TOY


def derivative(model, x, v):
    """Of the logits along v, numerically."""
    step = 1e-3
    return (logits_of(model, x + step * v) - logits_of(model, x - step * v)) / (2 * step)


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_logit_weights_agree_with_derivatives(norm):
    """Across x the scale does not move, so the logits' derivative there is w / scale, LayerNorm or RMSNorm."""
    model = load_model({**TOY, "normalization_type": norm})
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.bridge.ln_final.parameters():
            p.add_(torch.randn(p.shape, generator=draws) * 0.5)
    x, v = torch.randn(1, 16, generator=draws) * 3, torch.randn(1, 16, generator=draws)
    flat = x - x.mean() if norm == "LN" else x
    v = v - (v @ flat.T) / (flat @ flat.T) * flat
    scale = flat.pow(2).mean().sqrt()
    with torch.inference_mode():
        assert_allclose(read_direct(model, v) / scale, derivative(model, x, v), atol=2e-3)


def test_logit_weights_recover_their_order_and_shape(toy, made_dictionary):
    """Tokens in the order of the whole vector, suppressed from the smallest; moments of the whole vector."""
    dictionary = made_dictionary(1)
    whole = vocabulary_weights(toy, dictionary, [5])[0]
    assert abs(whole.mean()) < 1e-9
    found = logit_weights(toy, dictionary, [5], n=3)
    assert found["token_id"].tolist() == [*np.argsort(-whole)[:3], *np.argsort(whole)[:3]]
    assert_allclose(found["weight"], whole[found["token_id"]])
    assert_allclose(found["kurtosis"], stats.kurtosis(whole))
    assert_allclose(logit_weights(toy, dictionary, [5], n=3, scale=2.0)["weight"] * 2, found["weight"])


@pytest.mark.parametrize("hook", ["mlp.hook_post", "attn.hook_z", "attn.hook_z.h1"])
def test_stream_rows_agree_with_the_layer(toy, hook):
    """One unit of a neuron, or of a head's output, adds its row of the layer's own matrix to the stream."""
    name = f"blocks.1.{hook}"
    ids = np.array([[256, 64, 65, 66]])
    place = {"mask": np.ones_like(ids), "rows": [0, 0], "cols": [2, 3]}
    out = "hook_mlp_out" if "mlp" in hook else "hook_attn_out"
    x = hooked_pass(toy, ids, hooks=[name, f"blocks.1.{out}"], **place)
    rows = stream_rows(toy, neuron_dictionary(name, x[name].shape[1]), range(x[name].shape[1]))
    if hook.endswith("h1"):
        other = hooked_pass(toy, ids, hooks=["blocks.1.attn.hook_z.h0"], **place)["blocks.1.attn.hook_z.h0"]
        rows0 = stream_rows(toy, neuron_dictionary("blocks.1.attn.hook_z.h0", 8), range(8))
        whole = x[name] @ rows + other @ rows0
    else:
        whole = x[name] @ rows
    wanted = x[f"blocks.1.{out}"]
    assert_allclose(whole[1] - whole[0], wanted[1] - wanted[0], atol=1e-5)  # the bias is the same at both tokens
    assert (wanted[1] - wanted[0]).abs().max() > 1e-3


def test_logit_weights_refuses_what_is_not_linear(toy, made_dictionary):
    """Attention patterns write by no matrix; indices beyond the dictionary are no features."""
    with pytest.raises(ModelError, match="does not write to the residual stream"):
        logit_weights(toy, replace(made_dictionary(1), hook="blocks.1.attn.hook_q"), [0])
    with pytest.raises(DataError, match=r"no feature 64; this dictionary has 0 to 63"):
        logit_weights(toy, made_dictionary(1), [64])
    with pytest.raises(DataError, match="empty"):
        nearest_features(made_dictionary(1), [])


def test_nearest_features_agree_with_cosines(made_dictionary):
    """By falling cosine, itself and its negative half left out."""
    dictionary = made_dictionary(1)
    W = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
    cosine = (W[7] @ W.T).numpy()
    found = nearest_features(dictionary, [7], n=4)
    assert found["neighbour"].tolist() == np.argsort(-cosine)[1:5].tolist()
    assert_allclose(found["cosine"], np.sort(cosine)[::-1][1:5], atol=1e-6)
    raw = neuron_dictionary("x", 4)
    assert 5 not in nearest_features(raw, [1], n=7)["neighbour"].tolist()


def test_feature_link_is_quoted(made_dictionary):
    """Whatever a folder says, the link stays a path on that site."""
    evil = replace(made_dictionary(1), metadata={"neuronpedia_id": 'a"><script>/b c'})
    assert feature_link(evil, 3) == "https://www.neuronpedia.org/a%22%3E%3Cscript%3E/b%20c/3"
