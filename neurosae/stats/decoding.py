r"""Decoding, cross-condition generalization and parallelism of a two-level effect, for all relabellings at once.

The classifier is the difference of class means over the training rows, w = sum_k v_k (mean_+k - mean_-k) with v_k the
weight of context k; a row's score is its inner product with w. AUC is the share of (+, -) pairs of held-out rows of one
context and fold that scores put in order. For p >> n this is as good as fitted classifiers and needs only the Gram
matrix of the rows, so that all relabellings are matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError
from neurosae.stats.coded import Coded
from neurosae.stats.kernels import compiled


class Split(NamedTuple):
    """One classifier: weights of the contexts it is trained on, rows it is trained on, and rows that it scores."""

    weights: np.ndarray
    train: np.ndarray
    scored: np.ndarray
    share: float


@compiled()
def ordered_pairs(scores, labels, wins):
    """Share of (+, -) pairs that scores put in order, ties half, per row of scores (n, g); n pairs per row is > 0."""
    n, g = scores.shape
    for b in range(n):
        size = 0.0
        for i in range(g):
            size = max(size, abs(scores[b, i]))
        won, pairs = 0.0, 0
        for i in range(g):
            if labels[b, i] > 0:
                for j in range(g):
                    if labels[b, j] < 0:
                        pairs += 1
                        gap = scores[b, i] - scores[b, j]
                        if abs(gap) <= 1e-9 * size:
                            won += 0.5
                        elif gap > 0:
                            won += 1.0
        wins[b] = won / pairs if pairs > 0 else np.nan


def decoding_splits(coded: Coded, folds: np.ndarray) -> Iterator[Split]:
    """Train on all contexts without a fold; score the fold, context by context."""
    for fold in np.unique(folds):
        train = folds[coded.unit] != fold
        for k, share in enumerate(coded.weights):
            yield Split(coded.weights, train, ~train & (coded.context == k), float(share))


def generalization_splits(coded: Coded, folds: np.ndarray) -> Iterator[Split]:
    """Train on all contexts but one; score that one, on items that were not in training."""
    one = np.zeros_like(folds)
    for k, share in enumerate(coded.weights):
        weights = np.where(np.arange(len(coded.weights)) == k, 0.0, coded.weights)
        for fold in np.unique(folds if coded.shared else one):
            inside = folds[coded.unit] == fold if coded.shared else np.ones(len(coded.unit), dtype=bool)
            train = (~inside if coded.shared else inside) & (coded.context != k)
            yield Split(weights / weights.sum(), train, inside & (coded.context == k), float(share))


def auc(K: np.ndarray, coded: Coded, labels: np.ndarray, *, splits: list[Split]) -> np.ndarray:
    """Mean AUC over contexts and folds for every row of labels (n_relabellings, n_rows).

    Parameters
    ----------
    K : array of shape (n_rows, n_rows), inner products of the rows
    labels : +1 or -1, of shape (n_relabellings, n_rows)
    splits : the classifiers; folds of a context count equally

    Raises
    ------
    DataError
        If some labels leave no fold with both of them.

    Examples
    --------
    >>> X = np.array([[1.0], [-1.0], [2.0], [-2.0]])
    >>> coded = Coded(X, np.array([0, 0, 1, 1]), np.array([1.0, -1, 1, -1]), np.zeros(4, int), 2, np.ones(1))
    >>> auc(coded.gram, coded, coded.label[None], splits=list(decoding_splits(coded, np.array([0, 1]))))
    array([1.])
    """
    total, weight = np.zeros(len(labels)), np.zeros(len(labels))
    for split in splits:
        w = directions(coded, labels, split.train, weights=split.weights)
        wins = np.empty(len(labels))
        scores = w @ K[:, split.scored]
        ordered_pairs(scores, np.ascontiguousarray(labels[:, split.scored]), wins)
        known = np.isfinite(wins)  # under some permutations a fold has rows of one label only
        total += split.share * np.where(known, wins, 0.0)
        weight += split.share * known
    if not weight.all():
        raise DataError(
            "under some of the relabellings no group of held-out items has both levels, so their AUC is undefined; use "
            "fewer folds, or more items."
        )
    return total / weight


def directions(coded: Coded, labels: np.ndarray, train: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Coefficients of the rows in the difference of class means, averaged over contexts (n_relabellings, n_rows)."""
    out = np.zeros(labels.shape)
    for k in np.flatnonzero(weights):
        inside = train & (coded.context == k)
        for sign in (1, -1):
            members = (labels == sign) & inside
            out += sign * weights[k] * members / np.maximum(members.sum(axis=1, keepdims=True), 1)
    return out


def products(K: np.ndarray, coded: Coded, labels: np.ndarray, *, pair: tuple[int, int]) -> np.ndarray:
    r"""Cross-validated inner product delta of the + minus - differences in two contexts, per row of labels.

    Every one of the four class means is multiplied with another only through rows of different units.
    """
    other = coded.unit[:, None] != coded.unit[None]
    K0, N0 = K * other, other.astype(float)
    total = np.zeros(len(labels))
    for a in (1, -1):
        for b in (1, -1):
            one = ((labels == a) & (coded.context == pair[0])).astype(float)
            two = ((labels == b) & (coded.context == pair[1])).astype(float)
            n = np.einsum("bi,bi->b", one @ N0, two)
            total += a * b * np.einsum("bi,bi->b", one @ K0, two) / np.where(n > 0, n, np.nan)
    return total


def pairs_of(coded: Coded) -> list[tuple[int, int]]:
    """All pairs of contexts."""
    n = len(coded.weights)
    return [(k, j) for k in range(n) for j in range(k + 1, n)]


def alignment(K: np.ndarray, coded: Coded, labels: np.ndarray) -> np.ndarray:
    """Mean over pairs of contexts of delta(alpha_k, alpha_l), per row of labels."""
    return np.mean([products(K, coded, labels, pair=pair) for pair in pairs_of(coded)], axis=0)


def parallelism(K: np.ndarray, coded: Coded) -> float:
    r"""Cosine of the effect's direction in two contexts, without the noise of its length; NaN where undefined.

    delta(alpha_k, alpha_l) / sqrt(delta(alpha_k, alpha_k) delta(alpha_l, alpha_l)), averaged over pairs; may exceed 1.
    """
    y = coded.label[None]
    own = [float(products(K, coded, y, pair=(k, k))[0]) for k in range(len(coded.weights))]
    if not min(own) > 0:
        return float("nan")
    return float(
        np.mean([products(K, coded, y, pair=(k, j))[0] / np.sqrt(own[k] * own[j]) for k, j in pairs_of(coded)])
    )


def shuffled_geometries(coded: Coded, n: int, *, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Gram matrices in which the features of every cell's mean pattern are permuted, each on its own.

    The length of every mean pattern and the noise around it stay; what goes is the alignment between cells. The first
    is the observed one.
    """
    cell = np.unique(np.stack([coded.context, coded.label > 0]), axis=1, return_inverse=True)[1].ravel()
    means = np.stack([coded.X[cell == c].mean(axis=0) for c in range(cell.max() + 1)])
    E = coded.X - means[cell]
    fixed = E @ E.T
    yield coded.gram
    for _ in range(n - 1):
        C = rng.permuted(means, axis=1)
        cross = (E @ C.T)[:, cell]
        yield fixed + cross + cross.T + (C @ C.T)[np.ix_(cell, cell)]
