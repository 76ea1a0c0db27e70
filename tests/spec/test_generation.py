"""Refusals of `test: generation` and `test: removal` when a file is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis

ROOT = Path(__file__).resolve().parents[2]


def changed(tmp_path, name, *pairs):
    """An analysis of the tree with some of its text replaced."""
    for folder in ("stimuli", "analyses"):
        (tmp_path / folder).mkdir()
    (tmp_path / "stimuli" / f"{name}.yaml").write_text((ROOT / "stimuli" / f"{name}.yaml").read_text())
    text = (ROOT / "analyses" / f"{name}.yaml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "analyses" / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["sentiment", "occupations"])
def test_the_analyses_of_the_tree_load(tmp_path, name):
    """As written."""
    assert load_analysis(changed(tmp_path, name)).name == name


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    sites: early\n", "    sites: [early, late]\n", "steer one site at a time"),
        ("    sites: early\n", "", "steer one site at a time"),
        ("split: localizer}", "split: test}", "same items"),
        ("features: {from: find_sentiment, top: 10}", "features: {from: find, top: 10}", "unknown contrast test"),
        ("effects:\n", "inference: {families: {all: [sentiment, next_word]}}\neffects:\n", "shares no maximum"),
        ("effects:\n", "inference: {nuisance: [n_tokens]}\neffects:\n", "regresses no nuisance out"),
        ("score: next_word", "score: next_words", "next_word"),
        ("region: word  ", "region: wrod  ", "Did you mean 'word'"),
    ],
)
def test_generation_refuses(tmp_path, *, old, new, said):
    """One line with file, line and field."""
    with pytest.raises(SpecError, match=said):
        load_analysis(changed(tmp_path, "sentiment", (old, new)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("effect: group, region: role, sites: early, f", "effect: grop, region: role, sites: early, f", "grop"),
        ("{group: {masculine: 1, feminine: -1}}", "{group: {masculine: 1, feminine: -1}, emotion: {joy: 1, anger: -1}}",
         "no difference of two levels of one factor"),
        ("top: 20}}", "top: 20}, methods: [ablate, project]}", "project"),
        ("top: 20}}", "top: 20}, strengths: [1.0, 0.5]}", "write rising numbers"),
        ("top: 20}}", "top: 20}, n_controls: 10}", "at least 99"),
    ],
)  # fmt: skip
def test_removal_refuses(tmp_path, *, old, new, said):
    """One line with file, line and field."""
    with pytest.raises(SpecError, match=said):
        load_analysis(changed(tmp_path, "occupations", (old, new)))


def test_removal_needs_a_partition_and_a_target(tmp_path):
    """Means are of localizer items, bias is a logit difference."""
    path = changed(tmp_path, "occupations")
    design = tmp_path / "stimuli" / "occupations.yaml"
    lines = design.read_text().splitlines()
    design.write_text("\n".join(line for line in lines if not line.startswith("target:")))
    with pytest.raises(SpecError, match="has no target"):
        load_analysis(path)
    design.write_text("\n".join(line for line in lines if not line.startswith("partition:")))
    with pytest.raises(SpecError, match="sets no"):
        load_analysis(path)
