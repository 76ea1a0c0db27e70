"""Contrasts beside nuisance, and slopes on a covariate, from responses to rows: agreement with OLS, notes, refusals."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from numpy.testing import assert_allclose

from neurosae.errors import DataError, SpecError
from neurosae.spec.design import Design
from neurosae.spec.results import check_results
from neurosae.stats.contrast import contrast, null_rate
from neurosae.stats.moderation import fit_prior
from neurosae.stats.simulate import simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}
T = {"statistic": "t", "n_permutations": 999}


def design_of_nouns(n=24, **parts):
    """Items in two forms that carry a frequency and a topic."""
    items = {
        f"i{k}": {"noun": {"sg": f"w{k}", "pl": f"w{k}s"}, "frequency": float((7 * k) % 11), "topic": "ab"[k % 2]}
        for k in range(n)
    }
    base = {
        "schema": "neurosae/design/1",
        "name": "nouns",
        "factors": {"number": ["sg", "pl"]},
        "covariates": ["frequency"],
        "labels": ["topic"],
        "frames": {"f": "The {noun:number}"},
        "items": items,
    }
    return Design.from_json(json.dumps(base | parts))


def design_of_groups():
    """Nouns of two kinds and two sizes, of unequal numbers, in two forms, that carry a frequency."""
    rng = np.random.default_rng(3)
    items = {
        f"i{k}": {
            "noun": {"sg": f"w{k}", "pl": f"w{k}s"},
            "kind": "animal" if k < 10 else "tool",
            "size": ["small", "large"][int(k % 3 == 0)],
            "frequency": float(rng.integers(0, 9)),
            "topic": "ab"[k % 2],
        }
        for k in range(24)
    }
    kind = {"levels": ["tool", "animal"], "varies": "between"}
    size = {"levels": ["small", "large"], "varies": "between"}
    return design_of_nouns(factors={"kind": kind, "size": size, "number": ["sg", "pl"]}, items=items)


def responses(design=None, *, longer=1.0, density=0.5, seed=1, n_features=40):
    """Responses whose + condition is some tokens longer, by another number in every item."""
    fake = simulate(design or design_of_nouns(), n_features=n_features, density=density, seed=seed)
    rng = np.random.default_rng(seed)
    more = rng.integers(0, 3, fake.n_obs) * longer
    plus = np.ones(fake.n_obs) if "number" not in fake.obs else (fake.obs["number"].astype(str) == "pl").to_numpy()
    fake.obs["n_tokens"] = (1 + plus * more).astype(np.int32)
    return fake


def by_item(fake, column=None, weights=None):
    """Item differences pl - sg (or means) of the features, or of a column of obs."""
    frame = pd.DataFrame(fake.X.toarray().astype(float)) if column is None else fake.obs[[column]].astype(float)
    frame = frame.set_axis(range(frame.shape[1]), axis=1).reset_index(drop=True)
    item, pl = fake.obs["item"].astype(str).to_numpy(), fake.obs["number"].astype(str).to_numpy() == "pl"
    sides = [frame[pl == side].groupby(item[pl == side], sort=False).mean() for side in (True, False)]
    return (sides[0] - sides[1] if weights is None else (sides[0] + sides[1]) / 2).to_numpy()


def ok(table):
    return table[table["status"] == "ok"]


# ------------------------------------------------------------------ agrees


def test_within_items_agrees_with_statsmodels():
    """Estimate, standard error, t and interval of d ~ 1 + z with z uncentred, and the raw mean beside them."""
    fake = responses()
    found = ok(contrast(fake, NUMBER, region="noun", seed=1, inference=T | {"nuisance": ["n_tokens"]}))
    D, z = by_item(fake), by_item(fake, "n_tokens")
    fits = [sm.OLS(D[:, f], np.column_stack([np.ones(24), z])).fit() for f in found.feature]
    assert_allclose(found["estimate"], [f.params[0] for f in fits], rtol=1e-9)
    assert_allclose(found["se"], [f.bse[0] for f in fits], rtol=1e-9)
    assert_allclose(found["value"], [f.tvalues[0] for f in fits], rtol=1e-9)
    assert_allclose(found[["ci_low", "ci_high"]], [f.conf_int()[0] for f in fits], rtol=1e-8)
    assert_allclose(found["x_estimate_unadjusted"], D.mean(axis=0)[found.feature], rtol=1e-6)
    x = np.ones(24) - z[:, 0] * z.sum() / (z**2).sum()
    assert_allclose(found["x_vif"], 24 / (x @ x))
    assert_allclose(found["effsize"], found["estimate"] / [np.sqrt(f.scale) for f in fits], rtol=1e-9)
    assert (found["dof"] == 22).all()


def test_moderated_t_agrees_with_its_equation():
    """The prior is fitted to |R d|^2 / (n - k), which flips leave as it is, over the trend of all kept features."""
    fake = responses()
    found = ok(contrast(fake, NUMBER, region="noun", seed=1, inference={"nuisance": ["n_tokens"]}))
    D, z = by_item(fake)[:, found.feature], by_item(fake, "n_tokens")
    E = D - z @ (z.T @ D) / (z**2).sum()
    x = np.ones(24) - z[:, 0] * z.sum() / (z**2).sum()
    d0, s02 = fit_prior((E**2).sum(axis=0) / 23, 23, np.log(fake.X.toarray()[:, found.feature].mean(axis=0)))
    b = x @ D / (x @ x)
    rss = (E**2).sum(axis=0) - b**2 * (x @ x)
    assert_allclose(found["x_d0"], d0, rtol=1e-5)
    assert_allclose(found["value"], b * np.sqrt(x @ x) / np.sqrt((d0 * s02 + rss) / (d0 + 22)), rtol=1e-5)
    assert_allclose(found["dof"], d0 + 22, rtol=1e-5)


def test_between_items_agrees_with_statsmodels():
    """Adjusted difference of two kinds: contrast of the means of all four groups + nuisance, pooled; sizes are held."""
    fake = responses(design_of_groups())
    effect = {"kind": {"animal": 1, "tool": -1}}
    found = ok(contrast(fake, effect, region="noun", seed=1, inference=T | {"nuisance": ["frequency"]}))
    obs = fake.obs.drop_duplicates("item")
    cells = [("tool", "small"), ("tool", "large"), ("animal", "small"), ("animal", "large")]
    groups = [((obs["kind"] == kind) & (obs["size"] == size)).to_numpy(dtype=float) for kind, size in cells]
    X, weights = np.column_stack([*groups, obs["frequency"]]), [-0.5, -0.5, 0.5, 0.5, 0]
    tests = [sm.OLS(y, X).fit().t_test(weights) for y in by_item(fake, weights="mean").T[found.feature]]
    assert_allclose(found["estimate"], [t.effect.item() for t in tests], rtol=1e-5)
    assert_allclose(found["value"], [t.tvalue.item() for t in tests], rtol=1e-5)
    assert set(found["stat"]) == {"t"}
    assert set(found["eftype"]) == {"d"}
    assert set(found["p_method"]) == {"permutations (approximate)"}


def test_a_slope_inside_groups_agrees_with_statsmodels():
    """Means of groups between items are not part of the slope; values move inside groups."""
    fake = responses(design_of_groups())
    found = ok(contrast(fake, {"slope": "frequency"}, region="noun", seed=1, inference=T))
    obs = fake.obs.drop_duplicates("item")
    groups = pd.get_dummies(obs["kind"].astype(str) + obs["size"].astype(str)).to_numpy(dtype=float)
    X = np.column_stack([obs["frequency"], groups])
    fits = [sm.OLS(y, X).fit() for y in by_item(fake, weights="mean").T[found.feature]]
    assert_allclose(found["estimate"], [f.params[0] for f in fits], rtol=1e-5)
    assert_allclose(found["value"], [f.tvalues[0] for f in fits], rtol=1e-5)
    assert set(found["p_method"]) == {"permutations"}


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("nuisance", [[], ["n_tokens"]])
def test_slopes_agree_with_statsmodels(difference, nuisance):
    """Slope per unit of the covariate, of item means and of item differences, alone and beside nuisance."""
    fake = responses()
    effect = {"slope": "frequency"} | (NUMBER if difference else {})
    asked = T | {"statistic": "slope", "nuisance": nuisance}
    found = ok(contrast(fake, effect, region="noun", seed=1, inference=asked))
    weights = None if difference else "mean"
    Y, x = by_item(fake, weights=weights), by_item(fake, "frequency", weights="mean")
    Z = [by_item(fake, name, weights=weights) for name in nuisance]
    fits = [sm.OLS(Y[:, f], np.column_stack([x, np.ones(24), *Z])).fit() for f in found.feature]
    alone = [sm.OLS(Y[:, f], np.column_stack([x, np.ones(24)])).fit() for f in found.feature]
    assert_allclose(found["estimate"], [f.params[0] for f in fits], rtol=1e-6)
    assert_allclose(found["se"], [f.bse[0] for f in fits], rtol=1e-6)
    assert_allclose(found["value"], [f.tvalues[0] for f in fits], rtol=1e-6)
    assert_allclose(found["effsize"], [f.tvalues[0] / np.sqrt(f.df_resid + f.tvalues[0] ** 2) for f in fits], rtol=1e-6)
    assert set(found["eftype"]) == {"r"}
    assert found["h0"].str.contains("does not depend on its frequency").all()
    if nuisance:
        assert_allclose(found["x_estimate_unadjusted"], [f.params[0] for f in alone], rtol=1e-6)
        assert found["note"].str.contains("approximate").all()
        assert found["h0"].str.endswith(", at equal n_tokens").all()
    else:
        assert not found["note"].fillna("").str.contains("approximate").any()


def test_p_of_a_slope_agrees_with_permuted_correlations():
    """Counted p of the slope is the permutation p of Pearson's correlation, within Monte-Carlo error."""
    fake = responses()
    found = ok(contrast(fake, {"slope": "frequency"}, region="noun", seed=1, inference=T | {"n_permutations": 4000}))
    Y, x = by_item(fake, weights="mean"), by_item(fake, "frequency", weights="mean")[:, 0]
    moved = np.random.default_rng(1).permuted(np.tile(x, (4000, 1)), axis=1)
    r = np.abs((moved - x.mean()) @ (Y - Y.mean(axis=0)))
    p = (r >= np.abs((x - x.mean()) @ (Y - Y.mean(axis=0))) * (1 - 1e-9)).mean(axis=0)[found.feature]
    assert np.abs(found["p_unc"] - p).max() < 4.5 * np.sqrt(2 * 0.25 / 4000)


def test_p_between_items_agrees_with_all_literal_refits():
    """Two groups of three beside nuisance: all 6! permutations of whole residuals, refitted one by one."""
    kind = {"levels": ["tool", "animal"], "varies": "between"}
    numbers = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    items = {
        f"i{k}": {
            "noun": {"sg": f"w{k}", "pl": f"w{k}s"},
            "kind": kind["levels"][k % 2],
            "frequency": x,
            "topic": "a",
        }
        for k, x in enumerate(numbers)
    }
    fake = responses(design_of_nouns(factors={"kind": kind, "number": ["sg", "pl"]}, items=items), density=0.9)
    asked = T | {"nuisance": ["frequency"], "min_informative": 5, "alpha": 0.2}
    found = ok(contrast(fake, {"kind": {"animal": 1, "tool": -1}}, region="noun", seed=1, inference=asked))
    Y, Z = by_item(fake, weights="mean")[:, found.feature], np.column_stack([np.ones(6), numbers])
    fit = Z @ np.linalg.lstsq(Z, Y, rcond=None)[0]
    full = np.column_stack([np.arange(6) % 2, Z])
    T_all = []
    for order in itertools.permutations(range(6)):
        moved = fit + (Y - fit)[list(order)]
        b, rss = np.linalg.lstsq(full, moved, rcond=None)[:2]
        T_all.append(b[0] ** 2 / rss)
    T_all = np.array(T_all)
    assert set(found["n_perm"]) == {720}
    assert_allclose(found["p_unc"], (T_all >= T_all[0] * (1 - 1e-9)).mean(axis=0), atol=1e-12)


# ------------------------------------------------------------------ recovers


def test_recovers_a_planted_slope():
    """A response that grows with the covariate is found, with its sign."""
    fake = responses()
    X = fake.X.toarray()
    X[:, 0] = np.maximum(0, 3 - 0.2 * fake.obs["frequency"].to_numpy() + 0.1 * X[:, 0])
    fake.X = type(fake.X)(X)
    found = contrast(fake, {"slope": "frequency"}, region="noun", seed=1)
    assert found.loc[found.p_corr <= 0.05, "feature"].tolist() == [0]
    assert found.loc[found.feature == 0, "effsize"].item() < -0.9


def test_recovers_what_differs_at_equal_length():
    """A feature that only counts tokens is found raw and not beside n_tokens; its raw estimate stays in the table."""
    fake = responses(seed=4)
    X, tokens = fake.X.toarray(), fake.obs["n_tokens"].to_numpy()
    X[:, 0] = tokens + np.random.default_rng(0).normal(0, 0.3, len(tokens))
    fake.X = type(fake.X)(np.maximum(X, 0))
    raw = contrast(fake, NUMBER, region="noun", seed=1).set_index("feature").loc[0]
    beside = contrast(fake, NUMBER, region="noun", seed=1, inference={"nuisance": ["n_tokens"]})
    row = beside.set_index("feature").loc[0]
    assert raw["p_corr"] <= 0.05
    assert row["p_unc"] > 0.05
    assert row["x_estimate_unadjusted"] == pytest.approx(raw["estimate"])
    assert abs(row["estimate"]) < 0.5 * raw["estimate"]


def test_nuisance_constant_within_items_is_dropped_with_a_note():
    """It cancels in the difference: the table is that of the plain test, and says so."""
    fake = responses()
    plain = contrast(fake, NUMBER, region="noun", seed=1)
    found = contrast(fake, NUMBER, region="noun", seed=1, inference={"nuisance": ["frequency"]})
    assert found["note"].dropna().str.contains("nuisance frequency does not differ and is left out").all()
    pd.testing.assert_frame_equal(plain.drop(columns="note"), found.drop(columns="note"))


def test_values_move_only_inside_strata():
    """A slope inside strata counts fewer relabellings, all of them enumerated."""
    fake = responses(design_of_nouns(8, strata="topic"))
    found = ok(contrast(fake, {"slope": "frequency"}, region="noun", seed=1, inference={"min_informative": 2}))
    assert set(found["n_perm"]) == {576}
    assert set(found["p_method"]) == {"exact"}
    assert set(found["unit"]) == {"item in stratum"}


@pytest.mark.parametrize("correction", ["maxT", "stepdown", "holm", "fdr_bh", "none"])
def test_every_correction_takes_nuisance(correction):
    """Counted p enter every correction; step-down is not above single step."""
    fake = responses(n_features=12)
    asked = {"nuisance": ["n_tokens"], "correction": correction, "n_permutations": 400}
    found = check_results(contrast(fake, NUMBER, region="noun", seed=1, inference=asked))
    assert found["p_unc"].between(1 / found["n_perm"].max(), 1).all()
    if correction == "stepdown":
        single = contrast(fake, NUMBER, region="noun", seed=1, inference=asked | {"correction": "maxT"})
        assert (found["p_corr"] <= single["p_corr"] + 1e-12).all()


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_one_sided_alternatives(alternative):
    """The one-sided p of opposite alternatives add up to one, but for the observed relabelling and ties."""
    fake, asked = responses(), {"nuisance": ["n_tokens"], "n_permutations": 2000, "alternative": alternative}
    found = ok(contrast(fake, NUMBER, region="noun", seed=1, inference=asked))
    sign = 1 if alternative == "greater" else -1
    assert np.corrcoef(sign * found["value"], found["p_unc"])[0, 1] < -0.8


def test_all_zero_beside_nuisance_is_untestable():
    """A feature that nuisance explains altogether has a status and a reason, and no number."""
    fake = responses()
    X, tokens = fake.X.toarray(), fake.obs["n_tokens"].to_numpy()
    X[:, 3] = tokens
    fake.X = type(fake.X)(X)
    found = contrast(fake, NUMBER, region="noun", seed=1, inference={"nuisance": ["n_tokens"]}).set_index("feature")
    assert found.loc[3, "status"] == "untestable"
    assert "explained by the nuisance" in found.loc[3, "note"]


# ------------------------------------------------------------------ controls


def test_controls_shuffled_responses_reject_at_their_level():
    """Own responses with signs flipped, or items permuted, through the pipeline beside nuisance."""
    fake = responses(n_features=25)
    for effect, nuisance in ((NUMBER, ["n_tokens"]), ({"slope": "frequency"}, ["n_tokens"])):
        asked = {"nuisance": nuisance, "n_permutations": 200}
        row = null_rate(fake, effect, region="noun", seed=1, n_sets=100, inference=asked).iloc[0]
        assert row["rate"] <= 0.12


# ------------------------------------------------------------------ refuses


def test_large_variance_inflation_is_warned_of_then_refused():
    """VIF above 5 is in the note; above 20 the stimuli must be changed."""
    fake = responses()
    rng, plus = np.random.default_rng(0), (fake.obs["number"].astype(str) == "pl").to_numpy()
    jitter = rng.standard_normal(fake.n_obs)
    fake.obs["surprisal"] = (5 * plus + 2.0 * jitter * plus).astype(np.float32)
    found = ok(contrast(fake, NUMBER, region="noun", seed=1, inference={"nuisance": ["surprisal"]}))
    assert found["x_vif"].between(5, 20).all()
    assert found["note"].str.contains("large: the adjusted estimate is imprecise").all()
    fake.obs["surprisal"] = (5 * plus + 0.5 * jitter * plus).astype(np.float32)
    with pytest.raises(DataError, match=r"hardly varies over items.*change the stimuli"):
        contrast(fake, NUMBER, region="noun", seed=1, inference={"nuisance": ["surprisal"]})


@pytest.mark.parametrize(
    ("effect", "inference", "words"),
    [
        (NUMBER, {"nuisance": ["n_token"]}, "unknown nuisance column 'n_token'. Did you mean 'n_tokens'"),
        (NUMBER, {"nuisance": ["n_tokens"], "statistic": "mean"}, "regressed out of t and moderated_t, not of mean"),
        (NUMBER, {"nuisance": ["n_tokens", "stimulus_tokens"]}, "'stimulus_tokens' is a combination of n_tokens"),
        (NUMBER, {"nuisance": ["logit_diff"]}, "'logit_diff' is missing for 24 of 24 items"),
        ({"number": "all"}, {"nuisance": ["n_tokens"]}, "all levels at once"),
        ({"slope": "frequency"}, {"statistic": "signed_rank"}, "t and moderated_t alone, not signed_rank"),
        (NUMBER, {"statistic": "slope"}, "needs an effect on a covariate"),
    ],
)
def test_refuses_with_the_reason(effect, inference, words):
    """Unknown, missing and collinear columns, and statistics without a linear model."""
    fake = responses()
    fake.obs["stimulus_tokens"] = (2 * fake.obs["n_tokens"] + 3).astype(np.int32)
    fake.obs["logit_diff"] = np.float32(np.nan)
    with pytest.raises((DataError, SpecError), match=words):
        contrast(fake, effect, region="noun", seed=1, inference=inference)
