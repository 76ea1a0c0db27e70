"""Product responses of every pair of features that fires together often enough: a sparse matrix, never a dense one.

Gustavson's walk: for each feature f, over the stimuli where it fires, over the features g > f that fire there too. A
first pass counts, a second one writes the kept pairs. Work = co-active products, about N L0^2 / 2; memory = what is
kept. The dense matrix of all pairs of 24,576 features on 4,096 stimuli would take 2.5 TB.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.stats.kernels import compiled


class Products(NamedTuple):
    """Products of pairs of features.

    X : CSC float64 (n_rows, n_pairs), X[r, (f, g)] = x_rf x_rg; rows ascend inside a column
    first, second : the features of each pair, first < second
    n_coactive : pairs that fire together in at least one row, kept or not
    """

    X: sp.csc_matrix
    first: np.ndarray
    second: np.ndarray
    n_coactive: int


class _Active(NamedTuple):
    """The same matrix by columns and by rows; `at` is the place of each entry of a column in the arrays of the rows."""

    cptr: np.ndarray
    cidx: np.ndarray
    cval: np.ndarray
    at: np.ndarray
    rptr: np.ndarray
    ridx: np.ndarray
    rval: np.ndarray


class _Pairs(NamedTuple):
    """What the second pass writes: pointers, rows and values of the pairs, and their features."""

    indptr: np.ndarray
    idx: np.ndarray
    val: np.ndarray
    first: np.ndarray
    second: np.ndarray


def pair_products(X: sp.csr_matrix, *, least: int = 6) -> Products:
    """Products of all pairs of columns that are non-zero together in at least `least` rows.

    Parameters
    ----------
    X : CSR of shape (n_rows, n_features), responses of single stimuli
    least : int

    Notes
    -----
    The number of rows where two features fire together is the same under every relabelling of the rows, so a test of
    the kept pairs stays exact. A pair cannot reach `least` rows where one of its features alone does not.

    Examples
    --------
    >>> made = pair_products(sp.csr_matrix([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]), least=1)
    >>> list(zip(made.first.tolist(), made.second.tolist(), made.X.toarray().T.tolist()))
    [(0, 1, [2.0, 12.0]), (0, 2, [0.0, 15.0]), (1, 2, [0.0, 20.0])]
    >>> pair_products(sp.csr_matrix([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]), least=2).X.shape
    (2, 1)
    """
    X = sp.csr_matrix(X, dtype=np.float64)
    X.eliminate_zeros()
    n_rows, n_features = X.shape  # pyright: ignore[reportGeneralTypeIssues]
    often = np.flatnonzero(np.bincount(X.indices, minlength=n_features) >= least)
    active = _active(sp.csr_matrix(X[:, often]))
    n_pairs, n_entries = _count(active, least)
    found = _Pairs(
        np.zeros(n_pairs + 1, np.int64),
        np.empty(n_entries, np.int32),
        np.empty(n_entries),
        np.empty(n_pairs, np.int64),
        np.empty(n_pairs, np.int64),
    )
    _write(active, least, found)
    made = sp.csc_matrix((found.val, found.idx, found.indptr), shape=(n_rows, n_pairs))
    n_coactive = _count(_active(X), 1)[0]
    return Products(made, often[found.first], often[found.second], int(n_coactive))


def _active(X: sp.csr_matrix) -> _Active:
    rows, columns = sp.csr_matrix(X), sp.csc_matrix(X)
    rows.sort_indices()
    columns.sort_indices()
    at = np.argsort(rows.indices, kind="stable")  # order by column, then row: that of the entries of the columns
    by_column = columns.indptr.astype(np.int64), columns.indices.astype(np.int32), columns.data
    return _Active(*by_column, at, rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data)


@compiled()
def _partners(X, f, seen):
    """Rows that f shares with each g > f, added up in seen = (counts, features met); returns how many were met."""
    counts, met = seen
    k = 0
    for p in range(X.cptr[f], X.cptr[f + 1]):
        for q in range(X.at[p] + 1, X.rptr[X.cidx[p] + 1]):
            g = X.ridx[q]
            if counts[g] == 0:
                met[k] = g
                k += 1
            counts[g] += 1
    return k


@compiled()
def _count(X, least):
    """Pairs that share at least `least` rows, and their entries."""
    m = X.cptr.size - 1
    counts, met = np.zeros(m, np.int32), np.empty(m, np.int32)
    n_pairs, n_entries = 0, 0
    for f in range(m):
        for a in range(_partners(X, f, (counts, met))):
            n = counts[met[a]]
            counts[met[a]] = 0
            if n >= least:
                n_pairs += 1
                n_entries += n
    return n_pairs, n_entries


@compiled()
def _write(X, least, out):
    """Fill the arrays of the kept pairs, ordered by first, then second feature."""
    m = X.cptr.size - 1
    counts, met, place = np.zeros(m, np.int32), np.empty(m, np.int32), np.full(m, -1, np.int64)
    pair, n = 0, 0
    for f in range(m):
        k = _partners(X, f, (counts, met))
        met[:k].sort()
        for a in range(k):
            g = met[a]
            if counts[g] >= least:
                place[g] = n
                n += counts[g]
                out.first[pair], out.second[pair] = f, g
                out.indptr[pair + 1] = n
                pair += 1
            counts[g] = 0
        for p in range(X.cptr[f], X.cptr[f + 1]):
            for q in range(X.at[p] + 1, X.rptr[X.cidx[p] + 1]):
                g = X.ridx[q]
                if place[g] >= 0:
                    out.idx[place[g]] = X.cidx[p]
                    out.val[place[g]] = X.cval[p] * X.rval[q]
                    place[g] += 1
        for a in range(k):
            place[met[a]] = -1
