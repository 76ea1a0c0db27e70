"""Gradients, act x grad and integrated gradients, against hand computation and finite differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose

from neurosae.causal.attribution import attribute, attributed, partners
from neurosae.causal.gradients import ld_gradients
from neurosae.causal.scored import score_stimuli
from neurosae.errors import DataError, ModelError
from neurosae.extraction.packing import pad
from tests.causal.scenes import (
    agreement_stimuli,
    dictionary,
    embedded,
    toy,
    toy_dictionary,
    toy_scored,
)

TABLE = pd.DataFrame({"item": list("abcde")}, index=[f"s{i}" for i in range(5)])


def edited_ld(scored, hook: str, change) -> np.ndarray:
    """LD of every sequence, one at a time, with the tensor of a hook point changed by `change(tensor, line)`."""
    out = []
    for i, row in enumerate(scored.ids):
        ids, mask = pad([row])
        hooks = [(hook, lambda t, hook, i=i: change(t, i))]
        with torch.inference_mode():
            logits = scored.model.bridge.run_with_hooks(
                torch.as_tensor(ids), fwd_hooks=hooks, return_type="logits", attention_mask=torch.as_tensor(mask)
            )
        at = logits[0, scored.at[i]]
        out.append(float(at[scored.answers[i, 0]] - at[scored.answers[i, 1]]))
    return np.array(out)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z.h1", "blocks.1.hook_mlp_out"])
def test_gradients_agree_with_finite_differences(hook):
    """Moving one token along a random direction changes LD by <g, v>, at the stream, at a head, at an MLP."""
    scored, step = toy_scored(), 1e-2
    point, head = (hook[:-3], 1) if hook.endswith("h1") else (hook, None)
    rng = torch.Generator().manual_seed(1)
    v = torch.randn(8 if head == 1 else 16, generator=rng)

    def moved(sign):
        def change(tensor, i):
            out = tensor.clone()
            where = (0, scored.at[i] - 1) if head is None else (0, scored.at[i] - 1, head)
            out[where] = out[where] + sign * step * v
            return out

        return change

    slope = (edited_ld(scored, point, moved(1)) - edited_ld(scored, point, moved(-1))) / (2 * step)
    found = np.empty(5)
    for batch in ld_gradients(scored, [hook]):
        for k, i in enumerate(batch.stimuli):
            found[i] = float(batch.gradient[hook][k, scored.at[i] - 1] @ v)
    if hook == "blocks.1.hook_mlp_out":  # nothing after the last block mixes tokens
        assert_allclose(found, 0, atol=1e-7)
    else:
        assert_allclose(found, slope, rtol=2e-2, atol=2e-4)
        assert np.abs(slope).max() > 1e-2


def test_gradients_are_the_head_by_hand():
    """At the last stream: u = C(w dU) / s minus the part along x that the scale takes, in plain numpy."""
    scored, model = toy_scored(), toy()
    hook = model.last_hook
    W = model.bridge.unembed.weight.detach().numpy().T if hasattr(model.bridge.unembed, "weight") else None
    W = model.bridge.W_U.detach().numpy() if W is None or W.shape[0] != 16 else W
    for batch in ld_gradients(scored, [hook]):
        for k, i in enumerate(batch.stimuli):
            x = batch.x[hook][k, scored.at[i]].double().numpy()
            dU = W[:, scored.answers[i, 0]] - W[:, scored.answers[i, 1]]
            centred = x - x.mean()
            s = np.sqrt((centred**2).mean() + 1e-5)
            hat = centred / s
            by_hand = (dU - dU.mean() - hat * (hat @ dU) / 16) / s
            assert_allclose(batch.gradient[hook][k, scored.at[i]].numpy(), by_hand, atol=2e-4)


def test_gradients_invariant_to_batches_and_leave_the_model_alone():
    """Padding beside longer texts moves gradients by rounding alone; weights ask for gradients as before."""
    scored, hook = toy_scored(n=7), "blocks.1.hook_resid_pre"
    asks = [p.requires_grad for p in toy().bridge.parameters()]
    every = []
    for tokens in (1, 4096):
        got = {i: b.gradient[hook][k, : scored.at[i] + 1] for b in ld_gradients(scored, [hook], batch_tokens=tokens)
               for k, i in enumerate(b.stimuli)}  # fmt: skip
        every.append(torch.cat([got[i] for i in range(7)]))
    assert float((every[0] - every[1]).abs().max()) < 1e-5
    assert asks == [p.requires_grad for p in toy().bridge.parameters()]
    assert all(p.grad is None for p in toy().bridge.parameters())


def test_act_x_grad_recovers_the_taylor_term():
    """Neurons as features: the effect of removing one is -x_j g_j, summed over the tokens of the region."""
    scored, hook = toy_scored(), "blocks.1.hook_resid_pre"
    made = attributed(TABLE, scored, {"s": toy_dictionary(hook)}, region="end")["s"]
    by_hand = np.zeros((5, 16))
    for batch in ld_gradients(scored, [hook]):
        for k, i in enumerate(batch.stimuli):
            cells = scored.cells["end"][i]
            by_hand[i] = -(batch.x[hook][k, cells] * batch.gradient[hook][k, cells]).sum(0).numpy()
    signed = made.effects.toarray()[:, :16] + made.effects.toarray()[:, 16:]
    assert_allclose(signed, by_hand, atol=1e-6)
    assert np.isnan(made.completeness).all()


def test_act_x_grad_has_the_sign_and_the_limit_of_the_exact_edit():
    """Towards a baseline close by, the first-order term becomes the exact change of LD."""
    scored, hook, share = toy_scored(), "blocks.1.hook_resid_pre", 0.01
    made = attributed(TABLE, scored, {"s": toy_dictionary(hook)}, region="target")["s"].effects.toarray()
    effect = (made[:, :16] + made[:, 16:])[:, 4] * share

    def change(tensor, i):
        out = tensor.clone()
        out[0, scored.at[i], 4] *= 1 - share
        return out

    exact = edited_ld(scored, hook, change) - edited_ld(scored, hook, lambda t, i: t)
    assert_allclose(exact, effect, atol=3e-5)
    assert np.abs(effect).max() > 3e-4


def test_integrated_gradients_recover_the_whole_change():
    """Effects add up to LD with all features at the baseline minus LD; the error shrinks with the steps."""
    scored, hook = toy_scored(), "blocks.0.hook_mlp_out"
    few, many = (
        attributed(TABLE, scored, {"s": toy_dictionary(hook)}, region="end", method="integrated_gradients", steps=k)[
            "s"
        ]
        for k in (2, 32)
    )

    def gone(tensor, i):
        out = tensor.clone()
        out[0, scored.cells["end"][i]] = 0
        return out

    change = edited_ld(scored, hook, gone) - edited_ld(scored, hook, lambda t, i: t)
    assert_allclose(np.asarray(many.effects.sum(1)).ravel() - change, many.completeness, atol=1e-4)
    assert np.abs(many.completeness).max() < 0.25 * np.abs(few.completeness).max()
    assert np.abs(many.completeness).max() < 0.05 * np.abs(change).max()


def test_baselines_agree_with_means_by_hand():
    """`mean` leaves the own item out; `partner` is the mean over stimuli whose target is the own foil."""
    stimuli = agreement_stimuli(3)
    late = dictionary("late")
    scored = score_stimuli(stimuli, embedded(), dictionaries={"late": late}, regions=("pre_verb",))
    every = attributed(stimuli, scored, {"late": late}, region="pre_verb", baseline="mean")["late"]
    f, item = every.activations.toarray(), stimuli["item"].to_numpy()
    assert_allclose(every.baseline.toarray()[0], f[item != item[0]].mean(0), atol=1e-6)
    other = attributed(stimuli, scored, {"late": late}, region="pre_verb", baseline="partner")["late"]
    first = stimuli.iloc[0]
    rows = (stimuli["item"] == first["item"]) & (stimuli["frame"] == first["frame"])
    rows &= stimuli["subject"].astype(str) != str(first["subject"])
    assert_allclose(other.baseline.toarray()[0], f[rows.to_numpy()].mean(0), atol=1e-6)


def test_baseline_moves_the_effect_by_its_own_term():
    """Effects towards f0 are effects towards 0 plus f0 times the summed gradient along the decoder row."""
    stimuli, late = agreement_stimuli(3), dictionary("early")
    scored = score_stimuli(stimuli, embedded(), dictionaries={"late": late}, regions=("head",))
    zero, mean = (
        attributed(stimuli, scored, {"late": late}, region="head", baseline=b)["late"] for b in ("zero", "mean")
    )
    total = np.zeros((len(stimuli), late.d_in))
    for batch in ld_gradients(scored, [late.hook]):
        for k, i in enumerate(batch.stimuli):
            total[i] = batch.gradient[late.hook][k, scored.cells["head"][i]].sum(0).numpy()
    extra = mean.baseline.toarray() * (total @ late.W_dec.numpy().T)
    assert_allclose(mean.effects.toarray() - zero.effects.toarray(), extra, atol=1e-6)
    assert np.abs(extra).max() > 1e-3


def test_attribute_hands_over_responses_with_logit_differences():
    """Rows are stimuli, LD is that of extraction, values are finite; features that are silent have no effect."""
    from neurosae.extraction.run import extract

    stimuli, late = agreement_stimuli(3), dictionary("late")
    made = attribute(stimuli, embedded(), {"late": late}, region="pre_verb")["late"]
    seen = extract(stimuli, embedded(), {"late": late}, positions={"regions": ["pre_verb"]})["late"]
    assert_allclose(made.obs["logit_diff"], seen.obs.groupby("stimulus", sort=False)["logit_diff"].first(), atol=1e-4)
    assert made.obs["stimulus"].tolist() == stimuli.index.tolist()
    last = seen[(seen.obs["position"] == 0).to_numpy()]
    silent = np.asarray(sp.csr_matrix(last.X).sum(0)).ravel() == 0
    assert np.abs(np.asarray(made.X[:, silent].sum(0))).max() == 0 or seen.obs["n_tokens"].max() > 1


def test_attribution_refuses_what_cannot_matter_or_be_known():
    """Regions after the target, hook points that LD does not read, unknown names, partners that are not there."""
    stimuli, late = agreement_stimuli(2), dictionary("late")
    with pytest.raises(DataError, match="comes after the token that predicts the target"):
        attribute(stimuli, embedded(), {"late": late}, region="verb")
    with pytest.raises(DataError, match="Did you mean 'integrated_gradients'"):
        attribute(stimuli, embedded(), {"late": late}, method="integrated_gradient")
    with pytest.raises(DataError, match="has no partner"):
        partners(stimuli[stimuli["subject"] == "sg"])
    with pytest.raises(DataError, match="only one; use zero"):
        attribute(agreement_stimuli(1), embedded(), {"early": dictionary("early")}, region="head", baseline="mean")
    with pytest.raises(ModelError, match=r"does not depend on blocks\.3\.hook_resid_post at 'head'"):
        attribute(stimuli, embedded(), {"late": late}, region="head")
    with pytest.raises(ModelError, match="unknown hook point"):
        list(ld_gradients(toy_scored(), ["blocks.1.hook_resid_poste"]))
