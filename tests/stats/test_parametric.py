"""Parametric models of an effect: agreement with scipy and statsmodels, the p of flips beside, refusals, statuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.regression.mixed_linear_model import MixedLM

from neurosae.errors import DataError, SpecError
from neurosae.extraction.responses import build_responses, design_of
from neurosae.spec.blocks import Inference, ParametricBlock, ParametricModel
from neurosae.spec.design import Design
from neurosae.stats.contrast import contrast
from neurosae.stats.crossed import min_f
from neurosae.stats.parametric import parametric, run
from neurosae.stats.parametric_models import MODELS
from neurosae.stats.simulate import example_design, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}
FRAMES = {f"f{k}": f"The {{noun:number}} near {w} box" for k, w in enumerate("my your his her our the one".split())}


def framed(n_frames=6, n_items=14):
    """Number within items, some frames."""
    items = {f"i{k}": {"noun": {"sg": f"cup{k}", "pl": f"cups{k}"}} for k in range(n_items)}
    made = {"schema": "neurosae/design/1", "name": "framed", "factors": {"number": ["sg", "pl"]}, "items": items}
    return Design.model_validate(made | {"frames": dict(list(FRAMES.items())[:n_frames])})


def grouped(n_items=16, n_frames=4):
    """Kind between items, number within them, some frames."""
    items = {
        f"i{k}": {"kind": ("tool", "food")[k % 2], "noun": {"sg": f"cup{k}", "pl": f"cups{k}"}} for k in range(n_items)
    }
    factors = {"kind": {"levels": ["tool", "food"], "varies": "between"}, "number": ["sg", "pl"]}
    made = {"schema": "neurosae/design/1", "name": "grouped", "factors": factors, "items": items}
    return Design.model_validate(made | {"frames": dict(list(FRAMES.items())[:n_frames])})


def long(adata, feature):
    """The responses of one feature at the noun, one row per stimulus."""
    adata = adata[(adata.obs["region"] == "noun").to_numpy()]
    column = np.asarray(adata.X[:, [feature]].todense()).ravel()
    return adata.obs[["item", "frame", *design_of(adata).factors]].astype(str).assign(y=column.astype(float))


def differences(adata, feature):
    """Item x frame table of pl - sg."""
    table = long(adata, feature).pivot_table(index="item", columns=["number", "frame"], values="y", sort=False)
    return (table["pl"] - table["sg"]).to_numpy()


@pytest.fixture(scope="module")
def within():
    return simulate(framed(), n_features=25, density=(0.3, 0.7), effects={"number": 3}, shift=5.0, seed=2)


@pytest.fixture(scope="module")
def between():
    return simulate(grouped(), n_features=25, density=(0.3, 0.7), effects={"kind": 3}, shift=5.0, seed=3)


KIND = {"kind": {"tool": 1, "food": -1}}


def fitted(adata, effect, model, **settings):
    """The rows with numbers, uncorrected so that mixed models do not ask for a choice of features."""
    settings = {"correction": "none"} | settings
    table = parametric(adata, effect, region="noun", model=model, settings=settings, seed=1)
    return table[table["status"] == "ok"]


def test_ols_agrees_with_the_paired_t_of_item_means(within):
    """Frames are averaged first; n is the number of items."""
    for row in fitted(within, NUMBER, "ols").itertuples():
        known = stats.ttest_1samp(differences(within, row.feature).mean(axis=1), 0)
        assert_allclose([row.value, row.p_unc], [known.statistic, known.pvalue], rtol=1e-8)
        assert_allclose([row.ci_low, row.ci_high], known.confidence_interval(), rtol=1e-8)
        assert (row.dof, row.n_units) == (13, 14)


def test_ols_agrees_with_two_groups_of_items(between):
    """Between items: the pooled t of item means; HC3 that of statsmodels."""
    robust = fitted(between, KIND, "hc3").set_index("feature")
    for row in fitted(between, KIND, "ols").itertuples():
        means = long(between, row.feature).groupby(["item", "kind"], sort=False)["y"].mean().reset_index()
        groups = [means.loc[means["kind"] == kind, "y"] for kind in ("tool", "food")]
        assert_allclose(row.value, stats.ttest_ind(*groups).statistic, rtol=1e-8)
        X = np.column_stack([means["kind"] == kind for kind in ("tool", "food")]).astype(float)
        known = OLS(means["y"].to_numpy(), X).fit().get_robustcov_results("HC3").t_test([1, -1])
        assert_allclose(robust.loc[row.feature, "value"], known.tvalue[0, 0], rtol=1e-8)


@pytest.mark.parametrize("rows", ["cells", "stimuli"])
def test_cluster_agrees_with_statsmodels(within, rows):
    """CR1 by item; t on n_items - 1 degrees of freedom."""
    for row in fitted(within, NUMBER, "cluster", rows=rows).head(8).itertuples():
        table = long(within, row.feature)
        if rows == "cells":
            table = table.groupby(["item", "number"], sort=False)["y"].mean().reset_index()
        X = pd.get_dummies(table["number"])[["sg", "pl"]].to_numpy(dtype=float)
        if rows == "stimuli":
            X = np.column_stack([X, pd.get_dummies(table["frame"]).iloc[:, 1:].to_numpy(dtype=float)])
        groups = pd.factorize(table["item"])[0]
        known = OLS(table["y"].to_numpy(), X).fit().get_robustcov_results("cluster", groups=groups)
        weights = np.r_[-1, 1, np.zeros(X.shape[1] - 2)]
        assert_allclose(row.value, known.t_test(weights).tvalue.item(), rtol=1e-8)
        assert row.dof == 13


def test_item_intercept_agrees_with_statsmodels(between):
    """Effects between items: the estimate and error of MixedLM where it converges inside."""
    seen = 0
    for row in fitted(between, KIND, "item_intercept").itertuples():
        if row.x_var_item < 0.05 * row.x_var_resid or seen == 5:
            continue
        table = long(between, row.feature)
        X = pd.get_dummies(table["kind"] + table["number"])[["toolsg", "toolpl", "foodsg", "foodpl"]].to_numpy(float)
        X = np.column_stack([X, pd.get_dummies(table["frame"]).iloc[:, 1:].to_numpy(dtype=float)])
        known = MixedLM(table["y"].to_numpy(), X, groups=pd.factorize(table["item"])[0]).fit(reml=True)
        if known.converged:
            seen += 1
            weights = np.r_[0.5, 0.5, -0.5, -0.5, np.zeros(3)]
            found = known.t_test(np.atleast_2d(weights))
            assert_allclose(row.estimate, found.effect.item(), rtol=1e-3, atol=1e-4)
            assert_allclose(row.se, found.sd.item(), rtol=1e-2)
    assert seen >= 3


def test_min_f_agrees_with_its_definition(within):
    """F1, F2 and p are those of the item x frame table of differences."""
    for row in fitted(within, NUMBER, "min_f").itertuples():
        known = min_f(differences(within, row.feature))
        assert_allclose([row.value, row.dof, row.p_unc], [known.value, known.dof, known.p], rtol=1e-8)
        assert_allclose([row.x_F1, row.x_F2], [known.F1, known.F2], rtol=1e-8)
        assert row.x_n_frames == 6


def test_min_f_between_items_agrees_with_two_tests(between):
    """F1: pooled t of two groups of items; F2: paired t of the groups over frames."""
    design = grouped(n_frames=7)
    adata = simulate(design, n_features=5, density=0.5, seed=4)
    for row in fitted(adata, KIND, "min_f").itertuples():
        table = long(adata, row.feature)
        means = table.groupby(["item", "kind"], sort=False)["y"].mean().reset_index()
        f1 = stats.ttest_ind(*(means.loc[means["kind"] == k, "y"] for k in ("tool", "food"))).statistic ** 2
        by_frame = table.groupby(["frame", "kind"])["y"].mean().unstack()
        f2 = stats.ttest_rel(by_frame["tool"], by_frame["food"]).statistic ** 2
        assert_allclose([row.x_F1, row.x_F2], [f1, f2], rtol=1e-8)
        assert_allclose(row.dof, (f1 + f2) ** 2 / (f1**2 / 6 + f2**2 / 14), rtol=1e-8)


def test_crossed_is_at_least_as_wide_as_items_alone(within):
    """The claim over items and frames has an error that is not below that of item means, and three variances."""
    both, alone = (fitted(within, NUMBER, model).set_index("feature") for model in ("crossed", "ols"))
    assert (both["se"] >= alone["se"] * 0.999).mean() > 0.7
    assert both[["x_var_item", "x_var_frame", "x_var_resid"]].ge(0).all(axis=None)
    assert_allclose(both["estimate"], alone.loc[both.index, "estimate"], rtol=1e-6)


def test_items_that_share_forms_are_one_unit():
    """Two of three items share a noun: their mean difference is one number, in every model."""
    items = {
        f"i{k}": {"noun": {"sg": f"cup{k - (k % 3 == 1)}", "pl": f"cups{k - (k % 3 == 1)}"}, "at": f"box{k}"}
        for k in range(24)
    }
    made = {"schema": "neurosae/design/1", "name": "shared", "factors": {"number": ["sg", "pl"]}, "items": items}
    made["frames"] = {
        f"f{k}": f"The {{noun:number}} near {w} {{at}}" for k, w in enumerate("my your his her our the".split())
    }
    adata = simulate(Design.model_validate(made | {"unit": "shared_forms"}), n_features=6, density=0.5, seed=6)
    both = fitted(adata, NUMBER, "min_f").set_index("feature")
    for row in fitted(adata, NUMBER, "ols").itertuples():
        d = differences(adata, row.feature)
        units = np.array([d[k : k + 2].mean(axis=0) if k % 3 == 0 else d[k] for k in range(24) if k % 3 != 1])
        assert_allclose(row.value, stats.ttest_1samp(units.mean(axis=1), 0).statistic, rtol=1e-8)
        assert_allclose(both.loc[row.feature, "value"], min_f(units).value, rtol=1e-8)
        assert_allclose(row.x_p_flips, both.loc[row.feature, "x_p_flips"])
        assert row.n_units == 16


def test_limma_trend_recovers_planted_features(within):
    """The screen finds the planted features; its t is that of shrunken variances on more degrees of freedom."""
    table = parametric(within, NUMBER, region="noun", model="limma_trend", seed=1)
    assert set(table.loc[table["p_corr"] <= 0.05, "feature"]) >= {0, 1, 2}
    assert (table["dof"].dropna() > 13).all()
    assert table.loc[table["status"] == "ok", "note"].str.contains("parametric screen").all()


@pytest.mark.parametrize("model", MODELS)
def test_p_of_relabellings_stands_beside(within, between, model):
    """Every row says parametric, what it assumes, and the exact p of the same contrast."""
    adata, effect = (between, KIND) if model == "item_intercept" else (within, NUMBER)
    table = fitted(adata, effect, model).set_index("feature")
    known = contrast(adata, effect, region="noun", seed=1, inference={"statistic": "t", "correction": "none"})
    known = known.set_index("feature").loc[table.index]
    assert (table["p_method"] == "parametric").all()
    assert table["note"].str.startswith("parametric").all()
    assert_allclose(table["x_p_flips"], known["p_unc"])
    assert (table["x_flips"] == known["p_method"]).all()
    assert ("frames fixed" in table["note"].iloc[0]) == (model not in ("crossed", "min_f"))


def test_cluster_tests_what_no_relabelling_can():
    """Weights that are no product of between and within: no flip p, and the row says why."""
    adata = simulate(grouped(), n_features=6, density=0.5, seed=4)
    effect = {"cells": {"tool/pl": 1, "food/sg": -1}}
    table = fitted(adata, effect, "cluster")
    assert len(table) == 6
    assert table["x_p_flips"].isna().all()
    assert table["note"].str.contains("no flip p").all()


def test_correction_and_alternative():
    """BH over the finite p; one-sided p are halves; min-F' has no direction."""
    adata = simulate(example_design(16), n_features=30, density=(0.3, 0.7), effects={"number": 3}, seed=5)
    table = parametric(adata, NUMBER, region="noun", model="ols", seed=1).query("status == 'ok'")
    assert_allclose(table["p_corr"], stats.false_discovery_control(table["p_unc"]))
    assert (table["n_family"] == len(table)).all()
    greater = fitted(adata, NUMBER, "ols", alternative="greater")
    expected = np.where(table["value"] > 0, table["p_unc"] / 2, 1 - table["p_unc"] / 2)
    assert_allclose(greater["p_unc"], expected, rtol=1e-9)
    with pytest.raises(DataError, match="no direction"):
        fitted(adata, NUMBER, "min_f", alternative="less")


def test_every_feature_is_accounted_for(within):
    """Dead, untestable, constant and ok features: one row each, dead ones together, no numbers where there are none."""
    X = np.asarray(within.X.todense()).copy()
    X[:, 0] = 0
    X[:, 1] = 0
    X[:3, 1] = 1
    X[:, 2] = (within.obs["number"] == "pl").to_numpy() * 2.0
    design = design_of(within)
    adata = build_responses(sp.csr_matrix(X), within.obs, within.var, design=design, provenance={})
    table = parametric(adata, NUMBER, region="noun", model="ols", seed=1).set_index("feature")
    assert table["n_features"].sum() == 25
    assert table.loc[1, "status"] == "untestable"
    assert (table["status"] == "dead").sum() == 1
    assert table.loc[2, "status"] == "degenerate"
    assert "no variance is left" in table.loc[2, "note"]
    assert np.isnan([table.loc[2, "p_unc"], table.loc[2, "p_corr"]]).all()


def test_nothing_to_test_is_said_without_numbers(within):
    """Responses without a single testable feature give dead and untestable rows and no error."""
    X = np.zeros(within.shape)
    X[:2, 0] = 1
    adata = build_responses(sp.csr_matrix(X), within.obs, within.var, design=design_of(within), provenance={})
    table = parametric(adata, NUMBER, region="noun", model="min_f", seed=1)
    assert table["status"].tolist() == ["untestable", "dead"]
    assert table["p_corr"].isna().all()


def test_run_answers_a_block(within):
    """A block of an analysis gives the rows of the function, under its own name."""
    ask = ParametricBlock(test="parametric", effect="number", region="noun", model="min_f")
    spec = SimpleNamespace(tests={"both": ask}, effects={"number": NUMBER}, inference=Inference(), seed=1)
    spec.effects = {"number": NUMBER}
    found = run({"simulated": within}, ask, study=SimpleNamespace(spec=spec), earlier={}, rng=None).table
    same = parametric(within, NUMBER, region="noun", model="min_f", seed=1)
    assert (found["test"] == "both").all()
    assert_allclose(found["p_corr"].astype(float), same["p_corr"].astype(float))


def test_models_refuse_prompts_as_replicates(within):
    """Stimuli or cells of one item are not independent rows."""
    with pytest.raises(DataError, match="168 stimuli come from 14 items: prompts of one item repeat its words"):
        fitted(within, NUMBER, "ols", rows="stimuli")
    with pytest.raises(DataError, match="28 cells come from 14 items"):
        fitted(within, NUMBER, "hc3", rows="cells")


def test_item_intercept_refuses_an_effect_within_items(within, between):
    """The sentence names the valid model; interactions of between x within are within."""
    with pytest.raises(DataError, match=r"no valid error term .* is in balanced data the paired t test"):
        fitted(within, NUMBER, "item_intercept")
    with pytest.raises(DataError, match="varies within items"):
        fitted(between, KIND | NUMBER, "item_intercept")


def test_crossed_models_refuse_few_frames_and_groups(between):
    """Below 6 frames nothing is claimed over them, and crossed intercepts do not carry an effect between items."""
    with pytest.raises(DataError, match="4 frames cannot carry a claim over frames: it needs at least 6"):
        fitted(between, KIND, "min_f")
    adata = simulate(grouped(n_frames=6), n_features=5, density=0.5, seed=4)
    with pytest.raises(DataError, match="Use model min_f"):
        fitted(adata, KIND, "crossed")


def test_mixed_models_refuse_p_over_many_features():
    """Corrected p of a mixed model only for features chosen elsewhere."""
    adata = simulate(framed(), n_features=60, density=0.5, seed=4)
    with pytest.raises(DataError, match="at most 50 features, not 60"):
        parametric(adata, NUMBER, region="noun", model="crossed", seed=1)
    table = parametric(adata, NUMBER, region="noun", model="crossed", features=[3, 8], seed=1)
    assert table["feature"].tolist() == [3, 8]
    assert table["p_corr"].notna().all()


def test_slopes_and_omnibus_effects_are_no_contrast(within):
    """Nothing is guessed: such effects have a test of their own."""
    with pytest.raises((DataError, SpecError), match=r"no single contrast of cells|no relabelling"):
        fitted(within, {"number": "all"}, "cluster")


def test_settings_are_checked(within):
    """Unknown models, keys and rows are named."""
    with pytest.raises(DataError, match="model"):
        parametric(within, NUMBER, region="noun", model="anova", seed=1)
    with pytest.raises(DataError, match="model min_f has rows of its own"):
        fitted(within, NUMBER, "min_f", rows="items")


def test_models_are_those_of_the_schema():
    """What YAML may name is what the code can do."""
    assert set(get_args(ParametricModel)) == set(MODELS)


def stratified(design):
    """The same with topics a and b as strata."""
    parts = design.model_dump(by_alias=True, exclude_none=True)
    items = {name: {**forms, "topic": "ab"[k // 8]} for k, (name, forms) in enumerate(parts["items"].items())}
    return Design.model_validate(parts | {"items": items, "labels": ["topic"], "strata": "topic"})


def test_strata_agree_with_a_factor_of_statsmodels(between):
    """Effects between items have a column per stratum, and say so; effects within items need none."""
    fake = simulate(stratified(grouped()), n_features=10, density=0.6, effects={"kind": 2}, shift=2.0, seed=1)
    rows = fitted(fake, KIND, "ols")
    assert all("the strata (topic) are a fixed factor" in note for note in rows["note"])
    for row in rows.itertuples():
        means = long(fake, row.feature).groupby("item", sort=False).agg({"y": "mean", "kind": "first"})
        X = np.column_stack([means["kind"] == "tool", means["kind"] == "food", np.arange(16) // 8]).astype(float)
        known = OLS(means["y"].to_numpy(), X).fit().t_test([1, -1, 0])
        assert_allclose([row.value, row.dof], [known.tvalue.item(), known.df_denom], rtol=1e-8)
    assert not fitted(fake, NUMBER, "ols")["note"].str.contains("strata").any()
    assert not fitted(between, KIND, "ols")["note"].str.contains("strata").any()


@pytest.mark.parametrize("model", ["hc3", "limma_trend", "cluster", "item_intercept"])
def test_strata_are_regressed_out_by_every_model(model):
    """A shift of one topic is no noise: no model's answer changes with its size."""
    fake = simulate(stratified(grouped()), n_features=10, density=1.0, effects={"kind": 2}, shift=1.0, seed=1)
    moved, late = fake.copy(), fake.obs["item"].astype(str).isin([f"i{k}" for k in range(8, 16)]).to_numpy()
    moved.X = sp.csr_matrix(moved.X.toarray() + 50.0 * late[:, None])
    here, there = fitted(fake, KIND, model), fitted(moved, KIND, model)
    assert_allclose(there["estimate"], here["estimate"], atol=1e-4)
    assert_allclose(there["se"], here["se"], rtol=0.05 if model == "limma_trend" else 1e-3)


def test_strata_are_refused_by_min_f():
    """Means over frames have no strata."""
    fake = simulate(stratified(grouped(n_frames=6)), n_features=4, density=1.0, seed=1)
    with pytest.raises(DataError, match="strata of items have no place; use model ols"):
        fitted(fake, KIND, "min_f")
