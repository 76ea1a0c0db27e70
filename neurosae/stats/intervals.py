r"""Confidence intervals of the estimates of a family: by relabelling, by resampling items, one by one or all at once.

| `inference.intervals` | interval | covers |
|---|---|---|
| `marginal` | estimate +- t quantile x plain standard error (made in `stats.effects`) | one feature |
| `flip_t` | the quantile of the moderated t over flips of centred contrasts | one feature |
| `bca` | bias-corrected and accelerated bootstrap of items, also of AUC and density difference | one feature |
| `simultaneous` | one quantile for the whole family, safe for features that are picked afterwards | all features |

Centred means e_i = d_i - mean(d) (between items: residuals from the group means), whose flips are the law of the error
of the estimate, wherever the true difference lies. BCa is made for bounded measures (AUC, densities); of the mean of
rare, skewed responses it covers about 90 % instead of 95 %, less than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import special, stats

from neurosae.errors import DataError
from neurosae.stats import kernels
from neurosae.stats.effects import firing_difference, placements, share_above
from neurosae.stats.flips import Columns, flip_columns, group_columns, maxima, take, to_t
from neurosae.stats.lanes import lane_values
from neurosae.stats.moderation import fit_prior
from neurosae.stats.relabel import SPLITS, Relabelling
from neurosae.stats.units import ItemData, activity, firing

BOOTSTRAP = 2  # purpose of the random stream that draws items
DRAWS = 2_000
CHUNK = 256  # features made dense at a time


class Piece(NamedTuple):
    """Tested features of one effect and place, and the relabelling they were tested under."""

    data: ItemData
    kept: np.ndarray
    relabelling: Relabelling


Beside = dict[str, np.ndarray]


def make_intervals(pieces: Sequence[Piece], kind: str, *, level: float = 0.95) -> list[Beside]:
    """Columns of the results for every piece of a family: ci_low, ci_high, x_ci_method and what else the kind gives.

    Parameters
    ----------
    pieces : all cells of the family; `simultaneous` covers them together
    kind : `flip_t`, `bca` or `simultaneous`

    Raises
    ------
    DataError
        The effect permutes levels inside items or compares all levels at once, where there is no contrast of two
        sides to give an interval.
    """
    if any(piece.relabelling.kind == "within" or piece.data.omnibus for piece in pieces):
        raise DataError(f"intervals: {kind} needs a contrast whose items are flipped or labelled; use marginal.")
    if kind == "simultaneous":
        return _simultaneous(pieces, level=level)
    return [(_bca if kind == "bca" else _flip_t)(piece, level=level) for piece in pieces]


# ------------------------------------------------------------------ from relabellings of centred contrasts


class Centred(NamedTuple):
    """Centred contrasts ready to be relabelled; estimate and moderated standard error of every feature, (m,)."""

    columns: Columns
    estimate: np.ndarray
    se: np.ndarray


def centred(data: ItemData, kept: np.ndarray) -> Centred:
    """Contrasts minus their mean, or residuals from group means, with the variance shrunk as in the moderated t."""
    D = data.D[:, kept].toarray()
    trend, n = activity(data, kept), data.n
    if data.codes is None:
        estimate = D.mean(axis=0)
        E = D - estimate
        square = (E**2).sum(axis=0)
        d0, s02 = fit_prior(square / (n - 1), n - 1, trend)
        flat, df = np.isinf(d0), np.inf if np.isinf(d0) else n - 1 + d0
        shrunk = s02 if flat else (square + d0 * s02) / df
        scale = np.sqrt(n * (s02 if flat else square + d0 * s02))
        columns = flip_columns(sp.csc_matrix(E), scale=np.where(scale > 0, scale, 1), df=df)
        return Centred(columns, estimate, np.sqrt(shrunk / n))
    codes, weights = data.grouping
    counts = np.bincount(codes)
    means = np.stack([D[codes == c].mean(axis=0) for c in range(len(weights))])
    E = D - means[codes]
    within = np.stack([(E[codes == c] ** 2).sum(axis=0) for c in range(len(weights))])
    dof = n - len(weights)
    d0, s02 = fit_prior(within.sum(axis=0) / dof, dof, trend)
    infinite, pooled = np.isinf(d0), len(set(counts.tolist())) == 1
    part = (weights**2 / counts)[:, None]
    if infinite:
        se2 = part.sum() * s02
    elif pooled:
        se2 = part.sum() * (within.sum(axis=0) + d0 * s02) / (dof + d0)
    else:
        se2 = (part * (within + d0 * s02) / np.maximum(d0 + counts - 1, 1)[:, None]).sum(axis=0)
    shrink = np.column_stack([np.full(len(kept), -1.0 if infinite else d0), s02 if infinite else d0 * s02])
    columns = group_columns(
        sp.csc_matrix(E), codes, weights=weights, mode=1 if pooled else 2, shrink=shrink, df=dof + d0
    )
    return Centred(columns, (weights[:, None] * means).sum(axis=0), np.sqrt(se2))


def _placed(made: Centred, piece: Piece) -> Columns:
    rows, order = piece.relabelling.rows, np.argsort(piece.relabelling.rows)
    return made.columns.how.place(made.columns, order[np.searchsorted(rows, piece.data.numbers, sorter=order)])


def _flip_t(piece: Piece, *, level: float) -> Beside:
    """Feature by feature: the level-quantile of its own |t| over all relabellings but the identity."""
    low, high = np.empty(len(piece.kept)), np.empty(len(piece.kept))
    whole = centred(piece.data, piece.kept)
    placed = _placed(whole, piece)
    for start in range(0, len(piece.kept), CHUNK):
        at = slice(start, start + CHUNK)
        columns = take(placed, np.arange(len(piece.kept))[at])
        starts = range(0, piece.relabelling.n, kernels.LANES)
        u = np.abs(np.concatenate([lane_values(columns, piece.relabelling, a) for a in starts], axis=1)[:, 1:])
        half = to_t(np.quantile(u, level, axis=1, method="higher"), columns.df) * whole.se[at]
        low[at], high[at] = whole.estimate[at] - half, whole.estimate[at] + half
    return _columns(low, high, "flip t" if piece.data.codes is None else "permutation t")


def _simultaneous(pieces: Sequence[Piece], *, level: float) -> list[Beside]:
    r"""Estimate +- c se, c = max(quantile of the family's largest |t| over centred relabellings, Bonferroni's t).

    The quantile alone is too short for rare features; the larger of the two keeps its level.
    """
    made = [centred(piece.data, piece.kept) for piece in pieces]
    tops = []
    for one, piece in zip(made, pieces, strict=True):
        top = maxima(_placed(one, piece), piece.relabelling)[0]
        tops.append(np.abs(one.columns.how.to_z(top, one.columns.df)))
    c = float(np.quantile(np.maximum.reduce(tops)[1:], level, method="higher"))
    m, out = sum(len(piece.kept) for piece in pieces), []
    for one in made:
        df = one.columns.df if np.isfinite(one.columns.df) else 1e8
        half = max(stats.t.isf(stats.norm.sf(c), df), stats.t.isf((1 - level) / 2 / m, df)) * one.se
        out.append(_columns(one.estimate - half, one.estimate + half, "simultaneous"))
    return out


def _columns(low: np.ndarray, high: np.ndarray, method: str) -> Beside:
    """An interval of no width is none: the contrast does not vary over items."""
    known = high > low
    return {
        "ci_low": np.where(known, low, np.nan),
        "ci_high": np.where(known, high, np.nan),
        "x_ci_method": np.full(len(low), method, dtype=object),
        "x_ci_dof": np.full(len(low), np.nan),
    }


# ------------------------------------------------------------------ from resampled items


def draw_items(
    numbers: np.ndarray, codes: np.ndarray, *, n_draws: int = DRAWS, seed: int, split: str = "test"
) -> np.ndarray:
    """How often each item is drawn, int (n_draws, n_items); items are drawn with replacement inside their group.

    A draw is a pure function of (seed, split, number of the draw, number of the item in the design): place i of draw b
    takes member floor(n_g key / 2^64) of its group, key from the Philox stream of purpose 2.

    Examples
    --------
    >>> counts = draw_items(np.arange(4), np.array([0, 0, 1, 1]), n_draws=3, seed=0)
    >>> counts[:, :2].sum(axis=1).tolist(), counts.shape
    ([2, 2, 2], (3, 4))
    """
    keys = np.empty((n_draws, len(numbers)), dtype=np.uint64)
    stream = np.uint64(BOOTSTRAP + 256 * SPLITS.get(split, len(SPLITS)))
    kernels.sort_keys(keys, np.asarray(numbers, np.uint32), seed=np.uint64(seed), stream=stream, first=0)
    out = np.zeros(keys.shape, dtype=np.int64)
    row = np.arange(n_draws)[:, None]
    for group in np.unique(codes):
        members = np.flatnonzero(codes == group)
        picked = members[((keys[:, members] >> np.uint64(32)) * np.uint64(len(members))) >> np.uint64(32)]
        np.add.at(out, (np.broadcast_to(row, picked.shape), picked), 1)
    return out


def bca_interval(
    boot: np.ndarray, observed: np.ndarray, influence: Sequence[np.ndarray], *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    r"""Bias-corrected and accelerated interval from a bootstrap distribution.

    With z0 = Phi^-1 of the share of draws below the observed value (ties half) and the acceleration
    a = sum_g sum_i U^3 / n_g^3 / (6 (sum_g sum_i U^2 / n_g^2)^1.5), the bounds are the quantiles of the draws at

        Phi(z0 + (z0 + z) / (1 - a (z0 + z))),   z = Phi^-1((1 -+ level) / 2).

    Parameters
    ----------
    boot : array of shape (m, n_draws);  observed : (m,)
    influence : per group of items an array (n_g, m), U_i = (n_g - 1) (mean of the jackknife values - jackknife value i)

    Returns
    -------
    low, high : arrays of shape (m,); nan where no draw differs from the observed value

    References
    ----------
    Efron (1987), Better bootstrap confidence intervals, J. Am. Stat. Assoc. 82:171. Equal to scipy's for equal draws.

    Examples
    --------
    >>> boot = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    >>> low, high = bca_interval(boot, np.array([3.0]), [np.array([[-1.0], [0.0], [1.0]])], level=0.5)
    >>> float(low[0]), float(high[0])
    (2.0, 4.0)
    """
    boot = np.sort(boot, axis=1)
    B, tie = boot.shape[1], 1e-11 * np.abs(boot).max(axis=1, initial=0)
    below = (boot < (observed - tie)[:, None]).sum(axis=1)
    within = (boot <= (observed + tie)[:, None]).sum(axis=1)
    z0 = special.ndtri((below + within) / (2 * B))
    cubes = np.sum([(u**3).sum(axis=0) / len(u) ** 3 for u in influence], axis=0)
    squares = np.sum([(u**2).sum(axis=0) / len(u) ** 2 for u in influence], axis=0)
    a = np.where(squares > 0, cubes / np.where(squares > 0, squares, 1) ** 1.5 / 6, 0.0)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = z0 + special.ndtri(tail)
        bounds.append(_quantile(boot, special.ndtr(z0 + z / (1 - a * z))))
    moves = boot[:, -1] - boot[:, 0] > tie
    return np.where(moves, bounds[0], np.nan), np.where(moves, bounds[1], np.nan)


def _quantile(ordered: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The quantile of every row at its own share, by linear interpolation."""
    place = np.nan_to_num(share) * (ordered.shape[1] - 1)
    k, rows = np.minimum(place.astype(int), ordered.shape[1] - 2), np.arange(len(ordered))
    return ordered[rows, k] + (place - k) * (ordered[rows, k + 1] - ordered[rows, k])


def _bca(piece: Piece, *, level: float) -> Beside:
    """Intervals of the estimate, of the AUC and of the difference of densities, from the same draws."""
    data, how = piece.data, piece.relabelling
    codes = np.zeros(data.n, dtype=int) if data.codes is None else data.codes
    counts = draw_items(data.numbers, codes, seed=how.seed, split=how.split).astype(float)
    parts: list[Beside] = []
    for start in range(0, len(piece.kept), CHUNK):
        columns = piece.kept[start : start + CHUNK]
        d, (_, _, plus, minus) = data.D[:, columns].toarray(), firing(data, columns)
        weights = np.ones(1) if data.codes is None else data.grouping[1]
        coefficient = weights[codes] / np.bincount(codes)[codes]
        made = _columns(*_of_sums(d, coefficient, codes, counts=counts, level=level), "BCa")
        fires = firing_difference(plus, minus, data.grouping if data.codes is not None else None)
        made["x_density_diff_low"], made["x_density_diff_high"] = _of_sums(
            *fires, codes, counts=counts, level=level
        )  # fmt: skip
        if data.codes is None:
            auc = _of_sums(share_above(d), coefficient, codes, counts=counts, level=level)
        else:
            auc = _of_auc(d, weights[codes], counts=counts, codes=codes, level=level)
        made["x_auc_low"], made["x_auc_high"] = auc
        parts.append(made)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_sums(
    x: np.ndarray, coefficient: np.ndarray, codes: np.ndarray, *, counts: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of sum_i coefficient_i x_i, a weighted sum of group means; x (n, m), counts (n_draws, n)."""
    boot = x.T @ (counts * coefficient).T
    influence = []
    for group in np.unique(codes):
        own = codes == group
        influence.append((x[own] - x[own].mean(axis=0)) * coefficient[own][:, None] * own.sum())
    return bca_interval(boot, coefficient @ x, influence, level=level)


def _of_auc(
    y: np.ndarray, sign: np.ndarray, *, counts: np.ndarray, codes: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of P(y+ > y-) + P(equal) / 2 over pairs of items of the + and the - groups."""
    plus, minus = np.flatnonzero(sign > 0), np.flatnonzero(sign < 0)
    boot, observed = np.empty((y.shape[1], len(counts))), np.empty(y.shape[1])
    influence = {g: np.empty(((codes == g).sum(), y.shape[1])) for g in np.unique(codes[np.r_[plus, minus]])}
    for j in range(y.shape[1]):
        above = placements(y[plus, j], y[minus, j])
        observed[j] = above.mean()
        boot[j] = ((counts[:, plus] @ above) * counts[:, minus]).sum(axis=1) / above.size
        own = np.zeros(len(y))
        own[plus], own[minus] = above.mean(axis=1), above.mean(axis=0)
        for g, u in influence.items():
            share = (codes == g).sum() / len(plus if sign[codes == g][0] > 0 else minus)
            u[:, j] = (own[codes == g] - own[codes == g].mean()) * share
    return bca_interval(boot, observed, list(influence.values()), level=level)


# ------------------------------------------------------------------ intervals of what was found


def selected_intervals(table: pd.DataFrame, *, alpha: float = 0.05) -> pd.DataFrame:
    """Intervals of the found features at the level that holds for a selection: the false coverage rate.

    Of R features found among m, an interval at 95 % each is right for fewer than 95 % of them. At level 1 - R alpha / m
    the expected share of intervals that miss is at most alpha.

    Parameters
    ----------
    table : DataFrame
        The results schema, made with `intervals: marginal`.
    alpha : float
        Rows with p_corr at most alpha are the selection, family by family.

    Returns
    -------
    DataFrame
        The found rows with their new ci_low, ci_high, ci_level and x_ci_method.

    Raises
    ------
    DataError
        An interval has no degrees of freedom, so it has no other level; simultaneous ones need none.

    References
    ----------
    Benjamini & Yekutieli (2005), False discovery rate-adjusted multiple confidence intervals, J. Am. Stat. Assoc.
    100:71.

    Examples
    --------
    >>> from neurosae.spec.results import as_results
    >>> row = dict(family="f", n_family=10, p_corr=[0.01], estimate=2.0, se=1.0, x_ci_dof=[20.0], x_ci_method=["t"])
    >>> selected_intervals(as_results(row))[["ci_low", "ci_high", "ci_level"]].round(3).values.tolist()
    [[-1.153, 5.153, 0.995]]
    """
    found = table[(table["p_corr"] <= alpha).fillna(False)].copy()
    if "x_ci_dof" not in found or found["x_ci_dof"].isna().any():
        raise DataError("these intervals have no degrees of freedom; make the table with intervals: marginal.")
    n = found.groupby("family")["p_corr"].transform("size").astype(float)
    tail = (n * alpha / found["n_family"].astype(float)).to_numpy()
    half = stats.t.isf(tail / 2, found["x_ci_dof"].to_numpy(dtype=float)) * found["se"].to_numpy(dtype=float)
    method = pd.array([f"{name}, false coverage rate" for name in found["x_ci_method"]], dtype="string")
    low, high = found["estimate"].to_numpy() - half, found["estimate"].to_numpy() + half
    return found.assign(ci_low=low, ci_high=high, ci_level=1 - tail, x_ci_method=method)
