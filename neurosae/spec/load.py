"""Strict YAML text -> frozen record; a refusal is one line, `file:line: field: what is wrong, and what would be right`.

Stock YAML readers take yes/no/on for booleans, 012 for ten, 1e3 for a string, and the last of two equal keys. Here
scalars follow the YAML 1.2 core schema, keys are words that appear once, and anchors, aliases, tags and a second
document are refused: a file says the same to every reader and cannot unfold into something huge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from neurosae.errors import SpecError, nearest, unknown
from neurosae.spec.words import UNPRINTABLE, Problem, Where, describe, place, short

MAX_BYTES = 20_000_000
MAX_DEPTH = 24
MAX_KEY = 200

M = TypeVar("M", bound=BaseModel)

_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_OTHER_INT = re.compile(r"0o[0-7]{1,18}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


# ------------------------------------------------------------------ text -> values with line numbers


@dataclass(frozen=True)
class Source:
    """What was read: the name of the file, the plain values, and the line of every key and list entry."""

    name: str
    data: Any
    lines: Mapping[Where, int]

    def line(self, where: Where) -> int:
        """The line of a place, or of the nearest written place around it."""
        known: Where = ()
        for part in where:
            if (*known, part) in self.lines:
                known = (*known, part)
        return self.lines.get(known, 1)

    def error(self, where: Where, text: str) -> SpecError:
        """A refusal that points at a place."""
        return _error(self.name, self.line(where), f"{place(where)}: {text}")


def _error(name: str, line: int, text: str) -> SpecError:
    return SpecError(f"{name}:{line}: {short(text, 2000)}")


def parse_yaml(text: str, *, name: str) -> Source:
    """Read one YAML document into plain values, refusing whatever could be read in two ways.

    Examples
    --------
    >>> source = parse_yaml("answers: [no, 1e3, 012, 'null']", name="x.yaml")
    >>> source.data
    {'answers': ['no', 1000.0, 12, 'null']}
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for bad in UNPRINTABLE.finditer(text):
        if bad[0] not in "\t\n":
            line = text.count("\n", 0, bad.start()) + 1
            raise _error(name, line, f"file: the character U+{ord(bad[0]):04X} cannot be read; is this a text file?")
    lines: dict[Where, int] = {}
    reader = _Reader(name, lines)
    try:
        data = reader.document(yaml.parse(text, Loader=_Parser))
    except yaml.YAMLError as error:
        raise _syntax_error(name, text, error) from None
    except (ValueError, OverflowError) as error:  # the parser in Python, at \U escapes beyond Unicode
        raise _error(name, 1, f"YAML: cannot be read ({error}).") from None
    return Source(name, data, lines)


def _syntax_error(name: str, text: str, error: yaml.YAMLError) -> SpecError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = min(mark.line, text.count("\n")) if mark is not None else 0
    written = text.split("\n")[line]
    if "\t" in written[: len(written) - len(written.lstrip())]:
        return _error(name, line + 1, "YAML: the line is indented with a tab; use blanks.")
    problem = short(str(getattr(error, "problem", None) or error), 120)
    hint = "check brackets, commas and indentation here and above, and quote texts that hold : { } [ ] or #."
    return _error(name, line + 1, f"YAML: {problem}; {hint}")


@dataclass(frozen=True)
class _Reader:
    """Turns parser events into plain values; notes lines on the way."""

    name: str
    lines: dict[Where, int]

    def document(self, events: Iterator[yaml.Event]) -> Any:
        value, seen = None, False
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise self.refuse((), event, "a second document begins with ---; keep one document per file.")
                value, seen = self.value(events, (), next(events)), True
        return value

    def value(self, events: Iterator[yaml.Event], where: Where, event: yaml.Event) -> Any:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise self.refuse(
                where, event, "uses an anchor or alias (& or *); write the value out, or put it in quotes."
            )
        if tag := getattr(event, "tag", None):
            raise self.refuse(where, event, f"has the tag {short(tag)}; leave tags out (put a word in quotes).")
        if len(where) > MAX_DEPTH:
            raise self.refuse(where[:3], event, f"is nested more than {MAX_DEPTH} deep.")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(events, where)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(events, where)
        assert isinstance(event, yaml.ScalarEvent)
        return event.value if event.style else _scalar(event.value)

    def mapping(self, events: Iterator[yaml.Event], where: Where) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self.key(events, where, event)
            inner = (*where, key)
            if key in result:
                raise self.refuse(inner, event, f"is written twice (first in line {self.lines[inner]}); keep one.")
            self.lines[inner] = event.start_mark.line + 1
            result[key] = self.value(events, inner, next(events))
        return result

    def key(self, events: Iterator[yaml.Event], where: Where, event: yaml.Event) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self.refuse(where, event, "has a key that is no word; put texts that begin with { [ * & ! in quotes.")
        key = self.value(events, where, event)
        if not isinstance(key, str):
            kind = "empty" if key is None else f"read as {describe(key)}"
            raise self.refuse(where, event, f"the key {event.value or '(nothing)'} is {kind}; put it in quotes.")
        if len(key) > MAX_KEY:
            raise self.refuse(where, event, f"has a key of {len(key)} characters; is a quote or a colon missing?")
        return key

    def sequence(self, events: Iterator[yaml.Event], where: Where) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            inner = (*where, len(result))
            self.lines[inner] = event.start_mark.line + 1
            result.append(self.value(events, inner, event))
        return result

    def refuse(self, where: Where, event: yaml.Event, text: str) -> SpecError:
        return _error(self.name, event.start_mark.line + 1, f"{place(where)}: {text}")


def _scalar(text: str) -> Any:
    """A plain scalar by the YAML 1.2 core schema: null, true/false, numbers; everything else is a word."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1] in "fFnN" else text)
    return text


# ------------------------------------------------------------------ values -> records


def load_yaml(
    path: str | Path,
    schema: type[M],
    *,
    context: Mapping[str, Any] | None = None,
    check: Callable[[M], Iterable[Problem]] | None = None,
) -> M:
    """Read a YAML file into a frozen record.

    Parameters
    ----------
    path : the file
    schema : a subclass of `Strict`
    context : handed to the validators of the schema
    check : yields (place, sentence) for what is wrong across the file; the first in the file is reported

    Raises
    ------
    SpecError
        In one line: file, line, field, what is wrong, and what would be right.
    """
    source = parse_yaml(_read(Path(path)), name=str(path))
    if source.data is None:
        raise source.error((), "is empty; see the shipped files in stimuli/ and analyses/ for what to write.")
    try:
        record = schema.model_validate(source.data, context=dict(context or {}))
    except ValidationError as error:
        raise _first(source, problems_of(error)) from None
    if check is not None and (problems := list(check(record))):
        raise _first(source, problems)
    return record


def as_record(value: M | Mapping[str, Any] | None, schema: type[M], *, name: str) -> M:
    """The record that a Python argument describes, checked by the same schema as in a file; None gives the defaults.

    Raises
    ------
    SpecError
        `name.field: what is wrong, and what would be right`.
    """
    try:
        return schema.model_validate({} if value is None else value)
    except ValidationError as error:
        where, text = problems_of(error)[0]
        raise SpecError(f"{'.'.join(map(str, (name, *where)))}: {text}") from None


def _first(source: Source, problems: Iterable[Problem]) -> SpecError:
    where, text = min(problems, key=lambda problem: source.line(problem[0]))
    return source.error(where, text)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is no error."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def similar_file(path: Path) -> str:
    """A question that names the YAML file beside a missing one that was perhaps meant, or nothing."""
    try:
        hint = nearest(short(path.name), [other.name for other in path.parent.glob("*.y*ml")])
    except (OSError, ValueError):
        return ""
    return f" Did you mean {path.parent / hint}?" if hint else ""


def _read(path: Path) -> str:
    if not is_file(path):
        raise SpecError(f"{short(str(path), 300)}: there is no such file.{similar_file(path)}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}).") from error
    if len(data) > MAX_BYTES:
        raise SpecError(f"{path}:1: file: is larger than {MAX_BYTES // 1_000_000} MB; is this a design or an analysis?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise _error(str(path), line, f"file: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8 text.") from None


def problems_of(error: ValidationError) -> list[Problem]:
    """The problems that pydantic found, as (place, sentence)."""
    return [_problem(details) for details in error.errors(include_url=False)]


def _problem(details: Any) -> Problem:
    context = details.get("ctx", {})
    where = (*(part for part in details["loc"] if part != "[key]"), *context.get("where", ()))
    return where, context["text"] if details["type"] == "refused" else _sentence(details, where, context)


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a word",
    "tuple": "a list, [a, b]",
    "list": "a list, [a, b]",
    "dict": "a mapping, {name: value}",
}
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def _sentence(details: Any, where: Where, context: Mapping[str, Any]) -> str:
    kind, given = details["type"], details["input"]
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        if isinstance(given, str) and known:
            return unknown(str(where[-1]) if where else "value", short(given), known)
        return f"is {describe(given)}; write {' or '.join(known) or context['expected'].lower()}."
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"is {given}; it must be {words} {context[name]}."
    if kind == "too_short":
        n = context["actual_length"]
        return f"has {n or 'no'} {'entry' if n == 1 else 'entries'}; write at least {context['min_length']}."
    if kind == "finite_number":
        return f"is {given}; write a finite number."
    wanted = _WANTED.get(kind.partition("_")[0])
    return f"is {describe(given)}; write {wanted}." if wanted else f"{details['msg']}."
