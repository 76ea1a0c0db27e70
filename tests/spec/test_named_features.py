"""Features named by their indices, and sites made of directions: what `check` refuses."""

from __future__ import annotations

import pytest

from neurosae.errors import SpecError

OLD = "features: {from: find_number, top: 10}"


def test_named_features_load(edited):
    """By site, or as a list where the test has one site."""
    made = edited("analyses/number_agreement", OLD, "sites: [late], features: {ids: [12, 40]}")
    assert made.tests["chosen"].features.at("late") == (12, 40)
    made = edited("analyses/number_agreement", "sites: [late], features: {ids: [12, 40]}",
                  "sites: [late], features: {ids: {late: [12]}}")  # fmt: skip
    assert made.tests["chosen"].features.at("late") == (12,)


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("features: {ids: [12, 40]}", "there are several sites"),
        ("features: {ids: {late: [12]}}", "names no features at site 'early'"),
        ("features: {ids: {latte: [12]}}", "unknown site 'latte'. Did you mean 'late'"),
        ("features: {ids: {late: [12]}, top: 3}", "belongs to `from`"),
        ("features: {ids: {late: [-1]}}", "0"),
    ],
)
def test_named_features_refuses(edited, new, said):
    """With the line of the test."""
    with pytest.raises(SpecError, match=rf"tests\.chosen.*{said}"):
        edited("analyses/number_agreement", OLD, new)


def test_vectors_of_a_site_load(edited, study):
    """A path beside the analysis; beside another source it is refused."""
    made = edited("analyses/number_agreement", "{embedded: early}", "{vectors: ../probe.csv}")
    assert made.sites["early"].dictionary.vectors == str(study / "probe.csv")
    with pytest.raises(SpecError, match="exactly one of"):
        edited("analyses/number_agreement", "{vectors: ../probe.csv}", "{vectors: ../probe.csv, neurons: true}")
