"""The edits of one batch at one hook point, applied to what the model computed there.

All edits of a condition at one hook point see the same vectors and their changes add up. Every row of the batch has
edits of its own; rows that nothing has touched yet share the features of their stimulus without edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from neurosae.causal.edits import MODES, Edit
from neurosae.dictionary.kinds import Dictionary

NONLINEAR = ("interaction", "sae_lens")  # kinds whose decoder is more than W_dec


class Cells(NamedTuple):
    """One edit, and the cells of a batch that it changes.

    Attributes
    ----------
    edit : what is done
    head : which head of the hook point; None for all
    rows, cols : int64 (n,), row of the batch and token
    values : float32 (n, n_features) doses, or (n, width) vectors
    keys : int64 (n,), of attention weights the token that each goes to; the query is in `cols`
    """

    edit: Edit
    head: int | None
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    keys: np.ndarray | None = None


def edited(tensor: Tensor, jobs: Sequence[Cells], origin: np.ndarray, *, size: np.ndarray) -> Tensor:
    """The activations with all edits of the batch at this hook point.

    Parameters
    ----------
    tensor : (rows, tokens, width), or (rows, tokens, heads, width); attention weights (rows, heads, tokens, tokens)
    jobs : the edits
    origin : int64 (rows,), a row with the same vectors at this hook point
    size : float64 (rows,), raised to the largest change of the row relative to the root mean square of its vector
    """
    tensor = tensor.contiguous()
    out = tensor.clone()
    for job in (job for job in jobs if job.keys is not None):
        _set_entries(tensor, out, job, size=size)
    jobs = [job for job in jobs if job.keys is None]
    for head in dict.fromkeys(job.head for job in jobs):
        mine = [job for job in jobs if job.head == head]
        x = flat(tensor, head)
        new = flat(out, head)
        for job in mine:
            if job.edit.mode in ("add", "replace"):
                _set_vectors(x, new, job, size=size)
        features = [job for job in mine if job.edit.is_of_features]
        for dictionary in {id(job.edit.dictionary): job.edit.dictionary for job in features}.values():
            assert dictionary is not None
            _add_features(
                x, new, [job for job in features if job.edit.dictionary is dictionary], origin=origin, size=size
            )
    return out


def flat(tensor: Tensor, head: int | None) -> Tensor:
    """A view (rows, tokens, width) of one head, or of all heads side by side."""
    if tensor.dim() == 3:
        return tensor
    return tensor[:, :, head] if head is not None else tensor.view(*tensor.shape[:2], -1)


def _set_vectors(x: Tensor, new: Tensor, job: Cells, *, size: np.ndarray) -> None:
    at = torch.as_tensor(job.rows, device=x.device), torch.as_tensor(job.cols, device=x.device)
    values = torch.as_tensor(np.array(job.values), device=x.device).to(x.dtype)
    if job.edit.mode == "replace":
        new[at] = values
        _measure(x[at], values - x[at], job.rows, size=size)
    else:
        new.index_put_(at, values, accumulate=True)
        _measure(x[at], values, job.rows, size=size)


def _set_entries(x: Tensor, new: Tensor, job: Cells, *, size: np.ndarray) -> None:
    """Put attention weights in place; their change is measured as it is, weights being shares of 1."""
    assert job.keys is not None
    at = tuple(torch.as_tensor(a, device=x.device) for a in (job.rows, job.cols, job.keys))
    index = (at[0], torch.full_like(at[0], int(job.head or 0)), at[1], at[2])
    values = torch.as_tensor(np.array(job.values[:, 0]), device=x.device).to(x.dtype)
    new[index] = values
    np.maximum.at(size, job.rows, (values - x[index]).float().abs().double().cpu().numpy())


def _add_features(x: Tensor, new: Tensor, jobs: Sequence[Cells], *, origin: np.ndarray, size: np.ndarray) -> None:
    """Add (f' - f) W_dec of all edits of one dictionary."""
    dictionary = jobs[0].edit.dictionary
    assert dictionary is not None
    rows, cols = (np.concatenate([getattr(job, name) for job in jobs]) for name in ("rows", "cols"))
    read, back = np.unique(np.column_stack([origin[rows], cols]), axis=0, return_inverse=True)
    at = torch.as_tensor(read[:, 0], device=x.device), torch.as_tensor(read[:, 1], device=x.device)
    codes = dictionary.encode(x[at].float())
    change = _changes(codes, jobs, back.reshape(-1))
    delta = _decoded(dictionary, codes[back.reshape(-1)], change).to(x.device)
    at = torch.as_tensor(rows, device=x.device), torch.as_tensor(cols, device=x.device)
    new.index_put_(at, delta.to(x.dtype), accumulate=True)
    _measure(x[at], delta, rows, size=size)


def _changes(codes: sparse.csr_matrix, jobs: Sequence[Cells], back: np.ndarray) -> sparse.csr_matrix:
    """Changes f' - f at every cell of every edit: CSR float32 (n_cells, n_features)."""
    used = np.unique(np.concatenate([job.edit.features for job in jobs]).astype(np.int64))
    active = codes[:, used].toarray()
    values, where, which = [], [], []
    start = 0
    for job in jobs:
        features = np.asarray(job.edit.features, dtype=np.int64)
        n = len(job.rows)
        change = MODES[job.edit.mode].change
        assert change is not None
        f = active[np.ix_(back[start : start + n], np.searchsorted(used, features))]
        values.append(np.asarray(change(f, job.values), dtype=np.float32).reshape(-1))
        where.append(np.repeat(np.arange(start, start + n), len(features)))
        which.append(np.tile(features, n))
        start += n
    entries = np.concatenate(values), (np.concatenate(where), np.concatenate(which))
    return sparse.csr_matrix(entries, shape=(start, codes.shape[1]))  # pyright: ignore[reportOptionalSubscript]


def _decoded(dictionary: Dictionary, codes: sparse.csr_matrix, change: sparse.csr_matrix) -> Tensor:
    """What a change of features adds to the vector; no bias, so no change adds exactly nothing."""
    if dictionary.kind in NONLINEAR:
        moved = dictionary.decode(sparse.csr_matrix(codes + change)) - dictionary.decode(codes)
        moved[torch.as_tensor(np.asarray(abs(change).sum(axis=1)).reshape(-1) == 0)] = 0
        return moved
    added: Any = change @ dictionary.W_dec.cpu().numpy()
    return torch.as_tensor(np.asarray(added))


def _measure(x: Tensor, delta: Tensor, rows: np.ndarray, *, size: np.ndarray) -> None:
    rms = x.float().square().mean(1).sqrt().clamp(min=1e-30)
    share = (delta.float().abs().amax(1) / rms).double().cpu().numpy()
    np.maximum.at(size, rows, share)
