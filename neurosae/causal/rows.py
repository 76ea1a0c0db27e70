"""Rows of the results table for interventions: every claim with both of its p-values, dose, cost and natural size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.causal.changes import Contrasted, Run, caution_of
from neurosae.causal.controls import WANTED
from neurosae.causal.inference import claim_p, item_tests, no_effect, rank_p
from neurosae.errors import DataError
from neurosae.spec.results import as_results
from neurosae.stats.multiplicity import holm

H0 = "editing these features changes {what} no more than chance over items, or than editing matched features"
SHARE = 0.1  # of the natural size, the smallest change that matters unless one is stated
NATURAL = 2.0  # standard errors that a natural size must be away from 0 to be a yardstick


class Settings(NamedTuple):
    """What all rows of a test share: its name, flips, how they are corrected, the level."""

    test: str
    n_permutations: int
    correction: str
    seed: int
    smallest: float | None
    freeze: str


class Claim(NamedTuple):
    """One row on the way: its columns, and what its p is made of; `column` (n_units,), with the units' numbers."""

    row: dict[str, Any]
    column: np.ndarray
    numbers: np.ndarray


def claim_of(
    seen: Contrasted, run: Run, *, where: Mapping[str, Any], what: str, settings: Settings, cost: Mapping[str, float]
) -> Claim:
    """The claim about one contrast of one set: its slope on the dose where there are several, else its change."""
    values = seen.slope if seen.slope is not None else seen.D[:, :, 0]
    stat = "slope" if seen.slope is not None else "change"
    column = values[:, 0]
    found = item_tests(column[:, None], seen.data.numbers, n_permutations=settings.n_permutations, seed=settings.seed)
    p_controls = rank_p(float(column.mean()), values[:, 1:].mean(axis=0))
    dose = run.labels[0] if len(run.labels) == 1 else f"{run.labels[run.based]} to {run.labels[-1]}"
    row = dict(where) | {
        "effect": f"{run.mode}: {what}", "stat": f"t of the {stat}", "unit": seen.data.unit,
        "h0": H0.format(what=_described(what)), "n_units": len(column), "n_features": len(run.features),
        "x_role": "claim", "x_mode": run.mode, "x_contrast": what, "x_dose": dose, "x_freeze": settings.freeze,
        "x_n_controls": len(run.controls.sets), "x_worst_smd": run.controls.worst,
        "x_moved": run.moved, "x_outside": run.outside, "x_clean": float(seen.clean.mean()),
    } | {f"x_{name}": value for name, value in cost.items()}  # fmt: skip
    row |= _numbers(found) | _beside(seen, column=seen.D[:, 0, -1], settings=settings)
    p_items = float(found.p[0])
    why = caution_of(run)
    if found.informative[0] < 6:
        why = f"the edit changes {what} in {int(found.informative[0])} items; 6 are needed"
    row |= {"x_p_items": p_items, "x_p_controls": p_controls, "x_matched": not caution_of(run)}
    if why:
        silent = dict.fromkeys(("value", "dof", "estimate", "se", "effsize", "ci_low", "ci_high", "ci_level"))
        shown = {"x_estimate": float(found.estimate[0])}
        return Claim(
            row | silent | shown | {"status": "untestable", "note": f"{why}; {_note(seen, run)}"},
            column,
            seen.data.numbers,
        )
    row |= {"p_unc": claim_p(p_items, p_controls), "status": "ok", "note": _note(seen, run)}
    row |= {"p_min": max(2.0 ** (1 - len(column)), 1 / (len(run.controls.sets) + 1))}
    row |= {"p_method": "exact and rank" if found.exact[0] else "saddlepoint and rank"}
    return Claim(row | {"x_estimate": float(found.estimate[0])}, column, seen.data.numbers)


def _described(what: str) -> str:
    return "the outcome" if what == "mean" else f"the contrast {what} of the outcome"


def _numbers(found: Any) -> dict[str, Any]:
    return {
        "value": float(found.t[0]), "estimate": float(found.estimate[0]),
        "se": float(found.se[0]), "effsize": float(found.d_z[0]), "eftype": "d_z", "ci_low": float(found.low[0]),
        "ci_high": float(found.high[0]), "ci_level": 0.95, "n_informative": int(found.informative[0]),
        "n_perm": found.n_permutations, "alternative": "two-sided",
    }  # fmt: skip


def _beside(seen: Contrasted, *, column: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Size beside the natural one, and the test of no effect; the change at the highest dose, whatever the claim is."""
    clean = seen.clean
    natural, se = float(clean.mean()), float(clean.std(ddof=1) / np.sqrt(len(clean)))
    known = abs(natural) > NATURAL * se
    bound = settings.smallest or (SHARE * abs(natural) if known else None)
    out: dict[str, Any] = {
        "x_change": float(column.mean()),
        "x_share": float(column.mean() / natural) if known else None,
    }
    if bound:
        tost = no_effect(column[:, None], bound)
        out |= {"x_smallest": bound, "x_p_equivalent": float(tost.p[0])}
        out |= {"x_ci90_low": float(tost.low[0]), "x_ci90_high": float(tost.high[0])}
    return out


def _note(seen: Contrasted, run: Run) -> str:
    worst = run.controls.worst
    said = [
        run.controls.note,
        f"worst standardized difference {worst:.2f}" + (f", above {WANTED:g}" if worst > WANTED else ""),
    ]
    said.append(run.controls.unmatched)
    if run.outside:
        said.append("the highest dose lies outside the natural range")
    if run.halved:
        said.append(f"memory ran out: batches were halved {run.halved} times")
    return "; ".join(filter(None, [*said, seen.data.note]))


def beside_row(
    column: np.ndarray, numbers: np.ndarray, *, where: Mapping[str, Any], role: str, settings: Settings, **more: Any
) -> dict[str, Any]:
    """A row that describes: one dose, one cell, one rung of the ladder. Item p alone, no claim."""
    found = item_tests(column[:, None], numbers, n_permutations=settings.n_permutations, seed=settings.seed)
    row = dict(where) | {"stat": "t of the change", "n_units": len(column), "x_role": role} | more
    row |= {
        "h0": "exchanging edited and clean within items leaves the outcome's law unchanged",
        "x_freeze": settings.freeze,
    }
    if found.informative[0] < 6:
        reason = f"nothing changes but in {int(found.informative[0])} items"
        return row | {"status": "untestable", "note": "; ".join(filter(None, [reason, str(more.get("note", ""))]))}
    row |= _numbers(found) | {"p_unc": float(found.p[0]), "p_min": 2.0 ** (1 - len(column)), "status": "ok"}
    return row | {"p_method": "exact" if found.exact[0] else "saddlepoint", "x_p_items": float(found.p[0])}


def corrected(claims: Sequence[Claim], settings: Settings) -> list[dict[str, Any]]:
    """Rows of the claims with p over all of them.

    Holm over the larger of both p; or, with maxT, twice the larger of max-T over items and Holm over controls: claims
    that are false for want of items and claims that are false for want of controls may err in either of the two.
    """
    rows = [dict(claim.row) for claim in claims]
    at = [k for k, row in enumerate(rows) if row["status"] == "ok"]
    if not at or settings.correction == "none":
        return rows
    if settings.correction == "maxT":
        first = claims[at[0]].numbers
        if any(not np.array_equal(claims[k].numbers, first) for k in at):
            raise DataError("the claims are about different items, which share no flips; use correction: holm.")
        D = np.stack([claims[k].column for k in at], axis=1)
        items = item_tests(D, first, n_permutations=settings.n_permutations, seed=settings.seed).p_corr
        p = np.minimum(1, 2 * np.maximum(items, holm(np.array([rows[k]["x_p_controls"] for k in at]))))
    else:
        p = holm(np.array([rows[k]["p_unc"] for k in at]))
    for k, value in zip(at, p, strict=True):
        rows[k] |= {"p_corr": float(value), "p_adjust": settings.correction, "n_family": len(at)}
        rows[k] |= {"family": f"all claims of test {settings.test}: modes x sets x contrasts x regions x sites"}
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table of the results schema."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    return as_results({name: [row.get(name) for row in rows] for name in names}, n_rows=len(rows))
