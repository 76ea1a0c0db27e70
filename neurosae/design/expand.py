"""A design -> its stimuli: one row per text, with the character span of every region.

| column | dtype | content |
|---|---|---|
| index `stimulus` | str | item/frame/level/level... |
| `item`, `frame`, factors | str, category, category | levels in the order of the design |
| covariates, labels | float64, str | what items carry |
| `text`, `target`, `foil` | str | full text; scored word and rival with leading blank, NA without target |
| `split` | category | localizer or test |
| `<region>_start`, `<region>_end` | Int64 | characters, half-open; NA where a text lacks the region |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.design.regions import Span, find_region
from neurosae.design.units import Item, carriers, components, form_at, items_of
from neurosae.errors import SpecError
from neurosae.spec.design import Design, region_names
from neurosae.spec.frames import Slot, between, frame_texts, pieces, slots_of

SPLITS = ("localizer", "test")
LIST_FRAME = "-"


class Filled(NamedTuple):
    """A frame with its slots filled."""

    text: str
    slots: dict[str, Span]


def expand(design: Design) -> pd.DataFrame:
    """All stimuli of a design, items in the order of the file, then frames, then cells.

    Parameters
    ----------
    design : Design

    Returns
    -------
    DataFrame, columns as in the docstring of the module; `attrs["design"]` is the design as JSON

    Notes
    -----
    Forms are put into frames as written: nothing is capitalised, joined or inflected.

    Examples
    --------
    >>> design = Design.from_json('''{"schema": "neurosae/design/1", "name": "number", "factors": {"number": ["sg",
    ...     "pl"]}, "frames": {"f": "The {noun:number} near me {verb:number}"},
    ...     "target": {"slot": "verb"}, "items": {"key": {"noun": {"sg": "key", "pl": "keys"},
    ...     "verb": {"sg": "is", "pl": "are"}}}}''')
    >>> stimuli = expand(design)
    >>> stimuli[["text", "target", "foil", "noun_start", "noun_end", "split"]]
                               text target  foil  noun_start  noun_end split
    stimulus
    key/f/sg    The key near me is     is   are           4         7  test
    key/f/pl  The keys near me are    are    is           4         8  test
    """
    items = items_of(design)
    split = draw_partition(design, items)
    rows = [
        {"item": name, "split": split[name], **item.levels, **item.covariates, **item.labels, **row}
        for name, item in items.items()
        for row in (_frame_rows(design, item) if design.lists is None else [_list_row(design, item)])
    ]
    table = pd.DataFrame(rows)
    parts = [table["frame"], *(table[factor].astype(str) for factor in design.factors)]
    names = table["item"].str.cat(parts, sep="/")  # pyright: ignore[reportCallIssue, reportArgumentType]
    table.index = pd.Index(names, name="stimulus", dtype=object)
    stimuli = _typed(design, table)
    stimuli.attrs["design"] = design.to_json()  # so that responses know what may be exchanged
    return stimuli


def _frame_rows(design: Design, item: Item) -> list[dict[str, Any]]:
    own = between(design)
    free = {name: factor.levels for name, factor in design.factors.items() if name not in own}
    rows = []
    for frame, written in design.frames.items():
        by, texts = frame_texts(written)
        for cell in product(*free.values()):
            levels = {**item.levels, **dict(zip(free, cell, strict=True))}
            filled = fill(texts[None if by is None else levels[by]], {**design.shared, **item.forms}, levels)
            rows.append(
                {
                    "frame": frame,
                    **levels,
                    **_spans(design, filled),
                    **_target(design, item, levels=levels, filled=filled),
                }
            )
    return rows


def _list_row(design: Design, item: Item) -> dict[str, Any]:
    filled = Filled(str(item.forms["text"]), {})
    return {"frame": LIST_FRAME, **_spans(design, filled), "target": None, "foil": None}


def fill(frame: str, forms: Mapping[str, Any], levels: Mapping[str, str]) -> Filled:
    """Put the forms of an item into a frame.

    Parameters
    ----------
    frame : text with slots
    forms : what fills the slots; nested by levels where a slot names factors
    levels : level of every factor

    Examples
    --------
    >>> fill("The {noun:number} ran", {"noun": {"sg": "dog", "pl": "dogs"}}, {"number": "pl"})
    Filled(text='The dogs ran', slots={'noun': (4, 8)})
    """
    text, spans = "", dict[str, Span]()
    for piece in pieces(frame):
        if isinstance(piece, Slot):
            form = form_at(forms[piece.name], piece.factors, levels)
            spans[piece.name] = (len(text), len(text) + len(form))
            text += form
        else:
            text += piece
    return Filled(text, spans)


def _spans(design: Design, filled: Filled) -> dict[str, Any]:
    found: dict[str, Any] = {"text": filled.text}
    for name in region_names(design):
        region = design.regions.get(name)
        span = filled.slots.get(name) if region is None else find_region(region, filled.text, filled.slots)
        found[f"{name}_start"], found[f"{name}_end"] = (None, None) if span is None else span
    return found


def _target(design: Design, item: Item, *, levels: Mapping[str, str], filled: Filled) -> dict[str, str | None]:
    target = design.target
    if target is None:
        return {"target": None, "foil": None}
    start, end = filled.slots[target.slot]
    blank = " " if filled.text[:start].endswith(" ") else ""
    forms = {**design.shared, **item.forms}
    factors = slots_of(design)[target.slot]
    if target.foil == "other_level":
        (factor,) = factors
        (other,) = (level for level in design.factors[factor].levels if level != levels[factor])
        foil = form_at(forms[target.slot], factors, {**levels, factor: other})
    else:
        by = slots_of(design).get(target.foil, factors)
        foil = form_at(forms[target.foil], by if isinstance(forms[target.foil], Mapping) else (), levels)
    return {"target": blank + filled.text[start:end], "foil": blank + foil}


def _typed(design: Design, table: pd.DataFrame) -> pd.DataFrame:
    frames = list(design.frames) if design.lists is None else [LIST_FRAME]
    levels = {"frame": frames, "split": SPLITS} | {name: factor.levels for name, factor in design.factors.items()}
    for name, order in levels.items():
        table[name] = pd.Categorical(table[name].astype(str), categories=list(order), ordered=name in design.factors)
    spans = [f"{name}_{end}" for name in region_names(design) for end in ("start", "end")]
    table[spans] = table[spans].astype("Int64")
    strings = ["item", "text", "target", "foil", *design.labels]
    texts = table[strings].astype("string").astype(object)
    table[strings] = texts.where(table[strings].notna(), pd.NA)  # pyright: ignore[reportArgumentType]
    order = ["item", "frame", *design.factors, *design.covariates, *design.labels, "text", "target", "foil", "split"]
    return table[[*order, *spans]]


# ------------------------------------------------------------------ items set apart


def draw_partition(design: Design, items: Mapping[str, Item]) -> dict[str, str]:
    """Split of every item: `localizer` items may choose features, `test` items test them.

    Items are ordered by sha256 of seed and name, so the draw depends on no library and an item keeps its place in the
    order when others are added. Between-item cells, and strata inside them, give in proportion to their size. With
    `unit: shared_forms` linked items stay together, so a few items less than asked for may be drawn.

    Examples
    --------
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "mood", "partition": {"localizer": 2,
    ...     "seed": 1}, "factors": {"mood": {"levels": ["sad", "glad"], "varies": "between"}}, "lists": {"sad":
    ...     ["She wept.", "She fell."], "glad": ["He sang.", "He won."]}})
    >>> split = draw_partition(design, items_of(design))
    >>> sorted(split.values()), split["sad.1"] != split["sad.2"]
    (['localizer', 'localizer', 'test', 'test'], True)
    """
    if design.partition is None:
        return dict.fromkeys(items, "test")
    groups = _units_by_group(design, items)
    sizes = {group: sum(map(len, units)) for group, units in groups.items()}
    quota = _shares(sizes, design.partition.localizer, prefix=len(between(design)))
    chosen: set[str] = set()
    for group, units in groups.items():
        room = quota[group]
        for unit in sorted(units, key=lambda unit: _rank(design, unit)):
            if len(unit) <= room:
                chosen.update(unit)
                room -= len(unit)
    if not chosen:
        raise SpecError(
            f"partition.localizer: {design.partition.localizer} is less than every group of items that share a form; "
            "set more items apart, or write `unit: item`."
        )
    return {name: "localizer" if name in chosen else "test" for name in items}


def _units_by_group(design: Design, items: Mapping[str, Item]) -> dict[tuple[str, ...], list[list[str]]]:
    """Linked items, by between-item cell and stratum; a unit of several groups belongs to that of its first item."""
    names = list(items)
    codes = components(design, names, carriers(design, tuple(design.factors)))
    units = [[names[i] for i in np.flatnonzero(codes == k)] for k in range(codes.max() + 1)]
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for unit in units:
        first = items[unit[0]]
        groups.setdefault((*first.levels.values(), first.labels.get(design.strata or "", "")), []).append(unit)
    return groups


def _rank(design: Design, unit: Sequence[str]) -> bytes:
    seed = design.partition.seed if design.partition else 0
    return min(hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in unit)


def _shares(sizes: Mapping[tuple[str, ...], int], total: int, *, prefix: int) -> dict[tuple[str, ...], int]:
    """Share `total` out over cells in proportion to their size (largest remainders), then inside them over strata."""
    cells: dict[tuple[str, ...], int] = {}
    for group, size in sizes.items():
        cells[group[:prefix]] = cells.get(group[:prefix], 0) + size
    found: dict[tuple[str, ...], int] = {}
    for cell, part in _proportional(cells, total).items():
        found |= _proportional({group: size for group, size in sizes.items() if group[:prefix] == cell}, part)
    return found


def _proportional(sizes: Mapping[tuple[str, ...], int], total: int) -> dict[tuple[str, ...], int]:
    everything = sum(sizes.values())
    floors = {group: total * size // everything for group, size in sizes.items()}
    rest = sorted(sizes, key=lambda group: -(total * sizes[group] % everything))
    for group in rest[: total - sum(floors.values())]:
        floors[group] += 1
    return floors
