"""Named spans of a text."""

from __future__ import annotations

import pytest

from neurosae.design.regions import find_region, words
from neurosae.spec.design import Region

TEXT = "The two words were boat, red and nothing more"
SLOTS = {"second": (19, 23), "first": (25, 28), "probe": (29, 32)}


@pytest.mark.parametrize(
    ("region", "found"),
    [
        ({"before": "probe"}, "red"),
        ({"before": "first"}, "boat,"),  # the comma predicts what follows it
        ({"after": "second"}, "red"),  # what sticks to a slot belongs to its own word
        ({"after": "probe", "n": 2}, "nothing more"),
        ({"span": ("first", "second")}, "boat, red"),
        ({"words": (0, 0)}, "The"),
        ({"words": (-2, -1)}, "nothing more"),
        ({"words": (0, -1)}, TEXT),
        ({"words": (1, -8)}, "two"),
    ],
)
def test_find_region_recovers_the_named_words(region, found):
    """Every kind of region gives the words that its name says."""
    start, end = find_region(Region(**region), TEXT, SLOTS)
    assert TEXT[start:end] == found


@pytest.mark.parametrize(
    "region", [{"before": "verb"}, {"after": "probe", "n": 3}, {"span": ("first", "verb")}, {"words": (4, 12)}]
)
def test_find_region_is_absent_where_the_text_lacks_it(region):
    """A missing slot or word gives None, never another span."""
    assert find_region(Region(**region), TEXT, SLOTS) is None


def test_before_is_absent_at_the_beginning():
    """Nothing comes before the first word."""
    assert find_region(Region(before="a"), "cats ran", {"a": (0, 4)}) is None


def test_words_agree_with_split():
    """Spans of words are those of str.split, whatever the blanks."""
    text = "  Über  den\u00a0Fluss, ja! 🙂 "
    assert [text[a:b] for a, b in words(text)] == text.split()
