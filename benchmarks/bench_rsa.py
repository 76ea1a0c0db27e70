"""G8, G9: bootstrap of conditions and RDMs, and permutation of conditions over many maps, against rsatoolbox and numpy.

Equality on the same draws is asserted first. Run alone: `python benchmarks/bench_rsa.py`.
"""

from __future__ import annotations

import sys
import warnings

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import numpy as np

from neurosae.stats.rdm_compare import condensed_to_square
from neurosae.stats.relabel_conditions import orders, permute_conditions
from neurosae.stats.resample import bootstrap_rdms


def bootstrap(floors: Floors, n_conditions: int = 200, n_peer: int = 12) -> None:
    """1,000 bootstraps of 8 RDMs and 6 models with noise ceilings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rsatoolbox.inference.evaluate as peer
        from rsatoolbox.model import ModelFixed
        from rsatoolbox.rdm import RDMs
    peer.tqdm.trange = lambda n, *a, **k: range(n)
    rng = np.random.default_rng(0)
    pairs = n_conditions * (n_conditions - 1) // 2
    base = rng.random(pairs)
    data = np.abs(base + rng.normal(0, 0.5, (8, pairs)))
    models = np.abs(base * np.linspace(0, 1, 6)[:, None] + rng.random((6, pairs)))
    fixed = [ModelFixed(str(j), v) for j, v in enumerate(models)]

    def theirs() -> object:
        np.random.seed(3)  # noqa: NPY002  (the peer draws from the global generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer.eval_bootstrap(fixed, RDMs(data), method="cosine", N=n_peer)

    np.random.seed(3)  # noqa: NPY002
    W, R = np.zeros((n_peer, n_conditions)), np.zeros((n_peer, 8))
    for i in range(n_peer):
        R[i] = np.bincount(np.random.randint(0, 8, size=8), minlength=8)  # noqa: NPY002
        W[i] = np.bincount(np.random.randint(0, n_conditions, size=n_conditions), minlength=n_conditions)  # noqa: NPY002
    result, same = theirs(), bootstrap_rdms(data, models, conditions=W, rdms=R)
    for ours, other in zip(same, (result.evaluations, *result.noise_ceiling), strict=True):
        assert np.abs(ours - other).max() < 1e-12, "the bootstrap differs"
    W = rng.multinomial(n_conditions, np.full(n_conditions, 1 / n_conditions), size=1000)
    R = rng.multinomial(8, np.full(8, 1 / 8), size=1000)
    for dtype, floor in ((np.float64, 105), (np.float32, 245)):
        floors.ratio(
            "G8",
            f"1,000 bootstraps, {n_conditions} conditions, {dtype.__name__}: rsatoolbox ({n_peer} draws scaled)",
            peer=lambda: cpu(theirs, 1) * 1000 / n_peer,
            ours=lambda d=dtype: cpu(lambda: bootstrap_rdms(data, models, conditions=W, rdms=R, dtype=d), 2),
            floor=floor,
        )


def permutation(floors: Floors, n_conditions: int = 64, n_permutations: int = 10_000) -> None:
    """The largest of 192 correlations under 10,000 permutations of 64 conditions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rsatoolbox.rdm import RDMs, compare
    rng = np.random.default_rng(1)
    pairs = n_conditions * (n_conditions - 1) // 2
    maps, model = rng.random((192, pairs)), rng.random(pairs)
    square, at = condensed_to_square(model), np.triu_indices(n_conditions, 1)
    how = orders(n_conditions, 0, 10, blocks=np.zeros(n_conditions, int), seed=1)
    _, null = permute_conditions(maps, model, n_permutations=10, seed=1)
    loop = [np.abs(np.corrcoef(square[np.ix_(p, p)][at], maps)[0, 1:]).max() for p in how]
    assert np.abs(null - loop).max() < 2e-6, "the maxima differ"
    known = RDMs(maps)
    peers = {
        "rsatoolbox compare in a loop (10 scaled)": (
            lambda: [compare(RDMs(square[np.ix_(p, p)][at]), known, method="corr") for p in how],
            66,
        ),
        "numpy corrcoef in a loop (10 scaled)": (
            lambda: [np.corrcoef(square[np.ix_(p, p)][at], maps) for p in how],
            105,
        ),
    }
    for name, (task, floor) in peers.items():
        floors.ratio(
            "G9",
            f"10,000 permutations, maximum over 192 maps, {n_conditions} conditions: {name}",
            peer=lambda t=task: cpu(t, 2) * n_permutations / 10,
            ours=lambda: cpu(lambda: permute_conditions(maps, model, n_permutations=n_permutations, seed=1), 2),
            floor=floor,
        )


def main() -> int:
    """All rows; exit status 1 below a floor."""
    header("rsatoolbox")
    floors = Floors()
    bootstrap(floors)
    permutation(floors)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
