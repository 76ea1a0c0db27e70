"""Loading is checked, and one pass reads what the whole cache would hold."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurosae.errors import ModelError
from neurosae.extraction import packing, selftest
from neurosae.extraction.model import batch_invariance, hooked_pass, load_model, logits_of
from neurosae.extraction.packing import pad
from neurosae.extraction.selftest import mlp_by_token, packed_and_alone
from neurosae.extraction.tokens import token_ids

TEXTS = ["the keys to the old cabinets are near", "the dog is", "houses"]


def logits(model, texts):
    """Logits at every real token of a padded batch, and the ids."""
    ids, mask = pad(token_ids(model.tokens, texts))
    rows, cols = np.nonzero(mask)
    x = hooked_pass(model, ids, mask, hooks=[model.last_hook], rows=rows, cols=cols)[model.last_hook]
    return logits_of(model, x), ids, mask


@pytest.mark.parametrize("family", ["gpt2", "llama", "stories260K", "bitllama3M"])
def test_load_model_agrees_with_transformers(request, checkpoint, family):
    """Logits of a right-padded batch equal those of transformers, text by text."""
    import transformers

    real = family in {"stories260K", "bitllama3M"}
    folder = request.getfixturevalue("shared_data")(f"models/{family}") if real else checkpoint(family)
    ours, ids, mask = logits(load_model(folder, device="cpu"), TEXTS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        alone = [theirs(torch.tensor(i[m > 0])[None]).logits[0] for i, m in zip(ids, mask, strict=True)]
    torch.testing.assert_close(ours, torch.cat(alone), rtol=0, atol=2e-5 * float(ours.abs().max()))


@pytest.mark.parametrize(("name", "loss"), [("stories260K", 1.2641), ("bitllama3M", 1.1885)])
def test_reference_loss(shared_data, name, loss):
    """File -> tokens -> model: the documented loss of the five stories of tinystories_v2_sample.valid."""
    model = load_model(shared_data(f"models/{name}"), device="cpu")
    packed = shared_data("text/tinystories_v2_sample.valid.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8")
    stories = ["\n".join(d.splitlines()[1:]) for d in lines.split("<|doc|>")[1:]]
    total = count = 0
    for ids in token_ids(model.tokens, stories):
        ids = np.array(ids[:512])[None]
        n = ids.shape[1] - 1
        x = hooked_pass(model, ids, ids * 0 + 1, hooks=[model.last_hook], rows=[0] * n, cols=range(n))
        logp = logits_of(model, x[model.last_hook]).log_softmax(-1)
        total -= float(logp.gather(1, torch.tensor(ids[0, 1:, None])).sum())
        count += n
    assert (count, total / count) == (1802, pytest.approx(loss, abs=1e-3))


def test_hooked_pass_equals_the_full_cache(toy_model):
    """Several hook points at ragged cells: equal to run_with_cache to the last bit, and no hook is left behind."""
    ids, mask = pad([[5, 6, 7, 8], [9, 3]])
    hooks = ["hook_embed", "blocks.0.hook_attn_out", "blocks.1.attn.hook_z", "blocks.3.hook_resid_post"]
    got = hooked_pass(toy_model, ids, mask, hooks=hooks, rows=[0, 1], cols=[3, 1])
    with torch.inference_mode():
        cache = toy_model.bridge.run_with_cache(torch.tensor(ids), attention_mask=torch.tensor(mask))[1]
    for hook in hooks:
        assert torch.equal(got[hook], cache[hook][[0, 1], [3, 1]].flatten(1))
    assert not any(point.fwd_hooks for point in toy_model.bridge.hook_dict.values())


def test_hooked_pass_stops_after_the_last_hook(toy_model):
    """Blocks above the deepest hook point are not computed."""
    computed = []
    ids = np.ones((1, 3), dtype=int)
    blocks = enumerate(toy_model.bridge.blocks)
    handles = [block.register_forward_pre_hook(lambda *_, i=i: computed.append(i)) for i, block in blocks]
    try:
        hooked_pass(toy_model, ids, ids, hooks=["blocks.1.hook_resid_post"], rows=[0], cols=[2])
    finally:
        for handle in handles:
            handle.remove()
    assert computed == [0, 1]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_last_mlp_runs_on_wanted_tokens_alone(checkpoint, family):
    """Equal to the whole pass; where a hook point of that MLP is read, or most tokens are, it sees all of them."""
    model = load_model(checkpoint(family), device="cpu")
    ids, mask = pad(token_ids(model.tokens, [TEXTS[0], TEXTS[1]]))
    seen, last = [], model.n_layers - 1
    mlp = model.bridge.blocks[last].mlp.original_component
    gelu = next(child for name, child in mlp.named_children() if name.startswith("act"))
    handle = gelu.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0] * given[0].shape[1]))
    rows, cols = np.nonzero(mask)
    try:
        few = hooked_pass(model, ids, mask, hooks=[model.last_hook], rows=[0, 1], cols=[2, 1])[model.last_hook]
        inside = [model.last_hook, f"blocks.{last}.hook_mlp_out"]
        hooked_pass(model, ids, mask, hooks=inside, rows=[0, 1], cols=[2, 1])
        most = hooked_pass(model, ids, mask, hooks=[model.last_hook], rows=rows, cols=cols)[model.last_hook]
    finally:
        handle.remove()
    at = [int(np.flatnonzero((rows == r) & (cols == c))[0]) for r, c in ((0, 2), (1, 1))]
    torch.testing.assert_close(few, most[at], rtol=1e-6, atol=1e-6)
    assert seen == [2, ids.size, ids.size]
    assert "forward" not in vars(mlp)


def test_an_mlp_that_mixes_tokens_runs_whole(checkpoint, monkeypatch):
    """It adds the token before: measured as such, and then wanted cells alone equal all of them."""
    model = load_model(checkpoint("gpt2"), device="cpu")
    assert model.mlp_by_token
    mlp = model.bridge.blocks[model.n_layers - 1].mlp.original_component
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])
    assert not mlp_by_token(model)
    mixed = dataclasses.replace(model, mlp_by_token=mlp_by_token(model))
    ids, mask = pad(token_ids(model.tokens, [TEXTS[0]]))
    one = hooked_pass(mixed, ids, mask, hooks=[model.last_hook], rows=[0], cols=[2])[model.last_hook]
    every = hooked_pass(mixed, ids, mask, hooks=[model.last_hook], rows=[0] * 5, cols=range(5))[model.last_hook]
    torch.testing.assert_close(one[0], every[2], rtol=1e-6, atol=1e-6)


def test_hooked_pass_refuses_a_silent_hook(toy_model, monkeypatch):
    """A misspelt hook point is named before the pass, one that exists but never fires after it."""
    ids = np.ones((1, 3), dtype=int)
    with pytest.raises(ModelError, match=r"Did you mean 'blocks\.1\.hook_resid_post'"):
        hooked_pass(toy_model, ids, ids, hooks=["blocks.1.hook_resid_pst"], rows=[0], cols=[0])
    deaf = SimpleNamespace(run_with_hooks=lambda ids, **_: None)
    model = dataclasses.replace(toy_model, bridge=deaf)
    with pytest.raises(ModelError, match=r"never fired: blocks\.1\.hook_resid_post"):
        hooked_pass(model, ids, ids, hooks=["blocks.1.hook_resid_post"], rows=[0], cols=[0])


@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "bert"])
def test_batch_equals_single(checkpoint, toy_model, family):
    """Padding moves activations by rounding only, in causal models and in encoders."""
    model = toy_model if family == "toy" else load_model(checkpoint(family), device="cpu")
    assert batch_invariance(model, token_ids(model.tokens, TEXTS), model.last_hook) < 1e-5
    assert model.is_causal == (family != "bert")


def test_batch_invariance_refuses_an_unmasked_batch(checkpoint, monkeypatch):
    """If the mask did not reach an encoder, the self-test would say so."""
    model = load_model(checkpoint("bert"), device="cpu")
    monkeypatch.setattr(packing, "pad", lambda lists: (pad(lists)[0], pad(lists)[1] * 0 + 1))
    with pytest.raises(ModelError, match=r"other vectors in a batch than alone .* batch_tokens=1, or dtype: float32"):
        batch_invariance(model, token_ids(model.tokens, TEXTS), model.last_hook)


def test_the_self_test_looks_at_the_worst_hook_point(monkeypatch):
    """Relative to the size of the vectors; what is no number is worse than any number."""
    flat = {name: torch.full((4, 2), 2.0) for name in ("a", "b", "c")}
    packed = flat | {"b": flat["b"] + 1, "c": flat["c"] + 0.5}
    monkeypatch.setattr(selftest, "packed_and_alone", lambda *_, **__: (packed, flat))
    assert selftest.packing_error(None, [], ["a", "b", "c"], packing="buckets") == (0.5, "b")
    packed["c"] = flat["c"] * float("nan")
    assert selftest.packing_error(None, [], ["a", "b", "c"], packing="buckets")[1] == "c"


def test_the_self_test_leaves_out_specials(toy_model):
    """BOS is no row, and its long vector would hide the errors of those that are."""
    ids = token_ids(toy_model.tokens, TEXTS)
    packed, alone = packed_and_alone(toy_model, ids, [toy_model.last_hook], packing="buckets")
    assert len(packed[toy_model.last_hook]) == len(alone[toy_model.last_hook]) == sum(len(i) - 1 for i in ids)


def test_load_model_records_provenance(checkpoint):
    """Hashes, dtype, device, weights mode and BOS rule are in the record; reduced precision is named."""
    facts = load_model(checkpoint("gpt2"), device="cpu", dtype="bfloat16").provenance
    assert (facts["dtype"], facts["device"], facts["weights"]) == ("bfloat16 (autocast)", "cpu", "raw")
    assert len(facts["weights_hash"]) == len(facts["tokenizer_hash"]) == 64
    assert facts["config"]["n_layer"] == 3
    assert "nothing before" in facts["bos"]
    assert set(facts["versions"]) == {"torch", "transformers", "transformer-lens", "tokenizers"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_stays_close(checkpoint, dtype):
    """bf16 and fp16 move the stream by their own rounding, no more."""
    full, less = (
        load_model(checkpoint("llama"), device="cpu"),
        load_model(checkpoint("llama"), device="cpu", dtype=dtype),
    )
    a, b = logits(full, TEXTS)[0], logits(less, TEXTS)[0]
    error = float((a - b).norm() / a.norm())
    assert 0 < error < 0.05


def test_compat_weights_move_the_stream_but_not_the_predictions(checkpoint):
    """Folding and centring change what a dictionary reads, and nothing that the model says."""
    raw = load_model(checkpoint("gpt2"), device="cpu")
    compat = load_model(checkpoint("gpt2"), device="cpu", weights="compat")
    ids = np.array(token_ids(raw.tokens, TEXTS[:1]))
    place = dict(hooks=[raw.last_hook], rows=[0] * 5, cols=range(5))
    x, y = (hooked_pass(m, ids, ids * 0 + 1, **place)[raw.last_hook] for m in (raw, compat))
    assert float((x - y).abs().max()) > 1e-2
    torch.testing.assert_close(
        logits_of(raw, x).log_softmax(-1), logits_of(compat, y).log_softmax(-1), rtol=1e-3, atol=1e-3
    )
    assert compat.provenance["weights"] == "compat"


def broken(folder, target, change):
    """A copy of a checkpoint with its weights changed."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_load_model_refuses_missing_weights(checkpoint, tmp_path):
    """A tensor that is not there is an error, not a random fill."""
    folder = broken(checkpoint("llama"), tmp_path / "m", lambda t: t.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 weights, such as model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(folder, device="cpu")


def test_load_model_refuses_a_truncated_file(checkpoint, tmp_path):
    """A half-copied weight file is one sentence."""
    shutil.copytree(checkpoint("llama"), tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be loaded as a language model") as error:
        load_model(tmp_path / "m", device="cpu")
    assert "\n" not in str(error.value)


def test_encoder_without_a_head_has_no_logits(checkpoint, tmp_path):
    """A bare encoder is read, but nothing is scored with its random head."""
    folder = broken(
        checkpoint("bert"), tmp_path / "m", lambda t: [t.pop(k) for k in list(t) if k.startswith("cls.pre")]
    )
    model = load_model(folder, device="cpu")
    assert not model.has_head
    with pytest.raises(ModelError, match="has no head"):
        logits_of(model, torch.zeros(1, 32))


def test_a_causal_model_without_its_head_has_no_logits(checkpoint, tmp_path):
    """transformers fills a missing head with random numbers, and these do read the last stream: nothing is scored."""
    folder = broken(checkpoint("llama"), tmp_path / "m", lambda t: t.pop("lm_head.weight"))
    model = load_model(folder, device="cpu")
    assert model.is_causal
    assert not model.has_head


@pytest.mark.parametrize(
    ("argument", "message"), [({"device": "cuda:77"}, "not available here"), ({"dtype": "int8"}, "unknown dtype")]
)
def test_load_model_refuses_what_it_cannot_do(checkpoint, argument, message):
    """No silent fallback to another device or dtype."""
    with pytest.raises(ModelError, match=message):
        load_model(checkpoint("gpt2"), **argument)


def test_local_models_use_no_network_and_no_sae_lens(checkpoint):
    """A socket trap in a fresh process: loading and reading a folder makes no connection."""
    code = f"""
import socket, sys
def trap(*a, **k): raise AssertionError("network use")
socket.create_connection = socket.socket.connect = socket.getaddrinfo = trap
import numpy as np, neurosae.extraction.run
from neurosae.extraction.model import hooked_pass, load_model
m = load_model({str(checkpoint("gpt2"))!r}, device="cpu")
i = np.ones((1, 3), dtype=int)
hooked_pass(m, i, i, hooks=[m.last_hook], rows=[0], cols=[2])
assert "sae_lens" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_toys_are_reproducible(toy_model):
    """The same settings give the same weights; the seed is part of them."""
    settings = json.loads(json.dumps(toy_model.provenance["config"]))
    assert load_model(settings, device="cpu").provenance["weights_hash"] == toy_model.provenance["weights_hash"]
    other = load_model(settings | {"seed": 1}, device="cpu")
    assert other.provenance["weights_hash"] != toy_model.provenance["weights_hash"]
