"""Resampling whole conditions: bootstrap and permutation of RDMs without ever copying, masking or subsampling one.

A bootstrap that draws condition i w_i times gives the pair (i, j) the weight w_i w_j; pairs of a condition with itself
are missing. With A, B the square RDMs (zero diagonal) every weighted inner product is a quadratic form,

    <A, B>_w = sum_{i<j} w_i w_j A_ij B_ij = w'(A o B) w / 2,

so one matrix product serves all draws. A permutation of conditions gathers the permuted model into a tile of rows, and
one matrix product correlates the tile with all maps at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats

from neurosae.errors import DataError, choose
from neurosae.stats.kernels import compiled, sort_keys
from neurosae.stats.rdm_compare import condensed_to_square

TILE = 256  # permutations gathered at a time
STREAM = np.uint64(3)  # purpose of the random stream, beside flips, label permutations and bootstraps of items
CENTRED = {"cosine": False, "corr": True}


class Resampled(NamedTuple):
    """Agreement of models with data in every draw, and the noise ceilings there.

    fits : (n_draws, n_models), mean over the drawn data RDMs;  lower, upper : (n_draws,)
    """

    fits: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def bootstrap_rdms(
    data: np.ndarray,
    models: np.ndarray,
    *,
    conditions: np.ndarray,
    rdms: np.ndarray,
    compare: str = "cosine",
    dtype: type = np.float64,
) -> Resampled:
    """Agreement of model RDMs with data RDMs, and noise ceilings, when conditions and RDMs are drawn with replacement.

    Parameters
    ----------
    data : array of shape (n_rdms, n_pairs), condensed
    models : array of shape (n_models, n_pairs), condensed
    conditions : array of shape (n_draws, n_conditions), how often each condition was drawn
    rdms : array of shape (n_draws, n_rdms), how often each data RDM was drawn
    compare : "cosine", or "corr" (weighted means subtracted)
    dtype : float32 halves the time and keeps about 6 digits

    Returns
    -------
    Resampled
        The ceilings are NaN in a draw of a single RDM, which has no others to be compared with; a fit is NaN in a draw
        in which the model or an RDM does not vary.

    Notes
    -----
    Equal to rsatoolbox's `eval_bootstrap` for the same draws. Lower ceiling: each drawn RDM against the mean of the
    other drawn ones; upper: against the mean of all, itself included.

    References
    ----------
    Schütt, Kipnis, Diedrichsen & Kriegeskorte (2023), Statistical inference on representational geometries, eLife 12.

    Examples
    --------
    >>> data, models = np.array([[1.0, 2, 3], [1.0, 2, 4]]), np.array([[1.0, 2, 3]])
    >>> once = bootstrap_rdms(data, models, conditions=np.ones((1, 3)), rdms=np.array([[1, 1]]))
    >>> once.fits.round(4), bool(once.lower[0] <= once.upper[0] <= 1)
    (array([[0.9957]]), True)
    """
    centred = choose("comparator", compare, CENTRED)
    W, R = np.asarray(conditions, dtype=dtype), np.asarray(rdms, dtype=np.float64)
    squares = [condensed_to_square(v).astype(dtype) for v in np.concatenate([models, data])]
    if squares[0].shape[0] != W.shape[1]:
        raise DataError(f"the RDMs have {squares[0].shape[0]} conditions, but {W.shape[1]} were drawn from.")

    def weighted(square: np.ndarray) -> np.ndarray:
        return np.einsum("bc,bc->b", W @ square, W, optimize=False).astype(np.float64) / 2

    total = (W.astype(np.float64).sum(axis=1) ** 2 - (W.astype(np.float64) ** 2).sum(axis=1)) / 2
    means = np.stack([weighted(A) / total for A in squares], axis=1) if centred else np.zeros((len(W), len(squares)))

    def product(i: int, j: int) -> np.ndarray:
        return weighted(squares[i] * squares[j]) - means[:, i] * means[:, j] * total

    m, k = len(models), len(data)
    raw = np.stack([weighted(A * A) for A in squares], axis=1)
    lengths = _lengths(np.stack([product(i, i) for i in range(m)], axis=1), raw[:, :m])
    gram = np.empty((len(W), k, k))
    for i in range(k):
        for j in range(i + 1):
            gram[:, i, j] = gram[:, j, i] = product(m + i, m + j)
    norms = _lengths(np.einsum("bkk->bk", gram), raw[:, m:])
    cross = np.stack([np.stack([product(i, m + j) for j in range(k)], axis=1) for i in range(m)], axis=1)
    agreement = cross / lengths[:, :, None] / norms[:, None, :]
    fits = (agreement * R[:, None, :]).sum(axis=2) / R.sum(axis=1)[:, None]
    return Resampled(fits, *_ceilings(gram / norms[:, :, None] / norms[:, None, :], R))


def _lengths(squared: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Square roots; nan where nothing is left of the uncentred squares but rounding."""
    return np.sqrt(np.where(squared > 1e-12 * raw, squared, np.nan))


def _ceilings(unit: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ceiling per draw from the Gram matrices of the data RDMs at unit length."""
    with_all = np.einsum("bk,bkl->bl", R, unit)  # <sum of all drawn, l>
    squared = np.einsum("bl,bl->b", with_all, R)[:, None]
    drawn = R > 0
    upper = (with_all / np.sqrt(squared) * drawn).sum(axis=1) / drawn.sum(axis=1)
    rest = squared - 2 * R * with_all + R**2  # length of the sum without l's own copies
    alone = np.where(drawn & (rest > 1e-12), (with_all - R) / np.sqrt(np.where(rest > 1e-12, rest, 1)), np.nan)
    single = drawn.sum(axis=1) < 2
    lower = np.where(drawn, np.nan_to_num(alone), 0).sum(axis=1) / drawn.sum(axis=1)
    return np.where(single, np.nan, lower), np.where(single, np.nan, upper)


def permute_conditions(
    maps: np.ndarray,
    model: np.ndarray,
    *,
    n_permutations: int = 10_000,
    blocks: np.ndarray | None = None,
    compare: str = "corr",
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of a model RDM with many maps, and the largest over maps under permutations of the conditions.

    Parameters
    ----------
    maps : array of shape (n_maps, n_pairs)
        Condensed RDMs: layers x positions x …; one set of permutations serves them all.
    model : array of shape (n_pairs,)
    n_permutations : the identity included
    blocks : array of shape (n_conditions,), optional
        Conditions move only inside equal numbers.
    compare : "corr", or "spearman" (ranks of maps and model are taken once)
    seed : int

    Returns
    -------
    observed : array of shape (n_maps,)
    maxima : float32 array of shape (n_permutations,)
        Largest absolute correlation over maps; entry 0 is the identity. p of a map = share of maxima that reach it.

    Notes
    -----
    H0: the conditions (of a block) are exchangeable: their labels say nothing about the geometry. With few conditions
    use item flips instead: 4 conditions have 24 permutations.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> model = rng.random(45)
    >>> maps = np.stack([model + 0.1 * rng.random(45), rng.random(45)])
    >>> r, null = permute_conditions(maps, model, n_permutations=200, seed=1)
    >>> bool(r[0] > 0.9), float((null >= abs(r[0]) - 1e-6).mean())
    (True, 0.005)
    """
    choose("comparator", compare, dict.fromkeys(("corr", "spearman"), True))
    vectors = np.vstack([model, maps]).astype(np.float64)
    if compare == "spearman":
        vectors = scipy.stats.rankdata(vectors, axis=1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    if (lengths <= 1e-12).any():
        raise DataError("a map or the model has only equal distances, so it has no correlation; leave it out.")
    vectors /= lengths
    square = condensed_to_square(vectors[0]).astype(np.float32)
    n = len(square)
    blocks = np.zeros(n, dtype=np.int64) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    columns = np.ascontiguousarray(vectors[1:].T, dtype=np.float32)
    maxima, tile = np.empty(n_permutations, np.float32), np.empty((TILE, columns.shape[0]), np.float32)
    for first in range(0, n_permutations, TILE):
        count = min(TILE, n_permutations - first)
        _gather(square, orders(n, first, count, blocks=blocks, seed=seed), tile[:count])
        maxima[first : first + count] = np.abs(tile[:count] @ columns).max(axis=1)
    return vectors[1:] @ vectors[0], maxima


def orders(n: int, first: int, count: int, *, blocks: np.ndarray, seed: int) -> np.ndarray:
    """Permutations first … first + count - 1 of n conditions inside blocks: int64 (count, n), number 0 the identity.

    Examples
    --------
    >>> orders(4, 0, 2, blocks=np.array([0, 0, 1, 1]), seed=0)[0].tolist()
    [0, 1, 2, 3]
    """
    keys = np.empty((count, n), dtype=np.uint64)
    sort_keys(keys, np.arange(n, dtype=np.uint32), seed=np.uint64(seed), stream=STREAM, first=first)
    drawn = np.lexsort((keys, np.broadcast_to(blocks, keys.shape)), axis=-1)
    out = np.empty((count, n), dtype=np.int64)
    out[:, np.argsort(blocks, kind="stable")] = drawn
    if first == 0:
        out[0] = np.arange(n)
    return out


@compiled()
def _gather(square, order, out):
    """out[b] = the condensed square with rows and columns in order b."""
    n = square.shape[0]
    for b in range(order.shape[0]):
        q, p = 0, order[b]
        for i in range(n - 1):
            row = square[p[i]]
            for j in range(i + 1, n):
                out[b, q] = row[p[j]]
                q += 1
