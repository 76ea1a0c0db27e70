"""Compiled loops over pairs of rows: inner products of sparse rows, and how often a draw holds each pair."""

from __future__ import annotations

from neurosae.stats.kernels import compiled


@compiled()
def column_counts(indices, counts):
    """Fill `counts` with the number of non-zeros of each column."""
    counts[:] = 0
    for j in indices:
        counts[j] += 1


@compiled()
def split_columns(X, *, place, rows, values, block):
    """Sort the entries of a CSR matrix X = (indptr, indices, data) by column, those of dense columns into `block`.

    place[j] : where column j begins in `rows` and `values`, and where it ends afterwards; -1 - k for the dense column k
    """
    indptr, indices, data = X
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            at = place[indices[p]]
            if at < 0:
                block[i, -1 - at] += data[p]
            else:
                rows[at], values[at] = i, data[p]
                place[indices[p]] = at + 1


@compiled()
def add_outer(bounds, rows, values, *, G):
    """Add the products of all pairs of entries of each column to the lower triangle of G; rows rise in a column."""
    for c in range(bounds.size - 1):
        for p in range(bounds[c], bounds[c + 1]):
            i, v = rows[p], values[p]
            for q in range(bounds[c], p + 1):
                G[i, rows[q]] += v * values[q]


@compiled()
def mirror(G):
    """Copy the lower triangle to the upper one."""
    for i in range(G.shape[0]):
        for j in range(i):
            G[j, i] = G[i, j]


@compiled()
def pair_weights(W, first, last, *, out):
    """out[b] = w_i w_j of draw b for the pairs i < j with first <= i < last, in condensed order."""
    n = W.shape[1]
    for b in range(W.shape[0]):
        at = 0
        for i in range(first, last):
            w, later, pairs = W[b, i], W[b, i + 1 :], out[b, at : at + n - 1 - i]
            for k in range(n - 1 - i):
                pairs[k] = w * later[k]
            at += n - 1 - i
