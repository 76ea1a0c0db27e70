"""Permuting the labels of conditions: one model RDM against many maps, without ever copying a matrix.

In the space of its comparator (`rdm_compare.embed`) the agreement of two RDMs is an inner product of symmetric
matrices, and a permutation of conditions moves rows and columns of one of them. The permuted model is gathered into a
tile of rows, and one matrix product compares the tile with all maps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from neurosae.errors import DataError
from neurosae.stats.kernels import compiled, sort_keys
from neurosae.stats.rdm_compare import condensed_to_square, embed

TILE = 256  # permutations gathered at a time
STREAM = np.uint64(3)  # purpose of the random stream, beside flips, label permutations and bootstraps of items


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
    compare : "corr", "spearman", or any other comparator but tau-a (ranks are taken once)
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
    blocks = np.zeros(_size(model), dtype=np.int64) if blocks is None else np.unique(blocks, return_inverse=True)[1]

    def drawn(first: int, count: int) -> np.ndarray:
        return orders(len(blocks), first, count, blocks=blocks, seed=seed)

    rows = unit_rows(np.vstack([model, maps]), compare)
    maxima = np.empty(n_permutations, np.float32)
    for first, tile in _tiles(rows, n_permutations, drawn, compare=compare):
        maxima[first : first + len(tile)] = np.abs(tile).max(axis=1)
    return rows[1:] @ rows[0], maxima


def label_null(
    maps: np.ndarray,
    model: np.ndarray,
    drawn: Callable[[int, int], np.ndarray],
    *,
    n: int,
    compare: str,
    nuisance: np.ndarray | None = None,
) -> np.ndarray:
    """Agreement of every map with the model under n permutations of the conditions, float32 (n, n_maps).

    Parameters
    ----------
    maps : array of shape (n_maps, n_pairs);  model : array of shape (n_pairs,)
    drawn : (first, count) -> orders of the conditions, int (count, n_conditions); number 0 is the identity
    compare : any comparator but tau-a. rho-a is divided by its lengths here (that of spearman), which changes no p
    nuisance : array of shape (n_nuisance, n_pairs), optional
        Regressed out of maps and model first; the agreement is then the partial one

    Examples
    --------
    >>> model = np.random.default_rng(0).random(45)
    >>> drawn = lambda first, count: orders(10, first, count, blocks=np.zeros(10, dtype=int), seed=1)
    >>> label_null(model[None], model, drawn, n=100, compare="cosine_cov")[0].round(4)
    array([1.], dtype=float32)
    """
    rows = unit_rows(np.vstack([model, maps]), compare)
    if nuisance is not None and len(nuisance):
        Z = unit_rows(nuisance, compare).T
        rows = rows - (Z @ np.linalg.lstsq(Z, rows.T, rcond=1e-10)[0]).T
        lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        if (lengths <= 1e-9).any():
            raise DataError("nuisance models explain the model or a map completely, so nothing is left to compare.")
        rows /= lengths
    out = np.empty((n, len(maps)), np.float32)
    for first, tile in _tiles(rows, n, drawn, compare=compare):
        out[first : first + len(tile)] = tile
    return out


def unit_rows(rdms: np.ndarray, compare: str) -> np.ndarray:
    """Embedded RDMs of length 1, one per row: upper triangles, then for whitened comparators the diagonals."""
    rows = []
    for rdm in rdms:
        vector = embed(rdm, compare)
        if compare.endswith("_cov"):
            square = vector.reshape(_size(rdm), -1)
            vector = np.r_[np.sqrt(2) * square[np.triu_indices(len(square), 1)], np.diag(square)]
        length = np.sqrt((vector**2).sum())
        if not np.isfinite(length) or length <= 1e-12 * max(np.abs(rdm).max(), 1e-300):
            raise DataError("a map or the model has only equal distances, so it has no correlation; leave it out.")
        rows.append(vector / length)
    return np.stack(rows)


def _size(rdm: np.ndarray) -> int:
    """Number of conditions of a condensed RDM."""
    return round((1 + np.sqrt(1 + 8 * len(rdm))) / 2)


def _tiles(
    rows: np.ndarray, n: int, drawn: Callable[[int, int], np.ndarray], *, compare: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Tiles of agreements (count, n_maps); row 0 is the model."""
    whitened = compare.endswith("_cov")
    width = rows.shape[1]
    # pairs + conditions = K (K + 1) / 2 entries with a diagonal, K (K - 1) / 2 without
    K = round((np.sqrt(1 + 8 * width) + (-1 if whitened else 1)) / 2)
    n_pairs = K * (K - 1) // 2
    square = condensed_to_square(rows[0, :n_pairs]).astype(np.float32)
    if whitened:
        np.fill_diagonal(square, rows[0, n_pairs:])
    columns = np.ascontiguousarray(rows[1:].T, dtype=np.float32)
    tile, out = np.empty((TILE, width), np.float32), np.empty((TILE, columns.shape[1]), np.float32)
    for first in range(0, n, TILE):
        count = min(TILE, n - first)
        _gather(square, drawn(first, count).astype(np.uint32), tile[:count])
        yield first, np.dot(tile[:count], columns, out=out[:count])


def orders(n: int, first: int, count: int, *, blocks: np.ndarray, seed: int) -> np.ndarray:
    """Permutations first … first + count - 1 of n conditions inside blocks: int64 (count, n), number 0 the identity.

    Examples
    --------
    >>> orders(4, 0, 2, blocks=np.array([0, 0, 1, 1]), seed=0)[0].tolist()
    [0, 1, 2, 3]
    """
    keys = np.empty((count, n), dtype=np.uint64)
    sort_keys(keys, np.arange(n, dtype=np.uint32), seed=np.uint64(seed), stream=STREAM, first=first)
    out = np.empty((count, n), dtype=np.int64)
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        out[:, members] = members[np.argsort(keys[:, members], axis=1)]
    if first == 0:
        out[0] = np.arange(n)
    return out


@compiled(error_model="numpy")
def _gather(square, order, out):
    """out[b] = the condensed square with rows and columns in order b, then its diagonal if there is room for it."""
    n, n_pairs = square.shape[0], square.shape[0] * (square.shape[0] - 1) // 2
    for b in range(order.shape[0]):
        q, p = 0, order[b]  # unsigned places: nothing wraps around, so the inner loop becomes vector gathers
        for i in range(n - 1):
            row, there, to = square[p[i]], p[i + 1 :], out[b, q : q + n - 1 - i]
            for j in range(n - 1 - i):
                to[j] = row[there[j]]
            q += n - 1 - i
        if out.shape[1] > n_pairs:
            for i in range(n):
                out[b, n_pairs + i] = square[p[i], p[i]]
