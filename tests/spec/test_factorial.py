"""What factorial, ANOVA and choosing blocks may ask for, and what an analysis with them refuses before it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.factorial import two_levels

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(tmp_path):
    """A function that loads the shipped analysis of achievements with one test of its own."""
    (tmp_path / "stimuli").mkdir()
    (tmp_path / "analyses").mkdir()
    (tmp_path / "stimuli/achievement.yaml").write_bytes((ROOT / "stimuli/achievement.yaml").read_bytes())
    text = (ROOT / "analyses/achievement.yaml").read_text(encoding="utf-8")

    def made(block, inference=""):
        tests = f"tests:\n  find: {{test: contrast, effect: outcome, region: whole, split: localizer}}\n  it: {block}\n"
        changed = re.sub(r"tests:\n.*?(?=report:)", lambda _: tests, text, flags=re.DOTALL)
        changed = changed.replace("n_permutations: 5000", f"n_permutations: 5000{inference}")
        path = tmp_path / "analyses/mine.yaml"
        path.write_text(changed, encoding="utf-8")
        return load_analysis(path)

    return made


def test_shipped_analysis_loads():
    """Its effects may be named under `effects` of a factorial test."""
    analysis = load_analysis(ROOT / "analyses/achievement.yaml")
    assert analysis.tests["pattern"].effect == ("outcome", "course", "both")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{test: factorial, effects: [outcome, winning], region: whole}", "uses effect 'winning'"),
        ("{test: factorial, effects: outcome, region: whole, folds: 1}", "folds"),
        ("{test: factorial, effects: outcome, region: whole, statistic: decoded}", "contrast_length"),
        ("{test: factorial, effects: both, region: whole, statistic: decoding}", "no difference of two levels of one"),
        ("{test: factorial, effects: outcome, region: whole, across: course}", "has no meaning with contrast_length"),
        ("{test: factorial, effects: outcome, region: whole, statistic: ccgp, across: outcome}", "is part of the"),
        ("{test: factorial, effects: outcome, region: whole, statistic: ccgp, across: tense}", "unknown factor"),
        ("{test: factorial, effects: [outcome, course], region: whole, statistic: cvmanova}", "use at least 7"),
        ("{test: factorial, effects: outcome, region: whole, features: {from: find}}", "top"),
        ("{test: factorial, effects: outcome, region: whole, features: {from: fund, top: 5}}", "unknown contrast test"),
        ("{test: factorial, effects: outcome, region: whole, split: localizer, features: {from: find, top: 5}}",
         "on the same items"),
        ("{test: factorial, effects: outcome, region: whole, features: {named: {lete: [1]}}}", "unknown site 'lete'"),
        ("{test: anova, region: whole, features: {from: find, top: 60}}", "more than 50"),
        ("{test: choosing, effect: both, region: whole}", "no difference of two levels of one factor"),
        ("{test: choosing, effect: outcome, region: whole, rules: [contrast, contrast]}", "names one thing twice"),
        ("{test: choosing, effect: outcome, region: whole, rules: [best]}", "rules"),
    ],
)  # fmt: skip
def test_refuses_before_anything_runs(load, block, said):
    """One line, with the field and what would be right."""
    with pytest.raises(SpecError, match=said):
        load(block)


def test_nuisance_is_refused_where_nothing_regresses_it_out(load):
    """A pattern has no nuisance columns."""
    with pytest.raises(SpecError, match="regresses no nuisance out"):
        load("{test: factorial, effects: outcome, region: whole}", ", nuisance: [n_tokens]")


def test_cvmanova_takes_folds_enough_for_holm(load):
    """Seven folds reach .05 over two effects."""
    block = "{test: factorial, effects: [outcome, course], region: whole, statistic: cvmanova, folds: 7, features: "
    assert load(block + "{from: find, top: 5}}").tests["it"].folds == 7


@pytest.mark.parametrize(
    ("effect", "factor"),
    [
        ({"a": {"x": 1, "y": -1}}, "a"),
        ({"a": {"x": 1, "y": -1}, "b": {"u": 1}}, "a"),
        ({"a": {"x": 2, "y": -1, "z": -1}}, None),
        ({"a": "linear"}, None),
        ({"a": "all"}, None),
        ({"slope": "frequency"}, None),
        ({"cells": {"x/u": 1, "y/u": -1}}, None),
    ],
)
def test_two_levels(effect, factor):
    """A difference of two levels of one factor, others held or averaged over."""
    assert two_levels(effect) == factor
