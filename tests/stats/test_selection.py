"""Regions of interest: a set is its mean, and no way to choose it may let the tested items have a say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, design_of
from neurosae.spec.design import Design
from neurosae.stats.contrast import contrast
from neurosae.stats.othereffect import covariance
from neurosae.stats.selection import roi
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}
A, B = {"a": {"x": -1, "y": 1}}, {"b": {"x": -1, "y": 1}}


def two_by_two(n_items: int = 24, **partition) -> Design:
    words = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"}} for k in range(n_items)}
    return Design.model_validate({
        "schema": "neurosae/design/1", "name": "two", "factors": {"a": ["x", "y"], "b": ["x", "y"]},
        "frames": {"f": "{u:a} {w:b} here"}, "regions": {"end": {"words": [-1, -1]}}, "items": words, **partition,
    })  # fmt: skip


def fake(n_items: int = 24, *, m: int = 60, seed: int = 0, design: Design | None = None, **options):
    design = two_by_two(n_items) if design is None else design
    return simulate(design, n_features=m, density=0.4, regions=("end",), seed=seed, **options)


def test_roi_agrees_with_the_contrast_of_the_mean():
    """A set is tested as one feature whose response is the mean over its features: same t, p, estimate, flips."""
    adata, sets = simulate(example_design(20), n_features=40, seed=1), {"one": [3, 7, 8], "two": range(20, 40)}
    means = np.column_stack([adata.X[:, list(s)].toarray().astype(float).mean(axis=1) for s in sets.values()])
    made = build_responses(sp.csr_matrix(means), adata.obs, adata.var.iloc[:2], design=design_of(adata), provenance={})
    expected = contrast(made, NUMBER, region="noun", inference={"statistic": "t"}, seed=3)
    found = roi(adata, NUMBER, features=sets, region="noun", inference={"statistic": "t"}, seed=3)
    for name in ("value", "p_unc", "p_corr", "estimate", "effsize", "ci_low"):
        assert_allclose(found[name], expected[name], rtol=1e-6)
    assert found["set"].tolist() == ["one", "two"]
    assert found["n_features"].tolist() == [3, 20]
    assert found["feature"].isna().all()
    assert set(found["kind"]) == {"roi"}


def test_roi_of_all_features_is_the_mean_of_the_site():
    """{all: true} is one set of every feature; a set that never fires has a row that says so."""
    adata = simulate(example_design(20), n_features=30, density=0.4, seed=1)
    found = roi(adata, NUMBER, features={"all": True}, region="noun", seed=3).iloc[0]
    d = contrast(adata, NUMBER, region="noun", inference={"correction": "none"}, seed=3)["estimate"].sum() / 30
    assert_allclose(found["estimate"], d, rtol=1e-5)
    X = adata.X.toarray()
    X[:, :4] = 0
    quiet = build_responses(X, adata.obs, adata.var, design=design_of(adata), provenance={})
    table = roi(quiet, NUMBER, features={"silent": range(4), "rest": range(4, 30)}, region="noun", seed=3)
    assert dict(zip(table["set"], table["status"], strict=True)) == {"silent": "dead", "rest": "ok"}


def test_roi_recovers_a_localized_set_in_either_direction():
    """Chosen on localizer items, tested on the others; features of the other direction count with a minus sign."""
    design = two_by_two(40, partition={"localizer": 20, "seed": 1})
    adata = fake(design=design, effects={"a": 6}, shift=4.0, seed=1)
    X = adata.X.toarray()
    up = (adata.obs["a"] == "y").to_numpy()
    rows = np.arange(len(up)).reshape(-1, 4)  # cells xx xy yx yy of each item
    for f in range(3):
        X[:, f] = X[rows[:, [2, 3, 0, 1]].ravel(), f]  # features 0-2 now answer the other way round
    made = build_responses(X, adata.obs, adata.var, design=design, provenance={})
    found = contrast(made, A, region="end", split="localizer", inference={"correction": "none"}, seed=1)
    row = roi(made, A, features={"from": found, "top": 6}, region="end", seed=1).iloc[0]
    assert row["p_corr"] < 0.001
    assert row["estimate"] > 0
    assert "minus sign" in row["note"]
    assert up.any()
    minus = roi(made, A, features={"from": found, "top": 3, "direction": "minus"}, region="end", seed=1).iloc[0]
    assert minus["estimate"] < 0
    assert minus["p_corr"] < 0.001


def test_roi_cross_fit_recovers_what_is_planted():
    """Six of 60 features answer: found without a localizer, with the folds choosing nearly the same features."""
    adata = fake(effects={"a": 6}, shift=3.0, seed=2)
    how = {"cross_fit": {"folds": 4, "top": 6}}
    found = roi(adata, {"a": A, "b": B}, features=how, region="end", seed=1).set_index("effect")
    assert found.loc["a", "p_corr"] < 0.002
    assert found.loc["a", "x_overlap"] > 0.5
    assert found.loc["b", "p_corr"] > 0.01
    assert found["ci_low"].isna().all()


def test_roi_cross_fit_corrects_over_places_by_one_maximum():
    """Two copies of a site: the same p, corrected as one; stepdown is never larger; none leaves p_corr out."""
    adata = fake(effects={"a": 6}, shift=1.0, seed=2)
    how, sites = {"cross_fit": {"folds": 3, "top": 6}}, {"one": adata, "two": adata}
    common = {"features": how, "region": "end", "seed": 1}
    alone = roi({"one": adata}, A, **common).iloc[0]
    both = roi(sites, A, **common)
    assert_allclose(both["p_unc"], alone["p_unc"])
    assert_allclose(both["p_corr"], alone["p_corr"])  # a copy adds nothing to a maximum
    assert both["n_family"].tolist() == [2, 2]
    step = roi(sites, {"a": A, "b": B}, inference={"correction": "stepdown"}, **common)
    single = roi(sites, {"a": A, "b": B}, **common)
    assert (step["p_corr"] <= single["p_corr"] + 1e-12).all()
    assert roi(sites, A, inference={"correction": "none"}, **common)["p_corr"].isna().all()


def test_roi_orthogonal_choice_controls_false_positives():
    """Features chosen by a strong effect of `a`, tested for `b`, which is not there: 60 sets inside the bound."""
    how, rejected, refused = {"orthogonal": A, "top": 8}, [], 0
    for seed in range(60):
        adata = fake(16, m=40, effects={"a": 8}, shift=2.0, seed=seed)
        one, two = (item_data(adata, design_of(adata), e, region="end") for e in (A, B))
        refused += covariance(one, two)[1] <= 0.05
        if covariance(one, two)[1] > 0.05:
            found = roi(adata, B, features=how, region="end", inference={"n_permutations": 200}, seed=seed)
            rejected.append(found["p_corr"].iloc[0] <= 0.05)
    assert sum(rejected) <= scipy.stats.binom.ppf(0.9995, len(rejected), 0.05)
    assert refused <= scipy.stats.binom.ppf(0.9995, 60, 0.05)


def test_roi_orthogonal_choice_refuses_unequal_covariance():
    """One cell that varies more makes orthogonal contrasts covary: seen, and refused."""
    adata = fake(32, m=40, seed=1)
    X = adata.X.toarray()
    loud = ((adata.obs["a"] == "y") & (adata.obs["b"] == "y")).to_numpy()
    X[loud] *= 8
    made = build_responses(X, adata.obs, adata.var, design=design_of(adata), provenance={})
    with pytest.raises(DataError, match=r"covary over items .* the choice would leak"):
        roi(made, B, features={"orthogonal": A, "top": 8}, region="end", seed=1)


def test_roi_orthogonal_choice_refuses_an_effect_that_shares_evidence():
    """A simple effect is not orthogonal to its main effect; the number is in the sentence, the caution in the note."""
    adata = fake(seed=1)
    simple = {"a": {"x": -1, "y": 1}, "b": {"y": 1}}
    with pytest.raises(DataError, match=r"not orthogonal to 'a' on these cells, c1'\(X'X\)\^-1 c2 = 0.04"):
        roi(adata, A, features={"orthogonal": {"simple": simple}, "top": 8}, region="end", seed=1)
    assert (
        "can refute but not prove"
        in roi(adata, B, features={"orthogonal": A, "top": 8}, region="end", seed=1)["note"][0]
    )


def test_covariance_agrees_with_correlations_of_columns():
    """The mean over features of numpy's correlation of the two contrasts."""
    adata = fake(20, m=30, seed=3)
    one, two = (item_data(adata, design_of(adata), e, region="end") for e in (A, B))
    x, y = one.D.toarray(), two.D.toarray()
    r = [np.corrcoef(x[:, j], y[:, j])[0, 1] for j in range(30) if np.ptp(x[:, j]) and np.ptp(y[:, j])]
    found, p = covariance(one, two)
    assert_allclose(found, np.mean(r), rtol=1e-9)
    assert 0 < p <= 1


def test_roi_refuses_features_that_the_tested_items_chose():
    """The table of the same split, features that are not there, a set named twice over, nothing at all."""
    adata = fake(seed=1)
    found = contrast(adata, A, region="end", inference={"correction": "none"}, seed=1)
    with pytest.raises(DataError, match=r"chosen and tested on the same items \(split: test\)"):
        roi(adata, A, features={"from": found, "top": 5}, region="end", seed=1)
    with pytest.raises(DataError, match="names feature 99, which is not among the 60"):
        roi(adata, A, features={"mine": [1, 99]}, region="end", seed=1)
    with pytest.raises(DataError, match="names a feature twice"):
        roi(adata, A, features={"mine": [1, 1]}, region="end", seed=1)
    with pytest.raises(DataError, match="names no set"):
        roi(adata, A, features={}, region="end", seed=1)
    with pytest.raises(DataError, match="needs the table"):
        roi(adata, A, features={"from": "found", "top": 5}, region="end", seed=1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"cross_fit": {"top": 5}, "all": True}, "exactly one of from, cross_fit"),
        ({"cross_fit": {"folds": 1, "top": 5}}, "folds"),
        ({"orthogonal": A}, "features.top: is missing"),
        ({"clusters": "decoder"}, "decoder_clusters"),
        ({"cross_fit": {"folds": 20, "top": 5}}, "24 items cannot be cut into 20 folds"),
    ],
)
def test_roi_refuses_choices_that_mean_nothing(features, message):
    """Each names the field, and what would do."""
    with pytest.raises(DataError, match=message):
        roi(fake(seed=1), A, features=features, region="end", seed=1)


def test_roi_cross_fit_refuses_statistics_that_cannot_be_chosen_anew():
    """Ranks are not rebuilt inside the choice: said, not replaced by another statistic."""
    common = {"region": "end", "inference": {"statistic": "signed_rank"}, "seed": 1}
    with pytest.raises(DataError, match="not signed_rank"):
        roi(fake(seed=1), A, features={"cross_fit": {"top": 5}}, **common)


def test_roi_invariant_to_feature_order_and_to_other_sets():
    """Columns in another order and further sets change no uncorrected p."""
    adata, order = (
        simulate(example_design(20), n_features=40, density=0.4, seed=1),
        np.random.default_rng(0).permutation(40),
    )
    moved = build_responses(adata.X[:, order], adata.obs, adata.var.iloc[order], design=design_of(adata), provenance={})
    one = roi(adata, NUMBER, features={"one": range(10)}, region="noun", inference={"statistic": "t"}, seed=3)
    two = roi(moved, NUMBER, features={"one": range(10), "two": range(10, 30)}, region="noun",
              inference={"statistic": "t"}, seed=3)  # fmt: skip
    assert_allclose(two["p_unc"].iloc[0], one["p_unc"].iloc[0])
    assert isinstance(two, pd.DataFrame)


LEVELS = {"peak": {"dose": {"low": -1, "mid": 2, "high": -1}}, "all": {"dose": "all"}}


@pytest.mark.parametrize("effect", LEVELS)
@pytest.mark.parametrize("between", [False, True])
def test_roi_exchanges_levels_or_refuses(effect, between):
    """Every choice with effects whose levels change places: the mean of a set is tested as one feature, by the same
    relabellings; a choice that these would have to repeat is refused."""
    fake, region = dosed(between=between)
    how, ask = {"n_permutations": 300, "statistic": "t"}, LEVELS[effect]
    mean = {"s": as_feature(fake, range(6))}
    known = contrast(mean, ask, region=region, inference=how, seed=1).iloc[0]
    for features in ({"first": range(6)}, {"all": True}):
        found = roi(fake, ask, features=features, region=region, inference=how, seed=1).iloc[0]
        assert found["p_method"] == "permutations"
        assert "all" in features or found["p_corr"] == known["p_corr"]
    far = {"dose": {"low": -1, "mid": 0, "high": 1}}
    chosen = {"orthogonal": far if effect == "peak" else {"dose": "quadratic"}, "top": 3}
    with pytest.raises(DataError, match=r"changes 'dose' too|use different items|not orthogonal"):
        roi(fake, ask, features=chosen, region=region, inference=how, seed=1)
    crossing = {"cross_fit": {"folds": 2, "top": 3}}
    if between and effect == "peak":
        assert roi(fake, ask, features=crossing, region=region, inference=how, seed=1).iloc[0]["n_perm"] == 300
    else:
        with pytest.raises(DataError, match="cross_fit"):
            roi(fake, ask, features=crossing, region=region, inference=how, seed=1)


def dosed(*, between):
    """Three levels, within items or between them."""
    levels, n = ["low", "mid", "high"], 24 if between else 12
    factor = {"levels": levels, "values": {"low": 0, "mid": 1, "high": 2}, "varies": "between" if between else "within"}
    items = {f"w{i}": {"w": {d: f"w{i}{d}" for d in levels}} for i in range(n)}
    if between:
        items = {f"w{i}": {"dose": levels[i % 3], "w": f"w{i}"} for i in range(n)}
    frames = {"f": f"It {'{w}' if between else '{w:dose}'} was"}
    parts = {"schema": "neurosae/design/1", "name": "dose", "factors": {"dose": factor}, "frames": frames}
    fake = simulate(Design.model_validate(parts | {"items": items}), n_features=20, density=0.5, seed=2)
    return fake, str(fake.obs["region"].iloc[0])


def as_feature(adata, members):
    """Responses whose one feature is the mean of some."""
    X = sp.csr_matrix(adata.X[:, list(members)].toarray().astype(float).mean(axis=1, keepdims=True))
    return build_responses(X, adata.obs, adata.var.iloc[:1], design=design_of(adata), provenance={})
