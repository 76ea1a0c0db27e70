"""Directions found elsewhere as features: projections, both signs, files of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.testing import assert_allclose

from neurosae.dictionary.load import load_dictionary
from neurosae.dictionary.vectors import read_vectors, vector_dictionary
from neurosae.errors import ModelError
from neurosae.extraction.model import load_model

TOY = dict(n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
V = np.random.default_rng(0).normal(size=(3, 8)) * 5
X = torch.as_tensor(np.random.default_rng(1).normal(size=(40, 8)), dtype=torch.float32)


def test_vector_dictionary_agrees_with_projections():
    """Activation = (<v, x - c> + b) / |v|, positive part first; ablating both parts takes the direction out."""
    b, c = np.array([1.0, -2.0, 0.0]), np.arange(8) / 10
    made = vector_dictionary(V, bias=b, center=c)
    wanted = ((X.numpy() - c) @ V.T + b) / np.linalg.norm(V, axis=1)
    codes = made.encode(X).toarray()
    assert_allclose(codes[:, :3] - codes[:, 3:], wanted, atol=1e-5)
    assert (codes >= 0).all()
    assert made.partner is not None
    assert made.partner.tolist() == [3, 4, 5, 0, 1, 2]
    plain = vector_dictionary(V)
    left = X - torch.as_tensor(plain.encode(X).toarray()[:, [0, 3]]) @ plain.W_dec[[0, 3]]
    assert_allclose(left.numpy() @ V[0], 0, atol=1e-4)


def test_vector_dictionary_invariant_to_lengths():
    """A steering vector says where to go, not how far: its length changes no activation."""
    assert_allclose(
        vector_dictionary(7 * V).encode(X).toarray(), vector_dictionary(V).encode(X).toarray(), rtol=1e-4, atol=1e-5
    )


def test_read_vectors_agrees_over_formats(tmp_path):
    """The same directions from .csv, .npy, .npz and .safetensors."""
    lines = ["name," + ",".join(f"x{i}" for i in range(8))]
    lines += [f"v{j}," + ",".join(repr(float(x)) for x in row) for j, row in enumerate(V)]
    (tmp_path / "v.csv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "v.npy", V)
    np.savez(tmp_path / "v.npz", probe=V, bias=np.zeros(3))
    safetensors.numpy.save_file({"vectors": V, "other": np.ones(2)}, tmp_path / "v.safetensors")
    for name in ("v.csv", "v.npy", "v.npz", "v.safetensors"):
        assert_allclose(read_vectors(tmp_path / name).W_dec.numpy(), vector_dictionary(V).W_dec.numpy(), atol=1e-6)
    assert read_vectors(tmp_path / "v.csv").metadata["directions"] == ["v0", "v1", "v2"]
    assert read_vectors(tmp_path / "v.csv").hash == read_vectors(tmp_path / "v.npz").hash


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (("v.csv", "1,2\n3\n"), "vector 2 has 1 numbers, but the first one has 2"),
        (("v.csv", "a,1,x\n"), "'x' is no number"),
        (("v.csv", "a,b\n"), "holds no vector"),
        (("v.csv", "0,0\n"), "vector 0 has length 0"),
        (("v.txt", "1,2"), "not '.txt'"),
        (("v.npz", "no archive"), "cannot be read as vectors"),
    ],
)
def test_read_vectors_refuses_broken_files(tmp_path, file, said):
    """In one sentence, with the line."""
    (tmp_path / file[0]).write_text(file[1])
    with pytest.raises(ModelError, match=said):
        read_vectors(tmp_path / file[0])


def test_load_dictionary_reads_vectors_at_a_site(tmp_path):
    """`vectors:` of a site: the width is checked, reconstruction is not what directions are for."""
    model, texts = load_model(TOY), ["A dog.", "Two cats."]
    np.save(tmp_path / "v.npy", V)
    site = {"hook": "blocks.0.hook_resid_post", "dictionary": {"vectors": str(tmp_path / "v.npy")}}
    with pytest.warns(UserWarning, match="variance unexplained"):
        found = load_dictionary(site, model, texts=texts)
    assert found.hook == "blocks.0.hook_resid_post"
    np.save(tmp_path / "v.npy", V[:, :5])
    with pytest.raises(ModelError, match="vectors of width 5"):
        load_dictionary(site, model, texts=texts)
