"""One regressor beside nuisance, the same for all features: what is left of it, its slope, and when it is refused.

Within items the model of an item's difference is D_i = b + z_i'g + e_i with z the *uncentred* nuisance difference: b is
the effect at equal nuisance. Centring z would give the mean nuisance difference back to b, and the test of b would
reject for it. Between items an intercept belongs to the nuisance, and centring changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError

EXPLAINED = 1e-9  # share of a sum of squares below which nothing is left but rounding
REFUSED, WARNED = (
    20.0,
    5.0,
)  # variance inflation: beyond the first nothing is tested, beyond the second the note says so


class Model(NamedTuple):
    """A regression that all features share.

    x : array of shape (n,), unit vector, what is left of the regressor beside the nuisance
    Q : array of shape (n, k), orthonormal basis of the nuisance; no relabelling moves its first `n_fixed` columns
    length : |R X| in units of the regressor, so that the slope is x'y / length
    vif : variance inflation, |X|^2 (about the mean, where there is an intercept) over |R X|^2
    """

    x: np.ndarray
    Q: np.ndarray
    n_fixed: int
    length: float
    vif: float

    @property
    def df(self) -> int:
        """Degrees of freedom of t: items less nuisance less one."""
        return len(self.x) - self.Q.shape[1] - 1


class Adjustment(NamedTuple):
    """The regression of an effect.

    model : what the relabelling kernels need
    names : nuisance columns that are regressed out;  note : what the reader must know of them
    slope : whether the regressor is a number that items carry, and its coefficient the effect
    """

    model: Model
    names: tuple[str, ...]
    note: str
    slope: bool = False


def adjust(
    X: np.ndarray,
    nuisance: Mapping[str, np.ndarray],
    *,
    fixed: np.ndarray | None = None,
    others: np.ndarray | None = None,
) -> tuple[Model | None, tuple[str, ...], str]:
    """Regress nuisance out of an effect, or refuse to.

    Parameters
    ----------
    X : array of shape (n,), the tested regressor
    nuisance : name -> array of shape (n,): within items the *uncentred* difference, between items the item's value
    fixed : array of shape (n, f), what no relabelling moves (the intercept); None for sign flips
    others : array of shape (n, o), directions of the model that are neither tested nor nuisance

    Returns
    -------
    model : None where nothing is regressed out of differences within items
    names : the columns that are regressed out
    note : in words, "" without nuisance

    Raises
    ------
    DataError
        If a value is missing, columns are collinear, or variance inflation n / |R X|^2 is above 20: the nuisance hardly
        varies over items, so that the effect cannot be told from it.

    Examples
    --------
    >>> _, names, note = adjust(np.ones(6), {"n_tokens": np.array([0.0, 1, 2, 0, 1, 2]), "frequency": np.zeros(6)})
    >>> names, note.partition(";")[2]
    (('n_tokens',), ' nuisance frequency does not differ and is left out')
    """
    for name, z in nuisance.items():
        if n := int((~np.isfinite(z)).sum()):
            raise DataError(f"nuisance '{name}' is missing for {n} of {len(z)} items; leave it, or those items, out.")
    basis = np.empty((len(X), 0)) if fixed is None else orthonormal(fixed)
    gone = [name for name, z in nuisance.items() if not orthonormal(z[:, None], basis).size]
    kept = tuple(name for name in nuisance if name not in gone)
    said = f"nuisance {' and '.join(gone)} {'do' if gone[1:] else 'does'} not differ and {'are' if gone[1:] else 'is'}"
    left_out = [f"{said} left out"] if gone else []
    if fixed is None and not kept:
        return None, (), "; ".join(left_out)
    grown = basis[:, :0] if others is None else orthonormal(others, basis)
    names = (*("the groups" for _ in grown.T), *kept)
    model = fit_model(X, np.column_stack([grown, *(nuisance[name] for name in kept)]), fixed=fixed, names=names)
    if kept and model.vif > REFUSED:
        raise DataError(_aliased(kept, model.vif))
    return model, kept, "; ".join([*([_note(kept, model.vif)] if kept else []), *left_out])


def _aliased(names: tuple[str, ...], vif: float) -> str:
    return (
        f"nuisance {' and '.join(dict.fromkeys(names))} hardly varies over items beside the tested effect (variance "
        f"inflation {vif:.0f}, at most {REFUSED:g}), so the effect cannot be told from it; change the stimuli."
    )


def _note(names: tuple[str, ...], vif: float) -> str:
    warning = ", large: the adjusted estimate is imprecise" if vif > WARNED else ""
    return (
        f"approximate: adjusted for {' and '.join(names)} by Freedman and Lane's method "
        f"(variance inflation {vif:.2g}{warning})"
    )


def fit_model(X: np.ndarray, Z: np.ndarray, *, fixed: np.ndarray | None = None, names: Sequence[str] = ()) -> Model:
    """Orthonormalise a regressor beside its nuisance.

    Parameters
    ----------
    X : array of shape (n,), the tested regressor; ones for the mean of item differences
    Z : array of shape (n, k), nuisance, never centred here
    fixed : array of shape (n, f), optional
        What no relabelling moves and the model contains: the intercept, indicators of blocks. None without an
        intercept.
    names : names of the columns of Z, for refusals

    Raises
    ------
    DataError
        If columns of the nuisance are collinear, or the regressor is a combination of them, or too few items are left.

    Examples
    --------
    >>> model = fit_model(np.ones(4), np.array([[1.0], [1.0], [0.0], [0.0]]))
    >>> model.x.round(3).tolist(), model.df, round(model.vif, 3)
    ([0.0, 0.0, 0.707, 0.707], 2, 2.0)
    """
    fixed = np.empty((len(X), 0)) if fixed is None else fixed
    basis = orthonormal(fixed)
    n_fixed = basis.shape[1]
    for j, column in enumerate(Z.T):
        grown = orthonormal(column[:, None], basis)
        if not grown.shape[1]:
            beside = " and ".join(dict.fromkeys(names[:j])) or "the others"
            raise DataError(f"nuisance '{names[j] if names else j + 1}' is a combination of {beside}; leave it out.")
        basis = np.column_stack([basis, grown])
    size = np.sqrt((_beside(X, basis[:, :n_fixed]) ** 2).sum())
    left = _beside(X, basis)
    length = np.sqrt((left**2).sum())
    if size <= 1e-8 * np.sqrt((X**2).sum()):
        raise DataError("the tested regressor is the same for all items, or for all items of a group; nothing to test.")
    if length <= 1e-5 * size:
        raise DataError(_aliased(tuple(names) or ("columns",), np.inf))
    if len(X) - basis.shape[1] < 2:
        raise DataError(f"{len(X)} items are too few beside {basis.shape[1]} nuisance columns; add items.")
    return Model(left / length, np.ascontiguousarray(basis), n_fixed, float(length), float((size / length) ** 2))


def orthonormal(columns: np.ndarray, basis: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal basis of what columns add to a basis: Gram-Schmidt, done twice, as plain sums.

    Examples
    --------
    >>> orthonormal(np.array([[1.0, 2.0], [1.0, 2.0]])).shape
    (2, 1)
    """
    start = np.empty((len(columns), 0)) if basis is None else basis
    made = start
    for column in columns.T:
        left = _beside(column.astype(float), made)
        length = np.sqrt((left**2).sum())
        if length > 1e-8 * np.sqrt((column**2).sum()):
            made = np.column_stack([made, left / length])
    return made[:, start.shape[1] :]


def _beside(x: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What is left of x beside an orthonormal basis; a threaded BLAS would make last digits depend on the machine."""
    for _ in range(2):
        for q in basis.T:
            x = x - (q * x).sum() * q
    return x


def residual_squares(Y: sp.csc_matrix, basis: np.ndarray) -> np.ndarray:
    """|y|^2 - |Q'y|^2 of every column, array of shape (m,), Q orthonormal; exactly 0 where Q explains the column."""
    total, inside = column_sums(Y, Y.data**2), Y.T @ basis
    left = total - (inside**2).sum(axis=1)
    close = np.flatnonzero((left < 1e-4 * total) & (total > 0))
    for j in close:  # digits are lost in the difference: once more from the residuals themselves
        rows = slice(Y.indptr[j], Y.indptr[j + 1])
        y = np.zeros(len(basis))
        y[Y.indices[rows]] = Y.data[rows]
        left[j] = (_beside(y, basis) ** 2).sum()
    return np.where(left > EXPLAINED * total, left, 0.0)


def slopes(Y: sp.csc_matrix, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares coefficient of the regressor and its standard error, arrays of shape (m,), in units of Y per X.

    Examples
    --------
    >>> y = sp.csc_matrix(np.array([[1.0], [2.0], [4.0]]))
    >>> b, se = slopes(y, fit_model(np.arange(3.0), np.empty((3, 0)), fixed=np.ones((3, 1))))
    >>> b.round(6).tolist(), se.round(6).tolist()
    ([1.5], [0.288675])
    """
    inner = column_sums(Y, Y.data * model.x[Y.indices])
    rss = residual_squares(Y, np.column_stack([model.Q, model.x]))
    return inner / model.length, np.sqrt(rss / model.df) / model.length


def column_sums(Y: sp.csc_matrix, values: np.ndarray) -> np.ndarray:
    """Sums over the stored entries of every column."""
    m = Y.shape[1]  # pyright: ignore[reportOptionalSubscript]
    return np.bincount(np.repeat(np.arange(m), np.diff(Y.indptr)), values, m)
