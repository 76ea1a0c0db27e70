"""G12: the archive of responses, in bytes per non-zero and read time, against AnnData's own zarr.

Equality is asserted first: float32 comes back bit by bit, float16 to a relative error of 2^-11. Sizes are those of the
matrix alone (both formats carry the same tables). Reading is timed as CPU seconds with the files in memory: waiting for
a disk would measure the disk.
Run alone: `python benchmarks/bench_storage.py`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from common import Floors, cpu, header, responses  # isort: skip  (sets one thread)

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.extraction.archive import read_archive, write_archive
from neurosae.extraction.responses import build_responses

ROWS = ("stimulus", "item", "frame", "split", "region", "token")


def simulated(n_items: int) -> anndata.AnnData:
    """Responses with the densities of all benchmarks, and the plainest tables that are allowed."""
    Y = sp.csr_matrix(responses(n_items).Y, dtype=np.float32)
    n, m = Y.shape
    obs = pd.DataFrame({name: pd.Categorical(["x"] * n) for name in ROWS})
    obs = obs.astype({"stimulus": object, "item": object, "token": object}).set_axis(pd.RangeIndex(n).astype(str))
    for name in ("token_index", "position", "n_tokens", "stimulus_tokens"):
        obs[name] = np.zeros(n, dtype=np.int32)
    for name in ("norm", "surprisal", "logit_diff"):
        obs[name] = np.zeros(n, dtype=np.float32)
    var = pd.DataFrame({"feature": np.arange(m, dtype=np.int32)}, index=pd.RangeIndex(m).astype(str))
    for name in ("decoder_norm", "threshold", "density", "origin"):
        var[name] = np.zeros(m, dtype=np.float32)
    return build_responses(Y, obs, var, design=None, provenance={})


def size(path: Path) -> int:
    """Bytes of all files of the matrix."""
    folder = next(path / name for name in ("x", "X") if (path / name).is_dir())
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def main() -> int:
    """Write, read back, compare, assert."""
    header("anndata", "zarr")
    floors, adata = Floors(), simulated(8192)
    nnz = adata.X.nnz
    print(f"  {adata.n_obs:,} rows x {adata.n_vars:,} features, {nnz:,} non-zeros")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer, full, half = (Path(folder) / name for name in ("anndata.zarr", "full", "half"))
        adata.write_zarr(peer)
        write_archive(full, adata)
        write_archive(half, adata, values="float16")
        again, rounded = read_archive(full).X, read_archive(half).X
        assert (again != adata.X).nnz == 0, "float32 did not come back"
        assert np.array_equal(rounded.indices, adata.X.indices), "indices did not come back"
        assert np.abs(rounded.data / adata.X.data - 1).max() <= 2.0**-11, "float16 lost more than 2^-11"
        floors.add("G12", "float16 archive, bytes per non-zero", size(half) / nnz, floor=3.6, most=True)
        floors.add("G12", "float32 archive, bytes per non-zero", size(full) / nnz, floor=None)
        floors.add("G12", "float16 archive: AnnData zarr, size", size(peer) / size(half), floor=1.5)
        for name, path in (("float16", half), ("float32", full)):
            ours, theirs = cpu(lambda p=path: read_archive(p), 5), cpu(lambda: anndata.read_zarr(peer), 5)
            note = f"{ours * 1e3:.0f} ms / {theirs * 1e3:.0f} ms"
            floors.add(
                "G12", f"read {name} archive / read AnnData zarr", ours / theirs, floor=1.2, most=True, note=note
            )
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
