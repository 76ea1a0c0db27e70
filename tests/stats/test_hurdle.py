"""The two-part statistic: against enumeration in R, its own equation, McNemar, and its relabellings."""

from __future__ import annotations

import json
from itertools import combinations, product

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from neurosae.errors import DataError
from neurosae.spec.results import counted_p
from neurosae.stats.contrast import contrast, null_rate
from neurosae.stats.flips import maxima, step_counts
from neurosae.stats.hurdle import hurdle, hurdle_columns, hurdle_p, sides
from neurosae.stats.multiplicity import step_down
from neurosae.stats.relabel import flips, labels, permutations, signs
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.tails import flip_p
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}


def parts_of(y0, y1):
    both = (y0 > 0) & (y1 > 0)
    ratio = np.where(both, np.log(np.where(both, y1, 1) / np.where(both, y0, 1)), 0)
    return (y1 > 0).astype(float) - (y0 > 0), ratio


def H_of(F, L, s):
    """H written out, for every row of signs."""
    fire = (s @ F) ** 2 / np.maximum((F**2).sum(axis=0), 1e-300)
    return fire + (s @ L) ** 2 / np.maximum((L**2).sum(axis=0), 1e-300)


def random_parts(n=9, m=12, seed=0):
    rng = np.random.default_rng(seed)
    y = [np.round(rng.exponential(size=(n, m)), 1) * (rng.random((n, m)) < 0.6) for _ in range(2)]
    return parts_of(*y)


def data_of(between=False, n=24, density=(0.2, 0.7)):
    design = example_design(n, between=between)
    fake = simulate(design, n_features=60, effects={"number": 4}, density=density, shift=4.0, seed=5)
    data = item_data(fake, design, NUMBER, region="noun")
    return fake, data, np.flatnonzero(data.informative >= 6)


def test_hurdle_agrees_with_enumeration_in_r(oracles):
    """Parts, H, exact p of every feature, of the parts (McNemar) and of the maximum."""
    y0, y1 = (np.loadtxt(oracles(f"inputs/hurdle_Y{k}.csv"), delimiter=",") for k in (0, 1))
    known = json.loads(oracles("signflip.json").read_text())["hurdle"]
    F, L = (sp.csc_matrix(x) for x in parts_of(y0, y1))
    columns, how = hurdle_columns(F, L), flips(np.arange(len(y0)), 10_000, seed=0)
    assert_allclose(columns.u, known["H"], rtol=1e-10)
    assert_allclose(hurdle_p(F, L)[0], known["p_flip_H"], rtol=1e-12)
    assert_allclose(flip_p(F)[0], known["p_mcnemar_exact"], rtol=1e-12)
    null = columns.how.to_z(maxima(columns, how)[0], columns.df)
    assert_allclose(counted_p(null, columns.z), known["p_fwe_H"], rtol=1e-12)


def test_p_agrees_with_all_flips():
    """The sum over z_fire counts what enumeration counts, ties included; counts are even."""
    F, L = random_parts()
    s = np.array(list(product([1, -1], repeat=9)))
    H = H_of(F, L, s)
    expected = (H >= H[0] - 1e-9 * (1 + H[0])).mean(axis=0)
    p, exact = hurdle_p(sp.csc_matrix(F), sp.csc_matrix(L))
    assert exact.all()
    assert_allclose(p, expected, rtol=1e-12)
    assert_array_equal(np.round(p * 512) % 2, 0)


def test_p_by_saddlepoint_is_near_the_exact_one():
    """Beyond 24 items that fire on both sides, against 200,000 flips."""
    rng = np.random.default_rng(1)
    F, L = np.zeros((40, 3)), rng.normal(0.25, 1, (40, 3))
    F[:8] = rng.choice([-1, 1], (8, 3), p=[0.2, 0.8])
    L[:8] = 0
    p, exact = hurdle_p(sp.csc_matrix(F), sp.csc_matrix(L))
    H = H_of(F, L, np.vstack([np.ones(40), rng.choice([-1.0, 1.0], (200_000, 40))]))
    assert not exact.any()
    assert_allclose(p, (H >= H[0] - 1e-9).mean(axis=0), rtol=0.05, atol=2e-4)


@pytest.mark.parametrize("prune", [True, False])
def test_maxima_agree_with_dense_algebra(prune):
    """Under the engine's flips, with the early stop and without."""
    F, L = random_parts(n=30, m=80)
    columns, how = hurdle_columns(sp.csc_matrix(F), sp.csc_matrix(L)), flips(np.arange(30), 900, seed=3)
    found = maxima(columns, how, prune=prune)[0]
    assert_allclose(found, H_of(F, L, signs(how)).max(axis=1), rtol=2e-6)


def test_columns_keep_their_items_in_a_larger_relabelling():
    """Items 5 to 24 of 30 give the maxima that they give alone."""
    F, L = random_parts(n=20, m=30)
    columns, numbers = hurdle_columns(sp.csc_matrix(F), sp.csc_matrix(L)), np.arange(20) + 5
    alone, among = (flips(x, 700, seed=3, enumerate_all=False) for x in (numbers, np.arange(30)))
    assert_array_equal(maxima(columns, alone)[0], maxima(columns.how.place(columns, numbers), among)[0])


def test_step_down_is_never_above_single_step():
    """And equal for the most extreme feature."""
    F, L = random_parts(n=20, m=30)
    columns, how = hurdle_columns(sp.csc_matrix(F), sp.csc_matrix(L)), flips(np.arange(20), 700, seed=3)
    single = counted_p(columns.how.to_z(maxima(columns, how)[0], np.inf), columns.z)
    stepped = step_down(step_counts([columns], how)[0], columns.z, how.n)
    assert (stepped <= single + 1e-12).all()
    assert stepped.min() == single.min()


def test_sides_agree_with_item_means():
    """Firing and log ratios of the + and - cells, from the responses themselves."""
    fake, data, kept = data_of()
    pl, sg = (
        fake.X[(fake.obs["number"] == level).to_numpy()].toarray()[:, kept].astype(float) for level in ("pl", "sg")
    )
    F, L = parts_of(sg, pl)
    found = sides(data, kept)
    for part, expected in zip(found, (F, L), strict=True):
        assert_allclose(np.sort(part.toarray(), axis=0), np.sort(expected, axis=0), rtol=1e-9, atol=1e-12)


def test_between_items_agrees_with_its_equation():
    """Standardised differences in firing and in log strength, and p counted over all relabellings of small groups."""
    _, data, kept = data_of(between=True, n=10, density=(0.5, 0.8))
    ready, y, codes = hurdle(data, kept), data.D[:, kept].toarray(), data.codes
    how = permutations(data.numbers, codes, 1000, blocks=data.strata, seed=0)

    def H(groups):
        out = 0.0
        logs = np.where(y > 0, np.log(np.where(y > 0, y, 1)), 0)
        logs = np.where(y > 0, logs - logs.sum(axis=0) / np.maximum((y > 0).sum(axis=0), 1), 0)
        for x in ((y > 0).astype(float), logs):
            difference = x[groups == 1].mean(axis=0) - x[groups == 0].mean(axis=0)
            var = x.var(axis=0, ddof=1) * (1 / (groups == 1).sum() + 1 / (groups == 0).sum())
            out = out + np.where(var > 0, difference**2 / np.where(var > 0, var, 1), 0)
        return out

    assert_allclose(ready.columns.u, H(codes), rtol=1e-9)
    every = [np.isin(np.arange(10), ones).astype(int) for ones in combinations(range(10), 5)]
    null = np.array([H(g) for g in every])
    assert how.n == len(every) == 252
    reached = maxima(ready.columns, how)[1]
    assert_allclose(reached / 252, (null >= ready.columns.u - 1e-9).mean(axis=0), rtol=1e-12)
    assert_allclose(null[[np.array_equal(g, codes) or np.array_equal(g, 1 - codes) for g in every]][0], H(codes))
    assert labels(how).shape == (252, 10)


@pytest.mark.parametrize("between", [False, True])
def test_rows_report_both_parts(between):
    """Holm over the parts, NA with a note where one has no data, p of H between 0 and 1."""
    fake, *_ = data_of(between=between)
    table = contrast(fake, NUMBER, region="noun", inference={"statistic": "hurdle", "n_permutations": 999}, seed=1)
    tested = table[table["status"] == "ok"]
    assert set(tested["stat"]) == {"hurdle"}
    assert_allclose(tested["value"], tested["x_z_fire"].fillna(0) ** 2 + tested["x_z_mag"].fillna(0) ** 2, rtol=1e-9)
    lone = tested["x_z_mag"].isna()
    assert tested.loc[lone, "x_p_mag"].isna().all()
    assert tested.loc[lone, "note"].str.contains("no part about how strongly").all()
    assert (tested["x_p_fire"].dropna() <= 1).all()
    planted = tested[tested["feature"] < 4]
    assert (planted["p_unc"] < 0.05).mean() >= 0.5


def test_fdr_needs_no_counting_within_items():
    """p has a closed form under flips: exact or saddlepoint, below 1 / B where the items allow it."""
    fake, *_ = data_of()
    asked = {"statistic": "hurdle", "correction": "fdr_bh", "n_permutations": 100}
    table = contrast(fake, NUMBER, region="noun", inference=asked, seed=1)
    assert set(table["p_method"].dropna()) <= {"exact", "saddlepoint"}
    assert table["p_unc"].min() < 1 / 100
    assert (table["p_unc"].dropna() >= table["p_min"][table["p_unc"].notna()] * (1 - 1e-9)).all()


def test_null_rate_relabels_the_parts():
    """Shuffled labels reach firing and strength too: planted features are not rejected in every set."""
    fake, *_ = data_of()
    asked = {"statistic": "hurdle", "n_permutations": 200}
    row = null_rate(fake, NUMBER, region="noun", inference=asked, n_sets=20, seed=1)
    assert row["rate"].iloc[0] <= stats.binom.isf(0.001, 20, 0.05) / 20


def test_hurdle_refuses_one_sided_alternatives():
    """H has no sign."""
    fake, *_ = data_of()
    asked = {"statistic": "hurdle", "alternative": "greater"}
    with pytest.raises(DataError, match="hurdle has no sign"):
        contrast(fake, NUMBER, region="noun", inference=asked, seed=1)


@pytest.mark.parametrize("between", [False, True])
def test_hurdle_refuses_negative_responses(between):
    """A signed response neither fires nor stays silent."""
    design = example_design(16, between=between)
    fake = simulate(design, n_features=6, density=0.6, seed=1)
    fake.X = fake.X * -1.0
    with pytest.raises(DataError, match="negative responses"):
        contrast(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", inference={"statistic": "hurdle"}, seed=1)


@pytest.mark.parametrize("between", [False, True])
def test_signed_responses_have_the_prior_of_their_size(between):
    """Turning every response round turns the statistics round and changes no p: the trend follows the size."""
    design = example_design(24, between=between)
    fake = simulate(design, n_features=60, density=0.6, seed=1)
    turned = fake.copy()
    turned.X = fake.X * -1.0
    asked = {"region": "noun", "inference": {"n_permutations": 200}, "seed": 1}
    one, two = (contrast(x, {"number": {"pl": 1, "sg": -1}}, **asked) for x in (fake, turned))
    assert_allclose(one["value"], -two["value"], rtol=1e-9)
    assert_allclose(one["p_corr"], two["p_corr"], rtol=1e-9)
    assert_allclose(one["x_d0"], two["x_d0"], rtol=1e-9)
