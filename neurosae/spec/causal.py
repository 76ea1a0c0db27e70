"""Schema of the tests of interventions: one set of features against matched controls, several sets clamped together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import Block, FeatureChoice
from neurosae.spec.fields import Bool, Count, Number, OneOrMore, Text, fail
from neurosae.spec.sites import AnyPath
from neurosae.spec.words import Where, short

EditMode = Literal["ablate", "clamp", "conditional", "scale", "steer"]
EditOutcome = Literal["logit_diff", "log_prob", "accuracy"]
Covariate = Literal["density", "size", "cosine"]
Freeze = Literal["none", "final", "downstream"]
Dose = Number | Text
"""A number in activation units (a factor for scale), or a quantile of the natural activity: p50, p90, p99."""

PAIRED = ("density", "size", "effect", "cosine")
"""What pairs of control sets can be matched on."""

PROBABILITIES = ("log_prob", "accuracy", "surprisal", "loss", "kl", "probability")
"""Outcomes with which any normalization or saturation passes for an interaction."""


def _check_doses(value: tuple[float | str, ...]) -> None:
    for i, dose in enumerate(value):
        if isinstance(dose, str) and not (re.fullmatch(r"p\d\d?(\.\d+)?", dose) and float(dose[1:]) > 0):
            fail(i, text=f"'{short(dose)}' is no dose; write a number, or a quantile of the natural activity, p90.")
    if len(set(value)) < len(value):
        fail(text="names a dose twice; write each once.")


class CausalChoice(FeatureChoice):
    """Features of an intervention: chosen by an earlier test on other items, or named."""

    direction: Literal["both", "plus", "minus"] = "both"
    """Of an earlier test: features larger in its + cells (plus), in its - cells (minus), or both."""

    @model_validator(mode="after")
    def _check_direction(self) -> CausalChoice:
        if self.direction != "both" and self.from_ is None:
            fail("direction", text="has no meaning for named features; name those that you mean.")
        return self


class _Causal(Block):
    """What tests of interventions share."""

    only: dict[Text, Text] = Field(default_factory=dict)
    """Only stimuli of these levels: {context: phrase}."""
    texts: tuple[AnyPath, ...] = ()
    """Reference text for natural doses, densities and the off-target cost; none: what the model writes itself."""
    n_tokens: Count = 20_000
    """Tokens of reference text for doses and densities."""
    off_target: Bool = True
    """Also measure KL and perplexity on reference text at the same dose."""
    correction: Literal["holm", "maxT", "none"] = "holm"
    """How p is corrected over the claims of the test; maxT: over items by the maximum, over controls by Holm, and
    doubled, as either may err; it pays where claims are many and alike."""

    @field_validator("split")
    @classmethod
    def _check_split(cls, value: str) -> str:
        if value != "test":
            fail(text="localizer items choose features; interventions run on test items, leave this out.")
        return value


class InterventionBlock(_Causal):
    """Does editing these features move the outcome, more than editing features like them?"""

    test: Literal["intervention"]
    """intervention"""
    mode: OneOrMore = ("ablate",)
    """ablate (is it necessary?), clamp or conditional (is it sufficient?), scale, steer; several are one family."""
    features: CausalChoice
    """Which features: {from: find_number, top: 10}, or {ids: {late: [12, 40]}}."""
    per: Literal["set", "feature"] = "set"
    """Edit all of them together, or each one alone."""
    outcome: EditOutcome = "logit_diff"
    """What is scored at the token that predicts the target."""
    effect: OneOrMore = ()
    """Effects of the outcome that may change, beside its mean over all cells."""
    cells: Bool = True
    """Also describe the change in every cell of the design."""
    doses: tuple[Dose, ...] = ("p50", "p90", "p99")
    """Doses of all modes but ablate; with several, the claim is about the slope of every item on the dose."""
    n_controls: Annotated[Count, Field(ge=99)] = 199
    """Matched sets of control features; p among them can reach 1 / (n + 1)."""
    controls: Literal["features", "directions"] = "features"
    """features: control features are edited in the same way, at their own activity; directions: their decoder rows are
    added, as long as the edit of the target is at each token, which matches size exactly."""
    match: OneOrMore = ("density", "size", "cosine")
    """What controls are matched on: density, size (decoder norm x dose), cosine (with target minus foil). What is left
    out is shown all the same."""
    freeze: Freeze = "none"
    """Hold scales of normalizations at those of the run without edits: none, final, downstream."""
    smallest: Annotated[Number, Field(gt=0)] | None = None
    """The smallest change that would matter, in units of the outcome; left out, a tenth of its natural size."""
    ladder: Bool = True
    """Also run the sanity ladder: random directions, shuffled decoder, difference of means, whole stream, …"""

    @field_validator("mode", "match")
    @classmethod
    def _check_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        known = get_args(EditMode if info.field_name == "mode" else Covariate)
        what = "mode of an intervention" if info.field_name == "mode" else "covariate"
        for name in value:
            if name not in known:
                fail(text=unknown(what, short(name), known))
        return value

    @model_validator(mode="after")
    def _check(self) -> InterventionBlock:
        _check_doses(self.doses)
        if not self.doses:
            fail("doses", text="is an empty list; write one dose at least.")
        if self.mode == ("ablate",) and "doses" in self.model_fields_set:
            fail(
                "doses", text="has no meaning with mode: ablate, which sets features to 0; leave it out, or use clamp."
            )
        if "scale" in self.mode and any(isinstance(dose, str) for dose in self.doses):
            fail("doses", text="of scale are factors of the feature's own activation; write numbers, [0.5, 2].")
        return self


class JointClampBlock(_Causal):
    """Do sets of features act jointly: is their effect together more than the sum of their single effects?"""

    test: Literal["joint_clamp"]
    """joint_clamp"""
    features: dict[Text, CausalChoice] = Field(min_length=2, max_length=8)
    """Two sets for the 2 x 2 clamp: {adjective: {from: find_adjective, top: 5}, noun: …}; more than two sets give
    Shapley-Taylor interactions, which are exploratory."""
    parts: OneOrMore = ()
    """The effects behind the two sets: clamping runs in the cell that has neither, ablation in the cell that has both;
    left out, both run on all stimuli."""
    direction: Literal["both", "clamp", "ablate"] = "both"
    """Clamp into what has neither part, ablate from what has both, or both directions as one family."""
    outcome: Literal["logit_diff"] = "logit_diff"
    """Only the logit difference: a probability saturates, and saturation is no interaction."""
    dose: Dose = "p90"
    """Dose of the clamp."""
    doses: tuple[Dose, ...] = ("p50", "p90", "p99")
    """Doses of either set in the dose x dose surface; an empty list draws none."""
    n_controls: Annotated[Count, Field(ge=99)] = 99
    """Matched pairs of control sets."""
    controls: Literal["features", "directions"] = "features"
    """features: control sets are edited in the same way; directions: their decoder rows are added, as long as the edit
    of the target set is at each token, which matches size exactly."""
    match: OneOrMore = ("density", "size", "effect", "cosine")
    """What pairs are matched on: density and size of either set, its effect alone (ablated: with the other part already
    ablated), cosine of the pair. What is left out is shown all the same."""
    freeze: Literal["final", "downstream"] = "downstream"
    """What is held at the run without edits; the claim needs the interaction free and frozen."""

    @field_validator("outcome", mode="before")
    @classmethod
    def _check_outcome(cls, value: Any) -> Any:
        if value in PROBABILITIES:
            fail(text=f"{value} saturates or is squashed, which passes for an interaction; use logit_diff.")
        return value

    @field_validator("match")
    @classmethod
    def _check_match(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PAIRED:
                fail(text=unknown("covariate", short(name), PAIRED))
        return value

    @model_validator(mode="after")
    def _check(self) -> JointClampBlock:
        _check_doses(self.doses)
        _check_doses((self.dose,))
        if self.correction == "maxT":
            fail(
                "correction",
                text="maxT has no meaning here: each p is itself a maximum, over flips and ranks; use holm.",
            )
        if self.parts and len(self.parts) != len(self.features):
            fail("parts", text=f"names {len(self.parts)} effects for {len(self.features)} sets; name one for each set.")
        return self


CausalBlock = InterventionBlock | JointClampBlock
"""Tests of interventions on chosen features."""
CAUSAL: Mapping[str, tuple[type[Block], str]] = {
    "intervention": (InterventionBlock, "neurosae.causal.interventions"),
    "joint_clamp": (JointClampBlock, "neurosae.causal.joint"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""


def causal_effects(block: Any) -> Iterator[tuple[Where, str]]:
    """The effects that a test of interventions names, and where."""
    if isinstance(block, InterventionBlock):
        yield from (((), effect) for effect in block.effect)
    elif isinstance(block, JointClampBlock):
        yield from ((("parts",), part) for part in block.parts)
