"""Data sets of the calibration in which levels change places, groups are several, or a covariate is permuted.

What the engine makes of responses is linear in them, so one design is compiled once and every data set fills its maps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.extraction.responses import build_responses
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.stats.asked import Asked
from neurosae.stats.contrast import cells_of
from neurosae.stats.family import Cell, infer
from neurosae.stats.simulate import Firing, fire, rows_of

LEVELS = ("low", "mid", "high")
PEAK = {"dose": {"low": -1, "mid": 2, "high": -1}}
ASKED: dict[str, dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "levels": {"all levels": ({"dose": "all"}, ("F", "t", "moderated_t")), "2 / -1 / -1": (PEAK, ("t", "moderated_t"))},
    "slope": {"slope": ({"slope": "size"}, ("slope", "moderated_t"))},
}


class Maps(NamedTuple):
    """Effects of one design as maps from the rows of the responses, and the item and cell of every row."""

    cells: dict[str, Cell]
    item: np.ndarray
    cell: np.ndarray


def compiled(balance: str, n_items: int) -> Maps:
    """The maps of a design: `3 levels` within items, groups as `6/8/18`, or `slope` on a covariate of the items."""
    design = _design(balance, n_items)
    obs = rows_of(design, "w").assign(norm=np.float32(1.0))
    n = len(obs)
    number = np.arange(n)
    var = pd.DataFrame({"feature": number, "decoder_norm": 1.0, "threshold": 0.0, "density": 1.0, "origin": 0.0})
    obs = obs.set_index(pd.Index(number.astype(str)))
    var = var.set_index(pd.Index(number.astype(str)))
    unit = build_responses(sp.csr_matrix(sp.eye(n)), obs, var, design=design, provenance={})
    asked = ASKED["slope" if balance == "slope" else "levels"]
    rules = Inference(min_informative=1)
    made = {name: cells_of({"s": unit}, Asked("calibration", {name: effect}, ("w",), "test"), rules)[0][0]
            for name, (effect, _) in asked.items()}  # fmt: skip
    item = pd.factorize(obs["item"])[0]
    return Maps(made, item, pd.factorize(obs["item"].astype(str) + "/" + obs["dose"].astype(str))[0])


def filled(maps: Maps, Y: sp.csr_matrix) -> dict[str, Cell]:
    """Every effect's data of one data set, and the features that can be tested."""
    out = {}
    for name, (place, data, _) in maps.cells.items():
        if data.levels is not None:
            values = sp.csc_matrix(data.levels @ Y)
            w = data.weights_of_levels
            D = values if w is None else sp.csc_matrix(sp.kron(sp.eye(data.n), w[None]) @ values)
            made = {"levels": values, "D": D}
        else:
            made = {"D": sp.csc_matrix(data.D @ Y)}
        for part in made.values():
            part.eliminate_zeros()
            part.sort_indices()
        data = replace(data, Y=sp.csr_matrix(data.Y @ Y), features=np.arange(cast(Any, Y).shape[1]), **made)
        out[name] = Cell(place, data, np.flatnonzero(data.informative >= 6))
    return out


def any_found(maps: Maps, trial: Any, *, item_by_cell: float, seed: int, number: int) -> dict[str, float]:
    """Whether max-T rejects anything, for every effect and statistic of a null data set."""
    rng = np.random.default_rng([seed, number])
    firing = Firing(trial.density, item=trial.icc, cell=item_by_cell)
    densities, shape = np.full(trial.n_features, trial.density), (len(maps.item), trial.n_features)
    Y = fire(rng, {"item": maps.item, "cell": maps.cell}, np.zeros(shape), densities=densities, firing=firing)
    asked = ASKED["slope" if trial.balance == "slope" else "levels"]
    out = {}
    for name, cell in filled(maps, sp.csr_matrix(Y, dtype=float)).items():
        for statistic in asked[name][1] if len(cell.kept) >= 2 else ():
            rules = Inference.model_validate({"statistic": statistic, "n_permutations": trial.n_permutations})
            outcome = infer([cell], rules, seed=seed + number, split="test")[0][0]
            out[f"max-T {outcome.ready.name}, {name}"] = float((outcome.p_corr <= rules.alpha).any())
    return out


def _design(balance: str, n_items: int) -> Design:
    groups = [] if balance in ("3 levels", "slope") else [int(n) for n in balance.split("/")]
    names = [f"w{i}" for i in range(sum(groups) or n_items)]
    factor: dict[str, Any] = {"levels": list(LEVELS), "varies": "between" if groups else "within"}
    items: dict[str, Any] = {x: {"w": {d: f"{x}{d}" for d in LEVELS}} for x in names}
    if groups:
        which = np.repeat(LEVELS, groups)
        items = {x: {"dose": str(level), "w": x} for x, level in zip(names, which, strict=True)}
    made: dict[str, Any] = {"frames": {"f": f"It {'{w}' if groups else '{w:dose}'} was"}, "factors": {"dose": factor}}
    if balance == "slope":
        sizes = np.random.default_rng(0).gamma(2.0, 1.0, len(names))
        items = {x: form | {"size": round(float(s), 3)} for (x, form), s in zip(items.items(), sizes, strict=True)}
        made["covariates"] = ["size"]
    return Design.model_validate({"schema": "neurosae/design/1", "name": "dose", "items": items, **made})
