"""What the benchmarks share: simulated responses, honest clocks, and floors that a ratio must reach.

Import it before numpy: it gives every library one thread and unsets OPENBLAS_CORETYPE, which some environments export
and which halves the speed of dense peers. Rules: one process, the same arrays, equality asserted before a clock is
read, CPU time, minimum over repeats, compiled functions warm; floors are ratios in one process, never seconds.
"""

# ruff: noqa: E402  (the environment must be set before numpy is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.pop("OPENBLAS_CORETYPE", None)

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_info


class Data(NamedTuple):
    """Simulated responses of a 2 x 2 design within items; rows are item-major, the four cells of an item adjacent.

    Y : CSC float64 (N, F);  X : float64 (N, 7): A, B, A x B, intercept, two item covariates, one stimulus covariate
    item, cell : int (N,)
    """

    Y: sp.csc_matrix
    X: np.ndarray
    item: np.ndarray
    cell: np.ndarray


WEIGHTS = {  # of the four cells (A, B) = (0, 0), (0, 1), (1, 0), (1, 1)
    "A": np.array([-0.5, -0.5, 0.5, 0.5]),
    "B": np.array([-0.5, 0.5, -0.5, 0.5]),
    "AxB": np.array([1.0, -1.0, -1.0, 1.0]),
}


def responses(n_items: int = 256, n_features: int = 24_576, *, l0: float = 64, seed: int = 0) -> Data:
    """Sparse responses: densities log-uniform with sum `l0`, half of it in about 49 features shared by all stimuli.

    2 % of the features fire more often and more strongly where A is present; firing varies over items.
    """
    rng = np.random.default_rng(seed)
    n = 4 * n_items
    item, cell = np.repeat(np.arange(n_items), 4), np.tile(np.arange(4), n_items)
    a, b = np.where(cell >= 2, 0.5, -0.5), np.where(cell % 2 == 1, 0.5, -0.5)
    by_item = np.repeat(rng.standard_normal((n_items, 2)), 4, axis=0)
    X = np.column_stack([a, b, 2 * a * b, np.ones(n), by_item, rng.standard_normal(n)])
    density = np.exp(rng.uniform(np.log(1e-6 if n_features > 200_000 else 1e-4), np.log(0.5), n_features))
    density *= (l0 / 2) / density.sum()
    n_shared = min(n_features, round(l0 / 2 / 0.65))
    density[rng.choice(n_features, n_shared, replace=False)] = rng.uniform(0.3, 1.0, n_shared)
    effect = np.where(rng.random(n_features) < 0.02, rng.uniform(0.3, 1.0, n_features), 0.0)
    counts = rng.binomial(n, np.minimum(1, 2 * density))  # candidates at twice the density, thinned below
    cols = np.repeat(np.arange(n_features), counts)
    rows = np.concatenate([rng.choice(n, k, replace=False) for k in counts if k])
    tendency = np.exp(0.6 * rng.standard_normal(len(rows)) - 0.18 + effect[cols] * a[rows])
    share = density[cols] / np.minimum(1, 2 * density[cols])
    keep = rng.random(len(rows)) < np.clip(share * tendency, 0, 1)
    rows, cols = rows[keep], cols[keep]
    value = rng.gamma(2.0, 1.0, len(rows)) * np.exp(0.3 * effect[cols] * a[rows])
    Y = sp.csc_matrix((value, (rows.astype(np.int32), cols.astype(np.int32))), shape=(n, n_features))
    Y.sort_indices()
    return Data(Y, X, item, cell)


def item_contrasts(data: Data, effect: str = "A") -> sp.csc_matrix:
    """Item contrasts of the alive columns: CSC (n_items, m) without stored zeros."""
    n = len(data.item)
    C = sp.csr_matrix((WEIGHTS[effect][data.cell], (data.item, np.arange(n))), shape=(int(data.item[-1]) + 1, n))
    D = sp.csc_matrix(C @ data.Y)
    D.eliminate_zeros()
    D.sort_indices()
    return D[:, np.diff(D.indptr) > 0].tocsc()


def cpu(task: Callable[[], Any], repeats: int = 3) -> float:
    """Smallest CPU seconds of the process over some repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        task()
        seconds.append(time.process_time() - start)
    return min(seconds)


def unit() -> float:
    """u: CPU seconds of a 2048^3 float32 matrix product, in which absolute goals are stated."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)
    return cpu(lambda: a @ a, 5)


def header(*packages: str) -> None:
    """Print what runs: versions, processor, BLAS and its architecture, threads, load."""
    blas = [f"{i.get('internal_api')} {i.get('architecture', '')} {i['num_threads']} thread" for i in threadpool_info()]
    names = ("numpy", "scipy", "numba", *packages)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    model = next((line for line in cpuinfo() if line.startswith("model name")), "").partition(": ")[2]
    print(f"{versions}; {model or platform.machine()}; {'; '.join(blas)}; load {os.getloadavg()[0]:.1f}")


def cpuinfo() -> list[str]:
    """Lines of /proc/cpuinfo; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def installed(name: str) -> bool:
    """Whether a peer is there; the group `bench` installs all of them."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(f"  {name} is not installed, so it is not compared: pip install --group bench")
        return False
    return True


class Floors:
    """The rows of one benchmark: what was compared, what was reached, and whether it is at least the floor."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def ratio(
        self, goal: str, what: str, *, peer: Callable[[], float], ours: Callable[[], float], floor: float | None
    ) -> None:
        """CPU seconds of the peer over ours; below the floor both are measured once more."""
        theirs, own = peer(), ours()
        if floor is not None and theirs / own < floor:
            print(f"  {what}: {theirs:.4g} s / {own:.4g} s is below {floor:g}; once more")
            theirs, own = peer(), ours()
        self.add(goal, what, value=theirs / own, floor=floor, note=f"{theirs:.3g} s / {own * 1e3:.3g} ms")

    def add(
        self, goal: str, what: str, value: float, *, floor: float | None, most: bool = False, note: str = ""
    ) -> None:
        """A number and its floor (`most`: its ceiling); no floor: reported only."""
        ok = floor is None or (value <= floor if most else value >= floor)
        bound = "reported" if floor is None else f"{'at most' if most else 'floor'} {floor:g}"
        print(f"  {goal} {what}: {value:.3g} ({bound}) {note}{'' if ok else '  FAILED'}", flush=True)
        row = {"goal": goal, "what": what, "value": float(value), "bound": bound, "ok": bool(ok), "note": note}
        self.rows.append(row)

    def finish(self) -> int:
        """Hand the rows to `run.py` where it asked for them; exit status."""
        if path := os.environ.get("BENCH_ROWS"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in self.rows)
        return 0 if all(row["ok"] for row in self.rows) else 1
