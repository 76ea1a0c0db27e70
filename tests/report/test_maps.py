"""Maps on the page: contours are what was found, missing cells are hatched, and clusters license no onset."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurosae.report.figures_maps import found_sets, heat, largest, layout
from neurosae.report.html import write_report
from neurosae.report.maps import MAP
from neurosae.report.stored import read_study
from neurosae.spec.results import as_results, read_results, write_results
from tests.report.synthetic import write_study

SITES, POSITIONS = ("early", "middle", "late"), (-1, 0, 1, 2)


def map_rows(statistic="maxT", *, found=True, features=True):
    """A map of 3 sites x (4 positions of `head`, 1 of `pre_verb`); three cells at `head` are found, one is missing."""
    places = [(s, "head", p) for s in SITES for p in POSITIONS] + [(s, "pre_verb", 0) for s in SITES]
    height = np.linspace(-1.5, 1.6, len(places))
    rows = pd.DataFrame(places, columns=["site", "region", "position"])
    hit = (rows["region"].eq("head") & rows["site"].ne("early") & rows["position"].between(0, 1)).to_numpy()
    height[hit] = [4.0, 4.5, 5.0, 3.5]
    p = np.where(hit, 0.004 if found else 0.3, 0.6)
    cluster = statistic == "cluster"
    n, missing = len(rows), rows.index == 0
    table = rows.assign(
        kind="map", test="where", effect="subject", split="test", set="strongest of the features", n_features=40,
        stat="moderated_t", value=height, p_unc=p, p_corr=np.nan if cluster else p, p_adjust=statistic, family="map",
        n_family=n, unit="item", n_units=24, n_perm=10_000, p_min=1e-4, p_method="flips", alternative="two-sided",
        h0="no difference between subject pl and sg", status="ok", x_height=height, x_scale="z", x_z=height,
        x_feature=np.arange(n) if features else pd.array([pd.NA] * n, dtype="Int64"),
        x_cluster=np.where(hit & cluster, "1", None),
    )  # fmt: skip
    numbers = ["value", "p_unc", "p_corr", "x_height", "x_z"]
    table.loc[missing, numbers] = np.nan
    table.loc[missing, "status"], table.loc[missing, "note"] = "failed", "no item has a frame here"
    if cluster:
        more = {"site": None, "region": None, "position": pd.NA, "set": "cluster 1", "stat": "cluster_mass"}
        more |= {"value": 17.0, "p_unc": np.nan, "p_corr": 0.004 if found else 0.3, "x_cluster": "1", "x_n_cells": 4}
        row = table.iloc[[5]].assign(**more, x_peak="late/head/0", x_feature=pd.NA, x_z=np.nan, note="no onset")
        table = pd.concat([table.astype(object), row.astype(object)], ignore_index=True)
        table["x_n_cells"] = pd.array(table["x_n_cells"], dtype="Int64")
        table["x_feature"] = pd.array(table["x_feature"], dtype="Int64")
        table[["x_height", "x_z"]] = table[["x_height", "x_z"]].astype(float)
    return as_results({name: table[name] for name in table})


@pytest.fixture
def with_map(tmp_path):
    """A function that writes a study with a contrast and a map, and reads it."""

    def write(rows):
        folder = write_study(tmp_path / "study", tests=("number",))
        both = pd.concat([t.dropna(axis=1, how="all").astype(object) for t in (read_results(folder), rows)])
        both = both.reset_index(drop=True).infer_objects()
        write_results(folder, as_results({c: both[c] for c in both}))
        np.save(folder / "tests" / "where.null.npy", np.linspace(0, 4, 500, dtype=np.float32))
        return folder

    return write


def squares(figure):
    return [p for p in figure.axes[0].patches if p.get_width() == 1]


def test_layout_recovers_sites_regions_and_positions():
    """Sites rise in their order, positions in theirs, and a gap parts the regions."""
    grid = layout(map_rows())
    assert grid.sites == list(SITES)
    assert [(r, p) for r, p, _ in grid.columns] == [
        ("head", -1),
        ("head", 0),
        ("head", 1),
        ("head", 2),
        ("pre_verb", 0),
    ]
    assert grid.at["late", "head", 0] == (1.0, 2)
    assert grid.at["early", "pre_verb", 0][0] > 4


@pytest.mark.parametrize("statistic", ["maxT", "tfce", "cluster"])
def test_contours_agree_with_the_found_cells(statistic):
    """What is outlined has a corrected p of at most alpha, cell by cell or by its cluster; nothing else is."""
    want = {(s, "head", p) for s in ("middle", "late") for p in (0, 1)}
    sets = list(found_sets(map_rows(statistic), 0.05))
    assert [set(members) for members, _ in sets] == [want]
    assert sets[0][1] == ("1" if statistic == "cluster" else "")
    assert not list(found_sets(map_rows(statistic, found=False), 0.05))
    lines = heat(map_rows(statistic)).axes[0].lines
    assert len(lines) == 8  # the outline of two by two cells
    assert not heat(map_rows(statistic, found=False)).axes[0].lines


def test_heat_draws_every_cell_and_hatches_the_missing_one():
    """One square per cell, coloured by the sign of its height; the colour bar has one unit and is symmetric."""
    rows = map_rows()
    figure = heat(rows)
    boxes = squares(figure)
    assert len(boxes) == 15
    assert [bool(b.get_hatch()) for b in boxes] == [True] + [False] * 14
    red = [b.get_facecolor()[0] > b.get_facecolor()[2] for b in boxes[1:]]
    assert red == (rows["x_height"].iloc[1:] > 0).tolist()
    bar = figure.axes[1]
    assert bar.get_ylabel() == "z of the strongest feature"
    assert bar.get_ylim()[0] == -bar.get_ylim()[1]


@pytest.mark.parametrize(("statistic", "n"), [("maxT", 14), ("tfce", 14), ("cluster", 1)])
def test_null_shows_what_was_held_against_it(statistic, n):
    """One line per cell or cluster, orange where positive, at its place on the scale of the null."""
    rows = map_rows(statistic)
    (axes,) = largest(np.linspace(0, 4, 200), rows).axes
    marks = axes.lines[1:]
    assert len(marks) == n
    assert max(line.get_xdata()[0] for line in marks) == (17.0 if statistic == "cluster" else 5.0)
    assert "p 0.00400" in marks[-1 if statistic == "cluster" else 9].get_gid().replace("%20", " ")
    assert axes.lines[0].get_xdata()[0] == pytest.approx(3.8, abs=0.03)


@pytest.mark.parametrize("statistic", ["tfce", "cluster"])
def test_page_says_that_a_cluster_has_no_onset(with_map, statistic):
    """The sentence stands under the figure, in the summary and in the methods of every cluster and TFCE map."""
    folder, sentence = with_map(map_rows(statistic)), "never licenses “onset at”, “begins at” or “extends to”"
    page = write_report(folder).read_text(encoding="utf-8")
    parts = page.split('id="test-where"')
    assert sentence in parts[0]
    assert sentence in parts[1].split("<figcaption")[1].split("</figcaption>")[0]
    assert sentence in parts[1].split('id="methods"')[1]
    assert (folder / "figures" / "where-map.png").is_file()


def test_page_of_a_max_t_map_speaks_of_cells(with_map):
    """How many cells, where the strongest is, n in the caption; no sentence about onsets is needed."""
    study = read_study(with_map(map_rows()))
    rows = study.results[study.results["test"] == "where"]
    (said,) = MAP.statements(study, "where", rows)
    assert (said.verdict, said.number) == ("found", "4")
    where = "at head and pre_verb in early, middle and late"
    assert said.text == f"subject is found in 4 of 14 cells of the map {where}: 4 more active for pl."
    assert "late · head · position 0 (z = 5.00, feature" in said.detail
    drawing, null = MAP.drawings(study, "where", rows)
    assert "under each of 500 relabellings" in null.caption
    assert "n = 24 test items; 10,000 relabellings" in drawing.caption
    assert "Hatched: not tested." in drawing.caption
    assert "onset" not in drawing.caption + said.detail
    assert "the strongest feature of each cell over 15 cells" in " ".join(MAP.methods(study, rows))


def test_page_says_when_nothing_was_found(with_map):
    """No cell, no cluster, or nothing tested: each is said as plainly."""
    study = read_study(with_map(map_rows("cluster", found=False)))
    rows = study.results[study.results["test"] == "where"]
    (said,) = MAP.statements(study, "where", rows)
    assert (said.verdict, said.text) == (
        "nothing",
        "subject is found in none of 1 cluster of the map at head and pre_verb in early, middle and late.",
    )
    (none,) = MAP.statements(study, "where", rows[rows["site"].notna()])
    assert "there is no cluster" in none.text
    (silent,) = MAP.statements(study, "where", rows.iloc[[0]])
    assert silent.verdict == "untested"
