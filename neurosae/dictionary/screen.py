r"""A cheap approximation of all pre-activations of a block of rows, and how far it can be off.

The encoder W (m, d) and the rows x are rounded to W~ and x~, and multiplied by one matrix product that the processor
does fast. Three roundings, cheapest first:

- `int8`: a row or a feature is a step times whole numbers up to 127. The product is exact in int32; the rounding is
  coarse, so it serves d up to 1024, where a bound of Cauchy-Schwarz is still tight enough.
- `bfloat16`: 8 significant bits; the result is rounded to them as well.
- `float32`: nothing is rounded.

With z = x W' + b and p the approximation,

    |p_rj - z_rj| <= e_rj = |x_r| |w_j - w~_j| + |x_r - x~_r| |w~_j| + d 2^-24 |x~_r| |w~_j| + c |p_rj - b_j|,

c = 2^-8 for bfloat16 (the rounding of the result), 2^-22 for int8 (of its conversion), 0 for float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurosae.dictionary.screen_kernels import round_rows
from neurosae.errors import ModelError

UNIT = 2.0**-24  # rounding of float32
SLACK = np.float32(1.0001)  # of the norms, which are themselves rounded
LEAST = np.float32(1e-17)  # added to them: squares below 1e-38 are lost in their sums
NARROWEST, WIDEST = 8, 1024  # rows for int8: 1024 x 127^2 < 2^24, so that float32 holds the product
PROBE, BLUR = 64, 0.9  # rows looked at, and the bound in standard deviations at which bfloat16 becomes the faster
RELATIVE = {torch.int8: np.float32(2.0**-22), torch.bfloat16: np.float32(2.0**-8), torch.float32: np.float32(0)}


class Rough(NamedTuple):
    """The encoder in one rounding.

    weights : (m, d), int8, bfloat16 or float32
    step : float32 (m,), what a unit of `weights` is worth; 1 but for int8
    lost, length : |w - w~| and |w~| of each feature, rounded up, float32 (m,)
    """

    weights: Tensor
    step: np.ndarray
    lost: np.ndarray
    length: np.ndarray


class Screen(NamedTuple):
    """An encoder prepared for screening.

    weights : float32 (m, d), one row per feature
    bias : float32 (m,)
    roughs : roundings, the cheapest first; a finer one is taken where this leaves too many features to compute
    """

    weights: Tensor
    bias: Tensor
    roughs: tuple[Rough, ...]


class Screened(NamedTuple):
    """Screened pre-activations of n rows: p = step_r step_j raw + bias.

    raw : int32, float32, or the bits of bfloat16 as uint16, (n, m)
    step : float32 (n,)
    size : |x_r|, rounded up, float32 (n,)
    lost : |x_r - x~_r| + d 2^-24 |x~_r|, rounded up, float32 (n,)
    relative : c of the module
    """

    raw: np.ndarray
    step: np.ndarray
    size: np.ndarray
    lost: np.ndarray
    relative: np.float32


def fast_products(d: int) -> tuple[str, ...]:
    """Roundings that this processor multiplies fast, for rows of length d.

    int8 by AVX512-VNNI, where its products are exact (`exact_int8`); bfloat16 by AVX512-BF16 or AMX.
    """
    found = {
        "int8": _has("vnni") and _has("avx512") and exact_int8(d),
        "bfloat16": _has("avx512_bf16") or _has("amx_tile"),
    }
    return tuple(kind for kind, fast in found.items() if fast)


def exact_int8(d: int) -> bool:
    """Whether int8 products of this width are exact here; without VNNI they are cut off at 16 bits without a word."""
    if not NARROWEST <= d <= WIDEST:
        return False
    draws = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (80, d), generator=draws) * 254 - 127
    signs[0], signs[16] = 127, 127
    rows = signs.to(torch.int8)
    product = _int8_product(rows[:16], rows[16:], torch.empty(16, 64, dtype=torch.int32))
    return torch.equal(product.long(), signs[:16] @ signs[16:].t())


def _int8_product(rows: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten._int_mm.out(rows, weights.t(), out=out)


def _has(name: str) -> bool:
    ask = getattr(torch.cpu, f"_is_{name}_supported", None)
    return ask is not None and bool(ask())


def prepare_screen(weights: Tensor, bias: Tensor, *, kinds: tuple[str, ...] | None = None) -> Screen:
    """Round the encoder once; all later calls share it.

    Parameters
    ----------
    weights, bias : float32 (m, d) and (m,), on the CPU
    kinds : roundings, the cheapest first (module); left out, those that are fast here
    """
    if not (torch.isfinite(weights).all() and torch.isfinite(bias).all()):
        raise ModelError("the encoder holds values that are not finite; copy or train the dictionary again.")
    weights, bias = weights.detach().contiguous(), bias.detach().contiguous()
    if kinds is None:
        kinds = fast_products(weights.shape[1])
    return Screen(weights, bias, tuple(_rough(weights, kind) for kind in kinds or ("float32",)))


def _rough(weights: Tensor, kind: str) -> Rough:
    rounded, step, (gone, kept) = _rounded(weights, getattr(torch, kind))
    return Rough(rounded, step, gone * SLACK + LEAST, kept * SLACK + LEAST)


def _rounded(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Rows in a coarser type, the step of each, and (|row - rounded|, |rounded|) of each."""
    step, lost = np.ones(len(rows), dtype=np.float32), np.empty((2, len(rows)), dtype=np.float32)
    if dtype == torch.int8:
        rounded = torch.empty(rows.shape, dtype=dtype)
        round_rows(rows.numpy(), (rounded.numpy(), step, lost))
    else:
        rounded = rows.to(dtype)
        back = rounded.float()
        lost[0], lost[1] = (rows - back).norm(dim=1).numpy(), back.norm(dim=1).numpy()
    return rounded, step, lost


def fine_enough(x: Tensor, screen: Screen) -> list[Rough]:
    """The roundings that tell the features of such rows apart, by the bound e over the spread |x| |w| / sqrt d.

    A coordinate that dwarfs the others takes int8's steps for itself. The last rounding always stays.
    """
    roughs, some = list(screen.roughs), x[:PROBE]
    size = some.norm(dim=1).numpy()
    while len(roughs) > 1 and len(some):
        _, _, (gone, _) = _rounded(some, roughs[0].weights.dtype)
        of_rows = np.median(gone / np.maximum(size, np.float32(1e-30)))
        of_features = np.median(roughs[0].lost / np.maximum(roughs[0].length, np.float32(1e-30)))
        if (of_rows + of_features) * x.shape[1] ** 0.5 <= BLUR:
            break
        roughs.pop(0)
    return roughs


def screen_rows(x: Tensor, rough: Rough, out: Tensor) -> Screened:
    """Multiply a block of rows.

    Parameters
    ----------
    x : float32 (n, d)
    rough : the encoder
    out : int32, bfloat16 or float32 (n, m), overwritten
    """
    dtype = rough.weights.dtype
    rounded, step, (gone, kept) = _rounded(x, dtype)
    if dtype == torch.int8:
        raw = _int8_product(rounded, rough.weights, out).numpy()
    else:
        raw = torch.mm(rounded, rough.weights.t(), out=out)
        raw = raw.view(torch.int16).numpy().view(np.uint16) if dtype == torch.bfloat16 else raw.numpy()
    lost = gone + kept * np.float32(x.shape[1] * UNIT)
    size = x.norm(dim=1).numpy() * SLACK + LEAST
    return Screened(raw, step, size, lost * SLACK + LEAST, RELATIVE[dtype])


def room_for(rough: Rough, n_rows: int) -> Tensor:
    """What `screen_rows` writes to, (n_rows, m); numpy asks for large pages, which makes fresh memory cheaper."""
    kinds = {torch.int8: np.int32, torch.bfloat16: np.int16, torch.float32: np.float32}
    room = torch.from_numpy(np.empty((n_rows, len(rough.weights)), dtype=kinds[rough.weights.dtype]))
    return room.view(torch.bfloat16) if room.dtype == torch.int16 else room
