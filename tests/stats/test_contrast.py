"""Contrasts end to end: recovery, agreement with scipy and statsmodels, error rates, invariances, statuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import anndata
import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats
from statsmodels.formula.api import ols

from neurosae.errors import DataError, SpecError
from neurosae.extraction.responses import build_responses
from neurosae.spec.blocks import ContrastBlock, Inference
from neurosae.spec.design import Design
from neurosae.spec.results import stack
from neurosae.stats.contrast import contrast, null_rate, run
from neurosae.stats.simulate import example_design, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}


def crossed_design(n_items=24, **more):
    """Subject x attractor within items, two frames."""
    forms = {"sg": "key", "pl": "keys"}
    items = {f"i{k}": {s: {v: f"{w}{k}" for v, w in forms.items()} for s in ("head", "local")} for k in range(n_items)}
    frames = {k: f"The {{head:subject}} {k} the {{local:attractor}} is" for k in ("to", "near")}
    factors = {"subject": ["sg", "pl"], "attractor": ["sg", "pl"]}
    made = {"schema": "neurosae/design/1", "name": "crossed", "factors": factors, "frames": frames, "items": items}
    return Design.model_validate(made | more)


def with_values(adata, X):
    """The same rows with other responses."""
    m = X.shape[1]
    var = adata.var.iloc[:1].loc[[adata.var_names[0]] * m].assign(feature=np.arange(m, dtype=np.int32))
    var.index = [f"late/{j}" for j in range(m)]
    X = sp.csr_matrix(np.asarray(X, dtype=np.float32))
    return build_responses(X, adata.obs, var, design=_design(adata), provenance={})


def _design(adata):
    return Design.from_json(json.loads(adata.uns["neurosae"])["design"])


def item_means(adata, factor):
    """Item x level means of every feature by pandas alone."""
    table = pd.DataFrame(adata.X.toarray().astype(float), index=adata.obs_names)
    keys = [adata.obs["item"].astype(str).to_numpy(), adata.obs[factor].astype(str).to_numpy()]
    return table.groupby(keys, sort=False).mean()


@pytest.fixture(scope="module")
def within():
    return simulate(example_design(24), n_features=120, effects={"number": 8}, density=(0.1, 0.6), shift=4.0, seed=3)


@pytest.fixture(scope="module")
def between():
    design = example_design(40, between=True)
    return simulate(design, n_features=80, effects={"number": 6}, density=(0.2, 0.6), shift=6.0, seed=4)


@pytest.mark.parametrize("correction", ["maxT", "stepdown", "holm", "fdr_bh"])
def test_contrast_recovers_planted_features(within, correction):
    """Most of 8 planted features are found, with the right sign, and at most one other."""
    table = contrast(within, NUMBER, region="noun", seed=1, inference={"correction": correction})
    found = table[table["p_corr"] <= 0.05]
    assert (found["feature"] < 8).sum() >= 5
    assert (found["feature"] >= 8).sum() <= 1
    assert (found.loc[found["feature"] < 8, ["value", "estimate", "effsize", "x_z"]] > 0).all(axis=None)


def test_contrast_recovers_an_interaction_and_no_main_effect():
    """Features planted for subject x attractor answer to it and not to subject."""
    fake = simulate(crossed_design(), n_features=60, effects={"subject:attractor": 6}, density=0.5, shift=6.0, seed=2)
    subject = {"subject": {"pl": 1, "sg": -1}}
    effects = {"both": subject | {"attractor": {"pl": 1, "sg": -1}}, "subject": subject}
    table = contrast(fake, effects, region="local", seed=1)
    found = table[table["p_corr"] <= 0.05].groupby("effect", observed=True)["feature"].agg(set)
    assert len(found["both"] & set(range(6))) >= 4
    assert not found.get("subject", set())


def test_t_agrees_with_scipy_on_item_means(within):
    """The value, its degrees of freedom and its interval are the paired t test over items."""
    table = contrast(within, NUMBER, region="noun", seed=1, inference={"statistic": "t"}).query("status == 'ok'")
    y = item_means(within, "number").unstack()
    features = table["feature"].to_numpy(dtype=int)
    plus, minus = (y.xs(level, axis=1, level=1).to_numpy()[:, features] for level in ("pl", "sg"))
    known = stats.ttest_rel(plus, minus)
    assert_allclose(table["value"], known.statistic, rtol=1e-8)
    assert_allclose(table["ci_low"], known.confidence_interval().low, rtol=1e-8, atol=1e-12)
    assert_allclose(table["effsize"], (plus - minus).mean(axis=0) / (plus - minus).std(axis=0, ddof=1), rtol=1e-8)
    assert (table["dof"] == 23).all()


def test_signed_rank_agrees_with_scipy(within):
    """z and exact p of the Wilcoxon test with zeros left out (mid-ranks, no continuity correction)."""
    table = contrast(within, NUMBER, region="noun", seed=1, inference={"statistic": "signed_rank"})
    y = item_means(within, "number").unstack()
    for row in table.query("status == 'ok'").head(20).itertuples():
        d = (y[(row.feature, "pl")] - y[(row.feature, "sg")]).to_numpy()
        d = d[d != 0]
        ranks = stats.rankdata(np.abs(d)) * np.sign(d)
        assert row.value == pytest.approx(ranks.sum() / np.sqrt((ranks**2).sum()), rel=1e-10)
        if len(set(np.abs(d))) == len(d):
            assert row.p_unc == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, rel=1e-8)


def test_between_items_agrees_with_scipy(between):
    """Pooled t where groups have equal sizes; labels are permuted."""
    table = contrast(between, NUMBER, region="noun", seed=1, inference={"statistic": "t"}).query("status == 'ok'")
    y = item_means(between, "number").droplevel(0)
    features = table["feature"].to_numpy(dtype=int)
    known = stats.ttest_ind(y.loc["pl"].to_numpy()[:, features], y.loc["sg"].to_numpy()[:, features])
    assert_allclose(table["value"], known.statistic, rtol=1e-8)
    assert_allclose(table["se"] * table["value"], table["estimate"], rtol=1e-8)
    assert set(table["stat"]) == {"t"}
    assert set(table["p_method"]) == {"permutations"}


def test_unequal_groups_agree_with_welch(between):
    """Groups of 20 and 14: Welch's t and its degrees of freedom; the rank sum agrees with Mann and Whitney's z."""
    some = between[~between.obs["item"].isin([f"pl.{k}" for k in range(15, 21)]).to_numpy()].copy()
    table = contrast(some, NUMBER, region="noun", seed=1, inference={"statistic": "t"}).query("status == 'ok'")
    y = item_means(some, "number").droplevel(0)
    features = table["feature"].to_numpy(dtype=int)
    plus, minus = (y.loc[level].to_numpy()[:, features] for level in ("pl", "sg"))
    known = stats.ttest_ind(plus, minus, equal_var=False)
    assert set(table["stat"]) == {"welch_t"}
    assert_allclose(table["value"], known.statistic, rtol=1e-8)
    assert_allclose(table["dof"], known.df, rtol=1e-8)
    ranks = contrast(some, NUMBER, region="noun", seed=1, inference={"statistic": "signed_rank"}).query(
        "status == 'ok'"
    )
    p = stats.mannwhitneyu(plus, minus, use_continuity=False, method="asymptotic").pvalue
    assert_allclose(2 * stats.norm.sf(ranks["value"].abs().to_numpy(float)), p, rtol=1e-8)
    assert_allclose(table["x_auc"], stats.mannwhitneyu(plus, minus).statistic / (len(plus) * len(minus)))


def test_two_between_factors_agree_with_cell_means_of_statsmodels():
    """Cells weigh equally: the contrast of a 2 x 2 list is the coefficient of the saturated model."""
    lists = {a: {b: [{"text": f"The {a} {b} {k} ends"} for k in range(10)] for b in ("x", "y")} for a in ("lo", "hi")}
    factors = {"a": {"levels": ["lo", "hi"], "varies": "between"}, "b": {"levels": ["x", "y"], "varies": "between"}}
    made = {"schema": "neurosae/design/1", "name": "two", "factors": factors, "lists": lists}
    design = Design.model_validate(made | {"regions": {"end": {"words": [-1, -1]}}})
    fake = simulate(design, n_features=12, density=0.6, seed=1)
    table = contrast(fake, {"a": {"hi": 1, "lo": -1}}, region="end", seed=1, inference={"statistic": "t"})
    for row in table.query("status == 'ok'").itertuples():
        data = fake.obs[["a", "b"]].astype(str).assign(y=fake.X[:, row.feature].toarray().ravel().astype(float))
        fit = ols("y ~ C(a, Treatment('lo')) * C(b, Sum)", data).fit()
        assert row.value == pytest.approx(fit.tvalues.iloc[1], rel=1e-8)
        assert row.estimate == pytest.approx(fit.params.iloc[1], rel=1e-8)


def test_darwin_and_sleep_agree_with_published_p(oracles):
    """Differences of two published experiments as features of one response each."""
    known = json.loads(oracles("signflip.json").read_text())
    for name in ("darwin", "sleep"):
        d = np.array(known[name]["d"], dtype=float)
        fake = simulate(example_design(len(d)), n_features=1, seed=0)
        plus = (fake.obs["number"] == "pl").to_numpy()
        order = fake.obs["item"].str.removeprefix("item").astype(int).to_numpy()
        real = with_values(fake, np.where(plus, 100 + d[order], 100.0)[:, None])
        row = contrast(
            real, NUMBER, region="noun", seed=0, inference={"statistic": "t", "n_permutations": 40_000}
        ).iloc[0]
        assert row["value"] == pytest.approx(known[name]["t"], rel=1e-5)  # responses are stored in float32
        if name == "darwin":
            assert row["p_unc"] == row["p_corr"] == known[name]["p_flip"]


def test_null_rate_controls_error_on_responses_with_an_effect(within, between):
    """Shuffled labels bring the error rate to its level although the responses carry strong effects."""
    for fake in (within, between):
        row = null_rate(fake, NUMBER, region="noun", n_sets=60, inference={"n_permutations": 300}, seed=2).iloc[0]
        assert row["n_rejecting"] <= stats.binom.ppf(0.999, 60, 0.05)


def test_contrast_invariant_to_threads_order_and_other_tests(within):
    """Same seed, same numbers: on one thread, with shuffled features, beside another site and region order."""
    base = contrast(within, NUMBER, region="noun", seed=7)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    pd.testing.assert_frame_equal(base, contrast(within, NUMBER, region="noun", seed=7))
    numba.set_num_threads(before)
    order = np.random.default_rng(0).permutation(within.n_vars)
    mixed = contrast(within[:, order].copy(), NUMBER, region="noun", seed=7).sort_values("feature", ignore_index=True)
    assert_allclose(mixed["p_corr"], base["p_corr"])
    both = contrast({"a": within, "b": within}, NUMBER, region="noun", seed=7, inference={"correction": "none"})
    assert_allclose(both.query("site == 'b'")["p_unc"], base["p_unc"])


def test_contrast_invariant_to_sign_scale_and_dead_columns(within):
    """The mirrored effect flips every sign and no p; units and silent features change nothing."""
    base = contrast(within, NUMBER, region="noun", seed=7).query("status == 'ok'")
    mirrored = contrast(within, {"number": {"pl": -3, "sg": 3}}, region="noun", seed=7).query("status == 'ok'")
    assert_allclose(mirrored["value"], -base["value"], rtol=1e-6)
    assert_allclose(mirrored["p_corr"], base["p_corr"])
    wider = anndata.concat([within, with_values(within, np.zeros((within.n_obs, 5)))], axis=1)
    wider.obs, wider.uns = within.obs, within.uns
    wider.var["feature"] = np.arange(wider.n_vars, dtype=np.int32)
    padded = contrast(wider, NUMBER, region="noun", seed=7)
    assert_allclose(padded.query("status == 'ok'")["p_corr"], base["p_corr"])
    assert padded.query("status == 'dead'")["n_features"].sum() >= 5


def test_p_invariant_between_mean_t_and_moderated_t(within):
    """Per feature the three are monotone in one another, so their flip p is one number."""
    tables = [
        contrast(within, NUMBER, region="noun", seed=1, inference={"statistic": s})
        for s in ("mean", "t", "moderated_t")
    ]
    for other in tables[1:]:
        assert_allclose(other["p_unc"], tables[0]["p_unc"])


def test_every_status_has_its_row(within):
    """Dead, constant, one-item, tied, duplicated and identical-in-both-cells features: no warning, no silent loss."""
    rng = np.random.default_rng(0)
    plus = (within.obs["number"] == "pl").to_numpy()
    item = pd.factorize(within.obs["item"])[0]
    noise = rng.random(within.n_obs) + plus
    X = np.column_stack(
        [
            np.zeros(within.n_obs),
            np.where(plus, 3.0, 1.0),
            np.where((item == 4) & plus, 1.0, 0.0),
            np.where(item < 12, np.where(item % 2 == plus, 1.0, 2.0), 0.0),
            noise,
            noise,
            1.0 + item,
        ]
    )
    table = contrast(with_values(within, X), NUMBER, region="noun", seed=1)
    status = dict(zip(table["feature"].fillna(0), table["status"], strict=True))
    expected = ["dead", "degenerate", "untestable", "ok", "ok", "ok", "untestable"]
    assert [status[j] for j in range(7)] == expected
    ok = table[table["status"] == "ok"]
    assert ok[["value", "estimate", "se", "ci_low", "ci_high", "p_unc", "p_corr", "p_min"]].notna().all(axis=None)
    assert set(table["n_family"]) == {4}
    assert ok.loc[ok["feature"] == 3, "p_corr"].item() == 1.0


def study_of(effects, **inference):
    spec = SimpleNamespace(
        seed=1, effects=effects, inference=Inference(**inference), tests={}, report=SimpleNamespace(top_features=3)
    )
    return SimpleNamespace(spec=spec)


def test_run_restricts_to_features_of_an_earlier_localizer():
    """The family is the chosen set; the rest has no row; extras hold the best features."""
    design = crossed_design(32, partition={"localizer": 16, "seed": 7})
    fake = {"late": simulate(design, n_features=60, effects={"subject": 6}, density=0.4, shift=5.0, seed=2)}
    study = study_of({"subject": {"subject": {"pl": 1, "sg": -1}}})
    find = ContrastBlock(test="contrast", effect="subject", region="head", split="localizer")
    confirm = ContrastBlock.model_validate(
        {"test": "contrast", "effect": "subject", "region": "head", "features": {"from": "find", "top": 5}}
    )
    study.spec.tests = {"find": find, "confirm": confirm}
    done = {"find": run(fake, find, study=study, earlier={}, rng=None)}
    done["confirm"] = run(fake, confirm, study=study, earlier=done, rng=None)
    table = done["confirm"].table
    assert set(table["set"]) == {"find top 5"}
    assert table["n_features"].sum() == 5
    assert set(table["n_family"]) == {len(table.query("status == 'ok'"))}
    assert done["confirm"].extras["items"].groupby("feature").size().eq(16).all()
    assert len(stack(done, study.spec.inference)) == sum(len(t.table) for t in done.values())
    with pytest.raises(DataError, match="same items"):
        run(fake, find.model_copy(update={"features": confirm.features}), study=study, earlier=done, rng=None)


def test_families_are_joined_by_the_maximum():
    """Two tests as one family equal one test of both effects."""
    fake = {"late": simulate(crossed_design(), n_features=50, effects={"subject": 5}, density=0.5, shift=5.0, seed=2)}
    effects = {name: {name: {"pl": 1, "sg": -1}} for name in ("subject", "attractor")}
    study = study_of(effects, families={"all": ["subject", "attractor"]})
    blocks = {name: ContrastBlock(test="contrast", effect=name, region="head") for name in effects}
    study.spec.tests = blocks
    joined = stack(
        {name: run(fake, b, study=study, earlier={}, rng=None) for name, b in blocks.items()}, study.spec.inference
    )
    together = contrast(fake, effects, region="head", seed=1)
    assert_allclose(joined["p_corr"], together["p_corr"])
    assert set(joined["n_family"]) == set(together["n_family"])


def test_contrast_refuses_too_few_items():
    """The message counts the flips and names the remedy."""
    fake = simulate(example_design(4), n_features=20, density=0.5, seed=1)
    with pytest.raises(DataError, match=r"4 items in split 'test' allow 16 sign flips; .* 0.125.*at least 6 items"):
        contrast(fake, NUMBER, region="noun", seed=1)


def test_contrast_refuses_unknown_names(within):
    """Regions, options and factors are named with what is known."""
    with pytest.raises(DataError, match=r"unknown region .* 'nown'\. Did you mean 'noun'"):
        contrast(within, NUMBER, region="nown", seed=1)
    with pytest.raises(DataError, match="inference: correction"):
        contrast(within, NUMBER, region="noun", seed=1, inference={"correction": "bonferroni"})
    with pytest.raises(SpecError, match="numbr"):
        contrast(within, {"numbr": {"pl": 1, "sg": -1}}, region="noun", seed=1)
