"""Activations for training, straight from the model: shuffled blocks of documents, every batch a pure function.

The contexts of each epoch are shuffled by (seed, epoch) and cut into blocks of about `BUFFER` rows; the rows of a
block are shuffled by (seed, block) and cut into batches; what is left at the end of a block is skipped. So batch i of
block b needs nothing but (seed, b, i), and a run that was killed re-reads at most one block. Rows of specials (BOS,
whose norm is a multiple of the others') never enter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from neurosae.dictionary.texts import Contexts, one_thread
from neurosae.errors import DataError
from neurosae.extraction.model import hooked_pass
from neurosae.extraction.packing import length_buckets, pad

BUFFER = 32_768  # rows of a block


class Block(NamedTuple):
    """Contexts that are read together, and how many batches they give."""

    number: int
    contexts: np.ndarray
    n_batches: int


def plan_blocks(n_rows: np.ndarray, *, batch: int, n_steps: int, seed: int, buffer: int = BUFFER) -> list[Block]:
    """The blocks of a training run of `n_steps` batches; texts are read again, in another order, when they end.

    Parameters
    ----------
    n_rows : rows that each context gives
    batch : rows of a batch
    n_steps : batches wanted
    seed : of the order of contexts

    Examples
    --------
    >>> blocks = plan_blocks(np.array([5, 5, 5, 5]), batch=4, n_steps=7, seed=0, buffer=10)
    >>> [(b.number, len(b.contexts), b.n_batches) for b in blocks]
    [(0, 3, 3), (1, 1, 1), (2, 3, 3)]
    """
    if n_rows.sum() < batch:
        raise DataError(f"the texts hold {n_rows.sum():,} tokens, fewer than a batch of {batch:,}; give more text.")
    size = max(buffer, 2 * batch + int(n_rows.max()))  # so that no block is without a batch
    blocks: list[Block] = []
    steps = epoch = 0
    while steps < n_steps:
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(n_rows))
        filled = np.cumsum(n_rows[order])
        edges = np.flatnonzero(np.diff(filled // size, prepend=0)) + 1
        # a rest that cannot fill a batch joins the block before it
        edges = [0, *(e for e in edges if filled[-1] - filled[e - 1] >= batch), len(order)]
        for start, stop in pairwise(edges):
            chosen = order[start:stop]
            blocks.append(Block(len(blocks), chosen, int(n_rows[chosen].sum()) // batch))
            steps += blocks[-1].n_batches
            if steps >= n_steps:
                return blocks
        epoch += 1
    return blocks


def context_rows(
    model: Any,
    contexts: Contexts,
    chosen: Sequence[int] | np.ndarray,
    *,
    hooks: Sequence[str],
    batch_tokens: int = 4096,
) -> dict[str, torch.Tensor]:
    """Activations of every token of some contexts but the specials, in order: {hook: float32 (rows, d)} on the CPU."""
    ids = [contexts.ids[i] for i in chosen]
    n_rows = np.array([len(i) - contexts.n_prefix - contexts.n_suffix for i in ids], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(n_rows)])
    out: dict[str, torch.Tensor] = {}
    with one_thread(model):
        for bucket in length_buckets([len(i) for i in ids], batch_tokens):
            padded, mask = pad([ids[i] for i in bucket])
            rows = np.repeat(np.arange(len(bucket)), n_rows[bucket])
            cols = np.concatenate([contexts.n_prefix + np.arange(int(n_rows[i])) for i in bucket])
            at = torch.from_numpy(np.concatenate([int(starts[i]) + np.arange(int(n_rows[i])) for i in bucket]))
            for hook, x in hooked_pass(model, padded, mask, hooks=list(hooks), rows=rows, cols=cols).items():
                if hook not in out:
                    out[hook] = torch.empty(int(starts[-1]), x.shape[1])
                out[hook][at] = x.cpu()
    return out


def hook_width(model: Any, hook: str) -> int:
    """Width of the vectors that a hook point gives, measured on one token."""
    one = Contexts([np.zeros(1, dtype=np.int32)], np.zeros(1, dtype=np.int64), 0, 0)
    return context_rows(model, one, np.arange(1), hooks=[hook])[hook].shape[1]


def batches(
    model: Any,
    contexts: Contexts,
    blocks: Sequence[Block],
    *,
    hooks: Sequence[str],
    batch: int,
    seed: int,
    start: int = 0,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches from step `start` on: {hook: float32 (batch, d)}; blocks before it are not read."""
    step = 0
    for block in blocks:
        if step + block.n_batches <= start:
            step += block.n_batches
            continue
        rows = context_rows(model, contexts, block.contexts, hooks=hooks)
        n = len(next(iter(rows.values())))
        order = torch.from_numpy(np.random.default_rng([seed, 2, block.number]).permutation(n))
        for i in range(max(0, start - step), block.n_batches):
            chosen = order[i * batch : (i + 1) * batch]
            yield {hook: x[chosen] for hook, x in rows.items()}
        step += block.n_batches
