"""Which conditions may change places in an RDM: whole items where items are conditions, inside blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.special

from neurosae.errors import DataError, unknown
from neurosae.spec.geometry import FEW
from neurosae.stats.geometry import Place, Question, condition_keys
from neurosae.stats.relabel_conditions import orders

SHARING = " (approximate: conditions of one group share items, those of two groups do not)"


@dataclass(frozen=True)
class Movers:
    """What is permuted: conditions, or items with all of their conditions.

    Attributes
    ----------
    unit : `condition` or `item`
    blocks : array of shape (n_units,); units change places only inside equal numbers
    of_row : array of shape (n_rows,), the unit of every row; rows are conditions, or patterns of items in conditions
    within : array of shape (n_rows,), its place among the rows of the unit; units of one block have the same places
    held : names of the factors and labels that make the blocks
    exact : False where units of a block share items with some others and not with the rest
    """

    unit: str
    blocks: np.ndarray
    of_row: np.ndarray
    within: np.ndarray
    held: tuple[str, ...] = ()
    exact: bool = True

    @property
    def log_count(self) -> float:
        """Logarithm of the number of permutations."""
        return float(scipy.special.gammaln(np.bincount(self.blocks) + 1.0).sum())

    @property
    def words(self) -> str:
        """What is permuted, for a note."""
        inside = f" inside equal {' and '.join(self.held)}" if self.held else ""
        return f"labels of {len(self.blocks)} {self.unit}s are permuted{inside}{'' if self.exact else SHARING}"

    @property
    def method(self) -> str:
        """What a row says of where its p comes from."""
        return f"permutations{'' if self.exact else ' (approximate)'}"

    def p_min(self, n: int) -> float:
        """Smallest p of n permutations drawn from all there are.

        Examples
        --------
        >>> units = np.arange(3)
        >>> round(Movers("condition", np.zeros(3, dtype=int), units, np.zeros(3, dtype=int)).p_min(100), 6)
        0.166667
        """
        return max(1 / n, float(np.exp(-self.log_count)))

    def drawn(self, seed: int) -> Callable[[int, int], np.ndarray]:
        """(first, count) -> orders of the rows, int (count, n_rows); number 0 is the identity."""
        table = np.full((len(self.blocks), int(self.within.max()) + 1), -1)
        table[self.of_row, self.within] = np.arange(len(self.within))

        def draw(first: int, count: int) -> np.ndarray:
            units = orders(len(self.blocks), first, count, blocks=self.blocks, seed=seed)
            return table[units[:, self.of_row], self.within]

        return draw

    def too_few(self, alpha: float) -> str | None:
        """Why these labels admit no test, in words; None where they do."""
        if len(self.blocks) < FEW:
            return f"{len(self.blocks)} labels have too few permutations; at least {FEW} {self.unit}s are needed"
        if self.log_count < -np.log(alpha):
            count = np.exp(self.log_count)
            return f"the blocks admit {count:.0f} permutations, too few for alpha {alpha:g}; take fewer"
        return None


def movers(asked: Question, place: Place) -> Movers:
    """What the conditions of a place may change places with.

    Raises
    ------
    DataError
        Blocks of which the conditions say nothing.
    """
    keys = condition_keys(place, asked.ask.conditions)
    names = asked.ask.blocks or ((place.design.strata,) if place.by_item and place.design.strata else ())
    for name in names:
        if name not in keys:
            raise DataError(f"blocks: conditions say nothing of '{name}'; " + unknown("block", name, keys.columns))
    unit = keys["item"] if place.by_item else keys["condition"]
    code, first = pd.factorize(unit)[0], ~unit.duplicated().to_numpy()
    inner = keys.groupby(code).cumcount().to_numpy()
    block = (
        keys.loc[first, list(names)].astype(str).agg("/".join, axis=1) if names else pd.Series("", index=code[first])
    )
    # items with other levels than the rest cannot change places with them
    shape = pd.Series(inner).groupby(code).max().astype(str).to_numpy()
    blocks = np.unique(np.char.add(np.char.add(block.to_numpy(dtype=str), "|"), shape), return_inverse=True)[1]  # pyright: ignore
    if place.by_item:
        return Movers("item", blocks, code, inner, tuple(names))
    varies = {n: place.design.factors[n].varies for n in asked.ask.conditions if n in place.design.factors}
    between = {n for n, how in varies.items() if how == "between"}
    exact = len(between) in (0, len(varies)) or between <= set(names)
    return Movers("condition", blocks, code, inner, tuple(names), exact)
