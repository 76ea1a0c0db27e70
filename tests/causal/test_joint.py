"""Joint clamps of planted circuits: an AND neuron is found, a linear read-out behind a normalization is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from neurosae.causal import joint
from neurosae.causal.controls import matched_pairs
from neurosae.causal.costs import OFF_TARGET, neutral_costs
from neurosae.causal.edits import Edit
from neurosae.causal.joint import joint_clamp
from neurosae.causal.joint_effects import interaction_of
from neurosae.causal.material import place_of, reference_of, stimuli_for
from neurosae.causal.pairs import (
    Setting,
    _effects,
    clamp_means,
    clamp_pair,
    edit_of,
    outcomes_of,
    single_effects,
    surface,
)
from neurosae.dictionary.kinds import Dictionary
from neurosae.errors import DataError, SpecError
from neurosae.spec.causal import JointClampBlock
from neurosae.stats.battery import causal_of, grade_of
from tests.causal import circuits

EFFECTS = {name: {name: {"present": 1, "absent": -1}} for name in ("a", "b")}


def leaning(n=1000, seed=0):
    """The concepts and many directions, half of which write the target as strongly as a concept that is read."""
    e, draw = circuits.directions(), torch.Generator().manual_seed(seed)
    lean = 0.7 + 0.3 * torch.rand(n, 1, generator=draw)
    lean[: n // 2] = 0.4 * torch.rand(n // 2, 1, generator=draw) - 0.2
    rest = torch.nn.functional.normalize(torch.randn(n, len(e) - 4, generator=draw) @ e[4:], dim=1)
    rows = torch.cat([e[[circuits.A, circuits.B]], torch.sqrt(1 - lean**2) * rest + lean * e[2]])
    return Dictionary(
        circuits.HOOK, "jumprelu", rows, torch.zeros(len(rows)), rows, torch.zeros(circuits.D),
        torch.full((len(rows),), 0.05), metadata={"hook_name": circuits.HOOK}, hash=f"leaning-{n}-{seed}",
    )  # fmt: skip


def clamped(circuit, *, features=None, dictionary=None, **options):
    """Joint clamp of the two concepts at the last token."""
    given = {"parts": ["a", "b"], "effects": EFFECTS, "texts": circuit.stimuli["text"].tolist(), "n_tokens": 500,
             "dose": 1.0, "doses": [], "controls": "directions", "direction": "clamp", "off_target": False,
             "inference": {"n_permutations": 500}}  # fmt: skip
    asked = {name: value for name, value in (given | options).items() if value is not None}
    return joint_clamp(
        circuit.stimuli, circuit.model, dictionary or leaning(), features=features or {"a": [0], "b": [1]},
        region="last", options=asked, seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small_and():
    return circuits.and_circuit(n_items=8)


def test_the_and_neuron_is_found(small_and):
    """Free and frozen, over items and among pairs matched on single effects and cosine: the neuron's 4 logits."""
    (row,) = clamped(small_and, match=["effect", "cosine"]).to_dict("records")
    assert row["status"] == "ok"
    assert row["estimate"] == pytest.approx(4.0, abs=0.05)
    assert row["x_estimate_free"] == pytest.approx(4.0, abs=0.1)
    assert max(row[name] for name in ("x_p_items", "x_p_items_free", "x_p_controls", "x_p_controls_free")) <= 0.01
    assert row["p_corr"] == row["p_unc"] == 0.01
    assert row["x_worst_smd"] < 0.1


def test_a_linear_readout_behind_a_norm_is_no_integration():
    """Free, the norm makes the edits interact in every item; frozen, they add up exactly, and nothing is claimed."""
    found = clamped(circuits.linear_circuit(n_items=8), match=["effect"]).iloc[0]
    assert found["status"] == "ok"
    assert found["x_p_items_free"] <= 0.01
    assert found["x_estimate_free"] < -0.3
    assert found["estimate"] == 0
    assert found["p_unc"] == 1.0
    assert "add up exactly" in found["note"]
    assert "not matched" not in found["note"] or "cosine" in found["note"]
    read = causal_of(pd.DataFrame([dict(found), dict(found) | {"x_mode": "ablate"}]))[circuits.HOOK, "last"]
    assert grade_of({"code": 0.001}, causal=read) == 2


def test_a_joint_clamp_has_a_cost_off_target(small_and):
    """KL and perplexity of both sets at once, as `neutral_costs` gives them at all tokens; none where not asked."""
    d, texts = leaning(), small_and.stimuli["text"].tolist()
    rows = clamped(small_and, match=["cosine"], direction="both", off_target=True).set_index("x_mode")
    for mode, dose in (("clamp", 1.0), ("ablate", 0.0)):
        edits = [(Edit(d.hook, mode, "all", dictionary=d, features=j, dose=dose),) for j in ((0, 1), (0,), (1,))]
        by_hand = neutral_costs(small_and.model, edits, texts, n_tokens=OFF_TARGET)
        assert rows.loc[mode, ["x_kl", "x_kl_first", "x_kl_second"]].tolist() == pytest.approx(by_hand.kl.tolist())
        assert rows.loc[mode, "x_perplexity_ratio"] == pytest.approx(by_hand.perplexity_ratio[0])
    assert rows.loc["clamp", "x_kl"] > 0.1
    assert "x_kl" not in clamped(small_and, match=["cosine"])


def test_ablation_agrees_with_clamping(small_and):
    """What clamping builds in texts without the concepts, ablation takes from texts with both."""
    both = clamped(small_and, direction="both", match=["cosine"]).set_index("x_mode")
    assert both.loc["ablate", "estimate"] == pytest.approx(both.loc["clamp", "estimate"], abs=0.05)
    assert "single" not in both.loc["ablate", "note"]
    assert both["p_unc"].tolist() == [0.01, 0.01]
    assert both["p_corr"].tolist() == [0.02, 0.02]  # Holm over both directions
    read = causal_of(both.reset_index())[circuits.HOOK, "last"]
    assert (read.directions, grade_of({"code": 0.001}, causal=read)) == (("clamp", "ablate"), 3)


def test_ablating_a_pure_conjunction_can_be_judged(small_and):
    """Ablated alone a concept takes the neuron along, 4 logits; matched is what it does without the other: nothing."""
    row = clamped(small_and, direction="ablate", match=["effect", "cosine"]).iloc[0]
    assert row["status"] == "ok"
    assert row["estimate"] == pytest.approx(4.0, abs=0.05)
    assert (row["x_single_first"], row["x_single_second"]) == pytest.approx((0, 0), abs=0.01)
    assert row["x_worst_smd"] < 0.1
    assert row["p_unc"] == 0.01


def pairs_of(circuit, mode, *, n_controls=20):
    """The target pair and controls matched on single effects, with the activity of all texts as reference."""
    level = "absent" if mode == "clamp" else "present"
    rows = stimuli_for(circuit.stimuli, circuit.design, region="last", only={"a": level, "b": level})
    place, every = (place_of(some, circuit.model, leaning(), region="last") for some in (rows, circuit.stimuli))
    dose, reference = 1.0 if mode == "clamp" else 0.0, reference_of(every.codes)
    at = Setting(place, reference, circuit.design, mode, dose, "downstream", "directions", ("effect",))
    return clamp_pair(at, ((0,), (1,)), n_controls=n_controls, excluded=(), seed=0)


@pytest.mark.parametrize("mode", ["clamp", "ablate"])
def test_pairs_that_write_past_the_neuron_do_not_interact(small_and, mode):
    """I of a matched pair is that of its own two edits, in the text as it is: nothing here, in either direction."""
    made = pairs_of(small_and, mode)
    assert len(made.controls) == len(made.controls_free) == 20, made.note
    assert interaction_of(made.frozen) == pytest.approx(4, abs=0.05)
    assert np.abs(made.controls).max() < 0.1
    assert np.abs(made.controls_free).max() < 0.2
    means = clamp_means(made).set_index(["norm", "first", "second"])["mean"]
    for norm in ("free", "frozen"):  # in either direction the neuron is on with both, and off without either
        assert means[norm].to_numpy() == pytest.approx([means[norm, 0, 0]] * 3 + [means[norm, 0, 0] + 4], abs=0.2)


def test_sets_that_share_a_feature_make_no_pair(small_and, monkeypatch):
    """A feature that was drawn for both parts is a candidate for either, and never for both at once."""
    given = []

    def keeping(*effects, cosine, **options):
        given.append(cosine[1])
        return matched_pairs(*effects, cosine=cosine, **options)

    monkeypatch.setattr("neurosae.causal.pairs.matched_pairs", keeping)
    pairs_of(small_and, "clamp")
    assert np.isnan(given[0]).any()
    assert np.nanmax(given[0]) < 0.999


def test_pairs_behind_a_norm_interact_where_it_is_free():
    """Controls are run free and frozen like their target: the norm makes them interact, and frozen they add up."""
    made = pairs_of(circuits.linear_circuit(n_items=8), "clamp")
    assert np.abs(made.controls).max() < 1e-4
    assert made.controls_free.max() < -0.02


@pytest.mark.parametrize("mode", ["clamp", "ablate"])
def test_control_sets_meet_the_text_that_their_target_met(small_and, mode):
    """Edited as the target is, a control set has its single effect: with neither part, in either direction."""
    level = "absent" if mode == "clamp" else "present"
    rows = stimuli_for(small_and.stimuli, small_and.design, region="last", only={"a": level, "b": level})
    place = place_of(rows, small_and.model, small_and.dictionary, region="last")
    at = Setting(place, None, small_and.design, mode, 0.5 if mode == "clamp" else 0.0, "downstream")
    sets = np.array([0, 2]), np.array([1])  # feature 2 is read directly, so that the parts differ
    edits = [edit_of(at, own) for own in (*sets, np.concatenate(sets))]
    L = outcomes_of(at, edits, frozen=True)
    wanted = [float(effect.mean()) for effect in single_effects(mode, *L.T)]
    found, _ = _effects(at, sets, ([edits[0]] * 2, [edits[1]]), target=L)
    assert np.concatenate(found) == pytest.approx([wanted[0], *wanted], abs=1e-4)
    assert abs(wanted[0]) > 0.01 + abs(wanted[1])


def test_unmatched_pairs_make_no_claim():
    """Both concepts are read, four logits each; of random directions none is, which is said."""
    circuit = circuits.linear_circuit(n_items=8, n_controls=800)
    row = clamped(circuit, dictionary=circuit.dictionary, direction="ablate", match=["effect"]).iloc[0]
    assert row["status"] == "untestable"
    assert "single effect of the first differs by" in row["note"]
    assert row["x_p_items_free"] <= 0.01
    assert pd.isna(row["p_unc"])


def test_one_clamp_by_hand(small_and):
    """L(AB) of one text is that of a plain forward pass whose stream was changed by hand."""
    d = leaning()
    rows = stimuli_for(small_and.stimuli, small_and.design, region="last", only={"a": "absent", "b": "absent"})
    place = place_of(rows, small_and.model, d, region="last")
    at = Setting(place, None, small_and.design, "clamp", 1.0, "downstream")
    L = outcomes_of(at, [edit_of(at, (0, 1), np.array([1.5, 2.0]))], frozen=False)[0]
    prompts, model = place.prompts, small_and.model
    cell = int(prompts.at[0])

    def by_hand(x, hook):
        f = torch.as_tensor(d.encode(x[0, cell : cell + 1]).toarray())[0, :2]
        x[0, cell] += (torch.tensor([1.5, 2.0]) - f) @ d.W_dec[:2]
        return x

    with torch.no_grad():
        logits = model.bridge.run_with_hooks(torch.as_tensor(prompts.ids[0])[None], fwd_hooks=[(d.hook, by_hand)])
    direct = logits[0, cell, prompts.target[0]] - logits[0, cell, prompts.foil[0]]
    assert L[1] == pytest.approx(float(direct), abs=1e-4)


def test_dose_surface_grows_with_both_doses(small_and):
    """The neuron's threshold: nothing at half the dose of both, more with more of either."""
    rows = stimuli_for(small_and.stimuli, small_and.design, region="last", only={"a": "absent", "b": "absent"})
    place = place_of(rows, small_and.model, leaning(), region="last")
    at = Setting(place, reference_of(place.codes), small_and.design, "clamp", 1.0, "downstream")
    table = surface(at, ((0,), (1,)), [0.5, 1.0, 1.4]).pivot(index="first", columns="second", values="frozen")
    values = table.loc[["0.5", "1.0", "1.4"], ["0.5", "1.0", "1.4"]].to_numpy(dtype=float)
    assert values[0, 0] == 0
    assert (np.diff(values, axis=0) >= -1e-3).all()
    assert values[2, 2] == pytest.approx(1.3 * 8, abs=0.2)


def test_dose_surface_tells_the_sets_apart(small_and):
    """B acts half as strongly again: .5 A with 1 B is above the threshold by .5, 1 A with .5 B by .25."""
    d = leaning()
    d = replace(d, W_dec=torch.cat([d.W_dec[:1], 1.5 * d.W_dec[1:2], d.W_dec[2:]]))
    rows = stimuli_for(small_and.stimuli, small_and.design, region="last", only={"a": "absent", "b": "absent"})
    place = place_of(rows, small_and.model, d, region="last")
    at = Setting(place, reference_of(place.codes), small_and.design, "clamp", 1.0, "downstream")
    table = surface(at, ((0,), (1,)), [0.5, 1.0]).set_index(["first", "second"])["frozen"]
    assert table["0.5", "1.0"] == pytest.approx(4, abs=0.2)
    assert table["1.0", "0.5"] == pytest.approx(2, abs=0.2)


def test_three_sets_give_shapley_interactions(small_and):
    """A and B interact, the third set does not; no claim is made without controls."""
    table = clamped(
        small_and, features={"a": [0], "b": [1], "c": [700]}, parts=None, only={"a": "absent", "b": "absent"}
    )
    assert set(table["x_role"]) == {"exploratory"}
    found = table.set_index("x_contrast")
    assert found.loc["a x b", "estimate"] == pytest.approx(4.0, abs=0.1)
    assert found.loc[["a x c", "b x c"], "status"].eq("untestable").all()
    assert table["p_corr"].isna().all()
    assert found.loc["a x b", "x_p_pairs"] >= found.loc["a x b", "p_unc"]
    assert set(table["unit"]) == {"item"}


@pytest.mark.parametrize("direction", ["clamp", "ablate"])
def test_a_coalition_is_what_is_there(small_and, monkeypatch, direction):
    """On with all three sets alone, every pair has a third of it: clamped into nothing or ablated from all."""

    def with_all(at, conditions, *, frozen):
        edited = np.array([[k in edit.features for k in (0, 1, 2)] for (edit,) in conditions])
        there = np.vstack([np.zeros(3, dtype=bool), edited]) ^ (at.mode == "ablate")
        return (1 + 0.01 * np.arange(len(at.place.stimuli)))[:, None] * there.all(axis=1)

    monkeypatch.setattr(joint, "outcomes_of", with_all)
    level, sets = "absent" if direction == "clamp" else "present", {"a": [0], "b": [1], "c": [2]}
    table = clamped(small_and, features=sets, parts=None, only={"a": level, "b": level}, direction=direction).set_index(
        "x_contrast"
    )
    assert table["estimate"].to_numpy() == pytest.approx([1.035 / 3] * 3)


def test_sets_must_be_apart(small_and):
    """An edit of a feature of both sets would be an edit of the other set."""
    with pytest.raises(DataError, match="no feature of its own"):
        clamped(small_and, features={"a": [0], "b": [0]})


def test_probabilities_are_refused():
    """A probability passes a normalization's work for an interaction, frozen or not."""
    given = {"test": "joint_clamp", "region": "last", "features": {"a": {"ids": [0]}, "b": {"ids": [1]}}}
    with pytest.raises(Exception, match="passes for an interaction"):
        JointClampBlock.model_validate(given | {"outcome": "log_prob"})
    with pytest.raises(Exception, match="unknown covariate"):
        JointClampBlock.model_validate(given | {"match": ["norm"]})
    with pytest.raises(Exception, match="itself a maximum"):
        JointClampBlock.model_validate(given | {"correction": "maxT"})


def test_levels_that_do_not_exist_are_refused(small_and):
    """A cell without texts is named."""
    with pytest.raises((DataError, SpecError), match="nothing can be edited"):
        clamped(small_and, parts=None, only={"a": "purple"})
