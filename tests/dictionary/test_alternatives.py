"""The `fit:` key: fitted once, kept under a hash, loaded as a site, with directions from localizer items alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from neurosae.design.expand import expand
from neurosae.dictionary import alternatives
from neurosae.dictionary.alternatives import fit_dictionary
from neurosae.dictionary.load import DICTIONARIES, load_dictionary
from neurosae.errors import DataError, ModelError
from neurosae.extraction.run import extract
from neurosae.extraction.signed import signed
from neurosae.spec.design import load_design
from tests.dictionary.conftest import HOOK

ASK = {"n": 8, "n_tokens": 1500}


def forbidden(*_, **__):
    raise AssertionError("fitted again although it is stored")


@pytest.mark.parametrize("kind", ["pca", "random", "ksvd", "nmf"])
def test_fit_is_kept_and_found_again(toy, toy_texts, tmp_path, *, monkeypatch, kind):
    """A second call reads the folder; the card has FVU and L0 of held-out text and names the decomposition."""
    ask = ASK | {"kind": kind}
    made = fit_dictionary(toy, toy_texts, hook=HOOK, settings=ask, store=tmp_path)
    assert 0 <= made.card["fvu"] < 1
    assert made.card["l0"] > 0
    assert made.density is not None
    assert made.metadata["recipe"]["kind"] == kind
    monkeypatch.setattr(alternatives, "decompose", forbidden)
    again = fit_dictionary(toy, toy_texts, hook=HOOK, settings=ask, store=tmp_path)
    assert made.hash == again.hash
    with pytest.raises(AssertionError, match="fitted again"):
        fit_dictionary(toy, toy_texts, hook=HOOK, settings=ask | {"seed": 1}, store=tmp_path)
    config = toy.provenance["config"] | {"eps": 0.1}  # the same weights compute something else
    other = replace(toy, provenance=toy.provenance | {"config": config})
    with pytest.raises(AssertionError, match="fitted again"):
        fit_dictionary(other, toy_texts, hook=HOOK, settings=ask, store=tmp_path)


def test_load_recovers_a_fitted_site(toy, toy_texts, tmp_path):
    """A site of an analysis: fit check as for any dictionary, its card beside; random directions are not refused."""
    texts = tmp_path / "a.txt"
    texts.write_text("\n\n".join(toy_texts))
    for kind, n in {"pca": 16, "random": 1}.items():
        site = {"hook": HOOK, "dictionary": {"fit": {"kind": kind, "n": n, "n_tokens": 1500, "texts": [texts]}}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            made = load_dictionary(site, toy, store=tmp_path, texts=toy_texts)
        assert made.fit["fvu_card"] == pytest.approx(made.card["fvu"])
        assert (made.fit["fvu_here"] < 1e-8) == (kind == "pca")
    assert "fit" in DICTIONARIES


def test_fit_on_own_samples_writes_them_once(toy, tmp_path, monkeypatch):
    """Without texts the model writes them, and a second fit reads what the first had written."""
    first = fit_dictionary(toy, None, hook=HOOK, settings={"kind": "pca", "n": 4, "n_tokens": 500}, store=tmp_path)
    monkeypatch.setattr(alternatives, "sample_texts", forbidden)
    ask = {"kind": "random", "n": 4, "n_tokens": 500}
    second = fit_dictionary(toy, None, hook="blocks.0.hook_resid_post", settings=ask, store=tmp_path)
    assert first.metadata["text"] == second.metadata["text"]


def test_fit_refuses_unknown_settings(toy, toy_texts, tmp_path):
    """One sentence, with what can be given."""
    with pytest.raises(ModelError, match=r"unknown decomposition 'pcb'\. Did you mean 'pca'"):
        fit_dictionary(toy, toy_texts, hook=HOOK, settings={"kind": "pcb"}, store=tmp_path)
    with pytest.raises(ModelError, match="unknown setting of a decomposition 'm'"):
        fit_dictionary(toy, toy_texts, hook=HOOK, settings={"kind": "pca", "m": 3}, store=tmp_path)
    with pytest.raises(DataError, match="at least 2 different documents"):
        fit_dictionary(toy, ["one"], hook=HOOK, settings={"kind": "pca"}, store=tmp_path)
    with pytest.raises(ModelError, match="needs the stimuli of a design"):
        fit_dictionary(toy, toy_texts, hook=HOOK, settings={"kind": "diff_means", "region": "noun"}, store=tmp_path)


DESIGN = """
schema: neurosae/design/1
name: toy
factors: {number: [sg, pl], size: [a, b, c]}
frames: {one: "the {adj:size} {noun:number} ran"}
partition: {localizer: 4, seed: 1}
items:
"""
ITEMS = [("dog", "dogs"), ("cat", "cats"), ("box", "boxes"), ("tree", "trees"), ("pen", "pens"), ("cup", "cups")]


@pytest.fixture
def stimuli(tmp_path):
    """Two factors, one of three levels, four localizer items of six."""
    lines = [
        f"  {s}: {{noun: {{sg: {s}, pl: {p}}}, adj: {{a: big{i}, b: old{i}, c: red{i}}}}}"
        for i, (s, p) in enumerate(ITEMS)
    ]
    return expand(read_design(tmp_path, DESIGN + "\n".join(lines) + "\n"))


def read_design(folder, text):
    """A design from text."""
    (folder / "design.yaml").write_text(text)
    return load_design(folder / "design.yaml")


def test_diff_means_recovers_the_mean_differences_of_localizer_items(toy, toy_texts, stimuli, *, tmp_path):
    """A direction per level (one for two levels): unit differences of cell means, and test items change nothing."""
    ask = {"kind": "diff_means", "region": "noun", "n_tokens": 500}
    made = fit_dictionary(toy, toy_texts, hook=HOOK, settings=ask, store=tmp_path, stimuli=stimuli)
    assert made.metadata["directions"] == [
        "number pl minus sg", "size a minus the others", "size b minus the others", "size c minus the others",
    ]  # fmt: skip
    kept = stimuli[stimuli["split"].astype(str) == "localizer"]
    kept.attrs = stimuli.attrs
    raw = load_dictionary({"hook": HOOK, "dictionary": {"neurons": True}}, toy, texts=toy_texts)
    found = signed(extract(kept, toy, {"x": raw}, positions={"regions": ["noun"]}))["x"]
    last = found[(found.obs["position"] == 0).to_numpy()]
    values, plural = last.X.toarray(), (last.obs["number"] == "pl").to_numpy()
    wanted = values[plural].mean(0) - values[~plural].mean(0)
    np.testing.assert_allclose(made.W_enc[0].numpy(), wanted / np.linalg.norm(wanted), atol=1e-4)
    changed = stimuli.copy()
    changed.attrs = stimuli.attrs
    test = (changed["split"].astype(str) == "test").to_numpy()
    changed.loc[test, "text"] = "the big dogs ran"
    again = fit_dictionary(toy, toy_texts, hook=HOOK, settings=ask, store=tmp_path, stimuli=changed)
    assert torch.equal(made.W_enc, again.W_enc)


@pytest.mark.parametrize(("changes", "name"), [({"n_tokens": 10**13}, "n_tokens"), ({"n": 10**12}, "n")])
def test_a_fit_too_large_is_refused_before_it_starts(toy, toy_texts, tmp_path, *, changes, name):
    """Memory is estimated first, and the message names the parameter that is too large."""
    ask = {"kind": "ksvd", "n": 8, "n_tokens": 500} | changes
    with pytest.raises(ModelError, match=f"use a smaller {name}\\."):
        fit_dictionary(toy, toy_texts, hook=HOOK, settings=ask, store=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
