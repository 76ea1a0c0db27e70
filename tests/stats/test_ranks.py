"""Mid-ranks of float32 numbers: rounding is a tie, and nothing wider than rounding is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_array_equal

from neurosae.stats.ranks import ranks_from_zero, size_ranks, value_ranks


@pytest.mark.parametrize("size", [1e-3, 1.0, 4e4])
def test_ranks_tie_what_rounding_separates(size):
    """Half a millionth of the value is a tie, three millionths are none, at every size and for either sign."""
    x = size * np.array([1.0, 1 + 5e-7, 2.0, 2 + 6e-6, 3.0])
    assert_array_equal(value_ranks(x[:, None]).ravel(), [1.5, 1.5, 3, 4, 5])
    assert_array_equal(value_ranks(-x[:, None]).ravel(), [4.5, 4.5, 3, 2, 1])
    signs = np.array([1, -1, 1, -1, -1])
    assert_array_equal(size_ranks(sp.csc_matrix((signs * x)[:, None])), [1.5, 1.5, 3, 4, 5])


def test_size_ranks_tie_by_the_error_that_is_given():
    """Differences of large responses carry their rounding, which is larger than their own."""
    D = sp.csc_matrix(np.array([[0.1], [-0.1005], [0.2]]))
    assert_array_equal(size_ranks(D), [1, 2, 3])
    assert_array_equal(size_ranks(D, np.full(3, 3e-4)), [1.5, 1.5, 3])
    assert_array_equal(size_ranks(D, np.full(3, 2e-4)), [1, 2, 3])


@pytest.mark.parametrize("signed", [True, False])
def test_ranks_from_zero_agree_with_dense_ranks(signed):
    """Sorting only what is not zero gives the ranks of all values, moved by those of the zeros."""
    rng = np.random.default_rng(0)
    x = np.round(rng.gamma(2.0, 1.0, (40, 30)), 1) * (rng.random((40, 30)) < np.linspace(0, 1, 30))
    x = x * rng.choice([-1, 1], x.shape) if signed else x
    x[:, 3] *= 1 + 1e-7 * rng.standard_normal(40)
    sparse, dense = ranks_from_zero(sp.csc_matrix(x)), value_ranks(x)
    assert sparse.nnz == (x != 0).sum()
    moved = dense - sparse.toarray()
    assert_array_equal(moved, np.broadcast_to(moved[:1], moved.shape))
    for column, ranks, shift in zip(x.T, dense.T, moved[0], strict=True):
        assert not (column == 0).any() or shift == ranks[column == 0][0]
