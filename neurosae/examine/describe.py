"""Descriptions of features from stored responses: scores over texts, and tuning to the levels of factors.

Nothing here is a test. What leads one of these lists was looked for on these texts; take it to other items, by a
localizer, before anything is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError, choose
from neurosae.examine.items import pooled_region
from neurosae.examine.profiles import leading, score_table
from neurosae.examine.scores import as_columns, auroc, d_prime
from neurosae.examine.thresholds import thresholds
from neurosae.extraction.responses import ItemCells, design_of, item_cells
from neurosae.spec.design import Design
from neurosae.stats.asked import many, responses_by_site
from neurosae.stats.units import AnnData, item_numbers

N_BOOTSTRAP = 1000
Chosen = Sequence[int] | np.ndarray | pd.Series | Mapping[str, Sequence[int]] | None
RANKED = ("strongest", "frequent", "selective", "legacy", "composite")


def examine_features(
    responses: AnnData | Mapping[str, AnnData],
    *,
    features: Chosen = None,
    region: str | None = None,
    theta: str | float | Mapping[str, np.ndarray] = "stimuli",
    pool: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    r"""How strong, how frequent and how selective features are over the texts of a study.

    With a_sj the pooled activation of feature j in text s of S, and theta_j the threshold of a strong text,

        density = #{a > 0} / S,   composite = 100 P(a > theta) mean a,
        sparseness = (1 - (mean a)^2 / mean a^2) / (1 - 1/S).

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    features : feature indices, or {site: indices}; left out, all that are active in some text
    region : left out where there is only one
    theta : `stimuli` (median of the feature's active values there), one number, or {site: array (n_features,)}, such
        as the column q50 of `feature_summary`
    pool : how the tokens of a text become one activation, where they are kept apart: `max` (default), `mean`, `last`
    split : left out, all items

    Returns
    -------
    DataFrame, a row per site and feature
        `site region feature n_texts theta max text n_active density n_strong share_strong mean mean_active sparseness
        composite rank_strongest rank_frequent rank_selective rank_legacy rank_composite`. `text` is the stimulus of the
        strongest activation. Ranks run over all features of the site, 1 the first; `rank_selective` is by sparseness,
        `rank_legacy` by the fewest strong texts, both among features that are strong at least once.

    Notes
    -----
    By the legacy rule a feature that is weakly on everywhere and strong in one text is "most selective", and by
    frequency it leads too: read `rank_selective` beside `rank_legacy`.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(12), n_features=5, density=0.5, seed=1)
    >>> table = examine_features(fake, features=[0, 3], region="noun")
    >>> table[["feature", "n_texts"]].values.tolist(), bool(table["sparseness"].between(0, 1).all())
    ([[0, 24], [3, 24]], True)
    """
    out = []
    for site, adata in responses_by_site(responses).items():
        texts = pooled_region(adata, region, pool=pool, split=split)
        A, own = as_columns(texts.X), texts.var["feature"].to_numpy(dtype=np.int64)
        table = score_table(A, thresholds(A, _theta(theta, site), own), own)
        table["text"] = texts.obs["stimulus"].astype(str).to_numpy()[table["text"]]
        for what in RANKED:
            order = leading(table, what, len(table)).index
            place = pd.Series(np.arange(1, len(order) + 1), index=order)
            table[f"rank_{what}"] = place.reindex(table.index).astype("Int64")
        where = {"site": site, "region": str(texts.obs["region"].iloc[0])}
        out.append(table[table["feature"].isin(_chosen(features, site, own))].assign(**where))
    joined = pd.concat(out, ignore_index=True)
    return joined[["site", "region", *(c for c in joined if c not in ("site", "region"))]]


def _theta(theta: str | float | Mapping[str, np.ndarray], site: str) -> np.ndarray | float | None:
    if isinstance(theta, str):
        return choose("theta", theta, {"stimuli": None})
    return choose("site", site, theta) if isinstance(theta, Mapping) else theta


def _chosen(features: Chosen, site: str, known: np.ndarray) -> np.ndarray:
    """Feature indices of a site; an index that its dictionary does not have is refused."""
    if features is None:
        return known
    given = np.asarray(features.get(site, ()) if isinstance(features, Mapping) else features, dtype=np.int64)
    if len(lost := np.setdiff1d(given, known)):
        raise DataError(f"site '{site}' has no feature {lost[0]}; its features are {known.min()} to {known.max()}.")
    return given


# --- tuning ---------------------------------------------------------------------------------------------------------


def tuning(
    responses: AnnData | Mapping[str, AnnData],
    factors: str | Sequence[str],
    *,
    features: Chosen,
    region: str | None = None,
    pool: str | None = None,
    split: str | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Mean and density of features at every level of a factor, or cell of several, with bands over items.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    factors : one factor, or several whose combinations are the cells; the others are averaged over
    features : feature indices, or {site: indices}
    region, pool, split : as in `examine_features`
    seed : of the bootstrap over items

    Returns
    -------
    DataFrame, a row per site, feature and cell
        `site region feature`, the factors, `n_items mean mean_low mean_high density density_low density_high d_prime
        auroc d_z`. Means and densities are over items, frames averaged; 95 % percentile intervals from 1,000 draws of
        whole items (inside the cells of factors between items). `d_prime` and `auroc` compare the items of the cell
        with those of all other cells. `d_z`, where all factors vary within items, is the mean over items of this cell
        minus the item's mean over the others, in its standard deviations; else NaN.

    Notes
    -----
    Bands are of each feature alone, and those of features that were chosen on the same items are too narrow.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(40), n_features=3, effects={"number": 1}, density=0.3, shift=4.0, seed=1)
    >>> table = tuning(fake, "number", features=[0], region="noun", seed=1)
    >>> table["number"].tolist(), bool(table["mean_low"][1] > table["mean_high"][0])
    (['sg', 'pl'], True)
    """
    names = list(many(factors))
    if features is None:
        raise DataError("tuning is of named features; give their indices, features=[12, 40].")
    out = []
    for site, adata in responses_by_site(responses).items():
        design = design_of(adata)
        for name in names:
            choose("factor", name, design.factors)
        texts = pooled_region(adata, region, pool=pool, split=split)
        columns = np.flatnonzero(np.isin(texts.var["feature"], _chosen(features, site, texts.var["feature"])))
        out.append(_tuned(texts[:, columns].copy(), design, names, seed=seed).assign(site=site))
    joined = pd.concat(out, ignore_index=True)
    return joined[["site", *(c for c in joined if c != "site")]]


def _tuned(texts: AnnData, design: Design, names: list[str], *, seed: int) -> pd.DataFrame:
    where = {"region": str(texts.obs["region"].iloc[0]), "position": int(texts.obs["position"].iloc[0])}
    found = item_cells(texts, design, **where, split=None, factors=names)
    fires = texts.copy()
    fires.X = sp.csr_matrix((texts.X > 0).astype(np.float32))
    both = [found.X.toarray(), item_cells(fires, design, **where, split=None, factors=names).X.toarray()]
    draws = _draws(found, design, names, seed=seed)
    within = all(design.factors[name].varies != "between" for name in names)
    features, out = texts.var["feature"].to_numpy(dtype=np.int64), []
    for k, cell in enumerate(found.cells):
        rows = found.row_cell == k
        items = found.row_item[rows]
        weight = draws[:, items]
        columns: dict[str, Any] = {"feature": features, "n_items": len(items)}
        columns |= dict(zip(names, cell, strict=True))
        for name, Y in zip(("mean", "density"), both, strict=True):
            drawn = weight @ Y[rows] / weight.sum(axis=1, keepdims=True)
            low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
            columns |= {name: Y[rows].mean(axis=0), f"{name}_low": low, f"{name}_high": high}
        columns |= {"d_prime": d_prime(both[0], rows), "auroc": auroc(both[0], rows)}
        columns["d_z"] = _d_z(found, both[0], k) if within else np.nan
        out.append(pd.DataFrame({"region": where["region"], **columns}))
    order = ["region", "feature", *names]
    joined = pd.concat(out, ignore_index=True).sort_values("feature", kind="stable")
    return joined[[*order, *(c for c in joined if c not in order)]].reset_index(drop=True)


def _draws(found: ItemCells, design: Design, names: list[str], *, seed: int) -> np.ndarray:
    """How often every item is drawn (N_BOOTSTRAP, n_items); items of different cells between items apart."""
    own = [k for k, name in enumerate(names) if design.factors[name].varies == "between"]
    group: dict[int, tuple[str, ...]] = {}
    for item, cell in zip(found.row_item.tolist(), found.row_cell.tolist(), strict=True):
        group.setdefault(item, tuple(found.cells[cell][k] for k in own))
    order = np.argsort(item_numbers(design, found.items), kind="stable")  # draws do not depend on the order of rows
    rng, out = np.random.default_rng(seed), np.zeros((N_BOOTSTRAP, len(found.items)))
    for one in sorted(set(group.values())):
        members = np.array([i for i in order if group[i] == one])
        out[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=N_BOOTSTRAP)
    return out


def _d_z(found: ItemCells, Y: np.ndarray, cell: int) -> np.ndarray:
    """Mean over items of this cell minus the mean of the item's other cells, in standard deviations."""
    n = len(found.items)
    rest = found.row_cell != cell
    count = np.bincount(found.row_item[rest], minlength=n)
    pick = sp.csr_matrix((np.ones(int(rest.sum())), (found.row_item[rest], np.flatnonzero(rest))), shape=(n, len(Y)))
    mine = sp.csr_matrix((np.ones(int((~rest).sum())), (found.row_item[~rest], np.flatnonzero(~rest))), pick.shape)
    if (count == 0).any():
        return np.full(Y.shape[1], np.nan)
    D = mine @ Y - (pick @ Y) / count[:, None]
    spread = D.std(axis=0, ddof=1)
    return np.divide(D.mean(axis=0), spread, out=np.full(len(spread), np.nan), where=spread > 0)
