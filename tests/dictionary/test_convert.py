"""Folders of other projects: the same codes as sae-lens makes of the same files, and clear refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from neurosae.dictionary.convert import FORMATS, find_format, read_dictionary
from neurosae.dictionary.record import read_folder
from neurosae.errors import ModelError

D, M, K = 16, 96, 5


def tensors(seed=0):
    """An encoder, a decoder and biases, made without the package."""
    draws = torch.Generator().manual_seed(seed)
    made = {"W_enc": torch.randn(D, M, generator=draws), "W_dec": torch.randn(M, D, generator=draws)}
    made |= {"b_enc": torch.randn(M, generator=draws) * 0.1, "b_dec": torch.randn(D, generator=draws)}
    return made | {"threshold": torch.rand(M, generator=draws) + 0.5}


def gemma_scope(folder):
    """gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_5 with params.npz."""
    np.savez(folder / "params.npz", **{name.replace("W", "w"): value.numpy() for name, value in tensors().items()})


def llama_scope(folder):
    """hyperparams.json and checkpoints/final.safetensors."""
    made = tensors()
    facts = {"d_model": D, "d_sae": M, "jump_relu_threshold": 0.7, "hook_point_in": "blocks.1.hook_resid_post"}
    facts |= {"hook_point_out": "blocks.1.hook_resid_post", "dataset_average_activation_norm": {"in": 9.0, "out": 9.0}}
    (folder / "hyperparams.json").write_text(json.dumps(facts))
    (folder / "checkpoints").mkdir()
    state = {"encoder.weight": made["W_enc"].t(), "decoder.weight": made["W_dec"].t()}
    state |= {"encoder.bias": made["b_enc"], "decoder.bias": made["b_dec"]}
    state = {name: value.bfloat16().contiguous() for name, value in state.items()}
    safetensors.torch.save_file(state, folder / "checkpoints" / "final.safetensors")


def dictionary_learning(folder, kind="AutoEncoderTopK"):
    """config.json and ae.pt."""
    made = tensors()
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": M, "k": K, "layer": 1, "lm_name": "a/b"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 32}}))
    if kind == "JumpReluAutoEncoder":
        state = made
    elif kind == "GatedAutoEncoder":
        state = {"encoder.weight": made["W_enc"].t(), "decoder.weight": made["W_dec"].t(), "r_mag": made["b_enc"]}
        state |= {"gate_bias": made["b_enc"] - 0.2, "mag_bias": made["b_enc"], "decoder_bias": made["b_dec"]}
    else:
        state = {"encoder.weight": made["W_enc"].t(), "decoder.weight": made["W_dec"].t()}
        state |= {"encoder.bias": made["b_enc"]}
        state |= {"bias": made["b_dec"]} if kind == "AutoEncoder" else {"b_dec": made["b_dec"]}
        state |= {} if kind == "AutoEncoder" else {"threshold": torch.tensor(0.8), "k": torch.tensor(K)}
    torch.save(state, folder / "ae.pt")


def sparsify(folder):
    """cfg.json and sae.safetensors."""
    made = tensors()
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": M, "k": K, "signed": False}))
    state = {"encoder.weight": made["W_enc"].t().contiguous(), "encoder.bias": made["b_enc"]}
    state |= {"W_dec": made["W_dec"].contiguous(), "b_dec": made["b_dec"]}
    safetensors.torch.save_file(state, folder / "sae.safetensors")


LOADERS = {
    "gemma_scope": (gemma_scope, "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res"),
    "llama_scope": (llama_scope, "llama_scope_sae_huggingface_loader", "fnlp/Llama3_1-8B-Base-LXR-8x"),
    **{
        f"dictionary_learning/{kind}": (
            lambda folder, kind=kind: dictionary_learning(folder, kind),
            "dictionary_learning_sae_huggingface_loader_1",
            "canrager/lm_sae",
        )
        for kind in ("AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder")
    },
}
NESTED = "gemma-scope-2b-pt-res/layer_1/width_16k"


def by_sae_lens(lens, monkeypatch, loader, *, repo, root):
    """The sae-lens object of a hub converter, its downloads served from a folder."""
    module = __import__("sae_lens.loading.pretrained_sae_loaders", fromlist=["x"])

    def local(repo_id, filename, *, subfolder=None, force_download=False):
        return str(root / (subfolder or "") / filename)

    monkeypatch.setattr(module, "hf_hub_download", local)

    def converter(path, device, cfg_overrides=None):
        wanted = {"dtype": "float32", "d_in": D, "d_sae": M}
        if "dictionary_learning" in loader:
            wanted = {"dtype": "float32"}
        config, state, _ = getattr(module, loader)(repo, NESTED, device, cfg_overrides=wanted)
        return config, state

    sae = lens.SAE.load_from_disk(root, converter=converter)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(D**0.5 / 9.0)
    return sae


@pytest.mark.parametrize("name", LOADERS)
def test_formats_agree_with_sae_lens(name, lens, monkeypatch, *, tmp_path):
    """Codes and reconstruction of the files equal those that sae-lens' converter for a download gives."""
    make, loader, repo = LOADERS[name]
    folder = tmp_path / NESTED
    folder.mkdir(parents=True)
    make(folder)
    ours = read_dictionary(folder)
    theirs = by_sae_lens(lens, monkeypatch, loader, repo=repo, root=tmp_path)
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(3)) * 2
    with torch.no_grad():
        wanted = theirs.encode(x)
        assert np.abs(ours.encode(x).toarray() - wanted.numpy()).max() < 1e-4
        assert torch.allclose(ours.reconstruct(x), theirs.decode(wanted), atol=1e-3)
    assert ours.hook == theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert ours.metadata["converted_from"] == name.split("/")[0]


def test_sparsify_agrees_with_sae_lens(lens, tmp_path):
    """The one converter that sae-lens has for files on disk."""
    folder = tmp_path / "model" / "layers.1"
    folder.mkdir(parents=True)
    sparsify(folder)
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    # sae-lens turns W_dec, so it wants (d, m) where sparsify itself saves (m, d): both are read here
    state = safetensors.torch.load_file(folder / "sae.safetensors")
    turned = tmp_path / "turned" / "layers.1"
    turned.mkdir(parents=True)
    (turned / "cfg.json").write_text((folder / "cfg.json").read_text())
    safetensors.torch.save_file(state | {"W_dec": state["W_dec"].t().contiguous()}, turned / "sae.safetensors")
    theirs = lens.SAE.load_from_disk(turned, converter=sparsify_disk_loader, dtype="float32")
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(3))
    for ours in (read_dictionary(folder), read_dictionary(turned)):
        assert ours.hook == "blocks.1.hook_resid_post"
        with torch.no_grad():
            assert np.abs(ours.encode(x).toarray() - theirs.encode(x).numpy()).max() < 1e-5
            assert torch.allclose(ours.reconstruct(x), theirs(x), atol=1e-5)


def test_sparsify_recovers_its_own_codes(tmp_path):
    """The formula of sparsify, with its default settings: b_dec is subtracted whether the decoder is normalized or not.

    sae-lens does not subtract it where `normalize_decoder` is on, as it is in public releases.
    """
    made = tensors()
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(3))
    z = ((x - made["b_dec"]) @ made["W_enc"] + made["b_enc"]).relu()
    kept = z.topk(K)
    wanted = torch.zeros_like(z).scatter(1, kept.indices, kept.values)
    hooks = {"": "hook_resid_post", ".mlp": "hook_mlp_out", ".attention": "hook_attn_out", ".mlp.act": None}
    for ending, hook in hooks.items():
        folder = tmp_path / f"layers.1{ending}"
        folder.mkdir()
        sparsify(folder)
        told = json.loads((folder / "cfg.json").read_text()) | {"normalize_decoder": True, "expansion_factor": 6}
        (folder / "cfg.json").write_text(json.dumps(told))
        ours = read_dictionary(folder)
        assert np.abs(ours.encode(x).toarray() - wanted.numpy()).max() < 1e-5
        assert torch.allclose(ours.reconstruct(x), wanted @ made["W_dec"] + made["b_dec"], atol=1e-5)
        assert ours.hook == (f"blocks.1.{hook}" if hook else "")


def test_sparsify_refuses_other_activations(tmp_path):
    """groupmax keeps the largest of each group: other codes than the k largest."""
    sparsify(tmp_path)
    told = json.loads((tmp_path / "cfg.json").read_text()) | {"activation": "groupmax"}
    (tmp_path / "cfg.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="activation groupmax of sparsify is not known"):
        read_dictionary(tmp_path)


@pytest.mark.parametrize("module", [None, "attention_out_layer_1", "mlp_out_layer_1", "resid_post_layer_1"])
def test_dictionary_learning_names_its_hook_where_it_is_sure(module, tmp_path):
    """Its `submodule_name` may be null; an attention or MLP output is never called the residual stream."""
    dictionary_learning(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    told["trainer"]["submodule_name"] = module
    (tmp_path / "config.json").write_text(json.dumps(told))
    stream = module is None or module.startswith("resid")
    assert read_dictionary(tmp_path).hook == ("blocks.1.hook_resid_post" if stream else "")


def test_old_folders_agree_with_sae_lens(lens, tmp_path):
    """A folder of sae-lens before version 6: other keys, the same codes, and our own fast encoder."""
    made = tensors()
    config = {"d_in": D, "d_sae": M, "hook_point": "blocks.1.hook_resid_post", "activation_fn_str": "topk"}
    config |= {"activation_fn_kwargs": {"k": K}, "dtype": "float32", "device": "cpu", "model_name": "toy"}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in made.items() if name != "threshold"}
    safetensors.torch.save_file(state, tmp_path / "sae_weights.safetensors")
    ours, theirs = read_dictionary(tmp_path), lens.SAE.load_from_disk(tmp_path)
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert np.abs(ours.encode(x).toarray() - theirs.encode(x).numpy()).max() < 1e-5
    assert (ours.kind, ours.k, ours.hook) == ("sae_lens", None, "blocks.1.hook_resid_post") or ours.k == K


def save(sae, folder):
    """Save and return the folder."""
    sae.save_model(folder)
    return folder


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_scaled_inputs_agree_with_sae_lens(scaling, lens, tmp_path):
    """Inputs scaled per token: sae-lens remembers the scale between encode and decode."""
    config = lens.StandardSAEConfig(d_in=D, d_sae=M, normalize_activations=scaling)
    sae = lens.StandardSAE(config)
    sae.W_enc.data, sae.W_dec.data = tensors()["W_enc"], tensors()["W_dec"]
    ours = read_folder(save(sae, tmp_path / "d"))
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(3)) * 4
    with torch.no_grad():
        assert torch.allclose(ours.reconstruct(x), sae(x), atol=1e-4)


def test_matching_pursuit_agrees_with_sae_lens(lens, tmp_path):
    """An encoder without a matrix."""
    sae = lens.MatchingPursuitSAE(lens.MatchingPursuitSAEConfig(d_in=D, d_sae=M, residual_threshold=0.5))
    sae.W_dec.data = torch.nn.functional.normalize(tensors()["W_dec"], dim=1)
    ours, x = read_folder(save(sae, tmp_path / "d")), torch.randn(20, D, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert np.abs(ours.encode(x).toarray() - sae.encode(x).numpy()).max() < 1e-5


def test_read_refuses_what_reconstructs_nothing(lens, tmp_path):
    """Transcoders, temporal dictionaries and inputs scaled by an unknown factor: one sentence each."""
    made = lens.Transcoder(lens.TranscoderConfig(d_in=D, d_out=D, d_sae=M, apply_b_dec_to_input=False))
    with pytest.raises(ModelError, match="this is a transcoder: it predicts the output of a layer"):
        read_dictionary(save(made, tmp_path / "transcoder"))
    scaled = lens.StandardSAE(lens.StandardSAEConfig(d_in=D, d_sae=M, normalize_activations="expected_average_only_in"))
    with pytest.raises(ModelError, match="does not say by how much; fold the scaling"):
        read_dictionary(save(scaled, tmp_path / "scaled"))
    config = lens.TemporalSAEConfig(d_in=D, d_sae=M, n_heads=2, bottleneck_factor=4)
    with pytest.raises(ModelError, match="depends on all tokens before it"):
        read_dictionary(save(lens.TemporalSAE(config), tmp_path / "temporal"))


def test_read_refuses_unknown_folders(tmp_path):
    """What is inside, and what was expected."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"holds notes\.txt, which is no dictionary; .* gemma_scope \(params\.npz\)"):
        find_format(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"no archive")
    with pytest.raises(ModelError, match="looks like gemma_scope, but cannot be read"):
        read_dictionary(tmp_path)
    assert set(FORMATS) >= {"gemma_scope", "llama_scope", "dictionary_learning", "sparsify"}
