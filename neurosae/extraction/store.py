"""Responses on disk: shards while a run goes on, then one zarr per site, trusted only through its key.

    <store>/_store/<hash12>/key.json                what was hashed; written last, without it nothing is trusted
                            files.json              hash of every file of the sites; what differs from it is refused
                            <site>.zarr/            one AnnData, written once
                            parts/<site>/00012.npz  a shard of stimuli, until the zarr is complete

The key holds whatever moves numbers: texts, regions, weights, config, tokenizer, specials, hooks, dictionaries, dtype,
and `EXTRACTION_VERSION`. Names do not: factors, items and labels are joined from the current stimuli when responses are
read, so renaming a level extracts nothing anew. Device and batch size move activations by rounding and are recorded.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from zarr.errors import ZarrUserWarning

from neurosae.errors import StoreError
from neurosae.extraction.cells import Wanted
from neurosae.extraction.responses import KEY, build_responses, row_names
from neurosae.extraction.source import config_hash
from neurosae.spec.design import Design
from neurosae.spec.files import atomic_path, content_hash, file_hash, write_atomic

EXTRACTION_VERSION = 2  # raise by hand whenever the same inputs may give other numbers
FILES = "files.json"  # hashes of the files of all sites
NOT_JOINED = {"text", "target", "foil", "ids"}
CELL_NUMBERS = ("row", "token_index", "n_tokens", "stimulus_tokens")
NUMBERS = ("norm", "ln_scale", "surprisal", "logit_diff", "n_active", "sum_active", "recon_error")


def responses_key(
    stimuli: pd.DataFrame, asked: Wanted, *, model: Any, dictionaries: Mapping[str, Any], target_slot: str | None
) -> dict[str, Any]:
    """Everything that decides about the numbers of an extraction, as a JSON-able record.

    Parameters
    ----------
    stimuli, asked : texts, character spans and which of them are wanted
    model, dictionaries : as given to `extract`; only their hashes and settings are read
    target_slot : the region of the target word, None if nothing is scored
    """
    regions = sorted({*asked.regions, *([target_slot] if target_slot else [])})
    spans = [f"{region}_{end}" for region in regions for end in ("start", "end")]
    columns = [c for c in ("text", "ids", "target", "foil", *spans) if c in stimuli]
    table = stimuli[columns].astype(object)
    if "ids" in table:
        table["ids"] = [[int(i) for i in ids] for ids in table["ids"]]
    table = table.where(table.notna(), None)  # pyright: ignore[reportArgumentType]
    return {
        "version": EXTRACTION_VERSION,
        "scored": target_slot is not None,
        "stimuli": content_hash(columns, table.to_numpy().tolist()),
        "regions": list(asked.regions),
        "align": asked.align,
        "window": list(asked.window) if asked.window else None,
        "keep_x": bool(asked.keep_x),
        "scores": bool(asked.scores),
        "allow_straddle": bool(asked.allow_straddle),
        "model": {name: model.provenance[name] for name in ("weights_hash", "weights", "tokenizer_hash", "dtype")}
        | {"config": config_hash(model.provenance.get("config", {}))},
        "specials": [list(model.tokens.prefix), list(model.tokens.suffix)] if model.tokens else [[], []],
        "sites": {site: {"hook": d.hook, "dictionary": str(d.hash)} for site, d in sorted(dictionaries.items())},
    }


def key_folder(store: str | Path, key: Mapping[str, Any]) -> Path:
    """The folder of a key: `<store>/_store/<first 12 digits of its hash>`."""
    return Path(store) / "_store" / content_hash(dict(key))[:12]


def is_complete(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether the folder was finished, for exactly this key."""
    if not (folder / FILES).is_file():
        return False  # of a version that kept no hashes
    try:
        return json.loads((folder / "key.json").read_text(encoding="utf-8")) == json.loads(json.dumps(dict(key)))
    except (OSError, ValueError):
        return False


# --- shards ---------------------------------------------------------------------------------------------------------


def shard_path(folder: Path, site: str, number: int) -> Path:
    """Where a shard of a site lies."""
    return folder / "parts" / site / f"{number:05d}.npz"


def write_shard(path: Path, arrays: Mapping[str, np.ndarray], *, digest: str) -> None:
    """Write a shard under a temporary name and rename it; `digest` ties it to its key."""
    with atomic_path(path) as temporary:
        np.savez(temporary, **(dict(arrays) | {"digest": np.array(digest)}))  # type: ignore[arg-type]


def read_shard(path: Path, *, digest: str) -> dict[str, np.ndarray] | None:
    """A shard, read and checked as a whole; None if it is absent, damaged, or of another key."""
    try:
        # our own handle: numpy leaves its open when the archive turns out to be damaged
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}  # reading every member checks its CRC
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    if str(arrays.pop("digest", "")) != digest or len(arrays["indptr"]) != len(arrays["row"]) + 1:
        return None
    return arrays


def join_shards(shards: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One set of arrays from the shards of a site, in order."""
    out = {name: np.concatenate([s[name] for s in shards]) for name in shards[0] if name != "indptr"}
    counts = np.concatenate([np.diff(s["indptr"]) for s in shards])
    out["indptr"] = np.concatenate([[0], np.cumsum(counts)])
    return out


# --- sites ----------------------------------------------------------------------------------------------------------


@contextmanager
def _zarr_v3() -> Iterator[None]:
    # anndata 0.12 writes v2 by default, with a warning; v3 warns that consolidated metadata is not in the standard
    with (
        anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=ZarrUserWarning)
        yield


def write_site(
    path: Path, arrays: Mapping[str, np.ndarray], var: pd.DataFrame, *, regions: tuple[str, ...], provenance: Any
) -> None:
    """Write one site as zarr, whole or not at all; names of stimuli and factors are left out."""
    obs = cells_of(arrays, regions)
    adata = anndata.AnnData(activations_of(arrays, len(var)), obs=obs.set_axis(obs.index.astype(str)), var=var)
    adata.uns[KEY] = json.dumps(provenance, default=str)
    if "x" in arrays:
        adata.obsm["x"] = arrays["x"]
    with atomic_path(path) as temporary, _zarr_v3():
        adata.write_zarr(temporary)


def cells_of(arrays: Mapping[str, np.ndarray], regions: tuple[str, ...]) -> pd.DataFrame:
    """What a shard or site says of its rows, as a table without names of stimuli."""
    obs = pd.DataFrame({name: arrays[name] for name in (*CELL_NUMBERS, *NUMBERS)})
    obs["token"] = arrays["token"].astype(object)
    codes, names = cast(Any, arrays["region"]), cast(Any, list(regions))
    obs["region"] = pd.Categorical.from_codes(codes, categories=names)
    return obs


def activations_of(arrays: Mapping[str, np.ndarray], n_features: int) -> sp.csr_matrix:
    """The sparse matrix of a shard or site."""
    parts = arrays["data"], arrays["indices"], arrays["indptr"]
    return sp.csr_matrix(parts, shape=(len(arrays["row"]), n_features), dtype=np.float32)


def finish(folder: Path, key: Mapping[str, Any]) -> None:
    """Declare a folder complete, then drop its shards and what killed runs left half-written; the folder is locked."""
    hashes = {str(path.relative_to(folder)): file_hash(path) for path in _files(folder)}
    write_atomic(folder / FILES, json.dumps(hashes, indent=0, sort_keys=True) + "\n")
    write_atomic(folder / "key.json", json.dumps(dict(key), indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder / "parts", ignore_errors=True)
    for left in folder.glob(".tmp-*"):
        left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    sites = [site for site in folder.glob("*.zarr") if site.name[0] != "."]  # not what a killed run left half-written
    return sorted(path for site in sites for path in site.rglob("*") if path.is_file())


def check_files(folder: Path) -> None:
    """Refuse sites whose files are not those that were written: zarr reads a chunk that is lost as zeros.

    Raises
    ------
    StoreError
        If a file was changed, added or lost.
    """
    try:
        wanted = json.loads((folder / FILES).read_text(encoding="utf-8"))
        found = {str(path.relative_to(folder)): file_hash(path) for path in _files(folder)}
        wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    except (ValueError, AttributeError):
        wrong = [FILES]
    if wrong:
        raise StoreError(f"{folder / wrong[0]} is damaged or lost; delete {folder} and extract again.")


def read_site(path: Path, stimuli: pd.DataFrame, design: Design | None) -> anndata.AnnData:
    """One stored site, with items, factors and labels of the current stimuli."""
    try:
        with _zarr_v3():
            raw = cast(Any, anndata.read_zarr(path))
    except Exception as error:  # zarr, its codecs and anndata each raise their own
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}); delete {path.parent} and extract again."
        ) from error
    x = np.asarray(raw.obsm["x"]) if "x" in raw.obsm else None
    obs = join_stimuli(raw.obs, stimuli)
    return build_responses(raw.X, obs, raw.var, design=design, provenance=json.loads(raw.uns[KEY]), x=x)


def stored_responses(
    store: str | Path, key: Mapping[str, Any], *, stimuli: pd.DataFrame, design: Design | None = None
) -> dict[str, anndata.AnnData] | None:
    """Responses stored under this very key, or None; nothing of another key or an unfinished run is ever read.

    Parameters
    ----------
    store : the results folder
    key : from `responses_key`
    stimuli : the current stimuli, from which names are joined
    """
    folder = key_folder(store, key)
    if not is_complete(folder, key):
        return None
    check_files(folder)
    return {site: read_site(folder / f"{site}.zarr", stimuli, design) for site in key["sites"]}


def join_stimuli(cells: pd.DataFrame, stimuli: pd.DataFrame) -> pd.DataFrame:
    """The obs of responses: columns of the stimuli beside those of the cells (`row` is the stimulus' number)."""
    spans = {f"{c[:-6]}{end}" for c in stimuli.columns if c.endswith("_start") for end in ("_start", "_end")}
    kept = [c for c in stimuli if c not in spans | NOT_JOINED]
    rows = cells["row"].to_numpy()
    names = stimuli.index.to_numpy(dtype=object)[rows]
    obs = stimuli[kept].iloc[rows].reset_index(drop=True)
    obs.insert(0, "stimulus", names)
    for name in ("region", "token", *CELL_NUMBERS[1:], *NUMBERS):
        obs[name] = cells[name].array
    obs["token"] = obs["token"].astype(object)
    obs["position"] = np.int32(0) - _from_end(obs)
    return obs.set_axis(row_names(obs))


def _from_end(obs: pd.DataFrame) -> np.ndarray:
    """Tokens between a row and the last of its region: the position that holds before any alignment."""
    rank = obs.groupby(["stimulus", "region"], observed=True, sort=False)["token_index"].rank(ascending=False)
    return rank.to_numpy(dtype=np.int32) - 1
