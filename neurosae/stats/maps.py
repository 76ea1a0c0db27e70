"""Where an effect is: maps over site x position, by the largest cell, the mass of clusters, or exact TFCE.

Flow: responses -> item contrasts of every cell (`units`) -> heights under synchronised relabellings (`heights`) ->
neighbours, clusters, TFCE (`tfce`) -> one row per cell and one per cluster (`map_rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError, choose
from neurosae.extraction.responses import build_responses, design_of, provenance_of
from neurosae.spec.block import name_of
from neurosae.spec.blocks import AXES, Inference, MapBlock
from neurosae.spec.results import Tested, check_results
from neurosae.stats.adjusted import explained
from neurosae.stats.asked import cell_data, named_at, named_effects, positions_in, responses_by_site, settings_of
from neurosae.stats.family import Cell, Place
from neurosae.stats.heights import MAPS, Nodes, infer_map
from neurosae.stats.map_rows import Told, cell_row, cluster_row, map_table, silent_row
from neurosae.stats.tfce import graph_of
from neurosae.stats.units import AnnData, ItemData

__all__ = ["MAPS", "effect_map", "run", "set_mean"]


class Asked(NamedTuple):
    """What is mapped: name of the test, effects by name, regions, split, axes, and the statistic of the map."""

    test: str
    effects: dict[str, Mapping[str, Any]]
    regions: tuple[str, ...]
    split: str
    over: tuple[str, ...]
    statistic: str


class Found(NamedTuple):
    """One cell of the map: where, its data, the columns that can be tested, and why there are none."""

    place: Place
    data: ItemData | None
    kept: np.ndarray
    dead: int
    reason: str


def effect_map(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str] | None = None,
    over: str | Sequence[str] = AXES,
    statistic: str = "maxT",
    inference: Mapping[str, Any] | Inference | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Map an effect over sites and positions, corrected over the whole map.

    A cell of the map is a site, region and position. It shows the strongest of its features, the maximum being taken
    anew in every relabelling; for the mean of a set give `set_mean(responses, features)` instead of the responses.

    - `maxT`: p of a cell from the largest |z| over features x map; the only one that says "present at this cell".
    - `cluster`: cells above the t quantile of two-sided .05 that are neighbours form a cluster; p of a cluster from the
      largest sum of |t| over the map. Positive and negative clusters are separate.
    - `tfce`: p of a cell from the largest integral_0^{|t|} size(h)^.5 h^2 dh over the map, computed exactly.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData} in the order in which sites are neighbours
    effect : `{factor: {level: weight}}`, or {name: effect} for several maps, which then form one family
    region : name or names; all by default
    over : axes along which cells are neighbours, "site" and "position"
        Consecutive sites at the same region and position, and consecutive positions of one region at the same site, are
        neighbours. Positions of different regions never are: no stimulus fixes their distance.
    statistic : "maxT", "cluster" or "tfce"
    inference : keys of the `inference:` section; its `statistic` is computed for every feature. The items are those of
        the split "test".
    seed : int

    Returns
    -------
    DataFrame
        The results schema. One row per cell: `value` is the strongest feature's statistic (maxT, cluster) or the TFCE,
        `p_unc` the p of the cell by itself, `p_corr` that over the map (none for the cells of a cluster map). One row
        per cluster: `value` its mass, `p_corr`, no place. Extras: `x_feature` the strongest feature; `x_height` the
        height on the map and `x_scale` its unit, t or z; `x_cluster` numbers of the clusters that hold the cell;
        `x_peak`, `x_n_cells`, `x_cells` of a cluster; `x_n_untestable`, `x_n_dead` features; `x_z`; `x_p_low`,
        `x_p_high` the Monte-Carlo interval of p_corr.

    Raises
    ------
    DataError
        Fewer than two cells; no neighbours where clusters are asked for; a statistic in activation units; few items.

    Notes
    -----
    H0: labels are exchangeable inside every item (between items: over items), jointly for all features, sites and
    positions. A cluster p never licenses "onset at", "begins at" or "extends to"; nor does the p of a cell under TFCE
    say that the effect is at that cell. Cells without enough data have a row with their status, and join no cluster.

    References
    ----------
    Nichols & Holmes (2002), Hum. Brain Mapp. 15:1. Maris & Oostenveld (2007), J. Neurosci. Methods 164:177. Smith &
    Nichols (2009), NeuroImage 44:83. Sassenhagen & Draschkow (2019), Psychophysiology 56:e13335.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> plan, number = example_design(16), {"number": {"pl": 1, "sg": -1}}
    >>> early = simulate(plan, n_features=30, density=0.4, seed=1)
    >>> late = simulate(plan, n_features=30, effects={"number": 3}, density=0.4, shift=6.0, seed=2)
    >>> found = effect_map({"early": early, "late": late}, number, region="noun", seed=1)
    >>> found[["site", "x_feature"]][found.p_corr <= 0.05].values.tolist()
    [['late', 2]]
    """
    sites, effects = responses_by_site(responses), named_effects(effect)
    everywhere = dict.fromkeys(str(r) for adata in sites.values() for r in adata.obs["region"].unique())
    regions = (region,) if isinstance(region, str) else tuple(everywhere if region is None else region)
    axes = (over,) if isinstance(over, str) else tuple(over)
    asked = Asked("map", effects, regions, "test", axes, statistic)
    return _run(sites, asked, settings_of(inference), seed=seed).table


def run(
    responses: Mapping[str, AnnData], ask: MapBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: map`; all its effects, sites, regions and positions are one family."""
    spec = study.spec
    test = name_of(ask, spec.tests)
    sites = {site: choose("site", site, responses) for site in ask.sites or responses}
    effects = {name: choose("effect", name, spec.effects) for name in ask.effect}
    settings = spec.inference
    if ask.alternative is not None:
        settings = settings.model_copy(update={"alternative": ask.alternative})
    if ask.features is not None:
        sites = set_mean(sites, _chosen(ask, sites, earlier), name=ask.features.name)
    asked = Asked(test, effects, ask.region, ask.split, ask.over, ask.statistic)
    return _run(sites, asked, settings, seed=spec.seed)


def set_mean(
    responses: AnnData | Mapping[str, AnnData],
    features: Sequence[int] | Mapping[Any, Any],
    *,
    name: str = "chosen features",
) -> dict[str, AnnData]:
    """Responses whose only feature is the mean of a set, for maps of a set that has no counterpart at other sites.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    features : indices, or {index: weight} for a weighted mean, the same for one site or {site: either} for several
        Chosen without looking at the effect on these items. The mean is sum w_j y_j / sum |w_j|: a weight of -1 turns a
        feature round that was found to be smaller in the + cells.
    name : how the set is called in the results

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(8), n_features=5, density=0.4, seed=1)
    >>> mean = set_mean({"late": fake}, {"late": [0, 3]})["late"]
    >>> mean.shape, bool(np.allclose(mean.X.toarray()[:, 0], fake.X.toarray()[:, [0, 3]].mean(axis=1)))
    ((16, 1), True)
    """
    sites = responses_by_site(responses)
    by_site = isinstance(features, Mapping) and set(features) <= set(sites)
    chosen = features if by_site else dict.fromkeys(sites, features)
    return {site: _mean_of(adata, choose("site", site, chosen), site, name=name) for site, adata in sites.items()}  # type: ignore[arg-type]


def _mean_of(adata: AnnData, features: Any, site: str, *, name: str) -> AnnData:
    weights = dict(features) if isinstance(features, Mapping) else dict.fromkeys(map(int, features), 1.0)
    size = sum(abs(w) for w in weights.values())
    columns = pd.Index(adata.var["feature"]).get_indexer(list(weights))  # pyright: ignore[reportArgumentType]
    if not size or (columns < 0).any():
        raise DataError(f"site '{site}' has {adata.n_vars} features; the set names none of them, or one that it lacks.")
    w = sp.csc_matrix((np.array(list(weights.values())) / size, (columns, np.zeros(len(columns), dtype=int))))
    w.resize((adata.n_vars, 1))
    X = sp.csr_matrix(adata.X.astype(np.float64) @ w, dtype=np.float32)
    nan = {column: np.array([np.nan]) for column in ("decoder_norm", "threshold", "density", "origin")}
    about = {"feature": np.array([0], dtype=np.int32), **nan, "set": [name], "members": [len(weights)]}
    var = pd.DataFrame(about, index=pd.Index([f"{site}/0"]))
    return build_responses(X, adata.obs, var, design=design_of(adata), provenance=provenance_of(adata))


def _chosen(ask: MapBlock, sites: Mapping[str, AnnData], earlier: Mapping[str, Tested]) -> dict[str, dict[int, float]]:
    """Features that an earlier test chose on other items, each with the sign of its statistic there."""
    choice = ask.features
    assert choice is not None
    if choice.from_ is None:
        return {site: dict.fromkeys(map(int, named_at(choice, site, adata)), 1.0) for site, adata in sites.items()}
    table = choose("earlier test", choice.from_, earlier).table
    if set(table["split"].dropna()) & {ask.split}:
        raise DataError(
            f"features would be chosen and tested on the same items (split: {ask.split}). "
            f"Set `split: localizer` on '{choice.from_}'."
        )
    table = table[(table["status"] == "ok") & table["feature"].notna()]
    table = table.assign(size=-table["value"].abs()).sort_values(["size", "feature"])
    out = {}
    for site in sites:
        best = table[table["site"] == site].drop_duplicates("feature").head(choice.top or 0)
        if not len(best):
            raise DataError(f"'{choice.from_}' has no tested feature at site '{site}'; run it on that site too.")
        out[site] = dict(zip(best["feature"].astype(int), np.sign(best["value"].astype(float)), strict=True))
    return out


# ------------------------------------------------------------------ one map


def _run(sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, seed: int) -> Tested:
    choose("map statistic", asked.statistic, MAPS)
    for axis in asked.over:
        choose("axis of a map", axis, dict.fromkeys(AXES))
    found = list(_found(sites, asked, inference))
    edges = _edges([one.place for one in found], list(sites), asked.over)
    _refuse_small(found, edges, asked)
    tested = [(k, one) for k, one in enumerate(found) if not one.reason]
    cells = [Cell(one.place, one.data, one.kept) for _, one in tested if one.data is not None]
    n_family = sum(len(c.kept) for c in cells) if asked.statistic == "maxT" else len(cells)
    told = Told(_family_words(asked, found, list(sites)), n_family, asked.statistic, _members(sites), inference)
    nodes = Nodes(cells, np.array([k for k, _ in tested]), graph_of(len(found), edges))
    field = infer_map(nodes, asked.statistic, inference, seed=seed, split=asked.split)
    at = {place: k for k, (place, _) in enumerate(tested)}
    rows = [
        silent_row(one.place, one.data, one.dead, reason=one.reason, told=told)
        if one.reason
        else cell_row(cells[at[k]], field, at[k], dead=one.dead, told=told)
        for k, one in enumerate(found)
    ]
    rows += [cluster_row(cells, field, number, told=told) for number in range(1, len(field.clusters) + 1)]
    return Tested(check_results(map_table(rows, told)), field.null_max, {})


def _found(sites: Mapping[str, AnnData], asked: Asked, inference: Inference) -> Iterator[Found]:
    """Every cell of the map, effect by effect; labels that are permuted over items need the same items everywhere."""
    for name, effect in asked.effects.items():
        cells = [
            _cell(
                adata, effect, Place(asked.test, name, site, region, position, asked.split, None), inference=inference
            )
            for site, adata in sites.items()
            for region in asked.regions
            for position in sorted({p for other in sites.values() for p in positions_in(other, region)})
        ]
        usual = Counter(one.data.numbers.tobytes() for one in cells if one.data is not None).most_common(1)
        for one in cells:
            alike = one.data is None or one.data.codes is None or one.data.numbers.tobytes() == usual[0][0]
            reason = "" if alike else "other items than in the rest of the map, over which labels are permuted"
            yield one if alike or one.reason else one._replace(reason=reason)


def _cell(adata: AnnData, effect: Mapping[str, Any], place: Place, *, inference: Inference) -> Found:
    """The data of one cell and what can be tested there; features are kept by counts that no relabelling changes."""
    none = np.empty(0, dtype=int)
    try:
        data = cell_data(adata, design_of(adata), effect, place=place, inference=inference)
    except DataError as error:
        return Found(place, None, none, 0, str(error))
    active = np.bincount(data.Y.indices, minlength=adata.n_vars) > 0
    kept = np.flatnonzero(data.informative >= inference.min_informative)
    kept = kept[~explained(data, kept)] if len(kept) else kept
    reason = f"no feature differs in at least {inference.min_informative} items" if active.any() else "no activity here"
    return Found(place, data, kept, int((~active).sum()), "" if len(kept) else reason)


def _edges(places: Sequence[Place], sites: Sequence[str], over: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of neighbouring cells."""
    order = {site: k for k, site in enumerate(sites)}
    at = {(p.effect, p.region, order[p.site], p.position): k for k, p in enumerate(places)}
    steps = [step for axis, step in (("site", (1, 0)), ("position", (0, 1))) if axis in over]
    return [
        (k, at[next_])
        for (effect, region, site, position), k in at.items()
        for up, on in steps
        if (next_ := (effect, region, site + up, position + on)) in at
    ]


def _refuse_small(found: Sequence[Found], edges: Sequence[tuple[int, int]], asked: Asked) -> None:
    if len(found) < 2:
        raise DataError(f"a map needs at least 2 cells and has {len(found)}; name more sites or regions.")
    if not edges and asked.statistic != "maxT":
        raise DataError(f"no two cells are neighbours, so {asked.statistic} has nothing to join; use statistic maxT.")
    if all(one.reason for one in found):
        raise DataError(f"no cell of the map can be tested: {found[0].reason}")


def _members(sites: Mapping[str, AnnData]) -> tuple[str, int] | None:
    """Name and size of the set whose mean is mapped; None where cells show their strongest feature."""
    var = next(iter(sites.values())).var
    return (str(var["set"].iloc[0]), int(var["members"].iloc[0])) if {"set", "members"} <= set(var.columns) else None


def _family_words(asked: Asked, found: Sequence[Found], sites: Sequence[str]) -> str:
    """The map and its neighbours, in words."""
    n_positions = len({(one.place.region, one.place.position) for one in found})
    what = {"maxT": "features x cells", "cluster": "clusters", "tfce": "cells"}[asked.statistic]
    near = {
        "site": "consecutive sites at one region and position",
        "position": "consecutive positions of one region at one site",
    }
    who = " and ".join(near[axis] for axis in AXES if axis in asked.over)
    return (
        f"all {what} of map {asked.test}: effects {', '.join(asked.effects)}; sites {', '.join(sites)}, in this order; "
        f"{n_positions} positions in regions {', '.join(asked.regions)}; neighbours: {who}, never of two regions"
    )
