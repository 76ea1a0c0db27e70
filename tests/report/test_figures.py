"""Each figure draws what its table says: counts of points, lines and bars, names, signs."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from neurosae.report.figures import FIGURES
from neurosae.report.stored import effect_weights
from neurosae.report.style import MINUS, PLUS, REST, file_bytes, svg_text
from neurosae.report.tables import rows_found, rows_tested
from tests.report.synthetic import CELLS, WEIGHTS


@pytest.fixture
def number(study):
    return study.results[study.results["test"] == "number"]


def offsets(axes):
    return sum(len(c.get_offsets()) for c in axes.collections)


def test_volcano_has_a_point_per_tested_feature(number):
    """Every tested feature is one point; the found ones carry their sign as colour."""
    axes = FIGURES["volcano"](number).axes[0]
    assert offsets(axes) == len(rows_tested(number))
    found = rows_found(number)
    colours = [to_hex(c.get_facecolor()[0]) for c in axes.collections if len(c.get_offsets()) == 1]
    assert colours.count(PLUS) == (found["effsize"] > 0).sum()
    assert colours.count(MINUS) == (found["effsize"] < 0).sum()


def test_volcano_draws_its_line_at_the_weakest_found_feature(number):
    """The line lies at the largest uncorrected p among the found features."""
    axes = FIGURES["volcano"](number).axes[0]
    heights = [
        line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(set(line.get_ydata())) == 1
    ]
    assert np.isclose(max(rows_found(number)["p_unc"]), 10 ** -min(heights))


def test_strip_has_a_row_per_place_and_a_point_per_feature(number):
    """Two sites x two regions; the counts beside the rows are those of the table."""
    axes = FIGURES["strip"](number).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "early · head",
        "early · pre_verb",
        "late · head",
        "late · pre_verb",
    ]
    assert offsets(axes) == len(rows_tested(number))
    said = [int(re.sub(r"\D", "", t.get_text())) for t in axes.texts]
    assert sum(said) == len(rows_found(number))


def test_profile_rows_are_found_features(study):
    """At most `top` features, each found somewhere; a dot for every found one among them."""
    axes = FIGURES["profile"](study.results[study.results["kind"] == "contrast"], top=10).axes[0]
    names = [t.get_text() for t in axes.get_yticklabels()]
    found = rows_found(study.results[study.results["kind"] == "contrast"])
    keys = found["site"] + "/" + found["feature"].astype(str)
    assert len(names) == 10
    assert set(names) <= set(keys)
    assert len(axes.collections[1].get_offsets()) == keys.isin(names).sum()


def test_profile_keeps_units_apart(study):
    """d and d_z are no common scale: two colour bars, each with its own range."""
    rows = study.results[study.results["kind"] == "contrast"].copy()
    other = (rows["effect"] == "congruence").to_numpy(dtype=bool)
    rows.loc[other, "eftype"], rows.loc[other, "effsize"] = "d", rows.loc[other, "effsize"] * 10
    figure = FIGURES["profile"](rows)
    labels = [axes.get_ylabel() for axes in figure.axes[1:]]
    limits = [mesh.get_clim()[1] for mesh in figure.axes[0].collections[:2]]
    assert sorted(labels) == ["effect size d", "effect size d_z"]
    assert limits[0] != limits[1]


def test_items_draws_a_line_per_item(study):
    """24 items and their mean per feature; orange where the + cells are higher."""
    long = study.extras["number", "items"]
    first = long[long["feature"] == long["feature"].iloc[0]].head(24)
    axes = FIGURES["items"](first).axes[0]
    colours = [line.get_color() for line in axes.lines]
    assert len(colours) == 25
    assert colours.count(PLUS) == (first["plus"] > first["minus"]).sum()
    assert colours.count(REST) == (first["plus"] == first["minus"]).sum()


def test_items_between_are_two_groups():
    """Items that have one side only are dots in two groups, never joined."""
    value, side = np.linspace(0, 3, 20), np.arange(20) % 2 == 0
    where = {"site": "late", "region": "last_word", "position": 0, "effect": "outcome", "feature": 5}
    long = pd.DataFrame(
        {
            **where,
            "item": [f"i{k}" for k in range(20)],
            "plus": np.where(side, value, np.nan),
            "minus": np.where(side, np.nan, value),
        }
    )
    axes = FIGURES["items"](long, ends={"outcome": ("failure", "achievement")}).axes[0]
    assert offsets(axes) == 20
    assert [t.get_text() for t in axes.get_xticklabels()] == ["failure", "achievement"]
    assert all(len(set(line.get_ydata())) == 1 for line in axes.lines)


def test_cells_draws_the_means(study):
    """One line per level of the second factor, through the stored cell means."""
    long = study.extras["interference", "cells"].head(4)
    axes = FIGURES["cells"](long, factors={"subject": ("sg", "pl"), "attractor": ("sg", "pl")}).axes[0]
    mean = long.set_index("cell")["mean"]
    assert np.allclose(axes.lines[0].get_ydata(), [mean["sg/sg"], mean["pl/sg"]])
    assert np.allclose(axes.lines[1].get_ydata(), [mean["sg/pl"], mean["pl/pl"]])


def test_courses_draw_both_sides_at_every_token(study):
    """One panel per feature, a line per side through the stored means, a dot per token."""
    long = study.extras["number", "tokens"]
    one = long[(long["feature"] == long["feature"].iloc[0]) & (long["site"] == long["site"].iloc[0])]
    one = one[one["region"] == one["region"].iloc[0]]
    axes = FIGURES["courses"](one, ends={"subject": ("sg", "pl")}).axes[0]
    for line, side in zip(axes.lines, ("minus", "plus"), strict=True):
        part = one[one["side"] == side].sort_values("token")
        assert np.allclose(line.get_ydata(), part["mean"])
        assert np.allclose(line.get_xdata(), part["token"])
    assert [line.get_label() for line in axes.lines] == ["sg", "pl"]
    assert offsets(axes) == len(one)


def test_cells_draws_the_factors_that_the_effect_names():
    """Of three factors the named one is on the axis, the next is the lines, the rest is averaged."""
    names = [f"{a}/{b}/{c}" for a in "pq" for b in "rs" for c in "tu"]
    where = {"site": "late", "region": "w", "position": 0, "effect": "third", "feature": 1}
    long = pd.DataFrame({**where, "cell": names, "mean": np.arange(8.0), "density": 0.5, "n": 12})
    levels = {"one": ("p", "q"), "two": ("r", "s"), "three": ("t", "u")}
    axes = FIGURES["cells"](long, factors=levels, named={"third": ("three",)}).axes[0]
    assert axes.get_xlabel() == "three"
    assert np.allclose(axes.lines[0].get_ydata(), [1, 2])
    assert np.allclose(axes.lines[1].get_ydata(), [5, 6])


def test_null_holds_every_relabelling(study, number):
    """The bars add up to the relabellings, and the line is the 5 % point."""
    null = study.nulls["number"]
    axes = FIGURES["null"](null, number).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(null)
    threshold = axes.lines[0].get_xdata()[0]
    assert (null >= threshold - 1e-6).mean() <= 0.05


def test_weights_print_every_weight(study):
    """The design matrix: three effects, four cells, rows that sum to zero."""
    table = effect_weights(study)
    axes = FIGURES["weights"](table).axes[0]
    shown = np.array([float(t.get_text().replace("−", "-")) for t in axes.texts]).reshape(3, 4)
    assert list(table.columns) == list(CELLS)
    assert np.allclose(shown, np.array([WEIGHTS[e] for e in table.index]))


def test_rdms_show_data_first_then_models(study):
    """One panel per place of the data and per model; the diagonal is empty."""
    figure = FIGURES["rdms"](study.extras["geometry", "rdm"])
    panels = [a for a in figure.axes if a.get_title(loc="left")]
    titles = [a.get_title(loc="left") for a in panels]
    assert titles == ["data: early", "data: late", "model: subject", "model: attractor", "model: congruence"]
    square = panels[0].collections[0].get_array().reshape(4, 4)
    assert square.mask.diagonal().all()
    assert np.allclose(square, square.T)


def test_fits_draws_a_bar_per_model_and_place(study):
    """Bars have the length of the fits; hollow where the corrected p is above alpha."""
    rows = study.results[study.results["test"] == "geometry"]
    figure = FIGURES["fits"](rows)
    bars = [bar for axes in figure.axes for bar in axes.patches if np.isclose(bar.get_height(), 0.62)]
    assert np.allclose(sorted(b.get_width() for b in bars), sorted(rows["value"]))
    assert sum(b.get_facecolor()[3] == 0 for b in bars) == (rows["p_corr"] > 0.05).sum()


def test_figures_leave_the_session_as_it_was(number):
    """Neither the caller's settings nor pyplot's list of figures change."""
    before = dict(mpl.rcParams)
    FIGURES["volcano"](number)
    assert dict(mpl.rcParams) == before


def test_odd_words_are_text_in_figures(study):
    """Dollars, tags, control characters, Arabic and Chinese are drawn as they are, without warnings."""
    words = "$\\frac{1}{0}$ <script>x</script>"
    ends = {"subject": ("汉字\x07", "مفتاح $")}
    long = study.extras["number", "items"].head(24).assign(site=words, item=words)
    figure = FIGURES["items"](long, ends=ends)
    svg = svg_text(figure, "f", "a title")
    outlines, png = file_bytes(figure)
    assert "<script" not in svg + outlines.decode()
    assert any(r"$\frac{1}{0}$" in text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert "مفتاح $" in svg
    assert png.startswith(b"\x89PNG")


def test_svg_follows_the_page(number):
    """Inside the page colours are variables, the font is the page's, ids carry the name of the figure."""
    svg = svg_text(FIGURES["volcano"](number), "f7", "a title")
    assert PLUS not in svg
    assert "var(--plus)" in svg
    assert "var(--sans)" in svg
    assert "DejaVu" not in svg
    assert all(i.startswith("f7-") for i in re.findall(r'id="([^"]+)"', svg))
    assert re.search(r"<title>late/\d+ at head", svg)
