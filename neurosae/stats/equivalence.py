r"""Equivalence: is an effect smaller than what would matter? Two one-sided tests, p the larger of the two.

Absence of a significant difference is no evidence of absence. With a smallest effect of interest s > 0 the hypotheses
mean(d) <= -s and mean(d) >= s are both tested; if both are rejected the effect lies between them, and so does the 90 %
interval that belongs to the tests at .05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

from neurosae.errors import DataError, choose
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import EquivalenceBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.asked import positions_in, read_block, responses_by_site
from neurosae.stats.effects import FEW
from neurosae.stats.multiplicity import CORRECTIONS
from neurosae.stats.tails import flip_p
from neurosae.stats.units import AnnData, ItemData, item_data

ALPHA = 0.05
SCALES = {"d_z": "standard deviations of the items' contrasts", "units": "activation units"}


class Bounds(NamedTuple):
    """Smallest effect of interest on both sides in activation units (m,), and the two one-sided p of the t version."""

    bound: np.ndarray
    p_above: np.ndarray
    p_below: np.ndarray


def equivalence(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str,
    smallest: float,
    scale: str = "d_z",
    sets: Mapping[str, Sequence[int]] | None = None,
    correction: str = "holm",
) -> pd.DataFrame:
    r"""Test that an effect is smaller than the smallest one of interest, per feature or per set of features.

    With s the bound in activation units (scale "units"),

        t- = (mean(d) + s) / se on H0 mean(d) <= -s,   t+ = (mean(d) - s) / se on H0 mean(d) >= s,   p = max(p-, p+).

    In standard deviations (scale "d_z") t = mean / se is compared with the noncentral t whose noncentrality is
    -+ smallest sqrt(n).

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : one effect
    region : name of the region
    smallest : > 0, the smallest effect that would matter
    scale : "d_z" or "units"
    sets : {name: feature indices}, optional
        Test the mean response over the features of each set instead of every feature.
    correction : key of CORRECTIONS that works on p, e.g. "holm", "fdr_bh", "none"

    Returns
    -------
    DataFrame
        The results schema. Within items and in units, p_unc is that of flips of the shifted contrasts (p_method exact
        or saddlepoint) and `x_p_parametric` that of t; otherwise p_unc is parametric. `x_p_above` and `x_p_below` are
        the two one-sided p, `x_smallest` the bound in activation units; the interval is at 90 %.

    Raises
    ------
    DataError
        The bound is not positive, or a set names a feature that is not there.

    Notes
    -----
    H0: the effect is at least as large as the bound, in either direction. No relabelling of the design leaves a mean of
    s unchanged, so flips about s need contrasts that are distributed symmetrically about their mean, and the row says
    so. Fewer than 10 informative items are untestable: that a rare feature stayed silent is no evidence about its
    effect.

    References
    ----------
    Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657. Lakens (2017), Equivalence tests, Soc. Psychol. Personal.
    Sci. 8:355.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(60), n_features=12, effects={"number": 2}, density=0.5, shift=6.0, seed=1)
    >>> table = equivalence(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", smallest=0.8)
    >>> bool((table.p_corr[:2] > 0.9).all()), bool((table.p_corr[2:] <= 0.05).any())
    (True, True)
    """
    choose("scale", scale, SCALES)
    correct = choose("correction", correction, CORRECTIONS)
    if correct is None or correction == "bb":
        raise DataError(f"correction {correction} is not made from single p; use holm, fdr_bh or fdr_by.")
    if not smallest > 0:
        raise DataError(f"the smallest effect of interest is {smallest:g}; give a positive number.")
    name = next(iter(effect)) if len(effect) == 1 else ":".join(effect)
    tables = []
    for site, adata in responses_by_site(responses).items():
        data = item_data(adata, design_of(adata), effect, region=region)
        label = None if sets is None else list(sets)
        data = data if sets is None else _pooled(data, sets)
        place = {"test": "equivalence", "kind": "equivalence", "effect": name, "site": site, "region": region}
        tables.append(_rows(data, place, (smallest, scale), label=label))
    return _family(tables, correction, f"all {'features' if sets is None else 'sets'} of the equivalence test")


def run(
    responses: Mapping[str, AnnData], ask: EquivalenceBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: equivalence`; its effects, sites, regions and positions are one family."""
    asked, sites, _ = read_block(ask, study, responses)
    tables = []
    for name, effect in asked.effects.items():
        for site, adata in sites.items():
            for region in asked.regions:
                for position in positions_in(adata, region):
                    place = {"test": asked.test, "kind": "equivalence", "effect": name, "site": site, "region": region}
                    place |= {"position": position, "split": asked.split}
                    where = {"region": region, "position": position, "split": asked.split}
                    try:
                        data = item_data(adata, design_of(adata), effect, **where)
                    except DataError as error:
                        if position == 0:
                            raise
                        tables.append(_without(place, adata.n_vars, "failed", note=str(error)))
                        continue
                    tables.append(_without_dead(_rows(data, place, (ask.smallest, ask.scale), label=None), data, place))
    family = f"all features x positions of test {asked.test}: effects {', '.join(asked.effects)}; "
    family += f"regions {', '.join(asked.regions)}; sites {', '.join(sites)}"
    table = _family(tables, ask.correction, family)
    return Tested(check_results(table, {site: adata.n_vars for site, adata in sites.items()}), None, {})


def _without_dead(rows: pd.DataFrame, data: ItemData, place: Mapping[str, Any]) -> pd.DataFrame:
    """One row for all features without activity in the tested rows."""
    dead = np.bincount(data.Y.indices, minlength=len(rows)) == 0
    if not dead.any():
        return rows
    one = _without(place, int(dead.sum()), "dead", note="no activity in any tested row")
    return pd.concat([rows[~dead].dropna(axis=1, how="all"), one.dropna(axis=1, how="all")], ignore_index=True)


def _without(place: Mapping[str, Any], n: int, status: str, *, note: str) -> pd.DataFrame:
    columns = {"n_features": n, "status": status, "note": note, "alternative": "two one-sided"}
    return as_results(dict(place) | columns, n_rows=1)


def _family(tables: Sequence[pd.DataFrame], correction: str, family: str) -> pd.DataFrame:
    """All rows with their p corrected over them."""
    correct = CORRECTIONS[correction]
    assert correct is not None
    table = pd.concat([t.dropna(axis=1, how="all") for t in tables if len(t)], ignore_index=True)
    p = table["p_unc"].to_numpy(dtype=float, na_value=np.nan) if "p_unc" in table else np.full(len(table), np.nan)
    rest = {"p_corr": correct(p), "p_adjust": correction, "family": family, "n_family": int(np.isfinite(p).sum())}
    return check_results(as_results({str(c): table[c].array for c in table} | rest))


def _pooled(data: ItemData, sets: Mapping[str, Sequence[int]]) -> ItemData:
    """The data with one column per set, the mean over its features."""
    place = pd.Index(data.features)
    pick = np.zeros((len(data.features), len(sets)))
    for k, (name, members) in enumerate(sets.items()):
        at = place.get_indexer(pd.Index(np.unique(np.asarray(members, dtype=int))))
        if not len(at) or (at < 0).any():
            raise DataError(f"set '{name}' is empty or names a feature that this site does not have.")
        pick[at, k] = 1 / len(at)
    D, Y = sp.csc_matrix(data.D @ pick), sp.csr_matrix(data.Y @ pick)
    D.eliminate_zeros()
    return replace(data, D=D, Y=Y, features=np.arange(len(sets)))


def _rows(
    data: ItemData, place: Mapping[str, Any], asked: tuple[float, str], *, label: Sequence[str] | None
) -> pd.DataFrame:
    D, (smallest, scale) = data.D.toarray(), asked
    informative, m = np.diff(data.D.indptr), data.D.shape[1]  # pyright: ignore[reportOptionalSubscript]
    estimate, se, dof, spread = _moments(D, data)
    tested = (informative >= FEW) & (se > 0)
    safe = np.where(se > 0, se, 1.0)
    bounds = _bounds(estimate / safe, safe, dof, spread=spread, asked=asked, n=data.n if data.codes is None else None)
    parametric = np.maximum(bounds.p_above, bounds.p_below)
    exact = scale == "units" and data.codes is None
    p, method = parametric, np.full(m, "parametric", dtype=object)
    if exact:
        above = flip_p(sp.csc_matrix(D + smallest), alternative="greater")
        below = flip_p(sp.csc_matrix(D - smallest), alternative="less")
        bounds = Bounds(bounds.bound, above[0], below[0])
        p, method = np.maximum(above[0], below[0]), np.where(above[1] & below[1], "exact", "saddlepoint")
    half = stats.t.isf(ALPHA, dof) * se

    def known(x: np.ndarray) -> np.ndarray:
        return np.where(tested, x, np.nan)

    method = [name if ok else pd.NA for name, ok in zip(method, tested, strict=True)]
    few = [
        pd.NA if ok else f"{k} informative items: too few to show the absence of an effect, use {FEW} or more"
        for ok, k in zip(tested, informative, strict=True)
    ]
    unit = SCALES[scale] if data.codes is None or scale == "units" else "pooled standard deviations"
    said = "flips about the bound need contrasts that are symmetric about their mean" if exact else pd.NA
    return as_results(
        {"position": 0, "split": "test"}
        | dict(place)
        | {
            "feature": pd.NA if label is not None else data.features,
            "set": label, "n_features": 1, "stat": "TOST", "value": known(np.minimum(
                (estimate + bounds.bound) / safe, (bounds.bound - estimate) / safe)), "dof": known(dof),
            "estimate": known(estimate), "se": known(se), "effsize": known(estimate / np.where(spread > 0, spread, 1)),
            "eftype": "d_z" if data.codes is None else "d", "ci_low": known(estimate - half),
            "ci_high": known(estimate + half), "ci_level": 1 - 2 * ALPHA, "p_unc": known(p),
            "p_method": method, "unit": data.exchange.unit, "n_units": data.n,
            "n_informative": informative, "alternative": "two one-sided",
            "h0": f"the effect is {smallest:g} {unit} or more, in either direction",
            "status": np.where(tested, "ok", "untestable"),
            "note": [said if ok else why for ok, why in zip(tested, few, strict=True)],
            "x_p_above": known(bounds.p_above), "x_p_below": known(bounds.p_below),
            "x_p_parametric": known(parametric), "x_smallest": known(bounds.bound),
        }
    )  # fmt: skip


def _moments(D: np.ndarray, data: ItemData) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Estimate, standard error, degrees of freedom, and the standard deviation that effect sizes are in; (m,) each."""
    n = len(D)
    if data.codes is None:
        sd = D.std(axis=0, ddof=1)
        return D.mean(axis=0), sd / np.sqrt(n), np.full(D.shape[1], n - 1.0), sd
    codes, weights = data.grouping
    counts = np.bincount(codes)
    means = np.stack([D[codes == c].mean(axis=0) for c in range(len(weights))])
    var = np.stack([D[codes == c].var(axis=0, ddof=1) for c in range(len(weights))])
    part = (weights**2 / counts)[:, None] * var
    se2, fall = part.sum(axis=0), (part**2 / (counts - 1)[:, None]).sum(axis=0)
    dof = np.where(fall > 0, se2**2 / np.where(fall > 0, fall, 1), n - len(weights))
    pooled = np.sqrt(((counts - 1)[:, None] * var).sum(axis=0) / (n - len(weights)))
    return (weights[:, None] * means).sum(axis=0), np.sqrt(se2), dof, pooled


def _bounds(
    t: np.ndarray, se: np.ndarray, dof: np.ndarray, *, spread: np.ndarray, asked: tuple[float, str], n: int | None
) -> Bounds:
    """One-sided p of H0 "at most - bound" (above it is claimed) and "at least + bound" (below it is claimed)."""
    smallest, scale = asked
    bound = smallest * spread if scale == "d_z" else np.full(len(t), smallest)
    if scale == "d_z" and n is not None:
        shift = smallest * np.sqrt(n)
        return Bounds(bound, stats.nct.sf(t, dof, -shift), stats.nct.cdf(t, dof, shift))
    return Bounds(bound, stats.t.sf(t + bound / se, dof), stats.t.cdf(t - bound / se, dof))
