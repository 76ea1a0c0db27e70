"""Responses looked at in other ways than by a test: one text, a set of features, a category of items, first activity.

Each view is a plain table. None is a basis for a test of its own: sets and categories are chosen by eye, and a feature
that never fires has no onset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anndata
import numpy as np
import pandas as pd

from neurosae.errors import DataError, unknown
from neurosae.extraction.responses import design_of
from neurosae.extraction.shifts import columns_of


def example_view(adata: anndata.AnnData, stimulus: str, *, top: int = 10) -> pd.DataFrame:
    """Tokens of one text by the features that are strongest in it; nothing is averaged.

    Parameters
    ----------
    adata : responses of one site; with `tokens: all` every token is there
    stimulus : its name
    top : number of features, by the largest |activation| at any token; ties by feature index

    Returns
    -------
    DataFrame (tokens, features) of activations, index `region`, `token_index`, `token`
    """
    obs = cast(pd.DataFrame, adata.obs)
    rows = np.flatnonzero((obs["stimulus"].astype(str) == stimulus).to_numpy())
    if not len(rows):
        raise DataError(unknown("stimulus", stimulus, list(obs["stimulus"].astype(str).unique()[:8])))
    rows = rows[np.argsort(obs["token_index"].to_numpy()[rows], kind="stable")]
    values = cast(Any, adata.X)[rows].toarray()
    peak = np.abs(values).max(axis=0)
    best = np.argsort(-peak, kind="stable")[:top]
    best = best[peak[best] > 0]
    index = pd.MultiIndex.from_frame(obs.iloc[rows][["region", "token_index", "token"]].astype({"region": str}))
    return pd.DataFrame(values[:, best], index=index, columns=adata.var["feature"].to_numpy()[best])


def feature_sums(adata: anndata.AnnData, sets: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Sum over a named set of features, each divided by its standard deviation over all rows.

    y_s = sum over j in the set of (f_sj - mean_j) / sd_j: no feature counts more because its activations are larger.

    Parameters
    ----------
    adata : responses of one site
    sets : name -> features

    Returns
    -------
    DataFrame (rows, sets), index as in obs

    Raises
    ------
    DataError
        If a feature does not exist, or has the same activation in all rows.
    """
    out = {}
    for name, features in sets.items():
        values = cast(Any, adata.X)[:, columns_of(adata, tuple(features))].toarray().astype(float)
        spread = values.std(axis=0)
        if flat := [f for f, sd in zip(features, spread, strict=True) if sd == 0]:
            raise DataError(
                f"set '{name}': feature {flat[0]} is the same in all rows and has no z-score; leave it out."
            )
        out[name] = ((values - values.mean(axis=0)) / spread).sum(axis=1)
    return pd.DataFrame(out, index=adata.obs_names)


def category_means(adata: anndata.AnnData, by: Sequence[str], *, features: Sequence[int]) -> pd.DataFrame:
    """Mean activation and density of features per category, at every region and position; items weigh equally.

    Parameters
    ----------
    adata : aligned responses of one site
    by : columns of obs, factors or labels of the design, that span the categories
    features : which features

    Returns
    -------
    DataFrame with `region`, `position`, the columns of `by`, `feature`, `mean`, `density`, `n_items`
    """
    obs = cast(pd.DataFrame, adata.obs)
    for name in by:
        if name not in obs:
            raise DataError(unknown("column", name, obs.columns))
    values = cast(Any, adata.X)[:, columns_of(adata, tuple(features))].toarray().astype(float)
    keys = ["region", "position", *by]
    parts = []
    for j, feature in enumerate(features):
        table = obs[[*keys, "item"]].assign(mean=values[:, j], density=values[:, j] != 0)
        per_item = table.groupby([*keys, "item"], observed=True)[["mean", "density"]].mean().reset_index()
        groups = per_item.groupby(keys, observed=True)
        found = groups[["mean", "density"]].mean().assign(n_items=groups["item"].nunique()).reset_index()
        parts.append(found.assign(feature=feature))
    return pd.concat(parts, ignore_index=True)[[*keys, "feature", "mean", "density", "n_items"]]


def onsets(adata: anndata.AnnData, *, features: Sequence[int]) -> pd.DataFrame:
    """The first position at which each feature is active in each text and region; NA where it never is.

    A difference of onsets between conditions is not tested here: texts where a feature never fires have none, and
    leaving them out selects on the response.

    Parameters
    ----------
    adata : aligned responses of one site, all tokens kept apart
    features : which features

    Returns
    -------
    DataFrame with `stimulus`, `item`, `region`, `feature`, `position` (Int64), `token`
    """
    obs = cast(pd.DataFrame, adata.obs)
    order = np.argsort(obs["token_index"].to_numpy(), kind="stable")
    values = cast(Any, adata.X)[:, columns_of(adata, tuple(features))].toarray()[order]
    table = obs.iloc[order][["stimulus", "item", "region", "position", "token"]].astype({"region": str})
    every = table.drop_duplicates(["stimulus", "region"])[["stimulus", "item", "region"]]
    parts = []
    for j, feature in enumerate(features):
        first = table[values[:, j] != 0].drop_duplicates(["stimulus", "region"])
        found = every.merge(first.drop(columns="item"), on=["stimulus", "region"], how="left")
        parts.append(found.assign(feature=feature, position=found["position"].astype("Int64")))
    out = pd.concat(parts, ignore_index=True)
    return out[["stimulus", "item", "region", "feature", "position", "token"]]


def token_courses(
    adata: anndata.AnnData,
    weights: Mapping[tuple[str, ...], float],
    *,
    features: Sequence[int],
    region: str,
    split: str,
) -> pd.DataFrame:
    """What features do at every token of a region, over the + and over the - cells of an effect: before any collapse.

    Mean over items of y(item, side, token), itself the mean over the item's stimuli, cells weighing as in the effect.

    Parameters
    ----------
    adata : aligned responses of one site, all tokens kept apart
    weights : cell (levels in the order of the design's factors) -> weight
    features, region, split : which features, where, on which items

    Returns
    -------
    DataFrame with `feature`, `side` (`plus`, `minus`), `token` (0 is the last token of the region, or the aligned one),
    `mean`, `density`, `n_items`; tokens that only some texts have are means over those
    """
    obs, factors = cast(pd.DataFrame, adata.obs), list(design_of(adata).factors)
    here = (obs["region"].astype(str) == region).to_numpy() & (obs["split"].astype(str) == split).to_numpy()
    weight = np.array([weights.get(cell, 0.0) for cell in obs[factors].astype(str).itertuples(index=False, name=None)])
    rows = np.flatnonzero(here & (weight != 0))
    values = cast(Any, adata.X)[rows][:, columns_of(adata, tuple(features))].toarray().astype(float)
    keys = pd.DataFrame(
        {
            "side": np.where(weight[rows] > 0, "plus", "minus"),
            "token": obs["position"].to_numpy()[rows].astype(int),
            "item": obs["item"].astype(str).to_numpy()[rows],
        }
    )
    w = np.abs(weight[rows])
    parts = []
    for j, feature in enumerate(features):
        table = keys.assign(w=w, y=w * values[:, j], on=w * (values[:, j] != 0))
        per_item = table.groupby(["side", "token", "item"])[["w", "y", "on"]].sum().reset_index()
        per_item = per_item.assign(mean=per_item["y"] / per_item["w"], density=per_item["on"] / per_item["w"])
        groups = per_item.groupby(["side", "token"])
        found = groups[["mean", "density"]].mean().assign(n_items=groups["item"].nunique()).reset_index()
        parts.append(found.assign(feature=feature))
    columns = ["feature", "side", "token", "mean", "density", "n_items"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
