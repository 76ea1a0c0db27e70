"""Tables of stimuli, one row per text, as the keys of a design: items in one frame, or lists."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from neurosae.design.import_files import WHOLE, Row, Source, level_name, objects


def from_csv(source: Source) -> dict[str, Any]:
    """A table with a header; tab- or comma-separated."""
    header = source.text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(source.text), delimiter="\t" if "\t" in header else ",", strict=True)
    rows = []
    try:
        for fields in reader:
            if None in fields or None in fields.values():
                raise source.error(reader.line_num, "the row has not as many fields as the header.")
            rows.append(Row(reader.line_num, fields))
    except csv.Error as error:
        raise source.error(reader.line_num, f"{error}.") from None
    return _table(source, rows)


def from_jsonl(source: Source) -> dict[str, Any]:
    """One JSON object per line."""
    return _table(source, list(objects(source)))


def _table(source: Source, rows: list[Row]) -> dict[str, Any]:
    """Rows of item, text, factors, and what else items carry."""
    if not rows:
        raise source.error(1, "holds no rows.")
    columns = list(rows[0].fields)
    for row in rows:
        for name in ("text", *(source.factors or ())):
            if name not in row.fields or not str(row.fields[name]).strip():
                raise source.error(row.line, f"has no '{name}'; columns are {', '.join(columns)}.")
    names = (
        list(source.factors)
        if source.factors
        else [c for c in columns if c not in ("item", "text", "frame", "stimulus")]
    )
    if not source.factors:
        names = [name for name in names if _is_factor(rows, name)]
        if not names:
            raise source.error(1, "no column has a few levels that recur; name the factors, --factors a,b.")
    items = _by_item(source, rows, names)
    single = all(len(part) == 1 for part in items.values())
    return _single(source, items, names) if single else _crossed(source, items, names)


def _is_factor(rows: Sequence[Row], name: str) -> bool:
    """Whether a column looks like a factor: 2 to 6 values in words, each at least twice."""
    values = [str(row.fields.get(name, "")) for row in rows]
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    return 2 <= len(counts) <= 6 and min(counts.values()) >= 2 and not any(_is_number(v) for v in counts)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _by_item(source: Source, rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    items: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        item = level_name(str(row.fields.get("item", f"i{number + 1}")))
        if item not in items and source.n_items is not None and len(items) == source.n_items:
            continue
        cell = tuple(str(row.fields[name]) for name in names)
        for other in items.setdefault(item if not item[0].isdigit() else f"i{item}", []):
            if tuple(str(other.fields[name]) for name in names) == cell:
                text = f"item '{item}' is at {'/'.join(cell)} twice, first on line {other.line}"
                raise source.error(row.line, f"{text}; one row per item and cell.")
        items[item if not item[0].isdigit() else f"i{item}"].append(row)
    return items


def _single(source: Source, items: Mapping[str, list[Row]], names: Sequence[str]) -> dict[str, Any]:
    """Every item has one row: lists, nested in the order of the factors."""
    levels = {n: list(dict.fromkeys(str(part[0].fields[n]) for part in items.values())) for n in names}
    labels, numbers = _carried(items, names)
    nested: dict[str, Any] = {}
    for (row,) in items.values():
        at = nested
        for name in names[:-1]:
            at = at.setdefault(level_name(str(row.fields[name])), {})
        entry = {"text": str(row.fields["text"])} | {n: str(row.fields[n]) for n in labels}
        entry |= {n: float(row.fields[n]) for n in numbers}
        at.setdefault(level_name(str(row.fields[names[-1]])), []).append(entry)
    made = {n: {"levels": [level_name(v) for v in found], "varies": "between"} for n, found in levels.items()}
    _refuse_one_level(source, made)
    out: dict[str, Any] = {"factors": made, "regions": WHOLE, "lists": nested}
    return out | ({"labels": labels} if labels else {}) | ({"covariates": numbers} if numbers else {})


def _crossed(source: Source, items: Mapping[str, list[Row]], names: Sequence[str]) -> dict[str, Any]:
    """Items at several levels: one frame of one slot, whose form is the whole text."""
    within = [n for n in names if any(len({str(r.fields[n]) for r in part}) > 1 for part in items.values())]
    own = [n for n in names if n not in within]
    levels = {
        n: list(dict.fromkeys(level_name(str(r.fields[n])) for part in items.values() for r in part)) for n in names
    }
    labels, numbers = _carried(items, names)
    made: dict[str, Any] = {}
    for item, part in items.items():
        forms: dict[str, Any] = {}
        for row in part:
            at = forms
            for name in within[:-1]:
                at = at.setdefault(level_name(str(row.fields[name])), {})
            at[level_name(str(row.fields[within[-1]]))] = str(row.fields["text"])
        full = 1
        for name in within:
            full *= len(levels[name])
        if len(part) != full:
            text = f"item '{item}' has {len(part)} of {full} cells of {' x '.join(within)}"
            raise source.error(part[0].line, f"{text}; give it all of them, or leave it out.")
        made[item] = {"sentence": forms} | {n: level_name(str(part[0].fields[n])) for n in own}
        made[item] |= {n: str(part[0].fields[n]) for n in labels} | {n: float(part[0].fields[n]) for n in numbers}
    factors: dict[str, Any] = {n: {"levels": levels[n], "varies": "between" if n in own else "within"} for n in names}
    _refuse_one_level(source, factors)
    out: dict[str, Any] = {"factors": factors, "frames": {"text": f"{{sentence:{','.join(within)}}}"}, "items": made}
    out["regions"] = {"last_word": WHOLE["last_word"]}
    return out | ({"labels": labels} if labels else {}) | ({"covariates": numbers} if numbers else {})


def _refuse_one_level(source: Source, factors: Mapping[str, Any]) -> None:
    for name, factor in factors.items():
        if len(factor["levels"]) < 2:
            raise source.error(1, f"column '{name}' is always '{factor['levels'][0]}'; a factor needs two levels.")


def _carried(items: Mapping[str, list[Row]], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that are the same in all rows of an item: words are labels, numbers covariates."""
    labels, numbers = [], []
    first = next(iter(items.values()))[0]
    for name in [c for c in first.fields if c not in (*names, "item", "text", "frame", "stimulus")]:
        values = [[row.fields.get(name) for row in part] for part in items.values()]
        if any(len(set(map(str, part))) > 1 or part[0] in (None, "") for part in values) or not name.isidentifier():
            continue
        (numbers if all(_is_number(part[0]) for part in values) else labels).append(name)
    return labels, numbers
