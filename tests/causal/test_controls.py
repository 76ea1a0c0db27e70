"""Matched controls: near, balanced, never the targets nor what points like them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.causal.controls import (
    ALIKE,
    badly_matched,
    balance_of,
    matched_controls,
    matched_pairs,
    remedy_for,
)
from neurosae.causal.joint_effects import shapley_taylor
from neurosae.errors import DataError


def table(n=1500, seed=0):
    made = np.random.default_rng(seed).standard_normal((n, 3))
    return pd.DataFrame(made, columns=["density", "size", "cosine"], index=3 * np.arange(n))


def test_one_feature_has_balanced_controls_without_replacement():
    """99 different features, their means within .1 sd of the target's."""
    made = matched_controls(table(), [30], n=99, seed=0)
    assert len(set(made.sets.ravel().tolist()) - {30}) == 99
    assert made.worst < 0.1
    assert badly_matched(made.balance) == ""


def test_sets_are_matched_place_by_place():
    """Five features that are unlike each other: each place resembles its own target, and no set repeats a feature."""
    targets, covariates = [3, 30, 300, 33, 333], table()
    made = matched_controls(covariates, targets, n=99, seed=0)
    assert made.sets.shape == (99, 5)
    assert all(len(set(row)) == 5 for row in made.sets.tolist())
    assert len({tuple(sorted(row)) for row in made.sets.tolist()}) == 99
    assert not set(made.sets.ravel().tolist()) & set(targets)
    for place, target in enumerate(targets):
        gap = (covariates.loc[made.sets[:, place]] - covariates.loc[target]).abs().mean()
        assert (gap < 1.0).all()
    assert made.worst < 0.1
    assert "recurs" in made.note


def test_unmatched_controls_would_differ():
    """What matching is for: random features are 2 sd away from an active target."""
    covariates = table()
    extreme = int(covariates["size"].nlargest(60).index[40])
    rest = covariates.index.to_numpy()
    random = np.random.default_rng(0).choice(rest, 99)[:, None]
    assert abs(balance_of(covariates, [extreme], random).set_index("covariate").loc["size", "smd"]) > 1.5
    assert matched_controls(covariates, [extreme], n=19, seed=0).worst < 1.0


def test_badly_matched_controls_are_named():
    """The most active feature has no equals: the covariate and its difference are said."""
    covariates = table(300)
    made = matched_controls(covariates, [int(covariates["size"].idxmax())], n=99, seed=0)
    assert "size differs by" in badly_matched(made.balance)
    least = matched_controls(covariates, [int(covariates["size"].idxmin())], n=99, seed=0)
    assert "size differs by -" in badly_matched(least.balance)


@pytest.mark.parametrize(
    ("covariates", "said"),
    [
        (["size"], "controls: directions is as long as the edit"),
        (["cosine"], "with controls: directions, cosine may be left out of match"),
        (["size", "density"], "exactly; density may be left out of match"),
        (["single effect of the first", "single effect of the second"], "effect may be left out of match"),
        ([], ""),
    ],
)
def test_a_bad_match_names_its_remedy(covariates, said):
    """Directions for size, `match` for the rest; nothing where all is well."""
    names = ["density", "size", "cosine", "single effect of the first", "single effect of the second"]
    balance = pd.DataFrame({"covariate": names, "smd": [0.8 * (name in covariates) for name in names]})
    assert said in remedy_for(balance)
    assert bool(remedy_for(balance)) == bool(badly_matched(balance)) == bool(covariates)
    assert remedy_for(balance.assign(matched=False)) == ""


def test_what_answers_or_points_like_a_target_is_no_control():
    """Features of the contrast and decoder rows at a cosine above .7 are left out."""
    covariates = table().reset_index(drop=True)
    rng = np.random.default_rng(1)
    W = rng.standard_normal((len(covariates), 16))
    W[100:160] = W[7] + 0.3 * rng.standard_normal((60, 16))
    W[160:200] = -W[100:140]
    covariates.iloc[100:200] = covariates.iloc[7].to_numpy()  # the nearest candidates there are
    excluded = range(200, 300)
    covariates.iloc[200:300] = covariates.iloc[7].to_numpy()
    made = matched_controls(covariates, [7], n=99, excluded=excluded, W_dec=W, seed=0)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    chosen = made.sets.ravel()
    assert (np.abs(unit[chosen] @ unit[7]) <= ALIKE).all()
    assert not set(chosen.tolist()) & set(excluded)
    assert "no candidates" in made.note


def test_same_seed_same_controls():
    """Drawn sets are a function of the seed."""
    made = [matched_controls(table(), [3, 30], n=20, seed=s).sets for s in (1, 1, 2)]
    assert_allclose(made[0], made[1])
    assert (made[0] != made[2]).any()


def test_targets_without_covariates_and_small_pools_are_refused():
    """A dead target has nothing to be matched on; 40 features make no 99 controls."""
    covariates = table()
    covariates.loc[30, "size"] = np.nan
    with pytest.raises(DataError, match="feature 30 has no"):
        matched_controls(covariates, [30], seed=0)
    with pytest.raises(DataError, match="39 features are left"):
        matched_controls(table(40), [3], n=99, seed=0)


def test_pairs_match_single_effects_and_cosine():
    """Among pairs of control sets those are taken whose single effects and cosine are the target's."""
    rng = np.random.default_rng(0)
    first, second, cos = rng.normal(0, 1, 150), rng.normal(0, 1, 150), rng.uniform(-0.3, 0.3, (150, 150))
    pairs, balance = matched_pairs(np.array([0.8, -0.5]), first, second, cosine=(0.1, cos), n=50)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == 50
    assert balance["smd"].abs().max() < 0.1
    assert_allclose(balance["control"][0], first[pairs[:, 0]].mean())

    def distance(i, j):
        return (first[i] - 0.8) ** 2 + (second[j] + 0.5) ** 2 + ((cos[i, j] - 0.1) / cos.std()) ** 2

    in_order = np.sort(distance(np.arange(150), np.arange(150)))[:50].mean()
    assert distance(pairs[:, 0], pairs[:, 1]).mean() < 0.7 * in_order
    with pytest.raises(DataError, match="fewer than 200 pairs"):
        matched_pairs(np.zeros(2), first, second, cosine=(0.1, cos), n=200)


def test_shapley_taylor_adds_up_and_agrees_with_sampling():
    """Single effects and interactions make up the whole, unit by unit; sampled orders come close."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((3, 2**4))

    def outcome(S):
        return v[:, (S @ (1 << np.arange(4))).astype(int)]

    made = shapley_taylor(outcome, 4, seed=0)
    single = sum(v[:, 1 << i] - v[:, 0] for i in range(4))
    assert_allclose(v[:, 0] + single + made.values.sum(axis=0), v[:, 15])

    def wide(S):  # nine players, of whom the last five do nothing
        return outcome(S[:, :4])

    sampled = shapley_taylor(wide, 9, n_orders=3000, seed=1)
    assert not sampled.exact
    kept = [k for k, (i, j) in enumerate(sampled.pairs.tolist()) if j < 4]
    assert_allclose(sampled.values[kept], made.values, atol=0.15)
    idle = np.delete(sampled.values, kept, axis=0)
    assert_allclose(idle, 0, atol=1e-9)
