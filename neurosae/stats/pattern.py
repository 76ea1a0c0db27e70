"""Tests of a whole pattern of features: the cross-validated length of a contrast."""

from __future__ import annotations

import numpy as np


def contrast_length(D: np.ndarray, signs: np.ndarray) -> np.ndarray:
    r"""Cross-validated squared length of the mean item contrast, under every flip of whole items at once.

    With W = diag(1 / (q_j/n + median_j q/n)), q_j = sum_i D_ij^2, and G = D W D',

        D_c = (1 / (n (n - 1))) sum_{i != k} s_i s_k d_i' W d_k = (s'Gs - tr G) / (n (n - 1)).

    Parameters
    ----------
    D : array of shape (n_items, n_features), activation units
    signs : array of shape (n_relabellings, n_items), the identity first

    Returns
    -------
    array of shape (n_relabellings,)
        0 on average where nothing differs; negative values are legal.

    Notes
    -----
    H0: D_i and -D_i have the same joint distribution over features. W changes under no flip, so the test is exact.

    References
    ----------
    Allefeld & Haynes (2014), NeuroImage 89:345.

    Examples
    --------
    >>> contrast_length(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([[1, 1, 1], [1, -1, 1]])).round(4)
    array([ 0.2857, -0.2857])
    """
    G, n = _gram(D), len(D)
    return ((signs @ G * signs).sum(axis=1) - np.trace(G)) / (n * (n - 1))


def group_length(Y: np.ndarray, is_plus: np.ndarray) -> np.ndarray:
    """Cross-validated squared length of the difference of two group means, under every permutation of labels at once.

    As `contrast_length`, with pairs of different items only: within + and within - averaged, minus twice the mean over
    pairs between them.

    Parameters
    ----------
    Y : array of shape (n_items, n_features), item means
    is_plus : bool array of shape (n_relabellings, n_items), the observed labels first

    Examples
    --------
    >>> Y = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    >>> group_length(Y, np.array([[True, True, False, False], [True, False, True, False]]))
    array([ 2., -1.])
    """
    G = _gram(Y)
    parts = []
    for inside in (is_plus.astype(float), (~is_plus).astype(float)):
        n = inside.sum(axis=1)
        parts.append(((inside @ G * inside).sum(axis=1) - inside @ np.diag(G)) / (n * (n - 1)))
    plus, minus = is_plus.astype(float), (~is_plus).astype(float)
    cross = (plus @ G * minus).sum(axis=1) / (plus.sum(axis=1) * minus.sum(axis=1))
    return parts[0] + parts[1] - 2 * cross


def _gram(D: np.ndarray) -> np.ndarray:
    q = (D**2).mean(axis=0)
    alive = q > 0
    X = D[:, alive] / np.sqrt(q[alive] + np.median(q[alive])) if alive.any() else D[:, :0]
    return X @ X.T


def reached_share(values: np.ndarray) -> float:
    """One-sided p of the first value: the share of relabellings that reach it, itself included.

    Examples
    --------
    >>> reached_share(np.array([3.0, 1.0, 3.0, 5.0]))
    0.75
    """
    return float((values >= values[0] - 1e-10 * np.abs(values).max()).mean())
