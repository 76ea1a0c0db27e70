"""What a test of specialists may ask for, and what is refused before a model is loaded, with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neurosae.design.checks import check
from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.design import load_design

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(tmp_path):
    """A function that loads the shipped analysis of topics with one test of its own."""
    for folder in ("stimuli", "analyses"):
        (tmp_path / folder).mkdir()
    (tmp_path / "stimuli/topics.yaml").write_bytes((ROOT / "stimuli/topics.yaml").read_bytes())
    text = (ROOT / "analyses/topics.yaml").read_text(encoding="utf-8")

    def made(block, **changes):
        changed = re.sub(r"tests:\n.*?(?=report:)", lambda _: f"tests:\n  it: {block}\n", text, flags=re.DOTALL)
        for old, new in changes.items():
            changed = re.sub(rf"(?m)^{old}:.*\n(  .*\n)*", f"{old}: {new}\n", changed)
        if "localizer" in block:
            stimuli = tmp_path / "stimuli/topics.yaml"
            stimuli.write_text(stimuli.read_text(encoding="utf-8") + "partition: {localizer: 35, seed: 7}\n", "utf-8")
        path = tmp_path / "analyses/mine.yaml"
        path.write_text(changed, encoding="utf-8")
        return load_analysis(path)

    return made


def test_shipped_analysis_loads_and_checks():
    """Seven categories of ten sentences, permuted inside patterns; lengths are equal in all categories."""
    path = ROOT / "analyses/topics.yaml"
    analysis, design = load_analysis(path), load_design(ROOT / "stimuli/topics.yaml")
    said = check(design, analysis, path=path).text()
    assert "labels are permuted over items, inside each pattern" in said
    assert analysis.tests["specialists"].theta == "reference"


def test_sentences_of_a_pattern_differ_in_nothing_but_their_words():
    """Each pattern holds one sentence per category, and all have the same number of words."""
    from neurosae.design.expand import expand

    stimuli = expand(load_design(ROOT / "stimuli/topics.yaml"))
    assert len(stimuli) == 70
    assert stimuli["text"].is_unique
    for _, part in stimuli.groupby("pattern"):
        assert part["topic"].nunique() == len(part) == 7
        assert part["text"].str.split().str.len().nunique() == 1


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{test: specialists, effect: subject, region: whole}", "uses effect 'subject', which is not under"),
        ("{test: specialists, effect: two, region: whole}", "'two' is no comparison of all levels of one factor"),
        ("{test: specialists, effect: topic, region: hole}", "unknown region 'hole'"),
        ("{test: specialists, effect: topic, region: whole, score: rates}", "'rate' or 'auroc'|score"),
        ("{test: specialists, effect: topic, region: whole, pool: max}", "has pooled the tokens already"),
        ("{test: specialists, effect: topic, region: whole, theta: -1}", "theta"),
        ("{test: specialists, effect: topic, region: whole, theta: 5, n_tokens: 100}", "belong to theta: reference"),
        ("{test: specialists, effect: topic, region: whole, category: topic}", "unknown key"),
        (
            "{test: specialists, effect: topic, region: whole, features: {ids: {late: [3]}}}",
            "no features at site 'early'",
        ),
        ("{test: specialists, effect: topic, region: whole, features: {from: it, top: 3}}", "is no earlier test"),
        (
            "{test: specialists, effect: topic, region: whole, features: {from: at, top: 3}}",
            "unknown contrast or specialists test 'at'",
        ),
        ("{test: specialists, effect: topic, region: whole, sites: [lat]}", "unknown site 'lat'. Did you mean 'late'"),
    ],
)
def test_refused(load, block, said):
    """One sentence each, with file and line."""
    with pytest.raises(SpecError, match=re.escape(said) if "|" not in said else said) as caught:
        load(block, effects="{topic: {topic: all}, two: {topic: {sea: 1, war: -1}}}")
    assert re.match(r".*mine\.yaml:\d+: tests\.it", str(caught.value))


def test_features_come_from_specialists_of_other_items(load):
    """Found on localizer items, asked about on test items; never both on the same."""
    find = "{test: specialists, effect: topic, region: whole, split: localizer}\n  again: "
    again = "{test: specialists, effect: topic, region: whole, features: {from: it, top: 20}}"
    assert load(find + again).tests["again"].features.top == 20
    with pytest.raises(SpecError, match=r"tests\.again\.features.*on the same items"):
        load(find.replace(", split: localizer", "") + again)
    with pytest.raises(SpecError, match="unknown contrast test 'it'"):  # a contrast chooses by no category
        load(find + again.replace("specialists", "contrast"))


def test_tokens_kept_apart_are_pooled_by_the_test(load):
    """With tokens: all the block says how a text becomes one activation."""
    block = "{test: specialists, effect: topic, region: whole, pool: mean}"
    analysis = load(block, positions="{regions: [whole], tokens: all}")
    assert analysis.tests["it"].pool == "mean"


def test_nuisance_is_refused(load):
    """Nothing is regressed out, and nothing pretends to."""
    with pytest.raises(SpecError, match="regresses no nuisance out"):
        load("{test: specialists, effect: topic, region: whole}", inference="{nuisance: [n_tokens]}")
