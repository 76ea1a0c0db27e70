"""Compiled parts of `neurosae.dictionary.encode`: list what may be active, compute it, keep what is.

A block of rows is `screened` = (raw, step, size, lost, relative) of `neurosae.dictionary.screen.Screened`, an encoder
(bias, step, lost, length). Lists are (features, values, counts): those of row 0, then those of row 1, and so on.
"""

from __future__ import annotations

import numba
import numpy as np

BLOCK = 256  # features whose weights stay in the cache while all rows use them
# nan and inf are refused before a kernel runs, so these flags are safe
jit = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"})


@jit
def _kth(a, n, k):
    """The k-th largest of a[:n] by quickselect; reorders a."""
    left, right, goal = 0, n - 1, k - 1
    while left < right:
        pivot, i, j = a[(left + right) // 2], left, right
        while i <= j:
            while a[i] > pivot:
                i += 1
            while a[j] < pivot:
                j -= 1
            if i <= j:
                a[i], a[j] = a[j], a[i]
                i += 1
                j -= 1
        if goal <= j:
            right = j
        elif goal >= i:
            left = i
        else:
            break
    return a[goal]


@jit
def round_rows(x, out):
    """Rows as steps times whole numbers up to 127; `lost` is |x - x~| and |x~|, (2, n)."""
    rounded, step, lost = out
    for r in range(len(x)):
        most, gone, kept = np.float32(0), np.float32(0), np.float32(0)
        for q in range(x.shape[1]):
            most = max(most, abs(x[r, q]))
        step[r] = most / np.float32(127)
        if not step[r] > np.float32(1.2e-38):  # a row of zeros, or nearly so: all lost
            step[r] = np.float32(1)
        for q in range(x.shape[1]):
            unit = min(max(np.rint(x[r, q] / step[r]), np.float32(-127)), np.float32(127))
            rounded[r, q] = np.int8(unit)
            back = unit * step[r]
            gone += (x[r, q] - back) * (x[r, q] - back)
            kept += back * back
        lost[0, r], lost[1, r] = np.sqrt(gone), np.sqrt(kept)


@jit
def _read(row, scale, space):
    """Screened pre-activations of a row, bias included; a bfloat16 is the upper half of a float32."""
    (unit, (bias, step, _, _)), (bits, value) = scale, space
    if row.itemsize == 2:
        for j in range(row.size):
            bits[j] = np.uint32(row[j]) << np.uint32(16)
        for j in range(row.size):
            value[j] += bias[j]
    else:
        for j in range(row.size):
            value[j] = np.float32(row[j]) * (unit * step[j]) + bias[j]


@jit
def _flagged(flags, found):
    """Where flags are 1, eight at a time; how many. Flags beyond the row are 0."""
    n, eight = 0, flags.view(np.uint64)
    for w in range(eight.size):
        if eight[w] != 0:
            for j in range(8 * w, 8 * w + 8):  # stored always, kept on a hit: no branch to mispredict
                found[n] = j
                n += flags[j]
    return n


@jit
def _kth_of_row(value, k, space):
    """The k-th largest of a row, or 0 if that is below; `guess` learns where to look."""
    (found, flags, work), (guess, size) = space
    t = max(guess[0] * size, np.float32(0.0))
    while True:
        for j in range(value.size):
            flags[j] = np.uint8(1) if value[j] > t else np.uint8(0)
        n = _flagged(flags, found)
        if n >= k or t == 0:
            break
        t = np.float32(0.75) * t if t > np.float32(0.05) * size else np.float32(0.0)
    for a in range(n):
        work[a] = value[found[a]]
    tau = _kth(work, n, k) if n >= k else np.float32(0.0)
    if size > 0:
        guess[0] += np.float32(0.1) * (np.float32(0.95) * tau / size - guess[0])
    return tau


@jit
def list_rows(rows, lists, limits):
    """Features whose p + e reaches the limit of their feature and that of their row; how many in all.

    rows : (screened, encoder) of the module
    limits : (own, tau, k, doubt, guess): a limit per feature, one per row; where k > 0, tau is the k-th largest p of
        the row less `doubt` mean bounds, and filled
    """
    (raw, step, size, missing, relative), (bias, _, lost, length) = rows
    (listed, _, counts), (own, tau, k, doubt, guess) = lists, limits
    n, m, mean = 0, raw.shape[1], (lost.mean(), length.mean())
    found, flags, bits = np.empty(m + 8, np.int32), np.zeros((m + 7) // 8 * 8, np.uint8), np.empty(m, np.uint32)
    value, work = bits.view(np.float32), np.empty(m, np.float32)
    for r in range(len(raw)):
        _read(raw[r], (step[r], rows[1]), (bits, value))
        if k > 0:
            tau[r] = _kth_of_row(value, k, ((found, flags, work), (guess, size[r])))
            usual = size[r] * mean[0] + missing[r] * mean[1] + relative * tau[r]
            tau[r] = max(tau[r] - doubt * usual, np.float32(0.0))
        for j in range(m):
            v = value[j]
            e = size[r] * lost[j] + missing[r] * length[j] + relative * abs(v - bias[j]) + np.float32(1.2e-7) * abs(v)
            flags[j] = np.uint8(0) if v + e < max(own[j], tau[r]) else np.uint8(1)  # nan: listed
        counts[r] = _flagged(flags, found)
        listed[n : n + counts[r]] = found[: counts[r]]
        n += counts[r]
    return n


@jit
def lowered(lists, tau, k):
    """Lower tau to the k-th largest computed value, or 0, where that is below it; in how many rows.

    All of a row's features that could exceed the new tau are among those with p + e above it, so a second list is
    whole.
    """
    (_, value, counts), begin, rows = lists, 0, 0
    work = np.empty(max(counts.max(), 1), np.float32)
    for r in range(len(counts)):
        c = counts[r]
        work[:c] = value[begin : begin + c]
        least = max(_kth(work, c, k), np.float32(0.0)) if c >= k else np.float32(0.0)
        if least < tau[r]:
            tau[r] = least
            rows += 1
        begin += c
    return rows


@jit
def _dot(x, w):
    total = np.float32(0)
    for q in range(x.size):
        total += w[q] * x[q]
    return total


@jit
def dot_products(x, encoder, lists):
    """Fill in x_r . w_j + b_j of all that is listed, a block of features at a time: their weights stay in the cache."""
    (weights, bias), (listed, value, counts) = encoder, lists
    at, end = np.empty(len(x), np.int64), np.empty(len(x), np.int64)
    n = 0
    for r in range(len(x)):
        at[r], n = n, n + counts[r]
        end[r] = n
    for last in range(BLOCK, len(weights) + BLOCK, BLOCK):
        for r in range(len(x)):
            a = at[r]
            while a < end[r] and listed[a] < last:
                value[a] = _dot(x[r], weights[listed[a]]) + bias[listed[a]]
                a += 1
            at[r] = a


@jit
def keep_largest(lists, k):
    """Thin the lists to the k largest above 0, of equal ones the first; how many are left."""
    (listed, value, counts), n, begin = lists, 0, 0
    work = np.empty(max(counts.max(), 1), np.float32)
    for r in range(len(counts)):
        end, c = begin + counts[r], counts[r]
        work[:c] = value[begin:end]
        least = max(_kth(work, c, k), np.float32(0.0)) if c >= k else np.float32(0.0)
        ties = k
        for a in range(begin, end):
            ties -= 1 if value[a] > least else 0
        first = n
        for a in range(begin, end):
            tie = value[a] == least and ties > 0
            if value[a] > 0 and (value[a] > least or tie):
                ties -= 1 if tie else 0
                listed[n], value[n] = listed[a], value[a]
                n += 1
        counts[r], begin = n - first, end
    return n


@jit
def keep_above(lists, limits):
    """Thin the lists to what exceeds its limit; how many are left."""
    (listed, value, counts), n, begin = lists, 0, 0
    for r in range(len(counts)):
        first, end = n, begin + counts[r]
        for a in range(begin, end):
            if value[a] > limits[listed[a]]:
                listed[n], value[n] = listed[a], value[a]
                n += 1
        counts[r], begin = n - first, end
    return n
