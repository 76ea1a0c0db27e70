"""Schema of the tests of representational geometry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import Block
from neurosae.spec.fields import (
    Bool,
    Count,
    FileName,
    Name,
    NamePair,
    Names,
    Natural,
    Number,
    OneOrMore,
    Strict,
    Text,
    fail,
)
from neurosae.spec.sites import AnyPath
from neurosae.spec.words import Where, short

Comparator = Literal["cosine_cov", "corr_cov", "cosine", "corr", "rho-a", "spearman", "tau-a"]
Distance = Literal["crossnobis", "euclidean", "correlation", "mahalanobis", "poisson"]
Noise = Literal["none", "shrinkage_diag", "shrinkage_eye"]


class RdmModel(Strict):
    """A model RDM: exactly one of effect, column, edit, site, matrix, norms, weighted and select."""

    effect: Text | None = None
    """An effect: conditions differ by their weights."""
    column: Name | None = None
    """A number of each stimulus: n_tokens, position, surprisal, or a covariate such as log frequency."""
    edit: Text | None = None
    """Edit distance between the texts of two conditions: a region, or all for the whole text."""
    site: FileName | None = None
    """The RDM of another site, such as one at hook_embed: what the words themselves already explain."""
    matrix: AnyPath | None = None
    """A csv file with a distance for every pair of conditions: square with labels, or first, second, value."""
    norms: AnyPath | None = None
    """A csv file with ratings of conditions or items by people; their differences are the distances."""
    weighted: Names | None = None
    """Other models of this test, mixed with non-negative weights that are fitted on other items."""
    select: Names | None = None
    """Other models of this test, of which the best on other items is taken."""
    metric: Literal["absolute", "squared", "equal"] = "absolute"
    """How two values of a column or of norms differ; equal: whether they do."""
    by: Literal["characters", "words"] = "characters"
    """What edit distances count."""
    columns: Names = ()
    """Columns of norms to use; left out, all with numbers."""
    similarity: Bool = False
    """The matrix holds similarities: larger means more alike."""
    nuisance: Bool = False
    """A model that the others must explain more than (partial RSA); not tested itself."""

    @property
    def kind(self) -> str:
        """What the model is made of."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Names of the models that this one is fitted from; none for a fixed model."""
        return self.weighted or self.select or ()

    @model_validator(mode="after")
    def _check(self) -> RdmModel:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"is made of {' and '.join(given)}" if given else "says not what it is made of"
            fail(text=f"{said}; give exactly one of {', '.join(KINDS)}, e.g. {{effect: name}} or {{column: n_tokens}}.")
        kind = given[0]
        for name, kinds in BELONGS.items():
            if getattr(self, name) != type(self).model_fields[name].default and kind not in kinds:
                fail(name, text=f"has no meaning with {kind}; it belongs to {' and '.join(kinds)}.")
        if self.fitted and len(self.fitted) < 2:
            fail(kind, text=f"names one model; a fitted model needs two, use {self.fitted[0]} itself.")  # pyright: ignore
        if self.fitted and self.nuisance:
            fail(
                "nuisance", text="is for fixed models; a fitted one is made of models that may be nuisance themselves."
            )
        return self


KINDS = ("effect", "column", "edit", "site", "matrix", "norms", "weighted", "select")
BELONGS = {"metric": ("column", "norms"), "by": ("edit",), "columns": ("norms",), "similarity": ("matrix",)}
FEW = 8
"""Conditions below which neither permuted labels nor a bootstrap over conditions, nor ranks, say anything."""


class RsaBlock(Block):
    """Representational similarity: distances between conditions, compared with model RDMs."""

    test: Literal["rsa"]
    """rsa"""
    conditions: OneOrMore
    """Factors, frame and item, whose combinations are the conditions; with item every word is one."""
    models: dict[FileName, RdmModel] = Field(min_length=1)
    """Model RDMs by name."""
    distance: Distance = "crossnobis"
    """Distance between the patterns of two conditions; crossnobis is cross-validated over items (over frames, where
    items are conditions)."""
    noise: Noise | None = None
    """Metric of crossnobis and mahalanobis: the residual covariance, shrunk to its diagonal or to a multiple of the
    identity, or none. Left out, none for crossnobis and shrinkage_diag for mahalanobis."""
    compare: Comparator = "cosine_cov"
    """How the data RDM is compared with a model RDM."""
    p_from: Literal["item_flips", "condition_labels", "bootstrap"] = "item_flips"
    """What gives p: flips of whole items (models of effects, any number of conditions); permuted labels of conditions
    (8 or more, any model); or a bootstrap over conditions and several RDMs."""
    blocks: OneOrMore | None = None
    """Factors or labels inside whose levels condition labels are permuted; left out, the strata of the design."""
    over: Literal["item_folds", "frames", "sites"] = "item_folds"
    """What the several RDMs of a bootstrap are: random groups of items, frames, or sites (seeds, models)."""
    folds: Annotated[Count, Field(ge=2)] = 4
    """Groups of items for cross-validated fits, and for a bootstrap over item_folds."""
    n_bootstrap: Annotated[Count, Field(ge=50)] = 1000
    """Draws of a bootstrap."""
    differences: Bool = False
    """Also compare every pair of models, with Holm over pairs."""
    margin: Annotated[Number, Field(gt=0)] | None = None
    """Smallest difference of two fits that would matter; pairs are then tested for equivalence too."""

    @model_validator(mode="after")
    def _check(self) -> RsaBlock:
        for name, model in self.models.items():
            for part in model.fitted:
                if part == name or part not in self.models or self.models[part].fitted:
                    known = [other for other, m in self.models.items() if not m.fitted]
                    fail("models", name, text=unknown("fixed model of this test", short(part), known))
        if self.noise not in (None, "none") and self.distance not in ("crossnobis", "mahalanobis"):
            fail("noise", text=f"is a metric of crossnobis and mahalanobis, not of {self.distance}; leave it out.")
        if self.noise == "none" and self.distance == "mahalanobis":
            fail("noise", text="none makes mahalanobis the euclidean distance; set distance: euclidean.")
        if self.blocks is not None and self.p_from != "condition_labels":
            fail("blocks", text="belong to p_from: condition_labels.")
        if self.compare == "tau-a" and self.p_from != "item_flips":
            fail("compare", text=f"tau-a has no fast {self.p_from}; use rho-a for rank claims.")
        if self.margin is not None and not self.differences:
            fail("margin", text="is of differences between models; set differences: true.")
        if self.p_from == "item_flips" and "item" in self.conditions:
            fail(
                "p_from",
                text="item_flips flips conditions inside items, but items are conditions; use condition_labels.",
            )
        return self


class SecondOrderBlock(Block):
    """Second-order geometry: agreement of RDMs and kernels between sites, regions and positions."""

    test: Literal["second_order"]
    """second_order"""
    conditions: OneOrMore
    """Factors, frame and item, whose combinations are the conditions; with item every word is one."""
    distance: Distance = "crossnobis"
    """Distance between the patterns of two conditions; crossnobis is cross-validated over items (over frames, where
    items are conditions)."""
    noise: Noise | None = None
    """Metric of crossnobis and mahalanobis, as in rsa."""
    measures: OneOrMore = ("rho-a", "cosine_cov", "cka", "cka_debiased")
    """How two places are compared: comparators of RDMs, and cka and cka_debiased of item x condition patterns."""
    blocks: OneOrMore | None = None
    """Factors or labels inside whose levels conditions are permuted; left out, the strata of the design where items are
    conditions, else none. RDMs of 8 conditions and more have p."""
    n_bootstrap: Annotated[Count, Field(ge=50)] = 1000
    """Draws of items for the intervals of RDM measures."""

    @field_validator("measures")
    @classmethod
    def _check_measures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = (*get_args(Comparator), "cka", "cka_debiased")
        for name in value:
            if name not in known:
                fail(text=unknown("measure", short(name), known))
        return value


class FeatureGeometryBlock(Block):
    """Which features carry the geometry of an effect: each feature's share of the fit, with max-T over features."""

    test: Literal["feature_geometry"]
    """feature_geometry"""
    effect: OneOrMore
    """Effects by their names under `effects:`; each is a model RDM, conditions differ by its weights."""
    conditions: OneOrMore
    """Factors (and frame) whose combinations are the conditions."""
    compare: Literal["cosine_cov", "corr_cov", "cosine", "corr"] = "cosine_cov"
    """The fit that leaving a feature out changes; descriptive."""
    n_shapley: Natural = 0
    """Random orders of features for sampled Shapley values of that fit; 0 for none."""
    reweighted: Bool = False
    """Also fit non-negative weights of features to the model on some items and evaluate them on others."""
    folds: Annotated[Count, Field(ge=2)] = 4
    """Groups of items for the reweighted fit."""


class SearchlightBlock(Block):
    """The length of an effect in many small sets of features: neighbours of each feature, or communities."""

    test: Literal["searchlight"]
    """searchlight"""
    effect: OneOrMore
    """Effects by their names under `effects:`."""
    sets: Literal["decoder", "coactivation"] = "decoder"
    """decoder: every feature with its k nearest decoder directions; coactivation: communities of features that fire
    together on other text."""
    k: Annotated[Count, Field(ge=2)] = 50
    """Features of a decoder neighbourhood, its centre included; 25 to 100 are usual."""
    n_controls: Annotated[Count, Field(ge=19)] = 199
    """Random sets matched in size, density and energy that every set is compared with."""
    n: Count | None = None
    """Largest communities that are used; left out, 200."""
    texts: tuple[AnyPath, ...] = ()
    """Reference text for coactivation, files or folders; none: what the model writes itself."""
    n_tokens: Count | None = None
    """Tokens of reference text; left out, 50,000."""

    @model_validator(mode="after")
    def _check(self) -> SearchlightBlock:
        if self.sets == "decoder" and (self.texts or self.n_tokens or self.n):
            fail("texts", text="n and n_tokens belong to sets: coactivation.")
        return self


class TemporalBlock(Block):
    """Temporal RSA of every feature: are its courses over tokens more alike within categories than across?"""

    test: Literal["temporal_rsa"]
    """temporal_rsa"""
    factor: Name
    """The factor whose levels are the categories; positions.tokens must be all."""
    levels: NamePair | None = None
    """Two levels for the categorical form (alike within the first, minus alike within the second); left out, the first
    two of the factor."""


GeometryBlock = RsaBlock | SecondOrderBlock | FeatureGeometryBlock | SearchlightBlock | TemporalBlock
"""Tests of geometry."""
GEOMETRY: Mapping[str, tuple[type[Block], str]] = {
    "rsa": (RsaBlock, "neurosae.stats.rsa"),
    "second_order": (SecondOrderBlock, "neurosae.stats.second_order"),
    "feature_geometry": (FeatureGeometryBlock, "neurosae.stats.feature_geometry"),
    "searchlight": (SearchlightBlock, "neurosae.stats.searchlight"),
    "temporal_rsa": (TemporalBlock, "neurosae.stats.temporal"),
}
"""Kind of test -> its schema, and the module whose `run` computes it."""


def geometry_effects(block: Any) -> Iterator[tuple[Where, str]]:
    """The effects that a test of geometry names, and where."""
    if isinstance(block, RsaBlock):
        yield from ((("models", name), model.effect) for name, model in block.models.items() if model.effect)
    elif isinstance(block, FeatureGeometryBlock | SearchlightBlock):
        yield from (((), effect) for effect in block.effect)
