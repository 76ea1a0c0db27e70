"""Faults that spoil a dictionary, or what a model writes, without a word: a test that fails without each guard."""

from __future__ import annotations

import dataclasses

import pytest
import tokenizers

from neurosae.dictionary.texts import sample_texts, special_ids
from neurosae.extraction.tokens import byte_tokenizer, make_tokenizer, tokenizer_in_memory


@pytest.mark.parametrize("ends", [7, [7, 9]])
def test_a_text_ends_where_the_settings_say(toy, ends):
    """A model may end its texts with an id that its tokenizer does not call special: its settings know."""
    facts = toy.provenance | {"config": {"eos_token_id": ends}}
    assert 7 in special_ids(dataclasses.replace(toy, provenance=facts))
    assert 7 not in special_ids(toy)


def test_a_text_ends_at_every_special_of_the_tokenizer(toy):
    """Not at BOS alone: the end sign of a chat is no text."""
    backend = tokenizers.Tokenizer.from_str(byte_tokenizer().backend.to_str())
    backend.add_special_tokens(["<end>"])
    assert 257 in special_ids(dataclasses.replace(toy, tokens=make_tokenizer(backend, bos=False)))


def test_a_tokenizer_without_a_fast_version_ends_texts_too(toy):
    """Ids 0 to 2 are its pad, end and unknown sign: none of them is in what is written, and something is."""
    from transformers import ByT5Tokenizer

    model = dataclasses.replace(toy, tokens=tokenizer_in_memory(ByT5Tokenizer()))
    assert {0, 1, 2} <= special_ids(model)
    assert 65 not in special_ids(model)
    texts = sample_texts(model, 60, seed=1)
    assert texts
    assert not any("</s>" in text or "<pad>" in text for text in texts)
