"""The two directions of an effect in words, from its weights: what a contrast below 0 means, and one above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SLOPE, ALL = "slope", "all"
PLAIN = ("with a negative contrast", "with a positive contrast")
FLAT = ("differing between the levels", "differing between the levels")


def direction_words(effect: Any, levels: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """What a feature does whose contrast is -, and one whose contrast is +.

    Parameters
    ----------
    effect : as written under `effects:`
    levels : mapping from factor to its levels in rising order (of their `values:` where they have any)

    Examples
    --------
    >>> levels = {"number": ["sg", "pl"], "load": ["low", "mid", "high"], "near": ["sg", "pl"]}
    >>> direction_words({"number": {"pl": 1, "sg": -1}}, levels)[1]
    'more active for pl than for sg'
    >>> direction_words({"load": "linear"}, levels)
    ('falling from low to high', 'rising from low to high')
    >>> direction_words({"number": {"pl": 1, "sg": -1}, "near": {"pl": 1}}, levels)[0]
    'more active for sg than for pl (at near pl)'
    >>> direction_words({"number": {"pl": 1, "sg": -1}, "near": {"pl": 1, "sg": -1}}, levels)[1]
    'with a larger difference pl − sg at near pl than at sg'
    """
    if not isinstance(effect, Mapping) or not effect or "cells" in effect:
        return PLAIN
    parts = {name: written for name, written in effect.items() if name != SLOPE}
    if ALL in [written for written in parts.values() if isinstance(written, str)]:
        return FLAT
    if SLOPE in effect:
        what = _difference(parts) if parts else "activity"
        return f"with {what} falling with {effect[SLOPE]}", f"with {what} rising with {effect[SLOPE]}"
    fixed = {name: next(iter(written)) for name, written in parts.items() if _single(written)}
    varied = {name: written for name, written in parts.items() if name not in fixed}
    where = f" (at {', '.join(f'{name} {level}' for name, level in fixed.items())})" if fixed else ""
    if len(varied) == 1:
        name, written = next(iter(varied.items()))
        return _one(written, levels.get(name, ()), where)
    return _two(varied, where)


def _single(written: Any) -> bool:
    return isinstance(written, Mapping) and len(written) == 1


def _sides(written: Any) -> tuple[str, str]:
    """Levels with weights below and above 0."""
    low, high = ([str(k) for k, w in written.items() if sign * w > 0] for sign in (-1, 1))
    return " and ".join(low), " and ".join(high)


def _difference(parts: Mapping[str, Any]) -> str:
    written = next(iter(parts.values()))
    if isinstance(written, Mapping) and all(_sides(written)):
        low, high = _sides(written)
        return f"the difference {high} − {low}"
    return "the contrast"


def _one(written: Any, levels: Sequence[str], where: str) -> tuple[str, str]:
    if isinstance(written, str):
        if written == "linear" and len(levels) > 1:
            return f"falling from {levels[0]} to {levels[-1]}{where}", f"rising from {levels[0]} to {levels[-1]}{where}"
        if written == "quadratic" and len(levels) > 1:
            ends = f"{levels[0]} and {levels[-1]}"
            return f"more active between {ends} than there{where}", f"more active at {ends} than between{where}"
        return PLAIN
    low, high = _sides(written)
    if not low or not high:
        return PLAIN
    return f"more active for {low} than for {high}{where}", f"more active for {high} than for {low}{where}"


def _two(varied: Mapping[str, Any], where: str) -> tuple[str, str]:
    names = list(varied)
    if len(names) != 2 or not all(isinstance(w, Mapping) and all(_sides(w)) for w in varied.values()):
        return PLAIN
    (low, high), (less, more) = _sides(varied[names[0]]), _sides(varied[names[1]])
    than = f"difference {high} − {low} at {names[1]}"
    return f"with a larger {than} {less} than at {more}{where}", f"with a larger {than} {more} than at {less}{where}"
