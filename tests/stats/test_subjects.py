"""Seeds or models as subjects: exact flips, prevalence, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.stats.subjects import over_subjects, prevalence


def test_over_subjects_agrees_with_r(oracles):
    """Student's sleep as 10 subjects: t, its interval, and 4 of 1024 flips."""
    sleep = json.loads(oracles("signflip.json").read_text())["sleep"]["d"]
    row = over_subjects(pd.DataFrame({"sleep": sleep}), seed=0).iloc[0]
    assert row["value"] == pytest.approx(4.062128, abs=1e-6)
    assert row["p_unc"] == 4 / 1024
    assert row["p_corr"] == 4 / 1024
    assert row["effsize"] == pytest.approx(1.28455756259105)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_over_subjects_agrees_with_scipy(alternative):
    """All flips of 8 subjects, each measure by itself, and the largest of both over the same flips."""
    D = np.random.default_rng(0).standard_normal((8, 2)) + np.array([0.6, 0.2])
    table = over_subjects(pd.DataFrame(D, columns=["a", "b"]), alternative=alternative, seed=0)
    known = stats.permutation_test(
        (D,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", alternative=alternative, n_resamples=9999
    )
    assert_allclose(table["p_unc"], known.pvalue)
    assert_allclose(table["value"], stats.ttest_1samp(D, 0).statistic)
    assert (table["p_corr"] >= table["p_unc"]).all()
    signs = np.array([[1 - 2 * ((b >> i) & 1) for i in range(8)] for b in range(256)])
    t = np.stack([stats.ttest_1samp(signs * x, 0, axis=1).statistic for x in D.T], axis=1)
    t = {"two-sided": np.abs(t), "greater": t, "less": -t}[alternative]
    assert_allclose(table["p_corr"], [(t.max(axis=1) >= x - 1e-9).mean() for x in t[0]])


def test_over_subjects_refuses_five_seeds():
    """The smallest two-sided p of 5 subjects is 1/16."""
    with pytest.raises(DataError, match=r"0.0625. Use at least 6"):
        over_subjects(pd.DataFrame({"a": [1.0, 2, 3, 4, 5]}), seed=0)
    with pytest.raises(DataError, match="lacks a number"):
        over_subjects(pd.DataFrame({"a": [1.0, 2, 3, 4, 5, np.nan]}), seed=0)


def test_over_subjects_gives_equal_numbers_a_status():
    """No variance: no t, but still the exact p."""
    row = over_subjects(pd.DataFrame({"a": np.full(7, 2.0), "b": np.arange(7.0)}), seed=0).iloc[0]
    assert row["status"] == "degenerate"
    assert row["p_unc"] == 2 / 128
    assert np.isnan(row["value"])


def test_prevalence_agrees_with_all_pairings():
    """3 subjects x 4 relabellings: p_N over all 64 pairings, and the two formulas of the prevalence."""
    a = np.random.default_rng(1).random((3, 4, 2))
    a[:, 0] += 0.4
    table = prevalence(a, gamma0=0.0, alpha=0.3, seed=0)
    smallest = np.array([a[[0, 1, 2], [i, j, k]].min(axis=0) for i in range(4) for j in range(4) for k in range(4)])
    p = (smallest >= a[:, 0].min(axis=0) - 1e-12).mean(axis=0)
    top = (smallest.max(axis=1)[:, None] >= a[:, 0].min(axis=0) - 1e-12).mean(axis=0)
    assert table["n_perm"].iloc[0] == 64
    assert_allclose(table["x_p_global"], p)
    assert_allclose(table["p_unc"], p)  # gamma0 = 0 is the global null
    assert_allclose(table["p_corr"], top + (1 - top) * p)
    left = (0.3 - top) / (1 - top)
    known = (np.maximum(left, 0) ** (1 / 3) - p ** (1 / 3)) / (1 - p ** (1 / 3))
    assert_allclose(table["x_gamma_low"], np.where((left > 0) & (known >= 0), known, np.nan))


def test_prevalence_recovers_a_majority_and_controls_a_minority():
    """12 subjects: an effect in all of them exceeds one half; in a third of them it hardly ever does."""
    rng, hits = np.random.default_rng(2), 0
    a = rng.normal(0.5, 0.05, (12, 60, 1))
    everyone = a.copy()
    everyone[:, 0] += 0.3
    row = prevalence(everyone, n_permutations=2000, seed=3).iloc[0]
    assert row["p_unc"] <= 0.05
    assert 0.5 <= row["x_gamma_low"] <= 1
    for seed in range(15):
        some = rng.normal(0.5, 0.05, (12, 60, 1))
        some[:4, 0] += 0.3
        hits += prevalence(some, n_permutations=1000, alpha=0.06, seed=seed)["p_unc"].iloc[0] <= 0.06
    assert hits <= 3


def test_prevalence_refuses_too_few_pairings():
    """Five subjects and 1,000 pairings cannot exceed one half at .05."""
    with pytest.raises(DataError, match=r"cannot show a prevalence above 0\.5"):
        prevalence(np.random.default_rng(0).random((5, 50, 1)), n_permutations=1000, seed=0)
