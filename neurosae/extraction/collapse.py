"""Collapse: several tokens of a region become one response, by a rule that is blind to conditions.

What grows with the length of a region (max, sum) is refused where lengths differ by condition. The responses with all
tokens stay stored; a collapsed copy is made from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.design.token_checks import growing_words, unequal_lengths
from neurosae.errors import DataError, choose
from neurosae.extraction.responses import KEY, Responses, add_warnings, each_site, take_rows
from neurosae.spec.design import Design

GROWING = ("max", "sum")  # rules whose result grows with the length of a region


def collapse(responses: Responses, rule: str = "last", *, length_match: bool = False) -> Responses:
    """One row per stimulus and region, by a rule over the tokens of the region.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}
    rule : `last` (default), `first`, `mean`, `max`, `sum`, or `all` (nothing is collapsed)
    length_match : for `max` and `sum`: cut every region to its last n tokens, n being the smallest number of tokens
        that the region has in any stimulus, instead of a refusal; what is cut is said in a warning

    Returns
    -------
    The same type; `position` is 0 in every row unless the rule is `all`. For `mean`, `max` and `sum` the columns
    `norm` and `recon_error` are averaged and `surprisal` is summed over the region's tokens.

    Raises
    ------
    DataError
        For `max` and `sum` if the number of tokens of a region differs by condition: both grow with span length.
    """
    function = choose("collapse rule", rule, COLLAPSE)
    if length_match and rule not in GROWING:
        raise DataError(f"length_match has no meaning with {rule}, which does not grow with length; use max or sum.")
    if length_match:
        responses = each_site(responses, _cut_to_common_length)
    return responses if rule == "all" else each_site(responses, function)


def _cut_to_common_length(adata: Any) -> anndata.AnnData:
    """The last n tokens of every region, n its smallest number of tokens; the same rule for all conditions."""
    obs = adata.obs
    groups = obs.groupby(["stimulus", "region"], observed=True, sort=False)
    size = groups["token_index"].transform("size")
    shortest = size.groupby(obs["region"], observed=True).transform("min")
    from_end = groups["token_index"].rank(ascending=False)
    rows = np.flatnonzero((from_end <= shortest).to_numpy())
    new = obs.iloc[rows].assign(n_tokens=shortest.iloc[rows].astype(np.int32))
    said = [
        f"length_match: region '{region}' was cut to its last {int(shortest[rows_].iloc[0])} of up to "
        f"{int(size[rows_].max())} tokens"
        for region, rows_ in obs.groupby("region", observed=True, sort=False).groups.items()
        if size[rows_].max() > shortest[rows_].iloc[0]
    ]
    return add_warnings(take_rows(adata, rows, new), said)


def _edge(adata: Any, *, last: bool) -> anndata.AnnData:
    obs = adata.obs.assign(row=np.arange(adata.n_obs))
    obs = obs.sort_values("token_index", kind="stable").drop_duplicates(
        ["stimulus", "region"], keep="last" if last else "first"
    )
    rows = np.sort(obs["row"].to_numpy())
    return take_rows(adata, rows, adata.obs.iloc[rows].assign(position=np.int32(0)))


def _pooled(adata: Any, *, rule: str) -> anndata.AnnData:
    if rule in GROWING:
        _refuse_unequal_lengths(adata, rule)
    group = adata.obs.groupby(["stimulus", "region"], sort=False, observed=True).ngroup().to_numpy()
    n = int(group.max()) + 1 if len(group) else 0
    size = np.bincount(group, minlength=n)
    ones = sp.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), shape=(n, len(group)))
    means = sp.diags(1 / size) @ ones
    X = {
        "mean": lambda: means @ adata.X,
        "sum": lambda: ones @ adata.X,
        "max": lambda: _grouped_max(adata.X, group, size),
    }[rule]()
    out = anndata.AnnData(
        sp.csr_matrix(X, dtype=np.float32), obs=_pooled_obs(adata.obs, group), var=adata.var.copy(), uns=dict(adata.uns)
    )
    pooled = cast(Any, out.X)
    pooled.sort_indices()
    if "x" in adata.obsm and rule != "max":
        out.obsm["x"] = ((means if rule == "mean" else ones) @ np.asarray(adata.obsm["x"])).astype(np.float32)
    out.obs["n_active"] = np.diff(pooled.indptr).astype(np.int32)
    out.obs["sum_active"] = np.asarray(pooled.sum(axis=1), dtype=np.float32).ravel()
    return out


def _pooled_obs(obs: pd.DataFrame, group: np.ndarray) -> pd.DataFrame:
    order = np.lexsort((obs["token_index"].to_numpy(), group))
    obs, group = obs.iloc[order], group[order]
    by = obs.groupby(group)
    out = obs[np.r_[group[1:] != group[:-1], True]].copy()
    out["token"] = by["token"].agg("".join).to_numpy()
    out["position"] = np.int32(0)
    for name in ("norm", "recon_error", "ln_scale"):
        if name in obs:
            out[name] = by[name].mean().to_numpy(dtype=np.float32)
    out["surprisal"] = by["surprisal"].sum(min_count=1).to_numpy(dtype=np.float32)
    return out


def _grouped_max(X: sp.csr_matrix, group: np.ndarray, size: np.ndarray) -> sp.csr_matrix:
    """Maximum over the rows of a group, implicit zeros included."""
    n_features = X.shape[1]  # pyright: ignore[reportOptionalSubscript]
    coo = X.tocoo()
    key = group[coo.row].astype(np.int64) * n_features + coo.col
    order = np.argsort(key, kind="stable")
    key, data = key[order], coo.data[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, np.int64)
    top = np.maximum.reduceat(data, starts) if len(key) else data
    row, col = np.divmod(key[starts], n_features)
    full = np.diff(np.r_[starts, len(key)]) == size[row]
    top = np.where(full, top, np.maximum(top, 0))
    out = sp.csr_matrix((top, (row, col)), shape=(len(size), n_features), dtype=np.float32)
    out.eliminate_zeros()
    return out


def _refuse_unequal_lengths(adata: Any, rule: str) -> None:
    record = json.loads(adata.uns[KEY])["design"]
    factors = [] if record is None else list(Design.from_json(record).factors)
    for region, obs in adata.obs.drop_duplicates(["stimulus", "region"]).groupby("region", observed=True):
        if means := unequal_lengths(obs["n_tokens"], obs[factors]):
            raise DataError(f"tokens: {growing_words(rule, str(region), means=means)}")


COLLAPSE: dict[str, Callable[[anndata.AnnData], anndata.AnnData]] = {
    "last": lambda adata: _edge(adata, last=True),
    "first": lambda adata: _edge(adata, last=False),
    "mean": lambda adata: _pooled(adata, rule="mean"),
    "max": lambda adata: _pooled(adata, rule="max"),
    "sum": lambda adata: _pooled(adata, rule="sum"),
    "all": lambda adata: adata,
}
