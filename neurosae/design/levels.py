"""Levels of a factor that change places inside every item: for effects of K levels, and contrasts with no mirror image.

Weights that some exchange of levels turns into their negative (two levels, products of two-level factors, linear
trends) are tested by flipping the sign of an item's contrast. Others, as 2 / -1 / -1, and tests of all K levels at
once permute the levels themselves, inside every item, the same way at all levels of the other factors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from neurosae.design.weights import Effect
from neurosae.spec.design import Design

LARGEST = 50_000  # permutations of levels that are tried when a sign-reversing one is sought


class Levels(NamedTuple):
    """What changes places inside an item.

    name : the factor, or the cells, in words;  number : its place in the design, which decides its random bits
    of_cell : array of shape (n_cells,), the level to which a cell belongs, -1 where it takes no part
    datum : array of shape (n_cells,); the value of an item at a level is the sum over the level's cells of datum x mean
    weights : array of shape (n_levels,), of a single contrast of the levels; None for all of them at once
    """

    name: str
    number: int
    of_cell: np.ndarray
    datum: np.ndarray
    weights: np.ndarray | None

    @property
    def n(self) -> int:
        """Number of levels."""
        return int(self.of_cell.max()) + 1

    def count(self, n_units: int) -> tuple[int, float]:
        """How many relabellings there are, and the smallest p they can give.

        Relabellings that leave every contrast as it is are one: A^n for the A distinct orders of the weights. Permuting
        the levels of all units alike changes no omnibus statistic: (K!)^n relabellings, p from K!/(K!)^n on.
        """
        every = math.factorial(self.n)
        if self.weights is None:
            return every**n_units, float(every) ** (1 - n_units) if n_units < 300 else 0.0
        same = Counter(np.round(self.weights, 9).tolist()).values()
        orders = every // math.prod(math.factorial(k) for k in same)
        return orders**n_units, float(orders) ** -n_units if n_units < 300 else 0.0


def omnibus_levels(design: Design, effect: Effect) -> Levels:
    """All levels of the factor that an effect asks about at once."""
    assert effect.omnibus is not None
    assert effect.others is not None
    number = list(design.factors).index(effect.omnibus)
    level = np.array([design.factors[effect.omnibus].levels.index(cell[number]) for cell in effect.cells])
    return Levels(effect.omnibus, number, level, effect.others, None)


def contrast_levels(design: Design, effect: Effect, *, v: np.ndarray, within: Sequence[str]) -> Levels:
    """The levels among which a contrast without mirror image has weights.

    With the weights v = a x rest over one within-item factor and the others, the levels of that factor whose a is not
    0; where v is no such product, the cells that have a weight.
    """
    axes = [list(design.factors).index(name) for name in within]
    sizes = [len(design.factors[name].levels) for name in within]
    cube = v.reshape(sizes)
    place = np.array(
        [
            np.ravel_multi_index([design.factors[n].levels.index(cell[a]) for n, a in zip(within, axes, strict=True)],
                                 sizes)
            for cell in effect.cells
        ]
    )  # fmt: skip
    for axis, name in enumerate(within):
        found = _product(cube, axis)
        if found is not None:
            a, rest = found
            used = np.flatnonzero(np.abs(a) > 1e-9)
            level = np.array([design.factors[name].levels.index(cell[axes[axis]]) for cell in effect.cells])
            of_cell = np.where(np.isin(level, used), np.searchsorted(used, level), -1)
            return Levels(name, axes[axis], of_cell, np.where(of_cell >= 0, rest.ravel()[place], 0.0), a[used])
    used = np.flatnonzero(np.abs(v) > 1e-9)
    of_cell = np.where(np.isin(place, used), np.searchsorted(used, place), -1)
    return Levels("cells", len(design.factors), of_cell, (of_cell >= 0).astype(float), v[used])


def _product(cube: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights a that sum to 0 along an axis, and the rest, where the cube is their product."""
    table = np.moveaxis(cube, axis, 0).reshape(cube.shape[axis], -1)
    i, j = np.unravel_index(np.abs(table).argmax(), table.shape)
    a, rest = table[:, j], table[i] / table[i, j]
    if abs(a.sum()) > 1e-9 or not np.allclose(np.outer(a, rest), table, atol=1e-9):
        return None
    return a, np.broadcast_to(np.expand_dims(rest.reshape(np.delete(cube.shape, axis)), axis), cube.shape)


def reversal(design: Design, own: Sequence[str], v: np.ndarray) -> dict[str, tuple[str, ...]]:
    """Relabelled levels of the fewest within factors that turn the weights v into -v; empty if there are none."""
    names = [name for name in design.factors if name not in own]
    sizes = [len(design.factors[name].levels) for name in names]
    if math.prod(math.factorial(size) for size in sizes) > LARGEST:
        return {}
    cube = v.reshape(sizes)
    for orders in sorted(product(*(permutations(range(size)) for size in sizes)), key=_n_moved):
        if np.allclose(cube[np.ix_(*orders)], -cube, atol=1e-9):
            return {
                name: tuple(design.factors[name].levels[i] for i in order)
                for name, order in zip(names, orders, strict=True)
                if list(order) != sorted(order)
            }
    return {}


def _n_moved(orders: tuple[tuple[int, ...], ...]) -> int:
    return sum(list(order) != sorted(order) for order in orders)


def count_permutations(groups: np.ndarray, blocks: np.ndarray, weights: np.ndarray) -> tuple[int, float]:
    """Number of distinct permutations of labels inside blocks, and the smallest two-sided p they can give.

    n = prod_blocks multinomial(counts of the labels). Where some exchange of labels turns every weight into its
    negative and leaves all counts as they are, each relabelling has a mirror with the same |T|, and p_min = 2 / n.
    Weights of equal size (all 0) stand for a test of all labels at once: exchanging labels of equal counts changes
    nothing.

    Examples
    --------
    >>> count_permutations(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.zeros(8, int), np.array([-1.0, 1.0]))
    (70, 0.02857142857142857)
    """
    counts = np.array([[((groups == g) & (blocks == b)).sum() for b in np.unique(blocks)] for g in range(len(weights))])
    n = 1
    for block in counts.T:
        left = int(block.sum())
        for count in block:
            n *= math.comb(left, int(count))
            left -= int(count)
    if not weights.any():
        alike = math.prod(math.factorial(k) for k in Counter(map(tuple, counts.tolist())).values())
        return n, min(1.0, alike / n)
    signature = Counter((round(w, 9), *row) for w, row in zip(weights.tolist(), counts.tolist(), strict=True))
    mirror = Counter((round(-w, 9), *row) for w, row in zip(weights.tolist(), counts.tolist(), strict=True))
    return n, min(1.0, (2 if signature == mirror else 1) / n)
