"""Schema of the tests of representational geometry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from neurosae.spec.block import Block
from neurosae.spec.fields import Bool, FileName, Name, OneOrMore, Strict, Text, fail


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
    distance: Literal["crossnobis", "euclidean", "correlation", "mahalanobis", "poisson"] = "crossnobis"
    """Distance between the patterns of two conditions; crossnobis is cross-validated over items."""
    noise: Literal["none", "shrinkage_diag", "shrinkage_eye"] | None = None
    """Metric of crossnobis and mahalanobis: the residual covariance, shrunk to its diagonal or to a multiple of the
    identity, or none. Left out, none for crossnobis and shrinkage_diag for mahalanobis."""
    compare: Literal["cosine_cov", "corr_cov", "cosine", "corr", "rho-a", "spearman", "tau-a"] = "cosine_cov"
    """How the data RDM is compared with a model RDM."""
    p_from: Literal["item_flips"] = "item_flips"
    """Which relabellings give p: flips of whole items."""
