"""Analytic power: the noncentral t of a paired contrast, or of two groups, at a level shared by a family of tests."""

from __future__ import annotations

import numpy as np
from scipy import stats

from neurosae.errors import DataError


def analytic_power(
    effsize: float, n_items: int, *, n_tests: int = 1, alpha: float = 0.05, share: float | None = None
) -> float:
    r"""Power of a two-sided t test at alpha / m.

    With t_c the 1 - alpha/(2m) quantile of t with df degrees of freedom and T' noncentral t,

        power = P(T' > t_c) + P(T' < -t_c),   noncentrality d sqrt(n), df = n - 1 (paired),
        or d sqrt(n share (1 - share)), df = n - 2 (two groups).

    Parameters
    ----------
    effsize : float
        d_z = mean(d) / sd(d) of the item contrasts; between items, difference of means / pooled sd.
    n_items : int
    n_tests : int
        Size m of the family; Bonferroni's level stands for max-T, which is never less powerful.
    alpha : float
    share : float, optional
        Share of items in one of two groups; None for a contrast within items.

    Returns
    -------
    float

    Examples
    --------
    >>> round(analytic_power(0.6, 24), 6)
    0.803671
    """
    two = share is not None
    df = n_items - (2 if two else 1)
    if df < 1:
        raise DataError(f"{n_items} items leave no degree of freedom; give at least {3 if two else 2}.")
    shift = abs(effsize) * np.sqrt(n_items * (share * (1 - share) if share is not None else 1))
    limit = stats.t.isf(alpha / (2 * n_tests), df)
    other = stats.nct.cdf(-limit, df, shift)  # scipy 1.17 gives nan where it is below normal cdf(-shift), hence tiny
    return float(stats.nct.sf(limit, df, shift) + (0.0 if np.isnan(other) else other))


def items_needed(
    effsize: float, *, n_tests: int = 1, power: float = 0.8, alpha: float = 0.05, share: float | None = None
) -> int:
    """Smallest number of items whose `analytic_power` reaches the asked power.

    Examples
    --------
    >>> items_needed(0.5), items_needed(0.5, n_tests=5000)
    (34, 121)
    """
    if effsize == 0 or not 0 < power < 1:
        raise DataError(f"no number of items gives power {power:g} for an effect of {effsize:g}.")

    def reaches(n: int) -> bool:
        return analytic_power(abs(effsize), n, n_tests=n_tests, alpha=alpha, share=share) >= power

    low = high = 2 if share is None else 3
    while not reaches(high):
        low, high = high, 2 * high
        if high > 2**30:
            raise DataError(f"an effect of {effsize:g} needs more than a thousand million items.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return low if reaches(low) else high
