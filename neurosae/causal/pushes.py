"""What steering needs before and while texts are written: directions, doses, control sets, measured scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.controls import Controls, matched_controls
from neurosae.causal.generation import Sampling, Written, refuse_idle
from neurosae.causal.material import FEWEST, Reference, as_dose, reference_of
from neurosae.causal.prompted import Asked, Condition, edits_of, follow, prompts_of
from neurosae.causal.scoring import Lexicon
from neurosae.errors import DataError, choose
from neurosae.spec.generation import GenerationBlock
from neurosae.spec.results import Tested
from neurosae.stats.asked import refuse_several
from neurosae.stats.communities import reference_activations


class Push(NamedTuple):
    """One condition: towards the + (1) or the - (-1) cells, and how many doses far."""

    sign: int
    times: float

    @property
    def name(self) -> str:
        """As results call it."""
        return f"towards {'plus' if self.sign > 0 else 'minus'}, {self.times:g} x dose"


@dataclass(frozen=True)
class Steered:
    """Features with a direction, and what is known of them.

    Attributes
    ----------
    features, signs : indices, and +1 where larger activity belongs to the + cells, else -1
    name : what the set is called;  effect : the effect that chose it, "" for named features
    excluded : features that are no controls
    """

    features: np.ndarray
    signs: np.ndarray
    name: str
    effect: str = ""
    excluded: tuple[int, ...] = ()


class Material(NamedTuple):
    """What all conditions share."""

    model: Any
    dictionary: Any
    asked: Asked
    reference: Reference
    texts: Sequence[str]


def chosen_features(ask: Any, site: str, earlier: Mapping[str, Tested], *, alpha: float) -> Steered:
    """The features of a block with the direction that its earlier test found; named ones are all pushed up.

    Features that the earlier test found are no controls.
    """
    choice = ask.features
    if choice.from_ is None:
        named = np.array(choice.at(site), dtype=int)
        return Steered(named, np.ones(len(named), dtype=int), choice.name)
    table = choose("earlier test", choice.from_, earlier).table
    if set(table["split"].dropna()) & {ask.split}:
        raise DataError(f"features would be chosen and tested on the same items; set split: localizer on "
                        f"'{choice.from_}'.")  # fmt: skip
    refuse_several(table, f"'{choice.from_}'")
    table = table[table["status"].eq("ok").to_numpy(bool) & table["site"].eq(site).to_numpy(bool)]
    rows = table.assign(size=-table["value"].abs()).sort_values(["size", "feature"]).drop_duplicates("feature")
    if not len(rows):
        raise DataError(f"'{choice.from_}' has no tested feature at site '{site}'; run it on that site too.")
    best = rows.head(choice.top)
    found = table.loc[(table["p_corr"] <= alpha).fillna(False).to_numpy(bool), "feature"]
    return Steered(
        best["feature"].to_numpy(dtype=int), np.sign(best["value"].to_numpy(float)).astype(int), choice.name,
        str(best["effect"].iloc[0]), tuple(int(j) for j in found.unique()),
    )  # fmt: skip


def material_of(
    stimuli: pd.DataFrame, live: tuple[Any, Any], ask: GenerationBlock, *, texts: Sequence[str], seed: int
) -> Material:
    """Prompts, reference activity and settings of a block."""
    model, dictionary = live
    prompts = prompts_of(stimuli, ask.region[0], through=ask.prompt == "through", split=ask.split)
    lexicon = Lexicon(ask.words.plus, ask.words.minus)
    sampling = Sampling(ask.n_new, ask.n_samples, ask.temperature)
    reference = reference_of(reference_activations(model, dictionary, texts, n_tokens=ask.n_tokens, seed=seed))
    return Material(model, dictionary, Asked(prompts, lexicon, ask.score, sampling, ask.where, seed), reference, texts)


def conditions_of(ask: GenerationBlock) -> list[Push]:
    """Directions and sizes, in the order of the rows."""
    signs = {"both": (1, -1), "plus": (1,), "minus": (-1,)}[ask.towards]
    return [Push(sign, times) for sign in signs for times in ask.times]


def pushed(push: Push, features: np.ndarray, signs: np.ndarray, *, dose: np.ndarray, mode: str) -> Condition:
    """What a push does to each feature: `steer` adds or takes away, `clamp` sets to the dose or to 0."""
    towards = push.sign * signs
    amount = dose * push.times
    values = towards * amount if mode == "steer" else np.where(towards > 0, amount, 0.0)
    return Condition(mode, {int(j): float(v) for j, v in zip(features, values, strict=True)})


class Outcome(NamedTuple):
    """Item scores of the plain texts and of every condition, the texts, and the control sets' mean changes."""

    items: tuple[str, ...]
    plain: np.ndarray
    scores: np.ndarray
    written: list[Written | None]
    controls: np.ndarray


def condition_of(material: Material, chosen: Steered, ask: GenerationBlock, *, push: Push) -> Condition:
    """The condition of the target features."""
    dose = as_dose(ask.dose, material.reference, chosen.features.tolist())
    return pushed(push, chosen.features, chosen.signs, dose=dose, mode=ask.mode)


def control_sets(material: Material, chosen: Steered, ask: GenerationBlock) -> Controls:
    """Sets of features of like density and size (decoder norm x dose), place by place those of the target set."""
    dictionary, reference = material.dictionary, material.reference
    counts = reference.density * reference.n_tokens
    usual = counts >= FEWEST
    norm = np.asarray(dictionary.decoder_norm, dtype=np.float64)
    every = np.arange(dictionary.n_features)
    amount = np.full(len(every), np.nan)
    amount[usual] = as_dose(ask.dose, reference, every[usual])
    with np.errstate(divide="ignore", invalid="ignore"):
        table = pd.DataFrame({"density": np.log(reference.density), "size": np.log(norm * amount)}, index=every)
    table.loc[~usual] = np.nan
    W = dictionary.W_dec.detach().float().cpu().numpy()
    given = {"n": ask.n_controls, "excluded": chosen.excluded, "W_dec": W, "seed": material.asked.seed}
    return matched_controls(table, chosen.features.tolist(), **given)


def measured(
    material: Material, chosen: Steered, ask: GenerationBlock, *, pushes: Sequence[Push], sets: np.ndarray
) -> Outcome:
    """Write and score plainly, under every condition, and under every condition for every control set.

    Control set k takes the place of the target: feature by feature the same direction, each by its own natural dose.
    """
    dictionary, asked = material.dictionary, material.asked
    own = [condition_of(material, chosen, ask, push=push) for push in pushes]
    doses = [as_dose(ask.dose, material.reference, members) for members in sets]
    others = [
        pushed(push, members, chosen.signs, dose=dose, mode=ask.mode)
        for push in pushes
        for members, dose in zip(sets, doses, strict=True)
    ]
    edits = [edits_of(condition, dictionary, where=asked.where) for condition in (None, *own, *others)]
    found, texts = follow(material.model, asked, edits)
    by = pd.DataFrame(found.T).groupby(asked.prompts["item"].to_numpy(), sort=False).mean()
    plain, scores = by[0].to_numpy(), by.to_numpy()[:, 1:]
    for moved, edit in zip(texts[1 : 1 + len(own)], edits[1:], strict=False):
        if moved is not None and texts[0] is not None:
            refuse_idle(texts[0], moved, edit)
    controls = (scores[:, len(own) :] - plain[:, None]).mean(axis=0).reshape(len(pushes), len(sets))
    names = tuple(str(name) for name in by.index)
    return Outcome(names, plain, scores[:, : len(own)], texts[: 1 + len(own)], controls)
