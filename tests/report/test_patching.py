"""The page and the grid of patching."""

from __future__ import annotations

import pytest

from neurosae.report.figures import FIGURES
from neurosae.report.patching import PATCHING
from neurosae.report.sections import SECTIONS
from neurosae.spec.patching import PATCHING as KINDS
from tests.report.synthetic_patching import patching_table


@pytest.fixture
def rows():
    return patching_table()


def test_every_kind_has_a_section():
    """What YAML may ask for has words and a figure."""
    assert set(KINDS) <= set(SECTIONS)
    assert SECTIONS["patching"] is PATCHING


def test_statements_count_places_and_name_the_strongest(study, rows):
    """One sentence per direction, with the share, its interval, and what shares do not do."""
    noising, denoising = PATCHING.statements(study, "patch", rows)
    assert noising.number == denoising.number == "6"
    assert noising.text.startswith("6 of 7 tested places carry the difference: put into the clean text")
    assert "brings the outcome back (sufficient)" in denoising.text
    assert "layer 0, resid_post at head (1.00 [0.950, 1.05] of the difference" in noising.detail
    assert any("do not add up" in caution for caution in noising.cautions)


def test_statements_of_zero_speak_of_damage(study, rows):
    """Zero is no vector of the model, and says nothing about sufficiency."""
    rows = rows[rows["x_direction"] == "noising"].assign(x_replace="zero", x_share=float("nan"))
    (said,) = PATCHING.statements(study, "patch", rows)
    assert any("may be damage" in caution for caution in said.cautions)
    assert any("nothing is said about sufficiency" in caution for caution in said.cautions)


def test_statements_of_nothing(study, rows):
    """No row with numbers: the reason is told."""
    untested = rows[rows["status"] == "untestable"]
    said = list(PATCHING.statements(study, "patch", untested))
    assert {one.verdict for one in said} == {"untested"}
    assert "nothing leads from here" in said[0].text


def test_grid_has_a_square_per_place(rows):
    """Two panels of 4 x 2; found places are framed, the idle one is hatched, numbers are those of the table."""
    figure = FIGURES["patching"](rows)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").split(":")[0] for axes in panels] == ["noising", "denoising"]
    for axes in panels:
        assert len(axes.patches) == 8
        assert sum(bool(patch.get_hatch()) for patch in axes.patches) == 1
        assert sum(patch.get_linewidth() > 1 and patch.get_edgecolor()[3] > 0 for patch in axes.patches) == 6
        assert sorted(text.get_text() for text in axes.texts) == [
            "0.00",
            "0.33",
            "0.33",
            "0.67",
            "0.67",
            "1.00",
            "1.00",
        ]
        assert len(axes.get_yticks()) == 4
