r"""Codes of many rows at once: a cheap screen names the few features that may be active, these are computed exactly.

With z = x W' + b and p an approximation of it from one matrix product (bfloat16 where the processor multiplies it
fast, else float32), and x~, w~ the rounded values,

    |p_rj - z_rj| <= e_rj = |x_r| |w_j - w~_j| + |x_r - x~_r| |w~_j| + d 2^-24 |x~_r| |w~_j| + 2^-8 |p_rj - b_j|,

(the last term is the rounding of a bfloat16 result; the bias is added afterwards). Feature j can be among the k
largest of row r only if p_rj + e_rj >= tau_r, the k-th largest of p_r - e_r; it can exceed its threshold only if
p_rj + e_rj > theta_j. Only these are computed, as float32 dot products. A poor screen makes the list longer
and never the result wrong, so the codes are the same with either screen, and in batches of any size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from neurosae.errors import ModelError

CELLS = 1 << 24  # screened values held at once: 32 or 64 MB
ROWS = 256  # per matrix product
UNIT = 2.0**-24  # rounding of float32
SLACK = np.float32(1.0001)  # of the norms, which are themselves rounded
LANES = 64  # values filtered at once
# nan and inf are refused before a kernel runs, so these flags are safe
jit = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"})


class Screen(NamedTuple):
    """An encoder prepared for screening.

    weights : float32 (m, d), one row per feature
    bias : float32 (m,)
    rough : the weights as they are multiplied, (m, d) bfloat16 or float32
    lost, length : |w - w~| and |w~| of each feature, rounded up, (m,)
    """

    weights: Tensor
    bias: Tensor
    rough: Tensor
    lost: np.ndarray
    length: np.ndarray


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask is not None and ask() for ask in asked)


def prepare_screen(weights: Tensor, bias: Tensor, *, bfloat16: bool | None = None) -> Screen:
    """Round the encoder once; all later calls share it.

    Parameters
    ----------
    weights, bias : float32 (m, d) and (m,), on the CPU
    bfloat16 : which screen; left out, bfloat16 where it is fast
    """
    if not (torch.isfinite(weights).all() and torch.isfinite(bias).all()):
        raise ModelError("the encoder holds values that are not finite; copy or train the dictionary again.")
    weights, bias = weights.detach().contiguous(), bias.detach().contiguous()
    use = has_fast_bfloat16() if bfloat16 is None else bfloat16
    rough = weights.bfloat16() if use else weights
    back = rough.float()
    lost, length = (weights - back).norm(dim=1).numpy() * SLACK, back.norm(dim=1).numpy() * SLACK
    return Screen(weights, bias, rough, lost, length)


def codes_topk(x: Tensor, screen: Screen, k: int) -> sparse.csr_matrix:
    """The k largest pre-activations of each row, those above 0; of equal ones the first.

    Parameters
    ----------
    x : float32 (n, d), on the CPU, what the encoder multiplies (b_dec already subtracted)
    screen : of `prepare_screen`
    k : features kept per row

    Returns
    -------
    CSR float32 (n, m), indices ascending

    Examples
    --------
    >>> screen = prepare_screen(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]), torch.zeros(4))
    >>> codes_topk(torch.tensor([[2.0, 1.0], [-3.0, -1.0]]), screen, 1).toarray().tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
    """
    k = min(k, len(screen.weights))
    guess = np.array([0.1], dtype=np.float32)
    return _blocks(x, screen, lambda rows, out: _topk_rows(rows, out, (k, guess)))


def codes_threshold(x: Tensor, screen: Screen, threshold: Tensor) -> sparse.csr_matrix:
    """Pre-activations above their feature's threshold, and above 0, as CSR float32 (n, m).

    Parameters
    ----------
    x, screen : as in `codes_topk`
    threshold : float32 (m,)

    Examples
    --------
    >>> screen = prepare_screen(torch.eye(2), torch.zeros(2))
    >>> codes_threshold(torch.tensor([[2.0, 1.0], [0.5, -1.0]]), screen, torch.tensor([0.5, 0.0])).toarray().tolist()
    [[2.0, 1.0], [0.0, 0.0]]
    """
    limits = threshold.clamp(min=0).expand(len(screen.weights)).contiguous().numpy()
    return _blocks(x, screen, lambda rows, out: _threshold_rows(rows, out, limits))


def _checked(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ModelError(
            "activations are not finite, so the model overflowed; set `model: {dtype: float32}` or bfloat16."
        )
    return x.detach().contiguous()


def _blocks(x: Tensor, screen: Screen, kernel: Any) -> sparse.csr_matrix:
    """Screen and refine a block of rows at a time; `kernel(rows, out)` fills indices, values and counts."""
    x = _checked(x)
    m, d = screen.weights.shape
    step = max(1, min(ROWS, CELLS // m, max(len(x), 1)))
    product = torch.empty(step, m, dtype=screen.rough.dtype)
    room = np.empty(step * m, dtype=np.int32), np.empty(step * m, dtype=np.float32)
    data, columns, counts = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(x), step):
        part = x[start : start + step]
        rounded = part.to(screen.rough.dtype)
        raw = torch.mm(rounded, screen.rough.t(), out=product[: len(part)])
        bits = raw.view(torch.int16).numpy().view(np.uint16) if raw.dtype == torch.bfloat16 else raw.numpy()
        back = rounded.float()
        lost = ((part - back).norm(dim=1) + back.norm(dim=1) * (d * UNIT)).numpy() * SLACK
        count = np.empty(len(part), dtype=np.int64)
        rows = (
            bits if bits.dtype == np.uint16 else bits.view(np.uint32),
            part.numpy(),
            (screen.weights.numpy(), screen.bias.numpy(), screen.lost, screen.length),
            (part.norm(dim=1).numpy() * SLACK, lost),
        )
        n = int(kernel(rows, (*room, count)))
        columns.append(room[0][:n].copy())
        data.append(room[1][:n].copy())
        counts.append(count)
    starts = np.concatenate(counts).cumsum()
    values, indices = (np.concatenate(parts) if parts else np.zeros(0) for parts in (data, columns))
    return sparse.csr_matrix(
        (values.astype(np.float32, copy=False), indices.astype(np.int32, copy=False), starts), shape=(len(x), m)
    )


# --- kernels --------------------------------------------------------------------------------------------------------


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
def _above(row, limit, space):
    """Features whose screened value exceeds one limit; an int32 count, which vectorizes, decides where to look.

    `row` holds raw bits: a bfloat16 is the upper half of a float32.
    """
    bias, found, value_of, bits = space
    n, value, shift = 0, bits.view(np.float32), np.uint32(32 - 8 * row.itemsize)
    whole = row.size // LANES * LANES
    for q in range(0, whole, LANES):
        for j in range(LANES):
            bits[j] = np.uint32(row[q + j]) << shift
        hits = np.int32(0)
        for j in range(LANES):
            value[j] += bias[q + j]
            hits += np.int32(1) if value[j] > limit else np.int32(0)
        if hits > 0:
            for j in range(LANES):  # stored always, kept on a hit: no branch to mispredict
                found[n], value_of[n] = q + j, value[j]
                n += 1 if value[j] > limit else 0
    for q in range(whole, row.size):
        bits[0] = np.uint32(row[q]) << shift
        found[n], value_of[n] = q, value[0] + bias[q]
        n += 1 if value_of[n] > limit else 0
    return n


@jit
def _bound(v, j, scale):
    """e_rj of the module, for a screened value v of feature j."""
    encoder, norms, relative = scale
    return norms[0] * encoder[2][j] + norms[1] * encoder[3][j] + relative * abs(v - encoder[1][j]) + 1.2e-7 * abs(v)


@jit
def _exact(x, encoder, j):
    total = np.float32(0)
    w = encoder[0][j]
    for q in range(x.size):
        total += w[q] * x[q]
    return np.float32(total + encoder[1][j])


@jit
def _candidates(row, scale, search):
    """Features of one row that may be among its k largest and above 0; their number. `guess` learns the threshold."""
    (encoder, norms, _), (k, guess, (found, value, work, bits), top) = scale, search
    e0 = norms[0] * top[0] + norms[1] * top[1]  # bound without the relative part
    floor = -np.float32(1.02) * e0 - np.float32(1e-30)  # nothing below can be above 0
    t, tau, need, first = max(guess[0] * norms[0], floor), np.float32(0.0), floor, True
    n = 0
    for attempt in range(9):
        n = _above(row, t, (encoder[1], found, value, bits))
        if n >= k:
            for a in range(n):
                work[a] = value[a] - _bound(value[a], found[a], scale)
            tau = max(_kth(work, n, k), np.float32(0.0))
            need = max(tau - np.float32(1.02) * (e0 + np.float32(0.0079) * tau), floor)
        else:
            need = t - np.float32(0.25) * abs(t) - np.float32(0.05) * norms[0] * top[1] if attempt < 6 else floor
        if t <= floor or (n >= k and need >= t):
            break
        t, first = max(need - np.float32(1e-6) * abs(need), floor), False
    kept = 0
    for a in range(n):
        if value[a] + _bound(value[a], found[a], scale) >= tau:
            found[kept] = found[a]
            kept += 1
    if norms[0] > 0:
        aim = (need - np.float32(0.04) * abs(need)) / norms[0]
        guess[0] = guess[0] + np.float32(0.1) * (aim - guess[0]) if first else min(aim, guess[0])
    return kept


@jit
def _topk_rows(rows, out, choice):
    k, guess = choice
    bits_of, x, encoder, norms = rows
    relative = np.float32(2.0**-8) if bits_of.itemsize == 2 else np.float32(0.0)
    indices, values, counts = out
    m = bits_of.shape[1]
    found, value = np.empty(m + LANES, np.int32), np.empty(m + LANES, np.float32)
    work = np.empty(m, np.float32)
    bits, n, top = np.empty(LANES, np.uint32), 0, (encoder[2].max(), encoder[3].max())
    for r in range(len(bits_of)):
        size = (norms[0][r], norms[1][r])
        c = _candidates(bits_of[r], (encoder, size, relative), (k, guess, (found, value, work, bits), top))
        for a in range(c):
            value[a] = _exact(x[r], encoder, found[a])
            work[a] = value[a]
        least = max(_kth(work, c, k), np.float32(0.0)) if c >= k else np.float32(0.0)
        ties = k
        for a in range(c):
            ties -= 1 if value[a] > least else 0
        begin = n
        for a in range(c):
            tie = value[a] == least and ties > 0
            if value[a] > 0 and (value[a] > least or tie):
                ties -= 1 if tie else 0
                indices[n], values[n] = found[a], value[a]
                n += 1
        counts[r] = n - begin
    return n


@jit
def _hopeful(row, scale, space):
    """Features of one row that may exceed their own limit; their number."""
    (encoder, norms, relative), (limits, found, work) = scale, space
    shift = np.uint32(32 - 8 * row.itemsize)
    bits, bias = np.empty(LANES, np.uint32), encoder[1]
    n, value, lost, length = 0, bits.view(np.float32), encoder[2], encoder[3]
    whole = row.size // LANES * LANES
    for q in range(0, whole, LANES):
        for j in range(LANES):
            bits[j] = np.uint32(row[q + j]) << shift
        hits = np.int32(0)
        for j in range(LANES):  # `_bound`, written out so that it vectorizes
            v = value[j] + bias[q + j]
            e = (
                norms[0] * lost[q + j]
                + norms[1] * length[q + j]
                + relative * abs(value[j])
                + np.float32(1.2e-7) * abs(v)
            )
            work[q + j] = v + e - limits[q + j]
            hits += np.int32(1) if work[q + j] >= 0 else np.int32(0)
        if hits > 0:
            for j in range(LANES):
                found[n] = q + j
                n += 1 if work[q + j] >= 0 else 0
    for q in range(whole, row.size):
        bits[0] = np.uint32(row[q]) << shift
        v = value[0] + bias[q]
        found[n] = q
        n += 1 if v + _bound(v, q, scale) >= limits[q] else 0
    return n


@jit
def _threshold_rows(rows, out, limits):
    bits_of, x, encoder, norms = rows
    relative = np.float32(2.0**-8) if bits_of.itemsize == 2 else np.float32(0.0)
    indices, values, counts = out
    m, n = bits_of.shape[1], 0
    found, work = np.empty(m + LANES, np.int32), np.empty(m, np.float32)
    for r in range(len(bits_of)):
        begin = n
        c = _hopeful(bits_of[r], (encoder, (norms[0][r], norms[1][r]), relative), (limits, found, work))
        for a in range(c):
            exact = _exact(x[r], encoder, found[a])
            if exact > limits[found[a]]:
                indices[n], values[n] = found[a], exact
                n += 1
        counts[r] = n - begin
    return n
