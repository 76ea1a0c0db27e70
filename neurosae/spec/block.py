"""What every block under `tests:` says: where, and on which items. Blocks of all kinds begin with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from neurosae.spec.fields import Count, Name, Natural, OneOrMore, Strict, Text, fail

Split = Literal["test", "localizer"]


class Block(Strict):
    """What every test says, beside its kind (`test`): where, and on which items."""

    region: OneOrMore
    """Region or regions of the design."""
    split: Split = "test"
    """On which items: test, or localizer for a test that only chooses features."""
    sites: OneOrMore | None = None
    """Sites; left out, all of them."""


def name_of(block: Block, tests: Mapping[str, Block]) -> str:
    """The name under which a block stands in `tests:`; its kind, where it stands in none."""
    return next((name for name, one in tests.items() if one is block), str(getattr(block, "test", "")))


class FeatureChoice(Strict):
    """Features chosen by an earlier test on other items, or named: found elsewhere, before this test."""

    from_: Annotated[Text | None, Field(alias="from")] = None
    """Name of the earlier test, which has one effect: {from: find, top: 50}."""
    top: Count | None = None
    """How many features, by the size of the statistic, the largest over the regions and positions of the test."""
    ids: dict[Name, tuple[Natural, ...]] | tuple[Natural, ...] = ()
    """Indices that are known beforehand, by site: {ids: {late: [12, 40]}}; a list, where there is one site."""

    @model_validator(mode="after")
    def _check(self) -> FeatureChoice:
        if (self.from_ is None) == (not self.ids):
            fail(text="come from an earlier test or are named; give {from: find, top: 50} or {ids: {late: [12, 40]}}.")
        if (self.from_ is None) != (self.top is None):
            fail("top", text="belongs to `from`, and says how many features; write {from: find, top: 50}.")
        if isinstance(self.ids, dict) and (empty := [site for site, ids in self.ids.items() if not ids]):
            fail("ids", empty[0], text="names no feature; write their indices: [12, 40].")
        return self

    @property
    def name(self) -> str:
        """What the features are called in results."""
        return "named features" if self.from_ is None else f"{self.from_} top {self.top}"

    def at(self, site: str) -> tuple[int, ...]:
        """The named features of a site; none where it is not named."""
        given = self.ids.get(site, ()) if isinstance(self.ids, dict) else self.ids
        return tuple(sorted(set(given)))
