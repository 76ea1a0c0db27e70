"""Agreement of dictionaries on planted responses: levels, matched features, sets, geometry, probes."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.agreement import (
    geometry_agreement,
    level_scores,
    levels_of,
    matched_activations,
    rows_of,
    set_agreement,
)
from neurosae.stats.probes import probe_scores
from neurosae.stats.simulate import simulate

WORDS = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"}} for k in range(16)}
TWO = Design.model_validate({
    "schema": "neurosae/design/1", "name": "two", "factors": {"a": ["x", "y"], "b": ["x", "y"]},
    "frames": {"f": "{u:a} {w:b}"}, "regions": {"words": {"words": [0, -1]}}, "items": WORDS,
})  # fmt: skip
HERE = {"region": "words", "split": None}


@pytest.fixture(scope="module")
def fake():
    """40 features of which the first six follow factor a."""
    made = simulate(TWO, n_features=40, effects={}, density=0.6, seed=0)
    X = made.X.toarray()
    X[:, :6] += 3.0 * (made.obs["a"] == "y").to_numpy()[:, None] * (X[:, :6] > 0)
    return changed(made, X)


def changed(adata: anndata.AnnData, X) -> anndata.AnnData:
    """The same rows with other activations."""
    other = adata.copy()
    other.X = sp.csr_matrix(X, dtype=np.float32)
    return other


def shuffled(adata, seed=0):
    """The same features under other indices."""
    order = np.random.default_rng(seed).permutation(adata.n_vars)
    return changed(adata, adata.X.toarray()[:, order]), order


def test_auroc_agrees_with_scikit_learn(fake):
    """Ties at zero included."""
    table = level_scores(fake, **HERE).set_index("factor")
    rows = rows_of(fake, **HERE)
    for level in levels_of(fake, rows):
        row = table.loc[level.factor]
        values = rows.X[:, [row.feature]].toarray()[:, 0]
        assert row.auroc == pytest.approx(roc_auc_score(level.inside, values))
        assert row.auroc_low <= row.auroc <= row.auroc_high


def test_levels_recover_the_planted_factor(fake):
    """Features of a are selective for a, and none for b."""
    table = level_scores(fake, **HERE).set_index("factor")
    assert table.loc["a", "n_selective"] > 0
    assert table.loc["b", "n_selective"] <= 1
    assert abs(table.loc["a", "auroc"] - 0.5) > table.loc["a", "auroc_limit"] - 0.5


def test_probes_recover_the_planted_factor(fake):
    """Above chance for a in items they never saw; at chance for b, although features are chosen among 40."""
    table = probe_scores(fake, sizes=(5,), **HERE).set_index("factor")
    assert table.loc["a", "auroc"] > 0.7
    assert abs(table.loc["b", "auroc"] - 0.5) < 0.2


def test_probe_selection_stays_inside_the_folds():
    """Noise alone: fails (AUROC far above .5) if features are chosen on the held-out items too."""
    noise = simulate(TWO, n_features=600, effects={}, density=0.6, seed=3)
    table = probe_scores(noise, sizes=(5,), **HERE)
    assert table["auroc"].mean() == pytest.approx(0.5, abs=0.15)


def test_matching_recovers_shuffled_features(fake):
    """Every feature is found again under its new index."""
    other, order = shuffled(fake)
    pairs = matched_activations(fake, other, **HERE)
    assert (order[pairs["other"].to_numpy(dtype=int)] == pairs["one"]).all()
    assert pairs["r"].min() == pytest.approx(1)


def test_matching_is_blind_to_the_factor(fake):
    """Two features that share nothing but the factor do not match: fails without the residuals."""
    rng, a = np.random.default_rng(0), (fake.obs["a"] == "y").to_numpy()[:, None]
    few = np.arange(fake.n_vars) < 3
    one, other = (changed(fake, few * (5 * a + rng.random(fake.shape))) for _ in range(2))
    assert matched_activations(one, other, **HERE)["r"].abs().max() < 0.5


def test_sets_agree_only_when_the_same_features_are_found():
    """Eight pairs found on both sides, against eight found on different sides."""
    pairs = pd.DataFrame({"one": range(60), "other": range(60), "r": np.linspace(0, 1, 60)})
    every, found = np.arange(60), np.arange(0, 60, 8)
    same = set_agreement(pairs, (every, found), (every, found), seed=1)
    apart = set_agreement(pairs, (every, found), (every, found + 1), seed=1)
    assert same["n_both"] == 8
    assert same["p"] < 0.01
    assert (apart["n_both"], apart["p"]) == (0, 1.0)


def test_sets_do_not_agree_because_both_match_well():
    """Found features are those that match best in both: not evidence, so the null keeps the quality of the match."""
    pairs = pd.DataFrame({"one": range(100), "other": range(100), "r": np.linspace(0, 1, 100)})
    every, best = np.arange(100), np.arange(90, 100)
    assert set_agreement(pairs, (every, best), (every, best))["p"] == 1


def test_geometry_agrees_with_itself_and_not_with_noise(fake):
    """A permutation of features changes no distance; other responses share nothing."""
    again = geometry_agreement(fake, shuffled(fake)[0], n_permutations=100, **HERE)
    assert again["rho"] == pytest.approx(1)
    assert again["p"] == 0.01
    noise = changed(fake, np.random.default_rng(1).random(fake.shape))
    apart = geometry_agreement(fake, noise, n_permutations=100, **HERE)
    assert abs(apart["rho"]) < 0.2
    assert apart["rho_low"] < apart["rho"] < apart["rho_high"]
    assert apart["p"] > 0.01


def test_geometry_agreement_invariant_to_what_items_share(fake):
    """Texts of one item are alike in any dictionary: patterns of items that have nothing in common do not agree."""
    rng = np.random.default_rng(3)
    codes = np.unique(fake.obs["item"].astype(str), return_inverse=True)[1]
    one, other = (
        changed(fake, rng.random((16, 40))[codes] + 0.05 * rng.random(fake.shape)) for _ in range(2)
    )  # every pair within an item is close in both
    apart = np.triu(codes[:, None] != codes[None, :], 1)
    first, second = (1 - np.corrcoef(made.X.toarray())[apart] for made in (one, other))
    found = geometry_agreement(one, other, n_permutations=2, **HERE)["rho"]
    assert found == pytest.approx(spearmanr(first, second).statistic, abs=5e-2)


def test_agreement_refuses_other_stimuli(fake):
    """Rows of different items cannot be paired."""
    fewer = fake[fake.obs["item"] != "i3"].copy()
    with pytest.raises(DataError, match="read at different stimuli"):
        geometry_agreement(fake, fewer, **HERE)
    with pytest.raises(DataError, match="cannot be dealt into 17 folds"):
        probe_scores(fake, n_folds=17, **HERE)
