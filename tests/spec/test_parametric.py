"""Parametric blocks: what is refused with file and line before a model is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neurosae.errors import SpecError
from neurosae.spec.blocks import ParametricBlock
from neurosae.spec.parametric import NO_STRATA, parametric_problems

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


def test_min_f_is_refused_with_strata_before_a_model_loads():
    """Strata matter to effects between items; an effect within items has none to lose."""
    factors = {"kind": SimpleNamespace(varies="between"), "number": SimpleNamespace(varies="within")}
    design = SimpleNamespace(frames=dict.fromkeys("abcdef"), factors=factors, strata="topic")
    effects = {"kind": {"kind": {"a": 1, "b": -1}}, "number": {"number": {"a": 1, "b": -1}}}
    block = ParametricBlock(test="parametric", region=("noun",), effect=("kind", "number"), model="min_f")
    rules = SimpleNamespace(alternative="two-sided")
    analysis = SimpleNamespace(tests={"models": block}, effects=effects, inference=rules)
    assert list(parametric_problems("models", analysis, design)) == [(("tests", "models", "model"), NO_STRATA)]
