"""Features chosen by another effect: refused where it shares evidence, with a caution where it does not."""

from __future__ import annotations

import pytest

from neurosae.design.checks import check
from neurosae.design.orthogonal import inner_product
from neurosae.design.weights import compile_effect
from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.design import load_design

DESIGN = """
schema: neurosae/design/1
name: two
factors: {a: [x, y], b: [x, y]}
frames: {f: "{u:a} {w:b} here"}
regions: {end: {words: [-1, -1]}}
partition: {localizer: 8, seed: 1}
items:
""" + "\n".join(f"  i{k}: {{u: {{x: p{k}, y: q{k}}}, w: {{x: r{k}, y: s{k}}}}}" for k in range(24))
ANALYSIS = """
schema: neurosae/analysis/1
name: two
design: design.yaml
model: {name: embedded}
sites: {late: {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}}
effects:
  a: {a: {y: 1, x: -1}}
  b: {b: {y: 1, x: -1}}
  a_given_y: {a: {y: 1, x: -1}, b: {y: 1}}
tests:
  find: {test: contrast, effect: a, region: end, split: localizer}
"""


@pytest.fixture
def study(tmp_path):
    """A function from the line of one more test to its design, its analysis and the analysis' path."""

    def write(test: str):
        (tmp_path / "design.yaml").write_text(DESIGN)
        path = tmp_path / "analysis.yaml"
        path.write_text(ANALYSIS + test)
        return load_design(tmp_path / "design.yaml"), load_analysis(path), path

    return write


def test_inner_product_agrees_with_the_design_matrix(study):
    """c1'(X'X)^-1 c2 with X the indicators of the cells, written out."""
    import numpy as np

    design, analysis, _ = study("")
    one, two = (compile_effect(design, analysis.effects[name]) for name in ("a", "a_given_y"))
    n = {cell: 2.0 + k for k, cell in enumerate(one.cells)}
    X = np.repeat(np.eye(4), [2, 3, 4, 5], axis=0)
    assert inner_product(one, two, n) == pytest.approx(one.weights @ np.linalg.inv(X.T @ X) @ two.weights)
    assert inner_product(one, compile_effect(design, analysis.effects["b"]), dict.fromkeys(one.cells, 24)) == 0


def test_check_cautions_where_the_choice_is_orthogonal(study):
    """Allowed, and still said: equal covariance is an assumption."""
    design, analysis, path = study("  roi: {test: roi, effect: b, region: end, features: {orthogonal: a, top: 10}}\n")
    assert any("refute but not prove" in warning for warning in check(design, analysis, path=path).warnings)


def test_check_refuses_a_choice_that_shares_evidence(study):
    """The line, the number, and two ways that would do."""
    test = "  roi: {test: roi, effect: a_given_y, region: end, features: {orthogonal: a, top: 10}}\n"
    design, analysis, path = study(test)
    with pytest.raises(SpecError, match=r"analysis.yaml:13: tests.roi.features: 'a' is not orthogonal to 'a_given_y'"):
        check(design, analysis, path=path)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("{from: find, top: 5}", None),
        ("{cross_fit: {top: 5}}", None),
        ("{clusters: decoder, n: 5}", None),
        ("{clusters: coactivation}", None),
        ("{all: true}", None),
        ("{orthogonal: a, top: 5}", "13: tests.roi.features: would choose features by 'a' and test them for it"),
        ("{orthogonal: c, top: 5}", "13: tests.roi.features: uses effect 'c', which is not under `effects:`"),
        ("{from: lost, top: 5}", "13: tests.roi.features: unknown contrast test 'lost'"),
        ("{from: find}", "13: tests.roi.features.top: is missing"),
        ("{cross_fit: {top: 5}, all: true}", "13: tests.roi.features: names cross_fit and all"),
        ("{cross_fit: {folds: 1, top: 5}}", "13: tests.roi.features.cross_fit.folds"),
        ("{clusters: decoder, top: 5}", "13: tests.roi.features.top: has no meaning with clusters"),
        ("{all: true, n: 5}", "13: tests.roi.features.n: has no meaning with all"),
        ("{all: true, direction: plus}", "13: tests.roi.features.direction: has no meaning with all"),
        ("{}", "13: tests.roi.features: names no way to choose"),
    ],
)
def test_analysis_refuses_choices_by_file_and_line(study, features, message):
    """Every way parses; what means nothing, or would choose by the tested items, is refused before anything runs."""
    test = f"  roi: {{test: roi, effect: a, region: end, features: {features}}}\n"
    if message is None:
        assert study(test)[1].tests["roi"].test == "roi"
    else:
        with pytest.raises(SpecError, match=message):
            study(test)


def test_analysis_refuses_a_choice_on_the_tested_items(study):
    """A localizer test may not be tested on localizer items; ranks cannot be chosen anew in every relabelling."""
    features = "features: {from: find, top: 5}"
    with pytest.raises(SpecError, match=r"would choose features and test them on the same items \(split: localizer\)"):
        study(f"  roi: {{test: roi, effect: a, region: end, split: localizer, {features}}}\n")
    features = "statistic: signed_rank, features: {cross_fit: {top: 5}}"
    with pytest.raises(SpecError, match="for moderated_t, t, mean only, not signed_rank"):
        study(f"  roi: {{test: roi, effect: a, region: end, {features}}}\n")
