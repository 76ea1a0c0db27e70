"""Parts of a test that were relabelled alike -> one table, p corrected by the maximum over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.errors import DataError
from neurosae.spec.results import as_results, corrected_by_maximum


def in_deviations(null: np.ndarray) -> np.ndarray:
    """Values under relabelling (n, ...) around their mean in standard deviations; 0 where no relabelling moves them.

    Both are the same under every relabelling, so statistics of other scales can share one maximum.

    Examples
    --------
    >>> in_deviations(np.array([[3.0, 5.0], [1.0, 5.0]])).tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    centred = null - null.mean(axis=0)
    spread = np.sqrt((centred**2).mean(axis=0))
    moves = spread > 1e-9 * np.abs(null).max(axis=0, initial=1e-300)
    return np.where(moves, centred / np.where(moves, spread, 1.0), 0.0)


def joined(
    parts: Sequence[pd.DataFrame | Mapping[str, Any]],
    tops: Sequence[np.ndarray],
    *,
    over: str,
    about: Mapping[str, Any] | None = None,
    compared: str = "value",
    tolerance: float = 1e-6,
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Join tables (or rows) of one family, and correct the p of their tested rows by the maximum over all of them.

    Parameters
    ----------
    parts : tables of rows, or single rows; a row with a `p_unc` was tested
    tops : of every tested part its maximum per relabelling (n_relabellings,), in units of the compared column (of its
        size, where the alternative is two-sided)
    over : what the maximum runs over, in words
    about : columns that all rows share
    compared : the column that is compared with the maxima
    tolerance : see `spec.results.counted_p`

    Returns
    -------
    table : of the results schema
    null_max : float32 (n_relabellings,), maximum of the family; None where nothing was tested

    Raises
    ------
    DataError
        Parts with unequal numbers of relabellings, which therefore have no common maximum.

    Examples
    --------
    >>> rows = [{"set": "a", "value": 3.0, "p_unc": 0.5}, {"set": "b", "value": 2.0, "p_unc": 0.5}, {"set": "c"}]
    >>> table, null = joined(rows, [np.array([3.0, 1.0]), np.array([2.0, 2.5])], over="sets")
    >>> table["p_corr"].tolist()[:2], table["family"][0], null.tolist()
    ([0.5, 1.0], 'maximum over sets of this test', [3.0, 2.5])
    """
    if len({len(top) for top in tops}) > 1:
        raise DataError(
            "effects, sites or regions have other items or other numbers of relabellings, so they share no maximum; "
            "test them in blocks of their own."
        )
    frames = [one if isinstance(one, pd.DataFrame) else pd.DataFrame([one]) for one in parts]
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    table = pd.concat([f.dropna(axis=1, how="all") for f in frames if len(f)], ignore_index=True)
    columns = {name: table[name] if name in table else np.full(len(table), np.nan) for name in names}
    table = as_results({**columns, **(about or {})})
    if not tops:
        return table, None
    null = np.max(tops, axis=0)
    size = table[compared].where(table["p_unc"].notna()).to_numpy(dtype=float, na_value=np.nan)
    both = table["alternative"].eq("two-sided").fillna(False).to_numpy(dtype=bool)
    size = np.where(both, np.abs(size), size)
    return corrected_by_maximum(table, null, size, over=over, tolerance=tolerance), null.astype(np.float32)
