"""From responses to what is relabelled: one number per unit and feature, and how units may be exchanged.

The design decides (`design.exchange`): within items the datum is the contrast d_i = sum_c w_c y_ic, whose sign is
flipped, or the values at the levels of a factor, which change places; between items it is the item's value, or its
within-item difference, whose label is permuted inside strata. A unit is an item, or with `unit: shared_forms` the mean
over items that share a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.design.exchange import Exchange, exchangeability
from neurosae.design.units import items_of
from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import DataError
from neurosae.extraction.responses import ItemCells, item_cells
from neurosae.spec.design import Design
from neurosae.stats.nuisance import Adjustment

ROUNDING = 2.0**-22  # of float32 responses, relative to the sizes that make up a number

AnnData: TypeAlias = Any  # one site's responses; anndata itself is known to extraction alone


@dataclass(frozen=True)
class ItemData:
    """One effect at one site, region and position, ready to be tested.

    Attributes
    ----------
    names : names of the n units;  numbers : their numbers in the design table, which decide their random bits
    D : CSC float64 (n, m), the datum of each unit, exact zeros dropped
    Y : CSR float64 (n_rows, m), item x cell means;  row_unit, row_cell : unit and cell of its rows
    cells, weights : the cells, and the effect's weight in each of them
    codes, groups, strata : for label permutations the group of each unit, the weights of the groups, the stratum of
        each unit; None for sign flips
    features : index of each column in its dictionary;  dropped : what could not be used, in words
    signs : the flips (n,) that D has undergone, None for none
    levels : CSC float64 (n K, m), value of unit i at level k in row i K + k, exact zeros dropped, where levels change
        places inside units; D then is the single contrast, or for all levels at once the root of the sum of squares
        around the unit's mean
    contrasts : for all levels of a factor between items, contrasts of the groups of `codes` (n_contrasts, n_groups)
    obs : numeric columns of the responses, averaged as Y is;  row_datum : weight of each row in its unit's datum
    beside : the regression of the effect, where nuisance is regressed out or a slope is tested (`stats.adjusted`);
        codes then number the values of the covariate
    """

    names: tuple[str, ...]
    numbers: np.ndarray
    D: sp.csc_matrix
    Y: sp.csr_matrix
    row_unit: np.ndarray
    row_cell: np.ndarray
    cells: tuple[tuple[str, ...], ...]
    weights: np.ndarray
    codes: np.ndarray | None
    groups: np.ndarray | None
    strata: np.ndarray | None
    effect: Effect
    exchange: Exchange
    features: np.ndarray
    dropped: str
    signs: np.ndarray | None = None
    levels: sp.csc_matrix | None = None
    contrasts: np.ndarray | None = None
    obs: pd.DataFrame = field(default_factory=pd.DataFrame)
    row_datum: np.ndarray = field(default_factory=lambda: np.empty(0))
    beside: Adjustment | None = None

    @property
    def moved(self) -> np.ndarray | None:
        """What is permuted over units: their codes, or whole units where nuisance goes with them; None for flips."""
        whole = self.beside is not None and self.beside.model.Q.shape[1] > self.beside.model.n_fixed
        return self.codes if self.codes is None or not whole else np.arange(self.n)

    @property
    def weights_of_levels(self) -> np.ndarray | None:
        """Weights of the levels that change places; None for all of them at once, or where none do."""
        return None if self.exchange.levels is None else self.exchange.levels.weights

    @property
    def omnibus(self) -> bool:
        """Whether all levels of a factor are compared at once."""
        return self.effect.omnibus is not None

    @property
    def informative(self) -> np.ndarray:
        """Number of units that say anything about each feature (m,); no relabelling changes it."""
        D = self.D if self.levels is None else _spread(self.levels, self.n)
        return np.diff(D.indptr)

    @property
    def n(self) -> int:
        """Number of units."""
        return len(self.names)

    @property
    def grouping(self) -> tuple[np.ndarray, np.ndarray]:
        """Group of each unit and weight of each group, where labels are permuted."""
        assert self.codes is not None
        assert self.groups is not None
        return self.codes, self.groups


def item_data(
    adata: AnnData,
    design: Design,
    effect: Mapping | Effect,
    *,
    region: str,
    position: int = 0,
    split: str = "test",
    flips_only: bool = True,
) -> ItemData:
    """Data of every unit for one effect, as written or compiled, with the relabellings that the design admits.

    A caller that can let levels change places inside items says so, `flips_only=False`; for others a contrast without
    mirror image is flipped, approximately.

    Raises
    ------
    DataError
        If no item has a row in a cell that the effect compares, some items lack cells that others have, or a group has
        fewer than two units.
    SpecError
        If the effect cannot be estimated, or no relabelling of whole items tests it.
    """
    given = isinstance(effect, Effect)
    made = effect if given else compile_effect(design, dict(effect))
    found = _in_design_order(item_cells(adata, design, region=region, position=position, split=split), design)
    _check_cells(made, found.cells, where=f"region '{region}', position {position}")
    only = flips_only or given  # weights that sum to 0 in no factor have no levels to exchange
    exchange = exchangeability(design, made, items=found.items, flips_only=only)  # pyright: ignore[reportArgumentType]
    place = {name: k for k, name in enumerate(exchange.items)}
    taking_part = np.array([place.get(name, -1) for name in found.items])
    inside = taking_part[found.row_item] >= 0
    row_item, row_cell, Y = taking_part[found.row_item[inside]], found.row_cell[inside], found.X[inside]
    at = {cell: k for k, cell in enumerate(made.cells)}
    order = np.array([at[cell] for cell in found.cells])
    datum = exchange.datum[order]
    used = datum[row_cell] != 0 if exchange.levels is None else (exchange.levels.of_cell[order] >= 0)[row_cell]
    _check_complete(row_item[used], region=region)
    size = np.bincount(exchange.units)
    row_datum = (datum[row_cell] * exchange.scale[row_item]) / size[exchange.units[row_item]]
    D = _sums(Y, exchange.units[row_item], row_datum)
    at_levels = None
    if (levels := exchange.levels) is not None:
        of_row, value = levels.of_cell[order][row_cell], levels.datum[order][row_cell]
        share = value * exchange.scale[row_item] / size[exchange.units[row_item]]
        place = exchange.units[row_item] * levels.n + of_row
        at_levels = _sums(
            Y, np.where(of_row >= 0, place, 0), np.where(of_row >= 0, share, 0), n_rows=len(size) * levels.n
        )
        D = D if levels.weights is not None else _spread(at_levels, len(size))
    first = np.unique(exchange.units, return_index=True)[1]
    codes = None if exchange.groups is None else exchange.groups[first]
    if codes is not None and (least := np.bincount(codes).min()) < 2:
        raise DataError(f"region '{region}': a group of {made.words} has {least} item; a variance needs at least 2.")
    names = tuple(exchange.items[k] + (f"+{size[j] - 1}" if size[j] > 1 else "") for j, k in enumerate(first))
    return ItemData(
        names=names,
        numbers=item_numbers(design, tuple(exchange.items[k] for k in first)),
        D=D,
        Y=Y,
        row_unit=exchange.units[row_item],
        row_cell=row_cell,
        cells=found.cells,
        weights=made.weights[order],
        codes=codes,
        groups=exchange.group_weights,
        strata=None if exchange.strata is None else exchange.strata[first],
        effect=made,
        exchange=exchange,
        features=adata.var["feature"].to_numpy(dtype=np.int64),
        dropped=_dropped(found.dropped, len(found.items) - len(exchange.items)),
        levels=at_levels,
        contrasts=exchange.contrasts,
        obs=found.numbers[inside].reset_index(drop=True),
        row_datum=row_datum,
    )


def _in_design_order(found: ItemCells, design: Design) -> ItemCells:
    """Items in the order of the design: what is relabelled by item never depends on the order of the rows."""
    order = np.argsort(item_numbers(design, found.items), kind="stable")
    row_item = np.argsort(order)[found.row_item]
    rows = np.lexsort((found.row_cell, row_item))
    return replace(
        found,
        items=tuple(found.items[k] for k in order),
        X=found.X[rows],
        row_item=row_item[rows],
        row_cell=found.row_cell[rows],
        numbers=found.numbers.iloc[rows].reset_index(drop=True),
    )


def _check_cells(effect: Effect, present: tuple[tuple[str, ...], ...], *, where: str) -> None:
    """Refuse a contrast of which a cell has no rows at all: what is left of it is no difference."""
    weighed: np.ndarray = np.any(effect.rows != 0, axis=0)
    missing = [cell for cell, used in zip(effect.cells, weighed.tolist(), strict=True) if used and cell not in present]
    if missing:
        raise DataError(
            f"{where}: no item has a row in cell {', '.join('/'.join(cell) for cell in missing)}, which the effect "
            "compares; test a region or position that all cells have."
        )


def _check_complete(items: np.ndarray, *, region: str) -> None:
    if len(set(np.bincount(items).tolist())) > 1:
        raise DataError(f"region '{region}': some items lack cells of the effect; every item must have all of them.")


def _spread(levels: sp.csc_matrix, n: int) -> sp.csc_matrix:
    """Root of every unit's sum of squares around its mean (n, m); 0 where its levels are equal up to rounding."""
    n_rows, n_features = levels.shape  # pyright: ignore[reportGeneralTypeIssues]
    K = n_rows // n
    item, col = levels.indices // K, np.repeat(np.arange(n_features), np.diff(levels.indptr))
    if not len(item):
        return sp.csc_matrix((n, n_features))
    starts = np.flatnonzero(np.r_[True, (np.diff(item) != 0) | (np.diff(col) != 0)])
    square = np.add.reduceat(levels.data**2, starts)
    left = square - np.add.reduceat(levels.data, starts) ** 2 / K
    keep = left > 1e-12 * square
    place = (item[starts][keep], col[starts][keep])
    return sp.csc_matrix((np.sqrt(left[keep]), place), shape=(n, n_features))


def _sums(
    Y: sp.csr_matrix, row_unit: np.ndarray, coefficient: np.ndarray, *, n_rows: int | None = None
) -> sp.csc_matrix:
    """Weighted sums of the rows of a unit; what cancels up to rounding is an exact zero, not an informative item.

    Responses are float32 numbers, so a sum below 2^-22 of the sizes that make it up has no digits left.
    """
    used = np.flatnonzero(coefficient)
    shape = (row_unit.max() + 1 if n_rows is None else n_rows, Y.shape[0])  # pyright: ignore[reportOptionalSubscript]
    A = sp.csr_matrix((coefficient[used], (row_unit[used], used)), shape=shape)
    D, size = sp.csc_matrix(A @ Y), sp.csc_matrix(abs(A) @ abs(Y))
    D.sort_indices()
    size.sort_indices()
    at = np.searchsorted(_places(size), _places(D))  # the product leaves out what cancels exactly
    D.data[np.abs(D.data) <= ROUNDING * size.data[at]] = 0.0
    D.eliminate_zeros()
    return D


def errors_of(data: ItemData, kept: np.ndarray) -> np.ndarray | None:
    """Rounding of every stored value of the kept columns of D, from the sizes that make it up; None if unknown."""
    used = np.flatnonzero(data.row_datum)
    if not len(used):
        return None
    shape = (data.n, data.Y.shape[0])  # pyright: ignore[reportOptionalSubscript]
    A = sp.csr_matrix((np.abs(data.row_datum[used]), (data.row_unit[used], used)), shape=shape)
    D, size = sp.csc_matrix(data.D[:, kept]), sp.csc_matrix(A @ abs(data.Y[:, kept]))
    D.sort_indices()
    size.sort_indices()
    return ROUNDING * size.data[np.searchsorted(_places(size), _places(D))]


def _places(M: sp.csc_matrix) -> np.ndarray:
    """Column x number of rows + row of every stored value, rising."""
    n_rows, n_columns = M.shape  # pyright: ignore[reportGeneralTypeIssues]
    return np.repeat(np.arange(n_columns), np.diff(M.indptr)) * n_rows + M.indices


def item_numbers(design: Design, items: tuple[str, ...]) -> np.ndarray:
    """Number of each item in the design table; it decides the item's random bits, whatever subset is tested."""
    place = {name: k for k, name in enumerate(items_of(design))}
    return np.array([place[item] for item in items], dtype=np.uint32)


def _dropped(dropped: pd.DataFrame, others: int) -> str:
    words = [f"{len(dropped)} item x frame dropped: incomplete"] if len(dropped) else []
    return "; ".join(words + ([f"{others} items belong to no cell of the effect"] if others else []))


def activity(data: ItemData, kept: np.ndarray) -> np.ndarray:
    """Log mean size of the responses (m,), the covariate of a prior's trend; no relabelling changes it.

    Activations are not negative, so their size is themselves; signed responses would cancel in a plain mean.
    """
    size = np.asarray(abs(data.Y).mean(axis=0)).ravel()[kept]
    return np.log(np.maximum(size, 1e-300))


def firing(data: ItemData, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean response over the + and the - cells of every unit, then the share that fires there; dense (n, m) each.

    Between items a unit has cells of one sign only; the other side is 0 and means nothing.
    """
    Y = data.Y[:, columns]
    fires = Y.copy()
    fires.data = (fires.data != 0).astype(float)  # a signed value is active when it is not 0
    out = []
    for matrix in (Y, fires):
        for sign in (1, -1):
            w = np.maximum(sign * data.weights[data.row_cell], 0)
            total = np.bincount(data.row_unit, w, data.n)
            w = w / np.where(total > 0, total, 1)[data.row_unit]
            A = sp.csr_matrix((w, (data.row_unit, np.arange(len(w)))), shape=(data.n, len(w)))
            out.append((A @ matrix).toarray())
    return out[0], out[1], out[2], out[3]
