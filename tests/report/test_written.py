"""Steered texts and removed differences on the page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from neurosae.report.html import write_report
from neurosae.report.sections import statements
from neurosae.report.stored import read_study
from neurosae.report.written import steered_texts
from tests.report.synthetic import write_study
from tests.report.synthetic_written import ATTACK, DOWN, UP

WARNING = "These texts <b>may</b> offend."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished study with both kinds of tests and a content warning."""
    made = write_study(tmp_path_factory.mktemp("written") / "study", tests=("number", "written"))
    path = made / "analysis.yaml"
    path.write_text(path.read_text().replace("report: {", f'report: {{content_warning: "{WARNING}", '))
    write_report(made)
    return made


def test_both_p_values_and_the_cost_are_said(folder):
    """The sentence of a steering test gives items, controls, change and what it costs."""
    said = next(s for s in statements(read_study(folder)) if s.test == "steer")
    assert said.verdict == "found"
    assert said.number == "1/2"
    assert "towards plus, 2 x dose 1.00 → 4.00 words per 100" in said.text
    assert "minus" not in said.text
    for part in ("items p = 0.000200", "controls p = 0.0100"):
        assert part in said.text
    assert "KL 0.200 nats per token" in said.detail
    assert "perplexity 30" in said.detail


def test_a_removal_says_what_is_left_at_equal_cost(folder):
    """Bias, methods that change it, and the differences between methods."""
    said = next(s for s in statements(read_study(folder)) if s.test == "remove")
    assert said.number == "2/3"
    assert "ablate (" not in said.text
    assert "mean (" in said.text
    assert "At equal cost" in said.detail
    assert "ablate - direction" in said.detail
    assert "ablate - mean" not in said.detail
    assert any("without bias elsewhere" in c or "model is without bias" in c for c in said.cautions)


def test_texts_stand_side_by_side_and_are_escaped(folder):
    """What a model wrote is text, never markup; as many pairs of every condition, and none chosen by its score."""
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    shown = steered_texts(read_study(folder), "steer")
    assert [row["condition"] for row in shown["rows"]] == [UP] * 6 + [DOWN] * 6
    assert [row["item"] for row in shown["rows"][:6]] == [f"i{k}" for k in range(0, 24, 4)]
    assert ATTACK in shown["rows"][0]["steered"]


def test_sensitive_texts_are_folded_behind_the_warning(folder):
    """Stimuli and written texts stand inside `details`, whose summary is the escaped sentence."""
    page = (folder / "report.html").read_text()
    folded = re.findall(r'<details class="folded"><summary dir="auto">(.*?)</summary>(.*?)</details>', page, re.DOTALL)
    assert len(folded) >= 2
    assert all(summary == "These texts &lt;b&gt;may&lt;/b&gt; offend." for summary, _ in folded)
    assert any("quite old" in inside for _, inside in folded)
    outside = re.sub(r'<details class="folded">.*?</details>', "", page, flags=re.DOTALL)
    assert "quite old" not in outside


def test_figures_draw_items_controls_and_costs(folder):
    """A point per item and control set, a line per method."""
    from neurosae.report.figures import FIGURES

    study = read_study(folder)
    rows = study.results[study.results["test"].eq("steer").to_numpy(bool)]
    extras = {name: study.extras["steer", name] for name in ("items", "controls")}
    left, right = FIGURES["steering"](rows, **extras, unit="words per 100").axes
    assert [len(c.get_offsets()) for c in left.collections] == [24, 24]
    assert [len(c.get_offsets()) for c in right.collections] == [99, 1, 99, 1]
    axes = FIGURES["removal"](study.extras["remove", "strengths"]).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 3
    np.testing.assert_allclose([line.get_ydata()[0] for line in lines], 0.9)
    assert len(FIGURES["removal_cells"](study.extras["remove", "cells"]).axes[0].collections) == 4
