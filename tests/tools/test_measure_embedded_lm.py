"""The tool that measures the embedded model: log probabilities, statistics over items, texts, the card."""

from __future__ import annotations

import doctest
import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from numpy.testing import assert_allclose
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

TOOLS = Path(__file__).resolve().parents[2] / "tools"
WORDS = {
    "number": {"dog": "dogs", "cat": "cats"},
    "gender": {"male": ["king", "boy"], "female": ["queen", "girl"]},
    "article": {"an": ["apple", "egg"], "a": ["dog", "cat"]},
    "attractor": [["dog", "dogs", "house", "houses"], ["cat", "cats", "tree", "trees"]],
}


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(TOOLS), *sys.path])
        yield importlib.import_module("measure_embedded_lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random GPT-2 whose tokenizer knows bytes and ` was`, so that words have several tokens."""
    out = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<|endoftext|>", *letters, "Ġw", "as", "Ġwas"]
    merges = [("Ġ", "w"), ("a", "s"), ("Ġw", "as")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(out / "tokenizer.json"))
    torch.manual_seed(0)
    size = {"n_positions": 700, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(pieces), initializer_range=0.5, **size)).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def scorer(tool, folder):
    return tool.load_scorer(folder)


def test_log_probs_agrees_with_one_string_at_a_time(tool, scorer):
    """The chain rule written out: the sum of log p of the tokens from the scored character on."""
    strings = [("The dogs near the house were", 23), ("The dog was", 7), ("This is an apple", 0)]
    for (text, start), value in zip(strings, tool.log_probs(scorer, strings), strict=True):
        ids = [0, *scorer.tokenizer.encode(text).ids]
        first = 1 + len(scorer.tokenizer.encode(text[:start]).ids)
        logp = torch.log_softmax(scorer.model(torch.tensor([ids])).logits[0].detach(), -1)
        assert_allclose(value, sum(float(logp[i - 1, ids[i]]) for i in range(first, len(ids))), rtol=1e-5)


def test_log_probs_invariant_to_the_batch(tool, scorer):
    """Neighbours, padding and order of a batch change nothing."""
    strings = [(row.prefix + row.right, len(row.prefix)) for row in tool.build_pairs(WORDS).itertuples()]
    alone = tool.log_probs(scorer, strings, batch_tokens=1)
    assert_allclose(tool.log_probs(scorer, strings[::-1])[::-1], alone, rtol=1e-5)


def test_encode_refuses_a_token_across_the_start(tool, scorer):
    """Half a token has no probability."""
    with pytest.raises(ValueError, match=r"token 'Ġwas' of 'The dog was' straddles character 9"):
        tool.encode(scorer, "The dog was", 9)


def test_sign_flip_p_agrees_with_scipy(tool):
    """All 512 flips of 9 items, enumerated by scipy."""
    values = np.random.default_rng(1).normal(0.4, 1, 9)
    exact = scipy.stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    p, how = tool.sign_flip_p(values)
    assert how == "exact"
    assert_allclose(p, exact.pvalue)


def test_sign_flip_p_recovers_the_t_test_in_large_samples(tool):
    """48 normal values: the flips and the t test agree to their simulation error."""
    values = np.random.default_rng(2).normal(0.25, 1, 48)
    p, how = tool.sign_flip_p(values, seed=3)
    assert how == "10000 flips"
    assert_allclose(p, scipy.stats.ttest_1samp(values, 0).pvalue, atol=0.02)


def test_over_items_agrees_with_scipy(tool):
    """t, its p, and the exact interval of 46 of 48."""
    values = np.random.default_rng(4).normal(0.5, 1, 48)
    row = tool.over_items(values, np.arange(48) < 46)
    wanted = scipy.stats.ttest_1samp(values, 0)
    assert_allclose([row["t"], row["p_t"]], [wanted.statistic, wanted.pvalue], rtol=1e-10)
    limits = [scipy.stats.beta.ppf(0.025, 46, 3), scipy.stats.beta.ppf(0.975, 47, 2)]
    assert_allclose([row["ci_low"], row["ci_high"]], limits, rtol=1e-8)


def test_summarize_recovers_planted_effects(tool):
    """Toward `was`: +2 for a singular subject, +3 for a singular attractor, +0.5 for both."""
    pairs = tool.build_pairs(yaml.safe_load((TOOLS / "embedded_lm_items.yaml").read_text()))
    effect = {"sg.sg": 5.5, "sg.pl": 2.0, "pl.sg": -3.0, "pl.pl": 0.0}
    noise = np.random.default_rng(5).normal(0, 0.1, len(pairs))
    contrasts, cells = tool.summarize(pairs, pairs["cell"].map(effect).fillna(1.0).to_numpy() + noise)
    means = {row["contrast"]: row["mean"] for row in contrasts if "effect" in row["contrast"]}
    assert_allclose(list(means.values()), [2.25, 3.25, 0.5], atol=0.1)
    assert {row["cell"]: row["share_right"] for row in cells}["pl.sg"] == 0
    assert next(row for row in contrasts if row["contrast"] == tool.ATTRACTOR)["n_right"] < 48


def test_summarize_controls_items_right_in_one_form_only(tool):
    """A model that always says `was` is right about every singular and about no item."""
    pairs = tool.build_pairs(WORDS)
    contrasts, cells = tool.summarize(
        pairs, np.where(pairs["cell"] == "pl", -1.0, 1.5 + 0.1 * (np.arange(len(pairs)) % 7))
    )
    number = next(row for row in contrasts if row["contrast"] == "number: was/were")
    assert number["mean"] > 0
    assert (number["n_right"], number["wrong"]) == (0, ["dog", "cat"])
    assert next(row for row in cells if row["cell"] == "sg")["share_right"] == 1


def test_items_suffice_and_never_repeat():
    """At least 40 items for each claim, and no noun in two items of a contrast."""
    items = yaml.safe_load((TOOLS / "embedded_lm_items.yaml").read_text())
    groups = [
        [word for pair in items["number"].items() for word in pair],
        *([w for part in items[key].values() for w in part] for key in ("gender", "article")),
        [word for row in items["attractor"] for word in row],
    ]
    assert max(max(Counter(group).values()) for group in groups) == 1
    assert [len(groups[0]) // 2, len(groups[1]), len(groups[2]), len(groups[3]) // 4] == [52, 48, 48, 48]


def test_pieces_invariant_text(tool):
    """Nothing but blanks is lost, and no piece is longer than the limit."""
    text = "A short one. " + "word " * 40 + "end.\nShe said 'No!' and went. " * 5 + "x" * 130
    cut = tool.pieces(text, 50)
    assert max(map(len, cut)) <= 50
    assert "".join("".join(cut).split()) == "".join(text.split())


def test_measure_texts_recovers_a_uniform_model(tool, scorer, tmp_path):
    """With all weights zero every token costs log(vocabulary) nats; characters cost their tokens."""
    (tmp_path / "tale.valid.txt").write_text("One came home.\nTwo sang.\n\nThree slept.\n")
    with torch.no_grad():
        flat = GPT2LMHeadModel(scorer.model.config)
        flat.apply(lambda module: [p.zero_() for p in module.parameters()])
    uniform = tool.Scorer("uniform", flat.eval(), scorer.tokenizer, 0, 700)
    row, other = tool.measure_texts([uniform, scorer], [tmp_path / "tale.valid.txt"], characters=1000)
    assert_allclose(row["nats_per_token"], np.log(scorer.model.config.vocab_size), rtol=1e-5)
    assert_allclose(row["bits_per_character"] * row["n_characters"], row["n_tokens"] * np.log2(260), rtol=1e-5)
    assert_allclose(other["difference"], other["bits_per_character"] - row["bits_per_character"], rtol=1e-10)


def test_main_recovers_a_card(tool, folder, tmp_path):
    """One call writes both forms; two equal models differ by nothing."""
    (tmp_path / "tale.txt").write_text("One came home. Two sang.\n")
    (tmp_path / "items.yaml").write_text(yaml.safe_dump(WORDS))
    out = [str(tmp_path / "card.json"), str(tmp_path / "card.md")]
    arguments = ["--texts", str(tmp_path / "tale.txt"), "--items", str(tmp_path / "items.yaml"), "--out", *out]
    tool.main([str(folder), "--compare", str(folder), *arguments])
    card = json.loads(Path(out[0]).read_text())
    assert len(card["contrasts"]) == 2 * 13
    assert card["texts"][1]["difference"] == 0
    assert Path(out[1]).read_text() == tool.as_text(card)


def test_docstrings_agree_with_their_examples(tool):
    """The tools are no part of the package, so their doctests run here."""
    failed, tried = doctest.testmod(tool)
    assert (failed, tried > 0) == (0, True)


def test_load_scorer_refuses_a_folder_without_a_model(tool, tmp_path):
    """The message names what is missing."""
    with pytest.raises(SystemExit, match=r"config\.json and tokenizer\.json not found; give a model folder"):
        tool.load_scorer(tmp_path)


def test_differences_recovers_known_behaviour(tool, shared_data):
    """A trained model, words of several tokens: was - were is +4.39 after singulars, -1.20 after plurals."""
    scorer = tool.load_scorer(shared_data("models/stories260K"))
    nouns = "dog cat bird boy girl bear frog ball car toy tree flower".split()
    pairs = tool.build_pairs({**WORDS, "number": {noun: f"{noun}s" for noun in nouns} | {"bunny": "", "box": ""}})
    pairs = pairs[(pairs["contrast"] == "number: was/were") & (pairs["prefix"] != "The ")]
    means = pairs.assign(ld=tool.differences(scorer, pairs)).groupby("cell")["ld"].mean()
    assert_allclose([means["sg"], -means["pl"]], [4.39, -1.20], atol=0.005)
