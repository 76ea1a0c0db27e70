"""Streaming: the codes of every token of running text, once, in known places, and never those of specials."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_array_equal

from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import make_contexts
from neurosae.errors import DataError, ModelError
from neurosae.examine.stream import DOCUMENTS, Tokens, stream_text


def gather(model, dictionaries, texts, **settings):
    """Everything that a stream gives, ordered by text and token: {site: (codes, tokens)}, and its length."""
    found: dict[str, list] = {site: [] for site in dictionaries}
    n = stream_text(model, dictionaries, texts, take=lambda site, c, t: found[site].append((c, t)), **settings)
    out = {}
    for site, parts in found.items():
        tokens = Tokens(*(np.concatenate(column) for column in zip(*(t for _, t in parts), strict=True)))
        order = np.lexsort((tokens.token_index, tokens.text))
        codes = sp.csr_matrix(sp.vstack([c for c, _ in parts]))[order]
        out[site] = codes, Tokens(*(column[order] for column in tokens))
    return out, n


def test_stream_agrees_with_single_texts(toy, words, made_dictionary):
    """Every token of every text once, with the codes of a forward pass of its own context."""
    dictionaries = {"one": made_dictionary(0), "two": made_dictionary(1), "again": made_dictionary(1, seed=2)}
    found, n = gather(toy, dictionaries, words, batch_tokens=256)
    assert n == sum(len(text.encode()) for text in words)
    for site, dictionary in dictionaries.items():
        codes, tokens = found[site]
        row = 0
        for number, text in enumerate(words):
            contexts = make_contexts(toy.tokens, [text], length=48)
            x = context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[dictionary.hook])[dictionary.hook]
            wanted, got = dictionary.encode(x).toarray(), codes[row : row + len(x)].toarray()
            np.testing.assert_allclose(got, wanted, atol=1e-4)
            assert_array_equal(tokens.text[row : row + len(x)], number)
            assert_array_equal(tokens.token_index[row : row + len(x)], np.arange(len(x)))
            assert toy.tokens.backend.decode(tokens.ids[row : row + len(x)].tolist()) == text
            row += len(x)


def test_rows_of_a_batch_ascend(toy, words, made_dictionary):
    """Accumulators may rely on the order of rows inside a batch."""

    def take(site, codes, tokens):
        place = tokens.text * 1000 + tokens.token_index
        assert (np.diff(place) > 0).all()
        assert codes.shape[0] == len(tokens.text) == len(tokens.ids) == len(tokens.start)

    stream_text(toy, {"a": made_dictionary()}, words, take=take, batch_tokens=128)


@pytest.mark.parametrize("n_tokens", [1, 47, 48, 300])
def test_stream_stops_where_it_is_told(toy, words, made_dictionary, *, n_tokens):
    """The first tokens in the order of the texts, exactly that many, with the codes that they have anyway."""
    dictionaries = {"a": made_dictionary()}
    whole, _ = gather(toy, dictionaries, words)
    part, n = gather(toy, dictionaries, words, n_tokens=n_tokens)
    assert n == n_tokens
    codes, tokens = part["a"]
    assert_array_equal(tokens.ids, whole["a"][1].ids[:n_tokens])
    np.testing.assert_allclose(codes.toarray(), whole["a"][0][:n_tokens].toarray(), atol=1e-4)


def test_contexts_of_a_long_text_say_where_they_begin(toy, made_dictionary):
    """A text of 100 bytes fills contexts of 47 of them and BOS; `start` is the first token that the model saw."""
    found, _ = gather(toy, {"a": made_dictionary()}, ["a" * 100])
    assert_array_equal(np.unique(found["a"][1].start), [0, 47, 94])
    assert_array_equal(found["a"][1].token_index, np.arange(100))


def test_specials_are_never_rows(toy, words, made_dictionary):
    """Pitfall: BOS, whose norm is a multiple of that of other tokens, swamps densities and top examples."""
    found, _ = gather(toy, {"a": made_dictionary()}, words)
    assert toy.tokens.prefix == (256,)
    assert 256 not in found["a"][1].ids


def test_dictionaries_decide_about_bos(toy, words, made_dictionary):
    """A dictionary trained without BOS is not given one; two that disagree are refused."""
    open_rule = replace(toy, tokens=replace(toy.tokens, rule="auto"))
    without, with_ = (made_dictionary(metadata={"prepend_bos": bos}) for bos in (False, True))
    plain = replace(toy, tokens=replace(toy.tokens, prefix=()))
    wanted, got = (gather(m, {"a": without}, words)[0]["a"][0] for m in (plain, open_rule))
    np.testing.assert_allclose(got.toarray(), wanted.toarray(), atol=1e-5)
    with pytest.raises(ModelError, match="disagree about BOS"):
        gather(open_rule, {"a": without, "b": with_}, words)


def test_texts_are_read_as_they_are_needed(toy, words, made_dictionary):
    """An iterator is not exhausted when `n_tokens` is reached in its first portion."""
    read = []

    def endless():
        while True:
            read.append(len(read))
            yield words[len(read) % len(words)]

    assert stream_text(toy, {"a": made_dictionary()}, endless(), take=lambda *_: None, n_tokens=600) == 600
    assert len(read) <= 512


def test_empty_texts_keep_their_number(toy, made_dictionary):
    """A text without tokens gives no row and moves no number."""
    found, n = gather(toy, {"a": made_dictionary()}, ["ab", "", "c"])
    assert n == 3
    assert_array_equal(found["a"][1].text, [0, 0, 2])


def test_stream_refuses(toy, made_dictionary):
    """One string in place of a list, no words, a dictionary of another width, and a model that reads no text."""
    dictionaries = {"a": made_dictionary()}
    with pytest.raises(DataError, match=r"one string; give a list"):
        gather(toy, dictionaries, "a text")
    with pytest.raises(DataError, match="hold no token"):
        stream_text(toy, dictionaries, [""], take=lambda *_: None)
    with pytest.raises(ModelError, match="no tokenizer"):
        gather(replace(toy, tokens=None), dictionaries, ["a"])
    wide = replace(dictionaries["a"], W_enc=torch.randn(64, 8), W_dec=torch.randn(64, 8), b_dec=torch.zeros(8))
    with pytest.raises(ModelError, match="vectors of length 8"):
        gather(toy, {"a": wide}, ["a"])


def test_texts_are_numbered_beyond_the_first_portion(toy, made_dictionary):
    """Documents are packed some hundred at a time; their numbers go on."""
    found, n = gather(toy, {"a": made_dictionary()}, ["a"] * (DOCUMENTS + 8), n_tokens=DOCUMENTS + 5)
    assert n == DOCUMENTS + 5
    assert_array_equal(found["a"][1].text, np.arange(DOCUMENTS + 5))
