"""One family of tests: all features of several effects, sites, regions and positions under the same relabellings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.spec.blocks import Inference
from neurosae.spec.results import counted_p, directed
from neurosae.stats.flips import Columns, maxima, same_run, step_counts
from neurosae.stats.intervals import Beside, Piece, make_intervals
from neurosae.stats.multiplicity import CORRECTIONS, bb, fdr_by, step_down
from neurosae.stats.relabel import Relabelling, flips, n_distinct, permutations, same_relabelling, within
from neurosae.stats.statistics import STATISTICS, Ready
from neurosae.stats.tails import TIE_FLOAT32, flip_p
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
    """Numbers of the tested features of one cell, arrays of shape (n_kept,), and the relabelling they come from.

    beside : further columns of the results by name, which the correction or the intervals bring
    """

    ready: Ready
    value: np.ndarray
    z: np.ndarray
    p_unc: np.ndarray
    p_method: np.ndarray
    p_corr: np.ndarray
    p_by: np.ndarray
    relabelling: Relabelling
    beside: Mapping[str, np.ndarray]


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

    Effects of different kinds (flips, labels, levels inside items) are relabelled by independent random numbers. Each
    part is exact by itself; the threshold of their joint maximum gives the parts levels a_k with prod_k (1 - a_k) =
    1 - alpha, hence sum_k a_k <= -log(1 - alpha), .0513 for alpha = .05, whatever the dependence between the parts
    (union bound). The argument takes the threshold as given: it is a function of what each part's own relabellings
    leave unchanged. Error rates of such families, with items that react strongly to everything, are in the tests.
    """
    if not cells:
        return [], None
    statistic = STATISTICS[inference.statistic]
    ready = [statistic(cell.data, cell.kept) for cell in cells]
    _refuse_unsigned(ready, inference)
    relabellings, columns = relabel_cells(cells, ready, inference, seed=seed, split=split)
    two_sided = inference.alternative == "two-sided"
    from_max = CORRECTIONS[inference.correction] is None
    if inference.alternative == "less":
        columns = [negated(c) for c in columns]
    tops, counted = [], []
    for r, made, relabelling in zip(ready, columns, relabellings, strict=True):
        p = None
        if from_max or r.counted:
            top, reached = maxima(made, relabelling, two_sided=two_sided)
            tops.append(made.how.to_z(top, made.df))
            p = reached / relabelling.n if r.counted else None
        counted.append(p)
    null = np.maximum.reduce(tops).astype(np.float32) if from_max else None
    each = zip(cells, ready, counted, relabellings, strict=True)
    parts = [_uncorrected(r, p, how, exact=c.data.exchange.exact, inference=inference) for c, r, p, how in each]
    z = [r.columns.z for r in ready]
    p_unc = np.concatenate([part[0] for part in parts])
    p = _corrected(p_unc, np.concatenate(z), null, inference=inference)
    if inference.correction == "stepdown":
        p = _stepped(columns, relabellings, np.concatenate(z), inference=inference)
    beside = _by_sites(cells, p_unc, alpha=inference.alpha) if inference.correction == "bb" else {}
    p = beside.pop("p_corr", p)
    by = fdr_by(p_unc) if inference.correction == "fdr_bh" else np.full(len(p), np.nan)
    places = np.split(np.arange(len(p)), np.cumsum([len(x) for x in z])[:-1])
    lengths = _intervals(cells, relabellings, inference)
    return [
        Outcome(
            r, r.columns.value, zz, own_p, method, p[at], by[at], how, own | {name: x[at] for name, x in beside.items()}
        )
        for r, zz, (own_p, method), at, how, own in zip(ready, z, parts, places, relabellings, lengths, strict=True)
    ], null


def _intervals(cells: Sequence[Cell], relabellings: Sequence[Relabelling], inference: Inference) -> list[Beside]:
    """Intervals in place of the plain ones of the effect sizes."""
    if inference.intervals == "marginal":
        return [{} for _ in cells]
    if inference.nuisance or any(cell.data.beside is not None for cell in cells):
        raise DataError(f"intervals: {inference.intervals} is not made beside nuisance or for slopes; use marginal.")
    pieces = [Piece(cell.data, cell.kept, how) for cell, how in zip(cells, relabellings, strict=True)]
    return make_intervals(pieces, inference.intervals)


def _by_sites(cells: Sequence[Cell], p_unc: np.ndarray, *, alpha: float) -> dict[str, Any]:
    """Corrected p with the sites as families, and what is said of the sites themselves."""
    site = np.repeat([cell.place.site for cell in cells], [len(cell.kept) for cell in cells])
    made = bb(p_unc, site, alpha=alpha)
    return {"p_corr": made.p, "x_p_family": made.p_family, "x_selected": pd.array(made.selected, dtype="boolean")}


def relabel_cells(cells: Sequence[Cell], ready: Sequence[Ready], inference: Inference, *, seed: int, split: str):
    """One relabelling per cell, equal in number, and the columns with their items placed in it."""
    two_sided, wanted = inference.alternative == "two-sided", inference.n_permutations
    inside = [c.data.numbers for c in cells if c.data.codes is None]
    rows = np.unique(np.concatenate(inside)) if inside else np.empty(0, dtype=np.uint32)
    _refuse_different_items([c.data for c in cells if c.data.codes is not None])
    counted = [c for c, r in zip(cells, ready, strict=True) if r.counted]
    if CORRECTIONS[inference.correction] is not None and inference.correction != "none" and counted:
        wanted = _enough(cells, counted, wanted, inference=inference)

    def make(everything: bool | None) -> list[Relabelling]:
        out = []
        for cell in cells:
            d = cell.data
            common = {"seed": seed, "split": split, "enumerate_all": everything}
            if (inside := d.exchange.levels) is not None:
                out.append(within(rows, inside.n, wanted, part=(inside.number, inside.weights is None), **common))
            elif d.moved is None:
                out.append(flips(rows, wanted, two_sided=two_sided, **common))
            else:
                out.append(permutations(d.numbers, d.moved, wanted, blocks=d.strata, **common))
        return out

    made = make(None)
    if len({r.n for r in made}) > 1:
        made = make(False)
    return made, [placed(r.columns, c.data, how) for r, c, how in zip(ready, cells, made, strict=True)]


def placed(columns: Columns, data: ItemData, relabelling: Relabelling) -> Columns:
    """Columns with their items in the rows that the relabelling gives them."""
    order = np.argsort(relabelling.rows)
    return columns.how.place(columns, order[np.searchsorted(relabelling.rows, data.numbers, sorter=order)])


def _refuse_different_items(data: Sequence[ItemData]) -> None:
    if len({d.numbers.tobytes() for d in data if d.codes is not None and d.effect is data[0].effect}) > 1:
        raise DataError(
            "labels are permuted over all items, but some regions or positions lack items; test them apart."
        )


def _enough(cells: Sequence[Cell], counted: Sequence[Cell], wanted: int, *, inference: Inference) -> int:
    """Counted p must be able to reach alpha / m: more relabellings, all there are, or a refusal.

    BY divides by m (1 + 1/2 + ... + 1/m) instead of m.
    """
    m = sum(len(c.kept) for c in cells)
    harmonic = (1 / np.arange(1, m + 1)).sum() if inference.correction == "fdr_by" else 1.0
    needed = int(np.ceil(m * harmonic / inference.alpha))
    sizes = [_n_distinct(c.data, inference) for c in counted]
    if needed > MOST and max(sizes) > MOST:
        raise DataError(
            f"{m} features need {needed} relabellings for a corrected p per feature; use correction maxT, or a "
            "test on fewer features."
        )
    return max(wanted, min(needed, max(sizes), MOST))


def _n_distinct(data: ItemData, inference: Inference) -> int:
    """All relabellings there are; of flips, a two-sided test needs half."""
    if (inside := data.exchange.levels) is not None:
        return math.factorial(inside.n) ** (data.n - (inside.weights is None))
    if data.moved is None:
        return 2 ** (data.n - (inference.alternative == "two-sided"))
    return n_distinct(data.moved, np.zeros(data.n) if data.strata is None else data.strata)


def negated(columns: Columns) -> Columns:
    """Columns of the opposite contrast, for the alternative `less`."""
    assert columns.how.negate is not None
    return columns.how.negate(columns)


def _refuse_unsigned(ready: Sequence[Ready], inference: Inference) -> None:
    unsigned = [r.name for r in ready if r.columns.how.negate is None]
    if unsigned and inference.alternative != "two-sided":
        raise DataError(
            f"{unsigned[0]} has no sign, so alternative {inference.alternative} means nothing for it; use two-sided."
        )


def _uncorrected(
    ready: Ready, counted: np.ndarray | None, relabelling: Relabelling, *, exact: bool, inference: Inference
) -> tuple[np.ndarray, np.ndarray]:
    """Uncorrected p, and where it comes from; exact only where the relabellings themselves leave H0 as it is."""
    if counted is not None:
        p, method = counted, np.full(len(counted), relabelling.method())
    elif ready.tails is not None:
        p, closed = ready.tails()
        method = np.where(closed, "exact", "saddlepoint")
    else:
        assert ready.scores is not None
        p, closed = flip_p(ready.scores, alternative=inference.alternative, tie=TIE_FLOAT32)
        method = np.where(closed, "exact", "saddlepoint")
    return p, method if exact else np.full(len(p), relabelling.method(exact=False))


def _corrected(p: np.ndarray, z: np.ndarray, null: np.ndarray | None, *, inference: Inference) -> np.ndarray:
    correct = CORRECTIONS[inference.correction]
    if correct is not None:
        return correct(p)
    assert null is not None
    return counted_p(null, directed(z, inference.alternative))


def _stepped(columns: Sequence[Columns], relabellings: Sequence[Relabelling], z: np.ndarray, *, inference: Inference):
    first = relabellings[0]
    alike = all(same_run(c, columns[0]) for c in columns)
    if not alike or any(not same_relabelling(r, first) for r in relabellings):
        raise DataError("stepdown needs one kind of relabelling; give effects with different ones tests of their own.")
    reached = step_counts(columns, first, two_sided=inference.alternative == "two-sided")
    return step_down(np.concatenate(reached), directed(z, inference.alternative), first.n)


def relabelled(data: ItemData, signs: np.ndarray | None, codes: np.ndarray | None) -> ItemData:
    """Item data under one relabelling, as if it had been observed: for calibration on the user's own responses.

    signs (n,) for flips, codes (n,) for labels (the order of units, where there is a regression), or (n, K), where the
    value of each level goes, for levels inside items.
    """
    if data.beside is not None and codes is not None:
        return replace(data, D=sp.csc_matrix(sp.csr_matrix(data.D)[codes]))
    if data.codes is not None:
        return replace(data, codes=codes)
    if data.levels is None:
        assert signs is not None
        return replace(data, D=sp.csc_matrix(sp.diags_array(signs) @ data.D), signs=signs)
    assert codes is not None
    rows = (np.arange(data.n)[:, None] * codes.shape[1] + codes).ravel()
    moved = sp.csc_matrix(sp.csr_matrix(data.levels)[np.argsort(rows)])
    moved.sort_indices()
    w = data.weights_of_levels
    return replace(
        data, levels=moved, D=data.D if w is None else sp.csc_matrix(sp.kron(sp.eye(data.n), w[None]) @ moved)
    )
