"""Frames and forms: the slots of a template, and what is wrong with a frame or with what fills it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from neurosae.errors import SpecError, unknown
from neurosae.spec.words import Problem, Where, describe, place, short, text_problem


class Slot(NamedTuple):
    """A place in a frame: its name and the factors that its form varies by, in the order of the nested forms."""

    name: str
    factors: tuple[str, ...]


def pieces(text: str) -> tuple[str | Slot, ...]:
    """The literal texts and slots of a frame, in order.

    Raises
    ------
    SpecError
        A brace without its partner, or a slot that is not `{slot}`, `{slot:factor}` or `{slot:factor,factor}`.

    Examples
    --------
    >>> pieces("The {head:subject} {verb:subject,tense}.")
    ('The ', Slot(name='head', factors=('subject',)), ' ', Slot(name='verb', factors=('subject', 'tense')), '.')
    """
    found: list[str | Slot] = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", text)):
        if i % 2 == 0:
            if "{" in part or "}" in part:
                raise SpecError("has a { or } without its partner; slots are written {slot} or {slot:factor}.")
            found += [part] if part else []
            continue
        name, colon, factors = part.partition(":")
        names = tuple(factors.split(",")) if colon else ()
        if not all(word.isidentifier() for word in (name, *names)):
            wrong = f"'{{{short(part)}}}' is no slot"
            raise SpecError(f"{wrong}; write {{slot}}, {{slot:factor}} or {{slot:factor,factor}}, without blanks.")
        found.append(Slot(name, names))
    return tuple(found)


def frame_texts(frame: str | Mapping[str, Mapping[str, str]]) -> tuple[str | None, dict[str | None, str]]:
    """The factor that a frame depends on (None if it depends on none), and its text at every level.

    Examples
    --------
    >>> frame_texts("The {noun}")
    (None, {None: 'The {noun}'})
    >>> frame_texts({"context": {"phrase": "red {noun}", "list": "red, {noun}"}})
    ('context', {'phrase': 'red {noun}', 'list': 'red, {noun}'})
    """
    if isinstance(frame, str):
        return None, {None: frame}
    ((factor, texts),) = frame.items()
    by_level: dict[str | None, str] = dict(texts.items())
    return factor, by_level


def frame_shape_problems(frame: Any, levels: Mapping[str, Sequence[str]], where: Where) -> Iterator[Problem]:
    """What is wrong with one entry under `frames:`, before its slots are compared with anything else."""
    if not isinstance(frame, Mapping):
        yield from _text_problems(frame, levels, where)
        return
    if len(frame) != 1:
        yield where, "depends on one factor at most; write a text, or {factor: {level: text, level: text}}."
        return
    ((factor, texts),) = frame.items()
    inner = (*where, factor)
    if factor not in levels:
        yield inner, unknown("factor", short(factor), levels)
    elif not isinstance(texts, Mapping):
        yield inner, f"is {describe(texts)}; write one text per level, {_example(levels[factor])}."
    else:
        yield from level_problems(texts, factor, levels[factor], where=inner, what="text")
        for level, text in texts.items():
            yield from _text_problems(text, levels, (*inner, level))


def _text_problems(text: Any, levels: Mapping[str, Sequence[str]], where: Where) -> Iterator[Problem]:
    if wrong := text_problem(text):
        hint = " (a text that begins with { needs quotes)" if isinstance(text, Mapping) else ""
        yield where, wrong.rstrip(".") + hint + "."
        return
    if "  " in text:
        yield where, f"'{short(text)}' has two blanks in a row; write one."
    try:
        slots = [piece for piece in pieces(text) if isinstance(piece, Slot)]
    except SpecError as error:
        yield where, str(error)
        return
    names = [slot.name for slot in slots]
    for slot in slots:
        if names.count(slot.name) > 1:
            yield where, f"uses slot '{slot.name}' twice; every slot is a region, so give the second a name of its own."
        for factor in slot.factors:
            if factor not in levels:
                yield where, f"slot '{slot.name}': {unknown('factor', short(factor), levels)}"
        if len(set(slot.factors)) < len(slot.factors):
            yield where, f"slot '{slot.name}' names a factor twice; name it once."


def level_problems(
    forms: Mapping[str, Any], factor: str, levels: Sequence[str], *, where: Where, what: str = "form"
) -> Iterator[Problem]:
    """Levels that are missing from a mapping of levels, or that the factor does not have."""
    strange = [level for level in forms if level not in levels]
    yield from (((*where, level), unknown_level(level, factor, levels)) for level in strange)
    for level in levels if not strange else ():  # a misspelt level is not missing as well
        if level not in forms:
            there = f"it has {', '.join(map(short, forms))}" if forms else "it is empty"
            yield where, f"no {what} for level '{level}' of factor '{factor}'; {there}."


def unknown_level(level: str, factor: str, levels: Sequence[str]) -> str:
    """One sentence about a level that a factor does not have.

    Examples
    --------
    >>> unknown_level("pll", "subject", ["sg", "pl"])
    "unknown level 'pll' of factor 'subject'. Did you mean 'pl'? Known: sg, pl."
    """
    name = short(level)
    return unknown("level", name, levels).replace(f"'{name}'.", f"'{name}' of factor '{factor}'.", 1)


def form_problems(
    form: Any, factors: Sequence[str], levels: Mapping[str, Sequence[str]], *, where: Where
) -> Iterator[Problem]:
    """What is wrong with what fills a slot: one word, or words nested by the levels of its factors."""
    if not factors:
        if isinstance(form, Mapping):
            yield where, "is a mapping, but its slot names no factor; write one form, or {slot:factor} in the frame."
        elif wrong := text_problem(form):
            yield where, wrong
        elif "{" in form or "}" in form:
            yield where, f"'{short(form)}' holds a {{ or }}; only frames have slots."
        return
    first, *rest = factors
    if not isinstance(form, Mapping):
        shape = _example(levels[first])
        yield where, f"is {describe(form)}, but its slot varies by '{first}'; write one form per level, {shape}."
        return
    yield from level_problems(form, first, levels[first], where=where)
    for level in levels[first]:
        if level in form:
            yield from form_problems(form[level], rest, levels, where=(*where, level))


def _example(levels: Sequence[str]) -> str:
    return "{" + ", ".join(f"{short(level)}: …" for level in levels) + "}"


# ------------------------------------------------------------------ frames, items and lists of a whole design


def slots_of(design: Any) -> dict[str, tuple[str, ...]]:
    """Every slot of the frames, in order of appearance, with the factors that its form varies by."""
    slots: dict[str, tuple[str, ...]] = {}
    for frame in design.frames.values():
        for text in frame_texts(frame)[1].values():
            for slot in pieces(text):
                if isinstance(slot, Slot):
                    slots.setdefault(slot.name, slot.factors)
    return slots


def slot_names(text: str) -> list[str]:
    """The names of the slots of a frame's text, in order."""
    return [piece.name for piece in pieces(text) if isinstance(piece, Slot)]


def levels_of(design: Any) -> dict[str, tuple[str, ...]]:
    """The levels of every factor, in the order of the design."""
    return {name: factor.levels for name, factor in design.factors.items()}


def between(design: Any) -> list[str]:
    """The factors that vary between items."""
    return [name for name, factor in design.factors.items() if factor.varies == "between"]


def where_slot(design: Any, slot: str) -> Where:
    """Where a slot is used first."""
    for name, frame in design.frames.items():
        factor, texts = frame_texts(frame)
        for level, text in texts.items():
            if slot in slot_names(text):
                return ("frames", name) if level is None else ("frames", name, str(factor), level)
    return ("frames",)


def frame_problems(design: Any) -> Iterator[Problem]:
    """What is wrong under `frames:`."""
    levels, seen, used = levels_of(design), dict[str, tuple[str, ...]](), set[str]()
    for name, frame in design.frames.items():
        problems = list(frame_shape_problems(frame, levels, ("frames", name)))
        yield from problems
        if problems:
            continue
        factor, texts = frame_texts(frame)
        used.add(factor or "")
        for level, text in texts.items():
            where: Where = ("frames", name) if level is None else ("frames", name, str(factor), level)
            for slot in pieces(text):
                if isinstance(slot, Slot):
                    used.update(slot.factors)
                    yield from _slot_problems(slot, design, seen.setdefault(slot.name, slot.factors), where=where)
    if design.frames:
        for factor in [name for name in levels if name not in used and name not in between(design)]:
            yield ("factors", factor), f"changes no text; use it in a frame, as {{slot:{factor}}}, or leave it out."


def _slot_problems(slot: Slot, design: Any, first: tuple[str, ...], *, where: Where) -> Iterator[Problem]:
    if slot.factors != first:
        once, here = (f"{{{':'.join(filter(None, (slot.name, ','.join(f))))}}}" for f in (first, slot.factors))
        yield where, f"has {here}, but elsewhere the slot is {once}; write it the same everywhere, or name two slots."
    for factor in slot.factors:
        if factor in between(design):
            yield where, f"slot '{slot.name}': '{factor}' varies between items; write {{{slot.name}}} here."
    if slot.factors and slot.name in design.shared:
        shared = f"carries {', '.join(slot.factors)}; a form that all items share carries no factor."
        yield ("shared", slot.name), shared


def item_problems(design: Any) -> Iterator[Problem]:
    """What is wrong under `items:`: missing, superfluous and misshapen forms."""
    slots, levels, own = slots_of(design), levels_of(design), between(design)
    foil = design.target.foil if design.target and design.target.foil != "other_level" else None
    known = [*(slot for slot in slots if slot not in design.shared), *design.labels, *design.covariates, *own]
    for item, forms in design.items.items():
        where: Where = ("items", item)
        for key in forms:
            if key in design.shared:
                yield (*where, key), "is under `shared:` already; keep one of the two."
            elif key not in known and key != foil:
                yield (*where, key), unknown("slot", short(key), known)
        yield from _carried_problems(forms, design, where)
        for factor in own:
            yield from _level_of_item(forms, factor, levels[factor], where=where)
        for slot in _needed(design, forms):
            if slot not in forms:
                yield where, f"no form for slot '{slot}'; write {slot}: …"
            else:
                yield from form_problems(forms[slot], slots[slot], levels, where=(*where, slot))
    for factor in own if design.items else ():
        for level in levels[factor]:
            if not any(forms.get(factor) == level for forms in design.items.values()):
                yield ("factors", factor), f"level '{level}' has no items; add some, or leave the level out."


def _level_of_item(
    forms: Mapping[str, Any], factor: str, levels: tuple[str, ...], *, where: Where
) -> Iterator[Problem]:
    if factor not in forms:
        yield where, f"no level of the factor '{factor}', which varies between items; write {factor}: {levels[0]}, say."
    elif wrong := text_problem(forms[factor]):
        yield (*where, factor), wrong
    elif forms[factor] not in levels:
        yield (*where, factor), unknown_level(forms[factor], factor, levels)


def _needed(design: Any, forms: Mapping[str, Any]) -> list[str]:
    """The slots that an item must fill: those of the frames, at its own level where a frame depends on one."""
    needed: dict[str, None] = {}
    for frame in design.frames.values():
        factor, texts = frame_texts(frame)
        own = forms.get(factor) if factor in between(design) else None
        for level, text in texts.items():
            if own is None or own == level:
                needed.update(dict.fromkeys(slot_names(text)))
    return [slot for slot in needed if slot not in design.shared]


def target_problems(design: Any) -> Iterator[Problem]:
    """What is wrong under `target:`: the scored slot and its rival."""
    target, slots = design.target, slots_of(design)
    if target is None:
        return
    if target.slot not in slots:
        yield ("target", "slot"), unknown("slot", target.slot, slots)
        return
    for name, frame in design.frames.items():
        if any(target.slot not in slot_names(text) for text in frame_texts(frame)[1].values()):
            yield ("target", "slot"), f"frame '{name}' has no slot '{target.slot}'; every frame needs the scored word."
    factors = slots[target.slot]
    if target.foil == "other_level":
        n = [len(design.factors[factor].levels) for factor in factors]
        if n != [2]:
            how = f"varies by {' and '.join(factors)}" if factors else "does not vary"
            text = f"other_level needs a slot that varies by one factor with two levels, but '{target.slot}' {how}"
            yield (
                ("target", "foil" if "foil" in target.model_fields_set else "slot"),
                f"{text}; name a slot of the items.",
            )
    elif target.foil == target.slot:
        yield ("target", "foil"), "is the target itself; name another slot, or write other_level."
    elif target.foil not in slots:
        for item, forms in design.items.items():
            if target.foil not in forms:
                yield ("items", item), f"no form for the foil '{target.foil}'; write {target.foil}: …"
            else:
                nested = factors if isinstance(forms[target.foil], Mapping) else ()
                yield from form_problems(
                    forms[target.foil], nested, levels_of(design), where=("items", item, target.foil)
                )


def list_problems(design: Any) -> Iterator[Problem]:
    """What is wrong under `lists:`: nesting, texts, and what they carry."""
    if design.lists is None:
        return
    problems = list(_nest_problems(design, design.lists, where=("lists",), texts={}))
    yield from problems
    if problems:
        return
    for i, (factor, names) in enumerate(levels_of(design).items()):
        for level in names:
            if not any(cell[i] == level for cell, _ in list_cells(design.lists)):
                yield ("factors", factor), f"level '{level}' has no items; add texts under `lists:`, or leave it out."


def _nest_problems(design: Any, nest: Any, *, where: Where, texts: dict[str, str]) -> Iterator[Problem]:
    levels, depth = levels_of(design), len(where) - 1
    if depth == len(levels):
        if not isinstance(nest, list):
            yield where, f"is {describe(nest)}; write a list of texts here, nested by {', then '.join(levels)}."
            return
        for i, entry in enumerate(nest):
            yield from _entry_problems(entry, design, where=(*where, i), texts=texts)
        return
    factor = list(levels)[depth]
    if not isinstance(nest, Mapping):
        yield where, f"is {describe(nest)}; write one entry per level of '{factor}', {_example(levels[factor])}."
        return
    yield from level_problems(nest, factor, levels[factor], where=where, what="texts")
    for level in levels[factor]:
        if level in nest:
            yield from _nest_problems(design, nest[level], where=(*where, level), texts=texts)


def _entry_problems(entry: Any, design: Any, *, where: Where, texts: dict[str, str]) -> Iterator[Problem]:
    if not isinstance(entry, Mapping):
        yield where, text_problem(entry) or "is no text."
        return
    known = ["text", *design.labels, *design.covariates]
    for key in entry:
        if key not in known:
            yield (*where, key), unknown("key", short(key), known)
    yield from _carried_problems(entry, design, where)
    if "text" not in entry:
        yield where, "has no `text:`; write {text: …}."
    elif wrong := text_problem(entry["text"]):
        yield (*where, "text"), wrong
    elif entry["text"] in texts:
        yield (*where, "text"), f"is the same text as {texts[entry['text']]}; every item needs a text of its own."
    else:
        texts[entry["text"]] = place(where)


def _carried_problems(forms: Mapping[str, Any], design: Any, where: Where) -> Iterator[Problem]:
    for name in (*design.labels, *design.covariates):
        if name not in forms:
            kind = "label" if name in design.labels else "covariate"
            yield where, f"no value of the {kind} '{name}'; write {name}: …"
    for name in design.labels:
        if name in forms and (wrong := text_problem(forms[name])):
            yield (*where, name), wrong
    for name in design.covariates:
        value = forms.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            yield (*where, name), f"is {describe(value)}; a covariate is a finite number."


def list_cells(nest: Any, cell: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The entries of a list design with their cells, in the order of the file.

    Examples
    --------
    >>> list(list_cells({"a": {"x": [{"text": "One."}]}, "b": {"x": [{"text": "Two."}]}}))
    [(('a', 'x'), {'text': 'One.'}), (('b', 'x'), {'text': 'Two.'})]
    """
    if isinstance(nest, Mapping):
        for level, inner in nest.items():
            yield from list_cells(inner, (*cell, level))
    else:
        yield from ((cell, entry) for entry in nest)
