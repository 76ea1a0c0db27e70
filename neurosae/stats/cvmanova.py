r"""Cross-validated MANOVA: the multivariate length of an effect, in units of the error covariance.

For folds l = 1 … F of items, with B_l the cell means of fold l projected on the contrast, X_l'X_l the rows per cell,
E_l the error sums of products and f_l their degrees of freedom,

    D = 1/F sum_l (f_{-l} - p - 1) / n_l  tr( mean_{k != l} B_k' X_l'X_l B_l  E_{-l}^{-1} ),

E_{-l} the sum over the other folds, shrunk (1 - lambda) E + lambda diag(E). Unbiased for lambda = 0; may be negative.
Under H0 the sign of every fold's contrast may be turned, so term (k, l) is multiplied by s_k s_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError


class Fold(NamedTuple):
    """One fold: cell means (n_cells, p), rows per cell (n_cells,), error sums of products (p, p), their df."""

    means: np.ndarray
    counts: np.ndarray
    error: np.ndarray
    df: int


def fold_of(
    Y: np.ndarray, cell: np.ndarray, *, n_cells: int, block: np.ndarray | None = None, n_groups: int = 1
) -> Fold:
    """Cell means and errors of the rows of one fold.

    Parameters
    ----------
    Y : array of shape (n_rows, p)
    cell : int array of shape (n_rows,)
    block : int array of shape (n_rows,), optional
        Items whose own level is no error, where each has rows in all cells of its group.
    n_groups : int
        Groups of items, with cells of their own.

    Raises
    ------
    DataError
        If a cell has no row, or nothing is left for the error.
    """
    counts = np.bincount(cell, minlength=n_cells)
    if not counts.all():
        raise DataError(f"a fold has no item in {int((counts == 0).sum())} of {n_cells} cells; use fewer folds.")
    means = np.stack([Y[cell == c].mean(axis=0) for c in range(n_cells)])
    left, df = Y - means[cell], len(Y) - n_cells
    if block is not None:
        codes = np.unique(block, return_inverse=True)[1]
        level = np.stack([left[codes == i].mean(axis=0) for i in range(codes.max() + 1)])
        left, df = left - level[codes], df - (codes.max() + 1 - n_groups)
    if df < 1:
        raise DataError("a fold has as many cells and items as rows, so it has no error; use fewer folds.")
    return Fold(means, counts.astype(float), left.T @ left, int(df))


def cv_manova(
    folds: Sequence[Fold], contrast: np.ndarray, *, shrinkage: float = 0.0, signs: np.ndarray | None = None
) -> np.ndarray:
    """Pattern distinctness D under every choice of fold signs.

    Parameters
    ----------
    folds : see `fold_of`
    contrast : array of shape (n_cells,) or (n_cells, r)
    shrinkage : lambda, the weight of the diagonal of the error covariance
    signs : array of shape (n, n_folds), the observed signs (all +1) first; default only those

    Returns
    -------
    array of shape (n,)

    Raises
    ------
    DataError
        If p is not smaller than the degrees of freedom of the error, or a feature has no error.

    References
    ----------
    Allefeld & Haynes (2014), NeuroImage 89:345.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> cell = np.repeat([0, 1], 10)
    >>> made = [fold_of(rng.standard_normal((20, 2)) + 2.0 * cell[:, None], cell, n_cells=2) for _ in range(4)]
    >>> bool(1.0 < cv_manova(made, np.array([-1.0, 1.0]))[0] < 3.0)  # 2 features, each 1 from the mean: 2
    True
    """
    C = np.asarray(contrast, dtype=float).reshape(len(folds[0].means), -1)
    P, F, p = C @ np.linalg.pinv(C), len(folds), folds[0].means.shape[1]
    signs = np.ones((1, F)) if signs is None else signs
    H = [P @ fold.means for fold in folds]
    error, df = sum(fold.error for fold in folds), sum(fold.df for fold in folds)
    out = np.zeros(len(signs))
    for j, fold in enumerate(folds):
        E, f = error - fold.error, df - fold.df
        if f - p - 1 <= 0:
            raise DataError(f"{p} features and {f} degrees of freedom of the error; cvmanova needs more than p + 1.")
        E = (1 - shrinkage) * E + shrinkage * np.diag(np.diag(E))
        A = np.linalg.solve(E, (fold.counts[:, None] * H[j]).T).T * (f - p - 1) / fold.counts.sum()
        terms = np.array([np.sum(H[k] * A) if k != j else 0.0 for k in range(F)]) / (F - 1)
        out += signs[:, j] * (signs @ terms)
    return out / F


def fold_signs(n_folds: int) -> np.ndarray:
    """All sign patterns of folds but for their common sign, the observed first (2^(n-1), n).

    Examples
    --------
    >>> fold_signs(3).astype(int).tolist()
    [[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]]
    """
    bits = (np.arange(2 ** (n_folds - 1))[:, None] >> np.arange(n_folds - 1)[::-1]) & 1
    return np.concatenate([np.ones((len(bits), 1)), 1.0 - 2.0 * bits], axis=1)
