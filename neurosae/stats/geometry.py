"""From responses to the RDM of every place, and from effects and columns to model RDMs of the same conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from neurosae.design.expand import expand
from neurosae.design.units import items_of
from neurosae.design.weights import Effect, compile_effect
from neurosae.errors import DataError, unknown
from neurosae.extraction.responses import design_of, item_cells
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.geometry import KINDS, RdmModel, RsaBlock
from neurosae.spec.load import as_record
from neurosae.stats import rdm
from neurosae.stats.rdm_models import differences, edit_rdm, given_rdm, matrix_rdm, norms_rdm

ALIAS = {"position": "token_index"}  # the column `position` labels rows; what can differ is the place in the text

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Question:
    """A checked `rsa` block, with the effects that its models name, and the models that were given as objects."""

    name: str
    ask: RsaBlock
    effects: Mapping[str, Mapping[str, Any]]
    inference: Inference
    seed: int
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """The patterns of one site, region and position, their Gram matrix and their RDM.

    by_item : whether items are conditions; the rows of an item are then frames, over which distances are averaged
    beside : the responses of all sites, for models that are RDMs of another one
    """

    site: str
    region: str
    position: int
    adata: Any
    design: Design
    found: rdm.Patterns
    gram: np.ndarray
    data: np.ndarray
    by_item: bool
    beside: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """Site, region, position."""
        return self.site, self.region, self.position


def question(
    models: Mapping[str, Any],
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
    effects, written, given = {}, {}, {}
    for name, model in models.items():
        if not isinstance(model, Mapping):  # RDMs of rsatoolbox; the schema knows them as a matrix
            written[name], given[name] = {"matrix": name}, model
            continue
        rest = {key: value for key, value in model.items() if key != "nuisance"}
        # a key such as `column` is a kind of model unless it is a factor, whose value is a mapping of levels
        kind = next((k for k in KINDS if k in rest and not isinstance(rest[k], Mapping)), None)
        written[name] = rest if kind else {"effect": name}
        if "nuisance" in model:
            written[name] = {**written[name], "nuisance": model["nuisance"]}
        if not kind:
            effects[name] = rest
    conditions = [conditions] if isinstance(conditions, str) else list(conditions)
    block = {"test": "rsa", "region": region, "conditions": conditions, "models": written, **(settings or {})}
    ask = as_record(block, RsaBlock, name="rsa")
    return Question("rsa", ask, effects, as_record(inference, Inference, name="inference"), seed, given)


def places(asked: Question, responses: Any) -> tuple[list[Place], dict[Key, str]]:
    """Every place whose RDM can be computed, and why the others cannot be.

    Raises
    ------
    DataError
        If a site, region or condition is unknown, or if no place at all can be computed.
    """
    found, failed, everywhere = [], {}, _sites(responses, None)
    for site, adata in _sites(responses, asked.ask.sites).items():
        design = design_of(adata)
        _check_conditions(asked.ask.conditions, design)
        for region in _regions(asked.ask.region, adata):
            rows = (adata.obs["region"].astype(str) == region).to_numpy()
            for position in sorted({int(p) for p in adata.obs["position"][rows]}):
                try:
                    found.append(_place(asked, everywhere, design, key=(site, region, position)))
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
    known = [*design.factors, "frame", "item"]
    for name in conditions:
        if name not in known:
            raise DataError(unknown("condition", name, known))
    if set(conditions) <= {"frame"}:
        raise DataError(f"conditions name no factor; name at least one of {', '.join(design.factors)}, or item.")


def _place(asked: Question, beside: Mapping[str, Any], design: Design, *, key: Key) -> Place:
    site, region, position = key
    adata, by_item, least = beside[site], "item" in asked.ask.conditions, asked.inference.min_informative
    if by_item:
        found = item_patterns(adata, design, asked, region=region, position=position)
    else:
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
        found = rdm.patterns(cells, crossed=crossed, min_informative=least)
    if found.n_features == 0:
        raise DataError(
            f"no feature differs between conditions in at least {least} items ({found.n_untestable} differ in fewer, "
            f"{found.n_dead} are never active); take more items, or lower min_informative."
        )
    with threadpool_limits(1, user_api="blas"):  # one order of summation, whatever the number of threads
        found, G = rdm.measured(found, asked.ask.distance, noise_of(asked.ask))
        data = rdm.distances(G, found, asked.ask.distance)
        return Place(site, region, position, adata, design, found, G, data, by_item, beside)


def noise_of(ask: RsaBlock) -> str:
    """The noise metric of a block: as written, else none for crossnobis and shrinkage for mahalanobis."""
    return ask.noise or ("shrinkage_diag" if ask.distance == "mahalanobis" else "none")


def item_patterns(adata: Any, design: Design, asked: Question, *, region: str, position: int) -> rdm.Patterns:
    """Patterns whose conditions are items (times the levels of factors within them); frames are the folds.

    Raises
    ------
    DataError
        If a cross-validated distance is asked for and there is one frame, or there are fewer than 3 conditions.
    """
    ask = asked.ask
    cells = item_cells(adata, design, region=region, position=position, split=ask.split, frames="separate")
    names = list(design.factors)
    shown = [k for k, n in enumerate(names) if n in ask.conditions and design.factors[n].varies == "within"]
    split_frames = "frame" in ask.conditions
    frames = tuple(dict.fromkeys(cell[-1] for cell in cells.cells)) if not split_frames else ("all frames",)
    keys = []
    for item, cell in zip(cells.row_item, cells.row_cell, strict=True):
        levels = cells.cells[cell]
        condition = (cells.items[item], *(levels[k] for k in shown), *((levels[-1],) if split_frames else ()))
        keys.append((condition, 0 if split_frames else frames.index(levels[-1])))
    conditions = tuple(dict.fromkeys(condition for condition, _ in keys))
    if len(conditions) < 3:
        raise DataError(f"an RDM needs at least 3 conditions, not {len(conditions)}; add items.")
    if ask.distance == "crossnobis" and len(frames) < 2:
        raise DataError(
            "items are conditions and there is one frame, so nothing can be left out of a cross-validated distance; "
            "set distance: euclidean or correlation, or add frames."
        )
    of = {condition: k for k, condition in enumerate(conditions)}
    code = np.array([of[condition] * len(frames) + fold for condition, fold in keys])
    out, inverse, counts = np.unique(code, return_inverse=True, return_counts=True)
    mean = sp.csr_matrix((1 / counts[inverse], (inverse, np.arange(len(code)))))
    X, condition = sp.csr_matrix(mean @ cells.X), out // len(frames)
    alive = np.diff(X.tocsc().indptr) > 0
    totals = sp.csr_matrix((np.ones(len(condition)), (condition, np.arange(len(condition)))))
    kept = np.diff(sp.csc_matrix(totals @ abs(X)).indptr) >= asked.inference.min_informative
    numbers = pd.DataFrame(mean @ cells.numbers.to_numpy(dtype=float), columns=cells.numbers.columns)
    return rdm.Patterns(
        frames, conditions, sp.csr_matrix(X[:, kept]), out % len(frames), condition, numbers, int((~alive).sum()),
        int((alive & ~kept).sum()), len({str(name) for name in cells.dropped["item"]} - set(cells.items)),
        np.flatnonzero(kept),
    )  # fmt: skip


# --- models ---------------------------------------------------------------------------------------------------------


def condition_keys(place: Place, conditions: Sequence[str]) -> pd.DataFrame:
    """A row per condition: its label, its item where items are conditions, and its level of every factor it has."""
    design, rows = place.design, []
    within = [
        n for n in design.factors if n in conditions and (not place.by_item or design.factors[n].varies == "within")
    ]
    items = items_of(design) if place.by_item else {}
    for key in place.found.conditions:
        rest = list(key)
        row = {"condition": "/".join(key)}
        if place.by_item:
            row |= {"item": rest.pop(0)} | items[key[0]].levels | items[key[0]].labels
        rows.append(row | dict(zip([*within, "frame"], rest, strict=False)))
    return pd.DataFrame(rows)


def condition_weights(effect: Effect, place: Place, conditions: Sequence[str]) -> np.ndarray:
    """Weights of an effect over the conditions: sum_k c_k (pattern k) is the item's contrast, frames averaged.

    Raises
    ------
    DataError
        If the effect compares levels that the conditions average over, or cells that have no data.
    """
    keys = condition_keys(place, conditions)
    shown = [name for name in place.design.factors if name in keys]
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
    levels = [tuple(row) for row in keys[shown].to_numpy()]
    c = np.array([total.get(key, 0.0) / levels.count(key) for key in levels])
    if abs(c.sum()) > 1e-9 * np.abs(c).max(initial=1.0):
        raise DataError("a model's effect needs cells that have no data here: its weights no longer sum to 0.")
    return c


def effect_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """Condensed |c_k - c_l|^2 of the weights of an effect."""
    effect = compile_effect(place.design, dict(asked.effects[str(model.effect)]))
    if effect.omnibus is not None:
        raise DataError(f"a model RDM is made of one contrast, but '{model.effect}' compares all levels; give weights.")
    return differences(condition_weights(effect, place, asked.ask.conditions), "squared")


def column_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """Condensed differences between the condition means of a column, items weighing equally."""
    numbers, name = place.found.numbers, ALIAS.get(str(model.column), str(model.column))
    if name not in numbers:
        raise DataError(unknown("column with numbers", str(model.column), numbers.columns))
    counts = np.bincount(place.found.condition)
    means = np.bincount(place.found.condition, weights=numbers[name].to_numpy(dtype=float)) / counts
    return differences(means, model.metric)


def edit_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """Condensed mean edit distances between the texts, or the forms of a region, of two conditions."""
    stimuli = expand(place.design)
    text = stimuli["text"].astype(str)
    if model.edit != "all":
        known = [c.removesuffix("_start") for c in stimuli.columns if c.endswith("_start")]
        if model.edit not in known:
            raise DataError(unknown("region", str(model.edit), ["all", *known]))
        start, end = stimuli[f"{model.edit}_start"], stimuli[f"{model.edit}_end"]
        present = start.notna()
        text = pd.Series(
            [t[a:b] for t, a, b in zip(text[present], start[present], end[present], strict=True)],
            index=stimuli.index[present], dtype=object,
        )  # fmt: skip
    return edit_rdm(_row_texts(stimuli, text, asked=asked, place=place), place.found, model.by)


def _row_texts(
    stimuli: pd.DataFrame, text: pd.Series, *, asked: Question, place: Place
) -> list[dict[tuple[str, ...], str]]:
    """The texts of every row of the patterns, by what else distinguishes them (frame, levels of other factors)."""
    conditions, found = asked.ask.conditions, place.found
    keys = condition_keys(place, conditions)
    names = [n for n in ("item", *place.design.factors, "frame") if n in keys]
    rows = {(found.items[i], tuple(keys.loc[c, names])): r  # pyright: ignore
            for r, (i, c) in enumerate(zip(found.item, found.condition, strict=True))}  # fmt: skip
    out: list[dict[tuple[str, ...], str]] = [{} for _ in rows]
    fold = "frame" if place.by_item else "item"
    rest = [n for n in (*place.design.factors, "frame") if n not in names and n != fold]
    wanted = stimuli.loc[text.index]
    table = wanted[list(dict.fromkeys(["item", "frame", *place.design.factors]))].astype(str)
    for stimulus, line in table.iterrows():
        owner = "all frames" if place.by_item and "frame" in conditions else line[fold]
        row = rows.get((owner, tuple(line[names])))
        if row is not None:
            out[row][tuple(line[rest])] = str(text[stimulus])  # pyright: ignore
    if not all(out):
        raise DataError("a condition has no text of that region; name another region, or all.")
    return out


def site_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """The data RDM of another site at the same region and position, with the same distance."""
    if model.site not in place.beside:
        raise DataError(unknown("site", str(model.site), place.beside))
    other = _place(asked, place.beside, place.design, key=(str(model.site), place.region, place.position))
    if other.found.conditions != place.found.conditions:
        raise DataError(f"site '{model.site}' has other conditions at {place.region}; its RDM cannot be a model here.")
    return other.data


def matrix_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """A user's matrix, in the order of the conditions."""
    return matrix_rdm(str(model.matrix), place.found.labels, similarity=model.similarity)


def norms_model(model: RdmModel, asked: Question, place: Place) -> np.ndarray:
    """Differences between ratings of the conditions."""
    keys = condition_keys(place, asked.ask.conditions)
    return norms_rdm(str(model.norms), keys, columns=model.columns or None, metric=model.metric)


MODELS = {
    "effect": effect_model,
    "column": column_model,
    "edit": edit_model,
    "site": site_model,
    "matrix": matrix_model,
    "norms": norms_model,
}


def vectors(asked: Question, place: Place) -> dict[str, np.ndarray]:
    """Every fixed model RDM of a place, condensed; zero, or not a number, where the model says nothing there."""
    made = {}
    for name, model in asked.ask.models.items():
        if name in asked.given:
            made[name] = given_rdm(name, asked.given[name], place.found.labels)
        elif not model.fitted:
            made[name] = MODELS[model.kind](model, asked, place)
    return made
