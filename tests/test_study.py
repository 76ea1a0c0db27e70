"""The main job from end to end, on the embedded model: results, reuse, resume, determinism, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neurosae as ns
from neurosae import stages
from neurosae.errors import DataError, SpecError, StoreError
from neurosae.spec.results import as_results

DESIGN = """
schema: neurosae/design/1
name: number
factors: {number: [sg, pl]}
frames: {near: "The {noun:number} near me {verb:number}", old: "The old {noun:number} {verb:number}"}
regions: {pre_verb: {before: verb}}
target: {slot: verb, foil: other_level, single_token: true}
partition: {localizer: 8, seed: 1}
items:
"""
NOUNS = "boat ship car house wall gate door window room chair bed plate candle bell book letter".split()
ANALYSIS = """
schema: neurosae/analysis/1
name: number
design: ../stimuli/number.yaml
seed: 3
model: {name: embedded}
sites:
  early: {hook: blocks.1.hook_resid_post, dictionary: {neurons: true}}
  late: {hook: blocks.3.hook_resid_post, dictionary: {neurons: true}}
positions: {regions: [noun, pre_verb]}
inference: {n_permutations: 500}
effects: {number: {number: {pl: 1, sg: -1}}}
tests:
  find: {test: contrast, effect: number, region: noun, split: localizer}
  chosen: {test: contrast, effect: number, region: noun, features: {from: find, top: 5}}
  screen: {test: contrast, effect: number, region: pre_verb, correction: fdr_bh}
  geometry: {test: rsa, region: noun, conditions: [number, frame], models: {number: {effect: number}}}
report: {top_features: 3}
"""


def write_files(folder: Path) -> tuple[Path, Path]:
    """The two files of a small study; returns the analysis file and the results folder."""
    for name in ("stimuli", "analyses"):
        (folder / name).mkdir()
    forms = [f"  {n}: {{noun: {{sg: {n}, pl: {n}s}}, verb: {{sg: was, pl: were}}}}" for n in NOUNS]
    (folder / "stimuli" / "number.yaml").write_text(DESIGN + "\n".join(forms) + "\n")
    (folder / "analyses" / "number.yaml").write_text(ANALYSIS)
    return folder / "analyses" / "number.yaml", folder / "results"


@pytest.fixture
def study(tmp_path):
    """A small study that has not been run."""
    return write_files(tmp_path)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The same, run once, report included."""
    folder = tmp_path_factory.mktemp("finished")
    ns.run_analysis(*write_files(folder))
    return folder


@pytest.fixture
def finished(original, tmp_path):
    """A copy of the finished study, to be changed at will."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "analyses" / "number.yaml", tmp_path / "results"


def rerun(study) -> pd.DataFrame:
    """Everything but the report."""
    return ns.test_study(ns.prepare_study(*study))


def forbidden(*_, **__):
    raise AssertionError("the model was loaded although everything is stored")


def test_run_finds_number_on_held_out_items(finished):
    """Localizer items choose, test items confirm; every file is there and the provenance says what was done."""
    folder = finished[1] / "number"
    results = ns.read_results(folder)
    chosen = results[results["test"] == "chosen"]
    assert (chosen["p_corr"] <= 0.05).any()
    assert set(results["test"]) == {"find", "chosen", "screen", "geometry"}
    record = json.loads((folder / "provenance.json").read_text())
    assert record["seed"] == 3
    assert record["model"]["batch_invariance"] <= 1e-5
    assert record["items"] == {"localizer": 8, "test": 8}
    for name in ("report.html", "results.csv", "stimuli.csv", "design.yaml", "analysis.yaml", "log.txt"):
        assert (folder / name).stat().st_size > 0, name


def test_second_run_loads_no_model_and_repeats_every_number(finished, monkeypatch):
    """What is stored is reused; deleting one test's key runs that test alone again, with the same numbers."""
    first = ns.read_results(finished[1] / "number")
    monkeypatch.setattr("neurosae.extraction.model.load_model", forbidden)
    (finished[1] / "number" / "tests" / "screen.key").unlink()
    pd.testing.assert_frame_equal(rerun(finished), first)


def test_adding_a_test_moves_no_other_number(finished):
    """Relabellings belong to the items, not to the tests."""
    first = ns.read_results(finished[1] / "number")
    text = finished[0].read_text()
    extra = "  another: {test: contrast, effect: number, region: pre_verb}\n"
    finished[0].write_text(text.replace("  screen:", extra + "  screen:"))
    for path in (finished[1] / "number" / "tests").glob("*.key"):
        path.unlink()
    second = rerun(finished)
    rest = second[second["test"] != "another"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest[first.columns], first)


def test_killed_between_tests_resumes(finished, monkeypatch):
    """A run that dies after its first test does not run that test again, and trusts nothing half-written."""
    calls = []
    honest = stages.import_module
    shutil.rmtree(finished[1] / "number" / "tests")
    (finished[1] / "number" / "results.parquet").unlink()

    def dying(name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(name)

    monkeypatch.setattr(stages, "import_module", dying)
    with pytest.raises(KeyboardInterrupt):
        rerun(finished)
    assert not (finished[1] / "number" / "results.parquet").exists()
    assert not (finished[1] / "number" / "lock").exists()
    calls.append("resumed")
    rerun(finished)
    assert len(calls) == 3 + 3  # three tests were left


def test_statistics_do_not_depend_on_threads(finished):
    """The same stored responses, one thread or two: every number is the same to the last bit."""
    study = finished
    tables = []
    for n in ("1", "2"):
        for path in (study[1] / "number" / "tests").glob("*.key"):
            path.unlink()
        code = f"import neurosae as ns; ns.test_study(ns.prepare_study({str(study[0])!r}, {str(study[1])!r}))"
        env = os.environ | {v: n for v in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
        nulls = sorted((study[1] / "number" / "tests").glob("*.npy"))
        tables.append((ns.read_results(study[1] / "number"), [np.load(p) for p in nulls]))
    pd.testing.assert_frame_equal(tables[0][0], tables[1][0], check_exact=True)
    assert all(np.array_equal(a, b) for a, b in zip(tables[0][1], tables[1][1], strict=True))


def test_batch_size_changes_no_conclusion(finished):
    """Another batch size moves activations by rounding only."""
    spec = ns.prepare_study(*finished)
    model, dictionaries = spec.live()
    found = []
    for tokens in (64, 4096):
        responses = ns.extract(spec.stimuli, model, dictionaries, positions=spec.spec.positions, batch_tokens=tokens)
        responses = ns.collapse(ns.align(responses, "region"), "last")
        found.append((responses, ns.contrast(responses, {"number": {"pl": 1, "sg": -1}}, region="noun", seed=1)))
    (a, one), (b, two) = found
    assert abs(a["late"].X - b["late"].X).max() < 1e-4 * abs(a["late"].X).max()
    assert ((one["p_corr"] <= 0.05) == (two["p_corr"] <= 0.05)).all()


def test_refuses_an_analysis_without_tests(study):
    """The message names the field and the remedy."""
    study[0].write_text(study[0].read_text().split("tests:")[0])
    with pytest.raises(SpecError, match=r"number.yaml:\d+: tests: is missing"):
        rerun(study)


def test_refuses_a_second_run_in_the_same_folder(study):
    """Two runs never write into one study."""
    from neurosae.spec.files import lock

    (study[1] / "number").mkdir(parents=True)
    with lock(study[1] / "number"), pytest.raises(StoreError):
        rerun(study)


def test_refuses_a_table_of_unknown_kind(tmp_path):
    """Only .csv and .parquet are written."""
    with pytest.raises(StoreError, match=r"\.csv or \.parquet"):
        ns.write_table(tmp_path / "stimuli.xlsx", pd.DataFrame())


def test_refuses_a_tampered_store(finished):
    """Responses whose key file was changed are extracted again, not trusted."""
    first = ns.read_results(finished[1] / "number")
    key = next((finished[1] / "_store").glob("*/key.json"))
    key.write_text(key.read_text().replace('"version": 1', '"version": 0'))
    pd.testing.assert_frame_equal(rerun(finished), first)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260K", "bitllama3M"])
def test_runs_unchanged_on_other_models(study, shared_data, name):
    """A checkpoint folder instead of the embedded model; this tokenizer splits most words."""
    folder = shared_data(f"models/{name}")
    text = study[0].read_text().replace("name: embedded", f"name: {folder}").replace("blocks.3", "blocks.4")
    study[0].write_text(text)
    design = Path(study[0]).parent.parent / "stimuli" / "number.yaml"
    design.write_text(design.read_text().replace("single_token: true", "single_token: false"))
    results = rerun(study)
    assert (results.loc[results["test"] == "find", "p_corr"] <= 0.05).any()


def test_null_rate_of_the_own_responses(finished):
    """`test --null` shuffles labels and reports an error rate with its interval."""
    table = ns.calibrate_study(ns.prepare_study(*finished), n_sets=40)
    assert list(table["test"]) == ["find", "screen"]
    assert (table["low"] <= 0.05).all()


def test_refuses_no_responses_at_all():
    """An empty mapping of sites is refused with what to give instead."""
    with pytest.raises(DataError, match="no responses; give an AnnData"):
        ns.contrast({}, {"number": {"pl": 1, "sg": -1}}, region="noun", seed=1)


def test_summarize_breaks_ties_by_size_and_names_what_failed():
    """One rule for the strongest (p, then |value|, then index); models by fit and ceiling; failures and flat rows."""
    shared = {"test": "t", "effect": "e", "site": "s", "region": "r", "n_features": 1}
    ties = {"kind": "contrast", "feature": [9, 4, 2, 7], "position": [0, 0, 0, 3], "value": [-3.0, 3.0, 9.0, np.nan],
            "p_corr": [0.01, 0.01, 0.01, np.nan], "status": ["ok", "ok", "degenerate", "failed"],
            "note": [pd.NA, pd.NA, "flat", "no item has it"]}  # fmt: skip
    said = ns.summarize(as_results(shared | ties)).splitlines()[1]
    assert said.endswith(
        "3      2  feature 4, value 3, p_corr 0.01; 1 without variance, not counted; "
        "FAILED at position 3: no item has it"
    )
    fit = {"kind": "rsa", "stat": "cosine_cov", "value": 0.8, "p_corr": 0.01, "status": "ok", "x_ceiling": [0.9]}
    tested, described = (ns.summarize(as_results(shared | fit | {"p_corr": p})).splitlines()[1] for p in (0.01, np.nan))
    assert tested.endswith("1    yes  cosine cov 0.8, p_corr 0.01, ceiling 0.9")
    assert described.endswith("0      0  cosine cov 0.8, described, not tested, ceiling 0.9")


def test_reference_features_align_and_are_not_tested(study):
    """From YAML to the report: the features that set the shifts have no row of their own, and are named."""
    asked = (
        "{regions: [pre_verb], align: reference, window: [-2, 0], max_shift: 1, tokens: all, "
        "reference: {early: [3, 8]}}"
    )
    text = study[0].read_text().replace("{regions: [noun, pre_verb]}", asked)
    one = "tests:\n  screen: {test: contrast, effect: number, region: pre_verb, split: localizer}\n"
    study[0].write_text(text.partition("tests:")[0] + one)
    table = ns.run_analysis(*study)
    rows = table[table["feature"].notna()]
    early, late = (set(rows.loc[rows["site"] == site, "feature"].astype(int)) for site in ("early", "late"))
    assert not {3, 8} & early
    assert {3, 8} <= late
    assert set(rows["position"].dropna()) == {-2, -1, 0}
    report = (study[1] / "number" / "report.html").read_text()
    assert "shifts come from features 3, 8 of early, which are left out of every test" in report


def test_what_a_collapse_hides_is_shown(study):
    """Tokens of a region made one response: the report draws the features token by token."""
    text = study[0].read_text().replace("{regions: [noun, pre_verb]}", "{regions: [near], tokens: mean}")
    one = "tests:\n  screen: {test: contrast, effect: number, region: near}\n"
    study[0].write_text(text.partition("tests:")[0] + one)
    design = study[0].parent.parent / "stimuli" / "number.yaml"
    design.write_text(design.read_text().replace("{pre_verb: {before: verb}}", "{near: {words: [1, 2]}}"))
    ns.run_analysis(*study)
    folder = study[1] / "number"
    long = pd.read_parquet(folder / "tests" / "screen.tokens.parquet")
    assert set(long["token"]) == {-1, 0}
    assert (folder / "figures" / "screen-courses.svg").is_file()
    assert "Before the collapse: token by token" in (folder / "report.html").read_text()


def test_what_a_killed_run_left_half_written_goes(finished):
    """Temporary files and folders of a run that was killed do not pile up beside the results."""
    folder = finished[1] / "number"
    (folder / ".tmp-0a1b-figures").mkdir()
    (folder / ".tmp-0a1b-figures" / "x.svg").write_text("half")
    (folder / "tests" / ".tmp-0a1b-screen.parquet").write_text("half")
    rerun(finished)
    assert not list(folder.rglob(".tmp-*"))


def test_a_run_reads_the_dictionary_of_the_last_training(study, tmp_path):
    """Texts of `train --text` hold for what follows, stand in the report, and go with a training without."""
    path, out = study
    recipe = "{train: {d_sae: 128, k: 4, n_tokens: 2560, batch: 128, context: 32, anneal: 0}}"
    path.write_text(ANALYSIS.replace("{neurons: true}", recipe, 1))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"The boat number {i} was near the old house." for i in range(250)))
    made = ns.train_study(ns.prepare_study(path, out), [corpus])
    later = ns.prepare_study(path, out)
    asked = {"early": later.spec.sites["early"]}
    assert ns.train_sites(asked, ns.load_model("embedded"), store=out) == made
    assert "corpus.txt" in stages.given_words(later.folder)[0]
    assert stages.inputs_hash(later) != stages.inputs_hash(
        dataclasses.replace(later, spec=ns.load_analysis(path, later.tests))
    )
    stages.remember_texts(later.folder, [])
    assert ns.prepare_study(path, out).spec.sites["early"].dictionary.train.texts == ()
    assert not stages.given_words(later.folder)
