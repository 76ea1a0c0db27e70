r"""Combination: does a feature differ in at least one of several parts? p of the parts, combined in every relabelling.

Parts are positions, regions, effects or sites. With p_k the p of part k from the normal equivalent of its statistic,

    Fisher -2 sum_k log p_k,   Stouffer sum_k z_k / sqrt(K),   Tippett min_k p_k,

are computed under the same relabelling of whole items in all parts, so that their dependence is kept, and compared with
their own values under all relabellings (p_unc), or with the maximum over features (p_corr). The number of parts may
differ between features: combined values are compared as the p that independent parts would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from neurosae.errors import DataError, choose
from neurosae.spec.blocks import CombinationBlock, ConjunctionBlock, Inference
from neurosae.spec.results import Tested, as_results, check_results, counted_p, directed
from neurosae.stats.asked import Asked, named_effects, read_block, responses_by_site, settings_of
from neurosae.stats.contrast import cells_of
from neurosae.stats.family import Cell, negated, relabel_cells
from neurosae.stats.flips import Columns, each_tile, maxima, take
from neurosae.stats.lanes import lane_values, lane_z
from neurosae.stats.minimum import infer_conjunction, stacked
from neurosae.stats.multiplicity import CORRECTIONS, bb, monte_carlo_interval
from neurosae.stats.relabel import Relabelling
from neurosae.stats.statistics import STATISTICS
from neurosae.stats.units import AnnData

CHUNK = 512  # features combined at a time
TIE = 1e-5  # of the combined evidence, relative to 1 + its size
OVER = ("position", "region", "effect", "site")
PLACE = ("effect", "site", "region", "position")
LOG_2 = float(np.log(2.0))


def run(responses: Mapping[str, AnnData], ask: Any, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """One block of `tests:` with `test: combination` or `test: conjunction`."""
    asked, sites, settings = read_block(ask, study, responses)
    if isinstance(ask, ConjunctionBlock):
        return infer_conjunction(sites, asked, settings, seed=study.spec.seed)
    assert isinstance(ask, CombinationBlock)
    return infer_combination(sites, asked, (ask.over, ask.how), inference=settings, seed=study.spec.seed)


def combine(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    over: str = "position",
    how: str = "fisher",
    inference: Mapping[str, Any] | Inference | None = None,
    seed: int,
) -> pd.DataFrame:
    """Combine the evidence of several parts for every feature, non-parametrically.

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : one effect, or {name: effect} for several
    region : name or names
    over : "position", "region", "effect", or "site"
        Features of different sites are different features: over sites the largest statistic of each is combined, and
        one row speaks for all features.
    how : "fisher" (parts add up, in any direction), "stouffer" (parts of the same direction add up), "tippett" (the
        strongest part)
    inference : keys of the `inference:` section
        With another correction than maxT there must be enough relabellings for a counted p of alpha over the number of
        features.
    seed : int

    Returns
    -------
    DataFrame
        The results schema; `value` is the combined statistic, `x_z` its normal equivalent, `x_n_parts` the number of
        parts in which the feature could be tested.

    Raises
    ------
    DataError
        The statistic has no p of its own (mean), or the correction needs more relabellings.

    Notes
    -----
    H0: none of the parts differs. Its rejection says that at least one does, not which.

    References
    ----------
    Pesarin (2001), Multivariate Permutation Tests. Winkler et al. (2016), Non-parametric combination and related
    permutation tests for neuroimaging, Hum. Brain Mapp. 37:1486.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(24), n_features=40, effects={"number": 3}, density=0.4, shift=5.0, seed=1)
    >>> same = {"a": {"number": {"pl": 1, "sg": -1}}, "b": {"number": {"pl": 2, "sg": -2}}}
    >>> found = combine(fake, same, region="noun", over="effect", how="stouffer", seed=1)
    >>> found[found.p_corr <= 0.05].feature.tolist(), int(found.x_n_parts.iloc[0])
    ([0, 1, 2], 2)
    """
    regions = (region,) if isinstance(region, str) else tuple(region)
    asked = Asked("combination", named_effects(effect), regions, "test")
    sites = responses_by_site(responses)
    return infer_combination(sites, asked, (over, how), inference=settings_of(inference), seed=seed).table


def infer_combination(
    sites: Mapping[str, AnnData], asked: Asked, rule: tuple[str, str], *, inference: Inference, seed: int
) -> Tested:
    """Combine over rule[0] (position, region, effect, site) by rule[1] (fisher, stouffer, tippett)."""
    over, how = choose("part", rule[0], dict(zip(OVER, OVER, strict=True))), choose("combination", rule[1], COMBINED)
    cells, silent = cells_of(sites, asked, inference)
    if not cells:
        raise DataError("no feature can be tested in any part; choose another region or split.")
    ready = [STATISTICS[inference.statistic](cell.data, cell.kept) for cell in cells]
    settings = _settings(inference, cells, unsigned=any(r.columns.how.negate is None for r in ready), how=rule[1])
    relabellings, columns = relabel_cells(cells, ready, settings, seed=seed, split=asked.split)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k, cell in enumerate(cells):
        groups.setdefault(_key(cell.place._asdict(), asked, sites, over=over), []).append(k)
    tables, tops = [], []
    for key, members in groups.items():
        own = [cells[k] for k in members]
        union = np.unique(np.concatenate([cell.kept for cell in own]))
        parts = [Part(columns[k], relabellings[k], np.searchsorted(union, cells[k].kept)) for k in members]
        found = combined_maxima(parts, how, alternative=inference.alternative, of_maxima=over == "site")
        tops.append(found.null)
        tables.append(_rows(key, own, found, union=union, over=over))
        if over != "site":
            few = _silent(silent, key, asked, sites=sites, over=over)
            tables.append(_rest(tables[-1], few, sites[key[1]].n_vars))
    null = np.maximum.reduce(tops)
    table = _finish(tables, null, relabellings[0], inference=inference)
    table["stat"] = pd.array([None if pd.isna(v) else rule[1] for v in table["value"]], dtype="string")
    family = f"all testable features of test {asked.test}, combined over {over}s"
    table["family"] = pd.array([family] * len(table), dtype="string")
    sizes = {} if over == "site" else {site: adata.n_vars for site, adata in sites.items()}
    return Tested(check_results(table, sizes), null.astype(np.float32), {})


def _settings(inference: Inference, cells: Sequence[Cell], *, unsigned: bool, how: str) -> Inference:
    """The rules of the relabelling; what cannot be combined is refused."""
    if inference.statistic == "mean":
        raise DataError("statistic mean has no p of its own that could be combined; use t or moderated_t.")
    if unsigned and inference.alternative != "two-sided":
        raise DataError(f"{inference.statistic} has no sign; combine it with alternative: two-sided.")
    if unsigned and how == "stouffer":
        raise DataError(
            f"stouffer adds up parts of one direction, and {inference.statistic} has none; use fisher or tippett."
        )
    if inference.correction == "stepdown":
        raise DataError("stepdown is not made for combined parts; use correction maxT.")
    n = inference.n_permutations
    if CORRECTIONS[inference.correction] is not None and inference.correction != "none":
        needed = int(np.ceil(len(set(np.concatenate([c.kept for c in cells]).tolist())) / inference.alpha))
        if n < needed:
            raise DataError(
                f"correction {inference.correction} counts p, which needs {needed:,} relabellings here, not {n:,}; "
                "raise n_permutations, or use maxT."
            )
    return inference.model_copy(update={"correction": "maxT"})


# ------------------------------------------------------------------ the combined statistics


class Combined(NamedTuple):
    """Fisher's, Stouffer's or Tippett's: acc = join over parts of term(z), beginning with 0.

    evidence(acc, K, two_sided) grows with the evidence, whatever the number of parts K: -log of the combined p, or,
    where `is_z`, its normal equivalent; value(acc, K) is what is reported.
    """

    join: np.ufunc
    term: Callable[[np.ndarray, str], np.ndarray]
    evidence: Callable[[np.ndarray, np.ndarray, bool], np.ndarray]
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    is_z: bool = False

    def to_z(self, evidence: np.ndarray, two_sided: bool) -> np.ndarray:
        """Normal equivalent of the combined p."""
        return evidence if self.is_z else _of_log_p(-evidence, two_sided)


def _log_p(z: np.ndarray, alternative: str) -> np.ndarray:
    return special.log_ndtr(-directed(z, alternative)) + (LOG_2 if alternative == "two-sided" else 0.0)


def _of_log_p(log_p: np.ndarray, two_sided: bool) -> np.ndarray:
    return -special.ndtri_exp(np.minimum(log_p, -1e-15) - (LOG_2 if two_sided else 0.0))


def _fisher(acc: np.ndarray, K: np.ndarray, _: bool) -> np.ndarray:
    """-log P(chi^2 with 2K df >= acc) = h - log sum_{i < K} h^i / i!, h = acc / 2."""
    h, total, term = acc / 2, np.ones_like(acc), np.ones_like(acc)
    for i in range(1, int(K.max(initial=1))):
        term = term * h / i
        total = total + np.where(i < K, term, 0.0)
    return h - np.log(total)


def _tippett(acc: np.ndarray, K: np.ndarray, _: bool) -> np.ndarray:
    """-log P(smallest of K p <= exp(acc)) = -log(1 - (1 - p)^K)."""
    return -np.log(-np.expm1(K * np.log1p(-np.minimum(np.exp(acc), 1 - 1e-16))))


def _stouffer(acc: np.ndarray, K: np.ndarray, two_sided: bool) -> np.ndarray:
    z = acc / np.sqrt(K)
    return np.abs(z) if two_sided else z


COMBINED: Mapping[str, Combined] = {
    "fisher": Combined(np.add, lambda z, a: -2 * _log_p(z, a), _fisher, lambda acc, K: acc),
    "stouffer": Combined(
        np.add, lambda z, a: -z if a == "less" else z, _stouffer, lambda acc, K: acc / np.sqrt(K), is_z=True
    ),
    "tippett": Combined(np.minimum, _log_p, _tippett, lambda acc, K: np.exp(acc)),
}


class Part(NamedTuple):
    """Columns of one part, its relabelling, and the places of its features among all m of them."""

    columns: Columns
    relabelling: Relabelling
    at: np.ndarray


class Found(NamedTuple):
    """Combined statistics of m features: value, z, number of parts, p by itself; null (B,) maxima on the z scale."""

    value: np.ndarray
    z: np.ndarray
    n_parts: np.ndarray
    p: np.ndarray
    null: np.ndarray


def combined_maxima(parts: Sequence[Part], how: Combined, *, alternative: str, of_maxima: bool = False) -> Found:
    """Combine parts feature by feature under the same relabellings; or only the largest statistics of the parts."""
    if of_maxima:
        return _over_maxima(parts, how, alternative=alternative)
    m = 1 + max(int(part.at.max()) for part in parts)
    n_parts = np.bincount(np.concatenate([part.at for part in parts]), minlength=m)
    chunks = [_chunk(parts, start, min(m, start + CHUNK)) for start in range(0, m, CHUNK)]
    starts, two_sided = range(0, m, CHUNK), alternative == "two-sided"

    def joined(chunk: list[Part], K: np.ndarray, first: int) -> np.ndarray:
        acc: Any = None
        for part in chunk:
            u = lane_values(part.columns, part.relabelling, first)
            acc = np.zeros((len(K), u.shape[1])) if acc is None else acc
            acc[part.at] = how.join(acc[part.at], how.term(lane_z(part.columns, u), alternative))
        return acc

    pieces = [(chunk, n_parts[a : a + CHUNK, None]) for chunk, a in zip(chunks, starts, strict=True)]
    first = np.concatenate([joined(*piece, 0)[:, :1] for piece in pieces])
    observed = how.evidence(first, n_parts[:, None], two_sided)[:, 0]
    limit = observed - TIE * (1 + np.abs(observed))

    def tile(first: int) -> tuple[np.ndarray, np.ndarray]:
        each = [how.evidence(joined(chunk, K, first), K, two_sided) for chunk, K in pieces]
        reached = [(e >= limit[a : a + CHUNK, None]).sum(axis=1) for e, a in zip(each, starts, strict=True)]
        return np.max([e.max(axis=0) for e in each], axis=0), np.concatenate(reached)

    out = each_tile(tile, parts[0].relabelling)
    top = np.concatenate([mx for mx, _ in out])
    p = np.sum([n for _, n in out], axis=0) / parts[0].relabelling.n
    value = how.value(first, n_parts[:, None])[:, 0] * (-1 if how.is_z and alternative == "less" else 1)
    return Found(value, how.to_z(observed, two_sided), n_parts, p, how.to_z(top, two_sided))


def _chunk(parts: Sequence[Part], start: int, stop: int) -> list[Part]:
    """What the parts have of features start ... stop - 1."""
    out = []
    for part in parts:
        inside = np.flatnonzero((part.at >= start) & (part.at < stop))
        if len(inside):
            out.append(Part(take(part.columns, inside), part.relabelling, part.at[inside] - start))
    return out


def _over_maxima(parts: Sequence[Part], how: Combined, *, alternative: str) -> Found:
    """One statistic for all features: p of the largest of each part, by its rank among the relabellings."""
    K, acc = np.full(1, len(parts)), np.zeros(parts[0].relabelling.n)
    for part in parts:
        columns = negated(part.columns) if alternative == "less" else part.columns
        top = maxima(columns, part.relabelling, two_sided=alternative == "two-sided")[0]
        z = np.asarray(columns.how.to_z(top, columns.df))
        p = np.minimum(counted_p(z, z), 1 - 0.5 / len(z))
        acc = how.join(acc, how.term(-special.ndtri(p), "greater"))
    evidence = how.evidence(acc, K, False)
    null = _of_log_p(special.log_ndtr(-evidence) if how.is_z else -evidence, alternative == "two-sided")
    p = (evidence >= evidence[0] - TIE * (1 + abs(evidence[0]))).mean()
    return Found(how.value(acc[:1], K), null[:1], K, np.full(1, p), null)


# ------------------------------------------------------------------ rows


def _key(place: Mapping[str, Any], asked: Asked, sites: Mapping[str, Any], *, over: str) -> tuple[Any, ...]:
    """Effect, site, region and position of the combined rows; what was combined names all its parts."""
    joined = {"effect": " | ".join(asked.effects), "site": ", ".join(sites), "region": ", ".join(asked.regions)}
    made = {name: place[name] for name in PLACE}
    made[over] = joined.get(over)
    return tuple(made.values())


def _rows(key: tuple, cells: Sequence[Cell], found: Found, *, union: np.ndarray, over: str) -> pd.DataFrame:
    """The tested rows of one group of parts."""
    names = list(dict.fromkeys(str(getattr(cell.place, over)) for cell in cells))
    informative = np.zeros(union.max() + 1, dtype=int)
    for cell in cells:
        informative[cell.kept] = np.maximum(informative[cell.kept], cell.data.informative[cell.kept])
    one, data = over == "site", cells[0].data
    who = "no feature differs at any of" if one else "no difference in any of"
    return as_results(
        dict(zip(PLACE, key, strict=True))
        | {
            "test": cells[0].place.test,
            "kind": "combination",
            "split": cells[0].place.split,
            "feature": np.array([pd.NA]) if one else data.features[union],
            "n_features": sum(len(cell.kept) for cell in cells) if one else 1,
            "value": found.value,
            "p_unc": found.p,
            "unit": data.exchange.unit,
            "n_units": data.n,
            "n_informative": pd.NA if one else informative[union],
            "h0": f"{who} the {over}s {', '.join(names)}; rejected: at least one",
            "status": "ok",
            "note": data.exchange.note or pd.NA,
            "x_z": found.z,
            "x_n_parts": found.n_parts,
        }
    )


def _silent(
    silent: Sequence[pd.DataFrame], key: tuple, asked: Asked, *, sites: Mapping[str, Any], over: str
) -> pd.DataFrame:
    """Rows of untestable features in the parts of one group."""
    rows = [t[t["feature"].notna() & (t["status"] == "untestable")] for t in silent]
    rows = [
        t for t in rows if len(t) and _key({name: t[name].iloc[0] for name in PLACE}, asked, sites, over=over) == key
    ]
    return stacked(rows)


def _rest(tested: pd.DataFrame, few: pd.DataFrame, n_features: int) -> pd.DataFrame:
    """Features that could be tested in none of the parts, one by one, and the dead ones together."""
    few = few[~few["feature"].isin(tested["feature"])].drop_duplicates("feature")
    left = n_features - len(tested) - len(few)
    place = {name: tested[name].iloc[0] for name in ("test", "kind", "effect", "site", "region", "position", "split")}
    parts = [] if few.empty else [as_results(place | {
        "feature": few["feature"], "n_features": 1, "status": "untestable", "n_units": few["n_units"],
        "n_informative": few["n_informative"], "note": "too few informative items in every part",
    })]  # fmt: skip
    if left:
        why = {"n_features": left, "status": "dead", "note": "no activity in any tested row of any part"}
        parts.append(as_results(place | why, n_rows=1))
    return stacked(parts)


def _finish(
    tables: Sequence[pd.DataFrame], null: np.ndarray, relabelling: Relabelling, *, inference: Inference
) -> pd.DataFrame:
    """All rows with their corrected p."""
    table = stacked(tables)
    ok, correct = (table["status"] == "ok").to_numpy(), CORRECTIONS[inference.correction]
    p, z, B = table["p_unc"].to_numpy(dtype=float), table["x_z"].to_numpy(dtype=float), relabelling.n
    if correct is None:
        table["p_corr"] = counted_p(null, z)
    else:
        table["p_corr"] = bb(p, table["site"].to_numpy()).p if inference.correction == "bb" else correct(p)
    if correct is None and not relabelling.exhaustive:
        table["x_p_low"], table["x_p_high"] = monte_carlo_interval(table["p_corr"].to_numpy(dtype=float), B)
    table["x_z"] = -z if inference.alternative == "less" else z
    table["n_perm"] = pd.array([B if tested else pd.NA for tested in ok], dtype="Int64")
    table["p_method"] = pd.array([relabelling.method() if tested else pd.NA for tested in ok], dtype="string")
    table["p_min"] = np.where(ok, 1 / B, np.nan)
    known = {"p_adjust": inference.correction, "alternative": inference.alternative}
    for name, value in known.items():
        table[name] = pd.array([value] * len(table), dtype="string")
    table["n_family"] = pd.array([int(ok.sum())] * len(table), dtype="Int64")
    return table
