"""Parametric blocks: what is refused with file and line before a model is loaded."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError
from neurosae.spec.blocks import ParametricBlock

ANCHOR = "  geometry:"


@pytest.fixture
def models(edited):
    """A function that puts a parametric block into the example analysis and reads it."""

    def read(block):
        line = f"  models: {{test: parametric, effect: subject, region: head, {block}}}\n{ANCHOR}"
        return edited("analyses/number_agreement", ANCHOR, line)

    return read


def test_parametric_block_recovers_defaults(models):
    """BH over the test, rows that the model needs, on the test items."""
    found = models("model: cluster").tests["models"]
    assert isinstance(found, ParametricBlock)
    assert (found.correction, found.rows, found.split, found.alternative) == ("fdr_bh", None, "test", None)


CASES = [
    ("correction: none", r"tests.models.model: is missing"),
    ("model: anova", r"tests.models.model: .*ols"),
    ("model: ols, correction: maxT", r"tests.models.correction: .*fdr_bh"),
    ("model: cluster, rows: items", r"tests.models.rows: model cluster has cells or stimuli; leave this out"),
    ("model: min_f", r"tests.models.model: claims over frames, which needs at least 6; the design has \d"),
    ("model: item_intercept", r"'subject' varies within items, .* the paired t test of the items' differences is"),
    ("model: ols, features: {from: number, top: 5}", r"would choose features and test them on the same items"),
]


@pytest.mark.parametrize(("block", "text"), CASES)
def test_parametric_block_refuses(models, block, text):
    """Each refusal names the line, the field and what would do."""
    with pytest.raises(SpecError, match=rf"analyses/number_agreement.yaml:\d+: .*{text}"):
        models(block)
