"""Admissible relabellings of whole items: sign flips, permutations of labels over items, and inside every item.

A relabelling is a pure function of (seed, split, purpose, number, item): all tests of a study on the same items share
it, whatever else is tested, and results do not depend on threads, tiles or the order of work. Number 0 is the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from itertools import permutations as orders_of

import numpy as np

from neurosae.errors import DataError
from neurosae.stats import kernels

FLIPS, PERMUTATIONS, WITHIN = 0, 1, 3  # purposes of the random stream; 2 is kept for bootstraps
SPLITS = {"localizer": 0, "test": 1}


@dataclass(frozen=True)
class Relabelling:
    """A set of admissible relabellings of the same items, the identity first.

    kind : "flip", "permute" (labels over items) or "within" (levels inside every item)
    rows : item numbers in the design table; they, not the place in this subset, decide an item's random bits
    n : how many, identity included;  exhaustive : they are all there are
    codes, blocks : for permutations, the cell of each item and the stratum inside which labels move
    listed : all relabelled codes (n, n_items), where they were enumerated
    n_levels, factor : for "within", how many levels change places, and the number of their factor in the design
    """

    kind: str
    rows: np.ndarray
    n: int
    exhaustive: bool
    seed: int
    split: str
    codes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    blocks: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    listed: np.ndarray | None = None
    n_levels: int = 0
    factor: int = 0

    @property
    def stream(self) -> np.uint64:
        """Purpose and split as one number, so that localizer and test items never share bits."""
        purpose = {"flip": FLIPS, "permute": PERMUTATIONS, "within": WITHIN}[self.kind]
        return np.uint64(purpose + 256 * SPLITS.get(self.split, len(SPLITS)) + 65536 * self.factor)

    @property
    def drawn(self) -> str:
        """What is counted, for a row's `p_method`: flips or permutations."""
        return "flips" if self.kind == "flip" else "permutations"

    def method(self, *, exact: bool = True) -> str:
        """A row's `p_method`: exact where these are all relabellings and H0 stays as it is under each of them."""
        return f"{self.drawn} (approximate)" if not exact else "exact" if self.exhaustive else self.drawn


def flips(
    rows: np.ndarray,
    n_permutations: int,
    *,
    seed: int,
    split: str = "test",
    two_sided: bool = True,
    enumerate_all: bool | None = None,
) -> Relabelling:
    """Sign flips of whole items; all of them where they fit into `n_permutations`.

    Two-sided tests need only the 2^(n-1) flips that keep the first item: s and -s give the same |sum|.

    Examples
    --------
    >>> few = flips(np.arange(4), 100, seed=0)
    >>> few.n, few.exhaustive, signs(few)[:3].astype(int).tolist()
    (8, True, [[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1]])
    """
    n_all = 2.0 ** (len(rows) - (1 if two_sided else 0))
    everything = n_all <= n_permutations if enumerate_all is None else enumerate_all
    n = int(n_all) if everything else int(n_permutations)
    return Relabelling("flip", np.asarray(rows, dtype=np.uint32), n, everything, _seed(seed), split)


def permutations(
    rows: np.ndarray,
    codes: np.ndarray,
    n_permutations: int,
    *,
    blocks: np.ndarray | None = None,
    seed: int,
    split: str = "test",
    enumerate_all: bool | None = None,
) -> Relabelling:
    """Permutations of the items' labels inside blocks; all distinct ones where they fit into `n_permutations`.

    Examples
    --------
    >>> few = permutations(np.arange(4), np.array([0, 0, 1, 1]), 100, seed=0)
    >>> few.n, labels(few)[1].tolist()
    (6, [0, 1, 0, 1])
    """
    codes = np.asarray(codes).astype(np.min_scalar_type(np.max(codes)))
    blocks = np.zeros(len(codes), dtype=np.int64) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    n_all = n_distinct(codes, blocks)
    everything = n_all <= n_permutations if enumerate_all is None else enumerate_all
    listed = _all_labels(codes, blocks) if everything else None
    n = int(n_all) if everything else int(n_permutations)
    rows = np.asarray(rows, dtype=np.uint32)
    return Relabelling("permute", rows, n, everything, _seed(seed), split, codes, blocks, listed)


def within(
    rows: np.ndarray,
    n_levels: int,
    n_permutations: int,
    *,
    part: tuple[int, bool] = (0, False),
    seed: int,
    split: str = "test",
    enumerate_all: bool | None = None,
) -> Relabelling:
    """Permutations of the levels of a factor inside every item; all of them where they fit into `n_permutations`.

    part = (number of the factor in the design, whether all levels are compared at once): another factor is permuted by
    other bits. Permuting the levels of all items alike changes no omnibus statistic, which therefore needs only the
    (K!)^(n-1) relabellings that leave the first item as it is.

    Examples
    --------
    >>> few = within(np.arange(3), 3, 100, part=(0, True), seed=0)
    >>> few.n, levels(few, 0, 3)[:, :, 2].tolist()
    (36, [[0, 1, 2], [0, 1, 2], [1, 0, 2]])
    """
    factor, omnibus = part
    n_all = math.factorial(n_levels) ** (len(rows) - (1 if omnibus else 0))
    everything = n_all <= n_permutations if enumerate_all is None else enumerate_all
    n = int(n_all) if everything else int(n_permutations)
    rows = np.asarray(rows, dtype=np.uint32)
    return Relabelling("within", rows, n, everything, _seed(seed), split, n_levels=n_levels, factor=factor)


def same_relabelling(a: Relabelling, b: Relabelling) -> bool:
    """Whether relabelling number k of one is that of the other, for every k."""
    alike = (a.kind, a.n, a.exhaustive, a.n_levels, a.factor) == (b.kind, b.n, b.exhaustive, b.n_levels, b.factor)
    return alike and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("rows", "codes", "blocks"))


def n_distinct(codes: np.ndarray, blocks: np.ndarray) -> int:
    """Number of distinct relabellings: the product over blocks of the multinomial coefficients of their labels.

    Examples
    --------
    >>> n_distinct(np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1]))
    12
    """
    total = 1
    for block in np.unique(blocks):
        left = int((blocks == block).sum())
        for count in np.unique(codes[blocks == block], return_counts=True)[1]:
            total *= math.comb(left, int(count))
            left -= int(count)
    return total


def _all_labels(codes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Every distinct relabelling, the identity first."""
    listed = [codes.copy()]
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        listed = [_put(old, members, new) for old in listed for new in _arrangements(codes[members])]
    table = np.array(listed, dtype=codes.dtype)
    same = (table == codes).all(axis=1)
    return np.concatenate([table[same], table[~same]])


def _put(old: np.ndarray, members: np.ndarray, new: np.ndarray) -> np.ndarray:
    out = old.copy()
    out[members] = new
    return out


def _arrangements(codes: np.ndarray) -> list[np.ndarray]:
    """Distinct orders of a multiset of labels."""
    label, rest = codes.min(), codes[codes != codes.min()]
    if not len(rest):
        return [codes]
    out = []
    for places in combinations(range(len(codes)), len(codes) - len(rest)):
        free = np.setdiff1d(np.arange(len(codes)), places)
        for tail in _arrangements(rest):
            new = np.full(len(codes), label, dtype=codes.dtype)
            new[free] = tail
            out.append(new)
    return out


def _seed(seed: int) -> int:
    if not 0 <= int(seed) < 2**64:
        raise DataError(f"seed is {seed}; give an integer from 0 to 2^64 - 1.")
    return int(seed)


def signs(relabelling: Relabelling, first: int = 0, count: int | None = None) -> np.ndarray:
    """Sign vectors as float64 of shape (count, n_items): rows first … first + count - 1, for dense uses and tests."""
    count = relabelling.n - first if count is None else count
    start = first - first % kernels.LANES
    tiles = [flip_mask(relabelling, a) for a in range(start, first + count, kernels.LANES)]
    return np.where(np.concatenate(tiles, axis=1)[:, first - start : first - start + count], 1.0, -1.0).T.copy()


def labels(relabelling: Relabelling, first: int = 0, count: int | None = None) -> np.ndarray:
    """Relabelled cell codes of shape (count, n_items): rows first … first + count - 1."""
    r = relabelling
    count = r.n - first if count is None else count
    if r.listed is not None:
        return r.listed[first : first + count]
    keys = np.empty((count, len(r.rows)), dtype=np.uint64)
    kernels.sort_keys(keys, r.rows, seed=np.uint64(r.seed), stream=r.stream, first=first)
    order = np.lexsort((keys, np.broadcast_to(r.blocks, keys.shape)), axis=-1)
    out = np.empty(keys.shape, dtype=r.codes.dtype)
    np.put_along_axis(out, order, np.broadcast_to(r.codes[np.argsort(r.blocks, kind="stable")], keys.shape), axis=1)
    if first == 0:
        out[0] = r.codes
    return out


def flip_mask(r: Relabelling, first: int) -> np.ndarray:
    """One tile of flips as a mask (n_items, 512), True = keep."""
    W = np.empty((len(r.rows), kernels.LANES), dtype=np.bool_)
    if r.exhaustive:
        kernels.fill_all_signs(W, first)
    else:
        kernels.fill_signs(W, r.rows, seed=np.uint64(r.seed), stream=r.stream, first=first)
    return W


def levels(r: Relabelling, first: int, count: int) -> np.ndarray:
    """New levels of shape (n_items, n_levels, count): where the value of each level goes in each relabelling.

    Number b of an enumeration gives item i the order that is digit n-1-i of b, orders counted as
    `itertools.permutations` gives them.
    """
    out = np.empty((len(r.rows), r.n_levels, count), dtype=np.uint8)
    if r.exhaustive:
        kernels.fill_all_levels(out, np.array(list(orders_of(range(r.n_levels))), dtype=np.uint8), first)
    else:
        kernels.fill_levels(out, r.rows, seed=np.uint64(r.seed), stream=r.stream, first=first)
    return out
