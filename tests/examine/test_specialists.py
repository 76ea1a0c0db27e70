"""Specialists: planted ones are found, error rates hold, and the statistic is that of known tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

import neurosae as ns
from neurosae.errors import DataError
from neurosae.examine.items import category_items, pooled_region
from neurosae.examine.specialists import _chosen, relabelled_codes
from neurosae.extraction.responses import design_of, row_names, take_rows
from neurosae.spec.design import Design
from neurosae.spec.examine_tests import SpecialistsBlock
from neurosae.spec.results import Tested
from neurosae.stats.lengths import relabellings
from neurosae.stats.simulate import simulate
from neurosae.stats.units import item_data

TOPICS = ("sea", "sky", "war", "food", "home", "school", "music")


def topic_design(n: int = 10, *, strata: bool = False) -> Design:
    """Seven categories of n texts, every text an item; with strata, two kinds of text in equal numbers."""
    made: dict = {"schema": "neurosae/design/1", "name": "topics", "regions": {"whole": {"words": [0, -1]}}}
    made["factors"] = {"topic": {"levels": list(TOPICS), "varies": "between"}}
    kind = (lambda i: {"kind": ["long", "short"][i % 2]}) if strata else (lambda i: {})
    made["lists"] = {t: [{"text": f"A {t} text number {i}.", **kind(i)} for i in range(n)] for t in TOPICS}
    return Design.model_validate(made | ({"labels": ["kind"], "strata": "kind"} if strata else {}))


def within_design(n: int = 14) -> Design:
    """Three levels within every item."""
    forms = {"one": "a", "two": "b", "three": "c"}
    items = {f"i{k}": {"word": {level: f"{form}{k}" for level, form in forms.items()}} for k in range(n)}
    made = {"schema": "neurosae/design/1", "name": "within", "factors": {"load": list(forms)}, "items": items}
    return Design.model_validate(made | {"frames": {"f": "Say {word:load} now", "g": "Now say {word:load} twice"}})


def responses_to(design: Design, X: np.ndarray, *, region: str = "whole"):
    """Responses of one site with given activations (texts x features)."""
    fake = simulate(design, n_features=X.shape[1], density=0.5, regions=(region,), seed=0)
    fake.X = sp.csr_matrix(X.astype(np.float32))
    return fake


def noise(n: int, m: int, *, seed: int, density: float = 0.4) -> np.ndarray:
    """Sparse activations that know no category."""
    draws = np.random.default_rng(seed)
    return draws.exponential(1.0, (n, m)) * (draws.random((n, m)) < density)


def topics_of(fake) -> np.ndarray:
    """Category of every text."""
    return fake.obs["topic"].astype(str).to_numpy()


@pytest.mark.parametrize("score", ["rate", "auroc"])
def test_specialists_recovers_planted_features(score):
    """Features strong in 9 of 10 texts of one topic are found there, and nothing else is."""
    design = topic_design()
    fake = responses_to(design, noise(70, 60, seed=1))
    X, topic = fake.X.toarray(), topics_of(fake)
    for j, name in enumerate(("sea", "war", "music")):
        X[np.flatnonzero(topic == name)[:9], j] = 9.0
    fake.X = sp.csr_matrix(X)
    ask = {"n_permutations": 999}
    settings = {"score": score}
    found = ns.specialists(fake, {"topic": "all"}, region="whole", theta=5.0, settings=settings, inference=ask, seed=1)
    hits = found[found.p_corr <= 0.05]
    assert {(r.effect, int(r.feature)) for r in hits.itertuples()} >= {
        ("topic: sea", 0), ("topic: war", 1), ("topic: music", 2)
    }  # fmt: skip
    assert len(hits) <= 4
    first = hits[hits.feature == 0].iloc[0]
    assert (first.x_in, first.x_n_in, first.x_n_out, first.n_units) == (9, 10, 60, 70)
    assert first.x_specialist == first.x_in - first.x_out
    assert found.n_family.dropna().unique().tolist() == [len(found[found.status == "ok"])]


def test_rate_z_agrees_with_its_formula():
    """The standardized difference of shares, and one permutation p counted by hand."""
    fake = responses_to(topic_design(), noise(70, 12, seed=2))
    ask = {"n_permutations": 300, "min_informative": 2}
    found = ns.specialists(fake, {"topic": "all"}, region="whole", theta=0.5, inference=ask, seed=4)
    strong, inside = fake.X.toarray()[:, 3] > 0.5, topics_of(fake) == "sky"
    row = found[(found.feature == 3) & (found.effect == "topic: sky")].iloc[0]
    wanted = (strong[inside].mean() - strong[~inside].mean()) / (strong.std(ddof=1) * np.sqrt(1 / 10 + 1 / 60))
    assert row.value == pytest.approx(wanted)
    assert row.estimate == pytest.approx(strong[inside].mean() - strong[~inside].mean())
    data = item_data(fake, design_of(fake), {"topic": "all"}, region="whole", flips_only=False)
    ((how, at),) = relabellings([data], 300, seed=4, split="test")
    items = category_items(data, design_of(fake), "topic")
    codes = relabelled_codes(items, how, at, first=0, count=300)
    value = strong[[list(fake.obs["item"]).index(n) for n in data.names]]
    shares = np.array([value[c == TOPICS.index("sky")].mean() for c in codes])
    assert row.p_unc == pytest.approx((shares >= shares[0] - 1e-9).mean())


def test_auroc_z_agrees_with_mann_whitney():
    """The rank statistic is scipy's tie-corrected normal approximation, and the effect size its U."""
    fake = responses_to(topic_design(), np.round(noise(70, 8, seed=3), 1))
    ask = {"n_permutations": 100, "min_informative": 2}
    found = ns.specialists(fake, {"topic": "all"}, region="whole", settings={"score": "auroc"}, inference=ask, seed=1)
    X, inside = fake.X.toarray(), topics_of(fake) == "food"
    mine = found[found.effect == "topic: food"].sort_values("feature")
    made = [
        scipy.stats.mannwhitneyu(
            x[inside], x[~inside], use_continuity=False, method="asymptotic", alternative="greater"
        )
        for x in X.T
    ]
    assert_allclose(mine.value, [scipy.stats.norm.isf(r.pvalue) for r in made], rtol=1e-6)
    assert_allclose(mine.x_auc, [r.statistic / 600 for r in made])
    assert_allclose(mine.effsize, 2 * mine.x_auc - 1)


def test_specialists_controls_familywise_error():
    """Categories that mean nothing, 200 sets: any specialist in a share within the binomial 99.9 % band around .05."""
    design, n_sets, rejected = topic_design(6), 200, 0
    fake = responses_to(design, noise(42, 40, seed=0))
    for seed in range(n_sets):
        fake.X = sp.csr_matrix(noise(42, 40, seed=100 + seed).astype(np.float32))
        ask = {"n_permutations": 100, "min_informative": 3}
        found = ns.specialists(fake, {"topic": "all"}, region="whole", theta=0.7, inference=ask, seed=seed)
        rejected += found.p_corr.min() <= 0.05
    low, high = scipy.stats.binom.interval(0.999, n_sets, 0.05)
    assert low <= rejected <= high


def test_uncorrected_p_would_call_many():
    """Why the maximum is needed: uncorrected, categories that mean nothing have several specialists."""
    fake = responses_to(topic_design(), noise(70, 60, seed=11))
    ask = {"n_permutations": 200}
    found = ns.specialists(fake, {"topic": "all"}, region="whole", theta=0.7, inference=ask, seed=1)
    assert (found.p_unc <= 0.05).sum() >= 5
    assert found.p_corr.min() > 0.05


def test_labels_move_only_inside_strata():
    """Whole items are permuted inside strata: every relabelling keeps the topics of each kind of text."""
    fake = responses_to(topic_design(strata=True), noise(70, 5, seed=5))
    data = item_data(fake, design_of(fake), {"topic": "all"}, region="whole", flips_only=False)
    items = category_items(data, design_of(fake), "topic")
    ((how, at),) = relabellings([data], 50, seed=1, split="test")
    codes = relabelled_codes(items, how, at, first=0, count=50)
    assert_array_equal(codes[0], items.codes)
    assert (codes[1:] != codes[0]).any(axis=1).all()
    for block in (0, 1):
        own = np.sort(codes[:, items.blocks == block], axis=1)
        assert (own == own[0]).all()


def test_a_difference_between_strata_is_no_specialist():
    """A feature of one kind of text alone, which recurs in all topics, never leads; centring takes it out."""
    fake = responses_to(topic_design(strata=True), noise(70, 20, seed=6))
    X = fake.X.toarray()
    X[:, 0] = np.where(fake.obs["kind"].astype(str) == "long", 9.0, 0.0)
    fake.X = sp.csr_matrix(X)
    ask = {"n_permutations": 200}
    found = ns.specialists(fake, {"topic": "all"}, region="whole", theta=5.0, inference=ask, seed=1)
    assert 0 not in found.feature.dropna().tolist()
    assert found[found.status == "untestable"].note.str.contains("alike in all texts").any()


def test_categories_within_items_change_places_inside_them():
    """A factor within items: levels are permuted inside each, and a planted specialist of one level is found."""
    design = within_design()
    fake = responses_to(design, noise(84, 30, seed=7), region="word")
    X = fake.X.toarray()
    X[(fake.obs["load"].astype(str) == "two").to_numpy(), 4] = 8.0
    fake.X = sp.csr_matrix(X)
    data = item_data(fake, design, {"load": "all"}, region="word", flips_only=False)
    items = category_items(data, design, "load")
    ((how, at),) = relabellings([data], 40, seed=1, split="test")
    codes = relabelled_codes(items, how, at, first=0, count=40)
    assert_array_equal(codes[0], items.codes)
    assert (np.sort(codes.reshape(40, 14, 3), axis=2) == np.arange(3)).all()
    ask = {"n_permutations": 500}
    found = ns.specialists(fake, {"load": "all"}, region="word", theta=5.0, inference=ask, seed=1)
    hit = found[found.p_corr <= 0.05]
    assert hit[["effect", "feature"]].to_numpy().tolist() == [["load: two", 4]]
    assert hit.iloc[0][["x_in", "x_n_in", "x_out"]].tolist() == [28, 28, 0]


def test_thresholds_of_reference_text_leave_unknown_features_untested():
    """Where a feature was never active on the reference text there is no threshold, and it is said so."""
    fake = responses_to(topic_design(), noise(70, 6, seed=8))
    theta = {"late": np.array([0.5, np.nan, 0.5, 0.5, 0.5, 0.5])}
    ask = {"n_permutations": 100}
    found = ns.specialists({"late": fake}, {"topic": "all"}, region="whole", theta=theta, inference=ask, seed=1)
    assert 1 not in found.feature.dropna().tolist()
    lost = found[found.note.fillna("").str.contains("not active on the reference text")]
    assert (lost.status.tolist(), lost.n_features.tolist()) == (["untestable"], [1])


def test_rows_speak_for_all_features():
    """Tested, untestable and dead features add up to the dictionary in every category."""
    X = noise(70, 9, seed=9)
    X[:, 7] = 0
    X[:, 8] = 0
    X[0, 8] = 1.0
    fake = responses_to(topic_design(), X)
    found = ns.specialists(fake, {"topic": "all"}, region="whole", inference={"n_permutations": 100}, seed=1)
    rest = found[found.feature.isna()]
    assert rest.status.tolist() == ["dead", "untestable"]
    assert rest.n_features.sum() + found.feature.nunique() == 9
    assert set(found[found.feature.notna()].groupby("feature").size()) == {7}


def test_named_features_are_a_family_of_their_own():
    """Only these are tested, so the correction is smaller; each one that cannot be has a row with its reason."""
    X = noise(70, 60, seed=13)
    X[:, 7] = 0
    X[1:, 8] = 0
    fake = responses_to(topic_design(), X)
    topic = topics_of(fake)
    fake.X = sp.csr_matrix(np.where((topic == "war")[:, None] & (np.arange(60) == 4), X + 0.8, X))
    ask: dict = {"region": "whole", "theta": 0.7, "inference": {"n_permutations": 200}, "seed": 1}
    few = ns.specialists(fake, {"topic": "all"}, settings={"features": {"ids": [4, 7, 8]}}, **ask)
    every = ns.specialists(fake, {"topic": "all"}, **ask)
    tested = few[few.status == "ok"]
    assert tested.feature.unique().tolist() == [4]
    assert tested.n_family.unique().tolist() == [7]
    assert tested.family.unique().tolist() == [
        "maximum over named features, categories, sites and regions of this test"
    ]
    rest = few[few.status != "ok"]
    assert rest[["feature", "status", "n_features"]].to_numpy().tolist() == [[7, "dead", 1], [8, "untestable", 1]]
    both = [t[(t.feature == 4) & (t.effect == "topic: war")].iloc[0] for t in (few, every)]
    assert both[0].value == pytest.approx(both[1].value)
    assert both[0].p_unc == both[1].p_unc
    assert both[0].p_corr < both[1].p_corr
    with pytest.raises(DataError, match="names 60 at site"):
        ns.specialists(fake, {"topic": "all"}, settings={"features": {"ids": [60]}}, **ask)


def test_features_of_an_earlier_test_are_those_of_the_largest_z():
    """A feature that is weak in a category (z far below 0) is no candidate; a contrast is read by its size."""
    ask = SpecialistsBlock.model_validate({"test": "specialists", "effect": "topic", "region": ["whole"],
                                           "features": {"from": "find", "top": 2}})  # fmt: skip
    sites = {"late": responses_to(topic_design(), noise(70, 6, seed=1))}
    rows = {"site": "late", "effect": "x", "split": "localizer", "status": "ok", "feature": [0, 1, 2, 3]}
    rows["value"] = [-9.0, 2.0, 3.0, 1.0]
    for kind, side, wanted in (("specialists", "greater", [1, 2]), ("contrast", "two-sided", [0, 2])):
        earlier = {"find": Tested(pd.DataFrame({**rows, "kind": kind, "alternative": side}), None, {})}
        chosen = _chosen(ask, sites, earlier)
        assert chosen is not None
        assert chosen["late"].tolist() == wanted
    same = {
        "find": Tested(
            pd.DataFrame({**rows, "kind": "specialists", "split": "test", "alternative": "greater"}), None, {}
        )
    }
    with pytest.raises(DataError, match="chosen and tested on the same items"):
        _chosen(ask, sites, same)


def test_pooling_refuses_a_maximum_over_unequal_lengths():
    """A maximum grows with the number of tokens: where lengths differ by category it is no comparison."""
    fake = responses_to(topic_design(), noise(70, 4, seed=10))
    rows = np.repeat(np.arange(70), np.where(topics_of(fake) == "sea", 3, 2))
    obs = fake.obs.iloc[rows].copy()
    obs["token_index"] = (obs.groupby("stimulus", observed=True).cumcount() + 1).to_numpy(dtype=np.int32)
    obs["n_tokens"] = obs.groupby("stimulus", observed=True)["token_index"].transform("size").astype(np.int32)
    long = take_rows(fake, rows, obs.set_index(row_names(obs)))
    with pytest.raises(DataError, match="grows with span length"):
        pooled_region(long, "whole")
    assert pooled_region(long, "whole", pool="mean").n_obs == 70
    assert pooled_region(long, "whole", pool="last").n_obs == 70


def test_specialists_refuses():
    """Two places with other items, negative values, a threshold that nobody has, and an unknown pool."""
    fake = responses_to(topic_design(), noise(70, 6, seed=12))
    with pytest.raises(DataError, match="unknown theta"):
        ns.specialists(fake, {"topic": "all"}, region="whole", theta="stimulus", seed=1)
    with pytest.raises(DataError, match="lower theta"):
        ns.specialists(fake, {"topic": "all"}, region="whole", theta=1e6, seed=1)
    fake.X = sp.csr_matrix(-fake.X)
    with pytest.raises(DataError, match="negative"):
        ns.specialists(fake, {"topic": "all"}, region="whole", seed=1)
