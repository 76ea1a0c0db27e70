r"""Conjunction: does a feature respond to all of several effects? The minimum statistic.

p = max_k p_k over the effects. Over features the weakest statistic is compared with the maximum over features **and**
effects. Comparing it with relabelled minima would test another null, that no effect is present, and one strong effect
alone would reject it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.errors import DataError
from neurosae.spec.blocks import Inference
from neurosae.spec.results import Tested, as_results, check_results, directed
from neurosae.stats.asked import Asked, named_effects, responses_by_site, settings_of
from neurosae.stats.contrast import run_family
from neurosae.stats.multiplicity import CORRECTIONS, bb
from neurosae.stats.units import AnnData

PLACES = ["site", "region", "position"]


def conjunction(
    responses: AnnData | Mapping[str, AnnData],
    effects: Mapping[str, Mapping[str, Any]],
    *,
    region: str | Sequence[str],
    split: str = "test",
    inference: Mapping[str, Any] | Inference | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test every feature for responding to all of several effects: the minimum statistic.

        p = max_k p_k,   value = the statistic of the weakest effect, argmin_k |z_k|.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effects : {name: effect}, two or more
    region : name or names
    split : "test" or "localizer"
    inference : keys of the `inference:` section
    seed : int

    Returns
    -------
    DataFrame
        The results schema, one row per feature that was tested for every effect. `estimate`, `effsize` and the
        interval are those of the weakest effect, named in `x_weakest`; `x_same_sign` says whether all effects have the
        same direction, NA for statistics without one.

    Notes
    -----
    H0 of a feature: at least one of the effects is absent; its rejection claims that **all** are present. With max-T
    the weakest statistic is compared with the largest over features and effects, so the family-wise error is held
    whichever effect is absent in which feature. A conjunction of effects is not their interaction.

    References
    ----------
    Nichols et al. (2005), Valid conjunction inference with the minimum statistic, NeuroImage 25:653.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(24), n_features=40, effects={"number": 3}, density=0.4, shift=5.0, seed=1)
    >>> more, less = {"number": {"pl": 1, "sg": -1}}, {"number": {"pl": -1, "sg": 1}}
    >>> found = conjunction(fake, {"more": more, "less": less}, region="noun", seed=1)
    >>> found[found.p_corr <= 0.05].feature.tolist(), bool(found.x_same_sign.iloc[0])
    ([0, 1, 2], False)
    """
    regions = (region,) if isinstance(region, str) else tuple(region)
    asked = Asked("conjunction", named_effects(effects), regions, split)
    return infer_conjunction(responses_by_site(responses), asked, settings_of(inference), seed=seed).table


def infer_conjunction(sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, seed: int) -> Tested:
    """The conjunction of all effects asked for, at every site, region and position."""
    if len(asked.effects) < 2:
        raise DataError("a conjunction needs two effects or more; use contrast for one.")
    made = run_family(sites, asked, inference, seed=seed, top=0)
    parts = [_weakest(rows, list(asked.effects), inference=inference) for _, rows in made.table.groupby(PLACES)]
    table = stacked(parts)
    tested = table["p_unc"].notna().to_numpy()
    if CORRECTIONS[inference.correction] is not None:
        p = table["p_unc"].to_numpy(dtype=float)
        corrected = CORRECTIONS[inference.correction](p)  # pyright: ignore[reportOptionalCall]
        if inference.correction == "bb":
            corrected = bb(p, table["site"].to_numpy()).p
        table["p_corr"] = corrected
        table["n_family"] = pd.array([int(tested.sum())] * len(table), dtype="Int64")
    table["family"] = table["family"].str.replace("effects ", "all of the effects ", regex=False)
    sizes = {site: adata.n_vars for site, adata in sites.items()}
    return Tested(check_results(table, sizes), made.null_max, {})


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One results table from several, each with columns of its own."""
    known = [table.dropna(axis=1, how="all") for table in tables if len(table)]
    if not known:
        return as_results({}, n_rows=0)
    whole = pd.concat(known, ignore_index=True)
    return as_results({str(name): whole[name] for name in whole})


def _weakest(rows: pd.DataFrame, effects: Sequence[str], *, inference: Inference) -> pd.DataFrame:
    """Rows of one place: a feature is tested where it was tested for every effect."""
    name, n_all = " & ".join(effects), int(rows.loc[rows["effect"] == effects[0], "n_features"].sum())
    numbers = rows[rows["p_unc"].notna()]
    counts = numbers.groupby("feature")["effect"].size()
    full = numbers[numbers["feature"].isin(counts.index[counts == len(effects)])]
    size = pd.Series(directed(full["x_z"].to_numpy(dtype=float), inference.alternative), index=full.index)
    by = full.groupby("feature")
    best = full.loc[size.groupby(full["feature"]).idxmin()].copy() if len(full) else full.copy()
    largest = by[["p_unc", "p_corr", "p_min"]].max().reindex(best["feature"])
    for column in largest:
        best[column] = largest[column].to_numpy()
    signs = full["value"].transform(np.sign).groupby(full["feature"]).nunique().reindex(best["feature"])
    unsigned = full["x_df1"].notna().any() if "x_df1" in full else False
    same = [pd.NA] * len(best) if unsigned or inference.statistic == "hurdle" else (signs == 1).to_numpy()
    best["x_same_sign"] = pd.array(same, dtype="boolean")
    best["x_weakest"] = best["effect"]
    best["n_informative"] = by["n_informative"].min().reindex(best["feature"]).to_numpy()
    best["stat"] = "minimum " + best["stat"]
    best["h0"] = f"at least one of the effects {', '.join(effects)} is absent"
    named = rows.loc[rows["feature"].notna() & ~rows["feature"].isin(best["feature"])]
    few = named.sort_values("status", key=lambda s: s == "untestable", kind="stable").drop_duplicates(
        "feature", keep="last"
    )
    few = _without_numbers(few)
    few["status"] = "untestable"
    few["note"] = "not tested for every effect: " + few["note"].fillna("too few informative items in one of them")
    rest = rows[rows["feature"].isna()].head(1).copy()
    rest["n_features"] = n_all - len(best) - len(few)
    out = stacked([best, few, rest[rest["n_features"] > 0]])
    drop = [c for c in out if c in ("x_rank_agrees", "x_p_by", "x_p_family", "x_selected", "x_weights", "x_d0")]
    return out.drop(columns=drop).assign(effect=name, kind="conjunction")


def _without_numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """The key of rows whose feature cannot be tested as a whole."""
    keep = [
        *PLACES,
        "test",
        "split",
        "feature",
        "n_features",
        "note",
        "unit",
        "n_units",
        "h0",
        "alternative",
        "p_adjust",
    ]
    return rows[[*keep, "family", "n_family"]].copy()
