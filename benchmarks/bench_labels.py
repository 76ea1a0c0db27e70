"""G2: max-T where labels move: groups of items, levels inside items, F, Welch's t; rank sums on sparse columns.

Peers are matrix products of the same labels with the same dense columns, scipy's permutation_test, and for rank sums
scipy's mannwhitneyu and scanpy. Equality is asserted first. Run alone: `python benchmarks/bench_labels.py`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from common import Floors, cpu, header, installed, responses  # isort: skip  (sets one thread)

import numba
import numpy as np
import scipy.sparse as sp
from scipy import stats

from neurosae.spec.design import Design
from neurosae.stats.flips import Columns, maxima
from neurosae.stats.ranks import ranks_from_zero
from neurosae.stats.relabel import Relabelling, labels, levels, permutations, within
from neurosae.stats.simulate import simulate
from neurosae.stats.statistics import STATISTICS
from neurosae.stats.units import ItemData, item_data

N_LABELS, SAMPLE, N_FEATURES = 10_000, 128, 24_576
DOSES = ("low", "mid", "high")


def item_values(sizes: tuple[int, ...] | None) -> tuple[ItemData, np.ndarray]:
    """Doses in groups of items of these sizes, or three doses within each item; and the features that vary enough."""
    between = sizes is not None
    n_items = 256 if sizes is None else sum(sizes)
    names, used = [f"w{i}" for i in range(n_items)], DOSES[: len(sizes)] if sizes is not None else DOSES
    items = {x: {"w": {d: f"{x}{d}" for d in used}} for x in names}
    if sizes is not None:
        group = np.repeat(used, sizes)
        items = {x: {"dose": str(d), "w": x} for x, d in zip(names, group, strict=True)}
    factors = {"dose": {"levels": list(used), "varies": "between" if between else "within"}}
    parts = {"factors": factors, "frames": {"f": f"It {'{w}' if between else '{w:dose}'} was"}, "items": items}
    design = Design.model_validate({"schema": "neurosae/design/1", "name": "dose", **parts})
    fake = simulate(design, n_features=N_FEATURES, density=(1e-4, 0.02), seed=2)
    effect = {"dose": "all"} if len(used) > 2 else {"dose": {"mid": 1, "low": -1}}
    data = item_data(fake, design, effect, region=str(fake.obs["region"].iloc[0]), flips_only=False)
    return data, np.flatnonzero(data.informative >= 6)


def one_hot(codes: np.ndarray, k: int) -> np.ndarray:
    """Rows of labels (count, n) as (count, k, n)."""
    return (codes[:, None, :] == np.arange(k)[None, :, None]).astype(float)


def of_groups(Y: np.ndarray, n_groups: int, *, welch: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Largest |t| or F of every labelling of items (count, n), by matrix products with dense columns."""
    n, square = len(Y), (Y**2).sum(axis=0)

    def largest(codes: np.ndarray) -> np.ndarray:
        M = one_hot(codes, n_groups)
        counts = M[0].sum(axis=1)
        sums = (M.reshape(-1, n) @ Y).reshape(len(codes), n_groups, -1)
        means = sums / counts[:, None]
        if welch:
            squares = (M.reshape(-1, n) @ Y**2).reshape(len(codes), n_groups, -1)
            variance = (squares - sums * means) / (counts[:, None] - 1)
            error = (variance / counts[:, None]).sum(axis=1)
            apart = means[:, 1] - means[:, 0]
            return np.abs(np.where(error > 1e-12, apart / np.sqrt(np.maximum(error, 1e-12)), 0)).max(axis=1)
        inside = square - (sums * means).sum(axis=1)
        across = (sums * means).sum(axis=1) - Y.sum(axis=0) ** 2 / n
        F = across / (n_groups - 1) / (inside / (n - n_groups))
        return (np.sqrt(F) if n_groups == 2 else F).max(axis=1)

    return largest


def of_levels(X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Largest F (1, n) of levels inside items; X (n, K, m), labels (count, n K)."""
    n, K, m = X.shape
    flat = X.reshape(n * K, m)
    inside = ((X - X.mean(axis=1, keepdims=True)) ** 2).sum(axis=(0, 1))
    grand = flat.sum(axis=0) ** 2 / (n * K)

    def largest(codes: np.ndarray) -> np.ndarray:
        sums = (one_hot(codes, K).reshape(-1, n * K) @ flat).reshape(len(codes), K, m)
        across = (sums**2).sum(axis=1) / n - grand
        return (across / (K - 1) / ((inside - across) / ((n - 1) * (K - 1)))).max(axis=1)

    return largest


def row(
    floors: Floors, what: str, *, columns: Columns, how: Relabelling, codes: np.ndarray,
    largest: Callable[[np.ndarray], np.ndarray], floor: float,
) -> None:  # fmt: skip
    """Maxima of a tile agree, then the time of 10,000 relabellings."""
    u = maxima(columns, how)[0]
    found = np.asarray(columns.how.to_value(u[:SAMPLE].astype(float), columns.df))
    known = largest(codes)
    assert np.allclose(found, known, rtol=2e-5), f"{what}: the maxima differ"
    floors.ratio(
        "G2",
        f"max-T, {what}: float64 matrix product ({SAMPLE} relabellings scaled)",
        peer=lambda: cpu(lambda: largest(codes), 2) * N_LABELS / SAMPLE,
        ours=lambda: cpu(lambda: maxima(columns, how), 2),
        floor=floor,
    )


def groups(floors: Floors, sizes: tuple[int, ...], *, what: str, floor: float) -> None:
    """Pooled t, Welch's t or F of groups of items."""
    data, kept = item_values(sizes)
    ready = STATISTICS["F" if len(sizes) > 2 else "t"](data, kept)
    assert data.codes is not None
    how = permutations(data.numbers, data.codes, N_LABELS, seed=1)
    Y = data.D[:, kept].toarray()
    largest = of_groups(Y, len(sizes), welch=ready.name == "welch_t")
    shown = f"{what}, {len(kept):,} features, {data.D[:, kept].nnz:,} non-zeros"
    codes = labels(how, 0, SAMPLE)
    row(floors, shown, columns=ready.columns, how=how, codes=codes, largest=largest, floor=floor)
    if ready.name == "t":
        against_scipy(floors, Y, data.codes)


def against_scipy(floors: Floors, Y: np.ndarray, codes: np.ndarray) -> None:
    """`permutation_test` of ten features, each by itself; its p is compared with the tail of our own labels."""
    wanted, n = Y[:, np.argsort(-(Y != 0).sum(axis=0))[:10]], 500
    rng = np.random.default_rng(0)

    def peer() -> np.ndarray:
        x, y = wanted[codes == 1], wanted[codes == 0]
        made = stats.permutation_test(
            (x, y), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), n_resamples=n, axis=0, rng=rng,
            vectorized=True,
        )  # fmt: skip
        return made.statistic

    known = wanted[codes == 1].mean(axis=0) - wanted[codes == 0].mean(axis=0)
    assert np.allclose(peer(), known), "the observed differences differ"
    theirs = cpu(peer, 2) / n / 10 * N_LABELS * Y.shape[1]
    data, kept = item_values((512, 512))
    columns = STATISTICS["mean"](data, kept).columns
    how = permutations(data.numbers, codes, N_LABELS, seed=1)
    floors.ratio(
        "G2",
        f"relabelled mean difference of {Y.shape[1]:,} features: scipy permutation_test (10 features, {n} scaled)",
        peer=lambda: theirs,
        ours=lambda: cpu(lambda: maxima(columns, how), 2),
        floor=None,
    )


def inside(floors: Floors, *, floor: float) -> None:
    """F of three levels that change places inside 256 items."""
    data, kept = item_values(None)
    ready = STATISTICS["F"](data, kept)
    how = within(data.numbers, 3, N_LABELS, part=(0, True), seed=1)
    assert data.levels is not None
    X = data.levels[:, kept].toarray().reshape(data.n, 3, len(kept))
    codes = levels(how, 0, SAMPLE).reshape(data.n * 3, SAMPLE).T
    what = f"F of 3 levels within 256 items, {len(kept):,} features, {data.levels[:, kept].nnz:,} non-zeros"
    row(floors, what, columns=ready.columns, how=how, codes=codes, largest=of_levels(X), floor=floor)


def rank_sum(Y: sp.csc_matrix, group: np.ndarray) -> np.ndarray:
    """Deviates of the rank sum of every column, ties corrected: what `signed_rank` between items standardizes."""
    n, n1 = len(group), int(group.sum())
    R = ranks_from_zero(Y)
    total, square = np.asarray(R.sum(axis=0)).ravel(), np.asarray(R.power(2).sum(axis=0)).ravel()
    inside = np.asarray(group.astype(float) @ R).ravel()
    variance = (n * square - total**2) / (n * (n - 1)) * n1 * (n - n1) / n
    return (inside - n1 * total / n) / np.sqrt(variance)


def rank_sums(floors: Floors) -> None:
    """All alive features of 1,024 stimuli: scipy column by column, scanpy all at once."""
    data = responses(256)
    Y = data.Y[:, np.diff(data.Y.indptr) > 5].tocsc()
    group = data.cell >= 2
    chosen = np.random.default_rng(0).choice(Y.shape[1], 80, replace=False)
    columns = Y[:, chosen].toarray().T

    def peer() -> np.ndarray:
        ask = {"use_continuity": False, "method": "asymptotic"}
        return np.array([stats.mannwhitneyu(y[group], y[~group], **ask).pvalue for y in columns])

    ours = 2 * stats.norm.sf(np.abs(rank_sum(Y, group)))
    assert np.abs(ours[chosen] - peer()).max() < 1e-12, "p of the rank sums differ"
    floors.ratio(
        "G1",
        f"rank sums of {Y.shape[1]:,} features, N = 1024: scipy mannwhitneyu (80 features scaled)",
        peer=lambda: cpu(peer, 2) / len(chosen) * Y.shape[1],
        ours=lambda: cpu(lambda: rank_sum(Y, group), 5),
        floor=50,
    )
    if installed("scanpy"):
        against_scanpy(floors, Y, group)


def against_scanpy(floors: Floors, Y: sp.csc_matrix, group: np.ndarray) -> None:
    """`rank_genes_groups` with the tie correction, one group against the other."""
    import anndata
    import pandas as pd
    import scanpy

    obs = pd.DataFrame({"group": pd.Categorical(np.where(group, "b", "a"))}, index=[str(i) for i in range(len(group))])
    adata = anndata.AnnData(sp.csr_matrix(Y), obs=obs)
    ask = {"groupby": "group", "groups": ["b"], "reference": "a", "method": "wilcoxon", "tie_correct": True}

    def peer() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scanpy.tl.rank_genes_groups(adata, **ask)

    peer()
    made = adata.uns["rank_genes_groups"]
    order = np.array([int(name) for name in made["names"]["b"]])
    assert np.abs(rank_sum(Y, group)[order] - made["scores"]["b"]).max() < 1e-3, (
        "z of the rank sums differ"
    )  # float32 there
    floors.ratio(
        "G1",
        f"rank sums of {Y.shape[1]:,} features, N = 1024: scanpy rank_genes_groups",
        peer=lambda: cpu(peer, 2),
        ours=lambda: cpu(lambda: rank_sum(Y, group), 5),
        floor=None,
    )


def main() -> int:
    """All rows; exit status 1 below a floor."""
    header("scanpy") if installed("scanpy") else header()
    numba.set_num_threads(1)
    floors = Floors()
    rank_sums(floors)
    groups(floors, (512, 512), what="t of two groups of 512 items", floor=3)
    groups(floors, (384, 640), what="Welch's t of 384 and 640 items", floor=6)
    groups(floors, (341, 341, 342), what="F of three groups of items", floor=4)
    inside(floors, floor=4)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
