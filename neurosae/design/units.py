"""Items: their levels, labels and forms; forms that carry a factor in several items, and the units these make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.errors import SpecError
from neurosae.spec.design import Design
from neurosae.spec.frames import between, list_cells, slots_of


class Item(NamedTuple):
    """An item: its levels of the between factors, its labels and covariates, and its forms (or its text, in a list)."""

    levels: dict[str, str]
    labels: dict[str, str]
    covariates: dict[str, float]
    forms: dict[str, Any]


def items_of(design: Design) -> dict[str, Item]:
    """All items by name, in the order of the file; in a list design `<levels joined by dots>.<number in its cell>`.

    Examples
    --------
    >>> design = Design.from_json('''{"schema": "neurosae/design/1", "name": "mood", "factors": {"mood": {"levels":
    ...     ["sad", "glad"], "varies": "between"}}, "lists": {"sad": [{"text": "She wept."}], "glad": [{"text":
    ...     "He sang."}]}}''')
    >>> items_of(design)["glad.1"]
    Item(levels={'mood': 'glad'}, labels={}, covariates={}, forms={'text': 'He sang.'})
    """
    own, labels, numbers = between(design), design.labels, design.covariates
    found: dict[str, Item] = {}
    for name, levels, forms in _entries(design, own):
        if name in found:
            raise SpecError(f"two items are called '{name}'; rename a level so that names stay apart.")
        rest = {key: form for key, form in forms.items() if key not in {*labels, *numbers, *own}}
        carried = {key: str(forms[key]) for key in labels}
        found[name] = Item(levels, carried, {key: float(forms[key]) for key in numbers}, rest)
    return found


def _entries(design: Design, own: Sequence[str]) -> Iterator[tuple[str, dict[str, str], Mapping[str, Any]]]:
    if design.lists is None:
        for name, forms in design.items.items():
            yield name, {factor: str(forms[factor]) for factor in own}, forms
        return
    seen: Counter[tuple[str, ...]] = Counter()
    for cell, entry in list_cells(design.lists):
        seen[cell] += 1
        yield f"{'.'.join(cell)}.{seen[cell]}", dict(zip(design.factors, cell, strict=True)), entry


def form_at(form: Any, factors: Sequence[str], levels: Mapping[str, str]) -> str:
    """The word of a slot at given levels.

    Examples
    --------
    >>> form_at({"sg": "key", "pl": "keys"}, ["number"], {"number": "pl"})
    'keys'
    """
    for factor in factors:
        form = form[levels[factor]]
    return str(form)


def all_forms(form: Any) -> list[str]:
    """Every word under a slot of an item.

    Examples
    --------
    >>> all_forms({"sg": "key", "pl": "keys"})
    ['key', 'keys']
    """
    return [word for inner in form.values() for word in all_forms(inner)] if isinstance(form, Mapping) else [str(form)]


def carriers(design: Design, factors: Sequence[str]) -> tuple[str, ...]:
    """Names of the slots whose forms carry one of the factors; the target, which the model has yet to predict, is none.

    A factor that varies within items is carried by the slots that name it. One that varies between items is carried by
    the slots of which no form is found at two of its levels.
    """
    slots, target = slots_of(design), design.target.slot if design.target else None
    found = [slot for slot, by in slots.items() if slot != target and set(by) & set(factors)]
    own = [name for name in between(design) if name in factors]
    for slot, by in slots.items() if own and design.lists is None else ():
        if slot != target and slot not in found and not by and slot not in design.shared:
            if any(_apart(design, slot, factor) for factor in own):
                found.append(slot)
    return tuple(found)


def _apart(design: Design, slot: str, factor: str) -> bool:
    """Whether every form of a slot belongs to one level of a between factor."""
    level_of: dict[str, str] = {}
    for forms in design.items.values():
        if slot in forms and level_of.setdefault(str(forms[slot]), str(forms[factor])) != forms[factor]:
            return False
    return True


def shared_forms(design: Design, slots: Sequence[str] | None = None) -> pd.DataFrame:
    """Forms that carry a factor in more than one item: columns `slot`, `factors`, `form`, `items`, `n_items`."""
    by = slots_of(design)
    slots = carriers(design, tuple(design.factors)) if slots is None else slots
    rows = []
    for slot in slots if design.lists is None else ():
        users: dict[str, list[str]] = {}
        for item, forms in design.items.items():
            for form in dict.fromkeys(all_forms(forms[slot])) if slot in forms else ():
                users.setdefault(form, []).append(item)
        factors = ", ".join(by[slot] or between(design))
        rows += [(slot, factors, form, tuple(items), len(items)) for form, items in users.items() if len(items) > 1]
    return pd.DataFrame(rows, columns=["slot", "factors", "form", "items", "n_items"])


def components(design: Design, items: Sequence[str], slots: Sequence[str]) -> np.ndarray:
    """Number of the unit of each item: itself, or with `unit: shared_forms` all that are linked by a shared form.

    Parameters
    ----------
    items : names
    slots : only forms of these slots link items, see `carriers`

    Examples
    --------
    >>> forms = {name: {"adj": {"low": low, "high": name}} for name, low in [("hot", "icy"), ("big", "tiny"),
    ...     ("warm", "icy")]}
    >>> design = Design.model_validate({"schema": "neurosae/design/1", "name": "degree", "unit": "shared_forms",
    ...     "factors": {"degree": ["low", "high"]}, "frames": {"f": "It is {adj:degree}"}, "items": forms})
    >>> components(design, ["hot", "big", "warm"], ["adj"]).tolist()
    [0, 1, 0]
    """
    unit = np.arange(len(items))
    if design.unit == "item":
        return unit
    place = {name: i for i, name in enumerate(items)}
    for users in shared_forms(design, slots)["items"]:
        linked = [place[name] for name in users if name in place]
        if linked:
            unit[np.isin(unit, unit[linked])] = unit[linked].min()
    return np.unique(unit, return_inverse=True)[1]
