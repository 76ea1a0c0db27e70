"""Cluster mass of single features along their positions, under flips of whole items, without a graph.

A cluster is a run of neighbouring positions of one feature whose t lies above the threshold, or below its negative; its
mass is the sum of |t|. Lanes are relabellings: the sums of a feature's positions are made one after the other, and one
scan forward keeps the mass of the run that is open and the largest mass so far. The same flip serves every feature and
position.

Stopping early is exact. With V = D / scale and r = s'V, no flip takes |r| of a column beyond b = sum |V|, so t never
leaves [-t(b), t(b)]: a column with t(b) <= threshold is in no cluster, and a feature's mass is at most the largest sum
of t(b) over a run of such columns. Features come by falling bound, and a tile ends where the bound is no longer above
the smallest running maximum.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats import kernels
from neurosae.stats.flips import each_tile
from neurosae.stats.kernels import FAST, compiled, flip_lanes
from neurosae.stats.relabel import Relabelling, flip_mask

LARGEST = 1e-9  # 1 - r^2 below which t has no digits left in float32


class Chains(NamedTuple):
    """Columns of features x positions, made ready for flips; column f * length + p is feature f at position p.

    indptr, idx, val : CSC, float32, V = D / scale;  total : sum V
    live : columns that some flip could bring above the threshold
    order, bound : features by falling bound of their mass, and the bound of each feature
    joined : array of shape (length,), whether a position follows the one before it
    threshold, df : of t;  scale : divisor of each column
    """

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    total: np.ndarray
    live: np.ndarray
    order: np.ndarray
    bound: np.ndarray
    joined: np.ndarray
    threshold: np.float32
    df: np.float32


def chains(
    D: sp.csc_matrix, length: int, *, df: float, threshold: float, scale: np.ndarray, joined: np.ndarray | None = None
) -> Chains:
    """Prepare item contrasts for `chain_maxima`.

    Parameters
    ----------
    D : CSC float64 of shape (n_items, n_features * length); a missing position is an empty column
    length : number of positions of a feature
    df : degrees of freedom, t = r sqrt(df / (1 - r^2)) with r = s'D / scale
    threshold : of t, positive
    scale : array of shape (n_features * length,), sqrt(n (q + d0 s0^2)) for instance: nothing that a flip changes
    joined : array of shape (length,), optional
        Whether each position follows the one before it; by default all do.
    """
    D, n = sp.csc_matrix(D), int(D.shape[1])  # pyright: ignore[reportOptionalSubscript]
    if n % length or len(scale) != n:
        raise DataError(f"{n} columns are not the same {length} positions of every feature, with a scale for each.")
    if not (threshold > 0 and np.isfinite(df)):
        raise DataError(f"the threshold is {threshold}, the degrees of freedom {df}; t needs both positive and finite.")
    column = np.repeat(np.arange(n), np.diff(D.indptr))
    scaled = D.data / np.where(scale > 0, scale, 1)[column]
    most = np.minimum(np.bincount(column, np.abs(scaled), n) * (1 + 1e-5), 1.0)
    highest = np.where(most < 1 - 1e-6, most * np.sqrt(df / np.maximum(1 - most**2, LARGEST)), 1e6 * np.sqrt(df))
    live = highest > threshold * (1 - 1e-4)
    follows = np.ones(length, dtype=bool) if joined is None else np.asarray(joined, dtype=bool)
    run, bound = np.zeros(n // length), np.zeros(n // length)
    for p in range(length):
        here = live.reshape(-1, length)[:, p]
        run = np.where(here, (run if follows[p] else 0.0) + highest.reshape(-1, length)[:, p], 0.0)
        bound = np.maximum(bound, run)
    return Chains(
        D.indptr.astype(np.int64),
        D.indices.astype(np.int32),
        scaled.astype(np.float32),
        np.bincount(column, scaled, n).astype(np.float32),
        live,
        np.argsort(-bound, kind="stable"),
        (bound * (1 + 1e-4)).astype(np.float32),
        follows,
        np.float32(threshold),
        np.float32(df),
    )


def chain_maxima(made: Chains, relabelling: Relabelling, *, two_sided: bool = True, prune: bool = True) -> np.ndarray:
    """Largest cluster mass over all features and runs of positions per flip, float32 (n_permutations,); 0 without one.

    Only positive clusters count unless `two_sided`. Relabelling 0 is the identity.

    Examples
    --------
    >>> from neurosae.stats.relabel import flips
    >>> D = np.repeat(np.array([[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]]).T, 4, axis=1)
    >>> made = chains(sp.csc_matrix(D), 4, df=5, threshold=2.0, scale=np.sqrt(6 * (D**2).sum(axis=0)))
    >>> chain_maxima(made, flips(np.arange(6), 64, seed=0))[0].round(3)  # four times t = 5.477
    np.float32(21.909)
    """
    tiles = each_tile(partial(_tile, made, relabelling, two_sided=two_sided, prune=prune), relabelling)
    return np.concatenate(tiles)[: relabelling.n]


def _tile(made: Chains, relabelling: Relabelling, first: int, *, two_sided: bool, prune: bool) -> np.ndarray:
    mx = np.empty(kernels.LANES, dtype=np.float32)
    _longest(made, flip_mask(relabelling, first), mx, two_sided=two_sided, prune=prune)
    return mx


@compiled(fastmath=FAST)
def _longest(V, W, mx, *, two_sided, prune):
    """mx[lane] = largest mass; returns the number of features visited."""
    L, length = W.shape[1], V.joined.size
    zero, one, least = np.float32(0), np.float32(1), np.float32(1e-9)
    acc, above, below = np.empty(L, np.float32), np.empty(L, np.float32), np.empty(L, np.float32)
    low, thr, df = np.float32(-1), V.threshold, V.df
    mx[:] = zero
    for a in range(V.order.size):
        f = V.order[a]
        if prune and V.bound[f] <= max(low, zero):
            return a
        above[:] = zero
        below[:] = zero
        for p in range(length):
            if not V.joined[p]:
                above[:] = zero
                below[:] = zero
            if prune and not V.live[f * length + p]:
                above[:] = zero
                below[:] = zero
                continue
            flip_lanes(V, f * length + p, (W, acc))
            for j in range(L):
                r = acc[j]
                t = r * np.sqrt(df / max(one - r * r, least))
                above[j] = above[j] + t if t > thr else zero
                below[j] = below[j] - t if t < -thr else zero
                best = max(above[j], below[j]) if two_sided else above[j]
                mx[j] = max(mx[j], best)
        if prune and a % 16 == 15:
            low = mx[0]
            for j in range(L):
                low = min(low, mx[j])
    return V.order.size
