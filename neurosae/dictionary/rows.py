"""Activations on disk: every row of a hook point written once, then read in shuffled batches by any number of runs.

A file holds the rows of the training contexts, in their order, as float32 or bfloat16; beside it a JSON file says that
it is complete, and its hash: one changed byte would train another dictionary. While it is written, `.part.json` counts
the blocks that have reached the disk, so a killed extraction goes on from there. Batch i is a pure function of
(seed, i): the rows are shuffled anew in every epoch, whole ones only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.dictionary.stream import BUFFER, context_rows, hook_width
from neurosae.dictionary.texts import Contexts
from neurosae.errors import DataError, StoreError
from neurosae.spec.files import content_hash, file_hash, lock, require_space, write_atomic

ROWS_VERSION = 1
STORED = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<i2")}  # numpy has no bfloat16: its bits


class Cached(NamedTuple):
    """A file of rows: memory-mapped (n, d), and the number format that its bits are in."""

    rows: np.ndarray
    dtype: str

    def take(self, chosen: np.ndarray) -> Tensor:
        """Some rows as float32."""
        found = torch.from_numpy(self.rows[chosen])
        return found.view(torch.bfloat16).float() if self.dtype == "bfloat16" else found


class Place(NamedTuple):
    """Folder of the files, number format, and everything that the rows depend on besides their hook point."""

    folder: Path
    dtype: str
    facts: Mapping[str, Any]

    def path(self, hook: str) -> Path:
        """The file of a hook point."""
        return self.folder / f"{content_hash(ROWS_VERSION, dict(self.facts), hook, self.dtype)[:12]}.rows"


def cached_rows(model: Any, contexts: Contexts, hooks: list[str], *, place: Place) -> dict[str, Cached]:
    """The rows of some hook points, extracted in one pass for those that are not there yet.

    Parameters
    ----------
    model : LanguageModel
    contexts : all of whose rows but the specials are kept
    hooks : hook points
    place : where, in which format, and what the rows depend on

    Raises
    ------
    StoreError
        If the disk is too small, a file is not the one that was written, or another run writes there.
    """
    missing = [hook for hook in hooks if not place.path(hook).with_suffix(".json").is_file()]
    if missing:
        with lock(place.folder):  # a second run would begin the parts of the first again, with holes
            _extract(model, contexts, missing, place=place)
    return {hook: _open(place.path(hook), place.dtype) for hook in hooks}


def _open(path: Path, dtype: str) -> Cached:
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        shape, whole = said["shape"], said.get("sha256") == file_hash(path)
    except (ValueError, KeyError, AttributeError, StoreError):  # of the JSON; of a file that is not there
        shape, whole = (0, 0), False
    if not whole or path.stat().st_size != shape[0] * shape[1] * STORED[dtype].itemsize:
        raise StoreError(f"{path} is not whole; delete it and {path.with_suffix('.json').name} to extract it again.")
    return Cached(np.memmap(path, dtype=STORED[dtype], mode="r", shape=tuple(shape)), dtype)


def _extract(model: Any, contexts: Contexts, hooks: list[str], *, place: Place) -> None:
    """Write the files block by block; what is on the disk is counted after it is flushed."""
    n_rows = contexts.n_rows
    ends = np.cumsum(n_rows)
    blocks = np.split(np.arange(len(n_rows)), np.flatnonzero(np.diff(ends // BUFFER)) + 1)
    widths = {hook: hook_width(model, hook) for hook in hooks}
    size = STORED[place.dtype].itemsize
    require_space(place.folder, int(ends[-1]) * size * sum(widths.values()))
    place.folder.mkdir(parents=True, exist_ok=True)
    progress = place.folder / f"{content_hash(*sorted(place.path(hook).name for hook in hooks))[:12]}.part.json"
    files = {hook: place.path(hook).with_suffix(".part") for hook in hooks}
    begun = progress.is_file() and all(file.is_file() for file in files.values())
    n_done = json.loads(progress.read_text(encoding="utf-8"))["blocks"] if begun else 0
    with tqdm(
        total=int(ends[-1]), desc="keep activations", unit="tok", unit_scale=True, disable=None, mininterval=1
    ) as bar:
        for number, chosen in enumerate(blocks):
            start = int(ends[chosen[0]] - n_rows[chosen[0]])
            if number >= n_done:
                found = context_rows(model, contexts, chosen, hooks=hooks)
                for hook, x in found.items():
                    _write(files[hook], x, start * widths[hook] * size, dtype=place.dtype)
                write_atomic(progress, json.dumps({"blocks": number + 1}))
            bar.update(int(n_rows[chosen].sum()))
    for hook, file in files.items():
        file.rename(place.path(hook))
        said = {"shape": [int(ends[-1]), widths[hook]], "sha256": file_hash(place.path(hook))}
        write_atomic(place.path(hook).with_suffix(".json"), json.dumps(said))
    progress.unlink(missing_ok=True)


def _write(file: Path, x: Tensor, at: int, *, dtype: str) -> None:
    bits = x.to(torch.bfloat16).view(torch.int16) if dtype == "bfloat16" else x
    with file.open("r+b" if file.exists() else "wb") as out:
        out.seek(at)
        out.write(np.ascontiguousarray(bits.numpy(), dtype=STORED[dtype]).tobytes())
        out.flush()


def cached_batches(
    rows: Mapping[str, Cached], *, batch: int, seed: int, start: int, n_steps: int
) -> Iterator[dict[str, Tensor]]:
    """Batches `start` to `n_steps`: {hook: float32 (batch, d)}, each a pure function of (seed, its number)."""
    n = len(next(iter(rows.values())).rows)
    per = n // batch
    if not per:
        raise DataError(f"the texts hold {n:,} tokens, fewer than a batch of {batch:,}; give more text.")
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in range(start, n_steps):
        if step // per != epoch:
            epoch = step // per
            order = np.random.default_rng([seed, 3, epoch]).permutation(n)
        chosen = np.sort(order[step % per * batch : (step % per + 1) * batch])  # sorted: fewer pages are touched
        yield {hook: one.take(chosen) for hook, one in rows.items()}


def first_rows(rows: Mapping[str, Cached], *, seed: int) -> dict[str, Tensor]:
    """About one block of random rows, for mean and scale."""
    n = len(next(iter(rows.values())).rows)
    chosen = np.sort(np.random.default_rng([seed, 5]).permutation(n)[:BUFFER])
    return {hook: one.take(chosen) for hook, one in rows.items()}
