"""Item tables: units, flips, ranks, slopes, equivalence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.causal.inference import (
    claim_p,
    item_slopes,
    item_tests,
    no_effect,
    over_items_and_features,
    rank_p,
    without_rounding,
)
from neurosae.causal.items import item_outcomes, unit_data
from neurosae.design.expand import expand
from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.crossed import min_f
from neurosae.stats.simulate import example_design


def changes(n=12, m=5, *, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, m)) + shift


def test_item_tests_agree_with_the_paired_t():
    """Statistic, standard error and interval are scipy's, computed live."""
    D = changes()
    made, theirs = item_tests(D, np.arange(12), seed=1), stats.ttest_1samp(D, 0)
    assert_allclose(made.t, theirs.statistic)
    interval = theirs.confidence_interval()
    assert_allclose([made.low, made.high], [interval.low, interval.high])
    assert_allclose(made.d_z, made.t / np.sqrt(12))


def test_exact_p_is_the_count_of_all_flips():
    """Brute force over the 2^8 sign vectors; max-T over the columns too."""
    D = changes(8, 3, shift=0.6)
    S = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    sums = np.abs(S @ D)
    made = item_tests(D, np.arange(8), seed=1)
    assert_allclose(made.p, (sums >= np.abs(D.sum(axis=0)) - 1e-9).mean(axis=0))
    mean = S @ D / 8
    t = np.abs(mean) / np.sqrt((np.mean(D**2, axis=0) - mean**2) / 7)
    assert_allclose(made.p_corr, [(t.max(axis=1) >= x - 1e-9).mean() for x in t[0]])


def test_item_tests_hold_their_level():
    """Null data, 300 sets: single and family-wise rejections stay inside the binomial 99.9 % band."""
    found = [item_tests(changes(10, 4, seed=s), np.arange(10), n_permutations=256, seed=s) for s in range(300)]
    low, high = stats.binom.interval(0.999, 300, 0.05)
    assert low <= sum(f.p[0] <= 0.05 for f in found) <= high
    assert low <= sum(f.p_corr.min() <= 0.05 for f in found) <= high


def test_columns_without_change_have_no_p():
    """An edit that changes nothing is no p of 1, and does not enter the maximum."""
    D = changes(shift=2.0)
    D[:, 2] = 0
    made = item_tests(D, np.arange(12), seed=1)
    assert np.isnan(made.p[2])
    assert np.isnan(made.p_corr[2])
    assert made.informative[2] == 0
    assert_allclose(np.delete(made.p_corr, 2), item_tests(np.delete(D, 2, axis=1), np.arange(12), seed=1).p_corr)


def test_flips_are_those_of_the_design():
    """The numbers of the items decide the flips: the order of the rows does not."""
    D, order = changes(30, 3, shift=0.3), np.random.default_rng(1).permutation(30)
    made = item_tests(D, np.arange(30), n_permutations=500, seed=4)
    assert_allclose(item_tests(D[order], np.arange(30)[order], n_permutations=500, seed=4).p_corr, made.p_corr)


def test_few_items_are_refused():
    """Five items cannot reach .05."""
    with pytest.raises(DataError, match="at least 6"):
        item_tests(changes(5), np.arange(5), seed=0)


def test_rank_counts_both_directions_and_ties():
    """As extreme in either direction counts; ties count; a missing control gives no p."""
    controls = np.array([0.5, -2.0, 1.0, 0.0])
    assert rank_p(1.0, controls) == 3 / 5
    assert rank_p(-2.0, controls) == 2 / 5
    assert np.isnan(rank_p(1.0, np.array([0.1, np.nan])))


def test_rank_about_the_median_ignores_what_all_edits_do():
    """A side effect of every edit makes a target look large against 0, not against its controls."""
    rng = np.random.default_rng(0)
    controls = 5 + 0.1 * rng.standard_normal(99)
    assert rank_p(5.05, controls, center=True) > 0.3
    assert rank_p(0.0, controls, center=True) == 0.01
    assert rank_p(0.0, controls) == 1.0


def test_a_claim_needs_both():
    """The larger p counts, and a missing one leaves no claim."""
    assert claim_p(0.2, 0.001) == 0.2
    assert np.isnan(claim_p(0.001, np.nan))


def test_slopes_agree_with_polyfit():
    """Least squares by item."""
    x, Y = np.array([0.0, 1.0, 4.0]), changes(6, 3)
    assert_allclose(item_slopes(Y, x), np.polyfit(x, Y.T, 1)[0])
    with pytest.raises(DataError, match="two different"):
        item_slopes(Y, np.ones(3))


def test_no_effect_needs_a_bound_and_evidence():
    """Small and certain is equivalent; small and uncertain is not; at the bound the level holds."""
    quiet = 0.1 * changes(20, 1)
    assert no_effect(quiet, 0.5).p[0] < 0.001
    assert no_effect(40 * quiet, 0.5).p[0] > 0.05
    rejected = sum(no_effect(changes(15, 1, seed=s) + 0.8, 0.8).p[0] <= 0.05 for s in range(300))
    assert rejected <= stats.binom.ppf(0.999, 300, 0.05)
    with pytest.raises(DataError, match="positive"):
        no_effect(quiet, 0.0)


def test_rounding_is_no_change():
    """What float32 logits cannot tell apart is an exact zero."""
    assert without_rounding(np.array([5e-5, 5e-5]), np.array([9.0, 0.1])).tolist() == [0.0, 5e-5]


def test_frames_are_averaged_and_incomplete_ones_dropped():
    """The datum is the mean over complete frames of the cell means; a frame with one unscored cell goes."""
    design = example_design(4, n_frames=2)
    table = expand(design)
    values = np.arange(len(table), dtype=float)[:, None]
    made = item_outcomes(values, table, design)
    by = table.assign(v=values[:, 0])
    wanted = by.groupby(["item", "number"], sort=False, observed=True)["v"].mean().unstack()
    assert_allclose(made.values[..., 0], wanted.loc[list(made.items), ["sg", "pl"]])
    hole = values.copy()
    hole[0] = np.nan
    left = item_outcomes(hole, table, design)
    first = table.iloc[0]
    rest = by[(by["item"] == first["item"]) & (by["frame"] != first["frame"])].set_index("number")["v"]
    assert_allclose(left.values[left.items.index(first["item"]), :, 0], rest[["sg", "pl"]])
    assert "1 item x frame dropped" in left.dropped


def test_unit_data_weigh_cells_as_written():
    """The effect's weights; without an effect the mean over the item's cells."""
    design = example_design(4, n_frames=2)
    table = expand(design)
    made = item_outcomes(changes(len(table), 2), table, design)
    effect = unit_data(made, design, {"number": {"pl": 1, "sg": -1}})
    assert_allclose(effect.D, made.values[:, 1] - made.values[:, 0])
    assert_allclose(unit_data(made, design).D, made.values.mean(axis=1))


def test_effects_between_items_are_refused():
    """Flips of changes say nothing about a difference between items."""
    design = example_design(8, between=True)
    table = expand(design)
    made = item_outcomes(changes(len(table), 1), table, design)
    assert unit_data(made, design).D.shape == (8, 1)
    with pytest.raises(DataError, match="tested within items"):
        unit_data(made, design, {"number": {"pl": 1, "sg": -1}})


def test_items_that_share_forms_are_one_unit():
    """Linked items are averaged into one row, and counted once."""
    forms = {f"w{k}": {"noun": {"sg": f"w{k // 2}", "pl": f"w{k}s"}} for k in range(8)}
    design = Design.model_validate(
        {"schema": "neurosae/design/1", "name": "n", "unit": "shared_forms", "factors": {"number": ["sg", "pl"]},
         "frames": {"f": "The {noun:number} here"}, "items": forms}
    )  # fmt: skip
    table = expand(design)
    made = item_outcomes(changes(len(table), 1), table, design)
    merged = unit_data(made, design, {"number": {"pl": 1, "sg": -1}})
    assert merged.D.shape == (4, 1)
    assert_allclose(merged.D[0], (made.values[:2, 1] - made.values[:2, 0]).mean(axis=0))
    assert merged.names[0] == "w0+1"


def test_what_cancels_is_an_exact_zero():
    """Equal changes of two cells leave no contrast in their last digits, whose sign would be the same in every item."""
    design = example_design(8)
    table = expand(design)
    rng = np.random.default_rng(0)
    by_item = dict(zip(table["item"].unique(), rng.standard_normal(8) * 4, strict=True))
    change = (
        table["item"].map(by_item).to_numpy(dtype=float)[:, None] + 8e-6 * (table["number"] == "pl").to_numpy()[:, None]
    )
    data = unit_data(item_outcomes(change, table, design), design, {"number": {"pl": 1, "sg": -1}})
    assert (data.D == 0).all()
    assert np.isnan(item_tests(data.D, data.numbers, seed=0).p[0])


def crossed(s, *, n=12, k=8, item=1.0, feature=1.0, shift=0.0):
    rng = np.random.default_rng(s)
    made = item * rng.standard_normal((n, 1)) + feature * rng.standard_normal((1, k)) + rng.standard_normal((n, k))
    return made + shift


def test_population_agrees_with_statsmodels():
    """REML of crossed random effects: estimate, standard error and variances of MixedLM, computed live."""
    import statsmodels.formula.api as smf

    Y = crossed(3, shift=1.0)
    made = over_items_and_features(Y)
    frame = pd.DataFrame({"y": Y.ravel(), "i": np.repeat(np.arange(12), 8), "j": np.tile(np.arange(8), 12), "g": 1})
    parts = {"i": "0 + C(i)", "j": "0 + C(j)"}
    fit = smf.mixedlm("y ~ 1", frame, groups="g", re_formula="0", vc_formula=parts).fit(reml=True)
    assert_allclose([made.estimate, made.se], [fit.fe_params.iloc[0], fit.bse_fe.iloc[0]], rtol=1e-3)
    assert_allclose([made.var_item, made.var_feature, made.var_resid], [*fit.vcomp, fit.scale], rtol=2e-2)
    assert made.p == pytest.approx(2 * stats.t.sf(abs(made.t), made.dof))
    assert_allclose(made.min_f.p, min_f(Y).p)


def test_population_holds_its_level_over_features():
    """Features vary and their mean is 0: the mixed model and min-F' err in about 5 % or less, items alone in most."""
    found = [over_items_and_features(crossed(s, feature=2.0)) for s in range(300)]
    high = stats.binom.interval(0.999, 300, 0.05)[1]
    assert sum(one.p <= 0.05 for one in found) <= high
    assert sum(one.min_f.p.item() <= 0.05 for one in found) <= high
    alone = [stats.ttest_1samp(crossed(s, feature=2.0).mean(axis=1), 0).pvalue <= 0.05 for s in range(300)]
    assert sum(alone) > 3 * high


def test_population_says_when_it_is_singular_or_silent():
    """A component at 0 is an exact 0; too few features, and slopes without a residual, have no p but a reason."""
    same = over_items_and_features(crossed(1, feature=0.0, item=3.0))
    assert same.var_feature == 0 or same.var_feature < 0.2
    flat = crossed(0, item=0.0, feature=0.0)
    flat -= flat.mean(axis=0) - flat.mean()
    assert over_items_and_features(flat).var_feature == 0
    few = over_items_and_features(crossed(2, k=5))
    assert (few.status, np.isnan(few.p)) == ("untestable", True)
    assert "at least 6" in few.refused
    assert np.isfinite(few.min_f.p)
    exact = np.arange(12.0)[:, None] + np.arange(8.0)[None]
    assert over_items_and_features(exact).status == "degenerate"
    assert over_items_and_features(np.zeros((12, 8))).status == "degenerate"
    with pytest.raises(DataError, match="2 features at least"):
        over_items_and_features(crossed(0, k=1))
