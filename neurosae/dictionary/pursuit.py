"""Codes for dictionaries without an encoder: orthogonal matching pursuit, and non-negative least squares.

Both work on all rows at once, row by row alike, so that the codes of a row do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NOTHING_LEFT = 1e-6  # share of an atom, or of a row, below which nothing new is left in it
STEPS = 400  # of projected gradients with momentum


class Pursuit(NamedTuple):
    """The atoms of each row (n, k) in the order in which they were chosen, and their signed coefficients (n, k)."""

    kept: Tensor
    values: Tensor


def matching_pursuit(x: Tensor, atoms: Tensor, k: int) -> Pursuit:
    """Orthogonal matching pursuit: the best next atom k times, coefficients by least squares on all chosen so far.

    With r_0 = x, in each step j_t = argmax_j |<r_t, d_j>|, and r_(t+1) = x minus its projection on d_(j_0) … d_(j_t).

    Parameters
    ----------
    x : rows (n, d)
    atoms : rows of length 1, (m, d)
    k : atoms per row, at most d and m

    Returns
    -------
    Pursuit; a row that is explained before its k-th atom has coefficients 0 from there on

    Notes
    -----
    The chosen atoms are orthogonalized one after the other (q_t), so residual and correlations need one product each
    and the coefficients one triangular system: the numbers of Batch-OMP (Rubinstein et al. 2008) without its matrix of
    m x m products. The order of the atoms settles ties.

    Examples
    --------
    >>> found = matching_pursuit(torch.tensor([[3.0, -2.0]]), torch.eye(2), 2)
    >>> found.kept.tolist(), found.values.tolist()
    ([[0, 1]], [[3.0, -2.0]])
    """
    n, k = len(x), min(k, *atoms.shape)
    rows = torch.arange(n, device=x.device)
    basis, mixing = x.new_zeros(n, k, x.shape[1]), torch.eye(k, dtype=x.dtype, device=x.device).repeat(n, 1, 1)
    kept, along = torch.zeros(n, k, dtype=torch.int64, device=x.device), x.new_zeros(n, k)
    taken = torch.zeros(n, len(atoms), dtype=torch.bool, device=x.device)
    residual, size = x.clone(), x.norm(dim=1)
    for t in range(k):
        chosen = (residual @ atoms.t()).abs_().masked_fill_(taken, -1).argmax(dim=1)
        taken[rows, chosen] = True
        atom = atoms[chosen]
        shares = (basis[:, :t] @ atom[:, :, None])[:, :, 0]
        new = atom - (shares[:, None, :] @ basis[:, :t])[:, 0]
        length = new.norm(dim=1)
        useful = (length > NOTHING_LEFT) & (residual.norm(dim=1) > NOTHING_LEFT * size)
        new = torch.where(useful[:, None], new / length.clamp(min=NOTHING_LEFT)[:, None], 0)
        basis[:, t], kept[:, t] = new, chosen
        mixing[:, :t, t] = torch.where(useful[:, None], shares, 0)
        mixing[:, t, t] = torch.where(useful, length, 1)
        along[:, t] = (residual * new).sum(1)
        residual = residual - along[:, t, None] * new
    values = torch.linalg.solve_triangular(mixing, along[:, :, None], upper=True)[:, :, 0]
    return Pursuit(kept, values)


def nonnegative_codes(x: Tensor, parts: Tensor) -> Tensor:
    """Non-negative least squares, argmin_(f >= 0) |x - f P|^2 for every row, (n, m).

    Parameters
    ----------
    x : rows (n, d)
    parts : P (m, d)

    Notes
    -----
    Projected gradients with Nesterov's momentum, restarted per row where the momentum points uphill (O'Donoghue &
    Candes 2015); a fixed number of steps, so that no row waits for another.

    Examples
    --------
    >>> nonnegative_codes(torch.tensor([[2.0, -1.0]]), torch.eye(2)).tolist()
    [[2.0, 0.0]]
    """
    gram, target = parts @ parts.t(), x @ parts.t()
    rate = 1 / torch.linalg.matrix_norm(gram, ord=2).clamp(min=torch.finfo(x.dtype).tiny)
    codes = ahead = torch.zeros_like(target)
    momentum = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    for _ in range(STEPS):
        new = (ahead - rate * (ahead @ gram - target)).clamp_(min=0)
        uphill = ((ahead - new) * (new - codes)).sum(1, keepdim=True) > 0
        after = torch.where(uphill, 1.0, (1 + (1 + 4 * momentum**2).sqrt()) / 2)
        ahead = new + torch.where(uphill, 0.0, (momentum - 1) / after) * (new - codes)
        codes, momentum = new, after
    return codes
