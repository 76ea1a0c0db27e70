"""Corrections against R, their monotony, and the Monte-Carlo interval."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from statsmodels.stats.multitest import multipletests

from neurosae.stats.multiplicity import fdr_bh, fdr_by, holm, monte_carlo_interval, none, step_down


@pytest.mark.parametrize(("correct", "name"), [(holm, "holm"), (fdr_bh, "BH"), (fdr_by, "BY")])
def test_corrections_agree_with_r(oracles, correct, name):
    """Benjamini and Hochberg's 15 p-values and 200 others."""
    known = json.loads(oracles("multiplicity.json").read_text())
    many = np.loadtxt(oracles("inputs/mult_p.csv"), delimiter=",")
    assert_allclose(correct(np.array(known["bh1995"]["p"])), known["bh1995"]["adjusted"][name], rtol=0, atol=1e-12)
    assert_allclose(correct(many), known["two_hundred"]["adjusted"][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("correct", "name"), [(holm, "holm"), (fdr_bh, "fdr_bh"), (fdr_by, "fdr_by")])
def test_corrections_agree_with_statsmodels(correct, name):
    """Live, with ties."""
    p = np.round(np.random.default_rng(0).random(300) ** 3, 3) + 1e-4
    assert_allclose(correct(p), multipletests(p, method=name)[1], atol=1e-12)


def test_corrections_invariant_to_missing_p():
    """A p that could not be computed is no member of the family."""
    p = np.array([0.01, np.nan, 0.02, 0.5])
    for correct in (holm, fdr_bh, fdr_by):
        assert_allclose(correct(p)[[0, 2, 3]], correct(p[[0, 2, 3]]))
        assert np.isnan(correct(p)[1])
    assert np.isnan(none(p)).all()


def test_step_down_invariant_to_feature_order():
    """Shares become monotone along the observed size, wherever the features stand."""
    reached, size = np.array([5, 40, 3, 90]), np.array([4.0, 2.0, 5.0, 1.0])
    order = [2, 0, 3, 1]
    assert_allclose(step_down(reached[order], size[order], 100), step_down(reached, size, 100)[order])
    assert_allclose(step_down(np.array([9, 4]), np.array([5.0, 4.0]), 100), [0.09, 0.09])


def test_monte_carlo_interval_agrees_with_scipy():
    """Clopper and Pearson's interval of the count behind p."""
    low, high = monte_carlo_interval(np.array([0.031, 1.0]), 1000)
    known = stats.binomtest(31, 1000).proportion_ci()
    assert_allclose([low[0], high[0], high[1]], [known.low, known.high, 1.0])
