"""G6: REML of (1 | item) for all features, and of items x frames, against statsmodels MixedLM.

Equality is asserted first: with the REML criterion minimized directly (to 1e-6 of a standard error; a variance of 0 is
exactly 0) and with MixedLM where it converges inside. Run alone: `python benchmarks/bench_mixed.py`.
"""

from __future__ import annotations

import sys
import warnings

from common import Data, Floors, cpu, header, responses  # isort: skip  (sets one thread)

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from statsmodels.regression.mixed_linear_model import MixedLM

from neurosae.stats.crossed import crossed_reml
from neurosae.stats.mixed import reml

N_LOOP = 5  # features that MixedLM is timed on, scaled to those alive
EFFECTS = np.eye(7)[:3]


def unequal(data: Data) -> Data:
    """The same responses without every 37th row, so that items differ in size."""
    keep = np.delete(np.arange(len(data.item)), np.arange(0, len(data.item), 37))
    return Data(data.Y.tocsr()[keep].tocsc(), data.X[keep], data.item[keep], data.cell[keep])


def criterion(y: np.ndarray, data: Data, theta: float) -> tuple[float, np.ndarray, np.ndarray]:
    """-2 log REML (without constants), estimates and errors at a ratio of variances; V is inverted item by item."""
    n, k = data.X.shape
    count = np.bincount(data.item)
    table = np.column_stack([data.X, y])
    sums = np.stack([np.bincount(data.item, column) for column in table.T], axis=1)
    A = table.T @ table - (sums * (theta / (1 + count * theta))[:, None]).T @ sums
    inverse = np.linalg.inv(A[:k, :k])
    beta = inverse @ A[:k, k]
    s2 = (A[k, k] - A[:k, k] @ beta) / (n - k)
    value = (n - k) * np.log(s2) + np.log1p(count * theta).sum() + np.linalg.slogdet(A[:k, :k])[1]
    return value, beta, np.sqrt(s2 * np.diag(inverse))


def check_criterion(data: Data, what: str) -> None:
    """Forty features: no ratio is better, and estimates and errors are those at the best one."""
    fit = reml(data.Y, data.X, data.item, contrasts=EFFECTS)
    dense = np.flatnonzero(np.diff(data.Y.indptr)[fit.features] >= 12)
    for row in np.random.default_rng(0).choice(dense, 40, replace=False):
        y = data.Y[:, [fit.features[row]]].toarray().ravel()
        found = [
            minimize_scalar(lambda u, y=y: criterion(y, data, np.expm1(u))[0], bounds=b, method="bounded",
                            options={"xatol": 1e-9})
            for b in ((0, 1), (1, 4), (4, 9))
        ]  # fmt: skip
        theta = np.expm1(min(found, key=lambda one: one.fun).x)
        theta = 0.0 if criterion(y, data, 0.0)[0] <= criterion(y, data, theta)[0] + 1e-9 else theta
        _, beta, se = criterion(y, data, theta)
        assert np.abs((fit.estimate[row] - beta[:3]) / se[:3]).max() < 1e-6, f"{what}: estimates differ"
        assert np.abs(fit.se[row] / se[:3] - 1).max() < 1e-6, f"{what}: errors differ"
        assert (fit.var_item[row] == 0) == (theta == 0.0), f"{what}: a boundary differs"


def against_mixedlm(data: Data, floors: Floors, *, what: str, floor: float | None) -> None:
    """`MixedLM(y, X, groups=item).fit(reml=True)` of some features whose variance between items is not 0."""
    fit = reml(data.Y, data.X, data.item, contrasts=EFFECTS)
    inside = (np.diff(data.Y.indptr)[fit.features] >= 100) & (fit.var_item > 0.01 * fit.var_resid)
    chosen = np.flatnonzero(inside)[:N_LOOP]
    columns = data.Y[:, fit.features[chosen]].toarray().T

    def peer() -> list:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [MixedLM(y, data.X, groups=data.item).fit(reml=True) for y in columns]

    known = [(row, one) for row, one in zip(chosen, peer(), strict=True) if one.converged]
    assert known, "MixedLM converged nowhere"
    for row, one in known:
        assert np.abs((one.fe_params[:3] - fit.estimate[row]) / fit.se[row]).max() < 1e-3, f"{what}: estimates differ"
    floors.ratio(
        "G6",
        f"REML (1 | item), {what}: statsmodels MixedLM ({len(chosen)} features scaled)",
        peer=lambda: cpu(peer, 1) * len(fit.features) / len(chosen),
        ours=lambda: cpu(lambda: reml(data.Y, data.X, data.item, contrasts=EFFECTS), 5),
        floor=floor,
    )


def against_crossed(floors: Floors) -> None:
    """(1 | item) + (1 | frame) of differences, 24 items x 8 frames; MixedLM with both as variance components."""
    rng = np.random.default_rng(1)
    item, frame = np.repeat(np.arange(24), 8), np.tile(np.arange(8), 24)
    m, ones = 1000, np.ones((192, 1))
    Y = rng.standard_normal((192, m)) + 0.7 * rng.standard_normal((24, m))[item] + rng.standard_normal((8, m))[frame]
    fit = crossed_reml(Y, ones, item, frames=frame, contrasts=np.ones((1, 1)))
    chosen = np.flatnonzero((fit.var_item > 0.3 * fit.var_resid) & (fit.var_frame > 0.3 * fit.var_resid))[:3]
    parts = {"item": "0 + C(item)", "frame": "0 + C(frame)"}

    def peer() -> list:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = pd.DataFrame({"item": item, "frame": frame, "all": 0})
            return [
                MixedLM.from_formula("y ~ 1", table.assign(y=Y[:, j]), groups="all", vc_formula=parts).fit()
                for j in chosen
            ]

    for j, one in zip(chosen, peer(), strict=True):
        assert abs(one.fe_params.iloc[0] - fit.estimate[j, 0]) < 1e-3 * fit.se[j, 0], "crossed: estimates differ"
    floors.ratio(
        "G6",
        f"REML items x frames, 24 x 8, {m} features: statsmodels MixedLM ({len(chosen)} features scaled)",
        peer=lambda: cpu(peer, 1) * m / len(chosen),
        ours=lambda: cpu(lambda: crossed_reml(Y, ones, item, frames=frame, contrasts=np.ones((1, 1))), 3),
        floor=500,
    )


def main() -> int:
    """Check both kinds of design, then compare at N = 1024, where the floors hold, and at N = 4096."""
    header("statsmodels")
    floors = Floors()
    small = responses(40, 4000, seed=5)
    check_criterion(small, "balanced")
    check_criterion(unequal(small), "unequal items")
    for n_items in (256, 1024):
        data, first = responses(n_items, seed=0), n_items == 256
        print(f"  N = {4 * n_items}: {int((np.diff(data.Y.indptr) > 0).sum()):,} alive, {data.Y.nnz:,} non-zeros")
        against_mixedlm(data, floors, what=f"N = {4 * n_items}, balanced", floor=37_000 if first else None)
        if first:
            against_mixedlm(unequal(data), floors, what=f"N = {4 * n_items}, unequal items", floor=1700)
    against_crossed(floors)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
