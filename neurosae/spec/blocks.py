"""Schema of each block under `tests:`, and the registry of tests.

A new test is one block class here, one entry in `TESTS`, and a module with `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.attribution import CIRCUITS
from neurosae.spec.block import Block, FeatureChoice
from neurosae.spec.causal import CAUSAL
from neurosae.spec.examine_tests import DESCRIPTIONS
from neurosae.spec.factorial import PATTERNS
from neurosae.spec.fields import Bool, Count, FileName, Number, OneOrMore, Strict, Text, fail
from neurosae.spec.generation import WRITTEN
from neurosae.spec.geometry import GEOMETRY
from neurosae.spec.integration import IntegrationBlock
from neurosae.spec.patching import PATCHING
from neurosae.spec.sites import AnyPath
from neurosae.spec.subjects import SubjectsBlock
from neurosae.spec.words import short

Statistic = Literal["mean", "t", "moderated_t", "signed_rank", "hurdle", "F", "slope"]
Correction = Literal["maxT", "stepdown", "holm", "fdr_bh", "fdr_by", "storey", "bb", "none"]
Alternative = Literal["two-sided", "greater", "less"]
Intervals = Literal["marginal", "flip_t", "bca", "simultaneous"]
ParametricModel = Literal["ols", "hc3", "cluster", "item_intercept", "crossed", "min_f", "limma_trend"]
ParametricRows = Literal["items", "cells", "stimuli"]
MapStatistic = Literal["maxT", "cluster", "tfce"]
AXES = ("site", "position")
"""Axes of a map."""

ADJUSTABLE = ("t", "moderated_t", "slope")
"""Statistics that nuisance can be regressed out of."""


def not_adjustable(statistic: str) -> str:
    """Why a statistic takes no nuisance.

    Examples
    --------
    >>> not_adjustable("mean")
    'is regressed out of t and moderated_t, not of mean, which has no linear model; set `statistic: moderated_t`.'
    """
    return (
        f"is regressed out of t and moderated_t, not of {statistic}, which has no linear model; "
        "set `statistic: moderated_t`."
    )


class Inference(Strict):
    """How hypotheses are tested; a block under `tests:` may override statistic, correction and alternative."""

    statistic: Statistic = "moderated_t"
    """What is computed from the items' contrast values."""
    correction: Correction = "maxT"
    """How p is corrected over a family: maxT, stepdown, holm (family-wise), fdr_bh, fdr_by, storey (discoveries), bb
    (sites first, then features in the selected sites), none."""
    n_permutations: Count = 10_000
    """Number of relabellings, the identity included."""
    alternative: Alternative = "two-sided"
    """Which differences count."""
    intervals: Intervals = "marginal"
    """Intervals of the estimates: marginal (t), flip_t, bca (resampled items), simultaneous (over the whole family)."""
    alpha: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    """Error rate."""
    min_informative: Count = 6
    """Features with fewer items whose contrast is not zero are untestable."""
    nuisance: tuple[Text, ...] = ()
    """Columns regressed out of contrasts (Freedman-Lane): n_tokens, token_index, surprisal, or a covariate."""
    families: dict[FileName, OneOrMore] = Field(default_factory=dict)
    """Tests corrected together, over one maximum; left out, each test is its own family."""

    @model_validator(mode="after")
    def _check(self) -> Inference:
        if len(set(self.nuisance)) < len(self.nuisance):
            fail("nuisance", text="names a column twice; write each once.")
        if self.nuisance and self.statistic not in ADJUSTABLE:
            fail("nuisance", text=not_adjustable(self.statistic))
        if self.n_permutations * self.alpha < 1:
            least = -(-1 // self.alpha)
            text = f"{self.n_permutations} relabellings cannot reach alpha {self.alpha:g}; use at least {least:.0f}."
            fail("n_permutations", text=text)
        return self


class ContrastBlock(Block):
    """One or several effects, feature by feature."""

    test: Literal["contrast"]
    """contrast"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`."""
    statistic: Statistic | None = None
    """Instead of the statistic under `inference:`."""
    correction: Correction | None = None
    """Instead of the correction under `inference:`."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""
    features: FeatureChoice | None = None
    """Test only the features that an earlier test chose on the other split."""


class CrossFit(Strict):
    """Features are chosen on all folds of items but one and tested on that one, in turn."""

    folds: Annotated[Count, Field(ge=2)] = 4
    """Number of folds."""
    top: Count
    """How many features every fold is tested with, by the size of their contrast in the other folds."""


class RegionChoice(Strict):
    """The features of a region of interest: exactly one of from, cross_fit, clusters, orthogonal and all."""

    from_: Annotated[Text | None, Field(alias="from")] = None
    """An earlier test on other items: {from: find, top: 50}."""
    cross_fit: CrossFit | None = None
    """{folds: 4, top: 50}: the choice is repeated inside every relabelling, so no localizer is needed."""
    clusters: Literal["decoder", "coactivation"] | None = None
    """Sets found without these responses: decoder directions, or features that fire together on other text."""
    orthogonal: Text | None = None
    """Another effect on the same items, orthogonal to the tested ones: {orthogonal: attractor, top: 50}."""
    all_: Annotated[Bool, Field(alias="all")] = False
    """{all: true}: every feature of the site, as one set."""
    top: Count | None = None
    """How many features, by the size of the statistic (with from and orthogonal)."""
    direction: Literal["both", "plus", "minus"] = "both"
    """Choose larger in the + cells (plus), in the - cells (minus), or both, each counted in its own direction."""
    n: Count | None = None
    """Number of clusters; left out, 20. Communities are the n largest."""
    texts: tuple[AnyPath, ...] = ()
    """Reference text for coactivation, files or folders; none: what the model writes itself."""
    n_tokens: Count | None = None
    """Tokens of reference text for coactivation; left out, 50,000."""

    @model_validator(mode="after")
    def _check(self) -> RegionChoice:
        given = {"from": self.from_, "cross_fit": self.cross_fit, "clusters": self.clusters}
        given |= {"orthogonal": self.orthogonal, "all": self.all_ or None}
        ways = [name for name, value in given.items() if value is not None]
        if len(ways) != 1:
            said = f"names {' and '.join(ways)}" if ways else "names no way to choose"
            fail(text=f"{said}; give exactly one of {', '.join(given)}, e.g. {{cross_fit: {{top: 50}}}}.")
        ranked = ways[0] in ("from", "orthogonal")
        if ranked != (self.top is not None):
            fail("top", text="is missing; write how many features." if ranked else f"has no meaning with {ways[0]}.")
        if self.direction != "both" and ways[0] in ("clusters", "all"):
            fail("direction", text=f"has no meaning with {ways[0]}, which looks at no contrast.")
        if self.n is not None and self.clusters is None:
            fail("n", text=f"has no meaning with {ways[0]}; it is the number of clusters.")
        if (self.texts or self.n_tokens) and self.clusters != "coactivation":
            fail("texts", text="and n_tokens belong to {clusters: coactivation}.")
        return self


class RoiBlock(Block):
    """One or several effects on the mean response of sets of features."""

    test: Literal["roi"]
    """roi"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`."""
    features: RegionChoice
    """Which features make up a region of interest, never chosen by the effect on the items that are tested."""
    statistic: Statistic | None = None
    """Instead of the statistic under `inference:`."""
    correction: Correction | None = None
    """Instead of the correction under `inference:`."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""


class PairsBlock(Block):
    """One or several effects on the products of all pairs of features that fire together."""

    test: Literal["pairs"]
    """pairs"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`; an interaction asks whether firing together depends on it."""
    least: Annotated[Count, Field(ge=2)] = 6
    """Pairs that fire together in fewer stimuli are untestable."""
    statistic: Statistic | None = None
    """Instead of the statistic under `inference:`."""
    correction: Correction | None = None
    """Instead of the correction under `inference:`."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""


class EquivalenceBlock(Block):
    """No effect worth speaking of: two one-sided tests against the smallest effect that would matter."""

    test: Literal["equivalence"]
    """equivalence"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`; all are one family."""
    smallest: Annotated[Number, Field(gt=0)]
    """The smallest effect that would matter, in either direction; it is stated, never estimated."""
    scale: Literal["d_z", "units"] = "d_z"
    """What `smallest` is in: standard deviations of the items' contrasts, or activation units."""
    correction: Literal["holm", "fdr_bh", "fdr_by", "storey", "none"] = "holm"
    """How p is corrected over the test."""


class MapBlock(Block):
    """One or several effects over sites x positions, as a map whose cells may form clusters."""

    test: Literal["map"]
    """map"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`; each has a map of its own, all are one family."""
    over: OneOrMore = ("site", "position")
    """Axes along which cells are neighbours: site, in the order of `sites`, and position, inside a region."""
    statistic: MapStatistic = "maxT"
    """How the map is corrected: maxT (present at this cell), cluster (mass of clusters), tfce (height and extent)."""
    correction: Literal["maxT"] | None = None
    """A map is always corrected by the maximum over itself; leave this out."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""
    features: FeatureChoice | None = None
    """Map the mean of chosen features, with the signs they had there; left out, each cell's strongest feature."""

    @field_validator("over")
    @classmethod
    def _check_over(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in AXES:
                fail(text=unknown("axis of a map", short(name), AXES))
        return value

    @field_validator("correction", mode="before")
    @classmethod
    def _check_correction(cls, value: object) -> object:
        if value not in (None, "maxT"):
            fail(
                text="a map is corrected by the maximum over itself, so that p holds for all its cells; leave this out."
            )
        return value


class ParametricBlock(Block):
    """One or several effects by a parametric model, a labelled alternative; the p of relabellings stands beside it."""

    test: Literal["parametric"]
    """parametric"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`."""
    model: ParametricModel
    """ols and hc3 (one row per item), cluster (errors by item), item_intercept ((1 | item), effects between items),
    crossed and min_f (items and frames, at least 6 frames), limma_trend (a fast screen)."""
    rows: ParametricRows | None = None
    """What a row is: items, cells (frames averaged) or stimuli; left out, what the model needs."""
    correction: Literal["fdr_bh", "fdr_by", "holm", "storey", "none"] = "fdr_bh"
    """How p is corrected over the test."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""
    features: FeatureChoice | None = None
    """Test only the features that an earlier test chose on the other split."""

    @model_validator(mode="after")
    def _check(self) -> ParametricBlock:
        given = {"cluster": ("cells", "stimuli"), "item_intercept": ("cells", "stimuli"), "crossed": (), "min_f": ()}
        allowed = given.get(self.model, ("items", "cells", "stimuli"))
        if self.rows is not None and self.rows not in allowed:
            fail("rows", text=f"model {self.model} has {' or '.join(allowed) or 'rows of its own'}; leave this out.")
        return self


class ConjunctionBlock(Block):
    """Features that respond to all of several effects, by the weakest of them."""

    test: Literal["conjunction"]
    """conjunction"""
    effect: OneOrMore
    """Two effects or more, by their names under `effects:`."""
    statistic: Statistic | None = None
    """Instead of the statistic under `inference:`."""
    correction: Correction | None = None
    """Instead of the correction under `inference:`."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""

    @model_validator(mode="after")
    def _check(self) -> ConjunctionBlock:
        if len(self.effect) < 2:
            fail(
                "effect",
                text=f"names only {', '.join(self.effect)}; a conjunction needs two effects, use contrast for one.",
            )
        return self


class CombinationBlock(Block):
    """Features that differ in at least one of several parts, by the combined evidence of all."""

    test: Literal["combination"]
    """combination"""
    effect: OneOrMore
    """Effect or effects, by their names under `effects:`."""
    over: Literal["position", "region", "effect", "site"] = "position"
    """What the parts are; over sites one row speaks for all features."""
    how: Literal["fisher", "stouffer", "tippett"] = "fisher"
    """How p are combined: all parts (fisher), parts of one direction (stouffer), the strongest part (tippett)."""
    statistic: Statistic | None = None
    """Instead of the statistic under `inference:`."""
    correction: Correction | None = None
    """Instead of the correction under `inference:`."""
    alternative: Alternative | None = None
    """Instead of the alternative under `inference:`."""


JointBlock = ConjunctionBlock | CombinationBlock
"""Tests that join several tests of a feature."""


TESTS: Mapping[str, tuple[type[Strict], str]] = {
    "contrast": (ContrastBlock, "neurosae.stats.contrast"),
    **GEOMETRY,
    "conjunction": (ConjunctionBlock, "neurosae.stats.combine"),
    "combination": (CombinationBlock, "neurosae.stats.combine"),
    "map": (MapBlock, "neurosae.stats.maps"),
    "roi": (RoiBlock, "neurosae.stats.selection"),
    "parametric": (ParametricBlock, "neurosae.stats.parametric"),
    "pairs": (PairsBlock, "neurosae.stats.pairs"),
    "integration": (IntegrationBlock, "neurosae.stats.integration"),
    **CAUSAL,
    **PATCHING,
    **WRITTEN,
    **CIRCUITS,
    **PATTERNS,
    **DESCRIPTIONS,
    "equivalence": (EquivalenceBlock, "neurosae.stats.equivalence"),
    "subjects": (SubjectsBlock, "neurosae.stats.across_subjects"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""
