"""Regions of interest: sets of features, one row per set, never chosen by the effect on the items that are tested.

| choice | what is relabelled |
|---|---|
| `{"from": found, "top": n}`, found on other items | the mean response of the set |
| `{"cross_fit": {"folds": 4, "top": n}}` | the choice and the test, both inside every relabelling (`crossfit`) |
| sets by name: decoder clusters, communities, a-priori sets | the mean response of each set |
| `{"all": True}` | the mean response of the whole site |
| `{"orthogonal": other effect, "top": n}` | the mean response; refused unless orthogonality is verified |

The mean over a set is linear, so a set is tested as one feature whose response is that mean (`contrast`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.errors import DataError, choose
from neurosae.spec.blocks import Inference, RegionChoice, RoiBlock
from neurosae.spec.results import Tested
from neurosae.stats.asked import Asked, named_effects, read_block, refuse_several, responses_by_site, settings_of
from neurosae.stats.communities import coactivation_communities, decoder_clusters, reference_activations
from neurosae.stats.crossfit import Rule
from neurosae.stats.crosstest import test_cross_fitted
from neurosae.stats.othereffect import chosen_by_other_effect
from neurosae.stats.sets import FeatureSet, described, plain, test_sets, top_rows
from neurosae.stats.units import AnnData

WAYS = ("from", "cross_fit", "clusters", "orthogonal", "all")
DEFAULT_N, DEFAULT_TOKENS = 20, 50_000


def roi(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    features: Mapping[str, Any] | Sequence[int],
    region: str | Sequence[str],
    split: str = "test",
    inference: Mapping[str, Any] | Inference | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test the mean response of sets of features for a contrast between cells.

    With S a set and o_j = 1, or -1 for a feature that was smaller in the + cells where it was chosen,

        y_ic^S = 1/|S| sum_{j in S} o_j y_ijc,   d_i = sum_c w_c y_ic^S,

    and the test of d is that of a single feature (`contrast`), corrected over sets, sites, regions and positions.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : `{factor: {level: weight}}`, or {name: effect} for several, which then form one family
    features : which features
        Indices, `{name: indices}`, or `{site: {name: indices}}` of sets chosen without looking at this contrast
        (`decoder_clusters`, `coactivation_communities`); or one of

        * `{"from": table, "top": 50}`: the top features of `contrast` on the *other* split, by |value|;
        * `{"cross_fit": {"folds": 4, "top": 50}}`: chosen by |contrast| on all folds but one, tested on that one;
        * `{"orthogonal": other effect, "top": 50}`: chosen on the same items by an effect that is verified orthogonal;
        * `{"all": True}`: all features of the site as one set.

        `"direction": "plus"` (`"minus"`) beside from, cross_fit and orthogonal chooses only features larger in the
        + (-) cells; the default `"both"` counts each feature in the direction that it had where it was chosen.
    region : name or names
    split : "test" or "localizer"
    inference : keys of the `inference:` section; the rest has its defaults
    seed : int

    Returns
    -------
    DataFrame
        The results schema, one row per set, effect, site, region and position; `set` names the set, `n_features` its
        size, `feature` is NA. With cross_fit `x_overlap` is the share of features that two folds choose alike.

    Raises
    ------
    DataError
        Features that the tested items chose; an effect that is not orthogonal, or covaries; folds that are too small.

    Notes
    -----
    H0: as in `contrast`, for the response of the set. For cross_fit it is that of all features jointly, because the
    choice is repeated for every relabelling, which a t test over held-out folds does not do: folds share training
    items and it rejects too often. A found set says that some of its features respond, not which ones.

    References
    ----------
    Kriegeskorte et al. (2009), Nature Neuroscience 12:535. Saxe, Brett & Kanwisher (2006), NeuroImage 30:1088.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(24), n_features=60, effects={"number": 6}, density=0.4, shift=5.0, seed=1)
    >>> number, how = {"number": {"pl": 1, "sg": -1}}, {"cross_fit": {"folds": 4, "top": 6}}
    >>> row = roi(fake, number, features=how, region="noun", seed=1).iloc[0]
    >>> row["set"], bool(row["p_corr"] < 0.001), bool(row["estimate"] > 0)
    ('cross-fit top 6', True, True)
    >>> found = roi(fake, number, features={"planted": range(6), "others": range(6, 60)}, region="noun", seed=1)
    >>> dict(zip(found["set"], found["p_corr"] <= 0.05))
    {'planted': True, 'others': False}
    """
    sites, regions = responses_by_site(responses), (region,) if isinstance(region, str) else tuple(region)
    asked, settings = Asked("roi", named_effects(effect), regions, split), settings_of(inference)
    given, source = _given(features, sites)
    if isinstance(given, RegionChoice):
        return _chosen(sites, asked, settings, choice=given, source=source, seed=seed).table
    sets = {site: _everywhere(asked, _named_sets(adata, given[site])) for site, adata in sites.items()}
    return test_sets(sites, asked, settings, sets=sets, seed=seed).table


def run(
    responses: Mapping[str, AnnData], ask: RoiBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: roi`; extras: `chosen`, the features of every set."""
    spec, choice = study.spec, ask.features
    asked, sites, settings = read_block(ask, study, responses)
    if choice.clusters is None:
        source: Any = earlier[choice.from_].table if choice.from_ else spec.effects.get(choice.orthogonal or "")
        return _chosen(sites, asked, settings, choice=choice, source=source, seed=spec.seed)
    named = _data_free(sites, choice, study)
    sets = {site: _everywhere(asked, _named_sets(adata, named[site])) for site, adata in sites.items()}
    return test_sets(sites, asked, settings, sets=sets, seed=spec.seed)


def _given(features: Any, sites: Mapping[str, AnnData]) -> tuple[Any, Any]:
    """A choice and what it chooses by, or sets of every site by name."""
    if not isinstance(features, Mapping):
        return {site: {"chosen features": features} for site in sites}, None
    if not features:
        raise DataError("features names no set; give {name: feature indices}, or {'cross_fit': {'top': 50}}.")
    ways = [way for way in WAYS if way in features]
    if not ways:
        by_site = all(isinstance(sets, Mapping) for sets in features.values())
        named = features if by_site else dict.fromkeys(sites, features)
        return {site: choose("site of these sets", site, named) for site in sites}, None
    written, source = dict(features), None
    if ways[0] in ("from", "orthogonal"):
        source, written[ways[0]] = features[ways[0]], "given"
    if ways[0] == "clusters":
        raise DataError("clusters need a decoder or a text; give features=decoder_clusters(dictionary.W_dec, seed=0).")
    try:
        return RegionChoice.model_validate(written), source
    except ValueError as error:
        details: Any = getattr(error, "errors", list)()
        where = (*details[0]["loc"], *details[0].get("ctx", {}).get("where", ())) if details else ()
        text = details[0]["msg"] if details else str(error)
        raise DataError(f"{'.'.join(map(str, ('features', *where)))}: {text}") from None


def _chosen(
    sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, choice: RegionChoice, source: Any, seed: int
) -> Tested:
    if choice.cross_fit is not None:
        rule = Rule(choice.cross_fit.folds, choice.cross_fit.top, choice.direction)
        return test_cross_fitted(sites, asked, inference, rule=rule, seed=seed)
    if choice.all_:
        sets = {s: _everywhere(asked, {"all features": plain(a, a.var["feature"], "all")}) for s, a in sites.items()}
    elif choice.from_ is not None:
        chosen = {
            site: _earlier(source, adata, site, choice=choice, split=asked.split) for site, adata in sites.items()
        }
        sets = {site: _everywhere(asked, by_name) for site, by_name in chosen.items()}
    else:
        sets = chosen_by_other_effect(sites, asked, inference, choice=choice, effect=source, seed=seed)
    return test_sets(sites, asked, inference, sets=sets, seed=seed)


def _everywhere(asked: Asked, sets: Mapping[str, FeatureSet]) -> dict[str, Mapping[str, FeatureSet]]:
    return dict.fromkeys(asked.regions, sets)


def _named_sets(adata: AnnData, named: Mapping[str, Any]) -> dict[str, FeatureSet]:
    return {str(name): plain(adata, indices, str(name)) for name, indices in named.items()}


def _earlier(table: Any, adata: AnnData, site: str, *, choice: RegionChoice, split: str) -> dict[str, FeatureSet]:
    """The most extreme features of an earlier test on other items, ties by feature index."""
    if not isinstance(table, pd.DataFrame) or "split" not in table:
        raise DataError("'from' needs the table that `contrast` returned for the other split, e.g. localizer.")
    if set(table["split"].dropna()) & {split}:
        raise DataError(
            f"features would be chosen and tested on the same items (split: {split}). Choose them with "
            "split='localizer', or by {'cross_fit': {'top': 50}}."
        )
    rows = table[(table["site"] == site).to_numpy() & table["feature"].notna().to_numpy()]
    rows = rows[(rows["status"] == "ok").to_numpy()]
    refuse_several(rows, "the earlier test")
    rows = top_rows(rows, choice)
    if not len(rows):
        raise DataError(f"the earlier test has no feature of that direction at site '{site}'; run it on that site too.")
    columns = pd.Index(adata.var["feature"]).get_indexer(rows["feature"].to_numpy(dtype=int))  # pyright: ignore
    signs = np.sign(rows["value"].to_numpy(dtype=float)) if choice.direction == "both" else np.ones(len(rows))
    name = f"{rows['test'].iloc[0]} top {choice.top}"
    where = ", ".join(dict.fromkeys(rows["split"]))
    return {name: FeatureSet(columns, signs, described(len(columns), signs, f"chosen on {where} items"))}


def _data_free(sites: Mapping[str, AnnData], choice: RegionChoice, study: Any) -> dict[str, dict[str, np.ndarray]]:
    """Clusters of decoder directions, or communities on reference text, of every site."""
    model, dictionaries = study.live()
    n, seed = choice.n or DEFAULT_N, study.spec.seed
    if choice.clusters == "decoder":
        return {site: decoder_clusters(dictionaries[site].W_dec, n, seed=seed) for site in sites}
    from neurosae.dictionary.texts import read_texts, sample_texts

    n_tokens = choice.n_tokens or DEFAULT_TOKENS
    texts = list(read_texts(choice.texts)) if choice.texts else sample_texts(model, n_tokens, seed=seed)
    if same := set(texts) & set(study.stimuli["text"]):
        raise DataError(f"the reference text holds a stimulus, '{min(same)}'; communities need an independent text.")
    out = {}
    for site in sites:
        X = reference_activations(model, dictionaries[site], texts, n_tokens=n_tokens, seed=seed)
        out[site] = coactivation_communities(X, n=n, seed=seed)
    return out
