"""Corrections against R, their monotony, and the Monte-Carlo interval."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from statsmodels.stats.multitest import multipletests

from neurosae.spec.results import as_results
from neurosae.stats.contrast import contrast
from neurosae.stats.multiplicity import (
    bb,
    fdr_bh,
    fdr_by,
    holm,
    holm_over_contrasts,
    monte_carlo_interval,
    none,
    null_share,
    step_down,
    storey,
)
from neurosae.stats.simulate import example_design, simulate


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


def test_storey_agrees_with_qvalue(oracles):
    """R's qvalue with lambda = .5: pi0 and every q."""
    known = json.loads(oracles("multiplicity.json").read_text())["two_hundred"]
    many = np.loadtxt(oracles("inputs/mult_p.csv"), delimiter=",")
    assert null_share(many) == pytest.approx(known["pi0_lambda_half"], abs=1e-12)
    assert_allclose(storey(many), known["qvalue_lambda_half"], rtol=0, atol=1e-12)


def test_storey_agrees_with_bh_where_all_are_null():
    """pi0 is at most 1, never 0, and takes no p that is missing."""
    p = np.random.default_rng(1).uniform(0.5, 1, 50)
    assert_allclose(storey(p), fdr_bh(p))
    assert_allclose(storey(np.array([0.01, 0.02, np.nan])), np.array([0.01, 0.01, np.nan]))


def test_bb_agrees_with_r(oracles):
    """Six families: Simes p, the selected families, and 24 rejections inside them at level .025."""
    known = json.loads(oracles("multiplicity.json").read_text())["benjamini_bogomolov"]
    family, p = np.loadtxt(oracles("inputs/mult_fam.csv"), delimiter=",").T
    found = bb(p, family)
    each = np.array([found.p_family[family == f][0] for f in range(1, 7)])
    assert_allclose(each, known["simes"], atol=1e-9)
    assert np.unique(family[found.selected]).tolist() == known["selected_families"]
    assert (np.flatnonzero(found.p <= 0.05) + 1).tolist() == known["rejected_rows_1based"]


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3])
def test_bb_agrees_with_its_two_steps(alpha):
    """p <= alpha is BH over Simes p, then BH inside the R selected families at alpha R / L, at every alpha."""
    rng = np.random.default_rng(2)
    family = np.repeat(np.arange(8), 25)
    p = rng.random(200) ** np.where(family < 3, 3, 1)
    each = np.array([multipletests(p[family == f], method="fdr_bh")[1].min() for f in range(8)])
    selected = multipletests(each, method="fdr_bh")[1] <= alpha
    inside = np.concatenate([multipletests(p[family == f], method="fdr_bh")[1] for f in range(8)])
    decided = selected[family] & (inside <= alpha * selected.sum() / 8)
    found = bb(p, family, alpha=alpha)
    assert ((found.p <= alpha) == decided).all()
    assert (found.selected == selected[family]).all()
    assert not (decided == (selected[family] & (inside <= alpha))).all() or alpha == 0.01


def test_bb_invariant_to_order_and_missing_p():
    """Untested features and families without a tested feature are no members; one family alone is BH."""
    rng = np.random.default_rng(3)
    p, family = rng.random(60) ** 2, np.repeat(["a", "b", "c"], 20)
    order = rng.permutation(60)
    assert_allclose(bb(p[order], family[order]).p, bb(p, family).p[order])
    assert_allclose(bb(p[:20], family[:20]).p, fdr_bh(p[:20]))
    longer = bb(np.append(p, [np.nan, np.nan]), np.append(family, ["a", "d"]))
    assert_allclose(longer.p[:60], bb(p, family).p)
    assert np.isnan(longer.p[60:]).all()


def test_holm_over_contrasts_agrees_with_holm():
    """One row per family, its smallest corrected p adjusted over the families."""
    rows = {"test": ["a", "a", "b", "c"], "effect": ["x", "y", "x", "x"], "family": ["ab", "ab", "b", "c"]}
    rows |= {"n_family": [2, 2, 1, 1], "p_adjust": "maxT", "p_corr": [0.02, 0.3, 0.04, 0.5]}
    table = holm_over_contrasts(as_results(rows))
    assert_allclose(table["p_holm"], holm(np.array([0.02, 0.04, 0.5])))
    assert table["effects"].tolist() == ["x, y", "x", "x"]
    assert table["h0"].str.contains("at least one").all()


def test_bb_says_nothing_of_untested_features():
    """Selection of the site is a statement about tested features; untestable and dead ones have none."""
    fake = simulate(example_design(20), n_features=40, effects={"number": 3}, density=(0.01, 0.4), shift=5.0, seed=2)
    table = contrast(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", inference={"correction": "bb"}, seed=1)
    tested = table["p_unc"].notna()
    assert (table["x_selected"].notna() == tested).all()
    assert table.loc[tested, "x_selected"].all()
    assert table.loc[tested, "x_p_family"].nunique() == 1
    assert (~tested).any()
