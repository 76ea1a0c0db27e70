"""What a parametric model may ask of a design: frames enough for a claim over them, items that differ in the effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neurosae.spec.words import Problem, Where

FRAMES = 6
"""Frames below which nothing is claimed over them."""
NO_STRATA = (
    "min-F' compares means over items and over frames, in which strata of items have no place; "
    "use model ols, where strata are a fixed factor, or leave `strata` out of the design."
)
"""Why min-F' is refused for an effect between items of a design with strata."""


def parametric_problems(name: str, analysis: Any, design: Any) -> Iterator[Problem]:
    """What is wrong with a parametric test, as far as it can be seen before a model is loaded."""
    block = analysis.tests[name]
    where: Where = ("tests", name)
    n_frames = len(design.frames)
    if block.model in ("crossed", "min_f") and n_frames < FRAMES:
        has = f"claims over frames, which needs at least {FRAMES}; the design has {n_frames}"
        yield (*where, "model"), f"{has}. Add frames, or claim over items alone: model: ols."
    alternative = block.alternative or analysis.inference.alternative
    if block.model == "min_f" and alternative != "two-sided":
        yield (*where, "model"), "min-F' has no direction; set `alternative: two-sided` on this test."
    for effect in block.effect:
        written = analysis.effects.get(effect, {})
        if any(key == "slope" or value == "all" for key, value in written.items()):
            text = f"'{effect}' is no single contrast of cells; parametric models take weights of levels or cells"
            yield (*where, "effect"), f"{text}. Use `test: contrast` for it."
        elif block.model == "item_intercept" and not _only_between(written, design):
            text = f"'{effect}' varies within items, and items react to it differently, so (1 | item) is no valid error"
            yield (*where, "model"), f"{text} term; the paired t test of the items' differences is: model: ols."
        elif block.model == "min_f" and design.strata is not None and _only_between(written, design):
            yield (*where, "model"), NO_STRATA


def _only_between(written: Mapping[str, Any], design: Any) -> bool:
    """Whether some factor varies between items, and none that sums to 0 varies within them."""
    if "cells" in written:
        return True  # what cells compare is seen when they are compiled
    zero = [n for n, w in written.items() if isinstance(w, str) or abs(sum(w.values())) < 1e-9]
    varies = [design.factors[name].varies for name in zero if name in design.factors]
    return bool(varies) and all(v == "between" for v in varies)
