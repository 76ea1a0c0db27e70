"""Hook points are checked by name before anything runs, and give what the whole cache holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neurosae.errors import ModelError
from neurosae.extraction.firing import check_sites, firing_order
from neurosae.extraction.model import hooked_pass, load_model
from neurosae.extraction.packing import pad
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract
from neurosae.extraction.sites import check_hook

IDS, MASK = pad([[5, 6, 7, 8, 9], [9, 3, 4]])
ROWS, COLS = [0, 0, 1], [4, 2, 2]
IN_BLOCK = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_post"),
    *("attn.hook_z", "attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_pre", "ln1.hook_normalized"),
)
OUTSIDE = ("hook_embed", "ln_final.hook_normalized", "ln_final.hook_scale")


def model_of(request, family):
    """The toy, a tiny checkpoint, or one of the two trained models."""
    if family == "toy":
        return request.getfixturevalue("toy_model")
    if family in {"stories260K", "bitllama3M"}:
        return load_model(request.getfixturevalue("shared_data")(f"models/{family}"), device="cpu")
    return load_model(request.getfixturevalue("checkpoint")(family), device="cpu")


@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "neox", "bert", "bitllama3M"])
def test_every_site_equals_the_full_cache(request, family):
    """All layers and all kinds of hook point in one pass, to the last bit; a head is its slice."""
    model = model_of(request, family)
    hooks = [f"blocks.{layer}.{name}" for layer in range(model.n_layers) for name in IN_BLOCK]
    hooks = [hook for hook in [*hooks, *OUTSIDE] if hook in model.hooks]
    # where attention and MLP run side by side there is no stream between them
    assert ("blocks.1.hook_resid_mid" in hooks) == (family != "neox")
    assert {"blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"} < set(hooks)
    got = hooked_pass(model, IDS, MASK, hooks=[*hooks, "blocks.1.attn.hook_z.h1"], rows=ROWS, cols=COLS)
    with torch.inference_mode():
        cache = model.bridge.run_with_cache(torch.tensor(IDS), attention_mask=torch.tensor(MASK))[1]
    for hook in hooks:
        assert torch.equal(got[hook], cache[hook][ROWS, COLS].flatten(1)), hook
    assert torch.equal(got["blocks.1.attn.hook_z.h1"], cache["blocks.1.attn.hook_z"][ROWS, COLS, 1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_add_up_to_the_stream(checkpoint, family):
    """What a block writes is what the stream gains: attention and MLP are read where they are added."""
    model = load_model(checkpoint(family), device="cpu")
    names = ["hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]
    got = hooked_pass(model, IDS, MASK, hooks=[f"blocks.1.{name}" for name in names], rows=ROWS, cols=COLS)
    before, attention, middle, mlp, after = (got[f"blocks.1.{name}"] for name in names)
    torch.testing.assert_close(before + attention, middle, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(middle + mlp, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("blocks.1.hook_resid_pst", "Did you mean 'blocks.1.hook_resid_post'"),
        ("blocks.9.hook_resid_post", "unknown hook point"),
        ("blocks.1.attn.hook_qq", "Did you mean 'blocks.1.attn.hook_q'"),
        ("ln_final.hook_normalised", "Did you mean 'ln_final.hook_normalized'"),
        ("blocks.1.attn.hook_pattern", "not one that gives a vector per token"),
        ("blocks.1.attn.hook_result", "switched off in this model; use blocks.N.attn.hook_z"),
        ("blocks.1.hook_mlp_in", "switched off in this model"),
    ],
)
def test_check_hook_refuses(toy_model, hook, message):
    """Misspelt, too deep, switched off, or no vector per token: refused, with the nearest known name."""
    with pytest.raises(ModelError, match=message):
        check_hook(hook, toy_model.hooks, where="sites.late")


@pytest.mark.parametrize(
    ("family", "hook", "message"),
    [
        ("toy", "blocks.1.attn.hook_hidden_states", "never fires in toy"),
        ("bert", "blocks.1.mlp.hook_out", "never fires"),
        ("llama", "blocks.1.attn.hook_cos", r"gives shape \(1, 3, 8\), not one vector per token"),
        ("toy", "embed.hook_in", r"gives shape \(2, 3\), not one vector per token"),
        ("toy", "blocks.1.attn.hook_z.h4", "has 4 heads, h0 to h3; there is no h4"),
        ("toy", "blocks.1.hook_resid_post.h1", "not one vector per head and token"),
    ],
)
def test_sites_that_give_nothing_are_refused(request, tiny, *, family, hook, message):
    """Hook points that exist but never fire, or give no vector per token, are refused before the first batch."""
    model = model_of(request, family)
    with pytest.raises(ModelError, match=rf"sites\.odd: .*{message}"):
        check_sites(model, {"odd": dataclasses.replace(tiny(1), hook=hook)})


def test_a_hook_point_that_fires_twice_is_refused(toy_model, tiny, monkeypatch):
    """Which of two vectors would be the token's?"""
    from neurosae.extraction import firing

    real = firing.firing_order
    monkeypatch.setattr(firing, "firing_order", lambda *a: real(*a) * 2)
    with pytest.raises(ModelError, match="fires 2 times in one pass"):
        check_sites(toy_model, {"odd": tiny(1)})


def test_canonical_hooks_name_one_point_once(toy_model):
    """An alias leads to the canonical name of the same hook point."""
    assert toy_model.hooks["blocks.1.hook_resid_post"] == toy_model.hooks["blocks.1.hook_out"] == "blocks.1.hook_out"


def test_alias_and_canonical_name_give_the_same_responses(toy_model, toy_stimuli, tiny):
    """Both names of a hook point fire, and the record says which point it was."""
    sites = {"alias": tiny(1), "canonical": dataclasses.replace(tiny(1), hook="blocks.1.hook_out")}
    out = extract(toy_stimuli, toy_model, sites, positions={"regions": ["head"]})
    assert abs(out["alias"].X - out["canonical"].X).max() == 0
    assert provenance_of(out["alias"])["hook_canonical"] == provenance_of(out["canonical"])["hook_canonical"]


def test_one_hook_point_serves_several_sites_in_one_pass(toy_model, toy_stimuli, tiny, *, monkeypatch):
    """Features, raw dimensions and one head at the same layer: as many forward passes as for one of them."""
    from neurosae.dictionary.record import neuron_dictionary
    from neurosae.extraction import shard

    real, passes = shard.hooked_pass, []
    monkeypatch.setattr(shard, "hooked_pass", lambda *a, **kw: (passes.append(1), real(*a, **kw))[1])
    hook = "blocks.1.hook_resid_post"
    sites = {"features": tiny(1), "raw": neuron_dictionary(hook, 64)}
    sites["head"] = neuron_dictionary("blocks.1.attn.hook_z.h2", 16)
    out = extract(toy_stimuli, toy_model, sites, positions={"regions": ["head"], "keep_x": True})
    n = len(passes)
    alone = extract(toy_stimuli, toy_model, {"features": tiny(1)}, positions={"regions": ["head"]})
    assert len(passes) == 2 * n
    assert abs(out["features"].X - alone["features"].X).max() == 0
    signed = out["raw"].X[:, :64] - out["raw"].X[:, 64:]
    np.testing.assert_array_equal(signed.toarray(), out["features"].obsm["x"])
    assert out["head"].shape[1] == 32


@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "neox"])
def test_ln_scale_recovers_the_scale_of_the_next_normalisation(request, toy_stimuli, tiny, *, family):
    """The scale that the model itself divides by at that token; after the last block, that of the final one."""
    model = model_of(request, family)
    last = model.n_layers - 1
    expected = {
        "blocks.0.hook_resid_post": "blocks.1.ln1.hook_scale",
        "blocks.1.hook_resid_pre": "blocks.1.ln1.hook_scale",
        f"blocks.{last}.hook_resid_post": "ln_final.hook_scale",
        "blocks.0.hook_mlp_out": "blocks.1.ln1.hook_scale",
        # where attention and MLP run side by side, what attention adds is normalised in the next block
        "blocks.0.hook_attn_out": "blocks.1.ln1.hook_scale" if family == "neox" else "blocks.0.ln2.hook_scale",
    }
    sites = {f"s{i}": dataclasses.replace(tiny(1), hook=hook, d=model.d_model) for i, hook in enumerate(expected)}
    assert check_sites(model, sites) == expected
    out = extract(toy_stimuli, model, sites, positions={"regions": ["head"]})
    first = out["s0"].obs.iloc[0]
    ids = np.array([load_ids(model, toy_stimuli.loc[first["stimulus"], "text"])])
    place = dict(rows=[0], cols=[first["token_index"]])
    for site, scale in zip(sites, expected.values(), strict=True):
        own = hooked_pass(model, ids, ids * 0 + 1, hooks=[scale], **place)[scale]
        assert out[site].obs["ln_scale"].iloc[0] == pytest.approx(float(own), rel=1e-5)
        assert provenance_of(out[site])["ln_scale"] == scale
    x = hooked_pass(model, ids, ids * 0 + 1, hooks=["blocks.0.hook_resid_post"], **place)["blocks.0.hook_resid_post"]
    spread = x.std(correction=0) if family != "llama" else x.square().mean().sqrt()
    assert out["s0"].obs["ln_scale"].iloc[0] == pytest.approx(float(spread), rel=1e-2)


def load_ids(model, text):
    """Ids of a text as the model gets them."""
    from neurosae.extraction.tokens import token_ids

    return token_ids(model.tokens, [text])[0]


def test_ln_scale_is_missing_with_a_reason(toy_model, toy_stimuli, tiny):
    """Nothing normalises after the last normalisation: not a number, and the record says so."""
    site = dataclasses.replace(tiny(1), hook="ln_final.hook_normalized")
    out = extract(toy_stimuli, toy_model, {"s": site}, positions={"regions": ["head"]})["s"]
    assert out.obs["ln_scale"].isna().all()
    assert provenance_of(out)["ln_scale"] == "nothing normalises after this hook point"


def test_firing_order_is_the_order_of_the_pass(toy_model):
    """As fired, not as asked."""
    hooks = ["blocks.2.hook_resid_post", "hook_embed", "blocks.0.hook_attn_out", "blocks.0.attn.hook_z"]
    order = [firing.name for firing in firing_order(toy_model, hooks)]
    assert order == ["hook_embed", "blocks.0.attn.hook_z", "blocks.0.hook_attn_out", "blocks.2.hook_resid_post"]


PARTS = {  # of layer 1: attention, its output projection, the MLP, and the projection back from the MLP
    "gpt2": lambda m: (m.transformer.h[1].attn, "c_proj", m.transformer.h[1].mlp, "c_proj"),
    "llama": lambda m: (m.model.layers[1].self_attn, "o_proj", m.model.layers[1].mlp, "down_proj"),
    "neox": lambda m: (m.gpt_neox.layers[1].attention, "dense", m.gpt_neox.layers[1].mlp, "dense_4h_to_h"),
}


@pytest.mark.parametrize("family", PARTS)
def test_attention_mlp_and_heads_agree_with_transformers(checkpoint, family):
    """What leaves attention, a head and the MLP is what the modules of transformers give, read by hooks of torch."""
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint(family), attn_implementation="eager").eval()
    attention, out, mlp, down = PARTS[family](theirs)
    seen = {}
    attention.register_forward_hook(lambda module, args, given: seen.update(attn=given[0]))
    getattr(attention, out).register_forward_pre_hook(lambda module, args: seen.update(z=args[0]))
    mlp.register_forward_hook(lambda module, args, given: seen.update(mlp=given))
    getattr(mlp, down).register_forward_pre_hook(lambda module, args: seen.update(post=args[0]))
    ours = load_model(checkpoint(family), device="cpu")
    with torch.inference_mode():
        theirs(torch.tensor(IDS), attention_mask=torch.tensor(MASK))
    names = {"attn": "hook_attn_out", "mlp": "hook_mlp_out", "z": "attn.hook_z", "post": "mlp.hook_post"}
    hooks = [f"blocks.1.{name}" for name in names.values()]
    got = hooked_pass(ours, IDS, MASK, hooks=[*hooks, "blocks.1.attn.hook_z.h2"], rows=ROWS, cols=COLS)
    for part, name in names.items():
        wanted = seen[part][ROWS, COLS].flatten(1)
        torch.testing.assert_close(got[f"blocks.1.{name}"], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(got["blocks.1.attn.hook_z.h2"], seen["z"][ROWS, COLS].unflatten(1, (4, 8))[:, 2])
