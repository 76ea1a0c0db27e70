"""The sanity ladder: every rung is as long as the edit, in the direction that its name says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from neurosae.causal.ladder import DRAWS, RUNGS, ladder_of
from neurosae.causal.material import amounts_of, change_of, place_of, stimuli_for
from tests.causal import circuits

LATER = "blocks.1.hook_resid_post"
FACTOR = {"a": {"present": 1, "absent": -1}}


@pytest.fixture(scope="module")
def place():
    circuit = circuits.linear_circuit(False, n_items=8)
    rows = stimuli_for(circuit.stimuli, circuit.design, region="last")
    return place_of(rows, circuit.model, circuit.dictionary, region="last")


@pytest.fixture(scope="module")
def delta(place):
    return change_of(place, [0, 3], amounts_of(place, [0, 3], mode="clamp", dose=np.array([2.0, 1.0])))


def added(rung):
    return [np.concatenate(edit.vector) for ((edit,),) in ([condition] for condition in rung.conditions)]


def test_rungs_are_as_long_as_the_edit(place, delta):
    """Random directions differ between items and draws alone; shuffling permutes; the reverse is the negative."""
    rungs = {rung.name: rung for rung in ladder_of(place, delta, others={}, factor={}, seed=1)}
    length = np.linalg.norm(delta, axis=1)
    random, shuffled = added(rungs["random direction"]), added(rungs["shuffled decoder"])
    assert len(random) == len(shuffled) == DRAWS
    for vectors in (*random, *shuffled):
        assert_allclose(np.linalg.norm(vectors, axis=1), length, rtol=1e-5)
        assert np.abs((vectors * delta).sum(axis=1) / length**2).max() < 0.9
    assert_allclose(np.sort(shuffled[0], axis=1), np.sort(delta, axis=1), rtol=1e-6)
    assert np.abs(random[0] - random[1]).max() > 0.1
    unit = random[0] / np.linalg.norm(random[0], axis=1, keepdims=True)
    item = place.stimuli["item"].to_numpy()[place.row]
    same = (item[:, None] == item[None]) & ~np.eye(len(item), dtype=bool)
    assert_allclose((unit @ unit.T)[same], 1, atol=1e-5)
    assert np.abs((unit @ unit.T)[item[:, None] != item[None]]).max() < 0.9
    assert_allclose(added(rungs["sign reversal"])[0], -delta)
    assert sum(len(rung.conditions) for rung in rungs.values()) == RUNGS - 2  # without a factor there are no levels


def test_the_edit_is_also_made_at_other_sites(place, delta):
    """The same vectors at the hook point of another site, which the note names."""
    rungs = ladder_of(place, delta, others={"late": LATER}, factor=FACTOR, seed=1)
    other = rungs[-1]
    ((edit,),) = other.conditions
    assert (other.name, edit.hook, edit.mode, other.note) == ("other layer: late", LATER, "add", f"added at {LATER}")
    assert_allclose(added(other)[0], delta, rtol=1e-6)
    assert sum(len(rung.conditions) for rung in rungs) == RUNGS + 1


def test_levels_are_swapped_towards_the_other(place, delta):
    """Difference of means moves each text to the other level; the whole stream is that of its own partner."""
    rungs = {rung.name: rung for rung in ladder_of(place, delta, others={}, factor=FACTOR, seed=1)}
    level = place.stimuli["a"].astype(str).to_numpy()[place.row]
    gap = place.x[level == "present"].mean(axis=0) - place.x[level == "absent"].mean(axis=0)
    moved = added(rungs["difference of means"])[0]
    assert_allclose(moved[level == "absent"], np.broadcast_to(gap, moved[level == "absent"].shape), atol=1e-5)
    assert_allclose(moved[level == "present"], np.broadcast_to(-gap, moved[level == "present"].shape), atol=1e-5)
    ((edit,),) = rungs["whole stream"].conditions
    names = list(place.stimuli.index)
    for i, name in enumerate(names):
        other = name.replace("absent/", "PRESENT/") if "/absent/" in name else name.replace("/present/", "/absent/", 1)
        j = names.index(other.replace("PRESENT", "present"))
        assert_allclose(edit.vector[i], place.x[place.row == j])
    assert edit.mode == "replace"


def test_a_factor_of_three_levels_has_no_other_level(place, delta):
    """Without two levels, or without a partner in every text, both rungs are left out."""
    three = {"a": {"present": 1, "absent": -0.5, "other": -0.5}}
    names = [rung.name for rung in ladder_of(place, delta, others={}, factor=three, seed=1)]
    assert names == ["random direction", "shuffled decoder", "sign reversal"]
    alone = place._replace(stimuli=place.stimuli.assign(a="present"))
    assert len(ladder_of(alone, delta, others={}, factor=FACTOR, seed=1)) == 3
