"""G7, G8, G9: RDMs and shrinkage noise, bootstraps, permutation of conditions over many maps; rsatoolbox and numpy.

Equality on the same draws is asserted first. Run alone: `python benchmarks/bench_rsa.py`.
"""

from __future__ import annotations

import sys
import warnings

from common import Floors, cpu, header, responses, unit  # isort: skip  (sets one thread)

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.stats.model_comparison import dual_bootstrap
from neurosae.stats.rdm import Patterns, distances
from neurosae.stats.rdm_compare import condensed_to_square
from neurosae.stats.rdm_noise import gram, shrunk_gram
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

    def ours(compare: str = "corr") -> None:
        permute_conditions(maps, model, n_permutations=n_permutations, compare=compare, seed=1)

    def add(name: str, *, peer: object, floor: float, mine: str = "corr", n: int = 10) -> None:
        what = f"10,000 permutations, maximum over 192 maps, {n_conditions} conditions: {name}"
        ours(mine)
        floors.ratio(
            "G9",
            what,
            peer=lambda: cpu(peer, 1) * n_permutations / n,
            ours=lambda: cpu(lambda: ours(mine), 2),
            floor=floor,
        )

    def theirs(method: str, n: int) -> np.ndarray:
        values = [compare(RDMs(square[np.ix_(p, p)][at]), known, method=method) for p in how[:n]]
        return np.abs(np.concatenate(values)).max(axis=1)

    for method, n, floor in (("cosine_cov", 2, 250), ("corr_cov", 2, 250), ("spearman", 3, 250), ("corr", 10, 66)):
        _, null = permute_conditions(maps, model, n_permutations=n, compare=method, seed=1)
        assert np.abs(null - theirs(method, n)).max() < 1e-5, f"the maxima of {method} differ"
        name = f"rsatoolbox compare, {method}, in a loop ({n} scaled)"
        add(name, peer=lambda m=method, n=n: theirs(m, n), floor=floor, mine=method, n=n)
    add(
        "numpy corrcoef in a loop (10 scaled)",
        peer=lambda: [np.corrcoef(square[np.ix_(p, p)][at], maps) for p in how],
        floor=105,
    )
    tile, columns = rng.random((256, pairs), np.float32), rng.random((pairs, 192), np.float32)
    product = cpu(lambda: [tile @ columns for _ in range(n_permutations // 256)], 2)
    floors.add("G9", "share of the time that a bare float32 product takes", value=product / cpu(ours, 2), floor=0.5)


def rdms(floors: Floors) -> None:
    """RDMs of sparse responses at 24,576 features, and shrinkage noise at 1,000 and a million."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rsatoolbox.data import Dataset
        from rsatoolbox.data.noise import prec_from_residuals
        from rsatoolbox.rdm import calc_rdm
    for name, n, floor in (("euclidean", 200, 41), ("correlation", 500, 260), ("poisson", 200, 26)):
        Y = responses(n // 4).Y.tocsr()
        known = Dataset(Y.toarray(), obs_descriptors={"c": np.arange(n)})
        found = patterns(Y, np.zeros(n, int), np.arange(n))

        def ours(p: Patterns = found, which: str = name) -> np.ndarray:
            return distances(gram(p.X) if which != "poisson" else np.empty((0, 0)), p, which)

        def theirs(data: object = known, which: str = name) -> np.ndarray:
            return calc_rdm(data, which).dissimilarities[0]

        assert np.nanmax(np.abs(ours() - theirs())) < 1e-11 * np.nanmax(theirs()), f"{name} differs"
        what = f"{name}, {n} conditions, 24,576 features: rsatoolbox"
        floors.ratio("G7", what, peer=lambda t=theirs: cpu(t, 2), ours=lambda t=ours: cpu(t, 3), floor=floor)
    crossnobis(floors, Dataset, calc_rdm)
    Y = responses(60).Y
    order = np.argsort(-np.diff(Y.indptr))
    U, R = split(Y[:, order[:1000]].tocsr())
    data, dense = Dataset(U.toarray(), obs_descriptors={"c": np.arange(60)}), R.toarray()
    for method, floor in (("shrinkage_eye", 62), ("shrinkage_diag", 31)):

        def theirs(m: str = method) -> np.ndarray:
            return calc_rdm(data, "mahalanobis", noise=prec_from_residuals(dense, method=m)).dissimilarities[0]

        def ours(m: str = method) -> np.ndarray:
            K = shrunk_gram(U, R, method=m)
            i, j = np.triu_indices(60, 1)
            return (K[i, i] + K[j, j] - 2 * K[i, j]) / U.shape[1]

        assert np.abs(ours() - theirs()).max() < 1e-10 * theirs().max(), f"{method} differs"
        what = f"mahalanobis with {method}, {U.shape[1]} features: rsatoolbox"
        floors.ratio("G7", what, peer=lambda t=theirs: cpu(t, 1), ours=lambda t=ours: cpu(t, 3), floor=floor)
    U, R = split(responses(250, 1_000_000).Y.tocsr())
    took = cpu(lambda: shrunk_gram(U, R), 2) / unit()
    floors.add("G7", f"shrinkage noise, {U.shape[1]:,} alive of 1,000,000 features, in u", took, floor=12, most=True)


def crossnobis(floors: Floors, Dataset: type, calc_rdm: object) -> None:
    """Leave-one-fold-out distances of the densest features."""
    n, folds, width = 64, 4, 6000
    Y = responses(n).Y
    X = Y[:, np.argsort(-np.diff(Y.indptr))[:width]].tocsr()
    item, condition = np.tile(np.arange(folds), n), np.repeat(np.arange(n), folds)
    data = Dataset(X.toarray(), obs_descriptors={"c": condition, "f": item})
    found = patterns(X, item, condition)

    def theirs() -> np.ndarray:
        return calc_rdm(data, "crossnobis", descriptor="c", cv_descriptor="f").dissimilarities[0]  # type: ignore[operator]

    def ours() -> np.ndarray:
        return distances(gram(found.X), found)

    assert np.abs(ours() - theirs()).max() < 1e-11 * np.abs(theirs()).max(), "crossnobis differs"
    what = f"crossnobis, {n} conditions, {folds} folds, {width} features: rsatoolbox"
    floors.ratio("G7", what, peer=lambda: cpu(theirs, 1), ours=lambda: cpu(ours, 3), floor=155)


def patterns(X: sp.csr_matrix, item: np.ndarray, condition: np.ndarray) -> Patterns:
    """Rows as item x condition patterns."""
    names = tuple(f"i{k}" for k in range(item.max() + 1)), tuple((str(k),) for k in range(condition.max() + 1))
    return Patterns(*names, X, item, condition, pd.DataFrame(index=range(len(item))), 0, 0, 0)


def split(Y: sp.csr_matrix) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Means of four adjacent rows, and what is left of them, in the features that have residual variance."""
    n = Y.shape[0] // 4
    U = sp.csr_matrix(sp.kron(sp.eye(n), np.ones((1, 4)) / 4) @ Y)
    R = sp.csr_matrix(Y - sp.kron(sp.eye(n), np.ones((4, 1))) @ U)
    ok = np.flatnonzero(np.asarray(R.multiply(R).sum(axis=0)).ravel() > 1e-9)
    return sp.csr_matrix(U[:, ok]), sp.csr_matrix(R[:, ok])


def dual(floors: Floors, n_conditions: int = 96, n_peer: int = 4) -> None:
    """The two-factor bootstrap with ceilings; with 100 conditions the peer fails at cosine_cov (an int8 matrix)."""
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
    models = {str(k): v for k, v in enumerate(np.abs(base + rng.random((4, pairs))))}
    fixed = [ModelFixed(name, v) for name, v in models.items()]

    def theirs(method: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.eval_dual_bootstrap(fixed, RDMs(data), method=method, k_pattern=1, k_rdm=1, N=n_peer)

    for method, floor in (("cosine_cov", 100), ("rho-a", 30)):  # equality on the same draws: tests/stats
        dual_bootstrap(data, models, n_draws=20, compare=method, seed=1)
        floors.ratio(
            "G8",
            f"1,000 two-factor bootstraps, {n_conditions} conditions, {method}: rsatoolbox ({n_peer} draws scaled)",
            peer=lambda m=method: cpu(lambda: theirs(m), 1) * 1000 / n_peer,
            ours=lambda m=method: cpu(lambda: dual_bootstrap(data, models, n_draws=1000, compare=m, seed=1), 1),
            floor=floor,
        )


def main() -> int:
    """All rows; exit status 1 below a floor."""
    header("rsatoolbox")
    floors = Floors()
    rdms(floors)
    bootstrap(floors)
    dual(floors)
    permutation(floors)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
