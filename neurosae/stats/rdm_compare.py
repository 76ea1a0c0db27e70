r"""How well two RDMs agree, and how several model RDMs share what they explain.

Every comparator but tau-a is an ordinary inner product of embedded RDMs (`embed`), so that fits, partial fits, joint
fits, bootstraps and permutations of conditions are all linear algebra. Definitions are those of rsatoolbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.stats

from neurosae.errors import DataError, choose

ROUNDING = 1e-12  # relative size below which a float64 sum is zero
COMPARATORS = ("cosine_cov", "corr_cov", "cosine", "corr", "rho-a", "spearman", "tau-a")
CENTRED = ("corr", "corr_cov", "rho-a", "spearman")
"""Comparators whose value is 0 for unrelated RDMs, because the mean distance is subtracted (or ranks are taken)."""
RANKS = ("rho-a", "spearman", "tau-a")
MOST_PARTS = 5  # models whose explained variance is divided among all subsets


def ranked_rdm(rdm: np.ndarray) -> np.ndarray:
    """Mid-ranks of the distances.

    Examples
    --------
    >>> ranked_rdm(np.array([0.5, 0.1, 0.5]))
    array([2.5, 1. , 2.5])
    """
    return scipy.stats.rankdata(rdm)


def embed(rdm: np.ndarray, compare: str) -> np.ndarray:
    """Map a condensed RDM into the space in which the comparator is an ordinary inner product.

    `corr*`, `rho-a` and `spearman` subtract the mean (of distances or mid-ranks). `*_cov` whitens with the covariance
    that distances have because they share conditions: -1/2 J D J, the double-centred kernel, whose Frobenius product
    is the whitened inner product (linear CKA). tau-a counts pairs of distances and has no such space.

    Examples
    --------
    >>> embed(np.array([1.0, 2.0, 3.0]), "corr")
    array([-1.,  0.,  1.])
    """
    choose("comparator", compare, dict.fromkeys(COMPARATORS, True))
    if compare == "tau-a":
        raise DataError("tau-a has no joint or partial fit and no permutation; use compare: rho-a for rank claims.")
    vector = ranked_rdm(rdm) if compare in RANKS else np.asarray(rdm, dtype=float)
    if compare in CENTRED:
        vector = vector - vector.mean()
    if not compare.endswith("_cov"):
        return vector
    square = condensed_to_square(vector)
    row = square.mean(axis=0)
    return (-0.5 * (square - row[:, None] - row[None, :] + row.mean())).ravel()


def compare_rdms(a: np.ndarray, b: np.ndarray, compare: str = "cosine_cov") -> float:
    """Agreement of two condensed RDMs as rsatoolbox defines it; NaN where one of them has no variation to agree in.

    Examples
    --------
    >>> round(compare_rdms(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0]), "cosine_cov"), 12)
    1.0
    >>> round(compare_rdms(np.array([1.0, 2.0, 4.0, 3.0]), np.array([2.0, 4.0, 4.0, 5.0]), "tau-a"), 12)
    0.5
    """
    if compare == "tau-a":
        return _tau_a(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    x, y = embed(a, compare), embed(b, compare)
    lengths = [np.sqrt(np.einsum("i,i->", v, v)) for v in (x, y)]
    largest = [np.abs(v).max() for v in (a, b)]
    if not np.isfinite(lengths).all() or any(
        n <= ROUNDING * max(top, 1e-300) for n, top in zip(lengths, largest, strict=True)
    ):
        return float("nan")
    n = len(a)
    scale = (n**3 - n) / 12 if compare == "rho-a" else lengths[0] * lengths[1]
    return float(np.einsum("i,i->", x, y) / scale)


def _tau_a(a: np.ndarray, b: np.ndarray) -> float:
    """(concordant - discordant) / all pairs, from scipy's tau-b, which divides by the untied pairs instead."""
    total = len(a) * (len(a) - 1) / 2
    untied = [total - sum(n * (n - 1) / 2 for n in np.unique(v, return_counts=True)[1]) for v in (a, b)]
    if not (np.isfinite(a).all() and np.isfinite(b).all() and min(untied) > 0):
        return float("nan")
    tau_b = scipy.stats.kendalltau(a, b, method="asymptotic").statistic  # pyright: ignore
    return float(np.clip(tau_b * np.sqrt(untied[0]) * np.sqrt(untied[1]) / total, -1, 1))


def condensed_to_square(vector: np.ndarray) -> np.ndarray:
    """Symmetric matrix with zero diagonal from its upper triangle, row by row.

    Examples
    --------
    >>> condensed_to_square(np.array([1.0, 2.0, 3.0]))[0]
    array([0., 1., 2.])
    """
    k = round((1 + np.sqrt(1 + 8 * len(vector))) / 2)
    square = np.zeros((k, k))
    square[np.triu_indices(k, 1)] = vector
    return square + square.T


def partial_fit(data: np.ndarray, models: np.ndarray, compare: str) -> tuple[np.ndarray, np.ndarray, float]:
    r"""Regress the data RDM on all models at once, with non-negative weights, in the space of the comparator.

        w = argmin_{w >= 0} |x - sum_k w_k m_k|^2,   share = 1 - |residual|^2 / |x|^2

    Parameters
    ----------
    data : array of shape (n_pairs,)
    models : array of shape (n_models, n_pairs), nuisance models among them

    Returns
    -------
    weights : array of shape (n_models,)
        In units of the data per largest distance of the model. NaN where the models are linearly dependent.
    unique : array of shape (n_models,)
        Share of |x|^2 that is lost without the model.
    share : float
        Share of |x|^2 that all models explain together.

    Examples
    --------
    >>> models = np.array([[0.0, 1, 1, 1, 1, 0], [1.0, 0, 1, 1, 0, 1]])
    >>> weights, unique, share = partial_fit(2 * models[0] + models[1], models, "cosine_cov")
    >>> weights.round(9), round(share, 9)
    (array([2., 1.]), 1.0)
    """
    top = np.abs(models).max(axis=1)
    x = embed(data, compare)
    columns = np.stack([embed(m / t if t > 0 else m, compare) for m, t in zip(models, top, strict=True)], axis=1)
    scale = np.sqrt((x**2).sum())
    everyone = np.arange(len(models))
    weights, rest = scipy.optimize.nnls(columns, x)
    unique = np.array([_residual(columns[:, everyone != k], x) - rest**2 for k in everyone]) / scale**2
    singular = np.linalg.svd(columns, compute_uv=False)
    if len(singular) < len(models) or singular[-1] <= 1e-9 * singular[0]:
        weights = np.full(len(models), np.nan)
    return weights, np.maximum(unique, 0.0), float(1 - (rest / scale) ** 2)


def _residual(columns: np.ndarray, x: np.ndarray) -> float:
    return float(scipy.optimize.nnls(columns, x)[1] ** 2) if columns.shape[1] else float((x**2).sum())


def partial_agreement(data: np.ndarray, model: np.ndarray, nuisance: np.ndarray, *, compare: str) -> float:
    r"""Agreement of what a model and the data have besides the nuisance models (partial RSA).

    With x, m the embedded RDMs and P the projection on the embedded nuisance models,

        cos((I - P) x, (I - P) m),

    for `corr` the partial correlation of the two RDMs. NaN where nuisance explains the model completely.

    Parameters
    ----------
    data, model : arrays of shape (n_pairs,)
    nuisance : array of shape (n_nuisance, n_pairs)

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z, a, b = rng.random((3, 45))
    >>> a, b = a + 9 * z, b + 9 * z
    >>> compare_rdms(a, b, "corr") > 0.9, abs(partial_agreement(a, b, z[None], compare="corr")) < 0.3
    (True, True)
    """
    x, m = embed(data, compare), embed(model, compare)
    if len(nuisance):
        Z = np.stack([embed(v, compare) for v in nuisance], axis=1)
        x, m = (v - Z @ np.linalg.lstsq(Z, v, rcond=1e-10)[0] for v in (x, m))
    lengths = np.sqrt([x @ x, m @ m])
    whole = np.sqrt([(embed(v, compare) ** 2).sum() for v in (data, model)])
    if not np.isfinite(lengths).all() or (lengths <= 1e-9 * whole).any():
        return float("nan")
    return float(x @ m / lengths.prod())


def partition(data: np.ndarray, models: np.ndarray, compare: str, *, names: Sequence[str]) -> pd.DataFrame:
    """Divide what all models explain together into unique and shared parts (commonality analysis).

    With R2(S) the share of |x|^2 that the models of a set S explain jointly (non-negative weights), the part of a set T
    is what its models, and no others, have in common: the signed sum over subsets that inclusion and exclusion gives.
    Parts add up to R2 of all models; a negative part means that models explain more together than apart.

    Parameters
    ----------
    data : array of shape (n_pairs,)
    models : array of shape (n_models, n_pairs), at most 5
    names : of the models

    Returns
    -------
    DataFrame
        `models` (joined by " & "), `n_models`, `share` (R2 of the set), `part`. Descriptive: parts are never tested,
        because a squared agreement is above 0 whatever the data are.

    Examples
    --------
    >>> models = np.array([[0.0, 1, 1, 1, 1, 0], [1.0, 0, 1, 1, 0, 1]])
    >>> table = partition(2 * models[0] + models[1], models, "cosine_cov", names=["a", "b"])
    >>> table[["models", "part"]].round(6).values.tolist()
    [['a', 0.8], ['b', 0.2], ['a & b', 0.0]]
    """
    if len(models) > MOST_PARTS:
        raise DataError(f"{len(models)} models have {2 ** len(models) - 1} parts; divide at most {MOST_PARTS} of them.")
    x = embed(data, compare)
    columns = np.stack([embed(m / max(np.abs(m).max(), 1e-300), compare) for m in models], axis=1)
    everyone = range(len(models))
    sets = [s for n in range(1, len(models) + 1) for s in combinations(everyone, n)]
    total = float((x**2).sum())
    share = {(): 0.0} | {s: 1 - _residual(columns[:, list(s)], x) / total for s in sets}
    rows = []
    for one in sets:
        rest = tuple(k for k in everyone if k not in one)
        terms = [(-1) ** (len(sub) + 1) * share[tuple(sorted((*rest, *sub)))]
                 for n in range(len(one) + 1) for sub in combinations(one, n)]  # fmt: skip
        said = " & ".join(names[k] for k in one)
        rows.append({"models": said, "n_models": len(one), "share": share[one], "part": float(sum(terms))})
    return pd.DataFrame(rows)
