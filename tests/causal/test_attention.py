"""Attention by region against transformers' own patterns; the logit lens against the model's own logits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from numpy.testing import assert_allclose

from neurosae.causal.attention import attention, attention_shares, each_pattern, head_table
from neurosae.causal.lens import cell_means, lens_hooks, logit_lens, read_layers
from neurosae.causal.scored import score_stimuli
from neurosae.errors import ModelError
from neurosae.extraction.model import load_model
from neurosae.extraction.packing import pad
from neurosae.stats.contrast import contrast
from tests.causal.scenes import ROOT, agreement, agreement_stimuli, embedded, toy, toy_scored
from tests.extraction.conftest import save_checkpoint


def test_shares_agree_with_output_attentions_of_transformers():
    """Sum over key tokens, mean over query tokens, head by head, from the attentions that transformers returns."""
    stimuli = agreement_stimuli(2)
    scored = score_stimuli(stimuli, embedded(), regions=("head", "pre_verb", "first"))
    pairs = [("pre_verb", "head"), ("pre_verb", "first"), ("pre_verb", "pre_verb")]
    found = attention_shares(scored, pairs)
    own = transformers.GPT2LMHeadModel.from_pretrained(
        ROOT / "neurosae/embedded/lm", attn_implementation="eager"
    ).float()
    for i in (0, 5, 15):
        with torch.inference_mode():
            every = own(torch.as_tensor(scored.ids[i])[None], output_attentions=True).attentions
        for query, key in pairs:
            q, k = scored.cells[query][i], scored.cells[key][i]
            by_hand = np.concatenate([layer[0][:, q][:, :, k].sum(-1).mean(-1).numpy() for layer in every])
            assert_allclose(found[query, key][i], by_hand, atol=1e-5)


def test_shares_of_all_tokens_add_up_to_one():
    """From any query to `all` and `first` together (the text and BOS): the whole attention; padding gets none."""
    stimuli = agreement_stimuli(3)
    found = attention(stimuli, embedded(), queries=["target"], keys=["all", "first"])
    total = found["attn->all"].X.toarray() + found["attn->first"].X.toarray()
    assert_allclose(total, 1, atol=1e-5)
    assert found["attn->all"].var["layer"].tolist() == np.repeat(range(4), 8).tolist()


def test_attention_to_later_regions_is_zero_and_contrasts_read_it():
    """A causal model does not look ahead; the AnnData enters the contrast like any site."""
    stimuli = agreement_stimuli(8)
    found = attention(stimuli, embedded(), queries=["head", "pre_verb"], keys=["local"])["attn->local"]
    ahead = found.X.toarray()[(found.obs["region"] == "head").to_numpy()]
    assert ahead.max() == 0
    rows = contrast(
        found, {"attractor": {"pl": 1, "sg": -1}}, region="pre_verb", inference={"n_permutations": 100}, seed=0
    )
    assert rows["feature"].notna().sum() == 32
    x = found[(found.obs["region"] == "pre_verb").to_numpy()]
    sign = np.where(x.obs["attractor"] == "pl", 1, -1)
    assert_allclose(rows.set_index("feature")["estimate"], (2 * sign[:, None] * x.X.toarray()).mean(0) / 1, atol=1e-5)


def test_an_encoder_does_not_attend_to_padding(tmp_path):
    """Read beside a longer text, a text gives what it gives by itself; all of its attention goes to its own tokens."""
    texts = ["the key is near", "the old key near the house is near the dogs"]
    stimuli = pd.DataFrame({"text": texts}, index=["short", "long"]).assign(item=["a", "b"], frame="f", split="test")
    stimuli = stimuli.assign(noun_start=[4, 8], noun_end=[7, 11])
    model = load_model(str(save_checkpoint(tmp_path, "bert")), device="cpu")
    both, alone = (
        score_stimuli(rows, model, regions=("noun", "all"), targets=False) for rows in (stimuli, stimuli.iloc[:1])
    )
    assert len(both.ids[0]) < len(both.ids[1])
    pairs = [("noun", "noun"), ("noun", "all")]
    found, wanted = attention_shares(both, pairs), attention_shares(alone, pairs)
    for pair in pairs:
        assert_allclose(found[pair][0], wanted[pair][0], atol=1e-6)


def test_models_without_patterns_are_refused():
    """A layer whose pattern never fires is an error, not a row of zeros."""
    from dataclasses import replace

    broken = replace(toy(), hooks={k: v for k, v in toy().hooks.items() if "1.attn.hook_pattern" not in k})
    with pytest.raises(ModelError, match=r"gives no attention pattern at blocks\.1"):
        each_pattern(broken, *pad([np.arange(4)]), take=lambda layer, pattern: None)
    assert head_table(toy()).index.tolist() == ["L0H0", "L0H1", "L1H0", "L1H1"]


def test_lens_of_the_last_layer_is_the_model_itself():
    """LD, rank and log p from the plain logits of one text at a time, without padding."""
    scored = toy_scored()
    found = read_layers(scored)
    for i, ids in enumerate(scored.ids):
        with torch.inference_mode():
            logits = toy().bridge(torch.as_tensor(ids)[None], return_type="logits")[0, scored.at[i]]
        t, f = scored.answers[i]
        assert_allclose(found["logit_diff"][i, -1], float(logits[t] - logits[f]), atol=1e-4)
        assert found["rank"][i, -1] == 1 + int((logits > logits[t]).sum())
        assert_allclose(found["log_prob"][i, -1], float(logits.log_softmax(-1)[t]), atol=1e-4)
        assert_allclose(found["prob"][i], np.exp(found["log_prob"][i]), rtol=1e-6)


def test_lens_of_inner_layers_agrees_with_the_stream_read_by_hand():
    """ln_final and unembedding of the cached residual stream, layer by layer."""
    scored = toy_scored(n=1)
    found, (t, f) = read_layers(scored), scored.answers[0]
    with torch.inference_mode():
        kept = toy().bridge.run_with_cache(torch.as_tensor(scored.ids[0])[None])[1]
        for layer, hook in enumerate(lens_hooks(toy())):
            logits = toy().bridge.unembed(toy().bridge.ln_final(kept[hook]))[0, scored.at[0]]
            assert_allclose(found["logit_diff"][0, layer], float(logits[t] - logits[f]), atol=1e-4)
    assert lens_hooks(toy()) == ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def test_logit_lens_is_tidy():
    """A row per stimulus and layer with its factors; means by cell are means of its rows, of ranks medians."""
    stimuli = agreement_stimuli(2)
    table = logit_lens(stimuli, embedded())
    assert len(table) == 5 * len(stimuli)
    assert {"stimulus", "item", "subject", "attractor", "layer", "rank"} <= set(table)
    wide = {m: table.pivot(index="stimulus", columns="layer", values=m).loc[stimuli.index].to_numpy() for m in
            ("logit_diff", "log_prob", "prob", "rank")}  # fmt: skip
    means = cell_means(stimuli, wide, agreement())
    own = table[(table["subject"] == "sg") & (table["attractor"] == "pl") & (table["layer"] == 3)]
    row = means[(means["cell"] == "sg/pl") & (means["layer"] == 3)].iloc[0]
    assert_allclose(row["logit_diff"], own["logit_diff"].mean())
    assert row["rank"] == own["rank"].median()
