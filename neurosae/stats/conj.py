"""Superadditive activations in a study: features whose activations interact, and whether a rescaling would undo it.

Never above grade 1: thresholds, normalization, competition and detectors of word pairs make activations superadditive
where nothing is integrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from neurosae.design.requirements import Parts
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.integration import IntegrationBlock
from neurosae.stats.asked import Asked, many
from neurosae.stats.battery import crossover
from neurosae.stats.contrast import cells_of
from neurosae.stats.family import Cell, Outcome, infer
from neurosae.stats.integration_rows import Conj
from neurosae.stats.units import AnnData


def superadditive_places(
    sites: Mapping[str, AnnData], block: IntegrationBlock, parts: Parts, *, settings: Inference, seed: int
) -> dict[tuple[str, str, int], Conj]:
    """Interaction of activations in the composed context at every place: max-T over features, places and sites."""
    effect: dict[str, dict[str, float]] = {f: {high: 1.0, low: -1.0} for f, low, high in (parts.first, parts.second)}
    if parts.context is not None:
        effect[parts.context[0]] = {parts.context[2]: 1.0}
    changed = {"statistic": "moderated_t", "correction": "maxT", "alternative": "two-sided", "nuisance": ()}
    settings = settings.model_copy(update=changed | {"intervals": "marginal"})
    asked = Asked("integration", {"conj": effect}, many(block.region), block.split)
    cells, _ = cells_of(sites, asked, settings)
    outcomes, _ = infer(cells, settings, seed=seed, split=block.split)
    n_family, out = sum(len(cell.kept) for cell in cells), {}
    for cell, outcome in zip(cells, outcomes, strict=True):
        place, factors = cell.place, list(design_of(sites[cell.place.site]).factors)
        table = _table(cell, outcome, parts, factors=factors, alpha=settings.alpha)
        best = int(np.argmax(np.abs(outcome.z)))
        made = Conj(table, float(outcome.value[best]), best, outcome.relabelling.n, cell.data.n, n_family)
        out[place.site, place.region, place.position] = made
    return out


def _table(cell: Cell, outcome: Outcome, parts: Parts, *, factors: Sequence[str], alpha: float) -> pd.DataFrame:
    """One row per tested feature."""
    data, kept = cell.data, cell.kept
    d = data.D[:, kept]
    mean, square = (np.asarray(x.mean(axis=0)).ravel() for x in (d, d.power(2)))
    sd = np.sqrt(np.maximum(square - mean**2, 0) * data.n / (data.n - 1))
    hit = np.flatnonzero((outcome.p_corr <= alpha) & (sd > 0))
    shape, crossed = np.full(len(kept), "", dtype=object), np.full(len(kept), np.nan)
    if len(hit):
        shape[hit], crossed[hit] = crossover(_activations(cell, parts, kept[hit], factors=factors))
    columns = {"feature": data.features[kept], "z": outcome.z, "p_corr": outcome.p_corr, "estimate": mean}
    sizes = {"d_z": mean / np.where(sd > 0, sd, np.nan), "removable": shape, "p_crossover": crossed}
    return pd.DataFrame(columns | sizes)


def _activations(cell: Cell, parts: Parts, columns: np.ndarray, *, factors: Sequence[str]) -> np.ndarray:
    """Activations of some features in the composed context, (4, n_items, m), averaged over further factors."""
    data = cell.data
    total, count = np.zeros((4, data.n, len(columns))), np.zeros((4, data.n, 1))
    (fa, la, ha), (fb, lb, hb) = parts.first, parts.second
    for number, levels in enumerate(data.cells):
        by = dict(zip(factors, levels, strict=True))
        inside = parts.context is None or by[parts.context[0]] == parts.context[2]
        if not inside or by[fa] not in (la, ha) or by[fb] not in (lb, hb):
            continue
        rows = np.flatnonzero(data.row_cell == number)
        at = (by[fa] == ha) + 2 * (by[fb] == hb)
        np.add.at(total[at], data.row_unit[rows], data.Y[rows][:, columns].toarray())
        np.add.at(count[at], data.row_unit[rows], 1.0)
    return total / np.maximum(count, 1)
