"""Kinds of tests and their sections: the known ones, one without an entry, one that a user adds."""

from __future__ import annotations

import dataclasses

from neurosae.report.sections import CONTRAST, OTHER, SECTIONS, draw_study, methods_text, section_of, statements
from neurosae.spec.results import as_results


def other_study(study, **columns):
    """The study with a single test of a kind that has no section."""
    row = {"test": "mine", "kind": "mine", "effect": "subject", "site": "late", "region": "head", "split": "test",
           "set": ["a", "b", "c"], "n_features": 20, "stat": "D", "value": [4.0, 1.0, 0.5], "estimate": [1.0, 0.2, 0.1],
           "p_unc": [0.001, 0.2, 0.5], "p_corr": [0.003, 0.4, 0.9], "p_adjust": "maxT", "p_method": "flips",
           "family": "all sets", "n_family": 3, "unit": "item", "n_units": 24, "status": "ok", **columns}  # fmt: skip
    return dataclasses.replace(study, results=as_results(row))


def test_a_kind_without_a_section_is_counted_and_described(study):
    """Rows without features: how many were found, where, how corrected; and a sentence for the methods."""
    other = other_study(study)
    (said,) = statements(other)
    assert section_of(other.results) is OTHER
    assert (said.verdict, said.number) == ("found", "1")
    assert said.text == "1 of 3 tested rows found for subject at head in late."
    assert "max-T" in said.detail
    assert "late/a at head" in said.detail
    assert any("mine: D, unit of replication item" in p for p in methods_text(other)[0])
    assert {d.kind for d in draw_study(other)} == {"weights", "training"}


def test_a_kind_of_features_without_a_section_is_shown_as_a_contrast(study):
    """A user's own test of features has its volcano."""
    rows = study.results[study.results["test"] == "interference"].assign(kind="mine").astype({"kind": "string"})
    own = dataclasses.replace(study, results=rows)
    assert section_of(rows) is CONTRAST
    assert "volcano" in {d.kind for d in draw_study(own)}


def test_every_kind_has_one_section():
    """What the registry names is what the page asks."""
    assert SECTIONS["contrast"] is CONTRAST
    assert set(SECTIONS) >= {"contrast", "rsa"}
