"""Interventions on features, tested: over items, among matched controls, over doses, beside what else they cost.

features -> places (site x region) -> modes -> conditions of target and controls -> item tables -> rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.beside import Work, at_levels, control_table, dose_rows, dose_table, ladder_rows
from neurosae.causal.changes import Run, condition_of, contrasted, doses_asked, doses_run, present_cells, run_set
from neurosae.causal.chosen import directed, reference_texts, written_texts
from neurosae.causal.costs import OFF_TARGET, at_all_tokens, neutral_costs
from neurosae.causal.ladder import RUNGS
from neurosae.causal.material import as_dose, place_of, reference_of, stimuli_for
from neurosae.causal.population import Slopes, gather, population_rows
from neurosae.causal.rows import Claim, Settings, beside_row, claim_of, corrected, table_of
from neurosae.causal.workload import announce, part_of, tokens_per_second, workload
from neurosae.errors import DataError, choose
from neurosae.spec.causal import InterventionBlock
from neurosae.spec.design import Design
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import features_from_earlier, settings_of
from neurosae.stats.communities import reference_activations


def intervene(
    stimuli: pd.DataFrame,
    model: Any,
    dictionary: Any,
    *,
    features: Sequence[int],
    region: str,
    options: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Edit features and test whether the outcome moves, over items and against matched features.

    With L_ic the outcome of item i in cell c (frames averaged), D_i is the mean over cells, or the contrast of an
    effect, of L_ic(edited) - L_ic(clean). With several doses x the datum is the item's slope of L on x. p over items is
    that of flips of D_i; p among controls (1 + #{|mean D of a control set| >= |mean D|}) / (K + 1). The claim's p is
    the larger one.

    Parameters
    ----------
    stimuli : from `expand`, of a design with a target
    model : LanguageModel;  dictionary : Dictionary at a hook point of it
    features : indices; edited together, or each alone with `per: feature`
    region : whose tokens are edited
    options : keys of the block `test: intervention` (`mode`, `doses`, `effect`, `outcome`, `n_controls`, `match`,
        `freeze`, `smallest`, `off_target`, `ladder`, …); besides `effects`, {name: effect} for those under `effect`;
        `texts`, documents of reference text (left out, the model writes some); `excluded`, features that are no
        controls; `inference`, its keys
    seed : int

    Returns
    -------
    DataFrame
        The results schema. `x_role` is `claim`, `population`, `dose`, `cell` or `ladder`; the first two have a
        corrected p. `population`, with `per: feature` and two features or more: the mean over items and features.
        `x_p_items` and `x_p_controls` are the two p behind a claim, `x_share` the change at the highest dose over the
        clean contrast, `x_p_equivalent` the p of "no effect", `x_kl` and `x_perplexity_ratio` the cost on reference
        text.

    Raises
    ------
    DataError, ModelError
        Too few items, an edit that changes nothing, features without natural activity, too few controls.

    Notes
    -----
    H0: the edit changes the outcome no more than chance over items, or than an edit of features like these. A TopK
    dictionary is not run again after an edit. The claim holds for this model and dictionary, over items like these.

    References
    ----------
    McGrath et al. (2023), The Hydra effect, arXiv 2307.15771 (compensation after ablation). Lakens (2017), Soc.
    Psychol. Personal. Sci. 8:355 (equivalence).
    """
    given = dict(options or {})
    settings, effects = settings_of(given.pop("inference", None)), dict(given.pop("effects", {}))
    texts, excluded = given.pop("texts", None), given.pop("excluded", ())
    block = InterventionBlock.model_validate(
        {"test": "intervention", "region": region, "features": {"ids": [int(j) for j in features]}} | given
    )
    for name in block.effect:
        choose("effect", name, effects)
    if "design" not in stimuli.attrs:
        raise DataError("stimuli carry no design, which says what an item is; make them with expand.")
    design = Design.from_json(stimuli.attrs["design"])
    texts = texts if texts is not None else written_texts(model, block.n_tokens, seed=seed)
    rows = stimuli_for(stimuli, design, region=region, split=block.split, only=block.only)
    work = Work(
        {"test": "intervention", "kind": "intervention", "site": dictionary.hook, "region": region, "position": 0,
         "split": block.split, "set": "named features"},
        place_of(rows, model, dictionary, region=region),
        reference_of(reference_activations(model, dictionary, texts, n_tokens=block.n_tokens, seed=seed)),
        design, {name: at_levels(effects[name], block.only) for name in block.effect}, texts,
        np.asarray(excluded, dtype=int), {},
    )  # fmt: skip
    return _tested(
        [(work, tuple(block.features.at("")))], block, settings=settings, test="intervention", seed=seed
    ).table


def run(
    responses: Mapping[str, Any], ask: InterventionBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: intervention`.

    Extras: `doses` (target and controls at every dose), `controls` (what every control set did), `balance` (how well
    they were matched), `workload` (what the run was to cost).
    """
    spec = study.spec
    test = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    model, dictionaries = study.live()
    sites = {site: responses[site] for site in ask.sites or responses}
    chosen, set_name = features_from_earlier(ask, sites, earlier)
    texts = reference_texts(study, ask, model)
    jobs = []
    for site in sites:
        dictionary = dictionaries[site]
        activity = reference_of(reference_activations(model, dictionary, texts, n_tokens=ask.n_tokens, seed=spec.seed))
        features, excluded = directed(chosen[site], ask.features, earlier, site=site, alpha=spec.inference.alpha)
        others = {
            name: d.hook for name, d in dictionaries.items() if d.hook != dictionary.hook and d.d_in == dictionary.d_in
        }
        for region in ask.region:
            rows = stimuli_for(study.stimuli, study.design, region=region, split=ask.split, only=ask.only)
            where = {"test": test, "kind": "intervention", "site": site, "region": region, "position": 0}
            where |= {"split": ask.split, "set": set_name + _side(ask)}
            effects = {name: at_levels(spec.effects[name], ask.only) for name in ask.effect}
            place = place_of(rows, model, dictionary, region=region)
            jobs.append((Work(where, place, activity, study.design, effects, texts, excluded, others), features))
    return _tested(jobs, ask, settings=spec.inference, test=test, seed=spec.seed)


def _side(ask: Any) -> str:
    return "" if ask.features.direction == "both" else f", {ask.features.direction}"


# ------------------------------------------------------------------ every place


def _tested(
    jobs: Sequence[tuple[Work, tuple[int, ...]]], ask: InterventionBlock, *, settings: Any, test: str, seed: int
) -> Tested:
    """Claims first, corrected together; then what is described beside them."""
    shared = Settings(test, settings.n_permutations, ask.correction, seed, ask.smallest, ask.freeze)
    found = Found([], [], {"doses": [], "controls": [], "balance": [], "workload": [planned(jobs, ask, test)]}, {})
    for work, features in jobs:
        for group in [features] if ask.per == "set" else [(j,) for j in features]:
            one = work if ask.per == "set" else work._replace(where=work.where | {"feature": group[0]})
            away = np.r_[one.excluded, features]
            for mode in ask.mode:
                made = run_set(one.place, one.reference, group, ask=ask, mode=mode, excluded=away, seed=seed)
                _one_run(one, made, ask, shared=shared, found=found)
    together = population_rows(list(found.slopes.values()), shared) if ask.per == "feature" else []
    table = table_of([*corrected(found.claims, shared), *together, *found.beside])
    extras = {name: pd.concat(t, ignore_index=True) for name, t in found.extras.items() if t}
    return Tested(check_results(table), None, extras)


def planned(jobs: Sequence[tuple[Work, tuple[int, ...]]], ask: Any, test: str) -> pd.DataFrame:
    """What a test will cost, said before it begins where it is long."""
    parts = []
    for work, features in jobs:
        for mode, group in product(ask.mode, [None] if ask.per == "set" else features):
            where = work.where | {"mode": mode} | ({} if group is None else {"feature": group})
            n_doses = len(doses_run(mode, doses_asked(ask, mode)[1]))
            parts.append(part_of(work.place, where, "target and controls", n_conditions=(1 + ask.n_controls) * n_doses))
            if ask.ladder and ask.per == "set":
                parts.append(part_of(work.place, where, "ladder", n_conditions=RUNGS + len(work.others)))
            if ask.off_target:
                n_costs = 1 if mode == "ablate" else len(ask.doses)
                parts.append(parts[-1]._replace(part="off target", n_conditions=n_costs, n_texts=len(work.texts),
                                                n_tokens=OFF_TARGET))  # fmt: skip
    table = workload(parts, tokens_per_second(jobs[0][0].place))
    announce(test, table)
    return table


class Found(NamedTuple):
    """What all runs of a test gave so far: claims, rows beside them, long tables, slopes of single features."""

    claims: list[Claim]
    beside: list[dict[str, Any]]
    extras: dict[str, list[pd.DataFrame]]
    slopes: dict[tuple[Any, ...], Slopes]


def _one_run(work: Work, made: Run, ask: Any, *, shared: Settings, found: Found) -> None:
    """Rows and long tables of one set in one mode."""
    costs = _costs(work, made, ask)
    last = {name: float(values[-1]) for name, values in costs.items()}
    contrasts: dict[str, Any] = {"mean": None} | dict(work.effects)
    beside, extras = found.beside, found.extras
    for what, effect in contrasts.items():
        seen = contrasted(made, work.place, work.design, effect=effect)
        found.claims.append(claim_of(seen, made, where=work.where, what=what, settings=shared, cost=last))
        gather(found.slopes, seen, made, where=work.where, what=what)
        beside += dose_rows(work, seen, made, what=what, shared=shared, costs=costs)
        extras["doses"].append(dose_table(work, seen, made, what=what))
        extras["controls"].append(control_table(work, seen, made, what=what))
    place = {"site": work.where["site"], "region": work.where["region"], "mode": made.mode}
    extras["balance"].append(made.controls.balance.assign(**place, feature=work.where.get("feature", -1)))
    if ask.cells and ask.per == "set":
        for cell in present_cells(work.place, work.design):
            seen = contrasted(made, work.place, work.design, effect=None, cells=[cell])
            name = "/".join(cell)
            beside.append(beside_row(
                seen.D[:, 0, -1], seen.data.numbers, where=work.where, role="cell", settings=shared,
                effect=f"{made.mode} {made.labels[-1]}: in {name}", unit=seen.data.unit, x_mode=made.mode,
                x_contrast=name, x_dose=made.labels[-1], x_clean=float(seen.clean.mean()),
                n_features=len(made.features),
            ))  # fmt: skip
    if ask.ladder and ask.per == "set":
        beside += list(ladder_rows(work, made, ask, shared=shared))


def _costs(work: Work, made: Run, ask: Any) -> dict[str, np.ndarray]:
    """KL and perplexity on reference text at every dose, edited at all of its tokens."""
    if not ask.off_target:
        return {}
    doses = [0.0] if made.mode == "ablate" else [d for d in ask.doses]
    given = [
        condition_of(work.place, made.features, mode=made.mode, dose=as_dose(dose, work.reference, made.features))
        for dose in doses
    ]
    found = neutral_costs(work.place.prompts.model, at_all_tokens(given), work.texts, n_tokens=OFF_TARGET)
    return {"kl": np.asarray(found.kl), "perplexity_ratio": np.asarray(found.perplexity_ratio)}
