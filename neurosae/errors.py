"""Errors a user can act on: what is wrong, where, and what would be right, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class NeurosaeError(Exception):
    """Base of every error that neurosae raises on purpose; the command line prints it as one line."""


class SpecError(NeurosaeError):
    """A design or analysis file asks for what cannot be done: `file:line: field: what, and what would be right`."""


class DataError(NeurosaeError):
    """Stimuli, responses or results do not fit what was asked of them."""


class ModelError(NeurosaeError):
    """A language model or dictionary is missing, broken, or does not fit its site."""


class StoreError(NeurosaeError):
    """A file or folder cannot be read, written or trusted."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, or None when nothing is close.

    Examples
    --------
    >>> nearest("congruency", ["subject", "congruence"])
    'congruence'
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence about an unknown name: the nearest known one, then all of them.

    Examples
    --------
    >>> unknown("effect", "subjekt", ["subject", "attractor"])
    "unknown effect 'subjekt'. Did you mean 'subject'? Known: subject, attractor."
    """
    names = [name for name in known if name]  # an empty name is one that is left out
    hint = nearest(name, names)
    guess = f" Did you mean '{hint}'?" if hint else ""
    return f"unknown {kind} '{name}'.{guess} Known: {', '.join(names) if names else 'none'}."


def choose(kind: str, name: str, known: Mapping[str, T], *, error: type[NeurosaeError] = DataError) -> T:
    """Look a name up in a registry; an unknown name is refused with the nearest known one.

    Examples
    --------
    >>> choose("statistic", "t", {"t": 1, "mean": 2})
    1
    """
    if name not in known:
        raise error(unknown(kind, name, known))
    return known[name]
