"""Selection of features by another effect on the same items: only where the two effects are orthogonal on the cells.

Orthogonal weights alone are not enough: if cells differ in variance, the contrast that chooses and the contrast that is
tested still covary over items, and the choice leaks into the test. The covariance itself can only be seen in the
responses (`stats.selection`), so a caution is printed even where the design allows the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from neurosae.design.weights import Effect
from neurosae.spec.words import Problem


def inner_product(first: Effect, second: Effect, counts: Mapping[tuple[str, ...], float]) -> float:
    """c1'(X'X)^-1 c2 of two effects over the cells: the sum over cells of weight x weight / number of items.

    Of all levels of a factor at once every contrast counts; the largest product is given.

    Parameters
    ----------
    counts : number of items in each cell
    """

    def product(v: np.ndarray, w: np.ndarray) -> float:
        pairs = zip(first.cells, v, w, strict=True)
        return float(sum(a * b / counts[cell] for cell, a, b in pairs if a and b))

    return max((product(v, w) for v in first.rows for w in second.rows), key=abs)


def choice_by_other_effect(
    analysis: Any, effects: Mapping[str, Effect], counts: Mapping[tuple[str, ...], float]
) -> Iterator[tuple[Problem | None, str]]:
    """For every test whose features another effect chooses on the same items: a refusal, or a caution.

    Yields
    ------
    (where, what is wrong) or None, and the caution; a caution comes with every allowed choice
    """
    for name, block in (analysis.tests if analysis is not None else {}).items():
        chooser = getattr(getattr(block, "features", None), "orthogonal", None)
        if chooser is None:
            continue
        for effect in block.effect:
            product = inner_product(effects[chooser], effects[effect], counts)
            if abs(product) > 1e-12:
                text = (
                    f"'{chooser}' is not orthogonal to '{effect}' on these cells, c1'(X'X)^-1 c2 = {product:.3g}, so "
                    "the choice would favour the tested effect; choose features on localizer items, or by cross_fit."
                )
                yield (("tests", name, "features"), text), ""
            else:
                yield (
                    None,
                    (
                        f"{name}: features are chosen by '{chooser}' and tested for '{effect}' on the same items. The "
                        "weights are orthogonal; the test holds only if all cells also have equal variances and "
                        "covariances, which the responses can refute but not prove. Localizer items need no such thing."
                    ),
                )
