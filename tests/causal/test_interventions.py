"""Interventions through the whole path: what moves, beside controls, over doses; what is refused; rows and extras."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

from neurosae.causal import changes
from neurosae.causal.beside import dose_rows
from neurosae.causal.changes import Contrasted, contrasted, run_set
from neurosae.causal.interventions import intervene
from neurosae.causal.items import UnitData
from neurosae.causal.material import (
    amounts_of,
    as_dose,
    change_of,
    covariates,
    in_their_place,
    place_of,
    reference_of,
    stimuli_for,
)
from neurosae.causal.rows import Claim, Settings, corrected
from neurosae.errors import DataError
from neurosae.spec.causal import InterventionBlock
from tests.causal import circuits

EFFECTS = {name: {name: {"present": 1, "absent": -1}} for name in ("a", "b")}


@pytest.fixture(scope="module")
def linear():
    return circuits.linear_circuit(False, n_items=8, n_controls=600)


@pytest.fixture(scope="module")
def place(linear):
    rows = stimuli_for(linear.stimuli, linear.design, region="last")
    return place_of(rows, linear.model, linear.dictionary, region="last")


def edited(circuit, features=(0,), **options):
    given = {"texts": circuit.stimuli["text"].tolist(), "n_tokens": 500, "n_controls": 99, "controls": "directions",
             "match": ["density"], "off_target": False, "inference": {"n_permutations": 300}}  # fmt: skip
    return intervene(
        circuit.stimuli, circuit.model, circuit.dictionary, features=list(features), region="last",
        options=given | options, seed=1,
    )  # fmt: skip


def test_ablation_takes_what_the_concept_gives(linear):
    """Concept A is worth 4 logits where it is there: ablated, the contrast of a falls by 4, and cells say where."""
    table = edited(linear, effect=["a", "b"], effects=EFFECTS).set_index("effect")
    claim = table.loc["ablate: a"]
    assert claim["estimate"] == pytest.approx(-4.0, abs=0.1)
    assert claim["x_p_items"] == 2**-7
    assert claim["x_p_controls"] <= 0.05
    assert claim["p_unc"] == max(claim["x_p_items"], claim["x_p_controls"])
    assert claim["x_share"] == pytest.approx(-1, abs=0.05)
    assert table.loc["ablate: b", "status"] == "untestable"
    assert "6 are needed" in table.loc["ablate: b", "note"]
    assert table.loc["ablate 0: in present/absent", "estimate"] == pytest.approx(-4.0, abs=0.1)
    assert table.loc["ablate 0: in absent/absent", "status"] == "untestable"
    assert set(table["x_role"]) == {"claim", "cell", "ladder"}
    assert table.loc[table["x_role"] != "claim", "p_corr"].isna().all()


def test_ladder_brackets_the_edit(linear):
    """Random directions do less, the reverse does the opposite, the other level's stream at least as much."""
    table = edited(linear, effect="a", effects=EFFECTS)
    rung = table[table["x_contrast"] == "a"].set_index("x_rung")["estimate"]
    assert abs(rung["random direction"]) < 2
    assert rung["sign reversal"] == pytest.approx(4.0, abs=0.2)
    assert rung["whole stream"] == pytest.approx(-8.0, abs=0.5)
    assert rung["difference of means"] == pytest.approx(-8.0, abs=0.5)


def test_slopes_on_doses(linear):
    """Clamped at three doses: 4 logits per unit in every item, the base at 0, one dose row each."""
    table = edited(linear, mode="clamp", doses=[0.5, 1.0, 2.0], ladder=False, cells=False)
    claim = table[table["x_role"] == "claim"].iloc[0]
    assert claim["stat"] == "t of the slope"
    assert claim["estimate"] == pytest.approx(4.0, abs=0.05)
    doses = table[table["x_role"] == "dose"].set_index("x_dose")["estimate"]
    assert list(doses.index) == ["0.5", "1.0", "2.0"]
    assert doses["2.0"] - doses["1.0"] == pytest.approx(4.0, abs=0.05)
    assert not claim["x_outside"]
    far = edited(linear, mode="clamp", doses=[60.0], ladder=False, cells=False).iloc[0]
    assert far["x_outside"]
    assert "outside the natural range" in far["note"]


def test_features_alone_are_one_sample(linear):
    """Eight features steered at two doses, one by one: the mean slope over items and features, in one row."""
    normed = circuits.linear_circuit(n_items=8, n_controls=600)  # items differ behind the norm
    features = (0, 1, 2, 3, 4, 5, 6, 7)
    asked = {"mode": "steer", "doses": [1.0, 2.0], "per": "feature"}
    table = edited(normed, features=features, effect="a", effects=EFFECTS, **asked)
    rows = table[table["x_role"] == "population"].set_index("x_contrast")
    assert list(rows.index) == ["mean", "a"]
    single = table[(table["x_role"] == "claim") & (table["x_contrast"] == "mean")]
    row = rows.loc["mean"]
    assert sorted(single["feature"]) == list(features)
    assert row["x_estimate"] == pytest.approx(single["x_estimate"].mean(), rel=1e-4)
    assert (row["unit"], row["n_units"], row["n_features"]) == ("item and feature", 8, 8)
    assert row["stat"] == "t of the slope"
    assert "mean slope is 0" in row["h0"]
    assert row["status"] == "ok"
    assert row["dof"] < 12  # of eight features, not of 64 slopes
    assert row["p_unc"] > 0.05  # two features of eight move the outcome
    assert row["x_var_feature"] > row["x_var_item"]
    assert row["p_corr"] >= row["p_unc"]
    assert rows["n_family"].dropna().eq(rows["status"].eq("ok").sum()).all()
    exact = edited(linear, features=features, **asked)
    assert exact.loc[exact["x_role"] == "population", "status"].tolist() == ["degenerate"]  # all items have one slope
    few = edited(linear, features=features[:3], **asked)
    silent = few[few["x_role"] == "population"].iloc[0]
    assert silent["status"] == "untestable"
    assert "needs at least 6" in silent["note"]
    assert np.isfinite(silent["x_p_min_f"])
    together = edited(linear, features=features, **(asked | {"per": "set", "ladder": False, "cells": False}))
    assert "population" not in set(together["x_role"])


def test_an_idle_feature_is_equivalent_and_no_claim(linear):
    """A noise direction that nothing reads: no claim, and a stated bound shows that it does not matter."""
    row = edited(linear, features=(5,), mode="steer", doses=[1.0], smallest=1.0, ladder=False, cells=False).iloc[0]
    assert abs(row["x_change"]) < 0.3
    assert row["x_p_equivalent"] <= 0.01
    assert not row["p_corr"] <= 0.05


def test_max_t_and_holm_over_claims(linear):
    """Both corrections hold both p: max-T over items joined with Holm over controls, doubled."""
    asked = {"effect": ["a"], "effects": EFFECTS, "ladder": False, "cells": False}
    holm = edited(linear, **asked)
    joint = edited(linear, correction="maxT", **asked)
    assert (holm["p_corr"] >= holm["p_unc"]).all()
    assert (joint["p_corr"] >= np.minimum(1, 2 * joint["x_p_controls"])).all()
    assert set(joint["p_adjust"]) == {"maxT"}
    assert set(holm["n_family"]) == {2}
    assert edited(linear, correction="none", **asked)["p_corr"].isna().all()


def test_max_t_holds_where_claims_are_false_for_different_reasons():
    """One claim false over items, one false among controls: taking the larger of two corrected p would err in 10 %."""
    rng, n_sets, wrong = np.random.default_rng(0), 600, 0
    settings = Settings("t", 500, "maxT", 0, None, "none")
    numbers = np.arange(10)
    for _ in range(n_sets):
        noise, strong = rng.standard_normal(10), rng.standard_normal(10) + 5
        ranks = {"items": 0.01, "controls": float(rng.integers(1, 101) / 100)}
        claims = [
            Claim({"status": "ok", "p_unc": ranks[kind], "x_p_controls": ranks[kind]}, column, numbers)
            for kind, column in (("items", noise), ("controls", strong))
        ]
        wrong += any(row["p_corr"] <= 0.05 for row in corrected(claims, settings))
    assert wrong / n_sets <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / n_sets)


def test_edits_that_change_nothing_are_errors(linear, place):
    """Features that are nowhere active cannot be ablated; a dose they have anyway moves nothing."""
    idle = int(np.flatnonzero(np.asarray((place.codes != 0).sum(axis=0)).ravel() == 0)[0])
    with pytest.raises(DataError, match="changes nothing"):
        edited(linear, features=(idle,))


def test_features_without_natural_activity_have_no_quantiles(linear, place):
    """p90 of a feature that never fires is refused with the remedy."""
    idle = int(np.flatnonzero(np.asarray((place.codes != 0).sum(axis=0)).ravel() == 0)[0])
    with pytest.raises(DataError, match="no natural dose"):
        as_dose("p90", reference_of(place.codes), [idle])


def test_badly_matched_controls_leave_no_claim(linear):
    """A concept is read, random directions are not: matched on the cosine too, there is no claim, but all numbers."""
    row = edited(linear, match=["density", "cosine"], ladder=False, cells=False).iloc[0]
    assert row["status"] == "untestable"
    assert "cosine differs by" in row["note"]
    assert "cosine may be left out of match" in row["note"]
    assert pd.isna(row["p_unc"])
    assert row["x_p_items"] <= 0.01
    assert row["x_estimate"] == pytest.approx(-2.0, abs=0.1)


def test_features_without_equals_are_told_of_directions(linear):
    """Few features are active at the edited tokens: the refusal names the remedy."""
    with pytest.raises(DataError, match=r"features are left as controls.*use controls: directions"):
        edited(linear, features=(0,), controls="features", n_controls=590)


def test_directions_are_as_long_as_the_edit(place):
    """Control directions have the length of the edit at every token, in other directions."""
    amounts = amounts_of(place, [0, 1], mode="clamp", dose=np.array([2.0, 1.0]))
    own, other = change_of(place, [0, 1], amounts), in_their_place(place, [0, 1], [40, 50], amounts=amounts)
    assert_allclose(np.linalg.norm(own, axis=1), np.linalg.norm(other, axis=1), rtol=1e-5)
    assert abs((own * other).sum()) < 0.9 * (own**2).sum()
    f = place.codes[:, [0, 1]].toarray()
    assert_allclose(amounts, np.array([2.0, 1.0]) - f, atol=1e-6)


def test_covariates_are_what_they_say(linear, place):
    """Density of the reference, length of what an ablation removes, cosine with target minus foil."""
    reference = reference_of(place.codes)
    table = covariates(place, reference, mode="ablate", dose=0.0)
    f = place.codes[:, 0].toarray().ravel()
    assert table.loc[0, "density"] == pytest.approx(np.log((f > 0).mean()))
    assert table.loc[0, "size"] == pytest.approx(np.log(np.sqrt((f**2).mean())), abs=1e-5)
    W = linear.dictionary.W_dec.numpy()
    u = place.directions[0] / np.linalg.norm(place.directions[0])
    assert table.loc[0, "cosine"] == pytest.approx(abs(W[0] @ u) / np.linalg.norm(W[0]), abs=1e-5)
    at_dose = covariates(place, reference, mode="clamp", dose=3.0)
    assert at_dose.loc[0, "size"] == pytest.approx(np.log(3.0), abs=1e-5)


def test_one_ablation_by_hand(linear, place):
    """The first text's change is that of a plain forward pass whose stream lacks f W_dec."""
    block = InterventionBlock.model_validate(
        {"test": "intervention", "region": "last", "features": {"ids": [0]}, "controls": "directions",
         "match": ["density"], "n_controls": 99}
    )  # fmt: skip
    alive = reference_of(np.random.default_rng(0).random((40, linear.dictionary.n_features)))
    made = run_set(place, alive, (0,), ask=block, mode="ablate", excluded=(), seed=0)
    present = int(np.flatnonzero(place.stimuli["a"].astype(str) == "present")[0])
    prompts, d, model = place.prompts, linear.dictionary, linear.model
    cell = int(prompts.at[present])

    def by_hand(x, hook):
        f = float(d.encode(x[0, cell : cell + 1]).toarray()[0, 0])
        x[0, cell] -= f * d.W_dec[0]
        return x

    ids = torch.as_tensor(prompts.ids[present])[None]
    with torch.no_grad():
        runs = [model.bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, cell] for hooks in ([], [(d.hook, by_hand)])]
    t, o = int(prompts.target[present]), int(prompts.foil[present])
    plain, without = (float(run[t] - run[o]) for run in runs)
    assert made.change[present, 0, 0] == pytest.approx(without - plain, abs=1e-4)
    seen = contrasted(made, place, linear.design, effect=None)
    assert_allclose(seen.D[:, 0, 0].mean(), made.change[:, 0, 0].mean(), atol=1e-6)


# --- what every row of a claim is made of ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normed():
    """Read linearly behind a normalization that is free."""
    return circuits.linear_circuit(n_items=8, n_controls=600)


def test_freezing_reaches_claims_and_ladder(normed):
    """Frozen, the reverse edit does the reverse exactly and twice the dose does twice as much; free, neither holds."""
    found = {}
    for freeze in ("none", "final"):
        asked = {"mode": "steer", "doses": [1.0, 2.0], "freeze": freeze, "cells": False}
        table = edited(normed, **asked)
        doses = table[table["x_role"] == "dose"].set_index("x_dose")["estimate"]
        reverse = table.set_index("x_rung").loc["sign reversal", "estimate"]
        found[freeze] = doses["2.0"] - 2 * doses["1.0"], reverse + doses["2.0"]
        assert set(table["x_freeze"]) == {freeze}
    assert_allclose(found["final"], 0, atol=1e-3)
    assert np.abs(found["none"]).min() > 0.05


def test_levels_that_are_kept(linear):
    """`only` leaves texts of one level: the concept is worth 4 logits in each, and effects are simple effects."""
    table = edited(linear, only={"a": "present"}, effect="b", effects=EFFECTS, ladder=False).set_index("effect")
    assert table.loc["ablate: mean", "estimate"] == pytest.approx(-4.0, abs=0.1)
    assert edited(linear, ladder=False, cells=False).iloc[0]["x_estimate"] == pytest.approx(-2.0, abs=0.1)
    assert table.loc["ablate: b", "status"] == "untestable"  # A alone is taken away, wherever B is
    assert set(table.index) == {"ablate: mean", "ablate: b", "ablate 0: in present/absent",
                                "ablate 0: in present/present"}  # fmt: skip


def test_features_of_the_contrast_and_siblings_are_no_controls(linear, monkeypatch):
    """What answers to the choosing contrast, and the features that are edited beside, each alone, are left out."""
    away, choose = [], changes.matched_controls

    def watched(table, targets, **given):
        away.append((tuple(targets), set(np.asarray(given["excluded"]).tolist())))
        return choose(table, targets, **given)

    monkeypatch.setattr(changes, "matched_controls", watched)
    edited(linear, features=(0, 1), per="feature", excluded=[40, 41], ladder=False, cells=False)
    assert [targets for targets, _ in away] == [(0,), (1,)]
    assert all(left == {0, 1, 40, 41} for _, left in away)
    with pytest.raises(DataError, match="features are left as controls"):
        edited(linear, excluded=list(range(20, 600)), ladder=False, cells=False)


def test_controls_have_doses_of_their_own(linear, place, monkeypatch):
    """At p90 every feature, target or control, is set to its own quantile."""
    seen, run = [], changes.edited_outcomes

    def watched(stimuli, model, conditions, **given):
        seen.extend(conditions)
        return run(stimuli, model, conditions, **given)

    monkeypatch.setattr(changes, "edited_outcomes", watched)
    block = InterventionBlock.model_validate(
        {"test": "intervention", "region": "last", "features": {"ids": [0]}, "mode": "clamp", "doses": ["p90"],
         "match": ["density"], "n_controls": 99}
    )  # fmt: skip
    alive = reference_of(np.random.default_rng(0).gamma(2, 1, (60, linear.dictionary.n_features)))
    run_set(place, alive, (0,), ask=block, mode="clamp", excluded=(), seed=0)
    assert len(seen) == 100
    for ((edit,),) in ([condition] for condition in seen):
        assert_allclose(edit.dose, alive.quantile(edit.features, 0.9), rtol=1e-6)
    assert len({float(edit.dose[0]) for (edit,) in seen}) > 90


def test_what_stands_beside_a_claim_is_of_its_highest_dose(linear):
    """Change, equivalence, cost, cells and range are those of the last dose; every dose has its own cost and rank."""
    asked = {"mode": "steer", "doses": [1.0, 2.0], "off_target": True, "ladder": False, "smallest": 6.0}
    table = edited(linear, **asked)
    claim, doses = table.iloc[0], table[table["x_role"] == "dose"].set_index("x_dose")
    assert claim["x_change"] == pytest.approx(doses.loc["2.0", "estimate"])
    assert doses.loc["2.0", "estimate"] == pytest.approx(8.0, abs=0.2)
    assert claim["x_p_equivalent"] > 0.5  # 4 logits would be smaller than 6, 8 are not
    assert claim["x_kl"] == doses.loc["2.0", "x_kl"] > doses.loc["1.0", "x_kl"] > 0
    cells = table[table["x_role"] == "cell"]
    assert_allclose(cells["estimate"], 8.0, atol=0.2)
    far = edited(linear, mode="clamp", doses=[0.5, 60.0], ladder=False, cells=False).iloc[0]
    assert far["x_outside"]


def test_every_dose_is_ranked_among_controls_at_that_dose():
    """Ranks of the rows of doses, and of the claim's slope, by hand."""
    rng = np.random.default_rng(3)
    D = rng.standard_normal((9, 20, 3)) * np.array([0.0, 1.0, 1.0])
    D[:, 0] += np.array([0.0, 0.3, 2.0])
    data = UnitData(D.reshape(9, -1), np.arange(9), ("",) * 9, "item", "", "")
    slope = np.einsum("ijk,k->ij", D, np.array([-1.0, 0.0, 1.0])) / 2
    seen = Contrasted(data, D, slope, np.ones(9))
    made = SimpleNamespace(mode="steer", labels=("0", "p50", "p90"), doses=np.arange(3.0), based=1, features=(1,))
    work = SimpleNamespace(where={"test": "t", "site": "s", "region": "r", "position": 0})
    rows = dose_rows(work, seen, made, what="mean", shared=Settings("t", 500, "holm", 0, None, "none"),
                     costs={"kl": np.array([0.1, 0.7])})  # fmt: skip
    assert [row["x_dose"] for row in rows] == ["p50", "p90"]
    assert [row["x_kl"] for row in rows] == [0.1, 0.7]
    for k, row in enumerate(rows, 1):
        mean = D[:, :, k].mean(axis=0)
        assert row["x_p_controls"] == (np.abs(mean) >= abs(mean[0])).mean()
        assert row["estimate"] == pytest.approx(mean[0])
    assert rows[0]["x_p_controls"] > rows[1]["x_p_controls"]
