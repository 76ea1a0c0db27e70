"""Dissimilarities between conditions from one Gram matrix, and how far a perfect model of them could get.

Everything here is a function of the N x N Gram matrix G of item x condition patterns (N rows), never of features x
features. With Z (N x K) the indicator of the condition of each row and H_ij = 0 where rows i and j belong to one item,

    crossnobis   C = Z'(G o H)Z / Z'HZ      every pair of *different* items: leave-one-item-out, in closed form
    plug-in      C = Z'GZ / Z'11'Z
    d_kl = (C_kk + C_ll - 2 C_kl) / m       m features

Where every item is in every condition this is rsatoolbox's crossnobis with items as folds. Where items are nested in
conditions no fold can leave an item out of two conditions; then C_kl (k != l) is a product of independent means and
C_kk leaves one item of the condition out. Both are unbiased: noise alone gives 0 on average.

With a noise covariance the same formulas are applied to the Gram matrix in the metric of its inverse (`rdm_noise`):
crossnobis proper, and Mahalanobis for the plug-in form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError, choose
from neurosae.extraction.responses import ItemCells
from neurosae.stats.rdm_compare import CENTRED, RANKS, ROUNDING, compare_rdms, ranked_rdm
from neurosae.stats.rdm_noise import gram, noise_gram, poisson_products

SAME = 1e-6  # activations are float32: values closer than this (relatively) are one value, computed in two batches


@dataclass(frozen=True)
class Patterns:
    """Item x condition x feature patterns of one site, region and position.

    Attributes
    ----------
    items : names
    conditions : level tuples; a row or column of the RDM
    X : CSR of shape (n_rows, m), the features that are kept
    item, condition : for each row of X its number in `items` and in `conditions`
    numbers : numeric columns of the responses, averaged as X is
    n_dead, n_untestable : features without activity here, and with too few informative items
    n_dropped : items left out because a condition or frame was missing
    columns : place of each kept feature among the columns of the responses
    """

    items: tuple[str, ...]
    conditions: tuple[tuple[str, ...], ...]
    X: sp.csr_matrix
    item: np.ndarray
    condition: np.ndarray
    numbers: pd.DataFrame
    n_dead: int
    n_untestable: int
    n_dropped: int
    columns: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def labels(self) -> list[str]:
        """Condition labels such as `sg/pl`."""
        return ["/".join(levels) for levels in self.conditions]

    @property
    def n_features(self) -> int:
        """Number of features that are kept."""
        return int(self.X.shape[1])  # pyright: ignore[reportOptionalSubscript]

    @property
    def nested(self) -> bool:
        """Whether some items are not in all conditions."""
        return len(self.item) < len(self.items) * len(self.conditions)

    @cached_property
    def same_item(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of rows, themselves included, that belong to one item."""
        a, b = np.nonzero(self.item[:, None] == self.item[None, :])
        return a, b


def patterns(cells: ItemCells, *, crossed: bool, min_informative: int = 6) -> Patterns:
    """Choose the items and features that an RDM can be made of.

    Parameters
    ----------
    cells : item x condition x feature means
    crossed : bool
        Whether the design puts every item into every condition; items that miss one are then left out and counted.
    min_informative : int
        A feature is kept when it differs between the conditions of at least so many items (nested items: when it is
        not zero in so many). No relabelling of conditions within items, or of items, changes that number.

    Raises
    ------
    DataError
        With fewer than 3 conditions (one distance fits every model) or fewer than 2 items in a condition.
    """
    item, condition, X = cells.row_item, cells.row_cell, cells.X
    n_conditions, n_items = len(cells.cells), len(cells.items)
    if n_conditions < 3:
        names = ", ".join("/".join(c) for c in cells.cells)
        raise DataError(
            f"an RDM needs at least 3 conditions, not {n_conditions} ({names}): every model fits a single distance. "
            "Name more factors under `conditions`, or use `test: contrast`."
        )
    full = np.bincount(item, minlength=n_items) == n_conditions
    rows = np.flatnonzero(full[item]) if crossed else np.arange(len(item))
    used = np.unique(item[rows])
    item, condition = np.searchsorted(used, item[rows]), condition[rows]
    smallest = int(np.bincount(condition, minlength=n_conditions).min()) if len(rows) else 0
    if smallest < 2:
        raise DataError(
            f"a condition has {smallest} complete items; cross-validated distances need at least 2 per condition "
            "(6 for p <= .05). Add items, or take fewer `conditions`."
        )
    X = sp.csr_matrix(X[rows])
    alive = np.diff(X.tocsc().indptr) > 0
    keep = informative(X, item, nested=not crossed) >= min_informative
    frames = {str(name) for name in cells.dropped["item"]} - {str(name) for name in cells.items}
    return Patterns(
        items=tuple(cells.items[i] for i in used),
        conditions=cells.cells,
        X=sp.csr_matrix(X[:, keep]),
        item=item,
        condition=condition,
        numbers=cells.numbers.iloc[rows].reset_index(drop=True),
        n_dead=int((~alive).sum()),
        n_untestable=int((alive & ~keep).sum()),
        n_dropped=n_items - len(used) + len(frames),
        columns=np.flatnonzero(keep),
    )


def informative(X: sp.csr_matrix, item: np.ndarray, *, nested: bool) -> np.ndarray:
    """Number of items in which each feature differs between conditions; for nested items, in which it is not zero.

    Examples
    --------
    >>> X = sp.csr_matrix([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [4.0, 3.0, 0.0]])
    >>> informative(X, np.array([0, 0, 1, 1]), nested=False)
    array([1, 1, 0])
    """
    size = np.bincount(item).astype(float)
    totals = sp.csr_matrix((np.ones(len(item)), (item, np.arange(len(item)))), shape=(len(size), len(item)))
    sums = sp.csr_matrix(totals @ abs(X))
    if nested:
        return np.diff(sums.tocsc().indptr)
    # n sum x^2 - (sum x)^2 = 0 exactly when all n values are equal; signed features need the signed sum
    spread = sp.diags(size) @ (totals @ X.power(2)) - sp.csr_matrix(totals @ X).power(2)
    varies = sp.csr_matrix(spread) > SAME**2 * sums.power(2)
    return np.asarray(varies.sum(axis=0)).ravel().astype(int)


def condition_products(G: np.ndarray, found: Patterns, weights: np.ndarray, *, crossvalidated: bool) -> np.ndarray:
    """Average inner product between the patterns of each pair of conditions, of shape (K, K).

    Parameters
    ----------
    G : array of shape (n_rows, n_rows)
    found : the patterns whose Gram matrix G is
    weights : array of shape (n_items,)
        How often each item counts: ones, or 0 and 1 for a part of the items.
    crossvalidated : bool
        Leave the products of an item with itself out.
    """
    if len(found.item) == len(found.conditions) and not crossvalidated:  # one row each: their weights cancel
        order = np.argsort(found.condition)
        return G[np.ix_(order, order)]
    Z = np.zeros((len(found.item), len(found.conditions)))
    Z[np.arange(len(Z)), found.condition] = weights[found.item]
    total, pairs = Z.T @ G @ Z, np.outer(Z.sum(axis=0), Z.sum(axis=0))
    if crossvalidated:
        a, b = found.same_item
        counts, place = weights[found.item[a]] ** 2, found.condition[a] * len(total) + found.condition[b]
        total = total - np.bincount(place, counts * G[a, b], total.size).reshape(total.shape)
        pairs = pairs - np.bincount(place, counts, total.size).reshape(total.shape)
    return total / pairs


def _squared(C: np.ndarray) -> np.ndarray:
    """Condensed d_kl = C_kk + C_ll - 2 C_kl, pairs in the order (0, 1), (0, 2), …"""
    d = np.diag(C)
    return (d[:, None] + d[None, :] - C - C.T)[np.triu_indices(len(C), 1)]


def _crossnobis(G: np.ndarray, found: Patterns, weights: np.ndarray) -> np.ndarray:
    return _squared(condition_products(G, found, weights, crossvalidated=True)) / found.n_features


def _euclidean(G: np.ndarray, found: Patterns, weights: np.ndarray) -> np.ndarray:
    return _squared(condition_products(G, found, weights, crossvalidated=False)) / found.n_features


def _correlation(G: np.ndarray, found: Patterns, weights: np.ndarray) -> np.ndarray:
    C = condition_products(G, found, weights, crossvalidated=False)
    w = weights[found.item]
    sums = np.bincount(found.condition, w * np.asarray(found.X.sum(axis=1)).ravel()) / np.bincount(found.condition, w)
    centred = C - np.outer(sums, sums) / found.n_features
    length = np.diag(centred)
    # a pattern without variance has no correlation: NaN here, a status and a reason in the table
    length = np.sqrt(np.where(length > ROUNDING * np.maximum(np.diag(C), 1e-300), length, np.nan))
    return (1 - centred / np.outer(length, length))[np.triu_indices(len(C), 1)]


def _poisson(G: np.ndarray, found: Patterns, weights: np.ndarray) -> np.ndarray:
    if len(found.item) == len(found.conditions):
        return _squared(poisson_products(found.X[np.argsort(found.condition)])) / found.n_features
    Z = sp.csr_matrix((weights[found.item], (found.condition, np.arange(len(found.item)))))
    means = sp.csr_matrix(sp.diags(1 / np.asarray(Z.sum(axis=1)).ravel()) @ Z @ found.X)
    return _squared(poisson_products(means)) / found.n_features


DISTANCES: dict[str, Callable[[np.ndarray, Patterns, np.ndarray], np.ndarray]] = {
    "crossnobis": _crossnobis,
    "euclidean": _euclidean,
    "correlation": _correlation,
    "mahalanobis": _euclidean,  # of the Gram matrix in the metric of the noise
    "poisson": _poisson,
}
CROSSVALIDATED = ("crossnobis",)


def measured(found: Patterns, distance: str, noise: str = "none") -> tuple[Patterns, np.ndarray]:
    """The patterns and Gram matrix that a distance is made of, in the metric of the noise where there is one.

    Features without residual variance are dropped first: they would have infinite weight.

    Parameters
    ----------
    noise : "none", "shrinkage_diag" or "shrinkage_eye": how the residual covariance is shrunk. Residuals are what is
        left of every row without the mean of its condition, and where every item is in every condition also without
        the mean of its item.

    Raises
    ------
    DataError
        No residual degrees of freedom, or mahalanobis without noise, which is euclidean.
    """
    if distance == "mahalanobis" and noise == "none":
        raise DataError("mahalanobis without noise is euclidean; set noise: shrinkage_diag, or distance: euclidean.")
    if noise == "none" or distance not in ("crossnobis", "mahalanobis"):
        return found, gram(found.X)
    N, K, crossed = len(found.item), len(found.conditions), not found.nested
    n = len(found.items) if crossed else 1
    dof = (n - 1) * (K - 1) if crossed else N - K
    if dof < 1:
        raise DataError(f"{N} patterns of {K} conditions leave no residuals for a noise covariance; set noise: none.")
    groups = [found.condition, found.item] if crossed else [found.condition]
    G, kept = noise_gram(found.X, groups, dof=dof, method=noise)
    columns = found.columns[kept] if len(found.columns) else found.columns
    return replace(found, X=sp.csr_matrix(found.X[:, kept]), columns=columns), G


def distances(G: np.ndarray, found: Patterns, distance: str = "crossnobis") -> np.ndarray:
    """Condensed RDM of all items, of shape (K (K-1) / 2,): pairs in the order (0, 1), (0, 2), …

    Squared distances are divided by the number of features, as in rsatoolbox; crossnobis may be negative.
    """
    return choose("distance", distance, DISTANCES)(G, found, np.ones(len(found.items)))


# --- how far a perfect model could get ------------------------------------------------------------------------------


def item_kinds(found: Patterns) -> list[np.ndarray]:
    """Numbers of the items that are in the same conditions: all of them where every item is in every condition."""
    kinds = pd.Series([""] * len(found.items))
    for item, condition in zip(found.item, found.condition, strict=True):
        kinds[item] += f"{condition},"
    return [np.asarray(members) for members in kinds.groupby(kinds).groups.values()]


def item_halves(found: Patterns, n_splits: int, rng: np.random.Generator) -> np.ndarray:
    """Random halves of the items as 0/1 rows, of shape (n_splits, n_items); nested items are halved by condition."""
    halves = np.zeros((n_splits, len(found.items)))
    for members in item_kinds(found):
        for row in halves:
            row[rng.permutation(members)[: len(members) // 2]] = 1
    return halves


def item_folds(found: Patterns, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Random folds of the items as 0/1 rows, of shape (n_folds, n_items); nested items are divided by condition."""
    folds = np.zeros((n_folds, len(found.items)))
    for members in item_kinds(found):
        for k, part in enumerate(np.array_split(rng.permutation(members), n_folds)):
            folds[k, part] = 1
    return folds


def item_draws(found: Patterns, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap draws of the items as multiplicities (n_draws, n_items); nested items are drawn by condition.

    A draw with fewer than two different items of a condition has no cross-validated distance and is drawn again.
    """
    draws = np.zeros((n_draws, len(found.items)))
    for members in item_kinds(found):
        n = len(members)
        if n < 3:
            raise DataError(f"a bootstrap over items needs at least 3 items per condition, not {n}.")
        for row in draws:
            while len(np.unique(drawn := rng.integers(n, size=n))) < 2:
                pass
            row[members] = np.bincount(drawn, minlength=n)
    return draws


def weighted_rdms(G: np.ndarray, found: Patterns, weights: np.ndarray, *, distance: str) -> np.ndarray:
    """RDMs of items that count unequally often, of shape (n_draws, n_pairs); weights of shape (n_draws, n_items).

    An item that was drawn twice is still one item: its products with its own copies are left out of crossnobis.
    """
    of = choose("distance", distance, DISTANCES)
    return np.stack([of(G, found, w) for w in weights])


def half_rdms(G: np.ndarray, found: Patterns, halves: np.ndarray, *, distance: str) -> np.ndarray | None:
    """RDMs of both halves of every split, of shape (n_splits, 2, n_pairs); None where a half is too small.

    A half needs 2 items of every condition.
    """
    counts = [np.bincount(found.condition, weights=h[found.item]) for h in (halves[0], 1 - halves[0])]
    if np.min(counts) < 2:
        return None
    return np.stack([[DISTANCES[distance](G, found, w) for w in (h, 1 - h)] for h in halves])


def reliability(pairs: np.ndarray, compare: str) -> tuple[float, float]:
    r"""Split-half reliability of an RDM over items, and the ceiling it sets.

        r = mean agreement of the RDMs of two halves of the items,  r' = 2r / (1 + r),  ceiling = sqrt(r')

    r' (Spearman–Brown) is what all items would give; sqrt(r') is what the RDM of infinitely many items would reach.
    One dictionary is one subject, so there is no lower and upper bound over subjects; see `noise_ceiling` for several.

    Parameters
    ----------
    pairs : array of shape (n_splits, 2, n_pairs), from `half_rdms`

    Returns
    -------
    reliability, ceiling : where r is not above 0, r itself and NaN

    Examples
    --------
    >>> full, ceiling = reliability(np.array([[[1.0, 2, 3], [1.0, 2, 3]]]), "corr")
    >>> round(full, 12), round(ceiling, 12)
    (1.0, 1.0)
    """
    r = min(float(np.mean([compare_rdms(a, b, compare) for a, b in pairs])), 1.0)
    return (2 * r / (1 + r), float(np.sqrt(2 * r / (1 + r)))) if r > 0 else (r, float("nan"))


def noise_ceiling(rdms: np.ndarray, compare: str = "cosine_cov") -> tuple[float, float]:
    """Lower and upper noise ceiling of several RDMs (item groups, seeds, models), as in rsatoolbox.

    Upper: mean agreement of each RDM with the mean of all; lower: with the mean of the others. RDMs are first brought
    to one scale (length, variance, or ranks, as the comparator asks).

    Parameters
    ----------
    rdms : array of shape (n_rdms, n_pairs), at least 2 rows

    Examples
    --------
    >>> low, high = noise_ceiling(np.array([[1.0, 2, 3], [1.0, 2, 4], [1.0, 3, 3]]), "cosine")
    >>> low <= high <= 1
    True
    """
    if len(rdms) < 2:
        raise DataError(f"a noise ceiling needs at least 2 RDMs, not {len(rdms)}; use the split-half reliability.")
    if compare in RANKS:
        scaled = np.stack([ranked_rdm(v) for v in rdms])
    else:
        centred = rdms - rdms.mean(axis=1, keepdims=True) if compare in CENTRED else rdms
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True))
    upper = [compare_rdms(scaled.mean(axis=0), v, compare) for v in rdms]
    lower = [compare_rdms(np.delete(scaled, i, axis=0).mean(axis=0), v, compare) for i, v in enumerate(rdms)]
    return float(np.mean(lower)), float(np.mean(upper))
