"""Outcomes of stimuli under conditions -> one number per item, condition and contrast, ready to be flipped.

The unit is the item, as everywhere: frames are averaged inside an item's cells first, only frames that every one of an
item's cells has are used, and a contrast over cells is the weighted sum of an item's cell means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.design.exchange import exchangeability
from neurosae.design.units import carriers, components
from neurosae.design.weights import compile_effect
from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.units import item_numbers

ROUNDING = 1e-5  # of logits in float32, relative to 1 + their size: what is smaller is no change


class ItemOutcomes(NamedTuple):
    """Outcomes by item and cell.

    values : (n_items, n_cells, n_conditions), nan in cells that an item does not have
    numbers : of the items in the design table, which decide their random bits;  dropped : what was left out, in words
    """

    items: tuple[str, ...]
    numbers: np.ndarray
    cells: tuple[tuple[str, ...], ...]
    values: np.ndarray
    dropped: str


class UnitData(NamedTuple):
    """One contrast of an outcome: D (n_units, n_conditions), what is exchanged, and H0 in words."""

    D: np.ndarray
    numbers: np.ndarray
    names: tuple[str, ...]
    unit: str
    words: str
    note: str


def without_rounding(change: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Changes of float32 outcomes, exact zeros where they are below 1e-5 of 1 + the size of what was subtracted.

    Examples
    --------
    >>> without_rounding(np.array([3e-6, 0.2]), 1.0).tolist()
    [0.0, 0.2]
    """
    return np.where(np.abs(change) <= ROUNDING * (1 + np.abs(size)), 0.0, change)


def item_outcomes(
    values: np.ndarray,
    stimuli: pd.DataFrame,
    design: Design,
    *,
    split: str | None = "test",
    cells: Sequence[tuple[str, ...]] | None = None,
) -> ItemOutcomes:
    """Average outcomes over the frames of every item and cell.

    Parameters
    ----------
    values : array of shape (n_stimuli, n_conditions), nan where an outcome could not be scored
    stimuli : its rows, with `item`, `frame`, `split` and the factors
    split : items of this split; None for all
    cells : only these cells; left out, all of the design

    Raises
    ------
    DataError
        No item has an outcome in all of its cells.

    Examples
    --------
    >>> from neurosae.design.expand import expand
    >>> from neurosae.stats.simulate import example_design
    >>> design = example_design(3, n_frames=2)
    >>> table = expand(design)
    >>> found = item_outcomes(np.arange(len(table), dtype=float)[:, None], table, design)
    >>> found.values.shape, found.cells
    ((3, 2, 1), (('sg',), ('pl',)))
    """
    factors = list(design.factors)
    keys = pd.MultiIndex.from_frame(stimuli[factors].astype(str)).to_flat_index()
    known = [tuple(map(str, cell)) for cell in (cells or _cells_of(design))]
    place = {cell: k for k, cell in enumerate(known)}
    cell = np.array([place.get(tuple(key), -1) for key in keys])
    used = cell >= 0
    if split is not None and "split" in stimuli:
        used &= stimuli["split"].astype(str).to_numpy() == split
    rows = pd.DataFrame({"item": stimuli["item"].astype(str).to_numpy(), "frame": stimuli["frame"].astype(str)})
    rows = rows.assign(cell=cell, row=np.arange(len(stimuli)), known=np.asarray(np.isfinite(values).all(axis=1)))[used]
    kept, n_all, n_kept = _complete(rows)
    if not len(kept):
        raise DataError("no item has an outcome in every one of its cells; check the targets of the design.")
    names = tuple(dict.fromkeys(kept["item"]))
    numbers = item_numbers(design, names)
    order = np.argsort(numbers, kind="stable")
    names, numbers = tuple(names[k] for k in order), numbers[order]
    at = {name: k for k, name in enumerate(names)}
    total = np.zeros((len(names), len(known), values.shape[1]))
    count = np.zeros((len(names), len(known)))
    where = (kept["item"].map(at).to_numpy(), kept["cell"].to_numpy())
    np.add.at(total, where, values[kept["row"].to_numpy()])
    np.add.at(count, where, 1)
    with np.errstate(invalid="ignore"):
        mean = np.where(count[..., None] > 0, total / np.maximum(count, 1)[..., None], np.nan)
    dropped = f"{n_all - n_kept} item x frame dropped: incomplete, or not scored" if n_kept < n_all else ""
    return ItemOutcomes(names, numbers, tuple(known), mean, dropped)


def _cells_of(design: Design) -> list[tuple[str, ...]]:
    grid = pd.MultiIndex.from_product([list(f.levels) for f in design.factors.values()])
    return [tuple(map(str, cell)) if isinstance(cell, tuple) else (str(cell),) for cell in grid.to_flat_index()]


def _complete(rows: pd.DataFrame) -> tuple[pd.DataFrame, int, int]:
    """Rows of the frames with a finite outcome in every cell that the item has in any frame; how many there are."""
    own = rows.groupby("item", sort=False)["cell"].nunique()
    frames = rows.groupby(["item", "frame"], sort=False).agg(cells=("cell", "nunique"), known=("known", "all"))
    full = frames["known"] & (frames["cells"] == own.reindex(frames.index.get_level_values("item")).to_numpy())
    inside = full.reindex(pd.MultiIndex.from_frame(rows[["item", "frame"]])).to_numpy(dtype=bool)
    return rows[inside], len(full), int(full.sum())


def unit_data(outcomes: ItemOutcomes, design: Design, effect: Mapping[str, Any] | None = None) -> UnitData:
    """The datum of every unit: the mean over its cells, or the weighted sum of an effect.

    Parameters
    ----------
    outcomes : outcomes by item and cell, of every cell that the effect weighs
    effect : as written under `effects:`; None for the mean over an item's own cells

    Raises
    ------
    DataError
        The effect compares items with each other, so that flips say nothing about it.
    """
    if effect is None:
        units = components(design, outcomes.items, carriers(design, tuple(design.factors)))
        D = without_rounding(np.nanmean(outcomes.values, axis=1), np.nanmean(np.abs(outcomes.values), axis=1))
        unit = "shared forms" if design.unit == "shared_forms" else "item"
        return UnitData(*_merged(D, units, outcomes), unit, "the mean over an item's cells", "")
    made = compile_effect(design, dict(effect))
    how = exchangeability(design, made, items=outcomes.items, flips_only=True)
    if how.kind != "flip":
        raise DataError(f"{made.words} compares items with each other; an intervention is tested within items.")
    at = {cell: k for k, cell in enumerate(outcomes.cells)}
    chosen = [k for k, weight in enumerate(how.datum) if weight]
    missing = [made.cells[k] for k in chosen if tuple(map(str, made.cells[k])) not in at]
    if missing:
        raise DataError(f"the effect weighs cell '{'/'.join(missing[0])}', which was not run.")
    rows = np.array([outcomes.items.index(name) for name in how.items])
    V = outcomes.values[rows][:, [at[tuple(map(str, made.cells[k]))] for k in chosen]]
    own = np.asarray(np.isfinite(V).all(axis=2))
    D = (how.datum[chosen][None, :, None] * np.where(own[..., None], V, 0.0)).sum(axis=1) * how.scale[:, None]
    # what cancels between cells up to rounding is an exact zero: nothing may be found in the digits of float32
    D = without_rounding(
        D, (np.abs(how.datum[chosen])[None, :, None] * np.where(own[..., None], np.abs(V), 0.0)).sum(axis=1)
    )
    part = outcomes._replace(items=how.items, numbers=outcomes.numbers[rows])
    return UnitData(*_merged(D, how.units, part), how.unit, made.words, how.note)


def _merged(D: np.ndarray, units: np.ndarray, outcomes: ItemOutcomes) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Units that share forms become one row, the mean over their items."""
    n = int(units.max()) + 1
    size = np.bincount(units, minlength=n)
    first = np.unique(units, return_index=True)[1]
    total = np.zeros((n, D.shape[1]))
    np.add.at(total, units, D)
    names = tuple(outcomes.items[k] + (f"+{size[u] - 1}" if size[u] > 1 else "") for u, k in enumerate(first))
    return total / size[:, None], outcomes.numbers[first], names
