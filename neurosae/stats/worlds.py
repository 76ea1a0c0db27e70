"""Worlds with known truth: responses and scores in which an effect is there, or only seems to be.

Every test of this project is held to some of these worlds: it must find what is planted, and nothing where nothing is.
A world is a plain function of (name, n_items, seed); its docstring says what is true in it and what is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from neurosae.errors import DataError, choose
from neurosae.spec.design import Design
from neurosae.stats import scores
from neurosae.stats.conjunctions import factorial, geometry
from neurosae.stats.simulate import Firing, Planted, example_design, simulate

AnnData: TypeAlias = Any  # one site's responses; anndata itself is known to extraction alone


def world(name: str, *, n_items: int, seed: int, options: Mapping[str, Any] | None = None) -> Any:
    """Make one of the named worlds.

    Parameters
    ----------
    name : str
        `paired_sparse`, `grid`; `C0`-`C4`, `I1`-`I4`, `word_pair`, `item_shuffled`; `additive`, `random_geometry`;
        `item_frame`; scores: `P0`-`P7`, `I3_scores`, `I3_scores_sparse`, `W0`-`W4`, `I5`-`I7`, `D0`, `D1`, `D1e`, `D2`,
        `D3`, `I5_groups`-`I7_groups`, `alignment`; networks: `toy_linear`, `toy_norm`, `toy_probability`, `toy_mlp`,
        `toy_and`.
    n_items : int
    seed : int
    options : mapping
        Further arguments of the world's function, such as {"density": 0.2} for `grid`.

    Returns
    -------
    AnnData or a record of arrays
        Responses to a factorial design come as AnnData with the design's columns in `obs` and what was planted in
        `var["planted"]`; where the world has pre-activations they are `obsm["x"]`, one column per feature, the value at
        x = 0 is `var["origin"]` and the recorded norm `obs["norm"]`. Scores come as records of `neurosae.stats.scores`.

    Raises
    ------
    DataError
        Unknown world or option.

    Examples
    --------
    >>> gating = world("I2", n_items=12, seed=0)
    >>> gating.shape, int((gating.var["planted"] == "a:b").sum())
    ((48, 400), 10)
    >>> world("W1", n_items=96, seed=0).target.shape
    (96,)
    """
    make = choose("world", name, WORLDS)
    known = {key: None for key in inspect.signature(make).parameters if key not in ("name", "n_items", "seed")}
    for key in options or {}:
        choose(f"option of world '{name}'", key, known)
    if n_items < 2:
        raise DataError(f"n_items is {n_items}; a world needs at least 2.")
    return make(name, n_items=n_items, seed=seed, **dict(options or {}))


# ------------------------------------------------------------------ sparse responses to one factor


def paired_sparse(
    name: str,
    *,
    n_items: int,
    seed: int,
    n_features: int = 500,
    n_planted: int = 25,
    density: Any = 0.2,
    effect: tuple[float, float] = (1.5, 1.0),
) -> AnnData:
    """Sparse responses of items in two cells of `number`.

    True: the first `n_planted` features fire more in + (`effect` = shift of the drive, factor on the magnitude). Not
    true: any difference in the others, although items differ and neighbouring features correlate.
    """
    firing = Firing(density, item=2.25 / 3.25, cell=0.0)
    planted = {"number": Planted(n_planted, shift=effect[0], magnitude=effect[1])}
    return simulate(example_design(n_items), n_features=n_features, effects=planted, density=firing, seed=seed)


def grid(
    name: str,
    *,
    n_items: int,
    seed: int,
    between: bool = False,
    balanced: bool = True,
    firing: Firing = Firing(0.2, item=0.3, cell=0.2),  # noqa: B008 (an immutable record)
    n_features: int = 200,
) -> AnnData:
    """The calibration grid: items in four frames, `number` within or between items.

    True: items react differently (share of item x cell); unbalanced, three of four frames are missing in the - cell, or
    only a quarter of the items is in the + group. Not true: any effect of number.
    """
    design = _framed_design(n_items, balanced=balanced) if between else example_design(n_items, n_frames=4)
    made = simulate(design, n_features=n_features, density=firing, regions=("noun",), seed=seed)
    missing = (made.obs["frame"] != "plain") & (made.obs["number"] == "sg")
    return made[~missing.to_numpy()].copy() if not (between or balanced) else made


def _framed_design(n_items: int, *, balanced: bool) -> Design:
    """Number varies between items, each of which appears in four frames."""
    made = example_design(n_items, n_frames=4).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    made["factors"] = {"number": {"levels": ["sg", "pl"], "varies": "between"}}
    made["frames"] = {name: text.replace("{noun:number}", "{noun}") for name, text in made["frames"].items()}
    n_plus = n_items // 2 if balanced else n_items // 4
    made["items"] = {f"item{i}": {"number": "pl" if i < n_plus else "sg", "noun": f"noun{i}"} for i in range(n_items)}
    return Design.model_validate(made)


def item_frame(
    name: str, *, n_items: int, seed: int, n_frames: int = 4, sd_item: float = 1.0, sd_frame: float = 0.0
) -> np.ndarray:
    """Condition differences d_it of items in frames, (n_items, n_frames).

    True: items, frames and single stimuli differ in how they react to the condition. Not true: a mean difference.
    """
    rng = np.random.default_rng(seed)
    item, frame = sd_item * rng.standard_normal((n_items, 1)), sd_frame * rng.standard_normal((1, n_frames))
    return item + frame + 0.7 * rng.standard_normal((n_items, n_frames))


# name -> function of (name, n_items, seed, …)
WORLDS: dict[str, Callable[..., Any]] = {
    "paired_sparse": paired_sparse,
    "grid": grid,
    "item_frame": item_frame,
    **dict.fromkeys(["C0", "C1", "C2", "C3", "C4", "I1", "I2", "I3", "I4", "word_pair", "item_shuffled"], factorial),
    **dict.fromkeys(["additive", "random_geometry"], geometry),
    **dict.fromkeys(["P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7", "I3_scores", "I3_scores_sparse"], scores.coupling),
    **dict.fromkeys(["W0", "W1", "W2", "W3", "W4", "I5", "I6", "I7"], scores.information),
    **dict.fromkeys(["D0", "D1", "D1e", "D2", "D3", "I5_groups", "I6_groups", "I7_groups"], scores.groups),
    "alignment": scores.alignment,
    **dict.fromkeys(["toy_linear", "toy_norm", "toy_probability", "toy_mlp", "toy_and"], scores.toy_network),
}
