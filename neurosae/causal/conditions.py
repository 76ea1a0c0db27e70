"""Conditions of an intervention, placed on stimuli and model: which cells of which row, and in which order.

Whatever can be refused is refused here, before the first batch: unknown hook points, heads that a model does not have,
edits that contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from neurosae.causal.edits import Edit, doses_of, vectors_of
from neurosae.causal.entries import check_pattern, check_shape, pairs_of
from neurosae.causal.prompts import Prompts, tokens_at
from neurosae.errors import DataError, ModelError
from neurosae.extraction.firing import Firing, firing_order
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.sites import check_hook, split_head

Condition = tuple[Edit, ...]
Shapes = dict[str, tuple[int, tuple[int, ...]]]
FAR = 1 << 32  # more than a text has tokens
READ_ONLY = re.compile(r"\.ln\w*\.hook_in$")


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit on some stimuli.

    Attributes
    ----------
    edit : what is done
    point, head : canonical hook point, and one head of it or None
    order : place of the hook point in the order of firing
    tokens, values : per stimulus the edited tokens, and their doses (n_cells, n_features) or vectors (n_cells, width)
    keys : of attention weights, per stimulus the key of every edited entry, whose query is in `tokens`
    """

    edit: Edit
    point: str
    head: int | None
    order: int
    tokens: list[np.ndarray]
    values: list[np.ndarray]
    keys: list[np.ndarray] | None = None


class Stage(NamedTuple):
    """Placed conditions, and the order in which hook points fire, by canonical name."""

    conditions: list[tuple[Placed, ...]]
    order: dict[str, int]


def place_conditions(conditions: Sequence[Condition], prompts: Prompts, *, beside: Sequence[str] = ()) -> Stage:
    """Place every edit; one that several conditions share is placed once.

    Parameters
    ----------
    beside : canonical hook points that are not edited, but whose order is wanted

    Raises
    ------
    DataError, ModelError
        A hook point, head, region or width does not exist, or two edits of a condition contradict each other.
    """
    edits = {id(edit): edit for condition in conditions for edit in condition}
    names = _points(prompts.model, list(edits.values()))
    fired = firing_order(prompts.model, list(dict.fromkeys([*names.values(), *beside])))
    shapes = _shapes(prompts.model, names, fired)
    places: dict[Any, list[np.ndarray]] = {}
    placed = {}
    for key, edit in edits.items():
        where = edit.where if isinstance(edit.where, str) else id(edit.where)
        if where not in places:
            places[where] = tokens_at(prompts, edit.where)
        if edit.keys is not None:
            placed[key] = _entries(edit, places[where], shapes=shapes, prompts=prompts)
        else:
            placed[key] = _placed(edit, places[where], shapes=shapes, model=prompts.model)
    out = [tuple(placed[id(edit)] for edit in condition) for condition in conditions]
    for condition in out:
        _refuse_conflicts(condition, prompts)
    return Stage(out, {firing.name: i for i, firing in enumerate(fired)})


def _points(model: LanguageModel, edits: Sequence[Edit]) -> dict[str, str]:
    """Edited hook points as they are named -> canonical."""
    if hasattr(model.bridge, "add_sae"):
        raise ModelError("the model has dictionaries spliced in; load it with load_model, which leaves it as it is.")
    points = {}
    for edit in edits:
        check_pattern(edit.hook, model) if edit.keys is not None else check_hook(edit.hook, model.hooks)
        point = split_head(edit.hook)[0]
        points[point] = model.hooks[point]
        if not (points[point].startswith("blocks.") or "embed" in points[point]) or "unembed" in points[point]:
            raise ModelError(f"{edit.hook} comes after the stack of layers; edit {model.last_hook} in its place.")
        if READ_ONLY.search(points[point]):
            raise ModelError(
                f"{edit.hook}: here {model.name} only reads the stream into a normalisation, so an edit would miss the "
                f"stream itself; use {point.rpartition('.')[0]}.hook_resid_pre, hook_attn_out or hook_resid_post."
            )
    return points


def _shapes(model: LanguageModel, points: dict[str, str], fired: Sequence[Firing]) -> Shapes:
    """Order of firing and shape of every edited hook point, by canonical name."""
    names = [firing.name for firing in fired]
    found = {}
    for point, name in points.items():
        if names.count(name) != 1:
            times = "never fires" if name not in names else f"fires {names.count(name)} times in one pass"
            raise ModelError(f"hook point '{point}' {times} in {model.name}; name another one.")
        found[name] = (names.index(name), fired[names.index(name)].shape)
    return found


def _placed(edit: Edit, tokens: list[np.ndarray], *, shapes: Shapes, model: LanguageModel) -> Placed:
    point, head = split_head(edit.hook)
    place, shape = shapes[model.hooks[point]]
    if len(shape) not in ((3, 4) if head is None else (4,)):
        what = "one vector per token" if head is None else "one vector per head and token"
        raise ModelError(f"hook point '{edit.hook}' gives shape {shape}, not {what}.")
    if head is not None and head >= shape[2]:
        raise ModelError(f"hook point '{edit.hook}': there are {shape[2]} heads, h0 to h{shape[2] - 1}.")
    width = int(np.prod(shape[2:] if head is None else shape[3:]))
    values = vectors_of(edit, tokens, width) if not edit.is_of_features else doses_of(edit, tokens)
    if edit.is_of_features:
        _check_dictionary(edit, width, model)
    return Placed(edit, model.hooks[point], head, place, tokens, values)


def _entries(edit: Edit, queries: list[np.ndarray], *, shapes: Shapes, prompts: Prompts) -> Placed:
    """An edit of attention weights: one cell for every query and key."""
    point, head = split_head(edit.hook)
    place, shape = shapes[prompts.model.hooks[point]]
    check_shape(edit.hook, shape)
    keys = tokens_at(prompts, edit.keys if edit.keys is not None else ())
    rows, cols, masks = pairs_of(queries, keys, prompts.names)
    given = edit.vector if isinstance(edit.vector, list | tuple) else []
    sizes = [(len(q), len(k)) for q, k in zip(queries, keys, strict=True)]
    if [np.shape(one) for one in given] != sizes:
        raise DataError(f"{edit.hook}: give a list with one array (n_queries, n_keys) of weights per stimulus.")
    values = [np.asarray(one, dtype=np.float32)[mask][:, None] for one, mask in zip(given, masks, strict=True)]
    return Placed(edit, prompts.model.hooks[point], head, place, rows, values, cols)


def _check_dictionary(edit: Edit, width: int, model: LanguageModel) -> None:
    assert edit.dictionary is not None
    own, (point, head) = edit.dictionary.hook, split_head(edit.hook)
    if own and (model.hooks.get(split_head(own)[0]), split_head(own)[1]) != (model.hooks[point], head):
        raise ModelError(f"the dictionary was made for {own}, but {edit.hook} is edited; its features are not there.")
    if edit.dictionary.d_in != width:
        raise ModelError(
            f"the dictionary reads vectors of length {edit.dictionary.d_in}, but {edit.hook} of {model.name} has "
            f"{width}; use one trained on this model."
        )


def _refuse_conflicts(condition: tuple[Placed, ...], prompts: Prompts) -> None:
    """Two edits may not set the same thing: their changes would add up to neither."""
    for one, other in combinations(condition, 2):
        if one.point != other.point or (one.head != other.head and None not in (one.head, other.head)):
            continue
        shared = set(one.edit.features) & set(other.edit.features)
        same_feature = one.edit.dictionary is other.edit.dictionary and bool(shared)
        if "replace" not in (one.edit.mode, other.edit.mode) and not same_feature:
            continue
        what = f"feature {min(shared)}" if same_feature else "the vector"
        for name, a, b in zip(prompts.names, _cells(one), _cells(other), strict=True):
            if len(both := np.intersect1d(a, b)):
                raise DataError(
                    f"one condition sets {what} at {one.edit.hook} twice, at token {both[0] % FAR} of stimulus "
                    f"'{name}'; make it one edit, or two conditions."
                )


def _cells(placed: Placed) -> list[np.ndarray]:
    """What an edit sets, as numbers that tell tokens apart, and of attention weights queries and keys."""
    if placed.keys is None:
        return placed.tokens
    return [q + FAR * (1 + k) for q, k in zip(placed.tokens, placed.keys, strict=True)]
