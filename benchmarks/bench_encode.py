"""G11: codes of 512 rows, 768 -> 24,576 features, k = 64, against sae-lens' top-k encode, and as a share of the GEMM.

Equality first: the same features in every row as torch's float32 top-k (a feature may differ only where float64 sees a
tie within 1e-5), values to 3e-6, and bit for bit the same codes from all screens. The floors hold where int8 and
bfloat16 are multiplied in hardware; elsewhere the float32 screen is reported only.
Run alone: `python benchmarks/bench_encode.py`.
"""

from __future__ import annotations

import sys
import warnings

from common import Floors, cpu, header, installed  # isort: skip  (sets one thread)

import numpy as np
import torch

from neurosae.dictionary.encode import codes_threshold, codes_topk
from neurosae.dictionary.screen import fast_products, prepare_screen

D, M, K, N = 768, 24_576, 64, 512


def simulated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that are sums of some features, of a few dense directions and of noise; unit encoder rows; biases."""
    torch.manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(M, D), dim=1)
    active = 3 * torch.relu(torch.randn(N, M) - 2.9)
    return torch.randn(N, D) + 2 * torch.randn(N, 8) @ weights[:8] + active @ weights, weights, 0.05 * torch.randn(M)


def check_equal(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> int:
    """Assert that the codes are torch's; rows whose sets are identical."""
    z = torch.addmm(bias, x, weights.t())
    values, kept = z.topk(K, dim=1)
    codes = codes_topk(x, prepare_screen(weights, bias), K)
    exact, same = (x.double() @ weights.double().t() + bias.double()).numpy(), 0
    for r in range(N):
        ours, theirs = set(codes[r].indices.tolist()), set(kept[r].tolist())
        same += ours == theirs
        assert all(abs(exact[r, j] - float(values[r, -1])) < 1e-5 for j in ours ^ theirs), "another feature is active"
    assert np.abs(np.sort(codes.data.reshape(N, K), 1) - np.sort(values.numpy(), 1)).max() < 5e-6, "values differ"
    for kind in ("int8", "bfloat16", "float32"):
        other = prepare_screen(weights, bias, kinds=(kind,))
        assert (codes != codes_topk(x, other, K)).nnz == 0, f"the screen in {kind} gives different codes"
    return same


def main() -> int:
    """Compare, then time."""
    header("torch", "sae-lens")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    floors, (x, weights, bias), fast = Floors(), simulated(), fast_products(D)
    same = check_equal(x, weights, bias)
    screen, transposed = prepare_screen(weights, bias), weights.t().contiguous()
    print(f"  fast products: {', '.join(fast) or 'float32'}; identical sets in {same} of {N} rows, the rest are ties")

    def ours() -> float:
        return cpu(lambda: codes_topk(x, screen, K), 5)

    def product() -> float:
        rough = weights.bfloat16()
        return cpu(lambda: [torch.mm(x[a : a + 256].bfloat16(), rough.t()) for a in range(0, N, 256)], 5)

    def dense() -> float:
        return cpu(lambda: torch.relu(x @ transposed + bias).topk(K, dim=1))

    floors.add("G11", "rows with the identical active set, share", same / N, floor=0.99)
    if installed("sae-lens"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sae_lens import TopKSAE, TopKSAEConfig
        sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=M, k=K, dtype="float32", rescale_acts_by_decoder_norm=False))
        sae.W_enc.data, sae.b_enc.data = transposed, bias
        floor = 2.7 if "int8" in fast else 2.0 if fast else None
        floors.ratio(
            "G11", "encode / sae-lens TopKSAE.encode", peer=lambda: cpu(lambda: sae.encode(x)), ours=ours, floor=floor
        )
    floors.ratio("G11", "encode / torch float32 product + top-k", peer=dense, ours=ours, floor=None)
    if "bfloat16" in fast:
        floors.ratio("G11", "bfloat16 product alone / encode", peer=product, ours=ours, floor=0.33)
    for kind in (*fast, "float32"):
        only = prepare_screen(weights, bias, kinds=(kind,))
        floors.ratio(
            "G11", f"screen in {kind} / torch float32 product + top-k", peer=dense, floor=None,
            ours=lambda only=only: cpu(lambda: codes_topk(x, only, K)),
        )  # fmt: skip
    skewed = x.clone()
    skewed[:, 5] += 60  # one coordinate dwarfs the rest, as in uncentred streams: int8 is left out
    floors.ratio(
        "G11", "encode, one coordinate 60 sd off / torch float32 product + top-k", peer=dense, floor=None,
        ours=lambda: cpu(lambda: codes_topk(skewed, screen, K)),
    )  # fmt: skip
    level = torch.full((M,), 4.0)
    active = codes_threshold(x, screen, level).nnz / N
    floors.ratio(
        "G11", f"thresholds (L0 {active:.0f}) / torch float32 product + mask", floor=None,
        peer=lambda: cpu(lambda: (lambda z: z * (z > level))(x @ transposed + bias)),
        ours=lambda: cpu(lambda: codes_threshold(x, screen, level)),
    )  # fmt: skip
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
