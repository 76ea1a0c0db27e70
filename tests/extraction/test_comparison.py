"""A model and dictionaries made elsewhere: run as a study, evaluated, and compared."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch

import neurosae as ns
from neurosae.cli import main
from neurosae.comparison import contrast_table
from neurosae.dictionary.record import import_sae_lens
from neurosae.errors import SpecError, StoreError
from neurosae.spec.results import as_results

DESIGN = """
schema: neurosae/design/1
name: made_elsewhere
factors: {number: [sg, pl]}
frames: {a: "the {head:number} near {local}"}
items:
"""
ANALYSIS = """
schema: neurosae/analysis/1
name: elsewhere
design: design.yaml
seed: 1
model: {name: MODEL, device: cpu}
sites:
  wide:    {hook: blocks.1.hook_resid_post, dictionary: {path: wide}}
  narrow:  {hook: blocks.1.hook_resid_post, dictionary: {path: narrow}}
  neurons: {hook: blocks.1.hook_resid_post, dictionary: {neurons: true}}
positions: {regions: [head]}
inference: {n_permutations: 200}
effects: {number: {number: {pl: 1, sg: -1}}}
tests: {number: {test: contrast, effect: number, region: head}}
"""


def save_elsewhere(folder, *, d: int, m: int, k: int, seed: int):
    """A top-k dictionary that sae-lens makes and saves, with the metadata that it usually has."""
    lens = import_sae_lens()
    config = lens.TopKSAEConfig(d_in=d, d_sae=m, k=k)
    config.metadata.hook_name, config.metadata.model_name = "blocks.1.hook_resid_post", "tiny"
    config.metadata.prepend_bos = False
    sae = lens.TopKSAE(config)
    rows = torch.nn.functional.normalize(
        torch.randn(m - 2 * d, d, generator=torch.Generator().manual_seed(seed)), dim=1
    )
    rows = torch.cat([torch.eye(d), -torch.eye(d), rows * 0.5])
    sae.W_dec.data, sae.W_enc.data = rows, rows.t().contiguous()
    sae.b_enc.data, sae.b_dec.data = torch.zeros(m), torch.zeros(d)
    sae.save_model(folder)


@pytest.fixture(scope="module")
def analysis(checkpoint, tmp_path_factory):
    """The analysis file, beside the dictionaries and the design."""
    folder = tmp_path_factory.mktemp("elsewhere")
    nouns = "key dog cabinet house café".split()
    items = [
        f"  i{i}: {{head: {{sg: {a}, pl: {a}s}}, local: {b}s}}"
        for i, (a, b) in enumerate(zip(nouns * 2, nouns[1:] * 2 + nouns[:2], strict=True))
    ]
    (folder / "design.yaml").write_text(DESIGN + "\n".join(items) + "\n", encoding="utf-8")
    (folder / "a.yaml").write_text(ANALYSIS.replace("MODEL", str(checkpoint("gpt2"))), encoding="utf-8")
    save_elsewhere(folder / "wide", d=32, m=96, k=24, seed=0)
    save_elsewhere(folder / "narrow", d=32, m=80, k=8, seed=1)
    return folder / "a.yaml"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dictionaries_made_elsewhere_are_compared(analysis, monkeypatch, capsys):
    """`compare-dictionaries` from the files to the page: every table is there, with all sites."""
    monkeypatch.chdir(analysis.parent)
    words = ["neurosae", "compare-dictionaries", "a.yaml", "--tokens", "300", "--out", "out"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "L0 of" in said
    folder = analysis.parent / "out" / "elsewhere" / "comparison"
    tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    assert set(tables) == {"comparison", "contrasts", "levels", "probes", "pairs", "sets"}
    rows = tables["comparison"].set_index("site")
    assert set(rows.index) == {"wide", "narrow", "neurons"}
    assert rows.loc["neurons", "fvu"] == pytest.approx(0, abs=1e-6)
    assert rows.loc["wide", "fvu"] < rows.loc["narrow", "fvu"] < 0.9
    assert rows.loc["narrow", "l0"] <= 8
    pairs = tables["pairs"].set_index(["one", "other"])
    assert pairs["rho"].between(-1, 1).all()
    assert pairs["overlap_90"].max() > 0.3  # the coordinates that both were given
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "Would raw activations do as well?" in page


MADE_HERE = """
  trained: {hook: blocks.1.hook_resid_post, dictionary: {train: {d_sae: 64, k: 16, n_tokens: 9000, batch: 60, texts: [corpus.txt]}}}
  pca:     {hook: blocks.1.hook_resid_post, dictionary: {fit: {kind: pca, n: 8, n_tokens: 600, texts: [corpus.txt]}}}
positions:"""  # noqa: E501


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_controls_are_trained_and_shown_beside(analysis, monkeypatch, capsys):
    """`evaluate --control`: what is made here is made again on random weights, kept and marked."""
    words = "the key near a dog and one cabinet of some house with no café".split()
    lines = [" ".join(words[(i * k) % len(words)] for k in range(1, 8 + i % 6)) + f" {i}" for i in range(150)]
    (analysis.parent / "corpus.txt").write_text("\n\n".join(lines), encoding="utf-8")
    text = ANALYSIS.replace("MODEL", "m").replace("\npositions:", MADE_HERE).replace("name: elsewhere", "name: control")
    model = re.search(r"model: .*", analysis.read_text(encoding="utf-8"))
    assert model
    (analysis.parent / "c.yaml").write_text(re.sub(r"model: .*", model[0], text), encoding="utf-8")
    monkeypatch.chdir(analysis.parent)
    monkeypatch.setattr("sys.argv", "neurosae evaluate c.yaml --control reinit --tokens 300 --out out".split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "no evidence of learned structure" in said
    assert "wide: no control: its folder does not state how it was trained" in " ".join(said.split())
    rows = pd.read_csv("out/control/evaluation.csv", keep_default_na=False, na_values=[""])
    shown = list(zip(rows["site"], rows["control"].fillna(""), strict=True))
    assert shown == [
        ("wide", ""), ("narrow", ""), ("neurons", ""), ("neurons", "reinit"), ("trained", ""), ("trained", "reinit"),
        ("pca", ""), ("pca", "reinit"),
    ]  # fmt: skip
    trained = rows[rows["site"] == "trained"].set_index("control")
    assert trained["fvu"].nunique() == 2
    assert trained["ce_base"].nunique() == 2
    assert trained["l0"].le(16).all()
    assert (rows["l0_low"] <= rows["l0"]).all()
    folders = sorted((analysis.parent / "out" / "_store" / "dictionaries").iterdir())
    before = [path.stat().st_mtime_ns for path in folders]
    again = ns.evaluate_study(ns.prepare_study("c.yaml", "out"), n_tokens=300, control="reinit")
    assert again["fvu"].to_numpy() == pytest.approx(rows["fvu"].to_numpy(), rel=1e-9)
    assert [path.stat().st_mtime_ns for path in folders] == before
    assert len(folders) == 4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_control_has_no_control(analysis, tmp_path):
    """An analysis of random weights is refused, in the field's name."""
    text = analysis.read_text(encoding="utf-8").replace("device: cpu", "device: cpu, control: shuffle")
    (analysis.parent / "d.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"model\.control: is shuffle already"):
        ns.evaluate_study(ns.prepare_study(analysis.parent / "d.yaml", tmp_path), control="reinit")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_some_sites_are_compared_or_refused(analysis, tmp_path):
    """Unknown sites and single ones."""
    study = ns.prepare_study(analysis, tmp_path)
    with pytest.raises(SpecError, match=r"unknown site 'wid'\. Did you mean 'wide'"):
        ns.compare_dictionaries(study, sites=["wid"])
    with pytest.raises(SpecError, match="only wide is left; a comparison needs two or more"):
        ns.compare_dictionaries(study, sites=["wide"])


def test_page_escapes_names_and_needs_tables(tmp_path):
    """A site may be called anything; without tables there is no page."""
    with pytest.raises(StoreError, match="run `neurosae compare-dictionaries`"):
        ns.write_comparison(tmp_path)
    evil = "<script>alert(1)</script>"
    about = {"one": evil, "other": "b", "region": evil, "position": 0}
    tables = {
        "comparison": pd.DataFrame({"site": [evil, "b"], "l0_matched": [False, True]}).assign(kind="topk"),
        "contrasts": pd.DataFrame({"test": ["t"], "effect": [evil], "region": ["r"], "position": [0], "split": ["test"],
                                   "site": [evil], "tested": [3], "found": [1], "share": [0.3]}),
        "levels": pd.DataFrame({"site": [evil], "note": [evil]}),
        "probes": pd.DataFrame({"site": ["b"]}),
        "pairs": pd.DataFrame([about | {"rho": 0.5, "overlap_70": 0.1}]),
        "sets": pd.DataFrame([about | {"effect": evil}]),
    }  # fmt: skip
    (tmp_path / "comparison").mkdir()
    for name, table in tables.items():
        table.to_csv(tmp_path / "comparison" / f"{name}.csv", index=False)
    page = ns.write_comparison(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "alert(1)" in page
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    assert "No raw or linear baseline" in page


def test_contrast_table_counts_what_was_found():
    """Shares are of the tested features; dead and untestable ones do not count."""
    rows = as_results({
        "test": "number", "kind": "contrast", "effect": "number", "site": ["a", "a", "a", "b"], "region": "head",
        "position": 0, "split": "test", "feature": [1, 2, 3, 1], "n_features": 1, "value": [3.0, 0.5, None, 0.1],
        "effsize": [1.0, 0.1, None, 0.0], "p_corr": [0.01, 0.9, None, 0.8],
        "status": ["ok", "ok", "untestable", "ok"],
    })  # fmt: skip
    table = contrast_table(rows, alpha=0.05).set_index("site")
    assert table.loc["a", ["tested", "found", "share"]].tolist() == [2, 1, 0.5]
    assert table.loc["b", ["tested", "found", "share"]].tolist() == [1, 0, 0]
