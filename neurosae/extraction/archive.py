"""Responses as small files for archives and transfers: every index as its distance from the one before.

    <path>/x/index   uint16 (uint32 beyond 65,536 features): the first column of a row, then differences
          /x/value   float32, or float16
          /x/indptr  int64
    <path>/obs.parquet, var.parquet   the tables, whole: column by column as in zarr they take longer than the matrix
          /obsm /uns       as AnnData writes them

zarr v3, blosc zstd with bit shuffle. Differences are small, so their high bits are nearly always 0 and cost nothing.
The store of a study stays AnnData's own format, which every tool reads; this one is for keeping and sending.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from zarr.codecs import BloscCodec
from zarr.errors import ZarrUserWarning

from neurosae.errors import DataError, StoreError, choose
from neurosae.extraction.responses import check_responses
from neurosae.spec.files import atomic_path

FORMAT = "neurosae/archive/1"
CHUNK = 1 << 20
SMALLEST, LARGEST = 2.0**-14, 65_504.0  # normal numbers of float16, where its relative error is at most 2^-11
TABLES, PARTS = ("obs", "var"), ("obsm", "uns")


def write_archive(path: str | Path, responses: Any, *, values: Literal["float32", "float16"] = "float32") -> Path:
    """Write the responses of one site as a small archive, whole or not at all.

    Parameters
    ----------
    path : folder to be written; an older one of this name is replaced
    responses : AnnData of one site
    values : "float32" gives back every bit; "float16" rounds activations, relative error at most 2^-11

    Returns
    -------
    Path

    Raises
    ------
    DataError
        Activations that float16 cannot hold to 2^-11: above 65,504, or below 2^-14 and not 0.

    Examples
    --------
    >>> import tempfile
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(8), n_features=50, density=0.2, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = read_archive(write_archive(Path(folder) / "late.archive", fake))
    >>> (again.X != fake.X).nnz, again.obs.equals(fake.obs)
    (0, True)
    """
    check_responses(responses)
    dtype = choose("values", values, {"float32": np.float32, "float16": np.float16})
    X = sp.csr_matrix(responses.X)
    X.sort_indices()
    if values == "float16":
        _refuse_unfit(X.data)
    with atomic_path(Path(path)) as temporary, _quiet():
        group: Any = zarr.open_group(temporary, mode="w", zarr_format=3)
        group.attrs.update({"format": FORMAT, "shape": list(cast(tuple[int, int], X.shape)), "values": values})
        inner = group.create_group("x")
        parts = {"index": _differences(X), "value": X.data.astype(dtype), "indptr": X.indptr.astype(np.int64)}
        for name, array in parts.items():
            codec = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
            inner.create_array(name, data=array, chunks=(min(CHUNK, max(len(array), 1)),), compressors=codec)
        for name in PARTS:
            anndata.io.write_elem(group, name, dict(getattr(responses, name)))
        for name in TABLES:
            getattr(responses, name).to_parquet(Path(temporary) / f"{name}.parquet", compression="zstd")
    return Path(path)


def read_archive(path: str | Path) -> anndata.AnnData:
    """Read responses that `write_archive` wrote.

    Raises
    ------
    StoreError
        The folder is no archive, or is damaged.
    """
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} is no archive; give a folder that write_archive wrote.")
    try:
        with _quiet():
            group: Any = zarr.open_group(path, mode="r")
            if group.attrs.get("format") != FORMAT:
                raise StoreError(f"{path} has format {group.attrs.get('format')!r}, not {FORMAT!r}.")
            arrays = {name: np.asarray(group["x"][name][:]) for name in ("index", "value", "indptr")}
            parts: Any = {name: anndata.io.read_elem(group[name]) for name in PARTS}
            parts |= {name: pd.read_parquet(path / f"{name}.parquet") for name in TABLES}
        X = _rows(arrays, tuple(group.attrs["shape"]))
        made = anndata.AnnData(X, **parts)
        check_responses(made)
    except StoreError:
        raise
    except Exception as error:  # zarr, its codecs and anndata each raise their own
        raise StoreError(f"{path} is damaged ({type(error).__name__}); write it again.") from error
    return made


def _refuse_unfit(values: np.ndarray) -> None:
    size = np.abs(values[values != 0])
    if len(size) and (size.max() > LARGEST or size.min() < SMALLEST):
        raise DataError(
            f"activations from {size.min():.3g} to {size.max():.3g} do not fit float16 to a relative error of 2^-11 "
            f"({SMALLEST:.3g} to {LARGEST:.5g} do); use values='float32'."
        )


def _differences(X: sp.csr_matrix) -> np.ndarray:
    """Column of the first entry of every row, then the distance of each entry from the one before it."""
    out = np.diff(X.indices.astype(np.int64), prepend=0)
    first = X.indptr[:-1][np.diff(X.indptr) > 0]
    out[first] = X.indices[first]
    n_features = cast(tuple[int, int], X.shape)[1]
    return out.astype(np.uint16 if n_features <= 1 << 16 else np.uint32)


def _rows(arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> sp.csr_matrix:
    """Add differences up; one running sum over all rows, less what it was where the row began."""
    indptr, running = arrays["indptr"], np.cumsum(arrays["index"], dtype=np.int64)
    before = np.where(indptr[:-1] > 0, running[np.maximum(indptr[:-1] - 1, 0)] if len(running) else 0, 0)
    indices = (running - np.repeat(before, np.diff(indptr))).astype(np.int32)
    values = arrays["value"].astype(np.float32, copy=False)
    X = sp.csr_matrix((values, indices, indptr.astype(np.int32 if len(values) < 1 << 31 else np.int64)), shape=shape)
    if len(indices) != indptr[-1] or len(indptr) != shape[0] + 1 or (len(indices) and indices.max() >= shape[1]):
        raise ValueError("the parts do not fit together")
    return X


@contextmanager
def _quiet() -> Iterator[None]:
    # anndata 0.12 writes v2 by default, with a warning; strings of zarr v3 are said to be unstable
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ZarrUserWarning)
        yield
