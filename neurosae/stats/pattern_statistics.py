r"""The statistics of a whole pattern at one place: a value, and the same under every relabelling.

| name | what | effect size |
|---|---|---|
| `contrast_length` | D_c, cross-validated length of the contrast (`lengths`) | D_c |
| `cvmanova` | the same in units of the error covariance; folds of items are flipped (`cvmanova`) | D |
| `manova` | Pillai's trace of few principal components (`manova`) | Pillai's V |
| `decoding`, `ccgp` | held-out AUC, in all contexts or in the one left out (`decoding`) | AUC |
| `parallelism` | cross-validated cosine of the effect's directions in two contexts | cosine |
| `permanova` | F of the squared distances, its comparison of dispersions beside it (`permanova`) | R2 |
| `demixed` | share of the variance between cells; described, not tested | share |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from zlib import crc32

import numpy as np

from neurosae.errors import DataError
from neurosae.stats import coded, cvmanova, decoding, manova
from neurosae.stats.distances import distances_explained, variance_share
from neurosae.stats.lengths import effect_length, relabellings
from neurosae.stats.relabel import labels, signs
from neurosae.stats.spots import Found, Spot, over_tiles, reached_share, restricted, unit_folds
from neurosae.stats.units import item_data

N_GEOMETRY = 1000  # shuffled geometries, the observed one included
UNDEFINED = "undefined: the cross-validated length of the effect is not positive in every context"


def contrast_length(spot: Spot) -> Found:
    """D_c of any effect."""
    inside = restricted(spot.data, spot.columns)
    found = effect_length(inside, spot.relabelling, spot.place, min_informative=1)
    if found is None:
        raise DataError("no feature has a contrast that is not zero")
    return Found(found.value, found.null, found.value, "D_c", n_features=found.n_features)


def decoded(spot: Spot) -> Found:
    """AUC on held-out items, all contexts in training."""
    rows = coded.coded_rows(spot.data, spot.columns)
    K, splits = rows.gram, list(decoding.decoding_splits(rows, unit_folds(spot)))
    null = over_tiles(spot, lambda y: decoding.auc(K, rows, y, splits=splits), rows)
    return Found(float(null[0]), null, float(null[0]), "AUC")


def _across(spot: Spot) -> tuple[str, int]:
    design, written = spot.around[1], spot.around[2]
    name = spot.ask.across or next((n for n in design.factors if n not in written), None)
    if name is None or name not in design.factors or name in written:
        raise DataError(f"across names no other factor of {', '.join(design.factors)}")
    return name, list(design.factors).index(name)


def generalized(spot: Spot) -> Found:
    """CCGP: AUC in a context that training left out, against swaps and against shuffled geometries."""
    name, axis = _across(spot)
    rows = coded.coded_rows(spot.data, spot.columns, across=axis)
    if len(rows.weights) < 2:
        raise DataError(f"only one level of {name} has items; generalization needs two")
    folds, K = unit_folds(spot), rows.gram
    splits = list(decoding.generalization_splits(rows, folds))
    null = over_tiles(spot, lambda y: decoding.auc(K, rows, y, splits=splits), rows)
    inside = decoding.auc(K, rows, rows.label[None], splits=list(decoding.decoding_splits(rows, folds)))[0]
    chance = _shuffled(spot, rows, lambda G: decoding.auc(G, rows, rows.label[None], splits=splits)[0])
    extras = {"x_p_geometry": reached_share(chance), "x_decoding": float(inside), "x_n_geometry": len(chance)}
    extras |= {"x_parallelism": decoding.parallelism(K, rows), **_interaction(spot, name)}
    return Found(float(null[0]), null, float(null[0]), "AUC", extras, (f"trained at one level of {name}",))


def parallel(spot: Spot) -> Found:
    """Parallelism: p belongs to the cross-validated inner product of the two directions."""
    name, axis = _across(spot)
    rows = coded.coded_rows(spot.data, spot.columns, across=axis)
    if len(rows.weights) < 2:
        raise DataError(f"only one level of {name} has items; parallelism needs two")
    K = rows.gram
    value = decoding.parallelism(K, rows)
    null = over_tiles(spot, lambda y: decoding.alignment(K, rows, y), rows)
    if np.isnan(value):
        return Found(value, None, value, "cosine", {"x_delta": float(null[0])}, (UNDEFINED,))
    chance = _shuffled(spot, rows, lambda G: float(decoding.alignment(G, rows, rows.label[None])[0]))
    extras = {"x_delta": float(null[0]), "x_p_geometry": reached_share(chance), "x_n_geometry": len(chance)}
    return Found(value, null, value, "cosine", extras, ("p is that of the inner product of the directions",))


def _shuffled(spot: Spot, rows: coded.Coded, statistic: Callable[[np.ndarray], float]) -> np.ndarray:
    word = "/".join(map(str, (*spot.key, spot.data.effect.words)))
    rng = np.random.default_rng([spot.seed, crc32(word.encode())])  # other places move no number
    n = min(spot.n, N_GEOMETRY)
    return np.array([statistic(G) for G in decoding.shuffled_geometries(rows, n, rng=rng)])


def _interaction(spot: Spot, across: str) -> dict[str, float]:
    """D_c of the effect x the factor it is compared across, for the reading of a generalization."""
    adata, design, written = spot.around
    levels = design.factors[across].levels
    if len(levels) != 2:
        return {}
    effect = {**written, across: {levels[1]: 1, levels[0]: -1}}
    _, region, position = spot.key
    both = item_data(adata, design, effect, region=region, position=position, split=spot.ask.split)
    ((relabelling, place),) = relabellings([both], spot.n, seed=spot.seed, split=spot.ask.split)
    length = effect_length(restricted(both, spot.columns), relabelling, place, min_informative=6)
    return {} if length is None else {"x_interaction": length.value, "x_p_interaction": length.p}


def cv_manova(spot: Spot) -> Found:
    """Cross-validated MANOVA; whole folds are flipped."""
    data, n_folds = spot.data, spot.ask.folds
    folds = unit_folds(spot, by_group=True)
    if data.codes is None:
        rows = coded.cell_rows(data, spot.columns)
        X, unit, cell, weights = rows.X, rows.unit, rows.cell, data.weights
        used, cell = np.unique(cell, return_inverse=True)
        weights, block = weights[used], unit
        n_groups = len({tuple(np.unique(cell[unit == u])) for u in range(data.n)})
    else:
        assert data.groups is not None
        X, unit, cell, weights, block, n_groups = (
            data.D[:, spot.columns].toarray(), np.arange(data.n), data.codes, data.groups, None, 1
        )  # fmt: skip

    def made(columns: np.ndarray) -> list[cvmanova.Fold]:
        inside = [folds[unit] == f for f in range(n_folds)]
        parts = [None if block is None else block[i] for i in inside]
        return [
            cvmanova.fold_of(X[i][:, columns], cell[i], n_cells=len(weights), block=b, n_groups=n_groups)
            for i, b in zip(inside, parts, strict=True)
        ]

    every = made(np.arange(X.shape[1]))
    diagonal = np.stack([np.diag(fold.error) for fold in every])
    solid = np.flatnonzero((diagonal.sum(axis=0) - diagonal > 1e-9 * diagonal.sum(axis=0)).all(axis=0))
    if not len(solid):
        raise DataError("no feature varies between items in all folds; use fewer folds")
    null = cvmanova.cv_manova(made(solid), weights, shrinkage=spot.ask.shrinkage, signs=cvmanova.fold_signs(n_folds))
    notes = [f"{n_folds} folds of items, whose signs are flipped"]
    if left := X.shape[1] - len(solid):
        notes.append(f"{left} features without error in some folds are left out")
    return Found(
        float(null[0]), null, float(null[0]), "D", {}, tuple(notes), p_min=2.0 ** (1 - n_folds), n_features=len(solid)
    )


def few_scores(spot: Spot) -> Found:
    """MANOVA of principal components; Pillai's trace under relabelling, statsmodels' table beside it."""
    data = spot.data
    n_scores = data.n // 5
    if n_scores < 1:
        raise DataError(f"{data.n} units allow no score; MANOVA takes one score per 5 units")
    rows = _score_rows(spot)
    V = manova.components(rows / _scale(rows), min(n_scores, len(spot.columns), len(rows) - 1))
    scores = data.D[:, spot.columns].toarray() / _scale(rows) @ V
    if data.codes is None:
        flips = [signs(spot.relabelling, *tile)[:, spot.place] for tile in spot.tiles]
        null = np.concatenate([manova.pillai_of_flips(scores, s) for s in flips])
        beside = manova.parametric_manova(scores, np.ones((data.n, 1)), np.ones((1, 1)))
    else:
        assert data.groups is not None
        moved = [labels(spot.relabelling, *tile)[:, spot.place] for tile in spot.tiles]
        null = np.concatenate([manova.pillai_of_groups(scores, codes, data.groups) for codes in moved])
        X = (data.codes[:, None] == np.arange(len(data.groups))).astype(float)
        beside = manova.parametric_manova(scores, X, data.groups[None])
    extras = {"x_wilks": beside.wilks, "x_hotelling": beside.hotelling, "x_roy": beside.roy}
    extras |= {"x_p_parametric": beside.p, "x_n_scores": V.shape[1]}
    source = "localizer items" if spot.ask.scores == "localizer" else "all rows, without their labels"
    note = f"{V.shape[1]} principal components of {source}"
    return Found(float(null[0]), null, float(null[0]), "pillai", extras, (note,))


def _scale(rows: np.ndarray) -> np.ndarray:
    variance = rows.var(axis=0)
    return np.sqrt(variance + np.median(variance[variance > 0])) if (variance > 0).any() else np.ones(len(variance))


def _score_rows(spot: Spot) -> np.ndarray:
    """Rows of which the components are made; none of them knows its label."""
    if spot.ask.scores == "blind":
        return coded.cell_rows(spot.data, spot.columns).X
    from neurosae.extraction.responses import item_cells

    adata, design, _ = spot.around
    _, region, position = spot.key
    return item_cells(adata, design, region=region, position=position, split="localizer").X[:, spot.columns].toarray()


PATTERN_STATISTICS: Mapping[str, Callable[[Spot], Found]] = {
    "contrast_length": contrast_length,
    "cvmanova": cv_manova,
    "manova": few_scores,
    "decoding": decoded,
    "ccgp": generalized,
    "parallelism": parallel,
    "permanova": distances_explained,
    "demixed": variance_share,
}
"""Name -> the statistic of a spot."""
