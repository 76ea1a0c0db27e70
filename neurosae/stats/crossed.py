r"""Claims over items and frames at once: crossed random effects by REML, and min-F'.

A design whose every item stands in every frame samples both; a test by items speaks of these frames only. With d the
difference of an item in a frame, y ~ X + (1 | item) + (1 | frame) is fitted by REML for all features:

    V = s_e^2 (I + a Z_i Z_i' + b Z_t Z_t'),   a, b >= 0 the variance ratios.

Items are eliminated as in `mixed.py`; what is left is a system of one row per frame and per column of X,

    [b M_tt + I, sqrt(b) M_tx; sqrt(b) M_xt, M_xx],   M = F'F - sum_s g_s F_s,   F = [Z_t, Q],   g_s = a / (1 + n_s a),

whose Cholesky factor gives the criterion, the estimates and their variances. Complete tables of one mean have their
ratios from mean squares; else a grid is shared by all features, and from its best point each takes Newton steps inside
a, b >= 0, so that boundaries are exact zeros. Random intercepts of differences are the random slopes of the raw
responses, so the model is the right error term of an effect within items. Frames must be at least 6: a variance over
fewer is not known well enough for any claim over them.

References
----------
Clark (1973), J. Verbal Learning and Verbal Behavior 12:335 (min-F'). Baayen, Davidson & Bates (2008), JML 59:390.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats

from neurosae.errors import DataError
from neurosae.stats.glm import Basis, basis, blocks, sparse_columns
from neurosae.stats.kernels import FAST, compiled
from neurosae.stats.mean_squares import log_ratios
from neurosae.stats.mixed import check_levels, item_sums

FRAMES = 6  # frames below which nothing is claimed over them
GRID = np.linspace(0.0, 12.0, 13)  # u = log(1 + n a) and v = log(1 + m b), n and m mean sizes
LAST, STEP = 14.0, 1e-3  # largest u; step of the differences


class CrossedFit(NamedTuple):
    """REML fits of m alive features, C contrasts.

    features : (m,) column numbers;  estimate, se, dof : (m, C), Satterthwaite; components at 0 are left out of it
    var_item, var_frame, var_resid : (m,);  deviance : (m,) -2 log REML likelihood
    is_bounded : (m,) False where no variance is left beside items and frames (numbers are nan)
    """

    features: np.ndarray
    estimate: np.ndarray
    se: np.ndarray
    dof: np.ndarray
    var_item: np.ndarray
    var_frame: np.ndarray
    var_resid: np.ndarray
    deviance: np.ndarray
    is_bounded: np.ndarray


class Problem(NamedTuple):
    """What the kernels share: FF (P, P), per size of item XX (S, P, P), size, count; T frames; mean sizes; N - K."""

    FF: np.ndarray
    XX: np.ndarray
    size: np.ndarray
    count: np.ndarray
    T: int
    means: np.ndarray
    df: float


class MinF(NamedTuple):
    """min-F' = F1 F2 / (F1 + F2) on 1 and dof degrees of freedom, with its parts and p."""

    F1: np.ndarray
    F2: np.ndarray
    value: np.ndarray
    dof: np.ndarray
    p: np.ndarray


def crossed_reml(
    Y: sp.csc_matrix | np.ndarray,
    X: np.ndarray,
    items: np.ndarray,
    *,
    frames: np.ndarray,
    contrasts: np.ndarray,
    names: Sequence[str] | None = None,
) -> CrossedFit:
    """Fit y ~ X + (1 | item) + (1 | frame) to every column of Y.

    Parameters
    ----------
    Y : CSC float64 of shape (N, m), activation units: differences of items in frames
    X : array of shape (N, K), of full rank
    items, frames : arrays of shape (N,), in any order; not all combinations need to be there
    contrasts : array of shape (C, K)
    names : of the columns of X, for refusals

    Raises
    ------
    DataError
        Fewer than 5 items or 6 frames, or one row per item or per frame.

    Notes
    -----
    H0: c'beta = 0. Assumed: normal item effects, frame effects and residuals, each of equal variance.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> items, frames = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
    >>> y = 1 + rng.standard_normal(12)[items] + rng.standard_normal(6)[frames] + rng.standard_normal(72)
    >>> fit = crossed_reml(y[:, None], np.ones((72, 1)), items, frames=frames, contrasts=np.ones((1, 1)))
    >>> fit.estimate.round(2).item(), fit.dof.round(1).item()
    (0.96, 11.4)
    """
    V, made = sparse_columns(Y), basis(X, names)
    n, k = made.shape
    check_frames(len(np.unique(frames)))
    item, frame = check_levels(items, "items", n), check_levels(frames, "frames", n)
    T = int(frame.max()) + 1
    F = np.column_stack([frame[:, None] == np.arange(T), made.dense()]).astype(float)
    sums, sizes = item_sums(V, Basis(blocks(F), np.eye(T + k), ("",) * (T + k)), item)
    means = np.array([n / sizes.count.sum(), n / T])
    problem = Problem(F.T @ F, sizes.XX, sizes.size, sizes.count, T, means, float(n - k))
    W = made.weights(np.atleast_2d(np.asarray(contrasts, dtype=float)))[:k]
    m, C = len(V.alive), W.shape[1]
    q, d, v, estimate = np.empty((m, 3, 3)), np.empty((m, 3, 3)), np.empty((m, C, 5)), np.empty((m, C))
    complete = n == len(np.unique(item * T + frame)) == T * sizes.count.sum()
    if complete and k == 1 and np.ptp(X) == 0:
        uv = np.minimum(log_ratios(sums.ss, sums.hs[:, 0], sums.cy[:, :T], n_items=n // T), LAST)
    else:
        uv, best = np.zeros((m, 2)), np.full(m, 1e300)
        _scan(sums, problem, GRID, uv=uv, best=best)
        _refine(sums, problem, uv, best=best)
    _terms(sums, problem, uv, W=W, tables=(q, d), v=v, estimate=estimate)
    bounded = (uv < LAST - 1e-6).all(axis=1) & (q[:, 1, 1] > 1e-12 * sums.ss)
    s2 = np.where(bounded, q[:, 1, 1] / (n - k), np.nan)
    ratios = np.expm1(uv) / means
    offset = 2 * np.log(np.abs(np.diag(made.R))).sum() + (n - k) * (np.log(2 * np.pi) + 1)
    return CrossedFit(
        features=V.alive,
        estimate=np.where(bounded[:, None], estimate, np.nan),
        se=np.sqrt(s2[:, None] * v[:, :, 0]),
        dof=_degrees(uv, q, d, v=v, s2=s2, df=float(n - k)),
        var_item=ratios[:, 0] * s2,
        var_frame=ratios[:, 1] * s2,
        var_resid=s2,
        deviance=(n - k) * np.log(s2) + d[:, 1, 1] + offset,
        is_bounded=bounded,
    )


def check_frames(n_frames: int) -> None:
    """Refuse a claim over frames that are too few."""
    if n_frames < FRAMES:
        raise DataError(
            f"{n_frames} frame{'s' * (n_frames != 1)} cannot carry a claim over frames: it needs at least {FRAMES}. "
            "Add frames, or claim over items alone (model ols, frames averaged and fixed)."
        )


def _degrees(uv: np.ndarray, q: np.ndarray, d: np.ndarray, *, v: np.ndarray, s2: np.ndarray, df: float) -> np.ndarray:
    """Satterthwaite's 2 v^2 / (g'Ag) in the coordinates (u, v, log s^2); a ratio at 0 is no coordinate."""
    m, C = v.shape[:2]
    H, g = np.zeros((m, 3, 3)), np.zeros((m, C, 3))
    first = {0: (q[:, 2, 1] - q[:, 0, 1]) / (2 * STEP), 1: (q[:, 1, 2] - q[:, 1, 0]) / (2 * STEP)}
    for matrix, scale in ((q, 1 / s2), (d, np.ones(m))):
        H[:, 0, 0] += (matrix[:, 2, 1] - 2 * matrix[:, 1, 1] + matrix[:, 0, 1]) / STEP**2 * scale
        H[:, 1, 1] += (matrix[:, 1, 2] - 2 * matrix[:, 1, 1] + matrix[:, 1, 0]) / STEP**2 * scale
        both = matrix[:, 2, 2] - matrix[:, 2, 0] - matrix[:, 0, 2] + matrix[:, 0, 0]
        H[:, 0, 1] += both / (4 * STEP**2) * scale
    H[:, 2, 2] = df
    for k in (0, 1):
        H[:, k, 2] = -first[k] / s2
        g[:, :, k] = (v[:, :, 2 + 2 * k] - v[:, :, 1 + 2 * k]) / (2 * STEP) / v[:, :, 0]
    H[:, 1, 0], H[:, 2, :2] = H[:, 0, 1], H[:, :2, 2]
    g[:, :, 2] = 1.0
    zero = np.flatnonzero(uv <= 0)
    row, k = np.divmod(zero, 2)
    H[row, k, :], H[row, :, k] = 0.0, 0.0
    H[row, k, k], g[row, :, k] = 1.0, 0.0
    H[~np.isfinite(s2)] = np.eye(3)
    out = 1 / np.einsum("mci,mij,mcj->mc", g, np.linalg.inv(H), g)
    return np.where(np.isfinite(s2)[:, None], out, np.nan)


def min_f(differences: np.ndarray) -> MinF:
    """F1 by items, F2 by frames and min-F' of differences, for every feature.

    min-F' = F1 F2 / (F1 + F2) on 1 and (F1 + F2)^2 / (F1^2 / (n_frames - 1) + F2^2 / (n_items - 1)) degrees of freedom,
    with F1 = t^2 of the item means and F2 = t^2 of the frame means.

    Parameters
    ----------
    differences : array of shape (n_items, n_frames) or (n_items, n_frames, m), complete

    Notes
    -----
    H0: the mean difference is 0 over items like these and frames like these. A lower bound of the quasi-F; its error
    rate stays at or below the nominal one whichever of items and frames vary. One frame by many items, or the reverse,
    gives no min-F'.

    Examples
    --------
    >>> d = np.array([[1.0, 2.0, 0.0], [2.0, 2.0, 1.0], [4.0, 3.0, 3.0], [1.0, 0.0, 1.0]])
    >>> found = min_f(d)
    >>> found.value.round(3).item(), found.dof.round(2).item(), found.p.round(4).item()
    (6.936, 3.78, 0.0615)
    """
    d = np.asarray(differences, dtype=float)
    t1, t2 = (_one_sample(d.mean(axis=axis)) for axis in (1, 0))
    return combine_f(t1**2, t2**2, dof=(len(d) - 1.0, d.shape[1] - 1.0))


def _one_sample(x: np.ndarray) -> np.ndarray:
    se = x.std(axis=0, ddof=1) / np.sqrt(len(x))
    return x.mean(axis=0) / np.where(se > 0, se, np.nan)


def combine_f(F1: np.ndarray, F2: np.ndarray, *, dof: tuple[float, float]) -> MinF:
    """min-F' from F1 and F2 with their denominator degrees of freedom (over items, over frames)."""
    F1, F2 = np.asarray(F1, dtype=float), np.asarray(F2, dtype=float)
    total = F1 + F2
    known = np.where(total > 0, total, np.nan)
    value = np.where(total == 0, 0.0, F1 * F2 / known)
    df = np.where(total == 0, min(dof), total**2 / np.where(total > 0, F1**2 / dof[1] + F2**2 / dof[0], np.nan))
    return MinF(F1, F2, value, df, stats.f.sf(value, 1, df))


# ------------------------------------------------------------------ kernels


@compiled(fastmath=FAST)
def _factor(problem, theta, L):
    """Cholesky factor of the reduced system at the ratios theta, in place; returns the log determinant."""
    P, T, logs = L.shape[0], problem.T, 0.0
    root = math.sqrt(theta[1])
    L[:] = problem.FF
    for s in range(problem.size.size):
        n = 1.0 + problem.size[s] * theta[0]
        logs += problem.count[s] * math.log(n)
        for i in range(P):
            for j in range(i + 1):
                L[i, j] -= theta[0] / n * problem.XX[s, i, j]
    for i in range(P):
        for j in range(i + 1):
            x = L[i, j] * (root if i < T else 1.0) * (root if j < T else 1.0) + (1.0 if i == j and i < T else 0.0)
            for k in range(j):
                x -= L[i, k] * L[j, k]
            L[i, j] = math.sqrt(max(x, 1e-300)) if i == j else x / L[j, j]
        logs += 2.0 * math.log(L[i, i])
    return logs


@compiled(fastmath=FAST)
def _solve(sums, problem, at):
    """Value of q of feature f, given the factor L; leaves z = L^-1 of the right-hand side."""
    f, theta, L, z = at
    root, q = math.sqrt(theta[1]), sums.ss[f]
    for k in range(z.size):
        z[k] = sums.cy[f, k]
    for s in range(problem.size.size):
        g = theta[0] / (1.0 + problem.size[s] * theta[0])
        q -= g * sums.hs[f, s]
        for k in range(z.size):
            z[k] -= g * sums.by[f, s, k]
    for i in range(z.size):
        x = z[i] * (root if i < problem.T else 1.0)
        for k in range(i):
            x -= L[i, k] * z[k]
        z[i] = x / L[i, i]
        q -= z[i] * z[i]
    return q


@compiled(fastmath=FAST)
def _at(sums, problem, point):
    """Value of q and the log determinant of feature f at (u, v)."""
    f, u, v, theta, L, z = point
    theta[0], theta[1] = math.expm1(u) / problem.means[0], math.expm1(v) / problem.means[1]
    d = _factor(problem, theta, L)
    return _solve(sums, problem, (f, theta, L, z)), d


@compiled(fastmath=FAST)
def _criterion(sums, problem, point):
    q, d = _at(sums, problem, point)
    return problem.df * math.log(max(q, 1e-300)) + d


@compiled(fastmath=FAST)
def _slopes(sums, problem, point):
    """Gradient and Hessian of the criterion at (u, v) by central differences: gu, gv, huu, hvv, huv."""
    f, u, v, theta, L, z = point
    F = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            F[i, j] = _criterion(sums, problem, (f, u + (i - 1) * STEP, v + (j - 1) * STEP, theta, L, z))
    gu, gv = (F[2, 1] - F[0, 1]) / (2 * STEP), (F[1, 2] - F[1, 0]) / (2 * STEP)
    huu, hvv = (F[2, 1] - 2 * F[1, 1] + F[0, 1]) / STEP**2, (F[1, 2] - 2 * F[1, 1] + F[1, 0]) / STEP**2
    return gu, gv, huu, hvv, (F[2, 2] - F[2, 0] - F[0, 2] + F[0, 0]) / (4 * STEP**2)


@compiled(fastmath=FAST)
def _along(sums, problem, point):
    """Newton step of one ratio, the other fixed: the second if `axis` is 1, else the first."""
    f, u, v, theta, L, z, axis = point
    du, dv = STEP * (1 - axis), STEP * axis
    low = _criterion(sums, problem, (f, u - du, v - dv, theta, L, z))
    mid = _criterion(sums, problem, (f, u, v, theta, L, z))
    high = _criterion(sums, problem, (f, u + du, v + dv, theta, L, z))
    slope, bend = (high - low) / (2 * STEP), (high - 2 * mid + low) / STEP**2
    return -slope / bend if bend > 0 else -slope


@compiled(fastmath=FAST)
def _direction(sums, problem, point):
    """Point and Newton step from (u, v); a ratio at 0 whose slope is positive stays there."""
    f, u, v, theta, L, z = point
    cu, cv = max(u, STEP), max(v, STEP)  # where differences can be taken on both sides
    gu, gv, huu, hvv, huv = _slopes(sums, problem, (f, cu, cv, theta, L, z))
    if u == 0.0 and gu > 0:
        step = 0.0 if v == 0.0 and gv > 0 else _along(sums, problem, (f, 0.0, cv, theta, L, z, 1))
        return 0.0, 0.0 if v == 0.0 and gv > 0 else cv, 0.0, step
    if v == 0.0 and gv > 0:
        return cu, 0.0, _along(sums, problem, (f, cu, 0.0, theta, L, z, 0)), 0.0
    det = huu * hvv - huv * huv
    if huu > 0 and hvv > 0 and det > 1e-12 * huu * hvv:
        return cu, cv, -(hvv * gu - huv * gv) / det, -(huu * gv - huv * gu) / det
    return cu, cv, -gu / max(abs(huu), 1.0), -gv / max(abs(hvv), 1.0)


@compiled(fastmath=FAST)
def _scan(sums, problem, grid, *, uv, best):
    """Best point of the grid; the factor of a point serves all features."""
    P = problem.FF.shape[0]
    L, z, theta = np.empty((P, P)), np.empty(P), np.empty(2)
    for i in range(grid.size):
        for j in range(grid.size):
            theta[0], theta[1] = math.expm1(grid[i]) / problem.means[0], math.expm1(grid[j]) / problem.means[1]
            d = _factor(problem, theta, L)
            for f in range(best.size):
                value = problem.df * math.log(max(_solve(sums, problem, (f, theta, L, z)), 1e-300)) + d
                if value < best[f]:
                    best[f], uv[f, 0], uv[f, 1] = value, grid[i], grid[j]


@compiled(fastmath=FAST)
def _refine(sums, problem, uv, *, best):
    """From the best point of the grid on, Newton steps projected on u, v >= 0 and halved until they go down."""
    P = problem.FF.shape[0]
    L, z, theta = np.empty((P, P)), np.empty(P), np.empty(2)
    for f in range(best.size):
        for _ in range(50):
            u, v, du, dv = _direction(sums, problem, (f, uv[f, 0], uv[f, 1], theta, L, z))
            scale, moved = min(1.0, 2.0 / max(abs(du), abs(dv), 1e-300)), 0.0
            for _ in range(30):
                new_u, new_v = min(max(u + scale * du, 0.0), LAST), min(max(v + scale * dv, 0.0), LAST)
                value = _criterion(sums, problem, (f, new_u, new_v, theta, L, z))
                if value <= best[f]:
                    moved = max(abs(new_u - uv[f, 0]), abs(new_v - uv[f, 1]))
                    uv[f, 0], uv[f, 1], best[f] = new_u, new_v, value
                    break
                scale *= 0.5
            if moved < 1e-9:
                break


@compiled(fastmath=FAST)
def _terms(sums, problem, uv, *, W, tables, v, estimate):
    """Tables of q and log determinant around each minimum; estimates, and variances there and one step to each side."""
    P, T, (q, d) = problem.FF.shape[0], problem.T, tables
    L, z, theta, x = np.empty((P, P)), np.empty(P), np.empty(2), np.empty(P - T)
    for f in range(uv.shape[0]):
        for i in range(3):
            for j in range(3):
                # at a boundary the step would leave the allowed region; such a ratio is left out of what follows
                cu, cv = max(uv[f, 0], STEP if i != 1 else 0.0), max(uv[f, 1], STEP if j != 1 else 0.0)
                point = (f, cu + (i - 1) * STEP, cv + (j - 1) * STEP, theta, L, z)
                q[f, i, j], d[f, i, j] = _at(sums, problem, point)
                if i != 1 and j != 1:
                    continue
                slot = 0 if i == j else (1 + i // 2 if j == 1 else 3 + j // 2)
                for c in range(W.shape[1]):
                    v[f, c, slot], estimate_here = 0.0, 0.0
                    for k in range(P - T):
                        x[k] = W[k, c]
                        for h in range(k):
                            x[k] -= L[T + k, T + h] * x[h]
                        x[k] /= L[T + k, T + k]
                        v[f, c, slot] += x[k] * x[k]
                        estimate_here += x[k] * z[T + k]
                    if slot == 0:
                        estimate[f, c] = estimate_here
