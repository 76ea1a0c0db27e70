"""Schema of the tests of attribution, the logit lens, attention and heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from neurosae.spec.block import Block, Split
from neurosae.spec.fields import Count, Natural, OneOrMore, Strict, fail

Statistics = Literal["mean", "t", "moderated_t", "signed_rank"]
Corrections = Literal["maxT", "stepdown", "holm", "fdr_bh", "fdr_by", "storey", "none"]
PLACES = ("target", "first", "all")
"""Places that every stimulus has: the token that predicts the target, the first token (BOS), all tokens."""


class Screen(Strict):
    """Which features are ablated exactly."""

    top: Count = 20
    """Features with the largest approximate effect on the other split's items, per site and region."""
    random: Natural = 200
    """Others, drawn at random: how many effects the approximation misses. Fewer where fewer are active."""


class AttributionBlock(Block):
    """Which features the logit difference depends on: a gradient screens all of them, exact ablation tests the best."""

    test: Literal["attribution"]
    """attribution"""
    effect: OneOrMore = ()
    """Effects by their names under `effects:`, of which the features' effect on LD is contrasted; left out, its mean
    over all cells is compared with 0."""
    method: Literal["act_x_grad", "integrated_gradients", "direct"] = "act_x_grad"
    """act_x_grad: one backward pass; integrated_gradients: several, with a completeness error; direct: what each
    component (embedding, head, MLP) writes towards target minus foil, which adds up to LD and needs no screen."""
    baseline: Literal["zero", "mean", "partner"] = "zero"
    """What a feature is set to: zero, its mean over other items, or its value in the cells of the same item and frame
    whose target is this one's foil."""
    steps: Count = 8
    """Points of integrated_gradients."""
    screen: Screen = Screen()
    """{top: 20, random: 200}"""
    statistic: Statistics | None = None
    """Instead of the statistic under `inference:`."""
    correction: Corrections | None = None
    """Instead of the correction under `inference:`."""
    alternative: Literal["two-sided", "greater", "less"] | None = None
    """Instead of the alternative under `inference:`."""

    @model_validator(mode="after")
    def _check(self) -> AttributionBlock:
        if self.method == "direct":
            for name in ("baseline", "screen"):
                if name in self.model_fields_set:
                    fail(name, text="has no meaning with direct, which sets nothing and screens nothing; leave it out.")
            if self.region != ("target",):
                fail("region", text="of direct is `target`: components are read where the target is predicted.")
        if "steps" in self.model_fields_set and self.method != "integrated_gradients":
            fail("steps", text=f"belongs to integrated_gradients, not to {self.method}; leave it out.")
        return self


class LensBlock(Strict):
    """The logit lens: what the stream of each layer would predict."""

    test: Literal["logit_lens"]
    """logit_lens"""
    effect: OneOrMore = ()
    """Effects by their names under `effects:`; left out, the mean over all cells is compared with 0 (logit_diff)."""
    measure: Literal["logit_diff", "log_prob", "prob", "rank"] = "logit_diff"
    """What is tested: target minus foil, log probability, probability or rank of the target."""
    split: Split = "test"
    """On which items: test, or localizer."""
    statistic: Statistics | None = None
    """Instead of the statistic under `inference:`."""
    correction: Corrections | None = None
    """Instead of the correction under `inference:`."""
    alternative: Literal["two-sided", "greater", "less"] | None = None
    """Instead of the alternative under `inference:`."""
    region: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _check(self) -> LensBlock:
        if not self.effect and self.measure != "logit_diff":
            fail("effect", text=f"is missing: a mean {self.measure} is never 0, so name effects, or use logit_diff.")
        return self


class AttentionBlock(Block):
    """Attention from the regions (`region`) to other regions (`keys`), head by head."""

    test: Literal["attention"]
    """attention"""
    effect: OneOrMore
    """Effects by their names under `effects:`."""
    keys: OneOrMore
    """Regions that are attended to; also first (BOS) and target."""
    statistic: Statistics | None = None
    """Instead of the statistic under `inference:`."""
    correction: Corrections | None = None
    """Instead of the correction under `inference:`."""
    alternative: Literal["two-sided", "greater", "less"] | None = None
    """Instead of the alternative under `inference:`."""

    @model_validator(mode="after")
    def _check(self) -> AttentionBlock:
        if self.sites is not None:
            fail("sites", text="have no heads: attention is read in all layers; leave this out.")
        return self


class HeadsBlock(Strict):
    """Previous-token, duplicate-token and induction scores of every head on random tokens, and ablation of each."""

    test: Literal["heads"]
    """heads"""
    n_sequences: Annotated[Count, Field(ge=6)] = 32
    """Random sequences: the units."""
    lengths: tuple[Annotated[Count, Field(ge=2)], Count] = (16, 48)
    """Smallest and largest number of tokens that are repeated."""
    n_controls: Count = 3
    """Heads of the same layer, nearest in the length of what they write, that an ablation is compared with."""
    split: ClassVar[str] = "test"
    region: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _check(self) -> HeadsBlock:
        if self.lengths[0] > self.lengths[1]:
            fail("lengths", text=f"{list(self.lengths)}: write the smallest first.")
        return self


CircuitBlock = AttributionBlock | LensBlock | AttentionBlock | HeadsBlock
"""Blocks of this module."""
CIRCUITS: Mapping[str, tuple[type[Strict], str]] = {
    "attribution": (AttributionBlock, "neurosae.causal.screened"),
    "logit_lens": (LensBlock, "neurosae.causal.lens"),
    "attention": (AttentionBlock, "neurosae.causal.attention"),
    "heads": (HeadsBlock, "neurosae.causal.heads"),
}
