"""At one place: squared distances between rows that an effect explains, and its share of the variance of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from neurosae.design.levels import reversal
from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.spec.frames import between
from neurosae.stats import coded, permanova
from neurosae.stats.relabel import labels, signs
from neurosae.stats.spots import Found, Spot, reached_share


def distances_explained(spot: Spot) -> Found:
    """PERMANOVA with its comparison of dispersions; what moves are labels inside items, or whole items in strata."""
    data = spot.data
    if data.codes is None:
        return _within_permanova(spot)
    assert data.groups is not None
    X = coded.standardized(data.D[:, spot.columns].toarray())
    G, n, K = X @ X.T, data.n, len(data.groups)
    counts = np.bincount(data.codes, minlength=K).astype(float)
    size = float((data.groups**2 / counts).sum())
    null = []
    for tile in spot.tiles:
        codes = labels(spot.relabelling, *tile)[:, spot.place]
        indicators = [(codes == g).astype(float) for g in range(K)]
        M = np.stack([np.stack([np.einsum("bi,bi->b", x @ G, z) for z in indicators]) for x in indicators])
        M = M / (counts[:, None, None] * counts[None, :, None])
        between = np.einsum("g,ggb->b", counts, M)  # centred rows: the grand mean is 0
        explained = np.einsum("g,ghb,h->b", data.groups, M, data.groups) / size
        null.append(explained / ((np.trace(G) - between) / (n - K)))
    F = np.concatenate(null)
    R2 = F[0] * (np.trace(G) - np.einsum("g,gg->", counts, _means(G, data.codes, K))) / (n - K) / np.trace(G)
    spread = permanova.dispersions(G, data.codes)
    plus, minus = (spread[np.sign(data.groups)[data.codes] == s].mean() for s in (1, -1))
    side = np.sign(data.groups)
    moved = [side[labels(spot.relabelling, *tile)[:, spot.place]] for tile in spot.tiles]
    gaps = [np.abs(_side_gap(spread, one)) for one in moved]
    return _explained(F, float(R2), n - K, spread=(plus, minus, np.concatenate(gaps)))


def _means(G: np.ndarray, codes: np.ndarray, n_groups: int) -> np.ndarray:
    A = (codes[None] == np.arange(n_groups)[:, None]).astype(float)
    A /= A.sum(axis=1, keepdims=True)
    return A @ G @ A.T


def _side_gap(values: np.ndarray, side: np.ndarray) -> np.ndarray:
    plus, minus = side > 0, side < 0
    return plus @ values / plus.sum(axis=1) - minus @ values / minus.sum(axis=1)


def _explained(F: np.ndarray, R2: float, df: int, *, spread: tuple[float, float, np.ndarray]) -> Found:
    plus, minus, gaps = spread
    p = reached_share(gaps)
    extras = {"x_dispersion_plus": float(plus), "x_dispersion_minus": float(minus), "x_p_dispersion": p}
    note = "PERMANOVA also rejects where only the spread differs: read it beside x_p_dispersion"
    return Found(float(F[0]), F, R2, "R2", extras, (note,), dof=float(df))


@dataclass(frozen=True)
class _Blocks:
    """Patterns of units in the cells of their own group, and the contrast inside it.

    Attributes
    ----------
    Z : array of shape (n_units, n_within, m)
    group : array of shape (n_units,)
    weights : array of shape (n_within,), of length 1;  share : (n_units,), what a unit counts in the contrast
    swap : array of shape (n_within,), the cell that each one changes places with
    """

    Z: np.ndarray
    group: np.ndarray
    weights: np.ndarray
    share: np.ndarray
    swap: np.ndarray


def _within_permanova(spot: Spot) -> Found:
    r"""F of a contrast within items: unit, cells of every group of items and residual make up the squared distances.

    With orthonormal contrasts T_qi inside unit i, q = 0 the effect, n_g units in group g and h_i = u_g / n_g the share
    of a unit in the contrast of group means,

        SS = |sum_i h_i T_0i|^2 / sum_i h_i^2,   SS_residual = sum_qi |T_qi|^2 - sum_g n_g sum_q |mean_g T_q|^2.

    A swap turns the sign of T_0 and exchanges cells by R in the others, inside every unit, so that sums over pairs of
    units need only <T_i, T_k> and <T_i, R T_k>; units stay in their group.
    """
    made = _blocks(spot)
    Z, w = made.Z, made.weights
    n, K, _ = Z.shape
    rest = np.linalg.svd(np.eye(K) - np.outer(w, w) - np.full((K, K), 1 / K))[0][:, : K - 2]
    T0, T = np.einsum("c,icm->im", w, Z), np.einsum("cq,icm->iqm", rest, Z)
    R = rest.T @ rest[made.swap]
    A, B = np.einsum("iqm,kqm->ik", T, T), np.einsum("iqm,qr,krm->ik", T, R, T)
    G0 = T0 @ T0.T
    same = made.group[:, None] == made.group[None]
    same = same / same.sum(axis=1, keepdims=True)  # the projection onto the means of the groups
    wanted = np.outer(made.share, made.share) * G0 / (made.share**2).sum()
    inside = float((Z**2).sum() - K * (Z.mean(axis=1) ** 2).sum())
    cells, moved = float((same * (A + B)).sum()) / 2, same * (G0 + (A - B) / 2)
    df = (n - len(np.unique(made.group))) * (K - 1)
    null = []
    for tile in spot.tiles:
        s = signs(spot.relabelling, *tile)[:, spot.place]
        residual = inside - cells - np.einsum("bi,bi->b", s @ moved, s)
        null.append(np.einsum("bi,bi->b", s @ wanted, s) / (residual / df))
    R2 = float(wanted.sum() / (Z**2).sum())
    return _explained(np.concatenate(null), R2, df, spread=_spread_within(spot, made))


def _spread_within(spot: Spot, made: _Blocks) -> tuple[float, float, np.ndarray]:
    """Mean distances to the spatial medians of the + and - cells of every group, and their gap under swaps."""
    n, K, _ = made.Z.shape
    flat, side = made.Z.reshape(n * K, -1), np.sign(made.weights)
    of = 3 * np.repeat(made.group, K) + np.tile(side + 1, n).astype(int)
    spread = permanova.dispersions(flat @ flat.T, of).reshape(n, K)
    gap = (spread[:, side > 0].mean(axis=1) - spread[:, side < 0].mean(axis=1)) * made.share
    gaps = [np.abs(signs(spot.relabelling, *tile)[:, spot.place] @ gap) for tile in spot.tiles]
    return float(spread[:, side > 0].mean()), float(spread[:, side < 0].mean()), np.concatenate(gaps)


def _blocks(spot: Spot) -> _Blocks:
    """Units with the cells of their own group, in one order of the levels within items.

    Raises
    ------
    DataError
        Units of several groups, or weights that no exchange of levels turns round.
    """
    data, design = spot.data, spot.around[1]
    rows, own = coded.cell_rows(data, spot.columns), between(design)
    inner = [tuple(level for name, level in zip(design.factors, cell, strict=True) if name not in own)
             for cell in data.cells]  # fmt: skip
    outer = [tuple(level for name, level in zip(design.factors, cell, strict=True) if name in own)
             for cell in data.cells]  # fmt: skip
    levels, groups = list(dict.fromkeys(inner)), list(dict.fromkeys(outer))
    place = np.array([levels.index(one) for one in inner])[rows.cell]
    group = np.array([groups.index(one) for one in outer])[rows.cell]
    if len(rows.X) != data.n * len(levels) or len(set(zip(rows.unit, place, strict=True))) < len(rows.X):
        raise DataError("some units have items in several groups, which do not move apart; use contrast_length")
    order = np.lexsort((place, rows.unit))
    Z = coded.standardized(rows.X)[order].reshape(data.n, len(levels), -1)
    of_unit = group[order].reshape(data.n, -1)[:, 0]
    table = np.zeros((len(groups), len(levels)))
    for weight, one, other in zip(data.weights, outer, inner, strict=True):
        table[groups.index(one), levels.index(other)] = weight
    lengths = np.linalg.norm(table, axis=1)
    w = table[lengths.argmax()] / lengths.max()
    swap = _swap(design, levels, w)
    if swap is None:
        raise DataError("no exchange of levels turns this contrast round; use contrast_length")
    return _Blocks(Z, of_unit, w, ((table @ w) / np.bincount(of_unit, minlength=len(groups)))[of_unit], swap)


def _swap(design: Design, levels: Sequence[tuple[str, ...]], w: np.ndarray) -> np.ndarray | None:
    """For every cell the one that it changes places with when the effect is turned round; None if there is none."""
    own = between(design)
    names = [name for name in design.factors if name not in own]
    every = list(product(*(design.factors[name].levels for name in names)))
    weight = dict(zip(levels, w, strict=True))
    moved = reversal(design, own, np.array([weight.get(cell, 0.0) for cell in every]))
    if not moved:
        return None
    partner = [
        tuple(
            moved[n][design.factors[n].levels.index(level)] if n in moved else level
            for n, level in zip(names, cell, strict=True)
        )
        for cell in levels
    ]
    swap = np.array([levels.index(cell) for cell in partner])
    return swap if (swap[swap] == np.arange(len(swap))).all() else None


def variance_share(spot: Spot) -> Found:
    r"""Share of the variance between cells along one contrast: w'Mw / |w|^2 over tr(H M), both cross-validated.

    M are the inner products of the cell means through pairs of different units, H removes the mean over cells.
    """
    rows = coded.cell_rows(spot.data, spot.columns)
    X = coded.standardized(rows.X)
    M = cell_products(X, rows.unit, rows.cell)
    w = spot.data.weights
    along = float(w @ M @ w / (w @ w))
    total = float(np.trace(M) - M.sum() / len(M))
    if not total > 0:
        note = "undefined: the cross-validated variance between cells is not positive"
        return Found(float("nan"), None, float("nan"), "share", {"x_variance": along}, (note,))
    extras = {"x_variance": along, "x_total": total}
    note = "described, not tested: significance is that of contrast_length; cross-validated shares may be negative"
    return Found(along / total, None, along / total, "share", extras, (note,))


def cell_products(X: np.ndarray, unit: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Cross-validated inner products of cell means: every pair of cells through rows of different units.

    Examples
    --------
    >>> X, unit, cell = np.array([[1.0], [2.0], [3.0], [5.0]]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    >>> cell_products(X, unit, cell).tolist()  # 1 * 3; (1 * 5 + 3 * 2) / 2; 2 * 5
    [[3.0, 5.5], [5.5, 10.0]]
    """
    other = (unit[:, None] != unit[None]).astype(float)
    A = (cell[None] == np.arange(cell.max() + 1)[:, None]).astype(float)
    return (A @ (X @ X.T * other) @ A.T) / (A @ other @ A.T)
