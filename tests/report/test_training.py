"""Training curves: a row per dictionary that was trained here, with what was said during training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from neurosae.report.figures_training import draw_training, training_curves


@pytest.fixture
def curve():
    """A log of ten rows, two of them with held-out text."""
    steps = np.arange(10)
    held_out = [None] * 4 + [0.5] + [None] * 4 + [0.3]
    return {
        "tokens": (1000 * steps).tolist(), "fvu": (1 / (1 + steps)).tolist(), "fvu_held_out": held_out,
        "l0": [8.0] * 10, "k": [8] * 10, "dead": (steps / 20).tolist(), "loss": [1.0] * 10,
    }  # fmt: skip


def test_curves_have_a_row_of_three_panels_per_dictionary(curve):
    """Lines over all rows of the log, dots where held-out text was measured."""
    figure = training_curves({"early": pd.DataFrame(curve), "late": pd.DataFrame(curve)})
    assert len(figure.axes) == 6
    fvu, l0, dead = figure.axes[:3]
    assert [len(line.get_xdata()) for line in fvu.lines] == [10, 2]
    assert fvu.lines[1].get_ydata().tolist() == [0.5, 0.3]
    assert len(l0.lines) == 2
    assert dead.lines[0].get_ydata().tolist() == curve["dead"]
    assert [figure.axes[i].get_ylabel() for i in (0, 3)] == ["early", "late"]


def test_only_dictionaries_with_a_curve_are_drawn(study, curve):
    """None trained here: no figure. One: its sentences are in the caption."""
    none = {**study.provenance, "dictionaries": {"early": {"card": {}}}}
    assert not list(draw_training(replace(study, provenance=none)))
    said = {"curve": curve, "gamma_means": "The mean is far.", "warnings": ["60% were silent."]}
    record = {**study.provenance, "dictionaries": {"late": {"card": said}, "early": {"card": {}}}}
    (drawing,) = draw_training(replace(study, provenance=record))
    assert drawing.title == "How the dictionaries at late were trained"
    assert "late: The mean is far. late: 60% were silent." in drawing.caption
    assert len(drawing.figure.axes) == 3


def test_empty_parts_of_a_curve_are_drawn(curve):
    """No held-out row yet, nothing dead: a figure all the same."""
    table = pd.DataFrame({**curve, "fvu_held_out": [None] * 10, "dead": [0.0] * 10})
    assert len(training_curves({"late": table}).axes) == 3
