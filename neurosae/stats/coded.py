r"""Rows with a + or - label: the patterns of one effect, in the form in which labels are exchanged.

A row is the pattern of an item in one cell, averaged over frames. Its label is the sign of the cell's weight, its
context the levels of all other factors. Relabelling exchanges + and - inside an item, in all of its contexts at once,
or the labels of whole items, and never touches a pattern: everything that follows is a function of the inner products
of the rows, which are computed once, and of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.relabel import Relabelling, labels, signs
from neurosae.stats.units import ItemData


@dataclass(frozen=True)
class Coded:
    """Labelled rows of one effect at one place.

    Attributes
    ----------
    X : array of shape (n_rows, n_features), standardized without looking at labels (`standardized`)
    unit, label, context : of every row; label +1 or -1
    n_units : number of units;  weights : of the contexts, sum 1
    codes, group_label : for labels between units the group of each unit, and the label of each group; else None
    """

    X: np.ndarray
    unit: np.ndarray
    label: np.ndarray
    context: np.ndarray
    n_units: int
    weights: np.ndarray
    codes: np.ndarray | None = None
    group_label: np.ndarray | None = None

    @property
    def gram(self) -> np.ndarray:
        """Inner products of the rows (n_rows, n_rows)."""
        return self.X @ self.X.T

    @property
    def shared(self) -> bool:
        """Whether some unit has rows in several contexts, which a classifier must not see on both sides."""
        pairs = len(set(zip(self.unit.tolist(), self.context.tolist(), strict=True)))
        return pairs > len(np.unique(self.unit))


def standardized(X: np.ndarray) -> np.ndarray:
    """Columns around their mean, each divided by sqrt(its variance + the median variance); no label is looked at.

    Examples
    --------
    >>> standardized(np.array([[0.0, 1.0], [2.0, 1.0]])).round(3).tolist()
    [[-0.707, 0.0], [0.707, 0.0]]
    """
    variance = X.var(axis=0)
    used = variance[variance > 0]
    typical = float(np.median(used)) if len(used) else 1.0
    return (X - X.mean(axis=0)) / np.sqrt(variance + typical)


def coded_rows(data: ItemData, columns: np.ndarray, *, across: int | None = None, scaled: bool = True) -> Coded:
    """The labelled rows of an effect that compares two levels of one factor.

    Parameters
    ----------
    data : item data of the effect
    columns : int array, the features
    across : number of the factor in the design whose levels are the contexts; default all factors but the labelled
    scaled : whether columns are standardized, without looking at labels

    Raises
    ------
    DataError
        If a context lacks one of the two labels.
    """
    weight = data.weights[data.row_cell]
    used = np.flatnonzero(weight != 0)
    place = data.row_unit[used] * len(data.cells) + data.row_cell[used]
    rows, inverse, counts = np.unique(place, return_inverse=True, return_counts=True)
    mean = sp.csr_matrix((1 / counts[inverse], (inverse, used)), shape=(len(rows), data.Y.shape[0]))  # pyright: ignore
    X = (mean @ data.Y[:, columns]).toarray()
    X = standardized(X) if scaled and len(columns) else X
    unit, cell = rows // len(data.cells), rows % len(data.cells)
    axis = _label_axis(data)
    free = [k for k in range(len(data.cells[0])) if k != axis] if across is None else [across]
    rest = [tuple(data.cells[c][k] for k in free) for c in cell]
    names = list(dict.fromkeys(rest))
    context = np.array([names.index(one) for one in rest])
    label = np.sign(data.weights[cell])
    for k, name in enumerate(names):
        if len(set(label[context == k])) < 2:
            raise DataError(
                f"at {'/'.join(name) or 'all cells'} there is only one of the two levels; both must have items there."
            )
    share = np.array([np.abs(data.weights[np.unique(cell[context == k])]).sum() for k in range(len(names))])
    group_label = None if data.groups is None else np.sign(data.groups)
    return Coded(X, unit, label, context, data.n, share / share.sum(), data.codes, group_label)


def _label_axis(data: ItemData) -> int:
    """The factor whose levels carry the sign of the weights."""
    weights = dict(zip(data.effect.cells, data.effect.weights, strict=True))
    for axis in range(len(data.effect.cells[0])):
        signs_of: dict[str, set[float]] = {}
        for cell, weight in weights.items():
            signs_of.setdefault(cell[axis], set()).add(float(np.sign(weight)))
        if any(1.0 in s for s in signs_of.values()) and all(not {1.0, -1.0} <= s for s in signs_of.values()):
            return axis
    raise DataError("the effect is no difference of two levels of one factor, so its cells have no + and - label.")


def relabelled(coded: Coded, relabelling: Relabelling, place: np.ndarray, *, first: int, count: int) -> np.ndarray:
    """Labels of all rows under relabellings first … first + count - 1, of shape (count, n_rows).

    place : where each unit stands in the relabelling
    """
    if relabelling.kind == "flip":
        return signs(relabelling, first, count)[:, place][:, coded.unit] * coded.label
    assert coded.group_label is not None
    return coded.group_label[labels(relabelling, first, count)[:, place]][:, coded.unit]


@dataclass(frozen=True)
class CellRows:
    """Patterns of units in cells: X (n_rows, n_features) as they are, unit and cell (number in `ItemData.cells`)."""

    X: np.ndarray
    unit: np.ndarray
    cell: np.ndarray


def cell_rows(data: ItemData, columns: np.ndarray) -> CellRows:
    """One row per unit x cell, the items of a unit averaged."""
    place = data.row_unit * len(data.cells) + data.row_cell
    rows, inverse, counts = np.unique(place, return_inverse=True, return_counts=True)
    mean = sp.csr_matrix((1 / counts[inverse], (inverse, np.arange(len(place)))), shape=(len(rows), len(place)))
    return CellRows((mean @ data.Y[:, columns]).toarray(), rows // len(data.cells), rows % len(data.cells))
