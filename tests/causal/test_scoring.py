"""Scores of texts by word lists."""

from __future__ import annotations

import numpy as np
import pytest

from neurosae.causal.scoring import Lexicon, count_words, score_texts
from neurosae.errors import DataError

LEXICON = Lexicon(("glad", "happy"), ("sad", "can't"))


def test_words_are_counted_whole_and_in_lower_case():
    """Parts of words do not count, capitals and typographic apostrophes do."""
    found = count_words(["Gladly GLAD, glad-hearted; she can\u2019t.", "unhappy sadness", ""], LEXICON)
    assert found.plus.tolist() == [2, 0, 0]
    assert found.minus.tolist() == [1, 0, 0]
    assert found.words.tolist() == [6, 2, 0]


@pytest.mark.parametrize("score", ["balance", "log_odds"])
def test_scores_change_sign_with_the_lists(score):
    """Exchanged lists give the opposite score, a text without listed words gives 0."""
    texts = ["happy glad sad", "so sad", "nothing", ""]
    found = score_texts(texts, LEXICON, score)
    np.testing.assert_allclose(score_texts(texts, Lexicon(LEXICON.minus, LEXICON.plus), score), -found)
    assert found[0] > 0 > found[1]
    assert found[2:].tolist() == [0, 0]


def test_balance_is_per_hundred_words():
    """One of four words: 25."""
    assert score_texts(["a glad old dog"], LEXICON).tolist() == [25.0]


def test_unknown_scores_are_refused():
    """The nearest name is shown."""
    with pytest.raises(DataError, match="Did you mean 'balance'"):
        score_texts(["a"], LEXICON, "balanced")
