"""Effect sizes and intervals beside every p: signed, in natural units or standardised, never selected by p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from neurosae.stats.ranks import value_ranks

FEW = 10  # informative items below which an interval is printed with a warning


def hedges_j(df: float) -> float:
    """Small-sample factor J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)); g = J d.

    Examples
    --------
    >>> round(hedges_j(14), 4)
    0.9453
    """
    return (
        float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2)) if df > 1 else np.nan
    )


@dataclass(frozen=True)
class Pairs:
    """Dense item data of some features: contrast d, and mean responses and firing over the + and - cells, (n, m)."""

    d: np.ndarray
    plus: np.ndarray
    minus: np.ndarray
    fires_plus: np.ndarray
    fires_minus: np.ndarray


def paired_effects(pairs: Pairs, *, level: float = 0.95) -> pd.DataFrame:
    """Effect sizes of within-item contrasts, one row per feature.

    Columns: estimate and its plain standard error, interval mean +- t(n-1) se, d_z = mean/sd and g_z = J(n-1) d_z,
    density of the + and - cells, odds ratio b/c of the items that fire on one side only, mean log(y+/y-) where both
    fire in at least 3 items, AUC = P(d > 0) + P(d = 0)/2, sign probability P(d > 0 | d != 0).

    Examples
    --------
    >>> d = np.array([[1.0], [3.0], [2.0], [0.0]])
    >>> pairs = Pairs(d, d + 1, np.ones((4, 1)), np.ones((4, 1)), np.ones((4, 1)))
    >>> paired_effects(pairs)[["estimate", "x_auc", "x_sign_prob"]].round(3).values.tolist()
    [[1.5, 0.875, 1.0]]
    """
    n = len(pairs.d)
    estimate, sd = pairs.d.mean(axis=0), _sd(pairs.d)
    above, below = (pairs.d > 0).mean(axis=0), (pairs.d < 0).mean(axis=0)
    firing, share = firing_difference(pairs.fires_plus, pairs.fires_minus)
    standard = _ratio(estimate, sd)
    half = stats.t.isf((1 - level) / 2, n - 1) * sd / np.sqrt(n)
    values = (pairs.plus < 0).any(axis=0) | (pairs.minus < 0).any(axis=0)  # signed ones, of which there are no ratios
    only_plus = ((pairs.plus > 0) & (pairs.minus <= 0)).sum(axis=0)
    only_minus = ((pairs.minus > 0) & (pairs.plus <= 0)).sum(axis=0)
    return pd.DataFrame(
        {
            "estimate": estimate,
            "se": sd / np.sqrt(n),
            "effsize": standard,
            "ci_low": estimate - half,
            "ci_high": estimate + half,
            "x_g": hedges_j(n - 1) * standard,
            "x_density_plus": pairs.fires_plus.mean(axis=0),
            "x_density_minus": pairs.fires_minus.mean(axis=0),
            "x_density_diff": share @ firing,
            "x_odds_ratio": np.where(values, np.nan, _ratio(only_plus, only_minus)),
            "x_log_ratio": np.where(values, np.nan, _log_ratio(pairs.plus, pairs.minus)),
            "x_auc": share_above(pairs.d).mean(axis=0),
            "x_sign_prob": _ratio(above, above + below),
        }
    )


def group_effects(
    y: np.ndarray, fires: np.ndarray, *, codes: np.ndarray, weights: np.ndarray, separate: bool
) -> pd.DataFrame:
    """Effect sizes of contrasts between items, one row per feature; cells weigh equally, whatever their sizes.

    Parameters
    ----------
    y, fires : arrays of shape (n_items, m), value and share of active stimuli of each item
    codes : int array of shape (n_items,), the cell of each item;  weights : one per cell
    separate : Welch's standard error and degrees of freedom instead of the pooled ones

    Notes
    -----
    The interval is at 95 %. `effsize` is Cohen's d with the pooled standard deviation for weights as written, `x_auc`
    = P(y+ > y-) + P(equal)/2 over pairs of items, and `x_dof` the degrees of freedom of t.
    """
    counts = np.bincount(codes, minlength=len(weights))
    means = np.stack([y[codes == c].mean(axis=0) for c in range(len(weights))])
    var = np.stack([_sd(y[codes == c]) ** 2 for c in range(len(weights))])
    pooled = ((counts - 1)[:, None] * var).sum(axis=0) / (len(y) - len(weights))
    part = (weights**2 / counts)[:, None] * (var if separate else pooled)
    se2, estimate = part.sum(axis=0), (weights[:, None] * means).sum(axis=0)
    dof = np.full(y.shape[1], float(len(y) - len(weights)))
    if separate:
        dof = np.where(se2 > 0, _ratio(se2**2, (part**2 / (counts - 1)[:, None]).sum(axis=0)), dof)
    half, plus, minus = stats.t.isf(0.025, dof) * np.sqrt(se2), weights[codes] > 0, weights[codes] < 0
    standard = _ratio(estimate, np.sqrt(pooled))
    high, low = fires[plus].mean(axis=0), fires[minus].mean(axis=0)
    return pd.DataFrame(
        {
            "estimate": estimate,
            "se": np.sqrt(se2),
            "effsize": standard,
            "ci_low": estimate - half,
            "ci_high": estimate + half,
            "x_g": hedges_j(len(y) - len(weights)) * standard,
            "x_density_plus": high,
            "x_density_minus": low,
            "x_density_diff": high - low,
            "x_auc": _auc(y, plus, minus),
            "x_dof": dof,
        }
    )


def share_above(d: np.ndarray) -> np.ndarray:
    """1 where + exceeds - within an item, 1/2 where they are equal: the mean over items is the paired AUC.

    Examples
    --------
    >>> share_above(np.array([2.0, 0.0, -1.0]))
    array([1. , 0.5, 0. ])
    """
    return (d > 0) + 0.5 * (d == 0)


def placements(plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Whether y+ exceeds y-, 1/2 where equal, for every pair of items, (n_plus, n_minus): its mean is the AUC.

    Examples
    --------
    >>> placements(np.array([0.0, 3.0]), np.array([0.0, 1.0]))
    array([[0.5, 0. ],
           [1. , 1. ]])
    """
    return (plus[:, None] > minus) + 0.5 * (plus[:, None] == minus)


def firing_difference(
    plus: np.ndarray, minus: np.ndarray, grouping: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of firing as (x, coefficient): sum_i coefficient_i x_i is the difference of densities.

    Parameters
    ----------
    plus, minus : arrays of shape (n_items, m), share of active stimuli in the + and the - cells of every item
    grouping : group of each item and weight of each group, where the cells are those of different items

    Examples
    --------
    >>> x, share = firing_difference(np.array([[1.0], [1.0]]), np.array([[0.0], [1.0]]))
    >>> share @ x
    array([0.5])
    """
    if grouping is None:
        return plus - minus, np.full(len(plus), 1 / len(plus))
    sign = np.sign(grouping[1][grouping[0]])
    share = np.where(sign > 0, 1 / max((sign > 0).sum(), 1), np.where(sign < 0, -1 / max((sign < 0).sum(), 1), 0.0))
    return np.maximum(plus, minus), share


def _auc(y: np.ndarray, plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    both = np.concatenate([y[plus], y[minus]])
    n_plus, n_minus = plus.sum(), minus.sum()
    ranks = value_ranks(both)[:n_plus].sum(axis=0)
    return (ranks - n_plus * (n_plus + 1) / 2) / (n_plus * n_minus)


def _sd(x: np.ndarray) -> np.ndarray:
    """Standard deviation; a column of equal numbers has exactly 0, whatever its mean."""
    sd = x.std(axis=0, ddof=1)
    return np.where(np.ptp(x, axis=0) <= 1e-12 * np.abs(x).max(axis=0), 0.0, sd)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient a / b, nan where b is 0."""
    return np.where(b != 0, a / np.where(b != 0, b, 1), np.nan)


def _log_ratio(plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    both = (plus > 0) & (minus > 0)
    logs = np.where(both, np.log(np.where(both, plus, 1) / np.where(both, minus, 1)), 0.0)
    count = both.sum(axis=0)
    return np.where(count >= 3, logs.sum(axis=0) / np.maximum(count, 1), np.nan)
