"""Compiled loops of least squares over the non-zeros of alive columns; what they compute is said in `stats/glm.py`.

V holds the columns (alive, indptr, idx, val), Q eight columns of the orthonormal basis, b = Q'y of every alive column.
"""

from __future__ import annotations

import math

import numpy as np

from neurosae.stats.kernels import FAST, compiled


@compiled()
def find_alive(indptr):
    """Columns with non-zeros, and their pointers; nothing of the size of the dictionary is allocated."""
    m = 0
    for j in range(indptr.size - 1):
        m += indptr[j + 1] != indptr[j]
    alive, starts = np.empty(m + 1, np.int64), np.empty(m + 1, np.int64)
    m = 0
    for j in range(indptr.size - 1):  # without a branch: a dead column is overwritten by the next one
        alive[m], starts[m] = j, indptr[j]
        m += indptr[j + 1] != indptr[j]
    starts[m] = indptr[-1]
    return alive[:m], starts


@compiled(fastmath=FAST)
def project_block(V, Q, b, *, ss):
    """Fill b = Q'y of eight columns of Q, and ss = y'y."""
    acc = np.empty(8)
    for a in range(V.alive.size):
        square = 0.0
        acc[:] = 0.0
        for p in range(V.indptr[a], V.indptr[a + 1]):
            x, q = V.val[p], Q[V.idx[p]]
            square += x * x
            for k in range(8):
                acc[k] += x * q[k]
        ss[a] = square
        for k in range(8):
            b[a, k] = acc[k]


@compiled(fastmath=FAST)
def squares_left(b, ss, sse):
    """Fill sse = y'y - b'b."""
    for a in range(ss.size):
        left = ss[a]
        for k in range(b.shape[1]):
            left -= b[a, k] * b[a, k]
        sse[a] = left


@compiled(fastmath=FAST)
def t_values(b, sse, W, *, norm, estimate, se, t):
    """Fill estimates b'W, standard errors and t; t is nan where no residual is left."""
    for a in range(sse.size):
        s = math.sqrt(max(sse[a], 0.0))
        for c in range(W.shape[1]):
            e = 0.0
            for k in range(W.shape[0]):
                e += b[a, k] * W[k, c]
            estimate[a, c] = e
            se[a, c] = s * norm[c]
            t[a, c] = e / se[a, c] if s > 0.0 else np.nan


@compiled(fastmath=FAST)
def weigh_block(V, Q, g, *, u, s):
    """Fill u = sum g y q of eight columns of Q, and s = sum g y^2."""
    acc = np.empty(8)
    for a in range(V.alive.size):
        square = 0.0
        acc[:] = 0.0
        for p in range(V.indptr[a], V.indptr[a + 1]):
            r = V.idx[p]
            q, x = Q[r], g[r] * V.val[p]
            square += x * V.val[p]
            for k in range(8):
                acc[k] += x * q[k]
        s[a] = square
        for k in range(8):
            u[a, k] = acc[k]


@compiled(fastmath=FAST)
def merge_block(V, w, item, *, M, v, s):
    """Fill s = sum_i s_i^2 and v = sum_i s_i M_i with s_i = sum of w y over the rows of an item, which are adjacent."""
    acc = np.empty(8)
    for a in range(V.alive.size):
        square, own = 0.0, 0.0
        acc[:] = 0.0
        now = item[V.idx[V.indptr[a]]]
        for p in range(V.indptr[a], V.indptr[a + 1]):
            r = V.idx[p]
            if item[r] != now:
                square += own * own
                for k in range(8):
                    acc[k] += own * M[now, k]
                now, own = item[r], 0.0
            own += w[r] * V.val[p]
        s[a] = square + own * own
        for k in range(8):
            v[a, k] = acc[k] + own * M[now, k]


@compiled(fastmath=FAST)
def subtract_fit(out, b, u, *, T):
    """Add b'Tb - 2 b'u to out."""
    for a in range(out.size):
        more = 0.0
        for k in range(b.shape[1]):
            inner = -2 * u[a, k]
            for j in range(b.shape[1]):
                inner += T[k, j] * b[a, j]
            more += b[a, k] * inner
        out[a] += more
