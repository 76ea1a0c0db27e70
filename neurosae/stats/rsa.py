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
from neurosae.spec.block import name_of
from neurosae.spec.blocks import Inference
from neurosae.spec.geometry import FEW, RsaBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.geometry import Key, Place, Question, places, question, vectors
from neurosae.stats.rsa_rows import (
    UNRANKED,
    long_rdms,
    missing_row,
    model_row,
    pair_row,
    partitions,
    place_fits,
    planes,
)
from neurosae.stats.rsa_tests import Tests, bootstrap_tests, difference_rows, flip_tests, label_tests

if TYPE_CHECKING:
    from rsatoolbox.model.model import ModelFixed
    from rsatoolbox.rdm.rdms import RDMs


def rsa(
    responses: Any,
    *,
    models: Mapping[str, Any],
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
    models : mapping from name to a model. An effect, `{"subject": {"pl": 1, "sg": -1}}`, or one of

        * `{"column": "n_tokens", "metric": "absolute"}` (squared, equal): differences of condition means
        * `{"edit": "all", "by": "characters"}` (a region; words): edit distance of the texts
        * `{"site": name}`: the RDM of another site, such as one at hook_embed
        * `{"matrix": path, "similarity": False}`: a csv file with a value for every pair of conditions
        * `{"norms": path, "columns": [...]}`: a csv file with ratings of conditions or items
        * `{"weighted": [names]}`, `{"select": [names]}`: fitted to other items from models of this test
        * an rsatoolbox `ModelFixed`, or `RDMs` that hold one RDM; `pattern_descriptors["condition"]` are matched with
          the labels of the data, such as `sg/pl`

        `"nuisance": True` beside it: regressed out of the others (partial RSA), not tested itself
    conditions : factors, "frame" and "item", whose combinations are the rows of the RDM; at least 3. With "item" every
        word is a condition, and distances are over frames
    region : one region or several
    inference : as under `inference:`; `n_permutations`, `alpha` and `min_informative` are used
    settings : as in an `rsa` test: `distance` ("crossnobis"), `noise`, `compare` ("cosine_cov"), `p_from`
        ("item_flips", "condition_labels", "bootstrap"), `blocks`, `over`, `folds`, `differences`, `margin`, `split`
    seed : int
        Relabellings are a function of (seed, split, item), the halves for the reliability of the seed.

    Returns
    -------
    DataFrame
        The results schema, a row per model and place (and per pair of models, with `differences`). `value` is the fit.
        With item flips `estimate` is D_c (in squared standardized units, negative values are legal), `p_unc` and
        `p_corr` belong to it, and `x_z` is D_c in standard deviations of its null. Further `x_reliability`,
        `x_ceiling`, `x_partial` (beside nuisance), `x_cv` (on other items), and from the joint fit `x_weight` (distance
        per feature), `x_unique` and `x_share` (shares of the data RDM).

    Raises
    ------
    DataError
        Unknown conditions or columns, effects whose factors are not among the conditions, too few items or conditions.

    Notes
    -----
    H0 by `p_from`. item_flips: the effect's contrast is exchangeable in sign within every item (or its labels over
    items), jointly for all features; other models have a fit and no p. condition_labels: which condition is which says
    nothing about the geometry (inside blocks); at least 8 conditions. bootstrap: the mean fit over RDMs and conditions
    is 0 (comparators that subtract a mean only), at least 8 conditions and 3 RDMs. `p_corr`: maximum over sites,
    regions and positions, then Holm over models (bootstrap: Holm over both). Squared fits are never tested. One
    dictionary is one subject: the ceiling is sqrt of the split-half reliability over items; below a reliability of 0.3
    models are not ranked.

    References
    ----------
    Walther et al. (2016), NeuroImage 137:188. Diedrichsen & Kriegeskorte (2017), PLoS Comput Biol 13:e1005508.
    Schütt et al. (2023), eLife 12:e82566. Allefeld & Haynes (2014), NeuroImage 89:345. Nili et al. (2014), PLoS Comput
    Biol 10:e1003553.

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
    name = name_of(ask, spec.tests)
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
    _refuse(asked, found)
    seed = int(rng.integers(2**63))  # every place halves its items alike, whatever other places there are
    with threadpool_limits(1, user_api="blas"):  # one order of summation, whatever the number of threads
        models = [vectors(asked, place) for place in found]
        fits = [place_fits(asked, *one, rng=np.random.default_rng(seed)) for one in zip(found, models, strict=True)]
        tests, null_max, pairs = _tests(asked, found, models, responses=responses, fits=fits)
    rows = []
    for place, fit in zip(found, fits, strict=True):
        for one in cast(list[dict[str, Any]], fit.to_dict("records")):
            rows.append(model_row(asked, place, fit=one, test=tests.get((one["model"], place.key))))
    rows += [pair_row(asked, pair) for pair in pairs]
    rows += [missing_row(asked, key, model=name, why=why) for key, why in failed.items() for name in asked.ask.models]
    frame = pd.DataFrame(rows)
    table = check_results(as_results({name: frame[name] for name in frame.columns}))
    extras = {"rdm": long_rdms(found, models), "fits": pd.concat(fits, ignore_index=True)}
    flat = [planes(asked, place) for place in found]
    if flat := [part for part in flat if len(part)]:
        extras["plane"] = pd.concat(flat, ignore_index=True)
    parts = [partitions(asked, *one, fit=fit) for one, fit in zip(zip(found, models, strict=True), fits, strict=True)]
    if parts := [part for part in parts if len(part)]:
        extras["partition"] = pd.concat(parts, ignore_index=True)
    return Tested(table, null_max, extras)


def _refuse(asked: Question, found: Sequence[Place]) -> None:
    """What no data of this kind can answer, with what would."""
    ask = asked.ask
    n = max(len(place.found.conditions) for place in found)
    if ask.p_from != "item_flips" and n < FEW:
        raise DataError(
            f"p_from: {ask.p_from} needs at least {FEW} conditions, not {n}: so few labels have too few permutations. "
            "Use p_from: item_flips with models of effects."
        )
    if ask.compare == "spearman" and n < FEW:
        raise DataError(f"spearman ranks {n * (n - 1) // 2} distances only; set compare: cosine_cov.")


def _tests(
    asked: Question,
    found: Sequence[Place],
    models: Sequence[Mapping[str, np.ndarray]],
    *,
    responses: Any,
    fits: Sequence[pd.DataFrame],
) -> tuple[Tests, np.ndarray | None, list[dict[str, Any]]]:
    if asked.ask.p_from == "bootstrap":
        tests, pairs = bootstrap_tests(asked, found, models, responses=responses)
        return tests, None, pairs
    flipped = asked.ask.p_from == "item_flips"
    tests, null_max = flip_tests(asked, found) if flipped else label_tests(asked, found, models)
    if not asked.ask.differences:
        return tests, null_max, []
    known = [float(fit["reliability"].iloc[0]) for fit in fits]
    reliable = {place.key: not r < UNRANKED for place, r in zip(found, known, strict=True)}
    return tests, null_max, difference_rows(asked, found, models, reliable=reliable)
