"""Interventions against a forward pass by hand, on planted circuits, small checkpoints and the embedded model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.causal import passes, plan
from neurosae.causal.edits import Edit
from neurosae.causal.outcomes import Activation
from neurosae.causal.passes import edited_outcomes
from neurosae.dictionary.kinds import neuron_dictionary
from neurosae.dictionary.record import read_folder
from neurosae.errors import DataError, ModelError
from neurosae.extraction.model import load_model
from neurosae.extraction.source import EMBEDDED
from neurosae.extraction.tokens import encode
from tests.causal.circuits import HOOK, A, B
from tests.extraction.conftest import TOY, save_checkpoint

PROMPTS = pd.DataFrame(
    {"text": ["The key", "The dogs near the old house", "cabinets"], "target": [" is", " are", " was"],
     "foil": [" are", " is", " is"]}, index=["a", "b", "c"],
)  # fmt: skip


def edit(circuit, features, mode="clamp", *, dose=0.0, where="target"):
    return Edit(HOOK, mode, where, circuit.dictionary, features, dose)


def cell(circuit, a, b):
    return circuit.stimuli[(circuit.stimuli["a"] == a) & (circuit.stimuli["b"] == b)]


def interaction(values):
    return values[:, 3] - values[:, 1] - values[:, 2] + values[:, 0]


def joint(circuit, stimuli, freeze="none", *, mode="clamp", dose=1.0):
    edits = [edit(circuit, features, mode, dose=dose) for features in ((A,), (B,), (A, B))]
    return edited_outcomes(stimuli, circuit.model, [(), *((e,) for e in edits)], freeze=freeze).values["logit_diff"]


# --- by hand --------------------------------------------------------------------------------------------------------


def by_hand(plain, layer, ids, *, at, change):
    """Logits of a model of transformers whose residual stream after a layer is changed at one token."""
    stack = plain.transformer.h if hasattr(plain, "transformer") else plain.model.layers

    def hook(module, inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        x[0, at] = x[0, at] + change(x[0, at])
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = stack[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return plain(torch.as_tensor(ids)[None]).logits[0]
    finally:
        handle.remove()


def clamp_by_hand(dictionary, feature, dose):
    """(dose - f) W_dec with f by the definition of a TopK encoder, on one vector."""

    def change(x):
        z = dictionary.W_enc @ (x - dictionary.b_dec) + dictionary.b_enc
        kept = z.topk(dictionary.k).indices
        f = z[feature].clamp(min=0) if feature in kept else 0.0
        return (dose - f) * dictionary.W_dec[feature]

    return change


def test_clamp_agrees_with_a_pass_by_hand_on_the_embedded_model():
    """One clamp of an early and of a late feature, at one token: the logits of plain transformers, to rounding."""
    plain = transformers.GPT2LMHeadModel.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    model = load_model("embedded", device="cpu")
    stimuli = pd.DataFrame({"text": ["The key to the cabinets"], "target": [" is"], "foil": [" are"]})
    ids = encode(model.tokens, stimuli["text"].tolist())[0].ids
    target, foil = (encode(model.tokens, ["The key to the cabinets" + w])[0].ids[-1] for w in (" is", " are"))
    for name, layer in (("early", 1), ("late", 3)):
        dictionary = read_folder(EMBEDDED.parent / name)
        for where, at in (("target", len(ids) - 1), ([np.array([2])], 2)):
            asked = Edit(dictionary.hook, "clamp", where, dictionary, (7,), 12.0)
            logits = by_hand(plain, layer, ids, at=at, change=clamp_by_hand(dictionary, 7, 12.0))[-1]
            if layer == 3 and at == 2:
                continue  # the last layer does not reach another token
            got = edited_outcomes(stimuli, model, [(asked,)], outcomes=("logit_diff", "log_prob"))
            assert_allclose(got.values["logit_diff"][0, 0], float(logits[target] - logits[foil]), atol=2e-5)
            assert_allclose(got.values["log_prob"][0, 0], float(logits.log_softmax(0)[target]), atol=2e-5)
            assert abs(got.values["logit_diff"] - got.clean["logit_diff"]).max() > 0.05


@pytest.mark.parametrize("name", ["stories260K", "bitllama3M"])
def test_clamp_agrees_with_a_pass_by_hand_on_small_checkpoints(shared_data, name):
    """A coordinate of the stream is set at one token of real checkpoints; transformers gives the same logits."""
    folder = shared_data(f"models/{name}")
    model = load_model(folder, device="cpu")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stimuli = pd.DataFrame({"text": ["Once upon a time there was a dog"], "target": [" and"], "foil": [" was"]})
    ids = encode(model.tokens, stimuli["text"].tolist())[0].ids
    raw = neuron_dictionary("blocks.2.hook_resid_post", model.d_model)

    def change(x):
        out = torch.zeros_like(x)
        out[5] = 3.0 - x[5].clamp(min=0)
        return out

    asked = Edit(raw.hook, "clamp", [np.array([4])], raw, (5,), 3.0)
    logits = by_hand(plain, 2, ids, at=4, change=change)[-1]
    got = edited_outcomes(stimuli, model, [(asked,)])
    target, foil = (encode(model.tokens, [stimuli["text"][0] + w])[0].ids[-1] for w in (" and", " was"))
    assert_allclose(got.values["logit_diff"][0, 0], float(logits[target] - logits[foil]), atol=1e-4)
    assert abs(got.values["logit_diff"] - got.clean["logit_diff"]).max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "mistral"])
def test_edits_agree_with_one_pass_each(tmp_path, family):
    """Many conditions in one pass, with padding and shared layers, equal a plain pass for each."""
    model = load_model(save_checkpoint(tmp_path / family, family), device="cpu")
    texts = PROMPTS.drop(columns=["target", "foil"])
    raw = neuron_dictionary("blocks.1.hook_resid_post", 32)
    vector = np.linspace(-1, 1, 32)
    conditions = [
        (Edit(raw.hook, "steer", "all", raw, (3,), 2.0),),
        (Edit("blocks.1.hook_attn_out", "add", "all", vector=vector),),
        (Edit("blocks.2.attn.hook_z.h1", "replace", "all", vector=np.zeros(8)),),
    ]
    last = [np.array([len(e.ids) - 2]) for e in encode(model.tokens, texts["text"].tolist())]
    conditions.append((Edit("blocks.1.mlp.hook_post", "replace", last, vector=np.ones(model.bridge.cfg.d_mlp)),))
    got = edited_outcomes(texts, model, conditions, outcomes=("loss",))
    changes = [
        (raw.hook, lambda x: x + 2.0 * (torch.arange(32) == 3)),
        ("blocks.1.hook_attn_out", lambda x: x + torch.tensor(vector, dtype=torch.float32)),
        ("blocks.2.attn.hook_z", None),
        ("blocks.1.mlp.hook_post", None),
    ]
    first = model.tokens.first
    for s, text in enumerate(texts["text"]):
        ids = torch.as_tensor(encode(model.tokens, [text])[0].ids)[None]
        for c, (point, change) in enumerate(changes):

            def hook(x, hook, *, c=c, change=change):
                new = x.clone()
                if c == 2:
                    new[:, first:, 1] = 0
                elif c == 3:
                    new[:, -2] = 1
                else:
                    new[:, first:] = change(x)[:, first:]
                return new

            with torch.inference_mode():
                logits = model.bridge.run_with_hooks(
                    ids, fwd_hooks=[(point, hook)], return_type="logits", attention_mask=torch.ones_like(ids)
                )
            log_p = logits[0, :-1].log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
            assert_allclose(got.values["loss"][s, c], -float(log_p.mean()), atol=1e-5)
    assert (got.record["shared_layers"] == 0) == (family == "mistral")
    alone = edited_outcomes(texts, model, conditions[:1], outcomes=("loss",))  # parts after layer 1, not before it
    assert alone.record["shared_layers"] == (0 if family == "mistral" else 2)
    assert_allclose(alone.values["loss"][:, 0], got.values["loss"][:, 0], atol=1e-5)


def test_shared_layers_change_nothing(monkeypatch):
    """Layers below the first edit, run once per stimulus, give the numbers of rows that are apart throughout."""
    model = load_model("embedded", device="cpu")
    dictionary = read_folder(EMBEDDED.parent / "late")
    stimuli = pd.DataFrame(
        {"text": ["The key to the cabinets", "The dogs", "One old house near the"], "target": " is", "foil": " are"}
    )
    conditions = [(Edit(dictionary.hook, "clamp", "all", dictionary, (j,), 5.0),) for j in range(12)]
    shared = edited_outcomes(stimuli, model, conditions, outcomes=("logit_diff", "kl"))
    monkeypatch.setattr(plan, "may_share", lambda model: False)
    apart = edited_outcomes(stimuli, model, conditions, outcomes=("logit_diff", "kl"), batch_tokens=40)
    assert shared.record["shared_layers"] == 4
    assert apart.record["shared_layers"] == 0
    assert apart.record["passes"] > 3 * shared.record["passes"]
    for name in ("logit_diff", "kl"):
        assert_allclose(shared.values[name], apart.values[name], atol=5e-6)


# --- planted truth --------------------------------------------------------------------------------------------------


def test_and_neuron_needs_both(and_circuit):
    """Clamped into 00 and ablated from 11: one concept alone does nothing, both together 4 logits; frozen too."""
    for freeze in ("none", "final", "downstream"):
        into = joint(and_circuit, cell(and_circuit, "absent", "absent"), freeze)
        out_of = joint(and_circuit, cell(and_circuit, "present", "present"), freeze, mode="ablate", dose=0.0)
        assert_allclose(interaction(into), 4.0, atol=0.1)
        assert_allclose(interaction(out_of), 4.0, atol=0.1)
        assert np.abs(into[:, [1, 2]] - into[:, [0]]).max() < 0.01


def test_norm_alone_makes_an_interaction_that_freezing_removes(linear_circuit):
    """A linear reading behind the final norm interacts by more than .4 logits when free, and not when frozen."""
    made = linear_circuit(True)
    for mode, cells in (("clamp", ("absent", "absent")), ("ablate", ("present", "present"))):
        free, frozen = (
            joint(made, cell(made, *cells), f, mode=mode, dose=float(mode == "clamp")) for f in ("none", "final")
        )
        assert np.abs(interaction(free)).min() > 0.4
        assert np.abs(interaction(frozen)).max() < 1e-4
    without = joint(linear_circuit(False), cell(linear_circuit(False), "absent", "absent"))
    assert np.abs(interaction(without)).max() < 1e-3
    assert_allclose(without[:, 1] - without[:, 0], 4.0, atol=0.05)


def test_modes_do_what_they_say(linear_circuit):
    """At concept A of strength 1 in a linear circuit of 4 logits per unit: every mode has its known effect."""
    made = linear_circuit(False)
    here, absent = (made.stimuli[made.stimuli["a"] == level] for level in ("present", "absent"))
    known = {"ablate": -4, "clamp": 8, "conditional": 8, "scale": 8, "steer": 12}
    known_absent = {"ablate": 0, "clamp": 12, "conditional": 0, "scale": 0, "steer": 12}
    conditions = [(edit(made, (A,), mode, dose=0.0 if mode == "ablate" else 3.0),) for mode in known]
    row = made.dictionary.W_dec[A].numpy()
    conditions.append((Edit(HOOK, "add", "target", vector=-2 * row),))
    for stimuli, effect in ((here, known), (absent, known_absent)):
        found = edited_outcomes(stimuli, made.model, conditions)
        change = found.values["logit_diff"] - found.clean["logit_diff"][:, None]
        assert_allclose(change, np.tile([*effect.values(), -8], (len(stimuli), 1)), atol=0.02)


def test_replace_takes_the_vector_of_another_text(linear_circuit):
    """With the vector of the partner text at the target token, a text predicts what its partner predicts."""
    made = linear_circuit(True)
    here, other = cell(made, "present", "absent"), cell(made, "absent", "absent")
    grab = edited_outcomes(other, made.model, [()]).clean["logit_diff"]
    ids = [e.ids[:-1] for e in encode(made.model.tokens, other["text"].tolist())]
    with torch.inference_mode():
        _, cache = made.model.bridge.run_with_cache(torch.as_tensor(np.array(ids)))
    vectors = cache[HOOK][:, -1].numpy()
    found = edited_outcomes(here, made.model, [(Edit(HOOK, "replace", "target", vector=vectors),)])
    assert_allclose(found.values["logit_diff"][:, 0], grab, atol=1e-4)
    assert np.abs(grab - found.clean["logit_diff"]).min() > 1


def test_a_later_site_sees_the_earlier_edit(and_circuit):
    """B is clamped to 0 where A and B are made at another site: the second edit acts on what the first one left."""
    stimuli = cell(and_circuit, "absent", "absent")
    model, concepts = and_circuit.model, and_circuit.dictionary
    later = replace(concepts, hook="blocks.1.hook_resid_pre")
    both = edit(and_circuit, (A, B), "clamp", dose=1.0)
    undo = Edit(later.hook, "ablate", "target", later, (B,))
    found = edited_outcomes(stimuli, model, [(both,), (both, undo), (undo, both), (undo,)])
    change = found.values["logit_diff"] - found.clean["logit_diff"][:, None]
    assert_allclose(change, np.tile([4.0, 0, 0, 0], (len(stimuli), 1)), atol=0.1)
    assert (change[:, 3] == 0).all()  # B is not there, so nothing is taken away


def test_activation_as_an_outcome(and_circuit):
    """The clamped feature reads its dose downstream, another one what it had."""
    later = replace(and_circuit.dictionary, hook="blocks.1.hook_resid_pre")
    stimuli = cell(and_circuit, "absent", "present")
    reads = [Activation(later, A), Activation(later, B)]
    found = edited_outcomes(stimuli, and_circuit.model, [(edit(and_circuit, (A,), "clamp", dose=2.5),)], outcomes=reads)
    assert_allclose(found.values[f"{later.hook}/{A}"][:, 0], 2.5, atol=1e-4)
    assert_allclose(found.clean[f"{later.hook}/{A}"], 0)
    assert_allclose(found.values[f"{later.hook}/{B}"][:, 0], found.clean[f"{later.hook}/{B}"], atol=1e-4)
    assert_allclose(found.clean[f"{later.hook}/{B}"], 1.0, atol=0.05)


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_outcomes_agree_with_the_logits(and_circuit):
    """Each named outcome equals its formula on logits of a plain pass."""
    stimuli, model = cell(and_circuit, "present", "present")[:3], and_circuit.model
    coded = encode(model.tokens, stimuli["text"].tolist())
    ids = torch.as_tensor(np.array([e.ids for e in coded]))
    names = ("logit_diff", "log_prob", "accuracy", "surprisal", "surprisal:answer", "loss", "kl", "kl:target")
    found = edited_outcomes(stimuli, model, [(edit(and_circuit, (A,), "ablate"),)], outcomes=names)

    def hook(x, hook):
        new = x.clone()
        f = x[:, -2] @ and_circuit.dictionary.W_enc[A]
        new[:, -2] -= f[:, None] * and_circuit.dictionary.W_dec[A]
        return new

    with torch.inference_mode():
        clean, changed = (
            model.bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits", attention_mask=torch.ones_like(ids))
            .double()
            .log_softmax(-1)
            for hooks in ([], [(HOOK, hook)])
        )
    yes, no = (model.tokens.backend.token_to_id(w) for w in ("yes", "no"))
    each = changed[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    kl = (clean.exp() * (clean - changed)).sum(-1)
    wanted = {
        "logit_diff": changed[:, -2, yes] - changed[:, -2, no], "log_prob": changed[:, -2, yes],
        "accuracy": (changed[:, -2, yes] > changed[:, -2, no]).double(), "surprisal": -each.sum(1) / np.log(2),
        "surprisal:answer": -each[:, -1] / np.log(2), "loss": -each.mean(1), "kl": kl[:, :-1].mean(1),
        "kl:target": kl[:, -2],
    }  # fmt: skip
    for name in names:
        assert_allclose(found.values[name][:, 0], wanted[name].numpy(), atol=2e-5, err_msg=name)
    assert (found.clean["accuracy"] == 1).all()
    assert (found.clean["kl"] == 0).all()


def test_moved_is_the_largest_change_of_a_logit(and_circuit):
    """It is the maximum over the vocabulary, not the change of the target's logit alone."""
    stimuli = cell(and_circuit, "present", "absent")
    asked = edit(and_circuit, (30,), "steer", dose=3.0)
    every = [lambda p, j=j: p.logits[:, j] - p.clean[:, j] for j in range(and_circuit.model.n_vocab)]
    for j, one in enumerate(every):
        one.__name__ = f"logit {j}"
    found = edited_outcomes(stimuli, and_circuit.model, [(asked,)], outcomes=every)
    changes = np.column_stack([found.values[f"logit {j}"][:, 0] for j in range(len(every))])
    assert_allclose(found.moved[:, 0], np.abs(changes).max(axis=1), rtol=1e-6)


# --- guards ---------------------------------------------------------------------------------------------------------


def test_nothing_edited_is_exactly_the_clean_run(and_circuit):
    """The empty condition, empty cells and an absent feature give the outcomes of the clean run, bit for bit."""
    stimuli = cell(and_circuit, "absent", "absent")
    nowhere = edit(and_circuit, (A,), "clamp", dose=5.0, where=[np.array([], dtype=int)] * len(stimuli))
    conditions = [(), (nowhere,), (edit(and_circuit, (A,), "ablate"),), (edit(and_circuit, (A,), "scale", dose=7.0),)]
    found = edited_outcomes(stimuli, and_circuit.model, conditions, outcomes=("logit_diff", "kl", "log_prob"))
    for name, clean in found.clean.items():
        assert_array_equal(found.values[name], np.tile(clean[:, None], (1, 4)))
    assert (found.moved == 0).all()


def test_specials_and_pads_are_never_edited(and_circuit):
    """`all` leaves BOS alone, and the numbers do not depend on what is padded beside."""
    longer = pd.concat([cell(and_circuit, "absent", "absent")[:1]])
    vector = 3 * and_circuit.dictionary.W_dec[A].numpy()
    bos = Edit("hook_embed", "add", [np.array([0])], vector=vector)
    every = Edit("hook_embed", "add", "all", vector=vector)
    each = Edit("hook_embed", "add", [np.arange(1, 5)], vector=vector)
    found = edited_outcomes(longer, and_circuit.model, [(every,), (each,), (bos,)]).values["logit_diff"][0]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert abs(found[2] - found[0]) > 0.01 or abs(found[2]) < 1  # BOS by index is another edit


@pytest.mark.parametrize(
    ("hook", "error", "message"),
    [
        ("blocks.1.hook_resid_pots", ModelError, "unknown hook point"),
        ("blocks.1.attn.hook_z.h9", ModelError, "there are 4 heads, h0 to h3"),
        ("blocks.1.hook_resid_mid", ModelError, "would miss the stream itself"),
        ("ln_final.hook_normalized", ModelError, "comes after the stack"),
        ("blocks.1.attn.hook_pattern", DataError, "have queries and keys"),
        ("blocks.1.hook_resid_post.h1", ModelError, "not one vector per head"),
    ],
)
def test_hooks_that_cannot_be_edited_are_refused(and_circuit, hook, *, error, message):
    """Unknown, headless, read-only and late hook points are named before anything runs."""
    with pytest.raises(error, match=message):
        edited_outcomes(and_circuit.stimuli[:2], and_circuit.model, [(Edit(hook, "add", "target", vector=np.ones(1)),)])


def test_edits_without_effect_are_an_error(linear_circuit):
    """The MLP of layer 1 is off in this circuit: its neurons move no logit, which is refused, not reported as 0."""
    made = linear_circuit(True)
    idle = Edit("blocks.1.mlp.hook_post", "add", "target", vector=np.ones(8))
    with pytest.raises(ModelError, match=r"condition 1 changes the activations .* no logit"):
        edited_outcomes(made.stimuli[:4], made.model, [(), (idle,)])


def test_edits_after_the_target_are_an_error(and_circuit):
    """Tokens after everything that is scored cannot change it."""
    with pytest.raises(DataError, match="after everything that is scored"):
        edited_outcomes(
            and_circuit.stimuli[:4], and_circuit.model, [(edit(and_circuit, (A,), "clamp", dose=1.0, where="answer"),)]
        )


def test_hooks_that_never_fire_are_an_error(and_circuit, monkeypatch):
    """A hook point that fired when it was checked and not in the pass is not passed over."""
    model = load_model(and_circuit.pair, device="cpu")
    plain, point = model.bridge.run_with_hooks, model.hooks["blocks.1.hook_mlp_out"]

    def deaf(*args, fwd_hooks=(), **settings):
        heard = [pair for pair in fwd_hooks if pair[0] != point or model.last_hook not in dict(fwd_hooks)]
        return plain(*args, fwd_hooks=heard, **settings)

    monkeypatch.setattr(model.bridge, "run_with_hooks", deaf)
    with pytest.raises(ModelError, match=f"never fired: {point}"):
        edited_outcomes(and_circuit.stimuli[:2], model, [(Edit(point, "add", "target", vector=np.ones(48)),)])


def test_contradicting_edits_are_refused(and_circuit):
    """One feature cannot have two doses in one condition; at different tokens it can."""
    stimuli, model = and_circuit.stimuli[:2], and_circuit.model
    one, other = edit(and_circuit, (A,), "clamp", dose=1.0), edit(and_circuit, (A, B), "steer", dose=1.0, where="last")
    with pytest.raises(DataError, match=f"sets feature {A} at {HOOK} twice"):
        edited_outcomes(stimuli, model, [(one, other)])
    edited_outcomes(stimuli, model, [(one, edit(and_circuit, (A,), "clamp", dose=1.0, where="word"))])


def test_targets_of_several_tokens_are_not_scored():
    """A target that is no single token has no logit: its stimulus is nan, with the reason; alone it is refused."""
    model = load_model(TOY, device="cpu")
    stimuli = pd.DataFrame({"text": ["a", "b"], "target": ["x", "xyz"], "foil": ["y", "z"]}, index=["one", "two"])
    raw = neuron_dictionary("blocks.1.hook_resid_post", 64)
    found = edited_outcomes(stimuli, model, [(Edit(raw.hook, "steer", "all", raw, (0,), 1.0),)])
    assert np.isfinite(found.values["logit_diff"][0, 0])
    assert np.isnan(found.values["logit_diff"][1, 0])
    assert "tokens" in found.record["unscored"]["two"]
    with pytest.raises(DataError, match="needs a target"):
        edited_outcomes(stimuli[1:], model, [()])


# --- memory ---------------------------------------------------------------------------------------------------------


def too_large(monkeypatch, most):
    """Passes of more than `most` rows run out of memory."""
    sizes, run = [], passes._run

    def fails(plan, batch):
        sizes.append(len(batch.stimulus))
        if len(batch.stimulus) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(plan, batch)

    monkeypatch.setattr(passes, "_run", fails)
    return sizes


def test_batches_are_halved_when_memory_runs_out(and_circuit, monkeypatch, capsys):
    """The same numbers in smaller passes; said once, counted, and no later pass is as large again."""
    d = and_circuit.dictionary
    conditions = [(Edit(d.hook, "steer", "last", dictionary=d, features=(j,), dose=1.0),) for j in range(6)] + [()]
    stimuli = and_circuit.stimuli.head(9)
    whole = edited_outcomes(stimuli, and_circuit.model, conditions, outcomes=("logit_diff", "kl"), freeze="final")
    assert whole.record["halved"] == 0
    sizes = too_large(monkeypatch, 20)
    made = edited_outcomes(stimuli, and_circuit.model, conditions, outcomes=("logit_diff", "kl"), freeze="final")
    for name in ("logit_diff", "kl"):
        assert_allclose(made.values[name], whole.values[name], atol=1e-4)
        assert_allclose(made.clean[name], whole.clean[name], atol=1e-4)
    assert_allclose(made.moved, whole.moved, atol=1e-4)
    assert made.record["halved"] == sum(size > 20 for size in sizes)
    assert made.record["passes"] == sum(size <= 20 for size in sizes)
    failed = [size for size in sizes if size > 20]
    assert failed == sorted(failed, reverse=True)
    assert max(sizes[len(failed) :]) <= failed[-1] // 2 + 1
    assert capsys.readouterr().err.count("memory ran out at") == 1


def test_one_text_that_does_not_fit_is_refused(and_circuit, monkeypatch):
    """No batch is smaller than a text with and without its edit; other errors are not taken for memory."""
    d = and_circuit.dictionary
    up = (Edit(d.hook, "steer", "last", dictionary=d, features=(0,), dose=1.0),)
    too_large(monkeypatch, 1)
    with pytest.raises(ModelError, match="one text of 5 tokens with and without an edit does not fit"):
        edited_outcomes(and_circuit.stimuli.head(4), and_circuit.model, [up])
    monkeypatch.setattr(passes, "_run", lambda plan, batch: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        edited_outcomes(and_circuit.stimuli.head(4), and_circuit.model, [up])


def test_batches_hold_no_more_than_asked_and_halves_lose_nobody(and_circuit):
    """Ids of a batch, clean rows included; and a stimulus that no condition edits keeps its clean row."""
    d = and_circuit.dictionary
    conditions = [(Edit(d.hook, "steer", "last", dictionary=d, features=(j,), dose=1.0),) for j in range(6)]
    made = plan.make_plan(
        and_circuit.stimuli.head(9), and_circuit.model, conditions, outcomes=("logit_diff",), freeze="none"
    )
    for batch_tokens in (25, 60):
        batches = plan.make_batches(made, batch_tokens)
        assert max(len(one.stimulus) * (int(made.last[one.stimulus].max()) + 1) for one in batches) <= batch_tokens
    whole = plan.Batch(np.array([4, 4, 4, 7]), np.array([-1, 0, 1, -1]), np.array([0, 0, 0, 3]))
    rows = [pair for one in plan.halves(whole) for pair in zip(one.stimulus, one.condition, strict=True)]
    assert {(4, -1), (4, 0), (4, 1), (7, -1)} == set(rows)
