"""A number that items carry as the tested regressor: its value per unit, and how it can be permuted over units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neurosae.design.units import Item
from neurosae.errors import SpecError
from neurosae.spec.design import Design
from neurosae.spec.frames import between


class Regressor(NamedTuple):
    """The values of a covariate over units.

    Attributes
    ----------
    name : the covariate
    values : array of shape (n_units,), in the covariate's own units
    groups : int array of shape (n_units,), the between-item cell of each unit, whose mean is not part of the slope
    blocks : int array of shape (n_units,), values are permuted only inside equal numbers
    """

    name: str
    values: np.ndarray
    groups: np.ndarray
    blocks: np.ndarray

    def count(self) -> tuple[int, float]:
        """Number of distinct permutations of the values inside blocks, and the smallest two-sided p they can give.

        n = prod_blocks n_b! / prod (number of units with the same value)!. Where the values of every block are
        symmetric about their mean, each permutation has a mirror image with the same |t|, and p_min = 2 / n.

        Examples
        --------
        >>> Regressor("frequency", np.array([1.0, 2.0, 3.0, 7.0]), np.zeros(4, int), np.zeros(4, int)).count()
        (24, 0.041666666666666664)
        >>> Regressor("frequency", np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4, int), np.zeros(4, int)).count()
        (24, 0.08333333333333333)
        """
        n, mirrored = 1, True
        means = np.bincount(self.groups, self.values) / np.maximum(np.bincount(self.groups), 1)
        left = self.values - means[self.groups]
        for block in np.unique(self.blocks):
            inside = self.blocks == block
            ties = np.unique(self.values[inside], return_counts=True)[1]
            n *= math.factorial(int(inside.sum())) // math.prod(math.factorial(int(k)) for k in ties)
            size = np.abs(left[inside]).max()
            mirrored &= bool(np.allclose(np.sort(left[inside]), np.sort(-left[inside]), rtol=0, atol=1e-9 * size))
        return n, min(1.0, (2 if mirrored else 1) / n)


def regressor(
    name: str, part: Mapping[str, Item], units: np.ndarray, *, own: Sequence[str], strata: Sequence[str]
) -> Regressor:
    """The regressor of a slope over units.

    Parameters
    ----------
    name : the covariate
    part : the items that take part
    units : array of shape (n_items,), number of the unit of each item; a unit has the mean value of its items
    own : factors that vary between items: the slope is the common one inside their cells
    strata : stratum of each item

    Raises
    ------
    SpecError
        If the covariate is the same for all units of every cell, or a unit spans cells or strata.
    """
    values = np.array([item.covariates[name] for item in part.values()])
    cells = [tuple(item.levels[factor] for factor in own) for item in part.values()]
    groups = _numbers(cells)
    blocks = _numbers([(*cell, stratum) for cell, stratum in zip(cells, strata, strict=True)])
    for k in range(int(units.max()) + 1):
        if len(set(blocks[units == k].tolist())) > 1:
            names = [item for item, unit in zip(part, units.tolist(), strict=True) if unit == k]
            raise SpecError(
                f"unit: shared_forms merges items of different levels or strata ({', '.join(names[:4])}); let no form "
                "recur between them, or write `unit: item`."
            )
    first = np.unique(units, return_index=True)[1]
    found = Regressor(name, np.bincount(units, values) / np.bincount(units), groups[first], blocks[first])
    if not any(np.ptp(found.values[found.blocks == block]) > 0 for block in np.unique(found.blocks)):
        where = " inside each group or stratum" if len(set(blocks.tolist())) > 1 else ""
        raise SpecError(f"covariate '{name}' is the same for all items{where}; a slope needs values that differ.")
    return found


def along(
    design: Design, name: str, part: Mapping[str, Item], *, units: np.ndarray, strata: Sequence[str], what: str
) -> dict[str, Any]:
    """How a slope on a covariate is tested, as fields of `design.exchange.Exchange`; arguments as for `regressor`."""
    own = tuple(between(design))
    found = regressor(name, part, units, own=own, strata=strata)
    n_all, p_min = found.count()
    inside = [*([design.strata] if design.strata else []), *own]
    words = f"{name} is a number of every item: its values are permuted over {what}"
    words += f", inside each {' x '.join(inside)}" if inside else ""
    return {
        "kind": "permute_values",
        "unit": "shared forms" if design.unit != "item" else "item in stratum" if inside else "item",
        "n_relabellings": n_all,
        "p_min": p_min,
        "strata": found.blocks[units],
        "words": words + ", one permutation for all features, positions and sites",
        "regressor": found,
    }


def _numbers(keys: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Numbers of keys in the order of their first appearance."""
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return np.array([place[key] for key in keys], dtype=np.int64)
