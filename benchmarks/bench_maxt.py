"""G2, G3, G4: max-T over 10,000 sign flips and p of every feature, against MNE, nilearn and dense matrix products.

Equality is asserted first: the observed t with the peers', the maxima with a dense product of the same signs, the exact
p with enumeration. Run alone: `python benchmarks/bench_maxt.py`.
"""

from __future__ import annotations

import sys
import tracemalloc

from common import Floors, cpu, header, installed, item_contrasts, responses  # isort: skip  (sets one thread)

import numba
import numpy as np
import scipy.sparse as sp

from neurosae.stats import projection
from neurosae.stats.flips import Columns, flip_columns, maxima, to_t
from neurosae.stats.nuisance import fit_model, residual_squares
from neurosae.stats.relabel import Relabelling, flips, signs
from neurosae.stats.tails import flip_p

N_FLIPS = 10_000


def prepared(D: sp.csc_matrix) -> tuple[Columns, Relabelling]:
    """Columns of the plain t, and the flips."""
    n = D.shape[0]
    scale = np.sqrt(n * np.asarray(D.power(2).sum(axis=0)).ravel())
    return flip_columns(D, scale=scale, df=n - 1.0), flips(np.arange(n), N_FLIPS, seed=1)


def dense_product(D: sp.csc_matrix, floors: Floors, *, floor: float | None, what: str) -> None:
    """A float32 matrix product of the same normalised columns with the same signs, a tile of 512 flips at a time."""
    columns, how = prepared(D)
    n = D.shape[0]
    scale = np.sqrt(n * np.asarray(D.power(2).sum(axis=0)).ravel())
    V = (D.toarray() / scale).astype(np.float32).T.copy()
    S = signs(how, 0, 512).T.astype(np.float32)
    got = maxima(columns, how)[0]
    assert np.abs(np.abs(V @ S).max(axis=0) - got[:512]).max() < 2e-6, "the maxima differ"
    floors.ratio(
        "G2",
        f"max-T, {what}: float32 matrix product (512 flips scaled)",
        peer=lambda: cpu(lambda: np.abs(V @ S).max(axis=0)) * N_FLIPS / 512,
        ours=lambda: cpu(lambda: maxima(columns, how)),
        floor=floor,
    )


def against_mne(D: sp.csc_matrix, floors: Floors) -> None:
    """`permutation_t_test` without dead columns, called over the chunk of flips that suits it best."""
    if not installed("mne"):
        return
    import mne

    mne.set_log_level("ERROR")
    X, (columns, how) = D.toarray(), prepared(D)
    t = mne.stats.permutation_t_test(X, n_permutations=2, seed=0)[0]
    assert np.allclose(t, to_t(columns.u, columns.df), rtol=1e-9), "the observed t differ"

    def best() -> float:
        times = {
            chunk: cpu(lambda c=chunk: mne.stats.permutation_t_test(X, n_permutations=c, seed=1), 2) * N_FLIPS / chunk
            for chunk in (64, 256, 1024)
        }
        return min(times.values())

    floors.ratio(
        "G2",
        "max-T, N = 1024: mne permutation_t_test, best chunk (chunk scaled)",
        peer=best,
        ours=lambda: cpu(lambda: maxima(columns, how)),
        floor=97,
    )


def against_nilearn(D: sp.csc_matrix, floors: Floors) -> None:
    """`permuted_ols` on item differences without an intercept: the same test."""
    if not installed("nilearn"):
        return
    from nilearn.mass_univariate import permuted_ols

    X, (columns, how) = D.toarray(), prepared(D)
    ask = {"model_intercept": False, "two_sided_test": True, "random_state": 0, "output_type": "dict"}
    ones = np.ones((len(X), 1))
    t = permuted_ols(ones, X, n_perm=0, **ask)["t"].ravel()
    assert np.allclose(t, to_t(columns.u, columns.df), rtol=1e-6), "the observed t differ"
    floors.ratio(
        "G2",
        "max-T, N = 1024: nilearn permuted_ols on item differences (100 flips scaled)",
        peer=lambda: cpu(lambda: permuted_ols(ones, X, n_perm=100, **ask), 1) * N_FLIPS / 100,
        ours=lambda: cpu(lambda: maxima(columns, how)),
        floor=1850,
    )


def memory(D: sp.csc_matrix, floors: Floors) -> None:
    """Extra memory of a whole run, with its columns ready."""
    columns, how = prepared(D)
    maxima(columns, how)
    tracemalloc.start()
    maxima(columns, how)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    mask = D.shape[0] * 512 + 512 * 4  # made inside the compiled loop, which the tracer may not see
    floors.add("G2", "extra memory of 10,000 flips, N = 1024, MB", value=(peak + mask) / 2**20, floor=1.0, most=True)


def beside_nuisance(D: sp.csc_matrix, floors: Floors) -> None:
    """Freedman-Lane with two nuisance columns, every p counted, against a plain run of the same flips."""
    n = D.shape[0]
    Z = np.random.default_rng(0).standard_normal((n, 2)) + 0.3
    model = fit_model(np.ones(n), Z)
    kept = D[:, residual_squares(D, model.Q) > 0].tocsc()
    columns, (plain, how) = projection.project(kept, model), prepared(kept)
    first, full = signs(how, 0, 3), np.column_stack([np.ones(n), Z])
    residuals = kept.toarray() - Z @ np.linalg.lstsq(Z, kept.toarray(), rcond=None)[0]
    for b, s in enumerate(first):
        Y = s[:, None] * residuals
        beta = np.linalg.lstsq(full, Y, rcond=None)[0]
        rest = ((Y - full @ beta) ** 2).sum(axis=0)
        t = beta[0] / np.sqrt(rest / (n - 3) * np.linalg.inv(full.T @ full)[0, 0])
        largest = np.abs(t / np.sqrt(n - 3 + t**2)).max()
        assert abs(maxima(columns, how)[0][b] - largest) < 1e-6, "Freedman-Lane differs from refits"
    task, simple = (lambda: maxima(columns, how)), (lambda: maxima(plain, how))
    floors.add(
        "G2",
        "Freedman-Lane, 2 nuisance columns, over a plain flip run, N = 1024",
        value=cpu(task) / cpu(simple),
        floor=28,
        most=True,
    )


def size_of_dictionary(floors: Floors) -> None:
    """The same activity spread over a dictionary of a million features."""
    times = {}
    for m in (24_576, 1_000_000):
        D = item_contrasts(responses(1024, m, seed=2))
        columns, how = prepared(D)
        maxima(columns, how)
        times[m] = cpu(lambda c=columns, h=how: maxima(c, h))
        print(f"  N = 4096, {m:,} features: {D.shape[1]:,} alive, {D.nnz:,} non-zeros, {times[m] * 1e3:.0f} ms")
    ratio = times[1_000_000] / times[24_576]
    floors.add("G3", "max-T, N = 4096: time at 1 M over 24,576 features", value=ratio, floor=1.4, most=True)


def p_of_every_feature(D: sp.csc_matrix, floors: Floors) -> None:
    """Exact or saddlepoint p against counting 10,000 flips by a sparse product."""
    how = flips(np.arange(D.shape[0]), N_FLIPS, seed=1)
    S = signs(how, 0, 512)
    p, exact = flip_p(D)
    few = np.flatnonzero(np.diff(D.indptr) == 8)[:20]
    for f in few:
        d = D[:, [f]].data
        every = np.array(np.meshgrid(*[[1, -1]] * len(d))).reshape(len(d), -1)
        assert np.isclose(p[f], (np.abs(d @ every) >= abs(d.sum()) - 1e-10 * np.abs(d).sum()).mean()), "p differs"
    T, limit = D.T.tocsr(), np.abs(np.asarray(D.sum(axis=0))).T
    floors.ratio(
        "G4",
        f"p of {D.shape[1]:,} features, N = 1024 ({exact.mean():.0%} exact): counting 10,000 flips (512 scaled)",
        peer=lambda: cpu(lambda: (np.abs(T @ S.T) >= limit).sum(axis=1), 2) * N_FLIPS / 512,
        ours=lambda: cpu(lambda: flip_p(D)),
        floor=6,
    )


def denser(floors: Floors) -> None:
    """More active features per stimulus, and a dense matrix: nobody tunes to one density."""
    for l0 in (256, 1024):
        D = item_contrasts(responses(256, 24_576, l0=l0, seed=3))
        dense_product(D, floors, floor=None, what=f"N = 1024, L0 = {l0}, {D.shape[1]:,} alive, {D.nnz:,} non-zeros")
    D = sp.csc_matrix(np.random.default_rng(4).standard_normal((256, 2048)))
    dense_product(D, floors, floor=None, what="256 items, 2,048 features, all dense")


def main() -> int:
    """All rows; exit status 1 below a floor."""
    header()
    numba.set_num_threads(1)
    floors = Floors()
    data = responses(256)
    D = item_contrasts(data)
    print(f"  N = 1024: {data.Y.nnz:,} non-zeros, {D.shape[1]:,} alive, {D.nnz:,} in item contrasts")
    against_mne(D, floors)
    against_nilearn(D, floors)
    dense_product(D, floors, floor=20, what="N = 1024")
    memory(D, floors)
    beside_nuisance(D, floors)
    size_of_dictionary(floors)
    p_of_every_feature(D, floors)
    denser(floors)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
