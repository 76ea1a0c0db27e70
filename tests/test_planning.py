"""From the command line: `power`, `calibrate` and `test --null`, without loading a model."""

from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner

import neurosae as ns
from neurosae import study as flow
from neurosae.cli import app
from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.planning import Power
from neurosae.stats.simulate import example_design, simulate

ANALYSIS = """
schema: neurosae/analysis/1
name: planned
design: design.yaml
seed: 1
model: {name: embedded}
sites: {early: {hook: blocks.1.hook_resid_post, dictionary: {embedded: early}},
        late: {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}}
inference: {n_permutations: 200}
effects: {number: {number: {pl: 1, sg: -1}}, reverse: {number: {pl: -1, sg: 1}}}
tests:
  both: {test: contrast, effect: [number, reverse], region: noun}
  screen: {test: contrast, effect: number, region: noun, sites: late, correction: fdr_bh, statistic: t}
power: {effect: number, n_items: [8, 16], n_sets: 5, n_permutations: 100, n_features: 40, smallest: {density: 0.4}}
"""
DESIGN = """
schema: neurosae/design/1
name: planned
factors: {number: [sg, pl]}
frames: {plain: "The {noun:number} here"}
items:
"""


@pytest.fixture
def analysis(tmp_path):
    """An analysis of 16 items whose embedded dictionaries are never loaded."""
    items = "".join(f"  item{i}: {{noun: {{sg: noun{i}, pl: nouns{i}}}}}\n" for i in range(16))
    (tmp_path / "design.yaml").write_text(DESIGN + items)
    (tmp_path / "analysis.yaml").write_text(ANALYSIS)
    return tmp_path / "analysis.yaml"


def stored(design):
    """Responses of two sites, as if they had been extracted."""
    return {
        site: simulate(design, n_features=60, effects={"number": 6}, density=0.4, shift=4.0, regions=("noun",), seed=k)
        for k, site in enumerate(("early", "late"))
    }


def test_power_says_where_its_noise_comes_from(analysis, monkeypatch):
    """Without stored responses noise is simulated; with them they are the pilot. Table and figure are written."""
    study = ns.prepare_study(analysis, analysis.parent / "results")
    simulated = ns.power_study(study)
    assert simulated["noise"].str.startswith("simulated").all()
    monkeypatch.setattr(flow, "unchanged_responses", lambda study: stored(study.design))
    piloted = ns.power_study(study)
    assert piloted["noise"].eq("responses of 16 items at noun, their effect removed").all()
    written = pd.read_csv(study.folder / "power.csv")
    assert written["power"].tolist() == pytest.approx(piloted["power"].tolist())
    assert {"power.svg", "power.png"} <= {path.name for path in study.folder.iterdir()}
    assert "noise from stored responses" in (study.folder / "log.txt").read_text()


def test_power_prints_its_table_and_recommendation(analysis):
    """`neurosae power` ends with a rule of thumb and the path of its table."""
    done = CliRunner().invoke(app, ["power", str(analysis), "--out", str(analysis.parent / "results")])
    assert done.exit_code == 0
    assert "maxT" in done.output
    assert "Recommended where nothing better is known: 48 items" in done.output
    assert done.output.strip().endswith("power.csv")


def test_null_runs_each_test_as_it_is(analysis, monkeypatch):
    """Effects of a test are one family, and its own correction, statistic and sites count."""
    study = ns.prepare_study(analysis, analysis.parent / "results")
    study.folder.mkdir(parents=True)
    monkeypatch.setattr(flow, "extract_study", lambda study: stored(study.design))
    table = ns.calibrate_study(study, n_sets=5).set_index("test")
    assert table.loc["both", "effect"] == "number, reverse"
    assert table["correction"].to_dict() == {"both": "maxT", "screen": "fdr_bh"}
    assert table.loc["both", "n_tests"] > 3 * table.loc["screen", "n_tests"]


def test_calibrate_writes_table_and_page(tmp_path):
    """`neurosae calibrate` writes the csv, and the page that is made from it alone."""
    done = CliRunner().invoke(app, ["calibrate", "--sets", "1", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "calibration.csv", keep_default_na=False, dtype={"balance": str, "version": str})
    page = (tmp_path / "calibration.md").read_text()
    assert done.exit_code == 0
    assert page.strip() in done.output
    assert page == ns.calibration_page(table, command="neurosae calibrate --sets 1 --seed 0")
    assert table["n_sets"].eq(1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("effect: number,", r"power\.effect: unknown effect 'nummer'"),
        ("n_sets: 5", r"power\.n_sets"),
        ("n_items: [8, 16]", r"power\.n_items"),
        ("smallest: {density: 0.4}", r"power\.smallest: is no effect"),
    ],
)
def test_analysis_refuses_a_power_section_that_cannot_run(analysis, wrong, message):
    """The field is named, with its line."""
    right = {
        "effect: number,": "effect: nummer,",
        "n_sets: 5": "n_sets: 0",
        "n_items: [8, 16]": "n_items: [2]",
        "smallest: {density: 0.4}": "smallest: {density: 0, magnitude: 1}",
    }[wrong]
    head, power = analysis.read_text().split("power:")
    analysis.write_text(head + "power:" + power.replace(wrong, right))
    with pytest.raises(SpecError, match=message):
        load_analysis(analysis)


def test_power_refuses_an_analysis_without_contrasts(analysis):
    """Neither a contrast nor an effect with its region: nothing to plan."""
    text = analysis.read_text()
    analysis.write_text(text[: text.index("tests:")])
    study = ns.prepare_study(analysis, analysis.parent / "results")
    with pytest.raises(SpecError, match="power: needs a design, and a contrast"):
        ns.power_study(study)


def test_schema_and_function_share_their_defaults():
    """Left out in YAML or in Python, the same is planned."""
    few = {"n_sets": 3, "n_features": 30, "n_permutations": 50}
    plain = ns.power(example_design(8), {"number": {"pl": 1, "sg": -1}}, settings=few, seed=0)
    given = ns.power(
        example_design(8),
        {"number": {"pl": 1, "sg": -1}},
        smallest=Power().smallest.model_dump(),
        n_items=Power().n_items,
        settings=few,
        seed=0,
    )
    pd.testing.assert_frame_equal(plain, given)
