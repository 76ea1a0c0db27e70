"""Schema of the tests of representational geometry."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from neurosae.errors import unknown
from neurosae.spec.block import Block
from neurosae.spec.fields import Bool, Count, FileName, Name, OneOrMore, Strict, Text, fail
from neurosae.spec.words import short

Comparator = Literal["cosine_cov", "corr_cov", "cosine", "corr", "rho-a", "spearman", "tau-a"]
Distance = Literal["crossnobis", "euclidean", "correlation", "mahalanobis", "poisson"]
Noise = Literal["none", "shrinkage_diag", "shrinkage_eye"]


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
    distance: Distance = "crossnobis"
    """Distance between the patterns of two conditions; crossnobis is cross-validated over items."""
    noise: Noise | None = None
    """Metric of crossnobis and mahalanobis: the residual covariance, shrunk to its diagonal or to a multiple of the
    identity, or none. Left out, none for crossnobis and shrinkage_diag for mahalanobis."""
    compare: Comparator = "cosine_cov"
    """How the data RDM is compared with a model RDM."""
    p_from: Literal["item_flips"] = "item_flips"
    """Which relabellings give p: flips of whole items."""


class SecondOrderBlock(Block):
    """Second-order geometry: agreement of RDMs and kernels between sites, regions and positions."""

    test: Literal["second_order"]
    """second_order"""
    conditions: OneOrMore
    """Factors (and frame) whose combinations are the conditions."""
    distance: Distance = "crossnobis"
    """Distance between the patterns of two conditions."""
    noise: Noise | None = None
    """Metric of crossnobis and mahalanobis, as in rsa."""
    measures: OneOrMore = ("rho-a", "cosine_cov", "cka", "cka_debiased")
    """How two places are compared: comparators of RDMs, and cka and cka_debiased of item x condition patterns."""
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
