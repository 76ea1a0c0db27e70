"""What is described beside the claims of an intervention: every dose, every control, the sanity ladder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from neurosae.causal.changes import Contrasted, Run, delta_of, present_cells
from neurosae.causal.inference import rank_p, without_rounding
from neurosae.causal.items import item_outcomes, unit_data
from neurosae.causal.ladder import ladder_of
from neurosae.causal.material import Place, Reference
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.rows import Settings, beside_row
from neurosae.spec.design import Design


class Work(NamedTuple):
    """One site and region: where, the effects that are asked, reference text, and what else there is."""

    where: dict[str, Any]
    place: Place
    reference: Reference
    design: Design
    effects: Mapping[str, Mapping[str, Any]]
    texts: Sequence[str]
    excluded: np.ndarray
    others: Mapping[str, str]


def dose_rows(
    work: Work, seen: Contrasted, made: Run, *, what: str, shared: Settings, costs: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One row per dose, where there are several."""
    out = []
    for k in range(made.based, len(made.doses)) if made.based else ():
        cost = {f"x_{name}": float(values[min(k - made.based, len(values) - 1)]) for name, values in costs.items()}
        means = seen.D[:, :, k].mean(axis=0)
        out.append(beside_row(
            seen.D[:, 0, k], seen.data.numbers, where=work.where, role="dose", settings=shared,
            effect=f"{made.mode} {made.labels[k]}: {what}", unit=seen.data.unit, x_mode=made.mode, x_contrast=what,
            x_dose=made.labels[k], x_clean=float(seen.clean.mean()), n_features=len(made.features),
            x_p_controls=rank_p(float(means[0]), means[1:]), x_n_controls=len(means) - 1, **cost,
        ))  # fmt: skip
    return out


def dose_table(work: Work, seen: Contrasted, made: Run, *, what: str) -> pd.DataFrame:
    """Mean change of the target with its interval, and the middle 95 % of its controls, at every dose."""
    n = len(seen.D)
    mean = seen.D.mean(axis=0)
    half = stats.t.isf(0.025, n - 1) * seen.D[:, 0].std(axis=0, ddof=1) / np.sqrt(n)
    low, high = np.quantile(mean[1:], [0.025, 0.975], axis=0)
    return pd.DataFrame({
        "site": work.where["site"], "region": work.where["region"], "mode": made.mode, "contrast": what,
        "feature": work.where.get("feature", -1), "label": made.labels, "dose": made.doses, "mean": mean[0],
        "low": mean[0] - half, "high": mean[0] + half, "control": np.median(mean[1:], axis=0), "control_low": low,
        "control_high": high, "clean": float(seen.clean.mean()),
    })  # fmt: skip


def control_table(work: Work, seen: Contrasted, made: Run, *, what: str) -> pd.DataFrame:
    """What the target (set -1) and every control set did: the datum of the claim, averaged over units."""
    values = (seen.slope if seen.slope is not None else seen.D[:, :, 0]).mean(axis=0)
    return pd.DataFrame({
        "site": work.where["site"], "region": work.where["region"], "mode": made.mode, "contrast": what,
        "feature": work.where.get("feature", -1), "set": np.arange(-1, len(values) - 1), "value": values,
        "is_slope": seen.slope is not None,
    })  # fmt: skip


def at_levels(effect: Mapping[str, Any], only: Mapping[str, str]) -> dict[str, Any]:
    """An effect inside the levels that are kept: a simple effect.

    Examples
    --------
    >>> at_levels({"subject": {"pl": 1, "sg": -1}}, {"attractor": "sg"})
    {'subject': {'pl': 1, 'sg': -1}, 'attractor': {'sg': 1}}
    """
    return dict(effect) if "cells" in effect else dict(effect) | {name: {level: 1} for name, level in only.items()}


def _compared(effect: Mapping[str, Any]) -> dict[str, Any]:
    """The factors of which an effect compares levels."""
    signs = {name: set(np.sign(list(w.values()))) for name, w in effect.items() if isinstance(w, Mapping)}
    return {name: effect[name] for name, found in signs.items() if {1, -1} <= found}


def ladder_rows(work: Work, made: Run, ask: Any, *, shared: Settings) -> Iterator[dict[str, Any]]:
    """The sanity ladder at the highest dose, through every contrast."""
    place = work.place
    delta = delta_of(place, work.reference, made, ask=ask)
    factor = next((one for one in map(_compared, work.effects.values()) if len(one) == 1), {})
    rungs = ladder_of(place, delta, others=work.others, factor=factor, seed=shared.seed)
    for rung in rungs:
        found = edited_outcomes(
            place.stimuli, place.prompts.model, rung.conditions, outcomes=(ask.outcome,), freeze=ask.freeze
        )
        clean = found.clean[ask.outcome]
        change = without_rounding(found.values[ask.outcome] - clean[:, None], clean[:, None]).mean(axis=1)
        table = item_outcomes(
            change[:, None], place.stimuli, work.design, split=None, cells=present_cells(place, work.design)
        )
        for what, effect in ({"mean": None} | dict(work.effects)).items():
            data = unit_data(table, work.design, effect)
            yield beside_row(
                data.D[:, 0], data.numbers, where=work.where, role="ladder", settings=shared,
                effect=f"{made.mode} {made.labels[-1]}, {rung.name}: {what}", unit=data.unit, x_mode=made.mode,
                x_contrast=what, x_rung=rung.name, x_dose=made.labels[-1], note=rung.note or None,
                n_features=len(made.features),
            )  # fmt: skip
