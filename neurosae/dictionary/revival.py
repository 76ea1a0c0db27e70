r"""Bringing silent features back: ghost gradients, and starting again from badly reconstructed rows.

Both are options: the recipe (centring, annealing, auxiliary loss) leaves few dead features, and ghost gradients, which
revive all of them, spoil the dictionary. They are kept because earlier work used them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHORT = 0.2  # length of a resampled encoder row, in mean lengths of the living
EPSILON = 1e-6


class Rows(NamedTuple):
    """Encoder (m, d), bias (m,), decoder (m, d) and center (d,) of a learner, as views of its parameters."""

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    center: Tensor


class Part(NamedTuple):
    """A parameter, the dimension that counts features, and its value for a feature that starts again."""

    parameter: Tensor
    dim: int
    fresh: float | None


def ghost_loss(rows: Rows, x: Tensor, decoded: Tensor, *, dead: Tensor) -> Tensor:
    r"""Let dead features predict the residual through an exponential, which has a gradient where ReLU has none.

    With D the dead features, r = x - x^ and e(.) the squared error, summed over the width and averaged over rows,

        g = exp(z_D) W_dec[D],   g <- g |r| / (1e-6 + 2 |g|),   loss = e(r) / (e(g - r) + 1e-6) * e(g - r),

    where r, the two lengths in the second term and the first factor of the loss are held constant.

    Parameters
    ----------
    x, decoded : input and reconstruction (n, d)
    dead : indices of the silent features

    Notes
    -----
    Jermyn and Templeton (2024), Ghost grads, Transformer Circuits; the authors have since dropped them.
    """
    z = (x - rows.center) @ rows.encoder[dead].t() + rows.bias[dead]
    residual = (x - decoded).detach()
    ghost = z.exp() @ rows.decoder[dead]
    length = residual.norm(dim=1, keepdim=True) / (EPSILON + 2 * ghost.norm(dim=1, keepdim=True))
    ghost = ghost * length.detach()
    error = (ghost - residual).square().sum(1).mean()
    return (residual.square().sum(1).mean() / (error + EPSILON)).detach() * error


def draw_rows(loss: Tensor, n: int, *, seed: Sequence[int]) -> np.ndarray:
    """Rows drawn with probability proportional to their squared loss; a pure function of the seed.

    Examples
    --------
    >>> draw_rows(torch.tensor([0.0, 1.0, 0.0]), 3, seed=(0, 0)).tolist()
    [1, 1, 1]
    """
    edges = np.cumsum(loss.detach().double().cpu().numpy() ** 2)
    draws = np.random.default_rng(list(seed)).random(n) * edges[-1]
    return np.searchsorted(edges, draws, side="right").clip(max=len(edges) - 1)


@torch.no_grad()
def resample(
    rows: Rows, parts: Sequence[Part], optimizer: torch.optim.Optimizer, *, dead: Tensor, inputs: Tensor
) -> None:
    """Start dead features again: decoder row = its input of length 1, encoder along it, bias and Adam's moments 0.

    Parameters
    ----------
    rows : the learner's encoder and decoder, changed in place
    parts : every parameter that belongs to features; `fresh` None for the two matrices
    dead : indices (n,)
    inputs : one input row for each of them (n, d)

    Notes
    -----
    The encoder row has .2 of the mean length of the living. Bricken et al. (2023), Towards monosemanticity,
    Transformer Circuits, appendix.
    """
    directions = torch.nn.functional.normalize(inputs, dim=1)
    living = torch.ones(len(rows.bias), dtype=torch.bool, device=dead.device)
    living[dead] = False
    if not living.any():
        living = ~living
    length = rows.encoder[living].norm(dim=1).mean()
    rows.decoder[dead] = directions
    rows.encoder[dead] = SHORT * length * directions
    for parameter, dim, fresh in parts:
        if fresh is not None:
            parameter.data.index_fill_(dim, dead, fresh)
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter].get(name)
            if moment is not None:
                moment.index_fill_(dim, dead, 0.0)
