r"""Files of other formats -> a design: the one that would have been written by hand, with all its checks.

| `--from` | file | becomes |
|---|---|---|
| `lists` | JSON `{condition: [text, ...]}`, or nested, `{level: {level: [text, ...]}}` | lists: every text an item |
| `csv`, `jsonl` | columns `item`, `text`, one per factor; others are labels or covariates | items in one frame |
| `minimal_pairs` | JSON lines with `sentence_good`, `sentence_bad`; or lines in turn, bad first | pairs: items |

An item that appears at several levels of a factor varies within items; where every item has one row, the file becomes
lists, and labels are permuted over items. What cannot be read without guessing is refused, with file and line. Texts
stay as they are, but for pairs in text files: blanks before punctuation are closed, the first letter is made large.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurosae.design.import_files import WHOLE, Source, level_name, objects
from neurosae.design.import_tables import from_csv, from_jsonl
from neurosae.errors import SpecError, choose
from neurosae.spec.design import Design
from neurosae.spec.files import write_atomic
from neurosae.spec.load import as_record

SPLITS = "_ x-"
"""Marks between the levels in the name of a condition, as in `win_continues`."""


def import_design(
    path: str | Path, kind: str | None = None, *, factors: Sequence[str] | None = None, n_items: int | None = None
) -> Design:
    """Read stimuli of another format as a design.

    Parameters
    ----------
    path : a file of one of the formats in the table of this module; `.gz` is unpacked
    kind : `lists`, `csv`, `jsonl` or `minimal_pairs`; left out, by the ending of the file and its first line
    factors : names of the factors; for lists one per level of nesting (or per part of the condition's name), for tables
        the columns that are factors
    n_items : the first items only

    Returns
    -------
    Design
        `neurosae.expand(design)` gives the stimuli; `design.to_json()` can be written as a design file.

    Raises
    ------
    SpecError
        `file:line: what is wrong, and what would be right`.

    Examples
    --------
    >>> import tempfile
    >>> text = '{"win_ends": ["Ada won and left."], "win_goes_on": ["Bo won and ran on."]}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "four.json"
    ...     _ = path.write_text('{"win_end": ["Ada won.", "Al won."], "win_run": ["Bo ran on.", "Di ran on."],'
    ...         ' "fail_end": ["Cy lost.", "Ed lost."], "fail_run": ["Di fell.", "Flo fell."]}')
    ...     design = import_design(path, factors=["outcome", "course"])
    >>> {name: factor.levels for name, factor in design.factors.items()}, design.factors["outcome"].varies
    ({'outcome': ('win', 'fail'), 'course': ('end', 'run')}, 'between')
    """
    path = Path(path)
    text = _read(path)
    kind = kind or _guess(path, text)
    source = Source(path, text, tuple(factors) if factors else None, n_items)
    made = choose("format", kind, IMPORTERS)(source)
    name = re.sub(r"\W+", "_", path.name.partition(".")[0]).strip("_").lower() or "imported"
    name = name if name[0].isalpha() else f"set_{name}"
    return as_record({"schema": "neurosae/design/1", "name": name, **made}, Design, name=str(path))


def write_design(path: str | Path, design: Design) -> None:
    """Write a design as a design file: JSON, which is YAML too."""
    schema = "# yaml-language-server: $schema=../docs/schema/design.schema.json"
    text = json.dumps(json.loads(design.to_json()), indent=1, ensure_ascii=False)
    write_atomic(Path(path), f"{schema}\n{text}\n".encode())


def _read(path: Path) -> str:
    if not path.is_file():
        raise SpecError(f"{path}: there is no such file.")
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise SpecError(f"{path}: is no UTF-8 text ({error}); save it as UTF-8.") from None


def _guess(path: Path, text: str) -> str:
    """The format by the ending of the name and what the file begins with."""
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    first = next((line for line in text.splitlines() if line.strip()), "")
    if '"sentence_good"' in first:
        return "minimal_pairs"
    kinds = {"json": "lists", "csv": "csv", "tsv": "csv", "jsonl": "jsonl"}
    if ending not in kinds:
        raise SpecError(
            f"{path}: its format cannot be told from '.{ending}'; name it, --from {' or '.join(IMPORTERS)}."
        )
    return kinds[ending]


# ------------------------------------------------------------------ lists


def _lists(source: Source) -> dict[str, Any]:
    """Condition -> texts; every text is an item that is nested in its condition."""
    try:
        given = json.loads(source.text)
    except ValueError as error:
        raise source.error(getattr(error, "lineno", 1), f"is no JSON ({getattr(error, 'msg', error)}).") from None
    if not isinstance(given, dict) or not given:
        raise source.error(1, "holds no conditions; write {condition: [text, text]}.")
    cells = dict(_leaves(source, given))
    depth = {len(cell) for cell in cells}
    if len(depth) > 1:
        raise source.error(1, "some conditions are nested deeper than others; nest all of them alike.")
    if depth == {1}:
        cells = _parted(source, {cell[0]: texts for cell, texts in cells.items()})
    width = len(next(iter(cells)))
    names = (
        list(source.factors)
        if source.factors
        else ["condition"]
        if width == 1
        else [f"factor_{k + 1}" for k in range(width)]
    )
    if len(names) != width:
        raise source.error(1, f"conditions have {width} parts, but {len(names)} factors are named; name {width}.")
    levels = [list(dict.fromkeys(cell[k] for cell in cells)) for k in range(width)]
    for k, (name, found) in enumerate(zip(names, levels, strict=True)):
        if len(found) < 2:
            raise source.error(1, f"part {k + 1} of all conditions is '{found[0]}'; factor '{name}' needs two levels.")
    nested: dict[str, Any] = {}
    for cell, texts in cells.items():
        at = nested
        for level in cell[:-1]:
            at = at.setdefault(level, {})
        at[cell[-1]] = [{"text": one} for one in texts[: source.n_items]]
    made = {name: {"levels": found, "varies": "between"} for name, found in zip(names, levels, strict=True)}
    return {"factors": made, "regions": WHOLE, "lists": nested}


def _leaves(source: Source, given: Any, cell: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    if isinstance(given, dict):
        for key, value in given.items():
            yield from _leaves(source, value, (*cell, level_name(key)))
        return
    where = _line_of(source.text, cell[-1] if cell else "")
    if not isinstance(given, list) or not given:
        raise source.error(where, f"condition '{'/'.join(cell)}' holds no list of texts; write [text, text].")
    for k, one in enumerate(given):
        if not isinstance(one, str) or not one.strip():
            raise source.error(where, f"text {k + 1} of '{'/'.join(cell)}' is no text.")
    if twice := next((one for k, one in enumerate(given) if one in given[:k]), None):
        raise source.error(where, f"'{'/'.join(cell)}' holds a text twice ('{twice[:40]}'); it would be counted twice.")
    yield cell, given


def _line_of(text: str, word: str) -> int:
    at = text.find(f'"{word}"')
    return text.count("\n", 0, max(at, 0)) + 1


def _parted(source: Source, cells: Mapping[str, list[str]]) -> dict[tuple[str, ...], list[str]]:
    """Names of conditions taken apart where their parts are crossed, as `win_end`, `win_run`, `fail_end` …"""
    wanted = len(source.factors) if source.factors else None
    if wanted == 1:
        return {(name,): texts for name, texts in cells.items()}
    for mark in SPLITS:
        parts = {name: tuple(name.split(mark)) for name in cells}
        width = {len(part) for part in parts.values()}
        if len(width) != 1 or width == {1} or (wanted and width != {wanted}):
            continue
        sizes = [len({part[k] for part in parts.values()}) for k in range(width.pop())]
        crossed = len(set(parts.values())) == len(cells) and all(size > 1 for size in sizes)
        full = 1
        for size in sizes:
            full *= size
        if crossed and full == len(cells):
            return {parts[name]: cells[name] for name in cells}
    if wanted:
        line = _line_of(source.text, next(iter(cells)))
        raise source.error(
            line,
            f"the conditions {', '.join(cells)} are no crossing of {wanted} factors; nest them, "
            "{level: {level: [text]}}, or name one factor.",
        )
    return {(name,): texts for name, texts in cells.items()}


# ------------------------------------------------------------------ minimal pairs


def _pairs(source: Source) -> dict[str, Any]:
    """Pairs of a bad and a good sentence; every pair is an item."""
    if source.factors and len(source.factors) != 1:
        raise source.error(1, "pairs have one factor; name one, or none for `grammatical`.")
    name = source.factors[0] if source.factors else "grammatical"
    found = list(_good_and_bad(source))[: source.n_items]
    if not found:
        raise source.error(1, "holds no pairs.")
    items = {}
    for number, (line, good, bad) in enumerate(found, start=1):
        if good == bad:
            raise source.error(line, f"both sentences of the pair are '{good[:60]}'.")
        items[f"pair{number}"] = {"sentence": {"bad": bad, "good": good}}
    frame = {"text": f"{{sentence:{name}}}"}
    regions = {"last_word": WHOLE["last_word"]}
    return {"factors": {name: ["bad", "good"]}, "frames": frame, "regions": regions, "items": items}


def _good_and_bad(source: Source) -> Iterator[tuple[int, str, str]]:
    if source.text.lstrip().startswith("{"):
        for row in objects(source):
            for key in ("sentence_good", "sentence_bad"):
                if not isinstance(row.fields.get(key), str) or not row.fields[key].strip():
                    raise source.error(row.line, f"has no '{key}'; its keys are {', '.join(row.fields)}.")
            yield row.line, row.fields["sentence_good"], row.fields["sentence_bad"]
        return
    lines = [(number, line.strip()) for number, line in enumerate(source.text.splitlines(), start=1) if line.strip()]
    if len(lines) % 2:
        raise source.error(lines[-1][0], "the last sentence has no partner; pairs are two lines, the bad one first.")
    for (line, bad), (_, good) in zip(lines[::2], lines[1::2], strict=True):
        yield line, _sentence(good), _sentence(bad)


def _sentence(words: str) -> str:
    """Blanks before punctuation closed, the first letter large."""
    closed = re.sub(r"\s+([.,;:!?])", r"\1", words)
    return closed[:1].upper() + closed[1:]


IMPORTERS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "lists": _lists,
    "csv": from_csv,
    "jsonl": from_jsonl,
    "minimal_pairs": _pairs,
}
"""Name of a format -> a function from the file to the keys of a design."""
