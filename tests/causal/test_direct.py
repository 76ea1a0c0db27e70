"""Direct logit attribution: parts that add up, against the weights themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.causal.direct import direct_attribution, split_logit_difference
from neurosae.errors import DataError, ModelError
from tests.causal.scenes import agreement_stimuli, dictionary, embedded, toy, toy_scored


def test_parts_agree_with_the_weights_of_a_gpt2():
    """Heads by z W_O and MLPs by their outputs, through ln_f and the unembedding of transformers, in numpy."""
    stimuli, model = agreement_stimuli(1), embedded()
    found = direct_attribution(stimuli, model)["direct"]
    gpt = model.bridge.original_model.transformer
    ids = torch.as_tensor(model.tokens.backend.encode(stimuli["text"].iloc[0]).ids)
    from neurosae.causal.scored import score_stimuli

    scored = score_stimuli(stimuli, model)
    ids, at, (t, f) = torch.as_tensor(scored.ids[0])[None], scored.at[0], scored.answers[0]
    with torch.inference_mode():
        _, kept = model.bridge.run_with_cache(ids)
    x = kept["blocks.3.hook_resid_post"][0, at].double().numpy()
    s = np.sqrt(x.var() + 1e-5)
    table = model.bridge.W_U.detach().double().numpy()
    w = dict(model.bridge.ln_final.named_parameters())["_original_component.weight"].detach().double().numpy()
    u = w * (table[:, t] - table[:, f])
    u = (u - u.mean()) / s
    W_O = gpt.h[2].attn.c_proj
    W_O = dict(W_O.named_parameters())["_original_component.weight"] if not hasattr(W_O, "nf") else W_O.weight
    z = kept["blocks.2.attn.hook_z"][0, at].double().numpy().reshape(8, 32)
    head = z[5] @ W_O.detach().double().numpy()[5 * 32 : 6 * 32]
    assert_allclose(found[:, "direct/L2H5"].X.toarray()[0, 0], head @ u, atol=1e-5)
    mlp = kept["blocks.1.hook_mlp_out"][0, at].double().numpy()
    assert_allclose(found[:, "direct/MLP 1"].X.toarray()[0, 0], mlp @ u, atol=1e-5)


@pytest.mark.parametrize("weights", ["embedded", "toy"])
def test_parts_add_up_to_the_logit_difference(weights):
    """All components of every stimulus, within 1e-4; and the features of a site with the rest beside them."""
    if weights == "toy":
        parts = split_logit_difference(toy_scored())
        assert_allclose(parts.values.sum(1), parts.logit_diff, atol=1e-4)
        return
    stimuli, late = agreement_stimuli(4), dictionary("late")
    found = direct_attribution(stimuli, embedded(), {"late": late})
    for site in ("direct", "late"):
        total = np.asarray(found[site].X.sum(axis=1)).ravel() + found[site].obs.get("rest", 0)
        assert_allclose(total, found[site].obs["logit_diff"], atol=1e-4)
    assert found["direct"].var["component"].value_counts()["head"] == 32


def test_feature_parts_agree_with_activation_times_direction():
    """A feature's part is f_j <W_dec[j], u>, with u from the same stimulus."""
    stimuli, late = agreement_stimuli(2), dictionary("late")
    from neurosae.causal.scored import score_stimuli

    scored = score_stimuli(stimuli, embedded(), dictionaries={"late": late}, regions=("target",))
    parts = split_logit_difference(scored, [late.hook])
    f = late.encode(torch.as_tensor(parts.streams[late.hook])).toarray()
    j = int(f.sum(0).argmax())
    found = direct_attribution(stimuli, embedded(), {"late": late})["late"].X.toarray()[:, j]
    assert_allclose(found, f[:, j] * (parts.direction @ late.W_dec[j].double().numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
def test_parts_add_up_in_other_families(family):
    """RMSNorm and parallel blocks: whether the normalisation centres is measured."""
    import transformers

    from neurosae.extraction.model import load_model

    torch.manual_seed(0)
    wide = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**wide, num_key_value_heads=1)),
        "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**wide)),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        ),
    }[family]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3).add_(0.02 * torch.randn(parameter.shape))
    parts = split_logit_difference(toy_scored(load_model((made, None), device="cpu")))
    assert_allclose(parts.values.sum(1), parts.logit_diff, atol=1e-4)
    assert np.abs(parts.logit_diff).max() > 0.1


def test_direct_attribution_refuses_other_widths_and_heads_that_are_not_linear():
    """A dictionary of heads has no direct part; a head that caps its logits is refused, not approximated."""
    stimuli = agreement_stimuli(1)
    narrow = replace(dictionary("late"), hook="blocks.2.attn.hook_z.h1")
    with pytest.raises(DataError, match="has width 32, the residual stream 256"):
        direct_attribution(stimuli, embedded(), {"late": narrow})

    class Capped:
        def __getattr__(self, name):
            return getattr(toy().bridge, name)

        class adapter:
            apply_output_logits_transform = staticmethod(lambda logits: torch.tanh(logits / 0.1))

    with pytest.raises(ModelError, match="miss its logit difference by up to"):
        split_logit_difference(toy_scored(replace(toy(), bridge=Capped())))
