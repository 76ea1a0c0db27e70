"""Examples: the strongest found by looking at everything, contexts counted once, windows that are the text."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# (wrong arguments are given on purpose)

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.examine.examples import Show, distributions, examples_of, top_examples
from neurosae.examine.seen import cut_text, text_maxima, watch
from neurosae.extraction.model import hooked_pass
from neurosae.extraction.tokens import encode

FEATURES = [13, 24, 30]


def dense(model, dictionary, texts):
    """Activations of every token of short texts, one text at a time, specials dropped: the slow way."""
    out = []
    for text in texts:
        ids = encode(model.tokens, [text])[0].ids[None]
        cols = np.arange(1, ids.shape[1])
        x = hooked_pass(model, ids, np.ones_like(ids), hooks=[dictionary.hook], rows=0 * cols, cols=cols)
        out.append(dictionary.encode(x[dictionary.hook]).toarray())
    return out


def test_watch_agrees_with_single_texts(toy, words, made_dictionary):
    """Rows ascend by text and token whatever the batches were; BOS is none of them."""
    dictionary, few = made_dictionary(1), [w[:40] for w in words]
    texts = few * 5  # more than one batch, each of texts of similar length
    seen = watch(toy, {"a": dictionary}, texts, features={"a": FEATURES})["a"]
    slow = np.concatenate(dense(toy, dictionary, few) * 5)
    assert_allclose(seen.codes.toarray(), slow[:, FEATURES], atol=1e-4)
    assert seen.ids.tolist() == [int(i) for t in texts for i in encode(toy.tokens, [t])[0].ids[1:]]
    assert 256 not in seen.ids
    most = text_maxima(seen, len(texts)).toarray()
    assert_allclose(most[:40], [one[:, FEATURES].max(axis=0) for one in dense(toy, dictionary, few)], atol=1e-4)


def test_top_examples_recover_the_strongest(toy, words, made_dictionary):
    """One per text, by falling activation; value, place and window are those of the slow way."""
    dictionary, texts = made_dictionary(1), [w[:40] for w in words]
    slow = dense(toy, dictionary, texts)
    found = top_examples(toy, {"a": dictionary}, texts, features=FEATURES, settings={"top": 4, "window": 5})
    for feature in FEATURES:
        top = found[(found["feature"] == feature) & (found["kind"] == "top")]
        best = sorted(((one[:, feature].max() for one in slow)), reverse=True)
        assert top["value"].is_monotonic_decreasing
        assert_allclose(top["value"].iloc[0], best[0], atol=1e-4)
        assert top["text"].is_unique
        for _, row in top.iterrows():
            values, i = slow[row["text"]][:, feature], row["token_index"]
            assert_allclose(row["value"], values[i], atol=1e-4)
            a = max(0, i - 5)
            assert row["at"] == i - a
            assert_allclose(row["values"], values[a : i + 6], atol=1e-3)
            assert "".join(row["pieces"]) == texts[row["text"]][a : i + 6]


def test_top_examples_count_a_context_once(toy, made_dictionary):
    """Texts that begin alike give one example, which says how many they are."""
    texts = ["red boat one", "red boat two", "red boat six", "old"]
    found = top_examples(toy, made_dictionary(1), texts, features=list(range(64)), settings={"top": 9, "random": 0})
    top = found[found["kind"] == "top"]
    early = top[(top["token_index"] < 9) & (top["text"] != 3)]
    assert len(early)
    assert set(early["n_same"]) <= {1, 2, 3}
    assert (early["n_same"] == 3).any()
    for _, rows in early.groupby("feature"):
        beginnings = [texts[t][: i + 1] for t, i in zip(rows["text"], rows["token_index"], strict=True)]
        assert len(set(beginnings)) == len(beginnings)


def test_examples_of_levels_and_quantiles(toy, words, made_dictionary):
    """Every level has its own; quantiles climb; silent tokens are silent, hard ones share the token."""
    dictionary, texts = made_dictionary(1), [w[:40] for w in words]
    levels = pd.DataFrame({"half": pd.Categorical(["b" if i % 2 else "a" for i in range(len(texts))], ["b", "a"])})
    settings = {"zero": 5, "hard": 5, "random": 4, "per_level": 2}
    found = top_examples(toy, dictionary, texts, features=[24], levels=levels, settings=settings)
    level = found[found["kind"] == "level"]
    assert level["level"].tolist() == ["b", "b", "a", "a"]
    assert (levels["half"].astype(str).to_numpy()[level["text"]] == level["level"]).all()
    assert found.loc[found["kind"] == "quantile", "value"].is_monotonic_increasing
    assert (found.loc[found["kind"].isin(["zero", "hard"]), "value"] == 0).all()
    assert (found.loc[found["kind"] == "random", "value"] > 0).all()
    assert set(found["kind"]) == {"top", "level", "quantile", "random", "zero", "hard"}
    again = top_examples(toy, dictionary, texts, features=[24], levels=levels, settings=settings)
    pd.testing.assert_frame_equal(found, again)


def test_silent_examples_are_drawn_by_the_seed_and_hard_ones_fire_elsewhere(toy, words, made_dictionary):
    """Zero and hard examples have no activation; the token of a hard one drives the feature in another place."""
    dictionary, texts = made_dictionary(1), [w[:40] for w in words]
    ask = {"top": 0, "quantiles": (), "random": 3, "zero": 6, "hard": 6}
    found, again, other = (
        top_examples(toy, dictionary, texts, features=FEATURES, settings=ask | {"seed": seed}) for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(found, again)
    for kind in ("random", "zero", "hard"):
        places = [set(t.loc[t["kind"] == kind, ["feature", "text", "token_index"]].itertuples(index=False, name=None))
                  for t in (found, other)]  # fmt: skip
        assert places[0] != places[1]
    seen = watch(toy, {"a": dictionary}, texts, features={"a": FEATURES})["a"]
    row_of = {pair: row for row, pair in enumerate(zip(seen.text.tolist(), seen.token_index.tolist(), strict=True))}
    n_never = 0
    for feature in FEATURES:
        rows = seen.column(feature)[0]
        own = found[found["feature"] == feature].groupby("kind")
        at = {kind: [row_of[pair] for pair in zip(t["text"], t["token_index"], strict=True)] for kind, t in own}
        assert not set(at["zero"] + at["hard"]) & set(rows.tolist())
        assert np.isin(seen.ids[at["hard"]], seen.ids[rows]).all()
        n_never += int((~np.isin(seen.ids[np.setdiff1d(np.arange(len(seen.ids)), rows)], seen.ids[rows])).sum())
    assert n_never  # there are silent tokens that would be no hard examples


def test_distributions_agree_with_counts(toy, words, made_dictionary):
    """Density and quantiles over all tokens and over those of a level; the histogram counts every active token."""
    dictionary, texts = made_dictionary(1), [w[:40] for w in words]
    levels = pd.DataFrame({"half": ["b" if i % 2 else "a" for i in range(len(texts))]})
    seen = watch(toy, {"a": dictionary}, texts, features={"a": FEATURES})["a"]
    table = distributions(seen, levels=levels)
    slow = dense(toy, dictionary, texts)
    every = np.concatenate(slow)[:, 24]
    row = table[(table["feature"] == 24) & table["factor"].isna()].iloc[0]
    assert row["n_active"] == (every > 0).sum() == sum(row["counts"])
    assert_allclose([row["density"], row["p90"]], [(every > 0).mean(), np.quantile(every[every > 0], 0.9)], rtol=1e-4)
    odd = np.concatenate(slow[1::2])[:, 24]
    row = table[(table["feature"] == 24) & (table["level"] == "b")].iloc[0]
    assert (row["n_tokens"], row["n_active"]) == (len(odd), (odd > 0).sum())


def test_cut_text_loses_nothing(toy):
    """Whatever characters and blanks: the pieces are the text, one per token."""
    for text in ("a b  c", "é ü  \n", "<b>&amp;\u202e</b>", "🙂"):
        pieces = cut_text(toy.tokens, text)
        assert "".join(pieces) == text
        assert len(pieces) == len(encode(toy.tokens, [text])[0].ids) - 1


def test_long_texts_are_shown_across_contexts(toy, made_dictionary):
    """A text longer than the context goes on; its tokens keep their places in the text."""
    text = "the dog saw a red box near old trees and then ran home again slowly"
    seen = watch(toy, {"a": made_dictionary(1)}, [text], features={"a": [13]})["a"]
    found = examples_of(seen, [text], toy.tokens, show=Show(top=1, window=3))
    assert seen.start.max() > 0
    for _, row in found.iterrows():
        assert row["pieces"][row["at"]] == text[row["token_index"]]


def test_top_examples_refuses(toy, made_dictionary):
    """Unknown features, settings and sizes."""
    cases: tuple[tuple[Any, str], ...] = (
        ({"features": [64]}, "no feature 64"),
        ({"features": []}, "no feature is named"),
        ({"features": [1], "names": ["a", "b"]}, "one for each"),
        ({"features": [1], "settings": {"tops": 3}}, "known: top"),
        ({"features": [1], "settings": {"quantiles": [1.5]}}, "between 0 and 1"),
    )
    for wrong, said in cases:
        with pytest.raises(DataError, match=said):
            top_examples(toy, made_dictionary(1), ["abc"], **wrong)
