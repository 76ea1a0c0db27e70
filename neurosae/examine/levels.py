"""Tuning of examined features: mean and density at every level of every factor, with bands over items.

`examine.describe.tuning` does the same for stored responses of one region, with d', AUROC and cells of several factors.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

N_BOOTSTRAP = 1000
FEW = "no interval: fewer than two items."


def level_means(values: np.ndarray, levels: pd.DataFrame, items: Sequence[Any], *, seed: int = 0) -> pd.DataFrame:
    """Mean and density of one feature at every level of every factor, items being the units.

    Parameters
    ----------
    values : (n_texts,), one activation per text
    levels : one row per text, one column per factor
    items : which item each text belongs to
    seed : of the draws of items

    Returns
    -------
    DataFrame
        `factor level n_items n_texts mean mean_low mean_high density density_low density_high note`. The texts of an
        item at a level are averaged first, so the other factors and the frames are averaged over; density is the
        share of texts with a value above 0. 95 % percentile intervals from 1,000 draws of whole items.

    Examples
    --------
    >>> found = level_means(np.array([0.0, 2, 0, 4]), pd.DataFrame({"number": ["sg", "pl"] * 2}), ["a", "a", "b", "b"])
    >>> found[["level", "n_items", "mean", "density"]].values.tolist()
    [['sg', 2, 0.0, 0.0], ['pl', 2, 3.0, 1.0]]
    """
    table = pd.DataFrame({"item": pd.factorize(np.asarray(items, dtype=object))[0], "mean": values,
                          "density": np.asarray(values) > 0})  # fmt: skip
    rows = []
    for factor in levels.columns:
        column = levels[factor].astype(str).to_numpy()
        for level in level_names(levels[factor]):
            here = table[column == level]
            rows.append({"factor": str(factor), "level": level, **_level(here, seed=seed)})
    return pd.DataFrame(rows)


def _level(here: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    """Means over items and their bands; of a level without texts there is nothing but the count."""
    by_item = here.astype(float).groupby("item")[["mean", "density"]].mean().to_numpy()
    n, out = len(by_item), {"n_items": len(by_item), "n_texts": len(here)}
    drawn = None
    if n > 1:  # the same draws for every feature, so that bands of one level can be compared
        weight = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAP) / n
        drawn = np.quantile(weight @ by_item, [0.025, 0.975], axis=0)
    for k, name in enumerate(("mean", "density")):
        low, high = (np.nan, np.nan) if drawn is None else drawn[:, k]
        out |= {name: by_item[:, k].mean() if n else np.nan, f"{name}_low": low, f"{name}_high": high}
    return out | {"note": None if drawn is not None else FEW}


def level_names(column: pd.Series) -> list[str]:
    """Levels in the order of the design, else as they come."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [str(level) for level in column.cat.categories]
    return [str(level) for level in column.drop_duplicates()]
