"""The interaction term of a dictionary: all pairwise products of active features, through a matrix of low rank.

    b(f) = .5 [(f V)^2 - f^2 V^2] = sum_(i<j) f_i f_j (v_i * v_j),    V (m, r),

which costs as many operations as there are active features, not pairs (factorization machine, Rendle 2010).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional


def pair_sums(kept: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    """b(f) (n, r) of rows given by their active features; differentiable in values and factors.

    Parameters
    ----------
    kept : indices of the active features (n, k);  values : their activations (n, k)
    factors : V (m, r)

    Examples
    --------
    >>> V = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 1.0]])
    >>> pair_sums(torch.tensor([[0, 1], [1, 2]]), torch.tensor([[2.0, 5.0], [1.0, 1.0]]), V).tolist()
    [[20.0, 0.0], [6.0, 1.0]]
    """
    linear = functional.embedding_bag(kept, factors, per_sample_weights=values, mode="sum")
    own = functional.embedding_bag(kept, factors.square(), per_sample_weights=values.square(), mode="sum")
    return 0.5 * (linear.square() - own)


def pair_sums_of(codes: sparse.csr_matrix, factors: Tensor) -> Tensor:
    """b(f) (n, r) of sparse codes (n, m), on the CPU."""
    V = factors.cpu().numpy()
    linear, own = codes @ V, codes.multiply(codes).tocsr() @ np.square(V)
    return torch.from_numpy(np.asarray(0.5 * (np.square(linear) - own), dtype=np.float32))


def head(sums: Tensor, parts: Mapping[str, Tensor], *, dropout: float = 0.0, training: bool = False) -> Tensor:
    """What pair sums (n, r) add to the reconstruction: b M, or dropout(relu(b H + h)) M where there is a hidden layer.

    Parameters
    ----------
    parts : `M` (r, d), for a hidden layer also `H` (r, r) and `h` (r,)
    """
    if "H" in parts:
        hidden = functional.relu(torch.addmm(parts["h"], sums, parts["H"]))
        sums = functional.dropout(hidden, dropout, training=training)
    return sums @ parts["M"]


def strongest(codes: sparse.csr_matrix, n: int) -> sparse.csr_matrix:
    """Only the n largest codes of each row.

    Examples
    --------
    >>> strongest(sparse.csr_matrix([[1.0, 3.0, 2.0], [0.0, 1.0, 0.0]]), 2).toarray().tolist()
    [[0.0, 3.0, 2.0], [0.0, 1.0, 0.0]]
    """
    row = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))  # pyright: ignore[reportOptionalSubscript]
    order = np.lexsort((-np.asarray(codes.data, dtype=float), row))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - codes.indptr[row[order]]
    out = codes.copy()  # eliminate_zeros works in place, also on arrays that two matrices share
    out.data[rank >= n] = 0
    out.eliminate_zeros()
    return out


def interaction_term(codes: sparse.csr_matrix, parts: Mapping[str, Tensor], *, n_top: int = 0) -> Tensor:
    """What the interaction, and the further linear term on the strongest features, add to a reconstruction (n, d).

    Parameters
    ----------
    codes : activations (n, m)
    parts : `V` (m, r) and those of `head`; `L` (m, d) for the linear term
    n_top : the linear term sees this many of the strongest features of a row
    """
    there = {name: value.cpu() for name, value in parts.items()}
    made = []
    if "V" in there:
        made.append(head(pair_sums_of(codes, there["V"]), there))
    if "L" in there:
        made.append(torch.as_tensor(strongest(codes, n_top) @ there["L"].numpy()))
    return torch.stack(made).sum(0)
