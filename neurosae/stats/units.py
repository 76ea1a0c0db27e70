"""From responses to what is relabelled: one number per unit and feature, and how units may be exchanged.

The design decides (`design.exchange`): within items the datum is the contrast d_i = sum_c w_c y_ic, whose sign is
flipped; between items it is the item's value, or its within-item difference, whose label is permuted inside strata. A
unit is an item, or with `unit: shared_forms` the mean over items that share a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.design.exchange import Exchange, exchangeability
from neurosae.design.units import items_of
from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import DataError
from neurosae.extraction.responses import item_cells
from neurosae.spec.design import Design

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
    adata: AnnData, design: Design, effect: Mapping, *, region: str, position: int = 0, split: str = "test"
) -> ItemData:
    """Data of every unit for one effect, with the relabellings that the design admits.

    Raises
    ------
    DataError
        If some items lack cells that others have, or a group has fewer than two units.
    SpecError
        If the effect cannot be estimated, or no relabelling of whole items tests it.
    """
    made = compile_effect(design, dict(effect))
    found = item_cells(adata, design, region=region, position=position, split=split)
    exchange = exchangeability(design, made, items=found.items)  # pyright: ignore[reportArgumentType]
    place = {name: k for k, name in enumerate(exchange.items)}
    taking_part = np.array([place.get(name, -1) for name in found.items])
    inside = taking_part[found.row_item] >= 0
    row_item, row_cell, Y = taking_part[found.row_item[inside]], found.row_cell[inside], found.X[inside]
    at = {cell: k for k, cell in enumerate(made.cells)}
    order = np.array([at[cell] for cell in found.cells])
    datum = exchange.datum[order]
    _check_complete(row_item[datum[row_cell] != 0], region=region)
    size = np.bincount(exchange.units)
    D = _sums(
        Y, exchange.units[row_item], (datum[row_cell] * exchange.scale[row_item]) / size[exchange.units[row_item]]
    )
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
    )


def _check_complete(items: np.ndarray, *, region: str) -> None:
    if len(set(np.bincount(items).tolist())) > 1:
        raise DataError(f"region '{region}': some items lack cells of the effect; every item must have all of them.")


def _sums(Y: sp.csr_matrix, row_unit: np.ndarray, coefficient: np.ndarray) -> sp.csc_matrix:
    """Weighted sums of the rows of a unit; what cancels up to rounding is an exact zero, not an informative item."""
    used = np.flatnonzero(coefficient)
    n_rows = Y.shape[0]  # pyright: ignore[reportOptionalSubscript]
    A = sp.csr_matrix((coefficient[used], (row_unit[used], used)), shape=(row_unit.max() + 1, n_rows))
    D = sp.csc_matrix(A @ Y)
    largest = abs(Y).max(axis=0).toarray().ravel() * np.abs(coefficient).max()
    D.data[np.abs(D.data) <= 1e-12 * np.repeat(largest, np.diff(D.indptr))] = 0.0
    D.eliminate_zeros()
    D.sort_indices()
    return D


def item_numbers(design: Design, items: tuple[str, ...]) -> np.ndarray:
    """Number of each item in the design table; it decides the item's random bits, whatever subset is tested."""
    place = {name: k for k, name in enumerate(items_of(design))}
    return np.array([place[item] for item in items], dtype=np.uint32)


def _dropped(dropped: pd.DataFrame, others: int) -> str:
    words = [f"{len(dropped)} item x frame dropped: incomplete"] if len(dropped) else []
    return "; ".join(words + ([f"{others} items belong to no cell of the effect"] if others else []))


def firing(data: ItemData, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean response over the + and the - cells of every unit, then the share that fires there; dense (n, m) each.

    Between items a unit has cells of one sign only; the other side is 0 and means nothing.
    """
    Y = data.Y[:, columns]
    fires = Y.copy()
    fires.data = (fires.data > 0).astype(float)
    out = []
    for matrix in (Y, fires):
        for sign in (1, -1):
            w = np.maximum(sign * data.weights[data.row_cell], 0)
            total = np.bincount(data.row_unit, w, data.n)
            w = w / np.where(total > 0, total, 1)[data.row_unit]
            A = sp.csr_matrix((w, (data.row_unit, np.arange(len(w)))), shape=(data.n, len(w)))
            out.append((A @ matrix).toarray())
    return out[0], out[1], out[2], out[3]
