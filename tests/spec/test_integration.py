"""Blocks of the integration battery: defaults, and what is refused with file and line before a model is loaded."""

from __future__ import annotations

import pytest

from neurosae.design.expand import expand
from neurosae.design.requirements import grade_limits
from neurosae.errors import SpecError
from neurosae.spec.design import load_design
from neurosae.spec.integration import MEMBERS, IntegrationBlock

ANCHOR = "  geometry:"
FEATURES = "features: {subject: {from: find_number, top: 50}, attractor: {from: find_attractor, top: 50}}"


@pytest.fixture
def asked(edited):
    """A function that puts a battery into the example analysis and reads it."""

    def read(block, name="analyses/number_agreement"):
        return edited(name, ANCHOR, f"  binding: {{test: integration, {block}}}\n{ANCHOR}")

    return read


def test_integration_block_recovers_the_example_of_the_design(asked):
    """Without a context; all members, defaults for the rest."""
    found = asked(f"parts: [subject, attractor], region: pre_verb, members: all, {FEATURES}").tests["binding"]
    assert isinstance(found, IntegrationBlock)
    assert found.members == MEMBERS
    assert (found.context, found.over, found.gain, found.target) == (None, "all", ("norm", "n_tokens"), None)
    assert {part: choice.top for part, choice in found.features.items()} == {"subject": 50, "attractor": 50}


PARTS = "parts: [subject, attractor], region: pre_verb"
CASES = [
    ("parts: [subject], region: pre_verb", r"tests.binding.parts: names 1; a conjunction has two parts"),
    ("parts: [subject, congruence], region: pre_verb", r"tests.binding.parts: 'congruence' is no single factor"),
    ("parts: [subject, atractor], region: pre_verb", r"uses effect 'atractor', .* Did you mean 'attractor'"),
    (f"{PARTS}, members: [code, gates]", r"members: unknown member of the battery 'gates'. Did you mean 'gate'"),
    (f"{PARTS}, measures: i_min", r"measures: 'i_min' gives 1 bit of redundancy and 1 bit of synergy .* use broja"),
    (f"{PARTS}, measures: shuffled_target", r"'shuffled_target' rejects for purely additive readouts"),
    (f"{PARTS}, gain: [norms]", r"gain: unknown measure of gain 'norms'. Did you mean 'norm'"),
    (f"{PARTS}, features: {{subject: {{from: find_number, top: 5}}}}", r"features: choose none for 'attractor'"),
    (f"{PARTS}, over: sets", r"over: sets needs `features:`; use over: all"),
    (f"{PARTS}, split: localizer", r"split: localizer items choose features; the battery runs on test items"),
    (f"{PARTS}, target: {{column: condition}}", r"target.column: unknown target 'condition'"),
    (f"{PARTS}, target: {{column: surprisal, region: verb}}", r"target.region: region 'verb' is not under"),
    (
        f"{PARTS}, features: {{subject: {{from: number, top: 5}}, attractor: {{from: find_attractor, top: 5}}}}",
        r"features.subject: would choose features and test them on the same items .* Set `split: localizer`",
    ),
    (f"{PARTS}, context: {{factor: contxt, composed: a, control: b}}", r"context.factor: unknown factor 'contxt'"),
    (
        f"{PARTS}, context: {{factor: subject, composed: pl, control: sg}}",
        r"context.factor: 'subject' is one of the parts; the context is another factor",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("block", "text"), CASES)
def test_integration_block_refuses(asked, block, text):
    """One sentence with the file, its line, the field, what is wrong, and what would be right."""
    with pytest.raises(SpecError, match=rf"analyses/number_agreement.yaml:\d+: .*{text}"):
        asked(block)


@pytest.mark.parametrize(
    "case",
    [
        ("keep_x: true", "keep_x: false", r"tests.binding: needs pre-activations, .* set `keep_x: true`"),
        ("tokens: last", "tokens: max", r"tests.binding: needs pre-activations, and the maximum of several tokens"),
        ("nuisance: []", "nuisance: [n_tokens]", r"tests.binding: takes the recorded gain out by itself"),
        ("agreement: [number, interference]", "agreement: [number, binding]", r"agreement: 'binding' corrects code"),
    ],
)  # fmt: skip
def test_integration_refuses_what_the_analysis_lacks(study, asked, case):
    """The raw stream must be kept, and gain is the battery's own affair."""
    old, new, text = case
    path = study / "analyses/number_agreement.yaml"
    written = path.read_text()
    assert old in written
    path.write_text(written.replace(old, new, 1))
    with pytest.raises(SpecError, match=text):
        asked(PARTS)


def test_check_says_what_limits_the_grade(asked):
    """Before a model is loaded, in the words of the requirements."""
    spec = asked(f"{PARTS}, {FEATURES}")
    design = load_design(spec.design)
    (said,) = grade_limits(design, expand(design), spec)
    assert "binding: at pre_verb the grade is limited to 1 of 3" in said
    assert "list control (no context with the words uncomposed): add a context that lists both words" in said
