"""Sentences on conjunctions and combinations: all of, at least one of, and never an interaction."""

from __future__ import annotations

import dataclasses

import pytest

from neurosae.report.sections import methods_text, statements
from neurosae.spec.results import as_results

ROW = {
    "test": "mine", "site": "late", "region": "head", "position": 0, "split": "test", "n_features": 1,
    "stat": "fisher", "estimate": 1.0, "p_adjust": "maxT", "p_method": "flips", "family": "all", "n_family": 3,
    "unit": "item", "n_units": 24, "n_perm": 500, "status": "ok", "value": [4.0, 1.0, 0.5], "p_unc": [0.001, 0.2, 0.5],
    "feature": [3, 4, 5],
}  # fmt: skip


def said_of(study, **columns):
    """The one statement, and the methods, of a study with one joint test."""
    other = dataclasses.replace(study, results=as_results(ROW | columns))
    (said,) = statements(other)
    return said, " ".join(methods_text(other)[0])


@pytest.mark.parametrize(
    ("p", "number", "verdict"), [([0.003, 0.4, 0.9], "1 of", "found"), ([0.3, 0.4, 0.9], "None of", "nothing")]
)
def test_a_conjunction_claims_all_effects(study, *, p, number, verdict):
    """Both effects are named, and the caution speaks of no interaction."""
    h0 = "at least one of the effects subject, attractor is absent"
    said, methods = said_of(study, kind="conjunction", effect="subject & attractor", h0=h0, p_corr=p)
    assert said.text == f"{number} 3 tested features is found to respond to both subject and attractor at head in late."
    assert said.verdict == verdict
    assert "nothing is said about their interaction" in said.cautions[0]
    assert "minimum statistic" in methods
    assert h0 in methods


def test_a_combination_claims_at_least_one_part(study):
    """The parts are named, and the claim is about at least one of them."""
    h0 = "no difference in any of the regions head, verb; rejected: at least one"
    said, methods = said_of(study, kind="combination", effect="subject", h0=h0, p_corr=[0.003, 0.01, 0.9])
    assert said.text == "2 of 3 tested features are found to differ in at least one of the regions head, verb in late."
    assert "not which" in said.cautions[0]
    assert "combined inside every relabelling" in methods


def test_one_row_for_all_features_speaks_of_at_least_one(study):
    """Over sites nothing is said about a single feature."""
    one = {name: values[0] if isinstance(values, list) else values for name, values in ROW.items()}
    h0 = "no feature differs at any of the sites early, late; rejected: at least one"
    rows = one | {
        "kind": "combination",
        "effect": "subject",
        "feature": None,
        "h0": h0,
        "p_corr": 0.01,
        "n_features": 40,
    }
    other = dataclasses.replace(study, results=as_results(rows, n_rows=1))
    (said,) = statements(other)
    assert (
        said.text == "At least one of 40 tested features is found to differ in at least one of the sites early, late."
    )
