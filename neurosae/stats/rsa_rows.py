"""Fits of all models at one place, and the rows that an RSA test hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurosae.spec.geometry import RdmModel
from neurosae.stats import rdm
from neurosae.stats.geometry import Key, Place, Question
from neurosae.stats.rdm_compare import (
    MOST_PARTS,
    compare_rdms,
    condensed_to_square,
    partial_agreement,
    partial_fit,
    partition,
)
from neurosae.stats.rdm_fit import condition_groups, cross_validate, fit_weights

N_HALVES = 100  # random halves of the items for the reliability
N_PLANES = 100  # bootstrapped items for the uncertainty of points in a plane
UNRANKED = 0.3  # reliability below which models are not ranked


FITTED = ("weight", "unique", "share", "partial", "cv", "plain", "reliability", "ceiling", "value_halves",
          "ceiling_low", "ceiling_high")  # fmt: skip


def place_fits(
    asked: Question, place: Place, models: Mapping[str, np.ndarray], *, rng: np.random.Generator
) -> pd.DataFrame:
    """Fit of each model, alone, jointly, beside nuisance and on other items, with the reliability; a row per model.

    Fitted models get their weights from all items for `value`, and from other items (and conditions) for `cv`.
    """
    ask, found = asked.ask, place.found
    everyone = dict(models) | {n: _mixture(asked, place, models, name=n) for n, m in ask.models.items() if m.fitted}
    everyone = {name: everyone[name] for name in ask.models}
    alone = {name: compare_rdms(place.data, vector, ask.compare) for name, vector in everyone.items()}
    usable = [name for name in models if np.isfinite(alone[name])]
    columns = {"site": place.site, "region": place.region, "position": place.position, "model": list(everyone)}
    table = pd.DataFrame({**columns, "compare": ask.compare, "value": list(alone.values())})
    table = table.set_index("model", drop=False)
    table[list(FITTED)] = np.nan
    if usable and ask.compare != "tau-a":
        joint = partial_fit(place.data, np.stack([models[name] for name in usable]), ask.compare)
        for name, values in zip(("weight", "unique", "share"), joint, strict=True):
            table.loc[usable, name] = values
        _partial(asked, place, models, table=table, usable=usable)
    _crossvalidated(asked, place, models, table=table, rng=np.random.default_rng([asked.seed, 10]))
    _sensitivity(asked, place, everyone, table=table)
    halves = rdm.half_rdms(place.gram, found, rdm.item_halves(found, N_HALVES, rng), distance=ask.distance)
    if halves is not None and np.isfinite(halves).all():
        table["reliability"], table["ceiling"] = rdm.reliability(halves, ask.compare)
        bounds = np.mean([rdm.noise_ceiling(pair, ask.compare) for pair in halves], axis=0)
        table["ceiling_low"], table["ceiling_high"] = bounds
        for name in usable:
            agreement = [compare_rdms(half, models[name], ask.compare) for pair in halves for half in pair]
            table.loc[name, "value_halves"] = np.mean(agreement)
    return table.reset_index(drop=True)


def _mixture(asked: Question, place: Place, models: Mapping[str, np.ndarray], *, name: str) -> np.ndarray:
    """In-sample prediction of a fitted model; not a number where its parts or the data are undefined."""
    model = asked.ask.models[name]
    parts = np.stack([models[part] for part in model.fitted])
    if not (np.isfinite(parts).all() and np.isfinite(place.data).all() and np.ptp(parts, axis=1).any()):
        return np.full(parts.shape[1], np.nan)
    return fit_weights(place.data[None], parts, asked.ask.compare, kind=model.kind) @ parts


def _partial(
    asked: Question, place: Place, models: Mapping[str, np.ndarray], *, table: pd.DataFrame, usable: Sequence[str]
) -> None:
    nuisance = [models[name] for name in usable if asked.ask.models[name].nuisance]
    for name in usable:
        if nuisance and not asked.ask.models[name].nuisance:
            value = partial_agreement(place.data, models[name], np.stack(nuisance), compare=asked.ask.compare)
            table.loc[name, "partial"] = value


def _crossvalidated(
    asked: Question, place: Place, models: Mapping[str, np.ndarray], *, table: pd.DataFrame, rng: np.random.Generator
) -> None:
    """Fit of every model on items, and where they are many on conditions, that its weights did not see."""
    ask, found = asked.ask, place.found
    if not any(model.fitted for model in ask.models.values()):
        return
    groups = condition_groups(len(found.conditions), rng)
    train, test = place.data[None], place.data[None]
    if not place.by_item:
        folds = rdm.item_folds(found, ask.folds, rng)
        if min(np.bincount(found.condition, weights=f[found.item]).min() for f in folds) < 2:
            return
        train = rdm.weighted_rdms(place.gram, found, 1 - folds, distance=ask.distance)
        test = rdm.weighted_rdms(place.gram, found, folds, distance=ask.distance)
    elif len(groups) == 1:
        return
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        return
    for name, model in ask.models.items():
        parts = np.stack([models[part] for part in model.fitted or (name,)])
        kind = model.kind if model.fitted else None
        if np.isfinite(parts).all() and np.ptp(parts, axis=1).any():
            value = cross_validate(train, test, parts, compare=ask.compare, kind=kind, groups=groups)
            table.loc[name, "cv"] = value


def _sensitivity(asked: Question, place: Place, models: Mapping[str, np.ndarray], *, table: pd.DataFrame) -> None:
    """The same fits without noise normalisation, where it was used."""
    if asked.ask.noise in (None, "none") or asked.ask.distance != "crossnobis":
        return
    plain, G = rdm.measured(place.found, "crossnobis")
    data = rdm.distances(G, plain)
    for name, vector in models.items():
        table.loc[name, "plain"] = compare_rdms(data, vector, asked.ask.compare)


def partitions(asked: Question, place: Place, models: Mapping[str, np.ndarray], *, fit: pd.DataFrame) -> pd.DataFrame:
    """Unique and shared parts of what the fixed models explain, beside the most that the reliability leaves to explain.

    Empty for one model, more than 5, tau-a, or linearly dependent models.
    """
    fits = fit.set_index("model")
    usable = [name for name in models if np.isfinite(fits.loc[name, "value"])]  # pyright: ignore
    if not 2 <= len(usable) <= MOST_PARTS or asked.ask.compare == "tau-a":
        return pd.DataFrame()
    table = partition(place.data, np.stack([models[n] for n in usable]), asked.ask.compare, names=usable)
    where = {"site": place.site, "region": place.region, "position": place.position}
    # of centred comparators r' is the share of variance a perfect model would explain; of cosines it is its square
    ceiling = float(fits["ceiling"].iloc[0]) ** 2
    return table.assign(**where, ceiling=ceiling)


def planes(asked: Question, place: Place) -> pd.DataFrame:
    """The conditions in two dimensions (classical scaling), with the covariance of each point over bootstrapped items.

    Bootstrapped planes are turned and mirrored onto the plane of all items first. Without bootstrap (items as
    conditions, fewer than 3 items per condition) the covariances are missing.
    """
    if not np.isfinite(place.data).all():
        return pd.DataFrame()
    points, share = _plane(place.data)
    where = {"site": place.site, "region": place.region, "position": place.position}
    table = pd.DataFrame(where | {"condition": place.found.labels, "x": points[:, 0], "y": points[:, 1]})
    table["share"] = share
    table[["xx", "xy", "yy"]] = np.nan
    fewest = np.bincount(place.found.condition).min()
    if place.by_item or fewest < 3:
        return table
    draws = rdm.item_draws(place.found, N_PLANES, np.random.default_rng([asked.seed, 14]))
    drawn = rdm.weighted_rdms(place.gram, place.found, draws, distance=asked.ask.distance)
    moved = []
    for vector in drawn[np.isfinite(drawn).all(axis=1)]:
        other = _plane(vector)[0]
        U, _, V = np.linalg.svd(other.T @ points)
        moved.append(other @ U @ V)
    apart = np.array(moved) - np.mean(moved, axis=0)
    for name, (a, b) in {"xx": (0, 0), "xy": (0, 1), "yy": (1, 1)}.items():
        table[name] = (apart[:, :, a] * apart[:, :, b]).mean(axis=0)
    return table


def _plane(vector: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates on the two largest dimensions of the double-centred kernel, and their share of the positive ones."""
    square = condensed_to_square(vector)
    row = square.mean(axis=0)
    value, axes = np.linalg.eigh(-0.5 * (square - row[:, None] - row[None, :] + row.mean()))
    positive = np.maximum(value, 0.0)
    points = axes[:, ::-1][:, :2] * np.sqrt(positive[::-1][:2])
    return points, float(positive[::-1][:2].sum() / max(positive.sum(), 1e-300))


# --- rows -----------------------------------------------------------------------------------------------------------


def _about(asked: Question, key: Key, model: str) -> dict[str, Any]:
    site, region, position = key
    least, unit = asked.inference.min_informative, "conditions" if "item" in asked.ask.conditions else "items"
    where = {"test": asked.name, "kind": "rsa", "effect": model, "site": site, "region": region, "position": position}
    return where | {
        "split": asked.ask.split,
        "set": f"features informative in at least {least} {unit}",
        "stat": asked.ask.compare,
    }


def model_row(
    asked: Question, place: Place, *, fit: Mapping[str, Any], test: Mapping[str, Any] | str | None
) -> dict[str, Any]:
    """The row of one model at one place: its fit, and what its test says, or why there is none."""
    found, defined = place.found, bool(np.isfinite(fit["value"]))
    undefined = bool(np.isnan(place.data).any())
    columns = dict(test) if isinstance(test, Mapping) and not undefined else {}
    own = str(columns.pop("note", "")) if columns else (test if isinstance(test, str) else None)
    row = _about(asked, place.key, fit["model"]) | {
        "n_features": found.n_features,
        "value": fit["value"],
        "unit": "item",
        "n_units": len(found.conditions) if place.by_item else len(found.items),
        "status": "ok" if defined else "undefined" if undefined else "degenerate",
        "p_method": "none",
        "h0": "none: the fit is described, not tested",
        "x_reliability": fit["reliability"],
        "x_ceiling": fit["ceiling"],
        "x_weight": fit["weight"],
        "x_unique": fit["unique"],
        "x_share": fit["share"],
        "x_n_dead": found.n_dead,
        "x_n_untestable": found.n_untestable,
    }
    for name in ("partial", "cv", "plain"):
        if np.isfinite(fit[name]):
            row[f"x_{name}"] = fit[name]
    return row | columns | {"note": " ".join(_notes(asked, place, fit=fit, own=own))}


def _notes(asked: Question, place: Place, *, fit: Mapping[str, Any], own: str | None) -> list[str]:
    model, found = asked.ask.models[fit["model"]], place.found
    notes = []
    if not np.isfinite(fit["value"]):
        notes.append(_why_undefined(place, model))
    if model.nuisance:
        notes.append("Nuisance model: in the joint fit only, not tested.")
    elif model.fitted:
        notes.append(f"Fitted from {', '.join(model.fitted)}: its fit is compared on other items (x_cv), not tested.")
    elif own is not None:
        notes += [own] if own else []
    else:
        notes.append(f"Not factorial: items cannot be flipped by a {model.kind}, so the fit has no p; see p_from.")
    if np.isfinite(fit["value"]) and np.isnan(fit["weight"]) and not model.fitted and asked.ask.compare != "tau-a":
        notes.append("The models are linearly dependent here, so the joint fit has no weights.")
    if place.by_item:
        notes.append(f"Items are conditions; distances are over {len(found.items)} frames.")
    elif found.nested:
        notes.append("Items are nested in conditions: distances leave out items within each condition.")
    if found.n_dropped:
        notes.append(f"{found.n_dropped} items without all conditions or frames are left out.")
    if np.isnan(fit["reliability"]):
        few = "frames" if place.by_item else "items"
        notes.append(f"Too few {few} per half for a reliability: models are not ranked.")
    elif fit["reliability"] < UNRANKED:
        notes.append(f"Reliability {fit['reliability']:.2f} is below {UNRANKED}: models are not ranked.")
    return notes


def _why_undefined(place: Place, model: RdmModel) -> str:
    if np.isnan(place.data).any():
        return "The distance is undefined: a condition's mean pattern has no variance over features."
    what = f"{model.kind} {'' if model.fitted else getattr(model, model.kind)}".strip()
    return f"The {what} gives no variation among distances here, so there is nothing to fit."


def pair_row(asked: Question, pair: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a difference between two models."""
    key = (pair["site"], pair["region"], pair["position"])
    known = {name: value for name, value in pair.items() if not (np.isscalar(value) and pd.isna(value))}  # pyright: ignore
    return _about(asked, key, pair["effect"]) | known | {"test": asked.name, "kind": "rsa"}


def missing_row(asked: Question, key: Key, *, model: str, why: str) -> dict[str, Any]:
    """The row of a model at a place that cannot be computed."""
    return _about(asked, key, model) | {"status": "untestable", "note": why, "p_method": "none"}


def long_rdms(found: Sequence[Place], models: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Data and model RDMs as a long table, full matrices."""
    tables = []
    for place, vectors_here in zip(found, models, strict=True):
        labels = place.found.labels
        pairs = {"row": np.repeat(labels, len(labels)), "column": np.tile(labels, len(labels))}
        where = {"site": place.site, "region": place.region, "position": place.position}
        for name, kind, vector in [("data", "data", place.data), *((n, "model", v) for n, v in vectors_here.items())]:
            value = condensed_to_square(vector).ravel()
            tables.append(pd.DataFrame({**where, "name": name, "kind": kind, **pairs, "value": value}))
    return pd.concat(tables, ignore_index=True)
