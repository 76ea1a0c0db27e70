"""G1, G3: t with nuisance for all features, and robust errors, against statsmodels and nilearn.

Equality is asserted first: t, HC3 and CR1 with statsmodels to 1e-9, t with nilearn. Run alone:
`python benchmarks/bench_glm.py`.
"""

from __future__ import annotations

import sys

from common import Data, Floors, cpu, header, installed, responses  # isort: skip  (sets one thread)

import numpy as np
import statsmodels.api as sm

from neurosae.stats.glm import ols, robust_errors

N_LOOP = 60  # features that the loop is timed on, scaled to those alive
EFFECTS = np.eye(7)[:3]  # A, B, A x B, beside the intercept and three covariates


def sample(data: Data, n: int) -> np.ndarray:
    """Some alive features with at least six non-zeros, and their dense columns."""
    alive = np.flatnonzero(np.diff(data.Y.indptr) >= 6)
    return np.sort(np.random.default_rng(1).choice(alive, min(n, len(alive)), replace=False))


def against_statsmodels(data: Data, floors: Floors, *, what: str, floor: float | None) -> None:
    """A loop over features: `OLS(y, X).fit().t_test` of the same three contrasts; then its robust errors."""
    chosen, n_alive = sample(data, N_LOOP), int((np.diff(data.Y.indptr) > 0).sum())
    columns = data.Y[:, chosen].toarray().T
    fit = ols(data.Y, data.X, EFFECTS)
    at = np.searchsorted(fit.features, chosen)
    known = [sm.OLS(y, data.X).fit() for y in columns]
    assert np.allclose(fit.t[at], [k.t_test(EFFECTS).tvalue for k in known], rtol=1e-9, atol=0), "t differ"
    for kind, options in (("HC3", {}), ("CR1", {"groups": data.item})):
        robust = [k.get_robustcov_results("cluster" if options else kind, **options).bse[:3] for k in known]
        se = robust_errors(data.Y, fit, kind=kind, items=data.item)[0]
        assert np.allclose(se[at], robust, rtol=1e-9, atol=0), f"{kind} differ"
    floors.ratio(
        "G1",
        f"t of 3 contrasts with nuisance, {what}: statsmodels OLS loop ({N_LOOP} features scaled)",
        peer=lambda: cpu(lambda: [sm.OLS(y, data.X).fit().t_test(EFFECTS) for y in columns]) * n_alive / len(columns),
        ours=lambda: cpu(lambda: ols(data.Y, data.X, EFFECTS), 20),
        floor=floor,
    )
    floors.ratio(
        "G1",
        f"HC3 errors, {what}: statsmodels HC3 loop ({N_LOOP} features scaled)",
        peer=lambda: cpu(lambda: [sm.OLS(y, data.X).fit(cov_type="HC3") for y in columns]) * n_alive / len(columns),
        ours=lambda: cpu(lambda: robust_errors(data.Y, ols(data.Y, data.X, EFFECTS[:1]), kind="HC3"), 10),
        floor=None,
    )


def against_nilearn(data: Data, floors: Floors) -> None:
    """`permuted_ols(n_perm=0)`: one call per contrast, the six other columns as confounds.

    Ours gets the sparse matrix of all features and finds the alive ones itself. The floor is on the hardest comparison
    of three contrasts: dead columns were removed for the peer, outside its clock. Ours takes three contrasts in one
    pass where the peer needs three calls, so one contrast against one call is reported too.
    """
    if not installed("nilearn"):
        return
    from nilearn.mass_univariate import permuted_ols

    fit = ols(data.Y, data.X, EFFECTS)
    dense = data.Y.toarray()

    def peer(columns: np.ndarray, effects: int) -> np.ndarray:
        ask = {"n_perm": 0, "model_intercept": False, "output_type": "dict"}
        with np.errstate(invalid="ignore", divide="ignore"):
            X = data.X
            found = [permuted_ols(X[:, [k]], columns, np.delete(X, k, 1), **ask)["t"] for k in range(effects)]
        return np.array(found).reshape(effects, -1).T

    alive = dense[:, fit.features]
    for what, columns, effects, at, floor in (
        ("t of 3 contrasts, all features (3 calls)", dense, 3, fit.features, None),
        ("t of 3 contrasts, dead columns removed (3 calls)", alive, 3, slice(None), 1800),
        ("t of 1 contrast, dead columns removed (1 call)", alive, 1, slice(None), None),
    ):
        assert np.allclose(peer(columns, effects)[at], fit.t[:, :effects], rtol=1e-5, atol=1e-7), "t differ"
        floors.ratio(
            "G1",
            f"nuisance, N = 4096: nilearn permuted_ols(n_perm=0), {what}",
            peer=lambda c=columns, e=effects: cpu(lambda: peer(c, e), 3),
            ours=lambda e=effects: cpu(lambda: ols(data.Y, data.X, EFFECTS[:e]), 40),
            floor=floor,
        )


def robust_cost(data: Data, floors: Floors) -> None:
    """HC3 and CR1 of one contrast, over the cost of the three contrasts' t."""
    fit = ols(data.Y, data.X, EFFECTS[:1])
    plain = cpu(lambda: ols(data.Y, data.X, EFFECTS), 20)
    robust = cpu(lambda: [robust_errors(data.Y, fit, kind=kind, items=data.item) for kind in ("HC3", "CR1")], 20)
    note = f"{robust * 1e3:.2f} ms / {plain * 1e3:.2f} ms"
    floors.add("G1", "HC3 + CR1 over OLS, N = 4096", value=robust / plain, floor=6, most=True, note=note)


def size_of_dictionary(small: Data, floors: Floors) -> None:
    """The same activity spread over a dictionary of a million features."""
    large = responses(1024, 1_000_000, seed=2)
    times = [cpu(lambda d=d: ols(d.Y, d.X, EFFECTS), 10) for d in (small, large)]
    note = f"{times[1] * 1e3:.2f} ms / {times[0] * 1e3:.2f} ms"
    floors.add(
        "G3", "OLS, N = 4096: time at 1 M over 24,576 features", times[1] / times[0], floor=3.6, most=True, note=note
    )


def main() -> int:
    """Compare at two sizes, assert the floors at the larger one, report denser data."""
    header("statsmodels")
    floors = Floors()
    for n_items, floor in ((256, None), (1024, 6000)):
        data = responses(n_items, seed=0)
        print(f"  N = {4 * n_items}: {int((np.diff(data.Y.indptr) > 0).sum()):,} alive, {data.Y.nnz:,} non-zeros")
        against_statsmodels(data, floors, what=f"N = {4 * n_items}", floor=floor)
    against_nilearn(data, floors)
    robust_cost(data, floors)
    size_of_dictionary(data, floors)
    for l0 in (256, 1024):
        against_statsmodels(responses(256, l0=l0, seed=3), floors, what=f"N = 1024, L0 = {l0}", floor=None)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
