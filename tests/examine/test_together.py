"""Pairs that fire together: the formulas, Fisher's p, planted pairs and none among independent features."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# (pandas and scipy annotate all that a table or result may be)

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy.stats import binom, fisher_exact

import neurosae as ns
from neurosae.errors import DataError
from neurosae.examine.together import community_coactivation
from neurosae.stats.communities import coactivation_communities


def documents(n: int = 120, m: int = 12, *, seed: int = 0) -> np.ndarray:
    """Independent features; the last two are the same."""
    draws = np.random.default_rng(seed)
    B = draws.random((n, m)) < draws.uniform(0.2, 0.6, m)
    B[:, -1] = B[:, -2]
    return B.astype(float)


def test_pairs_agree_with_fisher_and_the_formulas():
    """Every number of every pair, computed plainly."""
    B = documents()
    found = ns.coactivation_pairs(B, correction="fdr_bh", alpha=1.0)
    assert len(found) == 66 == found["n_pairs"][0]
    for row in found.itertuples():
        a, b = B[:, row.first] > 0, B[:, row.second] > 0
        both = int((a & b).sum())
        table = [[both, int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
        assert (row.n_first, row.n_second, row.n_both) == (a.sum(), b.sum(), both)
        assert row.p_unc == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
        assert_allclose(row.phi, np.corrcoef(a, b)[0, 1], atol=1e-12)
        assert_allclose(row.pmi, np.log((both / 120) / (a.mean() * b.mean())))
        assert_allclose(row.jaccard, both / (a | b).sum())


def test_planted_pair_is_found_and_nothing_else():
    """Of 66 pairs only the planted one survives Holm."""
    found = ns.coactivation_pairs(sp.csr_matrix(documents(seed=1)))
    assert found[["first", "second"]].to_numpy().tolist() == [[10, 11]]


def test_pairs_control_error():
    """Independent features, 200 sets: any pair in at most the binomial 99.9 % bound of .05."""
    rejected = sum(
        len(ns.coactivation_pairs(np.random.default_rng(seed).random((60, 10)) < 0.4)) > 0 for seed in range(200)
    )
    assert rejected <= binom.ppf(0.999, 200, 0.05)


def test_pairs_of_chosen_features():
    """Pairs with at least one of them, each once; features that are nearly always on are left out."""
    B = documents(m=8)
    B[:, 0] = 1
    found = ns.coactivation_pairs(B, features=[3], alpha=1.0)
    assert found["n_pairs"].iloc[0] == 6
    assert ((found["first"] == 3) | (found["second"] == 3)).all()
    with pytest.raises(DataError, match="give more documents"):
        ns.coactivation_pairs(B[:15])


def test_active_documents_looks_at_the_same_number_of_tokens(toy, words, made_dictionary):
    """A feature counts in a document if it fires among its first tokens, also where the document is long."""
    dictionaries = {"a": made_dictionary()}
    short = ns.active_documents(toy, dictionaries, [text[:10] for text in words], window=10)["a"]
    long = ns.active_documents(toy, dictionaries, words, window=10)["a"]
    assert short.shape == (sum(len(text) >= 10 for text in words), 64)
    assert (short != long).nnz == 0
    assert set(long.data.tolist()) == {1.0}


def test_documents_that_are_too_short_are_left_out(toy, words, made_dictionary):
    """Length alone would join all features: what has fewer tokens than the window is no document."""
    dictionaries = {"a": made_dictionary()}
    some = ns.active_documents(toy, dictionaries, words, window=40)["a"]
    long = [text for text in words if len(text.encode()) >= 40]
    assert some.shape[0] == len(long) < len(words)
    assert (some != ns.active_documents(toy, dictionaries, long, window=40)["a"]).nnz == 0
    with pytest.raises(DataError, match="no document has 500 tokens"):
        ns.active_documents(toy, dictionaries, words, window=500)


def communities_of(n: int = 300, *, seed: int) -> np.ndarray:
    """Documents in which features 0 to 4 share a topic and 5 to 24 fire by themselves, at different rates."""
    draw = np.random.default_rng(seed)
    topic = draw.random(n) < 0.4
    alone = draw.random((n, 20)) < draw.uniform(0.05, 0.6, 20)
    return np.column_stack([topic[:, None] & (draw.random((n, 5)) < 0.6), alone])


def test_community_z_agrees_with_correlations():
    """Mean phi is that of numpy; z by its formula; a feature that is always or never active is left out."""
    X = communities_of(seed=4)
    X = np.column_stack([X, np.zeros(300, bool), np.ones(300, bool)])
    sets = {"topic": [0, 1, 2, 3, 4, 25, 26], "rest": [5, 6, 7], "lost": [8, 25]}
    found = community_coactivation(sp.csr_matrix(X * 2.0), sets, n_permutations=200, seed=0).set_index("community")
    phi = np.corrcoef(X[:, :5].T.astype(float))[np.triu_indices(5, 1)]
    assert_allclose(found.loc["topic", "mean_phi"], phi.mean())
    assert_allclose(found.loc["topic", "z"], phi.mean() * np.sqrt(299 * 10))
    assert found["n_used"].tolist() == [5, 3, 1]
    assert found.loc["topic", "p_corr"] == 1 / 200
    assert found.loc["rest", "p_corr"] > 0.05
    assert found["p_corr"].isna().tolist() == [False, False, True]
    assert "not tested" in found.loc["lost", "note"]
    assert (found["n_communities"] == 2).all()
    with pytest.raises(DataError, match="feature 27; these documents have features 0 to 26"):
        community_coactivation(X, {"x": [1, 27]}, seed=0)
    with pytest.raises(DataError, match="two features"):
        community_coactivation(X, {"lost": [8, 25]}, seed=0)


def test_communities_control_familywise_error():
    """Independent features in 200 worlds of five sets: some set at .05 in about 5 % of them; p_corr never below p."""
    hits = 0
    for seed in range(200):
        X = communities_of(60, seed=seed)[:, 5:]
        sets = {str(k): np.arange(4 * k, 4 * k + 4) for k in range(5)}
        found = community_coactivation(X, sets, n_permutations=60, seed=seed)
        hits += found["p_corr"].min() <= 0.05
        assert (found["p_corr"] >= found["p_unc"]).all()
    low, high = binom.interval(0.999, 200, 0.05)
    assert low <= hits <= high


def test_communities_need_other_documents():
    """Why: communities of pure chance, tested where they were found, would nearly all be taken for real."""
    X = np.random.default_rng(3).random((120, 60)) < 0.3
    sets = coactivation_communities(X[:60], min_active=5, neighbours=5, seed=0)
    same = community_coactivation(X[:60], sets, n_permutations=200, seed=0)
    other = community_coactivation(X[60:], sets, n_permutations=200, seed=0)
    assert (same["p_corr"] <= 0.05).mean() > 0.5
    assert (other["p_corr"] > 0.05).all()
