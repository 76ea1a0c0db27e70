"""Blocks of patching: what is refused when the file is read, with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurosae.design.checks import check
from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.design import load_design
from neurosae.spec.patching import PATCHING

DESIGN = Path(__file__).resolve().parents[2] / "stimuli" / "number_agreement.yaml"
TEXT = """schema: neurosae/analysis/1
name: patching
design: design.yaml
model: {{name: embedded}}
sites: {{late: {{hook: blocks.3.hook_resid_post, dictionary: {{embedded: late}}}}}}
positions: {{regions: [pre_verb]}}
effects: {{subject: {{subject: {{pl: 1, sg: -1}}}}}}
tests:
  find: {{test: contrast, effect: subject, region: pre_verb, split: localizer}}
  patch: {{test: patching, between: {{subject: [pl, sg]}}, region: [head, pre_verb], {rest}}}
"""


def read(tmp_path, rest, **changed):
    (tmp_path / "design.yaml").write_bytes(DESIGN.read_bytes())
    text = TEXT.format(rest=rest)
    for old, new in changed.values():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "analysis.yaml"
    path.write_text(text, encoding="utf-8")
    spec = load_analysis(path)
    check(load_design(tmp_path / "design.yaml"), spec, path=path)
    return spec


def test_blocks_of_patching_are_read(tmp_path):
    """Hooks, heads, features and places that no design names."""
    spec = read(tmp_path, "hooks: [blocks.*.hook_resid_post, 'blocks.2.attn.hook_z.h*']")
    assert spec.tests["patch"].between == {"subject": ("pl", "sg")}
    read(tmp_path, "features: {from: find, top: 5}, per: set")
    weights = "hooks: ['blocks.*.attn.hook_pattern.h*'], keys: [head, all], replace: zero"
    assert read(tmp_path, weights).tests["patch"].keys == ("head", "all")
    read(tmp_path, "hooks: ['blocks.*.attn.hook_q.h*', blocks.2.attn.hook_v.h0]")
    read(tmp_path, "hooks: hook_embed", place=("[head, pre_verb], hooks", "[target, all], hooks"))
    assert set(PATCHING) == {"patching"}


def test_the_shipped_analysis_is_checked():
    """Every block of it can run on its design."""
    path = DESIGN.parents[1] / "analyses" / "patching.yaml"
    spec = load_analysis(path)
    check(load_design(spec.design), spec, path=path)
    assert {block.test for block in spec.tests.values()} == {"contrast", "patching"}


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("replace: zero", "patches nothing; name hook points"),
        ("hooks: blocks.2.hook_resid_pots", "unknown hook point 'hook_resid_pots'"),
        ("hooks: blocks.2.attn.hook_pattern, keys: head", "names no head; write"),
        ("hooks: blocks.2.attn.hook_pattern.h3", "keys: is missing"),
        ("hooks: blocks.2.attn.hook_z.h3, keys: head", "belongs to attn.hook_pattern alone"),
        ("hooks: 'blocks.*.attn.hook_pattern.h*', features: {ids: [3]}, keys: head", "belongs to attn.hook_pattern"),
        ("hooks: blocks.2.attn.hook_pattern.h3, keys: haed", "unknown region 'haed'"),
        ("hooks: blocks.2.attn.hook_pattern.h3, keys: head, replace: noise", "weights are shares"),
        ("hooks: blocks.2.attn.hook_attn_scores", "numbers per pair of tokens"),
        ("hooks: hook_embed, replace: noise, n_draw: 3", "n_draw: unknown key. Did you mean 'n_draws'"),
        ("hooks: hook_embed, n_draws: 3", "has no meaning with replace: paired"),
        ("hooks: hook_embed, replace: random, sigma: 2.0", "has no meaning with replace: random"),
        ("features: {ids: [3]}, replace: noise", "noise is added to vectors"),
        ("hooks: hook_embed, per: set", "speaks of features"),
        ("hooks: hook_embed, replace: pared", "pared"),
        ("hooks: hook_embed, split: localizer", "patching runs on test items"),
        ("features: {from: fnd, top: 5}", "fnd"),
    ],
)
def test_blocks_that_cannot_run_are_refused(tmp_path, rest, message):
    """Each with the line of the file, before a model is loaded."""
    with pytest.raises(SpecError, match=message) as caught:
        read(tmp_path, rest)
    assert "analysis.yaml:10" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{subject: [pl, sg]}, region", "{subject: [pl, dual]}, region", "unknown level 'dual'"),
        ("{subject: [pl, sg]}, region", "{subjekt: [pl, sg]}, region", "unknown factor 'subjekt'"),
        ("{subject: [pl, sg]}, region", "{subject: [pl, pl]}, region", "same level twice"),
        ("[head, pre_verb], hooks", "[haed, pre_verb], hooks", "unknown region 'haed'"),
    ],
)
def test_blocks_that_do_not_fit_their_design_are_refused(tmp_path, old, *, new, message):
    """Factors, levels and regions are those of the design."""
    with pytest.raises(SpecError, match=message):
        read(tmp_path, "hooks: hook_embed", change=(old, new))
