"""A bar for whatever takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

PATIENCE = 2.0  # seconds before a bar is drawn

Piece = TypeVar("Piece")


def with_bar(pieces: Iterable[Piece], what: str, *, unit: str = "batch") -> Iterator[Piece]:
    """The pieces of some work, with a bar and a rate on a terminal once it has taken two seconds.

    Examples
    --------
    >>> list(with_bar([1, 2], "read"))
    [1, 2]
    """
    known = list(pieces)
    yield from tqdm(known, desc=what, unit=unit, disable=None, delay=PATIENCE, mininterval=1, leave=False)
