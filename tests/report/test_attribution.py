"""Statements and figures of attribution, the lens, attention and heads say what their tables hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurosae.report.attribution import ALONE, DIRECT, HEADS, LOOK, READ
from neurosae.report.figures import FIGURES
from neurosae.report.sections import statements
from tests.report.synthetic_circuits import head_rows


@pytest.fixture
def said(study):
    return {(one.test, one.effect): one for one in statements(study)}


def test_every_statement_says_what_it_is_no_evidence_for(said):
    """The caution of its kind stands beside each of them."""
    assert said["used", "mean"].cautions == (ALONE,)
    assert said["parts", "subject"].cautions == (DIRECT,)
    assert said["lens", "congruence"].cautions == (READ,)
    assert said["looks", "congruence"].cautions == (LOOK,)
    assert any("Random tokens are far from text" in words for words in said["copies", "induction"].cautions)


def test_attribution_states_both_p_and_the_bound(said):
    """Over items, among the random others, and what the screen misses."""
    one = said["used", "mean"]
    assert "1 of 3 screened features" in one.text
    assert "Of 5 random others 0 were found, so at most 45.0% of what was not ablated" in one.text
    assert "among the random others p = 0.200" in one.detail
    assert said["parts", "subject"].text.startswith("1 of 8 components have a direct part in the contrast subject")


def test_heads_are_called_induction_only_by_their_verdict(study, said):
    """One head passes; where the verdict is withheld the page claims none, and weak shares are called weak."""
    one = said["copies", "induction"]
    assert (one.verdict, one.number) == ("found", "1")
    assert "L0H0 (40.0% of its attention, 2.0% without repetition; replaced, the loss rises by 0.300 nats)" in one.text
    assert "weak induction" in one.cautions[0]
    none = next(iter(HEADS.statements(study, "copies", pd.concat(head_rows(passes=False), ignore_index=True))))
    assert (none.verdict, none.number) == ("nothing", "0")
    assert none.text == "None of 6 heads passes all three tests of an induction head."


def test_lens_draws_every_cell_and_marks_found_layers(study):
    """A square per layer and cell with the mean in it; a dot beside the layers that were found."""
    rows = study.results[study.results["test"] == "lens"]
    figure = FIGURES["lens"](study.extras["lens", "lens"], rows)
    axes = figure.axes[0]
    assert len(axes.texts) == 20
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "embedding •"
    assert [n.endswith("•") for n in names[1:]] == [False] * 4
    values = axes.collections[0].get_array().reshape(5, 4)
    assert np.allclose(values, np.arange(5)[:, None] - 2.0)


def test_heads_are_drawn_at_their_layer_and_frames_are_verdicts(study):
    """Rows are layers, columns heads; a frame around the head that passes all three tests, a dot where found."""
    rows = study.results[(study.results["test"] == "copies") & (study.results["effect"] == "induction")]
    axes = FIGURES["heads"](rows.assign(panel="induction"), marked="induction head").axes[0]
    square = axes.collections[0].get_array().reshape(2, 3)
    assert np.allclose(square.ravel(), rows["estimate"].astype(float))
    assert [(p.get_x(), p.get_y()) for p in axes.patches] == [(0, 0)]
    assert [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.lines] == [(0.5, 0.5)]


def test_regions_draw_both_sides_and_their_difference(study):
    """Means over the - and over the + cells; the third panel is + minus -."""
    long = study.extras["looks", "attention"].copy()
    long.loc[long["cell"].str.startswith("pl") & (long["key"] == "head"), "mean"] += 0.2
    weights = {"sg/sg": -0.5, "sg/pl": -0.5, "pl/sg": 0.5, "pl/pl": 0.5}
    figure = FIGURES["regions"](long, [("L0H1", 1)], weights=weights, ends=("sg", "pl"))
    minus, plus, difference = (axes.collections[0].get_array().ravel() for axes in figure.axes[:3])
    assert np.allclose(plus - minus, difference)
    assert np.allclose(difference, [0.2, 0.0])
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["L0H1: sg", "L0H1: pl", "L0H1: difference"]


def test_screen_draws_each_ablated_feature_once(study):
    """Points are features; the found one has the colour of its sign."""
    long = study.extras["used", "screen"]
    axes = FIGURES["screen"](long).axes[0]
    drawn = sum(len(c.get_offsets()) for c in axes.collections)
    assert drawn == len(long)
    assert "exact change of LD" in axes.get_ylabel()
