"""Max-T over 10,000 sign flips: our kernels against a dense matrix product on the same columns, in one process.

Checks that both give the same maxima before it reads the clock, prints what ran, and asserts ratio floors: half of what
was reached, never absolute seconds. Run alone: `OMP_NUM_THREADS=1 python benchmarks/bench_maxt.py`.
"""

# ruff: noqa: E402  (the environment must be set before numpy is imported)
from __future__ import annotations

import os
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.pop("OPENBLAS_CORETYPE", None)  # exported by some environments, it halves the speed of the peer

import numba
import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_info

from neurosae.stats.flips import flip_columns, maxima
from neurosae.stats.relabel import flips, signs
from neurosae.stats.tails import flip_p

N_FLIPS, FLOOR, FLOOR_P = 10_000, 20.0, 6.0


def item_contrasts(n_items: int, n_features: int, *, l0: float = 64, seed: int = 0) -> sp.csc_matrix:
    """Item contrasts of a 2 x 2 design: densities log-uniform with sum `l0`, half of it in 49 shared features."""
    rng = np.random.default_rng(seed)
    density = np.exp(rng.uniform(np.log(1e-4), np.log(0.5), n_features))
    density *= (l0 / 2) / density.sum()
    density[rng.choice(n_features, 49, replace=False)] = rng.uniform(0.3, 1.0, 49)
    D = sp.csc_matrix((n_items, n_features))
    for weight in (-0.5, -0.5, 0.5, 0.5):
        counts = rng.binomial(n_items, np.minimum(density, 1))
        rows = np.concatenate([rng.choice(n_items, k, replace=False) for k in counts if k])
        entries = (weight * rng.gamma(2.0, 1.0, len(rows)), (rows, np.repeat(np.arange(n_features), counts)))
        D = D + sp.csc_matrix(entries, shape=D.shape)
    return D[:, np.diff(D.indptr) > 0].tocsc()


def cpu(task, repeats: int = 3) -> float:
    """Smallest CPU seconds of the process over some repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        task()
        seconds.append(time.process_time() - start)
    return min(seconds)


def compare(n_items: int) -> tuple[float, float]:
    """Ratios dense / ours of the maxima, and counted / exact of the p of every feature, at one size."""
    D = item_contrasts(n_items, 24_576)
    q = np.asarray(D.power(2).sum(axis=0)).ravel()
    columns = flip_columns(D, scale=np.sqrt(n_items * q), df=n_items - 1.0)
    how = flips(np.arange(n_items), N_FLIPS, seed=1)
    V = (D.toarray() / np.sqrt(n_items * q)).astype(np.float32).T.copy()
    S = signs(how, 0, 512).T.astype(np.float32)
    ours = maxima(columns, how)[0]
    assert np.abs(np.abs(V @ S).max(axis=0) - ours[:512]).max() < 2e-6, "the maxima differ"
    flip_p(D)  # compiles
    seconds = {
        "ours": cpu(lambda: maxima(columns, how)),
        "dense": cpu(lambda: np.abs(V @ S).max(axis=0)) * N_FLIPS / 512,
        "exact p": cpu(lambda: flip_p(D)),
        "counted p": cpu(lambda: (np.abs(D.T @ S.astype(float)) >= 1).sum(axis=1), 1) * N_FLIPS / 512,
    }
    times = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    print(f"N={4 * n_items}: {D.shape[1]} features alive, {D.nnz} non-zeros, {N_FLIPS} flips: {times}")
    return seconds["dense"] / seconds["ours"], seconds["counted p"] / seconds["exact p"]


def main() -> int:
    """Print what runs, compare at two sizes, assert the floors at the larger one."""
    used = [f"{i.get('internal_api')}:{i.get('architecture', '?')}:{i['num_threads']}t" for i in threadpool_info()]
    print(f"numpy {np.__version__}, numba {numba.__version__}; BLAS {', '.join(used)}; load {os.getloadavg()[0]:.1f}")
    numba.set_num_threads(1)
    compare(64)
    ratio, ratio_p = compare(256)
    ok = ratio >= FLOOR and ratio_p >= FLOOR_P
    print(f"max-T {ratio:.0f}x (floor {FLOOR:.0f}), p {ratio_p:.0f}x (floor {FLOOR_P:.0f}): {'ok' if ok else 'FAILED'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
