"""Schema of the `power:` section of an analysis: how a study is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neurosae.errors import unknown
from neurosae.spec.fields import Count, Name, Number, Strict, Text, fail
from neurosae.spec.words import Problem, short

Method = Literal["maxT", "stepdown", "fdr_bh", "fdr_by", "set"]
Share = Annotated[Number, Field(gt=0, lt=1)]


class Smallest(Strict):
    """The smallest effect that the study must not miss, in one feature."""

    density: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Difference of densities: how much more often it fires in the + cells."""
    magnitude: Annotated[Number, Field(gt=0)] = 1.5
    """How many times as strongly it fires there; 1 for equally."""

    @model_validator(mode="after")
    def _check(self) -> Smallest:
        if self.density == 0 and self.magnitude == 1:
            fail(text="is no effect; give a density above 0, or a magnitude other than 1.")
        return self


class Power(Strict):
    """Power over the number of items, for a stated smallest effect."""

    effect: Text | None = None
    """Name of an effect under `effects:`; left out, that of the first contrast."""
    region: Text | None = None
    """Region whose responses serve as pilot; left out, that of the first contrast."""
    site: Name | None = None
    """Site whose responses serve as pilot; left out, the first."""
    smallest: Smallest = Smallest()
    """The smallest effect of interest; it is stated, never estimated from the pilot."""
    n_items: Annotated[tuple[Annotated[int, Field(strict=True, ge=4)], ...], Field(min_length=1)] = (16, 24, 32, 48, 64)
    """Numbers of items to try."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("maxT", "fdr_bh", "set")
    """Corrections of the tests of single features; set tests all of them together."""
    noise: Literal["pilot", "simulated"] = "pilot"
    """Where the noise comes from: stored responses, where there are any, or simulation."""
    share: Share = 0.05
    """Share of features that carry the effect."""
    densities: tuple[Share, Share] = (0.003, 0.5)
    """Lowest and highest density of simulated features, log-uniform."""
    n_features: Count = 500
    """How many features are simulated; a pilot brings its own."""
    n_sets: Count = 100
    """Studies per number of items."""
    n_permutations: Count = 1000
    """Relabellings per study."""


def power_problems(block: Power, **known: Mapping[str, Any]) -> Iterator[Problem]:
    """What the `power:` section names but `effect=`, `site=` or `region=` does not hold."""
    for key, names in known.items():
        name = getattr(block, key)
        if name is not None and name not in names:
            yield ("power", key), unknown(key, short(name), names)
