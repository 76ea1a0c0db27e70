"""Mid-ranks of distances whose conditions were drawn with multiplicities, and of means of such ranks.

The pair (i, j) counts w_i w_j times. With the pairs sorted once, the mid-ranks of every draw are running sums of those
counts; doubled and centred, r = 2 rank - (n + 1), they are integers, so that ties of their means are exact.
"""

from __future__ import annotations

import numpy as np

from neurosae.stats.kernels import compiled

BITS = 11  # of a digit of the radix sort
BUCKETS = 1 << BITS


def sorted_pairs(rdms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of the pairs of every RDM by rising distance, and where a run of equal distances begins, (n_rdms, n_pairs).

    Examples
    --------
    >>> sorted_pairs(np.array([[3.0, 1.0, 3.0]]))
    (array([[1, 0, 2]], dtype=int32), array([[ True,  True, False]]))
    """
    order = np.argsort(rdms, axis=1, kind="stable")
    values = np.take_along_axis(rdms, order, axis=1)
    begins = np.concatenate([np.ones((len(rdms), 1), dtype=bool), values[:, 1:] != values[:, :-1]], axis=1)
    return order.astype(np.int32), begins


@compiled(error_model="numpy")
def pair_counts(w, counts, place):
    """counts[q] = w_i w_j of every pair; place[q] = its number among the drawn pairs, -1 if it was not; how many."""
    q = 0
    drawn = 0
    for i in range(len(w) - 1):
        for j in range(i + 1, len(w)):
            counts[q] = w[i] * w[j]
            place[q] = drawn if counts[q] > 0 else -1
            drawn += counts[q] > 0
            q += 1
    return drawn


@compiled(error_model="numpy")
def drawn_ranks(order, begins, counts, *, place, out):
    """Doubled, centred mid-ranks of the drawn pairs of every RDM: out (n_rdms, n_drawn) int64; total count."""
    total = 0
    for q in range(len(counts)):
        total += counts[q]
    n_pairs = order.shape[1]
    for r in range(order.shape[0]):
        before = 0
        q = 0
        while q < n_pairs:
            size = np.int64(counts[order[r, q]])
            stop = q + 1
            while stop < n_pairs and not begins[r, stop]:
                size += counts[order[r, stop]]
                stop += 1
            if size > 0:
                rank = 2 * before + size + 1 - (total + 1)
                for k in range(q, stop):
                    to = place[order[r, k]]
                    if to >= 0:
                        out[r, to] = rank
            before += size
            q = stop
    return total


@compiled(error_model="numpy")
def ranks_of(values, counts, out, *, work):
    """Doubled, centred mid-ranks of integers that count unequally often; work: int64 (4, n) scratch."""
    n = len(values)
    low = values.min()
    span = values.max() - low
    keys, index, other, moved = work[0], work[1], work[2], work[3]
    for k in range(n):
        keys[k] = values[k] - low
        index[k] = k
    sizes = np.empty(BUCKETS + 1, np.int64)
    while span > 0:
        sizes[:] = 0
        for k in range(n):
            sizes[(keys[k] & (BUCKETS - 1)) + 1] += 1
        for k in range(BUCKETS):
            sizes[k + 1] += sizes[k]
        for k in range(n):
            digit = keys[k] & (BUCKETS - 1)
            to = sizes[digit]
            sizes[digit] += 1
            other[to] = keys[k] >> BITS
            moved[to] = index[k]
        keys, other = other, keys
        index, moved = moved, index
        span >>= BITS
    total = 0
    for k in range(n):
        total += counts[k]
    before = 0
    q = 0
    while q < n:
        size = counts[index[q]]
        stop = q + 1
        while stop < n and values[index[stop]] == values[index[q]]:
            size += counts[index[stop]]
            stop += 1
        for k in range(q, stop):
            out[index[k]] = 2 * before + size - total
        before += size
        q = stop
