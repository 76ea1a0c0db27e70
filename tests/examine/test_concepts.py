"""Concept search: what is found on one half of the texts holds on the other, or is said not to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import mannwhitneyu

import neurosae as ns
from neurosae.dictionary.record import neuron_dictionary
from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import make_contexts
from neurosae.errors import DataError
from neurosae.examine.concepts import _halves, _ranked, _validated, matched_texts, pooled_texts, search_labels
from neurosae.examine.directions import vocabulary_weights


@pytest.mark.parametrize("pool", ["max", "mean", "last"])
def test_pooled_texts_agree_with_single_texts(toy, words, made_dictionary, *, pool):
    """Maximum, mean and last token of every text, also of texts longer than a context and than a batch."""
    dictionaries = {"one": made_dictionary(0), "two": made_dictionary(1)}
    found = pooled_texts(toy, dictionaries, words, pool=pool)
    for site, dictionary in dictionaries.items():
        for number in (0, 5, 17):
            contexts = make_contexts(toy.tokens, [words[number]], length=48)
            x = context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[dictionary.hook])[dictionary.hook]
            codes = dictionary.encode(x).toarray()
            wanted = {"max": codes.max(axis=0), "mean": codes.mean(axis=0), "last": codes[-1]}[pool]
            assert_allclose(found[site][number].toarray().ravel(), wanted, atol=1e-4)


def test_concept_search_recovers_a_planted_direction(toy):
    """Texts that end in a letter of their own: the ranking half finds features, the other half confirms them."""
    positive, negative = [f"{i} zz{i % 3}zz" for i in range(24)], [f"{i} ab{i % 3}cd" for i in range(24)]
    raw = {"raw": neuron_dictionary("blocks.1.hook_resid_post", 16)}
    found = ns.concept_search(toy, raw, positive, negative=negative, top=5, seed=1)
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert found["auroc"].is_monotonic_decreasing
    assert found["auroc_held_out"][0] > 0.9
    assert found["p_holm"][0] <= 0.05
    assert found["n_positive"].tolist() == [12] * 5
    assert found["length_auroc"].eq(0.5).all()


def test_held_out_half_is_not_the_ranking_half(toy):
    """No text is in both halves, and both kinds are divided evenly."""
    half = _halves(np.arange(30) < 10, seed=3)
    assert (half[:10].sum(), half[10:].sum()) == (5, 10)
    assert not np.array_equal(half, _halves(np.arange(30) < 10, seed=4))


def test_concept_search_validates_on_texts_that_it_has_not_seen(toy):
    """Texts without a concept: the best of all features is at chance on the other half, which has its own texts."""
    draws = np.random.default_rng(8)
    texts = ["".join(map(chr, draws.integers(97, 123, 6))) for _ in range(43)]
    raw = {"raw": neuron_dictionary("blocks.1.hook_resid_post", 16)}
    found = ns.concept_search(toy, raw, texts[:21], negative=texts[21:], top=4, seed=2)
    counts = found[["n_positive", "n_negative", "n_positive_held_out", "n_negative_held_out"]]
    assert counts.drop_duplicates().to_numpy().tolist() == [[11, 11, 10, 11]]
    assert found["auroc"].min() > 0.6
    assert (found["auroc"] - found["auroc_held_out"]).abs().min() > 0.01


def test_ranking_without_a_concept_does_not_validate():
    """Noise: the best of 300 features looks good where it was chosen, and is at chance on the other half."""
    draws, inside = np.random.default_rng(5), np.arange(60) < 30
    X = sp.csr_matrix(draws.exponential(1, (60, 300)) * (draws.random((60, 300)) < 0.4))
    half = _halves(inside, seed=6)
    rows = _validated(X[~half], inside[~half], _ranked(X[half], inside[half], by="auroc").head(20))
    assert rows["auroc"].mean() > 0.65
    assert abs(rows["auroc_held_out"].mean() - 0.5) < 0.06
    assert rows["p_holm"].min() > 0.05


def test_held_out_p_is_mann_whitney():
    """One-sided, per feature, on the second half alone."""
    draws, inside = np.random.default_rng(7), np.arange(20) < 10
    X = sp.csr_matrix(draws.exponential(1, (20, 4)))
    rows = _validated(X, inside, _ranked(X, inside, by="smd"))
    for row in rows.itertuples():
        x = X[:, row.feature].toarray().ravel()
        assert row.p_held_out == pytest.approx(mannwhitneyu(x[inside], x[~inside], alternative="greater").pvalue)


@pytest.mark.parametrize("by", ["composite", "smd", "auroc"])
def test_rankings_are_what_they_say(by):
    """Best first by the named column; features that are never active are not ranked."""
    X = np.zeros((16, 5))
    X[:, 0] = 9.0
    X[:8, 1] = [5.0, 5, 5, 5, 5, 5, 5, 0]
    X[8:, 2] = 3.0
    X[:, 3] = np.arange(16)
    table = _ranked(sp.csr_matrix(X), np.arange(16) < 8, by=by)
    assert 4 not in table["feature"].tolist()
    assert table[by].dropna().is_monotonic_decreasing
    assert table["feature"].iloc[0] == 1


def test_matched_texts_have_the_lengths_of_the_positives(toy):
    """What the model writes in place of negatives differs in no length, so a maximum has no advantage."""
    texts = ["abcdefgh", "abc", "abcdefghij"]
    written = matched_texts(toy, texts, seed=1)
    assert len(written) == 3
    assert matched_texts(toy, texts, seed=1) == written


def test_promoting_features_recovers_a_planted_direction(toy, made_dictionary):
    """A decoder row that is the unembedding of a token promotes it most."""
    dictionary = made_dictionary(1)
    weights = vocabulary_weights(toy, dictionary, np.arange(64).tolist())
    z = weights / weights.std(axis=1, keepdims=True)
    token = toy.tokens.backend.encode("q", add_special_tokens=False).ids[0]
    found = ns.promoting_features(toy, dictionary, ["q"], top=4)
    assert_array_equal(found["feature"], np.argsort(-z[:, token], kind="stable")[:4])
    assert_allclose(found["weight"][0], z[:, token].max())


def test_concept_search_refuses(toy, made_dictionary):
    """Too few texts, an empty text, an unknown ranking, no words."""
    dictionaries = {"a": made_dictionary()}
    with pytest.raises(DataError, match=r"6 positive texts do not make two halves of 4"):
        ns.concept_search(toy, dictionaries, ["a"] * 6, negative=["b"] * 9, seed=1)
    with pytest.raises(DataError, match="text 1 has no token"):
        pooled_texts(toy, dictionaries, ["a", ""])
    with pytest.raises(DataError, match="unknown ranking"):
        ns.concept_search(toy, dictionaries, ["a"] * 8, negative=["b"] * 8, by="max", seed=1)
    with pytest.raises(DataError, match="empty"):
        ns.promoting_features(toy, dictionaries["a"], [])


def test_search_labels_finds_all_words_in_any_case():
    """Every word has to be there, as plain text; features without a label are not found; other columns stay."""
    table = pd.DataFrame({
        "site": "late", "feature": [3, 8, 9, 12], "label": ["Ships at sea", "a.b (SEA)", None, "sea"], "auroc": 0.9
    })  # fmt: skip
    assert search_labels(table, "SEA")["feature"].tolist() == [3, 8, 12]
    assert search_labels(table, "sea ship")["feature"].tolist() == [3]
    assert search_labels(table, "a.b (")["feature"].tolist() == [8]
    assert search_labels(table, "none").empty
    assert list(search_labels(table, "sea")) == list(table)
    with pytest.raises(DataError, match="lack the column 'label'"):
        search_labels(table.drop(columns="label"), "sea")
