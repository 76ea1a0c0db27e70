"""Scores of heads against hand-made patterns, and induction on a circuit whose weights are set by hand."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.causal.heads import ablate_heads, head_scores, verdicts
from neurosae.causal.sequences import (
    SCORES,
    _scores,
    copy_losses,
    draw_sequences,
    head_outputs,
    read_scores,
    uniform_scores,
)
from neurosae.errors import DataError
from neurosae.extraction.model import load_model
from tests.causal.scenes import ROOT, toy
from tests.report.synthetic_circuits import head_rows

SETTINGS = {"n_sequences": 8, "lengths": (8, 10), "n_controls": 1, "seed": 1}


@cache
def circuit(induces: bool):
    spec = importlib.util.spec_from_file_location("induction", ROOT / "docs" / "induction.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return load_model((example.hand_set(induces), None), device="cpu")


def test_the_induction_head_of_a_circuit_is_recovered():
    """Set by hand: L1H0 looks for the word before; nothing else is called induction; L0H0 looks at the word before."""
    found = head_scores(circuit(True), **SETTINGS)
    verdict = found.set_index("x_head").loc[found["effect"].eq("induction").to_numpy(), "x_verdict"]
    assert verdict.fillna("").str.startswith("induction head").to_dict() == {
        "L0H0": False, "L0H1": False, "L1H0": True, "L1H1": False
    }  # fmt: skip
    previous = found[found["effect"] == "previous"].set_index("x_head")["x_control"]
    assert previous["L0H0"] > 0.95
    assert previous["L0H1"] < 0.1
    copy = found[found["effect"] == "copy"].iloc[0]
    assert copy["estimate"] < -5


def test_no_head_is_called_induction_where_none_looks_for_a_word():
    """The same circuit without the search: even attention is no induction, however well the second copy is told."""
    found = head_scores(circuit(False), **SETTINGS)
    assert not found["x_verdict"].fillna("").str.startswith("induction head").any()
    induction = found[(found["effect"] == "induction").to_numpy()]
    assert induction["estimate"].fillna(0).abs().max() < 1e-6


def test_scores_agree_with_a_pattern_by_hand():
    """T = 3 after BOS: the offsets are t - 1, t - T, t - T + 1 and 0, and nothing else is read."""
    T, t = 3, np.array([4, 5, 6])
    A = torch.zeros(5, 7, 7)
    for row in t:
        A[0, row, row - 1] = A[1, row, row - T] = A[2, row, row - T + 1] = A[3, row, 0] = 1.0
        A[4, row, : row + 1] = 1 / (row + 1)
    found = _scores(A, t, T)
    assert_allclose(found[:4, :4], np.eye(4), atol=1e-7)
    assert_allclose(found[4], [0, 0, 0, 0, np.log2([5, 6, 7]).mean()], atol=1e-6)


def test_even_attention_scores_as_uniform():
    """A head of the circuit that attends evenly has exactly the reference, in both kinds of sequences."""
    sequences = draw_sequences(circuit(False), 4, lengths=(8, 10), seed=0)
    for repeated in (True, False):
        read = read_scores(circuit(False), sequences, repeated=repeated)
        assert_allclose(read[:, :, 3], uniform_scores(sequences), atol=1e-6)


def test_sequences_repeat_and_their_controls_do_not():
    """Distinct tokens; the control shares the first half and nothing after it; draws depend on the seed alone."""
    made, again = (draw_sequences(toy(), 5, lengths=(4, 9), seed=3) for _ in range(2))
    for i in range(5):
        T = int(made.lengths[i])
        s, rest = made.repeated[i][:T], made.control[i][T:]
        assert (made.repeated[i][T:] == s).all()
        assert len(set(s)) == T
        assert not set(s) & set(rest)
        assert (made.control[i][:T] == s).all()
        assert (made.repeated[i] == again.repeated[i]).all()
    with pytest.raises(DataError, match="do not fit a context of 32"):
        draw_sequences(toy(), 2, lengths=(4, 40), seed=0)


def test_specials_of_a_tokenizer_are_never_drawn():
    """BOS begins every sequence and is not among the drawn tokens."""
    from tests.causal.scenes import embedded

    made = draw_sequences(embedded(), 6, lengths=(16, 20), seed=0)
    assert made.first == 1
    assert all(row[0] == 0 and (row[1:] != 0).all() for row in (*made.repeated, *made.control))


def test_losses_agree_with_cross_entropy_of_the_logits():
    """Mean -ln p over both copies without their first tokens, from the whole logits."""
    sequences = draw_sequences(toy(), 3, lengths=(4, 7), seed=2)
    found = copy_losses(toy(), sequences)
    for i in range(3):
        T, ids = int(sequences.lengths[i]), torch.as_tensor(sequences.repeated[i])[None]
        with torch.inference_mode():
            logp = toy().bridge(ids, return_type="logits").log_softmax(-1)[0]
        loss = -logp[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
        assert_allclose(found[i], [loss[: T - 1].mean(), loss[T:].mean()], atol=1e-5)


def test_lengths_of_outputs_agree_with_the_weights():
    """|z W_O| of every head from the weights; controls are heads of the same layer, nearest in that length."""
    sequences = draw_sequences(toy(), 4, lengths=(4, 7), seed=2)
    norms, means = head_outputs(toy(), sequences)
    W_O, total, n = toy().bridge.W_O.detach(), np.zeros((2, 2)), 0
    for i, ids in enumerate(sequences.repeated):
        with torch.inference_mode():
            kept = toy().bridge.run_with_cache(torch.as_tensor(ids)[None])[1]
        for layer in range(2):
            z = kept[f"blocks.{layer}.attn.hook_z"][0, sequences.second(i)].reshape(-1, 2, 8)
            total[layer] += [float((z[:, h] @ W_O[layer, h]).norm(dim=-1).sum()) for h in range(2)]
        n += int(sequences.lengths[i])
    assert_allclose(norms, total.ravel() / n, rtol=1e-4)
    assert len(means) == 4
    made = ablate_heads(toy(), sequences, n_controls=1)
    assert [c.tolist() for c in made.controls] == [[1], [0], [3], [2]]
    assert_allclose(made.ratio[:2], max(norms[0] / norms[1], norms[1] / norms[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("effect", "change", "said"),
    [
        ("induction", {"p_corr": 0.2}, "no more attention than the same offset"),
        ("induction", {"estimate": -0.5}, "no more attention than the same offset"),
        ("copy", {"estimate": 0.5}, "not predicted better"),
        ("copy", {"p_corr": 0.3}, "not predicted better"),
        ("ablation", {"p_corr": 0.3}, "no more than replacing its controls"),
        ("ablation", {"estimate": -0.3}, "no more than replacing its controls"),
        ("ablation", {"x_rise": -0.1}, "no more than replacing its controls"),
    ],
)
def test_each_of_the_three_tests_is_needed(effect, change, said):
    """A head that fails one of them is not called induction, and the verdict says which."""
    import pandas as pd

    table = pd.concat(head_rows(), ignore_index=True)
    assert verdicts(table)["x_verdict"].dropna().iloc[0].startswith("induction head")
    row = (table["effect"] == effect) & (table["feature"].isna() if effect == "copy" else table["feature"] == 0)
    for name, value in change.items():
        table.loc[row.fillna(False), name] = value
    words = verdicts(table)["x_verdict"].dropna().iloc[0]
    assert words.startswith("not an induction head")
    assert said in words


def test_too_few_sequences_are_refused():
    """Five sequences reach no p of .05."""
    with pytest.raises(DataError, match="use at least 6"):
        head_scores(toy(), n_sequences=5, seed=0)
    assert len(SCORES) == 5
