r"""A difference that a model makes between two levels (a bias): measured, removed in several ways, compared.

With LD the logit difference between the form of a text's own level and that of the other level, the bias of item i is

    b_i = mean over its cells of LD,

half of how far the preference between both forms moves with the level; 0 where the level does not matter. Each method
has a strength. At full strength its change of b is tested over items and among controls (99 or more edits of the same
kind that are not about the levels), and both p-values are needed. An edit that does more also costs more, so methods
are compared at the strengths at which they change neutral text equally (KL in nats per token).

What is shown holds for the tested frames and forms. Less difference in these logits is no evidence of a model without
bias elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from neurosae.causal.chosen import reference_texts
from neurosae.causal.controls import Controls, matched_controls
from neurosae.causal.costs import neutral_costs
from neurosae.causal.edits import Edit
from neurosae.causal.inference import item_tests
from neurosae.causal.items import ItemOutcomes, item_outcomes
from neurosae.causal.material import Reference, covariates, place_of, reference_of, stimuli_for
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.pushes import Steered, chosen_features
from neurosae.causal.removal_rows import bias_row, cell_table, change_rows, left_rows, pair_rows, strength_table
from neurosae.causal.removing import (
    METHODS,
    Matched,
    Removal,
    as_control,
    cost_of,
    level_means,
    matched_strength,
    strengths_of,
)
from neurosae.errors import choose
from neurosae.spec.design import Design
from neurosae.spec.generation import RemovalBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.communities import reference_activations

COST_TOKENS = 5_000
MATCH = ("density", "size")


def removal(
    stimuli: pd.DataFrame,
    model: Any,
    dictionary: Any,
    *,
    features: Sequence[int],
    settings: Mapping[str, Any],
    texts: Sequence[str],
    seed: int,
) -> Tested:
    """Remove the difference between two levels in several ways, and compare what is left at equal cost.

    Parameters
    ----------
    stimuli : from `expand`, of a design with a localizer split and a target whose foil is the other level's form
    features : the set that `ablate` and `mean` edit
    settings : keys of the block `test: removal` (`region`, `methods`, `strengths` …) without `features`; `effect` is
        written out here, {factor: {level: 1, level: -1}}
    texts : reference text, for densities and for the cost of every edit

    Returns
    -------
    Tested
        Rows: the bias; its change under every method and strength; what is left of it, and differences between
        methods, at matched divergence. Extras `strengths`, `cells`, `items` and `controls`.

    Notes
    -----
    H0 of the bias: exchanging the levels of an item changes nothing. H0 of a change: the edit changes no item's bias,
    or no more than controls do. H0 of a comparison: both methods leave the same, flips of whole items.
    """
    written = dict(settings)
    effect = written.pop("effect")
    block = RemovalBlock.model_validate(
        {"test": "removal", **written, "effect": "levels", "features": {"ids": [int(j) for j in features]}}
    )
    chosen = Steered(np.asarray(features, dtype=int), np.ones(len(features), dtype=int), "named features")
    place = {"test": "removal", "kind": "removal", "effect": "levels", "site": "", "split": block.split}
    made = prepare(stimuli, (model, dictionary), block, effect=effect, chosen=chosen, texts=texts, seed=seed)
    return tested(made, chosen, place={**place, "region": block.region[0]})


def run(
    responses: Mapping[str, Any], ask: RemovalBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block with `test: removal`."""
    del rng  # relabellings and control sets come from the study's seed
    spec = study.spec
    site = next(iter(ask.sites or responses))
    model, dictionaries = study.live()
    texts = reference_texts(study, ask, model)
    chosen = chosen_features(ask, site, earlier, alpha=spec.inference.alpha)
    live = (model, choose("site", site, dictionaries))
    effect = choose("effect", ask.effect, spec.effects)
    made = prepare(study.stimuli, live, ask, effect=effect, chosen=chosen, texts=texts, seed=spec.seed)
    test = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    place = {"test": test, "kind": "removal", "effect": ask.effect, "site": site, "region": ask.region[0]}
    return tested(made, chosen, place={**place, "split": ask.split})


def prepare(
    stimuli: pd.DataFrame, live: tuple[Any, Any], ask: RemovalBlock, *, effect: Mapping[str, Any], chosen: Steered,
    texts: Sequence[str], seed: int,
) -> Removal:  # fmt: skip
    """Means of the levels on localizer items, and control sets matched at the tokens that are edited."""
    model, dictionary = live
    design = Design.from_json(stimuli.attrs["design"])
    factor, weights = next((f, w) for f, w in effect.items() if min(w.values()) < 0)
    plus, minus = (next(level for level, w in weights.items() if sign * w > 0) for sign in (1, -1))
    local = stimuli_for(stimuli, design, region=ask.region[0], split="localizer")
    place = place_of(local, model, dictionary, region=ask.region[0])
    every = level_means(place, range(dictionary.n_features), factor=factor, levels=(plus, minus))
    levels = every._replace(features=chosen.features, mean=every.mean[chosen.features])
    tests = stimuli_for(stimuli, design, region=ask.region[0], split=ask.split)
    reference = reference_of(reference_activations(model, dictionary, texts, n_tokens=ask.n_tokens, seed=seed))
    controls = _controls(tests, live, ask, chosen=chosen, reference=reference, seed=seed)
    return Removal(model, dictionary, tests, design, levels, every.mean, controls, texts, ask, seed)


def _controls(
    stimuli: pd.DataFrame, live: tuple[Any, Any], ask: RemovalBlock, *, chosen: Steered, reference: Reference, seed: int
) -> Controls:
    model, dictionary = live
    place = place_of(stimuli, model, dictionary, region="all")
    table = covariates(place, reference, mode="ablate", dose=0.0)[list(MATCH)]
    W = dictionary.W_dec.detach().float().cpu().numpy()
    given = {"n": ask.n_controls, "excluded": chosen.excluded, "W_dec": W, "seed": seed}
    return matched_controls(table, chosen.features.tolist(), **given)


def biases(made: Removal, conditions: Sequence[tuple[Edit, ...]]) -> tuple[np.ndarray, np.ndarray, ItemOutcomes]:
    """Bias of every item, clean (n_items,) and under each condition (n_items, n_conditions); outcomes by cell."""
    found = edited_outcomes(made.stimuli, made.model, conditions, idle="note")
    values = np.column_stack([found.clean["logit_diff"], found.values["logit_diff"]])
    items = item_outcomes(values, made.stimuli, made.design, split=made.ask.split)
    mean = np.nanmean(items.values, axis=1)
    return mean[:, 0], mean[:, 1:], items


def strengths_and_costs(made: Removal) -> tuple[pd.DataFrame, Matched]:
    """Cost of every method and strength, and the strengths at which all cost the same as the cheapest at its most."""
    ask = made.ask
    n_tokens = min(ask.n_tokens, COST_TOKENS)
    cost = cost_of(made.model, made.texts, n_tokens=n_tokens)
    grid = [(method, strength) for method in ask.methods for strength in strengths_of(ask)]
    conditions = [METHODS[method](made.dictionary, made.levels, strength) for method, strength in grid]
    costs = neutral_costs(made.model, conditions, made.texts, n_tokens=n_tokens)  # one pass without edits for all
    table = pd.DataFrame(grid, columns=["method", "strength"])
    table = table.assign(kl=costs.kl, perplexity_ratio=costs.perplexity_ratio)
    target = float(table.groupby("method")["kl"].max().min())
    strength, kl, ratio = {}, {}, {}
    for method in ask.methods:
        own = table[table["method"] == method]
        known = list(zip(own["strength"], own["kl"], strict=True))

        def at(s: float, method: str = method) -> float:
            return cost(METHODS[method](made.dictionary, made.levels, s))[0]

        strength[method], kl[method] = matched_strength(at, target, known=known)
        ratio[method] = cost(METHODS[method](made.dictionary, made.levels, strength[method]))[1]
    return table, Matched(strength, kl, ratio, target)


def control_changes(made: Removal, clean: np.ndarray) -> pd.DataFrame:
    """Mean change of the bias by every control edit at full strength: columns `method control change`."""
    n_items = len(made.levels.difference)
    rng = np.random.default_rng([made.seed, n_items])
    parts = []
    for method in made.ask.methods:
        signs = [_half(rng, n_items) for _ in made.controls.sets]
        conditions = [
            METHODS[method](
                made.dictionary,
                as_control(made.levels, method, members=members, means=made.means[members], signs=flips),
                1.0,
            )
            for members, flips in zip(made.controls.sets, signs, strict=True)
        ]
        change = biases(made, conditions)[1] - clean[:, None]
        parts.append(
            pd.DataFrame({"method": method, "control": np.arange(len(conditions)), "change": change.mean(axis=0)})
        )
    return pd.concat(parts, ignore_index=True)


def _half(rng: np.random.Generator, n: int) -> np.ndarray:
    """+1 and -1 in equal numbers (but for one), in random order."""
    return rng.permutation(np.where(np.arange(n) % 2, 1.0, -1.0))


def tested(made: Removal, chosen: Steered, *, place: Mapping[str, Any]) -> Tested:
    """Measure, remove, compare."""
    ask = made.ask
    costs, matched = strengths_and_costs(made)
    grid = [(m, s) for m in ask.methods for s in strengths_of(ask)]
    grid += [(m, matched.strength[m]) for m in ask.methods]
    clean, edited, cells = biases(made, [METHODS[m](made.dictionary, made.levels, s) for m, s in grid])
    controls = control_changes(made, clean)
    n_matched = len(ask.methods)
    given = {"numbers": cells.numbers, "seed": made.seed, "split": ask.split}
    bias = item_tests(clean[:, None], **given)
    change = item_tests(edited[:, :-n_matched] - clean[:, None], **given)
    left = edited[:, -n_matched:]
    pairs = list(combinations(range(n_matched), 2))
    parts = [
        bias_row(bias, place),
        change_rows(
            made, grid[:-n_matched], change, place={**place, "name": chosen.name}, controls=controls, clean=clean
        ),
        left_rows(item_tests(left, **given), matched, ask.methods, place=place, clean=clean),
    ]
    if pairs:
        difference = np.column_stack([left[:, a] - left[:, b] for a, b in pairs])
        names = [f"{ask.methods[a]} - {ask.methods[b]}, at equal KL" for a, b in pairs]
        parts.append(pair_rows(item_tests(difference, **given), names, matched, place=place))
    table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    table = as_results({str(name): table[name].array for name in table})
    extras = {
        "strengths": strength_table(made, costs, matched, grid=grid, clean=clean, edited=edited),
        "cells": cell_table(cells, grid),
        "items": pd.DataFrame(
            {"item": np.tile(cells.items, len(grid)), "method": np.repeat([m for m, _ in grid], len(clean)),
             "strength": np.repeat([s for _, s in grid], len(clean)), "clean": np.tile(clean, len(grid)),
             "edited": edited.T.ravel()}
        ),
        "controls": controls,
    }  # fmt: skip
    return Tested(check_results(table), None, extras)
