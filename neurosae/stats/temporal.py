r"""Temporal RSA of single features: are a feature's courses over tokens more alike within categories than across them?

For the course p_sj in R^T of feature j in text s, R_st is the correlation of the courses of two texts. With W the mean
of R over pairs of one category, and A over pairs of two categories,

    discriminative = W (all categories) - A,     categorical = W(first category) - W(second category).

Pairs share texts, so they are no sample and no t test over them is valid. Labels are permuted instead: over items where
the factor varies between them, inside every item (all features alike) where it varies within; pairs of texts of one
item are left out. Statistics are standardised by their own null, and the maximum over features corrects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.design.units import items_of
from neurosae.errors import DataError, choose
from neurosae.extraction.responses import design_of, item_cells
from neurosae.spec.block import name_of
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.geometry import TemporalBlock
from neurosae.spec.results import Tested, check_results
from neurosae.stats.asked import many, positions_in, responses_by_site, settings_of
from neurosae.stats.joined import in_deviations, joined
from neurosae.stats.relabel import Relabelling, flips, labels, permutations, signs
from neurosae.stats.units import AnnData, item_numbers

TILE = 128
FORMS = ("discriminative", "categorical")


def temporal_rsa(
    responses: AnnData | Mapping[str, AnnData],
    *,
    factor: str,
    region: str | Sequence[str],
    levels: tuple[str, str] | None = None,
    inference: Mapping[str, Any] | Inference | None = None,
    split: str = "test",
    seed: int,
) -> pd.DataFrame:
    """Test for every feature whether its courses over tokens tell categories apart.

    Parameters
    ----------
    responses : AnnData or {site: AnnData}, aligned and not collapsed: a region has a row per token
    factor : its levels are the categories
    region : name or names; the courses run over the positions that all texts have there, at least 3
    levels : the two categories of the categorical form; left out, the first two
    inference : keys of the `inference:` section; `n_permutations` and `min_informative` are used
    split : "test" or "localizer"
    seed : int

    Returns
    -------
    DataFrame
        The results schema, a row per feature, form (`effect` is "factor: discriminative" or "factor: categorical"),
        site and region. `estimate` is the difference of mean correlations, `value` the same in standard deviations of
        its null. `x_n_texts` counts texts whose course varies; the others have no correlation and are left out.
        `x_n_tokens` is the length of the courses: the positions that all texts have.

    Raises
    ------
    DataError
        Fewer than 3 common positions, an unknown factor or level, too few texts.

    Notes
    -----
    H0: the categories' labels are exchangeable over items (inside strata), or within every item, jointly for all
    features. The discriminative form is one-sided (more alike within), the categorical two-sided. A course has as many
    points as tokens: correlations over 3 to 5 tokens are coarse, and a long course of one token's activity is a spike.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Front. Syst. Neurosci. 2:4. Good (2005), Permutation, Parametric, and
    Bootstrap Tests of Hypotheses, ch. 3.

    Examples
    --------
    >>> from neurosae.stats.temporal import course_statistics
    >>> up, down = np.array([0.0, 1.0, 2.0]), np.array([2.0, 1.0, 0.0])
    >>> P = np.stack([up, up, down, down])[:, :, None]  # texts x tokens x features
    >>> course_statistics(P, np.array([0, 0, 1, 1]))[0].round(9).tolist()
    [2.0]
    """
    given = settings_of(inference)
    sites, regions = responses_by_site(responses), many(region)
    return _answer(sites, regions, given, factor=factor, levels=levels, where=("temporal_rsa", split, seed)).table


def run(
    responses: Mapping[str, AnnData], ask: TemporalBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: temporal_rsa`."""
    spec = study.spec
    name = name_of(ask, spec.tests)
    sites = {site: responses[site] for site in ask.sites or responses}
    where = (name, ask.split, spec.seed)
    return _answer(sites, ask.region, spec.inference, factor=ask.factor, levels=ask.levels, where=where)


@dataclass(frozen=True)
class _Courses:
    """Courses of one site and region: unit courses (n, T, m), 0 where one does not vary, and which do (n, m)."""

    unit: np.ndarray
    varies: np.ndarray
    items: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]
    features: np.ndarray
    n_other: int


def unit_courses(P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Courses centred and of length 1 (n, T, m), and whether they vary at all (n, m)."""
    Z = P - P.mean(axis=1, keepdims=True)
    length = np.sqrt((Z**2).sum(axis=1))
    varies = length > 1e-6 * np.abs(P).max(axis=1, initial=0.0) * np.sqrt(P.shape[1])
    return Z / np.where(varies, length, 1)[:, None, :] * varies[:, None, :], varies


def course_statistics(
    P: np.ndarray, codes: np.ndarray, *, pair: tuple[int, int] = (0, 1), items: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Discriminative and categorical difference of mean correlations for every feature, NaN where one has no pair.

    Parameters
    ----------
    P : array of shape (n_texts, n_tokens, n_features)
    codes : int array (n_texts,), the category of each text
    pair : the two categories of the categorical form
    items : int array (n_texts,), whose pairs are left out; left out, every text is an item
    """
    unit, varies = unit_courses(P)
    own = np.arange(len(P)) if items is None else items
    return _statistics(unit, varies.astype(float), codes[None], pair=pair, items=own)[:, 0]  # pyright: ignore


def _statistics(
    unit: np.ndarray, varies: np.ndarray, codes: np.ndarray, *, pair: tuple[int, int], items: np.ndarray
) -> np.ndarray:
    """Both forms for every row of codes: (2, n_relabellings, m)."""
    n, T, m = unit.shape
    flat, K = unit.reshape(n, T * m), int(codes.max()) + 1
    starts = np.flatnonzero(np.r_[True, items[1:] != items[:-1]])
    sums, counts = [], []
    for g in range(K):
        s = (codes == g).astype(float)
        total = (s @ flat).reshape(len(s), T, m)
        # pairs of different items only: the items' own sums are taken out
        own, own_count = np.zeros((len(s), m)), np.zeros((len(s), m))
        for a, b in zip(starts, [*starts[1:], n], strict=True):
            if b - a == 1:
                own += s[:, a : a + 1] * (unit[a] ** 2).sum(axis=0)
                own_count += s[:, a : a + 1] * varies[a]
            else:
                part = np.einsum("bi,itm->btm", s[:, a:b], unit[a:b])
                own += (part**2).sum(axis=1)
                own_count += (s[:, a:b] @ varies[a:b]) ** 2
        sums.append(((total**2).sum(axis=1) - own) / 2)
        counts.append(((s @ varies) ** 2 - own_count) / 2)
    everything = unit.sum(axis=0)
    by_item = np.add.reduceat(flat, starts, axis=0).reshape(len(starts), T, m)
    all_sum = ((everything**2).sum(axis=0) - (by_item**2).sum(axis=(0, 1))) / 2
    all_count = (varies.sum(axis=0) ** 2 - (np.add.reduceat(varies, starts, axis=0) ** 2).sum(axis=0)) / 2
    within, n_within = np.sum(sums, axis=0), np.sum(counts, axis=0)
    disc = _ratio(within, n_within) - _ratio(all_sum - within, all_count - n_within)
    cat = _ratio(sums[pair[0]], counts[pair[0]]) - _ratio(sums[pair[1]], counts[pair[1]])
    return np.stack([disc, cat])


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0.5, total / np.where(count > 0.5, count, 1), np.nan)


def _answer(
    sites: Mapping[str, AnnData],
    regions: Sequence[str],
    inference: Inference,
    *,
    factor: str,
    levels: Sequence[str] | None,
    where: tuple[str, str, int],
) -> Tested:
    name, split, seed = where
    tables, tops = [], []
    for site, adata in sites.items():
        design = design_of(adata)
        known = choose("factor", factor, design.factors)
        two = [
            list(known.levels).index(choose("level", x, {y: y for y in known.levels}))
            for x in levels or known.levels[:2]
        ]
        for region in regions:
            courses = _courses(adata, design, region, factor=factor, split=split, least=inference.min_informative)
            relabelling = _relabelling(courses, design, factor, n=inference.n_permutations, split=split, seed=seed)
            place = {"site": site, "region": region, "position": 0, "split": split, "test": name}
            table, maxima = _at_place(courses, relabelling, factor=factor, pair=(two[0], two[1]), place=place)
            tables.append(table)
            tops.append(maxima)
    table, _ = joined(tables, tops, over="features, both forms, sites and regions")
    return Tested(check_results(table), None, {})


def _courses(adata: AnnData, design: Design, region: str, *, factor: str, split: str, least: int) -> _Courses:
    """Item x level means at every position that all of them have, frames averaged, as unit courses."""
    cells = []
    for position in sorted(positions_in(adata, region)):
        try:
            cells.append(item_cells(adata, design, region=region, position=position, split=split, factors=[factor]))
        except DataError:
            continue  # a position that no item has completely
    keys = [{(c.items[i], c.cells[k][0]): r for r, (i, k) in enumerate(zip(c.row_item, c.row_cell, strict=True))}
            for c in cells]  # fmt: skip
    widest = max((len(k) for k in keys), default=0)
    keep = [n for n, k in enumerate(keys) if len(k) == widest]
    if len(keep) < 3:
        raise DataError(
            f"region '{region}' has {len(keep)} positions that all texts have; a course needs at least 3. Name a "
            "longer region, and set positions.tokens: all."
        )
    rows = list(keys[keep[0]])
    rows.sort(key=lambda key: (cells[keep[0]].items.index(key[0]), key[1]))
    if any(set(keys[n]) != set(rows) for n in keep):
        raise DataError(f"the positions of region '{region}' have other texts; set positions.align or a window.")
    X = [cells[n].X[[keys[n][key] for key in rows]] for n in keep]
    alive = np.flatnonzero(sum(np.diff(x.tocsc().indptr) for x in X))
    P = np.stack([x[:, alive].toarray() for x in X], axis=1)
    unit, varies = unit_courses(P)
    enough = varies.sum(axis=0) >= least
    names = tuple(dict.fromkeys(item for item, _ in rows))
    order = list(design.factors[factor].levels)
    return _Courses(
        unit[:, :, enough], varies[:, enough], np.array([names.index(item) for item, _ in rows]),
        np.array([order.index(level) for _, level in rows]), names,
        adata.var["feature"].to_numpy(dtype=np.int64)[alive[enough]], len(adata.var) - int(enough.sum()),
    )  # fmt: skip


def _relabelling(courses: _Courses, design: Design, factor: str, *, n: int, split: str, seed: int) -> Relabelling:
    numbers = item_numbers(design, courses.names)
    if design.factors[factor].varies == "within":
        if len(courses.codes) != 2 * len(courses.names):
            raise DataError(
                f"'{factor}' has more than two levels within items; name a factor with two, or between items."
            )
        return flips(numbers, n, seed=seed, split=split, two_sided=False)
    strata = None
    if design.strata is not None:
        of = items_of(design)
        carried = [{**of[name].labels, **of[name].levels}[design.strata] for name in courses.names]
        strata = np.unique(carried, return_inverse=True)[1]
    return permutations(numbers, courses.codes, n, blocks=strata, seed=seed, split=split)


def _codes(courses: _Courses, relabelling: Relabelling, first: int, *, count: int) -> np.ndarray:
    """Categories of all texts under relabellings first … first + count - 1."""
    if relabelling.kind != "flip":
        return labels(relabelling, first, count).astype(np.int64)
    flipped = signs(relabelling, first, count)[:, courses.items] < 0
    return np.where(flipped, 1 - courses.codes[None], courses.codes[None])


def _at_place(
    courses: _Courses, relabelling: Relabelling, *, factor: str, pair: tuple[int, int], place: Mapping[str, Any]
) -> tuple[pd.DataFrame, np.ndarray]:
    varies = courses.varies.astype(float)
    parts = []
    with threadpool_limits(1, user_api="blas"):
        for first in range(0, relabelling.n, TILE):
            codes = _codes(courses, relabelling, first, count=min(TILE, relabelling.n - first))
            parts.append(_statistics(courses.unit, varies, codes, pair=pair, items=courses.items).astype(np.float32))
    values = np.concatenate(parts, axis=1)
    # a feature that lacks a pair of some kind under any labels is left out under all of them: no relabelling moves that
    defined = np.isfinite(values).all(axis=1)
    values = np.where(defined[:, None], values, 0.0)  # pyright: ignore
    defined &= values.std(axis=1) > 1e-6
    z = np.stack([in_deviations(form) for form in values])
    z[1] = np.abs(z[1])
    z[~np.broadcast_to(defined[:, None], z.shape)] = -np.inf
    tables = []
    for f, form in enumerate(FORMS):
        sign = 1.0 if f == 0 else np.sign(values[f, 0] - values[f].mean(axis=0))
        table = pd.DataFrame({
            **place, "kind": "temporal_rsa", "effect": f"{factor}: {form}", "set": "features with enough courses",
            "feature": courses.features, "n_features": 1, "stat": f"{form} correlation", "unit": "item",
            "n_units": len(courses.names), "n_informative": courses.varies.sum(axis=0),
            "value": z[f, 0] * sign, "estimate": values[f, 0].astype(float),
            "p_unc": (z[f] >= z[f, 0] - 1e-5 * (1 + np.abs(z[f, 0]))).mean(axis=0), "p_method": relabelling.method(),
            "n_perm": relabelling.n, "p_min": 1 / relabelling.n, "status": "ok", "note": None,
            "x_n_tokens": courses.unit.shape[1],
            "alternative": "greater" if f == 0 else "two-sided", "x_n_texts": courses.varies.sum(axis=0),
            "h0": f"the labels of {factor} are exchangeable, jointly for all features",
        })  # fmt: skip
        lost = ~defined[f]
        table.loc[lost, ["value", "estimate", "p_unc"]] = np.nan
        table.loc[lost, "status"] = "untestable"
        table.loc[lost, "note"] = "under some labels a category has no pair of texts whose courses vary"
        tables.append(table)
    why = "never active, or with a course that varies in too few texts"
    if courses.n_other:
        rest = {**place, "kind": "temporal_rsa", "set": "other features", "n_features": courses.n_other}
        rest |= {"status": "untestable", "note": why, "p_method": "none"}
        tables.append(pd.DataFrame([{**rest, "effect": f"{factor}: {form}"} for form in FORMS]))
    return pd.concat(tables, ignore_index=True), np.where(np.isfinite(z), z, -np.inf).max(axis=(0, 2))
