"""One family of tests: all features of several effects, sites, regions and positions under the same relabellings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.spec.blocks import Inference
from neurosae.spec.results import counted_p, directed
from neurosae.stats.flips import Columns, maxima, step_counts, to_t, to_z
from neurosae.stats.multiplicity import CORRECTIONS, fdr_by, step_down
from neurosae.stats.relabel import Relabelling, flips, n_distinct, permutations
from neurosae.stats.statistics import STATISTICS, Ready
from neurosae.stats.tails import flip_p
from neurosae.stats.units import ItemData

MOST = 2_000_000  # relabellings beyond which counting p per feature is refused


class Place(NamedTuple):
    """Key of a group of rows: what was asked, where, on which items; `set` names a chosen set of features."""

    test: str
    effect: str
    site: str
    region: str
    position: int
    split: str
    set: str | None


class Cell(NamedTuple):
    """One effect at one site, region and position: its item data and the columns that are tested there."""

    place: Place
    data: ItemData
    kept: np.ndarray


class Outcome(NamedTuple):
    """Numbers of the tested features of one cell, arrays of shape (n_kept,), and the relabelling they come from."""

    ready: Ready
    value: np.ndarray
    z: np.ndarray
    p_unc: np.ndarray
    p_method: np.ndarray
    p_corr: np.ndarray
    p_by: np.ndarray
    relabelling: Relabelling


def infer(
    cells: Sequence[Cell], inference: Inference, *, seed: int, split: str
) -> tuple[list[Outcome], np.ndarray | None]:
    """Test all cells as one family.

    Returns
    -------
    outcomes : one per cell
    null_max : float32 (n_permutations,), maximum of the family per relabelling on the z scale; None where the
        correction does not use it

    Notes
    -----
    Relabelling b of one effect is joined with relabelling b of the others. Sign flips are the same for all effects;
    labels of different factors are permuted by the same keys, each inside its own strata.
    """
    if not cells:
        return [], None
    statistic = STATISTICS[inference.statistic]
    ready = [statistic(cell.data, cell.kept) for cell in cells]
    relabellings, columns = _relabellings(cells, ready, inference, seed=seed, split=split)
    two_sided = inference.alternative == "two-sided"
    from_max = CORRECTIONS[inference.correction] is None
    if inference.alternative == "less":
        columns = [negated(c) for c in columns]
    tops, counted = [], []
    for made, relabelling in zip(columns, relabellings, strict=True):
        if from_max or relabelling.kind == "permute":
            top, reached = maxima(made, relabelling, two_sided=two_sided)
            tops.append(to_z(top, made.df))
        counted.append(reached / relabelling.n if relabelling.kind == "permute" else None)
    null = np.maximum.reduce(tops).astype(np.float32) if from_max else None
    parts = [_uncorrected(*x, inference=inference) for x in zip(ready, counted, relabellings, strict=True)]
    z = [to_z(r.columns.u, r.columns.df) for r in ready]
    p_unc = np.concatenate([part[0] for part in parts])
    p = _corrected(p_unc, np.concatenate(z), null, inference=inference)
    if inference.correction == "stepdown":
        p = _stepped(columns, relabellings, np.concatenate(z), inference=inference)
    by = fdr_by(p_unc) if inference.correction == "fdr_bh" else np.full(len(p), np.nan)
    ends = np.cumsum([len(x) for x in z])[:-1]
    rest = zip(np.split(p, ends), np.split(by, ends), relabellings, strict=True)
    return [
        Outcome(r, to_t(r.columns.u, r.columns.df), zz, *part, corrected, beside, how)
        for r, zz, part, (corrected, beside, how) in zip(ready, z, parts, rest, strict=True)
    ], null


def _relabellings(cells: Sequence[Cell], ready: Sequence[Ready], inference: Inference, *, seed: int, split: str):
    """One relabelling per cell, equal in number, and the columns with their items placed in it."""
    two_sided, wanted = inference.alternative == "two-sided", inference.n_permutations
    flipped = [c.data for c in cells if c.data.codes is None]
    rows = np.unique(np.concatenate([d.numbers for d in flipped])) if flipped else np.empty(0, dtype=np.uint32)
    _refuse_different_items([c.data for c in cells if c.data.codes is not None])
    if CORRECTIONS[inference.correction] is not None and inference.correction != "none" and len(flipped) < len(cells):
        wanted = _enough(cells, wanted, inference=inference)

    def make(everything: bool | None) -> list[Relabelling]:
        out = []
        for cell in cells:
            d = cell.data
            common = {"seed": seed, "split": split, "enumerate_all": everything}
            if d.codes is None:
                out.append(flips(rows, wanted, two_sided=two_sided, **common))
            else:
                out.append(permutations(d.numbers, d.codes, wanted, blocks=d.strata, **common))
        return out

    made = make(None)
    if len({r.n for r in made}) > 1:
        made = make(False)
    columns = [
        replace_items(r.columns, np.searchsorted(rows, c.data.numbers)) if c.data.codes is None else r.columns
        for r, c in zip(ready, cells, strict=True)
    ]
    return made, columns


def _refuse_different_items(data: Sequence[ItemData]) -> None:
    if len({d.numbers.tobytes() for d in data if d.codes is not None and d.effect is data[0].effect}) > 1:
        raise DataError(
            "labels are permuted over all items, but some regions or positions lack items; test them apart."
        )


def _enough(cells: Sequence[Cell], wanted: int, *, inference: Inference) -> int:
    """Counted p must be able to reach alpha / m: more relabellings, all there are, or a refusal.

    BY divides by m (1 + 1/2 + ... + 1/m) instead of m.
    """
    m = sum(len(c.kept) for c in cells)
    harmonic = (1 / np.arange(1, m + 1)).sum() if inference.correction == "fdr_by" else 1.0
    needed = int(np.ceil(m * harmonic / inference.alpha))
    sizes = [n_distinct(c.data.grouping[0], _blocks(c.data)) for c in cells if c.data.codes is not None]
    if needed > MOST and max(sizes) > MOST:
        raise DataError(
            f"{m} features need {needed} label permutations for a corrected p per feature; use correction maxT, or a "
            "test on fewer features."
        )
    return max(wanted, min(needed, max(sizes), MOST))


def _blocks(data: ItemData) -> np.ndarray:
    return np.zeros(data.n) if data.strata is None else data.strata


def replace_items(columns: Columns, place: np.ndarray) -> Columns:
    """The same columns with item i at row place[i] of a larger relabelling."""
    return replace(columns, V=columns.V._replace(idx=place[columns.V.idx].astype(np.int32)))


def negated(columns: Columns) -> Columns:
    """Columns of -V, for the alternative `less`."""
    V = columns.V
    if len(columns.weights):
        return replace(columns, weights=-columns.weights, u=-columns.u)
    return replace(columns, V=V._replace(val=-V.val, total=-V.total), u=-columns.u)


def _uncorrected(ready: Ready, counted: np.ndarray | None, relabelling: Relabelling, *, inference: Inference):
    if counted is not None:
        return counted, np.full(len(counted), "exact" if relabelling.exhaustive else "permutations")
    assert ready.scores is not None
    p, exact = flip_p(ready.scores, alternative=inference.alternative)
    return p, np.where(exact, "exact", "saddlepoint")


def _corrected(p: np.ndarray, z: np.ndarray, null: np.ndarray | None, *, inference: Inference) -> np.ndarray:
    correct = CORRECTIONS[inference.correction]
    if correct is not None:
        return correct(p)
    assert null is not None
    return counted_p(null, directed(z, inference.alternative))


def _stepped(columns: Sequence[Columns], relabellings: Sequence[Relabelling], z: np.ndarray, *, inference: Inference):
    first = relabellings[0]
    if any(r.kind != first.kind or not np.array_equal(r.codes, first.codes) for r in relabellings):
        raise DataError("stepdown needs one kind of relabelling; give effects with different ones tests of their own.")
    reached = step_counts(columns, first, two_sided=inference.alternative == "two-sided")
    return step_down(np.concatenate(reached), directed(z, inference.alternative), first.n)


def relabelled(data: ItemData, signs: np.ndarray | None, codes: np.ndarray | None) -> ItemData:
    """Item data under one relabelling, as if it had been observed: for calibration on the user's own responses."""
    if data.codes is not None:
        return replace(data, codes=codes)
    return replace(data, D=sp.csc_matrix(sp.diags_array(signs) @ data.D))
