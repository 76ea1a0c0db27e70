r"""Seeds or models as subjects: one number each, flips over subjects, and how many of them show an effect at all.

A dictionary trained with another seed has other features; what can be compared are one number per seed or model: the
size of a contrast of a set, a distance, an accuracy. For numbers with mean 0 under H0 the signs of whole subjects are
flipped. Accuracies and cross-validated distances cannot be negative on average, so their t test over subjects
asserts no more than that some subject has an effect; `prevalence` says how many do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats
from scipy.optimize import brentq

from neurosae.errors import DataError
from neurosae.spec.results import as_results, check_results, counted_p
from neurosae.stats import kernels
from neurosae.stats.effects import hedges_j
from neurosae.stats.flips import flip_columns, maxima
from neurosae.stats.relabel import flips
from neurosae.stats.tails import flip_p

SECOND_LEVEL = 4  # purpose of the random stream that pairs the relabellings of subjects
FEWEST = 6


def over_subjects(
    values: pd.DataFrame, *, alternative: str = "two-sided", n_permutations: int = 10_000, seed: int
) -> pd.DataFrame:
    """Test the mean over subjects of one signed number each, exactly, by flipping whole subjects.

    Parameters
    ----------
    values : DataFrame of shape (n_subjects, n_measures)
        One row per seed or model, one column per measure, in the measure's own units; 0 under H0.
    alternative : "two-sided", "greater" or "less"
    n_permutations : flips for the maximum over measures; all of them where they fit
    seed : int

    Returns
    -------
    DataFrame
        The results schema, one row per measure: t, mean with its 95 % t interval, d_z; p_unc is exact, p_corr holds
        over the measures (max-T).

    Raises
    ------
    DataError
        Fewer than 6 subjects: the smallest two-sided p is 2^(1-n). A missing number.

    Notes
    -----
    H0: the number is distributed symmetrically about 0 over subjects. Not for accuracies or cross-validated distances
    (`prevalence`).

    Examples
    --------
    >>> seeds = pd.DataFrame({"effect": [1.2, 0.8, 1.5, 0.9, 1.1, 2.0]})
    >>> row = over_subjects(seeds, seed=1).iloc[0]
    >>> float(row["p_unc"]), row["h0"]
    (0.03125, 'effect is distributed symmetrically about 0 over subjects')
    """
    D = values.to_numpy(dtype=float)
    n, m = D.shape
    _check_subjects(n, D)
    two_sided = alternative == "two-sided"
    square = (D**2).sum(axis=0)
    sign = -1.0 if alternative == "less" else 1.0
    columns = flip_columns(sp.csc_matrix(sign * D), scale=np.sqrt(n * np.where(square > 0, square, 1)), df=n - 1.0)
    how = flips(np.arange(n), n_permutations, seed=seed, two_sided=two_sided)
    null = np.asarray(columns.how.to_z(maxima(columns, how, two_sided=two_sided)[0], n - 1.0))
    mean, sd = D.mean(axis=0), D.std(axis=0, ddof=1)
    flat = sd <= 1e-12 * np.abs(D).max(axis=0)
    se = sd / np.sqrt(n)
    half = stats.t.isf(0.025, n - 1) * se
    with np.errstate(divide="ignore", invalid="ignore"):
        t, d = np.where(flat, np.nan, mean / se), np.where(flat, np.nan, mean / sd)
    p = flip_p(sp.csc_matrix(D), alternative=alternative)[0]
    zero = square == 0
    rows = {
        "test": "over_subjects", "kind": "subjects", "effect": [str(c) for c in values], "site": "all", "region": "all",
        "position": 0, "split": "test", "n_features": 1, "set": [str(c) for c in values],
        "stat": "t", "value": t, "dof": n - 1.0, "estimate": mean, "se": se,
        "effsize": d, "eftype": "d_z", "ci_low": mean - half, "ci_high": mean + half, "ci_level": 0.95,
        "p_unc": np.where(zero, np.nan, p), "p_corr": np.where(zero, np.nan, counted_p(null, columns.z)),
        "p_adjust": "maxT", "p_method": "exact" if n <= 24 else "saddlepoint",
        "family": "all measures over subjects", "n_family": m,
        "unit": "subject", "n_units": n, "n_informative": (D != 0).sum(axis=0), "n_perm": how.n,
        "p_min": 2.0 ** ((1 if two_sided else 0) - n), "alternative": alternative,
        "h0": [f"{c} is distributed symmetrically about 0 over subjects" for c in values],
        "status": np.where(flat, "degenerate", "ok"),
        "note": [("every subject has the same number" if f else pd.NA) for f in flat],
        "x_z": sign * columns.z, "x_g": hedges_j(n - 1) * d,
    }  # fmt: skip
    return check_results(as_results(rows))


def _check_subjects(n: int, D: np.ndarray) -> None:
    if n < FEWEST:
        raise DataError(
            f"{n} subjects allow {2**n} flips; the smallest two-sided p is {2.0 ** (1 - n):.3g}. Use at least {FEWEST} "
            "seeds or models, or describe them without a test."
        )
    if not np.isfinite(D).all():
        raise DataError("a subject lacks a number; give every seed or model every measure, or leave the measure out.")


def prevalence(
    values: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    gamma0: float = 0.5,
    alpha: float = 0.05,
    n_permutations: int | None = 10_000,
    seed: int,
) -> pd.DataFrame:
    r"""In what share of subjects is there an effect? Permutation prevalence by the minimum statistic.

    With a_k the measure of subject k and a_k* under its own relabellings, m = min_k a_k. Second-level relabellings pair
    one relabelling of every subject; p_N = P(m* >= m) tests that no subject has an effect, and

        p(gamma <= gamma0) = ((1 - gamma0) p_N^(1/N) + gamma0)^N,
        gamma >= (alpha^(1/N) - p_N^(1/N)) / (1 - p_N^(1/N)),

    for the prevalence gamma. Over several measures p_N comes from the maximum, and p_corr = p_N + (1 - p_N) p.

    That is for subjects whose data are independent. Dictionaries that read the same items are not: what these items
    happen to do moves all of them. With `n_permutations` None relabelling b is the same in all subjects, so that it
    moves all of them too, and with c_b the number of subjects with a_k*(b) >= m

        p(gamma <= gamma0) = mean_b gamma0^(N - c_b),

    which is the formula above where subjects are independent, and p_N at gamma0 = 0.

    Parameters
    ----------
    values : array of shape (n_subjects, n_relabellings, n_measures)
        Accuracy-like measure of every subject under its relabellings, the observed one first; larger = more effect.
    names : names of the measures
    gamma0 : float in [0, 1)
        Prevalence to be exceeded; .5 is the majority of subjects.
    alpha : float
    n_permutations : second-level relabellings, the identity included; None: relabelling b is one for all subjects
    seed : int, unused where relabellings are shared

    Returns
    -------
    DataFrame
        The results schema, one row per measure: value = min_k a_k, estimate = mean over subjects, p_unc and p_corr of
        H0 "the prevalence is at most gamma0"; `x_gamma_low` the largest prevalence that is exceeded at alpha, corrected
        (nan where not even one subject is shown to have an effect); `x_p_global` and `x_p_global_corr` p_N.

    Raises
    ------
    DataError
        Fewer than 2 subjects, a missing number, or so few relabellings that gamma0 cannot be exceeded.

    Notes
    -----
    Never a t test of accuracies against chance: they cannot be below chance on average, so its rejection says no more
    than that at least one subject has an effect, and neither does that of the global null here.

    References
    ----------
    Allefeld, Goergen & Haynes (2016), Valid population inference for information-based imaging, NeuroImage 141:378.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> accuracy = rng.normal(0.5, 0.05, (8, 100, 1))
    >>> accuracy[:, 0] += 0.3
    >>> row = prevalence(accuracy, seed=1).iloc[0]
    >>> bool(row["p_unc"] <= 0.05), round(float(row["x_gamma_low"]), 2)
    (True, 0.54)
    """
    a = np.asarray(values, dtype=float)
    N, first, m = a.shape
    if N < 2 or not np.isfinite(a).all():
        raise DataError("prevalence needs two subjects or more, and every number of each.")
    shared = n_permutations is None
    drawn = np.repeat(np.arange(first)[:, None], N, axis=1)
    drawn = drawn if n_permutations is None else _second_level(N, first, n_permutations, seed=seed)
    best = smallest_prevalence_p(N, len(drawn), gamma0, shared=shared)
    if best > alpha:
        raise DataError(
            f"{N} subjects with {first} relabellings each and {len(drawn):,} pairings of them cannot show a prevalence "
            f"above {gamma0:g}: the smallest p is {best:.3g}. Use more subjects or relabellings, or a smaller gamma0."
        )
    observed = a[:, 0].min(axis=0)
    below, p_corr = _second_level_counts(a, drawn, observed)
    p = below[:, 0]
    n_below = np.arange(N + 1)

    def share_p(gamma: float | np.ndarray, at: int) -> float:
        """P of a prevalence of at most gamma, at one measure."""
        if shared:
            return float(below[at] @ np.power(float(gamma), n_below))
        return float(((1 - gamma) * p[at] ** (1 / N) + gamma) ** N)

    share = np.array([share_p(gamma0, at) for at in range(m)])
    spent = p_corr if m > 1 else np.zeros(1)  # what the maximum over measures takes; one measure needs no correction
    left = (alpha - spent) / (1 - spent).clip(1e-300)
    low = [brentq(lambda g, k=k: share_p(g, k) - left[k], 0, 1) if p[k] < left[k] else np.nan for k in range(m)]
    labels = list(names) if names is not None else [f"measure {k}" for k in range(m)]
    rows = {
        "test": "prevalence", "kind": "prevalence", "effect": labels, "site": "all", "region": "all", "position": 0,
        "split": "test", "set": labels, "n_features": 1, "stat": "minimum over subjects", "value": observed,
        "estimate": a[:, 0].mean(axis=0), "p_unc": share, "p_corr": spent + (1 - spent) * share, "p_adjust": "maxT",
        "p_method": "permutations", "family": "all measures over subjects", "n_family": m, "unit": "subject",
        "n_units": N, "n_perm": len(drawn), "p_min": best, "alternative": "greater",
        "h0": f"the share of subjects with an effect is at most {gamma0:g}", "status": "ok",
        "x_gamma_low": np.array(low, dtype=float), "x_p_global": p, "x_p_global_corr": p_corr,
    }  # fmt: skip
    return check_results(as_results(rows))


def smallest_prevalence_p(n_subjects: int, n: int, gamma0: float, *, shared: bool) -> float:
    """Smallest p of a prevalence of at most gamma0 that n relabellings can give.

    Examples
    --------
    >>> smallest_prevalence_p(8, 10_000, 0.5, shared=True) < 0.005 < smallest_prevalence_p(8, 10_000, 0.5, shared=False)
    True
    """
    if shared:
        return (1 + (n - 1) * gamma0**n_subjects) / n
    return ((1 - gamma0) * (1 / n) ** (1 / n_subjects) + gamma0) ** n_subjects


def _second_level_counts(a: np.ndarray, drawn: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the relabellings that leave 0, 1, … N subjects below (m, N + 1), and p of the maximum of minima (m,)."""
    N, _, m = a.shape
    below, reached_max = np.zeros((m, N + 1)), np.zeros(m)
    for pairing in drawn:
        values = a[np.arange(N), pairing]
        below[np.arange(m), (values < observed - 1e-12).sum(axis=0)] += 1
        reached_max += values.min(axis=0).max() >= observed - 1e-12
    return below / len(drawn), reached_max / len(drawn)


def _second_level(N: int, first: int, n: int, *, seed: int) -> np.ndarray:
    """Which relabelling every subject contributes, int (n, N): all pairings where they fit, number 0 the observed."""
    if first**N <= n:
        grid = np.meshgrid(*[np.arange(first)] * N, indexing="ij")
        return np.stack([g.ravel() for g in grid], axis=1)
    keys = np.empty((n, N), dtype=np.uint64)
    stream = np.uint64(SECOND_LEVEL)
    kernels.sort_keys(keys, np.arange(N, dtype=np.uint32), seed=np.uint64(seed), stream=stream, first=0)
    drawn = ((keys >> np.uint64(32)) * np.uint64(first)) >> np.uint64(32)
    drawn[0] = 0
    return drawn.astype(np.int64)
