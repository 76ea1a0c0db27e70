r"""TopK on a CPU: one dense product, everything else touches only the k active features of a row.

With z = (x - b_dec) W_enc' + b_enc and n_j = |W_dec[j]|, the k features with the largest z_j n_j are kept, and

    x^ = b_dec + sum_(j kept) relu(z_j) W_dec[j].

Backward, with g = dL/dx^ and v = relu(z) at the kept features: dW_dec = v'g; the gradient of v is <W_dec[j], g> where
v > 0, and dW_enc, db_enc, db_dec follow from it. The rescaling by n decides who is kept and cancels in value and
gradient. These are the mathematics of sae-lens' `TopKTrainingSAE(rescale_acts_by_decoder_norm=True)`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

CHUNK = 1 << 20  # pre-activations selected from at once: 4 MB stay in the cache of a core
ROWS = 256  # but never fewer rows: a product of few rows spends its time on reading the encoder
GROUPS = 16  # entries that compete for their group before the groups compete


class TopKStep(torch.autograd.Function):
    """Reconstruction by the k strongest features of each row; see the module for the equations.

    Called as `TopKStep.apply(x, W_enc, b_enc, W_dec, b_dec, k, dense)` with x (n, d), W_enc and W_dec (m, d);
    returns x^ (n, d) and, without gradients, the indices (n, k) and values (n, k) of the kept features. `dense` takes
    ordinary matrix products after the selection: faster on an accelerator, and on a CPU while k is a large part of m.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Keep k features and decode them."""
        x, encoder, bias, decoder, center, k, dense = inputs
        centered = x - center
        norm = decoder.norm(dim=1)
        ctx.dense, ctx.amp = dense, _amp(x.device.type)
        if dense or ctx.amp:
            values, kept = (torch.addmm(bias, centered, encoder.t()) * norm).topk(k, dim=1, sorted=False)
        else:
            values, kept = _select(centered, encoder * norm[:, None], bias * norm, k=k)
        values = (values / norm[kept]).relu_().to(x.dtype)
        ctx.save_for_backward(centered, encoder, decoder, values, kept)
        ctx.mark_non_differentiable(kept, values)
        if dense:
            decoded = values.new_zeros(len(x), len(decoder)).scatter_(1, kept, values) @ decoder
        else:
            decoded = functional.embedding_bag(kept, decoder, per_sample_weights=values, mode="sum")
        return decoded.to(x.dtype) + center, kept, values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients of x, both matrices and both biases, in the precision of the parameters."""
        upstream = gradients[0]
        if ctx.dense:  # the engine leaves autocast before it goes backward
            with torch.autocast(upstream.device.type, dtype=torch.bfloat16, enabled=ctx.amp):
                found = _dense_backward(upstream, ctx.saved_tensors)
            to_encoder, to_bias, to_decoder, to_input = (one.to(upstream.dtype) for one in found)
        else:
            to_encoder, to_bias, to_decoder, to_input = _sparse_backward(upstream, ctx.saved_tensors)
        # b_dec also acts through the encoder, with the opposite sign
        return to_input, to_encoder, to_bias, to_decoder, upstream.sum(0) - to_input.sum(0), None, None


def _amp(device: str) -> bool:
    return torch.is_autocast_enabled(device)


def _select(centered: Tensor, encoder: Tensor, bias: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of `centered @ encoder.t() + bias` in each row, a chunk of rows at a time in one buffer."""
    m = len(encoder)
    rows = max(CHUNK // m, ROWS)
    buffer = centered.new_empty(min(rows, len(centered)), m)
    found = []
    for start in range(0, len(centered), rows):
        part = centered[start : start + rows]
        z = torch.mm(part, encoder.t(), out=buffer[: len(part)]).add_(bias)
        found.append(strongest(z, k))
    return torch.cat([values for values, _ in found]), torch.cat([kept for _, kept in found])


def strongest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k largest entries of each row (n, k), in no order; half the time of `Tensor.topk`.

    The row is cut into m / 16 groups; the k groups with the largest maxima hold the k largest entries, so only 16 k
    candidates are compared. Equal entries may be chosen otherwise than by `topk`.

    Examples
    --------
    >>> z = torch.arange(128.0).repeat(2, 1)
    >>> strongest(z, 2)[1].sort(dim=1).values.tolist()
    [[126, 127], [126, 127]]
    """
    m = z.shape[1]
    n_groups = m // GROUPS
    if n_groups < 4 * k:
        return z.topk(k, dim=1, sorted=False)
    body = z[:, : n_groups * GROUPS].unflatten(1, (GROUPS, n_groups))  # a group is every n_groups-th entry
    best = body.amax(1).topk(k, dim=1, sorted=False).indices
    at = (best[:, None, :] + n_groups * torch.arange(GROUPS, device=z.device)[:, None]).flatten(1)
    if m % GROUPS:
        rest = torch.arange(n_groups * GROUPS, m, device=z.device)
        at = torch.cat([at, rest.expand(len(z), -1)], dim=1)
    values, which = z.gather(1, at).topk(k, dim=1, sorted=False)
    return values, at.gather(1, which)


def _sparse_backward(upstream: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    centered, encoder, decoder, values, kept = saved
    (n, k), m = values.shape, len(decoder)
    with torch.enable_grad():  # <W_dec[j], g> without gathering the rows: the weight gradient of embedding_bag
        weights = values.detach().requires_grad_()
        decoded = functional.embedding_bag(kept, decoder.detach(), per_sample_weights=weights, mode="sum")
        (pull,) = torch.autograd.grad(decoded, weights, upstream)
    pull = pull * (values > 0)
    flat = kept.reshape(-1)
    order = flat.argsort(stable=True)
    starts = functional.pad(torch.bincount(flat, minlength=m).cumsum(0), (1, 0))
    rows = torch.div(order, k, rounding_mode="floor")
    by_feature = (starts, rows, (m, n))
    to_bias = values.new_zeros(m).index_add_(0, flat, pull.reshape(-1))
    to_input = functional.embedding_bag(kept, encoder, per_sample_weights=pull, mode="sum")
    to_encoder = _csr(by_feature, pull.reshape(-1)[order]) @ centered
    return to_encoder, to_bias, _csr(by_feature, values.reshape(-1)[order]) @ upstream, to_input


def _csr(layout: tuple[Tensor, Tensor, tuple[int, int]], values: Tensor) -> Tensor:
    """The sparse matrix (m, n) of the kept features; its product avoids a buffer of n k rows."""
    starts, columns, size = layout
    with warnings.catch_warnings():  # torch announces once per process that CSR is in beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


def _dense_backward(upstream: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    centered, encoder, decoder, values, kept = saved
    empty = values.new_zeros(len(values), len(decoder))
    active = empty.scatter(1, kept, values)
    pull = (upstream @ decoder.t()) * (active > 0)
    return pull.t() @ centered, pull.sum(0), active.t() @ upstream, pull @ encoder


def auxiliary_loss(parameters: tuple[Tensor, ...], x: Tensor, decoded: Tensor, *, dead: Tensor) -> Tensor:
    """Let silent features explain what the living ones left over (aux-k), so that they come back.

    e^ = sum over the d/2 strongest dead features of z_j W_dec[j];  loss = mean |e^ - stopgrad(x - x^)|^2, scaled down
    while fewer than d/2 features are dead. Pre-activations are used as they are, negative ones too, as in sae-lens.

    Parameters
    ----------
    parameters : W_enc (m, d), b_enc (m,), W_dec (m, d), b_dec (d,)
    x, decoded : input and reconstruction (n, d)
    dead : indices of the silent features

    Notes
    -----
    Gao et al. (2024), Scaling and evaluating sparse autoencoders, arXiv 2406.04093, appendix A.2.
    """
    encoder, bias, decoder, center = parameters
    wanted = x.shape[-1] // 2
    n_kept = min(wanted, len(dead))
    rows = decoder[dead]
    z = torch.addmm(bias[dead], x - center, encoder[dead].t())
    kept = (z.detach() * rows.detach().norm(dim=1)).topk(n_kept, dim=1, sorted=False).indices
    explained = torch.zeros_like(z).scatter(1, kept, z.gather(1, kept)) @ rows
    scale = min(len(dead) / wanted, 1.0)
    return scale * (explained - (x - decoded).detach()).pow(2).sum(1).mean()


def topk_codes(preactivations: Tensor, k: int) -> sparse.csr_matrix:
    """The k largest pre-activations of each row, those above 0, as CSR float32.

    Examples
    --------
    >>> topk_codes(torch.tensor([[3.0, -1.0, 2.0, 1.0], [-1.0, -2.0, 5.0, -3.0]]), 2).toarray().tolist()
    [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 5.0, 0.0]]
    """
    values, kept = preactivations.topk(k, dim=1, sorted=False)
    kept, order = kept.sort(dim=1)
    values = values.gather(1, order)
    active = values > 0
    ends = active.sum(1).cumsum(0)
    return _as_csr(values[active], kept[active], (ends, preactivations.shape[1]))


def threshold_codes(preactivations: Tensor, threshold: Tensor) -> sparse.csr_matrix:
    """Pre-activations above their feature's threshold, and above 0, as CSR float32."""
    active = (preactivations > threshold) & (preactivations > 0)
    ends = active.sum(1).cumsum(0)
    return _as_csr(preactivations[active], active.nonzero()[:, 1], (ends, preactivations.shape[1]))


def _as_csr(values: Tensor, features: Tensor, rows: tuple[Tensor, int]) -> sparse.csr_matrix:
    ends, m = rows
    starts = np.concatenate([[0], ends.cpu().numpy()])
    data, columns = values.float().cpu().numpy(), features.to(torch.int32).cpu().numpy()
    return sparse.csr_matrix((data, columns, starts), shape=(len(ends), m))
