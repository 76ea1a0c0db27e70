"""Effect sizes and intervals against scipy, pingouin, and sums done by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pingouin
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.stats.effects import Pairs, group_effects, hedges_j, paired_effects, placements


def pairs_of(plus, minus):
    return Pairs(plus - minus, plus, minus, (plus > 0).astype(float), (minus > 0).astype(float))


def test_paired_effects_agree_with_sums_by_hand():
    """Four items: (2, 1) (4, 0) (0, 3) (0, 0), so d = 1 4 -3 0; one fires on + only, one on - only, one on both."""
    plus, minus = np.array([[2.0], [4.0], [0.0], [0.0]]), np.array([[1.0], [0.0], [3.0], [0.0]])
    row = paired_effects(pairs_of(plus, minus)).iloc[0]
    assert row["estimate"] == 0.5
    assert (row["x_density_plus"], row["x_density_minus"], row["x_density_diff"]) == (0.5, 0.5, 0.0)
    assert row["x_odds_ratio"] == 1.0
    assert row["x_auc"] == 0.5 + 0.5 * 0.25
    assert row["x_sign_prob"] == pytest.approx(2 / 3)
    assert np.isnan(row["x_log_ratio"])  # both fire in one item only


def test_paired_effects_agree_with_scipy_and_pingouin():
    """Standard error and interval of the paired t test; g is d_z times Hedges' factor."""
    rng = np.random.default_rng(0)
    plus, minus = np.exp(rng.standard_normal((18, 5)) + 0.5), np.exp(rng.standard_normal((18, 5)))
    table = paired_effects(pairs_of(plus, minus))
    known = stats.ttest_rel(plus, minus)
    assert_allclose(table["estimate"] / table["se"], known.statistic, rtol=1e-12)
    assert_allclose(table["ci_high"], known.confidence_interval().high, rtol=1e-12)
    assert_allclose(table["x_log_ratio"], np.log(plus / minus).mean(axis=0), rtol=1e-12)
    assert_allclose(table["x_g"], table["effsize"] * hedges_j(17), rtol=1e-12)


def test_group_effects_agree_with_pingouin():
    """Cohen's d and the pooled interval of two groups."""
    y = np.random.default_rng(1).standard_normal((20, 1)) + np.repeat([0.0, 1.0], 10)[:, None]
    codes, weights = np.repeat([0, 1], 10), np.array([-1.0, 1.0])
    row = group_effects(y, (y > 0).astype(float), codes=codes, weights=weights, separate=False).iloc[0]
    plus, minus = y[codes == 1, 0], y[codes == 0, 0]
    assert row["effsize"] == pytest.approx(pingouin.compute_effsize(plus, minus, eftype="cohen"), rel=1e-10)
    known = stats.ttest_ind(plus, minus).confidence_interval()
    assert_allclose([row["ci_low"], row["ci_high"]], [known.low, known.high], rtol=1e-10)


def test_paired_effects_agree_with_r(oracles):
    """Student's sleep: d_z, Hedges' factor, g_z, interval, sign probability."""
    known = json.loads(oracles("power_tost_effects.json").read_text())["sleep"]
    d = np.array(json.loads(oracles("signflip.json").read_text())["sleep"]["d"], dtype=float)[:, None]
    row = paired_effects(pairs_of(d + 1, np.ones_like(d))).iloc[0]
    assert hedges_j(9) == pytest.approx(known["hedges_correction_J_df9"], rel=1e-12)
    assert (row["effsize"], row["x_g"]) == pytest.approx((known["d_z"], known["g_z"]), rel=1e-10)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(known["ci_mean_95"], rel=1e-10)
    assert row["x_sign_prob"] == known["P_positive_given_nonzero"]


def test_effects_invariant_to_mirroring():
    """Exchanging + and - turns every signed size around."""
    rng = np.random.default_rng(3)
    plus, minus = np.maximum(rng.standard_normal((15, 4)), 0), np.maximum(rng.standard_normal((15, 4)), 0)
    one, other = paired_effects(pairs_of(plus, minus)), paired_effects(pairs_of(minus, plus))
    for name in ("estimate", "effsize", "x_g", "x_density_diff"):
        assert_allclose(one[name], -other[name])
    assert_allclose(one["x_auc"], 1 - other["x_auc"])


def test_a_constant_difference_has_no_spread():
    """0.1 three times is not exactly constant in floating point; its standard error is 0 all the same."""
    row = paired_effects(pairs_of(np.array([[0.3], [0.5], [0.7]]), np.array([[0.2], [0.4], [0.6]]))).iloc[0]
    assert row["se"] == 0
    assert np.isnan(row["effsize"])


def test_auc_between_items_agrees_with_scipy():
    """Mann and Whitney's U over the number of pairs, with ties, unequal groups and many zeros."""
    rng = np.random.default_rng(5)
    y = np.maximum(np.round(rng.standard_normal((17, 6)), 1), 0)
    codes, weights = np.repeat([0, 1], [7, 10]), np.array([-1.0, 1.0])
    table = group_effects(y, (y > 0).astype(float), codes=codes, weights=weights, separate=True)
    known = stats.mannwhitneyu(y[codes == 1], y[codes == 0]).statistic / 70
    assert_allclose(table["x_auc"], known, rtol=1e-12)
    assert_allclose(table["x_auc"], [placements(y[7:, j], y[:7, j]).mean() for j in range(6)], rtol=1e-12)


def test_paired_auc_and_odds_ratio_agree_with_pingouin():
    """The paired AUC is pingouin's CLES of every item with itself; b / c is McNemar's odds ratio."""
    rng = np.random.default_rng(6)
    plus, minus = (np.maximum(np.round(rng.standard_normal((40, 3)) + s, 1), 0) for s in (0.4, 0.0))
    table = paired_effects(pairs_of(plus, minus))
    for j in range(3):
        each = [pingouin.compute_effsize(plus[i, [j, j]], minus[i, [j, j]], eftype="CLES") for i in range(40)]
        assert table["x_auc"][j] == pytest.approx(np.mean(each))
        counts, _ = pingouin.chi2_mcnemar(pd.DataFrame({"a": plus[:, j] > 0, "b": minus[:, j] > 0}), "a", "b")
        b, c = np.asarray(counts)[1, 0], np.asarray(counts)[0, 1]
        assert table["x_odds_ratio"][j] == pytest.approx(b / c)
        both = (plus[:, j] > 0) & (minus[:, j] > 0)
        assert table["x_log_ratio"][j] == pytest.approx(np.log(plus[both, j] / minus[both, j]).mean())


def test_hedges_factor_agrees_with_pingouin():
    """The exact factor, against pingouin's approximation 1 - 3 / (4 df - 1)."""
    x, y = np.random.default_rng(7).standard_normal((2, 40))
    ratio = pingouin.compute_effsize(x, y, eftype="hedges") / pingouin.compute_effsize(x, y, eftype="cohen")
    assert hedges_j(78) == pytest.approx(ratio, abs=2e-5)
