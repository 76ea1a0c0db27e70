"""Corrections for many tests, from p-values or from the null distribution of the maximum; all return adjusted p."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down Bonferroni, family-wise under any dependence; nan stays nan and is not counted.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, 0.03]))
    array([0.03, 0.06, 0.06])
    """
    return _ordered(p, lambda q: np.maximum.accumulate(q * np.arange(len(q), 0, -1)))


def fdr_bh(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's false discovery rate; needs independence or positive dependence.

    Examples
    --------
    >>> fdr_bh(np.array([0.01, 0.04, 0.03])).round(3)
    array([0.03, 0.04, 0.04])
    """
    return _ordered(p, lambda q: np.minimum.accumulate((q * len(q) / np.arange(1, len(q) + 1))[::-1])[::-1])


def fdr_by(p: np.ndarray) -> np.ndarray:
    """Benjamini and Yekutieli's false discovery rate under any dependence: BH times sum 1/i.

    Examples
    --------
    >>> fdr_by(np.array([0.01, 0.04, 0.03])).round(3)
    array([0.055, 0.073, 0.073])
    """
    count = np.isfinite(p).sum()
    return np.minimum(1, fdr_bh(p) * (1 / np.arange(1, count + 1)).sum())


def none(p: np.ndarray) -> np.ndarray:
    """No correction: nothing is claimed over the family, so there is no corrected p."""
    return np.full(len(p), np.nan)


def _ordered(p: np.ndarray, adjust: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    out, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(1, adjust(p[order])) if len(order) else p[order]
    return out


def step_down(reached: np.ndarray, size: np.ndarray, n_permutations: int) -> np.ndarray:
    """Adjusted p of Westfall and Young's step-down: the shares, made monotone from the most extreme feature on.

    Parameters
    ----------
    reached : int array of shape (m,)
        Relabellings whose maximum over the features that are not more extreme reaches the feature's own value.
    size : array of shape (m,), observed statistics, larger = more extreme

    References
    ----------
    Westfall & Young (1993), Resampling-Based Multiple Testing.

    Examples
    --------
    >>> step_down(np.array([10, 1, 4]), np.array([1.0, 3.0, 2.0]), 20)
    array([0.5 , 0.05, 0.2 ])
    """
    order, out = np.argsort(-size, kind="stable"), np.empty(len(size))
    out[order] = np.maximum.accumulate(reached[order] / n_permutations)
    return out


def monte_carlo_interval(p: np.ndarray, n_permutations: int, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Clopper-Pearson interval of a p counted over random relabellings: how far more of them could move it.

    Examples
    --------
    >>> low, high = monte_carlo_interval(np.array([0.05]), 1000)
    >>> low.round(4), high.round(4)
    (array([0.0373]), array([0.0654]))
    """
    count, tail = np.round(p * n_permutations), (1 - level) / 2
    low = stats.beta.ppf(tail, count, n_permutations - count + 1)
    high = stats.beta.ppf(1 - tail, count + 1, np.maximum(n_permutations - count, 1e-9))
    return low, np.where(count >= n_permutations, 1.0, high)


# correction -> adjusted p from uncorrected p; maxT and stepdown come from the null distribution of the maximum instead
CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "maxT": None,
    "stepdown": None,
    "holm": holm,
    "fdr_bh": fdr_bh,
    "fdr_by": fdr_by,
    "none": none,
}
