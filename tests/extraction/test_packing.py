"""Batches depend on lengths alone and lose nothing."""

from __future__ import annotations

import numpy as np

from neurosae.extraction.packing import length_buckets, pad


def test_length_buckets_hold_everything_within_the_budget():
    """Each sequence is in one bucket; padded buckets stay within the budget unless one sequence exceeds it."""
    lengths = np.random.default_rng(0).integers(1, 90, 300)
    buckets = length_buckets(lengths, 64)
    assert sorted(np.concatenate(buckets)) == list(range(300))
    assert all(len(b) == 1 or len(b) * lengths[b].max() <= 64 for b in buckets)


def test_pad_is_on_the_right():
    """Real tokens keep their index; the mask marks them."""
    ids, mask = pad([[7, 8], [9]], fill=3)
    assert ids.tolist() == [[7, 8], [9, 3]]
    assert mask.tolist() == [[1, 1], [1, 0]]
