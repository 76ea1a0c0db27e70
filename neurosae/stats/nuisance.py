"""One regressor beside nuisance, the same for all features: what is left of it, its slope, and when it is refused.

Within items the model of an item's difference is D_i = b + z_i'g + e_i with z the *uncentred* nuisance difference: b is
the effect at equal nuisance. Centring z would give the mean nuisance difference back to b, and the test of b would
reject for it. Between items an intercept belongs to the nuisance, and centring changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError

EXPLAINED = 1e-9  # share of a sum of squares below which nothing is left but rounding


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


def fit_model(X: np.ndarray, Z: np.ndarray, *, fixed: np.ndarray | None = None) -> Model:
    """Orthonormalise a regressor beside its nuisance.

    Parameters
    ----------
    X : array of shape (n,), the tested regressor; ones for the mean of item differences
    Z : array of shape (n, k), nuisance, never centred here
    fixed : array of shape (n, f), optional
        What no relabelling moves and the model contains: the intercept, indicators of blocks. None without an
        intercept.

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
            raise DataError(f"nuisance column {j + 1} is a combination of the others; leave it out.")
        basis = np.column_stack([basis, grown])
    size = np.sqrt((_beside(X, basis[:, :n_fixed]) ** 2).sum())
    left = _beside(X, basis)
    length = np.sqrt((left**2).sum())
    if size <= 1e-8 * np.sqrt((X**2).sum()) or length <= 1e-5 * size:
        raise DataError("the tested regressor is a combination of the nuisance columns: they cannot be told apart.")
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
