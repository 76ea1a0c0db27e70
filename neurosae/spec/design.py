"""Schema of a design file: factors, frames with slots, the forms that items put there, regions, target, partition.

`{slot}` in a frame is filled with one form per item, `{slot:factor}` with one form per level of that factor, and
`{slot:a,b}` with forms nested in that order. Every slot is a region. A list design has `lists:` instead of frames
and items: complete texts, nested in the order of the factors, each an item of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, WithJsonSchema, field_validator, model_validator

from neurosae.errors import SpecError, unknown
from neurosae.spec.fields import (
    Bool,
    Count,
    FileName,
    IntPair,
    Key,
    Name,
    NamePair,
    Names,
    Natural,
    Number,
    Strict,
    Text,
    fail,
    fail_all,
)
from neurosae.spec.frames import (
    between,
    frame_problems,
    item_problems,
    list_cells,
    list_problems,
    slots_of,
    target_problems,
    where_slot,
)
from neurosae.spec.load import as_record, load_yaml
from neurosae.spec.words import Problem, Where, describe

SCHEMA = "neurosae/design/1"

MAX_STIMULI = 1_000_000

RESERVED = frozenset(
    "stimulus item frame text target foil split region site feature token token_index position n_tokens norm surprisal "
    "logit_diff all cells test effect".split()
)
"""Columns of stimuli and responses, and words with a meaning of their own in an analysis."""


# ------------------------------------------------------------------ the parts of a design


class Factor(Strict):
    """A manipulated variable; `[a, b]` is short for `{levels: [a, b]}`."""

    levels: tuple[Key, ...] = Field(min_length=2)
    """The levels, in the order in which tables and figures show them."""
    varies: Literal["within", "between"] = "within"
    """within: every item is seen at every level; between: an item has one level."""
    values: dict[str, Number] | None = None
    """Numbers of the levels, for linear and quadratic effects: {none: 0, low: 1, high: 4}."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Both forms, for editors."""
        return {"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 2}, handler(core)]}

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if isinstance(data, list | tuple):
            return {"levels": data}
        if not isinstance(data, Mapping | cls):
            fail(text=f"is {describe(data)}; write [level, level] or {{levels: [level, level], varies: between}}.")
        return data

    @model_validator(mode="after")
    def _check(self) -> Factor:
        fail_all(
            (("levels", self.levels.index(level)), f"level '{level}' is listed {n} times; keep one.")
            for level, n in Counter(self.levels).items()
            if n > 1
        )
        if self.values is not None and list(self.values) != list(self.levels):
            fail("values", text=f"must give one number per level, in their order: {', '.join(self.levels)}.")
        if self.values is not None and len(set(self.values.values())) < len(self.values):
            fail("values", text="gives two levels the same number; use different ones.")
        return self


class Region(Strict):
    """A named span of words; exactly one of before, after, span and words."""

    before: Name | None = None
    """The word before this slot: its last token predicts what fills the slot."""
    after: Name | None = None
    """The word after this slot, or the first `n` of them."""
    n: Count | None = None
    """How many words after the slot (only with `after`; default 1)."""
    span: NamePair | None = None
    """From the beginning of one slot to the end of the other: [first, last]."""
    words: IntPair | None = None
    """First and last word, both included, counted from 0, or from the end with -1: [0, -1] is the whole text."""

    @model_validator(mode="after")
    def _check(self) -> Region:
        given = [name for name in ("before", "after", "span", "words") if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "says nothing"
            fail(text=f"{what}; give exactly one of before, after, span and words.")
        if self.n is not None and self.after is None:
            fail("n", text="counts the words after a slot; use it with `after:`.")
        if self.words is not None and (self.words[0] < 0) == (self.words[1] < 0) and self.words[0] > self.words[1]:
            fail("words", text=f"{list(self.words)} ends before it begins; write [first, last].")
        return self


class Target(Strict):
    """The word whose probability is scored, and its rival."""

    slot: Name
    """The slot that holds the scored word."""
    foil: Name = "other_level"
    """Its rival: other_level (the form of the other level of the slot's factor), or a slot of the items."""
    single_token: Bool = True
    """Refuse targets and foils that the model's tokenizer splits."""


class Partition(Strict):
    """Items set apart for choosing features; the others are for testing."""

    localizer: Count
    """How many items may choose features."""
    seed: Natural = 0
    """Seed of the draw."""


_FORMS = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "object"}]}
Forms = Annotated[Any, WithJsonSchema(_FORMS)]
Frame = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]


class Design(Strict):
    """A design file."""

    schema_: Annotated[Literal["neurosae/design/1"], Field(alias="schema")]
    """Write `schema: neurosae/design/1`."""
    name: FileName
    """Name of the design; letters, digits, _ and -."""
    description: str | None = None
    """What the design is for, in a sentence or two."""
    factors: dict[Name, Factor] = Field(min_length=1)
    """Factors and their levels."""
    frames: dict[Key, Frame] = Field(default_factory=dict)
    """Templates with {slot} and {slot:factor}; one may depend on one factor: {factor: {level: text}}."""
    shared: dict[Name, Text] = Field(default_factory=dict)
    """Forms that all items share; never one that carries a factor."""
    regions: dict[Name, Region] = Field(default_factory=dict)
    """Named spans beside the slots, each of which is a region already."""
    target: Target | None = None
    """The scored word and its rival."""
    partition: Partition | None = None
    """Items that choose features; without it all items are test items."""
    unit: Literal["item", "shared_forms"] = "item"
    """The unit of replication; shared_forms merges items that share a form which carries a factor."""
    labels: Names = ()
    """Names of the words that items carry, such as a topic."""
    covariates: Names = ()
    """Names of the numbers that items carry, such as a frequency."""
    strata: Name | None = None
    """A label; relabellings between items stay inside its values."""
    items: dict[Key, dict[Name, Forms]] = Field(default_factory=dict)
    """For each item the form of every slot, by level where the slot varies."""
    lists: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})] | None = None
    """Complete texts instead of frames and items, nested in the order of the factors."""

    @field_validator("schema_", mode="before")
    @classmethod
    def _check_schema(cls, value: Any) -> Any:
        if value != SCHEMA:
            fail(text=f"is {describe(value)}; a design begins with `schema: {SCHEMA}`.")
        return value

    @model_validator(mode="before")
    @classmethod
    def _list_entries(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("lists"), Mapping):
            return {**data, "lists": _as_entries(data["lists"])}
        return data

    @model_validator(mode="after")
    def _check(self) -> Design:
        for check in _CHECKS:
            fail_all(check(self))
        return self

    def to_json(self) -> str:
        """The design as one JSON text, keys in the order of the file.

        Examples
        --------
        >>> design = Design.from_json('''{"schema": "neurosae/design/1", "name": "tiny", "factors": {"number":
        ...     ["sg", "pl"]}, "frames": {"f": "The {noun:number}"}, "items": {"dog": {"noun": {"sg": "dog",
        ...     "pl": "dogs"}}}}''')
        >>> Design.from_json(design.to_json()) == design
        True
        """
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_defaults=True), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Design:
        """The design that `to_json` wrote.

        Raises
        ------
        SpecError
            The text is no design.
        """
        try:
            return as_record(json.loads(text), cls, name="design")
        except json.JSONDecodeError as error:
            raise SpecError(f"design: is no JSON ({error}).") from None


def _as_entries(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_entries(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [{"text": entry} if isinstance(entry, str) else entry for entry in value]
    return value


def load_design(path: str | Path) -> Design:
    """Read a design file.

    Parameters
    ----------
    path : a YAML file that begins with `schema: neurosae/design/1`

    Raises
    ------
    SpecError
        In one line: file, line, field, what is wrong, and what would be right.

    Examples
    --------
    >>> import tempfile
    >>> text = '''
    ... schema: neurosae/design/1
    ... name: tiny
    ... factors: {number: [sg, pl]}
    ... frames: {it_is: "It is the {noun:number}"}
    ... items: {dog: {noun: {sg: dog, pl: dogs}}}
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "tiny.yaml").write_text(text)
    ...     load_design(Path(folder) / "tiny.yaml").factors["number"].levels
    ('sg', 'pl')
    """
    return load_yaml(path, Design)


# ------------------------------------------------------------------ what other modules ask of a design


def n_items(design: Design) -> int:
    """How many items a design has; every text of a list design is one."""
    return len(design.items) if design.lists is None else sum(1 for _ in list_cells(design.lists))


def region_names(design: Design) -> tuple[str, ...]:
    """Every region of a design: its slots, then its named regions."""
    return (*slots_of(design), *design.regions)


# ------------------------------------------------------------------ what is wrong between the parts


def _kind_problems(design: Design) -> Iterator[Problem]:
    if design.lists is None:
        if not design.frames:
            yield (), "has neither `frames:` with `items:`, nor `lists:`; write one of the two."
        elif not design.items:
            yield ("items",), "has no items; write for each item the form of every slot."
        return
    for key in ("frames", "items", "shared", "target"):
        if getattr(design, key):
            yield (key,), f"cannot be combined with `lists:`; leave out `{key}:` or `lists:`."
    for name, factor in design.factors.items():
        if factor.varies == "within":
            levels = f"{{levels: [{', '.join(factor.levels)}], varies: between}}"
            yield ("factors", name), f"varies within items, but each text of a list is its own item; write {levels}."


def _name_problems(design: Design) -> Iterator[Problem]:
    slots = slots_of(design)
    columns: dict[str, str] = {}
    for kind in ("factors", "labels", "covariates"):
        for i, name in enumerate(getattr(design, kind)):
            where = (kind, name) if kind == "factors" else (kind, i)
            yield from _column_problems(f"{kind.rstrip('s')} '{name}'", (name,), columns, where=where)
    for name in (*slots, *design.regions):
        where = ("regions", name) if name in design.regions else where_slot(design, name)
        if name in design.regions and name in slots:
            yield where, "is a slot, and so a region already; choose another name."
        else:
            yield from _column_problems(f"region '{name}'", (f"{name}_start", f"{name}_end"), columns, where=where)
    for name in [name for name in (*design.labels, *design.covariates, *between(design)) if name in slots]:
        yield where_slot(design, name), f"slot '{name}' is also what items carry under that name; rename one of them."
    for name in design.shared:
        if name not in slots:
            yield ("shared", name), unknown("slot", name, slots)
    if design.strata is not None and design.strata not in design.labels:
        yield ("strata",), unknown("label", design.strata, design.labels)
    if "-" in design.frames:
        yield ("frames", "-"), "is the frame of list designs; give this one a name."


def _column_problems(owner: str, columns: tuple[str, ...], taken: dict[str, str], *, where: Where) -> Iterator[Problem]:
    name = str(owner.split("'")[1])
    if name in RESERVED:
        yield where, f"the name '{name}' is taken by a column or keyword of neurosae; choose another, e.g. '{name}_1'."
        return
    for column in columns:
        if column in taken or column in RESERVED:
            yield (
                where,
                f"the column '{column}' belongs to {taken.get(column, 'neurosae')} already; rename one of them.",
            )
        taken.setdefault(column, f"the {owner}")


def _region_problems(design: Design) -> Iterator[Problem]:
    slots = slots_of(design)
    for name, region in design.regions.items():
        for key in ("before", "after", "span"):
            given = getattr(region, key)
            for slot in (given,) if isinstance(given, str) else given or ():
                if design.lists is not None:
                    yield ("regions", name, key), "names a slot, but lists have none; use words: [first, last]."
                elif slot not in slots:
                    yield ("regions", name, key), unknown("slot", slot, slots)


def _size_problems(design: Design) -> Iterator[Problem]:
    within = prod(len(factor.levels) for factor in design.factors.values() if factor.varies == "within")
    if design.items and within * len(design.frames) * len(design.items) > MAX_STIMULI:
        n = within * len(design.frames) * len(design.items)
        yield ("factors",), f"give {n:,} stimuli with these frames and items; use at most {MAX_STIMULI:,}."
    if design.partition is not None:
        n, wanted = n_items(design), design.partition.localizer
        if wanted >= n:
            where = ("partition", "localizer")
            yield where, f"takes {wanted} of {n} items and leaves none to test; take at most {max(n - 1, 0)}."


_CHECKS = (
    _kind_problems,
    frame_problems,
    _name_problems,
    item_problems,
    list_problems,
    _region_problems,
    target_problems,
    _size_problems,
)
