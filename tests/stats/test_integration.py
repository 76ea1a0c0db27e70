"""The battery on responses: cells and pre-activations, statuses and reasons, the grade and what caps it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.design.expand import expand
from neurosae.design.requirements import Parts, grade_cap, requirements
from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, design_of
from neurosae.spec.design import load_design
from neurosae.spec.results import check_results
from neurosae.stats.battery import Causal
from neurosae.stats.dperp import out_of_plane
from neurosae.stats.gate import coupling
from neurosae.stats.integration import Sets, _gate, _scores, _unresponsive, from_localizer, integration
from neurosae.stats.preactivations import experiment, relative_of
from neurosae.stats.relabel import flips, signs
from neurosae.stats.worlds import world

PARTS = {name: {name: {"yes": 1, "no": -1}} for name in ("a", "b")}
CONTEXT = {"factor": "context", "composed": "phrase", "control": "list"}
CELLS = Parts(("a", "no", "yes"), ("b", "no", "yes"), ("context", "list", "phrase"))
SETS = {"a": range(20), "b": range(20, 40)}


def made(name="I1", n=24, seed=1):
    options = {} if name in ("I3", "word_pair") else {"contexts": True}
    return world(name, n_items=n, seed=seed, options=options)


def rows_of(adata, features=SETS, **options):
    asked = {"context": CONTEXT, "inference": {"n_permutations": 400}} | options
    table = integration(adata, PARTS, region="probe", features=features, options=asked, seed=1)
    check_results(table)
    return table.set_index("effect")


def test_experiment_agrees_with_the_rows_of_its_stimuli():
    """Every cell of every item is the row of that stimulus, minus the value at x = 0; gain likewise."""
    adata = made(n=6)
    found = experiment(adata, CELLS, region="probe")
    z, norm = found.z(), found.column("norm")
    for row, (_, obs) in enumerate(adata.obs.iterrows()):
        at = (
            int(obs["context"] == "phrase"),
            (obs["a"] == "yes") + 2 * (obs["b"] == "yes"),
            found.items.index(obs["item"]),
        )
        assert_allclose(z[at], adata.obsm["x"][row] - adata.var["origin"], atol=1e-5)
        assert norm[at] == obs["norm"]
    assert_allclose(found.z(scale="times"), z * norm[..., None], rtol=1e-5, atol=1e-4)


def test_integration_recovers_and_grades_a_conjunction():
    """Code in the phrase alone: evidence of grade 2; one frame and 24 items limit it to 1, and the row says so."""
    rows = rows_of(made())
    assert rows.loc["code", "p_corr"] <= 0.02
    assert (rows.loc["grade", "x_grade_evidence"], rows.loc["grade", "x_grade"]) == (2, 1)
    for lacking in ("48 test items", "localizer disjoint from the test", "two frames with different order"):
        assert lacking in rows.loc["grade", "note"]
    assert rows.loc["code", "p_corr"] == pytest.approx(
        2 * max(rows.loc[["code: D-perp", "code: list control"], "p_unc"])
    )
    S = signs(flips(np.arange(24), 400, seed=1))
    by_hand = out_of_plane(experiment(made(), CELLS, region="probe").z()[1], S)
    assert rows.loc["code: D-perp", "value"] == pytest.approx(by_hand.value)
    assert rows.loc["code: D-perp", "p_unc"] == by_hand.p


def test_integration_recovers_a_coupling_by_the_gate():
    """I3: the sets are coupled in the phrase alone; no code is found, the gate is."""
    rows = rows_of(made("I3", 48))
    assert rows.loc["gate", "p_corr"] <= 0.05
    assert rows.loc["gate", "x_r_phrase"] > rows.loc["gate", "x_r_list"] + 0.2
    assert rows.loc["code", "p_corr"] > 0.05
    assert rows.loc["grade", "x_grade_evidence"] == 2


def test_integration_controls_thresholds_and_word_pairs():
    """Superadditive activations are grade 1; a detector of word pairs has an out-of-plane code and no list control."""
    rows = rows_of(made("C3", 48, 3))
    assert rows.loc["conj", "p_corr"] <= 0.05
    assert rows.loc["conj", "x_n_found"] > 0
    assert rows.loc["grade", "x_grade_evidence"] == 1
    pair = rows_of(made("word_pair", 48, 2))
    assert pair.loc["code: D-perp", "p_unc"] <= 0.01
    assert pair.loc["code", "p_corr"] > 0.05


def test_the_gain_is_taken_out_of_the_coupling():
    """A gain that moves both sets in the phrase alone is no coupling once the recorded norm is partialled out."""
    rng, adata = np.random.default_rng(0), made("C0", 48, 4)
    phrase = (adata.obs["context"] == "phrase").to_numpy()
    log_gain = np.where(phrase, 0.1 * rng.standard_normal(adata.n_obs), 0.0)
    x = np.asarray(adata.obsm["x"]) - adata.var["origin"].to_numpy()
    adata.obsm["x"] = (x * np.exp(log_gain)[:, None] + adata.var["origin"].to_numpy()).astype(np.float32)
    adata.obs["norm"] = np.exp(log_gain).astype(np.float32)
    positive = {
        "a": [j for j in range(20) if x[:, j].mean() > 1],
        "b": [j for j in range(20, 40) if x[:, j].mean() > 1],
    }
    measured = rows_of(adata, positive, gain=["norm"]).loc["gate"]
    adata.obs["norm"] = np.float32(1)
    blind = rows_of(adata, positive, gain=["norm"]).loc["gate"]
    assert blind["p_unc"] <= 0.05
    assert abs(measured["effsize"]) < abs(blind["effsize"]) / 2


def test_coupling_needs_sets_that_answer_to_their_parts():
    """Sets of noise may be coupled differently, and that is about neither part: no gate, no grade, the reason said."""
    adata = made("C0", 48, 4)
    x, phrase = np.asarray(adata.obsm["x"]).copy(), (adata.obs["context"] == "phrase").to_numpy()
    x[phrase, 100:120] += 3 * x[phrase, 80:100].mean(axis=1, keepdims=True)
    adata.obsm["x"] = x
    rows = rows_of(adata, {"a": range(80, 100), "b": range(100, 120)})
    assert rows.loc["gate", "status"] == "untestable"
    assert "does not on the test items" in rows.loc["gate", "note"]
    assert "a set does not answer to its own part" in rows.loc["grade", "note"]
    assert rows.loc["grade", "x_grade_evidence"] == 0


def test_norms_are_taken_out_as_logarithms():
    """A gain multiplies, so its logarithm adds: norm, scale and total activity enter so, counts as they are."""
    adata, rng = made(n=8), np.random.default_rng(0)
    adata.obs["norm"] = np.exp(2 * rng.standard_normal(adata.n_obs))
    adata.obs["n_tokens"] = rng.integers(1, 9, adata.n_obs)
    exp, S = experiment(adata, CELLS, region="probe"), signs(flips(np.arange(8), 50, seed=0))
    scores = _scores(exp, Sets((np.arange(20), np.arange(20, 40)), (np.ones(20), np.ones(20)), ""))
    found = _gate(exp, scores, S, gain=["norm", "n_tokens"])
    gain = np.stack([np.log(exp.column("norm")[:, 3]), exp.column("n_tokens")[:, 3]], axis=2)
    assert_allclose(found.value, coupling(scores[0][:, 3], scores[1][:, 3], S, gain=gain).value)


def test_set_scores_weigh_features_by_their_localizer_sign():
    """The score of a set is the mean of its features, those that are larger in the - cells turned round."""
    exp = experiment(made(n=6), CELLS, region="probe")
    columns = (np.array([3, 8]), np.array([30]))
    scores = _scores(exp, Sets(columns, (np.array([1.0, -1.0]), np.array([-1.0])), ""))
    z = exp.z()
    assert_allclose(scores[0], (z[..., 3] - z[..., 8]) / 2)
    assert_allclose(scores[1], -z[..., 30])


def test_a_set_that_answers_the_other_way_is_no_set_of_its_part():
    """Localizer and test items must agree in sign: a strong answer against it is no answer; p = alpha is one."""
    assert "that of b does not on the test items (d_z -2.00" in _unresponsive(
        [(2.0, 0.01), (-2.0, 1e-9)], "ab", alpha=0.05
    )
    assert "that of a does not" in _unresponsive([(2.0, 0.051), (2.0, 0.01)], "ab", alpha=0.05)
    assert _unresponsive([(2.0, 0.05), (2.0, 0.01)], "ab", alpha=0.05) == ""


def test_without_a_list_there_is_no_gate_and_at_most_grade_1():
    """D-perp alone is evidence, and the missing list caps it; the gate says what it needs."""
    rows = rows_of(world("I1", n_items=24, seed=1), context=None)
    assert (rows.loc["gate", "status"], rows.loc["grade", "x_grade"]) == ("untestable", 1)
    assert "needs a phrase and a list" in rows.loc["gate", "note"]
    assert "list control" in rows.loc["grade", "note"]
    assert rows.loc["code", "p_corr"] == rows.loc["code: D-perp", "p_unc"]


def test_members_without_their_input_say_what_they_need():
    """No row is left out: features, a target, a context."""
    rows = rows_of(made(), None)
    assert (rows.loc[["gate", "synergy", "read"], "status"] == "untestable").all()
    assert "name them under `features:`" in rows.loc["gate", "note"]
    assert "name `target:`" in rows_of(made()).loc["read", "note"]
    with pytest.raises(DataError, match=r"both parts chose the same 20 features"):
        rows_of(made(), {"a": range(20), "b": range(20)})


def test_grade_3_needs_the_causal_result():
    """Handed in, it counts where grade 2 is reached and the design is complete; here the design caps it."""
    rows = rows_of(made(), causal=Causal(0.001, 0.002, frozen=True))
    assert (rows.loc["grade", "x_grade_evidence"], rows.loc["grade", "x_grade"]) == (3, 1)
    assert "no causal read-out" not in rows.loc["grade", "note"]
    assert "no causal read-out" in rows_of(made()).loc["grade", "note"]
    assert (grade_cap([]), grade_cap([], causal=True)) == (2, 3)


def test_exploratory_members_are_marked_and_raise_no_grade():
    """A target that is a product of both scores: synergy and ladder find it, the grade stays."""
    adata = made("C0", 48, 6)
    z = np.asarray(adata.obsm["x"]) - adata.var["origin"].to_numpy()
    s, t = z[:, :20].mean(axis=1), z[:, 20:40].mean(axis=1)
    adata.obs["surprisal"] = ((s - s.mean()) * (t - t.mean())).astype(np.float32)
    rows = rows_of(adata, target={"column": "surprisal"}, n_surrogates=99)
    assert rows.loc["read: link", "p_unc"] <= 0.05
    assert rows.loc["synergy: BROJA", "p_unc"] <= 0.05
    assert rows.loc["grade", "x_grade_evidence"] == 0
    assert rows[rows["x_role"] == "exploratory"]["note"].str.startswith("exploratory").all()
    lost = rows_of(adata, target={"column": "logit_diff"}).loc["read"]
    assert "was not recorded for every stimulus" in lost["note"]


class Linear:
    """A dictionary as the battery sees one: z = (x - b_dec) W + b."""

    kind = "standard"

    def __init__(self, rng, d, m):
        self.W, self.b, self.b_dec = rng.standard_normal((d, m)), rng.standard_normal(m), rng.standard_normal(d)
        self.origin = self.b - self.b_dec @ self.W

    def preactivations(self, x, features):
        return ((np.asarray(x) - self.b_dec) @ self.W + self.b)[:, features]


def responses_from(dictionary, adata, rng):
    """Real-looking responses: a raw stream of 16 numbers and rectified features of the dictionary."""
    import scipy.sparse as sp

    x = rng.standard_normal((adata.n_obs, 16)).astype(np.float32)
    obs = adata.obs.assign(norm=np.linalg.norm(x, axis=1).astype(np.float32))
    z = dictionary.preactivations(x, np.arange(adata.n_vars))
    X = sp.csr_matrix(np.maximum(z, 0).astype(np.float32))
    return build_responses(X, obs, adata.var, design=design_of(adata), provenance={}, x=x)


def test_preactivations_of_a_dictionary_are_linear_in_the_stream():
    """z - z0 = W x, whatever the biases; a raw stream gets its length at its own and at unit norm."""
    rng, adata = np.random.default_rng(0), made(n=8)
    dictionary = Linear(rng, 16, adata.n_vars)
    real = responses_from(dictionary, adata, rng)
    relative = relative_of(real, dictionary)
    assert_allclose(relative(real.obsm["x"], np.arange(9)), real.obsm["x"] @ dictionary.W[:, :9], atol=1e-5)
    asked = {"context": CONTEXT, "members": ["code"], "inference": {"n_permutations": 100}}
    site = {"simulated": dictionary}
    table = integration(real, PARTS, region="probe", dictionaries=site, options=asked, seed=1)
    assert {"code: D_AxB", "code: D_AxB, unit length"} <= set(table["effect"])


def test_preactivations_refuse_what_would_be_others():
    """No stream, no dictionary, another dictionary, or one without a linear encoder."""
    rng, adata = np.random.default_rng(0), made(n=8)
    dictionary = Linear(rng, 16, adata.n_vars)
    real = responses_from(dictionary, adata, rng)
    with pytest.raises(DataError, match="need the site's dictionary"):
        relative_of(real, None)
    with pytest.raises(DataError, match="of the active features differ"):
        relative_of(real, Linear(rng, 16, adata.n_vars))
    with pytest.raises(DataError, match="orthogonal matching pursuit has no pre-activations"):
        relative_of(real, SimpleNamespace(kind="omp"))
    del real.obsm["x"]
    with pytest.raises(DataError, match="keep_x: true"):
        relative_of(real, dictionary)


def test_integration_refuses_parts_that_are_none():
    """A part is one factor with one level + and one level -."""
    both = {"a": {"a": {"yes": 1, "no": -1}, "b": {"yes": 1, "no": -1}}, "b": PARTS["b"]}
    with pytest.raises(DataError, match="part 'a' is no single factor"):
        integration(made(n=8), both, region="probe", seed=1)


def test_same_seed_same_rows_and_a_new_site_moves_nothing():
    """Relabellings depend on seed and items alone; Holm counts the places."""
    adata = made()
    one = rows_of(adata)
    assert rows_of(adata)["value"].equals(one["value"])
    asked = {"context": CONTEXT, "inference": {"n_permutations": 400}}
    two = integration({"x": adata, "y": adata}, PARTS, region="probe", features=SETS, options=asked, seed=1)
    first = two[two["site"] == "x"].set_index("effect")
    assert first["p_unc"].equals(one["p_unc"])
    assert first.loc["code", "p_corr"] == pytest.approx(2 * one.loc["code", "p_corr"])


# ------------------------------------------------------------------ what the design has


def composition():
    design = load_design("stimuli/composition.yaml")
    parts = Parts(("adjective", "absent", "present"), ("noun", "absent", "present"), ("context", "list", "phrase"))
    return design, expand(design), parts


def missing(stimuli, parts, design, **given):
    asked = {"region": "last_part", "chosen": True} | given
    return [one.name for one in requirements(design, stimuli, parts, **asked) if not one.met]


def test_the_composition_design_meets_every_requirement():
    """48 test items, fillers of their own, equal places, the same words listed."""
    design, stimuli, parts = composition()
    assert missing(stimuli, parts, design) == []


def test_requirements_find_what_is_missing():
    """Each defect, planted alone, is named."""
    design, stimuli, parts = composition()
    few = stimuli[~stimuli["item"].isin(stimuli.loc[stimuli["split"] == "test", "item"].unique()[:1])]
    assert missing(few, parts, design) == ["48 test items"]
    alone = stimuli[stimuli["context"] == "phrase"]
    assert missing(alone, parts, design) == ["list control", "both concepts in both contexts"]
    one = stimuli[stimuli["frame"] == "noun_last"]
    assert missing(one, parts, design) == ["two frames with different order"]
    index = pd.Series(np.arange(len(stimuli), dtype=float), index=stimuli.index)
    assert missing(stimuli, parts, design, index=index) == [
        "length-matched fillers", "same position and suffix in both contexts",
    ]  # fmt: skip
    same = stimuli.copy()
    at = (same["adjective"] == "absent") & (same["frame"] == "noun_last")
    spans = list(zip(same.loc[at, "text"], same.loc[at, "first_start"], same.loc[at, "first_end"], strict=True))
    same.loc[at, "text"] = [t[:a] + "x" * (b - a) + t[b:] for t, a, b in spans]
    assert missing(same, parts, design) == ["fillers that differ between items"]


def test_localizer_signs_are_those_of_the_rows_that_chose():
    """A feature found at two regions in opposite directions enters its set as at the place where it is strongest."""
    adata = world("C0", n_items=8, seed=0)
    rows = [("w", 3, 2.0), ("v", 3, -5.0), ("w", 7, 4.0), ("v", 7, -1.0)]
    table = pd.DataFrame(rows, columns=["region", "feature", "value"]).assign(
        site="s", status="ok", split="localizer", effect="a", kind="contrast", alternative="two-sided"
    )
    other = table.assign(feature=table["feature"] + 1)
    choice = {name: SimpleNamespace(from_=f"find_{name}", top=2, name=name) for name in "ab"}
    ask = SimpleNamespace(parts=["a", "b"], features=choice, split="test")
    earlier = {"find_a": SimpleNamespace(table=table), "find_b": SimpleNamespace(table=other)}
    sets = from_localizer(ask, "s", adata, earlier=earlier)
    assert adata.var["feature"].to_numpy()[sets.columns[0]].tolist() == [3, 7]
    assert sets.signs[0].tolist() == [-1.0, 1.0]
