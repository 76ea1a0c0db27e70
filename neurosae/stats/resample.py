"""Drawing conditions and RDMs with replacement, without ever copying, masking or subsampling an RDM.

A bootstrap that draws condition i w_i times gives the pair (i, j) the weight w_i w_j; pairs of a condition with itself
are missing. With A, B the square RDMs (zero diagonal) every weighted inner product is a quadratic form,

    <A, B>_w = sum_{i<j} w_i w_j A_ij B_ij = w'(A o B) w / 2,

so one product of the weights of all pairs (n_draws x n_pairs, made in blocks) with the products A_ij B_ij of all pairs
of RDMs serves all draws. Subtracted means are products with the matrix of ones. Whitened comparators
centre rows and columns over the drawn pairs, a_c + a_d with (W/2 + 1 - w_c) a_c + w'a / 2 = (B w)_c, which leaves

    <A, B>_w - sum_c w_c a_c (B w)_c.

Ranks of a draw are running sums over pairs that are sorted once (`rank_kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError, choose
from neurosae.stats.pair_kernels import pair_weights
from neurosae.stats.rank_kernels import drawn_ranks, pair_counts, ranks_of, sorted_pairs
from neurosae.stats.rdm_compare import CENTRED, COMPARATORS, RANKS, condensed_to_square

DRAWS, PAIRS = 256, 4096  # weights of pairs that are held at once: they stay in cache


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
    compare : any comparator but tau-a
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
    return resampled(data, models, conditions=conditions, rdms=[rdms], compare=compare, dtype=dtype)[0]


def resampled(
    data: np.ndarray,
    models: np.ndarray,
    *,
    conditions: np.ndarray,
    rdms: Sequence[np.ndarray],
    compare: str = "cosine",
    dtype: type = np.float64,
) -> list[Resampled]:
    """As `bootstrap_rdms`, for several draws of the RDMs with the same draws of conditions, at hardly more cost.

    One draw of conditions may serve any number of draws of RDMs.
    """
    choose("comparator", compare, dict.fromkeys([c for c in COMPARATORS if c != "tau-a"], True))
    W, draws = np.asarray(conditions, dtype=dtype), [np.asarray(r, dtype=np.float64) for r in rdms]
    n = round((1 + np.sqrt(1 + 8 * data.shape[1])) / 2)
    if n != W.shape[1]:
        raise DataError(f"the RDMs have {n} conditions, but {W.shape[1]} were drawn from.")
    if compare in RANKS:
        return _ranked(data, models, W.astype(np.int64), draws=draws, compare=compare)
    products, plain = _products(np.concatenate([models, data]), W, compare)
    m = len(models)
    lengths, norms = products.lengths[:, :m], products.lengths[:, m:]
    agreement = products.cross[:, :m, m:] / lengths[:, :, None] / norms[:, None, :]
    scale = plain[:, m:]  # RDMs are pooled at one plain length, whatever the comparator
    unit = products.cross[:, m:, m:] / scale[:, :, None] / scale[:, None, :]
    everyone = [np.broadcast_to(unit, (len(R), *unit.shape[1:])) for R in draws]
    return [Resampled(_mean(agreement, R), *_ceilings(one, R)) for one, R in zip(everyone, draws, strict=True)]


class _Products(NamedTuple):
    """Inner products of all RDMs in every draw (n_draws, n, n), and their lengths, NaN where nothing varies."""

    cross: np.ndarray
    lengths: np.ndarray


def _products(rdms: np.ndarray, W: np.ndarray, compare: str) -> tuple[_Products, np.ndarray]:
    """Products in the space of the comparator, and the plain (for correlations: centred) lengths of the RDMs."""
    V, n = W.astype(np.float64), len(rdms)
    total = (V.sum(axis=1) ** 2 - (V**2).sum(axis=1)) / 2
    i, j = np.tril_indices(n)
    centred = compare in CENTRED
    sums = _weighted_sums(rdms, W, (i, j), alone=centred)
    raw = np.empty((len(W), n, n))
    raw[:, i, j] = raw[:, j, i] = sums[:, : len(i)]
    size = np.einsum("bkk->bk", raw).copy()
    means = sums[:, len(i) :] / total[:, None] if centred else np.zeros((len(W), n))
    plain = raw - means[:, :, None] * means[:, None, :] * total[:, None, None]
    plain_lengths = _lengths(np.einsum("bkk->bk", plain), size)
    if not compare.endswith("_cov"):
        return _Products(plain, plain_lengths), plain_lengths
    ones, squares = 1 - np.eye(W.shape[1]), [condensed_to_square(v).astype(W.dtype) for v in rdms]
    B = np.stack([V @ A - means[:, [k]] * (V @ ones) for k, A in enumerate(squares)], axis=1)  # (n_draws, n, C)
    diagonal = V.sum(axis=1, keepdims=True) / 2 + 1 - V
    a = _centring(V, diagonal, B)
    # <A, B>_w counts every pair once, a matrix product twice
    cross = 2 * plain - np.einsum("bc,bkc,blc->bkl", V, a, B, optimize=True)
    return _Products(cross, _lengths(np.einsum("bkk->bk", cross), 2 * size)), plain_lengths


def _weighted_sums(rdms: np.ndarray, W: np.ndarray, which: tuple[np.ndarray, np.ndarray], *, alone: bool) -> np.ndarray:
    """Sums over the drawn pairs of the products of RDMs `which`, then of the RDMs alone: (n_draws, n_sums), float64."""
    n, values = W.shape[1], rdms.astype(W.dtype)
    ends = np.concatenate([[0], np.cumsum(np.arange(n - 1, 0, -1))])  # where the pairs of condition i begin
    sums = np.zeros((len(W), len(which[0]) + alone * len(rdms)))
    first = 0
    while first < n - 1:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + PAIRS, side="right")) - 1)
        here = values[:, ends[first] : ends[last]]
        products = here[which[0]] * here[which[1]]
        right = np.concatenate([products, here]).T if alone else products.T
        out = np.empty((DRAWS, len(right)), dtype=W.dtype)
        for a in range(0, len(W), DRAWS):
            draws = W[a : a + DRAWS]
            weights = out[: len(draws)]
            pair_weights(draws, first, last, out=weights)
            sums[a : a + DRAWS] += weights @ right
        first = last
    return sums


def _centring(V: np.ndarray, diagonal: np.ndarray, B: np.ndarray) -> np.ndarray:
    """A of diagonal_c a_c + w'a / 2 = B_c for every draw and RDM, shape (n_draws, n, C)."""
    safe = (np.abs(diagonal) > 1e-9).all(axis=1)
    d = np.where(safe[:, None], diagonal, 1.0)  # pyright: ignore
    shared = np.einsum("bc,bkc->bk", V / d, B) / np.where(safe, 1 + (V / d).sum(axis=1) / 2, 1)[:, None]
    a = (B - shared[:, :, None] / 2) / d[:, None, :]
    for b in np.flatnonzero(
        ~safe
    ):  # one condition makes up half of the draw and one more: the sum formula divides by 0
        a[b] = np.linalg.solve(np.diag(diagonal[b]) + V[b][None, :] / 2, B[b].T).T
    return a


def _mean(agreement: np.ndarray, R: np.ndarray) -> np.ndarray:
    """Mean over the drawn RDMs."""
    return (agreement * R[:, None, :]).sum(axis=2) / R.sum(axis=1)[:, None]


def _lengths(squared: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Square roots; nan where nothing is left of the uncentred squares but rounding."""
    return np.sqrt(np.where(squared > 1e-12 * raw, squared, np.nan))


def _ceilings(unit: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ceiling per draw from the products of the data RDMs, scaled as they are pooled."""
    own = np.einsum("bll->bl", unit)
    with_all = np.einsum("bk,bkl->bl", R, unit)  # <sum of all drawn, l>
    squared = np.einsum("bl,bl->b", with_all, R)[:, None]
    drawn = R > 0
    upper = (with_all / np.sqrt(squared * own) * drawn).sum(axis=1) / drawn.sum(axis=1)
    rest = squared - 2 * R * with_all + R**2 * own  # length of the sum without l's own copies
    alone = np.where(
        drawn & (rest > 1e-12), (with_all - R * own) / np.sqrt(np.where(rest > 1e-12, rest, 1) * own), np.nan
    )
    single = drawn.sum(axis=1) < 2
    lower = np.where(drawn, np.nan_to_num(alone), 0).sum(axis=1) / drawn.sum(axis=1)
    return np.where(single, np.nan, lower), np.where(single, np.nan, upper)


def _ranked(
    data: np.ndarray, models: np.ndarray, W: np.ndarray, *, draws: Sequence[np.ndarray], compare: str
) -> list[Resampled]:
    """Rank comparators: ranks of every draw, their products, and ceilings from ranked means of ranks."""
    rdms, m, k = np.concatenate([models, data]), len(models), len(data)
    order, begins = sorted_pairs(rdms)
    counts, place = np.empty(rdms.shape[1], np.int32), np.empty(rdms.shape[1], np.int32)
    agreement = np.empty((len(W), m, k))
    bounds = [np.full((2, len(R)), np.nan) for R in draws]
    for b, w in enumerate(W):
        drawn = pair_counts(w.astype(np.int32), counts, place)
        ranks = np.empty((len(rdms), drawn), np.int64)
        total = drawn_ranks(order, begins, counts, place=place, out=ranks)
        weights = counts[place >= 0].astype(np.int64)
        X = ranks.astype(np.float64)
        size = (X**2) @ weights.astype(np.float64)
        scale = (total**3 - total) / 3.0 if compare == "rho-a" else np.nan  # doubled ranks: four times the product
        agreement[b] = _agree((X[:m] * weights) @ X[m:].T, size[:m, None], size[None, m:], scale=scale)
        for which, R in enumerate(draws):
            for at in range(len(R)) if len(W) == 1 else (b,):
                bounds[which][:, at] = _rank_ceiling(ranks[m:], weights, R[at].astype(np.int64), scale=scale)
    return [Resampled(_mean(agreement, R), *bounds[i]) for i, R in enumerate(draws)]


def _agree(product: np.ndarray, one: np.ndarray, two: np.ndarray, *, scale: float) -> np.ndarray:
    lengths = np.sqrt(one * two) if np.isnan(scale) else np.full(np.shape(product), scale)
    return np.where(one * two > 0, product / np.where(lengths > 0, lengths, 1), np.nan)


def _rank_ceiling(ranks: np.ndarray, weights: np.ndarray, R: np.ndarray, *, scale: float) -> tuple[float, float]:
    drawn = np.flatnonzero(R)
    if len(drawn) < 2:
        return np.nan, np.nan
    pooled, work = R @ ranks, np.empty((4, ranks.shape[1]), np.int64)
    out, bounds = np.empty(ranks.shape[1], np.int64), np.empty((2, len(drawn)))
    ranks_of(pooled, weights, out, work=work)
    whole = out.astype(np.float64)
    for at, one in enumerate(drawn):
        ranks_of(pooled - R[one] * ranks[one], weights, out, work=work)
        x = ranks[one] * weights.astype(np.float64)
        size = x @ ranks[one]
        for row, mean in enumerate((out.astype(np.float64), whole)):
            bounds[row, at] = _agree(x @ mean, size, (mean**2) @ weights, scale=scale)
    low, high = bounds.mean(axis=1)
    return float(low), float(high)
