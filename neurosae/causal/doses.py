"""Doses in natural units: how strong a feature is on running text when it is active.

A clamp to ten times what a feature ever reaches shows what the model does outside the range in which it was trained.
Doses are therefore quantiles of the active values on reference text, and a dose beyond the largest value is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError

QUANTILES = (0.5, 0.9, 0.99)
FEWEST = 5  # active reference tokens from which a feature has natural doses and a density
OUTSIDE = "outside natural range"


def active_quantiles(active: sp.csc_matrix, features: Sequence[int], quantiles: Sequence[float]) -> np.ndarray:
    """Quantiles of the values above 0 of some columns; nan where there are fewer than 5 of them.

    All doses of the library are made here.

    Parameters
    ----------
    active : CSC (n_tokens, n_features)
    features, quantiles : which columns, and which quantiles between 0 and 1

    Returns
    -------
    float64 array (n_features, n_quantiles)

    Examples
    --------
    >>> active_quantiles(sp.csc_matrix([[0.0, 2.0]] * 4 + [[3.0, 6.0]]), [0, 1], [0.0, 1.0]).tolist()
    [[nan, nan], [2.0, 6.0]]
    """
    out = np.full((len(features), len(quantiles)), np.nan)
    for k, j in enumerate(features):
        values = active.data[active.indptr[j] : active.indptr[j + 1]]
        values = values[values > 0].astype(float)
        if len(values) >= FEWEST:
            out[k] = np.quantile(values, quantiles)
    return out


def natural_doses(
    reference: sp.csr_matrix | pd.DataFrame, features: Sequence[int], *, quantiles: Sequence[float] = QUANTILES
) -> pd.DataFrame:
    """Quantiles of the active values of some features on reference text.

    Parameters
    ----------
    reference : CSR (n_tokens, n_features) of activations on running text (`reference_activations`), whose quantiles are
        exact; or the table of `feature_summary` for one site, which holds them to within a bin of 6 %
    features : which features
    quantiles : of the values above 0

    Returns
    -------
    DataFrame
        Index `feature`; `density` (share of tokens on which it is active), `n_active`, `max`, and `q50 q90 q99` …, in
        activation units.

    Raises
    ------
    DataError
        A feature was active on fewer than 5 tokens there, or the table has other quantiles, or several sites.

    Examples
    --------
    >>> codes = sp.csr_matrix([[0.0, 2.0], [0.0, 4.0], [1.0, 0.0], [3.0, 6.0], [0.0, 2.0], [0.0, 6.0], [0.0, 0.0]])
    >>> natural_doses(codes, [1], quantiles=(0.5, 1.0)).round(2).to_dict("records")
    [{'density': 0.71, 'n_active': 5, 'max': 6.0, 'q50': 4.0, 'q100': 6.0}]
    """
    names = {f"q{100 * q:g}": q for q in quantiles}
    wanted = np.asarray(features, dtype=np.int64)
    if isinstance(reference, pd.DataFrame):
        table, n_tokens = _from_summary(reference, wanted, names), int(reference["n_tokens"].max())
    else:
        n_tokens, n_features = reference.shape  # pyright: ignore[reportGeneralTypeIssues]
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < n_features:
            raise DataError(f"features: the dictionary has 0 to {n_features - 1}, but {wanted.max()} was asked for.")
        table = _of(sp.csc_matrix(reference[:, wanted]), n_tokens, names)
        table.index = pd.Index(wanted, name="feature")
    if rare := table.index[table["n_active"] < FEWEST].tolist():
        n = int(table["n_active"].to_numpy()[table.index == rare[0]][0])
        how = f"active on {n} of" if n else "never active on"
        raise DataError(
            f"feature {rare[0]} is {how} {n_tokens:,} reference tokens; a natural dose needs {FEWEST}. Give more "
            "text, or a dose in activation units."
        )
    return table


def _of(columns: sp.csc_matrix, n_tokens: int, names: Mapping[str, float]) -> pd.DataFrame:
    """The facts of every column."""
    every = range(columns.shape[1])  # pyright: ignore[reportOptionalSubscript]
    found = active_quantiles(columns, every, [*names.values(), 1.0])
    parts = [columns.data[a:b] for a, b in zip(columns.indptr, columns.indptr[1:], strict=False)]
    n_active = np.array([int((part > 0).sum()) for part in parts])
    facts = {"density": n_active / n_tokens, "n_active": n_active, "max": found[:, -1]}
    return pd.DataFrame(facts | dict(zip(names, found.T, strict=False)))


def _from_summary(summary: pd.DataFrame, wanted: np.ndarray, names: Mapping[str, float]) -> pd.DataFrame:
    if missing := [name for name in ("feature", "density", "n_active", "max", *names) if name not in summary]:
        raise DataError(f"the table of activity has no column {missing[0]}; make it with feature_summary(quantiles=…).")
    if "site" in summary and summary["site"].nunique() > 1:
        raise DataError(f"the table of activity holds {summary['site'].nunique()} sites; give the rows of one.")
    table = summary.set_index("feature")[["density", "n_active", "max", *names]]
    if lost := [int(j) for j in wanted if j not in table.index]:
        raise DataError(f"the table of activity has no feature {lost[0]}.")
    return table.loc[wanted]


def outside_natural_range(doses: np.ndarray | Sequence[float], table: pd.DataFrame) -> np.ndarray:
    """Which doses a feature never reaches by itself: below 0, or above its largest value on reference text.

    Parameters
    ----------
    doses : array of shape (n_features,) or (…, n_features), what the features are set to, in activation units
    table : of `natural_doses`, one row per feature in the same order

    Returns
    -------
    bool array of the shape of `doses`

    Examples
    --------
    >>> codes = sp.csr_matrix([[1.0, 2.0]] * 4 + [[1.0, 4.0]])
    >>> outside_natural_range([0.5, 40.0], natural_doses(codes, [0, 1])).tolist()
    [False, True]
    """
    values = np.asarray(doses, dtype=float)
    return (values < 0) | (values > table["max"].to_numpy() * (1 + 1e-6))
