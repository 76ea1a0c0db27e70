"""What a test asks for, whatever its kind: sites, effects, regions and settings, and the item data of one place.

Shared by all kinds of tests that start from item data (`contrast`, `maps`, `pairs`, `combine`, `selection`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.errors import DataError, NeurosaeError, choose
from neurosae.spec.block import name_of
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.spec.effects import omnibus, sloped
from neurosae.spec.results import Tested
from neurosae.stats.adjusted import adjusted
from neurosae.stats.family import Place
from neurosae.stats.units import AnnData, ItemData, item_data


class Asked(NamedTuple):
    """What is tested: name of the test, effects by name, regions, split, and the features of each site (None = all)."""

    test: str
    effects: dict[str, Mapping[str, Any]]
    regions: tuple[str, ...]
    split: str
    features: dict[str, np.ndarray] | None = None
    set_name: str | None = None


class Block(NamedTuple):
    """A block of `tests:` read in its study: what is asked, the responses of its sites, and its settings."""

    asked: Asked
    sites: dict[str, AnnData]
    settings: Inference


def read_block(ask: Any, study: Any, responses: Mapping[str, AnnData]) -> Block:
    """Names of a block looked up in its study; what the block says itself stands over the `inference:` section."""
    spec = study.spec
    test = name_of(ask, spec.tests)
    sites = {site: choose("site", site, responses) for site in ask.sites or responses}
    effects = {name: choose("effect", name, spec.effects) for name in many(ask.effect)}
    changed = {key: getattr(ask, key, None) for key in ("statistic", "correction", "alternative")}
    settings = spec.inference.model_copy(update={key: value for key, value in changed.items() if value is not None})
    return Block(Asked(test, effects, many(ask.region), ask.split), sites, settings)


def named_effects(effect: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{name: effect} as it is; one bare effect is named after its factors."""
    bare = not all(
        isinstance(v, Mapping) and any(isinstance(x, Mapping | str) for x in v.values()) for v in effect.values()
    )
    return {":".join(effect): effect} if bare else dict(effect)


def responses_by_site(responses: AnnData | Mapping[str, AnnData]) -> dict[str, AnnData]:
    """Responses by site; a single AnnData carries its site's name in the index of its features, `site/feature`."""
    if isinstance(responses, Mapping):
        if not responses:
            raise DataError("there are no responses; give an AnnData of one site, or {site: AnnData}.")
        return dict(responses)
    return {str(responses.var_names[0]).rpartition("/")[0]: responses}


def many(names: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as several."""
    return (names,) if isinstance(names, str) else tuple(names)


def settings_of(inference: Mapping[str, Any] | Inference | None) -> Inference:
    """Settings of a test from the keys of the `inference:` section; what is left out has its default."""
    if isinstance(inference, Inference):
        return inference
    try:
        return Inference.model_validate(dict(inference or {}))
    except ValueError as error:
        if isinstance(error, NeurosaeError):
            raise
        raise DataError(f"inference: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    details = getattr(error, "errors", lambda: [])()
    return f"{'.'.join(map(str, details[0]['loc']))}: {details[0]['msg']}" if details else str(error)


def positions_in(adata: AnnData, region: str) -> list[int]:
    """Positions of a region, from its middle outwards."""
    regions = {str(r): None for r in adata.obs["region"].unique()}
    choose("region of these responses", region, regions)
    found = adata.obs.loc[(adata.obs["region"] == region).to_numpy(), "position"]
    return sorted({int(p) for p in found}, key=lambda p: (abs(p), p))


def place_data(
    adata: AnnData, design: Design, effect: Mapping[str, Any], *, place: Place, inference: Inference
) -> ItemData | str:
    """The item data, or why there is none; other positions than 0 may be missing in some stimuli."""
    try:
        return cell_data(adata, design, effect, place=place, inference=inference)
    except DataError as error:
        if place.position == 0:
            raise
        return str(error)


def cell_data(
    adata: AnnData, design: Design, effect: Mapping[str, Any], *, place: Place, inference: Inference
) -> ItemData:
    """The item data of one effect at one place, nuisance regressed out where asked for; refused for too few items."""
    where = {"region": place.region, "position": place.position, "split": place.split}
    flips_only = bool(inference.nuisance) and omnibus(effect) is None and sloped(effect) is None
    data = adjusted(item_data(adata, design, effect, **where, flips_only=flips_only), inference.nuisance)
    _refuse_few(data, inference, place)
    return data


def _refuse_few(data: ItemData, inference: Inference, place: Place) -> None:
    p_min = data.exchange.p_min / (1 if inference.alternative == "two-sided" or data.exchange.kind != "flip" else 2)
    if p_min > inference.alpha:
        what = "sign flips" if data.exchange.kind == "flip" else "label permutations"
        raise DataError(
            f"{data.n} items in split '{place.split}' allow {data.exchange.n_relabellings} {what}; the smallest "
            f"{inference.alternative} p is {p_min:.3g}, above alpha {inference.alpha:g}. Use at least 6 items."
        )


def features_from_earlier(ask: Any, sites: Mapping[str, AnnData], earlier: Mapping[str, Tested]):
    """Features chosen by an earlier test of one effect on other items, or named ones; sorted, by site.

    Of every site the `top` features by |value| (by value where the earlier test is one-sided), the largest that a
    feature has at any region and position of the earlier test; ties by the index of the feature.

    Raises
    ------
    DataError
        An earlier test on the same items, of several effects, or without a tested feature at a site.
    """
    choice = ask.features
    assert choice is not None
    if choice.from_ is None:
        return {site: named_at(choice, site, adata) for site, adata in sites.items()}, choice.name
    table = choose("earlier test", choice.from_, earlier).table
    if set(table["split"].dropna()) & {ask.split}:
        raise DataError(
            f"features would be chosen and tested on the same items (split: {ask.split}). "
            f"Set `split: localizer` on '{choice.from_}'."
        )
    refuse_several(table, f"'{choice.from_}'")
    table = table[table["status"] == "ok"]
    size = table["value"].where(table["alternative"].eq("greater").fillna(False), table["value"].abs())
    table = table.assign(size=-size).sort_values(["size", "feature"])
    chosen = {site: table[table["site"] == site].drop_duplicates("feature").head(choice.top) for site in sites}
    for site, rows in chosen.items():
        if not len(rows):
            raise DataError(f"'{choice.from_}' has no tested feature at site '{site}'; run it on that site too.")
    features = {site: np.sort(rows["feature"].to_numpy(dtype=int)) for site, rows in chosen.items()}
    return features, choice.name


def refuse_several(table: pd.DataFrame, name: str) -> None:
    """Refuse to rank features by a contrast of several effects: the same feature would have several ranks.

    The categories of a test of specialists are one effect.
    """
    contrasts = table[table["kind"].eq("contrast").fillna(False)]
    if len(effects := list(contrasts["effect"].dropna().unique())) > 1:
        raise DataError(
            f"{name} tests {', '.join(effects)}, whose statistics are no one ranking of features; choose them by a "
            "test of one effect."
        )


def named_at(choice: Any, site: str, adata: AnnData) -> np.ndarray:
    """The features that a block names at a site, refused where there are none, or no such ones."""
    named = np.array(choice.at(site), dtype=int)
    if not len(named):
        raise DataError(f"features.ids names none of site '{site}'; name some, or set `sites` of this test.")
    if named[-1] > (last := int(adata.var["feature"].max())):
        raise DataError(f"features.ids names {named[-1]} at site '{site}', whose features are 0 to {last}.")
    return named
