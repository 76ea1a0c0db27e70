"""Mid-ranks of numbers made of float32 responses: what differs by rounding alone is a tie."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata

TIED = 1e-6  # relative difference below which two neighbours are equal


def value_ranks(x: np.ndarray) -> np.ndarray:
    """Mid-ranks of every column of an array (n, m), zeros included; neighbours within rounding are one tie.

    Examples
    --------
    >>> value_ranks(np.array([[0.3], [0.30000001], [0.0], [-1.0]])).ravel()
    array([3.5, 3.5, 2. , 1. ])
    """
    order = np.argsort(x, axis=0, kind="stable")
    rising = np.take_along_axis(x, order, axis=0)
    with np.errstate(invalid="ignore"):  # inf - inf
        step = np.diff(rising, axis=0)
    apart = step > TIED * np.maximum(np.abs(rising[1:]), np.abs(rising[:-1]))
    group = np.zeros_like(x)
    np.put_along_axis(group, order, np.vstack([np.zeros((1, x.shape[1])), np.cumsum(apart, axis=0)]), axis=0)
    return rankdata(group, axis=0)


def ranks_from_zero(D: sp.csc_matrix) -> sp.csc_matrix:
    """Mid-ranks of every column minus the mid-rank of its zeros, as sparse as the values; ties as in `value_ranks`.

    The zeros are one tie block of known size, so only the other values are sorted, and a difference of group means is
    that of the ranks themselves.

    Examples
    --------
    >>> ranks_from_zero(sp.csc_matrix([[0.3], [0.0], [0.0], [-1.0], [0.3]])).toarray().ravel()
    array([ 2. ,  0. ,  0. , -1.5,  2. ])
    """
    n, n_columns = D.shape  # pyright: ignore[reportGeneralTypeIssues]
    lengths = np.diff(D.indptr)
    col = np.repeat(np.arange(n_columns), lengths)
    order = np.lexsort((D.data, col))
    rising = D.data[order]
    apart = np.diff(rising) > TIED * np.maximum(np.abs(rising[1:]), np.abs(rising[:-1]))
    new = np.r_[True, apart | (np.diff(col) != 0)][: len(rising)]
    first = np.flatnonzero(new)
    middle = (first + np.r_[first[1:], len(rising)] + 1) / 2
    below = np.bincount(col[D.data < 0], minlength=n_columns)
    zeros = n - lengths
    ranks = np.empty(len(rising))
    ranks[order] = middle[np.cumsum(new) - 1]
    ranks += np.where(D.data > 0, zeros[col], 0) - D.indptr[col] - (below + (zeros + 1) / 2)[col]
    return sp.csc_matrix((ranks, D.indices, D.indptr), shape=D.shape)


def size_ranks(D: sp.csc_matrix, error: np.ndarray | None = None) -> np.ndarray:
    """Mid-ranks of abs(d) inside every column; neighbours that differ only by the rounding of float32 are one tie.

    error : of every stored value, the size of its rounding; left out, TIED / 2 of the value
    """
    size, lengths = np.abs(D.data), np.diff(D.indptr)
    error = TIED / 2 * size if error is None else error
    col = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((size, col))
    rising = size[order]
    apart = np.diff(rising) > error[order][1:] + error[order][:-1]
    new = np.r_[True, apart | (np.diff(col[order]) != 0)][: len(size)]
    first = np.flatnonzero(new)
    middle = (first + np.r_[first[1:], len(size)] + 1) / 2
    ranks = np.empty(len(size))
    ranks[order] = middle[np.cumsum(new) - 1]
    return ranks - D.indptr[col]
