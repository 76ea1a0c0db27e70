"""Compiled loops of REML over features; what they compute is said in `stats/mixed.py`."""

from __future__ import annotations

import math

import numpy as np

from neurosae.stats.kernels import FAST, compiled


@compiled(fastmath=FAST)
def merge_items(V, item, XS, *, of, by, hs):
    """Add up each item's rows while a column is walked; its sums go to the size of the item."""
    K = XS.shape[1]
    for a in range(V.alive.size):
        stop, now, total = V.indptr[a + 1], item[V.idx[V.indptr[a]]], 0.0
        for p in range(V.indptr[a], stop + 1):
            if p == stop or item[V.idx[p]] != now:
                z = of[now]
                hs[a, z] += total * total
                for k in range(K):
                    by[a, z, k] += total * XS[now, k]
                if p == stop:
                    break
                now, total = item[V.idx[p]], 0.0
            total += V.val[p]


@compiled(fastmath=FAST)
def fit_balanced(aw, ab, parts, *, lb, grid, sizes, out):
    """Fill u of every feature; p = exp(-u), d_k = 1 - lb + p lb, q = sw + p sb - sum (aw + p ab)^2 / d."""
    us, logdet = grid
    n, count = sizes
    K, G = lb.size, us.size
    for f in range(out.size):
        best, at = 1e300, 0
        for g in range(G):
            p = math.exp(-us[g])
            q = parts[f, 0] + p * parts[f, 1]
            for k in range(K):
                t = aw[f, k] + p * ab[f, k]
                q -= t * t / (1.0 - lb[k] + p * lb[k])
            value = n * math.log(max(q, 1e-300)) + logdet[g]
            if value < best:
                best, at = value, g
        low, high, u = us[max(at - 1, 0)], us[min(at + 1, G - 1)], us[at]
        for _ in range(60):
            p = math.exp(-u)
            q, q1, q2, l1, l2 = parts[f, 0] + p * parts[f, 1], parts[f, 1], 0.0, 0.0, 0.0
            for k in range(K):
                d, t = 1.0 - lb[k] + p * lb[k], aw[f, k] + p * ab[f, k]
                e, b = t / d, ab[f, k]
                q -= t * e
                q1 -= e * (2 * b - e * lb[k])
                q2 -= 2 / d * (b - e * lb[k]) ** 2
                l1 += lb[k] / d
                l2 += (lb[k] / d) ** 2
            q = max(q, 1e-300)
            v1, v2 = n * q1 / q - count / p + l1, n * (q2 / q - (q1 / q) ** 2) + count / (p * p) - l2
            slope, bend = -p * v1, p * v1 + p * p * v2
            if u == 0.0 and slope >= 0.0:
                break
            if slope > 0:
                high = u
            else:
                low = u
            new = u - slope / bend if bend > 0 else 0.5 * (low + high)
            if not low <= new <= high:
                new = 0.5 * (low + high)
            moved = abs(new - u)
            u = new
            if moved < 1e-12:
                break
        out[f] = u


@compiled(fastmath=FAST)
def invert(A):
    """Inverse of a positive definite matrix in its place; returns the logarithm of its determinant."""
    logdet = 0.0
    for k in range(A.shape[0]):
        d = A[k, k]
        logdet += math.log(max(d, 1e-300))
        A[k, k] = 1.0
        for j in range(A.shape[0]):
            A[k, j] /= d
        for i in range(A.shape[0]):
            if i != k:
                x = A[i, k]
                A[i, k] = 0.0
                for j in range(A.shape[0]):
                    A[i, j] -= x * A[k, j]
    return logdet


@compiled(fastmath=FAST)
def reduce_items(sizes, theta, A):
    """A = I - sum_s g_s X_s; returns sum_i log(1 + n_i theta)."""
    logs = 0.0
    for i in range(A.shape[0]):
        for j in range(A.shape[0]):
            A[i, j] = 1.0 if i == j else 0.0
    for s in range(sizes.size.size):
        m = 1.0 + sizes.size[s] * theta
        logs += sizes.count[s] * math.log(m)
        for i in range(A.shape[0]):
            for j in range(A.shape[0]):
                A[i, j] -= theta / m * sizes.XX[s, i, j]
    return logs


@compiled(fastmath=FAST)
def value_at(sums, f, parts):
    """Value of q at theta = parts[1], with A^-1 = parts[0]; leaves beta."""
    Ai, theta, size, c, beta = parts
    K, q = c.size, sums.ss[f]
    for k in range(K):
        c[k] = sums.cy[f, k]
    for s in range(size.size):
        g = theta / (1.0 + size[s] * theta)
        q -= g * sums.hs[f, s]
        for k in range(K):
            c[k] -= g * sums.by[f, s, k]
    for k in range(K):
        b = 0.0
        for j in range(K):
            b += Ai[k, j] * c[j]
        beta[k] = b
        q -= b * c[k]
    return q


@compiled(fastmath=FAST)
def derivatives(sums, sizes, at):
    """First and second derivatives in theta of q and of the log determinant, given A^-1 and beta.

    With r_s the sum over items of size s of their squared residual sums, q' = -sum g_s' r_s.
    """
    f, theta, Ai, beta, (D, D2, P, slope) = at
    K = beta.size
    D[:], D2[:], slope[:] = 0.0, 0.0, 0.0
    q1, q2, d1, d2 = 0.0, 0.0, 0.0, 0.0
    for s in range(sizes.size.size):
        n = sizes.size[s]
        m = 1.0 + n * theta
        g1, g2 = 1.0 / (m * m), -2.0 * n / (m * m * m)
        d1 += sizes.count[s] * n / m
        d2 -= sizes.count[s] * (n / m) ** 2
        r = sums.hs[f, s]
        for i in range(K):
            x = 0.0
            for j in range(K):
                x += sizes.XX[s, i, j] * beta[j]
                D[i, j] -= g1 * sizes.XX[s, i, j]
                D2[i, j] -= g2 * sizes.XX[s, i, j]
            slope[i] += g1 * (x - sums.by[f, s, i])  # c' - A' beta
            r += beta[i] * (x - 2.0 * sums.by[f, s, i])
        q1 -= g1 * r
        q2 -= g2 * r
    for i in range(K):
        for j in range(K):
            q2 -= 2.0 * slope[i] * Ai[i, j] * slope[j]
            d2 += Ai[i, j] * D2[j, i]
            P[i, j] = 0.0
            for k in range(K):
                P[i, j] += Ai[i, k] * D[k, j]
    for i in range(K):
        d1 += P[i, i]
        for j in range(K):
            d2 -= P[i, j] * P[j, i]
    return q1, q2, d1, d2


@compiled(fastmath=FAST)
def fit_unequal(sums, sizes, grid, *, n, out):
    """Fill u of every feature where items differ in size: the grid's inverses serve all of them, then Newton steps."""
    G, K = grid.size, sums.cy.shape[1]
    mean, df = n / sizes.count.sum(), n - K
    inverses, logs, thetas = np.empty((G, K, K)), np.empty(G), np.empty(G)
    for g in range(G):
        thetas[g] = math.expm1(grid[g]) / mean
        logs[g] = reduce_items(sizes, thetas[g], inverses[g])
        logs[g] += invert(inverses[g])
    Ai, c, beta = np.empty((K, K)), np.empty(K), np.empty(K)
    work = np.empty((K, K)), np.empty((K, K)), np.empty((K, K)), np.empty(K)
    for f in range(out.size):
        best, at = 1e300, 0
        for g in range(G):
            q = value_at(sums, f, (inverses[g], thetas[g], sizes.size, c, beta))
            value = df * math.log(max(q, 1e-300)) + logs[g]
            if value < best:
                best, at = value, g
        low, high, u = grid[max(at - 1, 0)], grid[min(at + 1, G - 1)], grid[at]
        for _ in range(60):
            theta, J = math.expm1(u) / mean, math.exp(u) / mean
            reduce_items(sizes, theta, Ai)
            invert(Ai)
            q = max(value_at(sums, f, (Ai, theta, sizes.size, c, beta)), 1e-300)
            q1, q2, d1, d2 = derivatives(sums, sizes, (f, theta, Ai, beta, work))
            v1 = df * q1 / q + d1
            slope, bend = J * v1, J * J * (df * (q2 / q - (q1 / q) ** 2) + d2) + J * v1
            if u == 0.0 and slope >= 0.0:
                break
            if slope > 0:
                high = u
            else:
                low = u
            new = u - slope / bend if bend > 0 else 0.5 * (low + high)
            if not low <= new <= high:
                new = 0.5 * (low + high)
            moved = abs(new - u)
            u = new
            if moved < 1e-11:
                break
        out[f] = u


@compiled(fastmath=FAST)
def evaluate(sums, sizes, u, *, W, beta, terms):
    """Estimates and terms of the criterion at u, with derivatives in u."""
    K, n = W.shape[0], 0.0
    for s in range(sizes.size.size):
        n += sizes.size[s] * sizes.count[s]
    mean = n / sizes.count.sum()
    Ai, c = np.empty((K, K)), np.empty(K)
    work = np.empty((K, K)), np.empty((K, K)), np.empty((K, K)), np.empty(K)
    for f in range(u.size):
        theta, J = math.expm1(u[f]) / mean, math.exp(u[f]) / mean
        logs = reduce_items(sizes, theta, Ai)
        logs += invert(Ai)
        terms.q[f, 0] = value_at(sums, f, (Ai, theta, sizes.size, c, beta[f]))
        q1, q2, d1, d2 = derivatives(sums, sizes, (f, theta, Ai, beta[f], work))
        terms.q[f, 1], terms.q[f, 2] = q1 * J, q2 * J * J + q1 * J
        terms.d[f, 0], terms.d[f, 1], terms.d[f, 2] = logs, d1 * J, d2 * J * J + d1 * J
        for k in range(W.shape[1]):
            v, v1 = 0.0, 0.0
            for i in range(K):
                x = 0.0
                for j in range(K):
                    x += Ai[i, j] * W[j, k]
                c[i] = x
                v += x * W[i, k]
            for i in range(K):
                for j in range(K):
                    v1 -= c[i] * work[0][i, j] * c[j]
            terms.v[f, k, 0], terms.v[f, k, 1] = v, v1 * J
