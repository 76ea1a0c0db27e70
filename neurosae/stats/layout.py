"""Rows of a parametric model: what one row is, its unit and frame, and the effect as weights over columns.

| rows | one row | columns of X |
|---|---|---|
| `items` | a unit's datum: its contrast within items, or its mean | one per group of items |
| `cells` | an item's mean in a cell, frames averaged | one per cell |
| `stimuli` | a stimulus | one per cell; frames as deviations |
| `frames` | a unit's datum in one frame | one per group of items |

Effects between items have a column per stratum of the design too (deviations from the mean of the strata, no claim over
them), as their relabellings stay inside strata; an effect within items compares items with themselves and needs none.

Cell means as columns make the weights of an effect, as written, the contrast of the coefficients. The datum, the units
(items, or items merged by shared forms) and the groups are those of `design.exchange`, as in every other test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import scipy.sparse as sp

from neurosae.design.exchange import Exchange, exchangeability
from neurosae.design.units import carriers, components, items_of
from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import DataError, SpecError
from neurosae.extraction.responses import ItemCells, item_cells
from neurosae.spec.design import Design
from neurosae.spec.frames import between

BLOCK = "stratum "  # how names of columns of strata begin


class Layout(NamedTuple):
    """Rows and columns of a model for all features of a site.

    Y : CSC (N, m);  X : (N, K), named;  weights : (K,), the effect
    unit, frame : (N,), numbers of the unit and of the frame of each row (frame 0 where frames are averaged)
    n_units, n_frames : how many there are;  activity : (m,) mean size of the responses in the rows
    is_between : the effect compares groups of items;  is_difference : the datum is a contrast within items
    dropped : what could not be used, in words
    """

    Y: sp.csc_matrix
    X: np.ndarray
    names: tuple[str, ...]
    weights: np.ndarray
    unit: np.ndarray
    frame: np.ndarray
    n_units: int
    n_frames: int
    activity: np.ndarray
    is_between: bool
    is_difference: bool
    dropped: str


def layout(adata: Any, design: Design, effect: Mapping[str, Any], *, rows: str, where: tuple[str, int, str]) -> Layout:
    """The rows of one effect at one place.

    Parameters
    ----------
    adata : responses of one site
    effect : as written
    rows : `items`, `cells`, `stimuli` or `frames`
    where : region, position and split

    Raises
    ------
    DataError
        A slope or all levels at once (no single contrast), or items that lack cells of the effect.
    SpecError
        `items` and `frames`: the effect has no datum of a unit.
    """
    made = compile_effect(design, dict(effect))
    if made.omnibus is not None or made.slope is not None:
        raise DataError(f"{made.words}: no single contrast of cells; write weights of levels, or use `test: contrast`.")
    apart = rows in ("stimuli", "frames")
    region, position, split = where
    common = {"region": region, "position": position, "split": split}
    found = item_cells(adata, design, frames="separate" if apart else "mean", **common)
    try:
        exchange = exchangeability(design, made, items=found.items)
    except SpecError:
        if rows in ("items", "frames"):
            raise
        exchange = None
    unit = _units(design, made, found, exchange=exchange)
    cells = [cell[:-1] if apart else cell for cell in found.cells]
    frames = list(dict.fromkeys(cell[-1] for cell in found.cells)) if apart else [""]
    place = {cell: k for k, cell in enumerate(made.cells)}
    inside = unit[found.row_item] >= 0
    table = _Rows(
        found.X[inside],
        unit[found.row_item[inside]],
        found.row_item[inside],
        np.array([place[cell] for cell in cells])[found.row_cell[inside]],
        np.array([frames.index(cell[-1]) if apart else 0 for cell in found.cells])[found.row_cell[inside]],
    )
    if missing := {made.cells[k] for k in np.flatnonzero(made.weights)} - {made.cells[k] for k in set(table.cell)}:
        names = ", ".join(sorted("/".join(cell) for cell in missing))
        raise DataError(f"region '{region}': no row in cell {names}, so the effect cannot be estimated.")
    makers = {"items": _datum_rows, "frames": _datum_rows}
    Y, X, names, weights, own, frame = makers.get(rows, _cell_rows)(design, made, table, exchange=exchange)
    n_dropped = len(found.dropped)
    is_between = exchange is not None and exchange.groups is not None
    if is_between and design.strata is not None:
        assert exchange is not None
        X, names, weights = _with_strata(design, exchange, own, columns=(X, names, weights))
    return Layout(
        Y=Y,
        X=X,
        names=names,
        weights=weights,
        unit=own,
        frame=frame,
        n_units=len(np.unique(own)),
        n_frames=len(frames) if apart else found.n_frames,
        activity=np.asarray(abs(table.X).mean(axis=0)).ravel(),
        is_between=is_between,
        is_difference=exchange is None or abs(_within_sum(design, made, exchange)) < 1e-9,
        dropped=f"{n_dropped} item x frame dropped: incomplete" if n_dropped else "",
    )


def _with_strata(
    design: Design, exchange: Exchange, unit: np.ndarray, *, columns: tuple[np.ndarray, tuple[str, ...], np.ndarray]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """X with the strata of the rows' units as deviations from their mean, which leave the effect's weights alone."""
    X, names, weights = columns
    items, label = items_of(design), str(design.strata)
    of_unit = {k: items[name].labels[label] for name, k in zip(exchange.items, exchange.units.tolist(), strict=True)}
    own = np.array([of_unit[k] for k in unit])
    strata = sorted(set(own))
    last = own == strata[-1]
    blocks = np.column_stack([(own == s) - 1.0 * last for s in strata[:-1]]) if len(strata) > 1 else X[:, :0]
    X = np.column_stack([X, blocks])
    if np.linalg.matrix_rank(X) < X.shape[1]:
        raise DataError(
            f"the strata ({label}) and the groups of items cannot be told apart: some groups share no stratum. Leave "
            "`strata` out of the design, or give every stratum items of all groups."
        )
    return X, (*names, *(f"{BLOCK}{s}" for s in strata[:-1])), np.r_[weights, np.zeros(len(strata) - 1)]


class _Rows(NamedTuple):
    """Responses (n, m) with the unit, item, cell (number in the design) and frame of each row."""

    X: sp.csr_matrix
    unit: np.ndarray
    item: np.ndarray
    cell: np.ndarray
    frame: np.ndarray


def _units(design: Design, made: Effect, found: ItemCells, *, exchange: Exchange | None) -> np.ndarray:
    """Unit of each item; -1 for items that take no part."""
    if exchange is None:
        return components(design, list(found.items), carriers(design, made.factors))
    number = dict(zip(exchange.items, exchange.units.tolist(), strict=True))
    return np.array([number.get(name, -1) for name in found.items])


def _within_sum(design: Design, made: Effect, exchange: Exchange) -> float:
    """Sum of the datum over the cells of one group of items: 0 where it is a contrast."""
    group = _groups_of_cells(design, made)
    return float(sum(exchange.datum[k] for k in range(len(group)) if group[k] == group[0]))


def _groups_of_cells(design: Design, made: Effect) -> list[tuple[str, ...]]:
    own = between(design)
    at = [list(design.factors).index(name) for name in own]
    return [tuple(cell[i] for i in at) for cell in made.cells]


def _datum_rows(design: Design, made: Effect, table: _Rows, *, exchange: Exchange | None):
    """One row per unit and frame: the mean over its items of sum_c datum_c y_c; groups of items are the columns."""
    assert exchange is not None
    n_frames = int(table.frame.max()) + 1
    place, code = np.unique(table.unit * n_frames + table.frame, return_inverse=True)
    used = exchange.datum[table.cell] != 0
    pairs = np.unique(np.column_stack([code, table.item]), axis=0, return_counts=False)
    counts = np.unique(np.column_stack([code, table.item])[used], axis=0, return_counts=True)[1]
    if len(set(counts.tolist())) > 1:
        raise DataError("some items lack cells of the effect; every item must have all of them.")
    share = exchange.datum[table.cell] / np.bincount(pairs[:, 0])[code]
    Y = sp.csc_matrix(sp.csr_matrix((share, (code, np.arange(len(code)))), shape=(len(place), len(code))) @ table.X)
    largest = np.asarray(abs(table.X).max(axis=0).todense()).ravel() * np.abs(share).max()
    Y.data[np.abs(Y.data) <= 1e-12 * np.repeat(largest, np.diff(Y.indptr))] = 0.0  # what cancels is an exact zero
    Y.eliminate_zeros()
    groups, of_cell = _groups_of_cells(design, made), dict[tuple[str, ...], float]()
    for name in dict.fromkeys(groups):
        own = [k for k, group in enumerate(groups) if group == name]
        v, w = exchange.datum[own], made.weights[own]
        of_cell[name] = float(v @ w / (v @ v))
    levels = items_of(design)
    group_of = {k: tuple(levels[i].levels.values()) for i, k in zip(exchange.items, exchange.units, strict=True)}
    present = [name for name in of_cell if name in set(group_of.values())]
    unit, frame = place // n_frames, place % n_frames
    X = np.array([[group_of[k] == name for name in present] for k in unit], dtype=float)
    names = tuple("/".join(name) or "mean" for name in present)
    return Y, X, names, np.array([of_cell[name] for name in present]), unit, frame


def _cell_rows(design: Design, made: Effect, table: _Rows, *, exchange: Exchange | None):
    """The rows as they are; a column per cell, and frames as deviations from their mean."""
    present = np.unique(table.cell)
    X = (table.cell[:, None] == present).astype(float)
    names = ["/".join(made.cells[k]) for k in present]
    weights = made.weights[present]
    n_frames = int(table.frame.max()) + 1
    if n_frames > 1:
        deviations = (table.frame[:, None] == np.arange(n_frames - 1)) - 1.0 * (table.frame == n_frames - 1)[:, None]
        X = np.column_stack([X, deviations])
        names += [f"frame {k + 1}" for k in range(n_frames - 1)]
        weights = np.r_[weights, np.zeros(n_frames - 1)]
    return cast(sp.csc_matrix, table.X.tocsc()), X, tuple(names), weights, table.unit, table.frame
