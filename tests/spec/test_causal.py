"""What tests of interventions refuse when the file is read."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.causal import InterventionBlock, JointClampBlock
from tests.spec.conftest import WITHIN

BASE = """\
schema: neurosae/analysis/1
name: causal
design: design.yaml
model: {name: embedded}
sites: {late: {hook: blocks.1.hook_resid_post, dictionary: {embedded: early}}}
positions: {regions: [head, local], tokens: last}
effects:
  subject:   {subject: {pl: 1, sg: -1}}
  attractor: {attractor: {pl: 1, sg: -1}}
tests:
  find: {test: contrast, effect: subject, region: head, split: localizer}
  same: {test: contrast, effect: subject, region: head}
"""


def problem(tmp_path, *lines, design=WITHIN):
    (tmp_path / "design.yaml").write_text(design, encoding="utf-8")
    path = tmp_path / "analysis.yaml"
    path.write_text(BASE + "".join(f"  {line}\n" for line in lines), encoding="utf-8")
    with pytest.raises(SpecError) as error:
        load_analysis(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x: {test: intervention, region: head, features: {from: same, top: 5}}", "on the same items (split: test)"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, mode: melt}", "unknown mode"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, doses: [p50]}", "no meaning with mode"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, mode: clamp, doses: [q9]}", "no dose"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, mode: scale}", "are factors"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, n_controls: 50}", "n_controls"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, effect: subjekt}", "not under `eff"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, only: {subject: sq}}", "unknown level"),
        ("x: {test: intervention, region: head, features: {from: find, top: 5}, effect: subject, only: {subject: sg}}",
         "of which `only` keeps one"),
        ("x: {test: intervention, region: head, features: {ids: [1]}, split: localizer}", "run on test items"),
        ("x: {test: intervention, region: head, features: {ids: [1], direction: plus}}", "no meaning for named"),
        ("x: {test: joint_clamp, region: head, features: {a: {ids: [1]}, b: {ids: [2]}}, outcome: log_prob}",
         "passes for an interaction"),
        ("x: {test: joint_clamp, region: head, features: {a: {ids: [1]}, b: {ids: [2]}}, parts: [subject]}",
         "names 1 effects for 2 sets"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, line, said):
    """Each with file, line and remedy."""
    found = problem(tmp_path, line)
    assert said in found
    assert "analysis.yaml:13" in found


def test_a_design_without_target_scores_nothing(tmp_path):
    """The logit difference needs target and foil."""
    design = WITHIN.replace("target: {slot: verb, foil: other_level, single_token: true}\n", "")
    line = "x: {test: intervention, region: head, features: {ids: [1]}}"
    assert "the design has no target" in problem(tmp_path, line, design=design)


def test_interventions_share_no_maximum(tmp_path):
    """A family of max-T has no place for controls."""
    (tmp_path / "design.yaml").write_text(WITHIN, encoding="utf-8")
    text = BASE.replace("tests:\n", "inference: {families: {all: [same, x]}}\ntests:\n")
    (tmp_path / "a.yaml").write_text(text + "  x: {test: intervention, region: head, features: {ids: [1]}}\n")
    with pytest.raises(SpecError, match=r"take it out|shares no maximum|one maximum"):
        load_analysis(tmp_path / "a.yaml")


def test_battery_names_an_earlier_clamp_of_its_parts(tmp_path):
    """Grade 3 needs a joint clamp of the same parts, above it in the file."""
    battery = "y: {test: integration, parts: [subject, attractor], region: head, members: [code], causal: x}"
    text = "positions: {regions: [head, local], tokens: last}"
    clamp = "x: {test: joint_clamp, region: head, features: {a: {ids: [1]}, b: {ids: [2]}}}"
    (tmp_path / "design.yaml").write_text(WITHIN, encoding="utf-8")
    for *lines, said in (
        ("z: " + clamp[3:], battery, "unknown joint_clamp test 'x'"),
        (battery, clamp, "no earlier test"),
        (clamp, battery, "clamps no parts"),
    ):
        body = BASE.replace(text, text.replace("}", ", keep_x: true}")) + "".join(f"  {one}\n" for one in lines)
        (tmp_path / "b.yaml").write_text(body, encoding="utf-8")
        with pytest.raises(SpecError, match=said):
            load_analysis(tmp_path / "b.yaml")


def test_defaults_are_those_of_the_specification():
    """Features in the same way, three natural doses, 199 controls, Holm; 99 pairs for a clamp."""
    one = InterventionBlock.model_validate({"test": "intervention", "region": "head", "features": {"ids": [1]}})
    assert (one.mode, one.doses, one.n_controls, one.correction) == (("ablate",), ("p50", "p90", "p99"), 199, "holm")
    assert one.match == ("density", "size", "cosine")
    both = {"test": "joint_clamp", "region": "head", "features": {"a": {"ids": [1]}, "b": {"ids": [2]}}}
    assert JointClampBlock.model_validate(both).freeze == "downstream"
