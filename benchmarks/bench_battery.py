"""G13: everything that is computed for one site, timed end to end on one core, in machine units.

N = 1,024 stimuli (256 items), 24,576 features, 3 contrasts: least squares, HC3 and CR1 errors, 10,000-flip max-T, exact
or saddlepoint p, mixed model by REML; euclidean, correlation and crossnobis RDMs of 256 conditions; 1,000 bootstraps of
8 RDMs and 6 models with noise ceilings and 10,000 permutations over 192 maps at 200 conditions. Data are in memory and
compiled functions warm. The parts are compared with peers in the other files.
Run alone: `python benchmarks/bench_battery.py`.
"""

from __future__ import annotations

import sys

from common import Data, Floors, cpu, header, item_contrasts, responses, unit  # isort: skip  (sets one thread)

import numba
import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.stats.flips import flip_columns, maxima
from neurosae.stats.glm import ols, robust_errors
from neurosae.stats.mixed import reml
from neurosae.stats.rdm import Patterns, distances
from neurosae.stats.rdm_noise import gram
from neurosae.stats.relabel import flips
from neurosae.stats.relabel_conditions import permute_conditions
from neurosae.stats.resample import bootstrap_rdms
from neurosae.stats.tails import flip_p

CONTRASTS = np.eye(7)[:3]
N_CONDITIONS = 200


def max_t(D: sp.csc_matrix) -> np.ndarray:
    """Maxima of |t| over 10,000 flips."""
    scale = np.sqrt(D.shape[0] * np.asarray(D.power(2).sum(axis=0)).ravel())
    columns = flip_columns(D, scale=scale, df=D.shape[0] - 1.0)
    return maxima(columns, flips(np.arange(D.shape[0]), 10_000, seed=1))[0]


def three_rdms(data: Data) -> list[np.ndarray]:
    """RDMs of 256 conditions in 4 folds, the columns that are alive."""
    X = data.Y[:, np.diff(data.Y.indptr) > 0].tocsr()
    names = tuple((str(k),) for k in range(data.item[-1] + 1))
    found = Patterns(tuple("abcd"), names, X, data.cell, data.item, pd.DataFrame(index=range(X.shape[0])), 0, 0, 0)
    G = gram(X)
    return [distances(G, found, kind) for kind in ("euclidean", "correlation", "crossnobis")]


def parts(data: Data) -> dict:
    """Name -> what is timed."""
    D = [item_contrasts(data, effect) for effect in ("A", "B", "AxB")]
    fit = ols(data.Y, data.X, CONTRASTS)
    rng = np.random.default_rng(0)
    pairs = N_CONDITIONS * (N_CONDITIONS - 1) // 2
    rdms, models, maps, model = (rng.random((k, pairs)) for k in (8, 6, 192, 1))
    W = rng.multinomial(N_CONDITIONS, np.full(N_CONDITIONS, 1 / N_CONDITIONS), size=1000)
    R = rng.multinomial(8, np.full(8, 1 / 8), size=1000)
    return {
        "item contrasts": lambda: [item_contrasts(data, effect) for effect in ("A", "B", "AxB")],
        "least squares, 3 contrasts": lambda: ols(data.Y, data.X, CONTRASTS),
        "HC3 and CR1 errors": lambda: [
            robust_errors(data.Y, fit, kind="HC3"),
            robust_errors(data.Y, fit, kind="CR1", items=data.item),
        ],
        "max-T, 3 x 10,000 flips": lambda: [max_t(d) for d in D],
        "exact or saddlepoint p, 3 contrasts": lambda: [flip_p(d) for d in D],
        "mixed model (1 | item)": lambda: reml(data.Y, data.X, data.item, contrasts=CONTRASTS),
        "3 RDMs of 256 conditions": lambda: three_rdms(data),
        "1,000 RDM bootstraps": lambda: bootstrap_rdms(rdms, models, conditions=W, rdms=R, dtype=np.float32),
        "10,000 permutations x 192 maps": lambda: permute_conditions(maps, model[0], seed=1),
    }


def main() -> int:
    """Every part, and the sum in units."""
    header("rsatoolbox")
    numba.set_num_threads(1)
    floors, u = Floors(), unit()
    data, total = responses(256), 0.0
    for name, task in parts(data).items():
        task()
        seconds = cpu(task)
        total += seconds
        last = seconds
        print(f"  {name:38s} {seconds * 1e3:8.1f} ms")
    print(f"  u = {u * 1e3:.1f} ms, whole battery {total:.2f} s")
    floors.add("G13", "the whole battery, u", value=total / u, floor=22, most=True, note=f"{total:.2f} s")
    rest = total - last
    floors.add("G13", "without the RSA permutations, u", value=rest / u, floor=None, note=f"{rest:.2f} s")
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
