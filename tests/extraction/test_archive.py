"""Archives: every bit comes back in float32, a bounded error in float16, and nothing damaged is read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal

from neurosae.errors import DataError, StoreError
from neurosae.extraction.archive import _differences, read_archive, write_archive
from neurosae.extraction.responses import build_responses, design_of
from neurosae.stats.simulate import example_design, simulate


def responses(*, seed: int = 0, n_features: int = 300):
    return simulate(example_design(20), n_features=n_features, density=0.1, seed=seed)


def with_values(X: sp.csr_matrix):
    """Responses of the given matrix, rows and columns of a simulated study."""
    base = simulate(example_design(X.shape[0] // 2), n_features=4, density=0.5, seed=1)
    var = pd.DataFrame({"feature": np.arange(X.shape[1]), **{n: np.zeros(X.shape[1], np.float32) for n in
                        ("decoder_norm", "threshold", "density", "origin")}})  # fmt: skip
    return build_responses(X, base.obs, var.set_axis(var.index.astype(str)), design=design_of(base), provenance={})


def test_archive_gives_back_every_bit(tmp_path):
    """Matrix, obs, var, obsm and the record, types included; the original is not touched."""
    adata = responses()
    adata.obsm["x"] = np.random.default_rng(0).standard_normal((adata.n_obs, 5)).astype(np.float32)
    before = adata.obs.copy()
    again = read_archive(write_archive(tmp_path / "late.archive", adata))
    for name in ("indptr", "indices", "data"):
        assert_array_equal(getattr(again.X, name), getattr(adata.X, name))
    assert again.X.dtype == np.float32
    pd.testing.assert_frame_equal(again.obs, before)
    pd.testing.assert_frame_equal(adata.obs, before)
    pd.testing.assert_frame_equal(again.var, adata.var)
    assert_array_equal(again.obsm["x"], adata.obsm["x"])
    assert design_of(again) == design_of(adata)


@pytest.mark.parametrize("n_features", [1 << 16, (1 << 16) + 1, 100_000])
def test_archive_gives_back_wide_matrices_and_empty_rows(tmp_path, n_features):
    """The last column of a large dictionary, rows without any activity at the start, in the middle and at the end."""
    X = sp.lil_matrix((6, n_features), dtype=np.float32)
    X[1, 0], X[1, n_features - 1], X[3, n_features - 1], X[4, 7] = 1, 2, 3, 4
    again = read_archive(write_archive(tmp_path / "wide", with_values(sp.csr_matrix(X))))
    assert (again.X != sp.csr_matrix(X)).nnz == 0
    nothing = sp.csr_matrix((6, n_features), dtype=np.float32)
    assert read_archive(write_archive(tmp_path / "none", with_values(nothing))).X.nnz == 0


def test_archive_float16_has_its_stated_error(tmp_path):
    """Relative error at most 2^-11 over the whole range that is accepted; indices exact."""
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(sp.random_array((40, 500), density=0.3, rng=rng), dtype=np.float32)
    X.data = np.exp(rng.uniform(np.log(2.0**-14), np.log(65_000), X.nnz)).astype(np.float32)
    again = read_archive(write_archive(tmp_path / "half", with_values(X), values="float16"))
    assert_array_equal(again.X.indices, X.indices)
    assert np.abs(again.X.data.astype(float) / X.data - 1).max() <= 2.0**-11
    assert again.X.dtype == np.float32


def test_differences_agree_with_a_loop():
    """The first column of a row as it is, then steps; row by row."""
    X = sp.csr_matrix(sp.random_array((30, 90), density=0.2, rng=np.random.default_rng(1)))
    rows = [X.indices[a:b] for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)]
    expected = [np.diff(r, prepend=0) for r in rows]
    assert_array_equal(_differences(X), np.concatenate(expected))
    assert _differences(X).dtype == np.uint16


@pytest.mark.parametrize("value", [1e5, 1e-5])
def test_archive_refuses_what_float16_cannot_hold(tmp_path, value):
    """Neither infinity nor a silent 0: the range is named, and the remedy."""
    X = sp.csr_matrix(np.full((6, 3), value, dtype=np.float32))
    with pytest.raises(DataError, match=r"do not fit float16 .* use values='float32'"):
        write_archive(tmp_path / "x", with_values(X), values="float16")
    assert not (tmp_path / "x").exists()


def test_archive_refuses_unknown_values_and_damage(tmp_path):
    """A misspelt type, a folder that is no archive, a missing chunk."""
    with pytest.raises(Exception, match="float32"):
        write_archive(tmp_path / "x", responses(), values="float23")
    with pytest.raises(StoreError, match="is no archive"):
        read_archive(tmp_path)
    path = write_archive(tmp_path / "late", responses())
    chunk = next(p for p in (path / "x" / "indptr").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(StoreError, match="is damaged"):
        read_archive(path)
