"""ANOVA tables of selected features: car, afex, pingouin, statsmodels and scipy; relabelling beside; refusals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.design.expand import expand
from neurosae.errors import DataError, SpecError
from neurosae.spec.design import Design
from neurosae.stats.anova import anova
from neurosae.stats.anova_tables import anova_table
from neurosae.stats.simulate import responses_of, simulate
from neurosae.stats.worlds import world


def test_repeated_measures_agree_with_afex(oracles):
    """Three factors within 20 items: F, p and generalized eta squared of all seven terms."""
    expected = json.loads(oracles("anova_factorial.json").read_text())["repeated_2x2x2"]
    Y = np.loadtxt(oracles("inputs/rm_Y.csv"), delimiter=",")
    table = {":".join(t.factors): t for t in anova_table(Y, within={"A": 2, "B": 2, "C": 2}, between={})}
    for k, name in enumerate(expected["effect"]):
        one = table[name]
        assert_allclose([one.F, one.p, one.eta2_g], [expected[x][k] for x in ("F", "p", "ges")], rtol=1e-8)


def test_mixed_design_agrees_with_afex(oracles):
    """Groups of 8 and 12 items, A within: type III on cell means."""
    expected = json.loads(oracles("anova_factorial.json").read_text())["mixed_between_within"]
    Y = np.loadtxt(oracles("inputs/rm_Y.csv"), delimiter=",")
    Y = np.stack([Y[:, :4].mean(axis=1), Y[:, 4:].mean(axis=1)], axis=1)
    made = anova_table(Y, within={"A": 2}, between={"grp": (np.arange(20) >= 8).astype(int)})
    table = {":".join(sorted(t.factors, reverse=True)): t for t in made}
    for k, name in enumerate(expected["effect"]):
        one = table[name]
        assert_allclose([one.F, one.p, one.eta2_g], [expected[x][k] for x in ("F", "p", "ges")], rtol=1e-8)


def test_between_items_agrees_with_car(oracles):
    """Unbalanced two-way design: type III."""
    expected = json.loads(oracles("anova_factorial.json").read_text())["two_way_unbalanced"]["type3"]
    data = np.loadtxt(oracles("inputs/two_way.csv"), delimiter=",")
    a, b = (np.unique(data[:, k], return_inverse=True)[1] for k in (0, 1))
    table = anova_table(data[:, 2:], within={}, between={"A": a, "B": b})
    assert_allclose([t.F for t in table], expected["F"], rtol=1e-8)


def test_sphericity_agrees_with_pingouin():
    """Four levels within: F, epsilon, p with it, Mauchly's W and its p, partial and generalized eta squared."""
    import pingouin as pg

    rng = np.random.default_rng(0)
    Y = rng.standard_normal((18, 4)) @ np.diag([1, 1, 2, 3]) + rng.standard_normal((18, 1)) + [0, 0.5, 1, 1.5]
    long = pd.DataFrame(Y).melt(ignore_index=False, var_name="level", value_name="y").reset_index(names="item")
    (term,) = anova_table(Y, within={"level": 4}, between={})
    peer = pg.rm_anova(long, dv="y", within="level", subject="item", correction=True, detailed=True).iloc[0]
    assert_allclose([term.F, term.epsilon, term.W], [peer["F"], peer["eps"], peer["W_spher"]], rtol=1e-6)
    p = peer["p_GG_corr"] if "p_GG_corr" in peer else peer["p-GG-corr"]
    assert_allclose(term.p, p, rtol=1e-4)
    assert_allclose(term.eta2_g, peer["ng2"], rtol=1e-6)
    spher = pg.sphericity(long, dv="y", within="level", subject="item")
    assert_allclose(term.p_sphericity, spher.pval, rtol=2e-2)


def test_between_items_agrees_with_statsmodels():
    """Three by two groups of unequal size: type III by sum coding."""
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 3, 40), rng.integers(0, 2, 40)
    y = rng.standard_normal(40) + 0.5 * a
    fitted = smf.ols("y ~ C(a, Sum) * C(b, Sum)", pd.DataFrame({"y": y, "a": a, "b": b})).fit()
    peer = anova_lm(fitted, typ=3)
    table = anova_table(y[:, None], within={}, between={"a": a, "b": b})
    assert_allclose([t.F for t in table], peer["F"].iloc[1:4], rtol=1e-8)


def three(n_items, value):
    """Factors a (two levels) and b (three) within items; one feature with the given values (n_items, 2, 3)."""
    levels = {"a": ["a1", "a2"], "b": ["b1", "b2", "b3"]}
    items = {f"i{k}": {n: {v: f"{v}of{k}" for v in levels[n]} for n in "ab"} for k in range(n_items)}
    design = Design.model_validate(
        {"schema": "neurosae/design/1", "name": "t", "factors": levels, "frames": {"f": "{a:a} and {b:b} now"},
         "regions": {"end": {"words": [-1, -1]}}, "items": items}
    )  # fmt: skip
    fake = simulate(design, n_features=1, density=0.5, regions=("end",), seed=0)
    table = expand(design).loc[fake.obs["stimulus"].astype(str)]
    y = [value[int(r.item[1:]), int(r.a[1]) - 1, int(r.b[1]) - 1] for r in table.itertuples()]
    return responses_of(
        sp.csr_matrix(np.array(y)[:, None]), fake.obs.reset_index(drop=True), fake.var, design=design, provenance={}
    )


def test_rows_agree_with_scipy_and_with_relabelling():
    """F of a two-level term is the squared paired t; simple effects are paired t tests, corrected by Holm."""
    rng = np.random.default_rng(2)
    Y = 5 + rng.standard_normal((14, 2, 3))
    Y[:, 1, 2] += 1.5
    found = anova(three(14, Y), features=[0], region="end", inference={"n_permutations": 500}, seed=1)
    table = found[found["stat"] == "F"].set_index("effect")
    assert list(table.index) == ["a", "b", "a:b"]
    t = stats.ttest_rel(Y[:, 1].mean(axis=1), Y[:, 0].mean(axis=1))
    assert_allclose([table.loc["a", "value"], table.loc["a", "p_unc"]], [t.statistic**2, t.pvalue], rtol=1e-6)
    assert table.loc["b", "x_epsilon"] < 1
    assert abs(np.log(table.loc["a", "x_p_permutation"] / t.pvalue)) < 0.7
    simple = found[found["stat"] != "F"].set_index("effect")
    one = stats.ttest_rel(Y[:, 1, 2], Y[:, 0, 2])
    assert_allclose(simple.loc["a: a2 - a1 at b3", "p_unc"], one.pvalue, rtol=1e-5)
    assert "b: b3 - b1" in simple.index
    assert (simple["p_corr"] >= simple["p_unc"]).all()
    assert_allclose(simple["p_corr"].min(), min(1, simple["p_unc"].min() * len(simple)), rtol=1e-9)


def test_anova_keeps_every_feature_and_corrects_over_them():
    """A silent feature has a status and a reason; Holm counts the tested ones."""
    fake = world("C0", n_items=16, seed=0)
    silent = (
        int(np.flatnonzero(np.diff(sp.csc_matrix(fake.X).indptr) == 0)[0]) if (fake.X.sum(axis=0) == 0).any() else 0
    )
    found = anova(fake, features=sorted({0, 30, silent}), region="probe", seed=1)
    table = found[found["effect"] == "a"]
    assert len(table) == len({0, 30, silent})
    assert table["note"].notna().all()


def test_anova_refuses_many_and_unknown_features():
    """Tables are for few features that exist."""
    fake = world("C0", n_items=16, seed=0)
    with pytest.raises(SpecError, match="more than 50"):
        anova(fake, features=range(60), region="probe", seed=1)
    with pytest.raises(DataError, match="no feature 4000"):
        anova(fake, features=[4000], region="probe", seed=1)
