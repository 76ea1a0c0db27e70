"""What an edit may say, freezing that a model obeys, and outcomes that exist."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from neurosae.causal import freezing
from neurosae.causal.edits import MODES, Edit
from neurosae.causal.freezing import check_freezing
from neurosae.causal.outcomes import Activation
from neurosae.causal.passes import edited_outcomes
from neurosae.dictionary.kinds import neuron_dictionary
from neurosae.errors import DataError, ModelError
from neurosae.extraction.model import load_model
from tests.causal.circuits import HOOK, A, B
from tests.extraction.conftest import TOY, save_checkpoint

RAW = neuron_dictionary("blocks.1.hook_resid_post", 8)


def feature(**changed):
    return Edit(**dict(hook=RAW.hook, mode="clamp", where="all", dictionary=RAW, features=(0,)) | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "clmap"}, r"unknown mode 'clmap'\. Did you mean 'clamp'"),
        ({"mode": "splice"}, r"adds the dictionary's error to every effect; use ablate, clamp"),
        ({"dictionary": None}, "give a dictionary and at least one feature"),
        ({"features": ()}, "give a dictionary and at least one feature"),
        ({"features": (0, 16)}, r"\[16\]; name features 0 to 15"),
        ({"features": (3, 3)}, "each once"),
        ({"vector": np.ones(8)}, "takes no vector"),
        ({"mode": "add"}, "add needs a vector"),
        ({"mode": "add", "vector": np.ones(8)}, "edits the vector, not features"),
        ({"mode": "add", "vector": np.ones(8), "dictionary": None, "features": (), "dose": 2.0}, "takes no dose"),
    ],
)
def test_edits_that_say_nothing_sensible_are_refused(changed, message):
    """Each of them is told what would be right, when it is made."""
    with pytest.raises(DataError, match=message):
        feature(**changed)


def test_every_mode_has_an_equation():
    """What a report prints of a mode is its equation."""
    assert all(mode.what for mode in MODES.values())
    assert {name for name, mode in MODES.items() if mode.change is None} == {"add", "replace"}


@pytest.mark.parametrize(
    ("dose", "message"),
    [
        (np.ones(3), r"dose has shape \(3,\); give \(2,\) or \(4, 2\)"),
        ([np.ones((1, 2))] * 3, r"one array \(n_cells, 2\) per stimulus"),
        (np.nan, "not finite"),
    ],
)
def test_doses_of_the_wrong_shape_are_refused(and_circuit, dose, message):
    """One per feature, per stimulus and feature, or per cell."""
    asked = Edit(HOOK, "clamp", "target", and_circuit.dictionary, (A, B), dose)
    with pytest.raises(DataError, match=message):
        edited_outcomes(and_circuit.stimuli[:4], and_circuit.model, [(asked,)])


def test_doses_per_feature_stimulus_and_cell_agree(and_circuit):
    """The same doses, written in four ways."""
    stimuli = and_circuit.stimuli[:4]
    rows = np.tile([1.0, 2.0], (4, 1))
    ways = [np.array([1.0, 2.0]), rows, [row[None] for row in rows]]
    edits = [(Edit(HOOK, "clamp", "target", and_circuit.dictionary, (A, B), dose),) for dose in ways]
    values = edited_outcomes(stimuli, and_circuit.model, edits).values["logit_diff"]
    np.testing.assert_allclose(values, values[:, :1].repeat(3, axis=1), atol=1e-6)
    one = [np.full((1, 2), 1.0 + i) for i in range(4)]  # another dose for every stimulus
    several = edited_outcomes(
        stimuli, and_circuit.model, [(Edit(HOOK, "clamp", "target", and_circuit.dictionary, (A, B), one),)]
    ).values["logit_diff"][:, 0]
    assert (np.diff(several) > 1).all()


def test_dictionaries_of_another_place_are_refused(and_circuit):
    """Features live where their dictionary was made, at vectors of its width."""
    stimuli, model, made = and_circuit.stimuli[:2], and_circuit.model, and_circuit.dictionary
    with pytest.raises(ModelError, match="its features are not there"):
        edited_outcomes(stimuli, model, [(Edit("blocks.1.hook_resid_post", "ablate", "target", made, (A,)),)])
    narrow = replace(RAW, hook=HOOK)
    with pytest.raises(ModelError, match=r"vectors of length 8, but .* has 48"):
        edited_outcomes(stimuli, model, [(Edit(HOOK, "ablate", "target", narrow, (A,)),)])
    fake = type("SAETransformerBridge", (), {"add_sae": None, "cfg": model.bridge.cfg})()
    with pytest.raises(ModelError, match="dictionaries spliced in"):
        edited_outcomes(stimuli, replace(model, bridge=fake), [(Edit(HOOK, "ablate", "target", made, (A,)),)])


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ("logit_dif", r"unknown outcome 'logit_dif'\. Did you mean 'logit_diff'"),
        ("surprisal:verb", r"unknown place 'verb'"),
        ("logit_diff:last", "read where the target is predicted"),
        (lambda p: p.logits, "not one number for each of"),
    ],
)
def test_outcomes_that_do_not_exist_are_refused(and_circuit, outcome, message):
    """Names, regions and shapes."""
    with pytest.raises(DataError, match=message):
        edited_outcomes(and_circuit.stimuli[:2], and_circuit.model, [()], outcomes=(outcome,))


def test_outcomes_are_asked_for_once(and_circuit):
    """None, or the same one twice, is a mistake."""
    for outcomes in ((), ("kl", "kl"), (Activation(and_circuit.dictionary, A),) * 2):
        with pytest.raises(DataError, match="outcomes: "):
            edited_outcomes(and_circuit.stimuli[:2], and_circuit.model, [()], outcomes=outcomes)


def test_places_that_do_not_exist_are_refused(and_circuit):
    """Regions that are unknown or missing, and indices outside a text."""
    stimuli = and_circuit.stimuli[:2].copy()
    stimuli.attrs = and_circuit.stimuli.attrs
    for where, message in (
        ("frist", r"unknown place 'frist'\. Did you mean 'first'"),
        ([np.array([9]), np.array([1])], "has tokens 0 to 5"),
        ([np.array([2, 1]), np.array([1])], "ascending order"),
        ([np.array([1])], "tokens of 1 stimuli, but there are 2"),
    ):
        with pytest.raises(DataError, match=message):
            edited_outcomes(stimuli, and_circuit.model, [(Edit(HOOK, "add", where, vector=np.ones(48)),)])
    stimuli["first_start"] = stimuli["first_start"].where(stimuli.index != stimuli.index[1])
    with pytest.raises(DataError, match="region 'first' is missing from 1 of 2 stimuli"):
        edited_outcomes(stimuli, and_circuit.model, [(Edit(HOOK, "add", "first", vector=np.ones(48)),)])


# --- freezing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_replaying_alone_changes_nothing(tmp_path, family):
    """Scales and patterns, replayed without an edit, leave every logit where it was (1e-5 of the largest)."""
    model = load_model(save_checkpoint(tmp_path / family, family), device="cpu")
    ids = [np.arange(5, 12), np.arange(9, 13)]
    for freeze in ("none", "final", "downstream", "attention"):
        assert check_freezing(model, freeze, ids) <= 1e-5


def test_freezing_that_a_model_ignores_is_refused():
    """A native toy hands out attention patterns and does not look at them."""
    model = load_model(TOY, device="cpu")
    ids = [np.arange(5, 12)]
    assert check_freezing(model, "downstream", ids) <= 1e-5
    with pytest.raises(ModelError, match="hook_pattern of toy fires without effect"):
        check_freezing(model, "attention", ids)


def test_replaying_that_moves_the_model_is_refused(and_circuit, monkeypatch):
    """If a replay without an edit moved the logits, no frozen number would mean anything."""
    plain = torch.clone
    monkeypatch.setattr(freezing.torch, "clone", lambda x: 1.01 * plain(x))
    with pytest.raises(ModelError, match="without any edit"):
        edited_outcomes(and_circuit.stimuli[:2], and_circuit.model, [()], freeze="final")


def test_frozen_attention_holds_patterns(tmp_path):
    """An edit of the queries moves nothing when patterns are held, and something when they are not."""
    model = load_model(save_checkpoint(tmp_path / "gpt2", "gpt2"), device="cpu")
    stimuli = pd.DataFrame({"text": ["The key to the old house"]})
    query = Edit("blocks.1.attn.hook_q", "add", "all", vector=3 * np.ones(32))
    free = edited_outcomes(stimuli, model, [(query,)], outcomes=("kl",))
    assert free.values["kl"][0, 0] > 1e-4
    with pytest.raises(ModelError, match="no logit that is scored"):
        edited_outcomes(stimuli, model, [(query,)], outcomes=("kl",), freeze="attention")


def test_encoders_have_no_outcome(tmp_path):
    """A model that does not predict the next token cannot be scored."""
    model = load_model(save_checkpoint(tmp_path / "bert", "bert"), device="cpu")
    with pytest.raises(ModelError, match="does not predict the next token"):
        edited_outcomes(pd.DataFrame({"text": ["a key"]}), model, [()], outcomes=("kl",))
