"""Schema of activation patching: what one text has at a place, put into another text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from neurosae.spec.block import Block, FeatureChoice
from neurosae.spec.fields import Count, Number, OneOrMore, Text, fail
from neurosae.spec.hooks import hook_problem
from neurosae.spec.words import short

Replacement = Literal["paired", "random", "mean", "zero", "noise"]
PATTERN = re.compile(r"blocks\.(\d+|\*)\.attn\.hook_pattern\.h(\d+|\*)")
PLACES = ("target", "all")
"""Places that no design names: the token that predicts the target, and every token of the text."""


class PatchingBlock(Block):
    """Which places carry what makes two texts differ? Activations of one are put into the other, place by place."""

    test: Literal["patching"]
    """patching"""
    between: dict[Text, tuple[Text, Text]] = Field(min_length=1, max_length=1)
    """A factor with two of its levels, the clean one first: {number: [pl, sg]}."""
    hooks: OneOrMore = ()
    """Hook points whose vectors are patched: blocks.*.hook_resid_post is every layer, attn.hook_z.h* every head
    (hook_q, hook_k, hook_v too); blocks.*.attn.hook_pattern.h* are attention weights, from the region to `keys`."""
    keys: OneOrMore = ()
    """Of attention weights: region or regions that attention goes to; `region` is that of the queries."""
    features: FeatureChoice | None = None
    """Features to patch, at the sites: {ids: {late: [12, 40]}}, or {from: find_number, top: 10}."""
    per: Literal["feature", "set"] = "feature"
    """Patch each feature alone, or all of a site together."""
    replace: Replacement = "paired"
    """What is put there: paired (the text of the same item at the other level), random (another item's), mean (over
    other items), zero, noise (added to what is there)."""
    outcome: Literal["logit_diff", "log_prob", "accuracy"] = "logit_diff"
    """What is scored at the token that predicts the target; the target is that of the clean text throughout."""
    n_draws: Count = 10
    """Draws of random or noise, which are averaged."""
    sigma: Annotated[Number, Field(gt=0)] = 1.0
    """Size of noise, in standard deviations of every dimension over the texts."""
    freeze: Literal["none", "final", "downstream", "attention"] = "none"
    """Hold scales of normalizations, or also attention patterns, at those of the run without edits."""
    correction: Literal["maxT", "holm", "none"] = "maxT"
    """How p is corrected over the grid: places x regions x directions."""

    @field_validator("hooks")
    @classmethod
    def _check_hooks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for i, hook in enumerate(value):
            if hook.partition(".attn.")[2].startswith("hook_pattern"):
                if not PATTERN.fullmatch(hook):
                    text = f"'{short(hook)}' names no head; write blocks.2.attn.hook_pattern.h3, or .h* for every head."
                    fail(i, text=text)
            elif problem := hook_problem(hook.replace(".h*", ".h0")):
                fail(i, text=problem)
        return value

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: str) -> str:
        if value != "test":
            fail(text="localizer items choose features; patching runs on test items, leave this out.")
        return value

    @model_validator(mode="after")
    def _check(self) -> PatchingBlock:
        if not self.hooks and self.features is None:
            fail(text="patches nothing; name hook points, hooks: blocks.*.hook_resid_post, or features.")
        if self.features is None and self.per != "feature":
            fail("per", text="speaks of features, but none are named; leave it out.")
        if self.replace == "noise" and self.features is not None:
            fail("replace", text="noise is added to vectors, not to features; use hooks, or another replacement.")
        self._check_weights()
        for name in ("n_draws", "sigma"):
            if name in self.model_fields_set and self.replace not in ("noise", *(("random",) * (name == "n_draws"))):
                fail(name, text=f"has no meaning with replace: {self.replace}; leave it out.")
        if len(set(next(iter(self.between.values())))) < 2:
            fail("between", text="names the same level twice; write two levels, {number: [pl, sg]}.")
        return self

    def _check_weights(self) -> None:
        """Attention weights have keys, and nothing else has."""
        weights = [bool(PATTERN.fullmatch(hook)) for hook in self.hooks]
        if any(weights) and not self.keys:
            fail("keys", text="is missing: attention weights go from the region to other tokens; write keys: head.")
        if self.keys and (not all(weights) or self.features is not None):
            fail("keys", text="belongs to attn.hook_pattern alone; patch vectors and features in a test of their own.")
        if self.keys and self.replace == "noise":
            fail("replace", text="noise is added to vectors; attention weights are shares, use another replacement.")


PATCHING: Mapping[str, tuple[type[Block], str]] = {"patching": (PatchingBlock, "neurosae.causal.patched")}
"""Kind of test -> its schema, and the module whose `run` computes it."""
