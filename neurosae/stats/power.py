"""Power over the number of items, for an effect that is stated and never estimated from a pilot.

Simulated: noise of a pilot without its effect, plus the stated effect in random features (`plasmode`), through the same
tests as any study. Analytic: the noncentral t of a paired contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from neurosae.errors import DataError, NeurosaeError
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design, region_names
from neurosae.spec.planning import Power
from neurosae.stats.family import Cell, Place, infer
from neurosae.stats.multiplicity import CORRECTIONS
from neurosae.stats.noncentral import analytic_power
from neurosae.stats.pattern import contrast_length, group_length, reached_share
from neurosae.stats.plasmode import (
    Draw,
    Pilot,
    draw,
    grouped_data,
    grouped_template,
    join_pilots,
    paired_data,
    paired_template,
    pilot_of,
)
from neurosae.stats.relabel import flips, labels, permutations, signs
from neurosae.stats.simulate import Firing, draw_densities, simulate
from neurosae.stats.units import ItemData, item_data

AnnData: TypeAlias = Any  # one site's responses; anndata itself is known to extraction alone
ENOUGH = 0.8  # the power that is asked for
N_SIMULATED, N_LARGE = 256, 2000  # items behind simulated noise, and behind standardized effects
RECOMMENDED = (
    "Recommended where nothing better is known: 48 items; 32 for a screen (fdr_bh), 24 for tests of sets, 64 where "
    "densities are 1 % or less, 48 for integration."
)


def power(
    source: Design | AnnData,
    effect: Mapping[str, Any],
    *,
    smallest: Mapping[str, float] | None = None,
    n_items: Sequence[int] | None = None,
    settings: Mapping[str, Any] | Power | None = None,
    inference: Mapping[str, Any] | Inference | None = None,
    seed: int,
) -> pd.DataFrame:
    """Power of each method over the number of items, for a stated smallest effect.

    Parameters
    ----------
    source : Design or AnnData
        Responses of one site serve as pilot: their noise is used, their effect never. With a design noise is simulated.
    effect : `{factor: {level: weight}}`, an effect with two sides
    smallest : {"density": 0.1, "magnitude": 1.5}
        Difference of densities between + and - cells, and how many times as strongly a feature fires in +.
    n_items : numbers of items
    settings : other keys of the `power:` section, e.g. {"n_sets": 50, "region": "noun"}
    inference : keys of the `inference:` section; the relabellings are counted by `power:` instead
    seed : int

    Returns
    -------
    DataFrame
        One row per method and number of items. `power`: mean share of planted features that are found; for `set`, share
        of studies in which all features together differ. `low`, `high`: 95 % Clopper-Pearson interval with the studies
        as trials, conservative for a share of features. `any`: share of studies that find a planted feature. `false`:
        share of studies with any false rejection (for `set`, without an effect). `fdr`: mean over studies of the share
        of false discoveries. `n_tests`: mean size of the family. Rows `analytic` give the noncentral t at alpha / m
        for the standardized effects that the stated effect amounts to. `noise`: where the noise comes from. Empty are
        `fdr` of `set`, and what an analytic row cannot have.

    Raises
    ------
    DataError, SpecError
        No noise, an effect without two sides, or a setting out of range.

    Notes
    -----
    Items are drawn with replacement and their + and - cells exchanged at random, which keeps densities and the
    dependence between features. Power with a pilot's own effects would be inflated: with 16 pilot items and 48 new
    ones .42 instead of .06.

    Examples
    --------
    >>> from neurosae.stats.simulate import example_design
    >>> effect, few = {"number": {"pl": 1, "sg": -1}}, {"n_sets": 10, "n_features": 60, "n_permutations": 200}
    >>> curve = power(example_design(8), effect, smallest={"density": 0.4}, n_items=[12, 48], settings=few, seed=0)
    >>> found = curve.set_index(["method", "n_items"])["power"]
    >>> bool(found["fdr_bh", 48] > found["fdr_bh", 12])
    True
    """
    plan = _plan(settings, smallest, n_items)
    how = inference if isinstance(inference, Inference) else _valid(Inference, dict(inference or {}), "inference")
    how = how.model_copy(update={"n_permutations": plan.n_permutations, "correction": "maxT", "families": {}})
    pilot, words = _pilot(source, effect, plan, seed=seed)
    n_planted = max(1, round(plan.share * pilot.plus.shape[1]))
    studies = [(n, number) for n in plan.n_items for number in range(plan.n_sets)]
    made: dict[int, list[Found]] = {n: [] for n in plan.n_items}
    templates = {n: (paired_template if pilot.minus is not None else grouped_template)(n) for n in plan.n_items}
    for n, number in tqdm(studies, desc="power", unit="study", disable=None, mininterval=1):
        rng = np.random.default_rng([seed, n, number])
        study = Asked(templates[n], n_planted, (plan.smallest.density, plan.smallest.magnitude), plan.methods)
        made[n].append(_study(pilot, study, how, rng=rng, seed=seed + number))
    rows = [_row(method, n, made[n]) for method in plan.methods for n in plan.n_items]
    sizes = _standardized(pilot, plan, n_planted=n_planted, seed=seed)
    share = None if pilot.minus is not None else pilot.share
    rows += [_analytic_row(sizes, n, made[n], alpha=how.alpha, share=share) for n in plan.n_items]
    table = pd.DataFrame(rows).assign(n_planted=n_planted, noise=words)
    order = ["method", "n_items", "power", "low", "high", "any", "false", "fdr", "n_sets", "n_planted", "n_tests"]
    return table[[*order, "noise"]]


class Asked(NamedTuple):
    """What every study of one size shares: its item data to be filled, the stated effect, and the methods."""

    template: ItemData
    n_planted: int
    effect: tuple[float, float]
    methods: tuple[str, ...]


class Found(NamedTuple):
    """Outcome of one study: per method the share of planted features found, number of false and of all discoveries.

    For `set`: whether all features together differ, and whether they do without the effect.
    """

    shares: dict[str, float]
    false: dict[str, int]
    total: dict[str, int]
    n_tests: int


def _study(pilot: Pilot, asked: Asked, how: Inference, *, rng: np.random.Generator, seed: int) -> Found:
    n = asked.template.n if pilot.minus is not None else len(asked.template.names)
    state = rng.bit_generator.state
    drawn = draw(pilot, n, rng, n_planted=asked.n_planted, effect=asked.effect)
    data = _filled(asked.template, drawn)
    kept = np.flatnonzero(np.diff(data.D.indptr) >= how.min_informative)
    shares, false, total = {}, {}, {}
    adjusted = _adjusted(data, kept, how, methods=asked.methods, seed=seed)
    for method, p in adjusted.items():
        found = kept[p <= how.alpha]
        hits = np.isin(found, drawn.planted).sum()
        shares[method], false[method], total[method] = hits / asked.n_planted, int(len(found) - hits), len(found)
    if "set" in asked.methods:
        rng.bit_generator.state = state
        without = _filled(asked.template, draw(pilot, n, rng, n_planted=asked.n_planted, effect=(0.0, 1.0)))
        p, p0 = (set_p(x, how, seed=seed) for x in (data, without))
        shares["set"], false["set"], total["set"] = float(p <= how.alpha), int(p0 <= how.alpha), 1
    return Found(shares, false, total, len(kept))


def _filled(template: ItemData, drawn: Draw) -> ItemData:
    if drawn.minus is None:
        return grouped_data(template, drawn.plus, drawn.n_plus)
    return paired_data(template, drawn.plus, drawn.minus)


def _adjusted(
    data: ItemData, kept: np.ndarray, how: Inference, *, methods: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Corrected p of the kept features by every method, through the tests of any study."""
    wanted = [method for method in methods if method != "set"]
    if not len(kept):
        return {method: np.empty(0) for method in wanted}
    cell = [Cell(Place("power", "effect", "site", "region", 0, "test", None), data, kept)]
    out = {}
    for method in wanted:
        shared = data.codes is None and CORRECTIONS[method] is not None and "maxT" in out
        if not shared:  # sign flips give p of single features without random numbers: one run serves every correction
            ready = infer(cell, how.model_copy(update={"correction": method}), seed=seed, split="test")[0][0]
            out[method] = ready.p_corr
            uncorrected = ready.p_unc
        else:
            out[method] = cast(Any, CORRECTIONS[method])(uncorrected)  # pyright: ignore[reportPossiblyUnbound]
    return out


def set_p(data: ItemData, how: Inference, *, seed: int) -> float:
    """P of the cross-validated contrast length of all testable features together, under relabellings of whole items."""
    kept = np.flatnonzero(np.diff(data.D.indptr) >= how.min_informative)
    if not len(kept):
        return 1.0
    D = data.D[:, kept].toarray()
    if data.codes is None:
        moved = flips(data.numbers, how.n_permutations, seed=seed)
        return reached_share(contrast_length(D, signs(moved)))
    codes, weights = data.grouping
    moved = permutations(data.numbers, codes, how.n_permutations, blocks=data.strata, seed=seed)
    return reached_share(group_length(D, weights[labels(moved)] > 0))


def _row(method: str, n: int, studies: Sequence[Found]) -> dict[str, Any]:
    share = float(np.mean([study.shares[method] for study in studies]))
    low, high = share_interval(share, len(studies))
    false = [study.false[method] for study in studies]
    total = [study.total[method] for study in studies]
    return {
        "method": method,
        "n_items": n,
        "power": share,
        "low": low,
        "high": high,
        "any": float(np.mean([study.shares[method] > 0 for study in studies])),
        "false": float(np.mean(np.array(false) > 0)),
        "fdr": np.nan if method == "set" else discovery_rate(false, total),
        "n_sets": len(studies),
        "n_tests": float(np.mean([study.n_tests for study in studies])),
    }


def discovery_rate(false: Sequence[int], total: Sequence[int]) -> float:
    """False discovery rate: mean over data sets of false / all discoveries, 0 where nothing was found.

    Examples
    --------
    >>> discovery_rate([1, 0, 2], [1, 0, 4])
    0.5
    """
    return float(np.mean(np.asarray(false) / np.maximum(total, 1)))


def share_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share over n trials; for a mean of shares it is conservative.

    Examples
    --------
    >>> [round(x, 4) for x in share_interval(0.5, 10)]
    [0.1871, 0.8129]
    """
    count, tail = share * n, (1 - level) / 2
    low = 0.0 if count <= 0 else float(stats.beta.ppf(tail, count, n - count + 1))
    return low, 1.0 if count >= n else float(stats.beta.ppf(1 - tail, count + 1, n - count))


# ------------------------------------------------------------------ where the noise comes from


def _plan(settings: Mapping[str, Any] | Power | None, smallest: Any, n_items: Any) -> Power:
    given = dict(settings.model_dump(exclude_unset=True) if isinstance(settings, Power) else settings or {})
    if smallest is not None:
        given["smallest"] = {"density": 0.0, "magnitude": 1.0} | dict(smallest)
    if n_items is not None:
        given["n_items"] = tuple(int(n) for n in n_items)
    return _valid(Power, given, "power")


def _valid(schema: Any, given: dict[str, Any], name: str) -> Any:
    try:
        return schema.model_validate(given)
    except ValueError as error:
        if isinstance(error, NeurosaeError):
            raise
        details = getattr(error, "errors", lambda: [])()
        what = f"{'.'.join(map(str, details[0]['loc']))}: {details[0]['msg']}" if details else str(error)
        raise DataError(f"{name}: {what}") from error


def _pilot(source: Any, effect: Mapping[str, Any], plan: Power, *, seed: int) -> tuple[Pilot, str]:
    """The pilot, and in words where its noise comes from."""
    if isinstance(source, Design):
        return _simulated(source, effect, plan, seed=seed)
    region = _region(plan, list(dict.fromkeys(source.obs["region"].astype(str))))
    data = item_data(source, design_of(source), effect, region=region)
    words = f"responses of {data.n} items at {region}, their effect removed{_flipped(data)}"
    return join_pilots([pilot_of(data)]), words


def _flipped(data: ItemData) -> str:
    """What the reader must know where studies are drawn and tested by flips that the design does not make exact."""
    return "" if data.exchange.exact else "; approximate: + and - cells change sides, which the test itself does not do"


def _region(plan: Power, regions: Sequence[str]) -> str:
    if plan.region is None and len(regions) > 1:
        raise DataError(f"there are {len(regions)} regions, {', '.join(regions)}; name one, {{region: {regions[0]}}}.")
    return plan.region or regions[0]


def _simulated(design: Design, effect: Mapping[str, Any], plan: Power, *, seed: int) -> tuple[Pilot, str]:
    """Noise simulated for the design's own items, frames and cells, several times over with the same features."""
    rng = np.random.default_rng([seed, 17])
    densities = draw_densities(rng, plan.densities, plan.n_features)
    region, parts = plan.region or region_names(design)[0], []
    while sum(len(part.plus) for part in parts) < N_SIMULATED:
        made = simulate(
            design,
            n_features=plan.n_features,
            density=Firing(cast(Any, densities)),
            regions=(region,),
            seed=int(rng.integers(2**32)),
        )
        parts.append(pilot_of(data := item_data(made, design, effect, region=region)))
    low, high = plan.densities
    return join_pilots(parts), f"simulated, densities {low:g} to {high:g}{_flipped(data)}"


# ------------------------------------------------------------------ without simulation, and what to do


def _standardized(pilot: Pilot, plan: Power, *, n_planted: int, seed: int) -> np.ndarray:
    """Standardized effects of planted features, measured in one large study."""
    rng, effect = np.random.default_rng([seed, 18]), (plan.smallest.density, plan.smallest.magnitude)
    drawn = draw(pilot, N_LARGE, rng, n_planted=n_planted, effect=effect)
    if drawn.minus is None:
        first, second = drawn.plus[: drawn.n_plus, drawn.planted], drawn.plus[drawn.n_plus :, drawn.planted]
        mean, variance = first.mean(axis=0) - second.mean(axis=0), (first.var(axis=0) + second.var(axis=0)) / 2
    else:
        d = (drawn.plus - drawn.minus)[:, drawn.planted]
        mean, variance = d.mean(axis=0), d.var(axis=0)
    return np.divide(mean, np.sqrt(variance), where=variance > 0, out=np.zeros(len(mean)))


def _analytic_row(
    sizes: np.ndarray, n: int, studies: Sequence[Found], *, alpha: float, share: float | None
) -> dict[str, Any]:
    """The noncentral t at alpha / m, m the mean size of the simulated families."""
    m = max(1, round(float(np.mean([study.n_tests for study in studies]))))
    mean = float(np.mean([analytic_power(d, n, n_tests=m, alpha=alpha, share=share) for d in sizes]))
    return {"method": "analytic", "n_items": n, "power": mean, "low": mean, "high": mean, "n_sets": 0, "n_tests": m}


def recommend(table: pd.DataFrame) -> str:
    """What a power table says in words: the smallest number of items with power .8 by each method, and a rule of thumb.

    Examples
    --------
    >>> table = pd.DataFrame({"method": ["maxT", "maxT"], "n_items": [24, 48], "power": [0.5, 0.9]})
    >>> recommend(table).splitlines()[0]
    'maxT: 48 items for power 0.8.'
    """
    lines = []
    for method, rows in table.groupby("method", sort=False):
        enough = rows.loc[rows["power"] >= ENOUGH, "n_items"]
        most = f"not reached with {rows['n_items'].max()} items (power {rows['power'].max():.2f})"
        lines.append(f"{method}: {f'{enough.min()} items for' if len(enough) else most + '; wanted:'} power {ENOUGH}.")
    return "\n".join([*lines, RECOMMENDED])
