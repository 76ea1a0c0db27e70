"""The admissible relabellings of an effect, derived from the design: in words, in number, smallest reachable p.

What is exchanged is always a whole unit, for all features, positions and sites at once. With W the weights over
(between-item cells x within-item cells), W = u v' splits into a part u between items and a part v within them:

| u | v | datum of an item | relabelling |
|---|---|---|---|
| does not change sign | contrast with a mirror image | d_i = v'y_i | sign flips of d_i |
| does not change sign | other, or all levels | the values at the levels | permutation of levels inside every item |
| contrast | mean | v'y_i | permutation of labels over items, inside strata |
| contrast | contrast | d_i = v'y_i | permutation of labels over items, inside strata |
| one | mean or contrast, on a covariate | v'y_i | permutation of the covariate over items, inside u and strata |

References
----------
Westfall & Young (1993), Resampling-Based Multiple Testing. Pauly, Brunner & Konietschke (2015), Asymptotic permutation
tests in general factorial designs, JRSS B 77, 461-473 (interactions between items).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from neurosae.design.levels import Levels, contrast_levels, count_permutations, omnibus_levels, reversal
from neurosae.design.regressors import Regressor, along
from neurosae.design.units import Item, carriers, components, items_of
from neurosae.design.weights import Effect
from neurosae.errors import SpecError, unknown
from neurosae.spec.design import Design
from neurosae.spec.frames import between

GROUPS = (
    "H0 says so for the items of every group; group means count as designed, not by group size; t intervals take a "
    "difference of the effect between groups for noise, and are then too wide"
)


@dataclass(frozen=True)
class Exchange:
    """How an effect is tested: the datum of an item, and what is exchanged.

    Attributes
    ----------
    kind : `flip` (signs of whole units), `permute_labels` (labels of whole units, inside strata), `permute_levels`
        (levels of a factor inside every unit) or `permute_values` (a covariate over whole units, inside strata)
    unit : `item`, `item in stratum` or `shared forms`
    n_units, n_relabellings, p_min : number of units, of distinct relabellings, smallest two-sided p
    items : the items that take part
    datum : array of shape (n_cells,); the datum of an item is its sum over the item's own cells of datum x cell mean
    units : array of shape (n_items,), number of the unit of each item; its datum is the mean over its items
    scale : array of shape (n_items,); flips: an item's datum is multiplied by it, so that groups count as designed
    groups : array of shape (n_items,), number of the label of each item, in the order of `group_cells`; None for flips
    group_cells, group_weights : the between-item cells, and their weights in the estimate sum_g weight_g mean_g
    strata : array of shape (n_items,), labels move only inside equal numbers; None for flips
    words, note : what is exchanged, one sentence; what the reader must know besides
    exact : whether the test is exact under H0
    contrasts : array of shape (n_contrasts, n_groups), for all levels of a factor between items instead of
        `group_weights`; None otherwise
    levels : what changes places inside units; None for other kinds
    regressor : the covariate of a slope, over units; None for other kinds
    """

    kind: str
    unit: str
    n_units: int
    n_relabellings: int
    p_min: float
    items: tuple[str, ...]
    datum: np.ndarray
    units: np.ndarray
    scale: np.ndarray
    groups: np.ndarray | None
    group_cells: tuple[tuple[str, ...], ...]
    group_weights: np.ndarray | None
    strata: np.ndarray | None
    words: str
    note: str
    exact: bool
    contrasts: np.ndarray | None = None
    levels: Levels | None = None
    regressor: Regressor | None = None


def exchangeability(
    design: Design,
    effect: Effect,
    *,
    items: Sequence[str],
    strata: Sequence[str] | None = None,
    flips_only: bool = False,
) -> Exchange:
    """Derive the relabellings of an effect from the design.

    Parameters
    ----------
    design : Design
    effect : the compiled effect
    items : the items that are tested, e.g. those of one split
    strata : the stratum of each item; default the label that the design names under `strata:`
    flips_only : levels never change places inside items: a contrast without mirror image is flipped, approximately

    Returns
    -------
    Exchange

    Raises
    ------
    SpecError
        No relabelling leaves H0 as it is: the sentence says which effect would do.

    Examples
    --------
    >>> from neurosae.design.weights import compile_effect
    >>> design = Design.from_json('''{"schema": "neurosae/design/1", "name": "number", "factors": {"number": ["sg",
    ...     "pl"]}, "frames": {"f": "The {noun:number}"}, "items": {"key": {"noun": {"sg": "key", "pl": "keys"}},
    ...     "box": {"noun": {"sg": "box", "pl": "boxes"}}}}''')
    >>> how = exchangeability(design, compile_effect(design, {"number": {"pl": 1, "sg": -1}}), items=["key", "box"])
    >>> how.kind, how.n_relabellings, how.p_min, how.datum.tolist()
    ('flip', 4, 0.5, [-1.0, 1.0])
    """
    if flips_only and effect.omnibus is not None:
        raise SpecError(
            f"all levels of {effect.omnibus} are compared at once by `test: contrast` alone; write weights, "
            f"{{{effect.omnibus}: {{level: weight}}}}."
        )
    if flips_only and effect.slope is not None:
        raise SpecError("slopes on a covariate are tested by `test: contrast` alone; write an effect without `slope`.")
    known = items_of(design)
    for name in items:
        if name not in known:
            raise SpecError(unknown("item", name, known))
    own = tuple(between(design))
    rows, columns = _cells_of(design, own)
    u, v = _split(_table(design, effect, _weights(design, effect, own)))
    every = _contrasts_between(design, effect, v) if effect.omnibus in own else None
    if effect.omnibus is not None and every is None and u.min() < 0 < u.max():
        raise SpecError(
            f"all levels of {effect.omnibus} are compared at once beside a contrast between items, for which no "
            f"relabelling is known; write {effect.omnibus} with weights, {{level: weight}}."
        )
    taking_part = [name for name in items if u[rows.index(_group(known[name], own))] != 0]
    if not taking_part:
        raise SpecError("none of these items has a weight in the effect; test other items, or another effect.")
    datum = np.array([v[columns.index(_pick(cell, design, own, inside=False))] for cell in effect.cells])
    part = {name: known[name] for name in taking_part}
    given = None if strata is None else dict(zip(items, strata, strict=True))
    if every is None and not (own and u.min() < 0 < u.max()):
        made = _within(design, effect, part, datum=datum, u=u, v=v)
        if effect.slope is not None:
            strata, note = _blocks(design, part, held=[], given=given), "; ".join(_merged(design, part, made.n_units))
            fields = along(design, effect.slope, part, units=made.units, strata=strata, what=_plural(design))
            return replace(made, **fields, note=note, scale=np.ones(len(part)))
        return _as_flips(made) if flips_only and made.levels is not None else made
    slots = carriers(design, effect.factors)
    u = u if every is None else every
    return _permutation(design, part, slots, datum=datum, u=u, contrast=abs(v.sum()) < 1e-9, given=given)


# ------------------------------------------------------------------ weights as a table between x within


def _pick(cell: tuple[str, ...], design: Design, own: tuple[str, ...], *, inside: bool) -> tuple[str, ...]:
    return tuple(level for name, level in zip(design.factors, cell, strict=True) if (name in own) == inside)


def _cells_of(design: Design, own: tuple[str, ...]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Between-item cells and within-item cells."""
    levels = {name: factor.levels for name, factor in design.factors.items()}
    between = list(product(*(levels[name] for name in own)))
    return between, list(product(*(levels[name] for name in levels if name not in own)))


def _group(item: Item, own: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item.levels[name] for name in own)


def _weights(design: Design, effect: Effect, own: tuple[str, ...]) -> np.ndarray:
    """Weights of the cells; where all levels of a factor are compared at once, those but for this factor."""
    if effect.others is None:
        return effect.weights
    return effect.others / (len(design.factors[str(effect.omnibus)].levels) if effect.omnibus in own else 1)


def _table(design: Design, effect: Effect, weights: np.ndarray) -> np.ndarray:
    own = tuple(between(design))
    rows, columns = _cells_of(design, own)
    table = np.zeros((len(rows), len(columns)))
    for cell, weight in zip(effect.cells, weights, strict=True):
        i = rows.index(_pick(cell, design, own, inside=True))
        table[i, columns.index(_pick(cell, design, own, inside=False))] = weight
    return table


def _contrasts_between(design: Design, effect: Effect, v: np.ndarray) -> np.ndarray:
    """Contrasts of the group means of v'y, of shape (n_contrasts, n_groups)."""
    at = int(np.abs(v).argmax())
    return np.array([_table(design, effect, row)[:, at] / v[at] for row in effect.rows])


def _split(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W = u v', scaled so that sum_b u_b mean_b(v'y) is the effect as written, in differences of group means."""
    at = np.unravel_index(np.abs(table).argmax(), table.shape)
    u, v = table[:, at[1]] / table[at], table[at[0]].copy()
    if not np.allclose(np.outer(u, v), table, atol=1e-9):
        raise SpecError(
            "the weights are no product of a part between items and a part within them, so no relabelling of whole "
            "items tests them; write the effect as weights of factors, or as two effects."
        )
    if u.min() >= 0:
        return u / u.sum(), v * u.sum()
    if abs(u.sum()) > 1e-9:
        raise SpecError(
            "the weights between items do not sum to 0, so no permutation of labels leaves H0 as it is; give the "
            "factor between items weights that sum to 0."
        )
    size = 1 / v.sum() if abs(v.sum()) > 1e-9 else np.clip(u, 0, None).sum() * np.sign(v[np.flatnonzero(v)[-1]])
    return u / size, v * size


# ------------------------------------------------------------------ signs, and levels inside items


def _within(
    design: Design,
    effect: Effect,
    part: Mapping[str, Item],
    *,
    datum: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
) -> Exchange:
    """Flips where some exchange of levels turns the weights round, else levels that change places inside items."""
    own = tuple(between(design))
    units = components(design, list(part), carriers(design, effect.factors))
    n = int(units.max()) + 1
    within = [name for name in design.factors if name not in own]
    verb = "varies" if len(within) == 1 else "vary"
    notes = [GROUPS] if own else []
    made = Exchange(
        kind="flip",
        unit="shared forms" if design.unit == "shared_forms" else "item",
        n_units=n,
        n_relabellings=2**n,
        p_min=float(2.0 ** (1 - n)),
        items=tuple(part),
        datum=datum,
        units=units,
        scale=_scale(design, part, u=u, units=units),
        groups=None,
        group_cells=(),
        group_weights=None,
        strata=None,
        words=f"{', '.join(within)} {verb} within item: whole {_plural(design)} are sign-flipped, one flip for all "
        "features, positions and sites",
        note="; ".join([*notes, *_merged(design, part, n)]),
        exact=True,
    )
    if effect.slope is not None or (effect.omnibus is None and reversal(design, own, v)):
        return made
    levels = omnibus_levels(design, effect) if effect.omnibus else contrast_levels(design, effect, v=v, within=within)
    if effect.omnibus:
        levels = levels._replace(datum=datum)
    n_all, p_min = levels.count(n)
    words = (
        f"{levels.name} {'vary' if levels.name == 'cells' else 'varies'} within item: the {levels.n} "
        f"{'cells' if levels.name == 'cells' else 'levels'} of the effect change places inside every "
        f"{'group of items that share forms' if design.unit == 'shared_forms' else 'item'}, in the same way for all "
        "features, positions and sites"
    )
    return replace(made, kind="permute_levels", n_relabellings=n_all, p_min=p_min, words=words, levels=levels)


def _as_flips(made: Exchange) -> Exchange:
    words = "the contrast of whole items is sign-flipped, one flip for all features, positions and sites"
    note = (
        "approximate: no exchange of levels turns the weights into their negative, so flips hold only if the items' "
        "contrast values are distributed symmetrically"
    )
    n = made.n_units
    return replace(
        made, kind="flip", n_relabellings=2**n, p_min=float(2.0 ** (1 - n)), levels=None, exact=False, words=words,
        note="; ".join(filter(None, [note, made.note])),
    )  # fmt: skip


def _scale(design: Design, part: Mapping[str, Item], *, u: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Multipliers that make the plain mean over units the mean over groups, weighted as designed."""
    own = tuple(between(design))
    rows = _cells_of(design, own)[0]
    group = np.array([rows.index(_group(item, own)) for item in part.values()])
    share = 1 / np.bincount(units)[units]
    raw = u[group] / np.bincount(group, share, len(rows))[group]
    return raw * (units.max() + 1) / (raw @ share)


def _plural(design: Design) -> str:
    return "groups of items that share forms" if design.unit == "shared_forms" else "items"


def _merged(design: Design, part: Mapping[str, Item], n: int) -> list[str]:
    if design.unit == "item":
        return []
    return [f"{len(part)} items make {n} units, because some share a form that carries a factor"]


# ------------------------------------------------------------------ permutations of labels


def _permutation(
    design: Design,
    part: Mapping[str, Item],
    slots: Sequence[str],
    *,
    datum: np.ndarray,
    u: np.ndarray,
    contrast: bool,
    given: Mapping[str, str] | None,
) -> Exchange:
    own = tuple(between(design))
    used: np.ndarray = np.any(np.atleast_2d(u) != 0, axis=0)
    rows = [row for row, taken in zip(_cells_of(design, own)[0], used.tolist(), strict=True) if taken]
    weights, every = (u[used], None) if u.ndim == 1 else (None, u[:, used])
    moved = _moved(design, own, np.atleast_2d(u))
    groups = np.array([rows.index(_group(item, own)) for item in part.values()])
    units = components(design, list(part), slots)
    blocks = _blocks(design, part, held=[name for name in own if name not in moved], given=given)
    _refuse_mixed(list(part), units, groups=groups, blocks=blocks)
    first = [int(np.flatnonzero(units == k)[0]) for k in range(units.max() + 1)]
    names = list(dict.fromkeys(blocks))
    codes = np.array([names.index(block) for block in blocks])
    if weights is None:  # exchanging whole levels changes no test of all of them
        at = [own.index(name) for name in moved]
        kinds = list(dict.fromkeys(tuple(row[k] for k in at) for row in rows))
        named = np.array([kinds.index(tuple(rows[g][k] for k in at)) for g in groups])
        unlike = np.arange(len(kinds)) if len(moved) > 1 else np.zeros(len(kinds))
        n_all, p_min = count_permutations(named[first], codes[first], unlike)
    else:
        n_all, p_min = count_permutations(groups[first], codes[first], weights)
    inside = [*([design.strata] if design.strata else []), *(name for name in own if name not in moved)]
    what = "differences within item" if contrast else "items"
    words = f"{' and '.join(moved)} {'varies' if len(moved) == 1 else 'vary'} between items: labels are permuted over "
    words += f"{_plural(design) if design.unit != 'item' else what}"
    words += f", inside each {' x '.join(inside)}" if inside else ""
    notes = [f"stratum {name} has one label and contributes nothing" for name in _idle(groups, codes, names)]
    if len(moved) > 1:
        notes.insert(0, "approximate: labels of all cells are permuted, exact only if the main effects are zero too")
    return Exchange(
        kind="permute_labels",
        unit="shared forms" if design.unit != "item" else "item in stratum" if inside else "item",
        n_units=len(first),
        n_relabellings=n_all,
        p_min=p_min,
        items=tuple(part),
        datum=datum,
        units=units,
        scale=np.ones(len(part)),
        groups=groups,
        group_cells=tuple(rows),
        group_weights=weights,
        strata=codes,
        words=words + ", one permutation for all features, positions and sites",
        note="; ".join([*notes, *_merged(design, part, len(first))]),
        exact=len(moved) == 1,
        contrasts=every,
    )


def _moved(design: Design, own: tuple[str, ...], u: np.ndarray) -> list[str]:
    """The between factors whose labels are permuted: those over which all weights sum to 0, whatever the others are."""
    cube = u.reshape([len(u), *(len(design.factors[name].levels) for name in own)])
    zero = [name for axis, name in enumerate(own) if np.allclose(cube.sum(axis=axis + 1), 0, atol=1e-9)]
    return zero or list(own)


def _blocks(design: Design, part: Mapping[str, Item], *, held: list[str], given: Mapping[str, str] | None) -> list[str]:
    def block(name: str, item: Item) -> str:
        stratum = given[name] if given is not None else item.labels.get(design.strata or "", "")
        return "/".join(filter(None, [str(stratum), *(item.levels[factor] for factor in held)]))

    return [block(name, item) for name, item in part.items()]


def _refuse_mixed(items: list[str], units: np.ndarray, *, groups: np.ndarray, blocks: list[str]) -> None:
    for k in range(units.max() + 1):
        same = np.flatnonzero(units == k)
        if len({(groups[i], blocks[i]) for i in same}) > 1:
            names = ", ".join(items[i] for i in same[:4])
            raise SpecError(
                f"unit: shared_forms merges items of different levels or strata ({names}); let no form recur between "
                "them, or write `unit: item`."
            )


def _idle(groups: np.ndarray, codes: np.ndarray, names: list[str]) -> list[str]:
    return [f"'{name}'" for k, name in enumerate(names) if len(set(groups[codes == k])) < 2 and len(names) > 1]
