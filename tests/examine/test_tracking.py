"""Counterparts: correlations against numpy, edges against moving the stream, the same dictionary finds itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.dictionary.record import neuron_dictionary
from neurosae.errors import DataError
from neurosae.examine.seen import watch
from neurosae.examine.tracking import _correlations, _depth, _edges, track_feature
from neurosae.extraction.passes import precision


@pytest.fixture
def sites(made_dictionary):
    return {"a": made_dictionary(0, seed=1), "b": made_dictionary(1, seed=2), "same": made_dictionary(1, seed=1)}


def test_correlations_agree_with_numpy(toy, words, sites):
    """Over all tokens, zeros included, whatever the batches."""
    seen = watch(toy, sites, words, features={name: range(64) for name in sites})
    whole = {name: one.codes.toarray() for name, one in seen.items()}
    j = int(np.argmax((whole["a"] > 0).sum(axis=0)))
    found, contexts = _correlations(toy, sites, words, site="a", feature=j, n_tokens=None)
    for name in sites:
        varied = whole[name].std(axis=0) > 1e-6
        wanted = [np.corrcoef(whole["a"][:, j], whole[name][:, k])[0, 1] for k in np.flatnonzero(varied)]
        assert_allclose(found[name][varied], wanted, atol=1e-4)
        assert (~varied).any()
        assert np.isnan(found[name][~varied]).all()  # a feature that never changes correlates with nothing
    ids, at, value = contexts[0]
    assert ids[0] == 256
    assert at == len(ids) - 1
    assert value > 0


def test_track_feature_recovers_the_same_direction(toy, words, sites):
    """A dictionary with the same decoder at another layer has the feature itself as nearest direction."""
    found = track_feature(toy, sites, words, site="a", feature=50)
    nearest = found[(found["other"] == "same") & (found["by"] == "cosine")].iloc[0]
    assert nearest["counterpart"] == 50
    assert_allclose(nearest["cosine"], 1.0, atol=1e-6)
    assert found["edge"].notna().all()
    back = track_feature(toy, sites, words, site="b", feature=13, sites=["a"])
    assert back["edge"].isna().all()
    assert back["note"].str.contains("not later").all()


def test_a_silent_feature_has_no_counterpart_by_correlation(toy, words, sites):
    """Never active: no correlation is known, so none is listed, where the first features of the list would stand."""
    bias = sites["a"].b_enc.clone()
    bias[50] = -1e4
    silent = {**sites, "a": replace(sites["a"], b_enc=bias)}
    found = track_feature(toy, silent, words, site="a", feature=50)
    assert set(found["by"]) == {"cosine"}
    assert found["correlation"].isna().all()
    assert found["note"].str.contains("never fires").all()
    narrow = neuron_dictionary("blocks.1.mlp.hook_post", 32)
    found = track_feature(toy, {"a": silent["a"], "n": narrow}, words, site="a", feature=50)
    assert found["counterpart"].isna().all()
    assert found["note"].item().startswith("no candidate")


def test_edges_agree_with_moving_the_stream(toy, sites):
    """f_j <dz_k/dx, W_dec[j]> is the derivative along the feature at its token alone, numerically."""
    own, other, contexts = (
        sites["a"],
        sites["b"],
        [(np.array([256, 64, 70, 65]), 3, 2.0), (np.array([256, 71]), 1, 0.5)],
    )
    found = _edges(toy, (own, other), contexts, j=13, others=[5, 9])

    def z(k, ids, at, *, shift):
        def move(tensor, hook):
            tensor = tensor.clone()
            tensor[0, at] += shift * own.W_dec[13]
            return tensor

        kept = {}
        pairs = [(own.hook, move), (other.hook, lambda t, hook: kept.update(y=t))]
        with torch.inference_mode(), precision(toy):
            toy.bridge.run_with_hooks(torch.as_tensor(ids)[None], fwd_hooks=pairs, return_type=None)
        return float(other.preactivations(kept["y"][0, at].float()[None], [k])[0, 0])

    for k, edge in zip([5, 9], found, strict=True):
        step = [v * (z(k, ids, at, shift=1e-2) - z(k, ids, at, shift=-1e-2)) / 2e-2 for ids, at, v in contexts]
        assert_allclose(edge, np.mean(step), atol=5e-3)


def test_depth_orders_hook_points():
    """In the order of computation."""
    hooks = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.0.hook_attn_out",
             "blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post",
             "blocks.1.hook_resid_pre", "blocks.10.hook_resid_pre", "ln_final.hook_normalized"]  # fmt: skip
    assert [_depth(h) for h in hooks] == sorted({_depth(h) for h in hooks})


def test_track_feature_refuses(toy, words, sites):
    """Unknown sites, none but its own."""
    with pytest.raises(DataError, match="unknown site"):
        track_feature(toy, sites, words, site="a", feature=1, sites=["c"])
    with pytest.raises(DataError, match="another one"):
        track_feature(toy, {"a": sites["a"]}, words, site="a", feature=1)
