"""Found strings: the verdict follows the rule, surprisals are the model's, and whatever cannot be said is said so."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.dictionary.record import neuron_dictionary
from neurosae.examine.examples import examples_of
from neurosae.examine.inversion import invert_feature, surprisal_at
from neurosae.examine.seen import watch
from neurosae.examine.verdicts import judge_strings, rule_verdict
from neurosae.extraction.tokens import agreed_bos, token_ids


def rule(*, says, auroc=0.9, p=0.01, note=None, **rest):
    words = "–" if says is None else json.dumps(says)
    return {"feature": 9, "rule": words, "says": words, "auroc": auroc, "p_corr": p, "note": note, **rest}


TOKEN = {"columns": ["token"], "among": ["x"]}
OTHER = {"columns": ["token"], "among": ["y"]}


@pytest.mark.parametrize(
    ("rules", "predicted", "said"),
    [
        ([rule(says=TOKEN)], True, "counts: its rule predicts it"),
        ([rule(says={"columns": ["previous"], "among": ["x"]})], False, "does not count: its rule does not predict it"),
        ([rule(says=TOKEN, p=0.06)], None, "does not count: no rule holds; the best has p 0.06"),
        ([rule(says={"factor": "number", "level": "pl"})], None, "speaks of a level of the design"),
        ([rule(says=None, auroc=np.nan, note="is active on no token; no rule can be scored.")], None,
         "does not count: the feature is active on no token"),
        ([], None, "no rule was looked for"),
        # running text before the study's own; what cannot be scored there does not hide what can be here
        ([rule(says=TOKEN, source="study"), rule(says=OTHER, source="text")], False, "does not predict"),
        ([rule(says=TOKEN, source="study"), rule(says=None, auroc=np.nan, source="text")], True, "counts"),
        # the second of a source is not the feature's rule
        ([rule(says=OTHER, source="text"), rule(says=TOKEN, auroc=0.8, source="text")], False, "does not predict"),
    ],
)  # fmt: skip
def test_verdict_follows_the_rule(rules, predicted, said):
    """The best rule of the source, read at the last token; a rule that does not hold predicts nothing."""
    found = rule_verdict(pd.DataFrame(rules), ["a", "b", " X"])
    assert found.predicted is predicted
    assert said in found.words
    assert found.words.startswith("counts: ") == (predicted is True)


def test_surprisal_agrees_with_the_models_own_loss(toy, made_dictionary):
    """Mean bits of the last n tokens given all before them, BOS included."""
    ids = [64, 70, 80, 65, 90]
    batch = torch.tensor([[256, *ids]])
    with torch.inference_mode():
        logp = toy.bridge(batch, return_type="logits", attention_mask=torch.ones_like(batch)).float().log_softmax(-1)
    bits = [-float(logp[0, i, t]) / np.log(2) for i, t in enumerate(ids)]
    for n in (1, 3, 5, 50):
        assert_allclose(surprisal_at(toy, made_dictionary(1), ids, n=n), np.mean(bits[-n:]), atol=1e-4)


def test_judged_strings_have_what_stands_beside_them(toy, words):
    """Verdict, the median surprisal of the strongest examples, whether typing gives the same tokens."""
    dictionary = neuron_dictionary("blocks.1.hook_resid_post", 16)
    seen = watch(toy, {"s": dictionary}, words, features={"s": [3]})["s"]
    tokens: Any = agreed_bos(toy.tokens, {"s": dictionary})
    examples = examples_of(seen, words, tokens).assign(source="text")
    found = invert_feature(toy, dictionary, 3, n_tokens=2).tail(1).assign(feature=3)
    rules = pd.DataFrame([rule(says={"columns": ["first"]}, source="text") | {"feature": 3}])
    made = judge_strings(toy, dictionary, found, rules=rules, examples=examples, seen={"text": seen}).iloc[0]
    assert (made["predicted"], made["rule_source"]) == (False, "text")  # the last of two tokens is not the first
    top = examples[examples["kind"] == "top"]
    bits = []
    for _, row in top.iterrows():
        mine = (seen.text == row["text"]) & (seen.token_index <= row["token_index"])
        mine &= seen.token_index >= seen.start[np.flatnonzero(mine)[-1]]
        bits.append(surprisal_at(toy, dictionary, seen.ids[mine].tolist(), n=2))
    assert_allclose(made["surprisal_examples"], np.median(bits))
    assert made["n_examples"] == len(top) == 5
    assert made["typed"] == (token_ids(tokens, [made["text"]], specials=False)[0] == made["token_ids"])
    silent = judge_strings(toy, dictionary, found, rules=rules[:0], examples=examples[:0], seen={"text": seen}).iloc[0]
    assert pd.isna(silent["predicted"])
    assert np.isnan(silent["surprisal_examples"])
    assert silent["n_examples"] == 0
