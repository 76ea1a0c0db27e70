"""Stimuli that begin alike share their tokens, and nothing but rounding moves."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neurosae.errors import ModelError
from neurosae.extraction import passes, run, selftest, shard
from neurosae.extraction.model import load_model
from neurosae.extraction.packing import batches, pack
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract
from neurosae.extraction.selftest import choose_packing, trie_problem
from neurosae.extraction.trie import grow, saving, trie_groups

POSITIONS = {"regions": ["head", "pre_verb", "verb"], "keep_x": True}


def sequences(n=60, seed=0):
    """Ragged id lists over few ids, so that many share beginnings."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 4, rng.integers(1, 12)) for _ in range(n)]


def test_grow_recovers_every_sequence():
    """The ids along a path are the sequence, its nodes see backwards only, and no beginning is there twice."""
    lists = sequences()
    trie = grow(lists)
    for ids, path in zip(lists, trie.paths, strict=True):
        np.testing.assert_array_equal(trie.ids[path], ids)
        np.testing.assert_array_equal(trie.depths[path], np.arange(len(ids)))
        np.testing.assert_array_equal(trie.visible[np.ix_(path, path)], np.tri(len(path), dtype=bool))
    assert trie.visible.sum(1).tolist() == (trie.depths + 1).tolist()
    assert len(trie.ids) == len({tuple(ids[: i + 1]) for ids in lists for i in range(len(ids))})


def test_trie_groups_hold_everything_within_the_limit():
    """Every sequence is in one group, and the number of nodes is that of the trie that is grown."""
    lists = sequences()
    groups, nodes = trie_groups(lists, max_nodes=30)
    assert sorted(np.concatenate(groups)) == list(range(len(lists)))
    assert nodes == [len(grow([lists[i] for i in group]).ids) for group in groups]
    assert max(nodes) <= 30
    assert saving(lists, 30) == 1 - sum(nodes) / sum(map(len, lists))


@pytest.mark.parametrize("limit", [12, 64])
@pytest.mark.parametrize("packing", ["trie", "buckets"])
def test_batches_and_pack_agree(packing, limit):
    """A batch holds at most the tokens that it may, and each token of each sequence is where its path says."""
    lists = sequences()
    found = batches(lists, packing, limit, max_nodes=20)
    assert sorted(np.concatenate(found)) == list(range(len(lists)))
    for batch in found:
        packed = pack([lists[i] for i in batch], packing, max_nodes=20)
        assert packed.ids.size <= limit
        if packing == "trie":  # columns that only fill a row too: attention over nothing is not a number
            assert packed.mask.diagonal(axis1=1, axis2=2).all()
        for line, i in enumerate(batch):
            np.testing.assert_array_equal(packed.ids[packed.row[line], packed.paths[line]], lists[i])


@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "neox", "stories260K", "bitllama3M"])
def test_trie_agrees_with_buckets(request, checkpoint, toy_stimuli, *, tiny, family):
    """Activations, raw stream, surprisal and logit_diff differ by rounding, and some tokens were computed once."""
    if family == "toy":
        source = request.getfixturevalue("toy_settings")
    elif family in {"stories260K", "bitllama3M"}:
        source = request.getfixturevalue("shared_data")(f"models/{family}")
    else:
        source = checkpoint(family)
    out = {}
    for packing in ("trie", "buckets"):
        model = load_model(source, device="cpu", packing=packing)
        assert model.no_trie == ""
        sites = {"s": dataclasses.replace(tiny(model.n_layers - 1), d=model.d_model)}
        out[packing] = extract(toy_stimuli, model, sites, positions=POSITIONS)["s"]
    trie, plain = out["trie"], out["buckets"]
    record = provenance_of(trie)["packing"]
    assert record["used"] == "trie"
    assert record["nodes"] < 0.75 * record["tokens"]
    assert record["error"] < 1e-5
    difference = (trie.X - plain.X).data
    assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(plain.X.data)
    assert np.abs(difference).max() <= 3e-6 * plain.X.max()
    for name in ("norm", "ln_scale", "surprisal", "recon_error"):  # surprisal: rounding of logits of size 20
        np.testing.assert_allclose(trie.obs[name], plain.obs[name], rtol=2e-6, atol=1e-5)
    scale = max(1.0, float(np.nanmax(np.abs(np.append(plain.obs["logit_diff"], 0)))))
    np.testing.assert_allclose(trie.obs["logit_diff"], plain.obs["logit_diff"], atol=5e-6 * scale)
    np.testing.assert_allclose(trie.obsm["x"], plain.obsm["x"], rtol=0, atol=1e-6 * np.abs(plain.obsm["x"]).max())


@pytest.mark.parametrize(
    ("family", "reason"),
    [("bert", "every token sees the whole text"), ("mistral", "looks back a limited number of tokens")],
)
def test_trie_falls_back_with_a_message(checkpoint, toy_stimuli, tiny, *, family, reason):
    """Encoders and sliding windows are read in buckets; the record and the warnings say why."""
    model = load_model(checkpoint(family), device="cpu")
    site = {"s": dataclasses.replace(tiny(1), d=32)}
    record = provenance_of(extract(toy_stimuli, model, site, positions=POSITIONS)["s"])
    assert record["packing"]["used"] == "buckets"
    assert reason in record["packing"]["reason"]
    assert any(reason in warning for warning in record["warnings"])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mamba"}, "carries a state"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, "carries a state"),
        ({"model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"]}, "looks back a limited"),
        ({"model_type": "gpt_neo", "attention_layers": ["global", "local"]}, "looks back a limited"),
        ({"text_config": {"model_type": "mistral", "sliding_window": 4096}}, "looks back a limited"),
        ({"model_type": "llama4", "attention_chunk_size": 8192}, "looks back a limited"),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, ""),
    ],
)
def test_trie_problem_reads_the_settings(toy_model, config, reason):
    """Windows, chunks and states are named by the settings of a checkpoint, whatever a short text would show."""
    found = trie_problem(toy_model, config)
    assert reason in found if reason else found == ""


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_trie_problem_measures_the_model(toy_model, ignored):
    """A model that does not heed positions or mask is found out by its vectors."""
    bridge = toy_model.bridge

    def run_with_hooks(ids, **kw):
        if "position_ids" in kw:
            kw.pop(ignored)
        return bridge.run_with_hooks(ids, **kw)

    deaf = SimpleNamespace(run_with_hooks=run_with_hooks, cfg=bridge.cfg)
    model = dataclasses.replace(toy_model, bridge=deaf)
    assert "a trie gives other vectors than single texts" in trie_problem(model, {})


def test_choose_packing_measures_the_stimuli(toy_model, monkeypatch):
    """What the settings and the probe of the model did not show, its own stimuli do."""
    lists = [np.array([256, 5, 6, 7, 8]), np.array([256, 5, 6, 7, 9]), np.array([256, 5, 6, 7, 10])]
    ask = dict(hooks=[toy_model.last_hook], shard=256)
    assert choose_packing(toy_model, lists, **ask)[0] == "trie"
    monkeypatch.setattr(selftest, "packing_error", lambda *_, **__: (0.3, "blocks.1.hook_resid_post"))
    packing, record = choose_packing(toy_model, lists, **ask)
    assert packing == "buckets"
    assert "other vectors than single texts at blocks.1.hook_resid_post" in record["reason"]


def test_auto_takes_a_trie_only_where_it_saves(toy_model):
    """Below a quarter of the tokens buckets are used, and nothing is announced; when asked for, a trie is used."""
    lists = [np.array([256, i, 6, 7, 8, 9]) for i in range(4)]
    ask = dict(hooks=[toy_model.last_hook], shard=256)
    packing, record = choose_packing(toy_model, lists, **ask)
    assert (packing, record["reason"]) == ("buckets", "a trie would save 12% of tokens")
    assert choose_packing(dataclasses.replace(toy_model, packing="trie"), lists, **ask)[0] == "trie"
    assert choose_packing(dataclasses.replace(toy_model, packing="buckets"), lists, **ask)[0] == "buckets"


def test_packing_is_not_part_of_the_key(toy_stimuli, toy_model, tiny, *, tmp_path, monkeypatch):
    """Packing moves numbers by rounding only: what was stored under a trie is read under buckets."""
    first = extract(toy_stimuli, toy_model, {"s": tiny(1)}, positions=POSITIONS, store=tmp_path)["s"]
    monkeypatch.setattr(run, "run_shard", None)
    other = dataclasses.replace(toy_model, packing="buckets")
    again = extract(toy_stimuli, other, {"s": tiny(1)}, positions=POSITIONS, store=tmp_path)["s"]
    assert abs(first.X - again.X).max() == 0


def test_out_of_memory_on_an_accelerator_halves_the_trie(toy_stimuli, toy_model, tiny, *, monkeypatch):
    """torch.OutOfMemoryError halves the stimuli of a pass until they fit; numbers move by rounding."""
    whole = extract(toy_stimuli, toy_model, {"s": tiny(3)}, positions=POSITIONS)["s"]
    real = shard.hooked_pass

    def small(model, ids, mask, **kw):
        if ids.size > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return real(model, ids, mask, **kw)

    monkeypatch.setattr(shard, "hooked_pass", small)
    halved = extract(toy_stimuli, toy_model, {"s": tiny(3)}, positions=POSITIONS)["s"]
    assert provenance_of(whole)["packing"]["used"] == "trie"
    assert abs(whole.X - halved.X).max() < 1e-5
    assert any("batches were halved" in w for w in provenance_of(halved)["warnings"])


def test_trie_is_never_longer_than_the_context(toy_model):
    """Models with a table of positions take no row beyond it."""
    assert toy_model.max_nodes == toy_model.n_ctx == 96
    assert dataclasses.replace(toy_model, n_ctx=4096).max_nodes == 256


def test_load_model_refuses_an_unknown_packing(toy_settings):
    """The three ways are named."""
    with pytest.raises(ModelError, match="unknown packing 'tree'"):
        load_model(toy_settings, device="cpu", packing="tree")


def test_hidden_tokens_have_the_lowest_score(toy_model):
    """What a node does not see is masked in the dtype of the pass, as an additive mask with one head axis."""
    visible = np.array([[[True, False], [True, True]]])
    given = passes._settings(dataclasses.replace(toy_model, dtype="bfloat16"), visible, np.array([[0, 1]]))
    assert given["attention_mask"].shape == (1, 1, 2, 2)
    assert float(given["attention_mask"][0, 0, 0, 1]) == torch.finfo(torch.bfloat16).min
