"""Maps: exact TFCE on a lattice and cluster mass along positions, against MNE on the same arrays.

    python benchmarks/bench_maps.py

MNE is an optional peer (`pip install --group bench`); without it the results are only compared with their definitions.
"""

# ruff: noqa: I001  (common sets the environment, so it is imported first)
from __future__ import annotations

import sys

from common import Floors, cpu, header, installed

import numba
import numpy as np
import scipy.sparse as sp
from scipy.ndimage import gaussian_filter, label
from scipy.sparse.csgraph import connected_components

from neurosae.stats.chains import Chains, chain_maxima, chains
from neurosae.stats.relabel import flips, signs
from neurosae.stats.tfce import cluster_maxima, grid, tfce, tfce_maxima

N_FLIPS, SHAPE = 10_000, (16, 12)


def maps(n_items: int = 64, n_flips: int = N_FLIPS) -> np.ndarray:
    """Maps of t: smooth noise with a bump under flips of whole items, (n_flips, 192), the observed one first."""
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.standard_normal((n_items, *SHAPE)), (0, 1, 1))
    x /= x.std()
    x[:, 5:8, 4:8] += 0.25
    x = x.reshape(n_items, -1)
    r = signs(flips(np.arange(n_items), n_flips, seed=1)) @ x / np.sqrt(n_items * (x**2).sum(axis=0))
    return r * np.sqrt((n_items - 1) / (1 - r**2))


def integral(x: np.ndarray, E: float = 0.5, H: float = 2.0) -> np.ndarray:
    """TFCE by its definition: the components at every distinct height, by scipy."""
    graph = grid(*SHAPE)
    G = sp.csr_matrix((np.ones(len(graph.indices)), graph.indices, graph.indptr), shape=(graph.n, graph.n))
    out = np.zeros(x.size)
    for sign in (1, -1):
        low = 0.0
        for high in np.unique(sign * x[sign * x > 0]):
            on = np.flatnonzero(sign * x >= high)
            which = connected_components(G[on][:, on], directed=False)[1]
            out[on] += np.bincount(which)[which] ** E * (high ** (H + 1) - low ** (H + 1)) / (H + 1)
            low = high
    return np.copysign(out, x)


def exact_tfce(T: np.ndarray, floors: Floors) -> None:
    """Equality with the definition, then time per map."""
    graph = grid(*SHAPE)
    worst = max(np.abs(tfce(x, graph) - integral(x)).max() / np.abs(integral(x)).max() for x in T[:20])
    assert worst < 1e-10, f"TFCE differs from its integral by {worst:.1e}"
    floors.add("G10", "exact TFCE against its integral, relative", value=worst, floor=1e-10, most=True)
    tfce_maxima(T[:2], graph)
    cluster_maxima(T[:2], graph, 2.0)
    own = cpu(lambda: tfce_maxima(T, graph)) / len(T)
    floors.add("G10", "exact TFCE of a 192-node map, both signs, microseconds", value=own * 1e6, floor=None)
    own = cpu(lambda: cluster_maxima(T, graph, 2.0)) / len(T)
    floors.add("G10", "cluster mass of a 192-node map, both signs, microseconds", value=own * 1e6, floor=None)


def tfce_against_mne(T: np.ndarray, floors: Floors) -> None:
    """MNE's stepwise TFCE, step .2 and .05; its step .005 agrees within 1 %."""
    from mne.stats.cluster_level import _find_clusters

    graph = grid(*SHAPE)

    def stepwise(x: np.ndarray, step: float) -> np.ndarray:
        return np.abs(np.asarray(_find_clusters(x.reshape(SHAPE), {"start": 0, "step": step})[1]))

    ours = np.abs(tfce(T[0], graph))
    fine = stepwise(T[0], 0.005)
    assert np.abs(fine - ours).max() < 0.01 * ours.max(), "MNE's TFCE at step .005 differs by more than 1 %"
    for step, n, floor in ((0.2, 200, 80.0), (0.05, 60, None)):
        error = np.median(np.abs(stepwise(T[0], step) - ours) / ours)
        floors.ratio(
            "G10",
            f"TFCE of 16 x 12 maps: MNE step {step} ({n} maps; its median error {error:.0%})",
            peer=lambda n=n, step=step: cpu(lambda: [stepwise(x, step) for x in T[:n]], 2) / n,
            ours=lambda: cpu(lambda: tfce_maxima(T, graph)) / len(T),
            floor=floor,
        )


def positions(n_items: int = 256, n_features: int = 1000, length: int = 16) -> sp.csc_matrix:
    """Sparse item contrasts of features x positions, densities log-uniform; columns feature-major."""
    rng = np.random.default_rng(0)
    density = np.repeat(np.exp(rng.uniform(np.log(2e-3), np.log(0.3), n_features)), length)
    n = rng.binomial(n_items, density)
    rows, cols = rng.integers(0, n_items, n.sum()), np.repeat(np.arange(len(n)), n)
    D = sp.csc_matrix((rng.standard_normal(n.sum()), (rows, cols)), shape=(n_items, len(n)))
    D.sum_duplicates()
    return D


def cluster_mass(floors: Floors, length: int = 16, threshold: float = 2.0) -> None:
    """Masses of single features along positions: scipy's labels for equality, MNE for time."""
    D = positions(length=length)
    n, how = D.shape[0], flips(np.arange(D.shape[0]), N_FLIPS, seed=7)
    scale = np.sqrt(n * np.asarray(D.power(2).sum(axis=0)).ravel())
    made = chains(D, length, df=n - 1.0, threshold=threshold, scale=scale)
    null = chain_maxima(made, how)
    r = signs(how, 0, 20) @ (D.toarray() / np.where(scale > 0, scale, 1))
    T = (r * np.sqrt((n - 1) / (1 - r**2))).reshape(20, -1, length)
    lines = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]])  # neighbours along positions only
    for t, own in zip(T, null[:20], strict=True):
        want = 0.0
        for sign in (1, -1):
            which, k = label(sign * t > threshold, lines)
            want = max(want, np.bincount(which.ravel(), (sign * t).ravel(), k + 1)[1:].max(initial=0))
        assert np.isclose(own, want, rtol=1e-5), "cluster masses differ from scipy's labels"
    time = cpu(lambda: chain_maxima(made, how))
    what = f"cluster mass, 1,000 features x {length} positions, {D.nnz:,} non-zeros"
    floors.add("G10", f"{what}, 10,000 flips, ms", value=time * 1e3, floor=None)
    if installed("mne"):
        mass_against_mne(D, floors, made=made, ask=(what, length, threshold))


def mass_against_mne(D: sp.csc_matrix, floors: Floors, *, made: Chains, ask: tuple[str, int, float]) -> None:
    """`permutation_cluster_1samp_test`: features without neighbours, consecutive positions joined."""
    from mne.stats import permutation_cluster_1samp_test

    what, length, threshold = ask
    X = D.toarray().reshape(D.shape[0], -1, length).transpose(0, 2, 1).copy()
    alone = sp.csr_matrix((X.shape[2], X.shape[2]))

    def one_sample(x: np.ndarray, *_: object) -> np.ndarray:
        total, square = x.sum(axis=0), (x**2).sum(axis=0)
        error = np.sqrt(np.maximum(square - total**2 / len(x), 1e-12) / (len(x) - 1) / len(x))
        return total / len(x) / error

    def test(n: int):
        return permutation_cluster_1samp_test(
            X, threshold, n, stat_fun=one_sample, adjacency=alone, max_step=1, tail=0, rng=0, verbose="error"
        )

    t, found, _, null = test(2)
    masses = [abs(t[part].sum()) for part in found]
    how = flips(np.arange(D.shape[0]), N_FLIPS, seed=7)
    assert np.isclose(max(masses), chain_maxima(made, how)[0], rtol=1e-5), "the largest observed mass differs"
    assert len(null) == 2
    floors.ratio(
        "G10",
        f"{what}: MNE permutation_cluster_1samp_test (20 flips scaled)",
        peer=lambda: (cpu(lambda: test(22), 2) - cpu(lambda: test(2), 2)) / 20 * N_FLIPS,
        ours=lambda: cpu(lambda: chain_maxima(made, how)),
        floor=80,
    )


def main() -> int:
    """All rows; exit status 1 below a floor."""
    header()
    numba.set_num_threads(1)
    floors, T = Floors(), maps()
    exact_tfce(T, floors)
    if installed("mne"):
        tfce_against_mne(T, floors)
    cluster_mass(floors)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
