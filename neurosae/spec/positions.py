"""Schema of `positions:`: which tokens leave the model, how they are aligned, and how several become one response."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from neurosae.spec.fields import Bool, Count, IntPair, Natural, OneOrMore, Strict, Text, fail
from neurosae.spec.words import Problem

WHOLE = "all"
"""The region of middle-out alignment: the whole text."""


class Positions(Strict):
    """Which tokens are kept, what their positions mean, and how several tokens become one response."""

    regions: OneOrMore | None = None
    """Regions whose tokens leave the model; left out, those that the tests name."""
    align: Literal["region", "start", "end", "middle_out", "xcorr", "reference", "dtw"] = "region"
    """What position 0 is: last token of the region, its start or end (always both), the middle of the text; or,
    exploratory, the region's end shifted towards the mean course (xcorr), by features that no test uses (reference), or
    warped to it (dtw, for figures only)."""
    window: IntPair | None = None
    """First and last position around the borders, [-2, 2]; not with region and middle_out."""
    max_shift: Count = 3
    """Largest shift in tokens, with xcorr and reference."""
    shift_unit: Literal["stimulus", "item"] = "stimulus"
    """Shift each stimulus by its own, or all stimuli of an item alike (stricter)."""
    reference: dict[Text, tuple[Natural, ...]] = Field(default_factory=dict)
    """With align: reference, {site: [feature, …]}, chosen on other items; they are left out of every test."""
    single_lock: Bool = False
    """Allow a test to use only one of <region>@start and <region>@end."""
    tokens: Literal["last", "first", "mean", "max", "sum", "all"] = "last"
    """How the tokens of a region become one response; all keeps them apart."""
    length_match: Bool = False
    """For max and sum: cut every region to its last n tokens, n being the shortest there, instead of a refusal."""
    frames: Literal["mean"] = "mean"
    """Frames are averaged within items before any test."""
    keep_x: Bool = False
    """Also store the raw stream."""
    scores: Bool = True
    """Surprisal of every token and logit_diff of the target, which need all layers and the head of the model."""
    allow_straddle: Bool = False
    """Accept a token that lies across the border of a region."""

    @property
    def locked(self) -> bool:
        """Whether regions come as pairs, <region>@start and <region>@end."""
        return self.align in ("start", "end")

    @property
    def shifted(self) -> bool:
        """Whether positions follow the data."""
        return self.align in ("xcorr", "reference", "dtw")

    @property
    def reach(self) -> tuple[int, int] | None:
        """First and last token, around the borders, that alignment needs: the window and the shifts beyond it."""
        if self.window is None or self.align not in ("xcorr", "reference"):
            return self.window
        return self.window[0] - self.max_shift, self.window[1] + self.max_shift

    @model_validator(mode="after")
    def _check(self) -> Positions:
        if self.window is not None and not (self.locked or self.shifted):
            fail("window", text=f"has no meaning with align: {self.align}; use align: start or end.")
        if self.shifted and (self.window is None or self.window[1] - self.window[0] < 2):
            text = f"align: {self.align} compares courses; give the positions around the region's end, at least 3: "
            fail("window", text=text + "window: [-6, 2], say.")
        for key in ("max_shift", "shift_unit"):
            if not self.shifted and getattr(self, key) != type(self).model_fields[key].default:
                fail(key, text=f"has no meaning with align: {self.align}; use align: xcorr or reference.")
        if self.reference and self.align != "reference":
            fail("reference", text=f"has no meaning with align: {self.align}; use align: reference.")
        if self.align == "reference" and not any(self.reference.values()):
            fail("reference", text="is missing; name features that no test uses, reference: {late: [12, 80]}, say.")
        if self.length_match and self.tokens not in ("max", "sum"):
            fail("length_match", text=f"has no meaning with tokens: {self.tokens}; use tokens: max or sum.")
        if self.window is not None and self.window[0] > self.window[1]:
            fail("window", text=f"{list(self.window)} ends before it begins; write [first, last].")
        return self


def score_problems(positions: Positions, parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Parts of an analysis, dumped as JSON-able records, that use scores which `scores: false` leaves out."""
    for name, part in parts.items() if not positions.scores else ():
        words = json.dumps(part, default=str)
        for column in ("surprisal", "logit_diff"):
            if f'"{column}"' in words:
                yield ("positions", "scores"), f"is false, but {name} uses {column}; leave it out, or set it to true."
