"""At one place: squared distances between rows that an effect explains, and its share of the variance of cells."""

from __future__ import annotations

import numpy as np

from neurosae.design.levels import reversal
from neurosae.errors import DataError
from neurosae.stats import coded, permanova
from neurosae.stats.relabel import labels, signs
from neurosae.stats.spots import Found, Spot, reached_share


def distances_explained(spot: Spot) -> Found:
    """PERMANOVA with its comparison of dispersions."""
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


def _within_permanova(spot: Spot) -> Found:
    r"""F of a contrast within items; unit, cells and residual make up the squared distances.

    With orthonormal contrasts T_qi of unit i, q = 0 the effect, SS_q = |sum_i T_qi|^2 / n. A swap turns the sign of T_0
    and exchanges cells by R in the others, so that the sum over pairs of units needs only <T_i, T_k> and <T_i, R T_k>.
    """
    data = spot.data
    rows = coded.cell_rows(data, spot.columns)
    K = len(data.cells)
    if len(rows.X) != data.n * K:
        raise DataError("permanova within items takes designs without factors between items; use contrast_length")
    Z = coded.standardized(rows.X).reshape(data.n, K, -1)
    swap = _swap(spot)
    if swap is None:
        raise DataError("no exchange of levels turns this contrast round; use contrast_length")
    w = data.weights / np.linalg.norm(data.weights)
    rest = np.linalg.svd(np.eye(K) - np.outer(w, w) - np.full((K, K), 1 / K))[0][:, : K - 2]
    T0, T = np.einsum("c,icm->im", w, Z), np.einsum("cq,icm->iqm", rest, Z)
    R = rest.T @ rest[swap]
    A, B = np.einsum("iqm,kqm->ik", T, T), np.einsum("iqm,qr,krm->ik", T, R, T)
    G0 = T0 @ T0.T
    inside = float((Z**2).sum() - K * (Z.mean(axis=1) ** 2).sum())
    df = (data.n - 1) * (K - 1)
    null = []
    for tile in spot.tiles:
        s = signs(spot.relabelling, *tile)[:, spot.place]
        explained = np.einsum("bi,bi->b", s @ G0, s) / data.n
        others = ((A + B).sum() + np.einsum("bi,bi->b", s @ (A - B), s)) / (2 * data.n)
        null.append(explained / ((inside - explained - others) / df))
    F = np.concatenate(null)
    R2 = float(G0.sum() / data.n / (Z**2).sum())
    flat = Z.reshape(data.n * K, -1)
    spread = permanova.dispersions(flat @ flat.T, np.tile(np.sign(data.weights), data.n)).reshape(data.n, K)
    side = np.sign(data.weights)
    gap = spread[:, side > 0].mean(axis=1) - spread[:, side < 0].mean(axis=1)
    gaps = [np.abs(signs(spot.relabelling, *tile)[:, spot.place] @ gap) for tile in spot.tiles]
    return _explained(F, R2, df, spread=(spread[:, side > 0].mean(), spread[:, side < 0].mean(), np.concatenate(gaps)))


def _swap(spot: Spot) -> np.ndarray | None:
    """For every cell the one that it changes places with when the effect is turned round; None if there is none."""
    design, data = spot.around[1], spot.data
    place = {cell: k for k, cell in enumerate(data.cells)}
    weight = dict(zip(data.effect.cells, data.effect.weights, strict=True))
    moved = reversal(design, (), np.array([weight[cell] for cell in data.effect.cells]))
    if not moved:
        return None
    names = list(design.factors)

    def partner(cell: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            moved[n][design.factors[n].levels.index(level)] if n in moved else level
            for n, level in zip(names, cell, strict=True)
        )

    swap = np.array([place[partner(cell)] for cell in data.cells])
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
