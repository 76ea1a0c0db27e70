"""Token ids -> batches: stimuli of similar length together, padded on the right.

Padding is on the right and masked: left padding without a mask shifts positions and gives errors as large as the
signal. What a batch holds depends on lengths alone, so the same stimuli make the same batches on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
