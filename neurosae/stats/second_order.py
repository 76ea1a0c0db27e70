r"""Second-order geometry: do layers, sites, dictionaries, models or token positions arrange the stimuli alike?

1. The RDM of every place (`geometry`): site, region, position; sites may come from other dictionaries or other models.
2. Two places are compared by their RDMs (conditions; rank correlation and whitened cosine) and by their kernels (item x
   condition rows; linear CKA, plain and debiased).
3. p comes from permuting the second place of every pair, by the same permutation for all pairs: its conditions for the
   agreement of RDMs, its whole items for CKA. The maximum over pairs corrects. Intervals of RDM agreement come from
   bootstrapped items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.design.units import items_of
from neurosae.errors import DataError, choose
from neurosae.spec.block import name_of
from neurosae.spec.geometry import SecondOrderBlock
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results, counted_p
from neurosae.stats import rdm
from neurosae.stats.condition_labels import Movers, movers
from neurosae.stats.geometry import Place, Question, places, question
from neurosae.stats.joined import in_deviations, joined
from neurosae.stats.rdm_compare import COMPARATORS, compare_rdms
from neurosae.stats.relabel_conditions import TILE, label_null

KERNELS = ("cka", "cka_debiased")
MEASURES = ("rho-a", "cosine_cov", *KERNELS)
LEVEL = 0.95


def centred_kernel(G: np.ndarray, *, debiased: bool = False) -> np.ndarray:
    r"""Kernel whose inner product with another, centred alike, is (N (N-3) or (N-1)^2 times) their HSIC.

    Plain: J G J. Debiased: the diagonal is left out and rows are U-centred, so that the expected product with an
    unrelated kernel is 0 whatever the number of features. Rows of the result may be permuted afterwards.

    Parameters
    ----------
    G : array of shape (n_rows, n_rows), inner products of rows

    References
    ----------
    Song et al. (2012), JMLR 13:1393. Kornblith et al. (2019), ICML 97:3519. Székely & Rizzo (2014), Ann. Stat. 42:2382.

    Examples
    --------
    >>> float(np.abs(centred_kernel(np.diag([1.0, 2.0, 3.0, 4.0]), debiased=True)).max())
    0.0
    """
    n = len(G)
    if not debiased:
        row = G.mean(axis=0)
        return G - row[:, None] - row[None, :] + row.mean()
    if n < 4:
        raise DataError(f"debiased CKA needs at least 4 rows, not {n}.")
    A = G - np.diag(np.diag(G))
    row = A.sum(axis=0)
    A = A - (row[:, None] + row[None, :]) / (n - 2) + row.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(A, 0.0)
    return A


def cka(G: np.ndarray, H: np.ndarray, *, debiased: bool = False) -> float:
    """Linear CKA of two sets of patterns of the same rows, from their Gram matrices; NaN where one does not vary.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((12, 5))
    >>> round(cka(X @ X.T, 9 * X @ X.T), 12)
    1.0
    """
    A, B = centred_kernel(G, debiased=debiased), centred_kernel(H, debiased=debiased)
    lengths = np.sqrt([(A * A).sum(), (B * B).sum()])
    whole = np.sqrt([(G * G).sum(), (H * H).sum()])
    return float((A * B).sum() / lengths.prod()) if (lengths > 1e-9 * whole).all() else float("nan")


def second_order(
    responses: Any,
    *,
    conditions: Sequence[str],
    region: str | Sequence[str],
    inference: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Compare the geometries of all pairs of sites (layers, dictionaries, models), regions and positions.

    Parameters
    ----------
    responses : {name: AnnData} of the same design; a name may be a site, another dictionary or another model
    conditions : factors, "frame" and "item", whose combinations are the rows of the RDMs; with "item" every word is one
    region : one region or several
    inference : as under `inference:`; `n_permutations`, `alpha` and `min_informative` are used
    settings : as in a `second_order` test: `distance`, `noise`, `measures` (rho-a, cosine_cov, cka, cka_debiased, or
        another comparator of RDMs), `blocks`, `n_bootstrap` (1000), `split`, `sites`
    seed : int

    Returns
    -------
    DataFrame
        The results schema, a row per pair and measure: `effect` is "first ~ second", `value` the agreement, `x_z` the
        same in standard deviations of its null. `p_unc` and `p_corr` (maximum over pairs of the measure) are one-sided.
        RDM measures have p from 8 conditions on, and a 95 % percentile interval over bootstrapped items where items are
        no conditions; a row without p says why. `x_first`, `x_second` name the two places.

    Raises
    ------
    DataError
        Fewer than two places, places without common items, or with other conditions.

    Notes
    -----
    H0 of RDM measures: which condition is which at one place says nothing about the geometry at the other. Conditions
    of the second place change places inside `blocks` (with "item" whole items, inside the strata of the design unless
    `blocks` say otherwise). H0 of CKA: the same for items, which move with all of their rows among items of the same
    conditions and of one stratum. Both are exact for a pair if the units of a block are exchangeable. The second places
    of all pairs move alike, so all layers of one model that stand second keep their dependence; permuting both places
    of a pair alike would change no agreement.

    All places read the same texts: agreement is of these items, what is peculiar to them included. Few conditions have
    few permutations (4 have 24), hence 8. One language model is one subject: p and intervals are for these places.

    References
    ----------
    Kriegeskorte et al. (2008), Front. Syst. Neurosci. 2:4. Kornblith et al. (2019), ICML 97:3519. Diedrichsen et al.
    (2021), arXiv:2007.02789 (whitened cosine = CKA of the condition means).

    Examples
    --------
    >>> from neurosae.spec.design import Design
    >>> from neurosae.stats.simulate import simulate
    >>> words = {f"i{k}": {"u": {"x": f"p{k}", "y": f"q{k}"}, "w": {"x": f"r{k}", "y": f"s{k}"}} for k in range(16)}
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "two", "items": words,
    ...     "factors": {"a": ["x", "y"], "b": ["x", "y"]}, "frames": {"f": "{u:a} {w:b}"},
    ...     "regions": {"all_words": {"words": [0, -1]}}})
    >>> one = simulate(design, n_features=80, effects={"a": 20}, density=0.4, seed=1)
    >>> names = {"early": one, "late": one}
    >>> found = second_order(names, conditions=["a", "b"], region="all_words", seed=1,
    ...                      inference={"n_permutations": 200}, settings={"n_bootstrap": 50})
    >>> found[["effect", "stat"]].values.tolist()[0], bool((found["value"] > 0.99).all())
    (['early ~ late', 'rho-a'], True)
    """
    block = {"test": "second_order", "region": region, "conditions": list(conditions), **(settings or {})}
    ask = as_record(block, SecondOrderBlock, name="second_order")
    return _answer(_question("second_order", ask, inference, seed=seed), ask, responses).table


def run(responses: Any, ask: SecondOrderBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """Answer a `second_order` block of an analysis."""
    spec = study.spec
    name = name_of(ask, spec.tests)
    return _answer(_question(name, ask, spec.inference, seed=spec.seed), ask, responses)


def _question(name: str, ask: SecondOrderBlock, inference: Any, *, seed: int) -> Question:
    """The places of the block, as an RSA of the same conditions asks for them."""
    rest = ask.model_dump(include={"distance", "noise", "blocks", "split", "sites"}, exclude_none=True)
    settings, models = {**rest, "p_from": "condition_labels"}, {"n_tokens": {"column": "n_tokens"}}
    made = question(models, ask.conditions, ask.region, inference=inference, settings=settings, seed=seed)
    return Question(name, made.ask, {}, made.inference, seed)


@dataclass(frozen=True)
class _Pair:
    """Two places and what their rows have in common: rows of each, and item (or frame) and condition of common rows."""

    first: Place
    second: Place
    rows: tuple[np.ndarray, np.ndarray]
    items: tuple[str, ...]
    row_item: np.ndarray
    row_condition: np.ndarray

    @property
    def name(self) -> str:
        return f"{_said(self.first, self.second)} ~ {_said(self.second, self.first)}"


def _said(place: Place, other: Place) -> str:
    """What distinguishes a place from the other one."""
    parts = [str(a) for a, b in zip(place.key, other.key, strict=True) if a != b]
    return " ".join(parts) or place.site


def _pair(first: Place, second: Place) -> _Pair:
    if first.found.conditions != second.found.conditions:
        raise DataError(
            f"{_said(first, second)} and {_said(second, first)} have other conditions; compare like designs."
        )
    keys = []
    for found in (first.found, second.found):
        keys.append(
            {(found.items[i], c): row for row, (i, c) in enumerate(zip(found.item, found.condition, strict=True))}
        )
    common = [key for key in keys[0] if key in keys[1]]
    items = tuple(dict.fromkeys(item for item, _ in common))
    if len(items) < 3 and not first.by_item:
        raise DataError(
            f"{_said(first, second)} and {_said(second, first)} share {len(items)} items; at least 3 are needed."
        )
    number = {item: k for k, item in enumerate(items)}
    rows = tuple(np.array([side[key] for key in common]) for side in keys)
    return _Pair(first, second, (rows[0], rows[1]), items, np.array([number[i] for i, _ in common]),
                 np.array([c for _, c in common]))  # fmt: skip


def _answer(asked: Question, ask: SecondOrderBlock, responses: Any) -> Tested:
    found, _ = places(asked, responses)
    if len(found) < 2:
        raise DataError(
            "second-order geometry compares places, but there is one; name more sites, regions or positions."
        )
    for measure in ask.measures:
        choose("measure", measure, dict.fromkeys((*COMPARATORS, *KERNELS), True))
    pairs = [_pair(a, b) for a, b in combinations(found, 2)]
    tables = []
    with threadpool_limits(1, user_api="blas"):
        sides = [_Sides.of(asked, ask, pair) for pair in pairs]
        for measure in ask.measures:
            made = [_kernel_row(asked, pair, measure) if measure in KERNELS else _rdm_row(asked, side, measure)
                    for pair, side in zip(pairs, sides, strict=True)]  # fmt: skip
            tops = [in_deviations(null) for _, null in made if null is not None]
            over = f"{measure} over all pairs of places"
            tables.append(joined([row for row, _ in made], tops, over=over, compared="x_z")[0])
    frame = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)
    return Tested(check_results(as_results({name: frame[name] for name in frame.columns})), None, {})


def _about(asked: Question, pair: _Pair, measure: str) -> dict[str, Any]:
    one, two = pair.first, pair.second
    where = {"site": one.site, "region": one.region, "position": one.position}
    few = not one.by_item and len(pair.items) < len(one.found.items)
    n_units = len({key[0] for key in one.found.conditions}) if one.by_item else len(pair.items)
    return {
        "test": asked.name, "kind": "second_order", "effect": pair.name, **where, "split": asked.ask.split,
        "set": f"{measure} over all informative features", "stat": measure, "unit": "item", "n_units": n_units,
        "n_features": one.found.n_features, "note": f"{len(pair.items)} items that both places have. " if few else "",
        "x_n_features_second": two.found.n_features, "p_method": "none",
        "x_first": " ".join(map(str, one.key)), "x_second": " ".join(map(str, two.key)),
    }  # fmt: skip


def _tested(null: np.ndarray, moved: Movers) -> dict[str, Any]:
    """The columns of a test from agreements under permutations of the second place, the observed one first."""
    n = len(null)
    return {
        "p_unc": float(counted_p(null, null[:1], tolerance=1e-6)[0]), "p_method": moved.method, "n_perm": n,
        "p_min": moved.p_min(n), "alternative": "greater", "x_z": float(in_deviations(null)[0]),
    }  # fmt: skip


# --- agreement of RDMs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sides:
    """RDMs of both places on the items that they share, and of bootstrapped items, the same draw at both places."""

    pair: _Pair
    whole: tuple[np.ndarray, np.ndarray]
    drawn: tuple[np.ndarray, np.ndarray] | None

    @classmethod
    def of(cls, asked: Question, ask: SecondOrderBlock, pair: _Pair) -> _Sides:
        if pair.first.by_item:
            return cls(pair, (pair.first.data, pair.second.data), None)
        (G, f), (H, h) = (_common(place, pair.items) for place in (pair.first, pair.second))
        kind = asked.ask.distance
        whole = rdm.distances(G, f, kind), rdm.distances(H, h, kind)
        if all(measure in KERNELS for measure in ask.measures):
            return cls(pair, whole, None)
        rng = np.random.default_rng([asked.seed, 5])  # every pair draws its items alike
        draws = rdm.item_draws(f, ask.n_bootstrap, rng)
        return cls(pair, whole, (rdm.weighted_rdms(G, f, draws, distance=kind),
                                 rdm.weighted_rdms(H, h, draws, distance=kind)))  # fmt: skip


def _rdm_row(asked: Question, sides: _Sides, measure: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """Agreement of two RDMs, its interval over items, and its null under permuted conditions where there is one."""
    value = compare_rdms(*sides.whole, measure)
    row = _about(asked, sides.pair, measure) | {
        "value": value, "h0": "none: an agreement of RDMs is described, not tested",
        "status": "ok" if np.isfinite(value) else "degenerate",
    }  # fmt: skip
    if not np.isfinite(value):
        return row | {"note": "One of the RDMs has no variation, so there is nothing to agree in."}, None
    row |= _interval(sides, measure)
    moved = movers(asked, sides.pair.first)
    if (why := _no_permutations(asked, sides, measure, moved=moved)) is not None:
        return row | {"note": f"{row['note']}No p: {why}."}, None
    draw, n = moved.drawn(asked.seed), asked.inference.n_permutations
    null = label_null(sides.whole[0][None], sides.whole[1], draw, n=n, compare=measure)[:, 0].astype(float)
    said = "" if sides.drawn is None else "; the interval is over items"
    return row | _tested(null, moved) | {
        "unit": moved.unit, "n_units": len(moved.blocks),
        "h0": f"which {moved.unit} is which at one place says nothing about the geometry at the other",
        "note": f"{row['note']}p: {moved.words}, at the second place, alike for all pairs{said}.",
    }, null  # fmt: skip


def _interval(sides: _Sides, measure: str) -> dict[str, Any]:
    """Percentile interval over bootstrapped items; none where items are the conditions."""
    if sides.drawn is None:
        return {}
    values = np.array([compare_rdms(a, b, measure) for a, b in zip(*sides.drawn, strict=True)])
    if not np.isfinite(values).all():
        return {}
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"se": values.std(ddof=1), "ci_low": low, "ci_high": high, "ci_level": LEVEL}


def _no_permutations(asked: Question, sides: _Sides, measure: str, *, moved: Movers) -> str | None:
    """Why the conditions of this pair cannot be permuted, in words."""
    if measure == "tau-a":
        return "tau-a has no fast permutations; use rho-a for claims about ranks"
    if not np.array_equal(moved.blocks, movers(asked, sides.pair.second).blocks):
        return "the two places have other items in their blocks, so they cannot be permuted alike"
    if (why := moved.too_few(asked.inference.alpha)) is None:
        return None
    return f"{why}; cka permutes items instead, and with conditions: [item] every word is a condition"


def _common(place: Place, items: tuple[str, ...]) -> tuple[np.ndarray, rdm.Patterns]:
    """Gram matrix and patterns of the given items of a place, in their order."""
    found = place.found
    number = {item: k for k, item in enumerate(items)}
    of = np.array([number.get(item, -1) for item in found.items])
    rows = np.flatnonzero(of[found.item] >= 0)
    rows = rows[np.argsort(of[found.item[rows]] * len(found.conditions) + found.condition[rows], kind="stable")]
    part = rdm.Patterns(items, found.conditions, found.X[rows], of[found.item[rows]], found.condition[rows],
                        found.numbers.iloc[rows].reset_index(drop=True), 0, 0, 0)  # fmt: skip
    return place.gram[np.ix_(rows, rows)], part


# --- CKA ------------------------------------------------------------------------------------------------------------


def _kernel_row(asked: Question, pair: _Pair, measure: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """CKA of two places, and its null when whole items of the second place are permuted."""
    row, moved = _about(asked, pair, measure), _row_movers(asked, pair)
    A, B = (centred_kernel(place.gram[np.ix_(r, r)], debiased=measure == "cka_debiased")
            for place, r in zip((pair.first, pair.second), pair.rows, strict=True))  # fmt: skip
    lengths = np.sqrt((A * A).sum() * (B * B).sum())
    if not lengths > 0:
        why = "One of the places does not vary over its rows, so there is no kernel to compare."
        return row | {"status": "degenerate", "note": why}, None
    draw, n, parts = moved.drawn(asked.seed), asked.inference.n_permutations, []
    for first in range(0, n, TILE):
        parts += [(A * B[np.ix_(o, o)]).sum() for o in draw(first, min(TILE, n - first))]
    null = np.array(parts) / lengths
    row |= {"value": null[0], "status": "ok", "n_informative": len(moved.blocks)}
    if moved.p_min(n) > asked.inference.alpha:
        said = f"{len(moved.blocks)} items allow {np.exp(moved.log_count):.0f} permutations, too few for a test"
        return row | {"note": f"{row['note']}No p: {said}."}, None
    return row | _tested(null, moved) | {
        "h0": "which item is which at one place says nothing about the geometry of items at the other",
        "note": f"{row['note']}p: {moved.words}, at the second place, alike for all pairs.",
    }, null  # fmt: skip


def _row_movers(asked: Question, pair: _Pair) -> Movers:
    """Whole items with all of their rows, among items of the same conditions and of one stratum."""
    if pair.first.by_item:
        by = movers(asked, pair.first)
        slot = by.within[pair.row_condition] * len(pair.items) + pair.row_item  # the rows of an item: its frames
        return _moving(by.of_row[pair.row_condition], slot, [str(b) for b in by.blocks], held=by.held)
    design = pair.first.design
    held = (design.strata,) if design.strata else ()
    known = items_of(design)
    stratum = [str({**known[i].labels, **known[i].levels}[held[0]]) if held else "" for i in pair.items]
    return _moving(pair.row_item, pair.row_condition, stratum, held=held)


def _moving(unit: np.ndarray, slot: np.ndarray, blocks: Sequence[str], *, held: tuple[str, ...]) -> Movers:
    """Units that change places where they have the same slots and stand in one block."""
    kind = [f"{block}|{sorted(slot[unit == k].tolist())}" for k, block in enumerate(blocks)]
    return Movers("item", np.unique(kind, return_inverse=True)[1], unit, slot, held)
