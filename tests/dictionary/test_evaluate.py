"""Scores of a dictionary: against sae-lens, against identities, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neurosae.dictionary.evaluate import (
    BOUNDED,
    evaluate_dictionary,
    never_active,
    reconstruction,
    reference_contexts,
    splice,
)
from neurosae.dictionary.record import neuron_dictionary
from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import make_contexts
from neurosae.errors import DataError
from tests.dictionary.conftest import HOOK


@pytest.fixture(scope="module")
def rows(toy, toy_texts):
    """Activations of the toy texts."""
    contexts = make_contexts(toy.tokens, toy_texts, length=48)
    return context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[HOOK])[HOOK]


def test_perfect_dictionary_loses_nothing(toy, toy_texts):
    """The raw stream as features: FVU 0, the loss of the model, nothing diverges."""
    row = evaluate_dictionary(neuron_dictionary(HOOK, 16), toy, toy_texts, n_tokens=1500).iloc[0]
    assert row.fvu == 0
    assert row.shrinkage == pytest.approx(1)
    assert row.ce_sae == pytest.approx(row.ce_base, abs=1e-6)
    assert row.kl_sae == pytest.approx(0, abs=1e-6)
    assert row.ce_recovered_zero == pytest.approx(1, abs=1e-3)
    assert row.kl_recovered_mean == pytest.approx(1, abs=1e-3)


def test_mean_dictionary_equals_mean_ablation(toy, toy_texts, make_dictionary):
    """A dictionary whose features never fire puts its bias everywhere: FVU 1, nothing recovered."""
    contexts = make_contexts(toy.tokens, toy_texts, length=48)
    x = context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[HOOK])[HOOK]
    made = make_dictionary("jumprelu")
    silent = replace(made, threshold=torch.full((64,), 1e9), b_dec=x.mean(0))
    row = evaluate_dictionary(silent, toy, toy_texts, n_tokens=10**6).iloc[0]
    assert row.fvu == pytest.approx(1, abs=1e-5)
    assert row.l0 == 0
    assert row.dead == 1
    assert row.ce_sae == pytest.approx(row.ce_mean, abs=1e-6)
    assert row.ce_recovered_mean == pytest.approx(0, abs=1e-4)


def test_reconstruction_agrees_with_numpy(rows, make_dictionary):
    """FVU, L0 and shrinkage by their definitions."""
    made = make_dictionary("topk")
    scores, counts = reconstruction(made, rows)
    x, hat = rows.double().numpy(), made.reconstruct(rows).double().numpy()
    fvu = ((x - hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert scores["fvu"] == pytest.approx(fvu, rel=1e-6)
    assert scores["shrinkage"] == pytest.approx((hat**2).sum() / (x * hat).sum(), rel=1e-6)
    assert scores["l0"] == pytest.approx((made.encode(rows).toarray() > 0).sum(1).mean())
    assert counts.sum() == made.encode(rows).nnz


def test_splice_agrees_with_one_text_at_a_time(toy, toy_texts, make_dictionary):
    """Sums per document do not depend on how documents are padded together, and BOS is never replaced."""
    made = make_dictionary("topk")
    texts, center = toy_texts[:4], torch.zeros(16)
    together = splice(made, toy, make_contexts(toy.tokens, texts, length=48), center=center)
    for i, text in enumerate(texts):
        contexts = make_contexts(toy.tokens, [text], length=48)
        alone = splice(made, toy, contexts, center=center)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours[i] == pytest.approx(theirs[0], rel=1e-4)
    assert together.n.tolist() == [len(text.encode()) for text in texts]
    assert together.zero == pytest.approx(together.mean)


def test_loss_agrees_with_sae_lens(toy, toy_texts, make_dictionary, *, lens):
    """Loss with the dictionary in place, by the hook of sae-lens' own object."""
    made = make_dictionary("standard")
    config = lens.StandardSAEConfig(d_in=16, d_sae=64)
    sae = lens.StandardSAE(config)
    for name in ("b_enc", "W_dec", "b_dec"):
        getattr(sae, name).data.copy_(getattr(made, name))
    sae.W_enc.data.copy_(made.W_enc.t())
    contexts = make_contexts(toy.tokens, toy_texts[:1], length=48)
    ids = torch.from_numpy(contexts.ids[0].astype(np.int64))[None]

    def put(x, hook):
        return torch.cat([x[:, :1], sae(x[:, 1:])], dim=1)

    with torch.no_grad():
        logits = toy.bridge.run_with_hooks(ids, fwd_hooks=[(HOOK, put)], return_type="logits")
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    ours = splice(made, toy, contexts, center=torch.zeros(16))
    assert ours.sae[0] / ours.n[0] == pytest.approx(float(loss), rel=1e-5)


def test_intervals_hold_their_estimate(toy, toy_texts, make_dictionary):
    """The bootstrap over documents brackets the score and narrows with more of them."""
    few, many = (
        evaluate_dictionary(make_dictionary("topk"), toy, t, seed=1).iloc[0] for t in (toy_texts[:8], toy_texts)
    )
    for name in BOUNDED:
        low, value, high = (many[column] for column in (f"{name}_low", name, f"{name}_high"))
        assert low < value < high or (name == "l0" and low <= value <= high)
        assert high - low <= few[f"{name}_high"] - few[f"{name}_low"]


def test_intervals_agree_with_a_bootstrap_by_hand(toy, toy_texts, make_dictionary):
    """Whole documents are drawn, and a score is the ratio of their sums."""
    made = make_dictionary("jumprelu")
    row = evaluate_dictionary(made, toy, toy_texts[:9], n_tokens=10**6, seed=4).iloc[0]
    contexts = reference_contexts(toy, toy_texts[:9], n_tokens=10**6, seed=4)
    x = context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[HOOK])[HOOK]
    of = np.repeat(contexts.documents, contexts.n_rows)
    x, hat, active = x.numpy(), made.reconstruct(x).numpy(), np.diff(made.encode(x).indptr)
    draws = np.random.default_rng(4).integers(9, size=(1000, 9))
    rows = [np.concatenate([np.flatnonzero(of == i) for i in draw]) for draw in draws]
    l0 = np.percentile([active[r].mean() for r in rows], [2.5, 97.5])
    lengths = np.linalg.norm(x, axis=1), np.linalg.norm(hat, axis=1)
    ratio = np.percentile([lengths[1][r].sum() / lengths[0][r].sum() for r in rows], [2.5, 97.5])
    explained = 1 - ((x - hat) ** 2).sum(1) / ((x - x.mean(0)) ** 2).sum(1).mean()
    assert (row.l0_low, row.l0_high) == pytest.approx(tuple(l0), rel=1e-6)
    assert (row.l2_ratio_low, row.l2_ratio_high) == pytest.approx(tuple(ratio), rel=1e-5)
    assert row.explained_variance == pytest.approx(explained.mean(), rel=1e-4)
    assert (row.explained_variance_low, row.explained_variance_high) == pytest.approx(
        (1 - row.fvu_high, 1 - row.fvu_low)
    )


def test_dead_comes_with_its_bound():
    """Three of N tokens is the 95 % bound for a feature that never fired."""
    row = never_active(np.array([0, 0, 1, 900]), 1000)
    assert (row["n_dead"], row["dead"], row["density_bound"], row["share_dense"]) == (2, 0.5, 0.003, 0.25)


def test_a_dictionary_is_measured_on_contexts_that_it_learned_from(toy, toy_texts, make_dictionary):
    """Later positions were never in its training: no context is longer, and the row says how long they are."""
    made = make_dictionary("topk")
    whole = evaluate_dictionary(made, toy, toy_texts, n_tokens=300).iloc[0]
    short = replace(made, metadata=made.metadata | {"context_size": 7})
    found = evaluate_dictionary(short, toy, toy_texts, n_tokens=300).iloc[0]
    assert found["context"] == 7 < whole["context"]
    contexts = reference_contexts(toy, toy_texts, n_tokens=300, seed=0, length=7)
    x = context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[made.hook])[made.hook]
    assert found["fvu"] == pytest.approx(reconstruction(made, x)[0]["fvu"], rel=1e-9)


def test_evaluate_refuses_no_text(toy, make_dictionary):
    """An empty text measures nothing."""
    with pytest.raises(DataError, match="fewer than 2 tokens"):
        evaluate_dictionary(make_dictionary("topk"), toy, ["a"])


@pytest.mark.parametrize("lacks", ["has_head", "is_causal"])
def test_nothing_is_predicted_without_a_head(toy, toy_texts, make_dictionary, *, lacks):
    """An encoder, or a trunk with a random head: what reconstructs is scored, cross-entropy is missing."""
    row = evaluate_dictionary(make_dictionary("topk"), replace(toy, **{lacks: False}), toy_texts, n_tokens=100).iloc[0]
    assert row.filter(regex="^(ce|kl)_").isna().all()
    assert row[["fvu", "l0", "dead"]].notna().all()
