r"""Does steering change what a model writes? Steered beside plain, item by item, and against control features.

For item i and condition c (direction and size of the push), with s the score of a text and the same random numbers in
both, averaged over the samples of a prompt and the prompts of an item,

    D_ic = mean s(steered) - mean s(plain).

Two p-values are needed for a claim: over items, by flipping the signs of whole items; and among matched sets of control
features that are pushed as far in their own natural units. The claim's p is the larger one, Holm over the conditions.
What the push costs stands beside it: divergence and perplexity on neutral text, and how strange the unedited model
finds the steered texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.causal.chosen import reference_texts
from neurosae.causal.controls import badly_matched
from neurosae.causal.costs import neutral_costs
from neurosae.causal.generation import continuation_costs
from neurosae.causal.inference import claim_p, item_tests, rank_p
from neurosae.causal.material import as_dose
from neurosae.causal.prompted import edits_of, next_word_odds
from neurosae.causal.pushes import (
    Material,
    Outcome,
    Push,
    Steered,
    chosen_features,
    condition_of,
    conditions_of,
    control_sets,
    material_of,
    measured,
)
from neurosae.causal.scoring import SCORES, score_texts, words_of
from neurosae.errors import choose
from neurosae.spec.design import Design
from neurosae.spec.generation import GenerationBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.multiplicity import holm
from neurosae.stats.units import item_numbers

COST_TOKENS = 5_000


def generation(
    stimuli: pd.DataFrame,
    model: Any,
    dictionary: Any,
    *,
    features: Mapping[int, int],
    settings: Mapping[str, Any],
    texts: Sequence[str],
    seed: int,
) -> Tested:
    """Test whether steering features changes the score of what follows the items' prompts.

    Parameters
    ----------
    stimuli : from `expand`
    features : {feature: +1 or -1}, the direction in which it is pushed towards plus
    settings : keys of the block `test: generation` (`region`, `words`, `score`, `dose`, `times` …), without `features`
    texts : reference text, for natural doses, densities and costs

    Returns
    -------
    Tested
        One row per condition; extras `texts` (steered beside plain), `items` and `controls`.

    Raises
    ------
    DataError
        Fewer than 6 items, no prompts, features without natural dose, or too few candidates as controls.

    Notes
    -----
    H0 over items: which of the two texts of an item was steered makes no difference. H0 among controls: the features
    are exchangeable with features of like density and size. Not shown: that the features mean what their effect is
    called, or that other lists of words would score the same.
    """
    block = GenerationBlock.model_validate(
        {"test": "generation", **settings, "features": {"ids": [int(j) for j in features]}}
    )
    signs = np.sign(np.array(list(features.values()), dtype=float)).astype(int)
    chosen = Steered(np.array(list(features), dtype=int), signs, "named features")
    material = material_of(stimuli, (model, dictionary), block, texts=texts, seed=seed)
    place = {"test": "generation", "kind": "generation", "site": "", "region": block.region[0], "split": block.split}
    return tested(material, chosen, block, place=place, stimuli=stimuli)


def run(
    responses: Mapping[str, Any], ask: GenerationBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block with `test: generation`."""
    del rng  # relabellings and samples come from the study's seed
    spec = study.spec
    site = next(iter(ask.sites or responses))
    model, dictionaries = study.live()
    dictionary = choose("site", site, dictionaries)
    texts = reference_texts(study, ask, model)
    chosen = chosen_features(ask, site, earlier, alpha=spec.inference.alpha)
    material = material_of(study.stimuli, (model, dictionary), ask, texts=texts, seed=spec.seed)
    test = next((name for name, block in spec.tests.items() if block is ask), ask.test)
    place = {"test": test, "kind": "generation", "effect": chosen.effect or "named features", "site": site}
    place |= {"region": ask.region[0], "split": ask.split}
    return tested(material, chosen, ask, place=place, stimuli=study.stimuli)


def tested(
    material: Material, chosen: Steered, ask: GenerationBlock, *, place: Mapping[str, Any], stimuli: pd.DataFrame
) -> Tested:
    """Run every condition with its controls, and test them as one family."""
    pushes, sets = conditions_of(ask), control_sets(material, chosen, ask)
    outcome = measured(material, chosen, ask, pushes=pushes, sets=sets.sets)
    D = outcome.scores - outcome.plain[:, None]
    numbers = item_numbers(Design.from_json(stimuli.attrs["design"]), outcome.items)
    tests = item_tests(D, numbers, seed=material.asked.seed, split=ask.split)
    bad = badly_matched(sets.balance)
    p_controls = np.array([rank_p(float(d), c) for d, c in zip(D.mean(axis=0), outcome.controls, strict=True)])
    claim = np.array([np.nan if bad else claim_p(a, b) for a, b in zip(tests.p, p_controls, strict=True)])
    changed = tests.informative > 0
    said = [sets.note, bad, *_cautions(material, stimuli, ask)]
    columns = {
        **place, "position": 0, "n_features": len(chosen.features), "stat": "t", "value": tests.t,
        "set": [f"{chosen.name}, {p.name}" for p in pushes], "dof": np.where(changed, len(D) - 1.0, np.nan),
        "estimate": tests.estimate, "se": tests.se, "effsize": tests.d_z, "eftype": "d_z", "ci_low": tests.low,
        "ci_high": tests.high, "ci_level": 0.95, "p_unc": claim, "p_corr": holm(claim), "p_adjust": "holm",
        "p_method": np.where(tests.exact, "exact flips and matched controls", "flips and matched controls"),
        "family": f"all {len(pushes)} conditions of test {place['test']}", "n_family": int(np.isfinite(claim).sum()),
        "unit": "item", "n_units": len(D), "n_informative": tests.informative, "n_perm": tests.n_permutations,
        "p_min": max(2.0 ** (1 - len(D)), 1 / (len(sets.sets) + 1)), "alternative": "two-sided",
        "h0": "steering changes the score of no item, or no more than control features of like density and size do",
        "status": np.where(changed, "ok", "untestable"),
        "x_p_items": tests.p, "x_p_items_maxT": tests.p_corr, "x_p_controls": p_controls,
        "x_n_controls": len(sets.sets), "x_control_mean": outcome.controls.mean(axis=1), "x_worst_smd": sets.worst,
        "x_score": ask.score, "x_direction": [p.sign for p in pushes], "x_times": [p.times for p in pushes],
        "x_plain": float(outcome.plain.mean()), "x_steered": outcome.scores.mean(axis=0),
    }  # fmt: skip
    columns |= _push_columns(material, chosen, ask, pushes=pushes, said=said, changed=changed)
    columns |= _text_costs(material, outcome)
    extras = {"items": _item_table(outcome, pushes), "controls": _control_table(outcome, pushes, D)}
    if outcome.written[0] is not None:
        extras["texts"] = _text_table(material, outcome, pushes)
    return Tested(check_results(as_results(columns)), None, extras)


def _push_columns(
    material: Material, chosen: Steered, ask: GenerationBlock, *, pushes: Sequence[Push], said: Sequence[str],
    changed: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Dose, natural range and cost of every condition, and what the reader must know."""
    dose = as_dose(ask.dose, material.reference, chosen.features.tolist())
    highest = material.reference.quantile(chosen.features.tolist(), 1.0)
    edits = [edits_of(condition_of(material, chosen, ask, push=p), material.dictionary, where="all") for p in pushes]
    costs = neutral_costs(material.model, edits, material.texts, n_tokens=min(ask.n_tokens, COST_TOKENS))
    outside = [int((p.times * dose > highest).sum()) for p in pushes]
    n, notes = len(dose), []
    for k, (push, moved) in enumerate(zip(pushes, changed, strict=True)):
        far = (
            f"outside the natural range: {outside[k]} of {n} features beyond their largest activity"
            if outside[k]
            else ""
        )
        less = (
            "steer may push features below 0, where none ever is"
            if ask.mode == "steer" and _takes(push, chosen)
            else ""
        )
        still = "" if moved else "no item's score changed, so there is nothing to test"
        notes.append("; ".join(word for word in (still, far, less, *said) if word))
    return {
        "note": notes, "x_dose": float(np.mean(dose)), "x_outside": outside, "x_kl": costs.kl,
        "x_perplexity_ratio": costs.perplexity_ratio,
    }  # fmt: skip


def _takes(push: Push, chosen: Steered) -> bool:
    return bool((push.sign * chosen.signs < 0).any())


def _cautions(material: Material, stimuli: pd.DataFrame, ask: GenerationBlock) -> list[str]:
    """Words that the choice of features has seen, and words that could not be scored."""
    lexicon, said = material.asked.lexicon, []
    listed = {*lexicon.plus, *lexicon.minus}
    if "split" in stimuli:
        seen = {w for text in stimuli.loc[stimuli["split"].astype(str) != ask.split, "text"] for w in words_of(text)}
        n = len(listed & seen)
        said.append(f"{n} of {len(listed)} listed words stand in the texts that may have chosen the features")
    if ask.score not in SCORES:
        lost = next_word_odds(material.model, material.asked.prompts["prompt"].tolist()[:1], [()], lexicon=lexicon)[1]
        said.append(f"not scored, being several tokens: {', '.join(lost)}" if lost else "")
    if ask.where != "all":
        said.append(f"costs on neutral text are those of the edit at all tokens, not at {ask.where} ones alone")
    return said


def _text_costs(material: Material, outcome: Outcome) -> dict[str, Any]:
    """Perplexity, for the unedited model, of plain and steered texts; missing where no text was written."""
    if outcome.written[0] is None:
        return {}
    means = [float(np.nanmean(continuation_costs(material.model, w))) for w in outcome.written if w is not None]
    return {"x_text_perplexity_plain": np.exp(means[0]), "x_text_perplexity": np.exp(means[1:])}


def _item_table(outcome: Outcome, pushes: Sequence[Push]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"item": outcome.items, "condition": p.name, "plain": outcome.plain, "steered": outcome.scores[:, c]}
        )
        for c, p in enumerate(pushes)
    ]
    return pd.concat(parts, ignore_index=True)


def _control_table(outcome: Outcome, pushes: Sequence[Push], D: np.ndarray) -> pd.DataFrame:
    """Mean change of every control set and, with number -1, of the target."""
    parts = [
        pd.DataFrame({"condition": p.name, "control": np.arange(-1, outcome.controls.shape[1]),
                      "change": np.r_[D[:, c].mean(), outcome.controls[c]]})
        for c, p in enumerate(pushes)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _text_table(material: Material, outcome: Outcome, pushes: Sequence[Push]) -> pd.DataFrame:
    """Every text, steered beside plain, with the score of both."""
    plain, asked = outcome.written[0], material.asked
    assert plain is not None
    base, prompts = score_texts(plain.texts, asked.lexicon, asked.score), asked.prompts.iloc[plain.prompt]
    parts = []
    for push, written in zip(pushes, outcome.written[1:], strict=True):
        assert written is not None
        parts.append(
            pd.DataFrame(
                {
                    "condition": push.name,
                    "item": prompts["item"].to_numpy(),
                    "frame": prompts["frame"].to_numpy(),
                    "sample": plain.sample,
                    "prompt": prompts["prompt"].to_numpy(),
                    "plain": plain.texts,
                    "steered": written.texts,
                    "score_plain": base,
                    "score_steered": score_texts(written.texts, asked.lexicon, asked.score),
                    "ended_plain": plain.ended,
                    "ended_steered": written.ended,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
