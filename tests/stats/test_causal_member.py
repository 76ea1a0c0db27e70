"""The causal member of the integration battery: what of a joint clamp counts for grade 3, and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neurosae as ns
from neurosae.errors import SpecError
from neurosae.stats.battery import Causal, causal_of, grade_of
from tests.stats.test_integration import made, rows_of

CLAIM = {
    "site": "late", "region": "probe", "x_role": "claim", "status": "ok", "x_mode": "clamp", "x_freeze": "downstream",
    "x_p_items": 0.001, "x_p_items_free": 0.002, "x_p_controls": 0.01, "x_p_controls_free": 0.01, "x_estimate": 0.5,
    "x_estimate_free": 0.6, "n_units": 48, "note": "n",
}  # fmt: skip
P = ("x_p_items", "x_p_items_free", "x_p_controls", "x_p_controls_free")


def read(ablate=None, clamp=None, more=()):
    """The read-out of one place from a row per direction; None leaves the row as it is."""
    rows = [CLAIM | (clamp or {}), CLAIM | {"x_mode": "ablate"} | (ablate or {}), *more]
    return causal_of(pd.DataFrame(rows))["late", "probe"]


@pytest.mark.parametrize("direction", ["clamp", "ablate"])
@pytest.mark.parametrize("name", P)
def test_every_p_of_both_directions_must_hold(direction, name):
    """Items and pairs, free and frozen, clamped and ablated: each of the eight alone keeps grade 3 away."""
    assert grade_of({"code": 0.01}, causal=read()) == 3
    weak = read(**{direction: {name: 0.3}})
    assert (weak.p, grade_of({"code": 0.01}, causal=weak)) == (0.3, 2)


def test_the_read_out_lifts_grade_2_alone():
    """Beside grade 0 and 1 it counts for nothing."""
    assert grade_of({"code": 0.2}, causal=read()) == 0
    assert grade_of({"code": 0.2}, conj=0.01, causal=read()) == 1


def test_directions_that_contradict_each_other_do_not_count():
    """More than the sum in one direction and less in the other is no conjunction; nor is free against frozen."""
    for change in ({"x_estimate": -0.5}, {"x_estimate_free": -0.5}, {"x_estimate": 0.0}):
        found = read(change)
        assert (found.p, "one sign" in found.unusable) == (1.0, True)
    both = {"x_estimate": -0.5, "x_estimate_free": -0.6}
    assert read(both, both).p == 0.01  # less than the sum in both


def test_a_direction_that_cannot_be_judged_is_no_evidence():
    """One without matched controls leaves the other, and says so; two leave nothing, as does one not run."""
    silent = {"status": "untestable", "note": "controls are badly matched", "x_p_items": 0.9, "x_estimate": -1.0}
    one = read(silent)
    assert (one.p, one.directions) == (0.01, ("clamp",))
    assert "ablate: controls are badly matched" in one.silent
    assert "no direction can be judged" in read(silent, silent).unusable
    alone = causal_of(pd.DataFrame([CLAIM]))["late", "probe"]
    assert (alone.p, alone.unusable) == (1.0, "the direction ablate was not run")


def test_places_are_corrected_by_holm_and_kept_apart():
    """p of a place is times the number of places; a strong place does not lend its p to another region or site."""
    far = [CLAIM | {"x_mode": mode, "region": "verb"} | dict.fromkeys(P, 0.5) for mode in ("clamp", "ablate")]
    table = pd.DataFrame([CLAIM, CLAIM | {"x_mode": "ablate"}, *far, {"x_role": "control", "site": "late"}])
    found = causal_of(table)
    assert list(found) == [("late", "probe"), ("late", "verb")]
    assert (found["late", "probe"].p, found["late", "verb"].p) == (0.02, 0.5)
    assert found["late", "probe"].n_places == 2


def test_only_every_normalization_frozen_counts():
    """The last one alone leaves those between the edit and it free."""
    for found in (read({"x_freeze": "final"}), read()._replace(frozen=False), Causal(0.01, 0.01, frozen=False)):
        assert (found.p, found.unusable) == (1.0, "normalizations behind the edit were not frozen")


def test_the_battery_reads_its_own_place():
    """A read-out of another region is none here; of this one it is a row with p, correction and what was judged."""
    here = rows_of(made(), causal={("simulated", "probe"): read()})
    row = here.loc["causal"]
    assert (row["x_role"], row["p_corr"], row["n_units"], row["n_family"], row["status"]) == (
        "grade 3",
        0.01,
        48,
        1,
        "ok",
    )
    assert row["note"].startswith("clamp and ablate: over items p 0.002, among matched pairs 0.01")
    assert (here.loc["grade", "x_grade_evidence"], here.loc["grade", "x_cap"]) == (3, 1)
    there = rows_of(made(), causal={("simulated", "verb"): read()})
    assert "causal" not in there.index
    assert there.loc["grade", "x_grade_evidence"] == 2
    assert "no causal read-out" in there.loc["grade", "note"]
    lame = rows_of(made(), causal=read({"x_estimate": -1.0}))
    assert lame.loc["causal", "status"] == "untestable"
    assert np.isnan(lame.loc["causal", "p_unc"])
    assert "does not count, so at most 2" in lame.loc["grade", "note"]


@pytest.mark.parametrize(
    "change",
    [
        ("n_controls: 99", "direction: clamp", "rests on both"),
        ("n_controls: 99", "freeze: final", "set freeze: downstream"),
        ("n_controls: 99", "match: [density]", "does not match its pairs on cosine and effect and size"),
        (", direction: plus}, beside", "}, beside", "answer to the other level too; add direction: plus"),
        ("    only: {context: phrase}\n", "", r"add only: \{context: phrase\}"),
        ("    region: probe\n    only", "    region: head\n    only", "a grade is asked at probe"),
        ("n_controls: 99", "sites: [early]", "name the same sites here"),
        ("    parts: [subject, beside]\n    region: probe\n    only", "    region: probe\n    only", "clamps no parts"),
    ],
)
def test_a_clamp_that_could_never_count_is_refused(tmp_path, change):
    """The shipped study passes; each change makes a joint clamp that no result of which could raise the grade."""
    old, new, said = change
    text = Path("analyses/attraction.yaml").read_text(encoding="utf-8")
    (tmp_path / "stimuli").mkdir()
    (tmp_path / "analyses").mkdir()
    path = tmp_path / "analyses" / "attraction.yaml"
    (tmp_path / "stimuli" / "attraction.yaml").write_text(Path("stimuli/attraction.yaml").read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    ns.load_analysis(path)
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError, match=said):
        ns.load_analysis(path)
