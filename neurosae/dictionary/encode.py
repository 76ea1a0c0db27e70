r"""Codes of many rows at once: a cheap screen names the few features that may be active, these are computed exactly.

With p the screened pre-activations and e their bound (`neurosae.dictionary.screen`), feature j can be among the k
largest of row r only if p_rj + e_rj >= tau_r, the k-th largest of p_r - e_r; it can exceed its threshold only if
p_rj + e_rj > theta_j. Only these are computed, as float32 dot products. A poor screen makes the list longer
and never the result wrong, so the codes are the same with any screen, and in batches of any size.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from neurosae.dictionary.screen import Screen, fine_enough, room_for, screen_rows
from neurosae.dictionary.screen_kernels import dot_products, keep_above, keep_largest, list_rows, lowered
from neurosae.errors import ModelError

CELLS = 1 << 24  # screened values held at once: 32 or 64 MB
ROWS = 512  # per matrix product
DOUBT = 2.0  # of screening errors, in standard deviations if roundings were independent
TOO_MANY = 0.05  # of all features, listed per row: from here on the finer product is cheaper


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
    >>> from neurosae.dictionary.screen import prepare_screen
    >>> screen = prepare_screen(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]), torch.zeros(4))
    >>> codes_topk(torch.tensor([[2.0, 1.0], [-3.0, -1.0]]), screen, 1).toarray().tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
    """
    return _codes(x, screen, (min(k, len(screen.weights)), torch.zeros(1)))


def codes_threshold(x: Tensor, screen: Screen, threshold: Tensor) -> sparse.csr_matrix:
    """Pre-activations above their feature's threshold, and above 0, as CSR float32 (n, m).

    Parameters
    ----------
    x, screen : as in `codes_topk`
    threshold : float32 (m,)

    Examples
    --------
    >>> from neurosae.dictionary.screen import prepare_screen
    >>> screen = prepare_screen(torch.eye(2), torch.zeros(2))
    >>> codes_threshold(torch.tensor([[2.0, 1.0], [0.5, -1.0]]), screen, torch.tensor([0.5, 0.0])).toarray().tolist()
    [[2.0, 1.0], [0.0, 0.0]]
    """
    return _codes(x, screen, (0, threshold.clamp(min=0)))


def _codes(x: Tensor, screen: Screen, choice: tuple[int, Tensor]) -> sparse.csr_matrix:
    """Screen a block of rows, list the features that may be active, compute these, keep those that are.

    choice : features kept per row, or 0 for all above their limit; the limits
    """
    if not torch.isfinite(x).all():
        raise ModelError(
            "activations are not finite, so the model overflowed; set `model: {dtype: float32}` or bfloat16."
        )
    x, m = x.detach().contiguous(), len(screen.weights)
    roughs = fine_enough(x, screen)
    k, limits = choice[0], choice[1].expand(m).contiguous().numpy()
    step = max(1, min(ROWS, CELLS // m, max(len(x), 1)))
    room = np.empty(step * m, dtype=np.int32), np.empty(step * m, dtype=np.float32), room_for(roughs[0], step)
    guess, doubt = np.array([0.1], dtype=np.float32), np.float32(min(1.0, DOUBT / max(x.shape[1], 1) ** 0.5))
    data, columns, counts, start = [], [], [np.zeros(1, dtype=np.int64)], 0
    while start < len(x):
        part = x[start : start + step]
        lists = room[0], room[1], np.empty(len(part), dtype=np.int64)
        rough, tau = roughs[0], np.zeros(len(part), dtype=np.float32)
        rows = screen_rows(part, rough, room[2][: len(part)]), (screen.bias.numpy(), *rough[1:])
        listed = 0
        for rank in (k, 0):  # again where a feature left out may be among the k largest after all
            listed = list_rows(rows, lists, (limits, tau, rank, doubt, guess))
            dot_products(part.numpy(), (screen.weights.numpy(), screen.bias.numpy()), lists)
            if k == 0 or not lowered(lists, tau, k):
                break
        if len(roughs) > 1 and listed > TOO_MANY * m * len(part):
            roughs.pop(0)
            room = *room[:2], room_for(roughs[0], step)
        n = keep_largest(lists, k) if k else keep_above(lists, limits)
        columns.append(lists[0][:n].copy())
        data.append(lists[1][:n].copy())
        counts.append(lists[2])
        start += len(part)
    starts = np.concatenate(counts).cumsum()
    values, indices = (np.concatenate(parts) if parts else np.zeros(0) for parts in (data, columns))
    return sparse.csr_matrix(
        (values.astype(np.float32, copy=False), indices.astype(np.int32, copy=False), starts), shape=(len(x), m)
    )
