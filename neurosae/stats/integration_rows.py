"""Rows of the integration battery in the results schema, and the long tables that the report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.design.requirements import Requirement, grade_cap
from neurosae.spec.integration import IntegrationBlock
from neurosae.spec.results import as_results
from neurosae.stats.battery import GRADES, Causal, grade_of
from neurosae.stats.multiplicity import holm

CO_ACTIVATION = "co-activation, z - z0 = g (mu + a alpha + b beta) with any gain g > 0 of the stimulus"
H0 = {
    "conj": "exchanging a level of either part within an item leaves the joint law of the activations unchanged",
    "code: D_AxB": "the mean interaction of the pre-activations is zero in every feature",
    "code: D-perp": f"{CO_ACTIVATION}: no interaction outside the span of mean and main effects",
    "code: list control": "the out-of-plane interaction is exchangeable between phrase and list",
    "code": f"{CO_ACTIVATION}, or the same interaction in phrase and list (the larger p of D-perp and list control)",
    "gate": "once the recorded gain is taken out, phrase and list are exchangeable: both couple the parts alike",
    "synergy": "the target is a logistic function of the sum of a function of either source",
    "read": "given the additive base, the residuals of the target are exchangeable between items",
    "causal": "in one direction at least, the effects of both sets add up, or fail to no more than matched pairs",
    "responds": "the set does not answer to its own part on the test items",
}
MEASURES = {"broja": "BROJA", "interaction_information": "interaction information"}
EXPLORATORY = "exploratory: raises no grade"


class Spot(NamedTuple):
    """Where a battery was run."""

    test: str
    site: str
    region: str
    position: int
    split: str


class CodeLength(NamedTuple):
    """Cross-validated length of the interaction of pre-activations: its scale in words, null, one-sided p."""

    label: str
    null: np.ndarray
    p: float


class Conj(NamedTuple):
    """Superadditive activations of one place: a row per feature, the strongest value and its row, and the counts."""

    table: pd.DataFrame
    value: float
    best: int
    n_perm: int
    n_units: int
    n_family: int


class Found(NamedTuple):
    """What the members found at one place; a result is a record, or the reason why there is none.

    p : uncorrected p of code and gate;  lacks : the requirements of the design, met or not
    scores : set scores (2 parts, n_contexts, 4, n_items) under "z";  sizes : features of the site, and of either set
    """

    where: Spot
    n_units: int
    n_perm: int
    items: tuple[str, ...]
    chosen: str
    dropped: str
    results: Mapping[str, Any]
    p: Mapping[str, float]
    conj: Conj | None
    lacks: tuple[Requirement, ...]
    scores: Mapping[str, np.ndarray]
    sizes: tuple[int, ...] = ()


def rows_of_battery(
    spots: Sequence[Found],
    adjusted: Mapping[tuple[Spot, str], float],
    *,
    block: IntegrationBlock,
    alpha: float,
    causal: Causal | Mapping[Any, Causal] | None = None,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """All rows of a test, and the long tables: scores, coupling, conj, requirements."""
    rows = [row for spot in spots for row in _rows(spot, adjusted, block=block, alpha=alpha, causal=causal)]
    _holm_of_synergy(rows)
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = as_results({name: [row.get(name) for row in rows] for name in names}, n_rows=len(rows))
    return table, {name: pd.concat(t, ignore_index=True) for name, t in _long(spots, block).items() if t}


def _holm_of_synergy(rows: list[dict[str, Any]]) -> None:
    """Holm's method over all measures of synergy at all places."""
    at = [k for k, row in enumerate(rows) if row["x_role"] == "exploratory" and "p_unc" in row]
    at = [k for k in at if str(rows[k]["effect"]).startswith("synergy")]
    if at:
        corrected = holm(np.array([rows[k]["p_unc"] for k in at]))
        for k, p in zip(at, corrected, strict=True):
            family = {"p_corr": float(p), "p_adjust": "holm", "family": "measures of synergy at all places"}
            rows[k] |= family | {"n_family": len(at)}


def _rows(
    found: Found, adjusted: Mapping[tuple[Spot, str], float], *, block: IntegrationBlock, alpha: float, causal: Any
) -> list[dict[str, Any]]:
    rows = [*_responds(found, block), *_conj(found)]
    rows += [*_code(found), *_joined(found, adjusted), *_exploratory(found)]
    read = _read_of(causal, found.where)
    rows += [] if read is None else [_causal(found, read, name=block.causal)]
    return [*rows, _grade(found, adjusted, alpha=alpha, causal=read)]


def _read_of(causal: Causal | Mapping[Any, Causal] | None, where: Spot) -> Causal | None:
    """The causal read-out of a place: of the same site and region, or of the whole site where it was handed in so."""
    if causal is None or isinstance(causal, Causal):
        return causal
    return causal.get((where.site, where.region), causal.get(where.site))


def _base(found: Found, effect: str, role: str, *, n_features: int | None = None) -> dict[str, Any]:
    where = found.where
    place = {"test": where.test, "kind": "integration", "effect": effect, "site": where.site, "region": where.region}
    counts = {"position": where.position, "split": where.split, "set": _set_words(found, effect)}
    n = found.sizes[0] if n_features is None else n_features
    about = {"n_features": n, "unit": "item", "n_units": found.n_units, "n_informative": found.n_units}
    h0 = H0.get(effect, H0.get(effect.partition(":")[0]))
    return place | counts | about | {"x_role": role, "h0": h0, "status": "ok", "alternative": "greater"}


def _set_words(found: Found, effect: str) -> str:
    if effect.startswith(("gate", "synergy", "read", "responds")):
        return found.chosen or "no sets"
    return "all features" if effect != "grade" else "battery"


def _numbers(found: Found, stat: str, value: float, *, p: float, n_perm: int | None = None) -> dict[str, Any]:
    n = found.n_perm if n_perm is None else n_perm
    return {"stat": stat, "value": value, "p_unc": p, "p_method": "flips", "n_perm": n, "p_min": 1 / n}


def _silent(found: Found, effect: str, role: str, *, reason: str) -> dict[str, Any]:
    return _base(found, effect, role) | {"status": "untestable", "note": f"{effect.partition(':')[0]} {reason}".strip()}


def _responds(found: Found, block: IntegrationBlock) -> list[dict[str, Any]]:
    """Whether the sets answer to their own parts on the test items; without that grade 0 has no content."""
    out = []
    for part, (d_z, p), size in zip(block.parts, found.results.get("responds", ()), found.sizes[1:], strict=False):
        numbers = _numbers(found, "d_z", d_z, p=p) | {"effsize": d_z, "eftype": "d_z", "alternative": "two-sided"}
        numbers |= {"p_method": "exact" if found.n_units <= 24 else "saddlepoint", "p_min": 2.0 ** (1 - found.n_units)}
        out.append(_base(found, f"responds: {part}", "premise", n_features=size) | numbers | {"note": found.chosen})
    return out


def _conj(found: Found) -> list[dict[str, Any]]:
    if found.conj is None:
        return []
    table, best = found.conj.table, found.conj.table.iloc[found.conj.best]
    hits = table[table["removable"] != ""]
    counts = {name: int((hits["removable"] == name).sum()) for name in ("yes", "cusp", "no")}
    note = (
        f"the strongest of {len(table)} tested features is {int(best['feature'])}; {len(hits)} found, of which "
        f"{counts['yes'] + counts['cusp']} could be removed by a monotone rescaling ({counts['cusp']} differ in the "
        f"pair alone) and {counts['no']} cross over; thresholds, normalization and word pairs do the same"
    )
    numbers = _numbers(found, "moderated_t", found.conj.value, p=float(table["p_corr"].min()), n_perm=found.conj.n_perm)
    family = {"p_corr": float(table["p_corr"].min()), "p_adjust": "maxT", "n_family": found.conj.n_family}
    family |= {"family": "interaction of activations over all testable features and places"}
    sizes = {"effsize": best["d_z"] if np.isfinite(best["d_z"]) else None, "eftype": "d_z", "alternative": "two-sided"}
    extra = {"note": note, "x_n_found": len(hits), "x_n_crossover": counts["no"]}
    return [_base(found, "conj", "grade 1", n_features=len(table)) | numbers | family | sizes | extra]


def _code(found: Found) -> list[dict[str, Any]]:
    rows, results = [], found.results
    for one in results.get("lengths", ()):
        if isinstance(one, str):
            continue
        note = {
            "": "as the dictionary reads it; a gain of the stimulus alone gives such an interaction",
            ", unit length": "raw stream divided by its recorded norm; a gain that is not the norm is still in it",
            ", norm-corrected": "multiplied by the recorded norm; right only if the norm is the gain",
        }[one.label]
        numbers = _numbers(found, "D", float(one.null[0]), p=one.p) | {"h0": H0["code: D_AxB"]}
        rows.append(_base(found, f"code: D_AxB{one.label}", "beside") | numbers | {"note": note})
    plane, control = results.get("plane"), results.get("control")
    if isinstance(plane, str):
        rows.append(_silent(found, "code: D-perp", "part of code", reason=plane))
    elif plane is not None:
        share = {"effsize": plane.share, "eftype": "emergent share", "x_loo_low": plane.low, "x_loo_high": plane.high}
        note = f"share without one item {plane.low:.3g} to {plane.high:.3g}, least without {found.items[plane.item]}"
        note += f"; {found.dropped}" if found.dropped else ""
        note = note if np.isfinite(plane.low) else "the parts have no effect of their own, so there is no share of it"
        rows.append(
            _base(found, "code: D-perp", "part of code", n_features=plane.n_features)
            | _numbers(found, "D", plane.value, p=plane.p) | share | {"note": note}
        )  # fmt: skip
    if isinstance(control, str):
        rows.append(_silent(found, "code: list control", "part of code", reason=control))
    elif control is not None:
        size = {"effsize": control.difference, "eftype": "difference of emergent shares"}
        longer = control.phrase > control.list_ and not control.difference <= 0
        note = f"out-of-plane length {control.phrase:.3g} in the phrase, {control.list_:.3g} in the list"
        note += "" if longer else "; not larger in the phrase, in length and in share, so p is 1"
        rows.append(
            _base(found, "code: list control", "part of code", n_features=control.n_features)
            | _numbers(found, "D", control.value, p=control.p) | size | {"note": note, "x_ratio": control.ratio}
        )  # fmt: skip
    return rows


def _joined(found: Found, adjusted: Mapping[tuple[Spot, str], float]) -> list[dict[str, Any]]:
    """The two tests on which grade 2 rests, corrected by Holm's method over both and over all places."""
    rows, n = [], len(adjusted)
    family = {"p_adjust": "holm", "family": "code and gate at all sites, regions and positions", "n_family": n}
    if "code" in found.p:
        plane, control = found.results["plane"], found.results.get("control")
        note = "larger p of D-perp and list control" if control is not None else "no list: D-perp alone"
        numbers = _numbers(found, "D", plane.value, p=found.p["code"]) | {"effsize": plane.share}
        corrected = {"p_corr": adjusted[found.where, "code"], "eftype": "emergent share", "note": note}
        rows.append(_base(found, "code", "grade 2") | numbers | family | corrected)
    gate = found.results.get("gate")
    if isinstance(gate, str):
        rows.append(_silent(found, "gate", "grade 2", reason=gate))
    elif gate is not None:
        low, high = gate.r[:, 0]
        numbers = _numbers(found, "Fisher z difference", float(gate.value[0]), p=found.p["gate"])
        size = {"effsize": float(high - low), "eftype": "difference of r", "alternative": "two-sided"}
        note = f"r = {high:.2f} in the phrase, {low:.2f} in the list, recorded gain taken out; {found.chosen}"
        corrected = {"p_corr": adjusted[found.where, "gate"], "x_r_list": low, "x_r_phrase": high, "note": note}
        sizes = sum(found.sizes[1:])
        rows.append(_base(found, "gate", "grade 2", n_features=sizes) | numbers | family | size | corrected)
    return rows


def _exploratory(found: Found) -> list[dict[str, Any]]:
    rows, n = [], sum(found.sizes[1:])
    made = found.results.get("synergy")
    if isinstance(made, str):
        rows.append(_silent(found, "synergy", "exploratory", reason=made))
    for one in made if isinstance(made, list) else ():
        numbers = _numbers(found, "bits", one.value, p=one.p, n_perm=len(one.null) + 1)
        numbers |= {"unit": "stimulus", "n_units": 4 * found.n_units, "n_informative": 4 * found.n_units}
        numbers |= {"p_method": "additive surrogates", "effsize": one.above, "eftype": "bits above surrogate"}
        note = f"{EXPLORATORY}; additive surrogates have {one.surrogate:.3f} bits; stimuli count as independent"
        rows.append(
            _base(found, f"synergy: {MEASURES[one.measure]}", "exploratory", n_features=n) | numbers | {"note": note}
        )
    read = found.results.get("read")
    if isinstance(read, str):
        rows.append(_silent(found, "read", "exploratory", reason=read))
    elif read is not None:
        rows += _rungs(found, read, n)
    return rows


def _rungs(found: Found, read: Any, n: int) -> list[dict[str, Any]]:
    rows = []
    for rung in read.p:
        numbers = _numbers(found, "e'QQ'e / e'e", read.score[rung], p=read.p[rung]) | {"p_method": "permutations"}
        size = {"effsize": read.delta_r2, "eftype": "delta R2 (cross-validated)"}
        note = f"{EXPLORATORY}; all rungs are shown, uncorrected; {read.n_products} products"
        rows.append(_base(found, f"read: {rung}", "exploratory", n_features=n) | numbers | size | {"note": note})
    return rows


def _causal(found: Found, read: Causal, *, name: str | None) -> dict[str, Any]:
    """The causal read-out in a row of its own, with what it is made of, or why it does not count."""
    base = _base(found, "causal", "grade 3", n_features=sum(found.sizes[1:]))
    base |= {"unit": "item", "n_units": read.n_units or found.n_units, "set": name or "given by the caller"}
    base |= {"n_informative": base["n_units"], "alternative": "two-sided"}
    if read.unusable:
        return base | {"status": "untestable", "note": f"causal read-out does not count: {read.unusable}"}
    p = max(read.p_items, read.p_controls)
    known = {"stat": "I", "value": read.value} if np.isfinite(read.value) else {"stat": "largest p", "value": p}
    numbers = known | {"p_unc": p, "p_corr": read.p}
    numbers |= {
        "p_method": "flips and rank",
        "p_adjust": "holm",
        "family": "places of the joint clamp",
        "n_family": read.n_places,
    }
    note = f"{' and '.join(read.directions) or 'read-out'}: over items p {read.p_items:.3g}, among matched pairs "
    note += f"{read.p_controls:.3g}; the larger counts" + f"; not judged: {read.silent}" * bool(read.silent)
    return base | numbers | {"note": note}


def _grade(
    found: Found, adjusted: Mapping[tuple[Spot, str], float], *, alpha: float, causal: Causal | None
) -> dict[str, Any]:
    p = {name: adjusted[found.where, name] for name in found.p}
    conj = np.nan if found.conj is None else float(found.conj.table["p_corr"].min())
    unusable = "no causal read-out" if causal is None else causal.unusable
    reached, cap = grade_of(p, conj=conj, causal=causal, alpha=alpha), grade_cap(list(found.lacks), causal=not unusable)
    grade = min(reached, cap)
    missing = [one.name for one in found.lacks if not one.met]
    said = f"grade {grade} of 3, {GRADES[grade]}"
    said += f"; the evidence alone reaches {reached}" if reached > grade else ""
    silent = [d_z <= 0 or p > alpha for d_z, p in found.results.get("responds", ())]
    said += "; a set does not answer to its own part on the test items" if any(silent) else ""
    said += f"; missing: {', '.join(missing)}" if missing else ""
    if causal is None:
        said += "; no causal read-out, so at most 2"
    else:
        said += (
            "; the causal read-out does not count, so at most 2" if unusable else f"; causal read-out p {causal.p:.3g}"
        )
    columns = {"stat": "grade", "value": float(grade), "x_grade": grade, "x_grade_evidence": reached, "x_cap": cap}
    return _base(found, "grade", "grade") | columns | {"note": said, "h0": None, "alternative": None}


def _long(spots: Sequence[Found], block: IntegrationBlock) -> dict[str, list[pd.DataFrame]]:
    out: dict[str, list[pd.DataFrame]] = {"scores": [], "coupling": [], "conj": [], "requirements": []}
    for found in spots:
        where = {"site": found.where.site, "region": found.where.region, "position": found.where.position}
        if "z" in found.scores:
            out["scores"].append(_score_table(found.scores["z"], found.items, block).assign(**where))
        gate = found.results.get("gate")
        if gate is not None and not isinstance(gate, str):
            for context in range(2):
                scores = {"seed": gate.seed[context, :, 0], "target": gate.target[context, :, 0]}
                part = pd.DataFrame({"item": found.items, **scores})
                out["coupling"].append(part.assign(context=("control", "composed")[context], **where))
        if found.conj is not None:
            out["conj"].append(found.conj.table.assign(**where))
        lacks = [one.__dict__ for one in found.lacks]
        out["requirements"].append(pd.DataFrame(lacks).assign(**where))
    return out


def _score_table(scores: np.ndarray, items: tuple[str, ...], block: IntegrationBlock) -> pd.DataFrame:
    """Set scores, long: part, context, presence of either part, item, value."""
    parts, contexts = [], ("control", "composed")[-scores.shape[1] :]
    for k, part in enumerate(block.parts):
        for c, context in enumerate(contexts):
            for cell in range(4):
                one = {"part": part, "context": context, "first": cell % 2, "second": cell // 2, "item": list(items)}
                parts.append(pd.DataFrame(one | {"value": scores[k, c, cell]}))
    return pd.concat(parts, ignore_index=True)
