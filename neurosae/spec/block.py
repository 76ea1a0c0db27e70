"""What every block under `tests:` says: where, and on which items. Blocks of all kinds begin with it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from neurosae.spec.fields import Count, OneOrMore, Strict, Text

Split = Literal["test", "localizer"]


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
