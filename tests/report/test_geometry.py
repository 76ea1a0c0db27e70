"""Geometry on the page: figures, statements and methods of every kind, from made-up rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neurosae.report.figures import FIGURES
from neurosae.report.figures_geometry import agreement
from neurosae.report.geometry import GEOMETRY
from neurosae.report.sections import SECTIONS, methods_text, statements
from neurosae.spec.geometry import GEOMETRY as KINDS
from neurosae.spec.results import as_results
from neurosae.stats.model_comparison import compare_models

WHERE = {"test": "mine", "site": "late", "region": "head", "position": 0, "split": "test", "unit": "item"}
TESTED = {"p_adjust": "maxT", "p_method": "flips", "family": "all", "n_family": 2, "status": "ok", "n_units": 24}


def with_rows(study, **columns):
    return dataclasses.replace(study, results=as_results({**WHERE, **TESTED, **columns}))


def test_every_kind_of_geometry_has_a_section():
    """What YAML may name, the page can say."""
    assert set(GEOMETRY) == set(KINDS)
    assert set(KINDS) <= set(SECTIONS)


def test_second_order_says_its_range_and_its_chance_level(study):
    """From the least to the most alike, and how many pairs are above chance."""
    rows = {"kind": "second_order", "effect": ["a ~ b", "a ~ c", "a ~ b"], "stat": ["rho-a", "rho-a", "cka"],
            "set": ["1", "2", "3"], "value": [0.9, 0.1, 0.8], "ci_low": [0.8, 0.0, np.nan], "n_family": 1,
            "ci_high": [0.95, 0.3, np.nan], "p_corr": [np.nan, np.nan, 0.01], "p_unc": [np.nan, np.nan, 0.01],
            "x_first": ["a", "a", "a"], "x_second": ["b", "c", "b"]}  # fmt: skip
    other = with_rows(study, **rows)
    (said,) = statements(other)
    assert said.text.startswith(
        "Geometries of 2 pairs of places agree by rho-a from 0.100 (a ~ c) to 0.900 [0.800, 0.950]"
    )
    assert said.detail.startswith("1 of 1 comparisons by cka")
    assert len(agreement(other.results).axes) == 4  # two matrices, each with its scale


def test_second_order_says_what_was_permuted_and_why_not(study):
    """Tested measures are named; comparisons without p give the reason of their rows."""
    rows = {"kind": "second_order", "effect": ["a ~ b", "a ~ b"], "stat": ["corr_cov", "rho-a"], "value": [0.6, 0.5],
            "p_unc": [0.01, np.nan], "p_corr": [0.02, np.nan],
            "note": [None, "No p: 4 labels have too few permutations; at least 8."],
            "x_first": ["a", "a"], "x_second": ["b", "b"]}  # fmt: skip
    other = with_rows(study, **rows)
    (said,) = statements(other)
    assert "1 of 1 comparisons by corr cov are above chance" in said.detail
    assert "1 comparison without p: 4 labels have too few permutations; at least 8." in said.detail
    (methods,) = GEOMETRY["second_order"].methods(other, other.results)
    assert "p comes from permuting the conditions of the second place" in methods
    assert "whole items" not in methods


def test_shares_sets_and_courses_are_counted(study):
    """How many features or sets were found; shares add up; sets are compared with matched ones."""
    found = {
        "p_corr": [0.01, 0.4],
        "p_unc": [0.01, 0.2],
        "value": [3.0, 1.0],
        "estimate": [0.3, 0.1],
        "effect": "subject",
    }
    shares = with_rows(study, kind="feature_geometry", feature=[3, 4], n_features=1, x_share=[0.6, 0.1],
                       stat="phi_over_q", **found)  # fmt: skip
    (said,) = statements(shares)
    assert said.text.startswith("1 of 2 tested features carry the geometry of subject")
    assert "It has 0.600 of the whole share" in said.detail
    sets = with_rows(study, kind="searchlight", set=["feature 3", "feature 4"], n_features=25, x_p_control=[0.005, 0.5],
                     stat="D_c", **found)  # fmt: skip
    (said,) = statements(sets)
    assert "1 of 2 sets of features carry subject" in said.text
    assert "1 of them are longer than matched random sets" in said.detail
    courses = with_rows(study, kind="temporal_rsa", feature=[3, 4], n_features=1, stat="r", **found)
    assert statements(courses)[0].text.startswith("Courses of 1 of 2 tested features differ")
    for one in (shares, sets, courses):
        assert any("mine" in paragraph for paragraph in methods_text(one)[0])


def test_pairs_of_models_are_said_apart_from_models(study):
    """Differences are one statement, with what is equivalent; models another."""
    rng = np.random.default_rng(0)
    truth, other = rng.random((2, 66))
    data = truth + 0.3 * rng.standard_normal((8, 66))
    named = {"truth": truth, "other": other, "twin": truth + 0.001 * rng.random(66)}
    table = compare_models(data, named, n_draws=100, margin=0.2, seed=1).assign(
        test="mine", kind="rsa", site="late", region="head", position=0, split="test"
    )
    table = as_results({c: table[c] for c in table.columns})
    models, pairs = statements(dataclasses.replace(study, results=table))
    assert models.text.startswith("The geometry carries truth")
    assert "of 3 pairs of models differ in fit" in pairs.text
    assert "Equivalent within 0.200: truth - twin" in pairs.detail


@pytest.mark.parametrize("spread", [0.01, np.nan])
def test_planes_and_parts_are_drawn(spread):
    """A point per condition, with and without ellipses; a bar per part."""
    where = {"site": "late", "region": "head", "position": 0}
    table = pd.DataFrame({**where, "condition": ["a", "b", "c"], "x": [0.0, 1, 2], "y": [0.0, 1, 0], "share": 0.9,
                          "xx": spread, "xy": 0.0, "yy": spread})  # fmt: skip
    axes = FIGURES["plane"](table).axes[0]
    assert len(axes.patches) == (3 if spread == 0.01 else 0)
    assert {t.get_text() for t in axes.texts} == {"a", "b", "c"}
    parts = pd.DataFrame({**where, "models": ["a", "b", "a & b"], "n_models": [1, 1, 2], "part": [0.4, 0.2, -0.1],
                          "ceiling": 0.8})  # fmt: skip
    assert len(FIGURES["parts"](parts).axes[0].patches) == 3
