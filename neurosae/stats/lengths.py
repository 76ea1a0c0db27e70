r"""D_c of every kind of effect: contrasts that are flipped, groups, levels that change places, all levels, slopes.

| effect | D_c | relabelled |
|---|---|---|
| contrast with a mirror image, groups of items | `length.contrast_length` | signs of items, labels over items |
| contrast w, no mirror image | sum_{i != k} <sum_l w_l x_il, sum_l w_l x_kl> / (n (n - 1)) | levels in items |
| all K levels of a factor | sum over l of the same with w = 1[l] - 1/K: levels around their mean | levels in items |
| all K levels between items | sum over orthonormal contrasts of the groups' D_c | labels over items |
| slope on a covariate | (b'b (n-1) Sxx - tr G) / ((n-2) Sxx), G of the centred items, b = X'y/Sxx | values over items |

All are unbiased for a squared length and may be negative. Features are divided by a standard deviation that no
relabelling changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from neurosae.stats.length import TILE, Length, contrast_length, gram, group_lengths, length_of, solid
from neurosae.stats.relabel import Relabelling, flips, labels, levels, permutations, within
from neurosae.stats.units import ItemData


def relabellings(
    data: Sequence[ItemData], n_permutations: int, *, seed: int, split: str
) -> list[tuple[Relabelling, np.ndarray]]:
    """For each place of one effect its relabelling, and where its units stand in it; number b is one everywhere."""
    everyone = np.unique(np.concatenate([d.numbers for d in data])) if data else np.empty(0, dtype=np.uint32)
    same = all(np.array_equal(d.numbers, everyone) for d in data)
    out = []
    for d in data:
        exchange, common = d.exchange, {"seed": seed, "split": split}
        if exchange.levels is not None:
            part = (exchange.levels.number, exchange.levels.weights is None)
            made = within(everyone, exchange.levels.n, n_permutations, part=part, **common)
            out.append((made, np.searchsorted(everyone, d.numbers)))
        elif d.codes is None and exchange.regressor is None:
            made = flips(everyone, n_permutations, **common)
            out.append((made, np.searchsorted(everyone, d.numbers)))
        else:
            # distinct permutations are listed only where all places have the same units
            moved = d.codes if exchange.regressor is None else _ranks(exchange.regressor.values)
            strata = d.strata if exchange.regressor is None else exchange.regressor.blocks
            listed = None if same else False
            assert moved is not None
            made = permutations(d.numbers, moved, n_permutations, blocks=strata, enumerate_all=listed, **common)
            out.append((made, np.arange(d.n)))
    return out


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def effect_length(
    data: ItemData, relabelling: Relabelling, place: np.ndarray, *, min_informative: int = 6
) -> Length | None:
    """D_c of one effect of any kind at one place; None where no feature has enough informative items."""
    if data.exchange.levels is not None:
        return _levels_length(data, relabelling, place, min_informative=min_informative)
    if data.exchange.regressor is not None:
        return _slope_length(data, relabelling, place, min_informative=min_informative)
    if data.contrasts is not None:
        return _groups_length(data, relabelling, place, min_informative=min_informative)
    return contrast_length(
        solid(data), relabelling, columns=place, weights=data.groups, min_informative=min_informative
    )


def _scaled(X: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return X / np.sqrt(variance + np.median(variance))


def _kept(data: ItemData, min_informative: int) -> np.ndarray:
    return np.flatnonzero(data.informative >= min_informative)


def _levels_length(
    data: ItemData, relabelling: Relabelling, place: np.ndarray, *, min_informative: int
) -> Length | None:
    kept, n = _kept(data, min_informative), data.n
    if not len(kept):
        return None
    assert data.levels is not None
    at = data.exchange.levels
    assert at is not None
    X = data.levels[:, kept].toarray().reshape(n, at.n, len(kept))
    X = X - X.mean(axis=1, keepdims=True)  # permutations inside items leave their means alone
    X = _scaled(X, (X**2).sum(axis=(0, 1)) / n).reshape(n * at.n, len(kept))
    G = gram(sp.csr_matrix(X))
    item = np.repeat(np.arange(n), at.n)
    G[item[:, None] == item[None]] = 0.0
    values = np.concatenate(
        [
            _level_values(G, levels(relabelling, first, min(TILE, relabelling.n - first))[place], at.weights)
            for first in range(0, relabelling.n, TILE)
        ]
    ) / (n * (n - 1))
    size = np.abs(G).sum() / (n * (n - 1))
    return length_of(values, size, n_features=len(kept), n_informative=int((np.abs(X).sum(axis=1) > 0).sum() // 2))


def _level_values(G: np.ndarray, new: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Sums of products over pairs of items, new (n_items, n_levels, count) = where each level goes."""
    n, K, count = new.shape
    flat = new.transpose(2, 0, 1).reshape(count, n * K)
    if weights is not None:
        a = weights[flat]
        return np.einsum("bi,bi->b", a @ G, a)
    total = np.zeros(count)
    for level in range(K):
        a = (flat == level).astype(float)
        total += np.einsum("bi,bi->b", a @ G, a)
    return total


def _groups_length(
    data: ItemData, relabelling: Relabelling, place: np.ndarray, *, min_informative: int
) -> Length | None:
    kept, n = np.flatnonzero(np.diff(data.D.indptr) >= min_informative), data.n
    if not len(kept):
        return None
    X = data.D[:, kept].toarray()
    variance = X.var(axis=0)
    alive = variance > 1e-12 * np.abs(X).max(axis=0) ** 2
    X = _scaled(X[:, alive], variance[alive])
    G = gram(sp.csr_matrix(X - X.mean(axis=0)))
    np.fill_diagonal(G, 0.0)
    assert data.contrasts is not None
    basis = np.linalg.svd(data.contrasts, full_matrices=False)[2]
    values = np.concatenate(
        [
            np.sum([group_lengths(G, _codes(relabelling, place, first), row) for row in basis], axis=0)
            for first in range(0, relabelling.n, TILE)
        ]
    )
    size = np.abs(G).sum() / (n * (n - 1))
    return length_of(
        values,
        size,
        n_features=int(alive.sum()),
        n_informative=int((np.diff(data.D[:, kept].tocsr().indptr) > 0).sum()),
    )


def _codes(relabelling: Relabelling, place: np.ndarray, first: int) -> np.ndarray:
    return labels(relabelling, first, min(TILE, relabelling.n - first))[:, place]


def _slope_length(
    data: ItemData, relabelling: Relabelling, place: np.ndarray, *, min_informative: int
) -> Length | None:
    kept, n = np.flatnonzero(np.diff(data.D.indptr) >= min_informative), data.n
    regressor = data.exchange.regressor
    assert regressor is not None
    M = np.eye(n) - _projection(regressor.groups)
    X = M @ data.D[:, kept].toarray()
    variance = (X**2).mean(axis=0)
    alive = variance > 1e-12 * np.abs(data.D[:, kept]).max(axis=0).toarray().ravel() ** 2
    if not alive.any():
        return None
    G = gram(sp.csr_matrix(_scaled(X[:, alive], variance[alive])))
    distinct = np.unique(regressor.values)
    df = n - 1 - len(np.unique(regressor.groups))
    values = []
    for first in range(0, relabelling.n, TILE):
        x = distinct[_codes(relabelling, place, first)] @ M
        sxx = np.einsum("bi,bi->b", x, x)
        explained = np.einsum("bi,bi->b", x @ G, x) / sxx  # b'b Sxx
        values.append((explained - (np.trace(G) - explained) / df) / sxx)
    out = np.concatenate(values)
    return length_of(out, np.trace(G) / sxx.min(), n_features=int(alive.sum()), n_informative=n)


def _projection(groups: np.ndarray) -> np.ndarray:
    """Projection onto the means of groups (n, n)."""
    same = groups[:, None] == groups[None]
    return same / same.sum(axis=1, keepdims=True)
