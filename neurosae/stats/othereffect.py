r"""Features chosen by another effect on the same items: allowed only where neither effect says anything of the other.

Two things are verified. On the cells, c1'(X'X)^-1 c2 = 0: the weights share no evidence. In the responses, equal
covariance: if cells differ in variance or covariance, the two contrasts of an item still covary and the choice leaks
into the test. The contrasts are compared over items,

    R = mean_j corr_i(d1_ij, d2_ij),

under sign flips of whole items (all features together); an R that few of them reach refuses the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.design.orthogonal import inner_product
from neurosae.errors import DataError
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference, RegionChoice
from neurosae.stats.asked import Asked, named_effects
from neurosae.stats.contrast import contrast
from neurosae.stats.sets import FeatureSet, described, top_rows
from neurosae.stats.tails import flip_p
from neurosae.stats.units import AnnData, ItemData, item_data

REFUSED = 0.05
CAUTION = "the test needs equal variances and covariances of all cells, which the responses can refute but not prove"


def chosen_by_other_effect(
    sites: Mapping[str, AnnData],
    asked: Asked,
    inference: Inference,
    *,
    choice: RegionChoice,
    effect: Mapping[str, Any],
    seed: int,
) -> dict[str, dict[str, dict[str, FeatureSet]]]:
    """The top features of another effect at every site and region, on the items that are tested.

    Raises
    ------
    DataError
        If the effects are not orthogonal on the cells, or their contrasts covary over items.
    """
    written = named_effects(effect) if choice.orthogonal == "given" else {str(choice.orthogonal): effect}
    ((name, weights),) = written.items()
    settings = {"statistic": inference.statistic, "correction": "none", "min_informative": inference.min_informative}
    sets: dict[str, dict[str, dict[str, FeatureSet]]] = {}
    for site, adata in sites.items():
        sets[site] = {}
        for region in asked.regions:
            said = [
                _verified(adata, weights, tested, place=(region, asked.split, name, of))
                for of, tested in asked.effects.items()
            ]
            found = contrast(
                {site: adata}, {name: weights}, region=region, split=asked.split, inference=settings, seed=seed
            )
            rows = top_rows(found[(found["status"] == "ok").to_numpy() & (found["position"] == 0).to_numpy()], choice)
            if not len(rows):
                raise DataError(
                    f"no feature of site '{site}' answers to '{name}' at region '{region}'; choose otherwise."
                )
            columns = pd.Index(adata.var["feature"]).get_indexer(rows["feature"].to_numpy(dtype=int))  # pyright: ignore
            signs = np.sign(rows["value"].to_numpy(dtype=float)) if choice.direction == "both" else np.ones(len(rows))
            note = described(len(columns), signs, f"chosen by '{name}' on the same items: {'; '.join(said)}; {CAUTION}")
            sets[site][region] = {f"{name} top {choice.top}": FeatureSet(columns, signs, note)}
    return sets


def _verified(
    adata: AnnData, chooser: Mapping[str, Any], tested: Mapping[str, Any], *, place: tuple[str, str, str, str]
) -> str:
    """What was verified, in words, or a refusal."""
    region, split, by, of = place
    design = design_of(adata)
    one, two = (item_data(adata, design, e, region=region, split=split, flips_only=False) for e in (chooser, tested))
    counts = np.bincount(one.row_cell, minlength=len(one.cells))
    product = inner_product(one.effect, two.effect, dict(zip(one.cells, counts.tolist(), strict=True)))
    if abs(product) > 1e-12:
        raise DataError(
            f"'{by}' is not orthogonal to '{of}' on these cells, c1'(X'X)^-1 c2 = {product:.3g}: the choice "
            "would favour the tested effect. Choose features on localizer items, or by {'cross_fit': {'top': 50}}."
        )
    if (levels := two.exchange.levels) is not None and (levels.name == "cells" or levels.name in one.effect.factors):
        raise DataError(
            f"'{of}' is tested by exchanging the {'cells' if levels.name == 'cells' else f'levels of {levels.name}'} "
            f"inside items, which changes '{by}' too, so the choice would have to be repeated; choose features on "
            "localizer items."
        )
    if one.names != two.names:
        raise DataError(
            f"'{by}' and '{of}' use different items, so no covariance can be verified; use a localizer split."
        )
    r, p = covariance(one, two)
    if p <= REFUSED:
        raise DataError(
            f"the contrasts of '{by}' and '{of}' covary over items (mean correlation {r:.3g}, p = {p:.2g}): variances "
            "differ between cells and the choice would leak into the test. Choose features on localizer items."
        )
    return f"orthogonal to '{of}' on the cells, mean correlation of the contrasts over items {r:.3g} (p = {p:.2g})"


def covariance(one: ItemData, two: ItemData) -> tuple[float, float]:
    """Mean over features of the correlation of two contrasts over items, and its two-sided p.

    With z the centred contrasts of length 1 and c_i = sum_j z1_ij z2_ij, the sum of c is tested by flipping the signs
    of items: items that merely react strongly to both effects do not count as covariance. Features without variance
    in either contrast count for nothing.
    """
    columns = np.flatnonzero((np.diff(one.D.indptr) > 0) & (np.diff(two.D.indptr) > 0))
    products, used = np.zeros(one.n), 0
    for start in range(0, len(columns), 2048):
        some = columns[start : start + 2048]
        a, b = _standard(one, some), _standard(two, some)
        products += (a * b).sum(axis=1)
        used += int(((a != 0).any(axis=0) & (b != 0).any(axis=0)).sum())
    if not used:
        raise DataError("no feature has both contrasts, so no covariance can be verified; use a localizer split.")
    p, _ = flip_p(sp.csc_matrix(products[:, None]))
    return float(products.sum() / used), float(np.nan_to_num(p[0], nan=1.0))


def _standard(data: ItemData, columns: np.ndarray) -> np.ndarray:
    """Dense contrasts of some features, centred (inside groups) and of length 1; 0 where they do not vary."""
    D = data.D[:, columns].toarray()
    groups = np.zeros(data.n, dtype=int) if data.codes is None else data.codes
    for g in np.unique(groups):
        D[groups == g] -= D[groups == g].mean(axis=0)
    length = np.sqrt((D**2).sum(axis=0))
    return np.where(length > 1e-12, D / np.where(length > 1e-12, length, 1), 0.0)
