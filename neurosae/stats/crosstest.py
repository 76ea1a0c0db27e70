"""Rows of cross-fitted tests: every effect, site, region and position of one test is a family, as in `family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.errors import DataError
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.choices import CROSS_FITTED
from neurosae.spec.results import Tested, as_results, check_results, counted_p, directed
from neurosae.stats.asked import Asked, place_data, positions_in
from neurosae.stats.crossfit import CrossFit, Rule, cross_fit
from neurosae.stats.family import Place
from neurosae.stats.flips import to_z
from neurosae.stats.multiplicity import CORRECTIONS, monte_carlo_interval, step_down
from neurosae.stats.relabel import Relabelling, flips, permutations
from neurosae.stats.rows import join_rows
from neurosae.stats.units import AnnData, ItemData


class Cell(NamedTuple):
    """One effect at one place: item data and the features that may be chosen."""

    place: Place
    data: ItemData
    kept: np.ndarray


def test_cross_fitted(
    sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, rule: Rule, seed: int
) -> Tested:
    """Test cross-fitted sets at every site, region and position as one family.

    extras: `chosen`, the features that every fold was tested with; `items`, the held-out contrasts.
    """
    if inference.statistic not in CROSS_FITTED:
        raise DataError(f"cross_fit is for statistics {', '.join(CROSS_FITTED)}, not {inference.statistic}; name one.")
    if inference.nuisance:
        raise DataError("cross_fit cannot take nuisance columns out of a choice that changes; use a localizer split.")
    cells, silent = _cells(sites, asked, inference, rule=rule)
    how = _relabellings(cells, inference, seed=seed, split=asked.split)
    rule = rule._replace(statistic=inference.statistic)
    fits = [cross_fit(c.data, c.kept, r, place=at, rule=rule) for c, (r, at) in zip(cells, how, strict=True)]
    z = np.array([to_z(_u(fit), fit.df) for fit in fits]).reshape(len(fits), -1)
    tables, null = [*silent], None
    if fits:
        size = directed(z, inference.alternative)
        p_unc = np.array([counted_p(row, row[:1], tolerance=1e-9)[0] for row in size])
        p_corr, null = _corrected(size, p_unc, inference)
        for k, (cell, fit) in enumerate(zip(cells, fits, strict=True)):
            p = {"p_unc": p_unc[k], "p_corr": p_corr[k], "x_z": z[k, 0]}
            tables.append(_row(cell, fit, how[k][0], rule=rule, p=p))
    family = f"sets cross-fitted in test {asked.test}: effects {', '.join(asked.effects)}; "
    family += f"regions {', '.join(asked.regions)}; sites {', '.join(sites)}"
    table = join_rows(tables, family=family, n_family=len(cells), inference=inference)
    table["kind"] = pd.array(["roi"] * len(table), dtype="string")
    extras = {} if not fits else {"chosen": _chosen(cells, fits), "items": _items(cells, fits)}
    return Tested(check_results(table), null, extras)


test_cross_fitted.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name


def _cells(
    sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, rule: Rule
) -> tuple[list[Cell], list[pd.DataFrame]]:
    cells, silent = [], []
    for effect, weights in asked.effects.items():
        for site, adata in sites.items():
            for region in asked.regions:
                for position in positions_in(adata, region):
                    name = f"cross-fit top {rule.top}"
                    place = Place(asked.test, effect, site, region, position, asked.split, name)
                    data = place_data(adata, design_of(adata), weights, place=place, inference=inference)
                    if isinstance(data, ItemData):
                        kept = np.flatnonzero(data.informative >= inference.min_informative)
                        if len(kept):
                            cells.append(Cell(place, data, kept))
                            continue
                        data = f"no feature has a contrast in {inference.min_informative} items"
                    columns = place._asdict() | {"n_features": rule.top, "status": "failed", "note": data}
                    silent.append(as_results(columns, n_rows=1))
    return cells, silent


def _relabellings(
    cells: Sequence[Cell], inference: Inference, *, seed: int, split: str
) -> list[tuple[Relabelling, np.ndarray | None]]:
    """A relabelling for every cell, equal in number, and where the cell's units stand in it.

    All 2^n flips are enumerated, not half of them: with a choice of one direction s and -s choose different features.
    """
    flipped = [c.data.numbers for c in cells if c.data.codes is None]
    rows = np.unique(np.concatenate(flipped)) if flipped else np.empty(0, dtype=np.uint32)

    def make(everything: bool | None) -> list[tuple[Relabelling, np.ndarray | None]]:
        out: list[tuple[Relabelling, np.ndarray | None]] = []
        for d in (cell.data for cell in cells):
            common: dict[str, Any] = {"seed": seed, "split": split, "enumerate_all": everything}
            if d.codes is None:
                made = flips(rows, inference.n_permutations, two_sided=False, **common)
                out.append((made, np.searchsorted(rows, d.numbers)))
            else:
                wanted = inference.n_permutations
                out.append((permutations(d.numbers, d.codes, wanted, blocks=d.strata, **common), None))
        return out

    made = make(None)
    return made if len({r.n for r, _ in made}) <= 1 else make(False)


def _u(fit: CrossFit) -> np.ndarray:
    return fit.t if np.isinf(fit.df) else fit.t / np.sqrt(fit.df + fit.t**2)


def _corrected(size: np.ndarray, p_unc: np.ndarray, inference: Inference) -> tuple[np.ndarray, np.ndarray | None]:
    """Corrected p over the cells; the maxima per relabelling where the correction uses them."""
    correct = CORRECTIONS[inference.correction]
    if correct is not None:
        return correct(p_unc), None
    null = size.max(axis=0)
    if inference.correction == "stepdown":
        order = np.argsort(size[:, 0], kind="stable")
        running = np.maximum.accumulate(size[order], axis=0)
        reached = np.empty(len(size), dtype=np.int64)
        limit = size[order, :1] - 1e-9 * (1 + np.abs(size[order, :1]))
        reached[order] = (running >= limit).sum(axis=1)
        return step_down(reached, size[:, 0], size.shape[1]), null.astype(np.float32)
    return counted_p(null, size[:, 0], tolerance=1e-9), null.astype(np.float32)


def _row(cell: Cell, fit: CrossFit, how: Relabelling, *, rule: Rule, p: Mapping[str, float]) -> pd.DataFrame:
    """One row per place; effect sizes come from held-out items alone."""
    data, between = cell.data, cell.data.codes is not None
    estimate, spread, se = _held_out(data, fit.x)
    low, high = monte_carlo_interval(np.array([p["p_corr"]]), how.n) if not how.exhaustive else ([np.nan], [np.nan])
    name = "mean" if rule.statistic == "mean" else "welch_t" if between and _unequal(data) else "t"
    columns = cell.place._asdict() | {"n_features": rule.top, "stat": name, "value": fit.t[0], "dof": fit.df}
    columns |= {"estimate": estimate, "se": se, "effsize": estimate / spread if spread > 0 else np.nan}
    columns |= {"eftype": "d" if between else "d_z", "p_method": how.method()}
    columns |= {"unit": data.exchange.unit, "n_units": data.n, "n_perm": how.n, "h0": data.effect.h0}
    columns |= {"n_informative": int((fit.x != 0).sum()), "p_min": _smallest_p(data, how, rule)}
    columns |= {"status": "ok" if spread > 0 else "degenerate", "note": _note(cell, fit, rule)}
    columns |= {
        "x_overlap": _overlap(fit.chosen),
        "x_weights": data.effect.vector,
        "x_p_low": low[0],
        "x_p_high": high[0],
    }
    columns["dof"] = np.nan if np.isinf(fit.df) else fit.df
    return as_results(columns | dict(p), n_rows=1)


def _held_out(data: ItemData, x: np.ndarray) -> tuple[float, float, float]:
    """Mean contrast, its standard deviation over items, and its standard error."""
    if data.codes is None:
        sd = float(x.std(ddof=1))
        return float(x.mean()), sd if np.ptp(x) > 1e-12 * np.abs(x).max() else 0.0, sd / np.sqrt(data.n)
    codes, weights = data.grouping
    counts = np.bincount(codes, minlength=len(weights))
    means = np.bincount(codes, x) / counts
    square = np.bincount(codes, (x - means[codes]) ** 2)
    pooled = square.sum() / (data.n - len(weights))
    own = square / (counts - 1) if _unequal(data) else np.full(len(weights), pooled)
    return float(weights @ means), float(np.sqrt(pooled)), float(np.sqrt((weights**2 / counts * own).sum()))


def _smallest_p(data: ItemData, how: Relabelling, rule: Rule) -> float:
    """Where both directions count, s and -s give the same value; with one direction they do not."""
    return max(1 / how.n, data.exchange.p_min) if rule.direction == "both" else 1 / how.n


def _unequal(data: ItemData) -> bool:
    return len(set(np.bincount(data.grouping[0]).tolist())) > 1


def _overlap(chosen: np.ndarray) -> float:
    """Mean share of the features that two folds have in common, in the same direction."""
    shares = [((a == b) & (a != 0)).sum() / max((a != 0).sum(), (b != 0).sum(), 1) for a, b in combinations(chosen, 2)]
    return float(np.mean(shares))


def _note(cell: Cell, fit: CrossFit, rule: Rule) -> str:
    sizes = (fit.chosen != 0).sum(axis=1)
    minus = int((fit.chosen < 0).sum())
    words = [
        f"chosen among {len(cell.kept):,} features on {rule.folds - 1} of {rule.folds} folds of items and tested on "
        "the other; the choice is repeated inside every relabelling",
        "effect size from held-out items; no interval, because folds share the items that choose",
    ]
    if sizes.min() < rule.top:
        words.append(f"a fold has {sizes.min()} features: no more answer in the wanted direction")
    if minus:
        words.append(f"{minus} of {sizes.sum()} choices enter with a minus sign, their direction in the other folds")
    return "; ".join([*words, *(t for t in (cell.data.exchange.note, cell.data.dropped) if t)])


def _where(cell: Cell) -> dict[str, object]:
    return {name: getattr(cell.place, name) for name in ("site", "region", "position", "effect", "set")}


def _chosen(cells: Sequence[Cell], fits: Sequence[CrossFit]) -> pd.DataFrame:
    parts = []
    for cell, fit in zip(cells, fits, strict=True):
        fold, column = np.nonzero(fit.chosen)
        feature = cell.data.features[cell.kept[column]]
        parts.append(pd.DataFrame(_where(cell) | {"fold": fold, "feature": feature, "sign": fit.chosen[fold, column]}))
    return pd.concat(parts, ignore_index=True)


def _items(cells: Sequence[Cell], fits: Sequence[CrossFit]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(_where(c) | {"item": np.array(c.data.names, dtype=object), "fold": f.fold, "difference": f.x})
        for c, f in zip(cells, fits, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)
