"""Scores over texts: the oracles of the definitions, and live comparisons with scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from neurosae.errors import DataError
from neurosae.examine.scores import (
    active_median,
    as_columns,
    auroc,
    d_prime,
    rate_difference,
    score_interval,
    specialist_counts,
    strong_texts,
    text_scores,
)


def sparse(n: int = 60, m: int = 40, *, seed: int = 0) -> np.ndarray:
    """Pooled activations with many zeros and some ties."""
    draws = np.random.default_rng(seed)
    return np.round(draws.exponential(3, (n, m)), 1) * (draws.random((n, m)) < draws.random(m))


def test_composite_recovers_the_oracle():
    """100 % of texts above 5 with a mean of 9.92 is 992; half of them with the same mean is 496."""
    half = np.where(np.arange(70) < 35, 15.84, 4.0)
    found = text_scores(np.column_stack([np.full(70, 9.92), half]), 5.0)
    assert_allclose(found.composite, [992, 496])


def test_specialist_recovers_the_oracle():
    """Strong in 7 of 10 texts of a category and in 1 of 60 others: +6; for another category it is a loss."""
    values = np.r_[np.full(7, 9.0), np.zeros(3), [8.0], np.full(59, 0.1)][:, None]
    strong = strong_texts(as_columns(values), 5.0)
    assert [int(x[0]) for x in specialist_counts(strong, np.arange(70) < 10)] == [7, 1, 6]
    assert [int(x[0]) for x in specialist_counts(strong, np.arange(70) >= 60)] == [0, 8, -8]


def test_weak_everywhere_wins_frequent_and_legacy_selective():
    """Weakly on in 69 of 70 texts, strong in 1: most frequent, and by the legacy rule most selective; not by
    lifetime sparseness, where a feature that is on in one text alone is."""
    weak = np.full(70, 0.5)
    weak[10] = 9.0
    lone = np.where(np.arange(70) == 3, 9.0, 0.0)
    often = np.where(np.arange(70) < 40, 8.0, 0.0)
    found = text_scores(np.column_stack([weak, lone, often]), 5.0)
    assert found.n_active.tolist() == [70, 1, 40]
    assert found.n_strong.tolist() == [1, 1, 40]
    assert found.sparseness.argmax() == 1
    assert found.sparseness[1] == pytest.approx(1)
    assert found.sparseness[0] < 0.85
    assert found.text.tolist() == [10, 3, 0]


def test_text_scores_agree_with_plain_numpy():
    """Every score against its formula on dense arrays, empty columns included."""
    X, theta = sparse(), 4.0
    X[:, 7] = 0
    found = text_scores(sp.csr_matrix(X), theta)
    assert_allclose(found.largest, X.max(axis=0))
    assert_array_equal(found.text, X.argmax(axis=0))
    assert_array_equal(found.n_active, (X > 0).sum(axis=0))
    assert_array_equal(found.n_strong, (X > theta).sum(axis=0))
    assert_allclose(found.composite, 100 * (X > theta).mean(axis=0) * X.mean(axis=0))
    with np.errstate(invalid="ignore"):
        wanted = (1 - X.mean(axis=0) ** 2 / (X**2).mean(axis=0)) / (1 - 1 / len(X))
        active = X.sum(axis=0) / (X > 0).sum(axis=0)
    assert_allclose(found.sparseness, wanted)
    assert_allclose(found.mean_active, active)
    medians = [np.median(x[x > 0]) if (x > 0).any() else np.nan for x in X.T]
    assert_allclose(active_median(as_columns(X)), medians)


def test_auroc_agrees_with_sklearn():
    """Zeros and ties included, for every column."""
    X, inside = sparse(seed=1), np.random.default_rng(2).random(60) < 0.3
    assert_allclose(auroc(X, inside), [roc_auc_score(inside, x) for x in X.T], atol=1e-12)


def test_d_prime_agrees_with_its_formula():
    """Means and variances of the two groups; without variance there is no d'."""
    X, inside = sparse(seed=3), np.arange(60) < 25
    a, b = X[inside], X[~inside]
    wanted = (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / 2)
    assert_allclose(d_prime(X, inside), wanted)
    assert np.isnan(d_prime(np.ones((4, 1)), np.array([True, True, False, False]))[0])


def test_intervals_of_shares_agree_with_scipy():
    """Wilson's interval is scipy's; the difference holds its value between its bounds."""
    for k in (0, 3, 10):
        wanted = scipy.stats.binomtest(k, 10).proportion_ci(method="wilson")
        assert_allclose(score_interval(np.array(k), 10), wanted, atol=1e-12)
    value, low, high = rate_difference((np.array([7.0, 0.0]), 10), (np.array([1.0, 0.0]), 60))
    assert (low <= value).all()
    assert (value <= high).all()
    assert low[0] > 0 > low[1]


def test_thresholds_are_strict_and_unknown_ones_never_passed():
    """A text at the threshold is not strong; where there is no threshold, nothing is."""
    X = as_columns([[5.0, 5.0], [6.0, 6.0]])
    assert strong_texts(X, np.array([5.0, np.nan])).toarray().tolist() == [[0, 0], [1, 0]]


def test_scores_refuse_negative_values():
    """Signed responses and thresholds below 0 have no meaning here."""
    with pytest.raises(DataError, match="negative"):
        text_scores([[1.0, -1.0]], 0.0)
    with pytest.raises(DataError, match="threshold is negative"):
        text_scores([[1.0, 1.0]], -1.0)
    with pytest.raises(DataError, match="some inside"):
        auroc([[1.0], [2.0]], np.array([True, True]))
