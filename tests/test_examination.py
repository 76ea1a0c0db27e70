"""Looking at features of a study: stored, read back, redone when something changes; hostile texts; nothing is sent."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# (a server of the tests is told what to answer)

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import threading

import numpy as np
import pandas as pd
import pytest

import neurosae as ns
from neurosae import examination
from neurosae.errors import DataError, SpecError
from neurosae.examination import examine_study, parse_features
from neurosae.examine.summary import summarize_examined
from neurosae.examine.viewer import LARGEST, viewer_page
from tests.examine.test_labels import Server, judged
from tests.report.test_html import EVIL, Page
from tests.test_cli import neurosae
from tests.test_study import ANALYSIS, forbidden, write_files

TESTS = ANALYSIS.index("tests:")
SHORT = (
    ANALYSIS[:TESTS].replace("  early: {hook: blocks.1.hook_resid_post, dictionary: {neurons: true}}\n", "")
    + "tests: {find: {test: contrast, effect: number, region: noun, split: localizer}}\n"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished study that was asked to look at two features."""
    folder = tmp_path_factory.mktemp("examined")
    path, out = write_files(folder)
    path.write_text(SHORT + "examine: {features: {from: find, top: 2}, rules: {words: {ends: [was]}}}\n")
    ns.run_analysis(path, out)
    return folder


@pytest.fixture(scope="module")
def live(original):
    """Its model and dictionaries, loaded once."""
    return ns.prepare_study(original / "analyses" / "number.yaml", original / "results").live()


@pytest.fixture
def prepared(finished, live):
    """The study of a copy, with the model that is loaded already."""
    return dataclasses.replace(ns.prepare_study(*finished), live=lambda: live)


@pytest.fixture
def finished(original, tmp_path):
    """A copy of that study, to be changed at will."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "analyses" / "number.yaml", tmp_path / "results"


def test_run_examines_what_the_analysis_asks_for(finished):
    """The two strongest of the test, with examples of every level, promoted tokens and rules, on the report's page."""
    folder = finished[1] / "number"
    rows = ns.read_results(folder)
    best = rows[rows["status"].eq("ok")].sort_values(
        ["p_corr", "value"], key=lambda c: c if c.name == "p_corr" else -c.abs()
    )
    tables = examine_study(ns.prepare_study(*finished))
    assert tables["features"]["feature"].tolist() == best["feature"].astype(int).tolist()[:2]
    assert tables["features"]["chosen_by"].unique().tolist() == ["find top 2 (on localizer items)"]
    assert {"sg", "pl"} <= set(tables["examples"]["level"].dropna())
    assert set(tables["rules"]["kind"].dropna()) >= {"your words", "level", "position"}
    assert tables["rules"]["n_units"].max() == 8  # half of the items, whatever the frames
    stimuli = pd.read_parquet(folder / "stimuli.parquet")
    pooled = tables["pooled"]
    assert pooled["stimulus"].tolist()[: len(stimuli)] == stimuli.index.tolist()
    levels = tables["levels"]
    for _, row in levels.iterrows():
        here = pooled[pooled["feature"].eq(row["feature"]) & pooled[row["factor"]].eq(row["level"])]
        by_item = here.groupby(stimuli.loc[here["stimulus"], "item"].astype(str).to_numpy())["value"].mean()
        assert np.isclose(row["mean"], by_item.mean())
        assert row["n_items"] == len(by_item)
        assert row["mean_low"] <= row["mean"] <= row["mean_high"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="late-' in page
    assert "-tuning" in page
    assert f"late/{tables['features']['feature'].iloc[0]}" in page
    assert 'id="features"' in page
    assert (folder / "examine" / "viewer.html").stat().st_size < LARGEST
    assert "late/" in summarize_examined(tables)


def test_what_is_stored_is_read_back(finished, prepared, monkeypatch):
    """No model the second time; another question is answered anew; a damaged table is made again."""
    study = prepared
    first = examine_study(study)
    with monkeypatch.context() as patched:
        patched.setattr("neurosae.study.load_live", forbidden)
        again = examine_study(ns.prepare_study(*finished))
        assert list(first) == list(again)
        for name, table in first.items():
            pd.testing.assert_frame_equal(table, again[name])
        with pytest.raises(AssertionError, match="model was loaded"):
            examine_study(ns.prepare_study(*finished), changes={"top": 1})
    folder = finished[1] / "number" / "examine"
    (folder / "rules.parquet").unlink()
    assert "rules" in examine_study(study)
    assert (folder / "rules.parquet").is_file()
    labels = finished[0].parent / "labels.csv"
    feature = int(first["features"]["feature"].iloc[0])
    labels.write_text(f"site,feature,label\nlate,{feature},nouns\n")
    named = examine_study(study, changes={"labels": str(labels)})["features"]
    assert named["label"].tolist()[0] == "nouns"
    assert named["label_source"].tolist()[0] == "yours"
    labels.write_text(f"site,feature,label\nlate,{feature},verbs\n")
    assert examine_study(study, changes={"labels": str(labels)})["features"]["label"].tolist()[0] == "verbs"


def test_a_failure_leaves_what_was_there(finished, prepared, monkeypatch):
    """All tables of one question, or those of the question before."""
    folder = finished[1] / "number" / "examine"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(examination, "write_json", forbidden)
    with pytest.raises(AssertionError):
        examine_study(prepared, changes={"top": 1})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_hostile_texts_stay_text(finished, prepared, tmp_path):
    """A text file full of markup: one script runs in the viewer and one in the report, and the words are there."""
    text = tmp_path / "evil.txt"
    text.write_text(f"{EVIL} </script ><img src=x onerror=alert(1)> <!--<script>\n\n\u202eThe boat was <!-- here\n")
    examine_study(prepared, changes={"texts": (str(text),)})
    page = (finished[1] / "number" / "examine" / "viewer.html").read_text(encoding="utf-8")
    tags = Page(page).tags
    assert [attrs.get("type", "") for tag, attrs in tags if tag == "script"] == ["application/json", ""]
    assert not {"img", "iframe"} & {tag for tag, _ in tags}
    assert "http" not in page.replace("http-equiv", "")
    raw = page.split('type="application/json">')[1].split("</script>\n")[0]
    assert not set("<>&") & set(raw)  # a browser ends the element at more than a parser of the tests knows
    data = json.loads(raw)
    assert any("".join(one["p"]).startswith(EVIL) for one in data["texts"])
    report = Page(ns.write_report(finished[1] / "number").read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in report.tags) == 1
    assert "alert(1)" in "".join(report.words)


def test_viewer_says_what_did_not_fit(live, monkeypatch):
    """Never beyond its size: the texts that matter least are left out."""
    model, dictionaries = live
    texts = [f"The old boat number {i} was red." for i in range(60)]
    seen = {"text": examination.watch(model, dictionaries, texts, features={"late": [3]})}
    tables = {"features": pd.DataFrame({"site": ["late"], "feature": [3], "label": [None]})}
    given = {"texts": {"text": (texts, [str(i) for i in range(60)])}, "tokenizer": model.tokens}
    whole = viewer_page("x", tables, seen, **given)
    monkeypatch.setattr("neurosae.examine.viewer.LARGEST", len(whole) - 2000)
    page = viewer_page("x", tables, seen, **given)
    assert len(page.encode()) <= len(whole) - 2000
    n = len(json.loads(page.split('type="application/json">')[1].split("</script>")[0])["texts"])
    assert 0 < n < 60
    assert f"{n} of 60 texts are here" in page


def test_labels_come_from_a_named_endpoint_alone(finished, prepared, monkeypatch):
    """Without one no connection is opened; with one, cost first, answers kept, the label beside the feature."""
    study = prepared
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", forbidden)
        assert examine_study(study, changes={"top": 3})["features"]["label"].isna().all()
    server = Server()
    server.reply = judged
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m"}
        tables = examine_study(study, changes={"endpoint": endpoint})
        assert tables["features"]["label"].tolist() == ["Keys, marked"] * 2
        assert tables["features"]["label_source"].tolist() == ["proposed by m"] * 2
        assert tables["labels"]["judge_status"].eq("ok").all()
        log = (finished[1] / "number" / "log.txt").read_text()
        assert "requests with" in log
        assert list((finished[1] / "_store" / "answers").glob("*.json"))
        n = len(server.asked)
        examine_study(study, changes={"endpoint": endpoint, "tokens": 4})
        assert len(server.asked) == n
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    page = ns.write_report(finished[1] / "number").read_text(encoding="utf-8")
    assert "proposed by m" in page


def test_inversion_and_tracking_are_asked_for(prepared, live):
    """Counterparts at other sites, a string that drives the feature, text that the model writes."""
    model, sites = live
    site = {"hook": "blocks.1.hook_resid_post", "dictionary": {"neurons": True}}
    both = {"early": ns.load_dictionary(site, model), **sites}
    spec = prepared.spec.model_copy(update={"sites": dict.fromkeys(both, prepared.spec.sites["late"])})
    study = dataclasses.replace(prepared, live=lambda: (model, both), spec=spec)
    changes = {"features": {"ids": {"late": [3]}}, "invert": 1, "track": ("early", "late"), "n_tokens": 60}
    tables = examine_study(study, changes=changes)
    assert tables["counterparts"]["other"].unique().tolist() == ["early"]
    found = tables["inversions"].iloc[0]
    assert found["z"] > 0
    assert found["n_examples"] == len(tables["examples"].query("kind == 'top' and source == 'text'"))
    assert np.isfinite([found["surprisal"], found["surprisal_examples"]]).all()
    best = tables["rules"].query("source == @found.rule_source").iloc[0]
    assert best["rule"] == found["rule"]
    assert ("no rule holds" in found["verdict"]) == (best["p_corr"] > spec.inference.alpha)
    assert f"driven by «{found['text']}»" in (said := summarize_examined(tables))
    assert found["verdict"] in said
    assert "counterparts by cosine: early/" in said
    assert set(tables["examples"]["source"]) == {"study", "text"}
    assert np.isfinite(tables["counterparts"]["cosine"]).all()


def test_the_command_line_names_features(finished):
    """`neurosae examine ANALYSIS --features late/3`: a summary, the viewer, the report again."""
    done = neurosae("examine", finished[0], "--features", "late/3", "-o", finished[1])
    assert done.returncode == 0, done.stderr
    assert "late/3" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("report.html")
    assert "viewer.html" in done.stdout
    done = neurosae("examine", finished[0], "--features", "late", "-o", finished[1])
    assert done.returncode == 1
    assert "write site/index" in done.stderr


def test_examine_refuses(finished, prepared):
    """Features that nobody chose, tests that did not run, sites and indices that do not exist."""
    study = prepared
    with pytest.raises(SpecError, match=r"unknown site 'lete'. Did you mean 'late'"):
        examine_study(study, changes={"features": {"ids": {"lete": [1]}}})
    with pytest.raises(DataError, match="no feature 9999"):
        examine_study(study, changes={"features": {"ids": {"late": [9999]}}})
    (finished[1] / "number" / "results.parquet").unlink()
    with pytest.raises(SpecError, match="has not run"):
        examine_study(study)
    finished[0].write_text(SHORT)
    with pytest.raises(SpecError, match="examine: is missing"):
        examine_study(ns.prepare_study(*finished))
    with pytest.raises(SpecError, match="is no feature"):
        parse_features("late/x")
