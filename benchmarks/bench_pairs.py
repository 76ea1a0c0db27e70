"""G5: max-T over every pair of features that fires together, 4,096 stimuli, 10,000 flips.

The peer is given the kept pairs and the item contrasts, as a dense float32 matrix product a tile of 512 flips at a
time; ours starts from the responses and finds the pairs itself. Equality is asserted first: the products of a sample of
pairs with dense columns, the maxima with those of the dense product over all of them. Run alone:
`python benchmarks/bench_pairs.py`.
"""

from __future__ import annotations

import resource
import sys

from common import WEIGHTS, Data, Floors, cpu, header, responses, unit  # isort: skip  (sets one thread)

import numpy as np
import scipy.sparse as sp

from neurosae.stats.flips import Columns, flip_columns, maxima
from neurosae.stats.products import pair_products
from neurosae.stats.relabel import Relabelling, flips, signs

N_FLIPS, LEAST = 10_000, 6
PAIRS_AT_ONCE = 4096  # of the dense product; all of them would not fit into memory


def contrasts(data: Data, rows: sp.csr_matrix) -> tuple[sp.csc_matrix, np.ndarray, np.ndarray]:
    """Interaction contrast of every kept pair, item by item, and the pairs."""
    made = pair_products(rows, least=LEAST)
    n = len(data.item)
    C = sp.csr_matrix((WEIGHTS["AxB"][data.cell], (data.item, np.arange(n))), shape=(n // 4, n))
    D = sp.csc_matrix(C @ made.X)
    D.eliminate_zeros()
    D.sort_indices()
    kept = np.diff(D.indptr) >= LEAST
    return D[:, kept].tocsc(), made.first[kept], made.second[kept]


def prepared(D: sp.csc_matrix) -> tuple[Columns, Relabelling]:
    """Columns of the plain t, and the flips."""
    n = D.shape[0]
    scale = np.sqrt(n * np.asarray(D.power(2).sum(axis=0)).ravel())
    return flip_columns(D, scale=scale, df=n - 1.0), flips(np.arange(n), N_FLIPS, seed=1)


def whole(data: Data, rows: sp.csr_matrix) -> np.ndarray:
    """From responses to the maximum over all pairs under every flip."""
    return maxima(*prepared(contrasts(data, rows)[0]))[0]


def dense(D: sp.csc_matrix, S: np.ndarray) -> tuple[np.ndarray, float]:
    """The same maxima of one tile of flips by dense products, and the CPU seconds of the products alone."""
    scale, best, seconds = np.sqrt(D.shape[0] * np.asarray(D.power(2).sum(axis=0)).ravel()), np.zeros(S.shape[1]), 0.0
    for start in range(0, D.shape[1], PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        V = (D[:, some].toarray() / scale[some]).astype(np.float32).T.copy()
        best = np.maximum(best, np.abs(V @ S).max(axis=0))
        seconds += cpu(lambda V=V: np.abs(V @ S).max(axis=0), 2)
    return best, seconds


def main() -> int:
    """Check, measure, assert."""
    header()
    floors, data = Floors(), responses(1024)
    rows = sp.csr_matrix(data.Y)
    D, first, second = contrasts(data, rows)
    print(
        f"  N = {len(data.item):,}: {D.shape[1]:,} pairs tested, {D.nnz:,} non-zero item contrasts, {N_FLIPS:,} flips"
    )
    sample = np.random.default_rng(0).choice(D.shape[1], 50, replace=False)
    a, b = (data.Y[:, f[sample]].toarray() for f in (first, second))
    expected = (a * b * WEIGHTS["AxB"][data.cell][:, None]).reshape(-1, 4, 50).sum(axis=1)
    assert np.abs(D[:, sample].toarray() - expected).max() < 1e-9, "the products differ"
    columns, how = prepared(D)
    S = signs(how, 0, 512).T.astype(np.float32)
    best, seconds = dense(D, S)
    found = maxima(columns, how)[0]
    assert np.abs(best - found[:512]).max() < 2e-6, "the maxima differ"
    floors.ratio(
        "G5",
        "all pairs, whole test: float32 matrix product of the kept pairs (512 flips scaled)",
        peer=lambda: seconds * N_FLIPS / 512,
        ours=lambda: cpu(lambda: whole(data, rows), 2),
        floor=7,
    )
    u, ours = unit(), cpu(lambda: whole(data, rows), 2)
    floors.add("G5", "all pairs, whole test in u", ours / u, floor=26, most=True, note=f"{ours:.2f} s, u {u:.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    floors.add("G5", "peak memory of this process, the peer's tiles included, in GB", peak, floor=1, most=True)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
