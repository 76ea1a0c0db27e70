"""The prior of the moderated t: variances of all features, shrunk towards a trend over their activity.

Linear algebra is written as plain sums over features: a threaded BLAS would make last digits depend on the machine.
"""

from __future__ import annotations

import numpy as np
from scipy import special


def fit_prior(variance: np.ndarray, df: float, covariate: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    r"""Scaled inverse chi-square prior of the variances by moments of their logarithm.

    With e = log s^2 - digamma(df/2) + log(df/2) and a mean that may follow a natural cubic spline in the covariate,

        trigamma(d0/2) = var(e) - trigamma(df/2),   s0^2 = exp(mean + digamma(d0/2) - log(d0/2)),

    and d0 = inf where the variances differ no more than chance makes them.

    Parameters
    ----------
    variance : array of shape (m,), squared activation units
        Inside relabellings the second moments q/n with df = n: they are invariant, so the test stays exact.
    df : degrees of freedom of each variance
    covariate : array of shape (m,), optional
        Log pooled mean activity. Four knots at the quantiles 0, 1/3, 2/3, 1; fewer below 30, 6 and 3 features.

    Returns
    -------
    d0 : float;  s0^2 : array of shape (m,)

    Notes
    -----
    Zero variances are lifted to 1e-5 of the median for the fit only. Equal to limma's fitFDist.

    References
    ----------
    Smyth (2004), Linear models and empirical Bayes methods, Stat. Appl. Genet. Mol. Biol. 3:3.

    Examples
    --------
    >>> d0, s02 = fit_prior(np.array([0.5, 1.0, 2.0, 9.0]), 8)
    >>> round(d0, 4), s02.round(4)
    (2.433, array([1.2401, 1.2401, 1.2401, 1.2401]))
    """
    x = np.maximum(np.asarray(variance, dtype=float), 0)
    m = len(x)
    if m < 2:
        return 0.0, x.copy()
    middle = float(np.median(x))
    x = np.maximum(x, 1e-5 * (middle if middle > 0 else 1.0))
    e = np.log(x) - special.digamma(df / 2) + np.log(df / 2)
    mean, n_knots = _trend(e, covariate)
    spread = ((e - mean) ** 2).sum() / (m - n_knots) - special.polygamma(1, df / 2) if m > n_knots else 0.0
    if spread > 0:
        d0 = 2 * trigamma_inverse(float(spread))
        return d0, np.exp(mean + special.digamma(d0 / 2) - np.log(d0 / 2))
    return np.inf, np.full(m, x.mean()) if n_knots == 1 else np.exp(mean)


def _trend(e: np.ndarray, covariate: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Fitted mean of e and the number of coefficients that it took."""
    n_knots = 1
    if covariate is not None:
        m = len(e)
        n_knots = min(1 + (m >= 3) + (m >= 6) + (m >= 30), len(np.unique(covariate)))
    if n_knots < 2 or covariate is None:
        return np.full(len(e), e.mean()), 1
    basis = natural_spline(covariate, np.quantile(covariate, np.linspace(0, 1, n_knots)))
    return _projection(basis, e), basis.shape[1]


def natural_spline(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Natural cubic spline basis of shape (len(x), len(knots)), linear beyond the outer knots; repeated knots merge."""
    knots = np.unique(knots)
    u, k = (np.asarray(x, dtype=float) - knots[0]) / (knots[-1] - knots[0]), (knots - knots[0]) / (knots[-1] - knots[0])

    def bend(i: int) -> np.ndarray:
        return (np.maximum(u - k[i], 0) ** 3 - np.maximum(u - 1, 0) ** 3) / (1 - k[i])

    last = len(k) - 2
    return np.column_stack([np.ones_like(u), u] + [bend(i) - bend(last) for i in range(last)])


def _projection(basis: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Least-squares fit of e by the columns of the basis: Gram-Schmidt, done twice for the last digits."""
    q: list[np.ndarray] = []
    for column in basis.T:
        v, size = column.astype(float), np.sqrt((column**2).sum())
        for _ in range(2):
            for other in q:
                v = v - (other * v).sum() * other
        length = np.sqrt((v**2).sum())
        if length > 1e-10 * size:
            q.append(v / length)
    return np.sum([(v * e).sum() * v for v in q], axis=0)


def trigamma_inverse(x: float) -> float:
    """Solve trigamma(y) = x for y > 0 by Newton steps on 1 / trigamma.

    Examples
    --------
    >>> round(trigamma_inverse(float(special.polygamma(1, 2.5))), 12)
    2.5
    """
    if x > 1e7:
        return 1 / np.sqrt(x)
    if x < 1e-6:
        return 1 / x
    y = 0.5 + 1 / x
    for _ in range(50):
        value = special.polygamma(1, y)
        step = value * (1 - value / x) / special.polygamma(2, y)
        y += step
        if -step / y < 1e-8:
            break
    return float(y)


def shrink(variance: np.ndarray, df: float, *, d0: float, s02: np.ndarray) -> np.ndarray:
    """Posterior variance (d0 s0^2 + df s^2) / (d0 + df); the prior alone where d0 is infinite.

    Examples
    --------
    >>> shrink(np.array([1.0]), 3, d0=1, s02=np.array([5.0]))
    array([2.])
    """
    return np.broadcast_to(s02, np.shape(variance)) if np.isinf(d0) else (d0 * s02 + df * variance) / (d0 + df)
