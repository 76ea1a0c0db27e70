"""One effect at one place, ready for a statistic of the whole pattern: features, folds, relabellings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.spec.factorial import FactorialBlock
from neurosae.stats import coded
from neurosae.stats.crossfit import deal, item_order
from neurosae.stats.relabel import Relabelling
from neurosae.stats.units import ItemData

TILE = 1024


@dataclass(frozen=True)
class Spot:
    """One effect at one place.

    Attributes
    ----------
    key : site, region, position
    data : its item data;  columns : the features that enter
    relabelling, place : how units are relabelled, and where each stands in it
    ask : the block;  seed, split : of the random numbers
    around : responses of the site, the design, and the effect as written, for what stands beside a statistic
    """

    key: tuple[str, str, int]
    data: ItemData
    columns: np.ndarray
    relabelling: Relabelling
    place: np.ndarray
    ask: FactorialBlock
    seed: int
    around: tuple[Any, Design, Mapping[str, Any]]

    @property
    def n(self) -> int:
        """Number of relabellings."""
        return self.relabelling.n

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """First relabelling and number of relabellings of every tile."""
        return [(first, min(TILE, self.n - first)) for first in range(0, self.n, TILE)]


class Found(NamedTuple):
    """A statistic at one place.

    value : of the statistic, NaN where undefined;  null : what is compared under relabelling (n,), observed first, or
    None where nothing is tested;  effsize, eftype;  extras : further columns x_…;  notes;  p_min : where not units are
    relabelled;  dof : of the statistic
    """

    value: float
    null: np.ndarray | None
    effsize: float
    eftype: str
    extras: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    p_min: float | None = None
    dof: float = float("nan")
    n_features: int | None = None


def restricted(data: ItemData, columns: np.ndarray) -> ItemData:
    """Item data of some of the features."""
    parts = {"D": data.D[:, columns], "Y": data.Y[:, columns], "features": data.features[columns]}
    if data.levels is not None:
        parts["levels"] = data.levels[:, columns]
    return replace(data, **parts)


def over_tiles(spot: Spot, function: Callable[[np.ndarray], np.ndarray], rows: coded.Coded) -> np.ndarray:
    """A function of the labels of rows, over all relabellings."""
    return np.concatenate(
        [
            function(coded.relabelled(rows, spot.relabelling, spot.place, first=first, count=count))
            for first, count in spot.tiles
        ]
    )


def unit_folds(spot: Spot, *, by_group: bool = False) -> np.ndarray:
    """Fold of every unit, dealt inside strata and never by labels that are permuted."""
    data = spot.data
    groups = data.codes if by_group else data.strata
    codes = np.zeros(data.n, dtype=np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_folds = spot.ask.folds
    if data.n < 2 * n_folds:
        raise DataError(f"{data.n} units do not make {n_folds} folds of two; use fewer folds, or more items")
    return deal(codes, item_order(data, seed=spot.seed, split=spot.ask.split), n_folds)


def reached_share(values: np.ndarray) -> float:
    """One-sided p of the first value."""
    return float((values >= values[0] - 1e-10 * np.abs(values).max()).mean())
