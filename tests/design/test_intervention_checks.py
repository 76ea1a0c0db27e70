"""What `check` says of interventions: units, flips, controls, smallest p, cost; and not what is true of contrasts."""

from __future__ import annotations

import re

import pytest

from neurosae.causal.changes import doses_asked, doses_run
from neurosae.design.checks import check
from neurosae.design.intervention_checks import intervention_lines, n_claims
from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.design import load_design
from tests.spec.conftest import WITHIN

BASE = """\
schema: neurosae/analysis/1
name: causal
design: design.yaml
model: {name: embedded}
sites: {late: {hook: blocks.1.hook_resid_post, dictionary: {embedded: early}}}
positions: {regions: [head, local], tokens: last}
effects:
  subject:    {subject: {pl: 1, sg: -1}}
  attractor:  {attractor: {pl: 1, sg: -1}}
tests:
  find: {test: contrast, effect: subject, region: head, split: localizer}
"""
ITEM = (
    "head: {sg: key#, pl: keys#}, prep: to, local: {sg: box#, pl: boxes#}, rel: {sg: has, pl: have}, "
    "verb: {sg: is, pl: are}"
)


def analysed(tmp_path, *lines, n_items=26):
    head, _, _ = WITHIN.partition("items:")
    items = "".join(f"  i{k}: {{{ITEM.replace('#', str(k))}}}\n" for k in range(n_items))
    (tmp_path / "design.yaml").write_text(f"{head}items:\n{items}", encoding="utf-8")
    path = tmp_path / "analysis.yaml"
    path.write_text(BASE + "".join(f"  {line}\n" for line in lines), encoding="utf-8")
    return path, load_analysis(path)


def checked(tmp_path, *lines, n_items=26):
    path, spec = analysed(tmp_path, *lines, n_items=n_items)
    return check(load_design(spec.design), spec, path=path)


def test_interventions_say_what_both_p_can_reach(tmp_path):
    """24 test items, 99 sets, three claims: 2^-23 over items, .01 among controls, .03 after Holm."""
    line = "x: {test: intervention, region: head, features: {from: find, top: 4}, effect: [subject, attractor], n_controls: 99}"  # noqa: E501
    report = checked(tmp_path, line)
    said = report.interventions["x"]
    for words in ("24 test items", "sign-flipped", "p over items can reach 1.2e-07", "99 matched control sets",
                  "matched on density, size, cosine", "reach 0.01",
                  "Holm over 3 claims: the smallest can reach 0.03",
                  "100 conditions x 192 texts = 19,200 rows", "exchangeable within items"):  # fmt: skip
        assert words in said
    assert " ".join(said.split()) in " ".join(report.text().split())


def test_what_is_true_of_contrasts_is_not_said_of_interventions(tmp_path):
    """Texts that do not differ up to the region, mean activity of the rest, corrections over features."""
    line = "{test: %s, region: head, features: {from: find, top: 4}, effect: attractor}"
    as_contrast = checked(tmp_path, "x: {test: contrast, effect: attractor, region: head}").text()
    as_edit = checked(tmp_path, f"x: {line % 'intervention'}").text()
    for words in ("have the same text up to the end of 'head'", "24 test items: 2^24 = 16,777,216 relabellings"):
        assert words in " ".join(as_contrast.split())
        assert words not in " ".join(as_edit.split())
    as_set = checked(tmp_path, f"x: {line % 'roi'}").text()
    assert "still differ in mean activity" in " ".join(as_set.split())
    assert "mean activity" not in as_edit


@pytest.mark.parametrize("mode", ["ablate", "clamp", "conditional", "scale", "steer"])
@pytest.mark.parametrize("doses", [[2.0], [0.5, 2.0], [0.0, 1.0, 2.0]])
def test_the_cost_is_that_of_the_run(tmp_path, mode, doses):
    """Conditions are those that the test will run, whatever the mode and its base."""
    given = "" if mode == "ablate" else f", doses: {doses}"
    line = f"x: {{test: intervention, region: head, mode: {mode}, features: {{ids: [1]}}, n_controls: 120{given}}}"
    _, spec = analysed(tmp_path, line)
    block = spec.tests["x"]
    n = 121 * len(doses_run(mode, doses_asked(block, mode)[1]))
    assert f"{n:,} conditions x 192 texts" in checked(tmp_path, line).interventions["x"]


def test_too_many_claims_for_the_controls_are_warned_of(tmp_path):
    """Twenty single features are twenty claims: 99 controls reach .2 after Holm, 399 are needed."""
    line = "x: {test: intervention, region: head, features: {from: find, top: 20}, per: feature, n_controls: %d}"
    (warned,) = [w for w in checked(tmp_path, line % 99).warnings if w.startswith("x:")]
    assert "20 claims and 99 controls" in warned
    assert "smallest p is 0.2" in warned
    assert "n_controls: 399" in warned
    assert not [w for w in checked(tmp_path, line % 399).warnings if w.startswith("x:")]
    doubled = "x: {test: intervention, region: head, features: {ids: [1]}, n_controls: 99, mode: [ablate, clamp, steer], correction: maxT}"  # noqa: E501
    assert "maxT the smallest p is 0.06" in " ".join(checked(tmp_path, doubled).warnings)


def test_claims_are_counted(tmp_path):
    """Modes x contrasts x regions x sites; directions of a joint clamp."""
    _, spec = analysed(
        tmp_path,
        "x: {test: intervention, region: [head, local], features: {ids: [1]}, mode: [ablate, clamp], effect: subject}",
        "y: {test: joint_clamp, region: head, features: {a: {ids: [1]}, b: {ids: [2]}}}",
        "z: {test: intervention, region: head, features: {ids: [1, 2, 3]}, per: feature}",
    )
    assert [n_claims(spec.tests[name], spec) for name in "xyz"] == [8, 2, 3]


def test_few_items_are_refused_with_their_line(tmp_path):
    """Five test items reach no p of .05; said before a model is loaded, at the levels that are kept."""
    line = "x: {test: %s, region: head, %s}"
    for kind, rest in (
        ("intervention", "features: {ids: [1]}"),
        ("patching", "between: {subject: [pl, sg]}, hooks: blocks.*.hook_resid_post"),
    ):
        with pytest.raises(
            SpecError, match=re.escape("5 test items have region 'head'; sign flips of 5 reach p 0.062")
        ) as error:
            checked(tmp_path, line % (kind, rest), n_items=7)
        assert "analysis.yaml:12" in str(error.value)


def test_joint_clamps_and_grids(tmp_path):
    """Pairs and the largest of all parts; a grid has no controls; three sets are exploratory."""
    report = checked(
        tmp_path,
        "y: {test: joint_clamp, region: head, features: {a: {ids: [1]}, b: {ids: [2]}}, controls: directions}",
        "p: {test: patching, region: head, between: {subject: [pl, sg]}, hooks: blocks.*.hook_resid_post}",
        "s: {test: joint_clamp, region: head, features: {a: {ids: [1]}, b: {ids: [2]}, c: {ids: [3]}}}",
    )
    said = report.interventions
    assert "99 matched pairs of control sets of directions as long as the edit" in said["y"]
    assert "Holm over 2 claims: the smallest can reach 0.02" in said["y"]
    assert "largest |t| over the grid; no controls" in said["p"]
    assert "exploratory" in said["s"]
    assert not list(intervention_lines(load_design(analysed(tmp_path)[1].design), None, analysed(tmp_path)[1]))
