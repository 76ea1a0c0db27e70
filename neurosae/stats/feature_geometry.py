r"""Which features carry a geometry: the share of every feature in the fit of an effect's model, with max-T.

The share phi_j is exact and additive (`feature_shares`). Its test swaps the labels of the effect's factor inside whole
items, all features alike, with the statistic phi_j / q_j, q_j the sum of squares, one-sided, maximum over features,
sites, regions and positions. Leave-one-out and sampled Shapley values of other fits are descriptive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.design.weights import compile_effect
from neurosae.errors import DataError
from neurosae.spec.block import name_of
from neurosae.spec.geometry import FeatureGeometryBlock
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, check_results
from neurosae.stats import rdm
from neurosae.stats.feature_shares import (
    centred_model,
    feature_rdms,
    largest_shares,
    leave_one_out,
    linear_space,
    reweighted,
    sampled_shapley,
    swapped,
)
from neurosae.stats.geometry import Place, Question, condition_weights, effect_model, places, question
from neurosae.stats.joined import joined
from neurosae.stats.nested_shares import Labelling, item_groups, labelling, permuted
from neurosae.stats.rdm_compare import embed
from neurosae.stats.relabel import Relabelling, flips, signs
from neurosae.stats.units import item_numbers

NO_FIT = 1e-6  # of the sum of |phi|: a smaller sum of phi is what is left of terms that cancel
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)


def feature_geometry(
    responses: Any,
    effect: Mapping[str, Any],
    *,
    conditions: Sequence[str],
    region: str | Sequence[str],
    inference: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test which features carry the geometry of an effect.

    With M~ the model |c_k - c_l|^2 of the effect, scaled to 1 and centred, and D_j the cross-validated squared
    distances of feature j,

        phi_j = <M~, D_j>,   sum_j phi_j = <M~, D>.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}
    effect : `{factor: {level: weight}}`, or {name: effect} for several
    conditions : factors, and "frame", whose combinations are the rows of the RDM; at least 3
    region : one region or several
    inference : as under `inference:`; `n_permutations` and `min_informative` are used
    settings : as in a `feature_geometry` test: `compare`, `n_shapley`, `reweighted`, `folds`, `split`, `sites`
    seed : int

    Returns
    -------
    DataFrame
        The results schema, one row per feature, effect and place: `estimate` is phi (distance per feature, they add
        up), `value` phi / q, `x_share` phi_j / sum_j phi_j (nan, with the reason, where that sum is not above 0),
        `x_left_out` the loss of fit without the feature,
        `x_shapley` with `x_shapley_se` where asked for. With `reweighted` one more row per place: the fit of
        reweighted features on items that chose no weight (`value`) beside the plain one (`x_unweighted`).

    Raises
    ------
    DataError
        Conditions without the effect's factors, too few items, a rank comparator.

    Notes
    -----
    H0: for every item, the labels of the effect's factor are exchangeable, jointly for all features. For an effect of
    one factor its labels are swapped, exact; for an interaction the sign of the item's contrast is flipped and the
    rest is kept, which needs symmetric contrasts ("approximate"). An item of a group (a factor between items) is
    swapped among the conditions of its group. For an effect of factors between items labels are permuted over whole
    items, all their conditions with them, inside strata and the levels of other such factors. Where an effect compares
    levels within items between groups, or its weights have no mirror image, shares are described and not tested.
    Leave-one-out and Shapley values depend on which other features there are, and are never tested.

    References
    ----------
    Shapley (1953), Contributions to the Theory of Games 2:307. Kaniuth & Hebart (2022), NeuroImage 257:119294
    (reweighted features). Westfall & Young (1993), Resampling-Based Multiple Testing.

    Examples
    --------
    >>> from neurosae.spec.design import Design
    >>> from neurosae.stats.simulate import simulate
    >>> words = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"}} for k in range(20)}
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "two", "items": words,
    ...     "factors": {"a": ["x", "y"], "b": ["x", "y"]}, "frames": {"f": "{u:a} {w:b}"},
    ...     "regions": {"all_words": {"words": [0, -1]}}})
    >>> fake = simulate(design, n_features=60, effects={"a": 6}, density=0.5, shift=4.0, seed=1)
    >>> found = feature_geometry(fake, {"a": {"x": -1, "y": 1}}, conditions=["a", "b"], region="all_words", seed=1)
    >>> found.feature[found.p_corr <= 0.05].tolist(), round(float(found["x_share"].sum()), 9)
    ([0, 1, 2, 3, 4, 5], 1.0)
    """
    given = dict(settings or {})
    named = dict(effect) if all(isinstance(v, Mapping) and any(isinstance(x, Mapping | str) for x in v.values())
                                for v in effect.values()) else {_name(effect): effect}  # fmt: skip
    block = {"test": "feature_geometry", "region": region, "conditions": list(conditions), "effect": list(named)}
    ask = as_record({**block, **given}, FeatureGeometryBlock, name="feature_geometry")
    rest = {key: value for key, value in given.items() if key in ("split", "sites")}
    asked = question(named, conditions, region, inference=inference, settings=rest, seed=seed)
    return _answer(Question("feature_geometry", asked.ask, asked.effects, asked.inference, seed), ask, responses).table


def _name(effect: Mapping[str, Any]) -> str:
    return " x ".join(effect)


def run(responses: Any, ask: FeatureGeometryBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """Answer a `feature_geometry` block of an analysis."""
    spec = study.spec
    name = name_of(ask, spec.tests)
    rest = ask.model_dump(include={"split", "sites"}, exclude_none=True)
    named = {effect: spec.effects[effect] for effect in ask.effect}
    asked = question(named, ask.conditions, ask.region, inference=spec.inference, settings=rest, seed=spec.seed)
    return _answer(Question(name, asked.ask, named, spec.inference, spec.seed), ask, responses)


def _answer(asked: Question, ask: FeatureGeometryBlock, responses: Any) -> Tested:
    found, failed = places(asked, responses)
    ways = _ways(asked, found, ask.effect)
    parts, tops = [], []
    with threadpool_limits(1, user_api="blas"):
        for effect in ask.effect:
            for place in found:
                table, maxima = _at_place(asked, ask, place, effect=effect, way=ways[effect, place.key])
                parts.append(table)
                tops += [maxima] if maxima is not None else []
    lost = [{"effect": e, "site": k[0], "region": k[1], "position": k[2], "status": "untestable", "note": why,
             "p_method": "none"} for k, why in failed.items() for e in ask.effect]  # fmt: skip
    over = "features, effects, sites, regions and positions"
    about = {"test": asked.name, "kind": "feature_geometry", "split": asked.ask.split}
    table, _ = joined([*parts, *lost], tops, over=over, about=about, tolerance=1e-9)
    return Tested(check_results(table), None, {})


class Swap(NamedTuple):
    """Swaps of labels inside items: R of one item's conditions, the flips, and where the items stand in them."""

    R: np.ndarray
    relabelling: Relabelling
    place: np.ndarray
    exact: bool
    h0: str


Way = Swap | Labelling


def _ways(
    asked: Question, found: Sequence[Place], effects: Sequence[str]
) -> dict[tuple[str, tuple[str, str, int]], Way | DataError]:
    """How the labels of every effect move at every place, or why they cannot; all with equally many relabellings."""
    out: dict[tuple[str, tuple[str, str, int]], Way | DataError] = {}
    numbers = np.unique(np.concatenate([item_numbers(p.design, p.found.items) for p in found]))
    flipped = flips(numbers, asked.inference.n_permutations, seed=asked.seed, split=asked.ask.split)
    for draw in (False, True):
        for effect in effects:
            for place in found:
                try:
                    out[effect, place.key] = _way(asked, place, effect, flipped=flipped, draw=draw)
                except DataError as error:
                    out[effect, place.key] = error
        if len({way.relabelling.n for way in out.values() if not isinstance(way, DataError)}) <= 1:
            break
    return out


def _way(asked: Question, place: Place, effect: str, *, flipped: Relabelling, draw: bool) -> Way:
    made = compile_effect(place.design, dict(asked.effects[effect]))
    if any(place.design.factors[name].varies == "between" for name in made.factors):
        n, split = asked.inference.n_permutations, asked.ask.split
        return labelling(place.design, made, place.found, n=n, draw=draw, split=split, seed=asked.seed)
    R, exact, words = _swap(asked, place, effect)
    at = np.searchsorted(flipped.rows, item_numbers(place.design, place.found.items))
    return Swap(R, flipped, at, exact, words)


def _at_place(
    asked: Question, ask: FeatureGeometryBlock, place: Place, *, effect: str, way: Way | DataError
) -> tuple[pd.DataFrame, np.ndarray | None]:
    found = place.found
    where = {"effect": effect, "site": place.site, "region": place.region, "position": place.position,
             "set": f"informative in at least {asked.inference.min_informative} items"}  # fmt: skip
    model = effect_model(asked.ask.models[effect], asked, place)
    centred = centred_model(model)
    D = feature_rdms(found)
    phi, q = centred @ D, np.asarray(found.X.power(2).sum(axis=0)).ravel()
    Y, m = linear_space(D, ask.compare), embed(model, ask.compare)
    table = pd.DataFrame({
        **where, "feature": place.adata.var["feature"].to_numpy(dtype=np.int64)[found.columns], "n_features": 1,
        "stat": "phi_over_q", "value": phi / q, "estimate": phi, "effsize": phi / q, "eftype": "phi_over_q",
        "unit": "item", "n_units": len(found.items), "status": "ok", "note": _why_no_share(phi), "p_method": "none",
        "h0": "none: shares are described, not tested", "p_unc": np.nan, "p_corr": np.nan, "p_adjust": None,
        "family": None, "n_family": pd.NA, "n_perm": pd.NA, "p_min": np.nan, "alternative": None,
        "x_share": phi / phi.sum() if _why_no_share(phi) is None else np.nan, "x_left_out": leave_one_out(Y, m),
    })  # fmt: skip
    if ask.n_shapley:
        values, se = sampled_shapley(Y, m, n_orders=ask.n_shapley, rng=np.random.default_rng([asked.seed, 11]))
        table["x_shapley"], table["x_shapley_se"] = values, se
    maxima = _tested(place, table, way, centred=centred, q=q)
    rows = [table, _silent(place, where)]
    if ask.reweighted:
        rows.append(_reweighted_row(asked, ask, place, where=where, model=m))
    return pd.concat([r for r in rows if len(r)], ignore_index=True), maxima


def _why_no_share(phi: np.ndarray) -> str | None:
    """Why phi_j / sum phi says nothing here, in words; None where it does."""
    total = float(phi.sum())
    if total > NO_FIT * float(np.abs(phi).sum()):
        return None
    return (
        f"No x_share: phi adds up to {total:.3g} over features, which is not above 0, so there is no fit to have a "
        "share of; phi stands."
    )


def _silent(place: Place, where: Mapping[str, Any]) -> pd.DataFrame:
    counts = {"dead": (place.found.n_dead, "never active in the tested rows"),
              "untestable": (place.found.n_untestable, "differs between conditions in too few items")}  # fmt: skip
    return pd.DataFrame([{**where, "set": f"{status} features", "n_features": n, "status": status, "note": why,
                          "p_method": "none"} for status, (n, why) in counts.items() if n])  # fmt: skip


def _tested(
    place: Place, table: pd.DataFrame, way: Way | DataError, *, centred: np.ndarray, q: np.ndarray
) -> np.ndarray | None:
    """Fill in the test of a place; None, with the reason in every row, where nothing can be relabelled."""
    if isinstance(way, DataError):
        table["note"] = " ".join(filter(None, [table["note"].iloc[0], f"Not tested: {way}"]))
        return None
    if isinstance(way, Labelling):
        parts, n, everything, exact, words = (
            permuted(place.found, centred),
            way.relabelling.n,
            way.relabelling.exhaustive,
            way.exact,
            way.h0,
        )
        maxima, reached = largest_shares(lambda a, k: parts.at(way.draw(a, k)), n, q, size=parts.size)
        how, p_min = "exact" if everything else "permutations", way.p_min
    else:
        made, at = swapped(place.found, centred, way.R), way.place
        n, everything, exact, words = way.relabelling.n, way.relabelling.exhaustive, way.exact, way.h0
        maxima, reached = largest_shares(
            lambda a, k: made.at(signs(way.relabelling, a, k)[:, at]), n, q, size=made.rest
        )
        how, p_min = "exact" if everything else "flips", max(1 / n, 2.0 ** (1 - len(at)))
    table["p_unc"], table["n_perm"], table["p_min"] = reached / n, n, p_min
    table["p_method"] = how if exact else f"{how} (approximate)"
    table["h0"], table["alternative"] = words, "greater"
    return maxima


def _swap(asked: Question, place: Place, effect: str) -> tuple[np.ndarray, bool, str]:
    """The swap of one item's conditions that turns the effect round; whether it exchanges labels; H0 in words."""
    made = compile_effect(place.design, dict(asked.effects[effect]))
    c = condition_weights(made, place, asked.ask.conditions)
    conditions = place.found.conditions
    if len(made.factors) == 1:
        factor = made.factors[0]
        shown = [n for n in place.design.factors if n in asked.ask.conditions]
        axis, levels = shown.index(factor), list(place.design.factors[factor].levels)
        turned = {level: levels[-1 - k] for k, level in enumerate(levels)}
        order = [conditions.index((*key[:axis], turned[key[axis]], *key[axis + 1 :])) for key in conditions]
        if np.allclose(c[order], -c):
            words = f"the levels of {factor} are exchangeable within every item, jointly for all features"
            return np.eye(len(c))[order], True, words
        raise DataError(f"the weights of '{effect}' have no mirror image over the levels of {factor}.")
    R = np.eye(len(c))
    for group in item_groups(place.found)[0] if place.found.nested else [np.arange(len(c))]:
        part = np.zeros(len(c))
        part[group] = c[group]  # an item has the conditions of its group
        R -= 2 * np.outer(part, part) / max(part @ part, 1e-300)
    words = f"every item's contrast {made.words} is symmetric, jointly for all features"
    return R, False, words


def _reweighted_row(
    asked: Question, ask: FeatureGeometryBlock, place: Place, *, where: Mapping[str, Any], model: np.ndarray
) -> pd.DataFrame:
    """Fit of reweighted features on items that chose neither weights nor ridge."""
    found, rng = place.found, np.random.default_rng([asked.seed, 12])
    folds = rdm.item_folds(found, ask.folds, rng)
    base = {**where, "set": "all features, reweighted", "n_features": found.n_features, "stat": ask.compare,
            "unit": "item", "n_units": len(found.items), "p_method": "none",
            "h0": "none: a cross-validated fit is described, not tested"}  # fmt: skip
    if min(np.bincount(found.condition, weights=f[found.item]).min() for f in folds) < 2:
        why = f"{len(found.items)} items make no {ask.folds} groups of two and more; fewer folds."
        return pd.DataFrame([base | {"status": "untestable", "note": why}])
    Y = [linear_space(feature_rdms(found, f), ask.compare) for f in folds]
    plain, fits, chosen = [], [], []
    for k in range(len(folds)):
        others = [i for i in range(len(folds)) if i != k]
        ridge = max(RIDGES, key=lambda r: np.mean([_fit(Y[i], model, _weights(Y, others, i, model=model, ridge=r))
                                                   for i in others]))  # fmt: skip
        fits.append(_fit(Y[k], model, _weights(Y, others, None, model=model, ridge=ridge)))
        plain.append(_fit(Y[k], model, np.ones(found.n_features)))
        chosen.append(ridge)
    value = float(np.mean(fits))
    row = {"value": value, "status": "ok", "x_unweighted": float(np.mean(plain)), "x_ridge": float(np.median(chosen))}
    return pd.DataFrame([base | row])


def _weights(
    Y: Sequence[np.ndarray], others: Sequence[int], without: int | None, *, model: np.ndarray, ridge: float
) -> np.ndarray:
    return reweighted(np.mean([Y[i] for i in others if i != without], axis=0), model, ridge)


def _fit(Y: np.ndarray, model: np.ndarray, w: np.ndarray) -> float:
    total = Y @ w
    return float(total @ model / np.sqrt((total @ total) * (model @ model)))
