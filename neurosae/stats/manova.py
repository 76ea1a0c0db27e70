r"""MANOVA of a few summary scores: Pillai's trace of an effect under relabelling, and the parametric table beside it.

Scores are principal components, made of localizer items or of all rows without their labels. Within items the scores'
contrasts d_i are compared with 0,

    V(s) = s'P s / n,   P = D (D'D)^-1 D',

where D'D does not change under flips. Between items V = h'(E + h h')^-1 h of the contrast of the group means.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError


class Parametric(NamedTuple):
    """Multivariate tests of statsmodels: Wilks' lambda, Pillai's and Hotelling's trace, Roy's root, and Pillai's p."""

    wilks: float
    pillai: float
    hotelling: float
    roy: float
    p: float
    df: tuple[float, float]


def components(rows: np.ndarray, n: int) -> np.ndarray:
    """Loadings of the first principal components of rows around their mean (n_features, n).

    Examples
    --------
    >>> components(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]), 1).ravel().round(6).tolist()
    [1.0, 0.0]
    """
    V = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:n]
    turn = np.sign(V[np.arange(len(V)), np.abs(V).argmax(axis=1)])  # one sign, whatever the library
    return (V * turn[:, None]).T


def pillai_of_flips(D: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Pillai's trace of mean 0, under every flip (n_relabellings,); D of shape (n_items, q)."""
    Q = _basis(D)
    return ((signs @ Q) ** 2).sum(axis=1) / len(D)


def pillai_of_groups(Y: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pillai's trace of one contrast of group means, under every permutation of labels.

    Parameters
    ----------
    Y : array of shape (n_items, q)
    codes : int array of shape (n_relabellings, n_items)
    weights : array of shape (n_groups,), sum 0
    """
    Y = Y - Y.mean(axis=0)
    counts = np.bincount(codes[0], minlength=len(weights)).astype(float)
    means = np.stack([((codes == g) @ Y) / counts[g] for g in range(len(weights))])  # (groups, relabellings, q)
    between = np.einsum("g,gbi,gbj->bij", counts, means, means)
    E = Y.T @ Y - between
    h = np.einsum("g,gbi->bi", weights, means) / np.sqrt((weights**2 / counts).sum())
    solved = np.linalg.solve(E + h[:, :, None] * h[:, None, :], h[:, :, None])[:, :, 0]
    return (h * solved).sum(axis=1)


def _basis(D: np.ndarray) -> np.ndarray:
    Q, R = np.linalg.qr(D)
    if len(D) <= D.shape[1] or np.abs(np.diag(R)).min() < 1e-9 * np.abs(np.diag(R)).max(initial=0.0):
        raise DataError(f"{D.shape[1]} scores of {len(D)} items are linearly dependent; ask for fewer scores.")
    return Q


def parametric_manova(Y: np.ndarray, X: np.ndarray, L: np.ndarray) -> Parametric:
    """The multivariate tests of H0: L B = 0 in Y = X B + E, by statsmodels.

    Parameters
    ----------
    Y : array of shape (n, q);  X : array of shape (n, r);  L : array of shape (df, r)

    Examples
    --------
    >>> Y = np.random.default_rng(0).standard_normal((20, 2)) + [1.0, 0.0]
    >>> found = parametric_manova(Y, np.ones((20, 1)), np.ones((1, 1)))
    >>> round(found.wilks + found.pillai, 9), found.df
    (1.0, (2.0, 18.0))
    """
    from statsmodels.multivariate.manova import MANOVA

    table = MANOVA(Y, X).mv_test([("effect", L)]).results["effect"]["stat"].astype(float)
    value = table["Value"]
    row = table.loc["Pillai's trace"]
    return Parametric(
        float(value["Wilks' lambda"]),
        float(value["Pillai's trace"]),
        float(value["Hotelling-Lawley trace"]),
        float(value["Roy's greatest root"]),
        float(row["Pr > F"]),
        (float(row["Num DF"]), float(row["Den DF"])),
    )
