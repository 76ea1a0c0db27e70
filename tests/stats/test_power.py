"""Power curves use a stated effect and a pilot's noise, never a pilot's effect, and agree with the noncentral t."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.noncentral import analytic_power, items_needed
from neurosae.stats.pattern import contrast_length, group_length, reached_share
from neurosae.stats.plasmode import (
    Pilot,
    draw,
    grouped_data,
    grouped_template,
    join_pilots,
    paired_data,
    paired_template,
    pilot_of,
)
from neurosae.stats.power import discovery_rate, power, recommend, share_interval
from neurosae.stats.rsa import rsa
from neurosae.stats.simulate import Firing, Planted, example_design, simulate
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}
FEW = {"n_sets": 30, "n_permutations": 200, "share": 0.1}


def pilot_responses(*, planted=None, n_items=24, n_features=100, between=False):
    effects = {} if planted is None else {"number": planted}
    design = example_design(n_items, between=between)
    return simulate(design, n_features=n_features, effects=effects, density=Firing(0.3), seed=3)


def power_of(table, method, n):
    return table.set_index(["method", "n_items"]).loc[(method, n), "power"]


# ------------------------------------------------------------------ analytic


def test_items_needed_agrees_with_the_table(oracles):
    """Items for 80 % power, exactly."""
    known = json.loads(oracles("power_tost_effects.json").read_text())
    made = [[items_needed(d, n_tests=m) for d in known["d_z"]] for m in known["m"]]
    assert made == known["items_needed_rows_m_cols_dz"]
    assert analytic_power(0.6, 24) == pytest.approx(known["power_n24_dz0.6_strict"], abs=1e-9)


@pytest.mark.parametrize(("effsize", "n"), [(0.2, 8), (1.5, 8), (0.2, 24), (0.8, 24), (0.2, 64), (0.5, 64)])
def test_analytic_power_agrees_with_statsmodels(effsize, n):
    """One sample and two groups, computed live, where statsmodels gives a number."""
    paired = TTestPower().power(effsize, n, 0.05 / 7)
    assert analytic_power(effsize, n, n_tests=7) == pytest.approx(paired, abs=1e-9)
    groups = TTestIndPower().power(effsize, n // 4, 0.05, ratio=3)
    assert analytic_power(effsize, n, share=0.25) == pytest.approx(groups, abs=1e-9)


def test_analytic_power_refuses_what_no_study_has():
    """No effect, no degrees of freedom."""
    with pytest.raises(DataError, match="effect of 0"):
        items_needed(0.0)
    with pytest.raises(DataError, match="at least 3"):
        analytic_power(0.5, 2, share=0.5)


# ------------------------------------------------------------------ the set statistic


def test_contrast_length_agrees_with_the_double_loop():
    """Mean over pairs of different items, for both kinds of relabelling."""
    rng = np.random.default_rng(0)
    D, s = rng.standard_normal((7, 5)), rng.choice([-1.0, 1.0], (1, 7))
    q = (D**2).mean(axis=0)
    w = 1 / (q + np.median(q))
    loop = sum(s[0, i] * s[0, k] * (D[i] * w) @ D[k] for i in range(7) for k in range(7) if i != k) / 42
    assert_allclose(contrast_length(D, s), loop)
    plus = np.arange(7) < 3
    pairs = {(a, b): [(D[i] * w) @ D[k] for i in np.flatnonzero(plus == a) for k in np.flatnonzero(plus == b) if i != k]
             for a, b in ((True, True), (False, False), (True, False))}  # fmt: skip
    expected = np.mean(pairs[True, True]) + np.mean(pairs[False, False]) - 2 * np.mean(pairs[True, False])
    assert_allclose(group_length(D, plus[None]), expected)


def test_contrast_length_is_unbiased_where_nothing_differs():
    """Mean over data sets within 4 standard errors of 0, and p uniform."""
    rng = np.random.default_rng(1)
    signs = np.where(rng.random((100, 12)) < 0.5, -1.0, 1.0)
    signs[0] = 1
    made = [contrast_length(rng.standard_normal((12, 20)) * 2, signs) for _ in range(300)]
    values = np.array([x[0] for x in made])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(300)
    assert abs(np.mean([reached_share(x) <= 0.2 for x in made]) - 0.2) < 0.08


# ------------------------------------------------------------------ plasmode


def test_draw_keeps_items_whole():
    """Two equal features stay equal in every study: rows and exchanges belong to items, not to features."""
    rng = np.random.default_rng(0)
    plus, minus = rng.random((2, 10, 3)) * (rng.random((2, 10, 3)) < 0.5)
    pilot = Pilot(plus[:, [0, 1, 2, 0]], minus[:, [0, 1, 2, 0]])
    for n in (6, 40):
        drawn = draw(pilot, n, rng)
        assert_array_equal(drawn.plus[:, 0], drawn.plus[:, 3])
        assert_array_equal(drawn.minus[:, 0], drawn.minus[:, 3])


@pytest.mark.parametrize("between", [False, True])
def test_draw_removes_the_pilots_effect(between):
    """A pilot that fires in + alone gives studies whose + and - cells are alike."""
    rng = np.random.default_rng(1)
    fires = rng.random((20, 50)) + 1
    pilot = Pilot(fires, np.zeros((20, 50))) if not between else Pilot(np.vstack([fires, 0 * fires]), None, 0.5)
    drawn = draw(pilot, 4000, rng)
    plus = drawn.plus if not between else drawn.plus[: drawn.n_plus]
    minus = drawn.minus if not between else drawn.plus[drawn.n_plus :]
    assert (plus > 0).mean() == pytest.approx((minus > 0).mean(), abs=0.03)
    assert plus.mean() == pytest.approx(minus.mean(), rel=0.06)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.98])
def test_draw_recovers_the_stated_effect(density, between):
    """Difference of densities and factor on the magnitude, at any density; other features are left alone."""
    rng = np.random.default_rng(2)
    base = np.exp(0.3 * rng.standard_normal((2, 400, 40))) * (rng.random((2, 400, 40)) < density)
    pilot = Pilot(base[0], base[1]) if not between else Pilot(base[0], None, 0.25)
    drawn = draw(pilot, 8000, rng, n_planted=20, effect=(0.2, 2.0))
    plus = drawn.plus if not between else drawn.plus[: drawn.n_plus]
    minus = drawn.minus if not between else drawn.plus[drawn.n_plus :]
    fires = (plus > 0).mean(axis=0) - (minus > 0).mean(axis=0)
    rest = np.setdiff1d(np.arange(40), drawn.planted)
    assert fires[drawn.planted].mean() == pytest.approx(0.2, abs=0.02)
    assert np.abs(fires[rest]).mean() < 0.02
    if density == 0.3:
        log = [np.log(x[:, drawn.planted][x[:, drawn.planted] > 0]).mean() for x in (plus, minus)]
        assert np.exp(log[0] - log[1]) == pytest.approx(2.0, rel=0.05)


def test_filled_data_agree_with_item_data():
    """Arrays put into a template are what the usual way from responses gives, within and between items."""
    for between in (False, True):
        fake = pilot_responses(planted=Planted(5, shift=2.0), n_items=12, between=between)
        true = item_data(fake, example_design(12, between=between), NUMBER, region="noun")
        pilot = pilot_of(true)
        if between:
            order = np.argsort(~(true.grouping[1][true.codes] > 0), kind="stable")
            made = grouped_data(grouped_template(12), pilot.plus[order], 6)
            assert_allclose(made.D.toarray(), true.D.toarray()[order])
            assert (made.grouping[1][made.codes] > 0).sum() == 6
        else:
            made = paired_data(paired_template(12), pilot.plus, pilot.minus)
            assert_allclose(made.D.toarray(), true.D.toarray())
            assert_allclose(made.Y.mean(axis=0), true.Y.mean(axis=0))


# ------------------------------------------------------------------ power


def test_power_rises_with_items_and_keeps_its_level():
    """More items find more, with few false rejections; the set test needs the fewest."""
    settings = {**FEW, "n_features": 100}
    table = power(
        example_design(12), NUMBER, smallest={"density": 0.3}, n_items=[12, 24, 64], settings=settings, seed=1
    )
    for method in ("maxT", "fdr_bh", "set", "analytic"):
        assert table.loc[table["method"] == method, "power"].is_monotonic_increasing
    assert power_of(table, "set", 24) > power_of(table, "maxT", 24)
    familywise = table.loc[table["method"].isin(["maxT", "set"]), "false"]
    assert familywise.max() <= stats.binom.ppf(0.999, 30, 0.05) / 30
    assert table["fdr"].max() <= 0.1
    assert -0.05 < power_of(table, "maxT", 64) - power_of(table, "analytic", 64) < 0.25  # flips gain where few fire


def test_power_without_an_effect_is_the_error_rate():
    """A hardly noticeable effect is found as often as nothing at all."""
    table = power(pilot_responses(), NUMBER, smallest={"magnitude": 1.001}, n_items=[24], settings=FEW, seed=2)
    assert (table["power"] <= 0.1).all()
    assert table.set_index("method").loc["set", "power"] == table.set_index("method").loc["set", "false"]


@pytest.mark.parametrize("between", [False, True])
def test_power_invariant_to_the_pilots_own_effect(between):
    """A huge effect in a fifth of the pilot's features gives the same curve, within the error of simulation."""
    settings = {**FEW, "n_sets": 40, "methods": ["maxT", "set"]}
    tables = [
        power(
            pilot_responses(planted=planted, between=between, n_items=32),
            NUMBER,
            smallest={"density": 0.4},
            n_items=[32],
            settings=settings,
            seed=4,
        )
        for planted in (None, Planted(20, shift=12.0, magnitude=3.0))
    ]
    plain, huge = (table.set_index("method") for table in tables)
    assert abs(huge.loc["maxT", "power"] - plain.loc["maxT", "power"]) < 0.12
    assert huge["false"].drop("analytic").max() <= stats.binom.ppf(0.999, 40, 0.05) / 40
    assert "effect removed" in huge["noise"].iloc[0]


def test_power_invariant_to_other_sizes_and_methods():
    """Asking for more sizes or methods moves no number."""
    few = power(pilot_responses(), NUMBER, n_items=[24], settings={**FEW, "methods": ["maxT"]}, seed=5)
    more = power(pilot_responses(), NUMBER, n_items=[16, 24], settings={**FEW, "methods": ["fdr_bh", "maxT"]}, seed=5)
    assert power_of(few, "maxT", 24) == power_of(more, "maxT", 24)


def test_recommendation_names_the_number_of_items():
    """The smallest number with power .8, or that none was enough; the rule of thumb follows."""
    settings = {**FEW, "n_features": 50, "densities": (0.2, 0.5)}
    table = power(example_design(8), NUMBER, smallest={"density": 0.5}, n_items=[8, 64], settings=settings, seed=0)
    words = recommend(table)
    assert "fdr_bh: 64 items for power 0.8." in words
    assert "48 items; 32 for a screen" in words
    assert "not reached with 8 items" in recommend(table[table["n_items"] == 8])


def test_discoveries_are_counted_per_study():
    """One false of one, none, two false of four: the mean share is .5, not 3/5."""
    assert discovery_rate([1, 0, 2], [1, 0, 4]) == 0.5


def test_share_interval_agrees_with_scipy():
    """Clopper-Pearson where the share is a count."""
    for count in (0, 3, 20):
        known = stats.binomtest(count, 20).proportion_ci()
        assert_allclose(share_interval(count / 20, 20), known, atol=1e-12)


def test_power_refuses_what_it_cannot_plan():
    """No effect, no noise, too few items, several regions, one-sided effects: each in one sentence."""
    with pytest.raises(DataError, match="smallest: is no effect"):
        power(example_design(8), NUMBER, smallest={"magnitude": 1.0}, seed=0)
    with pytest.raises(DataError, match="n_items"):
        power(example_design(8), NUMBER, n_items=[2], seed=0)
    with pytest.raises(DataError, match="no feature is active"):
        join_pilots([Pilot(np.zeros((4, 3)), np.zeros((4, 3)))])
    two = simulate(example_design(8), n_features=10, density=0.5, seed=0)
    two.obs["region"] = ["noun", "verb"] * 8
    with pytest.raises(DataError, match=r"2 regions, noun, verb; name one"):
        power(two, NUMBER, seed=0)


def test_flips_without_a_mirror_image_are_called_approximate():
    """2 / -1 / -1: studies are drawn by exchanging + and - cells, and an RSA flips its contrast; both say so."""
    levels = ["low", "mid", "high"]
    parts = {"factors": {"dose": levels}, "frames": {"f": "It {w:dose} was"}}
    items = {f"w{i}": {"w": {d: f"w{i}{d}" for d in levels}} for i in range(10)}
    design = Design.model_validate({"schema": "neurosae/design/1", "name": "dose", **parts, "items": items})
    fake = simulate(design, n_features=20, density=0.5, seed=1)
    region, settings = str(fake.obs["region"].iloc[0]), {"n_sets": 2, "n_permutations": 50, "methods": ("maxT",)}
    for mid, approximate in ((2, True), (0, False)):
        effect = {"dose": {"low": -1, "mid": mid, "high": -1 if mid else 1}}
        for source in (fake, design):
            curve = power(source, effect, smallest={"density": 0.4}, n_items=[10], settings=settings, seed=0)
            assert curve["noise"].str.contains("approximate").all() == approximate
        models = {"dose": effect}
        rows = rsa(fake, conditions=["dose"], models=models, region=region, seed=1)
        assert rows["p_method"].str.contains("approximate").all() == approximate
