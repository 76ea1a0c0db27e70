"""Faults that give plausible numbers elsewhere: each has a guard, and a test that fails without it."""

from __future__ import annotations

import dataclasses
import json
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from neurosae.errors import DataError, ModelError
from neurosae.extraction import packing as layout
from neurosae.extraction import record, run, shard
from neurosae.extraction.cells import Wanted
from neurosae.extraction.firing import firing_order
from neurosae.extraction.model import hooked_pass, load_model
from neurosae.extraction.packing import pack, pad
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract
from neurosae.extraction.store import key_folder, responses_key
from neurosae.extraction.tokens import token_ids

REGIONS = {"regions": ["head", "whole"]}


@dataclasses.dataclass(frozen=True)
class Named:
    """What a key reads of a dictionary: hook point and hash, apart."""

    hook: str
    seed: int
    n_features: int = 8
    hash = property(lambda self: f"dictionary {self.seed}")


def test_a_model_and_a_tokenizer_in_memory(checkpoint, toy_stimuli, tiny):
    """A tokenizer with a BOS and without a name is no KeyError, and both objects stay as they were."""
    import transformers

    folder = checkpoint("gpt2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    backend = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")
    before = [name for name, _ in theirs.named_modules()], dict(tokenizer.special_tokens_map)
    site = {"s": dataclasses.replace(tiny(1), d=32)}
    model = load_model((theirs, tokenizer), device="cpu")
    memory = extract(toy_stimuli, model, site, positions=REGIONS)["s"]
    assert before == ([name for name, _ in theirs.named_modules()], dict(tokenizer.special_tokens_map))
    folder = extract(toy_stimuli, load_model(folder, device="cpu"), site, positions=REGIONS)["s"]
    assert abs(memory.X - folder.X).max() < 1e-6
    assert model.provenance["source"] == "memory"
    assert len(model.provenance["weights_hash"]) == 64


@pytest.mark.parametrize("family", ["toy", "gpt2", "bert"])
def test_the_pass_stops_after_the_last_block(request, family):
    """Where stop_at_layer is ignored, at the last layer and in encoders, the head is still not computed."""
    if family == "toy":
        model = request.getfixturevalue("toy_model")
    else:
        model = load_model(request.getfixturevalue("checkpoint")(family), device="cpu")
    computed = []
    handle = model.bridge.unembed.register_forward_pre_hook(lambda *_: computed.append(1))
    ids = np.ones((1, 3), dtype=int)
    try:
        hooked_pass(model, ids, ids, hooks=[model.last_hook], rows=[0], cols=[2])
    finally:
        handle.remove()
    assert not computed


def test_only_wanted_cells_are_held(toy_model):
    """What a pass hands out owns its own cells: no reference keeps the activations of the pass alive."""
    ids, mask = pad([np.arange(1, 60), np.arange(2, 50)])
    hooks = [f"blocks.{i}.{name}" for i in range(4) for name in ("hook_resid_post", "hook_attn_out", "hook_mlp_out")]
    got = hooked_pass(toy_model, ids, mask, hooks=hooks, rows=[0, 1], cols=[58, 3])
    assert all(x.untyped_storage().nbytes() == x.numel() * 4 == 2 * 64 * 4 for x in got.values())


def test_whole_activations_die_during_the_pass(toy_model, monkeypatch):
    """At the deepest hook point nothing is left of the shallow ones but their cells: no list of caches grows."""
    seen, left = [], []
    real = toy_model.bridge.run_with_hooks

    def watched(function):
        def hook_function(tensor, hook):
            left.append(sum(ref() is not None for ref in seen[:2]))
            seen.append(weakref.ref(tensor))
            return function(tensor, hook)

        return hook_function

    def spying(ids, *, fwd_hooks, **settings):
        return real(ids, fwd_hooks=[(name, watched(function)) for name, function in fwd_hooks], **settings)

    monkeypatch.setattr(toy_model.bridge, "run_with_hooks", spying)
    ids, mask = pad([np.arange(1, 60), np.arange(2, 50)])
    hooks = [f"blocks.{i}.hook_resid_post" for i in range(4)]
    got = hooked_pass(toy_model, ids, mask, hooks=hooks, rows=[0, 1], cols=[58, 3])
    assert len(got) == len(left) == 4
    assert left[-1] == 0


def test_a_pass_keeps_no_graph(toy_model):
    """What leaves the model has no history: a graph would hold every activation that it came from."""
    ids = np.ones((1, 3), dtype=int)
    got = hooked_pass(toy_model, ids, ids, hooks=[toy_model.last_hook], rows=[0], cols=[2])[toy_model.last_hook]
    assert not got.requires_grad
    assert got.is_inference()


def test_the_model_is_given_ids_and_a_mask_never_strings(checkpoint, toy_stimuli, tiny, *, monkeypatch):
    """A string would get a BOS of the model's own, and an encoder's list of strings leaves its pads unmasked."""
    model = load_model(checkpoint("bert"), device="cpu")
    given = []
    real = model.bridge.run_with_hooks
    monkeypatch.setattr(
        model.bridge,
        "run_with_hooks",
        lambda ids, **settings: (given.append((ids, settings)), real(ids, **settings))[1],
    )
    extract(toy_stimuli, model, {"s": dataclasses.replace(tiny(1), d=32)}, positions=REGIONS)
    assert len(given) > 2
    for ids, settings in given:
        assert ids.dtype == torch.long
        assert settings["attention_mask"].shape == ids.shape


def test_extraction_measures_its_own_stimuli(checkpoint, toy_stimuli, tiny, *, monkeypatch):
    """A batch that would move vectors is found before the first response, on the stimuli themselves, long ones too."""
    model = load_model(checkpoint("bert"), device="cpu")
    site, asked = {"s": dataclasses.replace(tiny(1), d=32)}, []
    real = record.batch_invariance
    monkeypatch.setattr(record, "batch_invariance", lambda m, ids, hooks: (asked.append(ids), real(m, ids, hooks))[1])
    found = provenance_of(extract(toy_stimuli, model, site, positions=REGIONS)["s"])["batch_invariance"]
    lengths = [len(ids) for ids in asked[0]]
    every = {len(ids) for ids in token_ids(model.tokens, toy_stimuli["text"].tolist())}
    assert 0 < found < 1e-5
    assert (min(lengths), max(lengths)) == (min(every), max(every))
    assert len(set(lengths)) == len(lengths) == min(8, len(every))
    monkeypatch.setattr(layout, "pad", lambda lists: (pad(lists)[0], pad(lists)[1] * 0 + 1))
    with pytest.raises(ModelError, match="other vectors in a batch than alone"):
        extract(toy_stimuli, model, site, positions=REGIONS)


@pytest.mark.parametrize("family", ["gpt2", "bert", "neox", "mistral"])
def test_attention_of_a_model_in_memory_can_be_read(checkpoint, family):
    """Patterns fire, as for a folder, whatever kernel the model was made with."""
    import transformers

    kind = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(checkpoint(family), attn_implementation="sdpa")
    model = load_model((theirs, None), device="cpu")
    assert [f.shape for f in firing_order(model, ["blocks.1.attn.hook_pattern"])] == [(2, 4, 3, 3)]
    assert theirs.config._attn_implementation == "sdpa"


def test_padding_never_leaks(checkpoint):
    """An encoder reads the same at any width of the batch; without the mask it would not."""
    model = load_model(checkpoint("bert"), device="cpu")
    short, long = np.array([3, 9, 8, 4]), np.arange(3, 33)
    place = dict(hooks=[model.last_hook], rows=[0] * 4, cols=range(4))
    ids, mask = pad([short, long])
    alone = hooked_pass(model, short[None], mask[:1, :4], **place)[model.last_hook]
    padded = hooked_pass(model, ids, mask, **place)[model.last_hook]
    unmasked = hooked_pass(model, ids, mask * 0 + 1, **place)[model.last_hook]
    torch.testing.assert_close(alone, padded, rtol=1e-5, atol=1e-5)
    assert float((alone - unmasked).abs().max()) > 1e-2


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_specials_and_pads_are_never_rows(checkpoint, toy_stimuli, tiny, *, family):
    """BOS, [CLS], [SEP] and pads lie in no region, not even in that of the whole text or of middle-out."""
    model = load_model(checkpoint(family), device="cpu")
    out = extract(
        toy_stimuli, model, {"s": dataclasses.replace(tiny(1), d=32)}, positions={**REGIONS, "align": "middle_out"}
    )["s"]
    special = {model.tokens.backend.id_to_token(i) for i in (*model.tokens.prefix, *model.tokens.suffix)}
    assert special
    assert not special & set(out.obs["token"])
    index = out.obs["token_index"] - model.tokens.first
    assert index.min() == 0
    assert (index < out.obs["stimulus_tokens"]).all()


def test_token_ids_are_stimuli_of_a_model_without_a_tokenizer(toy_settings, tiny):
    """Regions count tokens, rows equal those of the pass over the ids, what needs words is missing with a reason."""
    model = load_model(toy_settings | {"d_vocab": 50}, device="cpu")
    assert model.tokens is None
    lists = [[7, 9, 4, 11], [7, 9, 5, 12], [3, 3]]
    stimuli = pd.DataFrame({"ids": lists, "item": ["a", "b", "c"], "frame": "f", "split": "test"}, index=list("abc"))
    stimuli["end_start"], stimuli["end_end"] = [2, 3, 1], [4, 4, 2]
    out = extract(stimuli, model, {"s": tiny(1)}, positions={"regions": ["end"], "keep_x": True})["s"]
    assert out.obs["token_index"].tolist() == [2, 3, 3, 1]
    hook = "blocks.1.hook_resid_post"
    ids = np.array(lists[:1])
    x = hooked_pass(model, ids, ids * 0 + 1, hooks=[hook], rows=[0, 0], cols=[2, 3])[hook]
    np.testing.assert_allclose(out.obsm["x"][:2], x.numpy(), atol=1e-5)
    assert out.obs["surprisal"].notna().all()
    assert provenance_of(out)["logit_diff_missing"] == {"the stimuli are token ids": 3}
    with pytest.raises(DataError, match="has no tokenizer; give token ids in a column `ids`"):
        extract(stimuli.drop(columns="ids").assign(text="a b c"), model, {"s": tiny(1)}, positions={"regions": ["end"]})


def test_a_stale_key_is_never_read(toy_stimuli, toy_model, tiny, *, tmp_path, monkeypatch):
    """Another version of the extraction, dtype, weights mode, BOS rule, config, or set of scores computes anew."""
    site, store = {"s": tiny(1)}, tmp_path
    extract(toy_stimuli, toy_model, site, positions=REGIONS, store=store)
    changes = [
        (toy_model, {**REGIONS, "scores": False}),
        (dataclasses.replace(toy_model, provenance={**toy_model.provenance, "weights": "compat"}), REGIONS),
        (dataclasses.replace(toy_model, provenance={**toy_model.provenance, "dtype": "float16 (autocast)"}), REGIONS),
        (dataclasses.replace(toy_model, tokens=dataclasses.replace(toy_model.tokens, prefix=())), REGIONS),
        (dataclasses.replace(toy_model, provenance=toy_model.provenance | {"config": {"act_fn": "relu"}}), REGIONS),
    ]
    monkeypatch.setattr(run, "check_sites", lambda *_: pytest.fail("computed"))
    extract(toy_stimuli, toy_model, site, positions=REGIONS, store=store)
    for model, positions in changes:
        with pytest.raises(pytest.fail.Exception, match="computed"):
            extract(toy_stimuli, model, site, positions=positions, store=store)
    monkeypatch.setattr("neurosae.extraction.store.EXTRACTION_VERSION", 999)
    with pytest.raises(pytest.fail.Exception, match="computed"):
        extract(toy_stimuli, toy_model, site, positions=REGIONS, store=store)


def test_without_scores_the_pass_ends_at_the_deepest_site(toy_stimuli, toy_model, tiny):
    """scores: false computes no layer above the sites, and says why surprisal is missing; features are the same."""
    computed = []
    blocks = toy_model.bridge.blocks
    handle = blocks[3].register_forward_pre_hook(lambda *_: computed.append(1))
    cheap = {}
    try:
        cheap = extract(toy_stimuli, toy_model, {"s": tiny(0)}, positions={**REGIONS, "scores": False})
        n_probe = len(computed)
        full = extract(toy_stimuli, toy_model, {"s": tiny(0)}, positions=REGIONS)
    finally:
        handle.remove()
    assert n_probe == 1  # the pass that finds out what fires
    assert len(computed) > 2
    assert abs(cheap["s"].X - full["s"].X).max() < 1e-5
    assert cheap["s"].obs["surprisal"].isna().all()
    record = provenance_of(cheap["s"])
    assert record["surprisal_missing"] == "positions.scores is false"
    assert not any("missing" in warning for warning in record["warnings"])


def test_columns_that_describe_a_cell_are_right(toy_stimuli, toy_model, tiny):
    """n_active, sum_active, recon_error and norm recomputed from X and the raw stream."""
    dictionary = tiny(2)
    out = extract(toy_stimuli, toy_model, {"s": dictionary}, positions={**REGIONS, "keep_x": True})["s"]
    x, X = out.obsm["x"], out.X.toarray()
    np.testing.assert_array_equal(out.obs["n_active"], (X > 0).sum(1))
    np.testing.assert_allclose(out.obs["sum_active"], X.sum(1), rtol=1e-5)
    np.testing.assert_allclose(out.obs["norm"], np.linalg.norm(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        out.obs["recon_error"], np.linalg.norm(x - X @ dictionary.W_dec.numpy(), axis=1), rtol=1e-4
    )


def test_reduced_precision_says_what_it_switches(checkpoint, toy_stimuli, tiny):
    """The share of cells that differ from float32 is measured, recorded, and a warning for the reader."""
    model = load_model(checkpoint("llama"), device="cpu", dtype="bfloat16")
    out = extract(toy_stimuli, model, {"s": dataclasses.replace(tiny(1), d=32)}, positions=REGIONS)["s"]
    record = provenance_of(out)
    assert record["packing"]["used"] == "trie"
    assert 0 < record["precision_switched"] < 0.1
    assert any("by bfloat16 against float32" in warning for warning in record["warnings"])
    json.dumps(record)


def test_weights_are_rounded_once_for_all_batches(toy_stimuli, toy_settings, tiny, *, monkeypatch):
    """A shard runs inside one autocast, which keeps the rounded weights from batch to batch."""
    from neurosae.extraction import shard

    inside = []
    real = shard.hooked_pass
    monkeypatch.setattr(
        shard, "hooked_pass", lambda *a, **k: (inside.append(torch.is_autocast_enabled("cpu")), real(*a, **k))[1]
    )
    model = load_model(toy_settings, device="cpu", dtype="bfloat16")
    extract(toy_stimuli, model, {"s": tiny(1)}, positions=REGIONS)
    assert inside
    assert all(inside)


def test_packed_ids_never_exceed_the_vocabulary_or_lose_a_token():
    """Padding of tries and buckets is a real id, and every token of every sequence is there once."""
    lists = [[5, 6], [5, 6, 7], [8]]
    for packing in ("trie", "buckets"):
        packed = pack(lists, packing)
        found = [packed.ids[row, path].tolist() for row, path in zip(packed.row, packed.paths, strict=True)]
        assert found == lists
        assert packed.ids.min() >= 0


CHANGED = {
    "text": lambda key: key(text=("text", "another")),
    "target": lambda key: key(text=("target", " are")),
    "foil": lambda key: key(text=("foil", " were")),
    "span of a region": lambda key: key(text=("head_end", 1)),
    "span of the target": lambda key: key(text=("verb_end", 1)),
    "regions": lambda key: key(regions=("head",)),
    "order of regions": lambda key: key(regions=("whole", "head")),
    "align": lambda key: key(align="start"),
    "window": lambda key: key(window=(-1, 1)),
    "keep_x": lambda key: key(keep_x=True),
    "allow_straddle": lambda key: key(allow_straddle=True),
    "scores": lambda key: key(scores=False),
    "weights": lambda key: key(model=("weights_hash", "0")),
    "weights mode": lambda key: key(model=("weights", "compat")),
    "tokenizer": lambda key: key(model=("tokenizer_hash", "0")),
    "dtype": lambda key: key(model=("dtype", "bfloat16 (autocast)")),
    "prefix": lambda key: key(tokens={"prefix": ()}),
    "suffix": lambda key: key(tokens={"suffix": (3,)}),
    "hook": lambda key: key(site={"hook": "blocks.2.hook_resid_post"}),
    "dictionary": lambda key: key(site={"seed": 7}),
    "target slot": lambda key: key(slot=None),
    "version": lambda key: key(version=999),
}


@pytest.mark.parametrize("what", CHANGED)
def test_the_key_follows_everything_that_moves_numbers(toy_stimuli, toy_model, monkeypatch, *, what):
    """One thing changed, another key; where the numbers were computed, and how many at once, is not part of it."""

    def key(*, text=None, model=(), tokens=None, site=None, slot="verb", version=None, **asked):
        stimuli = toy_stimuli.copy()
        if text:
            stimuli[text[0]] = [text[1], *stimuli[text[0]].tolist()[1:]]
        facts = {**toy_model.provenance, **dict([model] if model else [])}
        changed = dataclasses.replace(
            toy_model, provenance=facts, tokens=dataclasses.replace(toy_model.tokens, **(tokens or {}))
        )
        sites = {"s": Named(**{"hook": "blocks.1.hook_resid_post", "seed": 0, **(site or {})})}
        if version:
            monkeypatch.setattr("neurosae.extraction.store.EXTRACTION_VERSION", version)
        wanted = dataclasses.replace(Wanted(("head", "whole"), "region", None, False, False), **asked)
        return key_folder("", responses_key(stimuli, wanted, model=changed, dictionaries=sites, target_slot=slot))

    base = key()
    assert key(model=("device", "cuda:1")) == key(model=("threads", 64)) == base
    assert CHANGED[what](key) != base
    both = ("head", "verb")  # the same spans, with and without scores of the target
    assert key(regions=both) != key(regions=both, slot=None)


def test_the_key_follows_token_ids(toy_model):
    """Stimuli without words are their ids."""
    frames = [pd.DataFrame({"ids": [[1, 2, last]], "head_start": [0], "head_end": [2]}) for last in (3, 4)]
    wanted = Wanted(("head",), "region", None, False, False)
    one, two = (responses_key(f, wanted, model=toy_model, dictionaries={}, target_slot=None) for f in frames)
    assert one != two


def test_few_rows_are_held_dense_at_once(toy_stimuli, toy_model, tiny, *, monkeypatch):
    """Cells go through a dictionary, and logits through the head, a chunk at a time; the numbers stay."""
    site, counts, logits = {"s": tiny(2)}, [], []
    whole = extract(toy_stimuli, toy_model, site, positions=REGIONS)["s"]
    monkeypatch.setattr(shard, "CHUNK_BYTES", 4 * 96 * 5)
    real, head = type(site["s"]).encode, shard.logits_of
    monkeypatch.setattr(type(site["s"]), "encode", lambda self, x: (counts.append(len(x)), real(self, x))[1])
    monkeypatch.setattr(shard, "logits_of", lambda model, x: (logits.append(len(x)), head(model, x))[1])
    parts = extract(toy_stimuli, toy_model, site, positions=REGIONS)["s"]
    assert max(counts) == 5
    assert max(logits) == 1
    assert abs(parts.X - whole.X).max() < 1e-6
    np.testing.assert_allclose(parts.obs["surprisal"], whole.obs["surprisal"], rtol=1e-5)


def test_what_is_said_of_features_is_theirs():
    """decoder_norm, threshold, density and origin of var are those of the dictionary, under their own names."""

    class Told(Named):
        decoder_norm, threshold, density, origin = (property(lambda self, k=k: np.full(8, float(k))) for k in range(4))

    told = Told("blocks.1.hook_resid_post", 0)
    var = run.features_table("s", told)
    assert [set(var[name]) for name in ("decoder_norm", "threshold", "density", "origin")] == [
        {0.0},
        {1.0},
        {2.0},
        {3.0},
    ]
