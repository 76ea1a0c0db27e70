"""What an extraction will need, before its first batch: memory, disk, and how long it will take.

Memory and disk are refused in advance, naming the parameter to change; time is told after two batches, scaled by the
operations still to come: 2 N T for N weights below the deepest hook point and T columns, 4 L d T^2 for attention, 2 d m
for every cell given to a dictionary of m features.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from neurosae.errors import ModelError
from neurosae.extraction.packing import Packing
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.sites import hook_layer
from neurosae.extraction.trie import trie_groups
from neurosae.spec.files import require_space

CHUNK_BYTES = 256 * 2**20  # of a dense block of activations or logits
TOLD = 20.0  # seconds; shorter extractions are not announced


class Load(NamedTuple):
    """Columns that a set of forward passes reads, their squares (for attention), and cells given to dictionaries."""

    columns: float
    squares: float
    cells: float


def total_load(sequences: Sequence[np.ndarray], packing: Packing, *, n_cells: int, shard: int, max_nodes: int) -> Load:
    """The load of a whole extraction; tries are grown within shards."""
    if packing == "trie":
        parts = [sequences[i : i + shard] for i in range(0, len(sequences), shard)]
        sizes = np.concatenate([trie_groups(part, max_nodes)[1] for part in parts]).astype(float)
    else:
        sizes = np.array([len(ids) for ids in sequences], dtype=float)
    return Load(float(sizes.sum()), float((sizes**2).sum()), float(n_cells))


def operations(load: Load, *, model: LanguageModel, dictionaries: Mapping[str, Any], hooks: Sequence[str]) -> float:
    """Floating-point operations of some forward passes and of the dictionaries after them."""
    depth = 1 + max((model.n_layers - 1 if "blocks" not in hook else hook_layer(hook)) for hook in hooks)
    outside = 2 * model.n_vocab * model.d_model  # embedding and unembedding are looked up, not multiplied
    inside = max(model.provenance["n_parameters"] - outside, model.d_model**2)
    below = inside * depth / model.n_layers
    encoded = sum(d.W_dec.shape[0] * d.W_dec.shape[1] for d in dictionaries.values())
    return 2 * below * load.columns + 4 * depth * model.d_model * load.squares + 2 * encoded * load.cells


def check_budget(
    model: LanguageModel,
    dictionaries: Mapping[str, Any],
    *,
    n_cells: int,
    longest: int,
    folder: Path | None,
    keep_x: bool,
    batch_tokens: int,
) -> dict[str, float]:
    """Refuse before the first batch what memory or disk cannot hold; returns both estimates, in bytes.

    Raises
    ------
    ModelError, StoreError
        With the parameter to change.
    """
    stored = sum(n_cells * (_active(d) * 8 + 80 + 4 * keep_x * d.W_dec.shape[1]) for d in dictionaries.values())
    if folder is not None:
        require_space(folder, 2 * stored)  # shards and the final copy
    held = 4 * min(n_cells, batch_tokens) * sum(d.W_dec.shape[1] for d in dictionaries.values())
    batch = 4 * max(batch_tokens, longest) * (16 * model.d_model + longest) + 2 * CHUNK_BYTES + held
    host = 2 * stored + (0 if model.device.startswith("cuda") else batch)
    for what, needed, free in (
        ("memory", host, free_memory()),
        (f"memory of {model.device}", batch, free_device_memory(model.device)),
    ):
        if free is not None and needed > free:
            raise ModelError(
                f"this extraction needs about {needed / 1e9:.1f} GB of {what} and {free / 1e9:.1f} GB are "
                "free; use fewer regions or sites, keep_x: false, or a smaller batch_tokens."
            )
    return {"memory_bytes": float(2 * stored + batch), "disk_bytes": float(2 * stored if folder is not None else 0)}


def _active(dictionary: Any) -> int:
    """Active features per token, from the dictionary's own card where it says so."""
    facts = [dictionary.metadata.get(name) for name in ("l0", "k")]
    known = [float(f) for f in facts if isinstance(f, int | float)]
    return int(min(dictionary.n_features, known[0] if known else 128))


def free_memory() -> int | None:
    """Bytes of memory that are available now, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def free_device_memory(device: str) -> int | None:
    """Bytes that are free on an accelerator, None on a CPU."""
    return torch.cuda.mem_get_info(torch.device(device))[0] if device.startswith("cuda") else None


def time_teller(
    bar: Any, *, cost: Callable[[Load], float], total: Load, told: dict[str, float]
) -> Callable[[int, int, int], None]:
    """A callback for finished batches that moves a bar and, after two of them, says how long the whole will take.

    Parameters
    ----------
    bar : has `update`
    cost : operations of a load
    total : load of the whole extraction
    told : receives `estimated_seconds`
    """
    timed: list[float] = []
    marks = [time.perf_counter()]

    def tick(n_tokens: int, rows: int, width: int) -> None:
        bar.update(n_tokens)
        marks.append(time.perf_counter())
        if rows and len(timed) < 2:
            own = Load(rows * width, rows * width**2, total.cells * rows * width / max(total.columns, 1))
            timed.append((marks[-1] - marks.pop(0)) / cost(own))
            if len(timed) == 2:
                told["estimated_seconds"] = round(min(timed) * cost(total), 1)  # the first may include warming up
                if told["estimated_seconds"] > TOLD:
                    minutes = told["estimated_seconds"] / 60
                    print(f"extraction: about {minutes:.1f} minutes for {bar.total:,} tokens", file=sys.stderr)
        marks[:] = marks[-1:]

    return tick
