"""What several dictionaries agree on, read off their responses to the same stimuli: levels, sets, geometry.

Rows are item x cell x frame. A feature of one dictionary is never the feature of another because it has its index, nor
because both follow the factor: features are matched by what the design does not explain.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from neurosae.errors import DataError
from neurosae.extraction.responses import ItemCells, design_of, item_cells

LARGEST = 4_096  # features that are matched exactly
MIN_ITEMS = 6  # a feature of fewer items correlates with any other of the same item
N_BOOTSTRAP = 200


class Level(NamedTuple):
    """A level of a factor against the others: its rows, and whether the factor varies within items."""

    factor: str
    level: str
    inside: np.ndarray
    within: bool


def rows_of(adata: Any, *, region: str, position: int = 0, split: str | None = "test") -> ItemCells:
    """Responses per item, cell and frame at one place."""
    return item_cells(adata, design_of(adata), region=region, position=position, split=split, frames="separate")


def levels_of(adata: Any, rows: ItemCells) -> list[Level]:
    """Every level of every factor; of two levels only the second, since the first is its mirror image."""
    found = []
    for place, (name, factor) in enumerate(design_of(adata).factors.items()):
        labels = np.array([cell[place] for cell in rows.cells])[rows.row_cell]
        for level in list(factor.levels)[1 if len(factor.levels) == 2 else 0 :]:
            inside = labels == str(level)
            if 0 < inside.sum() < len(inside):
                found.append(Level(name, str(level), inside, factor.varies == "within"))
    return found


def alive_values(rows: ItemCells) -> tuple[np.ndarray, np.ndarray]:
    """Features that vary over the rows, and their values (n, alive)."""
    kept = np.flatnonzero(np.diff(rows.X.tocsc().indptr))
    values = np.asarray(rows.X[:, kept].todense())
    vary = np.ptp(values, axis=0) > 0
    return kept[vary], values[:, vary]


def level_scores(
    adata: Any, *, region: str, position: int = 0, split: str | None = "test", n_permutations: int = 200, seed: int = 0
) -> pd.DataFrame:
    r"""How well single features tell the levels of each factor apart.

    With ranks R_j over the n rows, of which n_1 have the level,

        AUROC_j = (sum of R_j where the level holds - n_1 (n_1 + 1) / 2) / (n_1 (n - n_1)),
        d'_j = (mean_1 - mean_0) / sqrt((var_1 + var_0) / 2).

    Parameters
    ----------
    adata : aligned responses of one site
    region, position, split : which rows
    n_permutations : relabellings of the null maximum
    seed : of the relabellings and of the bootstrap over items

    Returns
    -------
    DataFrame
        One row per factor level: `factor level feature auroc auroc_low auroc_high d_prime auroc_limit n_selective
        n_alive`. `feature` is the best one, with a 95 % percentile interval over items (the choice is not repeated, so
        it is optimistic); `auroc_limit` is what the best feature exceeds in 5 % of relabellings; `n_selective` counts
        the features beyond it, in either direction.

    Notes
    -----
    H0: levels are exchangeable within each item, or whole items between levels, jointly for all features (max-T).

    Examples
    --------
    >>> from neurosae.stats.simulate import simulate
    >>> from neurosae.spec.design import Design
    >>> words = {f"i{k}": {"w": {"x": f"p{k}", "y": f"q{k}"}} for k in range(16)}
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "one", "factors": {"a": ["x", "y"]},
    ...     "frames": {"f": "so {w:a}"}, "regions": {"words": {"words": [0, -1]}}, "items": words})
    >>> fake = simulate(design, n_features=60, effects={"a": 6}, density=0.5, seed=0)
    >>> found = level_scores(fake, region="words", split=None)
    >>> found[["factor", "level"]].values.tolist(), bool(found.auroc[0] > 0.5)
    ([['a', 'y']], True)
    """
    rows = rows_of(adata, region=region, position=position, split=split)
    names, values = alive_values(rows)
    out = []
    if not len(names):
        raise DataError(f"no feature varies at region '{region}', position {position}; there is nothing to compare.")
    ranks = rankdata(values, axis=0)
    for level in levels_of(adata, rows):
        rng = np.random.default_rng(seed)
        scores = auroc_of(ranks, level.inside[:, None])[:, 0]
        shuffled = _relabelled(level, rows.row_item, n_permutations, rng=rng)
        limit = np.quantile(np.abs(auroc_of(ranks, shuffled) - 0.5).max(0), 0.95)
        best = int(np.argmax(np.abs(scores - 0.5)))
        low, high = _item_interval(values[:, best], level.inside, rows.row_item, rng=rng)
        out.append({
            "factor": level.factor, "level": level.level, "feature": int(names[best]), "auroc": float(scores[best]),
            "auroc_low": low, "auroc_high": high, "d_prime": d_prime_of(values[:, [best]], level.inside)[0],
            "auroc_limit": 0.5 + float(limit), "n_selective": int((np.abs(scores - 0.5) > limit).sum()),
            "n_alive": len(names),
        })  # fmt: skip
    return pd.DataFrame(out)


def auroc_of(ranks: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """AUROC of every column of ranks (n, features) for every column of labels (n, sets): (features, sets)."""
    n, n_1 = len(ranks), inside.sum(0)
    return (ranks.T @ inside.astype(float) - n_1 * (n_1 + 1) / 2) / (n_1 * (n - n_1))


def d_prime_of(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Difference of means in pooled standard deviations, for every column; 0 where nothing varies."""
    one, other = values[inside], values[~inside]
    spread = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 2)
    return (one.mean(0) - other.mean(0)) / np.where(spread > 0, spread, np.inf)


def _relabelled(level: Level, item: np.ndarray, n: int, *, rng: np.random.Generator) -> np.ndarray:
    """Labels (rows, n), shuffled within items, or over items where the factor varies between them."""
    if level.within:
        keys = rng.random((len(item), n))
        order = np.lexsort((keys, np.broadcast_to(item[:, None], keys.shape)), axis=0)
        return level.inside[order]  # rows are sorted by item
    first = np.flatnonzero(np.r_[True, item[1:] != item[:-1]])
    shuffled = np.stack([rng.permutation(level.inside[first]) for _ in range(n)], axis=1)
    return shuffled[np.searchsorted(item[first], item)]


def _item_interval(
    values: np.ndarray, inside: np.ndarray, item: np.ndarray, *, rng: np.random.Generator
) -> tuple[float, float]:
    members = [np.flatnonzero(item == i) for i in np.unique(item)]
    scores = []
    for _ in range(N_BOOTSTRAP):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if 0 < inside[rows].sum() < len(rows):
            scores.append(auroc_of(rankdata(values[rows])[:, None], inside[rows][:, None])[0, 0])
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


# --- two dictionaries -----------------------------------------------------------------------------------------------


def matched_activations(
    one: Any, other: Any, *, region: str, position: int = 0, split: str | None = "test"
) -> pd.DataFrame:
    """Match features of two sites one to one by the correlation of what the design leaves unexplained.

    From every feature the mean of its cell and frame is subtracted, so that two features do not correlate merely
    because both follow a factor; then the sum of correlations over pairs is maximised (Hungarian method).

    Returns
    -------
    DataFrame `one other r`, a row per pair of features that are active in 6 items or more; empty where fewer than two
    vary within cells

    Raises
    ------
    DataError
        If the sites were not read at the same stimuli, or more than 4,096 features vary.
    """
    rows = [rows_of(adata, region=region, position=position, split=split) for adata in (one, other)]
    names, residuals = zip(*(_residuals(part) for part in _common(*rows)), strict=True)
    if max(map(len, names)) > LARGEST:
        raise DataError(f"{max(map(len, names)):,} features vary here; at most {LARGEST:,} are matched one to one.")
    if min(map(len, names)) < 2:
        return pd.DataFrame({"one": [], "other": [], "r": []})
    r = residuals[0].T @ residuals[1]
    i, j = linear_sum_assignment(r, maximize=True)
    return pd.DataFrame({"one": names[0][i], "other": names[1][j], "r": r[i, j]})


def _common(one: ItemCells, other: ItemCells) -> tuple[ItemCells, ItemCells]:
    same = one.items == other.items and one.cells == other.cells and np.array_equal(one.row_cell, other.row_cell)
    if not same:
        raise DataError("the two sites were read at different stimuli, so their rows cannot be paired.")
    return one, other


def _residuals(rows: ItemCells) -> tuple[np.ndarray, np.ndarray]:
    """Features that vary within cells, and their unit-length residuals (n, alive)."""
    names, values = alive_values(rows)
    counts = np.bincount(rows.row_cell)[:, None]
    means = np.stack([np.bincount(rows.row_cell, weights=column) for column in values.T], 1) / np.maximum(counts, 1)
    left = values - means[rows.row_cell]
    length = np.linalg.norm(left, axis=0)
    active = np.stack([np.bincount(rows.row_item, weights=column != 0) > 0 for column in values.T], 1).sum(0)
    kept = (length > 1e-9 * np.linalg.norm(values, axis=0)) & (active >= MIN_ITEMS)
    return names[kept], left[:, kept] / length[kept]


def set_agreement(
    pairs: pd.DataFrame, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], *,
    n_permutations: int = 2_000, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Are the features found with one dictionary matched to those found with the other, more than by chance?

    Parameters
    ----------
    pairs : of `matched_activations`
    one, other : (indices of the tested features, indices of the found ones) of each dictionary
    n_permutations : relabellings, the identity included

    Returns
    -------
    `n_both` matched pairs found on both sides, `n_expected` under the null, `p` (one-sided)

    Notes
    -----
    H0: given the match, which of the tested features of the second dictionary were found is exchangeable among features
    with equally good matches (ten groups by r): found features are often the frequent ones, which match better.

    Examples
    --------
    >>> pairs = pd.DataFrame({"one": range(40), "other": range(40), "r": [0.5] * 40})
    >>> every, found = np.arange(40), np.arange(0, 40, 5)
    >>> answer = set_agreement(pairs, (every, found), (every, found))
    >>> answer["n_both"], round(answer["n_expected"]), answer["p"] < 0.01
    (8, 2, True)
    """
    kept = pairs[pairs["one"].isin(one[0]) & pairs["other"].isin(other[0])].sort_values("r", kind="stable")
    first, second = kept["one"].isin(one[1]).to_numpy(), kept["other"].isin(other[1]).to_numpy()
    group = np.arange(len(kept)) * 10 // max(len(kept), 1)
    rng, both = np.random.default_rng(seed), [int((first & second).sum())]
    for _ in range(n_permutations - 1):
        shuffled = second[np.lexsort((rng.random(len(kept)), group))]
        both.append(int((first & shuffled).sum()))
    null = np.array(both)
    return {"n_both": both[0], "n_expected": float(null.mean()), "p": float((null >= both[0]).mean())}


def geometry_agreement(
    one: Any, other: Any, *, region: str, position: int = 0, split: str | None = "test",
    n_permutations: int = 1_000, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Second-order agreement: the rank correlation of the distances between stimuli in two dictionaries.

    Distance = 1 - Pearson correlation of two response patterns; pairs of rows of the same item are left out, since they
    are alike in any dictionary.

    Returns
    -------
    `rho`, `rho_low` and `rho_high` (95 % percentile interval over items), `p` (items permuted), `n_rows`

    Notes
    -----
    H0: which item a pattern belongs to in the second dictionary is exchangeable: whole items are permuted, their cells
    and frames kept. Both dictionaries read the same model and the same stimuli, so a small p is the least to expect;
    rho beside that of the raw activations tells more.
    """
    rows = _common(*(rows_of(adata, region=region, position=position, split=split) for adata in (one, other)))
    squares = [_distances(part) for part in rows]
    alive = np.isfinite(squares[0]).any(0) & np.isfinite(squares[1]).any(0)
    squares = [square[np.ix_(alive, alive)] for square in squares]
    item, slot = rows[0].row_item[alive], rows[0].row_cell[alive]
    upper = np.triu(item[:, None] != item[None, :], 1)
    rho = _spearman(squares[0][upper], squares[1][upper])
    rng, null = np.random.default_rng(seed), [rho]
    names, codes = np.unique(item, return_inverse=True)
    place = np.full((len(names), slot.max() + 1), -1)
    place[codes, slot] = np.arange(len(item))
    left, right = (rankdata(square[upper]) for square in squares)
    full = np.full(squares[1].shape, np.nan)
    full[upper] = right
    full = np.where(np.isnan(full), full.T, full)
    for _ in range(n_permutations - 1):
        moved = place[rng.permutation(len(names))][codes, slot]
        if (moved < 0).any():
            raise DataError("items have different cells or frames here, so whole items cannot be exchanged.")
        null.append(_correlation(left, full[np.ix_(moved, moved)][upper]))
    draws = []
    for _ in range(N_BOOTSTRAP):
        weight = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[codes].astype(float)
        both = np.outer(weight, weight)[upper]
        draws.append(_correlation(left, right, both))
    low, high = np.percentile(draws, [2.5, 97.5])
    p = float((np.array(null) >= rho - 1e-12).mean())
    return {"rho": rho, "rho_low": float(low), "rho_high": float(high), "p": p, "n_rows": len(item)}


def _distances(rows: ItemCells) -> np.ndarray:
    """Correlation distance of every two rows; nan for rows without any activity."""
    values = alive_values(rows)[1]
    values = values - values.mean(1, keepdims=True)
    length = np.linalg.norm(values, axis=1)
    unit = values / np.where(length > 0, length, np.nan)[:, None]
    return 1 - unit @ unit.T


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return _correlation(rankdata(one), rankdata(other))


def _correlation(one: np.ndarray, other: np.ndarray, weight: np.ndarray | None = None) -> float:
    weight = np.ones(len(one)) if weight is None else weight
    a, b = one - np.average(one, weights=weight), other - np.average(other, weights=weight)
    return float((weight * a * b).sum() / np.sqrt((weight * a * a).sum() * (weight * b * b).sum()))
