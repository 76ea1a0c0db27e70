"""From responses to the RDM of every place, and from effects and columns to model RDMs of the same conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import DataError, unknown
from neurosae.extraction.responses import design_of, item_cells
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.geometry import RdmModel, RsaBlock
from neurosae.spec.load import as_record
from neurosae.stats import rdm

ALIAS = {"position": "token_index"}  # the column `position` labels rows; what can differ is the place in the text

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Question:
    """A checked `rsa` block, with the effects that its models name."""

    name: str
    ask: RsaBlock
    effects: Mapping[str, Mapping[str, Any]]
    inference: Inference
    seed: int


@dataclass(frozen=True)
class Place:
    """The patterns of one site, region and position, their Gram matrix and their RDM."""

    site: str
    region: str
    position: int
    adata: Any
    design: Design
    found: rdm.Patterns
    gram: np.ndarray
    data: np.ndarray

    @property
    def key(self) -> Key:
        """Site, region, position."""
        return self.site, self.region, self.position


def question(
    models: Mapping[str, Mapping[str, Any]],
    conditions: Sequence[str],
    region: str | Sequence[str],
    *,
    inference: Inference | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Question:
    """Bring Python arguments into the form of an analysis file, so that one schema checks both.

    Examples
    --------
    >>> models = {"number": {"number": {"pl": 1, "sg": -1}}, "length": {"column": "n_tokens", "nuisance": True}}
    >>> asked = question(models, ["number", "frame"], "noun")
    >>> asked.ask.models["number"].effect, asked.ask.models["length"].nuisance, asked.ask.distance
    ('number', True, 'crossnobis')
    """
    effects, written = {}, {}
    for name, model in models.items():
        rest = {key: value for key, value in model.items() if key != "nuisance"}
        is_column = isinstance(rest.get("column"), str)
        written[name] = rest if is_column else {"effect": name}
        if "nuisance" in model:
            written[name] = {**written[name], "nuisance": model["nuisance"]}
        if not is_column:
            effects[name] = rest
    conditions = [conditions] if isinstance(conditions, str) else list(conditions)
    block = {"test": "rsa", "region": region, "conditions": conditions, "models": written, **(settings or {})}
    ask = as_record(block, RsaBlock, name="rsa")
    return Question("rsa", ask, effects, as_record(inference, Inference, name="inference"), seed)


def places(asked: Question, responses: Any) -> tuple[list[Place], dict[Key, str]]:
    """Every place whose RDM can be computed, and why the others cannot be.

    Raises
    ------
    DataError
        If a site, region or condition is unknown, or if no place at all can be computed.
    """
    found, failed = [], {}
    for site, adata in _sites(responses, asked.ask.sites).items():
        design = design_of(adata)
        _check_conditions(asked.ask.conditions, design)
        for region in _regions(asked.ask.region, adata):
            rows = (adata.obs["region"].astype(str) == region).to_numpy()
            for position in sorted({int(p) for p in adata.obs["position"][rows]}):
                try:
                    found.append(_place(asked, adata, design, key=(site, region, position)))
                except DataError as error:
                    failed[site, region, position] = str(error)
    if not found:
        raise DataError(next(iter(failed.values()), "these responses have no rows at the wanted regions."))
    return found, failed


def _sites(responses: Any, wanted: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(responses, Mapping):
        responses = {str(responses.var_names[0]).rpartition("/")[0]: responses}
    for site in wanted or ():
        if site not in responses:
            raise DataError(unknown("site", site, responses))
    return {site: responses[site] for site in wanted or responses}


def _regions(wanted: Sequence[str], adata: Any) -> list[str]:
    """Regions of the rows; one that is locked to its start and to its end has rows as `region@start`, `region@end`."""
    known = list(dict.fromkeys(adata.obs["region"].astype(str)))
    found = []
    for name in wanted:
        matching = [region for region in known if name in (region, region.rpartition("@")[0])]
        if not matching:
            raise DataError(unknown("region of these responses", name, known))
        found += matching
    return list(dict.fromkeys(found))


def _check_conditions(conditions: Sequence[str], design: Design) -> None:
    known = [*design.factors, "frame"]
    for name in conditions:
        if name not in known:
            raise DataError(unknown("condition", name, known))
    if set(conditions) <= {"frame"}:
        raise DataError(f"conditions name no factor; name at least one of {', '.join(design.factors)}.")


def _place(asked: Question, adata: Any, design: Design, *, key: Key) -> Place:
    site, region, position = key
    factors = [name for name in asked.ask.conditions if name != "frame"]
    cells = item_cells(
        adata,
        design,
        region=region,
        position=position,
        split=asked.ask.split,
        factors=factors,
        frames="separate" if "frame" in asked.ask.conditions else "mean",
    )
    crossed = all(design.factors[name].varies == "within" for name in factors)
    least = asked.inference.min_informative
    found = rdm.patterns(cells, crossed=crossed, min_informative=least)
    if found.n_features == 0:
        raise DataError(
            f"no feature differs between conditions in at least {least} items ({found.n_untestable} differ in fewer, "
            f"{found.n_dead} are never active); take more items, or lower min_informative."
        )
    with threadpool_limits(1, user_api="blas"):  # one order of summation, whatever the number of threads
        found, G = rdm.measured(found, asked.ask.distance, noise_of(asked.ask))
        return Place(site, region, position, adata, design, found, G, rdm.distances(G, found, asked.ask.distance))


def noise_of(ask: RsaBlock) -> str:
    """The noise metric of a block: as written, else none for crossnobis and shrinkage for mahalanobis."""
    return ask.noise or ("shrinkage_diag" if ask.distance == "mahalanobis" else "none")


# --- models ---------------------------------------------------------------------------------------------------------


def condition_weights(effect: Effect, place: Place, conditions: Sequence[str]) -> np.ndarray:
    """Weights of an effect over the conditions: sum_k c_k (pattern k) is the item's contrast, frames averaged.

    Raises
    ------
    DataError
        If the effect compares levels that the conditions average over, or cells that have no data.
    """
    shown = [name for name in place.design.factors if name in conditions]
    if missing := [name for name in effect.factors if name not in shown]:
        raise DataError(
            f"a model compares levels of {', '.join(missing)}, but the conditions are {', '.join(conditions)}: each of "
            f"them averages over {missing[0]}. Add {', '.join(missing)} to `conditions`."
        )
    axes = [list(place.design.factors).index(name) for name in shown]
    total: dict[tuple[str, ...], float] = {}
    for cell, weight in zip(effect.cells, effect.weights, strict=True):
        key = tuple(cell[axis] for axis in axes)
        total[key] = total.get(key, 0.0) + float(weight)
    keys = [levels[: len(shown)] for levels in place.found.conditions]
    c = np.array([total.get(key, 0.0) / keys.count(key) for key in keys])
    if abs(c.sum()) > 1e-9 * np.abs(c).max(initial=1.0):
        raise DataError("a model's effect needs cells that have no data here: its weights no longer sum to 0.")
    return c


def effect_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """Condensed |c_k - c_l|^2 of the weights of an effect."""
    effect = compile_effect(place.design, dict(asked.effects[str(model.effect)]))
    if effect.omnibus is not None:
        raise DataError(f"a model RDM is made of one contrast, but '{model.effect}' compares all levels; give weights.")
    return _pairwise(condition_weights(effect, place, asked.ask.conditions)) ** 2


def column_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """Condensed absolute differences between the condition means of a column, items weighing equally."""
    numbers, name = place.found.numbers, ALIAS.get(str(model.column), str(model.column))
    if name not in numbers:
        raise DataError(unknown("column with numbers", str(model.column), numbers.columns))
    counts = np.bincount(place.found.condition)
    means = np.bincount(place.found.condition, weights=numbers[name].to_numpy(dtype=float)) / counts
    spread = _pairwise(np.where(np.isnan(means), np.nan, means))
    return np.where(spread > rdm.SAME * np.abs(means).max(), spread, 0.0)


MODELS = {"effect": effect_model, "column": column_model}


def _pairwise(values: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(len(values), 1)
    return np.abs(values[i] - values[j])


def vectors(asked: Question, place: Place) -> dict[str, np.ndarray]:
    """Every model RDM of a place, condensed; zero, or not a number, where the model says nothing there."""
    kind = {name: "column" if model.effect is None else "effect" for name, model in asked.ask.models.items()}
    return {name: MODELS[kind[name]](model, asked, place) for name, model in asked.ask.models.items()}
