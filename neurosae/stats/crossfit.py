r"""Cross-fitting: features are chosen on some items and tested on the others, and the choice is part of the test.

Items are cut into K folds. For fold q the features with the largest training contrast

    c_j = sum_{i not in q} s_i d_ij / sqrt(q_j + d0 s0_j^2),   q_j = sum_{i not in q} d_ij^2,

are chosen, and every item of the fold gets the mean of its own contrast over them, x_i. The x of different folds share
training items, so a t test of x against 0 rejects too often. Here each relabelling repeats everything, the choice
included: T(s) is one function of the relabelled data, and p = #{T(s) >= T} / B is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.crossfit_kernels import Choice, Groups, Sparse, deal_items, flip_tile, group_tile
from neurosae.stats.kernels import sort_keys
from neurosae.stats.moderation import fit_prior
from neurosae.stats.relabel import SPLITS, Relabelling, labels, signs
from neurosae.stats.units import ItemData, activity

TILE = 64
FOLDS = 3  # purpose of the random stream that orders items before they are dealt into folds
DIRECTIONS = {"both": 0, "plus": 1, "minus": -1}


class Rule(NamedTuple):
    """How features are chosen: number of folds, features per fold, which direction, and on which statistic."""

    folds: int
    top: int
    direction: str = "both"
    statistic: str = "moderated_t"


@dataclass(frozen=True)
class CrossFit:
    """Held-out responses of the features that the other folds chose.

    Attributes
    ----------
    x : array of shape (n_units,), mean held-out contrast (between items: response) of the chosen features
    t : array of shape (n_permutations,), the statistic with the choice repeated; entry 0 is observed
    df : degrees of freedom of t; inf for the mean
    fold : int array of shape (n_units,)
    chosen : (n_folds, m) weights of the features of each fold: 1, -1 where a feature counts with a minus sign, or 0
    """

    x: np.ndarray
    t: np.ndarray
    df: float
    fold: np.ndarray
    chosen: np.ndarray


def deal(codes: np.ndarray, order: np.ndarray, n_folds: int) -> np.ndarray:
    """Fold of every item: the items of each group are dealt in turn, so folds are alike in size and in groups.

    Parameters
    ----------
    codes : int array of shape (n,), group of each item
    order : int array of shape (n,), the items in the order in which they are dealt

    Examples
    --------
    >>> deal(np.array([0, 0, 0, 1, 1, 1]), np.arange(6), 3)
    array([0, 1, 2, 0, 1, 2])
    """
    fold = np.empty(len(codes), dtype=np.int64)
    deal_items(codes.astype(np.int64), fold, (order.astype(np.int64), n_folds))
    return fold


def item_order(data: ItemData, *, seed: int, split: str) -> np.ndarray:
    """Units in random order inside their strata, a pure function of (seed, split, item)."""
    keys = np.empty((1, data.n), dtype=np.uint64)
    stream = np.uint64(FOLDS + 256 * SPLITS.get(split, len(SPLITS)))
    sort_keys(keys, data.numbers.astype(np.uint32), seed=np.uint64(seed), stream=stream, first=0)
    strata = np.zeros(data.n) if data.strata is None else data.strata
    return np.lexsort((keys[0], strata))


def cross_fit(
    data: ItemData, kept: np.ndarray, relabelling: Relabelling, *, place: np.ndarray | None, rule: Rule
) -> CrossFit:
    """The cross-fitted test of one effect at one place, with the choice repeated inside every relabelling.

    Parameters
    ----------
    data : item data of the effect
    kept : columns that may be chosen, filtered by nothing but what no relabelling changes
    relabelling : sign flips, or permutations of labels over items
    place : rows of the units in the relabelling, where it has more items than the data; None: they are the same

    Raises
    ------
    DataError
        If a fold would be left with fewer than two items, or a group with fewer items than folds.

    Notes
    -----
    Under flips q, and with it the scale of the choice, does not change; between items the folds are dealt anew for
    the permuted labels, so that T stays one function of data and labels.

    References
    ----------
    Kriegeskorte et al. (2009), Nature Neuroscience 12:535 (circular selection). Hemerik & Goeman (2018), TEST 27:811.
    """
    _refuse_few(data, rule)
    order = item_order(data, seed=relabelling.seed, split=relabelling.split)
    D = sp.csc_matrix(data.D[:, kept], dtype=np.float64)
    both = _both(D)
    starts = range(0, relabelling.n, TILE)
    if data.codes is None:
        fold = deal(_signature(data), order, rule.folds)
        choice = _flip_choice(data, D, kept, fold=fold, rule=rule)

        def task(first: int) -> Any:
            S = signs(relabelling, first, min(TILE, relabelling.n - first))
            S = S if place is None else np.ascontiguousarray(S[:, place])
            return flip_tile(both, S, fold, choice=choice, mean=rule.statistic == "mean")

        parts = _tiles(task, starts)
        df = data.n - 1.0
    else:
        codes, weights = data.grouping
        counts = np.bincount(codes, minlength=len(weights))
        groups = Groups(weights.astype(float), counts, len(set(counts.tolist())) == 1, rule.statistic == "mean")
        fold = deal(codes, order, rule.folds)
        choice = _group_choice(data, D, kept, rule=rule)

        def task(first: int) -> Any:
            L = labels(relabelling, first, min(TILE, relabelling.n - first)).astype(np.int64)
            return group_tile(both, L, order, choice=choice, groups=groups, n_folds=rule.folds)

        parts = _tiles(task, starts)
        df = float(data.n - len(weights))
    t = np.concatenate([part[0] for part in parts])
    return CrossFit(parts[0][1], t, np.inf if rule.statistic == "mean" else df, fold, parts[0][2])


def _refuse_few(data: ItemData, rule: Rule) -> None:
    if data.exchange.kind not in ("flip", "permute_labels"):
        raise DataError(
            "cross_fit repeats its choice inside sign flips of items or permutations of their labels, and this effect "
            "has neither; choose features on localizer items, {from: test, top: n}."
        )
    if data.omnibus:
        raise DataError(
            f"cross_fit chooses features by the size of one contrast, and {data.effect.words} is none; write weights "
            "of levels, or choose features on localizer items, {from: test, top: n}."
        )
    if rule.folds < 2 or data.n < 2 * rule.folds:
        raise DataError(f"{data.n} items cannot be cut into {rule.folds} folds; use 2 folds or more, of 2 items each.")
    if data.codes is not None and (least := int(np.bincount(data.codes).min())) < rule.folds:
        raise DataError(f"a group has {least} items, fewer than {rule.folds} folds; use {max(least, 2)} folds.")


def _signature(data: ItemData) -> np.ndarray:
    """The cells that a unit has: units of different between-item levels differ; flips do not change it."""
    has = np.zeros((data.n, len(data.cells)), dtype=bool)
    has[data.row_unit, data.row_cell] = True
    return np.unique(has, axis=0, return_inverse=True)[1].ravel()


def _both(D: sp.csc_matrix) -> Sparse:
    D.sort_indices()
    R = sp.csr_matrix(D)
    R.sort_indices()
    columns = D.indptr.astype(np.int64), D.indices.astype(np.int64), D.data
    return Sparse(*columns, R.indptr.astype(np.int64), R.indices.astype(np.int64), R.data)


def _flip_choice(data: ItemData, D: sp.csc_matrix, kept: np.ndarray, *, fold: np.ndarray, rule: Rule) -> Choice:
    """Scales of the training contrasts, fold by fold; functions of squares alone, which no flip changes."""
    m, squares = len(kept), sp.csc_matrix(D).power(2)
    inside = np.array([np.asarray(squares[np.flatnonzero(fold != q)].sum(axis=0)).ravel() for q in range(rule.folds)])
    prior = np.zeros((rule.folds, m))
    if rule.statistic == "mean":
        return Choice(rule.top, DIRECTIONS[rule.direction], np.where(inside > 0, 1.0, np.inf), prior)
    scale = inside
    if rule.statistic == "moderated_t":
        trend, scale = activity(data, kept), np.empty_like(inside)
        for q, row in enumerate(inside):
            n = int((fold != q).sum())
            d0, s02 = fit_prior(row / n, n, trend)
            scale[q] = s02 if np.isinf(d0) else row + d0 * s02
    return Choice(rule.top, DIRECTIONS[rule.direction], np.where(inside > 0, scale, np.inf), prior)


def _group_choice(data: ItemData, D: sp.csc_matrix, kept: np.ndarray, *, rule: Rule) -> Choice:
    """Scale sqrt(a v + b) of training contrasts, v the total sum of squares of the training items, set per label."""
    n, m = data.n, len(kept)
    a, b = np.ones((1, m)), np.zeros((1, m))
    if rule.statistic == "mean":
        a, b = b, a
    elif rule.statistic == "moderated_t":
        total, squares = np.asarray(D.sum(axis=0)).ravel(), np.asarray(D.power(2).sum(axis=0)).ravel()
        d0, s02 = fit_prior(np.maximum(squares - total**2 / n, 0) / (n - 1), n - 1, activity(data, kept))
        a, b = (np.zeros((1, m)), s02[None].copy()) if np.isinf(d0) else (a, d0 * s02[None])
    return Choice(rule.top, DIRECTIONS[rule.direction], a, np.ascontiguousarray(b))


def _tiles(task: Callable[[int], Any], starts: range) -> list[Any]:
    """One task per tile on as many threads as numba may use, in the order of the tiles."""
    threads = min(numba.get_num_threads(), len(starts))
    if threads <= 1:
        return [task(first) for first in starts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, starts))
