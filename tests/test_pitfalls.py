"""Faults of other tools that cannot happen here: what is never called, what is switched off, what is not imported."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import neurosae as ns
from neurosae import cli

PACKAGE = Path(ns.__file__).parent
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
ANALYSIS = PACKAGE.parent / "analyses" / "number_agreement.yaml"

# what other tools offer, and why nothing of it is used
NEVER = {
    "stop_at_layer": "ignored at the last layer and in encoders, which then compute the whole model",
    "start_at_layer": "not implemented",
    "run_with_cache": "keeps every activation of a pass; a misspelt names_filter gives an empty cache",
    "names_filter": "a misspelt name gives an empty cache",
    "to_tokens": "puts BOS in front of a string, so that every region is off by one",
    "to_str_tokens": "puts BOS in front of a string",
    "HookedTransformer": "deprecated, and loads no checkpoint of one's own",
    "HookedSAETransformer": "splices reconstructions into the stream",
    "SAETransformerBridge": "its hook points lack all aliases, so that hooks on them never fire",
    "run_with_saes": "adds the reconstruction error to every effect; skips dictionaries without a hook name",
    "run_with_hooks_with_saes": "has no error term: a clamp measures the reconstruction error",
    "run_with_cache_with_saes": "adds the reconstruction error to every effect",
    "use_error_term": "an error term taken after an inner clamp cancels it",
    "SAETrainer": "asserts without a message where lr_end is left out, and needs an infinite provider",
    "SAETrainingRunner": "writes folders, logs to wandb and installs signal handlers",
    "LanguageModelSAETrainingRunner": "writes folders, logs to wandb and installs signal handlers",
    "LanguageModelSAERunnerConfig": "writes folders, logs to wandb and installs signal handlers",
    "ActivationsStore": "refuses buffers that are smaller than a batch",
    "LoggingConfig": "logs to wandb",
    "wandb": "logs to a server",
    "fold_W_dec_norm": "is refused for TopK without rescaling; folding is done here",
    "use_sparse_activations": "fails on a CPU",
    "hook_result": "is switched off, and absent from every cache",
    "set_use_attn_result": "keeps a vector per head and token",
}


def identifiers(tree: ast.AST) -> set[str]:
    """Names, attributes, keyword arguments and imported names; text in strings is not code."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return found


@pytest.mark.parametrize("name", NEVER)
def test_no_module_calls(name):
    """A function that fails silently elsewhere is called nowhere."""
    assert [file for file, tree in TREES.items() if name in identifiers(tree)] == [], NEVER[name]


def test_only_a_release_goes_through_the_hub_of_sae_lens():
    """SAE.from_pretrained takes a folder for the name of a repository: folders are read by load_from_disk."""
    callers = {
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
        and isinstance(node.value, ast.Attribute) and node.value.attr == "SAE"
    }  # fmt: skip
    assert callers == {"dictionary/load.py"}


def test_interventions_never_share_nodes():
    """In a trie a token stands for several stimuli: an edit of one of them would reach the others."""
    shared = {"trie", "pack", "grow", "trie_groups", "choose_packing", "run_shard"}
    for file, tree in TREES.items():
        if file.startswith("causal/"):
            assert not identifiers(tree) & shared, file


@pytest.mark.parametrize(
    ("name", "offline", "switched"), [("embedded", False, True), ("gpt2", False, False), ("gpt2", True, True)]
)
def test_the_command_line_switches_the_network_off(monkeypatch, tmp_path, *, name, offline, switched):
    """Unless the analysis names a hub id, or with --offline, no package may connect or report."""
    wanted = {
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled", "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key not in wanted}
    monkeypatch.setattr(os, "environ", environment)
    text = ANALYSIS.read_text("utf-8").replace("name: embedded", f"name: {name}")
    text = text.replace("embedded: early", "neurons: true").replace("embedded: late", "neurons: true")
    path = tmp_path / "analyses" / "a.yaml"
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    (tmp_path / "stimuli").mkdir()
    shutil.copy(ANALYSIS.parent.parent / "stimuli" / "number_agreement.yaml", tmp_path / "stimuli")
    cli._prepare(path, tmp_path / "results", device="auto", dtype=None, seed=None, offline=offline)
    assert ({key: environment.get(key) for key in wanted} == wanted) is switched
    assert switched or not set(wanted) & set(environment)


def test_an_own_dictionary_is_read_without_sae_lens():
    """Its import takes seconds and brings wandb: a model and a dictionary of ours need neither."""
    code = (
        "import sys, neurosae as ns\n"
        "from neurosae.dictionary.load import EMBEDDED\n"
        "from neurosae.dictionary.record import read_folder\n"
        "ns.load_model('embedded'), ns.load_dictionary, ns.train_dictionaries, ns.generate, ns.compare_dictionaries\n"
        "made = read_folder(EMBEDDED / 'early')\n"
        "made.encode(made.W_dec[:2])\n"
        "print(sorted({'sae_lens', 'wandb'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_unequal_sparsity_is_said_below_the_tables():
    """All quality measures move with L0: dictionaries that differ in it by more than a fifth are not compared."""
    rows = pd.DataFrame({"site": ["a", "b"], "l0": [8.0, 16.0], "fvu": [0.2, 0.1], "l0_matched": [True, False]})
    said = "L0 of b is more than 20 % from that of a"
    assert said in ns.summarize_comparison({"comparison": rows})
    assert said not in ns.summarize_comparison({"comparison": rows.assign(l0_matched=True)})
