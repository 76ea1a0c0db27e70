"""The cost table: what it counts is what is run, and it is said before a long run."""

from __future__ import annotations

import numpy as np
import pytest

from neurosae.causal import beside, changes, interventions, joint, pairs, workload
from neurosae.causal.workload import announce, part_of
from tests.causal import circuits
from tests.causal.test_interventions import EFFECTS, edited
from tests.causal.test_joint import clamped


@pytest.fixture(scope="module")
def circuit():
    return circuits.and_circuit(n_items=8, n_controls=600)


def counted(monkeypatch, *modules):
    """Conditions x texts of every call of `edited_outcomes` in some modules."""
    runs = []

    def count(stimuli, model, conditions, **options):
        runs.append((len(conditions), len(stimuli)))
        return run(stimuli, model, conditions, **options)

    run = changes.edited_outcomes
    for module in modules:
        monkeypatch.setattr(module, "edited_outcomes", count)
    return runs


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({"mode": "ablate"}, 100),
        ({"mode": "clamp", "doses": [0.5, 1.0]}, 300),  # the base of a clamp is an edit
        ({"mode": "steer", "doses": [0.5, 1.0]}, 200),  # that of a push is none
    ],
)
def test_planned_conditions_are_those_that_run(circuit, monkeypatch, options, *, n):
    """Target, controls and ladder: every row of the table is one row of the passes."""
    tables, runs = [], counted(monkeypatch, changes, beside)
    plan = interventions.planned
    monkeypatch.setattr(interventions, "planned", lambda *given: tables.append(plan(*given)) or tables[-1])
    edited(circuit, effect="a", effects=EFFECTS, **options)
    table = tables[0].set_index("part")
    assert table.loc["target and controls", "conditions"] == n == runs[0][0]
    assert table.loc["ladder", "conditions"] == sum(k for k, _ in runs[1:])
    assert table["rows"].sum() == sum(k * texts for k, texts in runs)
    assert (table["tokens"] == 5 * table["rows"]).all()  # BOS and the four words before the target
    assert (table["seconds"] > 0).all()


@pytest.mark.parametrize("direction", ["clamp", "ablate"])
def test_planned_conditions_of_a_joint_clamp_are_those_that_run(circuit, monkeypatch, direction):
    """Target, control sets alone, pairs, surface."""
    tables, runs = [], counted(monkeypatch, pairs)
    plan = joint.planned
    monkeypatch.setattr(joint, "planned", lambda *given: tables.append(plan(*given)) or tables[-1])
    clamped(circuit, match=["cosine"], doses=[0.5, 1.0], direction=direction)
    table = tables[0]
    parts = ["target pair, free and frozen", "controls alone", "matched pairs, free and frozen"]
    assert list(table["part"]) == parts + ["surface, free and frozen"] * (direction == "clamp")
    # clamped, single edits of the pairs were run among those alone; ablated, those had the other part removed
    assert sum(k for k, _ in runs) == table["conditions"].sum()


def test_off_target_and_single_features_are_counted(circuit, monkeypatch):
    """One part per feature; reference text of 2,000 tokens for every dose."""
    tables, plan = [], interventions.planned
    monkeypatch.setattr(interventions, "planned", lambda *given: tables.append(plan(*given)) or tables[-1])
    edited(circuit, features=(0, 1), per="feature", mode="steer", doses=[1.0, 2.0], off_target=True)
    table = tables[0]
    assert sorted(table["feature"].unique()) == [0, 1]
    costs = table[table["part"] == "off target"]
    assert costs["tokens"].tolist() == [4000, 4000]
    assert "ladder" not in set(table["part"])


def test_long_runs_are_announced(circuit, capsys):
    """Rows, tokens and time of the whole and of its parts; a short run says nothing."""
    place = circuits_place(circuit)
    parts = [part_of(place, {"site": "s"}, name, n_conditions=n) for name, n in (("target", 300), ("ladder", 13))]
    table = workload.workload(parts, rate=100.0)
    said = announce("needed", table)
    assert "needed: 313 conditions, 10,016 rows (text x condition), 50,080 tokens: about 8 minutes" in said
    assert "ladder: 416 rows" in said
    assert said in capsys.readouterr().err
    assert announce("needed", table.assign(seconds=0.1)) == ""
    assert announce("needed", table.assign(seconds=np.nan)) == ""


def circuits_place(circuit):
    from neurosae.causal.material import place_of, stimuli_for

    rows = stimuli_for(circuit.stimuli, circuit.design, region="last")
    return place_of(rows, circuit.model, circuit.dictionary, region="last")
