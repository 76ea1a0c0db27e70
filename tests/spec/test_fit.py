"""The `fit:` key in YAML: what it takes, what it refuses, with the line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from neurosae.dictionary.alternatives import KINDS_OF_FIT, Asked
from neurosae.dictionary.decompositions import NAMES, FitSettings
from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.sites import FitBlock
from neurosae.stats.simulate import example_design, simulate
from neurosae.study import as_values

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = """schema: neurosae/analysis/1
name: toy
model: {name: embedded}
sites:
  one: {hook: blocks.*.hook_resid_post, dictionary: {fit: {FIT}}}
"""


def load(folder, fit):
    """An analysis with one fitted site."""
    (folder / "a.yaml").write_text(FILE.replace("FIT", fit))
    return load_analysis(folder / "a.yaml").sites["one"]


def test_kinds_and_defaults_equal_the_code():
    """What YAML may name is what can be fitted, with the same defaults."""
    assert set(FitBlock.model_fields["kind"].annotation.__args__) == set(KINDS_OF_FIT) == set(NAMES)
    block, asked = FitBlock(kind="pca"), Asked("pca")
    assert (block.n_tokens, block.seed) == (asked.n_tokens, asked.seed)
    assert (FitSettings("ksvd").k, FitSettings("ksvd").alpha) == (8, 1.0)  # as the docstrings of the block say


def test_fit_takes_patterns_of_layers(tmp_path):
    """One decomposition per layer, and signed values by default."""
    site = load(tmp_path, "kind: ksvd, n: 64, k: 4, n_tokens: 1000")
    assert (site.dictionary.source, site.dictionary.fit.k, site.signed) == ("fit", 4, True)


REFUSED = {
    "kind: pcb": "kind",
    "kind: pca, k: 3": "belongs to ksvd and online_dl, but the kind is pca",
    "kind: ksvd, alpha: 0.5": "belongs to online_dl",
    "kind: diff_means": "diff_means reads the last token of a region",
    "kind: pca, region: noun": "belongs to diff_means",
    "kind: pca, n: 0": "n",
}


@pytest.mark.parametrize("fit", REFUSED)
def test_fit_refuses_what_does_not_belong(fit, tmp_path):
    """A key of another kind would parse and do nothing."""
    with pytest.raises(SpecError, match=rf"a\.yaml:5: .*{REFUSED[fit]}"):
        load(tmp_path, fit)


def test_controls_analysis_loads():
    """The shipped analysis names six decompositions of one hook point."""
    spec = load_analysis(ROOT / "analyses" / "controls.yaml")
    kinds = [s.dictionary.fit.kind if s.dictionary.fit else s.dictionary.source for s in spec.sites.values()]
    assert sorted(kinds) == ["embedded", "ica", "ksvd", "neurons", "pca", "random"]
    assert {site.hook for site in spec.sites.values()} == {"blocks.3.hook_resid_post"}


def test_signed_false_keeps_halves():
    """A site, or all layers of a pattern, may keep both halves."""
    fake = simulate(example_design(8), n_features=4, seed=1)
    fake.var["partner"] = [2, 3, 0, 1]
    sites = {"pca": SimpleNamespace(signed=True), "raw": SimpleNamespace(signed=False)}
    study = SimpleNamespace(spec=SimpleNamespace(sites=sites))
    made = as_values(study, {"pca.0": fake, "raw.0": fake, "raw": fake})
    assert [adata.n_vars for adata in made.values()] == [2, 4, 4]
    assert made["raw"] is fake
