"""Run one set of features and its matched controls through all doses, and turn outcomes into item tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neurosae.causal.controls import Controls, badly_matched, matched_controls, remedy_for
from neurosae.causal.edits import Edit
from neurosae.causal.inference import item_slopes, without_rounding
from neurosae.causal.items import UnitData, item_outcomes, unit_data
from neurosae.causal.material import (
    Place,
    Reference,
    amounts_of,
    as_dose,
    by_stimulus,
    change_of,
    covariates,
    in_their_place,
)
from neurosae.causal.passes import edited_outcomes
from neurosae.errors import DataError
from neurosae.spec.design import Design

FROM_ZERO = ("clamp", "conditional")  # modes whose dose 0 is an edit: it removes what is there
AT_REST = {"steer": 0.0, "scale": 1.0}  # doses that leave everything as it is
OTHERWISE = "Or use controls: directions, for which features need not be active where the edit is made."
REMOVES = ("ablate", "scale", "conditional")  # modes that need the features to be active where they edit


class Run(NamedTuple):
    """One set of features edited in one way.

    mode, features : what is edited;  labels, doses : as written, and mean over the features in activation units; the
        first is the base where there are several
    change : (n_stimuli, 1 + K, n_doses), target first, minus the clean run;  clean : (n_stimuli,)
    moved : largest change of a logit by the target;  controls : how they were chosen
    outside : highest dose above the largest natural activity of any of the features
    halved : how often a batch was halved because memory ran out
    """

    mode: str
    features: tuple[int, ...]
    labels: tuple[str, ...]
    doses: np.ndarray
    change: np.ndarray
    clean: np.ndarray
    moved: float
    controls: Controls
    outside: bool
    halved: int = 0

    @property
    def based(self) -> int:
        """Number of doses at the front that are only the base of the slope."""
        return 1 if len(self.doses) > 1 else 0


class Contrasted(NamedTuple):
    """A run seen through one contrast.

    D : (n_units, 1 + K, n_doses) changes;  slope : (n_units, 1 + K) on the target's dose, None for a single dose
    clean : (n_units,), the contrast of the clean run
    """

    data: UnitData
    D: np.ndarray
    slope: np.ndarray | None
    clean: np.ndarray


def condition_of(place: Place, features: Sequence[int], *, mode: str, dose: np.ndarray) -> tuple[Edit, ...]:
    """One set of features edited at the tokens of the region."""
    own = tuple(int(j) for j in features)
    return (Edit(place.dictionary.hook, mode, place.region, dictionary=place.dictionary, features=own, dose=dose),)


def doses_asked(ask: Any, mode: str) -> tuple[tuple[str, ...], tuple[float | str, ...]]:
    """Doses as written and as given, the base of the slope first where there are several.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> doses_asked(SimpleNamespace(doses=("p50", 2.0)), "clamp")
    (('0', 'p50', '2.0'), (0.0, 'p50', 2.0))
    """
    if mode == "ablate":
        return ("0",), (0.0,)
    written, given = tuple(str(dose) for dose in ask.doses), tuple(ask.doses)
    if len(given) < 2:
        return written, given
    base = AT_REST.get(mode, 0.0)
    rest = [(w, d) for w, d in zip(written, given, strict=True) if d != base]
    return (f"{base:g}", *(w for w, _ in rest)), (base, *(d for _, d in rest))


def doses_run(mode: str, given: Sequence[float | str]) -> list[float | str]:
    """The doses that need passes: a base at which nothing is edited needs none."""
    return list(given)[1:] if len(given) > 1 and mode not in FROM_ZERO else list(given)


def run_set(
    place: Place,
    reference: Reference,
    features: Sequence[int],
    *,
    ask: Any,
    mode: str,
    excluded: Sequence[int],
    seed: int,
) -> Run:
    """Edit one set of features and its controls at every dose.

    Raises
    ------
    DataError
        The edit would change nothing, or there are too few candidates for controls.
    """
    written, given = doses_asked(ask, mode)
    if mode in REMOVES and not place.codes[:, list(features)].nnz:
        raise DataError(
            f"features {_some(features)} are active at no token of '{place.region}' in the tested texts: to {mode} "
            "them changes nothing. Edit where they are active, or use mode: clamp or steer."
        )
    middle = given[len(given) // 2] if mode != "ablate" else 0.0
    as_features = ask.controls == "features"
    table = covariates(place, reference, mode=mode, dose=middle, needs_activity=as_features)
    match = [name for name in ask.match if as_features or name != "size"]
    W = place.dictionary.W_dec.detach().float().cpu().numpy()
    try:
        controls = matched_controls(
            table, features, n=ask.n_controls, match=match, excluded=excluded, W_dec=W, seed=seed
        )
    except DataError as error:
        raise DataError(f"{error} {OTHERWISE}" if as_features else str(error)) from None
    if not as_features:
        controls = controls._replace(note=f"{controls.note}; added as directions, as long as the edit at each token")
    change, clean, (moved, halved) = _outcomes(
        place, reference, features, controls=controls.sets, given=given, asked=(mode, ask)
    )
    levels = np.array([as_dose(dose, reference, features).mean() for dose in given])
    top = reference.quantile(features, 1.0)
    highest = as_dose(list(given)[-1], reference, features)
    outside = mode not in ("ablate", "scale") and bool((highest > np.nan_to_num(top, nan=0.0) * (1 + 1e-6)).any())
    return Run(mode, tuple(map(int, features)), written, levels, change, clean, moved, controls, outside, halved)


def _some(features: Sequence[int]) -> str:
    return ", ".join(map(str, features[:6])) + (", …" if len(features) > 6 else "")


def _outcomes(
    place: Place,
    reference: Reference,
    features: Sequence[int],
    *,
    controls: np.ndarray,
    given: Sequence[float | str],
    asked: tuple[str, Any],
) -> tuple[np.ndarray, np.ndarray, tuple[float, int]]:
    """Changes (n_stimuli, 1 + K, n_doses), the clean outcome, largest change of a logit by the target, halvings."""
    mode, ask = asked
    run = doses_run(mode, given)
    at_rest = len(run) < len(given)
    doses = [as_dose(dose, reference, features) for dose in run]
    conditions = [condition_of(place, features, mode=mode, dose=dose) for dose in doses]
    for one in controls:
        for dose, own in zip(run, doses, strict=True):
            if ask.controls == "features":
                conditions.append(condition_of(place, one, mode=mode, dose=as_dose(dose, reference, one)))
            else:
                amounts = amounts_of(place, features, mode=mode, dose=own)
                vectors = by_stimulus(place, in_their_place(place, features, one, amounts=amounts))
                conditions.append((Edit(place.dictionary.hook, "add", place.region, vector=vectors),))
    found = edited_outcomes(place.stimuli, place.prompts.model, conditions, outcomes=(ask.outcome,), freeze=ask.freeze)
    clean = found.clean[ask.outcome]
    change = without_rounding(found.values[ask.outcome] - clean[:, None], clean[:, None])
    change = change.reshape(len(clean), 1 + len(controls), len(run))
    if at_rest:
        change = np.concatenate([np.zeros((*change.shape[:2], 1)), change], axis=2)
    moved = float(found.moved[:, : len(run)].max(initial=0.0))
    if not moved > 0:
        raise DataError(f"editing features {_some(features)} ({mode}) moves no logit of any text; that is no result.")
    return change, clean, (moved, int(found.record["halved"]))


def contrasted(
    run: Run, place: Place, design: Design, *, effect: Mapping[str, Any] | None, cells: Any = None
) -> Contrasted:
    """Item data of one contrast: the mean over the cells, an effect, or the mean over the given cells alone."""
    n, k, m = run.change.shape
    values = np.concatenate([run.clean[:, None], run.change.reshape(n, -1)], axis=1)
    present = present_cells(place, design) if cells is None else cells
    made = unit_data(item_outcomes(values, place.stimuli, design, split=None, cells=present), design, effect)
    D = made.D[:, 1:].reshape(len(made.D), k, m)
    slope = None if m < 2 else item_slopes(np.moveaxis(D, 2, 1), run.doses)
    return Contrasted(made, D, slope, made.D[:, 0])


def present_cells(place: Place, design: Design) -> list[tuple[str, ...]]:
    """Cells of the design that occur among the tested texts, in the order of the design."""
    keys = place.stimuli[list(design.factors)].astype(str)
    found = set(keys.itertuples(index=False, name=None))
    from itertools import product

    every = product(*([str(level) for level in factor.levels] for factor in design.factors.values()))
    return [cell for cell in every if cell in found]


def caution_of(run: Run) -> str:
    """Why no claim can be made from a run's controls; empty where it can."""
    balance = run.controls.balance
    return "; ".join(filter(None, [badly_matched(balance), remedy_for(balance)]))


def delta_of(place: Place, reference: Reference, run: Run, *, ask: Any) -> np.ndarray:
    """What the edit of the target at its highest dose adds at every token, (n_cells, d)."""
    dose = as_dose(0.0 if run.mode == "ablate" else ask.doses[-1], reference, run.features)
    return change_of(place, run.features, amounts_of(place, run.features, mode=run.mode, dose=dose))
