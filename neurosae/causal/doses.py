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
OUTSIDE = "outside natural range"


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
        A feature was never active there, or the table has other quantiles, or several sites.

    Examples
    --------
    >>> codes = sp.csr_matrix([[0.0, 2.0], [0.0, 4.0], [1.0, 0.0], [3.0, 6.0]])
    >>> natural_doses(codes, [1], quantiles=(0.5, 1.0)).round(2).to_dict("records")
    [{'density': 0.75, 'n_active': 3, 'max': 6.0, 'q50': 4.0, 'q100': 6.0}]
    """
    names = {f"q{100 * q:g}": q for q in quantiles}
    wanted = np.asarray(features, dtype=np.int64)
    if isinstance(reference, pd.DataFrame):
        table, n_tokens = _from_summary(reference, wanted, names), int(reference["n_tokens"].max())
    else:
        n_tokens, n_features = reference.shape  # pyright: ignore[reportGeneralTypeIssues]
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < n_features:
            raise DataError(f"features: the dictionary has 0 to {n_features - 1}, but {wanted.max()} was asked for.")
        columns = sp.csc_matrix(reference[:, wanted])
        rows = [
            _of(columns.data[a:b], n_tokens, names) for a, b in zip(columns.indptr, columns.indptr[1:], strict=False)
        ]
        table = pd.DataFrame(rows, index=pd.Index(wanted, name="feature"))
    if silent := table.index[table["n_active"].eq(0)].tolist():
        raise DataError(
            f"feature {silent[0]} was never active on {n_tokens:,} reference tokens, so it has no natural dose; give "
            "more text, or a dose in activation units."
        )
    return table


def _of(values: np.ndarray, n_tokens: int, names: Mapping[str, float]) -> dict[str, float]:
    active = values[values > 0].astype(float)
    if not len(active):
        return {"density": 0.0, "n_active": 0, "max": np.nan, **dict.fromkeys(names, np.nan)}
    found = np.quantile(active, list(names.values()))
    facts = {"density": len(active) / n_tokens, "n_active": len(active), "max": float(active.max())}
    return facts | dict(zip(names, found.tolist(), strict=True))


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
    >>> codes = sp.csr_matrix([[0.0, 2.0], [1.0, 4.0]])
    >>> outside_natural_range([0.5, 40.0], natural_doses(codes, [0, 1])).tolist()
    [False, True]
    """
    values = np.asarray(doses, dtype=float)
    return (values < 0) | (values > table["max"].to_numpy() * (1 + 1e-6))
