"""Token ids -> batches: stimuli of similar length together, padded on the right, or tries of shared beginnings.

Padding is on the right and masked: left padding without a mask shifts positions and gives errors as large as the
signal. What a batch holds depends on the ids alone, so the same stimuli make the same batches on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from neurosae.extraction.trie import MAX_NODES, Ids, grow, trie_groups

Packing = Literal["trie", "buckets"]


class Packed(NamedTuple):
    """What one forward pass reads, and where each token of each sequence is in it.

    Attributes
    ----------
    ids : int64 (rows, width)
    mask : int64 (rows, width), 1 at real tokens; of tries bool (rows, width, width), what each node sees
    positions : int64 (rows, width), depths of nodes; None where the columns are the positions
    row : row of each sequence
    paths : column of each token of each sequence
    """

    ids: np.ndarray
    mask: np.ndarray
    positions: np.ndarray | None
    row: np.ndarray
    paths: list[np.ndarray]


def batches(
    sequences: Sequence[Ids], packing: Packing, batch_tokens: int = 4096, *, max_nodes: int = MAX_NODES
) -> list[np.ndarray]:
    """Which sequences go through the model together; no batch exceeds `batch_tokens` ids, padding included.

    Examples
    --------
    >>> [b.tolist() for b in batches([[1, 5, 6], [2, 2, 2], [1, 5, 7]], "trie", batch_tokens=4)]
    [[0, 2], [1]]
    """
    if packing == "buckets":
        return length_buckets([len(s) for s in sequences], batch_tokens)
    groups, nodes = trie_groups(sequences, min(max_nodes, batch_tokens))
    out: list[list[np.ndarray]] = []
    width = 0
    for group, n in zip(groups, nodes, strict=True):
        width = max(width, n)
        if out and (len(out[-1]) + 1) * width <= batch_tokens:
            out[-1].append(group)
        else:
            out.append([group])
            width = n
    return [np.concatenate(together) for together in out]


def pack(sequences: Sequence[Ids], packing: Packing = "buckets", *, max_nodes: int = MAX_NODES) -> Packed:
    """Lay the sequences of one batch out.

    Examples
    --------
    >>> packed = pack([[1, 5, 6], [1, 5, 7]], "trie")
    >>> packed.ids.tolist(), packed.positions.tolist(), packed.row.tolist()
    ([[1, 5, 6, 7]], [[0, 1, 2, 2]], [0, 0])
    """
    if packing == "buckets":
        ids, mask = pad(sequences)
        return Packed(ids, mask, None, np.arange(len(ids)), [np.arange(len(s)) for s in sequences])
    groups, nodes = trie_groups(sequences, max_nodes)
    width = max(nodes, default=0)
    ids, positions = (np.zeros((len(groups), width), dtype=np.int64) for _ in range(2))
    # a column without a node sees itself alone: attention over nothing is not a number
    visible = np.repeat(np.eye(width, dtype=bool)[None], len(groups), axis=0)
    row, paths = np.zeros(len(sequences), dtype=np.int64), [np.zeros(0, dtype=np.int64)] * len(sequences)
    for line, group in enumerate(groups):
        trie = grow([sequences[i] for i in group])
        n = len(trie.ids)
        ids[line, :n], positions[line, :n], visible[line, :n, :n] = trie.ids, trie.depths, trie.visible
        row[group] = line
        for i, path in zip(group.tolist(), trie.paths, strict=True):
            paths[i] = path
    return Packed(ids, visible, positions, row, paths)


def length_buckets(lengths: Sequence[int], batch_tokens: int = 4096) -> list[np.ndarray]:
    """Group sequences of similar length so that no padded batch exceeds a number of tokens.

    Parameters
    ----------
    lengths : tokens of every sequence
    batch_tokens : largest number of ids in a batch, padding included; a longer sequence is a batch of its own

    Returns
    -------
    list of integer arrays, together a permutation of all sequences

    Examples
    --------
    >>> [b.tolist() for b in length_buckets([5, 2, 5, 3], batch_tokens=8)]
    [[1, 3], [0], [2]]
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches: list[list[int]] = []
    for i in order:
        # sorted by length: the newcomer is the longest of its batch
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(int(i))
        else:
            batches.append([int(i)])
    return [np.array(batch, dtype=np.int64) for batch in batches]


def pad(sequences: Sequence[Sequence[int] | np.ndarray], fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and their mask (1 = a real token), both int64 of shape (n_sequences, longest).

    Examples
    --------
    >>> ids, mask = pad([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    width = max((len(s) for s in sequences), default=0)
    ids = np.full((len(sequences), width), fill, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    return ids, mask
