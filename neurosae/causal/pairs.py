"""Two sets of features clamped or ablated alone and together, and matched pairs of control sets treated alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.controls import badly_matched, matched_controls, matched_pairs, remedy_for
from neurosae.causal.edits import Edit
from neurosae.causal.items import item_outcomes, unit_data
from neurosae.causal.joint_effects import BOTH, FIRST, NONE, SECOND, interaction_of
from neurosae.causal.material import Place, Reference, amounts_of, as_dose, by_stimulus, covariates, in_their_place
from neurosae.causal.passes import edited_outcomes
from neurosae.errors import DataError
from neurosae.spec.design import Design

SPARE = 2.0  # control sets of either part for every pair that is kept
PLAIN = 40  # sets of either part that are not matched
OUTCOME = "logit_diff"


class Both(NamedTuple):
    """Outcomes of one direction with the normalization free and frozen, first the target pair.

    free, frozen : (n_units, 4) in the order 0, A, B, AB;  numbers, unit : of the units
    controls_free, controls : mean I of the matched pairs (K,);  balance : how well they are matched
    single : mean single effects of the target as pairs are matched on them, frozen (`single_effects`)
    note : how controls were chosen, or why there are none
    """

    free: np.ndarray
    frozen: np.ndarray
    numbers: np.ndarray
    unit: str
    controls_free: np.ndarray
    controls: np.ndarray
    balance: pd.DataFrame
    single: np.ndarray
    note: str

    @property
    def caution(self) -> str:
        """Why no claim is made from these controls; empty where they are matched."""
        if not len(self.balance):
            return self.note
        return "; ".join(filter(None, [badly_matched(self.balance), remedy_for(self.balance)]))


class Setting(NamedTuple):
    """What all runs of a place share: where, natural activity, design, how sets are edited, frozen and matched.

    mode : `clamp` or `ablate`;  controls : `features` or `directions`;  match : covariates of the pairs
    """

    place: Place
    reference: Reference
    design: Design
    mode: str
    dose: float | str
    freeze: str
    controls: str = "features"
    match: tuple[str, ...] = ("density", "size", "effect", "cosine")


def edit_of(
    at: Setting, features: Sequence[int] | np.ndarray, dose: float | str | np.ndarray | None = None
) -> tuple[Edit, ...]:
    """One edit of a set of features at the tokens of the region."""
    own = tuple(int(j) for j in features)
    given = at.dose if dose is None else dose
    amount = (
        given if isinstance(given, np.ndarray) else as_dose(0.0 if at.mode == "ablate" else given, at.reference, own)
    )
    dictionary = at.place.dictionary
    return (Edit(dictionary.hook, at.mode, at.place.region, dictionary=dictionary, features=own, dose=amount),)


def control_of(at: Setting, targets: Sequence[np.ndarray], controls: Sequence[np.ndarray]) -> tuple[Edit, ...]:
    """Control sets edited like the target sets in whose places they stand."""
    if at.controls == "features":
        return edit_of(at, np.concatenate(controls))
    total: Any = 0.0
    for own, other in zip(targets, controls, strict=True):
        amount = as_dose(0.0 if at.mode == "ablate" else at.dose, at.reference, own.tolist())
        amounts = amounts_of(at.place, own.tolist(), mode=at.mode, dose=amount)
        total = total + in_their_place(at.place, own.tolist(), other.tolist(), amounts=amounts)
    return (Edit(at.place.dictionary.hook, "add", at.place.region, vector=by_stimulus(at.place, total)),)


def outcomes_of(at: Setting, conditions: Sequence[tuple[Edit, ...]], *, frozen: bool) -> np.ndarray:
    """Logit differences of stimuli (n_stimuli, 1 + n_conditions), the clean run first."""
    place = at.place
    found = edited_outcomes(
        place.stimuli,
        place.prompts.model,
        list(conditions),
        outcomes=(OUTCOME,),
        freeze=at.freeze if frozen else "none",
    )
    return np.concatenate([found.clean[OUTCOME][:, None], found.values[OUTCOME]], axis=1)


def by_unit(at: Setting, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Item means (n_units, n_columns), the units' numbers, and what a unit is."""
    keys = at.place.stimuli[list(at.design.factors)].astype(str)
    cells = list(dict.fromkeys(keys.itertuples(index=False, name=None)))
    made = unit_data(item_outcomes(values, at.place.stimuli, at.design, split=None, cells=cells), at.design)
    return made.D, made.numbers, made.unit


def four(mode: str, *runs: np.ndarray) -> np.ndarray:
    """Clean run, A edited, B edited, both -> the order 0, A, B, AB; ablating B leaves A, and the clean run is AB."""
    clean, first, second, both = runs
    parts = (clean, first, second, both) if mode == "clamp" else (both, second, first, clean)
    return np.stack(parts, axis=-1)


def single_effects(mode: str, *runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each part does where the other is not: clamped alone, or ablated with the other ablated already.

    Ablated alone from a text that has both, a part takes its interaction with the other along: what is left out is
    L(AB) - L(B) = (L(A) - L(0)) + I. Pairs matched on that would be matched on what is tested.

    Examples
    --------
    A pure conjunction, ablated from AB: neither part does anything without the other.

    >>> single_effects("ablate", *np.array([[4.0], [0.0], [0.0], [0.0]]))
    (array([0.]), array([0.]))
    """
    clean, first, second, both = runs
    return (first - clean, second - clean) if mode == "clamp" else (both - second, both - first)


def clamp_pair(
    at: Setting, sets: tuple[Sequence[int], Sequence[int]], *, n_controls: int, excluded: Sequence[int], seed: int
) -> Both:
    """Run the target pair, candidates for controls alone, and the matched pairs together."""
    a, b = (np.asarray(s, dtype=int) for s in sets)
    L = [outcomes_of(at, [edit_of(at, a), edit_of(at, b), edit_of(at, np.r_[a, b])], frozen=f) for f in (False, True)]
    made = [by_unit(at, values) for values in L]
    free, frozen = (four(at.mode, *D.T) for D, _, _ in made)
    single = np.array([effect.mean() for effect in single_effects(at.mode, *made[1][0].T)])
    empty = Both(free, frozen, made[0][1], made[0][2], np.empty(0), np.empty(0), pd.DataFrame(), single, "")
    try:
        found = _controls(at, (a, b), (single, L[1]), n=n_controls, excluded=excluded, seed=seed)
    except DataError as error:
        return empty._replace(note=str(error))
    return empty._replace(controls_free=found[0], controls=found[1], balance=found[2], note=found[3])


def n_alone(n_pairs: int) -> int:
    """How many control sets are edited alone, so that this many pairs can be chosen."""
    return 2 * (int(np.ceil(SPARE * n_pairs)) + PLAIN)


def n_together(mode: str, n_pairs: int) -> int:
    """How many runs the pairs take, free and frozen: clamped, the frozen single effects are those of the choice."""
    return (4 if mode == "clamp" else 6) * n_pairs


def _effects(
    at: Setting, sets: tuple[np.ndarray, np.ndarray], singles: Sequence[list[tuple[Edit, ...]]], *, target: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Mean single effects of control sets in the place of either part, and their outcomes, all frozen.

    When ablating, a control set meets the text that its target met: without the other part of the target pair.
    """
    clean, first, second, _ = target.T
    if at.mode == "clamp":
        gone, before = ((), ()), (clean, clean)
    else:
        gone, before = (edit_of(at, sets[1]), edit_of(at, sets[0])), (second, first)
    run = outcomes_of(at, [one + rest for some, rest in zip(singles, gone, strict=True) for one in some], frozen=True)
    parts = np.split(run[:, 1:], [len(singles[0])], axis=1)
    changes = [part - base[:, None] for part, base in zip(parts, before, strict=True)]
    return [by_unit(at, change)[0].mean(axis=0) for change in changes], run


def _controls(
    at: Setting,
    sets: tuple[np.ndarray, np.ndarray],
    target: tuple[np.ndarray, np.ndarray],
    *,
    n: int,
    excluded: Sequence[int],
    seed: int,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, str]:
    """Mean I of matched pairs, free and frozen; how well they are matched; how they were chosen.

    target : single effects of both sets (2,), and their frozen outcomes (n_stimuli, 4) in the order of the runs
    """
    as_features = at.controls == "features"
    table = covariates(at.place, at.reference, mode=at.mode, dose=at.dose, needs_activity=as_features)
    match = [name for name in at.match if name == "density" or (name == "size" and as_features)]
    match += ["cosine"] if "effect" in at.match else []  # with the read-out: what a direct effect comes from
    W = at.place.dictionary.W_dec.detach().float().cpu().numpy()
    away, m = np.r_[np.asarray(excluded, dtype=int), *sets], n_alone(n) // 2 - PLAIN
    made = [
        matched_controls(table, own, n=m, match=match, excluded=away, W_dec=W, seed=seed + k)
        for k, own in enumerate(sets)
    ]
    free = [
        matched_controls(table, own, n=PLAIN, match=(), excluded=away, W_dec=W, seed=seed + 2 + k)
        for k, own in enumerate(sets)
    ]  # drawn at random: the yardstick of differences, and more candidates
    tried = [np.concatenate([one.sets, plain.sets]) for one, plain in zip(made, free, strict=True)]
    singles = [[control_of(at, (own,), (s,)) for s in some] for own, some in zip(sets, tried, strict=True)]
    (first, second), alone = _effects(at, sets, singles, target=target[1])
    m += PLAIN
    toward = [_toward(at, W, own) for own in sets]
    others = [np.stack([_toward(at, W, s) for s in some]) for some in tried]
    cosine = (float(toward[0] @ toward[1]), others[0] @ others[1].T)
    overlap = np.array([[bool(set(s) & set(t)) for t in tried[1].tolist()] for s in tried[0].tolist()])
    near = (cosine[0], np.where(overlap, np.nan, cosine[1]))
    apart = slice(-PLAIN, None)
    spread = [float(np.std(first[apart])), float(np.std(second[apart])), float(np.std(cosine[1][apart, apart]))]
    pairs, balance = matched_pairs(target[0], first, second, cosine=near, n=n, match=at.match, spread=spread)
    together = [control_of(at, sets, (tried[0][i], tried[1][j])) for i, j in pairs]
    one_by_one = [singles[0][i] for i in pairs[:, 0]] + [singles[1][j] for j in pairs[:, 1]]
    means = []
    for is_frozen in (False, True):
        known = is_frozen and at.mode == "clamp"  # their outcomes are those that they were chosen by
        run = outcomes_of(at, together + ([] if known else one_by_one), frozen=is_frozen)
        clean, joint = run[:, :1], run[:, 1 : n + 1]
        if known:
            one, other = alone[:, 1 + pairs[:, 0]], alone[:, 1 + m + pairs[:, 1]]
        else:
            one, other = run[:, n + 1 : 2 * n + 1], run[:, 2 * n + 1 :]
        values = interaction_of(four(at.mode, np.broadcast_to(clean, joint.shape), one, other, joint))
        means.append(by_unit(at, values)[0].mean(axis=0))
    tables = [one.balance.assign(part=k) for k, one in enumerate(made)]
    tables = [table[table["covariate"] != "cosine"] for table in tables] + [balance.assign(part=-1)]
    note = f"{n} matched pairs of control sets; {made[0].note}"
    return means[0], means[1], pd.concat(tables, ignore_index=True), note


def _toward(at: Setting, W: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Unit direction of what editing a set adds: its decoder rows, weighted by natural activity."""
    weight = at.reference.quantile(features.tolist(), 0.5)
    total = np.nan_to_num(weight, nan=1.0) @ W[features]
    return total / max(float(np.linalg.norm(total)), 1e-12)


def surface(at: Setting, sets: tuple[Sequence[int], Sequence[int]], doses: Sequence[float | str]) -> pd.DataFrame:
    """Mean interaction at every pair of doses, free and frozen, with the items' values for the frozen one.

    Columns `first second dose_first dose_second free frozen values`.
    """
    a, b = sets
    given = [[as_dose(dose, at.reference, own) for dose in doses] for own in (a, b)]
    n = len(doses)
    alone = [edit_of(at, a, d) for d in given[0]] + [edit_of(at, b, d) for d in given[1]]
    joint = [edit_of(at, (*a, *b), np.r_[x, y]) for x in given[0] for y in given[1]]
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for is_frozen, name in ((False, "free"), (True, "frozen")):
        run = outcomes_of(at, [*alone, *joint], frozen=is_frozen)
        for i in range(n):
            for j in range(n):
                L = four(at.mode, run[:, 0], run[:, 1 + i], run[:, 1 + n + j], run[:, 1 + 2 * n + i * n + j])
                values = by_unit(at, interaction_of(L)[:, None])[0][:, 0]
                row = rows.setdefault((i, j), {"first": str(doses[i]), "second": str(doses[j])})
                row |= {"dose_first": float(given[0][i].mean()), "dose_second": float(given[1][j].mean())}
                row |= {name: float(values.mean()), f"{name}_values": values}
    return pd.DataFrame(list(rows.values()))


def clamp_means(found: Both) -> pd.DataFrame:
    """Mean outcome of the four conditions with 95 % intervals over units, free and frozen."""
    from scipy import stats

    rows = []
    for name, L in (("free", found.free), ("frozen", found.frozen)):
        half = stats.t.isf(0.025, len(L) - 1) * L.std(axis=0, ddof=1) / np.sqrt(len(L))
        for k, (first, second) in {NONE: (0, 0), FIRST: (1, 0), SECOND: (0, 1), BOTH: (1, 1)}.items():
            mean = float(L[:, k].mean())
            rows.append({"norm": name, "first": first, "second": second, "mean": mean, "low": mean - half[k],
                         "high": mean + half[k]})  # fmt: skip
    return pd.DataFrame(rows)
