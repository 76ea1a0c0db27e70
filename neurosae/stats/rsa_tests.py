"""What gives p to the models of an RSA: flips of items, permuted labels of conditions, or a bootstrap of several RDMs.

Each function answers for all places and models at once and returns, by (model, place), the columns of a results row, or
in words why there is no test; and the maxima over places and models per relabelling, where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from neurosae.errors import DataError
from neurosae.spec.geometry import FEW
from neurosae.spec.results import counted_p
from neurosae.stats import rdm
from neurosae.stats.condition_labels import Movers, movers
from neurosae.stats.geometry import Key, Place, Question, places
from neurosae.stats.length import LengthTest, corrected_lengths, effect_lengths
from neurosae.stats.model_comparison import LEVEL, Bootstrapped, dual_bootstrap, model_rows
from neurosae.stats.multiplicity import holm
from neurosae.stats.rdm_compare import compare_rdms
from neurosae.stats.relabel_conditions import label_null
from neurosae.stats.units import item_data

Columns = dict[str, Any]
Tests = dict[tuple[str, Key], Columns | str]


# --- flips of items -------------------------------------------------------------------------------------------------


def flip_tests(asked: Question, found: Sequence[Place]) -> tuple[Tests, np.ndarray | None]:
    """D_c of the effect of every factorial model, under flips or permuted labels of whole items."""
    models = {n: m for n, m in asked.ask.models.items() if m.effect is not None and not m.nuisance}
    tests = {name: _lengths(asked, str(model.effect), found) for name, model in models.items()}
    p_corr, null_max = corrected_lengths(tests)
    out: Tests = {}
    for name, by_place in tests.items():
        for key, test in by_place.items():
            out[name, key] = test if isinstance(test, str) else _length_columns(test, p_corr, model=name, key=key)
    return out, null_max


def _lengths(asked: Question, effect: str, found: Sequence[Place]) -> dict[Key, LengthTest | str]:
    data, out = {}, {}
    for place in found:
        where = {"region": place.region, "position": place.position, "split": asked.ask.split}
        try:
            data[place.key] = item_data(place.adata, place.design, asked.effects[effect], **where)
        except DataError as error:
            out[place.key] = f"No test: {error}"
    rules = asked.inference
    common = {"n_permutations": rules.n_permutations, "min_informative": rules.min_informative}
    lengths = effect_lengths(data, seed=asked.seed, split=asked.ask.split, **common)
    none = f"No test: no feature has a contrast that is not zero in at least {rules.min_informative} items."
    return out | {key: lengths.get(key, none) for key in data}


def _length_columns(test: LengthTest, p: Mapping[tuple[str, Key], float], *, model: str, key: Key) -> Columns:
    length, exchange, n = test.length, test.data.exchange, test.relabelling.n
    reachable = 2.0 ** (1 - length.n_informative) if exchange.kind == "flip" else exchange.p_min
    said = ["p belongs to D_c (H1: at least one feature answers to the effect); the fit itself is not tested."]
    said += [f"{words[0].upper()}{words[1:]}." for words in [exchange.note] if words]
    return {
        "estimate": length.value,
        "effsize": length.value,
        "eftype": "D_c",
        "p_unc": length.p,
        "p_corr": p[model, key],
        **_family(len({name for name, _ in p}), len(p)),
        "p_method": test.relabelling.method(exact=exchange.exact),
        "unit": exchange.unit,
        "n_units": test.data.n,
        "n_informative": length.n_informative,
        "n_perm": n,
        "p_min": max(1 / n, reachable),
        "alternative": "greater",
        "h0": f"{test.data.effect.h0}, in any feature",
        "x_z": float(length.null[0]),
        "x_n_tested": length.n_features,
        "note": " ".join(said),
    }


def _family(n_models: int, n: int) -> Columns:
    one = "maximum over sites, regions and positions of this test"
    words = one if n_models == 1 else f"{one}, then Holm over its {n_models} models"
    return {"p_adjust": "maxT" if n_models == 1 else "maxT+holm", "family": words, "n_family": n}


# --- labels of conditions -------------------------------------------------------------------------------------------


def label_tests(
    asked: Question, found: Sequence[Place], models: Sequence[Mapping[str, np.ndarray]]
) -> tuple[Tests, np.ndarray | None]:
    """Fits under permuted condition labels, the same permutation for all places; maximum over places, Holm over models.

    Whole items move where items are conditions, inside equal levels of the blocks. With nuisance models the statistic
    is the partial agreement, and what the nuisance leaves of the model is permuted, which is approximate.
    """
    ask, rules, n = asked.ask, asked.inference, asked.inference.n_permutations
    tested = [name for name, model in ask.models.items() if not model.nuisance and not model.fitted]
    nuisance = [name for name, model in ask.models.items() if model.nuisance]
    moved = {place.key: movers(asked, place) for place in found}
    first = next(iter(moved.values()))
    out: Tests = {}
    nulls: dict[str, dict[Key, np.ndarray]] = {name: {} for name in tested}
    for place, vectors in zip(found, models, strict=True):
        own = moved[place.key]
        for name in tested:
            reason = _no_labels(place, vectors[name], own, alpha=rules.alpha)
            if reason is None and not np.array_equal(own.blocks, first.blocks):
                reason = (
                    "No test: this place has other conditions than the first one, so they cannot be permuted alike."
                )
            if reason is not None:
                out[name, place.key] = reason
                continue
            drawn, rest = own.drawn(asked.seed), [vectors[z] for z in nuisance]
            rest = np.stack([v for v in rest if np.ptp(v) > 0]) if any(np.ptp(v) > 0 for v in rest) else None
            try:
                null = label_null(place.data[None], vectors[name], drawn, n=n, compare=ask.compare, nuisance=rest)
            except DataError as error:
                out[name, place.key] = f"No test: {error}"
                continue
            nulls[name][place.key] = null[:, 0].astype(float)
    null_max, p = _label_p(nulls)
    for (name, key), value in p.items():
        null = nulls[name][key]
        out[name, key] = {
            "p_unc": float(counted_p(null, null[:1], tolerance=1e-6)[0]), "p_corr": value,
            **_family(len({m for m, _ in p}), len(p)),
            "p_method": "permutations (approximate)" if nuisance else moved[key].method, "unit": moved[key].unit,
            "n_units": len(moved[key].blocks), "n_perm": n, "p_min": moved[key].p_min(n), "alternative": "greater",
            "h0": "which condition is which says nothing about the geometry", "x_z": _standardized(null),
            "note": _label_note(moved[key], bool(nuisance)),
        }  # fmt: skip
    return out, null_max


def _label_note(moved: Movers, nuisance: bool) -> str:
    said = [] if moved.exact else [f"{moved.words}."]
    said += ["Nuisance is regressed out of data and model, what is left of the model is permuted."] if nuisance else []
    return " ".join(said)


def _standardized(null: np.ndarray) -> float:
    return float(null[0] / null.std()) if null.std() > 1e-9 else 0.0


def _no_labels(place: Place, model: np.ndarray, moved: Movers, *, alpha: float) -> str | None:
    if not (np.isfinite(place.data).all() and np.isfinite(model).all() and np.ptp(model) > 0):
        return "No test: the distances of the data or of the model are undefined or all equal."
    if (why := moved.too_few(alpha)) is None:
        return None
    return f"No test: {why}{', or p_from: item_flips with a model of an effect' if len(moved.blocks) < FEW else ''}."


def _label_p(nulls: Mapping[str, Mapping[Key, np.ndarray]]) -> tuple[np.ndarray | None, dict[tuple[str, Key], float]]:
    """Maximum over places of fits in standard deviations of their null, then Holm over models."""
    spread = {n: {k: v.std() for k, v in by.items()} for n, by in nulls.items()}
    # a fit that no permutation changes is as large as its whole null, p = 1
    scaled = {
        n: {k: v / spread[n][k] if spread[n][k] > 1e-9 else np.zeros(len(v)) for k, v in by.items()}
        for n, by in nulls.items()
        if by
    }
    if not scaled:
        return None, {}
    tops = {name: np.max(list(by.values()), axis=0) for name, by in scaled.items()}
    p = {(n, k): float(counted_p(tops[n], v[:1], tolerance=1e-6)[0]) for n, by in scaled.items() for k, v in by.items()}
    out, running, ordered = {}, 0.0, sorted(p, key=lambda one: p[one])
    for step, one in enumerate(ordered):
        running = max(running, min(1.0, len({name for name, _ in ordered[step:]}) * p[one]))
        out[one] = running
    return np.max(list(tops.values()), axis=0).astype(np.float32), out


# --- several RDMs ---------------------------------------------------------------------------------------------------


def bootstrap_tests(
    asked: Question, found: Sequence[Place], models: Sequence[Mapping[str, np.ndarray]], *, responses: Any
) -> tuple[Tests, list[Columns]]:
    """The corrected two-factor bootstrap at every place; columns of the models, and whole rows of pairs of models."""
    out: Tests = {}
    pairs: list[Columns] = []
    for place, vectors in zip(found, models, strict=True):
        fixed = {n: v for n, v in vectors.items() if np.isfinite(v).all() and np.ptp(v) > 0}
        try:
            boot = _boot(asked, place, fixed, responses=responses)
        except DataError as error:
            out |= {(name, place.key): f"No test: {error}" for name in vectors}
            continue
        table = model_rows(boot, margin=asked.ask.margin)
        for row in table.to_dict("records"):
            if row["effect"] in fixed:
                out[row["effect"], place.key] = _boot_columns(asked, row, boot)  # pyright: ignore
            elif asked.ask.differences:
                pairs.append({**row, **_where(place)})  # pyright: ignore
    _correct(out, pairs)
    return out, pairs


def _boot(asked: Question, place: Place, fixed: Mapping[str, np.ndarray], *, responses: Any) -> Bootstrapped:
    ask = asked.ask
    if ask.over == "item_folds":
        folds = rdm.item_folds(place.found, ask.folds, np.random.default_rng([asked.seed, 8]))
        least = min(int(np.bincount(place.found.condition, weights=f[place.found.item]).min()) for f in folds)
        if least < 2 and ask.distance == "crossnobis":
            raise DataError(f"a group of items has {least} of them in a condition, crossnobis needs 2; fewer folds.")
        data = rdm.weighted_rdms(place.gram, place.found, folds, distance=ask.distance)
    else:
        data = np.stack(_rdms_over(asked, place, responses))
    return dual_bootstrap(data, dict(fixed), n_draws=ask.n_bootstrap, compare=ask.compare, seed=asked.seed)


def _rdms_over(asked: Question, place: Place, responses: Any) -> list[np.ndarray]:
    """RDMs of the same region and position, one per frame, or one per site."""
    if asked.ask.over == "sites":
        others = [p for p in places(asked, responses)[0] if p.key[1:] == place.key[1:]]
        return [p.data for p in others if p.found.conditions == place.found.conditions]
    frame = place.adata.obs["frame"].astype(str)
    parts = [place.adata[(frame == one).to_numpy()] for one in dict.fromkeys(frame)]
    made = [places(asked, {place.site: part})[0] for part in parts]
    alike = [p for found in made for p in found if p.key == place.key and p.found.conditions == place.found.conditions]
    return [p.data for p in alike]


def _where(place: Place) -> Columns:
    return {"site": place.site, "region": place.region, "position": place.position}


def _boot_columns(asked: Question, row: Mapping[str, Any], boot: Bootstrapped) -> Columns:
    names = ("value", "se", "dof", "ci_low", "ci_high", "ci_level", "p_unc", "p_method", "alternative", "h0", "n_perm",
             "x_to_ceiling", "x_p_ceiling")  # fmt: skip
    kept = {name: row[name] for name in names if name in row and not pd.isna(row[name])}
    over = {"item_folds": "groups of items", "frames": "frames", "sites": "sites"}[asked.ask.over]
    note = f"Fit, interval and p from a bootstrap over {boot.n_rdms} {over} and {boot.n_conditions} conditions."
    if boot.n_left_out:
        note += f" {boot.n_left_out} draws in which a model or RDM does not vary are left out."
    if row["status"] != "ok":
        return {"p_method": "none", "h0": "none: the fit is described, not tested", "note": str(row["note"])}
    extra = "" if pd.isna(row["note"]) else f" {row['note']}."
    return {**kept, "unit": "RDM x condition", "n_units": boot.n_rdms, "note": note + extra}


def _correct(out: Tests, pairs: list[Columns]) -> None:
    """Holm over all models and places, and over all pairs and places."""
    tested = [row for row in out.values() if isinstance(row, dict) and "p_unc" in row]
    paired = [row for row in pairs if pd.notna(row.get("p_unc", np.nan))]
    for rows, what in ((tested, "models and places"), (paired, "pairs of models and places")):
        for row, p in zip(rows, holm(np.array([row["p_unc"] for row in rows])) if rows else [], strict=True):
            row |= {"p_corr": float(p), "p_adjust": "holm", "family": f"all {what} of this test", "n_family": len(rows)}


# --- differences between models over bootstrapped items -------------------------------------------------------------


def difference_rows(
    asked: Question, found: Sequence[Place], models: Sequence[Mapping[str, np.ndarray]], *, reliable: Mapping[Key, bool]
) -> list[Columns]:
    """Pairs of fixed models at every place, over bootstrapped items; Holm over pairs, equivalence by two t tests."""
    ask, rows = asked.ask, []
    for place, vectors in zip(found, models, strict=True):
        names = [n for n, v in vectors.items() if np.isfinite(compare_rdms(place.data, v, ask.compare))
                 and not ask.models[n].nuisance]  # fmt: skip
        base = {**_where(place), "stat": f"difference of {ask.compare}", "unit": "item", "p_method": "none"}
        why = None
        if place.by_item:
            why = "Items are conditions: pairs of models need several RDMs, p_from: bootstrap over frames or sites."
        elif not reliable[place.key]:
            why = "The reliability of the data RDM is below 0.3: models are not ranked."
        if why is not None:
            rows += [
                base | {"effect": f"{a} - {b}", "status": "untestable", "note": why} for a, b in combinations(names, 2)
            ]
            continue
        draws = rdm.item_draws(place.found, ask.n_bootstrap, np.random.default_rng([asked.seed, 9]))
        drawn = rdm.weighted_rdms(place.gram, place.found, draws, distance=ask.distance)
        fits = {n: np.array([compare_rdms(v, vectors[n], ask.compare) for v in drawn]) for n in names}
        whole = {n: compare_rdms(place.data, vectors[n], ask.compare) for n in names}
        rows += [base | _difference(asked, place, (a, b), values=(whole[a] - whole[b], fits[a] - fits[b]))
                 for a, b in combinations(names, 2)]  # fmt: skip
    _correct({}, rows)
    return rows


def _difference(asked: Question, place: Place, names: tuple[str, str], *, values: tuple[float, np.ndarray]) -> Columns:
    (value, drawn), n = values, len(place.found.items)
    se = float(drawn.std(ddof=1) * np.sqrt(n / (n - 1)))
    row: Columns = {"effect": f"{names[0]} - {names[1]}", "p_unc": np.nan}
    if not np.isfinite(se) or se <= 1e-12:
        return row | {"status": "untestable", "note": "The two models fit alike in every draw."}
    half = float(scipy.stats.t.isf((1 - LEVEL) / 2, n - 1)) * se
    row |= {
        "value": value, "se": se, "ci_low": value - half, "ci_high": value + half, "ci_level": LEVEL, "dof": n - 1.0,
        "p_unc": max(float(2 * scipy.stats.t.sf(abs(value) / se, n - 1)), np.finfo(float).tiny), "status": "ok",
        "p_method": "bootstrap", "n_units": n, "n_perm": len(drawn), "alternative": "two-sided",
        "h0": f"{names[0]} and {names[1]} fit equally well",
        "note": "Standard error over bootstrapped items; for this dictionary and these conditions.",
    }  # fmt: skip
    if (margin := asked.ask.margin) is not None:
        sides = scipy.stats.t.sf([(margin + value) / se, (margin - value) / se], n - 1)
        row |= {"x_margin": margin, "x_p_equivalent": max(float(sides.max()), np.finfo(float).tiny)}
    return row
