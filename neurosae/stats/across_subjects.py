r"""Seeds or models as subjects in a study: one number per dictionary, effect and place, and a test over dictionaries.

1. Item data of every effect in every dictionary; features that differ in enough items.
2. Per dictionary the contrast length D_c, or the mean over features of the standardized contrast.
3. D_c, which is not negative in truth: prevalence by the minimum statistic, all dictionaries relabelled alike, since
   they read the same items. Signed numbers: whole dictionaries are flipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError, choose
from neurosae.extraction.responses import design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.load import as_record
from neurosae.spec.results import Tested, as_results, check_results
from neurosae.spec.subjects import SubjectsBlock, too_few
from neurosae.stats.asked import named_effects, positions_in, read_block, responses_by_site, settings_of
from neurosae.stats.length import Length
from neurosae.stats.lengths import effect_length, relabellings
from neurosae.stats.subjects import over_subjects, prevalence
from neurosae.stats.units import AnnData, ItemData, item_data

Place = tuple[str, int]
SHARED = "p speaks of subjects like these, on these items"
MEASURES = {"prevalence": "contrast_length", "difference": "length_difference", "mean": "mean_contrast"}


class Asked(NamedTuple):
    """A checked block: name of the test, the block, effects by name, settings, seed."""

    name: str
    ask: SubjectsBlock
    effects: Mapping[str, Mapping[str, Any]]
    inference: Inference
    seed: int


class Number(NamedTuple):
    """One subject's number: its value, p and null of a length (None for others), features and items behind it."""

    value: float
    n_features: int
    n_units: int
    length: Length | None = None


def across_subjects(
    responses: Mapping[str, AnnData],
    effects: Mapping[str, Any],
    *,
    region: str | Sequence[str],
    statistic: str = "prevalence",
    inference: Mapping[str, Any] | Inference | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int,
) -> pd.DataFrame:
    r"""Test effects over seeds or models: every site is a subject that gives one number.

    `prevalence`: with a_k the contrast length D_c of subject k in standard deviations of its null, m = min_k a_k and
    c_b = #{k: a_k*(b) >= m} under relabelling b, which is the same in all subjects,

        p(gamma <= gamma0) = mean_b gamma0^(N - c_b).

    `mean`: (1/m) sum_j w'mean_j / s_j, the contrast of feature j over its standard deviation s_j^2 = q_j + median q,
    and `difference`: D_c of the first effect minus D_c of the second; whole subjects are flipped.

    Parameters
    ----------
    responses : {subject: AnnData}, of the same items
    effects : `{factor: {level: weight}}`, or {name: effect} for several
    region : name or names
    statistic : `prevalence`, `mean` or `difference`
    inference : keys of the `inference:` section; `n_permutations`, `min_informative`, `alternative`, `alpha` are used
    settings : as in a `subjects` test: `gamma0`, `alternative`, `split`, `sites`
    seed : int

    Returns
    -------
    DataFrame
        The results schema. One row per effect and place speaks of all subjects (site `all`): `prevalence` as in
        `ns.prevalence`, corrected by the maximum over places and Holm over effects; `mean` and `difference` as in
        `ns.over_subjects`, corrected by the maximum over all. One row per subject describes it, uncorrected.

    Raises
    ------
    DataError
        Too few subjects, with the number of flips and the smallest p; no number in some subject.

    Notes
    -----
    H0 of prevalence: at most a share gamma0 of subjects has the effect in any feature. H0 of the others: the number is
    distributed symmetrically about 0 over subjects. The items are the same for all subjects, so nothing is claimed over
    other items. A mean of D_c against 0 is not offered: D_c is not negative in truth, as accuracies are not below
    chance, so its rejection says only that some subject has the effect.

    References
    ----------
    Allefeld, Goergen & Haynes (2016), Valid population inference for information-based imaging, NeuroImage 141:378.

    Examples
    --------
    >>> from neurosae.stats.worlds import world
    >>> seeds = {f"seed {k}": world("C0", n_items=12, seed=k) for k in range(6)}
    >>> effects = {"a": {"a": {"yes": 1, "no": -1}}}
    >>> row = across_subjects(seeds, effects, region="probe", inference={"n_permutations": 500}, seed=1).iloc[0]
    >>> bool(row.p_corr <= 0.05), int(row.n_units), row.h0
    (True, 6, 'the share of subjects with an effect is at most 0.5')
    """
    named = named_effects(effects)
    block = {"test": "subjects", "region": region, "effect": list(named), "statistic": statistic, **(settings or {})}
    ask = as_record(block, SubjectsBlock, name="subjects")
    rules = settings_of(inference)
    if ask.alternative is not None:
        rules = rules.model_copy(update={"alternative": ask.alternative})
    sites = responses_by_site(responses)
    sites = {site: choose("site", site, sites) for site in ask.sites or sites}
    return answer(Asked("subjects", ask, named, rules, seed), sites).table


def run(
    responses: Mapping[str, AnnData], ask: SubjectsBlock, *, study: Any, earlier: Mapping[str, Tested], rng: Any
) -> Tested:
    """One block of `tests:` with `test: subjects`."""
    asked, sites, rules = read_block(ask, study, responses)
    return answer(Asked(asked.test, ask, asked.effects, rules, study.spec.seed), sites)


# --- the answer -----------------------------------------------------------------------------------------------------


def answer(asked: Asked, sites: Mapping[str, AnnData]) -> Tested:
    """Rows over all subjects, then the subjects one by one."""
    rules, ask = asked.inference, asked.ask
    if (text := too_few(len(sites), ask, alpha=rules.alpha, alternative=rules.alternative)) is not None:
        raise DataError(text)
    made: dict[tuple[str, Place], dict[str, Number] | str] = {}
    with threadpool_limits(1, user_api="blas"):  # one order of summation, whatever the number of threads
        for effect in asked.effects:
            made |= {(effect, place): numbers for place, numbers in _numbers(asked, sites, effect).items()}
    if ask.statistic == "difference":
        made = _differences(made, tuple(asked.effects))
    known = {key: numbers for key, numbers in made.items() if not isinstance(numbers, str)}
    if not known:
        raise DataError(f"subjects test '{asked.name}': {next(iter(made.values()))}")
    tested = _prevalence(asked, known) if ask.statistic == "prevalence" else _flipped(asked, known)
    rows = [tested, *(_described(asked, key, numbers) for key, numbers in known.items())]
    missing = {key: why for key, why in made.items() if isinstance(why, str)}
    rows += [pd.DataFrame([_base(asked, key) | {"status": "untestable", "note": why}]) for key, why in missing.items()]
    frame = pd.concat([r.dropna(axis=1, how="all") for r in rows], ignore_index=True)
    frame = frame.reindex(
        columns=[*frame.columns, *(c for c in tested.columns if c.startswith("x_") and c not in frame)]
    )
    return Tested(check_results(as_results({name: frame[name] for name in frame.columns})), None, {})


def _numbers(asked: Asked, sites: Mapping[str, AnnData], effect: str) -> dict[Place, dict[str, Number] | str]:
    """Every subject's number at every place, or why some subject has none."""
    ask, written, data = asked.ask, asked.effects[effect], dict[tuple[str, Place], ItemData]()
    out: dict[Place, dict[str, Number] | str] = {}
    for site, adata in sites.items():
        for region in ask.region:
            for position in positions_in(adata, region):
                where = {"region": region, "position": position, "split": ask.split, "flips_only": False}
                try:
                    data[site, (region, position)] = item_data(adata, design_of(adata), written, **where)
                except DataError as error:
                    out[region, position] = f"{site}: {error}"
    one_by_one = {key: number for key, number in zip(data, _measured(asked, data), strict=True)}
    for place in dict.fromkeys([*(place for _, place in data), *out]):
        lacking = [site for site in sites if one_by_one.get((site, place)) is None]
        if not lacking:
            out[place] = {site: one_by_one[site, place] for site in sites}  # pyright: ignore[reportArgumentType]
        elif place not in out:
            least = asked.inference.min_informative
            out[place] = f"{', '.join(lacking)}: no feature whose contrast is not zero in at least {least} items"
    return out


def _measured(asked: Asked, data: Mapping[Any, ItemData]) -> list[Number | None]:
    rules, split = asked.inference, asked.ask.split
    if asked.ask.statistic == "mean":
        return [_mean_contrast(one, rules.min_informative) for one in data.values()]
    # all subjects share relabelling b: the same items are flipped, or the same labels change places
    made = relabellings(list(data.values()), rules.n_permutations, seed=asked.seed, split=split)
    numbers: list[Number | None] = []
    for one, (relabelling, place) in zip(data.values(), made, strict=True):
        length = effect_length(one, relabelling, place, min_informative=rules.min_informative)
        numbers.append(None if length is None else Number(length.value, length.n_features, one.n, length))
    return numbers


def _mean_contrast(data: ItemData, least: int) -> Number | None:
    """Mean over features of the contrast in standard deviations that no relabelling changes."""
    if data.omnibus or data.exchange.regressor is not None:
        raise DataError(f"{data.effect.words} has no direction, which a mean needs; use statistic: prevalence.")
    kept = np.flatnonzero(data.informative >= least)
    if not len(kept):
        return None
    D = data.D[:, kept].toarray()
    if data.codes is None:
        contrast, q = D.mean(axis=0), (D**2).mean(axis=0)
    else:
        codes, weights = data.grouping
        contrast, q = (weights / np.bincount(codes))[codes] @ D, D.var(axis=0)
    scale = np.sqrt(q + np.median(q))
    return Number(float((contrast / np.where(scale > 0, scale, 1)).mean()), len(kept), data.n)


def _differences(
    made: Mapping[tuple[str, Place], dict[str, Number] | str], effects: tuple[str, ...]
) -> dict[tuple[str, Place], dict[str, Number] | str]:
    """The first effect's lengths minus the second's."""
    first, second = effects
    out: dict[tuple[str, Place], dict[str, Number] | str] = {}
    for place in [place for effect, place in made if effect == first]:
        a, b = made[first, place], made[second, place]
        if isinstance(a, str) or isinstance(b, str):
            out[f"{first} - {second}", place] = a if isinstance(a, str) else str(b)
            continue
        pairs = {site: (a[site], b[site]) for site in a}
        out[f"{first} - {second}", place] = {
            site: Number(x.value - y.value, max(x.n_features, y.n_features), x.n_units)
            for site, (x, y) in pairs.items()
        }
    return out


def _base(asked: Asked, key: tuple[str, Place]) -> dict[str, Any]:
    effect, (region, position) = key
    least = asked.inference.min_informative
    row = {"test": asked.name, "kind": "subjects", "effect": effect, "site": "all", "region": region}
    row |= {"position": position, "split": asked.ask.split, "set": f"features informative in at least {least} items"}
    return row | {"stat": MEASURES[asked.ask.statistic], "p_method": "none"}


def _described(asked: Asked, key: tuple[str, Place], numbers: Mapping[str, Number]) -> pd.DataFrame:
    """One row per subject, uncorrected."""
    rows = []
    for site, one in numbers.items():
        row = _base(asked, key) | {"site": site, "n_features": one.n_features, "value": one.value, "status": "ok"}
        row |= {"effsize": one.value, "eftype": "D_c" if one.length is not None else row["stat"], "unit": "item"}
        row |= {"n_units": one.n_units, "note": "one subject, described"}
        if one.length is not None:
            row |= {"p_unc": one.length.p, "p_method": "permutations", "n_perm": len(one.length.null)}
            row |= {"x_z": float(one.length.null[0]), "alternative": "greater"}
        rows.append(row)
    return pd.DataFrame(rows)


def _joined(asked: Asked, table: pd.DataFrame, keys: Sequence[tuple[str, Place]]) -> pd.DataFrame:
    """The rows of `ns.over_subjects` or `ns.prevalence` under their effects and places."""
    base = pd.DataFrame([_base(asked, key) for key in keys])
    notes = [SHARED if pd.isna(note) else f"{note}; {SHARED}" for note in table["note"]]
    own = {name: base[name].to_numpy() for name in ("test", "kind", "effect", "region", "position", "split", "set")}
    return table.drop(columns=["n_features"]).assign(**own, note=notes)


def _flipped(asked: Asked, known: Mapping[tuple[str, Place], Mapping[str, Number]]) -> pd.DataFrame:
    values = pd.DataFrame({k: [one.value for one in numbers.values()] for k, numbers in enumerate(known.values())})
    rules = asked.inference
    table = over_subjects(values, alternative=rules.alternative, n_permutations=rules.n_permutations, seed=asked.seed)
    what = (
        "D_c of the first effect minus that of the second" if asked.ask.statistic == "difference" else "mean contrast"
    )
    table["h0"] = f"the {what} is distributed symmetrically about 0 over subjects"
    table["family"] = "effects, regions and positions of this test, maximum over flips of whole subjects"
    return _joined(asked, table, list(known))


def _prevalence(asked: Asked, known: Mapping[tuple[str, Place], Mapping[str, Number]]) -> pd.DataFrame:
    """Per effect the maximum over places, then Holm over effects."""
    effects = list(dict.fromkeys(effect for effect, _ in known))
    parts = []
    for effect in effects:
        keys = [key for key in known if key[0] == effect]
        nulls = [[one.length.null for one in known[key].values() if one.length is not None] for key in keys]
        alpha = asked.inference.alpha / len(effects)
        table = prevalence(
            np.stack([np.stack(null) for null in nulls], axis=-1),
            gamma0=asked.ask.gamma0, alpha=alpha, n_permutations=None, seed=asked.seed,
        )  # fmt: skip
        lengths = [np.mean([one.value for one in known[key].values()]) for key in keys]
        parts.append(_joined(asked, table, keys).assign(effsize=lengths, eftype="D_c", estimate=np.nan))
    table = pd.concat(parts, ignore_index=True)
    over = "maximum over regions and positions of this test"
    if len(effects) == 1:
        return table.assign(family=over, x_gamma0=asked.ask.gamma0)
    table["p_corr"] = _holm(table["p_corr"].to_numpy(dtype=float), table["effect"].to_numpy())
    over += f", then Holm over its {len(effects)} effects"
    return table.assign(family=over, n_family=len(table), p_adjust="maxT+holm", x_gamma0=asked.ask.gamma0)


def _holm(p: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Holm over effects of p that are corrected over places: every step counts the effects that are left.

    Examples
    --------
    >>> _holm(np.array([0.01, 0.04, 0.02]), np.array(["a", "a", "b"])).tolist()
    [0.02, 0.04, 0.04]
    """
    out, running, order = np.empty(len(p)), 0.0, np.argsort(p, kind="stable")
    for step, at in enumerate(order):
        running = max(running, min(1.0, len(set(effect[order[step:]])) * p[at]))
        out[at] = running
    return out
