"""Words for messages: what a YAML value is, and why it is not the word or name that was wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping

Where = tuple[str | int, ...]
"""A place in a file: the keys, and numbers of list entries, that lead to it."""

Problem = tuple[Where, str]
"""A place and one sentence: what is wrong there, and what would be right."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""Characters that no word or text may hold: controls, line separators, byte-order marks, halves of pairs."""


def short(text: str, limit: int = 60) -> str:
    """A text on one line, cut where it gets long.

    Examples
    --------
    >>> short("one  two", 5)
    'one …'
    """
    line = UNPRINTABLE.sub(lambda bad: f"\\x{ord(bad[0]):02x}", " ".join(text[: 20 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def place(where: Where) -> str:
    """A place as it is shown: keys joined by dots.

    Examples
    --------
    >>> place(("tests", "number", "region", 1))
    'tests.number.region.1'
    """
    return ".".join(short(str(part)) or "''" for part in where) or "file"


def describe(value: object) -> str:
    """What a YAML value is.

    Examples
    --------
    >>> describe(None), describe([1]), describe(True), describe(1812)
    ('empty', 'a list', 'true', 'the number 1812')
    """
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the word '{short(value)}'" if value.strip() else "an empty text"
    if isinstance(value, list | tuple):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def text_problem(value: object) -> str | None:
    """Why a value is no word or text, or None when it is one.

    Examples
    --------
    >>> text_problem(1812)
    'is read as the number 1812, not as a word; put it in quotes.'
    """
    if isinstance(value, bool | int | float):
        return f"is read as {describe(value)}, not as a word; put it in quotes."
    if value is None:
        return "is empty; write a word (the word null itself needs quotes)."
    if not isinstance(value, str):
        return f"is {describe(value)}; write one word or text."
    if not value.strip():
        return "is an empty text; write at least one word."
    if "\n" in value:
        return f"'{short(value)}' runs over several lines; write it on one (or after >-, without an empty line)."
    if bad := UNPRINTABLE.search(value):
        return f"'{short(value)}' holds the control character U+{ord(bad[0]):04X}; remove it."
    if value != value.strip():
        return f"'{short(value)}' begins or ends with a blank; remove it."
    return None


def name_problem(value: object) -> str | None:
    """Why a value cannot name a column, or None.

    Examples
    --------
    >>> name_problem("pre verb")
    "'pre verb' is no name; use letters, digits and _, a letter first."
    """
    if (wrong := text_problem(value)) or str(value).isidentifier():
        return wrong
    return f"'{short(str(value))}' is no name; use letters, digits and _, a letter first."


def key_problem(value: object) -> str | None:
    """Why a value cannot be an item, a frame or a level, or None.

    Examples
    --------
    >>> key_problem("his/her")
    "'his/her' holds a /, which separates items, frames and levels; leave it out."
    """
    if (wrong := text_problem(value)) or "/" not in str(value):
        return wrong
    return f"'{short(str(value))}' holds a /, which separates items, frames and levels; leave it out."


def file_problem(value: object) -> str | None:
    """Why a value cannot become the name of a file, or None.

    Examples
    --------
    >>> file_problem("../number")
    "'../number' becomes a file name; use up to 100 letters, digits, _ and -, a letter or digit first."
    """
    if (wrong := text_problem(value)) or re.fullmatch(r"[^\W_][\w-]{0,99}", str(value)):
        return wrong
    return (
        f"'{short(str(value))}' becomes a file name; use up to 100 letters, digits, _ and -, a letter or digit first."
    )
