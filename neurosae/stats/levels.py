"""Statistics of K levels: F over all of them, and single contrasts whose weights no exchange of levels turns round.

Within items (y_ik the value of item i at level k, n items), with SSH = n sum_k (mean_k - mean)^2 and the sum of squares
inside items W = sum_ik (y_ik - mean_i)^2, which no exchange of levels inside items changes,

    F = (SSH / (K - 1)) / ((W - SSH + d0 s0^2) / ((n - 1) (K - 1) + d0)),

and a single contrast is t of d_i = sum_k w_k y_ik, recomputed with the exchanged levels. Between items F compares the
fit of the cell means, each cell counting equally (type III), with the pooled variance. d0 = 0 is the plain statistic;
the prior of the moderated one is fitted to W / (n (K - 1)), between items to the total variance, which no relabelling
changes. Where groups differ in size, `t` and `moderated_t` do not pool the variances: F is Welch's, between several
factors Johansen's. Its permutation test is exact for equal laws and asymptotically right for groups of unequal
variance, where the pooled one, which `F` stands for, rejects too often or never. Ranks: signed ranks of the values
around their item's mean, or of all values between items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import special

from neurosae.errors import DataError
from neurosae.stats import kernels
from neurosae.stats.flips import Columns, Ready, Run, as_given, tail_z, to_t, to_z
from neurosae.stats.level_kernels import (
    CHI2,
    FLOOR,
    LINEAR,
    SHARE,
    STUDENT,
    WELCH,
    LabelColumns,
    LabelTile,
    label_maxima,
    label_steps,
    label_values,
)
from neurosae.stats.moderation import fit_prior
from neurosae.stats.ranks import value_ranks
from neurosae.stats.relabel import Relabelling, labels, levels
from neurosae.stats.units import ROUNDING, ItemData, activity


def compares_levels(data: ItemData) -> bool:
    """Whether levels change places inside items, or all levels are compared at once."""
    return data.levels is not None or data.contrasts is not None


def of_levels(data: ItemData, kept: np.ndarray, statistic: str) -> Ready:
    """A statistic of levels, ready to be relabelled: t (F), moderated_t (moderated F), signed_rank, mean or F."""
    every = data.omnibus
    if data.beside is not None:
        raise DataError(
            f"nuisance cannot be regressed out where levels change places inside items, as for {data.effect.words}; "
            "leave `nuisance` empty, or test contrasts that swap two levels."
        )
    if every and statistic == "mean":
        raise DataError(f"statistic mean is one difference, but {data.effect.words} compares all levels; use F.")
    if not every and statistic == "F":
        raise DataError(f"statistic F compares all levels of a factor, {{factor: all}}; for {data.effect.words} use t.")
    if data.contrasts is not None:
        return _between(data, kept, statistic)
    return _within(data, kept, statistic)


# ------------------------------------------------------------------ levels inside items


def _within(data: ItemData, kept: np.ndarray, statistic: str) -> Ready:
    assert data.levels is not None
    Y, n = sp.csc_matrix(data.levels[:, kept]), data.n
    K, w = Y.shape[0] // n, data.weights_of_levels  # pyright: ignore[reportOptionalSubscript]
    if statistic == "signed_rank":
        Y = aligned_ranks(Y, K)
    inside, m = inside_squares(Y, K), len(kept)
    d0, s02 = 0.0, np.zeros(m)
    if statistic == "moderated_t":
        d0, s02 = fit_prior(inside / (n * (K - 1)), n * (K - 1), activity(data, kept))
    observed = np.tile(np.arange(K, dtype=np.uint8), n)[:, None]
    if w is not None:
        name = {"signed_rank": "rank_contrast"}.get(statistic, statistic)
        mode, size, df = _contrast_scale(statistic, w, n, inside=inside / (K - 1), d0=d0, s02=s02)
        tile = LabelTile(observed, w, np.zeros((0, K)), np.zeros(K), n, K, mode)
        return Ready(label_columns(Y, tile, size=size, df=df, how=CONTRAST_WITHIN), None, name, _prior(statistic, d0))
    total = np.asarray(Y.sum(axis=0)).ravel()
    size = s02 if np.isinf(d0) else inside + total**2 / (n * K) + d0 * s02
    tile = LabelTile(observed, np.zeros(K), _orthonormal(K) / np.sqrt(n), np.full(K, 1 / n), n, K, SHARE)
    tile = tile._replace(mode=CHI2 if np.isinf(d0) else SHARE)
    df = (K - 1.0, (n - 1) * (K - 1) + d0)
    return Ready(
        label_columns(Y, tile, size=size, df=df, how=F_WITHIN), None, F_NAMES[statistic], _prior(statistic, d0)
    )


def _contrast_scale(statistic: str, w: np.ndarray, n: int, *, inside: np.ndarray, d0: float, s02: np.ndarray):
    """Mode, size and degrees of freedom of a single contrast; inside = W / (K - 1)."""
    if statistic == "mean":
        return LINEAR, np.full(len(inside), float(n)), np.inf
    if statistic == "signed_rank":
        return LINEAR, np.sqrt((w @ w) * inside), np.inf
    if np.isinf(d0):
        return LINEAR, np.sqrt(n * (w @ w) * s02), np.inf
    return STUDENT, d0 * (w @ w) * s02, n - 1 + d0


def _prior(statistic: str, d0: float) -> float:
    return d0 if statistic == "moderated_t" else np.nan


POOLED = (
    "variances are pooled over groups of unequal size: exact for equal laws, but groups of unequal variance alone may "
    "reject; statistics t and moderated_t do not pool"
)
F_NAMES = {"t": "F", "F": "F", "moderated_t": "moderated_F", "signed_rank": "rank_F"}
WELCH_NAMES = {"t": "welch_F", "moderated_t": "moderated_welch_F"}


def _by_item(Y: sp.csc_matrix, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Item and column of every run of values that belong to one item, and where the runs begin."""
    item, col = Y.indices // K, np.repeat(np.arange(Y.shape[1]), np.diff(Y.indptr))  # pyright: ignore
    starts = np.flatnonzero(np.r_[True, (np.diff(item) != 0) | (np.diff(col) != 0)]) if len(item) else item[:0]
    return item[starts], col[starts], starts


def inside_squares(Y: sp.csc_matrix, K: int) -> np.ndarray:
    """Sum of squares of every column around the items' means (m,)."""
    Y.sort_indices()
    _, col, starts = _by_item(Y, K)
    if not len(starts):
        return np.zeros(Y.shape[1])  # pyright: ignore[reportOptionalSubscript]
    left = np.add.reduceat(Y.data**2, starts) - np.add.reduceat(Y.data, starts) ** 2 / K
    return np.bincount(col, np.maximum(left, 0), Y.shape[1])  # pyright: ignore[reportOptionalSubscript]


def aligned_ranks(Y: sp.csc_matrix, K: int) -> sp.csc_matrix:
    """Signed ranks of the values around their item's mean; of two levels nearly the signed ranks of differences."""
    Y.sort_indices()
    item, col, starts = _by_item(Y, K)
    shape, made = Y.shape, np.zeros((len(item), K))
    run = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(Y.data)]))
    made[run, Y.indices % K] = Y.data
    largest = np.abs(made).max(axis=1, keepdims=True, initial=1e-300)
    made -= made.mean(axis=1, keepdims=True)
    made[np.abs(made) <= K * ROUNDING * largest] = 0.0
    for j in np.unique(col):
        a, b = np.searchsorted(col, [j, j + 1])
        x = made[a:b]
        rank = value_ranks(np.where(x != 0, np.abs(x), np.inf).reshape(-1, 1)).reshape(x.shape)
        made[a:b] = np.where(x != 0, np.sign(x) * rank, 0.0)
    rows = item[:, None] * K + np.arange(K)
    out = sp.csc_matrix((made.ravel(), (rows.ravel(), np.repeat(col, K))), shape=shape)
    out.eliminate_zeros()
    return out


def _orthonormal(K: int) -> np.ndarray:
    """K - 1 orthonormal contrasts of K levels."""
    return np.linalg.qr(np.column_stack([np.ones(K), np.eye(K)[:, 1:]]))[0][:, 1:].T.copy()


# ------------------------------------------------------------------ all groups of items at once


def _between(data: ItemData, kept: np.ndarray, statistic: str, *, pooled: bool = False) -> Ready:
    assert data.codes is not None
    assert data.contrasts is not None
    Y, n, counts = sp.csc_matrix(data.D[:, kept]), data.n, np.bincount(data.codes)
    unequal = len(set(counts.tolist())) > 1
    if statistic == "signed_rank":
        Y = sp.csc_matrix(value_ranks(Y.toarray()))
    square, total = (np.asarray(x.sum(axis=0)).ravel() for x in (Y.power(2), Y))
    d0, s02 = 0.0, np.zeros(len(kept))
    if statistic == "moderated_t":
        d0, s02 = fit_prior(np.maximum(square - total**2 / n, 0) / (n - 1), n - 1, activity(data, kept))
    df = (float(len(data.contrasts)), n - len(counts) + d0)
    observed = data.codes.astype(np.uint8)[:, None]
    prior = s02 if np.isinf(d0) else d0 * s02
    if unequal and statistic in WELCH_NAMES and not pooled:
        own = np.append(counts - 1 + d0, df[1])
        tile = LabelTile(observed, own, np.ascontiguousarray(data.contrasts, dtype=float), 1 / counts, n, 1, WELCH)
        columns = label_columns(Y, tile, size=prior, df=df, how=F_BETWEEN)
        dof = welch_f(Y, data.codes, data.contrasts, d0=d0, s02=s02)[1]
        return Ready(columns, None, WELCH_NAMES[statistic], _prior(statistic, d0), dof=dof)
    means = data.contrasts / counts
    projections = np.linalg.solve(np.linalg.cholesky(means @ data.contrasts.T), means)
    mode = CHI2 if np.isinf(d0) else SHARE
    tile = LabelTile(observed, np.zeros(len(counts)), projections, 1 / counts, n, 1, mode)
    columns = label_columns(Y, tile, size=prior if np.isinf(d0) else square + prior, df=df, how=F_BETWEEN)
    notes = [POOLED] * len(kept) if unequal else None
    return Ready(columns, None, F_NAMES[statistic], _prior(statistic, d0), notes=notes)


def welch_f(
    Y: sp.csc_matrix, codes: np.ndarray, contrasts: np.ndarray, *, d0: float = 0.0, s02: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""F of contrasts between groups of unequal variance, and the degrees of freedom of its denominator.

    With C (q x K), group means m, S = diag(v_k / n_k), h_k the diagonal of S C'(C S C')^-1 C and f_k = n_k - 1,

        F = (Cm)'(C S C')^-1 (Cm) / (q (1 + 2 (q - 1) / (q (q + 2)) A)),   A = sum_k h_k^2 / f_k,   df = q (q + 2) / 3A.

    Over all K levels of one factor this is Welch's F. A prior adds d0 to f_k and d0 s0^2 to the sums of squares.

    Parameters
    ----------
    Y : array or CSC of shape (n, m);  codes : (n,) the group of each row;  contrasts : (q, K), rows that sum to 0

    Returns
    -------
    F, df : arrays of shape (m,)

    References
    ----------
    Welch (1951), Biometrika 38:330. Johansen (1980), Biometrika 67:85. Pauly, Brunner & Konietschke (2015), JRSS B
    77:461 (its permutation test).

    Examples
    --------
    >>> y, codes = np.array([[4.0], [5], [6], [7], [9], [14], [2], [3]]), np.array([0, 0, 0, 1, 1, 1, 2, 2])
    >>> F, df = welch_f(sp.csc_matrix(y), codes, np.array([[-1, 1, 0], [-1, 0, 1.0]]))
    >>> F.round(4), df.round(4)
    (array([8.2435]), array([3.1768]))
    """
    counts = np.bincount(codes)
    pick = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    sums, square = (sp.csc_matrix(pick @ part).toarray() for part in (Y, Y.power(2)))
    mean = sums / counts[:, None]
    left, least = np.maximum(square - counts[:, None] * mean**2, 0), FLOOR * square.sum(axis=0) / len(codes)
    own = np.tile(s02, (len(counts), 1)) if np.isinf(d0) else (left + d0 * s02) / (counts - 1 + d0)[:, None]
    S = (np.maximum(own, least) / counts[:, None]).T
    q = len(contrasts)
    if q == len(counts) - 1:
        share = 1 / S / (1 / S).sum(axis=1, keepdims=True)
        rest, chi2 = 1 - share, ((mean.T - (share * mean.T).sum(axis=1, keepdims=True)) ** 2 / S).sum(axis=1)
    else:
        inverse, x = np.linalg.inv(np.einsum("ak,mk,bk->mab", contrasts, S, contrasts)), mean.T @ contrasts.T
        rest, chi2 = (
            S * np.einsum("ak,mab,bk->mk", contrasts, inverse, contrasts),
            np.einsum("ma,mab,mb->m", x, inverse, x),
        )
    A = (rest**2 / (counts - 1 + d0)).sum(axis=1)
    F = chi2 / (q * (1 + 2 * (q - 1) / (q * (q + 2)) * A))
    return F, np.divide(q * (q + 2), 3 * A, out=np.full(len(A), np.inf), where=A > 0)


def level_effects(data: ItemData, kept: np.ndarray) -> pd.DataFrame:
    """Effect size of all levels at once: partial eta^2 = SSH / (SSH + SSE), the share of the pooled F; no interval."""
    ready = _within(data, kept, "t") if data.contrasts is None else _between(data, kept, "t", pooled=True)
    missing = dict.fromkeys(("estimate", "se", "ci_low", "ci_high"), np.nan)
    return pd.DataFrame({**missing, "effsize": ready.columns.u**2})


# ------------------------------------------------------------------ columns, and what runs them


def label_columns(Y: sp.csc_matrix, tile: LabelTile, *, size: np.ndarray, df: object, how: Run) -> Columns:
    """Columns of a statistic of labels; `tile` holds the observed labels (R, 1)."""
    Y.sort_indices()
    total = np.asarray(Y.sum(axis=0), dtype=float).ravel()
    V = LabelColumns(
        Y.indptr.astype(np.int64),
        Y.indices.astype(np.int32),
        Y.data.astype(float),
        total,
        np.asarray(size, dtype=float),
    )
    u = np.empty(len(total))
    label_values(V, tile, u)
    return Columns(V, u, df, how, tile._replace(labels=np.empty((0, 0), dtype=np.uint8)))


def _level_labels(r: Relabelling, first: int, lanes: int) -> np.ndarray:
    return levels(r, first, lanes).reshape(-1, lanes)


def _item_labels(r: Relabelling, first: int, lanes: int) -> np.ndarray:
    return np.ascontiguousarray(labels(r, first, lanes).T.astype(np.uint8))


def _tile_of(made: Callable[[Relabelling, int, int], np.ndarray]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def tile(columns: Columns, r: Relabelling, first: int, *, two_sided: bool, prune: bool, limit: np.ndarray):
        del prune  # no bound that labels leave as it is
        lanes = min(kernels.LANES, r.n - first)
        mx, reached = np.empty(lanes), np.zeros(len(limit), dtype=np.int64)
        given = columns.more._replace(labels=made(r, first, lanes))
        label_maxima(columns.V, given, mx, limit=limit, two_sided=two_sided, reached=reached)
        return mx, reached

    return tile


def _step_of(made: Callable[[Relabelling, int, int], np.ndarray]) -> Callable[..., np.ndarray]:
    def step(columns: Columns, r: Relabelling, first: int, *, tables: tuple, limit: np.ndarray, two_sided: bool):
        lanes = min(kernels.LANES, r.n - first)
        running, reached = np.full(lanes, -1e30), np.zeros(len(limit), dtype=np.int64)
        given = columns.more._replace(labels=made(r, first, lanes))
        label_steps(columns.V, given, running, tables=tables, limit=limit, two_sided=two_sided, reached=reached)
        return reached

    return step


def _place(columns: Columns, rows: np.ndarray) -> Columns:
    per, idx = columns.more.per, columns.V.idx
    return replace(columns, V=columns.V._replace(idx=(rows[idx // per] * per + idx % per).astype(np.int32)))


def _rounding(columns: Columns) -> np.ndarray | float:
    """1 for bounded statistics, the size of the summands where u is a plain sum."""
    if columns.more.mode != LINEAR:
        return 100.0 if columns.more.mode == WELCH else 1.0  # digits that a group without variance costs
    V = columns.V
    size = np.bincount(np.repeat(np.arange(len(V.total)), np.diff(V.indptr)), np.abs(V.val), len(V.total))
    return size * np.abs(columns.more.weights).max() / V.size


def _negate(columns: Columns) -> Columns:
    return replace(columns, more=columns.more._replace(weights=-columns.more.weights), u=-columns.u)


def to_f(u: np.ndarray, df: tuple[float, float]) -> np.ndarray:
    """F from u = sqrt(q F / (q F + df)); where df is infinite, chi^2 / q from u = sqrt(chi^2 / (1 + chi^2)).

    Examples
    --------
    >>> to_f(np.array([0.6, 1.0]), (2.0, 8.0)).round(3)
    array([2.25,  inf])
    """
    q, rest = df
    square = np.asarray(u, dtype=float) ** 2
    left = 1 - square
    flat = left < 1e-12
    return np.where(flat, np.inf, square / np.where(flat, 1, left) * ((1 if np.isinf(rest) else rest) / q))


def f_to_z(u: np.ndarray, df: tuple[float, float]) -> np.ndarray:
    """Normal deviate z >= 0 whose two-sided p is the p of F.

    Examples
    --------
    >>> from scipy import stats
    >>> bool(np.isclose(2 * stats.norm.sf(f_to_z(np.array([0.6]), (2.0, 8.0)))[0], stats.f.sf(2.25, 2, 8)))
    True
    """
    q, rest = df
    if not np.isinf(rest):
        return tail_z(np.asarray(u, dtype=float), rest / 2, q / 2)
    square = np.minimum(np.asarray(u, dtype=float), 1 - 1e-6) ** 2
    x, a = square / (1 - square) / 2, q / 2
    p = special.gammaincc(a, x)
    tiny = p < 1e-290
    log_p = np.log(np.where(tiny, 1, p))
    far = x[tiny]
    log_p[tiny] = (
        (a - 1) * np.log(far) - far - special.gammaln(a) + np.log1p((a - 1) / far + (a - 1) * (a - 2) / far**2)
    )
    return np.maximum(-special.ndtri_exp(log_p - np.log(2)), 0.0)


_WITHIN, _BETWEEN = (_tile_of(_level_labels), _step_of(_level_labels)), (_tile_of(_item_labels), _step_of(_item_labels))
CONTRAST_WITHIN = Run(*_WITHIN, as_given, _rounding, to_t, to_z, _negate, _place)
F_WITHIN = Run(*_WITHIN, as_given, _rounding, to_f, f_to_z, None, _place)
F_BETWEEN = Run(*_BETWEEN, as_given, _rounding, to_f, f_to_z, None, _place)
