"""Schema of factorial tests of whole patterns, of ANOVA tables, and of the comparison of rules that choose features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import Block
from neurosae.spec.effects import omnibus, sloped
from neurosae.spec.fields import Bool, Count, Name, Natural, Number, OneOrMore, Strict, Text, fail
from neurosae.spec.words import Problem, Where, short

PatternStatistic = Literal[
    "contrast_length", "cvmanova", "manova", "decoding", "ccgp", "parallelism", "permanova", "demixed"
]
Rule = Literal["contrast", "discriminative_rsa", "categorical_rsa", "maximum", "selectivity", "random"]
RULES: tuple[Rule, ...] = (
    "contrast",
    "discriminative_rsa",
    "categorical_rsa",
    "maximum",
    "selectivity",
    "random",
)
"""Rules that choose features, in the order of tables and figures."""
LABELLED = ("decoding", "ccgp", "parallelism")
"""Statistics that need a + and a - level of one factor."""
ACROSS = ("ccgp", "parallelism")
"""Statistics that compare an effect at different levels of another factor."""


class GivenFeatures(Strict):
    """Features that an earlier test chose on the other split, or that are named."""

    from_: Annotated[Text | None, Field(alias="from")] = None
    """Name of the earlier test, which has one effect: {from: find, top: 50}."""
    top: Count | None = None
    """How many features, by the size of the statistic, the largest over the regions and positions of the test."""
    named: dict[Name, tuple[Natural, ...]] = Field(default_factory=dict)
    """Indices by site, known beforehand: {late: [12, 40]}."""

    @model_validator(mode="after")
    def _check(self) -> GivenFeatures:
        if (self.from_ is None) == (not self.named):
            fail(
                text="come from an earlier test or are named; give {from: find, top: 50} or {named: {late: [12, 40]}}."
            )
        if (self.from_ is None) != (self.top is None):
            fail("top", text="belongs to `from`, and says how many features; write {from: find, top: 50}.")
        return self


class FactorialBlock(Block):
    """Effects of a factorial design on the whole pattern of features: is anything about the effect in it?"""

    test: Literal["factorial"]
    """factorial"""
    effect: Annotated[OneOrMore, Field(alias="effects")]
    """Effects, by their names under `effects:`; Holm over them, the maximum over places."""
    statistic: PatternStatistic = "contrast_length"
    """contrast_length (D_c, any effect), cvmanova, manova (few scores), decoding, ccgp (across another factor),
    parallelism, permanova (with its dispersion beside it), demixed (shares of variance, described only)."""
    across: Name | None = None
    """For ccgp and parallelism, the other factor; left out, the only other one."""
    folds: Annotated[Count, Field(ge=2)] = 6
    """Groups of items for decoding, ccgp and cvmanova; a fold never splits an item."""
    shrinkage: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """cvmanova: weight of the diagonal of the error covariance; 1 leaves variances alone."""
    scores: Literal["localizer", "blind"] = "blind"
    """manova: principal components of localizer items, or of all rows without their labels."""
    features: GivenFeatures | None = None
    """Test only these features, beside matched random sets; left out, all that differ in enough items."""
    n_controls: Annotated[Count, Field(ge=19)] = 199
    """With `features`: random sets of features, matched in number, density and energy."""

    @model_validator(mode="after")
    def _check(self) -> FactorialBlock:
        if self.across is not None and self.statistic not in ACROSS:
            fail("across", text=f"has no meaning with {self.statistic}; it belongs to {' and '.join(ACROSS)}.")
        return self


class AnovaBlock(Block):
    """ANOVA tables of at most 50 features: all main effects and interactions, simple effects, post-hoc comparisons."""

    test: Literal["anova"]
    """anova"""
    features: GivenFeatures
    """Features chosen on localizer items, or named."""
    simple_effects: Bool = True
    """Differences of one factor at each level of another, and of all pairs of more than two levels (Holm)."""

    @model_validator(mode="after")
    def _check(self) -> AnovaBlock:
        if (self.features.top or 0) > 50 or any(len(named) > 50 for named in self.features.named.values()):
            fail("features", text="are more than 50; ANOVA tables are for few features, use `test: contrast` for many.")
        return self


class ChoosingBlock(Block):
    """Rules that choose features, compared by how well their features predict held-out items."""

    test: Literal["choosing"]
    """choosing"""
    effect: Text
    """The effect whose + and - cells are predicted."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)] = RULES
    """contrast (moderated t), discriminative_rsa, categorical_rsa, maximum, selectivity, random."""
    k: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 8)
    """Numbers of chosen features."""
    folds: Annotated[Count, Field(ge=2)] = 5
    """Groups of items; features are chosen, and the classifier is fitted, without the group that is predicted."""
    repeats: Count = 3
    """How often items are divided into groups anew."""
    penalty: Annotated[Number, Field(gt=0)] = 1.0
    """Weight of the L1 norm of the classifier's coefficients (1/C), on standardized features."""
    n_null: Annotated[Count, Field(ge=20)] = 200
    """Relabellings with everything repeated, choice and fit, for the comparison with chance."""

    @model_validator(mode="after")
    def _check(self) -> ChoosingBlock:
        for name in ("rules", "k"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                fail(name, text="names one thing twice; write each once.")
        return self


PATTERNS: Mapping[str, tuple[type[Block], str]] = {
    "factorial": (FactorialBlock, "neurosae.stats.factorial"),
    "anova": (AnovaBlock, "neurosae.stats.anova"),
    "choosing": (ChoosingBlock, "neurosae.stats.choosing"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""
PatternBlock = FactorialBlock | AnovaBlock | ChoosingBlock
"""Tests of whole patterns, tables of few features, and the comparison of rules that choose features."""


def effects_named(block: Any) -> tuple[str, ...]:
    """The effects that a block names, one or several or none."""
    named = getattr(block, "effect", ())
    return (named,) if isinstance(named, str) else tuple(named)


def chooses_earlier(block: Any) -> bool:
    """Whether a block of this module takes the features of an earlier test."""
    given = getattr(block, "features", None)
    return isinstance(given, GivenFeatures) and given.from_ is not None


def pattern_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What a factorial test, an ANOVA table or a choosing test asks that its effects or its design do not have."""
    block, where = analysis.tests[name], ("tests", name)
    if analysis.inference.nuisance:
        yield where, f"regresses no nuisance out; keep `test: {block.test}` in an analysis without nuisance."
    for site in getattr(getattr(block, "features", None), "named", {}):
        if site not in analysis.sites:
            yield (*where, "features", "named"), unknown("site", short(site), analysis.sites)
    if isinstance(block, FactorialBlock):
        effects = {effect: analysis.effects[effect] for effect in block.effect if effect in analysis.effects}
        yield from _statistic_problems(block, effects, design, where=where)
        yield from _fold_problems(block, analysis.inference.alpha, where)
    if isinstance(block, ChoosingBlock) and block.effect in analysis.effects:
        yield from _label_problems(block.effect, analysis.effects[block.effect], where, what="choosing")


def _statistic_problems(
    block: FactorialBlock, effects: Mapping[str, Mapping[str, Any]], design: Any, *, where: Where
) -> Iterator[Problem]:
    if block.across is not None and block.across not in design.factors:
        yield (*where, "across"), unknown("factor", short(block.across), design.factors)
    if block.statistic == "manova" and block.scores == "localizer" and design.partition is None:
        yield (*where, "scores"), "need localizer items, but the design sets none apart; write scores: blind."
    for name, effect in effects.items():
        if block.statistic != "contrast_length" and sloped(effect) is not None:
            yield (*where, "effects"), f"'{name}' is a slope, which only statistic: contrast_length takes."
        elif block.statistic in LABELLED:
            yield from _label_problems(name, effect, where, what=block.statistic)
        elif block.statistic in ("cvmanova", "demixed", "permanova") and omnibus(effect) is not None:
            text = f"'{name}' compares all levels, which {block.statistic} does not; use contrast_length or weights."
            yield (*where, "effects"), text
        if block.statistic in ACROSS:
            others = [factor for factor in design.factors if factor not in effect]
            if block.across in effect:
                yield (*where, "across"), f"'{block.across}' is part of the effect '{name}'; name another factor."
            elif block.across is None and len(others) != 1:
                text = (
                    f"is missing: '{name}' leaves {', '.join(others) or 'no factor'}; name the one to compare across."
                )
                yield (*where, "across"), text


def _fold_problems(block: FactorialBlock, alpha: float, where: Where) -> Iterator[Problem]:
    """Flips of folds must reach alpha after Holm over effects."""
    n, least = len(block.effect), 2
    while 2.0 ** (1 - least) * n > alpha:
        least += 1
    if block.statistic == "cvmanova" and block.folds < least:
        smallest = 2.0 ** (1 - block.folds) * n
        text = f"{block.folds} folds flip in {2 ** (block.folds - 1)} ways: the smallest p over {n} effects is "
        yield (*where, "folds"), f"{text}{smallest:.3g}, above alpha {alpha:g}; use at least {least}."


def _label_problems(name: str, effect: Mapping[str, Any], where: Where, *, what: str) -> Iterator[Problem]:
    """A + and a - level of one factor, other factors held or averaged over."""
    if two_levels(effect) is None:
        text = f"'{name}' is no difference of two levels of one factor, which {what} tells apart"
        yield (*where, "effects"), f"{text}; write {{factor: {{level: 1, level: -1}}}}, or use contrast_length."


def two_levels(effect: Mapping[str, Any]) -> str | None:
    """The factor of which an effect compares two levels, if it does that and no more.

    Examples
    --------
    >>> two_levels({"subject": {"pl": 1, "sg": -1}, "attractor": {"pl": 1}})
    'subject'
    >>> two_levels({"subject": {"pl": 1, "sg": -1}, "attractor": {"pl": 1, "sg": -1}}) is None
    True
    """
    if "cells" in effect or omnibus(effect) is not None or sloped(effect) is not None:
        return None
    contrasts = [n for n, w in effect.items() if isinstance(w, str) or min(w.values()) < 0]
    if len(contrasts) != 1 or isinstance(weights := effect[contrasts[0]], str):
        return None
    used = sorted(w for w in weights.values() if w)
    return contrasts[0] if len(used) == 2 and used[0] == -used[1] else None
