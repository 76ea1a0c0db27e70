"""Every kind behind one interface, on disk and back bit for bit, and for sae-lens what it says it is."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from neurosae.dictionary.kinds import KINDS, Dictionary, neuron_dictionary, signed_dictionary
from neurosae.dictionary.record import foreign, read_folder, write_folder
from neurosae.errors import ModelError

X = 2 * torch.randn(200, 16, generator=torch.Generator().manual_seed(7)) + 1


def made_of(kind: str) -> Dictionary:
    """A random dictionary of any kind of ours, 16 wide, 48 features."""
    g = torch.Generator().manual_seed(3)
    rows, enc = functional.normalize(torch.randn(48, 16, generator=g), dim=1), torch.randn(48, 16, generator=g)
    bias, unknown = 0.1 * torch.randn(48, generator=g), torch.full((48,), float("nan"))
    center, parts, facts, k = torch.randn(16, generator=g), {}, {"hook_name": "h"}, None
    level = torch.rand(48, generator=g) if kind == "jumprelu" else unknown if kind != "standard" else torch.zeros(48)
    if kind == "omp":
        rows = torch.cat([rows[:24], -rows[:24]])
        facts["partner"] = "halves"
    if kind == "nnls":
        parts = {"P": torch.rand(48, 32, generator=g)}
        rows = parts["P"][:, :16] - parts["P"][:, 16:]
    if kind == "interaction":
        parts = {"V": torch.randn(48, 6, generator=g), "M": torch.randn(6, 16, generator=g)}
        parts |= {"H": torch.randn(6, 6, generator=g), "h": torch.randn(6, generator=g)}
        parts |= {"L": torch.randn(48, 16, generator=g)}
        facts["linear_top"] = 2
    if kind in ("omp", "nnls"):
        enc, bias = rows, torch.zeros(48)
    if kind in ("topk", "omp", "interaction"):
        k = 4
    return Dictionary("h", kind, enc, bias, rows, center, level, k, metadata=facts, parts=parts)


OURS = [kind for kind in KINDS if kind != "sae_lens"]


@pytest.mark.parametrize("kind", OURS)
def test_folder_recovers_every_kind(kind, tmp_path):
    """The same codes, reconstruction and tensors to the last bit, and a copy for a worker process too."""
    made = made_of(kind)
    write_folder(tmp_path / "d", made)
    for again in (read_folder(tmp_path / "d"), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        codes, own = again.encode(X), made.encode(X)
        np.testing.assert_array_equal(codes.toarray(), own.toarray())
        assert torch.equal(again.decode(codes), made.decode(own))
        assert (again.kind, again.k, again.hook) == (kind, made.k, "h")
        assert all(torch.equal(again.parts[n], made.parts[n]) for n in made.parts)
        assert_close(again.preactivations(X, [1, 40]), made.preactivations(X, [1, 40]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", OURS)
def test_sae_lens_reads_every_kind(lens, tmp_path, kind):
    """Plain sae-lens loads the folder; the metadata survives."""
    write_folder(tmp_path / "d", made_of(kind))
    theirs = lens.SAE.load_from_disk(str(tmp_path / "d"))
    with torch.no_grad():
        assert theirs(X).isfinite().all()
    facts = theirs.cfg.metadata.to_dict()
    assert facts.get("neurosae_encoder") == (None if kind in ("topk", "jumprelu", "standard") else kind)
    assert facts.get("co_adapted", False) == (kind == "interaction")


def test_omp_agrees_with_the_pursuit_of_sae_lens_on_orthogonal_atoms(lens, tmp_path):
    """With orthogonal atoms both pursuits are the same: the +/- atoms let theirs reach negative coefficients too."""
    q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    zeros, rows = torch.zeros(32), torch.cat([q, -q])
    made = Dictionary("h", "omp", rows, zeros, rows, X.mean(0), zeros, 5, metadata={"partner": "halves"})
    write_folder(tmp_path / "d", made)
    with torch.no_grad():
        theirs = lens.SAE.load_from_disk(str(tmp_path / "d")).encode(X)
    assert_close(torch.from_numpy(made.encode(X).toarray()), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", OURS)
def test_encode_invariant_to_batch(kind):
    """Codes are not negative, and a row alone has the codes that it has among others."""
    made = made_of(kind)
    together, alone = made.encode(X[:20]), [made.encode(row[None]).toarray() for row in X[:20]]
    assert together.min() >= 0
    np.testing.assert_allclose(together.toarray(), np.concatenate(alone), atol=1e-4)


def test_decode_agrees_for_sparse_and_dense_codes():
    """A dense tensor and a CSR matrix are the same codes for every decoder."""
    for kind in OURS:
        made = made_of(kind)
        codes = made.encode(X)
        assert_close(made.decode(codes), made.decode(torch.from_numpy(codes.toarray())), rtol=1e-4, atol=1e-4)


def test_signed_dictionary_is_exact():
    """f+ - f- is the linear value, partners are each other's, and an orthogonal basis loses nothing."""
    q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    made = signed_dictionary("h", q, q, center=X.mean(0))
    codes, partner = made.encode(X).toarray(), made.partner
    assert_close(torch.from_numpy(codes[:, :16] - codes[:, 16:]), (X - X.mean(0)) @ q.T, atol=1e-5, rtol=1e-5)
    assert_close(made.reconstruct(X), X, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(partner[partner], np.arange(32))
    np.testing.assert_allclose(made.W_dec[partner], -made.W_dec)
    assert made_of("topk").partner is None


def test_gated_agrees_with_sae_lens_exactly_at_its_gate(lens, tmp_path):
    """A gated encoder is one with thresholds: the same features also where gate and magnitude disagree."""
    sae = lens.GatedSAE(lens.GatedSAEConfig(d_in=16, d_sae=64))
    g = torch.Generator().manual_seed(0)
    for value in sae.parameters():
        value.data.copy_(torch.randn(value.shape, generator=g))
    sae.save_model(tmp_path / "d")
    ours, theirs = read_folder(tmp_path / "d"), lens.SAE.load_from_disk(str(tmp_path / "d"))
    assert (ours.kind, foreign(theirs).kind) == ("jumprelu", "jumprelu")
    a, b = ours.encode(X).toarray(), theirs.encode(X).detach().numpy()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    gate = ((X - ours.b_dec) @ sae.W_enc + sae.b_gate).detach().numpy() > 0
    assert ((b > 0) != (ours.preactivations(X).numpy() > 0)).any()
    assert (gate != (b > 0)).any()  # both paths matter in this example


def test_read_refuses_lost_parts_and_unknown_encoders(tmp_path):
    """A folder without its second file, or with an encoder that nobody knows, is one sentence."""
    write_folder(tmp_path / "d", made_of("interaction"))
    (tmp_path / "d" / "interaction.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no interaction\.safetensors"):
        read_folder(tmp_path / "d")
    write_folder(tmp_path / "e", made_of("omp"))
    config = json.loads((tmp_path / "e" / "cfg.json").read_text())
    config["metadata"]["neurosae_encoder"] = "ompp"
    (tmp_path / "e" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"neurosae_encoder of matching_pursuit 'ompp'\. Did you mean"):
        read_folder(tmp_path / "e")


def test_hash_follows_the_parts(tmp_path):
    """Another product matrix, or another k of a pursuit, is another dictionary."""
    first = made_of("interaction")
    write_folder(tmp_path / "a", first)
    first.parts["M"][0, 0] += 1
    write_folder(tmp_path / "b", first)
    assert read_folder(tmp_path / "a").hash != read_folder(tmp_path / "b").hash
    assert neuron_dictionary("h", 4).hash != neuron_dictionary("h", 5).hash
