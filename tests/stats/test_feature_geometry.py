"""Feature shares of an RDM: additivity, swaps against brute force, error rate, Shapley by enumeration, reweighting."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.feature_geometry import feature_geometry
from neurosae.stats.feature_shares import (
    centred_model,
    feature_rdms,
    leave_one_out,
    reweighted,
    sampled_shapley,
    swapped,
)
from neurosae.stats.nested_shares import permuted
from neurosae.stats.rdm import distances
from neurosae.stats.rdm_noise import gram
from neurosae.stats.simulate import simulate
from tests.stats.test_rdm import found, sparse_normal
from tests.stats.test_rsa import A, B, crossed, nested

CELLS_A, CELLS_B = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
SWAP_A = np.eye(4)[[2, 3, 0, 1]]
PAIRS = np.triu_indices(4, 1)
MODEL = (CELLS_A[PAIRS[0]] != CELLS_A[PAIRS[1]]).astype(float)


@pytest.mark.parametrize("kind", ["crossed", "nested", "part of the items"])
def test_feature_rdms_add_up_to_the_rdm(kind):
    """Crossed or nested, all items or some: the sum over features is crossnobis."""
    p = found(sparse_normal((8, 4, 20), seed=1))
    weights = None
    if kind == "nested":
        p = found(sparse_normal((20, 15), seed=2), np.arange(20), np.arange(20) % 4)
    D = feature_rdms(p, weights)
    assert_allclose(D.sum(axis=1), distances(gram(p.X), p), atol=1e-12)
    if kind == "part of the items":
        half = (np.arange(8) < 5).astype(float)
        part = found(sparse_normal((8, 4, 20), seed=1)[:5])
        assert_allclose(feature_rdms(p, half), feature_rdms(part), atol=1e-12)


@pytest.mark.parametrize(
    "R", [SWAP_A, np.eye(4) - np.outer([1, -1, -1, 1], [1, -1, -1, 1]) / 2, np.eye(4)[[2, 1, 0, 3]]]
)
def test_swaps_agree_with_swapped_data(R):
    """phi under any swaps is phi of the data whose items were really swapped; the last swap mixes odd and even."""
    U, rng = sparse_normal((7, 4, 12), seed=3), np.random.default_rng(0)
    model = centred_model(MODEL)
    parts = swapped(found(U), model, R)
    signs = rng.choice([1.0, -1.0], (6, 7))
    signs[0] = 1
    values = parts.at(signs)
    for s, value in zip(signs, values, strict=True):
        moved = np.where((s < 0)[:, None, None], np.einsum("kl,ilm->ikm", R, U), U)
        assert_allclose(value, model @ feature_rdms(found(moved)), atol=1e-12)


def test_shares_of_a_fit_that_is_not_positive_are_undefined():
    """Where phi adds up to nothing above 0, x_share is nan with the reason; phi, its test and other effects stay."""
    fake = simulate(crossed(12), n_features=60, effects={"a": 30}, density=0.5, shift=4.0, seed=3,
                    regions=("everything",))  # fmt: skip
    table = feature_geometry(fake, {"a": A, "b": B}, conditions=["a", "b"], region="everything", seed=1,
                             inference={"n_permutations": 100})  # fmt: skip
    rows = {name: table[(table.effect == name) & table.feature.notna()] for name in "ab"}
    assert rows["b"].estimate.sum() < 0 < rows["a"].estimate.sum()
    assert rows["b"].x_share.isna().all()
    assert rows["b"].note.str.contains("which is not above 0").all()
    assert rows["b"].p_corr.notna().all()
    assert_allclose(rows["a"].x_share.sum(), 1)
    assert not rows["a"].note.fillna("").str.contains("x_share").any()


def test_feature_geometry_recovers_the_features_of_a_factor():
    """Planted features of a are found for a, those of b for b, whatever the other factor does; shares add up."""
    fake = simulate(crossed(24), n_features=200, effects={"a": 15, "b": 15}, density=0.4, shift=3.0, seed=1,
                    regions=("everything",))  # fmt: skip
    table = feature_geometry(fake, {"a": A, "b": B}, conditions=["a", "b"], region="everything", seed=1,
                             inference={"n_permutations": 1000})  # fmt: skip
    for name, planted in (("a", range(15)), ("b", range(15, 30))):
        rows = table[(table.effect == name) & table.feature.notna()]
        hits = set(rows.feature[rows.p_corr <= 0.05].astype(int))
        assert len(hits & set(planted)) >= 10
        assert len(hits - set(planted)) <= 1
        assert_allclose(rows.x_share.sum(), 1)
        assert rows.x_left_out.corr(rows.estimate) > 0.5
    assert (table[table.feature.notna()].p_unc <= table[table.feature.notna()].p_corr + 1e-12).all()


def test_feature_geometry_controls_its_error_with_another_factor_present():
    """b is there, a is not: 30 data sets, false features for a stay inside the 99.9 % band."""
    wrong = 0
    for seed in range(30):
        fake = simulate(crossed(10), n_features=40, effects={"b": 15}, density=0.5, shift=4.0, seed=seed,
                        regions=("everything",))  # fmt: skip
        table = feature_geometry(fake, A, conditions=["a", "b"], region="everything", seed=seed,
                                 inference={"n_permutations": 200, "min_informative": 4})  # fmt: skip
        wrong += bool((table.p_corr <= 0.05).any())
    assert wrong <= 6


def test_interactions_are_flipped_and_say_so():
    """No label permutation isolates an interaction: its contrast is flipped, approximately."""
    fake = simulate(crossed(12), n_features=60, density=0.5, seed=2, regions=("everything",))
    table = feature_geometry(fake, {"both": {**A, **B}}, conditions=["a", "b"], region="everything", seed=1,
                             inference={"n_permutations": 200})  # fmt: skip
    tested = table[table.p_unc.notna()]
    assert tested.p_method.str.contains("approximate").all()
    assert tested.h0.str.contains("symmetric").all()


def test_labels_of_nested_items_recover_the_planted_features():
    """Items in one condition each: labels of a move over items inside the levels of b, and nothing else is found."""
    fake = simulate(nested(16), n_features=60, effects={"a": 8}, density=0.6, shift=4.0, seed=2)
    table = feature_geometry(fake, {"a": A, "b": B}, conditions=["a", "b"], region="everything", seed=1)
    found = table[table.p_corr <= 0.05]
    assert set(found.effect) == {"a"}
    assert set(found.feature) <= set(range(8))
    assert len(found) >= 4
    rows = table[table.status == "ok"]
    assert (rows.p_method == "permutations").all()
    assert rows.h0.str.contains("inside each b").any()
    assert_allclose(rows[rows.effect == "a"].x_share.sum(), 1)
    assert rows[rows.effect == "b"].x_share.isna().all()  # no fit to have a share of


def test_nested_shares_agree_with_recomputed_distances():
    """phi under permuted labels is the model times the distances of patterns that carry these labels."""
    rng = np.random.default_rng(3)
    data = found(rng.standard_normal((18, 5)), np.arange(18), np.repeat(np.arange(3), 6))
    model = centred_model(np.array([1.0, 4.0, 1.0]))
    parts = permuted(data, model)
    for condition in (data.condition, rng.permutation(data.condition)):
        expected = model @ feature_rdms(replace(data, condition=condition))
        assert_allclose(parts.at(condition[None])[0], expected, atol=1e-12)


def test_nested_shares_control_errors():
    """Without an effect the family-wise error of 120 data sets lies in its 99 % band."""
    ask = {"conditions": ["a", "b"], "region": "everything", "inference": {"n_permutations": 199}}
    wrong = 0
    for seed in range(120):
        fake = simulate(nested(5), n_features=30, effects={}, density=0.5, seed=seed)
        wrong += bool((feature_geometry(fake, A, **ask, seed=seed).p_corr <= 0.05).any())
    low, high = stats.binom.interval(0.99, 120, 0.05)
    assert low <= wrong <= high


def grouped(n_first=8, n_items=16, **changes):
    """a within items, b between them: items are in two of the four conditions."""
    items = {f"i{k}": {"u": {x: f"{x}{k}" for x in "xy"}, "b": "x" if k < n_first else "y"} for k in range(n_items)}
    design = Design.model_validate({
        "schema": "neurosae/design/1", "name": "mixed", "items": items, "frames": {"f": "{u:a} here"},
        "factors": {"a": ["x", "y"], "b": {"levels": ["x", "y"], "varies": "between"}},
        "regions": {"everything": {"words": [0, -1]}},
    })  # fmt: skip
    return simulate(design, **{"n_features": 40, "density": 0.5, "regions": ("everything",), **changes})


def mixed_patterns(seed, *, n_first=6, n_items=10, m=5):
    """Patterns of items that are in conditions 0 and 2, or in 1 and 3."""
    item = np.repeat(np.arange(n_items), 2)
    condition = np.where(item < n_first, 0, 1) + 2 * np.tile([0, 1], n_items)
    return found(sparse_normal((2 * n_items, m), seed=seed), item, condition)


def test_feature_rdms_of_items_in_some_conditions_add_up_to_the_rdm():
    """An item's product with itself in another of its conditions is left out, of every feature as of the RDM."""
    p = mixed_patterns(4)
    assert_allclose(feature_rdms(p).sum(axis=1), distances(gram(p.X), p), atol=1e-12)
    half = (np.arange(10) % 3 > 0).astype(float)
    rows = np.flatnonzero(half[p.item] > 0)
    kept = np.unique(p.item[rows])
    part = found(p.X.toarray()[rows], np.searchsorted(kept, p.item[rows]), p.condition[rows])
    assert_allclose(feature_rdms(p, half), feature_rdms(part), atol=1e-12)


def test_swaps_and_labels_agree_with_moved_data_where_items_are_in_some_conditions():
    """phi under swaps inside items, and under labels of whole items, is phi of the patterns really moved."""
    p, rng = mixed_patterns(5), np.random.default_rng(1)
    model = centred_model(MODEL)
    R = np.eye(4)[[2, 3, 0, 1]]
    parts = swapped(p, model, R)
    for s in rng.choice([1.0, -1.0], (5, 10)):
        moved = replace(p, condition=np.where(s[p.item] < 0, (p.condition + 2) % 4, p.condition))
        assert_allclose(parts.at(s[None])[0], model @ feature_rdms(moved), atol=1e-12)
    by_label = permuted(p, model)
    for _ in range(5):
        group = rng.permutation(np.repeat([0, 1], [6, 4]))
        moved = replace(p, condition=group[p.item] + 2 * (p.condition // 2))
        assert_allclose(by_label.at(group[None])[0], model @ feature_rdms(moved), atol=1e-12)
    with pytest.raises(DataError, match="not in all conditions"):
        swapped(p, model, np.eye(4)[[1, 0, 3, 2]])


def test_items_in_some_conditions_recover_what_is_planted():
    """Swaps find the features of a factor within items, permuted labels those of one between; unlike groups, too."""
    fake = grouped(14, 24, effects={"a": 8, "b": 8}, shift=5.0, density=0.5, seed=2)
    table = feature_geometry(fake, {"a": A, "b": B}, conditions=["a", "b"], region="everything", seed=1,
                             inference={"n_permutations": 1000})  # fmt: skip
    rows = table[table.feature.notna()]
    assert rows.p_method[rows.effect == "a"].eq("flips").all()
    assert rows.p_method[rows.effect == "b"].eq("permutations").all()
    for name, planted in (("a", range(8)), ("b", range(8, 16))):
        hits = set(rows.feature[(rows.effect == name) & (rows.p_corr <= 0.05)].astype(int))
        assert len(hits & set(planted)) >= 4
        assert len(hits - set(planted)) <= 1


@pytest.mark.parametrize(("asked", "present"), [("a", "b"), ("b", "a")])
def test_items_in_some_conditions_control_errors(asked, present):
    """The other factor is there, groups have 5 and 8 items: the family-wise error of 80 data sets stays in band."""
    wrong = 0
    for seed in range(80):
        fake = grouped(5, 13, n_features=30, effects={present: 12}, shift=4.0, seed=seed)
        table = feature_geometry(fake, {asked: {"x": -1, "y": 1}}, conditions=["a", "b"], region="everything",
                                 seed=seed, inference={"n_permutations": 99, "min_informative": 4})  # fmt: skip
        assert table.p_corr.notna().any()
        wrong += bool((table.p_corr <= 0.05).any())
    assert wrong <= stats.binom.ppf(0.999, 80, 0.05)


def test_an_interaction_over_groups_of_items_is_described_with_the_reason():
    """No permutation of whole items isolates it; shares have no p and say what tests its length."""
    table = feature_geometry(grouped(seed=1), {"both": {**A, **B}}, conditions=["a", "b"], region="everything", seed=1)
    assert table.p_unc.isna().all()
    assert table.note[table.feature.notna()].str.contains("compares levels of a within items between groups").all()


def test_leaving_out_agrees_with_doing_it():
    """The closed form is the loss of fit when the feature is really left out."""
    Y, m = np.abs(sparse_normal((6, 9), seed=4, density=1)), np.arange(6.0)

    def fit(Z):
        return Z.sum(axis=1) @ m / np.sqrt((Z.sum(axis=1) ** 2).sum() * (m @ m))

    expected = [fit(Y) - fit(np.delete(Y, j, axis=1)) for j in range(9)]
    assert_allclose(leave_one_out(Y, m), expected, atol=1e-12)


def test_sampled_shapley_agrees_with_all_orders():
    """Within 4 s.e. of the mean over all 120 orders, and adding up to the fit exactly."""
    Y, m = sparse_normal((6, 5), seed=5, density=1), np.arange(6.0)

    def fit(subset):
        total = Y[:, subset].sum(axis=1)
        return total @ m / np.sqrt((total @ total) * (m @ m)) if subset else 0.0

    exact = np.zeros(5)
    for order in permutations(range(5)):
        for k, j in enumerate(order):
            exact[j] += (fit(list(order[: k + 1])) - fit(list(order[:k]))) / 120
    values, se = sampled_shapley(Y, m, n_orders=200, rng=np.random.default_rng(1))
    assert_allclose(values.sum(), fit(list(range(5))))
    assert (np.abs(values - exact) < 4 * se + 1e-12).all()


def test_reweighting_improves_the_fit_on_other_items():
    """Few features of 100 carry the factor: weights found on some items help on others."""
    fake = simulate(crossed(32), n_features=100, effects={"a": 10, "b": 30}, density=0.5, shift=4.0, seed=6,
                    regions=("everything",))  # fmt: skip
    table = feature_geometry(fake, A, conditions=["a", "b"], region="everything", seed=1,
                             inference={"n_permutations": 100},
                             settings={"reweighted": True, "n_shapley": 20})  # fmt: skip
    row = table[table.set == "all features, reweighted"].iloc[0]
    assert row.value > row.x_unweighted + 0.02
    assert table.x_shapley.notna().sum() == table.feature.notna().sum()
    Y = np.abs(sparse_normal((6, 30), seed=7, density=1))
    assert_allclose(reweighted(Y, np.ones(6), 1e9), 1, atol=1e-6)
    assert (reweighted(Y, np.arange(6.0), 0.01) >= 0).all()


def test_feature_geometry_refuses():
    """A rank comparator does not add over features; a model without variation has no features."""
    fake = simulate(crossed(8), n_features=30, density=0.5, seed=0, regions=("everything",))
    with pytest.raises(DataError, match="only equal distances"):
        centred_model(np.ones(6))
    with pytest.raises(Exception, match="compare"):
        feature_geometry(fake, A, conditions=["a", "b"], region="everything", settings={"compare": "rho-a"}, seed=0)
