"""Compiled loops of cross-fitting; what they compute is said in `stats/crossfit.py`.

Letters: n items, m columns, K folds, G groups, L lanes (the relabellings of one tile).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from neurosae.stats.kernels import compiled


class Sparse(NamedTuple):
    """The same matrix by columns and by rows."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    rptr: np.ndarray
    ridx: np.ndarray
    rval: np.ndarray


class Choice(NamedTuple):
    """How many features of which direction; `a`, `b` (n_folds or 1, m): the scale is sqrt(a q + b)."""

    top: int
    direction: int
    a: np.ndarray
    b: np.ndarray


class Groups(NamedTuple):
    """Weights and sizes of the groups; `pooled` variance or one per group; `mean` for the plain difference."""

    weights: np.ndarray
    counts: np.ndarray
    pooled: bool
    mean: bool


@compiled()
def deal_items(codes, fold, how):
    """Fold of every item; how = (order of the items, number of folds). Groups follow each other, each dealt in turn."""
    order, n_folds = how
    n_groups = codes.max() + 1
    turn = np.zeros(n_groups, np.int64)
    for g in range(1, n_groups):
        turn[g] = turn[g - 1] + (codes == g - 1).sum()
    for i in order:
        fold[i] = turn[codes[i]] % n_folds
        turn[codes[i]] += 1


@compiled()
def _pick(score, choice, weight):
    """weight[f] = 1 (-1 where `both` directions count and the score is negative) for the largest scores, else 0.

    Returns how many were chosen; only scores in the wanted direction count, ties go to the smaller index.
    """
    m, direction = score.size, choice.direction
    key = np.abs(score) if direction == 0 else score * direction
    limit = np.partition(key, m - choice.top)[m - choice.top] if choice.top < m else 0.0
    limit = max(limit, 0.0)
    n = 0
    for f in range(m):
        weight[f] = 0.0
        if key[f] > limit:
            weight[f] = -1.0 if direction == 0 and score[f] < 0 else 1.0
            n += 1
    for f in range(m):
        if limit > 0.0 and key[f] == limit and n < choice.top:
            weight[f] = -1.0 if direction == 0 and score[f] < 0 else 1.0
            n += 1
    return n


@compiled()
def _held_out(X, weight, i):
    """Sum of row i over the chosen columns."""
    total = 0.0
    for p in range(X.rptr[i], X.rptr[i + 1]):
        total += weight[X.ridx[p]] * X.rval[p]
    return total


@compiled()
def _student(x, mean):
    """Mean of x over its standard error; the mean itself where asked for."""
    n, total, square = x.size, 0.0, 0.0
    for v in x:
        total += v
    centre = total / n
    if mean:
        return centre
    for v in x:
        square += (v - centre) ** 2
    se = math.sqrt(square / (n - 1) / n)
    if se <= 1e-12 * abs(centre):
        return 0.0 if centre == 0.0 else math.copysign(1e9, centre)
    return centre / se


@compiled()
def _flip_scores(X, dealt, scores):
    """Training contrasts over their scales, (K, m), under one row of signs; dealt = (signs, folds, scales (K, m))."""
    s, fold, scale = dealt
    K, m = scores.shape
    sums = np.empty(K)
    for f in range(m):
        sums[:] = 0.0
        for p in range(X.indptr[f], X.indptr[f + 1]):
            i = X.idx[p]
            sums[fold[i]] += s[i] * X.val[p]
        for q in range(K):
            rest = 0.0
            for r in range(K):
                rest += sums[r] if r != q else 0.0
            scores[q, f] = rest / scale[q, f]


@compiled()
def flip_tile(X, S, fold, *, choice, mean):
    """Statistic (L,) of every row of signs; x (n,) and the weights of the features (K, m) of the first row."""
    K, m = choice.a.shape
    L, n = S.shape
    scores, weight, x = np.empty((K, m)), np.empty(m), np.empty(n)
    out, x0, chosen = np.empty(L), np.empty(n), np.empty((K, m))
    scale = np.sqrt(choice.a + choice.b)
    for b in range(L):
        _flip_scores(X, (S[b], fold, scale), scores)
        for q in range(K):
            k = max(_pick(scores[q], choice, weight), 1)
            for i in range(n):
                if fold[i] == q:
                    x[i] = S[b, i] * _held_out(X, weight, i) / k
            if b == 0:
                chosen[q] = weight
        out[b] = _student(x, mean)
        if b == 0:
            x0[:] = x
    return out, x0, chosen


@compiled()
def _group_scores(X, dealt, scores):
    """Training difference of the groups over its scale, (K, m); dealt = (codes, folds, choice, groups)."""
    codes, fold, choice, groups = dealt
    K, m = scores.shape
    G, n = groups.counts.size, codes.size
    sums, squares, left = np.empty((K, G)), np.empty(K), np.zeros((K, G))
    for i in range(n):
        for q in range(K):
            if fold[i] != q:
                left[q, codes[i]] += 1.0
    for f in range(m):
        sums[:], squares[:] = 0.0, 0.0
        for p in range(X.indptr[f], X.indptr[f + 1]):
            i, v = X.idx[p], X.val[p]
            for q in range(K):
                if fold[i] != q:
                    sums[q, codes[i]] += v
                    squares[q] += v * v
        for q in range(K):
            c, total = 0.0, 0.0
            for g in range(G):
                c += groups.weights[g] * sums[q, g] / left[q, g]
                total += sums[q, g]
            spread = choice.a[0, f] * max(squares[q] - total * total / left[q].sum(), 0.0) + choice.b[0, f]
            floor = 1e-10 * squares[q]
            scores[q, f] = c / math.sqrt(spread) if spread > floor and spread > 0.0 else 0.0


@compiled()
def _group_t(x, codes, groups):
    """Weighted difference of the group means over its standard error; the difference itself where asked for."""
    G = groups.counts.size
    total, square = np.zeros(G), np.zeros(G)
    for i in range(x.size):
        total[codes[i]] += x[i]
    for i in range(x.size):
        square[codes[i]] += (x[i] - total[codes[i]] / groups.counts[codes[i]]) ** 2
    estimate, se2, pooled = 0.0, 0.0, square.sum() / (x.size - G)
    for g in range(G):
        n = groups.counts[g]
        estimate += groups.weights[g] * total[g] / n
        se2 += groups.weights[g] ** 2 / n * (pooled if groups.pooled else square[g] / (n - 1))
    if groups.mean:
        return estimate
    if se2 <= 1e-24 * estimate * estimate:
        return 0.0 if estimate == 0.0 else math.copysign(1e9, estimate)
    return estimate / math.sqrt(se2)


@compiled()
def group_tile(X, labels, order, *, choice, groups, n_folds):
    """As `flip_tile` for permuted labels; x is centred inside each fold, whose features differ."""
    L, n = labels.shape
    K, m = n_folds, choice.a.shape[1]
    scores, weight, x, fold = np.empty((K, m)), np.empty(m), np.empty(n), np.empty(n, np.int64)
    out, x0, chosen = np.empty(L), np.empty(n), np.empty((K, m))
    for b in range(L):
        codes = labels[b]
        deal_items(codes, fold, (order, K))
        _group_scores(X, (codes, fold, choice, groups), scores)
        for q in range(K):
            k = max(_pick(scores[q], choice, weight), 1)
            total, count = 0.0, 0
            for i in range(n):
                if fold[i] == q:
                    x[i] = _held_out(X, weight, i) / k
                    total += x[i]
                    count += 1
            for i in range(n):
                if fold[i] == q:
                    x[i] -= total / count
            if b == 0:
                chosen[q] = weight
        out[b] = _group_t(x, codes, groups)
        if b == 0:
            x0[:] = x
    return out, x0, chosen
