"""Compiled loops of least squares over the non-zeros of alive columns; what they compute is said in `stats/glm.py`.

V holds the columns (alive, indptr, idx, val), Q eight columns of the orthonormal basis, b = Q'y of every alive column.
"""

from __future__ import annotations

import math

import numpy as np

from neurosae.stats.kernels import FAST, compiled


@compiled()
def find_alive(indptr):
    """Columns with non-zeros, and their pointers; of the size of the dictionary nothing is touched but `indptr`."""
    columns = indptr.size - 1
    room = min(columns, indptr[columns] - indptr[0]) + 1
    alive, starts = np.empty(room, np.int64), np.empty(room, np.int64)
    m, here = 0, indptr[0]
    for j in range(columns):  # without a branch: a dead column is overwritten by the next one
        alive[m], starts[m] = j, here
        after = indptr[j + 1]
        m += after != here
        here = after
    starts[m] = here
    return alive[:m], starts[: m + 1]


@compiled(fastmath=FAST)
def project_block(V, Q, b, *, ss):
    """Fill b = Q'y of eight columns of Q, and ss = y'y; four rows at a time, each one register of eight."""
    indptr, idx, val = V.indptr, V.idx, V.val
    for a in range(V.alive.size):
        acc, square = b[a], 0.0
        acc[:] = 0.0
        p, end = indptr[a], indptr[a + 1]
        while p + 3 < end:
            x, y, z, w = val[p], val[p + 1], val[p + 2], val[p + 3]
            square += x * x + y * y + z * z + w * w
            q, r = Q[np.uint32(idx[p])], Q[np.uint32(idx[p + 1])]  # unsigned: no test for rows counted from the end
            s, t = Q[np.uint32(idx[p + 2])], Q[np.uint32(idx[p + 3])]
            for k in range(8):
                acc[k] += x * q[k] + y * r[k] + z * s[k] + w * t[k]
            p += 4
        while p < end:
            x, q = val[p], Q[np.uint32(idx[p])]
            square += x * x
            for k in range(8):
                acc[k] += x * q[k]
            p += 1
        ss[a] = square


@compiled(fastmath=FAST)
def squares_left(b, ss, sse):
    """Fill sse = y'y - b'b."""
    for a in range(ss.size):
        left = ss[a]
        for k in range(b.shape[1]):
            left -= b[a, k] * b[a, k]
        sse[a] = left


@compiled(fastmath=FAST)
def over_residual(t, sse):
    """Divide t (C, m) by the roots of the residual sums of squares; nan where no residual is left."""
    scale = np.empty(sse.size)
    for a in range(sse.size):
        scale[a] = 1.0 / math.sqrt(sse[a]) if sse[a] > 0.0 else np.nan
    for c in range(t.shape[0]):
        for a in range(sse.size):
            t[c, a] *= scale[a]


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
