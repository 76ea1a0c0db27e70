"""What a tokenizer makes of regions and targets is said before a model reads them."""

from __future__ import annotations

import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers

from neurosae.design.token_checks import growing_problem, token_numbers, unequal_lengths
from neurosae.extraction.tokens import make_tokenizer


def by_words():
    """A tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({"?": 0, "the": 1, "dogs": 2, "ran": 3}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return make_tokenizer(made)


def test_token_numbers_refuses_straddled_borders_and_empty_regions():
    """Each with stimulus and region; a straddling token counts only where that is allowed."""
    stimuli = pd.DataFrame(
        {"text": ["the dogs ran"] * 3, "noun_start": [4, 4, 3], "noun_end": [8, 7, 4]}, index=["whole", "part", "blank"]
    )
    numbers, problems = token_numbers(stimuli, by_words(), regions=("noun",))
    assert numbers["tokens of noun"].fillna(0).tolist() == [1, 0, 0]
    assert [problem.split(":")[0] for problem in problems] == [
        "stimulus 'part', region 'noun'",
        "stimulus 'blank', region 'noun'",
    ]
    assert "straddles the region's border" in problems[0]
    numbers, problems = token_numbers(stimuli[:2], by_words(), regions=("noun",), allow_straddle=True)
    assert numbers["tokens of noun"].tolist() == [1, 1]
    assert not problems


def test_a_maximum_over_regions_of_unequal_length_is_refused():
    """It grows with length; equal distributions of lengths in all conditions are no trouble, nor a text without it."""
    levels = pd.DataFrame({"near": ["sg", "pl"] * 3}, index=list("abcdef"))
    numbers = pd.DataFrame({"tokens of noun": [1.0, 1, 2, 2, None, None]}, index=levels.index)
    ask = {"rule": "max", "factors": ["near"], "regions": ("noun",)}
    assert not growing_problem(levels, numbers, **ask)
    numbers.loc["f"] = 3
    found = growing_problem(levels, numbers, **ask)
    assert found.startswith("max grows with span length, and region 'noun' has different numbers")
    assert "(mean pl 2.00, sg 1.50)" in found
    assert unequal_lengths(numbers["tokens of noun"].dropna(), levels[[]])
    assert not unequal_lengths(numbers["tokens of noun"].iloc[:2], levels[[]])
