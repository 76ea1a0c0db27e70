r"""Rules that choose features for a two-level effect, from training rows alone, for many labellings at once.

| rule | score of feature j, the largest are chosen |
|---|---|
| `contrast` | abs(mean_+ - mean_-) over sqrt(variance + median variance); within items the differences of each item |
| `discriminative_rsa` | mean similarity of two texts of one class - of two texts of different classes |
| `categorical_rsa` | mean similarity of two texts of the + class - of two texts of the - class |
| `maximum` | the largest activation, whatever the labels |
| `selectivity` | lifetime sparseness (1 - mean(a)^2 / mean(a^2)) / (1 - 1/S), of features strong at least once |
| `random` | a random number |

Similarity of two texts in a feature is the correlation of its courses over tokens, R^T; where a text has one value,
minus the squared difference over the variance. "Strong at least once": its maximum is at least the median maximum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Training(NamedTuple):
    """Training rows: values (n, m), unit of each row, whether labels change inside units, courses (n, T, m) or None."""

    X: np.ndarray
    unit: np.ndarray
    paired: bool
    courses: np.ndarray | None


def rule_scores(rule: str, train: Training, labels: np.ndarray, *, seed: tuple[int, ...]) -> np.ndarray:
    """Score of every feature under every labelling (n_labellings, m); -inf for features that cannot be chosen.

    Parameters
    ----------
    rule : see the table of this module
    train : training rows
    labels : +1 or -1, of shape (n_labellings, n)
    seed : of the random rule

    Examples
    --------
    >>> X = np.array([[1.0, 9.0], [1.2, 0.0], [0.0, 9.5], [0.1, 0.2]])
    >>> train = Training(X, np.arange(4), False, None)
    >>> y = np.array([[1.0, 1, -1, -1]])
    >>> [int(rule_scores(rule, train, y, seed=(0,)).argmax()) for rule in ("contrast", "maximum")]
    [0, 1]
    """
    alive = train.X.std(axis=0) > 1e-9 * np.maximum(np.abs(train.X).max(axis=0), 1e-300)
    scores = _SCORES[rule](train, labels, seed)
    return np.where(alive & np.isfinite(scores), scores, -np.inf)


def _contrast(train: Training, labels: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    X = train.X
    if train.paired:
        codes = np.unique(train.unit, return_inverse=True)[1]
        n = codes.max() + 1
        d = np.stack([labels[0][codes == i] @ X[codes == i] / (codes == i).sum() for i in range(n)])
        first = np.array([np.flatnonzero(codes == i)[0] for i in range(n)])
        turn = labels[:, first] * labels[0, first]  # a relabelling turns an item's difference round, or not
        mean = turn @ d / n
        variance = (d**2).mean(axis=0) - mean**2
    else:
        plus, minus, squares = _class_sums(X, labels)
        n_plus, n_minus = ((labels > 0).sum(axis=1, keepdims=True), (labels < 0).sum(axis=1, keepdims=True))
        mean = plus / n_plus - minus / n_minus
        variance = (squares - plus**2 / n_plus - minus**2 / n_minus) / len(X)
    typical = np.array([[np.median(row[row > 0]) if (row > 0).any() else 1.0] for row in variance])
    return np.abs(mean) / np.sqrt(np.maximum(variance, 0) + typical)


def _class_sums(X: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (labels > 0) @ X, (labels < 0) @ X, (X**2).sum(axis=0)


class _Likeness(NamedTuple):
    """Mean similarity of pairs inside the + class, inside the - class, and between them, (n_labellings, m) each."""

    plus: np.ndarray
    minus: np.ndarray
    across: np.ndarray
    n_plus: np.ndarray
    n_minus: np.ndarray


def _likeness(train: Training, labels: np.ndarray) -> _Likeness:
    """Similarities of all pairs of texts, class by class, through sums over the texts of a class."""
    is_plus, is_minus = (labels > 0).astype(float), (labels < 0).astype(float)
    if train.courses is None:
        X = train.X
        sums, squares = [w @ X for w in (is_plus, is_minus)], [w @ X**2 for w in (is_plus, is_minus)]
        n = [w.sum(axis=1, keepdims=True) for w in (is_plus, is_minus)]
        pairs = [k * (k - 1) / 2 for k in n]
        inside = [-(k * q - s**2) / p for k, q, s, p in zip(n, squares, sums, pairs, strict=True)]
        across = -(n[1] * squares[0] + n[0] * squares[1] - 2 * sums[0] * sums[1]) / (n[0] * n[1])
        scale = np.maximum(X.var(axis=0), 1e-300)
        pairs = [np.broadcast_to(p, across.shape) for p in pairs]
        return _Likeness(inside[0] / scale, inside[1] / scale, across / scale, *pairs)
    U = train.courses - train.courses.mean(axis=1, keepdims=True)
    length = np.sqrt((U**2).sum(axis=1, keepdims=True))
    moves = length > 1e-9 * np.abs(train.courses).max(axis=1, keepdims=True)
    U = np.where(moves, U / np.where(moves, length, 1), 0.0)
    known = moves[:, 0].astype(float)  # a course that does not move has no correlation with any other
    sums = [np.einsum("bi,itj->btj", w, U) for w in (is_plus, is_minus)]
    n = [w @ known for w in (is_plus, is_minus)]
    pairs = [k * (k - 1) / 2 for k in n]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = [((s**2).sum(axis=1) - k) / 2 / p for s, k, p in zip(sums, n, pairs, strict=True)]
        across = (sums[0] * sums[1]).sum(axis=1) / (n[0] * n[1])
    return _Likeness(inside[0], inside[1], across, *pairs)


def _discriminative(train: Training, labels: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    found = _likeness(train, labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = (found.plus * found.n_plus + found.minus * found.n_minus) / (found.n_plus + found.n_minus)
    return inside - found.across


def _categorical(train: Training, labels: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    found = _likeness(train, labels)
    return found.plus - found.minus


def _maximum(train: Training, labels: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.abs(train.X).max(axis=0), (len(labels), train.X.shape[1]))


def _selectivity(train: Training, labels: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    size, S = np.abs(train.X), len(train.X)
    largest = size.max(axis=0)
    strong = largest >= np.median(largest[largest > 0]) if (largest > 0).any() else largest > 0
    squares = (size**2).mean(axis=0)
    sparse = (1 - size.mean(axis=0) ** 2 / np.where(squares > 0, squares, 1)) / (1 - 1 / S)
    return np.broadcast_to(np.where(strong, sparse, -np.inf), (len(labels), train.X.shape[1]))


def _random(train: Training, labels: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(list(seed)).random(train.X.shape[1])
    return np.broadcast_to(drawn, (len(labels), len(drawn)))


_SCORES = {
    "contrast": _contrast,
    "discriminative_rsa": _discriminative,
    "categorical_rsa": _categorical,
    "maximum": _maximum,
    "selectivity": _selectivity,
    "random": _random,
}
BLIND = ("maximum", "selectivity", "random")
"""Rules that look at no label."""


def best_features(scores: np.ndarray, most: int) -> np.ndarray:
    """The `most` best features, best first, ties by index; (n_labellings, most).

    Examples
    --------
    >>> best_features(np.array([[0.1, 3.0, 2.0, 3.0]]), 3).tolist()
    [[1, 3, 2]]
    """
    return np.argsort(-scores, axis=1, kind="stable")[:, :most]
