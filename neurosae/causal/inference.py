r"""Tests of item tables: is a change of an outcome more than chance over items, and more than a control's?

Two questions, two p-values, and a claim needs both (p = max):

* over items: D_i is the change of item i (or of its contrast between cells); H0 edited and clean are exchangeable
  within items; exchanged: the sign of whole items, one flip for all columns, max-T over a family;
* among controls: the target's mean change is ranked among those of K matched sets of features;
  p = #{as extreme as the target} / (K + 1), the target included.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats

from neurosae.causal.items import without_rounding
from neurosae.errors import DataError
from neurosae.stats.crossed import FRAMES, MinF, crossed_reml, min_f
from neurosae.stats.flips import flip_columns, maxima
from neurosae.stats.paired import flip_t
from neurosae.stats.relabel import flips
from neurosae.stats.tails import flip_p

LEVEL = 0.95

__all__ = [
    "Equivalence", "ItemTests", "Population", "claim_p", "item_slopes", "item_tests", "no_effect",
    "over_items_and_features", "rank_p", "without_rounding",
]  # fmt: skip


class ItemTests(NamedTuple):
    """Tests of the columns of D, arrays of shape (n_columns,); nan where no unit changed at all.

    p : of single columns, exact or by saddlepoint (`exact`);  p_corr : max-T over all columns
    null : maximum of |t| over the columns per flip
    """

    estimate: np.ndarray
    se: np.ndarray
    t: np.ndarray
    d_z: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    exact: np.ndarray
    p_corr: np.ndarray
    informative: np.ndarray
    n_permutations: int
    null: np.ndarray


def item_tests(
    D: np.ndarray, numbers: np.ndarray, *, n_permutations: int = 10_000, seed: int, split: str = "test"
) -> ItemTests:
    """Test the mean of every column by flipping the signs of whole units, one flip for all columns.

    Parameters
    ----------
    D : array of shape (n_units, n_columns), in outcome units
    numbers : numbers of the units in the design table; they decide the flips, as in every other test of the study

    Raises
    ------
    DataError
        Fewer than 6 units, with which no two-sided p reaches .05.

    Examples
    --------
    Darwin's maize (p = 1726 / 32768):

    >>> maize = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    >>> found = item_tests(maize[:, None], np.arange(15), n_permutations=500, seed=0)
    >>> print(f"{found.t[0]:.3f} {found.p[0] * 32768:.0f}")
    2.148 1726
    """
    n = len(D)
    if n < 6:
        raise DataError(f"{n} items allow {2**n} sign flips; use at least 6 for p <= .05.")
    D = np.asarray(D, dtype=np.float64)
    informative = (D != 0).sum(axis=0)
    moved = informative > 0
    columns = sp.csc_matrix(D)
    mean, sd = D.mean(axis=0), D.std(axis=0, ddof=1)
    se = sd / np.sqrt(n)
    how = flips(np.asarray(numbers), n_permutations, seed=seed, split=split)
    p, exact = flip_p(columns, tie=1e-7)
    t = flip_t(D, np.ones((1, n)))[0]
    p_corr, null = np.full(D.shape[1], np.nan), np.zeros(how.n)
    if moved.any():
        q = (D[:, moved] ** 2).sum(axis=0)
        made = flip_columns(sp.csc_matrix(D[:, moved]), scale=np.sqrt(n * q), df=n - 1)
        null, _ = maxima(made, how)
        size = np.abs(made.u)
        p_corr[moved] = [(null >= u - 1e-6 * (1 + u)).mean() for u in size]
    half = stats.t.isf((1 - LEVEL) / 2, n - 1) * se
    known = np.where(moved, 1.0, np.nan)
    d_z = np.divide(mean, sd, out=np.full(len(mean), np.nan), where=sd > 0)
    return ItemTests(
        mean * known, se * known, t * known, d_z, (mean - half) * known, (mean + half) * known, p * known, exact,
        p_corr, informative, how.n, np.asarray(null, dtype=np.float64),
    )  # fmt: skip


def rank_p(target: float, controls: np.ndarray, *, center: bool = False) -> float:
    """Share of target and controls that are at least as extreme as the target, (1 + #{|c| >= |x|}) / (K + 1).

    Parameters
    ----------
    target : the mean change of the target
    controls : array of shape (K,), those of matched controls
    center : extreme means far from the median of all K + 1, which a side effect that every edit has does not move

    Notes
    -----
    H0: the target is exchangeable with its controls. Exact then, for either measure of extremity; conservative with
    ties.

    Examples
    --------
    >>> rank_p(-3.0, np.array([0.1, -0.5, 0.2, 2.0])), rank_p(1.0, np.full(4, 1.0))
    (0.2, 1.0)
    """
    values = np.r_[float(target), np.asarray(controls, dtype=float)]
    if not np.isfinite(values).all() or len(values) < 2:
        return np.nan
    size = np.abs(values - (np.median(values) if center else 0.0))
    return float((size >= size[0] - 1e-9 * (1 + size[0])).mean())


def claim_p(*p: float) -> float:
    """Intersection-union: all must hold, so the largest p counts; nan where one is missing.

    Examples
    --------
    >>> claim_p(0.001, 0.04), claim_p(0.001, np.nan)
    (0.04, nan)
    """
    return float(np.max(p)) if np.isfinite(p).all() else np.nan


class Equivalence(NamedTuple):
    """Two one-sided tests of each column: p = the larger one, and the 90 % interval that belongs to them."""

    p: np.ndarray
    low: np.ndarray
    high: np.ndarray


def no_effect(D: np.ndarray, bound: float) -> Equivalence:
    """Test that the mean of every column lies between -bound and +bound.

    Parameters
    ----------
    D : array of shape (n_units, n_columns)
    bound : > 0, the smallest change that would matter, in outcome units; stated, never estimated from the change

    Notes
    -----
    H0: the mean change is at least the bound, in one direction or the other. p is that of flips about the bounds, which
    need changes that are symmetric about their mean. "No significant change" is not this claim.

    Examples
    --------
    >>> quiet = np.array([0.1, -0.1, 0.05, 0.0, -0.05, 0.02, 0.03, -0.04])[:, None]
    >>> bool(no_effect(quiet, 0.5).p[0] <= 0.01), bool(no_effect(quiet + 0.5, 0.5).p[0] <= 0.05)
    (True, False)
    """
    if not bound > 0:
        raise DataError(f"the smallest change that matters is {bound:g}; give a positive number.")
    n = len(D)
    above = flip_p(sp.csc_matrix(D + bound), alternative="greater")[0]
    below = flip_p(sp.csc_matrix(D - bound), alternative="less")[0]
    half = stats.t.isf(0.05, n - 1) * D.std(axis=0, ddof=1) / np.sqrt(n)
    return Equivalence(np.maximum(above, below), D.mean(axis=0) - half, D.mean(axis=0) + half)


def item_slopes(Y: np.ndarray, doses: np.ndarray) -> np.ndarray:
    r"""Least-squares slope of every unit's outcome on the dose.

    With x the doses, b_i = sum_k (x_k - mean x) y_ik / sum_k (x_k - mean x)^2.

    Parameters
    ----------
    Y : array of shape (n_units, n_doses, ...)
    doses : array of shape (n_doses,), in activation units

    Examples
    --------
    >>> item_slopes(np.array([[0.0, 2.0, 4.0], [1.0, 0.0, -1.0]]), np.array([0.0, 1.0, 2.0])).tolist()
    [2.0, -1.0]
    """
    x = np.asarray(doses, dtype=float) - np.mean(doses)
    if not (x**2).sum() > 0:
        raise DataError("all doses are equal; a slope needs two different ones.")
    return np.tensordot(Y, x, axes=(1, 0)) / (x**2).sum()


class Population(NamedTuple):
    """The mean slope over items and features: REML of crossed random effects, and min-F'.

    estimate, se, t, dof, low, high, p : of the mean, Satterthwaite's dof, 95 % interval
    var_item, var_feature, var_resid : variance components; 0 at the boundary, where the fit is singular
    min_f : of the same table;  status, refused : `ok`, or why the mixed model says nothing (numbers are nan)
    """

    estimate: float
    se: float
    t: float
    dof: float
    low: float
    high: float
    p: float
    var_item: float
    var_feature: float
    var_resid: float
    min_f: MinF
    status: str
    refused: str


def over_items_and_features(slopes: np.ndarray) -> Population:
    """Test the mean slope over items and features, both random: slope ~ 1 + (1 | item) + (1 | feature), and min-F'.

    The claim is "features like these, over items like these"; a test by items speaks of these features only.

    Parameters
    ----------
    slopes : array of shape (n_units, n_features), complete; slopes on the dose, or changes

    Raises
    ------
    DataError
        Fewer than 2 features or 6 units.

    Notes
    -----
    H0: the mean over items and features is 0. Assumed: normal effects of items and features and normal residuals. Below
    6 features the variance over features is not known well enough, and the mixed model is refused. min-F' is the
    two-stage form, which errs on the safe side.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> made = rng.standard_normal((20, 1)) + rng.standard_normal((1, 8)) + rng.standard_normal((20, 8))
    >>> null, far = over_items_and_features(made), over_items_and_features(made + 5)
    >>> null.p > 0.05, null.min_f.p.item() > 0.05, far.p < 0.01, far.min_f.p.item() < 0.01
    (True, True, True, True)
    >>> over_items_and_features(made[:, :3]).status
    'untestable'
    """
    Y = np.asarray(slopes, dtype=np.float64)
    n, k = Y.shape
    if n < 6 or k < 2:
        raise DataError(f"{n} items x {k} features carry no claim over both; use 6 items and 2 features at least.")
    both, nan = min_f(Y), dict.fromkeys(Population._fields[:10], np.nan)
    if k < FRAMES:
        why = f"{k} features cannot carry a claim over features: it needs at least {FRAMES}"
        return Population(**nan, min_f=both, status="untestable", refused=why)
    items, features = np.repeat(np.arange(n), k), np.tile(np.arange(k), n)
    fit = crossed_reml(Y.reshape(-1, 1), np.ones((n * k, 1)), items, frames=features, contrasts=np.ones((1, 1)))
    if not len(fit.features) or not fit.is_bounded[0]:
        why = "no variance is left beside items and features" if len(fit.features) else "nothing changes at all"
        return Population(**nan, min_f=both, status="degenerate", refused=f"{why}; the mixed model says nothing")
    estimate, se, dof = (float(value[0, 0]) for value in (fit.estimate, fit.se, fit.dof))
    half = float(stats.t.isf((1 - LEVEL) / 2, dof)) * se
    return Population(
        estimate=estimate, se=se, t=estimate / se, dof=dof, low=estimate - half, high=estimate + half,
        p=2 * float(stats.t.sf(abs(estimate / se), dof)), var_item=float(fit.var_item[0]),
        var_feature=float(fit.var_frame[0]), var_resid=float(fit.var_resid[0]), min_f=both, status="ok", refused="",
    )  # fmt: skip
