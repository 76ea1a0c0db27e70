"""Models that were made elsewhere: read exactly, or refused with what would be right."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from neurosae.errors import ModelError
from neurosae.extraction.model import batch_invariance, hooked_pass, load_model, logits_of, random_control
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract
from neurosae.extraction.tokens import make_tokenizer
from tests.extraction.conftest import TinyDictionary, byte_level, sentencepiece, wordpiece

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 340}
GROUPED = WIDE | {"num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32}
FAMILIES = {
    "Gemma2": GROUPED | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 0.05},
    "OPT": WIDE | {"max_position_embeddings": 32, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 340},
    "Mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 340, "state_size": 4},
    "Qwen2": GROUPED | {"tie_word_embeddings": True},
}


@pytest.fixture
def saved(tmp_path):
    """A function from a class of transformers and its settings to a folder, in half precision and several files."""

    def make(name, config, settings, *, tokenizer=byte_level):
        torch.manual_seed(0)
        model = getattr(transformers, name)(getattr(transformers, config)(**settings)).half()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(3)
        model.save_pretrained(tmp_path / name, max_shard_size="20KB")
        if tokenizer is not None:
            tokenizer().save(str(tmp_path / name / "tokenizer.json"))
        return tmp_path / name

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_streams_and_logits_agree_with_transformers(saved, family):
    """Residual streams and logits of each family, capped and scaled logits included, are those of transformers."""
    folder = saved(f"{family}ForCausalLM", f"{family}Config", FAMILIES[family])
    ours = load_model(folder, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        whole = theirs(ids, output_hidden_states=True)
    n = ids.shape[1]
    hooks = ["blocks.0.hook_resid_post", ours.last_hook]
    got = hooked_pass(ours, ids, ids * 0 + 1, hooks=hooks, rows=[0] * n, cols=range(n))
    first = whole.hidden_states[0 if family == "Mamba" else 1][0]  # Mamba lists its layers without the embedding
    torch.testing.assert_close(got[hooks[0]], first, rtol=1e-5, atol=1e-5 * float(first.abs().max()))
    assert ours.has_head
    size = float(whole.logits.abs().max())
    torch.testing.assert_close(logits_of(ours, got[hooks[1]]), whole.logits[0], rtol=0, atol=2e-5 * size)


SIBLINGS = {
    "Roberta": WIDE | {"intermediate_size": 24, "max_position_embeddings": 34, "type_vocab_size": 1},
    "XLMRoberta": WIDE | {"intermediate_size": 24, "max_position_embeddings": 34, "tie_word_embeddings": False},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 340, "activation": "relu"},
}


@pytest.mark.parametrize("family", SIBLINGS)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_siblings_of_bert_agree_with_transformers(saved, family):
    """RoBERTa, XLM-RoBERTa and DistilBERT are read as BERT: streams and logits, a padded text among them."""
    folder = saved(f"{family}ForMaskedLM", f"{family}Config", SIBLINGS[family])
    ours = load_model(folder, device="cpu")
    theirs = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert not ours.is_causal
    assert ours.n_ctx == (512 if family == "DistilBert" else 32)
    ids, mask = torch.arange(3, 19).reshape(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[1, 5:], mask[1, 5:] = theirs.config.pad_token_id, 0
    with torch.inference_mode():
        whole = theirs(ids, attention_mask=mask, output_hidden_states=True)
    rows, cols = mask.nonzero(as_tuple=True)
    hooks = ["blocks.0.hook_resid_post", ours.last_hook]
    got = hooked_pass(ours, ids, mask, hooks=hooks, rows=rows.tolist(), cols=cols.tolist())
    for layer, hook in enumerate(hooks, start=1):
        torch.testing.assert_close(got[hook], whole.hidden_states[layer][rows, cols], rtol=1e-5, atol=2e-5)
    with torch.inference_mode():
        logits = ours.bridge(ids, return_type="logits", attention_mask=mask)
    torch.testing.assert_close(logits[rows, cols], whole.logits[rows, cols], rtol=1e-5, atol=1e-4)
    in_memory = load_model((theirs, None), device="cpu")
    again = hooked_pass(in_memory, ids, mask, hooks=hooks, rows=rows.tolist(), cols=cols.tolist())
    assert torch.equal(again[hooks[1]], got[hooks[1]])
    control = random_control(ours, "shuffle", seed=1)
    other = hooked_pass(control, ids, mask, hooks=hooks, rows=rows.tolist(), cols=cols.tolist())
    assert not torch.allclose(other[hooks[1]], got[hooks[1]], atol=0.1)


def test_a_sibling_that_was_saved_without_its_head_is_read(saved):
    """A bare RoBERTa: its streams do not need the head that transformers draws at random."""
    folder = saved("RobertaModel", "RobertaConfig", SIBLINGS["Roberta"])
    ours, theirs = load_model(folder, device="cpu"), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        whole = theirs(ids).last_hidden_state[0]
    got = hooked_pass(ours, ids, ids * 0 + 1, hooks=[ours.last_hook], rows=[0] * 9, cols=range(9))[ours.last_hook]
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=2e-5)
    assert not ours.has_head


def test_a_special_that_is_the_pad_of_a_sibling_is_refused(saved):
    """RoBERTa leaves pads out of its positions, BERT does not: a BOS with the id of the pad would shift all of them."""
    fine = saved("RobertaForMaskedLM", "RobertaConfig", SIBLINGS["Roberta"] | {"pad_token_id": 0}, tokenizer=byte_level)
    assert not load_model(fine, device="cpu").is_causal  # an unused pad of another id is no trouble
    settings = SIBLINGS["Roberta"] | {"pad_token_id": 1}
    folder = saved("RobertaForMaskedLM", "RobertaConfig", settings, tokenizer=sentencepiece)  # its BOS is 1
    with pytest.raises(ModelError, match=r"predicts otherwise than in transformers .* or its special tokens"):
        load_model(folder, device="cpu")


def test_an_architecture_without_hook_points_is_refused_by_its_name(saved):
    """The reader learns that the architecture is the trouble, not that the files are damaged."""
    settings = WIDE | {"intermediate_size": 24, "max_position_embeddings": 32, "embedding_size": 8}
    folder = saved("AlbertForMaskedLM", "AlbertConfig", settings)
    with pytest.raises(ModelError, match=r"AlbertForMaskedLM is not known .* use a model of another architecture"):
        load_model(folder, device="cpu")
    folder = saved("RobertaForCausalLM", "RobertaConfig", SIBLINGS["Roberta"] | {"is_decoder": True})
    with pytest.raises(ModelError, match=r"RobertaForCausalLM is not known"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_setting_that_the_bridge_leaves_out_is_refused(saved, *, in_memory):
    """GPT-2 with unscaled attention: another stream than that of transformers, without a word of the bridge."""
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 340}
    folder = saved("GPT2LMHeadModel", "GPT2Config", settings | {"scale_attn_weights": False})
    source = (AutoModelForCausalLM.from_pretrained(folder), None) if in_memory else folder
    with pytest.raises(ModelError, match=r"predicts otherwise than in transformers .* a setting of config.json"):
        load_model(source, device="cpu")


def test_a_model_whose_batches_differ_is_read_one_text_at_a_time(saved):
    """Long and short texts of a Phi-3 turn by other angles, those of their batch: refused, and exact by the remedy."""
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    settings = GROUPED | {"pad_token_id": 0, "original_max_position_embeddings": 8, "rope_parameters": rope}
    model = load_model(saved("Phi3ForCausalLM", "Phi3Config", settings), device="cpu", packing="buckets")
    texts = ["the dog", "the key near the old houses is zzzzzzzzzz"]
    table = {"item": ["a", "b"], "frame": "f", "split": "test", "text": texts, "word_start": 0, "word_end": 7}
    stimuli = pd.DataFrame(table, index=pd.Index(["s0", "s1"], name="stimulus"))
    site = {"s": TinyDictionary("blocks.1.hook_resid_post", 16)}
    asked = {"regions": ["word"], "scores": False, "keep_x": True}
    with pytest.raises(ModelError, match=r"gives other vectors in a batch than alone .* use batch_tokens=1"):
        extract(stimuli, model, site, positions=asked)
    both = extract(stimuli, model, site, positions=asked, batch_tokens=1)["s"]
    alone = [extract(stimuli.iloc[[i]], model, site, positions=asked)["s"].obsm["x"] for i in range(2)]
    np.testing.assert_allclose(both.obsm["x"], np.concatenate(alone), atol=1e-6)


def test_an_encoder_with_a_decoder_is_refused_in_one_sentence(saved):
    """Two stacks have two residual streams: refused when the model is loaded."""
    settings = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24, "d_kv": 8, "vocab_size": 340}
    folder = saved("T5ForConditionalGeneration", "T5Config", settings)
    with pytest.raises(ModelError, match=r"no single stack of layers .* use a decoder"):
        load_model(folder, device="cpu")


def test_a_missing_tokenizer_is_named_before_the_weights_are_read(saved):
    """A folder with tokenizer_config.json, but no tokenizer.json, gets the remedy and no foreign error."""
    settings = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 340}
    folder = saved("GPT2LMHeadModel", "GPT2Config", settings, tokenizer=None)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"has no tokenizer.json; write one with"):
        load_model(folder, device="cpu")


def test_words_that_the_tokenizer_does_not_know_are_announced(saved):
    """!? and ## both become [UNK]: their vectors are equal, and the record says so."""
    settings = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 340}
    folder = saved("GPT2LMHeadModel", "GPT2Config", settings, tokenizer=wordpiece)
    texts = ["the !? is", "the ## is", "the key is"]
    stimuli = pd.DataFrame(
        {"item": ["a", "b", "c"], "frame": "f", "split": "test", "text": texts, "word_start": 4},
        index=pd.Index(["s0", "s1", "s2"], name="stimulus"),
    ).assign(word_end=[6, 6, 7])
    dictionary = TinyDictionary("blocks.0.hook_resid_post", 16)
    out = extract(stimuli, load_model(folder, device="cpu"), {"s": dictionary}, positions={"regions": ["word"]})["s"]
    said = [w for w in provenance_of(out)["warnings"] if "unknown to the tokenizer" in w]
    assert len(said) == 1
    assert said[0].startswith("4 of 5 tokens that were read are unknown to the tokenizer ('#', '!', '?')")
    assert np.array_equal(out.X[0].toarray(), out.X[2].toarray())


@pytest.mark.parametrize(("tokenizer", "name"), [(wordpiece, "[UNK]"), (sentencepiece, "<unk>"), (byte_level, None)])
def test_the_unknown_token_is_read_from_the_definition(tokenizer, name):
    """WordPiece and sentencepiece lose what they do not know; bytes lose nothing."""
    ours = make_tokenizer(tokenizer())
    assert ours.unknown_id == (None if name is None else ours.backend.token_to_id(name))


GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 340}


def test_a_tokenizer_of_another_model_is_refused(saved):
    """An id beyond the vocabulary of the model ends in a sentence that names the tokenizer."""
    folder = saved("GPT2LMHeadModel", "GPT2Config", GPT2 | {"vocab_size": 40})
    model = load_model(folder, device="cpu")
    with pytest.raises(ModelError, match=r"token id 41 was given to .*, which knows 0 to 39; its tokenizer belongs"):
        hooked_pass(model, [[3, 41]], [[1, 1]], hooks=[model.last_hook], rows=[0], cols=[1])
    with pytest.raises(ModelError, match=r"its tokenizer belongs to another model"):
        hooked_pass(model, [[3, -1]], [[1, 1]], hooks=[model.last_hook], rows=[0], cols=[1])


def test_weights_that_are_no_numbers_are_refused_as_such(saved):
    """NaN in one weight is not blamed on batching."""
    folder = saved("GPT2LMHeadModel", "GPT2Config", GPT2)
    model = load_model(folder, device="cpu")
    with torch.no_grad():
        next(p for p in model.bridge.parameters() if p.dim() > 1).fill_(torch.nan)
    with pytest.raises(ModelError, match=r"gives vectors at .* that are no numbers; copy its checkpoint again"):
        batch_invariance(model, [[1, 2, 3], [4]], model.last_hook)


def test_layers_that_the_settings_leave_out_are_refused(saved):
    """config.json with fewer layers than the weights would give a shorter model without a word."""
    folder = saved("GPT2LMHeadModel", "GPT2Config", GPT2)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(told | {"n_layer": 1}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"hold a layer that config.json does not speak of \(transformer.h.1"):
        load_model(folder, device="cpu")
