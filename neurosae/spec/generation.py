"""Schema of tests of written texts, and of ways to remove a difference: what is steered, scored and compared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import Block, FeatureChoice
from neurosae.spec.fields import Count, Number, OneOrMore, Strict, Text, fail
from neurosae.spec.sites import AnyPath
from neurosae.spec.words import Problem, Where, short

RemovalMethod = Literal["ablate", "mean", "direction"]
SCORED_TEXTS = ("balance", "log_odds")


class WordLists(Strict):
    """Words that count for either side; whole words in lower case, as they stand."""

    plus: OneOrMore
    """Words that count +1."""
    minus: OneOrMore
    """Words that count -1."""

    @model_validator(mode="after")
    def _check(self) -> WordLists:
        for name in ("plus", "minus"):
            for i, word in enumerate(getattr(self, name)):
                if word != word.lower() or not re.fullmatch(r"[^\W\d_]+(?:'[^\W\d_]+)*", word):
                    fail(name, i, text=f"'{short(word)}' is no single word in lower case; only such words are counted.")
        if both := sorted(set(self.plus) & set(self.minus)):
            fail("minus", text=f"names '{both[0]}', which stands under plus as well; keep it on one side.")
        return self


class _Edited(Block):
    """What both kinds share."""

    features: FeatureChoice
    """Which features: {from: find, top: 10}, chosen on localizer items, or {ids: {late: [12, 40]}}."""
    texts: tuple[AnyPath, ...] = ()
    """Reference text for natural doses, densities and costs; none: what the model writes itself."""
    n_tokens: Count = 20_000
    """Tokens of reference text; costs are measured on at most 5,000 of them."""
    n_controls: Count = 99
    """Matched sets of control features, at least 99; p among them can reach 1 / (n + 1)."""

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: str) -> str:
        if value != "test":
            fail(text="localizer items choose features; this runs on test items, leave it out.")
        return value

    @field_validator("region")
    @classmethod
    def _check_region(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 1:
            fail(text=f"names {', '.join(value)}; name one region.")
        return value

    @field_validator("n_controls")
    @classmethod
    def _check_controls(cls, value: int) -> int:
        if value < 99:
            fail(text=f"is {value}; use at least 99, or no specificity can be shown.")
        return value


class GenerationBlock(_Edited):
    """Does steering these features change what the model writes? Steered beside plain, item by item."""

    test: Literal["generation"]
    """generation"""
    prompt: Literal["before", "through"] = "before"
    """The text before the region, or through its end, is continued; equal prompts of an item count once."""
    mode: Literal["steer", "clamp"] = "steer"
    """steer adds the dose to features of the wanted direction and takes it from the others; clamp sets the former to
    the dose and the latter to 0."""
    dose: Number | Text = "p90"
    """A quantile of each feature's active values on reference text (p50, p90, p99), or activation units."""
    times: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    """Multiples of the dose; what exceeds the largest natural activity is flagged."""
    towards: Literal["both", "plus", "minus"] = "both"
    """Steer towards the + cells of the effect that chose the features, towards the - cells, or each in turn."""
    where: Literal["all", "prompt", "generated"] = "all"
    """Tokens that are edited; specials never are."""
    score: Literal["balance", "log_odds", "next_word"] = "balance"
    """balance: + words minus - words per 100; log_odds of both counts; next_word: log odds of all listed words as the
    very next one, which needs no written text and no luck."""
    words: WordLists
    """The two lists. Words that the localizer's texts contain are counted in the note: they favour a result."""
    n_new: Count = 24
    """Largest number of new tokens per text."""
    n_samples: Count = 4
    """Texts per prompt, averaged; items are the units."""
    temperature: Annotated[Number, Field(ge=0)] = 1.0
    """0 takes the most likely token."""

    @model_validator(mode="after")
    def _check(self) -> GenerationBlock:
        _check_dose(self.dose)
        if len(set(self.times)) < len(self.times):
            fail("times", text="names a multiple twice; write each once.")
        if self.score == "next_word" and self.where == "generated":
            fail("where", text="is generated, but the next word is scored before anything is; use all or prompt.")
        if self.temperature == 0 and self.n_samples > 1 and self.score in SCORED_TEXTS:
            fail("n_samples", text=f"is {self.n_samples}, but at temperature 0 all are the same; write 1.")
        return self


class RemovalBlock(_Edited):
    """Which way of removing a difference (a bias) leaves least of it at the same cost?"""

    test: Literal["removal"]
    """removal"""
    effect: Text
    """The difference between two levels, by its name under `effects:`; the target must be the form of the same factor,
    so that the mean logit difference over all cells is how much the model prefers the form of the level."""
    methods: OneOrMore = ("ablate", "mean", "direction")
    """ablate the features; clamp them to the mean of both levels (mean); remove the direction that joins the means of
    both levels (direction). Means are taken on localizer items at the region; all tokens are edited."""
    strengths: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], Field(min_length=2)] = (0.25, 0.5, 0.75, 1.0)
    """Shares of the full edit; between them the strength is found that costs every method the same."""

    @field_validator("methods")
    @classmethod
    def _check_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in get_args(RemovalMethod):
                fail(text=unknown("method", short(name), get_args(RemovalMethod)))
        return value

    @field_validator("strengths")
    @classmethod
    def _check_strengths(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            fail(text=f"are {list(value)}; write rising numbers, each once.")
        return value


def _check_dose(dose: float | str) -> None:
    if isinstance(dose, str):
        if not (re.fullmatch(r"p\d\d?(\.\d+)?", dose) and float(dose[1:]) > 0):
            fail(
                "dose", text=f"'{short(dose)}' is no dose; write a number, or a quantile of the natural activity, p90."
            )
    elif dose <= 0:
        fail("dose", text=f"is {dose:g}; write a positive number, the direction is `towards`.")


WRITTEN: Mapping[str, tuple[type[Block], str]] = {
    "generation": (GenerationBlock, "neurosae.causal.written"),
    "removal": (RemovalBlock, "neurosae.causal.removal"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""
WrittenBlock = GenerationBlock | RemovalBlock
"""Tests of written texts, and of ways to remove a difference."""


def written_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with such a test inside its analysis, whatever the design."""
    block, where = analysis.tests[name], ("tests", name)
    sites = list(block.sites or analysis.sites)
    if len(sites) != 1 or any("*" in analysis.sites[s].hook for s in sites if s in analysis.sites):
        yield (*where, "sites"), f"are {', '.join(sites)}; steer one site at a time, sites: {sites[0]}."
    source = analysis.tests.get(block.features.from_)
    chosen = getattr(source, "effect", ())
    if source is not None and len(chosen) != 1:
        text = f"'{block.features.from_}' tests {', '.join(chosen)}, so its features have no one direction"
        yield (*where, "features"), f"{text}; choose them by a test of one effect."
    for family, members in analysis.inference.families.items():
        if name in members:
            text = f"'{name}' is corrected over its own conditions, with controls, and shares no maximum; take it out."
            yield ("inference", "families", family), text
    if analysis.inference.nuisance:
        yield where, f"regresses no nuisance out; keep `test: {block.test}` in an analysis without nuisance."


def written_design_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What is wrong with it given the design: a prompt that is empty, a bias that no target measures."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    if not isinstance(block, RemovalBlock):
        return
    if design.partition is None:
        yield where, "takes means on localizer items, but the design sets none apart; add partition: {localizer: 24}."
    if design.target is None:
        yield where, "scores logit_diff, but the design has no target; add target: {slot: …, foil: other_level}."
    written = analysis.effects.get(block.effect, {})
    factors = [f for f, w in written.items() if isinstance(w, Mapping) and any(v < 0 for v in w.values())]
    within = [f for f in factors if f in design.factors and design.factors[f].varies == "within"]
    if len(factors) != 1 or factors != within or len([v for v in written[factors[0]].values() if v]) != 2:
        text = f"'{block.effect}' is no difference of two levels of one factor that varies within items"
        yield (*where, "effect"), f"{text}; write {{factor: {{level: 1, level: -1}}}}."
    elif design.target is not None and design.target.foil != "other_level":
        yield (*where, "effect"), "needs `target: {foil: other_level}`, the form of the other level as the rival."


def written_effects(block: Any) -> Iterator[tuple[Where, str]]:
    """The effects that a block of this module names."""
    if isinstance(block, RemovalBlock):
        yield ("effect",), block.effect
