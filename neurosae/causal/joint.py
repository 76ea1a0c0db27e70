"""Sets of features clamped together: is the joint effect more than the sum, behind a frozen normalization too?

Two sets: the 2 x 2 clamp, in both directions, against matched pairs, over a grid of doses. More sets: Shapley-Taylor
interactions. `test: joint_clamp` is the causal member of the integration battery.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.chosen import directed, reference_texts, written_texts
from neurosae.causal.costs import OFF_TARGET, at_all_tokens, neutral_costs
from neurosae.causal.inference import item_tests, without_rounding
from neurosae.causal.joint_effects import Interactions, JointFound, joint_tests, shapley_taylor
from neurosae.causal.material import Reference, place_of, reference_of, stimuli_for
from neurosae.causal.pairs import (
    Both,
    Setting,
    by_unit,
    clamp_means,
    clamp_pair,
    edit_of,
    n_alone,
    n_together,
    outcomes_of,
    surface,
)
from neurosae.causal.rows import table_of
from neurosae.causal.workload import announce, part_of, tokens_per_second, workload
from neurosae.errors import DataError
from neurosae.spec.causal import JointClampBlock
from neurosae.spec.design import Design
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import features_from_earlier, settings_of
from neurosae.stats.communities import reference_activations
from neurosae.stats.multiplicity import holm

DIRECTIONS = {"clamp": "clamped into what has neither", "ablate": "ablated from what has both"}


class Job(NamedTuple):
    """One site and region: its columns, the sets by name, which features are no controls, and what is run on."""

    where: dict[str, Any]
    sets: dict[str, tuple[int, ...]]
    excluded: np.ndarray
    dictionary: Any
    reference: Reference
    texts: Sequence[str]


def joint_clamp(
    stimuli: pd.DataFrame,
    model: Any,
    dictionary: Any,
    *,
    features: Mapping[str, Sequence[int]],
    region: str,
    options: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test whether sets of features act jointly on the logit difference.

    With L the logit difference without edit, with either set and with both,

        I_i = L_i(AB) - L_i(A) - L_i(B) + L_i(0),

    by clamping into texts that have neither part, and by ablating from texts that have both (there the clean run is
    AB). Free and frozen: scales of normalizations recomputed, or held at the clean run.

    Parameters
    ----------
    stimuli : from `expand`, of a design with a target
    features : {name: indices}; two sets, or up to eight, for which Shapley-Taylor interactions are given
    region : whose tokens are edited
    options : keys of the block `test: joint_clamp` (`parts`, `direction`, `dose`, `doses`, `n_controls`, `freeze`,
        `only`, …); besides `effects`, {name: effect} for `parts`; `texts`, `excluded` and `inference` as in `intervene`
    seed : int

    Returns
    -------
    DataFrame
        The results schema. A claim's p is the largest of four: flips of I over items and rank among matched pairs, free
        and frozen (`x_p_items_free`, `x_p_items`, `x_p_controls_free`, `x_p_controls`). `effsize` is
        I / (|A| + |B|), frozen; `x_kl` and `x_perplexity_ratio` are the cost of both sets together on reference text.

    Raises
    ------
    DataError
        Too few items, sets that share all features, an outcome other than the logit difference.

    Notes
    -----
    H0: the effects of the sets add up, or no more fails to add up than for pairs like these. With a normalization that
    is not frozen, effects never add up; with a probability as outcome, freezing does not help. Pairs are matched on
    what a part does where the other is not: ablated from a text that has both, a part takes its interaction along.
    """
    given = dict(options or {})
    settings, effects = settings_of(given.pop("inference", None)), dict(given.pop("effects", {}))
    texts, excluded = given.pop("texts", None), given.pop("excluded", ())
    sets = {name: {"ids": [int(j) for j in ids]} for name, ids in features.items()}
    block = JointClampBlock.model_validate({"test": "joint_clamp", "region": region, "features": sets} | given)
    if "design" not in stimuli.attrs:
        raise DataError("stimuli carry no design, which says what an item is; make them with expand.")
    design = Design.from_json(stimuli.attrs["design"])
    texts = texts if texts is not None else written_texts(model, block.n_tokens, seed=seed)
    where = {"test": "joint_clamp", "kind": "joint_clamp", "site": dictionary.hook, "region": region, "position": 0}
    activations = reference_activations(model, dictionary, texts, n_tokens=block.n_tokens, seed=seed)
    job = Job(
        where | {"split": block.split}, _apart({name: tuple(map(int, ids)) for name, ids in features.items()}),
        np.asarray(excluded, dtype=int), dictionary, reference_of(activations), texts,
    )  # fmt: skip
    return _tested([job], block, (stimuli, model, design, effects), settings=settings, seed=seed).table


def run(
    responses: Mapping[str, Any], ask: JointClampBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: joint_clamp`.

    Extras: `clamps` (means of the four conditions), `controls` (I of the matched pairs), `balance`, `surface`,
    `workload` (what the run was to cost).
    """
    spec = study.spec
    test = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    model, dictionaries = study.live()
    texts = reference_texts(study, ask, model)
    jobs = []
    for site in ask.sites or responses:
        dictionary = dictionaries[site]
        activations = reference_activations(model, dictionary, texts, n_tokens=ask.n_tokens, seed=spec.seed)
        sets, away = {}, [np.empty(0, dtype=int)]
        for name, choice in ask.features.items():
            one = SimpleNamespace(features=choice, split=ask.split)
            chosen, _ = features_from_earlier(one, {site: responses[site]}, earlier)
            sets[name], answers = directed(chosen[site], choice, earlier, site=site, alpha=spec.inference.alpha)
            away.append(answers)
        for region in ask.region:
            where = {"test": test, "kind": "joint_clamp", "site": site, "region": region, "position": 0}
            excluded = np.unique(np.concatenate(away))
            jobs.append(
                Job(where | {"split": ask.split}, _apart(sets), excluded, dictionary, reference_of(activations), texts)
            )
    effects = {part: spec.effects[part] for part in ask.parts}
    return _tested(jobs, ask, (study.stimuli, model, study.design, effects), settings=spec.inference, seed=spec.seed)


def _apart(sets: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The sets without features that two of them share: an edit of one would be an edit of the other."""
    times: dict[int, int] = {}
    for own in sets.values():
        for j in own:
            times[j] = times.get(j, 0) + 1
    out = {name: tuple(j for j in own if times[j] == 1) for name, own in sets.items()}
    if empty := [name for name, own in out.items() if not own]:
        raise DataError(f"set '{empty[0]}' has no feature of its own; choose more, or by other contrasts.")
    return out


def _levels(block: JointClampBlock, effects: Mapping[str, Any], direction: str) -> dict[str, str]:
    """The levels of the texts that a direction runs on: neither part for clamping, both for ablation."""
    out = dict(block.only)
    for part in block.parts:
        ((factor, weights),) = effects[part].items()
        wanted = [level for level, weight in weights.items() if (weight > 0) == (direction == "ablate") and weight != 0]
        out[factor] = str(wanted[0])
    return out


def _tested(
    jobs: Sequence[Job],
    ask: JointClampBlock,
    given: tuple[Any, Any, Design, Mapping[str, Any]],
    *,
    settings: Any,
    seed: int,
) -> Tested:
    """Every place and direction; Holm over all claims."""
    rows: list[dict[str, Any]] = []
    extras: dict[str, list[pd.DataFrame]] = {"clamps": [], "controls": [], "balance": [], "surface": []}
    settled = list(_settled(jobs, ask, given))
    extras["workload"] = [planned(settled, ask)]
    for job, at in settled:
        shown = {"site": job.where["site"], "region": job.where["region"], "mode": at.mode}
        cost = off_target(job, at) if ask.off_target else {}
        if len(job.sets) > 2:
            rows += [row | cost for row in _shapley_rows(job, at, settings=settings, seed=seed)]
            continue
        made = clamp_pair(
            at,
            tuple(job.sets.values()),  # pyright: ignore[reportArgumentType]
            n_controls=ask.n_controls,
            excluded=job.excluded.tolist(),
            seed=seed,  # pyright: ignore
        )
        rows.append(_claim_row(job, at, made, settings=settings, seed=seed) | cost)
        extras["clamps"].append(clamp_means(made).assign(**shown))
        extras["balance"].append(made.balance.assign(**shown))
        extras["controls"].append(_control_table(made).assign(**shown))
        if ask.doses and at.mode == "clamp":
            extras["surface"].append(_surface_table(job, at, ask, settings=settings, seed=seed).assign(**shown))
    _correct(rows, ask.correction)
    return Tested(
        check_results(table_of(rows)), None, {name: pd.concat(t, ignore_index=True) for name, t in extras.items() if t}
    )


def _settled(
    jobs: Sequence[Job], ask: JointClampBlock, given: tuple[Any, Any, Design, Mapping[str, Any]]
) -> Iterator[tuple[Job, Setting]]:
    """Every place in every direction, with the texts that it runs on."""
    stimuli, model, design, effects = given
    for job in jobs:
        for direction in ("clamp", "ablate") if ask.direction == "both" else (ask.direction,):
            levels, region = _levels(ask, effects, direction), job.where["region"]
            chosen = stimuli_for(stimuli, design, region=region, split=ask.split, only=levels)
            place = place_of(chosen, model, job.dictionary, region=region)
            match = tuple(ask.match)
            yield job, Setting(place, job.reference, design, direction, ask.dose, ask.freeze, ask.controls, match)


def planned(settled: Sequence[tuple[Job, Setting]], ask: JointClampBlock) -> pd.DataFrame:
    """What a test will cost, said before it begins where it is long."""
    parts, k = [], len(ask.doses)
    for job, at in settled:
        where, n_sets = job.where | {"mode": at.mode}, len(job.sets)
        if n_sets > 2:
            runs = {"sets in all coalitions, free and frozen": 2 * (2**n_sets - 1)}
        else:
            runs = {"target pair, free and frozen": 6, "controls alone": n_alone(ask.n_controls),
                    "matched pairs, free and frozen": n_together(at.mode, ask.n_controls)}  # fmt: skip
            runs |= {"surface, free and frozen": 2 * (2 * k + k * k)} if k and at.mode == "clamp" else {}
        parts += [part_of(at.place, where, name, n_conditions=n) for name, n in runs.items()]
        if ask.off_target:
            n_costs = 3 if n_sets == 2 else 1
            parts.append(parts[-1]._replace(part="off target", n_conditions=n_costs, n_texts=len(job.texts),
                                            n_tokens=OFF_TARGET))  # fmt: skip
    table = workload(parts, tokens_per_second(settled[0][1].place))
    announce(str(settled[0][0].where["test"]), table)
    return table


def off_target(job: Job, at: Setting) -> dict[str, float]:
    """KL and perplexity on reference text, edited at all of its tokens: all sets together, and each of two alone."""
    sets = list(job.sets.values())
    chosen = [sum(sets, ()), *(sets if len(sets) == 2 else ())]
    conditions = at_all_tokens([edit_of(at, one) for one in chosen])
    found = neutral_costs(at.place.prompts.model, conditions, job.texts, n_tokens=OFF_TARGET)
    alone = dict(zip(("x_kl_first", "x_kl_second"), found.kl[1:].tolist(), strict=False))
    return {"x_kl": float(found.kl[0]), "x_perplexity_ratio": float(found.perplexity_ratio[0])} | alone


def _claim_row(job: Job, at: Setting, made: Both, *, settings: Any, seed: int) -> dict[str, Any]:
    """The claim of one direction, with all that its p is made of."""
    first, second = job.sets
    row = dict(job.where) | {
        "effect": f"{at.mode}: {first} x {second}", "set": f"{first} x {second}", "stat": "t of I",
        "unit": made.unit, "n_units": len(made.free), "n_features": sum(map(len, job.sets.values())),
        "alternative": "two-sided",
        "h0": "both sets' effects add up over items like these, or fail to no more than those of matched pairs",
        "x_role": "claim", "x_mode": at.mode, "x_contrast": f"{first} x {second}", "x_freeze": at.freeze,
        "x_dose": "0" if at.mode == "ablate" else str(at.dose), "x_single_first": float(made.single[0]),
        "x_single_second": float(made.single[1]),
    }  # fmt: skip
    where = DIRECTIONS[at.mode] if job.where and at.mode else ""
    flips_only = made.caution != ""
    controls = (made.controls_free, made.controls)
    found = joint_tests(
        made.free, made.frozen, made.numbers, controls=controls, n_permutations=settings.n_permutations, seed=seed
    )
    row |= _joint_numbers(found, made)
    if flips_only:
        silent = dict.fromkeys(("value", "estimate", "se", "effsize", "ci_low", "ci_high", "ci_level", "p_unc"))
        return row | silent | {"status": "untestable", "note": f"{where}; {made.caution}"}
    if found.frozen.informative[0] == 0:
        where += f"; with {at.freeze} scales frozen the effects add up exactly"
    return row | {"status": "ok", "note": f"{where}; {made.note}"}


def _joint_numbers(found: JointFound, made: Both) -> dict[str, Any]:
    def number(value: Any) -> float:
        return float(np.nan_to_num(value, nan=0.0))

    frozen, free, n = found.frozen, found.free, len(made.free)
    p = [1.0 if part.informative[0] == 0 else float(part.p[0]) for part in (frozen, free)]
    worst = made.balance.loc[made.balance["matched"].astype(bool), "smd"].abs().max() if len(made.balance) else np.nan
    return {
        "value": number(frozen.t[0]), "estimate": number(frozen.estimate[0]), "se": number(frozen.se[0]),
        "effsize": None if np.isnan(found.share) else found.share, "eftype": "I / (|A| + |B|)",
        "ci_low": number(frozen.low[0]),
        "ci_high": number(frozen.high[0]), "ci_level": 0.95, "p_unc": found.p, "p_method": "flips and rank",
        "n_informative": int(frozen.informative[0]), "n_perm": frozen.n_permutations,
        "p_min": max(2.0 ** (1 - n), 1 / (len(made.controls) + 1)), "x_p_items": p[0], "x_p_items_free": p[1],
        "x_p_controls": found.p_controls, "x_p_controls_free": found.p_controls_free,
        "x_estimate_free": number(free.estimate[0]), "x_estimate": number(frozen.estimate[0]),
        "x_share_free": found.share_free, "x_of_joint": found.of_joint,
        "x_n_controls": len(made.controls), "x_worst_smd": float(worst),
    }  # fmt: skip


def _correct(rows: Sequence[dict[str, Any]], how: str) -> None:
    """Holm over the claims of the test; the p of a joint clamp is itself a maximum, which no max-T replaces."""
    at = [row for row in rows if row["x_role"] == "claim" and row["status"] == "ok"]
    if at and how != "none":
        for row, p in zip(at, holm(np.array([row["p_unc"] for row in at])), strict=True):
            row |= {"p_corr": float(p), "p_adjust": "holm", "n_family": len(at)}
            row |= {"family": "directions of the joint clamp x regions x sites"}


def _control_table(made: Both) -> pd.DataFrame:
    """I of the target (set -1) and of every matched pair, free and frozen."""
    from neurosae.causal.joint_effects import interaction_of

    parts = []
    for name, L, controls in (("free", made.free, made.controls_free), ("frozen", made.frozen, made.controls)):
        values = np.r_[interaction_of(L).mean(), controls]
        parts.append(pd.DataFrame({"contrast": name, "set": np.arange(-1, len(controls)), "value": values}))
    return pd.concat(parts, ignore_index=True).assign(is_slope=False, feature=-1, label="mean I, logits")


def _surface_table(job: Job, at: Setting, ask: Any, *, settings: Any, seed: int) -> pd.DataFrame:
    """The dose x dose surface with p over items, max-T over the grid, frozen."""
    a, b = job.sets.values()
    table = surface(at, (a, b), ask.doses)
    D = np.stack(table["frozen_values"].to_list(), axis=1)
    numbers = by_unit(at, np.zeros((len(at.place.stimuli), 1)))[1]
    found = item_tests(D, numbers, n_permutations=settings.n_permutations, seed=seed)
    return table.drop(columns=["free_values", "frozen_values"]).assign(p_corr=found.p_corr)


def _shapley_rows(job: Job, at: Setting, *, settings: Any, seed: int) -> list[dict[str, Any]]:
    """Shapley-Taylor interactions of every pair among more than two sets, without matched controls: exploratory."""
    names, sets = list(job.sets), list(job.sets.values())
    found: dict[bool, Interactions] = {}
    sizes: list[float] = []  # of what is added and subtracted
    for frozen in (False, True):

        def outcome(coalitions: np.ndarray, frozen: bool = frozen) -> np.ndarray:
            # ablated from what has all of them, a coalition is what is left
            edited = coalitions if at.mode == "clamp" else ~coalitions
            some = [k for k, row in enumerate(edited) if row.any()]
            chosen = [sum((sets[i] for i in np.flatnonzero(edited[k])), ()) for k in some]
            run = outcomes_of(at, [edit_of(at, s) for s in chosen], frozen=frozen)
            sizes.append(4 * float(np.abs(run).max()))
            place = np.zeros(len(edited), dtype=int)
            place[some] = 1 + np.arange(len(some))
            return by_unit(at, run[:, place])[0]

        found[frozen] = shapley_taylor(outcome, len(sets), seed=seed)
    _, numbers, unit = by_unit(at, np.zeros((len(at.place.stimuli), 1)))
    rows = []
    tests = {f: item_tests(without_rounding(v.values.T, max(sizes)), numbers, n_permutations=settings.n_permutations,
                           seed=seed) for f, v in found.items()}  # fmt: skip
    for k, (i, j) in enumerate(found[True].pairs.tolist()):
        free, frozen = tests[False], tests[True]
        pair = f"{names[i]} x {names[j]}"
        row = dict(job.where) | {
            "effect": f"{at.mode}, Shapley-Taylor: {pair}", "set": " x ".join(names), "stat": "t of phi",
            "unit": unit, "n_units": len(numbers), "n_features": len(sets[i]) + len(sets[j]),
            "h0": "the mean Shapley-Taylor interaction of both sets is 0", "alternative": "two-sided",
            "x_role": "exploratory", "x_mode": at.mode, "x_contrast": pair, "x_freeze": at.freeze,
            "x_estimate_free": float(np.nan_to_num(free.estimate[k])),
            "x_dose": "0" if at.mode == "ablate" else str(at.dose),
        }  # fmt: skip
        if frozen.informative[k] < 6:
            row |= {"status": "untestable", "note": "frozen, the interaction is 0 up to rounding in all but few items"}
        else:
            row |= {"value": frozen.t[k], "estimate": frozen.estimate[k], "se": frozen.se[k], "p_unc": frozen.p[k],
                    "effsize": frozen.d_z[k], "eftype": "d_z", "ci_low": frozen.low[k], "ci_high": frozen.high[k],
                    "ci_level": 0.95, "p_method": "flips", "n_perm": frozen.n_permutations, "status": "ok",
                    "x_p_pairs": frozen.p_corr[k],
                    "note": "exploratory: no matched controls; x_p_pairs: max-T over items, of all pairs"}  # fmt: skip
        rows.append(row)
    return rows
