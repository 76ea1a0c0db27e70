"""Faults that spoil a dictionary, or what a model writes, without a word: a test that fails without each guard."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from neurosae.dictionary import alternatives, budget, decompositions, kinds, load, texts, train
from neurosae.dictionary.architectures import LEARNERS
from neurosae.dictionary.evaluate import reference_contexts, splice
from neurosae.dictionary.interaction import pair_strengths
from neurosae.dictionary.interaction_study import interaction_study
from neurosae.dictionary.kinds import neuron_dictionary, signed_dictionary
from neurosae.dictionary.load import check_fit, load_dictionary
from neurosae.dictionary.pathology import pathology
from neurosae.dictionary.plan import training_key
from neurosae.dictionary.record import folder_content, foreign, read_folder, write_folder
from neurosae.dictionary.scorecard import overlap_table
from neurosae.dictionary.settings import settings_of
from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import make_contexts, sample_texts, special_ids
from neurosae.dictionary.train import train_dictionary
from neurosae.errors import ModelError
from neurosae.extraction.model import hooked_pass, load_model
from neurosae.extraction.tokens import byte_tokenizer, decode, make_tokenizer, tokenizer_in_memory, with_bos
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
    written = sample_texts(model, 60, seed=1)
    assert written
    assert not any("</s>" in text or "<pad>" in text for text in written)


def test_a_document_stops_at_its_end(toy, monkeypatch):
    """What a model writes after the end sign is another text: it is left out, and the sign with it."""
    script = [65, 66, 256, 67, 256]

    def scripted(_):
        return lambda ids: torch.nn.functional.one_hot(torch.tensor([script[ids.shape[1] - 1]] * 2), 257) * 100.0

    monkeypatch.setattr(texts, "_next_logits", scripted)
    written = texts._write(toy, torch.Generator().manual_seed(0), length=5, n_writers=2)
    assert written == [[65, 66], [65, 66]]


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


@pytest.mark.parametrize("what", ["weights_hash", "weights", "tokenizer_hash", "config", "dtype", "prefix"])
def test_what_is_trained_or_fitted_is_kept_under_its_model(toy, toy_texts, what):
    """Other weights or settings, weights folded, another tokenizer, precision or BOS rule: another dictionary."""
    other = dataclasses.replace(toy, provenance={**toy.provenance, what: {"eps": 1} if what == "config" else "another"})
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


def test_the_recipe_is_the_default():
    """Centred, scaled, annealed, a 32nd of the auxiliary loss, dead after a twentieth of the steps, no ghosts."""
    made = settings_of({}, 64)
    assert (made.center, made.scale, made.recalibrate, made.ghost_grads) == (True, True, True, False)
    assert (made.anneal, made.aux, made.dead_window) == (0.4, 1 / 32, 0.05)
    assert settings_of({"d_sae": 32, "k": 4}, 64).k0 == 32  # k starts at the width, or at all features


@pytest.mark.parametrize("k0", [3, 33])
def test_annealing_refuses_to_start_below_k_or_above_all_features(k0):
    """k falls from k0: more than there are features would be an index out of range, fewer than k no annealing."""
    with pytest.raises(ModelError, match=rf"k0 is {k0}; k falls from k0 to k, so it must lie between 4 and d_sae 32"):
        settings_of({"d_sae": 32, "k": 4, "k0": k0}, 64)


def test_a_silent_feature_is_counted_until_it_fires():
    """Steps since a feature was last active, for the auxiliary loss and for what counts as dead."""
    learner = LEARNERS["topk"](settings_of({"d_sae": 32, "k": 2, "n_tokens": 2000, "batch": 50, "k0": 2}, 8), 8)
    draws = torch.Generator().manual_seed(0)
    wanted = np.zeros(32, dtype=int)
    for step in range(4):
        x = torch.randn(4, 8, generator=draws)
        counts = learner.loss(x, step, dead=learner.dead())[2].detach().numpy()
        learner.step(x, step)
        wanted = np.where(counts > 0, 0, wanted + 1)
        np.testing.assert_array_equal(learner.silent.numpy(), wanted)
    assert wanted.max() > 0


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_penalties_refuse_rows_of_any_size(architecture):
    """The size of a penalty means something only for rows of unit mean square."""
    with pytest.raises(ModelError, match=f"scale: false does not go with {architecture}"):
        settings_of({"d_sae": 32, "k": 4, "scale": False, "architecture": architecture}, 16)


def test_rows_of_training_are_those_behind_bos(toy, toy_texts):
    """BOS, whose norm is another, is never learned from; the row of every other token is that token's."""
    contexts = make_contexts(toy.tokens, toy_texts[:3], length=48)
    rows = context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[HOOK])[HOOK]
    wanted = []
    for ids in contexts.ids:
        assert ids[0] == 256
        n = len(ids)
        place = {"hooks": [HOOK], "rows": [0] * (n - 1), "cols": range(1, n)}
        wanted.append(hooked_pass(toy, ids[None].astype(int), np.ones((1, n), dtype=int), **place)[HOOK])
    torch.testing.assert_close(rows, torch.cat(wanted), rtol=1e-5, atol=1e-5)


def test_the_curve_has_a_row_for_every_hundredth_of_the_steps(toy, toy_texts, tmp_path):
    """From the first step to the last: whether a run went well is seen in how, not in where it ended."""
    ask = {"d_sae": 32, "k": 4, "n_tokens": 4000, "batch": 100}
    train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=ask)
    log = pd.read_csv(tmp_path / "d" / "training.csv")
    assert log["step"].tolist() == list(range(40))
    assert {"loss", "fvu", "l0", "dead", "k", "lr"} <= set(log)


def test_too_large_a_dictionary_is_refused_before_text_is_written(toy, tmp_path, monkeypatch):
    """The model would write for minutes what could never be learned from."""
    monkeypatch.setattr(train, "own_texts", lambda *_, **__: pytest.fail("wrote"))
    with pytest.raises(ModelError, match="use a smaller d_sae or batch"):
        train_dictionary(toy, None, hook=HOOK, out=tmp_path / "d", settings={"d_sae": 10**10, "k": 4})


def test_two_dictionaries_need_the_memory_of_both(toy, toy_texts, tmp_path, *, monkeypatch):
    """Each fits, both do not: refused before the first step."""
    ask = {"d_sae": 640, "k": 4, "n_tokens": 4000, "batch": 100}
    one = budget.budget(settings_of(ask, 16), 16).memory
    monkeypatch.setattr(budget, "free_memory", lambda _: int(1.5 * one))
    monkeypatch.setattr(train, "_begin", lambda *_, **__: pytest.fail("began"))
    sites = {name: {**ask, "hook": HOOK, "out": tmp_path / name, "seed": i} for i, name in enumerate("ab")}
    with pytest.raises(ModelError, match=r"d_sae 640 .* and 1 more beside it, needs .* of memory"):
        train.train_dictionaries(toy, toy_texts, sites)


def test_held_out_documents_are_never_decomposed(toy):
    """The documents of the card are no part of the fit, a repeated one neither."""
    asked = alternatives.asked_of({"kind": "pca", "n_tokens": 100_000}, 16)
    documents = [f"document {i} of a hundred" for i in range(100)]
    contexts, held_out = alternatives._split(toy, documents * 2, asked)
    fitted = {decode(toy.tokens, ids.tolist()) for ids in contexts.ids}
    assert len(held_out) == 5
    assert fitted == set(documents) - set(held_out)


# --- what a dictionary says of itself -------------------------------------------------------------------------------


def test_a_dictionary_that_speaks_of_another_bos_is_announced(toy, toy_texts):
    """Where the analysis sets the rule; where it does not, the fit is measured with the dictionary's own."""
    raw = neuron_dictionary(HOOK, 16)
    without = dataclasses.replace(raw, metadata={**raw.metadata, "prepend_bos": False})
    fixed = dataclasses.replace(toy, tokens=with_bos(toy.tokens, True))
    free = dataclasses.replace(toy, tokens=dataclasses.replace(toy.tokens, rule="auto"))
    with pytest.warns(UserWarning, match="trained with prepend_bos: False, but the analysis asks for the opposite"):
        assert check_fit(without, fixed, texts=toy_texts).fit["warnings"]
    assert check_fit(without, free, texts=toy_texts).fit["warnings"] == ()
    lossy = dataclasses.replace(without, W_dec=without.W_dec * 0.9)
    bare = dataclasses.replace(toy, tokens=with_bos(toy.tokens, False))
    assert check_fit(lossy, free, texts=toy_texts).fit == check_fit(lossy, bare, texts=toy_texts).fit
    said = dataclasses.replace(lossy, metadata={**raw.metadata, "prepend_bos": True})
    assert (
        check_fit(said, free, texts=toy_texts).fit["fvu_here"]
        != check_fit(lossy, free, texts=toy_texts).fit["fvu_here"]
    )


def test_check_fit_refuses_a_random_dictionary_without_a_card(toy, toy_texts, make_dictionary):
    """Nothing is claimed that could be compared: nine tenths of the variance left over are too much by themselves."""
    with pytest.raises(ModelError, match=r"leaves \d+\.\d% of the variance at blocks\.1\S+ unexplained: it"):
        check_fit(make_dictionary("topk"), toy, texts=toy_texts)


def test_check_fit_announces_another_sparsity(toy, toy_texts):
    """Three times as many active features as its card says: neither refused nor passed over."""
    raw = neuron_dictionary(HOOK, 16)
    claims = dataclasses.replace(raw, metadata={**raw.metadata, "l0": 16 / 3})
    with pytest.warns(UserWarning, match=r"16\.0 features are active per token here, but 5\.3 on its card"):
        assert check_fit(claims, toy, texts=toy_texts).fit["warnings"]


def test_a_folder_without_its_card_still_says_what_it_reached(toy, toy_texts, tmp_path):
    """FVU and L0 lie in the settings too, which every tool copies: the fit check has something to compare with."""
    ask = {"d_sae": 32, "k": 4, "n_tokens": 2000, "batch": 100}
    made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=ask)
    (tmp_path / "d" / "card.json").unlink()
    bare = read_folder(tmp_path / "d")
    assert not bare.card
    assert load._recorded(bare) == {"fvu": made.card["fvu"], "l0": made.card["l0"]}


def test_load_refuses_a_misspelt_hook_point_by_its_nearest_name(toy, tmp_path, make_dictionary):
    """Before the dictionary is read: what follows looks the name up."""
    write_folder(tmp_path / "d", make_dictionary("topk"))
    site = {"hook": "blocks.1.hook_resid_pots", "dictionary": {"path": str(tmp_path / "d")}}
    with pytest.raises(ModelError, match=r"sites\.late: .* Did you mean 'blocks\.1\.hook_resid_post'"):
        load_dictionary(site, toy, where="late")


def test_check_fit_refuses_a_hook_point_that_never_varies(make_dictionary):
    """The same vector at every token has no variance: FVU is no number, and no number passes a threshold."""
    with pytest.raises(ModelError, match="gives the same vector at every token"):
        load._refuse(make_dictionary("topk"), {"fvu": float("nan"), "l0": 4.0}, {"fvu": None, "l0": None})


def test_heads_are_read_flattened_by_a_dictionary_of_sae_lens(lens):
    """Its own reshaping of hook_z would take rows for heads."""
    config = lens.StandardSAEConfig(
        d_in=16, d_sae=32, reshape_activations="hook_z", normalize_activations="layer_norm",
        metadata=lens.saes.sae.SAEMetadata(hook_name="blocks.0.attn.hook_z"),
    )  # fmt: skip
    made = foreign(lens.StandardSAE(config))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert made.kind == "sae_lens"
    assert made.encode(x).shape == (5, 32)
    assert made.decode(made.encode(x)).shape == (5, 16)


def test_a_jointly_trained_folder_says_so(make_dictionary):
    """The plain part of an interaction dictionary has adapted to its term: whoever loads it alone can read that."""
    plain = make_dictionary("topk")
    joint = dataclasses.replace(plain, kind="interaction", parts={"V": torch.ones(64, 2), "M": torch.ones(2, 16)})
    assert folder_content(joint)[0]["metadata"]["co_adapted"] is True
    assert "co_adapted" not in folder_content(plain)[0]["metadata"]


def test_read_refuses_an_encoder_under_another_architecture(make_dictionary, tmp_path):
    """Codes of a pursuit in a folder of topk: one of the two names is wrong, and which decides about every number."""
    write_folder(tmp_path / "d", make_dictionary("topk"))
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    config["metadata"]["neurosae_encoder"] = "omp"
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="unknown neurosae_encoder of topk 'omp'"):
        read_folder(tmp_path / "d")


def test_pathology_leaves_specials_alone(toy, toy_texts, make_dictionary, *, monkeypatch):
    """BOS is replaced neither by its reconstruction nor by a random error."""
    made, rows = make_dictionary("topk"), []
    real = type(made).reconstruct
    monkeypatch.setattr(type(made), "reconstruct", lambda self, x: (rows.append(len(x)), real(self, x))[1])
    pathology(made, toy, toy_texts, n_tokens=200, n_draws=1)
    contexts = reference_contexts(toy, toy_texts, n_tokens=200, seed=0)
    assert sum(rows) == 2 * contexts.n_rows.sum()


def test_interaction_study_refuses_arms_without_room():
    """The arms with more codes need more features than that."""
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    ask = {"d_sae": 6, "k": 4, "rank": 2, "n_tokens": 1000, "batch": 50}
    with pytest.raises(ModelError, match="arms with k up to 6 need more features than that, not 6"):
        interaction_study(rows, rows, settings=ask)


def test_only_dictionaries_of_one_hook_point_are_matched(make_dictionary):
    """Directions at two hook points are no directions of one space; features that never fire match nothing."""
    one = make_dictionary("topk")
    far = dataclasses.replace(one, hook="blocks.0.hook_resid_post")
    assert not len(overlap_table({"a": one, "b": far}))
    alive = {"a": np.arange(64) < 10, "b": np.arange(64) < 20}
    found = overlap_table({"a": one, "b": one}, alive=alive).iloc[0]
    assert (found.n_one, found.n_other, found.overlap_90) == (10, 20, 1)


def test_an_unused_atom_becomes_the_worst_row():
    """K-SVD: an atom that no row takes would stay for ever; it starts again from what is explained worst."""
    x = torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    atoms = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    made = decompositions._updated(x, atoms, 1, order=np.array([0, 1]))
    assert made.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_pairs_that_hardly_meet_are_no_candidates():
    """A product seen in one row is no strength: both features must be active together in enough rows."""
    eye, zeros = torch.eye(3), torch.zeros(3)
    parts = {"V": torch.ones(3, 1), "M": torch.ones(1, 3)}
    made = kinds.Dictionary("h", "interaction", eye, zeros, eye, zeros, zeros, 2, parts=parts)
    codes = sparse.csr_matrix([[9.0, 9.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert pair_strengths(made, codes, least=1)[["first", "second"]].to_numpy().tolist() == [[0, 1], [1, 2]]
    assert pair_strengths(made, codes, least=2)[["first", "second"]].to_numpy().tolist() == [[1, 2]]
