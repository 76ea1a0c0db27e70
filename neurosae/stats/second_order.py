r"""Second-order geometry: do layers, sites, dictionaries, models or token positions arrange the stimuli alike?

1. The RDM of every place (`geometry`): site, region, position; sites may come from other dictionaries or other models.
2. Two places are compared by their RDMs (conditions; rank correlation and whitened cosine) and by their kernels (item x
   condition rows; linear CKA, plain and debiased).
3. Intervals of RDM agreement come from bootstrapped items, p of CKA from permuting whole items of one place, the same
   permutation for all pairs, so that the maximum over pairs corrects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError, choose
from neurosae.spec.geometry import SecondOrderBlock
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results, counted_p
from neurosae.stats import rdm
from neurosae.stats.geometry import Place, Question, places, question
from neurosae.stats.rdm_compare import COMPARATORS, compare_rdms

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
    conditions : factors, and "frame", whose combinations are the rows of the RDMs
    region : one region or several
    inference : as under `inference:`; `n_permutations` and `min_informative` are used
    settings : as in a `second_order` test: `distance`, `noise`, `measures` (rho-a, cosine_cov, cka, cka_debiased, or
        another comparator of RDMs), `n_bootstrap` (1000), `split`, `sites`
    seed : int

    Returns
    -------
    DataFrame
        The results schema, a row per pair and measure: `effect` is "first ~ second", `value` the agreement. RDM
        measures have a 95 % percentile interval over bootstrapped items and no p; CKA has p and p_corr (maximum over
        pairs). `x_first`, `x_second` name the two places.

    Raises
    ------
    DataError
        Fewer than two places, places without common items, or with other conditions.

    Notes
    -----
    H0 of CKA: which item is which at one place says nothing about the other; whole items of one place are permuted
    (among items of the same conditions). A high agreement of two RDMs of few conditions is no evidence by itself:
    with K conditions there are K (K-1) / 2 distances, which is why it has an interval and no p. One language model is
    one subject: intervals are over items like these, for these places.

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
    models = {"n_tokens": {"column": "n_tokens"}}
    given = dict(settings or {})
    block = {"test": "second_order", "region": region, "conditions": list(conditions), **given}
    ask = as_record(block, SecondOrderBlock, name="second_order")
    rest = {k: v for k, v in given.items() if k in ("distance", "noise", "split", "sites")}
    asked = question(models, conditions, region, inference=inference, settings=rest, seed=seed)
    asked = Question("second_order", asked.ask, {}, asked.inference, seed)
    return _answer(asked, ask, responses).table


def run(responses: Any, ask: SecondOrderBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """Answer a `second_order` block of an analysis."""
    spec = study.spec
    name = next((name for name, block in spec.tests.items() if block is ask), "second_order")
    rest = ask.model_dump(include={"distance", "noise", "split", "sites"}, exclude_none=True)
    models = {"n_tokens": {"column": "n_tokens"}}
    asked = question(models, ask.conditions, ask.region, inference=spec.inference, settings=rest, seed=spec.seed)
    return _answer(Question(name, asked.ask, {}, spec.inference, spec.seed), ask, responses)


@dataclass(frozen=True)
class _Pair:
    """Two places and what their rows have in common: rows of each, and the item of every common row."""

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
    if len(items) < 3:
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
    with threadpool_limits(1, user_api="blas"):
        rows = _rdm_rows(asked, ask, pairs)
        kernels, null_max = _kernel_rows(asked, ask, pairs)
    frame = pd.DataFrame([r for name in ask.measures for r in rows + kernels if r["stat"] == name])
    table = check_results(as_results({name: frame[name] for name in frame.columns}))
    return Tested(table, null_max, {})


def _about(asked: Question, pair: _Pair, measure: str) -> dict[str, Any]:
    one, two = pair.first, pair.second
    where = {"site": one.site, "region": one.region, "position": one.position}
    note = "" if len(pair.items) == len(one.found.items) else f"{len(pair.items)} items that both places have."
    return {
        "test": asked.name, "kind": "second_order", "effect": pair.name, **where, "split": asked.ask.split,
        "set": f"{measure} over all informative features", "stat": measure, "unit": "item", "n_units": len(pair.items),
        "n_features": one.found.n_features, "note": note, "x_n_features_second": two.found.n_features,
        "x_first": " ".join(map(str, one.key)), "x_second": " ".join(map(str, two.key)),
    }  # fmt: skip


def _rdm_rows(asked: Question, ask: SecondOrderBlock, pairs: Sequence[_Pair]) -> list[dict[str, Any]]:
    """Agreement of RDMs with intervals over bootstrapped items, the same draw at both places."""
    measures = [m for m in ask.measures if m not in KERNELS]
    rows = []
    for pair in pairs:
        rng = np.random.default_rng([asked.seed, 5])  # every pair draws its items alike
        sides = [_common(place, pair.items) for place in (pair.first, pair.second)]
        draws = rdm.item_draws(sides[0][1], ask.n_bootstrap, rng) if measures else None
        drawn = [rdm.weighted_rdms(G, f, draws, distance=asked.ask.distance) for G, f in sides] if measures else []  # pyright: ignore
        whole = [rdm.distances(G, f, asked.ask.distance) for G, f in sides]
        for measure in measures:
            value = compare_rdms(whole[0], whole[1], measure)
            values = np.array([compare_rdms(a, b, measure) for a, b in zip(*drawn, strict=True)])
            ok = bool(np.isfinite(value) and np.isfinite(values).all())
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if ok else (np.nan, np.nan)
            row = _about(asked, pair, measure) | {
                "value": value, "se": values.std(ddof=1) if ok else np.nan, "ci_low": low, "ci_high": high,
                "ci_level": LEVEL, "status": "ok" if np.isfinite(value) else "degenerate", "p_method": "none",
                "h0": "none: an agreement of RDMs is described with its interval over items, not tested",
            }  # fmt: skip
            if not np.isfinite(value):
                row["note"] = "One of the RDMs has no variation, so there is nothing to agree in."
            rows.append(row)
    return rows


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


def _kernel_rows(
    asked: Question, ask: SecondOrderBlock, pairs: Sequence[_Pair]
) -> tuple[list[dict[str, Any]], np.ndarray | None]:
    """CKA of every pair, and its distribution when whole items of the second place are permuted."""
    measures = [m for m in ask.measures if m in KERNELS]
    if not measures:
        return [], None
    n, nulls, rows = asked.inference.n_permutations, {}, []
    for measure in measures:
        for number, pair in enumerate(pairs):  # a name may stand for several pairs: head ~ verb at every site
            A, B = (centred_kernel(place.gram[np.ix_(r, r)], debiased=measure == "cka_debiased")
                    for place, r in zip((pair.first, pair.second), pair.rows, strict=True))  # fmt: skip
            orders = _item_orders(pair, n, seed=asked.seed)
            lengths = np.sqrt((A * A).sum() * (B * B).sum())
            if lengths > 0:
                nulls[measure, number] = np.array([(A * B[np.ix_(o, o)]).sum() for o in orders]) / lengths
    # pairs are compared in standard deviations of their own null: kernels of other sizes have other CKA by chance
    scaled = {key: (v - v.mean()) / max(v.std(), 1e-12) for key, v in nulls.items()}
    top = {m: np.max([v for (name, _), v in scaled.items() if name == m], axis=0) for m in {k for k, _ in nulls}}
    for measure in measures:
        for number, pair in enumerate(pairs):
            row, null = _about(asked, pair, measure), nulls.get((measure, number))
            if null is None:
                why = "One of the places does not vary over its rows, so there is no kernel to compare."
                rows.append(row | {"status": "degenerate", "note": why, "p_method": "none"})
                continue
            rows.append(row | {
                "value": null[0], "p_unc": float(counted_p(null, null[:1], tolerance=1e-9)[0]),
                "p_corr": float(counted_p(top[measure], scaled[measure, number][:1], tolerance=1e-9)[0]),
                "p_adjust": "maxT",
                "p_method": "permutations", "family": f"maximum of {measure} over all pairs of places of this test",
                "n_family": len(pairs), "n_perm": n, "p_min": 1 / n, "alternative": "greater", "status": "ok",
                "n_informative": len(pair.items),
                "h0": "which item is which at one place says nothing about the geometry of items at the other",
            })  # fmt: skip
    return rows, None


def _item_orders(pair: _Pair, n: int, *, seed: int) -> np.ndarray:
    """Row orders that permute whole items among items of the same conditions (n, n_rows), the identity first."""
    by_item = [np.flatnonzero(pair.row_item == k) for k in range(len(pair.items))]
    kind = [tuple(pair.row_condition[rows].tolist()) for rows in by_item]
    groups = [[k for k in range(len(kind)) if kind[k] == one] for one in dict.fromkeys(kind)]
    rng, out = np.random.default_rng([seed, 6]), np.empty((n, len(pair.row_item)), dtype=np.int64)
    for b in range(n):
        for group in groups:
            drawn = group if b == 0 else rng.permutation(group)
            for to, source in zip(group, drawn, strict=True):
                out[b, by_item[to]] = by_item[source]
    return out
