"""Edits of single features, taken together: do features like these move the outcome, over items like these?

Every feature is edited alone, so there is one slope (one change, where there is a single dose) of every item on every
feature. Items and features are both samples: slope ~ 1 + (1 | item) + (1 | feature), fitted by REML, with min-F' beside
it. Slopes of items are the random slopes of the outcomes themselves, so this is the mixed model
outcome ~ dose + (1 + dose | item) + (1 + dose | feature), read off its sufficient statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neurosae.causal.changes import Contrasted, Run
from neurosae.causal.inference import Population, over_items_and_features
from neurosae.causal.rows import Settings
from neurosae.stats.multiplicity import holm

H0 = "over items like these and features like these, the mean {stat} is 0"


class Slopes(NamedTuple):
    """Of one mode and contrast at one place: a column of slopes or changes (n_units,) for every feature.

    where : columns that say the place;  stat : what a number is;  dose, unit : as in the claims
    """

    where: dict[str, Any]
    mode: str
    what: str
    stat: str
    dose: str
    unit: str
    columns: dict[int, np.ndarray]


def gather(
    found: dict[tuple[Any, ...], Slopes], seen: Contrasted, made: Run, *, where: Mapping[str, Any], what: str
) -> None:
    """Add what one feature did to the column store of its place, mode and contrast."""
    place = {name: value for name, value in where.items() if name != "feature"}
    values = seen.slope if seen.slope is not None else seen.D[:, :, 0]
    stat = "slope" if seen.slope is not None else "change"
    dose = made.labels[0] if len(made.labels) == 1 else f"{made.labels[made.based]} to {made.labels[-1]}"
    key = (*sorted(place.items()), made.mode, what)
    if key not in found:
        found[key] = Slopes(place, made.mode, what, stat, dose, seen.data.unit, {})
    found[key].columns[int(made.features[0])] = values[:, 0]


def population_rows(found: Sequence[Slopes], shared: Settings) -> list[dict[str, Any]]:
    """One row per place, mode and contrast with two features or more; Holm over those that could be tested."""
    rows = [_row(one, shared) for one in found if len(one.columns) > 1]
    at = [row for row in rows if row["status"] == "ok"]
    if at and shared.correction != "none":
        for row, p in zip(at, holm(np.array([row["p_unc"] for row in at])), strict=True):
            row |= {"p_corr": float(p), "p_adjust": "holm", "n_family": len(at)}
            row |= {"family": f"items and features, test {shared.test}: modes x contrasts x regions x sites"}
    return rows


def _row(one: Slopes, shared: Settings) -> dict[str, Any]:
    values = np.stack(list(one.columns.values()), axis=1)
    n_units, n_features = values.shape
    row = dict(one.where) | {
        "effect": f"{one.mode}: {one.what}, over items and features", "stat": f"t of the {one.stat}", "eftype": None,
        "unit": f"{one.unit} and feature", "n_units": n_units, "n_features": n_features, "alternative": "two-sided",
        "h0": H0.format(stat=one.stat), "x_role": "population", "x_mode": one.mode, "x_contrast": one.what,
        "x_dose": one.dose, "x_freeze": shared.freeze,
    }  # fmt: skip
    made = over_items_and_features(values)
    row |= {"x_min_f": made.min_f.value.item(), "x_min_f_dof": made.min_f.dof.item(), "x_p_min_f": made.min_f.p.item()}
    row |= {"x_estimate": float(values.mean())}
    if made.refused:
        return row | {"status": made.status, "note": made.refused}
    row |= {
        "value": made.t, "dof": made.dof, "estimate": made.estimate, "se": made.se, "ci_low": made.low,
        "ci_high": made.high, "ci_level": 0.95, "p_unc": made.p, "x_var_item": made.var_item,
        "x_var_feature": made.var_feature, "x_var_resid": made.var_resid,
        "p_method": "REML of (1 | item) + (1 | feature), all three normal",
    }  # fmt: skip
    return row | {"status": "ok", "note": _note(made, n_features)}


def _note(made: Population, n_features: int) -> str:
    said = [f"{n_features} features count as a sample of features chosen in this way"]
    if at_zero := [name for name, var in (("items", made.var_item), ("features", made.var_feature)) if var == 0]:
        said.append(f"singular: the variance over {' and '.join(at_zero)} is estimated as 0, so read min-F' beside it")
    return "; ".join(said)
