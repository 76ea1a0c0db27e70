"""Faults that spoil a dictionary, or what a model writes, without a word: a test that fails without each guard."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from neurosae.dictionary import alternatives, kinds
from neurosae.dictionary.evaluate import reference_contexts, splice
from neurosae.dictionary.kinds import signed_dictionary
from neurosae.dictionary.load import check_fit
from neurosae.dictionary.pathology import pathology
from neurosae.dictionary.plan import training_key
from neurosae.dictionary.settings import settings_of
from neurosae.dictionary.texts import sample_texts, special_ids
from neurosae.dictionary.train import train_dictionary
from neurosae.errors import ModelError
from neurosae.extraction.model import load_model
from neurosae.extraction.tokens import byte_tokenizer, make_tokenizer, tokenizer_in_memory
from tests.dictionary.conftest import HOOK
from tests.extraction.conftest import save_checkpoint


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


# --- weights as they are, or folded ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offset_checkpoint(tmp_path_factory):
    """A GPT-2 that writes much along the one direction that folding takes out of its stream."""
    folder = save_checkpoint(tmp_path_factory.mktemp("offset"), "gpt2")
    tensors = load_file(folder / "model.safetensors")
    words = tensors["transformer.wte.weight"]
    tensors["transformer.wte.weight"] = words + 0.5 * torch.randn(
        len(words), 1, generator=torch.Generator().manual_seed(0)
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_check_fit_finds_the_weights_that_a_dictionary_was_made_for(offset_checkpoint, toy_texts):
    """Fitted to folded weights and silent about it: refused under raw ones with the remedy, good under folded ones."""
    ones = torch.ones(32, 1)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(32)[:, :31]], dim=1))[0][:, 1:].t()
    made = signed_dictionary("blocks.1.hook_resid_post", basis, basis, center=torch.zeros(32))
    raw, compat = (load_model(offset_checkpoint, device="cpu", weights=mode) for mode in ("raw", "compat"))
    with pytest.raises(ModelError, match=r"unexplained with weights: raw, but 0% with weights: compat; set `model: "):
        check_fit(made, raw, texts=toy_texts)
    assert check_fit(made, compat, texts=toy_texts).fit["fvu_here"] < 0.01


@pytest.mark.parametrize("what", ["weights_hash", "weights", "tokenizer_hash", "dtype", "prefix"])
def test_what_is_trained_or_fitted_is_kept_under_its_model(toy, toy_texts, what):
    """Other weights, the same ones folded, another tokenizer, precision or BOS rule: another dictionary."""
    other = dataclasses.replace(toy, provenance={**toy.provenance, what: "another"})
    if what == "dtype":
        other = dataclasses.replace(toy, dtype="bfloat16")
    if what == "prefix":
        other = dataclasses.replace(toy, tokens=dataclasses.replace(toy.tokens, prefix=()))
    settings = settings_of({"k": 4, "n_tokens": 12_000, "batch": 100}, 16)
    asked = alternatives.asked_of({"kind": "pca"}, 16)
    trained = [training_key(model, toy_texts, hook=HOOK, settings=settings) for model in (toy, other)]
    fitted = [alternatives._facts(model, toy_texts, asked, stimuli=None) for model in (toy, other)]
    assert trained[0] != trained[1]
    assert fitted[0] != fitted[1]


# --- what a hook point does not do ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pots", "blocks.1.attn.hook_hidden_states"])
def test_scores_are_refused_where_nothing_was_replaced(toy, toy_texts, make_dictionary, *, hook):
    """A misspelt or silent hook point would leave the model whole: nothing lost, nothing pathological."""
    made = dataclasses.replace(make_dictionary("topk"), hook=hook)
    contexts = reference_contexts(toy, toy_texts, n_tokens=50, seed=0)
    with pytest.raises(ModelError, match="never fired"):
        pathology(made, toy, toy_texts, n_tokens=50)
    with pytest.raises(ModelError, match="never fired"):
        splice(made, toy, contexts, center=torch.zeros(16))


# --- what training says and holds -----------------------------------------------------------------------------------


def test_training_says_how_far_the_mean_lies(toy, toy_texts, tmp_path, *, capsys):
    """Before the first step: uncentred, a far mean kills most features."""
    ask = {"d_sae": 32, "k": 4, "n_tokens": 2000, "batch": 100}
    made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=ask)
    assert f"|mean| / |standard deviation| = {made.card['gamma']:.3g}." in capsys.readouterr().err


def test_uncentred_training_is_warned_of_a_far_mean(toy, toy_texts, tmp_path, *, monkeypatch):
    """The sentence with the remedy is a warning, and stays on the card."""
    monkeypatch.setattr("neurosae.dictionary.watch.FAR", 0.0)
    ask = {"d_sae": 32, "k": 4, "n_tokens": 2000, "batch": 100, "center": False}
    with pytest.warns(UserWarning, match=r"standard deviations from the origin: .* Set center: true"):
        made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=ask)
    assert any("Set center: true" in words for words in made.card["warnings"])


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_few_rows_are_encoded_at_once(make_dictionary, monkeypatch, *, kind):
    """Never more dense values than the limit, however many rows are given."""
    made, counts = make_dictionary(kind), []
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32))
    whole, own = made.encode(x), kinds.KINDS[kind]
    counted = own._replace(encode=lambda d, rows: (counts.append(len(rows)), own.encode(d, rows))[1])
    monkeypatch.setitem(kinds.KINDS, kind, counted)
    monkeypatch.setattr(kinds, "CELLS", 64 * 7)
    assert abs(made.encode(x) - whole).max() < 1e-6
    made.reconstruct(x)
    assert max(counts) == 7
    assert sum(counts) == 100
