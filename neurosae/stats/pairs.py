"""All pairs of features that fire together: is their product larger in the + cells, over every pair at once?

The product response of a pair, y_f y_g of each stimulus, goes through the same test as a single feature's response:
item contrasts, whole-item relabellings shared with all other tests, and the maximum over every pair that is kept. Two
filters keep a pair: it fires together in enough stimuli, and its contrast is not zero in enough items. Both are counts
that no relabelling changes, so the test of the kept pairs is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, design_of, provenance_of, take_rows
from neurosae.spec.blocks import Inference, PairsBlock
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.stats.asked import (
    many,
    named_effects,
    place_data,
    positions_in,
    read_block,
    responses_by_site,
    settings_of,
)
from neurosae.stats.family import Cell, Outcome, Place, infer
from neurosae.stats.products import Products, pair_products
from neurosae.stats.rows import feature_rows, join_rows
from neurosae.stats.units import AnnData

SCREEN = "a screen for co-activation; not evidence of integration by itself"
SHOWN = 1000  # pairs with a row of their own beside the found ones


class Asked(NamedTuple):
    """What is tested: name of the test, effects by name, regions, split, and the least number of shared stimuli."""

    test: str
    effects: dict[str, Mapping[str, Any]]
    regions: tuple[str, ...]
    split: str
    least: int


class Found(NamedTuple):
    """The pairs that are tested at one place, and the two features of every product."""

    cell: Cell
    first: np.ndarray
    second: np.ndarray


def pairs(
    responses: AnnData | Mapping[str, AnnData],
    effect: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    split: str = "test",
    inference: Mapping[str, Any] | Inference | None = None,
    least: int = 6,
    seed: int,
) -> pd.DataFrame:
    r"""Test the product of every pair of features that fires together, corrected over all pairs.

    With y_sf the response of feature f to stimulus s, the datum of item i for the pair (f, g) is the effect's contrast

        d_i = sum_c w_c mean_{s in (i, c)} y_sf y_sg,

    and everything else is as for single features (`contrast`).

    Parameters
    ----------
    responses : AnnData of one site, or {site: AnnData}
    effect : `{factor: {level: weight}}`, or {name: effect} for several; e.g. the interaction of two factors
    region : name or names
    split : "test" or "localizer"
    inference : keys of the `inference:` section; the rest has its defaults
    least : int
        Pairs that fire together in fewer stimuli of the region and split are untestable.
    seed : int

    Returns
    -------
    DataFrame
        The results schema. Found pairs and the 1,000 most extreme others have a row each (`set` "f x g",
        `x_first`, `x_second`); one row speaks for the other tested pairs (value and p of the most extreme of them),
        one for untestable pairs and one for pairs that never fire together. `n_features` counts pairs, and adds up to
        m (m - 1) / 2 at every site, region and position.

    Raises
    ------
    DataError, SpecError
        If too few items are left, or the design admits no relabelling for the effect.

    Notes
    -----
    H0: as in `contrast`, for the products. Found pairs fire together more (or more strongly) in the + cells. Two
    features that each respond to a factor do so without any interaction between them, and thresholds and
    normalization make products superadditive: a screen for co-activation; not evidence of integration by itself.

    References
    ----------
    Westfall & Young (1993), Resampling-Based Multiple Testing. Gustavson (1978), ACM Trans. Math. Softw. 4:250.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design, simulate
    >>> fake = simulate(example_design(24), n_features=20, effects={"number": 2}, density=0.4, shift=5.0, seed=1)
    >>> found = pairs(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", seed=1)
    >>> found[found.p_corr <= 0.05].set.tolist()[0], int(found.n_features.sum())
    ('0 x 1', 190)
    """
    asked = Asked("pairs", named_effects(effect), many(region), split, least)
    if least < 2:
        raise DataError(f"least is {least}; a pair needs at least 2 stimuli in which both features fire.")
    return _run(responses_by_site(responses), asked, settings_of(inference), seed=seed).table


def run(
    responses: Mapping[str, AnnData], ask: PairsBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: pairs`; extras: `pairs`, value and p of every tested pair."""
    found, sites, settings = read_block(ask, study, responses)
    asked = Asked(found.test, found.effects, found.regions, found.split, ask.least)
    return _run(sites, asked, settings, seed=study.spec.seed)


def _run(sites: Mapping[str, AnnData], asked: Asked, inference: Inference, *, seed: int) -> Tested:
    found, tables = [], []
    for site, adata in sites.items():
        for region in asked.regions:
            for position in positions_in(adata, region):
                made = pair_responses(adata, region=region, position=position, split=asked.split, least=asked.least)
                for effect in asked.effects:
                    place = Place(asked.test, effect, site, region, position, asked.split, None)
                    one, silent = _place(made, asked, place, adata=adata, inference=inference)
                    found += [one] if one is not None else []
                    tables += silent
    outcomes, null = infer([f.cell for f in found], inference, seed=seed, split=asked.split)
    for one, outcome in zip(found, outcomes, strict=True):
        tables += _tested_rows(one, outcome, inference=inference)
    family = f"all testable pairs of features x positions of test {asked.test}: effects {', '.join(asked.effects)}; "
    family += f"regions {', '.join(asked.regions)}; sites {', '.join(sites)}"
    n_family = sum(len(f.cell.kept) for f in found)
    table = join_rows(tables, family=family, n_family=n_family, inference=inference)
    table["kind"] = pd.array(["pairs"] * len(table), dtype="string")
    _check_sum(table, {site: adata.n_vars for site, adata in sites.items()})
    long = [_long(one, outcome) for one, outcome in zip(found, outcomes, strict=True)]
    return Tested(check_results(table), null, {"pairs": pd.concat(long, ignore_index=True)} if long else {})


def pair_responses(
    adata: AnnData, *, region: str, position: int = 0, split: str = "test", least: int = 6
) -> tuple[AnnData, Products]:
    """Product responses of all pairs that fire together in at least `least` stimuli of one place.

    Returns
    -------
    responses : AnnData whose columns are pairs; `var` has `first` and `second`, columns of the dictionary
    products : the same matrix by columns, and how many pairs fire together at all
    """
    obs = adata.obs
    here = (obs["region"] == region).to_numpy() & (obs["position"] == position).to_numpy()
    rows = np.flatnonzero(here & (obs["split"].astype(str) == split).to_numpy())
    products = pair_products(adata.X[rows], least=least)
    n = len(products.first)
    zeros = np.zeros(n, dtype=np.float32)
    var = pd.DataFrame(
        {"feature": np.arange(n), "decoder_norm": zeros, "threshold": zeros}, index=np.arange(n).astype(str)
    )
    feature = adata.var["feature"].to_numpy()
    var = var.assign(density=zeros, origin=zeros, first=feature[products.first], second=feature[products.second])
    kept: Any = take_rows(adata, rows, obs.iloc[rows])
    record = provenance_of(adata)
    made = build_responses(sp.csr_matrix(products.X), kept.obs, var, design=design_of(adata), provenance=record)
    return made, products


def _place(
    made: tuple[AnnData, Products], asked: Asked, place: Place, *, adata: AnnData, inference: Inference
) -> tuple[Found | None, list[pd.DataFrame]]:
    """The pairs of one effect and place that are tested, and the rows of those that are not."""
    responses, products = made
    m = adata.n_vars
    n_pairs = m * (m - 1) // 2
    silent = [(n_pairs - products.n_coactive, "dead", "the two features never fire in the same stimulus")]
    data = place_data(responses, design_of(adata), asked.effects[place.effect], place=place, inference=inference)
    if isinstance(data, str):
        return None, [_silent(place, n_pairs, "failed", note=data)]
    informative = data.informative
    kept = np.flatnonzero(informative >= inference.min_informative)
    rare, few = products.n_coactive - len(informative), len(informative) - len(kept)
    words = [f"{rare:,} fire together in fewer than {asked.least} stimuli"] if rare else []
    words += [f"{few:,} have a contrast in fewer than {inference.min_informative} items"] if few else []
    silent.append((rare + few, "untestable", "; ".join(words)))
    rows = [_silent(place, n, status, note=note) for n, status, note in silent if n]
    features = responses.var["first"].to_numpy(), responses.var["second"].to_numpy()
    return (Found(Cell(place, data, kept), *features) if len(kept) else None), rows


def _silent(place: Place, n: int, status: str, *, note: str) -> pd.DataFrame:
    """One row for pairs without numbers."""
    names = {"dead": "silent pairs", "untestable": "untestable pairs", "failed": "all pairs"}
    columns = place._replace(set=names[status])._asdict() | {"n_features": n, "status": status}
    return as_results(columns | {"note": f"{note}; {SCREEN}"}, n_rows=1)


def _tested_rows(found: Found, outcome: Outcome, *, inference: Inference) -> list[pd.DataFrame]:
    """Rows of the found pairs and of the most extreme others, and one row for all the rest."""
    cell = found.cell
    p = np.where(np.isnan(outcome.p_corr), outcome.p_unc, outcome.p_corr)
    hit, order = p <= inference.alpha, np.argsort(-np.abs(outcome.z), kind="stable")
    others = order[~hit[order]][:SHOWN]
    shown = np.sort(np.concatenate([np.flatnonzero(hit), others]))
    rest = np.setdiff1d(np.arange(len(p)), shown)
    part = _subset(outcome, shown)
    table = feature_rows(Cell(cell.place, cell.data, cell.kept[shown]), part, inference=inference)
    columns = cell.data.features[cell.kept[shown]]
    first, second = found.first[columns], found.second[columns]
    names = [f"{a} x {b}" for a, b in zip(first, second, strict=True)]
    table = table.assign(
        x_first=pd.array(first, dtype="Int64"),
        x_second=pd.array(second, dtype="Int64"),
        set=pd.array(names, dtype="string"),
        feature=pd.array([pd.NA] * len(table), dtype="Int64"),
        h0=table["h0"] + ", in the product of both activations",
        note=(SCREEN + "; " + table["note"].fillna("")).str.rstrip("; "),
    )
    return [table, *([_rest_row(cell, _subset(outcome, rest), table)] if len(rest) else [])]


def _subset(outcome: Outcome, chosen: np.ndarray) -> Outcome:
    """The outcome of some of the tested pairs."""
    extras, arrays = outcome.ready.extras, ("value", "z", "p_unc", "p_method", "p_corr", "p_by")
    ready = outcome.ready
    if extras is not None:
        ready = replace(ready, extras=lambda how: {key: value[chosen] for key, value in extras(how).items()})
    if ready.notes is not None:
        ready = replace(ready, notes=[ready.notes[k] for k in chosen])
    if ready.dof is not None:
        ready = replace(ready, dof=ready.dof[chosen])
    beside = {name: values[chosen] for name, values in outcome.beside.items()}
    return outcome._replace(ready=ready, beside=beside, **{name: getattr(outcome, name)[chosen] for name in arrays})


def _rest_row(cell: Cell, rest: Outcome, table: pd.DataFrame) -> pd.DataFrame:
    """One row that speaks for tested pairs without a row of their own: the most extreme value and p among them."""
    n, best = len(rest.z), int(np.argmax(np.abs(rest.z)))
    columns = {name: table[name].iloc[0] for name in ("stat", "dof", "unit", "n_units", "n_perm", "h0", "x_weights")}
    columns |= {"p_min": float(table["p_min"].min()), "p_method": rest.p_method[best], "x_z": rest.z[best]}
    columns |= {"value": rest.value[best], "p_unc": rest.p_unc.min(), "p_corr": np.min(rest.p_corr)}
    note = f"{n:,} more tested pairs, none found: the largest value and the smallest p among them; {SCREEN}"
    place = cell.place._replace(set="other tested pairs")._asdict()
    return as_results(place | columns | {"n_features": n, "status": "ok", "note": note}, n_rows=1)


def _check_sum(table: pd.DataFrame, sizes: Mapping[str, int]) -> None:
    """Every pair of features is in one row or counted in one."""
    groups = table.groupby(["effect", "site", "region", "position"], dropna=False, observed=True)["n_features"].sum()
    for key, total in groups.items():
        m = sizes[key[1]]  # pyright: ignore
        assert total == m * (m - 1) // 2, f"{key}: rows speak for {total} of {m * (m - 1) // 2} pairs"


def _long(found: Found, outcome: Outcome) -> pd.DataFrame:
    """Value and p of every tested pair, long."""
    columns = found.cell.data.features[found.cell.kept]
    place = {name: getattr(found.cell.place, name) for name in ("site", "region", "position", "effect")}
    numbers = {"value": outcome.value, "p_unc": outcome.p_unc, "p_corr": outcome.p_corr}
    return pd.DataFrame(place | {"first": found.first[columns], "second": found.second[columns]} | numbers)
