"""Named spans of a text: slots, words before and after them, spans from slot to slot, words counted from either end.

All spans are characters, half-open. A word is what stands between blanks, punctuation included: the token that
predicts a slot is the last token before it, and after "dogs," that token is the comma.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from neurosae.spec.design import Region

Span = tuple[int, int]


def words(text: str) -> list[Span]:
    """Spans of the words of a text.

    Examples
    --------
    >>> words("The dogs, then")
    [(0, 3), (4, 9), (10, 14)]
    """
    return [found.span() for found in re.finditer(r"\S+", text)]


def find_region(region: Region, text: str, slots: Mapping[str, Span]) -> Span | None:
    """Where a region lies in a text, or None where the text lacks it.

    Parameters
    ----------
    region : one entry under `regions:`
    text : the full text
    slots : character span of every slot of the text

    Examples
    --------
    >>> text, slots = "The red boat and nothing more", {"first": (4, 7), "probe": (13, 16)}
    >>> start, end = find_region(Region(before="probe"), text, slots)
    >>> text[start:end]
    'boat'
    >>> start, end = find_region(Region(after="probe", n=2), text, slots)
    >>> text[start:end]
    'nothing more'
    >>> find_region(Region(before="verb"), text, slots) is None
    True
    """
    if region.before is not None:
        return _before(text, slots.get(region.before))
    if region.after is not None:
        return _after(text, slots.get(region.after), region.n or 1)
    if region.span is not None:
        ends = [slots.get(name) for name in region.span]
        found = [end for end in ends if end is not None]
        return (min(a for a, _ in found), max(b for _, b in found)) if len(found) == 2 else None
    return _counted(text, region.words or (0, -1))


def _before(text: str, slot: Span | None) -> Span | None:
    found = [] if slot is None else words(text[: slot[0]])
    return found[-1] if found else None


def _after(text: str, slot: Span | None, n: int) -> Span | None:
    if slot is None:
        return None
    found = [word for word in words(text) if word[0] >= slot[1]]
    return (found[0][0], found[n - 1][1]) if len(found) >= n else None


def _counted(text: str, pair: tuple[int, int]) -> Span | None:
    found = words(text)
    first, last = (i + len(found) if i < 0 else i for i in pair)
    return (found[first][0], found[last][1]) if 0 <= first <= last < len(found) else None
