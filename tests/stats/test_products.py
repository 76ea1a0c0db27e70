"""Products of co-active pairs: against the dense product of every pair, and the counts that keep a pair."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal

from neurosae.stats.products import pair_products


def responses(n: int = 50, m: int = 70, *, density: float = 0.25, seed: int = 0) -> sp.csr_matrix:
    return sp.csr_matrix(sp.random_array((n, m), density=density, rng=np.random.default_rng(seed)))


@pytest.mark.parametrize("least", [2, 4, 6])
def test_pair_products_agree_with_dense_products(least):
    """Exactly the pairs that fire together often enough, each with the dense product of its columns."""
    X = responses()
    made, dense = pair_products(X, least=least), X.toarray()
    together = np.triu((dense > 0).T.astype(int) @ (dense > 0), 1)
    assert_array_equal(np.argwhere(together >= least), np.column_stack([made.first, made.second]))
    assert_array_equal(made.X.toarray(), dense[:, made.first] * dense[:, made.second])
    assert made.n_coactive == (together > 0).sum()


def test_pair_products_invariant_to_the_order_of_rows():
    """What is kept depends on counts alone: shuffled rows give the same pairs, with shuffled products."""
    X, order = responses(seed=1), np.random.default_rng(2).permutation(50)
    one, two = pair_products(X), pair_products(sp.csr_matrix(X[order]))
    assert_array_equal(one.first, two.first)
    assert_array_equal(one.X.toarray()[order], two.X.toarray())


def test_pair_products_invariant_to_features_that_never_fire():
    """Empty columns and stored zeros change nothing but the numbers of the features."""
    X = responses(seed=3)
    wide = sp.hstack([sp.csr_matrix((50, 5)), X]).tocsr()
    wide.data[0] = 0.0
    narrow = X.copy()
    narrow.data[0] = 0.0
    one, two = pair_products(narrow), pair_products(wide)
    assert_array_equal(one.first + 5, two.first)
    assert (one.X != two.X).nnz == 0
    assert one.n_coactive == two.n_coactive


def test_pair_products_of_nothing_are_empty():
    """No pair often enough: an empty matrix, no error."""
    made = pair_products(responses(8, 5, density=0.1), least=8)
    assert made.X.shape == (8, 0)
    assert len(made.first) == 0
