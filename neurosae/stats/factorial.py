r"""Factorial effects on the whole pattern of features: D_c and its relatives, for several effects at many places.

1. Item data of every effect, site, region and position; features that differ in enough items, or a chosen set.
2. A statistic of the whole pattern (`pattern_statistics`), recomputed under relabellings that all places share.
3. p corrected by the maximum of the standardized statistic over places, then by Holm over effects.
4. A chosen set stands beside random sets that match it in number, density and energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError, SpecError, choose
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.factorial import FactorialBlock, GivenFeatures
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.asked import (
    features_from_earlier,
    named_effects,
    positions_in,
    read_block,
    responses_by_site,
    settings_of,
)
from neurosae.stats.joined import in_deviations
from neurosae.stats.length import Length, LengthTest, corrected_lengths
from neurosae.stats.lengths import relabellings
from neurosae.stats.matched import matched_sets
from neurosae.stats.pattern_statistics import PATTERN_STATISTICS
from neurosae.stats.relabel import flips, permutations, within
from neurosae.stats.spots import Found, Spot
from neurosae.stats.units import AnnData, ItemData, item_data

Key = tuple[str, str, int]


class Question(NamedTuple):
    """A checked block with its effects: name of the test, the block, effects, settings, features of sites, seed."""

    name: str
    ask: FactorialBlock
    effects: Mapping[str, Mapping[str, Any]]
    inference: Inference
    features: Mapping[str, np.ndarray] | None
    seed: int


def factorial(
    responses: AnnData | Mapping[str, AnnData],
    effects: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    statistic: str = "contrast_length",
    inference: Mapping[str, Any] | Inference | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test factorial effects on the whole pattern of features, one row per effect, site, region and position.

    The default is the cross-validated contrast length; with d_i (m,) the contrast of item i,

        D_c = 1/(n (n-1)) sum_{i != k} d_i' W d_k,   W = diag(1 / (q_j/n + median q/n)),   q_j = sum_i d_ij^2.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effects : `{factor: {level: weight}}`, or {name: effect} for several
    region : name or names
    statistic : `contrast_length`, `cvmanova`, `manova`, `decoding`, `ccgp`, `parallelism`, `permanova` or `demixed`
    inference : keys of the `inference:` section; `n_permutations`, `min_informative` and `alpha` are used
    settings : as in a `factorial` test: `across`, `folds`, `shrinkage`, `scores`, `features` ({"named": {site: …}}),
        `n_controls`, `split`, `sites`
    seed : int
        Relabellings are a function of (seed, split, item).

    Returns
    -------
    DataFrame
        The results schema. `value` is the statistic (D_c in squared standardized units; AUC; F; Pillai's V; a cosine),
        `p_unc` and `p_corr` are one-sided. `x_z` is the statistic in standard deviations of its null. What else
        belongs to a statistic stands in `x_` columns, e.g. `x_p_geometry` of `ccgp`, `x_p_dispersion` of `permanova`.
        With features `x_p_controls` is the share of matched random sets that reach the value.

    Raises
    ------
    DataError, SpecError
        An unknown name; an effect that the statistic cannot take; too few items.

    Notes
    -----
    H0: the effect's labels are exchangeable within items (or items are, inside strata), jointly for all features: no
    feature answers to the effect. H1: at least one does; which, a `contrast` says. `p_corr`: maximum over sites,
    regions and positions of the statistic in standard deviations of its own null, then Holm over effects.
    `cvmanova` flips whole folds of items, which is exact if folds are exchangeable in sign. Not tested: `demixed`.

    References
    ----------
    Allefeld & Haynes (2014), NeuroImage 89:345. Bernardi et al. (2020), Cell 183:954. Anderson (2001), Austral Ecology
    26:32. Kobak et al. (2016), eLife 5:e10989.

    Examples
    --------
    >>> from neurosae.stats.worlds import world
    >>> fake = world("C0", n_items=16, seed=0)
    >>> a, b = ({name: {"yes": 1, "no": -1}} for name in "ab")
    >>> found = factorial(fake, {"a": a, "b": b, "ab": a | b}, region="probe", seed=1)
    >>> dict(zip(found.effect, (found.p_corr <= 0.05).tolist()))
    {'a': True, 'b': True, 'ab': False}
    """
    named = named_effects(effects)
    block = {"test": "factorial", "region": region, "effects": list(named), "statistic": statistic, **(settings or {})}
    ask = as_record(block, FactorialBlock, name="factorial")
    sites = responses_by_site(responses)
    sites = {site: choose("site", site, sites) for site in ask.sites or sites}
    if ask.features is not None and ask.features.from_ is not None:
        raise DataError('features: name them here, {"named": {site: indices}}; `from` belongs to an analysis file.')
    features = named_features(ask.features, sites)
    return answer(Question("factorial", ask, named, settings_of(inference), features, seed), sites).table


def run(
    responses: Mapping[str, AnnData], ask: FactorialBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: factorial`."""
    asked, sites, settings = read_block(ask, study, responses)
    features = given_features(ask, sites, earlier)
    return answer(Question(asked.test, ask, asked.effects, settings, features, study.spec.seed), sites)


def given_features(
    ask: Any, sites: Mapping[str, AnnData], earlier: Mapping[str, Tested]
) -> Mapping[str, np.ndarray] | None:
    """Indices of the features that a block names or lets an earlier test choose; None for all."""
    if ask.features is not None and ask.features.from_ is not None:
        return features_from_earlier(ask, sites, earlier)[0]
    return named_features(ask.features, sites)


def named_features(given: GivenFeatures | None, sites: Mapping[str, AnnData]) -> Mapping[str, np.ndarray] | None:
    """Indices of named features by site; every site must have some."""
    if given is None:
        return None
    return {site: np.sort(np.array(choose("site of these features", site, given.named))) for site in sites}


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(asked: Question, sites: Mapping[str, AnnData]) -> Tested:
    """Rows of every effect and place, corrected."""
    made: dict[str, dict[Key, tuple[Spot, Found] | str]] = {}
    with threadpool_limits(1, user_api="blas"):  # one order of summation, whatever the number of threads
        for name in asked.effects:
            spots = _spots(asked, sites, name)
            made[name] = {key: spot if isinstance(spot, str) else _at(spot) for key, spot in spots.items()}
        p_corr, null_max = corrected_lengths({name: _tests(by_place) for name, by_place in made.items()})
        rows = [
            _row(asked, name, key, one=one) | _corrected(asked, one, p_corr, at=(name, key))
            for name, by_place in made.items()
            for key, one in by_place.items()
        ]
        rows = [row | _controls(asked, one) for row, one in zip(rows, _each(made), strict=True)]
    frame = pd.DataFrame(rows)
    table = check_results(as_results({name: frame[name] for name in frame.columns}))
    if (table["status"] == "untestable").all() and len(set(table["note"])) == 1:
        raise DataError(f"factorial test '{asked.name}': {table['note'].iloc[0]}")
    return Tested(table, null_max, {})


def _each(made: Mapping[str, Mapping[Key, Any]]) -> list[Any]:
    return [one for by_place in made.values() for one in by_place.values()]


def _spots(asked: Question, sites: Mapping[str, AnnData], effect: str) -> dict[Key, Spot | str]:
    """One effect at every place, or why it cannot be tested there."""
    ask, written = asked.ask, asked.effects[effect]
    data: dict[Key, ItemData] = {}
    out: dict[Key, Spot | str] = {}
    flips_only = ask.statistic != "contrast_length"
    for site, adata in sites.items():
        for region in ask.region:
            for position in positions_in(adata, region):
                key = (site, region, position)
                where = {"region": region, "position": position, "split": ask.split, "flips_only": flips_only}
                try:
                    data[key] = item_data(adata, design_of(adata), written, **where)
                    out[key] = ""
                except DataError as error:
                    out[key] = str(error)
    made = relabellings(list(data.values()), asked.inference.n_permutations, seed=asked.seed, split=ask.split)
    for (key, one), (relabelling, place) in zip(data.items(), made, strict=True):
        _refuse_few(one, asked.inference, ask)
        columns = _columns(asked, one, key[0])
        if not len(columns):
            least = asked.inference.min_informative
            out[key] = f"no feature has a contrast that is not zero in at least {least} items"
            continue
        around = (sites[key[0]], design_of(sites[key[0]]), written)
        out[key] = Spot(key, one, columns, relabelling, place, ask, asked.seed, around)
    return out


def _refuse_few(data: ItemData, inference: Inference, ask: FactorialBlock) -> None:
    if data.exchange.p_min > inference.alpha and ask.statistic not in ("cvmanova", "demixed"):
        raise DataError(
            f"{data.n} items in split '{ask.split}' allow {data.exchange.n_relabellings} relabellings; the smallest p "
            f"is {data.exchange.p_min:.3g}, above alpha {inference.alpha:g}. Use at least 6 items."
        )


def _columns(asked: Question, data: ItemData, site: str) -> np.ndarray:
    kept = np.flatnonzero(data.informative >= asked.inference.min_informative)
    if asked.features is None:
        return kept
    wanted = pd.Index(data.features).get_indexer(asked.features[site])  # pyright: ignore[reportArgumentType]
    if (wanted < 0).any():
        raise DataError(f"site '{site}' has no feature {int(asked.features[site][wanted < 0][0])}.")
    return np.intersect1d(kept, wanted)


def _at(spot: Spot) -> tuple[Spot, Found] | str:
    try:
        return spot, PATTERN_STATISTICS[spot.ask.statistic](spot)
    except (DataError, SpecError) as error:
        return str(error)


def _tests(by_place: Mapping[Key, tuple[Spot, Found] | str]) -> dict[Key, LengthTest | str]:
    """What the correction over places and effects needs: the statistic in standard deviations of its own null."""
    out: dict[Key, LengthTest | str] = {}
    for key, one in by_place.items():
        if isinstance(one, str) or one[1].null is None:
            out[key] = one if isinstance(one, str) else "not tested"
            continue
        spot, found = one
        length = Length(found.value, _standardized(found), _p(found), len(spot.columns), spot.data.n)
        out[key] = LengthTest(length, spot.data, spot.relabelling)
    return out


def _standardized(found: Found) -> np.ndarray:
    """(T - mean) / sd over relabellings, which no relabelling changes; all 0 where the statistic never moves."""
    null = found.null
    assert null is not None
    if found.eftype == "D_c":  # already in standard deviations around 0
        return null
    return in_deviations(null)


def _p(found: Found) -> float:
    null = found.null
    assert null is not None
    return float((null >= null[0] - 1e-9 * np.abs(null).max()).mean())


# --- rows -----------------------------------------------------------------------------------------------------------


def _row(asked: Question, effect: str, key: Key, *, one: tuple[Spot, Found] | str) -> dict[str, Any]:
    site, region, position = key
    least = asked.inference.min_informative
    every = f"features informative in at least {least} items"
    chosen = asked.ask.features
    named = "named features" if chosen is None or chosen.from_ is None else f"{chosen.from_} top {chosen.top}"
    row = {"test": asked.name, "kind": "factorial", "effect": effect, "site": site, "region": region}
    row |= {"position": position, "split": asked.ask.split, "set": every if chosen is None else named}
    row |= {"stat": asked.ask.statistic, "p_method": "none"}
    if isinstance(one, str):
        return row | {"status": "untestable", "note": one}
    spot, found = one
    exchange = spot.data.exchange
    defined = bool(np.isfinite(found.value))
    notes = [*found.notes, *filter(None, [exchange.note, spot.data.dropped])]
    return row | {
        "n_features": len(spot.columns) if found.n_features is None else found.n_features,
        "value": found.value,
        "dof": found.dof,
        "effsize": found.effsize,
        "eftype": found.eftype,
        "unit": exchange.unit,
        "n_units": spot.data.n,
        "n_informative": int((np.diff(spot.data.D[:, spot.columns].tocsr().indptr) > 0).sum()),
        "h0": f"{spot.data.effect.h0}, in any feature",
        "status": "ok" if defined else "degenerate",
        "note": "; ".join(notes) or pd.NA,
        **found.extras,
    }


def _corrected(
    asked: Question, one: tuple[Spot, Found] | str, p: Mapping[tuple[str, Key], float], *, at: tuple[str, Key]
) -> dict[str, Any]:
    """What a row says about its test; where there is none, nothing."""
    if isinstance(one, str) or one[1].null is None or at not in p:
        return {}
    spot, found = one
    exchange, n = spot.data.exchange, len(found.null)  # pyright: ignore[reportArgumentType]
    method = spot.relabelling.method(exact=exchange.exact)
    if found.p_min is not None:  # all flips of folds
        method = "exact" if exchange.exact else "fold flips (approximate)"
    n_effects = len({name for name, _ in p})
    over_places = f"maximum over sites, regions and positions of test {asked.name}"
    return {
        "p_unc": _p(found),
        "p_corr": p[at],
        "p_adjust": "maxT" if n_effects == 1 else "maxT+holm",
        "p_method": method,
        "family": over_places if n_effects == 1 else f"{over_places}, then Holm over its {n_effects} effects",
        "n_family": len(p),
        "n_perm": n,
        "p_min": max(1 / n, exchange.p_min if found.p_min is None else found.p_min),
        "alternative": "greater",
        "x_z": float(_standardized(found)[0]),
    }


def _controls(asked: Question, one: tuple[Spot, Found] | str) -> dict[str, Any]:
    """Where a chosen set stands among matched random sets, by the observed statistic alone."""
    if asked.features is None or isinstance(one, str) or one[1].null is None or not np.isfinite(one[1].value):
        return {}
    spot, found = one
    kept = np.flatnonzero(spot.data.informative >= asked.inference.min_informative)
    sets = matched_sets(spot.data.Y, kept, spot.columns, n=asked.ask.n_controls, seed=asked.seed)
    if sets is None:
        return {"x_n_controls": 0}
    identity = _identity(spot)
    values = []
    for columns in sets:
        other = _at(replace(spot, columns=columns, relabelling=identity))
        values.append(np.nan if isinstance(other, str) else other[1].value)
    known = np.array(values)[np.isfinite(values)]
    reached = 1 + int((known >= found.value - 1e-9 * abs(found.value)).sum())
    return {
        "x_p_controls": reached / (len(known) + 1),
        "x_control_median": float(np.median(known)) if len(known) else np.nan,
        "x_control_high": float(np.quantile(known, 0.95)) if len(known) else np.nan,
        "x_n_controls": len(known),
    }


def _identity(spot: Spot) -> Any:
    """The same relabelling, its identity alone."""
    r = spot.relabelling
    common = {"seed": r.seed, "split": r.split, "enumerate_all": False}
    if r.kind == "flip":
        return flips(r.rows, 1, **common)
    if r.kind == "within":
        return within(r.rows, r.n_levels, 1, part=(r.factor, False), **common)
    return permutations(r.rows, r.codes, 1, blocks=r.blocks, **common)
