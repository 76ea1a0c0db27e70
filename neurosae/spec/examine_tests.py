"""Schema of tests that describe features: which of them are specialists of a category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neurosae.spec.block import Block, FeatureChoice
from neurosae.spec.effects import omnibus
from neurosae.spec.fields import Count, Number, Text, fail
from neurosae.spec.sites import AnyPath
from neurosae.spec.words import Problem, Where

Pool = Literal["max", "mean", "last"]
POOLS: tuple[Pool, ...] = ("max", "mean", "last")
"""How the tokens of a text become one activation."""


class SpecialistsBlock(Block):
    """Features that are strong in the texts of one category and weak in all others, corrected over both."""

    test: Literal["specialists"]
    """specialists"""
    effect: Text
    """An effect over all levels of one factor, {topic: all}; its levels are the categories."""
    score: Literal["rate", "auroc"] = "rate"
    """What tells a category apart: the share of texts where the feature is strong, or the rank of its activation."""
    theta: Literal["reference", "stimuli"] | Annotated[Number, Field(ge=0)] = "reference"
    """Above which activation a text counts as strong: the feature's median active value on reference text, or on the
    stimuli, or one number for all features."""
    pool: Pool | None = None
    """How the tokens of a text become one activation, where positions.tokens is all; left out, max."""
    features: FeatureChoice | None = None
    """Only these features: {from: find, top: 20}, the first of a test of specialists or a contrast on the items of the
    other split, or {ids: {late: [12, 40]}}; left out, all that are active."""
    texts: tuple[AnyPath, ...] = ()
    """Reference text, files or folders; none: what the model writes itself."""
    n_tokens: Count | None = None
    """Tokens of reference text; left out, 50,000."""

    @model_validator(mode="after")
    def _check(self) -> SpecialistsBlock:
        if (self.texts or self.n_tokens) and self.theta != "reference":
            fail("texts", text=f"and n_tokens belong to theta: reference, not to theta: {self.theta}.")
        return self


DESCRIPTIONS: Mapping[str, tuple[type[Block], str]] = {
    "specialists": (SpecialistsBlock, "neurosae.examine.specialists"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""


def specialist_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What a test of specialists asks that its effect, its positions or the inference do not have."""
    block, where = analysis.tests[name], ("tests", name)
    effect = analysis.effects.get(block.effect)
    if effect is not None:
        yield from _effect_problems(block.effect, effect, where)
    if block.pool is not None and analysis.positions.tokens != "all":
        text = f"positions.tokens: {analysis.positions.tokens} has pooled the tokens already"
        yield (*where, "pool"), f"{text}; leave `pool` out, or set `positions: {{tokens: all}}`."
    if analysis.inference.nuisance:
        yield where, "regresses no nuisance out; keep `test: specialists` in an analysis without nuisance."


def _effect_problems(name: str, effect: Mapping[str, Any], where: Where) -> Iterator[Problem]:
    if omnibus(effect) is None or len(effect) > 1:
        text = f"'{name}' is no comparison of all levels of one factor, which are the categories"
        yield (*where, "effect"), f"{text}; write it as {{factor: all}}."
