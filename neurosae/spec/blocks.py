"""Schema of each block under `tests:`, and the registry of tests.

A new test is one block class here, one entry in `TESTS`, and a module with `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from neurosae.spec.fields import Bool, Count, FileName, Name, Number, OneOrMore, Strict, Text, fail

Statistic = Literal["mean", "t", "moderated_t", "signed_rank"]
Correction = Literal["maxT", "stepdown", "holm", "fdr_bh", "fdr_by", "storey", "bb", "none"]
Alternative = Literal["two-sided", "greater", "less"]
Intervals = Literal["marginal", "flip_t", "bca", "simultaneous"]
Split = Literal["test", "localizer"]
ParametricModel = Literal["ols", "hc3", "cluster", "item_intercept", "crossed", "min_f", "limma_trend"]
ParametricRows = Literal["items", "cells", "stimuli"]


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
    """No nuisance columns: leave this empty."""
    families: dict[FileName, OneOrMore] = Field(default_factory=dict)
    """Tests corrected together, over one maximum; left out, each test is its own family."""

    @model_validator(mode="after")
    def _check(self) -> Inference:
        if self.nuisance:
            fail("nuisance", text="nuisance columns cannot be regressed out here; leave it empty, [].")
        if self.n_permutations * self.alpha < 1:
            least = -(-1 // self.alpha)
            text = f"{self.n_permutations} relabellings cannot reach alpha {self.alpha:g}; use at least {least:.0f}."
            fail("n_permutations", text=text)
        return self


class Block(Strict):
    """What every test says, beside its kind (`test`): where, and on which items."""

    region: OneOrMore
    """Region or regions of the design."""
    split: Split = "test"
    """On which items: test, or localizer for a test that only chooses features."""
    sites: OneOrMore | None = None
    """Sites; left out, all of them."""


class FeatureChoice(Strict):
    """Features chosen by an earlier test on other items."""

    from_: Annotated[Text, Field(alias="from")]
    """Name of the earlier test."""
    top: Count
    """How many features, by the size of the statistic."""


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


class RdmModel(Strict):
    """A model RDM: of an effect, or of differences in a column."""

    effect: Text | None = None
    """An effect: conditions differ by their weights."""
    column: Name | None = None
    """A number of each stimulus: n_tokens, position, or a covariate."""
    metric: Literal["absolute"] = "absolute"
    """How two values of the column differ."""
    nuisance: Bool = False
    """A model that the others must explain more than; not tested itself."""

    @model_validator(mode="after")
    def _check(self) -> RdmModel:
        if (self.effect is None) == (self.column is None):
            fail(text="is made of an effect or a column; give exactly one, {effect: name} or {column: n_tokens}.")
        return self


class RsaBlock(Block):
    """Representational similarity: distances between conditions, compared with model RDMs."""

    test: Literal["rsa"]
    """rsa"""
    conditions: OneOrMore
    """Factors (and frame) whose combinations are the conditions."""
    models: dict[FileName, RdmModel] = Field(min_length=1)
    """Model RDMs by name."""
    distance: Literal["crossnobis", "euclidean", "correlation"] = "crossnobis"
    """Distance between the patterns of two conditions; crossnobis is cross-validated over items."""
    compare: Literal["cosine_cov", "corr_cov", "cosine", "corr", "rho-a"] = "cosine_cov"
    """How the data RDM is compared with a model RDM."""
    p_from: Literal["item_flips"] = "item_flips"
    """Which relabellings give p: flips of whole items."""


TESTS: Mapping[str, tuple[type[Strict], str]] = {
    "contrast": (ContrastBlock, "neurosae.stats.contrast"),
    "parametric": (ParametricBlock, "neurosae.stats.parametric"),
    "rsa": (RsaBlock, "neurosae.stats.rsa"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""
