"""Other decompositions: what they recover of planted features, and matching pursuit against scikit-learn.

The easy world is that of ALT-3 (64 features in 32 dimensions, 3 active, 4,000 rows); in the hard one (256 features in
64 dimensions, 8 active) the sparse dictionaries of `bench_training.py` find most features and these find few.
"""

from __future__ import annotations

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import numpy as np
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch.nn import functional

from neurosae.dictionary.decompositions import decompose
from neurosae.dictionary.pursuit import matching_pursuit


def world(m: int, d: int, k: int, *, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """True features, and rows that are sums of k of them with coefficients uniform on 1 to 2."""
    g = torch.Generator().manual_seed(0)
    features = functional.normalize(torch.randn(m, d, generator=g), dim=1)
    active = torch.rand(n, m, generator=g).topk(k, dim=1).indices
    return features, torch.zeros(n, m).scatter(1, active, 1 + torch.rand(n, k, generator=g)) @ features


def recovered(x: torch.Tensor, features: torch.Tensor, **asked: object) -> float:
    """Share of the true features with a decoder row of cosine above .9."""
    rows = functional.normalize(decompose(x, asked).W_dec, dim=1)
    return float(((rows @ features.T).amax(0) > 0.9).float().mean())


def main() -> int:
    """Recovery in both worlds, then the pursuit."""
    header("torch", "scikit-learn")
    floors = Floors()
    features, x = world(64, 32, 3, n=4_000)
    for asked, floor in (
        ({"kind": "ksvd", "n": 96, "k": 3}, 0.95), ({"kind": "ksvd", "n": 64, "k": 3}, None),
        ({"kind": "online_dl", "n": 96, "k": 3, "alpha": 0.3}, 0.9), ({"kind": "pca"}, None), ({"kind": "ica"}, None),
    ):  # fmt: skip
        words = ", ".join(f"{name} {value}" for name, value in asked.items() if name != "kind")
        floors.add("ALT-3", f"{asked['kind']} {words}".strip(), recovered(x, features, **asked), floor=floor)
    features, x = world(256, 64, 8, n=10_000)
    for asked in ({"kind": "ksvd", "n": 384, "k": 8}, {"kind": "pca"}, {"kind": "ica"}):
        floors.add("ALT-3", f"hard world, {asked['kind']}", recovered(x, features, **asked), floor=None)
    g = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(512, 128, generator=g, dtype=torch.float64), dim=1)
    rows = torch.randn(2_000, 128, generator=g, dtype=torch.float64)
    norms = (rows**2).sum(1).numpy()

    def peer() -> np.ndarray:
        products = (atoms @ rows.T).numpy()
        return orthogonal_mp_gram((atoms @ atoms.T).numpy(), products, n_nonzero_coefs=8, norms_squared=norms)

    found = matching_pursuit(rows, atoms, 8)
    ours = torch.zeros(2_000, 512, dtype=torch.float64).scatter(1, found.kept, found.values)
    assert np.allclose(ours.T.numpy(), peer(), atol=1e-8)
    floors.ratio(
        "ALT-2", "pursuit, 2,000 rows, 512 atoms, 8 per row, over scikit-learn's", peer=lambda: cpu(peer),
        ours=lambda: cpu(lambda: matching_pursuit(rows, atoms, 8)), floor=1.2,
    )  # fmt: skip
    return floors.finish()


if __name__ == "__main__":
    raise SystemExit(main())
