"""Single attention weights, and queries, keys and values of one head: patched as by hand, refused where impossible."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.causal.edits import Edit
from neurosae.causal.entries import mean_of_others
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.patched import every_hook, patching_results
from neurosae.causal.patching import Patching, patch, patch_grid
from neurosae.causal.prompts import read_prompts, tokens_at
from neurosae.causal.replacements import Thing
from neurosae.errors import DataError, ModelError
from neurosae.extraction.model import load_model
from tests.extraction.conftest import TOY

BETWEEN = {"a": ("present", "absent")}
PATTERN = "blocks.0.attn.hook_pattern"


@pytest.fixture(scope="module")
def embedded():
    return load_model("embedded")


@pytest.fixture(scope="module")
def pair():
    rows = [("key", "sg", "The key to the cabinets", " is"), ("key", "pl", "The keys to the cabinets", " are")]
    table = pd.DataFrame(rows, columns=["item", "number", "text", "target"]).assign(frame="f")
    table["foil"] = table["target"].map({" is": " are", " are": " is"})
    ends = table["text"].str.find(" to")
    return table.assign(noun_start=4, noun_end=ends, last_start=table["text"].str.rfind(" ") + 1,
                        last_end=table["text"].str.len())  # fmt: skip


def logit_difference(model, ids, answers, *, hook=None):
    """Of a plain pass, whose hook point one function may change."""
    hooks = [] if hook is None else [hook]
    with torch.no_grad():
        out = model.bridge.run_with_hooks(torch.as_tensor(ids)[None], fwd_hooks=hooks, return_type="logits")[0, -1]
    return float(out[answers[0]] - out[answers[1]])


def test_one_weight_agrees_with_a_pass_by_hand(embedded, pair):
    """The weight of one head from the last token to the noun, taken from the other text: as by a hook of our own."""
    hook = "blocks.1.attn.hook_pattern.h3"
    found = patch(pair, embedded, [Thing(hook, keys="noun")], between={"number": ("pl", "sg")}, regions=["last"])
    prompts = read_prompts(pair.iloc[::-1], embedded)
    clean, other = prompts.ids
    got = {}
    with torch.no_grad():
        keep = ("blocks.1.attn.hook_pattern", lambda x, hook: got.update(x=x.clone()))
        embedded.bridge.run_with_hooks(torch.as_tensor(other)[None], fwd_hooks=[keep], return_type=None)
    (q, q_other), (k, k_other) = (tokens_at(prompts, region) for region in ("last", "noun"))
    n, m = min(len(q), len(q_other)), min(len(k), len(k_other))

    def by_hand(x, hook):
        for a, b in zip(q[len(q) - n :], q_other[len(q_other) - n :], strict=True):
            for c, d in zip(k[len(k) - m :], k_other[len(k_other) - m :], strict=True):
                x[0, 3, a, c] = got["x"][0, 3, b, d]
        return x

    answers = int(prompts.target[0]), int(prompts.foil[0])
    wanted = logit_difference(embedded, clean, answers, hook=("blocks.1.attn.hook_pattern", by_hand))
    row = found[found["direction"] == "noising"].iloc[0]
    assert row["y_clean"] == pytest.approx(logit_difference(embedded, clean, answers), abs=1e-4)
    assert row["y_patched"] == pytest.approx(wanted, abs=1e-4)
    assert abs(row["effect"]) > 1e-4
    assert "need not add up to 1" in row["note"]


@pytest.mark.parametrize("point", ["hook_q", "hook_k", "hook_v", "hook_z"])
def test_vectors_of_one_head_agree_with_a_pass_by_hand(embedded, pair, point):
    """Queries, keys, values and outputs of one head at one token, set to zero."""
    hook, one = f"blocks.1.attn.{point}", pair.iloc[[0]]
    prompts = read_prompts(one, embedded)
    at = len(prompts.ids[0]) - 1 if point in ("hook_q", "hook_z") else 2
    edit = Edit(f"{hook}.h2", "replace", [np.array([at])], vector=np.zeros(32, dtype=np.float32))
    found = edited_outcomes(one, embedded, [(edit,)])

    def by_hand(x, hook):
        x[0, at, 2] = 0
        return x

    answers = int(prompts.target[0]), int(prompts.foil[0])
    wanted = logit_difference(embedded, prompts.ids[0], answers, hook=(hook, by_hand))
    assert found.values["logit_diff"][0, 0] == pytest.approx(wanted, abs=1e-4)
    assert abs(found.values["logit_diff"][0, 0] - found.clean["logit_diff"][0]) > 1e-5


def test_attention_to_the_concept_carries_it(linear_circuit):
    """Without attention from the last token to the word of A, four heads together lose its 4 logits; to B, nothing."""
    circuit = linear_circuit(False)
    things = [Thing(f"{PATTERN}.h{h}", keys=key) for key in ("first", "second") for h in range(4)]
    rows = circuit.stimuli[circuit.stimuli["b"] == "absent"]
    rows.attrs.update(circuit.stimuli.attrs)
    given = {"between": BETWEEN, "regions": ["last"]}
    table = patch(rows, circuit.model, things, settings=Patching("zero"), **given)
    lost = table.groupby("thing")["effect"].mean()
    whole = patch(rows, circuit.model, ["blocks.0.hook_resid_post"], **given)
    carried = whole.loc[whole["direction"] == "noising", "effect"].mean()
    assert lost[[f"{PATTERN}.h{h} to first" for h in range(4)]].sum() == pytest.approx(carried, rel=0.02)
    assert_allclose(lost[[f"{PATTERN}.h{h} to second" for h in range(4)]], 0, atol=0.05)


def test_weights_are_tested_like_other_places(linear_circuit):
    """One family over heads and keys, with the region of the keys in the row; equal weights are no effect."""
    circuit = linear_circuit(False)
    heads = every_hook(["blocks.0.attn.hook_pattern.h*"], circuit.model)
    assert heads == [f"{PATTERN}.h{h}" for h in range(4)]
    things = [Thing(hook, keys="first") for hook in heads]
    grid = patch_grid(circuit.stimuli, circuit.model, things, between=BETWEEN, regions=["last"],
                      settings=Patching("zero"))  # fmt: skip
    table = patching_results(grid, circuit.stimuli, between=BETWEEN)
    assert set(table["set"]) == {"attention to first"}
    assert table["x_keys"].eq("first").all()
    assert table["p_corr"].le(0.05).all()
    same = patch_grid(circuit.stimuli, circuit.model, things, between=BETWEEN, regions=["last"])
    silent = patching_results(same, circuit.stimuli, between=BETWEEN)
    assert set(silent["status"]) == {"untestable"}  # attention is uniform here: both texts have the same weights


def test_keys_after_the_query_stay_and_rows_do_not_mix(embedded, pair):
    """A region that reaches over the diagonal sets what lies below it, in the rows of its condition alone."""
    n = [len(ids) for ids in read_prompts(pair, embedded).ids]
    where = [np.array([2, 4])] * 2
    given = {"keys": [np.array([1, 3])] * 2, "vector": [np.array([[0.5, 9.0], [0.2, 0.1]])] * 2}
    edit = Edit("blocks.0.attn.hook_pattern.h1", "replace", where, **given)
    both = edited_outcomes(pair, embedded, [(edit,), ()])
    assert both.values["logit_diff"][:, 1] == pytest.approx(both.clean["logit_diff"])

    def by_hand(x, hook):
        x[0, 1, 2, 1], x[0, 1, 4, 1], x[0, 1, 4, 3] = 0.5, 0.2, 0.1
        return x

    prompts = read_prompts(pair, embedded)
    for i in range(2):
        answers = int(prompts.target[i]), int(prompts.foil[i])
        wanted = logit_difference(embedded, prompts.ids[i], answers, hook=("blocks.0.attn.hook_pattern", by_hand))
        assert both.values["logit_diff"][i, 0] == pytest.approx(wanted, abs=1e-4)
    assert min(n) > 4


def test_the_mean_leaves_the_own_item_out():
    """Aligned at the ends, over other items; too short ones are said."""
    made = [np.full((2, 2), 0.5), np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0.8]])]
    items = np.array(["a", "b", "c"])
    assert_allclose(mean_of_others(made, items, item="a", shape=(2, 2)), [[0.1, 0.2], [0.3, 0.6]])
    with pytest.raises(DataError, match="no other item has as many"):
        mean_of_others(made[1:], items[1:], item="b", shape=(2, 2))


def test_the_mean_of_others_counts_from_the_end():
    """Queries and keys of texts of other lengths are told apart by how far they are from the last."""
    values = [np.zeros((2, 2)), np.array([[9.0, 9.0, 9.0], [9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]), np.array([[5.0, 6.0]])]
    found = mean_of_others(values, np.array(["a", "b", "c"]), item="a", shape=(2, 2))
    assert found.tolist() == [[1.0, 2.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    ("thing", "region", "error", "message"),
    [
        ((f"{PATTERN}.h9", "noun"), "last", ModelError, "there are 8 heads"),
        ((PATTERN, "noun"), "last", ModelError, "names no head"),
        (("blocks.9.attn.hook_pattern.h0", "noun"), "last", ModelError, "no hook point"),
        ((f"{PATTERN}.h0", "last"), "noun", DataError, "keys come after the queries"),
        ((f"{PATTERN}.h0", ""), "last", DataError, "attention weights have keys"),
        (("blocks.0.attn.hook_z.h0", "noun"), "last", DataError, "attention weights have keys"),
    ],
)
def test_weights_that_cannot_be_patched_are_refused(embedded, pair, thing, *, region, error, message):
    """Heads, layers and keys that are not there; weights without keys, and keys of something else."""
    with pytest.raises(error, match=message):
        patch(pair, embedded, [Thing(thing[0], keys=thing[1])], between={"number": ("pl", "sg")}, regions=[region])


def test_edits_of_weights_are_refused_where_they_mean_nothing(embedded, pair):
    """Other modes, wrong shapes, the same weight twice, noise, and a model that does not look at its patterns."""
    hook, where = f"{PATTERN}.h0", [np.array([3])] * 2
    with pytest.raises(DataError, match="does not edit attention weights"):
        Edit(hook, "add", where, vector=np.zeros(1), keys=where)
    with pytest.raises(DataError, match="have queries and keys"):
        Edit(hook, "replace", where, vector=np.zeros(1))
    one = Edit(hook, "replace", where, vector=[np.zeros((1, 1))] * 2, keys=where)
    with pytest.raises(DataError, match="twice, at token 3"):
        edited_outcomes(pair, embedded, [(one, one)])
    other = Edit(hook, "replace", where, vector=[np.zeros((1, 1))] * 2, keys=[np.array([1])] * 2)
    assert edited_outcomes(pair, embedded, [(one, other)]).moved.min() > 0
    flat = Edit(hook, "replace", where, vector=np.zeros(1), keys=where)
    with pytest.raises(DataError, match="one array"):
        edited_outcomes(pair, embedded, [(flat,)])
    given = {"between": {"number": ("pl", "sg")}, "regions": ["last"]}
    with pytest.raises(DataError, match="which are shares"):
        patch(pair, embedded, [Thing(hook, keys="noun")], settings=Patching("noise"), **given)
    toy = load_model(TOY)
    deaf = Edit(hook, "replace", [np.array([3])], vector=[np.array([[0.9]])], keys=[np.array([1])])
    texts = pd.DataFrame({"text": ["A dog there"], "target": ["s"], "foil": ["!"]})
    with pytest.raises(ModelError, match="no logit that is scored"):
        edited_outcomes(texts, toy, [(deaf,)])
