"""Item data with a regression: nuisance that is regressed out of an effect, or a covariate whose slope is the effect.

| effect | model of unit i | relabelled |
|---|---|---|
| within items | d_i = b + z_i'g + e_i, z_i = sum_c w_c z_ic *uncentred* | signs of the residuals of d on z alone |
| between items | y_i = sum_k m_k [i in k] + z_i'g + e_i, b = sum_k w_k m_k | residuals over items, inside strata |
| slope | d_i = a + b x_i + z_i'g + e_i | x over items; residuals where there is nuisance |

Without nuisance the permutation of x is exact; with it the test is that of Freedman and Lane, exact for large n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

from neurosae.errors import DataError, choose
from neurosae.stats.effects import hedges_j
from neurosae.stats.nuisance import Adjustment, Model, adjust, fit_model, orthonormal, residual_squares, slopes
from neurosae.stats.units import ItemData

LEVEL = 0.95


def adjusted(data: ItemData, nuisance: Sequence[str]) -> ItemData:
    """The same data with its regression; unchanged where there is neither nuisance nor a covariate.

    Parameters
    ----------
    data : one effect at one place
    nuisance : numeric columns of the responses' obs, averaged over frames as the responses are

    Raises
    ------
    DataError
        If a column is unknown or has missing values, or the effect cannot be told from it.
    """
    regressor = data.exchange.regressor
    if regressor is None and not nuisance:
        return data
    if data.levels is not None or data.contrasts is not None:
        raise DataError("effects of all levels at once take no nuisance columns; write the effect with weights.")
    Z = {name: _datum(data, name) for name in nuisance}
    if regressor is not None:
        X, fixed, others = regressor.values, _dummies(regressor.groups), None
    elif data.codes is None:
        X, fixed, others = np.ones(data.n), None, None
    else:
        codes, weights = data.grouping
        groups, ones = _dummies(codes), np.ones((data.n, 1))
        rest = orthonormal(np.eye(len(weights)), (weights / np.linalg.norm(weights))[:, None])
        X, fixed, others = groups @ weights / (weights @ weights), ones, groups @ rest
        others = orthonormal(others, orthonormal(ones))
    model, kept, note = adjust(X, Z, fixed=fixed, others=others)
    if regressor is None and not kept:
        return replace(data, dropped="; ".join(filter(None, [note, data.dropped])))
    assert model is not None
    h0 = data.effect.h0 + (f", at equal {' and '.join(kept)}" if kept else "")
    codes = data.codes if regressor is None else np.unique(regressor.values, return_inverse=True)[1]
    return replace(
        data,
        codes=codes,
        effect=replace(data.effect, h0=h0),
        exchange=replace(data.exchange, exact=data.exchange.exact and not kept),
        beside=Adjustment(model, kept, note, regressor is not None),
    )


def _datum(data: ItemData, name: str) -> np.ndarray:
    """A column's value for every unit, made as the unit's datum is; what cancels up to rounding is exactly 0."""
    column = data.obs[choose("nuisance column", name, {str(c): str(c) for c in data.obs.columns})]
    part = data.row_datum * column.to_numpy(dtype=float)
    z = np.bincount(data.row_unit, np.where(data.row_datum != 0, part, 0.0), data.n)
    largest = np.bincount(data.row_unit, np.abs(np.where(data.row_datum != 0, part, 0.0)), data.n)
    return np.where(np.abs(z) <= 1e-12 * largest, 0.0, z)


def _dummies(codes: np.ndarray) -> np.ndarray:
    return (codes[:, None] == np.unique(codes)).astype(float)


def _alone(data: ItemData) -> Model:
    """The regression on the covariate without nuisance."""
    regressor = data.exchange.regressor
    assert regressor is not None
    return fit_model(regressor.values, np.empty((data.n, 0)), fixed=_dummies(regressor.groups))


def explained(data: ItemData, columns: np.ndarray) -> np.ndarray:
    """Columns of which the nuisance leaves nothing to test, bool array."""
    if data.beside is None:
        return np.zeros(len(columns), dtype=bool)
    return residual_squares(sp.csc_matrix(data.D[:, columns]), data.beside.model.Q) == 0


def adjusted_effects(data: ItemData, kept: np.ndarray, plain: pd.DataFrame) -> pd.DataFrame:
    """Effect sizes of the regression in the place of the plain ones, which are kept beside them.

    Estimate and standard error are those of least squares, the interval estimate +- t(df) se. `effsize` is estimate /
    residual standard deviation (d_z within items, d between them), for a slope the partial correlation
    r = t / sqrt(df + t^2). `x_vif` is the variance inflation of the effect by the nuisance.
    """
    assert data.beside is not None
    model, slope = data.beside.model, data.beside.slope
    D = sp.csc_matrix(data.D[:, kept])
    estimate, se = slopes(D, model)
    half = stats.t.isf((1 - LEVEL) / 2, model.df) * se
    t = np.divide(estimate, se, out=np.full(len(kept), np.nan), where=se > 0)
    size = t / np.sqrt(model.df + t**2) if slope else t / model.length
    made = plain.assign(estimate=estimate, se=se, effsize=size, ci_low=estimate - half, ci_high=estimate + half)
    made["x_g"] = np.nan if slope else hedges_j(model.df) * size
    made["x_dof"] = float(model.df)
    if slope:  # these speak of the datum itself, whatever the covariate
        alone = ["x_density_minus", "x_density_diff"] if not data.effect.factors else []
        made = made.drop(columns=["x_odds_ratio", "x_log_ratio", "x_auc", "x_sign_prob", *alone])
    if data.beside.names:
        raw = (plain["estimate"], plain["se"]) if not slope else slopes(D, _alone(data))
        made["x_estimate_unadjusted"], made["x_se_unadjusted"] = raw
        made["x_vif"] = model.vif
    return made
