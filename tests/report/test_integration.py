"""The section of the battery: words that claim what was shown, and figures that draw it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from neurosae.report.integration import INTEGRATION, _levels
from neurosae.report.parts import Drawing
from neurosae.report.sections import SECTIONS, methods_text, statements
from neurosae.spec.blocks import Inference
from neurosae.spec.integration import IntegrationBlock
from neurosae.stats.battery import Causal
from neurosae.stats.integration import Ask, _run, _sets
from neurosae.stats.worlds import world

BLOCK = {"test": "integration", "parts": ["a", "b"], "region": "probe",
         "context": {"factor": "context", "composed": "phrase", "control": "list"}}  # fmt: skip


def battery(study, name, *, target=None, n=24, causal=None):
    """A study whose only test is a battery on one of the worlds."""
    options = {} if name in ("I3", "word_pair") else {"contexts": True}
    adata = world(name, n_items=n, seed=2, options=options)
    rng = np.random.default_rng(0)
    adata.obs["surprisal"] = rng.standard_normal(adata.n_obs).astype(np.float32)
    given = BLOCK | ({"target": {"column": "surprisal"}, "n_surrogates": 50} if target else {})
    block = IntegrationBlock.model_validate(given)
    effects = {part: {part: {"yes": 1, "no": -1}} for part in ("a", "b")}
    sets = _sets(
        [np.arange(20), np.arange(20, 40)], [np.ones(20), np.ones(20)], note="a: find_a top 20; b: find_b top 20"
    )
    ask = Ask("binding", block, effects, {"simulated": sets}, {}, Inference(n_permutations=200), causal)
    made = _run({"simulated": adata}, ask, seed=1)
    extras = {("binding", key): table for key, table in made.extras.items()}
    analysis = {"name": "binding", "tests": {"binding": given}, "inference": {}, "effects": effects}
    return dataclasses.replace(study, results=made.table, extras=extras, analysis=analysis, nulls={})


def said(study, name, **given):
    (one,) = statements(battery(study, name, **given))
    return one


def test_a_conjunction_is_reported_with_its_share_and_its_limits(study):
    """The evidence reaches 2, the design allows 1: both are said, and so is what no grade says."""
    one = said(study, "I1")
    assert (one.number, one.verdict) == ("1/3", "nothing")
    assert "The evidence alone reaches grade 2; what the design lacks limits it." in one.text
    assert "emergent share" in one.detail
    assert "Design: lacks 48 test items" in one.detail
    words = " ".join(one.cautions)
    for sentence in (
        "for this model and dictionary",
        "items like these",
        "exploratory",
        "random weights",
        "gain of its own",
        "twice and four times as many features",
    ):
        assert sentence in words


def test_grade_2_is_claimed_in_the_words_of_its_tests(study):
    """With every requirement met: what rejected co-activation, in which direction, and that nothing is said of use."""
    full = battery(study, "I1")
    rows = full.results.copy()
    at = rows["effect"] == "grade"
    rows.loc[at, ["value", "x_grade"]] = 2
    rows.loc[at, "note"] = "grade 2 of 3, representational integration; no causal read-out, so at most 2"
    (one,) = statements(dataclasses.replace(full, results=rows))
    assert one.verdict == "found"
    assert "Co-activation is rejected: the pair has a code outside the plane of its parts" in one.text
    assert "more of it in the phrase than in the list" in one.text
    assert "grade 3 is out of reach" in one.detail
    gate = rows["effect"] == "gate"
    rows.loc[gate, ["p_corr", "value"]] = 0.01, -0.5
    (one,) = statements(dataclasses.replace(full, results=rows))
    assert "less closely in the phrase than in the list (a dependence on context, not a stronger binding)" in one.text


def test_superadditive_activations_are_no_integration(study):
    """Grade 1 names what else makes them; grade 0 says what was not found."""
    one = said(study, "C3", n=48)
    assert "so no integration is claimed" in one.text
    assert "Neither a code" in said(study, "C0").text


def test_a_code_that_the_list_has_too_is_said(study):
    """D-perp alone, without its list control: a code of the two words, and no composition."""
    full = battery(study, "word_pair")
    rows = full.results.copy()
    rows.loc[rows["effect"] == "code: D-perp", "p_unc"] = 0.001
    rows.loc[rows["effect"] == "code: list control", "p_unc"] = 1.0
    (one,) = statements(dataclasses.replace(full, results=rows))
    assert "one of the two words and not of how they are composed" in one.text
    rows.loc[rows["effect"] == "code: D-perp", "p_unc"] = 0.2
    (one,) = statements(dataclasses.replace(full, results=rows))
    assert "how they are composed" not in one.text


def test_the_causal_read_out_is_reported(study):
    """Grade 3 says what the sets do together; a read-out that cannot count says why, and what that means."""
    full = battery(study, "I1", causal=Causal(0.001, 0.01, frozen=True, value=0.42, directions=("clamp",), n_units=24))
    (one,) = statements(full)
    assert (
        "Causal read-out (given by the caller): I 0.42 logits, corrected p 0.0100 (clamp: over items p 0.001"
        in one.detail
    )
    rows = full.results.copy()
    rows.loc[rows["effect"] == "grade", ["value", "x_grade"]] = 3
    (one,) = statements(dataclasses.replace(full, results=rows))
    assert "both sets act on the outcome jointly" in one.text
    assert any("both directions are run" in line for line in methods_text(full)[0])
    (one,) = statements(battery(study, "I1", causal=Causal(1.0, 1.0, True, "the direction ablate was not run")))
    assert "it does not count, the direction ablate was not run." in one.detail
    assert "The causal read-out does not count, so grade 3 is out of reach." in one.detail


def test_levels_are_named_where_they_are_no_absence(study):
    """sg and pl are levels of their own; yes and no, or present and absent, are the part and its absence."""
    plain = battery(study, "I1")
    assert _levels(plain, ("a", "b")) is None
    effects = {"a": {"a": {"pl": 1, "sg": -1}}, "b": {"b": {"old": -1, "new": 1}}}
    named = dataclasses.replace(plain, analysis=plain.analysis | {"effects": effects})
    assert _levels(named, ("a", "b")) == (("a sg", "a pl"), ("b old", "b new"))
    (one,) = (d for d in INTEGRATION.drawings(named, "binding", named.results) if d.kind == "cells_2x2")
    assert [tick.get_text() for tick in one.figure.axes[0].get_xticklabels()] == ["a sg", "a pl"]


def test_without_effects_of_the_parts_there_is_no_share(study):
    """A random network may have none anywhere: the column of its range is missing, and the page says why."""
    full = battery(study, "C0")
    rows = full.results.drop(columns=["x_loo_low", "x_loo_high"])
    rows.loc[rows["effect"].str.startswith("code: D-perp"), "effsize"] = None
    (one,) = statements(dataclasses.replace(full, results=rows))
    assert "so there is no emergent share, D-perp p" in one.detail


def test_a_set_that_does_not_answer_is_said(study):
    """Without its premise grade 0 has no content."""
    shuffled = battery(study, "C0")
    rows = shuffled.results.copy()
    rows.loc[rows["effect"] == "grade", "note"] += "; a set does not answer to its own part on the test items"
    (one,) = statements(dataclasses.replace(shuffled, results=rows))
    assert "nothing that could be integrated" in one.text


def test_figures_draw_their_tables(study):
    """Four panels a place, one mark per requirement, a point per item, a bar per rung."""
    made = battery(study, "I3", target=True)
    drawn: dict[str, Drawing] = {one.kind: one for one in INTEGRATION.drawings(made, "binding", made.results)}
    assert list(drawn) == ["requirements", "shares", "cells_2x2", "coupling", "rungs"]
    assert len(drawn["cells_2x2"].figure.axes) == 4
    marks = [t.get_text() for t in drawn["requirements"].figure.axes[0].texts]
    assert marks.count("met") + marks.count("≤ 1") == 9
    assert [len(a.collections[0].get_offsets()) for a in drawn["coupling"].figure.axes] == [24, 24]
    assert len(drawn["rungs"].figure.axes[0].patches) == 4
    (share,) = (c.get_offsets() for c in drawn["shares"].figure.axes[0].collections[:1])
    row = made.results.set_index("effect").loc["code: D-perp"]
    assert share[0][0] == pytest.approx(row["effsize"])


def test_methods_say_null_and_units(study):
    """Co-activation in words, the relabelling, the correction, the list of what is exploratory."""
    paragraphs, references = methods_text(battery(study, "I1", target=True))
    text = " ".join(paragraphs)
    for words in (
        "null hypothesis of co-activation",
        "sign flips of whole items",
        "Holm",
        "under swaps of the contexts",
        "Exploratory",
    ):
        assert words in text
    assert any("Bemis" in text for _, text, _ in references)
    assert SECTIONS["integration"] is INTEGRATION
