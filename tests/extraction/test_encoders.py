"""An encoder, from its folder to the report, by the command line; and a study of a model without what it learned."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import neurosae as ns
from neurosae.cli import app

DESIGN = """
schema: neurosae/design/1
name: near
factors: {near: [sg, pl]}
frames: {a: "the key near the old {noun:near} is here"}
target: {slot: noun, foil: other_level, single_token: false}
items:
"""
NOUNS = ["house", "dog", "cabinet", "key", "café", "old", "near", "dogs"]
ANALYSIS = """
schema: neurosae/analysis/1
name: near
design: ../stimuli/near.yaml
model: {name: ../model, MODEL}
sites:
  stream: {hook: blocks.1.hook_resid_post, dictionary: {neurons: true}}
  head: {hook: blocks.1.attn.hook_z.h2, dictionary: {neurons: true}}
positions: {regions: [noun]}
inference: {n_permutations: 200, min_informative: 4}
effects: {near: {near: {pl: 1, sg: -1}}}
tests: {find: {test: contrast, effect: near, region: noun}}
report: {top_features: 2}
"""


@pytest.fixture
def study(tmp_path, checkpoint):
    """A function from a family and settings of the model to the analysis file of a small study."""

    def make(family, settings):
        for name in ("stimuli", "analyses"):
            (tmp_path / name).mkdir()
        (tmp_path / "model").symlink_to(checkpoint(family))
        items = "".join(f"  i{i}: {{noun: {{sg: {noun}, pl: {noun}s}}}}\n" for i, noun in enumerate(NOUNS))
        (tmp_path / "stimuli" / "near.yaml").write_text(DESIGN + items, encoding="utf-8")
        path = tmp_path / "analyses" / "near.yaml"
        path.write_text(ANALYSIS.replace("MODEL", settings), encoding="utf-8")
        return path

    return make


def test_a_study_of_an_encoder_runs_end_to_end(study, tmp_path):
    """BERT through `neurosae run`: features of the whole text are tested, outcomes are missing with the reason."""
    done = CliRunner().invoke(app, ["run", str(study("bert", "device: cpu")), "--out", str(tmp_path / "results")])
    assert done.exit_code == 0, done.output + repr(done.exception)
    record = json.loads((tmp_path / "results" / "near" / "provenance.json").read_text(encoding="utf-8"))
    assert record["model"]["is_causal"] is False
    assert record["extraction"]["packing"]["used"] == "buckets"
    assert any("every token of model sees the whole text" in warning for warning in record["warnings"])
    found = ns.open_study(tmp_path / "results" / "near")
    assert set(found.results["site"]) == {"stream", "head"}
    assert found.responses["stream"].obs[["surprisal", "logit_diff"]].isna().all(axis=None)
    assert found.responses["head"].n_vars == 16
    html = (tmp_path / "results" / "near" / "report.html").read_text(encoding="utf-8")
    assert "surprisal and logit_diff are missing" in html


def test_a_control_study_is_asked_for_in_the_file(study, tmp_path):
    """control: reinit in the analysis runs the same study on fresh weights, and says so."""
    path = study("gpt2", "device: cpu, control: reinit, control_seed: 5, packing: trie")
    out = ns.extract_study(ns.prepare_study(path, tmp_path / "results"))
    record = ns.provenance_of(out["stream"])
    assert record["model"]["control"] == {"mode": "reinit", "seed": 5}
    assert record["packing"]["used"] == "trie"
    assert "the weights are a random control (reinit, seed 5)" in record["warnings"]
