"""D_c: against a double loop, its exact flip p, error rates, and the correction over places and effects."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_limits

from neurosae.stats.length import Length, LengthTest, contrast_length, corrected_lengths, group_lengths
from neurosae.stats.rdm_noise import gram
from neurosae.stats.relabel import flips, permutations


def contrasts(n: int, m: int, *, seed: int, shift: float = 0.0) -> sp.csr_matrix:
    """Sparse item contrasts; the first ten features are shifted where they are active."""
    rng = np.random.default_rng(seed)
    D = (rng.standard_normal((n, m)) + shift * (np.arange(m) < 10)) * (rng.random((n, m)) < 0.5)
    return sp.csr_matrix(D)


def weighted(D: sp.csr_matrix) -> np.ndarray:
    """Features with six informative items, each divided by the square root of its weight."""
    X = D.toarray()[:, (D.toarray() != 0).sum(axis=0) >= 6]
    q = (X**2).mean(axis=0)
    return X / np.sqrt(q + np.median(q))


def test_gram_agrees_with_a_dense_product():
    """Dense and sparse columns together, and none at all."""
    X = sp.random_array((30, 80), density=0.08, rng=np.random.default_rng(0)).tolil()
    X[:, 3], X[:, 40] = 1.0, 2.0
    assert_allclose(gram(sp.csr_matrix(X)), (X @ X.T).toarray(), atol=1e-12)
    assert (gram(sp.csr_matrix((3, 5))) == 0).all()


def test_contrast_length_agrees_with_a_double_loop():
    """Value and exhaustive p equal the sum over pairs of items, flip by flip."""
    D = contrasts(8, 30, seed=1, shift=0.4)
    X = weighted(D)
    found = contrast_length(D, flips(np.arange(8), 1000, seed=0))
    values = []
    for s in itertools.product([1, -1], repeat=7):
        Y = np.array([1, *s])[:, None] * X
        values.append(sum(Y[i] @ Y[k] for i in range(8) for k in range(8) if i != k) / 56)
    assert_allclose(found.value, values[0], rtol=1e-10)
    assert found.p == np.mean(np.array(values) >= values[0] - 1e-9)
    assert_allclose(found.null, np.array(values) / np.sqrt(np.mean(np.square(values))), atol=1e-9)


def test_contrast_length_is_unbiased():
    """Its mean is the squared length of the mean contrast, as the plug-in length is not."""
    rng, mean = np.random.default_rng(2), np.full(20, 0.3)
    G = [np.where(np.eye(12), 0, Y @ Y.T) for Y in (mean + rng.standard_normal((1500, 12, 20)))]
    values = np.array([g.sum() / 132 for g in G])
    assert abs(values.mean() - mean @ mean) < 4 * values.std() / np.sqrt(len(values))


def test_group_lengths_agree_with_means_of_pairs():
    """Three groups of unequal size: cross products of means, own products without the items themselves."""
    rng = np.random.default_rng(3)
    X, codes, w = rng.standard_normal((12, 5)), np.repeat([0, 1, 2], [3, 4, 5]), np.array([-1.0, 0.4, 0.6])
    G = X @ X.T
    expected = 0.0
    for g, h in itertools.product(range(3), repeat=2):
        block = G[np.ix_(codes == g, codes == h)]
        mean = block.mean() if g != h else (block.sum() - np.trace(block)) / (len(block) * (len(block) - 1))
        expected += w[g] * w[h] * mean
    np.fill_diagonal(G, 0)
    assert_allclose(group_lengths(G, codes[None], w), [expected], rtol=1e-10)


@pytest.mark.parametrize("kind", ["flip", "permute"])
def test_contrast_length_controls_false_positives(kind):
    """Null data, 400 sets: rejections stay below the binomial 99.9 % bound at .05, and the test is not idle."""
    rejected = 0
    for seed in range(400):
        D = contrasts(14, 40, seed=seed)
        codes = np.repeat([0, 1], 7)
        how = flips(np.arange(14), 200, seed=seed) if kind == "flip" else permutations(
            np.arange(14), codes, 200, seed=seed)  # fmt: skip
        rejected += contrast_length(D, how).p <= 0.05
    low, high = scipy.stats.binom.interval(0.999, 400, 0.05)
    assert low <= rejected <= high


def test_contrast_length_recovers_a_shift():
    """Ten of 60 features shifted by one sd in 20 items: found, by flips and between groups."""
    D = contrasts(20, 60, seed=5, shift=1.0)
    assert contrast_length(D, flips(np.arange(20), 2000, seed=0)).p < 0.01
    between = sp.vstack([D, contrasts(20, 60, seed=6)]).tocsr()
    assert contrast_length(between, permutations(np.arange(40), np.repeat([0, 1], 20), 2000, seed=0)).p < 0.01


def test_contrast_length_invariant_to_order_scale_sign_and_threads():
    """Features in another order, other units, the other sign: the same p; other thread counts: the same bits."""
    D, how = contrasts(16, 50, seed=7, shift=0.3), flips(np.arange(16), 500, seed=1)
    first = contrast_length(D, how)
    order = np.random.default_rng(0).permutation(50)
    other = contrast_length(-3.7 * D[:, order], how)
    assert other.p == first.p
    assert_allclose(other.value, first.value, rtol=1e-10)
    assert np.array_equal(contrast_length(D, how).null, first.null)
    for threads in (1, 2):
        with threadpool_limits(threads):
            assert np.array_equal(contrast_length(D, how).null, first.null)


def test_contrast_length_of_a_part_of_the_items_uses_their_own_flips():
    """Items keep their flips whatever other items are relabelled with them."""
    D, how = contrasts(10, 40, seed=8), flips(np.arange(30), 300, seed=2)
    part = np.arange(5, 15)
    alone = flips(part, 300, seed=2, enumerate_all=False)
    assert np.array_equal(contrast_length(D, how, columns=part).null, contrast_length(D, alone).null)


def test_contrast_length_between_groups_invariant_to_what_all_items_share():
    """A constant added to every item is no difference between groups: value and p stay."""
    D, how = contrasts(12, 30, seed=9, shift=0.5), permutations(np.arange(12), np.repeat([0, 1], 6), 300, seed=3)
    one, two = (sp.csr_matrix(D.toarray() + shift) for shift in (1, 3))
    first, moved = contrast_length(one, how), contrast_length(two, how)
    assert_allclose(moved.value, first.value, rtol=1e-9)
    assert moved.p == first.p


def test_contrast_length_is_none_without_features():
    """Two informative items are too few: no number is made up."""
    D = sp.csr_matrix(np.repeat([1.0, 0.0], [2, 6])[:, None] * np.ones(3))
    assert contrast_length(D, flips(np.arange(8), 100, seed=0)) is None


def made(null: np.ndarray) -> LengthTest:
    return LengthTest(Length(0.0, null, 1.0, 1, 1), None, None)


def test_corrected_lengths_is_holm_over_effects_of_a_maximum_over_places():
    """By hand: three effects at one place give Holm; two places of one effect give the maximum."""
    nulls = [np.r_[z, np.linspace(0, 3, 99)] for z in (2.95, 2.5, 0.5)]
    one = {str(k): {"here": made(null)} for k, null in enumerate(nulls)}
    p = [np.mean(null >= null[0]) for null in nulls]
    corrected, top = corrected_lengths(one)
    assert_allclose([corrected[str(k), "here"] for k in range(3)], [3 * p[0], 2 * p[1], p[2]])
    assert_allclose(top, np.max(nulls, axis=0), rtol=1e-6)
    two, _ = corrected_lengths({"a": {"here": made(nulls[0]), "there": made(nulls[2])}})
    assert two["a", "there"] == np.mean(np.maximum(nulls[0], nulls[2]) >= 0.5)


def test_corrected_lengths_controls_familywise_error():
    """Two effects at three places, nothing there, 300 sets: any rejection stays below the bound at .05."""
    any_rejected = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        how = flips(np.arange(12), 150, seed=seed)
        tests = {}
        for effect in "ab":
            shared = rng.standard_normal((12, 20))
            data = [sp.csr_matrix(shared + rng.standard_normal((12, 20))) for _ in range(3)]
            tests[effect] = {k: LengthTest(contrast_length(D, how), None, how) for k, D in enumerate(data)}
        any_rejected += min(corrected_lengths(tests)[0].values()) <= 0.05
    assert any_rejected <= scipy.stats.binom.ppf(0.9995, 300, 0.05)
