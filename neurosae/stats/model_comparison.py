r"""How well models fit several data RDMs, and which fits better: the corrected two-factor bootstrap.

Conditions and RDMs (item groups, seeds, models) are both samples. Drawing both at once counts their variances and the
residual one three times; drawing each alone leaves the other out. With v_b, v_r, v_c the variances over draws of both,
of RDMs and of conditions, and n_r, n_c their numbers,

    v = n_r/(n_r-1) v_r + n_c/(n_c-1) v_c - n_r n_c / ((n_r-1) (n_c-1)) (v_b - v_r - v_c),

kept between the larger single variance and v_b. Tests are t tests with min(n_r, n_c) - 1 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.stats
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError
from neurosae.spec.results import as_results, check_results
from neurosae.stats.multiplicity import holm
from neurosae.stats.rdm import noise_ceiling
from neurosae.stats.rdm_compare import CENTRED, compare_rdms
from neurosae.stats.resample import Resampled, resampled

if TYPE_CHECKING:
    from rsatoolbox.inference.result import Result

LEAST_CONDITIONS, LEAST_RDMS = 8, 3
LEVEL = 0.95
LEAST_VARYING = 0.8  # share of the draws in which all models and RDMs must vary


@dataclass(frozen=True)
class Bootstrapped:
    """Fits of models and their uncertainty over conditions and RDMs.

    Attributes
    ----------
    names, compare : of the models; the comparator
    fits : (n_models, n_rdms), of the data themselves
    draws : what was drawn: both, RDMs alone, conditions alone
    covariance : (n_models + 2, n_models + 2), corrected as in the module docstring by `corrected`; lower and upper
        ceiling are the last two columns of every one of `raw` (3, …): both, RDMs, conditions
    ceiling : lower and upper noise ceiling of the data
    n_rdms, n_conditions : sizes of the two samples
    n_left_out : draws in which a model or an RDM did not vary (all conditions of one level, say)
    """

    names: tuple[str, ...]
    compare: str
    fits: np.ndarray
    draws: tuple[Resampled, Resampled, Resampled]
    raw: np.ndarray
    ceiling: tuple[float, float]
    n_rdms: int
    n_conditions: int
    n_left_out: int = 0

    @property
    def df(self) -> int:
        """Degrees of freedom of every t."""
        return min(self.n_rdms, self.n_conditions) - 1

    def variance(self, contrast: np.ndarray) -> float:
        """Corrected variance of a weighted sum of the fits and the two ceilings."""
        both, rdms, conditions = np.einsum("i,kij,j->k", contrast, self.raw, contrast)
        r, c = self.n_rdms / (self.n_rdms - 1), self.n_conditions / (self.n_conditions - 1)
        value = r * rdms + c * conditions - r * c * (both - rdms - conditions)
        return float(min(max(value, r * rdms, c * conditions), both))


def dual_bootstrap(
    data: Any,
    models: Any,
    *,
    n_draws: int = 1000,
    compare: str = "corr_cov",
    seed: int = 0,
    drawn: tuple[np.ndarray, np.ndarray] | None = None,
) -> Bootstrapped:
    """Draw conditions and RDMs with replacement, both and each alone, and fit the models to every draw.

    Parameters
    ----------
    data : rsatoolbox RDMs, or array of shape (n_rdms, n_pairs)
    models : list of rsatoolbox models, or mapping from name to condensed RDM
    n_draws : draws; those with fewer than 3 different conditions or 2 different RDMs are drawn again
    compare : comparator
    seed : int
    drawn : multiplicities of conditions (n_draws, n_conditions) and RDMs (n_draws, n_rdms), instead of drawing

    Raises
    ------
    DataError
        Fewer than 8 conditions or 3 RDMs.

    References
    ----------
    Schütt, Kipnis, Diedrichsen & Kriegeskorte (2023), eLife 12:e82566; rsatoolbox `eval_dual_bootstrap`.
    """
    vectors, named = _vectors(data), _models(models)
    n_conditions = round((1 + np.sqrt(1 + 8 * vectors.shape[1])) / 2)
    if n_conditions < LEAST_CONDITIONS:
        raise DataError(
            f"a bootstrap over {n_conditions} conditions draws hardly any different samples; it needs at least "
            f"{LEAST_CONDITIONS}. With few conditions use item flips (p_from: item_flips) for factorial models."
        )
    if len(vectors) < LEAST_RDMS:
        raise DataError(
            f"a two-factor bootstrap needs at least {LEAST_RDMS} data RDMs (item groups, seeds, models), not "
            f"{len(vectors)}; with one RDM permute condition labels (p_from: condition_labels)."
        )
    if drawn is None:
        rng = np.random.default_rng([seed, 7])
        drawn = _draws(rng, n_draws, n_conditions, least=3), _draws(rng, n_draws, len(vectors), least=2)
    W, R = drawn
    table = np.stack(list(named.values()))
    with threadpool_limits(1, user_api="blas"):
        both, conditions = resampled(vectors, table, conditions=W, rdms=[R, np.ones_like(R)], compare=compare)
        once = np.ones((1, n_conditions))
        (rdms,) = resampled(vectors, table, conditions=once, rdms=[R], compare=compare)
    varies = np.all([np.isfinite(np.column_stack(one)).all(axis=1) for one in (both, rdms, conditions)], axis=0)
    if varies.mean() < LEAST_VARYING:
        raise DataError(
            f"in {1 - varies.mean():.0%} of the draws a model or RDM does not vary; leave out models whose distances "
            "hardly differ, or take more conditions."
        )
    draws = tuple(Resampled(*(part[varies] for part in one)) for one in (both, rdms, conditions))
    raw = np.stack([_covariance(one) for one in draws])
    fits = np.array([[compare_rdms(v, m, compare) for v in vectors] for m in table])
    return Bootstrapped(
        tuple(named),
        compare,
        fits,
        draws,  # pyright: ignore
        raw,
        noise_ceiling(vectors, compare),
        len(vectors),
        n_conditions,
        int((~varies).sum()),
    )


def compare_models(
    data: Any,
    models: Any,
    *,
    n_draws: int = 1000,
    compare: str = "corr_cov",
    margin: float | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Which models fit several RDMs, and which fit better than others.

    Parameters
    ----------
    data : rsatoolbox RDMs, or array of shape (n_rdms, n_pairs); RDMs of item groups, seeds or language models
    models : list of rsatoolbox models, or mapping from name to condensed RDM
    n_draws, compare, seed : as in `dual_bootstrap`
    margin : optional
        The smallest difference between two fits that would matter: equivalence is then tested by two one-sided t.

    Returns
    -------
    DataFrame
        The results schema: a row per model (`value` its mean fit; p one-sided, Holm over models), with the distance to
        the lower noise ceiling (`x_to_ceiling`, `x_p_ceiling`), and a row per pair (`effect` "a - b", two-sided p,
        Holm over pairs, `x_p_equivalent`).

    Notes
    -----
    H0 of a model: its fit in the population of conditions and RDMs is 0. Cosines of distances have no such zero (two
    unrelated RDMs of positive distances agree), so with `cosine` and `cosine_cov` models have no p, only differences.
    Squared fits are never tested. Reliability counts: RDMs whose lower ceiling is not above 0 rank no models.

    References
    ----------
    Schütt, Kipnis, Diedrichsen & Kriegeskorte (2023), eLife 12:e82566. Lakens (2017), Soc. Psychol. Pers. Sci. 8:355.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth, other = rng.random((2, 66))
    >>> data = truth + 0.3 * rng.standard_normal((8, 66))
    >>> table = compare_models(data, {"truth": truth, "other": other}, n_draws=200, seed=1)
    >>> table["effect"].tolist(), (table["p_corr"] < 0.01).tolist()
    (['truth', 'other', 'truth - other'], [True, False, True])
    """
    return model_rows(dual_bootstrap(data, models, n_draws=n_draws, compare=compare, seed=seed), margin=margin)


def model_rows(found: Bootstrapped, *, margin: float | None = None) -> pd.DataFrame:
    """The table of `compare_models`."""
    m = len(found.names)
    fit = found.fits.mean(axis=1)
    ranked = bool(found.ceiling[0] > 0)
    rows = [_model_row(found, k, fit=fit) for k in range(m)]
    pairs = [_pair_row(found, (i, j), fit=fit, margin=margin, ranked=ranked) for i, j in combinations(range(m), 2)]
    for group, family in ((rows, "models"), (pairs, "pairs of models")):
        tested = [row for row in group if np.isfinite(row.get("p_unc", np.nan))]
        for row, p in zip(tested, holm(np.array([row["p_unc"] for row in tested])) if tested else [], strict=True):
            row |= {"p_corr": float(p), "p_adjust": "holm", "family": f"all {family}", "n_family": len(tested)}
    frame = pd.DataFrame(rows + pairs)
    return check_results(as_results({name: frame[name] for name in frame.columns}))


def _common(found: Bootstrapped, name: str) -> dict[str, Any]:
    return {
        "test": "compare_models", "kind": "compare_models", "effect": name, "stat": found.compare,
        "unit": "RDM x condition", "n_units": found.n_rdms, "dof": float(found.df), "ci_level": LEVEL,
        "n_perm": len(found.draws[0].fits), "p_method": "bootstrap", "x_n_conditions": found.n_conditions,
        "x_ceiling_low": found.ceiling[0], "x_ceiling_high": found.ceiling[1],
    }  # fmt: skip


def _interval(value: float, se: float, df: int) -> dict[str, float]:
    half = float(scipy.stats.t.isf((1 - LEVEL) / 2, df)) * se
    return {"value": value, "se": se, "ci_low": value - half, "ci_high": value + half}


def _model_row(found: Bootstrapped, k: int, *, fit: np.ndarray) -> dict[str, Any]:
    row, m = _common(found, found.names[k]), len(fit)
    if not np.isfinite(fit[k]):
        return _common(found, found.names[k]) | _without("The model has only equal distances, so it fits nothing.")
    pick = np.eye(m + 2)[k]
    se = float(np.sqrt(found.variance(pick)))
    to_ceiling = pick - np.eye(m + 2)[m]
    gap, gap_se = fit[k] - found.ceiling[0], np.sqrt(found.variance(to_ceiling))
    row |= _interval(float(fit[k]), se, found.df) | {
        "status": "ok", "x_to_ceiling": gap, "x_p_ceiling": 2 * scipy.stats.t.sf(abs(gap) / gap_se, found.df),
    }  # fmt: skip
    if found.compare not in CENTRED:
        zero = f"no p: {found.compare} of unrelated distances is not 0; differences between models are tested"
        return row | {"p_method": "none", "h0": "none: the fit is described, not tested", "note": zero}
    return row | {
        "p_unc": _positive(scipy.stats.t.sf(fit[k] / se, found.df)), "alternative": "greater",  # pyright: ignore
        "h0": f"the model {found.names[k]} is unrelated to the geometry",
    }  # fmt: skip


def _positive(p: float) -> float:
    return float(max(p, np.finfo(float).tiny))


def _without(why: str) -> dict[str, Any]:
    return {"status": "untestable", "note": why, "p_method": "none", "dof": np.nan, "ci_level": np.nan}


def _pair_row(
    found: Bootstrapped, pair: tuple[int, int], *, fit: np.ndarray, margin: float | None, ranked: bool
) -> dict[str, Any]:
    (i, j), m = pair, len(fit)
    row = _common(found, f"{found.names[i]} - {found.names[j]}")
    row["stat"] = f"difference of {found.compare}"
    if not ranked:
        return row | _without(f"The lower noise ceiling is {found.ceiling[0]:.2f}: models are not ranked.")
    contrast = np.eye(m + 2)[i] - np.eye(m + 2)[j]
    value, se = float(fit[i] - fit[j]), float(np.sqrt(found.variance(contrast)))
    if not np.isfinite(value) or se <= 1e-12:
        return row | _without("The two models fit alike in every draw, or one fits nothing.")
    row |= _interval(value, se, found.df) | {
        "p_unc": _positive(2 * scipy.stats.t.sf(abs(value) / se, found.df)),  # pyright: ignore
        "alternative": "two-sided",
        "status": "ok", "h0": f"{found.names[i]} and {found.names[j]} fit equally well",
    }  # fmt: skip
    if margin is not None:
        sides = scipy.stats.t.sf([(margin + value) / se, (margin - value) / se], found.df)
        row |= {"x_margin": margin, "x_p_equivalent": _positive(float(sides.max()))}
    return row


def as_result(found: Bootstrapped, models: Any) -> Result:
    """The bootstrap as an rsatoolbox Result, for its summaries and plots.

    Parameters
    ----------
    models : the rsatoolbox models that were fitted
    """
    from rsatoolbox.inference.result import Result

    evaluations = np.stack([one.fits for one in found.draws], axis=-1)[:, :, None, None, :]
    ceilings = np.stack([np.stack([one.lower, one.upper]) for one in found.draws], axis=-1)[:, :, None, :]
    return Result(
        list(models), evaluations, method=found.compare, cv_method="dual_bootstrap", noise_ceiling=ceilings,
        variances=found.raw.copy(), dof=found.df, n_rdm=found.n_rdms, n_pattern=found.n_conditions,
    )  # fmt: skip


def _covariance(one: Resampled) -> np.ndarray:
    """Covariance of fits and ceilings over the draws."""
    table = np.column_stack([one.fits, one.lower, one.upper])
    table = table - table.mean(axis=0)
    return table.T @ table / (len(table) - 1)


def _draws(rng: np.random.Generator, n_draws: int, n: int, *, least: int) -> np.ndarray:
    """Multiplicities (n_draws, n) of n things drawn n times, at least so many different ones."""
    out = rng.multinomial(n, np.full(n, 1 / n), size=n_draws)
    while (few := np.flatnonzero((out > 0).sum(axis=1) < least)).size:
        out[few] = rng.multinomial(n, np.full(n, 1 / n), size=len(few))
    return out


def _vectors(data: Any) -> np.ndarray:
    made = data.get_vectors() if hasattr(data, "get_vectors") else data
    vectors = np.atleast_2d(np.asarray(made, dtype=float))
    if not np.isfinite(vectors).all():
        raise DataError("an RDM has undefined distances (a condition without activity); leave that condition out.")
    return vectors


def _models(models: Any) -> dict[str, np.ndarray]:
    """Names and condensed RDMs of models given as a mapping or as rsatoolbox objects."""
    if isinstance(models, dict):
        return {str(name): np.asarray(v, dtype=float).ravel() for name, v in models.items()}
    given: Sequence[Any] = models if isinstance(models, list | tuple) else [models]
    return {str(one.name): np.asarray(one.predict_rdm().get_vectors(), dtype=float)[0] for one in given}
