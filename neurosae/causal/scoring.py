"""What a written text is like, by counting words of two lists; no model reads it.

A lexicon knows neither negation nor irony ("not happy" counts as happy), and it counts what it lists alone. It is the
same for steered and plain text and for control features, so what it misses is missed in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from neurosae.errors import choose

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")


class Lexicon(NamedTuple):
    """Words that count for either side, lower case, whole words as they stand (no stemming)."""

    plus: tuple[str, ...]
    minus: tuple[str, ...]


class Counts(NamedTuple):
    """Counts of words per text, int arrays (n,)."""

    plus: np.ndarray
    minus: np.ndarray
    words: np.ndarray


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; what stands between apostrophes stays together.

    Examples
    --------
    >>> words_of("Happy? She wasn't -- not 2 bits!")
    ['happy', 'she', "wasn't", 'not', 'bits']
    """
    return [word.lower().replace("\u2019", "'") for word in WORD.findall(text)]


def count_words(texts: Sequence[str], lexicon: Lexicon) -> Counts:
    """How many words of each list stand in every text, and how many words there are.

    Examples
    --------
    >>> found = count_words(["A happy, happy end.", "sad"], Lexicon(("happy",), ("sad",)))
    >>> found.plus.tolist(), found.minus.tolist(), found.words.tolist()
    ([2, 0], [0, 1], [4, 1])
    """
    plus, minus = frozenset(lexicon.plus), frozenset(lexicon.minus)
    rows = []
    for text in texts:
        own = words_of(text)
        rows.append((sum(w in plus for w in own), sum(w in minus for w in own), len(own)))
    return Counts(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)


def balance(counts: Counts) -> np.ndarray:
    """Words of the + list minus words of the - list, per 100 words; 0 for a text without words."""
    return 100.0 * (counts.plus - counts.minus) / np.maximum(counts.words, 1)


def log_odds(counts: Counts) -> np.ndarray:
    """log((n_plus + 1/2) / (n_minus + 1/2)) of every text; 0 where it has as many of both, or none."""
    return np.log((counts.plus + 0.5) / (counts.minus + 0.5))


SCORES: Mapping[str, Callable[[Counts], np.ndarray]] = {"balance": balance, "log_odds": log_odds}
"""Ways to score a written text."""
UNITS = {"balance": "words per 100", "log_odds": "log odds", "next_word": "log odds of the next word"}


def score_texts(texts: Sequence[str], lexicon: Lexicon, score: str = "balance") -> np.ndarray:
    """Score of every text, float64 (n,): positive where words of the + list prevail.

    Parameters
    ----------
    score : `balance`, the difference of the counts per 100 words; `log_odds`, log of their ratio with half a word
        added to both, so that a text without such words scores 0

    Examples
    --------
    >>> lexicon = Lexicon(("happy", "glad"), ("sad",))
    >>> score_texts(["So happy and glad.", "A sad day, a sad one.", "Nothing."], lexicon).round(1).tolist()
    [50.0, -33.3, 0.0]
    >>> score_texts(["So happy and glad.", "Nothing."], lexicon, "log_odds").round(2).tolist()
    [1.61, 0.0]
    """
    return choose("score", score, SCORES)(count_words(texts, lexicon))
