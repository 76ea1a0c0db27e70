r"""Representational similarity: does the geometry of conditions look like a model, and is the model's effect there?

1. Item x condition patterns of each site, region and position become one RDM (`geometry.py`, `rdm.py`).
2. Model RDMs come from effects, |c_k - c_l|^2 of their weights, or from columns such as the number of tokens.
3. Each model is compared with the data, alone and beside all others, under the ceiling that reliability sets.
4. A factorial model is tested by D_c, the cross-validated length of its contrast over all features (`length.py`), not
   by its fit: with few conditions no permutation of their labels can be significant. Whole items are flipped, the same
   flips as in `contrast`; where a factor varies between items, labels are permuted over items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError
from neurosae.spec.blocks import Inference
from neurosae.spec.geometry import RdmModel, RsaBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats import rdm
from neurosae.stats.geometry import Key, Place, Question, places, question, vectors
from neurosae.stats.length import LengthTest, corrected_lengths, effect_lengths
from neurosae.stats.rdm_compare import compare_rdms, condensed_to_square, partial_fit
from neurosae.stats.units import item_data

if TYPE_CHECKING:
    from rsatoolbox.model.model import ModelFixed
    from rsatoolbox.rdm.rdms import RDMs

N_HALVES = 100  # random halves of the items for the reliability
UNRANKED = 0.3  # reliability below which models are not ranked


def rsa(
    responses: Any,
    *,
    models: Mapping[str, Mapping[str, Any]],
    conditions: Sequence[str],
    region: str | Sequence[str],
    inference: Inference | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Compare the geometry of conditions with models, at every site, region and position.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}, aligned, and collapsed where a region has several tokens
    models : mapping from name to an effect, `{"subject": {"pl": 1, "sg": -1}}`, or to a column of numbers,
        `{"column": "n_tokens"}`, whose distances are absolute differences of condition means. `"nuisance": True`
        beside it keeps a model in the joint fit only
    conditions : factors, and "frame", whose combinations are the rows of the RDM; at least 3 combinations
    region : one region or several
    inference : as under `inference:`; `n_permutations` and `min_informative` are used
    settings : as in an `rsa` test: `distance` ("crossnobis"), `compare` ("cosine_cov"), `split` ("test"), `sites`
    seed : int
        Relabellings are a function of (seed, split, item), the halves for the reliability of the seed.

    Returns
    -------
    DataFrame
        The results schema, a row per model and place. `value` is the fit. For factorial models `estimate` is D_c (in
        squared standardized units, negative values are legal), `p_unc` and `p_corr` belong to it, and `x_z` is D_c in
        standard deviations of its null. Further `x_reliability` and `x_ceiling`, and from the joint fit of all models
        `x_weight` (distance per feature), `x_unique` and `x_share` (shares of the data RDM).

    Raises
    ------
    DataError
        Unknown conditions or columns, effects whose factors are not among the conditions, too few items.

    Notes
    -----
    H0 of a factorial model: its contrast is exchangeable in sign within every item (or its labels over items), jointly
    for all features. `p_corr`: maximum of `x_z` over sites, regions and positions, then Holm over models. Column and
    nuisance models have a fit and no p: conditions cannot be relabelled by a number they happen to have. Fits are
    never tested against 0. One dictionary is one subject: the ceiling is sqrt of the split-half reliability over items.

    References
    ----------
    Walther et al. (2016), NeuroImage 137:188. Diedrichsen & Kriegeskorte (2017), PLoS Comput Biol 13:e1005508.
    Schütt et al. (2023), eLife 12:e82566. Allefeld & Haynes (2014), NeuroImage 89:345.

    Examples
    --------
    >>> from neurosae.spec.design import Design
    >>> from neurosae.stats.simulate import simulate
    >>> words = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"}} for k in range(16)}
    >>> two = {"a": ["x", "y"], "b": ["x", "y"]}
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "two", "factors": two,
    ...     "frames": {"f": "{u:a} {w:b}"}, "regions": {"all_words": {"words": [0, -1]}}, "items": words})
    >>> fake = simulate(design, n_features=200, effects={"a": 20}, density=0.3, seed=0)
    >>> effects = {name: {name: {"x": -1, "y": 1}} for name in two}
    >>> found = rsa(fake, models=effects, conditions=["a", "b"], region="all_words", seed=1)
    >>> found[["effect", "stat"]].values.tolist(), (found.p_corr < 0.05).tolist()
    ([['a', 'cosine_cov'], ['b', 'cosine_cov']], [True, False])
    """
    asked = question(models, conditions, region, inference=inference, settings=settings, seed=seed)
    return _answer(asked, responses, np.random.default_rng(seed)).table


def run(responses: Any, ask: RsaBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """Answer an `rsa` block of an analysis; extras: `rdm` (data and model RDMs) and `fits` (halves of the items)."""
    spec = study.spec
    name = next((name for name, block in spec.tests.items() if block is ask), "rsa")
    effects = {model.effect: spec.effects[model.effect] for model in ask.models.values() if model.effect}
    return _answer(Question(name, ask, effects, spec.inference, spec.seed), responses, rng)


def rdms(
    responses: Any,
    *,
    conditions: Sequence[str],
    region: str | Sequence[str],
    inference: Inference | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[Key, RDMs]:
    """The data RDMs as rsatoolbox objects, by (site, region, position); arguments as in `rsa`.

    `pattern_descriptors["condition"]` holds labels such as `sg/pl`; `descriptors` the place, the split and the numbers
    of items and features. Places that cannot be computed are absent.
    """
    from rsatoolbox.rdm.rdms import RDMs

    asked = question({"n_tokens": {"column": "n_tokens"}}, conditions, region, inference=inference, settings=settings)
    out = {}
    for place in places(asked, responses)[0]:
        about = {"site": place.site, "region": place.region, "position": place.position, "split": asked.ask.split}
        about |= {"n_items": len(place.found.items), "n_features": place.found.n_features}
        names = {"condition": place.found.labels}
        out[place.key] = RDMs(place.data[None], asked.ask.distance, descriptors=about, pattern_descriptors=names)
    return out


def model_rdms(
    responses: Any,
    *,
    models: Mapping[str, Mapping[str, Any]],
    conditions: Sequence[str],
    region: str | Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> dict[Key, list[ModelFixed]]:
    """The model RDMs as rsatoolbox models, by (site, region, position); arguments as in `rsa`."""
    from rsatoolbox.model.model import ModelFixed

    asked = question(models, conditions, region, settings=settings)
    found, _ = places(asked, responses)
    return {p.key: [ModelFixed(name, vector) for name, vector in vectors(asked, p).items()] for p in found}


# --- the answer -----------------------------------------------------------------------------------------------------


def _answer(asked: Question, responses: Any, rng: np.random.Generator) -> Tested:
    found, failed = places(asked, responses)
    seed = int(rng.integers(2**63))  # every place halves its items alike, whatever other places there are
    with threadpool_limits(1, user_api="blas"):  # one order of summation, whatever the number of threads
        models = [vectors(asked, place) for place in found]
        fits = [_fits(asked, *one, rng=np.random.default_rng(seed)) for one in zip(found, models, strict=True)]
        tests = {name: _tests(asked, str(m.effect), found) for name, m in asked.ask.models.items() if _tested(m)}
    p_corr, null_max = corrected_lengths(tests)
    rows = []
    for place, fit in zip(found, fits, strict=True):
        for one in cast(list[dict[str, Any]], fit.to_dict("records")):
            test = tests.get(one["model"], {}).get(place.key)
            row = _row(asked, place, fit=one, test=test)
            rows.append(row | _test_columns(test, p_corr, model=one["model"], key=place.key))
    rows += [_missing(asked, key, model=model, why=why) for key, why in failed.items() for model in asked.ask.models]
    frame = pd.DataFrame(rows)
    table = check_results(as_results({name: frame[name] for name in frame.columns}))
    extras = {"rdm": _long(found, models), "fits": pd.concat(fits, ignore_index=True)}
    return Tested(table, null_max, extras)


def _tested(model: RdmModel) -> bool:
    return model.effect is not None and not model.nuisance


def _fits(asked: Question, place: Place, models: Mapping[str, np.ndarray], *, rng: np.random.Generator) -> pd.DataFrame:
    """Fit of each model, alone and jointly, with the reliability of the RDM; a row per model."""
    ask, found = asked.ask, place.found
    alone = {name: compare_rdms(place.data, vector, ask.compare) for name, vector in models.items()}
    usable = [name for name, value in alone.items() if np.isfinite(value)]
    columns = {"site": place.site, "region": place.region, "position": place.position, "model": list(models)}
    table = pd.DataFrame({**columns, "compare": ask.compare, "value": list(alone.values())}).set_index(
        "model", drop=False
    )
    table[["weight", "unique", "share", "reliability", "ceiling", "value_halves", "ceiling_low", "ceiling_high"]] = (
        np.nan
    )
    if usable and ask.compare != "tau-a":
        joint = partial_fit(place.data, np.stack([models[name] for name in usable]), ask.compare)
        for name, values in zip(("weight", "unique", "share"), joint, strict=True):
            table.loc[usable, name] = values
    halves = rdm.half_rdms(place.gram, found, rdm.item_halves(found, N_HALVES, rng), distance=ask.distance)
    if halves is not None and np.isfinite(halves).all():
        table["reliability"], table["ceiling"] = rdm.reliability(halves, ask.compare)
        bounds = np.mean([rdm.noise_ceiling(pair, ask.compare) for pair in halves], axis=0)
        table["ceiling_low"], table["ceiling_high"] = bounds
        for name in usable:
            agreement = [compare_rdms(half, models[name], ask.compare) for pair in halves for half in pair]
            table.loc[name, "value_halves"] = np.mean(agreement)
    return table.reset_index(drop=True)


def _tests(asked: Question, name: str, found: Sequence[Place]) -> dict[Key, LengthTest | str]:
    """D_c of one effect at every place under the same relabellings, or why there is none."""
    data, out = {}, {}
    for place in found:
        where = {"region": place.region, "position": place.position, "split": asked.ask.split}
        try:
            data[place.key] = item_data(place.adata, place.design, asked.effects[name], **where)
        except DataError as error:
            out[place.key] = f"No test: {error}"
    rules = asked.inference
    common = {"n_permutations": rules.n_permutations, "min_informative": rules.min_informative}
    lengths = effect_lengths(data, seed=asked.seed, split=asked.ask.split, **common)
    none = f"No test: no feature has a contrast that is not zero in at least {rules.min_informative} items."
    return out | {key: lengths.get(key, none) for key in data}


# --- rows -----------------------------------------------------------------------------------------------------------


def _about(asked: Question, key: Key, model: str) -> dict[str, Any]:
    site, region, position = key
    least = asked.inference.min_informative
    where = {"test": asked.name, "kind": "rsa", "effect": model, "site": site, "region": region, "position": position}
    return where | {
        "split": asked.ask.split,
        "set": f"features informative in at least {least} items",
        "stat": asked.ask.compare,
    }


def _row(asked: Question, place: Place, *, fit: Mapping[str, Any], test: LengthTest | str | None) -> dict[str, Any]:
    found, defined = place.found, bool(np.isfinite(fit["value"]))
    return _about(asked, place.key, fit["model"]) | {
        "n_features": found.n_features,
        "value": fit["value"],
        "unit": "item",
        "n_units": len(found.items),
        "status": "ok" if defined else "degenerate",
        "note": " ".join(_notes(asked, place, fit=fit, test=test)),
        "x_reliability": fit["reliability"],
        "x_ceiling": fit["ceiling"],
        "x_weight": fit["weight"],
        "x_unique": fit["unique"],
        "x_share": fit["share"],
        "x_n_dead": found.n_dead,
        "x_n_untestable": found.n_untestable,
    }


def _test_columns(
    test: LengthTest | str | None, p: Mapping[tuple[str, Key], float], *, model: str, key: Key
) -> dict[str, Any]:
    """What a row says about its test; where there is none, that there is none."""
    if not isinstance(test, LengthTest):
        return {"p_method": "none", "h0": "none: the fit is described, not tested"}
    length, exchange, n = test.length, test.data.exchange, test.relabelling.n
    how = "flips" if exchange.kind == "flip" else "permutations"
    reachable = 2.0 ** (1 - length.n_informative) if exchange.kind == "flip" else exchange.p_min
    n_models, one_model = len({name for name, _ in p}), "maximum over sites, regions and positions of this test"
    return {
        "estimate": length.value,
        "effsize": length.value,
        "eftype": "D_c",
        "p_unc": length.p,
        "p_corr": p[model, key],
        "p_adjust": "maxT" if n_models == 1 else "maxT+holm",
        "p_method": ("exact" if test.relabelling.exhaustive else how) if exchange.exact else f"{how} (approximate)",
        "family": one_model if n_models == 1 else f"{one_model}, then Holm over its {n_models} models",
        "n_family": len(p),
        "unit": exchange.unit,
        "n_units": test.data.n,
        "n_informative": length.n_informative,
        "n_perm": n,
        "p_min": max(1 / n, reachable),
        "alternative": "greater",
        "h0": f"{test.data.effect.h0}, in any feature",
        "x_z": float(length.null[0]),
        "x_n_tested": length.n_features,
    }


def _notes(asked: Question, place: Place, *, fit: Mapping[str, Any], test: LengthTest | str | None) -> list[str]:
    model, found = asked.ask.models[fit["model"]], place.found
    notes = []
    if not np.isfinite(fit["value"]):
        notes.append(_why_undefined(place, model))
    if model.nuisance:
        notes.append("Nuisance model: in the joint fit only, not tested.")
    elif model.column:
        notes.append("Not factorial: conditions cannot be relabelled by a column, so the fit has no p.")
    elif isinstance(test, LengthTest):
        notes.append("p belongs to D_c (H1: at least one feature answers to the effect); the fit itself is not tested.")
        notes += [f"{words[0].upper()}{words[1:]}." for words in [test.data.exchange.note] if words]
    else:
        notes.append(str(test))
    if np.isfinite(fit["value"]) and np.isnan(fit["weight"]):
        notes.append("The models are linearly dependent here, so the joint fit has no weights.")
    if found.nested:
        notes.append("Items are nested in conditions: distances leave out items within each condition.")
    if found.n_dropped:
        notes.append(f"{found.n_dropped} items without all conditions or frames are left out.")
    if np.isnan(fit["reliability"]):
        notes.append("Too few items per half for a reliability: models are not ranked.")
    elif fit["reliability"] < UNRANKED:
        notes.append(f"Reliability {fit['reliability']:.2f} is below {UNRANKED}: models are not ranked.")
    return notes


def _why_undefined(place: Place, model: RdmModel) -> str:
    if np.isnan(place.data).any():
        return "The distance is undefined: a condition's mean pattern has no variance over features."
    what = f"column {model.column}" if model.column else f"effect {model.effect}"
    return f"The {what} gives no variation among distances here, so there is nothing to fit."


def _missing(asked: Question, key: Key, *, model: str, why: str) -> dict[str, Any]:
    return _about(asked, key, model) | {"status": "untestable", "note": why, "p_method": "none"}


def _long(found: Sequence[Place], models: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Data and model RDMs as a long table, full matrices."""
    tables = []
    for place, vectors_here in zip(found, models, strict=True):
        labels = place.found.labels
        pairs = {"row": np.repeat(labels, len(labels)), "column": np.tile(labels, len(labels))}
        where = {"site": place.site, "region": place.region, "position": place.position}
        for name, kind, vector in [("data", "data", place.data), *((n, "model", v) for n, v in vectors_here.items())]:
            value = condensed_to_square(vector).ravel()
            tables.append(pd.DataFrame({**where, "name": name, "kind": kind, **pairs, "value": value}))
    return pd.concat(tables, ignore_index=True)
