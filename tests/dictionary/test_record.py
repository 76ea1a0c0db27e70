"""Dictionaries on disk: the same in sae-lens and here, and refused when broken."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from neurosae.dictionary.record import Dictionary, folder_content, neuron_dictionary, read_folder, write_folder
from neurosae.errors import ModelError

X = 2 * torch.randn(300, 16, generator=torch.Generator().manual_seed(7)) + 1


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_folder_agrees_with_sae_lens(lens, make_dictionary, tmp_path, *, kind, dtype):
    """What we save, sae-lens reads: same features, same reconstruction; and so do we."""
    write_folder(tmp_path / "d", make_dictionary(kind), dtype=dtype)
    theirs, ours = lens.SAE.load_from_disk(str(tmp_path / "d")), read_folder(tmp_path / "d")
    with torch.no_grad():
        features = theirs.encode(X)
        assert_close(torch.from_numpy(ours.encode(X).toarray()), features, rtol=1e-5, atol=1e-5)
        assert_close(ours.decode(ours.encode(X)), theirs.decode(features), rtol=1e-5, atol=1e-4)
    assert theirs.cfg.metadata.hook_name == ours.hook


@pytest.mark.parametrize("kind", ["TopK", "BatchTopK", "JumpReLU", "Standard", "Gated", "Matryoshka"])
def test_read_folder_agrees_with_what_sae_lens_saves(lens, tmp_path, kind):
    """The reverse: a folder made by sae-lens gives its features here, plain kinds and others."""
    name = "MatryoshkaBatchTopK" if kind == "Matryoshka" else kind
    extra = {"k": 5} if "TopK" in name else {}
    if kind == "Matryoshka":
        extra["matryoshka_widths"] = [16, 48]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(lens, f"{name}TrainingSAEConfig")(d_in=16, d_sae=48, **extra)
        sae = getattr(lens, f"{name}TrainingSAE")(config)
        for value in sae.parameters():
            value.data.add_(0.2 * torch.randn_like(value))
    sae.save_inference_model(tmp_path / "d")
    theirs, ours = lens.SAE.load_from_disk(str(tmp_path / "d")), read_folder(tmp_path / "d")
    with torch.no_grad():
        features = theirs.encode(X)
        assert_close(torch.from_numpy(ours.encode(X).toarray()), features, rtol=1e-5, atol=1e-5)
        assert_close(ours.reconstruct(X), theirs.decode(features), rtol=1e-5, atol=1e-5)
    assert ours.kind == ("topk" if kind == "TopK" else "standard" if kind == "Standard" else "jumprelu")


def test_read_folder_folds_a_rescaled_topk(lens, tmp_path):
    """Where sae-lens selects by z |W_dec| and decoder rows differ in length, the same features come out."""
    sae = lens.TopKSAE(lens.TopKSAEConfig(d_in=16, d_sae=48, k=5, rescale_acts_by_decoder_norm=True))
    draws = torch.Generator().manual_seed(0)
    for value in sae.parameters():
        value.data.copy_(torch.randn(value.shape, generator=draws))
    sae.save_model(tmp_path / "d")
    ours = read_folder(tmp_path / "d")
    with torch.no_grad():
        assert_close(torch.from_numpy(ours.encode(X).toarray()), sae.encode(X), rtol=1e-4, atol=1e-4)
        assert_close(ours.reconstruct(X), sae(X), rtol=1e-4, atol=1e-4)


def test_dictionary_agrees_with_itself(make_dictionary):
    """Chosen pre-activations, origin and norm are those of the equations."""
    made = make_dictionary("standard")
    z = (X - made.b_dec) @ made.W_enc.t() + made.b_enc
    assert_close(made.preactivations(X, [3, 60]), z[:, [3, 60]], rtol=1e-5, atol=1e-5)
    assert_close(torch.from_numpy(made.origin), made.b_enc - made.W_enc @ made.b_dec, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made.decoder_norm, np.linalg.norm(made.W_dec, axis=1), rtol=1e-6)
    assert made.encode(X[:0]).shape == (0, 64)


def test_encode_invariant_to_chunks(make_dictionary, monkeypatch):
    """How many rows are held at once changes nothing but rounding."""
    made = make_dictionary("topk")
    whole = made.encode(X)
    monkeypatch.setattr("neurosae.dictionary.kinds.CELLS", 64 * 7)
    assert abs(made.encode(X) - whole).max() < 1e-5


def test_neurons_reconstruct_exactly():
    """The raw stream as two signs loses nothing."""
    raw = neuron_dictionary("blocks.0.hook_resid_post", 16)
    assert torch.equal(raw.decode(raw.encode(X)), X)
    assert raw.encode(X).min() >= 0


def test_hash_follows_weights(make_dictionary, tmp_path):
    """Another weight is another dictionary; another card is not."""
    first = make_dictionary("topk")
    moved = replace(first, W_dec=first.W_dec + 1e-3)
    for name, made in {"a": first, "b": replace(first, card={"fvu": 1}), "c": moved}.items():
        write_folder(tmp_path / name, made)
    a, b, c = (read_folder(tmp_path / name).hash for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("setting", [{"rescale_acts_by_decoder_norm": True}, {"normalize_activations": "layer_norm"}])
def test_hash_follows_settings(make_dictionary, tmp_path, setting):
    """The same weights with a setting that gives other codes are another dictionary: no stored response serves both."""
    write_folder(tmp_path / "a", make_dictionary("topk"))
    before = read_folder(tmp_path / "a").hash
    path = tmp_path / "a" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    assert read_folder(tmp_path / "a").hash != before


BREAK = {
    "does not exist": lambda folder: [p.unlink() for p in folder.iterdir()] and folder.rmdir(),
    "has no cfg.json": lambda folder: (folder / "cfg.json").unlink(),
    "cfg.json is broken": lambda folder: (folder / "cfg.json").write_text("{"),
    "has no sae_weights.safetensors": lambda folder: (folder / "sae_weights.safetensors").unlink(),
    "sae_weights.safetensors is broken": lambda folder: (folder / "sae_weights.safetensors").write_bytes(b"x" * 40),
    "card.json is broken": lambda folder: (folder / "card.json").write_text("no"),
}


@pytest.mark.parametrize("message", BREAK)
def test_read_folder_refuses_what_is_broken(make_dictionary, tmp_path, message):
    """Missing and broken files are named in one sentence."""
    write_folder(tmp_path / "d", make_dictionary("topk"))
    BREAK[message](tmp_path / "d")
    with pytest.raises(ModelError, match=message) as caught:
        read_folder(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_read_folder_refuses_truncated_weights(make_dictionary, tmp_path):
    """A file that was not copied to its end is not read."""
    write_folder(tmp_path / "d", make_dictionary("topk"))
    weights = tmp_path / "d" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="broken"):
        read_folder(tmp_path / "d")


def test_read_folder_refuses_foreign_settings(make_dictionary, tmp_path):
    """An architecture that nobody knows is one sentence, not a traceback."""
    write_folder(tmp_path / "d", make_dictionary("topk"))
    config = json.loads((tmp_path / "d" / "cfg.json").read_text()) | {"architecture": "mystery"}
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be read as a dictionary"):
        read_folder(tmp_path / "d")


def test_encode_refuses_another_width(make_dictionary):
    """Activations of another model are not silently broadcast."""
    with pytest.raises(ModelError, match="width 16, but these have 8"):
        make_dictionary("topk").encode(torch.zeros(3, 8))


def test_folder_content_refuses_foreign_kinds(make_dictionary):
    """Only plain kinds are written here."""
    made: Dictionary = make_dictionary("standard")
    with pytest.raises(ModelError, match="saved with sae-lens"):
        folder_content(replace(made, kind="sae_lens"))


def _broken(folder, settings=None, **tensors):
    """Change entries of cfg.json (None: take out) and the first value of tensors."""
    config = json.loads((folder / "cfg.json").read_text()) | (settings or {})
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    state = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    for name, value in tensors.items():
        state[name].view(-1)[0] = value
    safetensors.torch.save_file(state, folder / "sae_weights.safetensors")


WRONG = {
    "k in cfg.json is None, but must be .* 1 to 64": {"settings": {"k": None}},
    "k in cfg.json is five": {"settings": {"k": "five"}},
    "k in cfg.json is 0": {"settings": {"k": 0}},
    "k in cfg.json is 65": {"settings": {"k": 65}},
    "says d_in = 48, but W_dec has 16": {"settings": {"d_in": 48}},
    "says d_sae = 48, but W_dec has 64": {"settings": {"d_sae": 48}},
    "W_enc holds values that are not finite": {"W_enc": float("nan")},
    "W_dec holds values that are not finite": {"W_dec": float("inf")},
    "b_enc holds values that are not finite": {"b_enc": float("nan")},
    "b_dec holds values that are not finite": {"b_dec": float("inf")},
}


@pytest.mark.parametrize("message", WRONG)
def test_read_folder_refuses_numbers_that_cannot_be(make_dictionary, tmp_path, message):
    """Weights that are not finite and settings that contradict the files are refused when the folder is read."""
    write_folder(tmp_path / "d", make_dictionary("topk"))
    _broken(tmp_path / "d", **WRONG[message])
    with pytest.raises(ModelError, match=message):
        read_folder(tmp_path / "d")


def test_thresholds_may_be_infinite_but_not_missing(make_dictionary, tmp_path):
    """An infinite threshold is a feature that never fires; NaN is a feature that would vanish without a word."""
    write_folder(tmp_path / "d", make_dictionary("jumprelu"))
    _broken(tmp_path / "d", threshold=float("inf"))
    assert read_folder(tmp_path / "d").encode(torch.randn(50, 16))[:, 0].nnz == 0
    _broken(tmp_path / "d", threshold=float("nan"))
    with pytest.raises(ModelError, match="threshold holds values that are not finite"):
        read_folder(tmp_path / "d")


@pytest.mark.parametrize("kind", ["Standard", "MatchingPursuit"])
def test_half_precision_is_read_in_whole(lens, tmp_path, kind):
    """A dictionary that sae-lens saved in bfloat16, and that only sae-lens can encode, decodes float32 codes."""
    settings = {"normalize_activations": "layer_norm"} if kind == "Standard" else {}
    config = getattr(lens, f"{kind}SAEConfig")(d_in=16, d_sae=48, dtype="bfloat16", **settings)
    sae = getattr(lens, f"{kind}SAE")(config)
    sae.save_model(tmp_path / "d")
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    made = read_folder(tmp_path / "d")
    whole = sae.to(dtype=torch.float32)
    codes = made.encode(x)
    expected = whole.encode(x)
    assert_close(torch.tensor(codes.toarray()), expected.detach(), rtol=0, atol=1e-6)
    assert_close(made.decode(codes), whole.decode(expected).detach(), rtol=0, atol=1e-5)


def test_negative_codes_are_never_dropped(lens, tmp_path):
    """AbsTopK behind a normalization is refused: half of its codes would be lost."""
    config = lens.AbsTopKSAEConfig(d_in=16, d_sae=48, k=4, normalize_activations="layer_norm")
    lens.AbsTopKSAE(config).save_model(tmp_path / "d")
    made = read_folder(tmp_path / "d")
    with pytest.raises(ModelError, match=r"may be negative \(abstopk with normalize_activations: layer_norm\)"):
        made.encode(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
