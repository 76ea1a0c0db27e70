"""A file of stimuli in another format: its text, its rows, and refusals that name file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neurosae.errors import SpecError

WHOLE = {"whole": {"words": [0, -1]}, "last_word": {"words": [-1, -1]}}
"""Regions that every imported text has."""


class Source(NamedTuple):
    """A file, its text, the named factors, and how many items are wanted."""

    path: Path
    text: str
    factors: tuple[str, ...] | None
    n_items: int | None

    def error(self, line: int, text: str) -> SpecError:
        """A refusal that names its place."""
        return SpecError(f"{self.path}:{line}: {text}")


class Row(NamedTuple):
    """A row of a table: number of its line, and its fields."""

    line: int
    fields: Mapping[str, Any]


def level_name(key: str) -> str:
    """A name that a design may have, from any word."""
    return re.sub(r"\W+", "_", key).strip("_") or "level"


def objects(source: Source) -> Iterator[Row]:
    """One JSON object per line."""
    for number, line in enumerate(source.text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise source.error(number, f"is no JSON ({getattr(error, 'msg', error)}).") from None
        if not isinstance(fields, dict):
            raise source.error(number, 'is no JSON object; write one a line, {"item": …, "text": …}.')
        yield Row(number, fields)
