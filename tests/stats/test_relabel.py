"""Relabellings: random bits that depend on the item alone, enumeration, strata."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from neurosae.errors import DataError
from neurosae.stats import kernels
from neurosae.stats.relabel import flips, labels, n_distinct, permutations, signs


def test_philox_agrees_with_known_answers():
    """The three published vectors of Philox4x32-10."""
    full = 0xFFFFFFFF
    vectors = [
        ((0, 0, 0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((full,) * 6, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for given, expected in vectors:
        words = [np.uint64(x) for x in given]
        assert tuple(int(x) for x in kernels.philox(tuple(words[:4]), tuple(words[4:]))) == expected


def test_signs_invariant_to_the_other_items():
    """An item is flipped alike whichever items are tested beside it, and whichever tile is asked for."""
    some, few = flips(np.arange(40), 2000, seed=5), flips(np.array([3, 17, 30]), 2000, seed=5, enumerate_all=False)
    assert_array_equal(signs(some)[:, [3, 17, 30]], signs(few))
    assert_array_equal(signs(some)[700:900], signs(some, 700, 200))


def test_signs_recover_identity_and_balance():
    """Relabelling 0 keeps everything; the rest keeps half, and neighbours are unrelated."""
    S = signs(flips(np.arange(50), 10_000, seed=2))
    assert (S[0] == 1).all()
    assert abs(S.mean() * np.sqrt(S.size)) < 4
    assert abs((S[1:] * S[:-1]).mean() * np.sqrt(S.size)) < 4


def test_signs_invariant_to_nothing_else():
    """Another seed or split gives other flips."""
    base = signs(flips(np.arange(30), 500, seed=1))
    assert not np.array_equal(base, signs(flips(np.arange(30), 500, seed=2)))
    assert not np.array_equal(base, signs(flips(np.arange(30), 500, seed=1, split="localizer")))


@pytest.mark.parametrize(("two_sided", "n"), [(True, 32), (False, 64)])
def test_flips_recover_all_of_a_small_group(two_sided, n):
    """Six items: 64 flips, of which a two-sided test needs the half that keeps the first item."""
    S = signs(flips(np.arange(6), 100, seed=0, two_sided=two_sided))
    assert len(np.unique(S, axis=0)) == n
    assert (S[0] == 1).all()


def test_permutations_recover_all_of_a_small_group():
    """2 of 4 inside one stratum, 1 of 3 in the other: 6 x 3 relabellings, each stratum keeps its labels."""
    codes, blocks = np.array([0, 0, 1, 1, 0, 1, 0]), np.array([0, 0, 0, 0, 1, 1, 1])
    L = labels(permutations(np.arange(7), codes, 100, blocks=blocks, seed=0))
    assert len(L) == len(np.unique(L, axis=0)) == n_distinct(codes, blocks) == 18
    assert_array_equal(L[0], codes)
    assert (L[:, :4].sum(axis=1) == 2).all()


def test_random_permutations_invariant_inside_strata():
    """Counts per stratum never change, every item gets every label about equally often."""
    codes, blocks = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    L = labels(permutations(np.arange(40), codes, 4000, blocks=blocks, seed=3))
    assert (L[:, blocks == 0].sum(axis=1) == 10).all()
    assert np.abs(L[1:].mean(axis=0) - 0.5).max() < 0.04


def test_flips_refuse_a_negative_seed():
    """The message names the range."""
    with pytest.raises(DataError, match="from 0 to"):
        flips(np.arange(4), 10, seed=-1)
