"""Corrections for many tests, from p-values or from the null distribution of the maximum; all return adjusted p."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
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


def storey(p: np.ndarray) -> np.ndarray:
    """Storey's q: BH times the share of true null hypotheses, pi0 = min(1, #{p >= .5} / (.5 m)).

    The false discovery rate is held for independent p; where every p is below .5, pi0 is not 0 but 1 / m.

    References
    ----------
    Storey (2002), A direct approach to false discovery rates, J. R. Stat. Soc. B 64:479. Equal to qvalue's q at
    lambda = .5.

    Examples
    --------
    >>> storey(np.array([0.01, 0.04, 0.03, 0.7])).round(3)
    array([0.02 , 0.027, 0.027, 0.35 ])
    """
    return np.minimum(1, null_share(p) * fdr_bh(p))


def null_share(p: np.ndarray) -> float:
    """Estimate pi0 = #{p >= .5} / (.5 m), at least 1 / m and at most 1: the share of true null hypotheses.

    Examples
    --------
    >>> null_share(np.array([0.01, 0.2, 0.7, 0.04]))
    0.5
    """
    known = p[np.isfinite(p)]
    return min(1.0, max(float((known >= 0.5).mean()) / 0.5, 1 / len(known))) if len(known) else 1.0


def simes(p: np.ndarray) -> float:
    """Simes' p of a family, min_i m p_(i) / i: H0 none of its hypotheses is false, against at least one; nan if empty.

    Examples
    --------
    >>> simes(np.array([0.01, 0.04, 0.03]))
    0.03
    """
    adjusted = fdr_bh(p)
    return float(np.nanmin(adjusted)) if np.isfinite(adjusted).any() else np.nan


class Families(NamedTuple):
    """Hierarchical correction: adjusted p and, per hypothesis, the Simes p of its family and whether it is selected."""

    p: np.ndarray
    p_family: np.ndarray
    selected: np.ndarray


def bb(p: np.ndarray, family: np.ndarray, *, alpha: float = 0.05) -> Families:
    r"""Benjamini and Bogomolov's correction: families first, then what is in the selected ones.

    BH over the Simes p of the L families selects R(alpha) of them; inside each of these BH is applied at level
    alpha R(alpha) / L. With q_f the BH-adjusted Simes p of a family and q_i the BH-adjusted p inside it, the smallest
    alpha at which hypothesis i is rejected is

        p_i = max(q_f, min_r max(q_(r), q_i L / r)),   q_(1) <= ... <= q_(L),

    so `p <= alpha` is the decision at every alpha.

    Parameters
    ----------
    p : array of shape (m,), nan where untested
    family : array of shape (m,), label of each hypothesis' family
    alpha : float
        Only `selected` depends on it.

    Returns
    -------
    Families
        Arrays of shape (m,).

    Notes
    -----
    Held: the expected false discovery proportion, averaged over the selected families. H0 of a family: none of its
    hypotheses is false; a selected family holds at least one discovery's worth of evidence, not a named one.

    References
    ----------
    Benjamini & Bogomolov (2014), Selective inference on multiple families of hypotheses, J. R. Stat. Soc. B 76:297.

    Examples
    --------
    >>> found = bb(np.array([0.001, 0.02, 0.5, 0.6]), np.array(["early", "early", "late", "late"]))
    >>> found.p, found.selected
    (array([0.004, 0.04 , 0.6  , 0.6  ]), array([ True,  True, False, False]))
    """
    names, which = np.unique(np.asarray(family).astype(str), return_inverse=True)
    inside, each = np.full(len(p), np.nan), np.full(len(names), np.nan)
    for k in range(len(names)):
        members = which == k
        inside[members] = fdr_bh(p[members])
        each[k] = simes(p[members])
    of_families = fdr_bh(each)
    ordered = np.sort(of_families[np.isfinite(of_families)])
    n = len(ordered)
    smallest = np.full(len(p), np.inf)
    for r, q in enumerate(ordered, start=1):
        smallest = np.minimum(smallest, np.maximum(q, inside * n / r))
    adjusted = np.minimum(1, np.maximum(of_families[which], smallest))
    return Families(np.where(np.isfinite(p), adjusted, np.nan), each[which], (of_families <= alpha)[which])


def _bb_of_one(p: np.ndarray) -> np.ndarray:
    """All as one family, which is BH; where sites are known they are the families (`family.infer`)."""
    return bb(p, np.zeros(len(p))).p


def holm_over_contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """Holm's correction over the families of a results table: which contrasts hold for at least one feature.

    A corrected p holds inside its own family. Over several families the smallest corrected p of each is adjusted.

    Parameters
    ----------
    table : DataFrame
        The results schema; tests and effects that share a family count once.

    Returns
    -------
    DataFrame
        One row per family: `family`, `tests`, `effects`, `p_adjust`, `n_family`, `p_smallest` (its smallest corrected
        p), `p_holm`, and `h0` in words.

    Notes
    -----
    H0 of a row: no member of the family differs. A small `p_holm` says that at least one does, not which.

    Examples
    --------
    >>> from neurosae.spec.results import as_results
    >>> rows = dict(test=["a", "a", "b"], effect="x", family=["a", "a", "b"], n_family=[2, 2, 1], p_adjust="maxT",
    ...     p_corr=[0.02, 0.5, 0.03])
    >>> holm_over_contrasts(as_results(rows))[["family", "p_smallest", "p_holm"]].values.tolist()
    [['a', 0.02, 0.04], ['b', 0.03, 0.04]]
    """
    rows, out = table[table["p_corr"].notna()], []
    for (family, adjust), part in rows.groupby(["family", "p_adjust"], sort=False):
        out.append(
            {
                "family": family,
                "tests": ", ".join(part["test"].dropna().unique()),
                "effects": ", ".join(part["effect"].dropna().unique()),
                "p_adjust": adjust,
                "n_family": int(part["n_family"].max()),
                "p_smallest": float(part["p_corr"].min()),
            }
        )
    names = ["family", "tests", "effects", "p_adjust", "n_family", "p_smallest"]
    made = pd.DataFrame(out, columns=pd.Index(names))
    made["p_holm"] = holm(made["p_smallest"].to_numpy(dtype=float))
    return made.assign(h0="no member of the family differs; rejected: at least one does")


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
    "storey": storey,
    "bb": _bb_of_one,
    "none": none,
}
