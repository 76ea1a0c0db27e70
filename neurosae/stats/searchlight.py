r"""Searchlights over sets of features: where in a dictionary does an effect live, beyond what any such set would show?

D_c, the cross-validated length of an effect (`length`), is a sum over features with fixed weights W,

    D_c(S; s) = 1/(n (n-1)) sum_{j in S} W_j ((sum_i s_i d_ij)^2 - sum_i d_ij^2),

so one pass over the flips (labels, for effects between items) serves every set: neighbourhoods of decoder directions,
one per feature, or communities of features that fire together on other text. Sets are standardised by their own null
and corrected by the maximum over all sets, sites, regions, positions and effects. Beside each stand random sets matched
in size, density and energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.geometry import SearchlightBlock
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import Asked, named_effects, positions_in, read_block, responses_by_site, settings_of
from neurosae.stats.communities import coactivation_communities, reference_activations
from neurosae.stats.joined import joined
from neurosae.stats.length import TILE, feature_lengths, relabellings_of, solid
from neurosae.stats.relabel import Relabelling
from neurosae.stats.units import AnnData, ItemData, item_data

Key = tuple[str, str, str, int]  # effect, site, region, position
BINS = 4  # quantiles of density, and of energy inside each, that random sets are matched in
N_COMMUNITIES, N_TOKENS = 200, 50_000


def decoder_neighbours(W_dec: Any, k: int = 50, *, among: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """The k features whose decoder directions are nearest to that of each feature, itself included.

    Parameters
    ----------
    W_dec : array or tensor of shape (n_features, d)
    k : int
    among : features that are centres and neighbours; left out, all

    Returns
    -------
    dict
        `{"feature 12": indices, …}`, the centre first, then by falling cosine.

    Examples
    --------
    >>> W_dec = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> {name: s.tolist() for name, s in decoder_neighbours(W_dec, 2).items()}
    {'feature 0': [0, 1], 'feature 1': [1, 0], 'feature 2': [2, 1]}
    """
    W = np.asarray(W_dec.detach().cpu() if hasattr(W_dec, "detach") else W_dec, dtype=np.float64)
    chosen = np.arange(len(W)) if among is None else np.asarray(among, dtype=np.int64)
    if not 2 <= k <= len(chosen):
        raise DataError(f"k is {k} neighbours, but there are {len(chosen)} features; take fewer.")
    length = np.sqrt((W[chosen] ** 2).sum(axis=1, keepdims=True))
    if (length == 0).any():
        raise DataError(f"{int((length == 0).sum())} decoder vectors have length 0 and point nowhere; leave them out.")
    unit, out = W[chosen] / length, {}
    with threadpool_limits(1, user_api="blas"):
        for start in range(0, len(chosen), 512):
            cosine = unit[start : start + 512] @ unit.T
            cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = 2.0
            nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
            out |= {f"feature {chosen[start + r]}": chosen[row] for r, row in enumerate(nearest)}
    return out


def searchlight(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    sets: Mapping[str, Any],
    region: str | Sequence[str],
    inference: Mapping[str, Any] | Inference | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    """Test the cross-validated length of an effect in many sets of features, overlapping or not.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : `{factor: {level: weight}}`, or {name: effect} for several
    sets : `{name: feature indices}`, or `{site: {name: indices}}`, found without these responses
        (`decoder_neighbours`, `coactivation_communities`); features without enough informative items are left out
    region : name or names
    inference : keys of the `inference:` section; `n_permutations` and `min_informative` are used
    settings : `n_controls` (199) random sets beside every set, and `split` ("test")
    seed : int

    Returns
    -------
    DataFrame
        The results schema, a row per set, effect and place: `value` is D_c in standard deviations of its null,
        `estimate` D_c, `n_features` how many features of the set could be used. `x_control` is the mean D_c of the
        matched random sets and `x_p_control` the share of them (and the set) that reach it, uncorrected.

    Raises
    ------
    DataError
        An effect whose levels change places inside items, unknown features, no usable feature.

    Notes
    -----
    H0 of p: for every item the contrast of all features jointly is exchangeable with its negative; between items:
    labels are exchangeable inside their strata. A found set says that its features together differ. `x_p_control` asks
    another question: is this set longer than others of its size, density and energy? A set can pass the first and fail
    the second where the effect is everywhere.

    References
    ----------
    Kriegeskorte, Goebel & Bandettini (2006), PNAS 103:3863. Allefeld & Haynes (2014), NeuroImage 89:345.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(20), n_features=60, effects={"number": 6}, density=0.5, shift=4.0, seed=1)
    >>> number, sets = {"number": {"pl": 1, "sg": -1}}, {"planted": range(6), "others": range(30, 40)}
    >>> found = searchlight(fake, number, sets=sets, region="noun", seed=1)
    >>> dict(zip(found["set"], found["p_corr"] <= 0.05)), bool(found["x_p_control"].iloc[0] <= 0.05)
    ({'planted': True, 'others': False}, True)
    """
    sites, regions = responses_by_site(responses), (region,) if isinstance(region, str) else tuple(region)
    given = dict(settings or {})
    asked = Asked("searchlight", named_effects(effect), regions, str(given.pop("split", "test")))
    n_controls = int(given.pop("n_controls", 199))
    if given:
        raise DataError(f"unknown setting '{min(given)}'; settings are n_controls and split.")
    by_site = all(isinstance(one, Mapping) for one in sets.values())
    named = {site: (sets[site] if by_site else sets) for site in sites}
    return _answer(sites, asked, settings_of(inference), named=named, n_controls=n_controls, seed=seed).table


def run(
    responses: Mapping[str, AnnData], ask: SearchlightBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: searchlight`."""
    asked, sites, settings = read_block(ask, study, responses)
    model, dictionaries = study.live()
    named = {}
    for site, adata in sites.items():
        if ask.sets == "decoder":
            alive = adata.var["feature"].to_numpy(dtype=np.int64)[np.diff(adata.X.tocsc().indptr) > 0]
            named[site] = decoder_neighbours(dictionaries[site].W_dec, min(ask.k, len(alive)), among=alive)
        else:
            named[site] = _communities(ask, study, model, dictionary=dictionaries[site])
    return _answer(sites, asked, settings, named=named, n_controls=ask.n_controls, seed=study.spec.seed)


def _communities(ask: SearchlightBlock, study: Any, model: Any, *, dictionary: Any) -> dict[str, np.ndarray]:
    from neurosae.dictionary.texts import read_texts, sample_texts

    n_tokens, seed = ask.n_tokens or N_TOKENS, study.spec.seed
    texts = list(read_texts(ask.texts)) if ask.texts else sample_texts(model, n_tokens, seed=seed)
    if same := set(texts) & set(study.stimuli["text"]):
        raise DataError(f"the reference text holds a stimulus, '{min(same)}'; communities need an independent text.")
    X = reference_activations(model, dictionary, texts, n_tokens=n_tokens, seed=seed)
    return coactivation_communities(X, n=ask.n or N_COMMUNITIES, seed=seed)


def _answer(
    sites: Mapping[str, AnnData],
    asked: Asked,
    inference: Inference,
    *,
    named: Mapping[str, Mapping[str, Any]],
    n_controls: int,
    seed: int,
) -> Tested:
    data, lost = _item_data(sites, asked)
    ways = relabellings_of(list(data.values()), inference.n_permutations, seed=seed, split=asked.split)
    tables, tops = [], []
    with threadpool_limits(1, user_api="blas"):
        for (key, one), way in zip(data.items(), ways, strict=True):
            table, maxima = _at_place(one, way, named[key[1]], key=key, least=inference.min_informative,
                                      controls=(n_controls, seed))  # fmt: skip
            tables.append(table)
            tops += [maxima] if maxima is not None else []
    over = "sets, effects, sites, regions and positions"
    about = {"test": asked.test, "kind": "searchlight", "split": asked.split}
    table, null = joined([*tables, *lost], tops, over=over, about=about)
    return Tested(check_results(table), null, {})


def _item_data(sites: Mapping[str, AnnData], asked: Asked) -> tuple[dict[Key, ItemData], list[dict[str, Any]]]:
    """Item data of every effect and place, and a row with the reason where there are none.

    Raises
    ------
    DataError
        Where no place has item data.
    """
    data: dict[Key, ItemData] = {}
    lost = []
    for site, adata in sites.items():
        design = design_of(adata)
        for region in asked.regions:
            for position in positions_in(adata, region):
                where = {"region": region, "position": position}
                for name, effect in asked.effects.items():
                    try:
                        data[name, site, region, position] = item_data(
                            adata, design, effect, **where, split=asked.split
                        )
                    except DataError as error:
                        row = {"effect": name, "site": site, **where, "set": "all sets", "stat": "D_c"}
                        lost.append(row | {"status": "untestable", "note": str(error), "p_method": "none"})
    if not data:
        raise DataError(lost[0]["note"])
    return data, lost


def _at_place(
    data: ItemData,
    way: tuple[Relabelling, np.ndarray | None],
    named: Mapping[str, Any],
    *,
    key: Key,
    least: int,
    controls: tuple[int, int],
) -> tuple[pd.DataFrame, np.ndarray | None]:
    relabelling, at = way[0], np.arange(data.n) if way[1] is None else way[1]
    where = {"effect": key[0], "site": key[1], "region": key[2], "position": key[3], "stat": "D_c", "unit": "item",
             "n_units": data.n, "alternative": "greater",
             "h0": f"{data.effect.h0}, in any feature of the set"}  # fmt: skip
    D = solid(data)
    kept = np.flatnonzero(np.diff(D.tocsc().indptr) >= least)
    D = D[:, kept].toarray()
    members, rows = _membership(named, data.features[kept], data.features)
    usable = np.asarray(members.sum(axis=0)).ravel()
    sizes = zip(rows, usable, strict=True)
    base = [{**where, "set": name, "n_features": int(n), "x_centre": _centre(name)} for name, n in sizes]
    table = pd.DataFrame(base)
    if not len(kept) or not (usable >= 2).any():
        why = f"no set has two features with a contrast that is not zero in at least {least} items"
        return table.assign(status="untestable", note=why, p_method="none"), None
    q = (D**2).sum(axis=0)
    if data.codes is not None:
        q -= D.sum(axis=0) ** 2 / data.n  # around the mean of all items: no label moves it
    weight = data.n / np.maximum(q + np.median(q), np.finfo(float).tiny)
    length = partial(feature_lengths, D, relabelling, at, weights=data.groups)
    values = np.concatenate([(length(first=a) * weight) @ members for a in range(0, relabelling.n, TILE)])
    spread = np.sqrt((values**2).mean(axis=0))
    ok = (usable >= 2) & (spread > 1e-12)
    z = values / np.where(ok, spread, 1)
    own = length(first=0)[0] * weight
    control, p_control = _controls(members, own, data=data, kept=kept, q=q, controls=controls)
    found = pd.DataFrame({
        "value": z[0], "estimate": values[0], "effsize": values[0], "eftype": "D_c",
        "p_unc": (z >= z[0] - 1e-9 * (1 + np.abs(z[0]))).mean(axis=0), "n_perm": relabelling.n,
        "p_method": relabelling.method(exact=data.exchange.exact),
        "n_informative": int((D != 0).any(axis=1).sum()), "p_min": max(1 / relabelling.n, data.exchange.p_min),
        "status": "ok", "note": data.exchange.note or None, "x_z": z[0], "x_control": control, "x_p_control": p_control,
    })  # fmt: skip
    why = f"fewer than two features of the set have a contrast that is not zero in at least {least} items"
    none = pd.DataFrame({"status": "untestable", "note": why, "p_method": "none"}, index=np.flatnonzero(~ok))
    filled = pd.concat([found[ok], none]).sort_index()
    return pd.concat([table, filled], axis=1), z[:, ok].max(axis=1)


def _centre(name: str) -> float:
    """Index of the feature in the middle of a neighbourhood."""
    number = name.removeprefix("feature ")
    return float(number) if number.isdecimal() and number != name else np.nan


def _membership(
    named: Mapping[str, Any], features: np.ndarray, everything: np.ndarray
) -> tuple[sp.csc_matrix, list[str]]:
    """Which kept feature is in which set (m, n_sets)."""
    place = {int(f): k for k, f in enumerate(features)}
    known = {int(f) for f in everything}
    rows, columns = [], []
    for number, (name, indices) in enumerate(named.items()):
        wanted = [int(f) for f in np.asarray(list(indices)).ravel()]
        if strange := [f for f in wanted if f not in known]:
            raise DataError(f"set '{name}' names feature {strange[0]}, which these responses do not have.")
        inside = [place[f] for f in wanted if f in place]
        rows += inside
        columns += [number] * len(inside)
    shape = (len(features), len(named))
    return sp.csc_matrix((np.ones(len(rows)), (rows, columns)), shape=shape), list(named)


def _controls(
    members: sp.csc_matrix,
    own: np.ndarray,
    *,
    data: ItemData,
    kept: np.ndarray,
    q: np.ndarray,
    controls: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Mean D_c of random sets with members from the same bins of density and energy, and the share that reach it."""
    n_controls, seed = controls
    density = np.diff(sp.csc_matrix(data.Y[:, kept]).indptr)
    bins = _bins(density, q)
    by_bin = [np.flatnonzero(bins == b) for b in range(bins.max() + 1)]
    rng = np.random.default_rng([seed, 13])
    mean, share = np.empty(members.shape[1]), np.empty(members.shape[1])  # pyright: ignore
    for column in range(len(mean)):
        inside = members.indices[members.indptr[column] : members.indptr[column + 1]]
        drawn = np.zeros(n_controls)
        for b, n in zip(*np.unique(bins[inside], return_counts=True), strict=True):
            # without replacement: the n smallest of random keys
            order = np.argpartition(rng.random((n_controls, len(by_bin[b]))), n - 1, axis=1)[:, :n]
            drawn += own[by_bin[b][order]].sum(axis=1)
        observed = own[inside].sum()
        mean[column] = drawn.mean()
        share[column] = (1 + (drawn >= observed - 1e-12 * np.abs(own[inside]).sum()).sum()) / (1 + n_controls)
    return mean, share


def _bins(density: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Quarters of the features by density, and of each quarter by energy; ties stay together by their order."""

    def quarter(values: np.ndarray) -> np.ndarray:
        rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return rank * BINS // max(len(values), 1)

    outer, out = quarter(density), np.empty(len(density), dtype=np.int64)
    for b in range(BINS):
        inside = outer == b
        out[inside] = b * BINS + quarter(energy[inside])
    return np.unique(out, return_inverse=True)[1]
