"""Combination of parts against PALM and scipy, its error rate, and what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.spec.blocks import TESTS, Inference
from neurosae.spec.design import Design
from neurosae.spec.results import stack
from neurosae.stats.combine import COMBINED, Part, combine, combined_maxima, run
from neurosae.stats.contrast import contrast
from neurosae.stats.flips import flip_columns
from neurosae.stats.minimum import conjunction
from neurosae.stats.relabel import flips
from neurosae.stats.simulate import example_design, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}
MORE = {"a": {"number": {"pl": 1, "sg": -1}}, "b": {"number": {"pl": 3, "sg": -3}}}


def parts_of(data, relabelling):
    """Plain t of every part, as columns."""
    out = []
    for D in data:
        scale = np.sqrt(len(D) * (D**2).sum(axis=0))
        columns = flip_columns(sp.csc_matrix(D), scale=scale, df=len(D) - 1.0)
        out.append(Part(columns, relabelling, np.arange(D.shape[1])))
    return out


@pytest.mark.parametrize("how", ["fisher", "stouffer", "tippett"])
def test_combination_agrees_with_palm(oracles, how):
    """Three modalities, 9 items, all 512 flips, one-sided: statistic, p and family-wise p."""
    known = json.loads(oracles("palm.json").read_text())
    data = [np.loadtxt(oracles(f"inputs/npc_{k}.csv"), delimiter=",") for k in range(3)]
    everything = flips(np.arange(9), 512, seed=0, two_sided=False)
    found = combined_maxima(parts_of(data, everything), COMBINED[how], alternative="greater")
    name = f"r6{how.capitalize()}_dat_npc_{how}"
    assert everything.n == 512
    assert_allclose(found.value, known[name], atol=6e-5)
    assert_allclose(found.p, known[f"{name}_uncp"], atol=6e-5)
    fwe = (found.null[:, None] >= found.z - 1e-5 * (1 + np.abs(found.z))).mean(axis=0)
    assert_allclose(fwe, known[f"{name}_fwep"], atol=6e-5)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_combined_statistics_agree_with_scipy(alternative):
    """Fisher's, Stouffer's and Tippett's value and combined p of the observed t, by scipy.stats.combine_pvalues."""
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((12, 5)) + 0.4 for _ in range(3)]
    relabelling = flips(np.arange(12), 200, seed=1)
    p = np.array([stats.ttest_1samp(D, 0, alternative=alternative).pvalue for D in data])
    for how in ("fisher", "tippett"):
        found = combined_maxima(parts_of(data, relabelling), COMBINED[how], alternative=alternative)
        known = [stats.combine_pvalues(p[:, j], method=how) for j in range(5)]
        assert_allclose(found.value, [k.statistic for k in known], rtol=1e-5)
        z = stats.norm.isf(np.array([k.pvalue for k in known]) / (2 if alternative == "two-sided" else 1))
        assert_allclose(found.z, z, atol=1e-5)
    found = combined_maxima(parts_of(data, relabelling), COMBINED["stouffer"], alternative=alternative)
    upper = np.array([stats.ttest_1samp(D, 0, alternative="greater").pvalue for D in data])
    assert_allclose(found.value, stats.norm.isf(upper).sum(axis=0) / np.sqrt(3), atol=1e-5)


def test_one_part_agrees_with_the_part_itself():
    """Combined over one part, every method gives the p of that part, and a missing part is no evidence."""
    D = np.random.default_rng(2).standard_normal((10, 6)) + 0.5
    relabelling = flips(np.arange(10), 1000, seed=0)
    t = np.abs(stats.ttest_1samp(D, 0).statistic)
    for how in COMBINED.values():
        whole = combined_maxima(parts_of([D], relabelling), how, alternative="two-sided")
        assert_allclose(whole.z, stats.norm.isf(stats.t.sf(t, 9)) if not how.is_z else whole.z, atol=1e-5)
        first, second = parts_of([D, D[:, :3]], relabelling)
        uneven = combined_maxima([first, second], how, alternative="two-sided")
        assert uneven.n_parts.tolist() == [2, 2, 2, 1, 1, 1]
        assert_allclose(uneven.z[3:], whole.z[3:], atol=1e-6)


@pytest.mark.parametrize("how", ["fisher", "stouffer", "tippett"])
def test_combination_controls_familywise_error(how):
    """No effect in two dependent parts: rejections inside the binomial 99.9 % band around .05."""
    rng, hits = np.random.default_rng(3), 0
    for number in range(150):
        D = rng.standard_normal((10, 8))
        parts = parts_of([D, 0.7 * D + rng.standard_normal((10, 8))], flips(np.arange(10), 400, seed=number))
        found = combined_maxima(parts, COMBINED[how], alternative="two-sided")
        hits += (found.null >= found.z.max() - 1e-6).mean() <= 0.05
    low, high = stats.binom.interval(0.999, 150, 0.05)
    assert low <= hits <= high


def test_stouffer_recovers_small_effects_of_one_direction():
    """Four weak parts: opposite signs cancel for Stouffer, not for Fisher; equal signs add up in both."""
    rng, n = np.random.default_rng(4), flips(np.arange(24), 500, seed=0)
    noise = [rng.standard_normal((24, 1)) for _ in range(4)]
    same = parts_of([e - e.mean() + 0.5 for e in noise], n)
    mixed = parts_of([e - e.mean() + s * 0.5 for e, s in zip(noise, (1, -1, 1, -1), strict=True)], n)
    less = parts_of([e - e.mean() - 0.5 for e in noise], n)
    for how in ("fisher", "stouffer"):
        assert combined_maxima(less, COMBINED[how], alternative="two-sided").p[0] <= 0.01
        assert combined_maxima(same, COMBINED[how], alternative="two-sided").p[0] <= 0.01
    assert combined_maxima(mixed, COMBINED["stouffer"], alternative="two-sided").p[0] > 0.3
    assert combined_maxima(mixed, COMBINED["fisher"], alternative="two-sided").p[0] <= 0.01


def test_table_of_combined_effects():
    """Every feature is in one row or counted in one, and the null hypothesis says at least one."""
    fake = simulate(example_design(24), n_features=60, effects={"number": 3}, density=(0.01, 0.4), shift=5.0, seed=2)
    table = combine(fake, MORE, region="noun", over="effect", inference={"n_permutations": 300}, seed=1)
    ok = table[table["status"] == "ok"]
    assert table["n_features"].sum() == 60
    assert {"ok", "untestable"} <= set(table["status"])
    assert set(ok["h0"]) == {"no difference in any of the effects a, b; rejected: at least one"}
    assert (ok["p_corr"] >= ok["p_unc"] - 1e-9).all()
    assert (ok["n_family"] == len(ok)).all()
    bh = combine(fake, MORE, region="noun", over="effect", inference={"correction": "fdr_bh"}, seed=1)
    assert_allclose(bh["p_corr"].dropna(), stats.false_discovery_control(bh["p_unc"].dropna()))


def test_sites_are_combined_by_their_maxima():
    """One row for all features of two sites; a strong effect at one of them is enough."""
    found = simulate(example_design(20), n_features=40, effects={"number": 2}, density=0.4, shift=5.0, seed=5)
    empty = simulate(example_design(20), n_features=30, density=0.4, seed=6)
    for how in COMBINED:
        rule = {"n_permutations": 500}
        table = combine({"x": found, "y": empty}, NUMBER, region="noun", over="site", how=how, inference=rule, seed=1)
        assert len(table) == 1
        row = table.iloc[0]
        assert (row["site"], row["n_family"], row["x_n_parts"]) == ("x, y", 1, 2)
        assert row["p_unc"] == row["p_corr"] <= (0.2 if how == "stouffer" else 0.05)
        alone = combine({"y": empty}, NUMBER, region="noun", over="site", how=how, inference=rule, seed=1).iloc[0]
        assert alone["p_corr"] > 0.05


def test_combine_refuses_what_has_no_p():
    """A mean cannot be turned into a p, a step-down is not made, and BH needs enough relabellings."""
    fake = simulate(example_design(24), n_features=60, density=0.4, seed=2)
    for rule, message in (
        ({"statistic": "mean"}, "no p of its own"),
        ({"correction": "stepdown"}, "use correction maxT"),
        ({"correction": "fdr_bh", "n_permutations": 50}, "raise n_permutations"),
    ):
        with pytest.raises(DataError, match=message):
            combine(fake, MORE, region="noun", over="effect", inference=rule, seed=1)
    with pytest.raises(DataError, match="unknown part"):
        combine(fake, MORE, region="noun", over="item", seed=1)


@pytest.mark.parametrize(
    ("kind", "more"), [("conjunction", {}), ("combination", {"over": "effect", "how": "stouffer"})]
)
def test_blocks_of_a_study_agree_with_the_functions(kind, more):
    """`test: conjunction` and `test: combination` give what the functions give, with a maximum per relabelling."""
    fake = simulate(example_design(20), n_features=30, effects={"number": 2}, density=0.4, shift=5.0, seed=7)
    block = TESTS[kind][0].model_validate({"test": kind, "region": "noun", "effect": ["a", "b"], **more})
    rules = Inference(n_permutations=200)
    spec = SimpleNamespace(tests={"mine": block}, effects=MORE, inference=rules, seed=1)
    tested = run({"simulated": fake}, block, study=SimpleNamespace(spec=spec), earlier={}, rng=None)
    how = {"over": "effect", "how": "stouffer"} if more else {}
    function = combine if more else conjunction
    known = function(fake, MORE, region="noun", inference=rules, seed=1, **how)
    assert set(tested.table["test"]) == {"mine"}
    assert_allclose(tested.table["p_corr"], known["p_corr"])
    assert tested.null_max.shape == (200,)
    joined = stack({"mine": tested, "again": tested._replace(table=tested.table.assign(test="again"))})
    assert len(joined) == 2 * len(known)


def test_levels_that_change_places_agree_with_their_parts():
    """A part whose levels change places keeps its own relabellings: one part alone has the p of the contrast, and the
    minimum of two the larger of both."""
    levels = ["low", "mid", "high"]
    factors = {"dose": {"levels": levels, "values": {"low": 0, "mid": 1, "high": 2}}}
    items = {f"w{i}": {"w": {d: f"w{i}{d}" for d in levels}} for i in range(12)}
    parts = {"factors": factors, "frames": {"f": "It {w:dose} was"}, "items": items}
    design = Design.model_validate({"schema": "neurosae/design/1", "name": "dose", **parts})
    fake = simulate(design, n_features=12, density=0.6, effects={"dose": 2}, seed=2)
    region, how = str(fake.obs["region"].iloc[0]), {"statistic": "t", "n_permutations": 400, "correction": "none"}
    peak, every = {"dose": {"low": -1, "mid": 2, "high": -1}}, {"dose": "all"}
    alone = {}
    for name, effect in {"peak": peak, "all": every}.items():
        table = contrast(fake, effect, region=region, inference=how, seed=1)
        alone[name] = table[table["status"] == "ok"].set_index("feature")["p_unc"]
        assert set(table["p_method"].dropna()) == {"permutations"}
        found = combine(fake, {name: effect}, region=region, over="effect", inference=how, seed=1)
        found = found[found["status"] == "ok"].set_index("feature")["p_unc"]
        assert_allclose(found, alone[name], atol=1e-12)
    both = conjunction(fake, {"peak": peak, "all": every}, region=region, inference=how, seed=1)
    both = both[both["status"] == "ok"].set_index("feature")
    assert_allclose(both["p_unc"], pd.concat(alone, axis=1).loc[both.index].max(axis=1))
    assert "x_same_sign" not in both
    with pytest.raises(DataError, match="stouffer adds up parts of one direction"):
        combine(fake, {"peak": peak, "all": every}, region=region, over="effect", how="stouffer", inference=how, seed=1)
