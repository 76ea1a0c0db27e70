"""Schema of the integration battery, and what may be refused about it before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import Block, FeatureChoice
from neurosae.spec.fields import Count, Name, OneOrMore, Strict, Text, fail
from neurosae.spec.words import Problem, Where, short

MEMBERS = ("conj", "code", "gate", "synergy", "read")
MEASURES = ("broja", "interaction_information")
EXCLUDED = {
    "i_min": "gives 1 bit of redundancy and 1 bit of synergy to a target that copies two unrelated sources",
    "mmi": "of Gaussian scores misses products and answers to sums",
    "shuffled_target": "rejects for purely additive readouts in 98 to 100 % of data sets",
}
"""Measures of synergy that are refused by name, and why."""
GAINS = ("norm", "n_tokens", "ln_scale", "stimulus_tokens", "token_index", "sum_active")
TARGETS = ("surprisal", "logit_diff", "norm", "ln_scale", "recon_error", "sum_active", "n_active")
READERS = ("synergy", "read")


class Context(Strict):
    """The factor whose levels compose the parts, or only list them."""

    factor: Text
    """Its name in the design."""
    composed: Text
    """Level in which the parts form a phrase."""
    control: Text
    """Level in which the same words are listed, not composed."""


class Target(Strict):
    """A quantity inside the model that is read out downstream; never the condition itself."""

    column: Name
    """surprisal, logit_diff, norm, ln_scale, recon_error, sum_active or n_active."""
    region: Text | None = None
    """Where it is read; left out, at the tested region."""


def _every_member(value: object) -> object:
    return MEMBERS if value == "all" else value


class IntegrationBlock(Block):
    """Is a conjunction integrated, or do its parts merely co-activate? A battery of tests and a grade from 0 to 3."""

    test: Literal["integration"]
    """integration"""
    parts: OneOrMore
    """Two effects under `effects:`, each of one factor with two levels: [adjective, noun]."""
    features: dict[Text, FeatureChoice] = Field(default_factory=dict)
    """Features of each part, chosen on other items: {adjective: {from: find_adjective, top: 50}, noun: …}. Needed by
    gate, synergy and read."""
    context: Context | None = None
    """{factor: context, composed: phrase, control: list}; without it the grade is limited to 1 of 3."""
    members: Annotated[OneOrMore, BeforeValidator(_every_member, json_schema_input_type=str | list[str])] = MEMBERS
    """all, or some of conj, code, gate, synergy and read."""
    over: Literal["all", "sets"] = "all"
    """Features of the code test: all of the site (no choice is made), or the chosen sets alone."""
    gain: OneOrMore = ("norm", "n_tokens")
    """Recorded measures of a stimulus's gain, taken out of the coupling: norm, n_tokens, ln_scale, …"""
    target: Target | None = None
    """What synergy and read predict: {column: surprisal, region: probe}."""
    measures: OneOrMore = MEASURES
    """Measures of synergy: broja, interaction_information."""
    n_surrogates: Count = 999
    """Additive surrogates of the measures of synergy."""
    causal: Text | None = None
    """Name of an earlier `test: joint_clamp` of the same parts, regions and sites, in both directions: the causal
    read-out, without which the grade is 2 at most."""

    @field_validator("members", "gain", "measures")
    @classmethod
    def _check_names(cls, value: tuple[str, ...], info: Any) -> tuple[str, ...]:
        what, known = {
            "members": ("member of the battery", MEMBERS),
            "gain": ("measure of gain", GAINS),
            "measures": ("measure of synergy", MEASURES),
        }[info.field_name]
        for name in value:
            if name in EXCLUDED:
                fail(text=f"'{name}' {EXCLUDED[name]}; use {' or '.join(MEASURES)}.")
            if name not in known:
                fail(text=unknown(what, short(name), known))
        return value

    @model_validator(mode="after")
    def _check(self) -> IntegrationBlock:
        if len(self.parts) != 2:
            fail("parts", text=f"names {len(self.parts)}; a conjunction has two parts, [adjective, noun], say.")
        for part in self.features:
            if part not in self.parts:
                fail("features", part, text=unknown("part", short(part), self.parts))
        if self.features and len(self.features) < 2:
            other = next(part for part in self.parts if part not in self.features)
            fail("features", text=f"choose none for '{other}'; both parts need a set, or neither.")
        if self.over == "sets" and not self.features:
            fail("over", text="sets needs `features:`; use over: all.")
        if self.target is not None and self.target.column not in TARGETS:
            fail("target", "column", text=unknown("target", short(self.target.column), TARGETS))
        if self.split != "test":
            fail("split", text="localizer items choose features; the battery runs on test items, leave this out.")
        return self


def integration_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with a battery inside its analysis, whatever the design."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    positions = analysis.positions
    if not positions.keep_x:
        text = "needs pre-activations, which are made from the raw stream; set `keep_x: true` under positions"
        yield where, f"{text}, {{regions: [{', '.join(block.region)}], keep_x: true}}."
    if positions.tokens == "max":
        yield where, "needs pre-activations, and the maximum of several tokens has none; use tokens: last, or mean."
    if block.causal is not None:
        yield from _causal_problems(name, analysis)
    if analysis.inference.nuisance:
        text = "takes the recorded gain out by itself (`gain:`) and regresses no nuisance out"
        yield where, f"{text}; keep it in an analysis without nuisance."
    for family, members in analysis.inference.families.items():
        if name in members:
            text = f"'{name}' corrects code and gate by Holm's method and shares no maximum; take it out."
            yield ("inference", "families", family), text


def _causal_problems(name: str, analysis: Any) -> Iterator[Problem]:
    """What is wrong with the joint clamp that a battery names."""
    block, where = analysis.tests[name], ("tests", name, "causal")
    earlier = list(analysis.tests)[: list(analysis.tests).index(name)]
    known = [other for other in earlier if analysis.tests[other].test == "joint_clamp"]
    if block.causal not in known:
        late = block.causal in analysis.tests and analysis.tests[block.causal].test == "joint_clamp"
        text = f"'{block.causal}' is no earlier test; put it above '{name}'." if late else None
        yield where, text or unknown("joint_clamp test", short(block.causal), known)
        return
    clamp = analysis.tests[block.causal]
    if set(clamp.parts) != set(block.parts):
        said = " and ".join(clamp.parts) or "no parts"
        yield where, f"'{block.causal}' clamps {said}, but the parts here are {' and '.join(block.parts)}."
    for text in _never_counts(block, clamp):
        yield where, f"'{block.causal}' {text}"


def _never_counts(block: IntegrationBlock, clamp: Any) -> Iterator[str]:
    """Why a joint clamp could not raise the grade, whatever came out of it."""
    if clamp.direction != "both":
        yield f"runs one direction, {clamp.direction}; grade 3 rests on both, set direction: both."
    if clamp.freeze != "downstream":
        yield "freezes the last normalization alone; set freeze: downstream."
    if left := sorted({"density", "size", "effect", "cosine"} - set(clamp.match)):
        yield f"does not match its pairs on {' and '.join(left)}; leave match: out, or add it."
    if len(clamp.features) != 2:
        yield f"has {len(clamp.features)} sets, which is exploratory; name two."
    if away := [region for region in block.region if region not in clamp.region]:
        yield f"edits {', '.join(clamp.region)}, but a grade is asked at {', '.join(away)}; edit there too."
    if clamp.sites is not None and (block.sites is None or set(block.sites) - set(clamp.sites)):
        yield f"runs at {', '.join(clamp.sites)} alone; name the same sites here."
    for name, choice in clamp.features.items():
        if choice.from_ is not None and choice.direction != "plus":
            yield f"clamps features of '{name}' that answer to the other level too; add direction: plus."
    context = block.context
    if context is not None and clamp.only.get(context.factor) != context.composed:
        yield f"also edits texts that compose nothing; add only: {{{context.factor}: {context.composed}}}."


def integration_design_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What is wrong with a battery given its design: parts that are no two-level factors, a context that is none."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    factors = []
    for part in block.parts:
        effect = analysis.effects.get(part)
        if effect is None:
            continue  # said elsewhere
        problem = part_problem(effect, design)
        if problem is not None:
            yield (*where, "parts"), f"'{part}' {problem}"
        else:
            factors.append(next(iter(effect)))
    if len(set(factors)) < len(factors):
        yield (*where, "parts"), f"both parts are effects of {factors[0]}; they need two factors."
    if block.context is not None:
        yield from _context_problems(block.context, design, factors, where=(*where, "context"))
    if block.target is not None and block.target.region is not None:
        known = analysis.positions.regions
        if known is not None and block.target.region not in known:
            text = f"region '{short(block.target.region)}' is not under positions.regions; add it there."
            yield (*where, "target", "region"), text


def part_problem(effect: Mapping[str, Any], design: Any) -> str | None:
    """Why an effect is no part of a conjunction, or None: one factor within items, one level + and one level -."""
    if len(effect) != 1:
        return "is no single factor; a part compares two levels of one factor, {adjective: {present: 1, absent: -1}}."
    ((factor, levels),) = effect.items()
    if factor not in design.factors or not isinstance(levels, Mapping):
        return "names no levels; a part compares two levels of one factor, {adjective: {present: 1, absent: -1}}."
    if design.factors[factor].varies == "between":
        return f"varies between items; the battery needs '{factor}' to vary within each item."
    weights = [float(w) for w in levels.values() if w]
    if len(weights) != 2 or weights[0] * weights[1] >= 0:
        return "does not compare two levels; a part has one level + and one level -."
    return None


def _context_problems(context: Context, design: Any, factors: list[str], *, where: Where) -> Iterator[Problem]:
    if context.factor not in design.factors:
        yield (*where, "factor"), unknown("factor", short(context.factor), design.factors)
        return
    if context.factor in factors:
        yield (*where, "factor"), f"'{context.factor}' is one of the parts; the context is another factor."
    factor = design.factors[context.factor]
    if factor.varies == "between":
        yield (*where, "factor"), f"'{context.factor}' varies between items; phrase and list need the same items."
    for key in ("composed", "control"):
        level = getattr(context, key)
        if level not in factor.levels:
            yield (*where, key), unknown(f"level of {context.factor}", short(level), factor.levels)
    if context.composed == context.control:
        yield (*where, "control"), f"is '{context.control}', as composed is; name two levels."
