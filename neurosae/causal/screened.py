r"""`test: attribution`: a gradient screens all features on some items, exact ablation tests the best on the others.

1. On the items of the other split every feature's effect on LD is approximated (`attribution`); the largest `top` go
   on, and `random` others of those that are active there.
2. On the tested items each of them is set to its baseline by itself, in the delta form that keeps the dictionary's
   error, many in one pass (`passes`).
3. The item effects are tested by flips with one correction over all of them. How many of the random others are found
   bounds what the screen misses, and their effects are what the top ones are ranked among.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from neurosae.causal.attribution import Attributed, attributed
from neurosae.causal.direct import SITE as DIRECT
from neurosae.causal.direct import direct_attribution
from neurosae.causal.edits import Edit
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.scored import Scored, as_responses, score_stimuli
from neurosae.causal.tested import block_effects, block_settings, name_of, run_sites
from neurosae.errors import DataError
from neurosae.extraction.run import features_table
from neurosae.spec.results import Tested, as_results, check_results, is_found
from neurosae.stats.family import Place
from neurosae.stats.units import AnnData, item_data

TOP, OTHERS = "screened", "random others"
WHAT = "the effect of setting the feature to its baseline on the logit difference"


class Spot(NamedTuple):
    """One site and region on the items of one split: their stimuli, and the approximate effects there."""

    site: str
    dictionary: Any
    region: str
    split: str
    stimuli: pd.DataFrame
    scored: Scored
    made: Attributed

    def item_means(self, effect: Any) -> np.ndarray:
        """Mean over items of an effect's contrast of the approximate effects (n_features,)."""
        var = features_table(self.site, self.dictionary)
        adata = as_responses(self.stimuli, self.scored, {self.region: self.made.effects}, var=var)
        assert self.scored.design is not None
        data = item_data(adata, self.scored.design, effect, region=self.region, split=self.split)
        return np.asarray(data.D.mean(axis=0)).ravel()


class Screened(NamedTuple):
    """Features of a spot that are ablated exactly, what the screen said of them, and what that did.

    exact : (n_stimuli, n_chosen), change of LD when each alone is set to its baseline
    """

    spot: Spot
    features: np.ndarray
    is_top: np.ndarray
    score: np.ndarray
    n_active: int
    exact: np.ndarray


def run(responses: Mapping[str, AnnData], ask: Any, *, study: Any, earlier: Mapping[str, Tested], rng: Any) -> Tested:
    """One block of `tests:` with `test: attribution`; one family over features, effects, sites and regions."""
    del earlier
    model, dictionaries = study.live()
    effects = block_effects(ask, study, what=WHAT)
    if ask.method == "direct":
        return _direct(ask, study, effects=effects)
    sites = {site: dictionaries[site] for site in ask.sites or responses}
    tested = []
    for region in ask.region:
        splits = (ask.split, "localizer" if ask.split == "test" else "test")
        here, there = ({s.site: s for s in _spots(study.stimuli, model, sites, ask=ask, place=(region, split))}
                       for split in splits)  # fmt: skip
        tested += [_screened(here[site], there[site], ask=ask, effects=effects, rng=rng) for site in sites]
    values: dict[str, dict[str, np.ndarray]] = {}
    for one in tested:
        whole = np.zeros((len(study.stimuli), one.spot.dictionary.n_features), dtype=np.float32)
        whole[np.ix_(study.stimuli.index.get_indexer(one.spot.stimuli.index), one.features)] = one.exact
        values.setdefault(one.spot.site, {})[one.spot.region] = whole
    scored = score_stimuli(study.stimuli, model, dictionaries=sites, regions=ask.region)
    adatas = {s: as_responses(study.stimuli, scored, v, var=features_table(s, sites[s])) for s, v in values.items()}
    features = {site: np.unique(np.concatenate([t.features for t in tested if t.spot.site == site])) for site in sites}
    found = run_sites(adatas, ask, study, effects=effects, noun="screened and random features", features=features)
    return _beside(found, tested, ask=ask, study=study, effects=effects)


def _spots(
    stimuli: pd.DataFrame, model: Any, sites: Mapping[str, Any], *, ask: Any, place: tuple[str, str]
) -> Iterator[Spot]:
    """Every site at a region, on the items of a split, with its approximate effects."""
    region, split = place
    kept = stimuli["split"].astype(str) == split
    if f"{region}_start" in stimuli:
        kept &= stimuli[f"{region}_start"].notna()
    if not kept.any():
        raise DataError(f"no stimulus of split '{split}' has region '{region}'; name another region.")
    part = stimuli[kept].copy()
    part.attrs = dict(stimuli.attrs)
    scored = score_stimuli(part, model, dictionaries=sites, regions=(region,))
    how = {"method": ask.method, "baseline": ask.baseline, "steps": ask.steps}
    for site, made in attributed(part, scored, sites, region=region, **how).items():
        yield Spot(site, sites[site], region, split, part, scored, made)


def _screened(here: Spot, there: Spot, *, ask: Any, effects: Mapping[str, Any], rng: np.random.Generator) -> Screened:
    """The features with the largest approximate effect on the other items, others at random, their exact effects."""
    score = np.max([np.abs(there.item_means(effect)) for effect in effects.values()], axis=0)
    active = np.flatnonzero(np.asarray(abs(there.made.effects).sum(axis=0)).ravel() > 0)
    if not len(active):
        raise DataError(f"no feature of site '{here.site}' matters at '{here.region}' to a first order; name another.")
    order = active[np.lexsort([active, -score[active]])]
    top, rest = order[: ask.screen.top], np.sort(order[ask.screen.top :])
    drawn = np.sort(rng.choice(rest, min(ask.screen.random, len(rest)), replace=False)) if len(rest) else rest
    features = np.concatenate([top, drawn])
    exact = ablate_each(here, features)
    return Screened(here, features, np.arange(len(features)) < len(top), score[features], len(active), exact)


def ablate_each(spot: Spot, features: np.ndarray) -> np.ndarray:
    """Exact change of LD when each feature alone is set to its baseline, (n_stimuli, n_features given)."""
    dose, d = spot.made.baseline[:, features].toarray(), spot.dictionary
    cells = spot.scored.cells[spot.region]
    conditions = [
        (Edit(d.hook, "clamp", cells, dictionary=d, features=(int(j),), dose=dose[:, [k]]),)
        for k, j in enumerate(features)
    ]
    found = edited_outcomes(spot.stimuli, spot.scored.model, conditions, outcomes=("logit_diff",))
    return found.values["logit_diff"] - found.clean["logit_diff"][:, None]


# ------------------------------------------------------------------ what the screen says beside the tests


def _beside(found: Tested, tested: list[Screened], *, ask: Any, study: Any, effects: Mapping[str, Any]) -> Tested:
    """Which rows were screened, the approximation on the same items, ranks among the others, and what was missed."""
    table, alpha = found.table, block_settings(ask, study).alpha
    tables, long = [], []
    for one in tested:
        site, region = one.spot.site, one.spot.region
        rows = table[(table["site"] == site) & (table["region"] == region)]
        place = {int(j): k for k, j in enumerate(one.features)}
        for effect, given in effects.items():
            own = rows[(rows["effect"] == effect) & rows["feature"].isin(list(place))].copy()
            at = np.array([place[int(j)] for j in own["feature"]], dtype=int)
            own["set"] = pd.array(np.where(one.is_top[at], TOP, OTHERS), dtype="string")
            own["x_screen"] = one.score[at]
            own["x_approximate"] = one.spot.item_means(given)[one.features[at]]
            known = np.isfinite(one.spot.made.completeness)
            own["x_completeness"] = np.abs(one.spot.made.completeness[known]).max() if known.any() else np.nan
            own, words = _compared(own, alpha=alpha)
            said = f"{words}; {_how(ask)}"
            own["note"] = pd.array([said if pd.isna(n) else f"{n}; {said}" for n in own["note"]], dtype="string")
            tables += [own, *_silent(table, one, Place(name_of(ask, study), effect, site, region, 0, ask.split, None),
                                     n=len(own))]  # fmt: skip
            long.append(_long(own, effect))
    joined = pd.concat([t.dropna(axis=1, how="all") for t in tables], ignore_index=True)
    joined = as_results({name: joined[name] for name in joined.columns}, n_rows=len(joined))
    extras = {**found.extras, "screen": pd.concat(long, ignore_index=True)}
    return found._replace(table=check_results(joined), extras=extras)


def _long(rows: pd.DataFrame, effect: str) -> pd.DataFrame:
    """Screen, approximation and exact effect of every ablated feature, for the figure."""
    kept = {"site": "site", "region": "region", "feature": "feature", "set": "set", "x_screen": "screen",
            "x_approximate": "approximate", "estimate": "exact", "p_corr": "p_corr"}  # fmt: skip
    return rows[list(kept)].rename(columns=kept).assign(effect=effect).reset_index(drop=True)


def _compared(rows: pd.DataFrame, *, alpha: float) -> tuple[pd.DataFrame, str]:
    """Rank of each row among the random others, agreement with the approximation, and the bound on what was missed."""
    known = rows["estimate"].notna().to_numpy()
    others = (rows["set"] == OTHERS).to_numpy()
    size = rows["estimate"].abs().fillna(0).to_numpy()  # an edit that changed nothing has no estimate, and is 0
    rank = np.array([(1 + (size[others] >= s - 1e-9).sum()) / (1 + others.sum()) for s in size])
    top = known & ~others & (others.sum() > 0)
    rows["x_p_others"] = np.where(top, rank, np.nan)
    r = np.nan
    both = known & np.isfinite(rows["x_approximate"].to_numpy(dtype=float))
    if both.sum() > 2 and np.ptp(rows["x_approximate"].to_numpy()[both]) > 0:
        r = float(np.corrcoef(rows["x_approximate"].to_numpy()[both], rows["estimate"].to_numpy()[both])[0, 1])
    rows["x_agreement"] = r
    missed, n = int((is_found(rows, alpha) & others).sum()), int(others.sum())
    bound = float(stats.beta.ppf(0.95, missed + 1, n - missed)) if n > missed else 1.0
    rows["x_missed"], rows["x_missed_bound"] = (missed / n, bound) if n else (np.nan, np.nan)
    words = f"approximation against exact effects: r = {r:.3f} over {int(both.sum())} features"
    if n:
        words += f"; {missed} of {n} random others found, so the screen misses at most {bound:.1%} (95 %)"
    return rows, words


def _how(ask: Any) -> str:
    """Dose, freezing and range of the edits, for the note of every row."""
    dose = {"zero": "set to 0", "mean": "set to its mean over other items", "partner": "set to its partner's value"}
    return (
        f"each feature alone {dose[ask.baseline]}, within its natural range, normalisation free; the random others are "
        "not matched, so a claim needs `test: intervention`"
    )


def _silent(table: pd.DataFrame, chosen: Screened, place: Place, *, n: int) -> Iterator[pd.DataFrame]:
    """Rows for features that changed nothing on the tested items, and for active ones that were not ablated."""
    first = table.iloc[0]
    family = {name: first[name] for name in ("family", "n_family", "p_adjust", "alternative")}
    quiet = "changed no logit difference of any tested stimulus when set to their baseline"
    left = "active on the screened items, neither among the largest of the screen nor drawn, so not ablated"
    for name, count, status, why in (
        ("no change", len(chosen.features) - n, "dead", quiet),
        ("not ablated", chosen.n_active - len(chosen.features), "untestable", left),
    ):
        if count > 0:
            own = place._replace(set=name)._asdict() | {"kind": "attribution", "n_features": count, "status": status}
            yield as_results(own | family | {"note": why}, n_rows=1)


def _direct(ask: Any, study: Any, *, effects: Mapping[str, Any]) -> Tested:
    """Components (and, where sites are named, features) of LD, tested like responses."""
    model, dictionaries = study.live()
    sites = {site: dictionaries[site] for site in ask.sites or ()}
    made = direct_attribution(study.stimuli, model, sites)
    tested = run_sites(made, ask, study, effects=effects, noun="components")
    names = made[DIRECT].var_names.str.removeprefix(f"{DIRECT}/")
    is_part = (tested.table["site"] == DIRECT) & tested.table["feature"].notna()
    words = [names[int(j)] if part else pd.NA for j, part in zip(tested.table["feature"], is_part, strict=True)]
    return tested._replace(table=tested.table.assign(x_component=pd.array(words, dtype="string")))
