r"""PERMANOVA: how much of the squared distances between rows an effect explains, as `adonis` computes it.

With G the Gower-centred matrix of squared distances (for Euclidean distances the inner products of centred rows) and H
the projection of a term that is orthogonal to the terms before it,

    SS = tr(H G),   F = (SS / df) / (SS_residual / df_residual),   R2 = SS / tr(G).

PERMANOVA also rejects where only the spread of the groups differs: the comparison of dispersions stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Explained(NamedTuple):
    """One term: F, share of the total sum of squares, degrees of freedom of numerator and denominator."""

    F: float
    R2: float
    df: int
    df_residual: int


def gower(distances: np.ndarray) -> np.ndarray:
    """-1/2 of the squared distances, centred by rows and columns (n, n).

    Examples
    --------
    >>> gower(np.array([[0.0, 2.0], [2.0, 0.0]]))
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    A = -0.5 * distances**2
    return A - A.mean(axis=0) - A.mean(axis=1, keepdims=True) + A.mean()


def bases(terms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Orthonormal columns of each term beyond the mean and the terms before it.

    Parameters
    ----------
    terms : arrays of shape (n_rows, any), indicator or numeric columns
    """
    done = np.ones((len(terms[0]), 1)) / np.sqrt(len(terms[0]))
    out = []
    for term in terms:
        left = term - done @ (done.T @ term)
        u, s, _ = np.linalg.svd(left - done @ (done.T @ left), full_matrices=False)
        u = u[:, s > 1e-9 * max(float(np.abs(term).max()), 1.0)]
        out.append(u)
        done = np.concatenate([done, u], axis=1)
    return out


def permanova(G: np.ndarray, terms: Sequence[np.ndarray]) -> list[Explained]:
    """Sequential F and R2 of every term, as `adonis2(by = "terms")`.

    Parameters
    ----------
    G : array of shape (n, n), Gower-centred (`gower`) or inner products of centred rows
    terms : one array of columns (n, any) per term, in order

    References
    ----------
    Anderson (2001), Austral Ecology 26:32. McArdle & Anderson (2001), Ecology 82:290.

    Examples
    --------
    >>> x = np.array([0.0, 1.0, 4.0, 5.0])
    >>> G = gower(np.abs(x[:, None] - x[None]))
    >>> found = permanova(G, [np.array([[0.0], [0], [1], [1]])])[0]
    >>> round(found.F, 6), found.df_residual  # the two-sample F: (4 / sqrt(.5))^2 ... = 32
    (32.0, 2)
    """
    made = bases(terms)
    total, df_all = float(np.trace(G)), len(G) - 1
    squares = [float(np.einsum("ij,ij->", U, G @ U)) for U in made]
    df_residual = df_all - sum(U.shape[1] for U in made)
    residual = (total - sum(squares)) / df_residual
    return [
        Explained(ss / U.shape[1] / residual, ss / total, U.shape[1], df_residual)
        for ss, U in zip(squares, made, strict=True)
    ]


def dispersions(G: np.ndarray, group: np.ndarray, *, sweeps: int = 200) -> np.ndarray:
    """Distance of every row to the spatial median of its group, from inner products (n,), as `betadisper`.

    The spatial median is the point with the smallest sum of distances; Weiszfeld's iteration from the mean.

    Examples
    --------
    >>> x = np.array([[0.0], [2.0], [9.0], [5.0], [5.0]])
    >>> dispersions(x @ x.T, np.array([0, 0, 0, 1, 1])).round(3).tolist()
    [2.0, 0.0, 7.0, 0.0, 0.0]
    """
    out = np.zeros(len(G))
    for code in np.unique(group):
        inside = np.flatnonzero(group == code)
        K = G[np.ix_(inside, inside)]
        a = np.full(len(inside), 1 / len(inside))
        for _ in range(sweeps):
            squared = np.diag(K) - 2 * K @ a + a @ K @ a
            near = 1 / np.sqrt(np.maximum(squared, 1e-20 * max(float(np.trace(K)), 1e-300)))
            new = near / near.sum()
            if np.abs(new - a).max() < 1e-12:
                break
            a = new
        out[inside] = np.sqrt(np.maximum(np.diag(K) - 2 * K @ a + a @ K @ a, 0.0))
    return out
