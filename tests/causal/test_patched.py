"""Tests of a grid of patches: what is found, what is told, and what a block runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurosae.causal.patched import every_hook, patching_results, run
from neurosae.causal.patching import Patching, patch_grid
from neurosae.causal.replacements import Thing
from neurosae.errors import ModelError
from neurosae.spec.patching import PatchingBlock
from neurosae.spec.results import check_results
from tests.causal.circuits import HOOK, A, B

BETWEEN = {"a": ("present", "absent")}
ASK = {"test": "patching", "between": BETWEEN, "region": ["first", "last"], "hooks": ["hook_embed", HOOK]}


@pytest.fixture(scope="module")
def linear(linear_circuit):
    return linear_circuit(False)


def results(circuit, things, *, regions=("first", "last"), **settings):
    grid = patch_grid(
        circuit.stimuli, circuit.model, things, between=BETWEEN, regions=regions, settings=Patching(**settings)
    )
    return patching_results(grid, circuit.stimuli, between=BETWEEN, options={"settings": Patching(**settings)})


def test_grid_finds_the_places_that_were_planted(linear):
    """The word before attention, the last token after it: share 1, found; the other places carry nothing."""
    table = results(linear, ["hook_embed", HOOK])
    share = table.set_index(["x_direction", "site", "region"])["x_share"]
    for direction in ("noising", "denoising"):
        for site, region in (("hook_embed", "first"), (HOOK, "last")):
            assert share[direction, site, region] == pytest.approx(1, abs=1e-3)
    found = table[table["p_corr"].le(0.05).fillna(False)]
    assert set(zip(found["site"], found["region"], strict=True)) == {("hook_embed", "first"), (HOOK, "last")}
    assert set(table["unit"]) == {"item"}
    assert set(table["n_units"]) == {32}


def test_grid_controls_familywise_error(linear):
    """Noise on a concept that is not read: over 40 grids of 6 places, about one in 20 has a found place."""
    rng, hits = np.random.default_rng(0), 0
    grid = patch_grid(linear.stimuli, linear.model, [HOOK], between=BETWEEN, regions=["last"])
    for _ in range(40):
        noise = rng.standard_normal((len(grid.clean), 6)) * 0.3
        cells = pd.concat([grid.cells.iloc[:1]] * 6).assign(region=[f"r{k}" for k in range(6)])
        made = grid._replace(patched=grid.clean[:, None] + noise, cells=cells, idle=np.zeros(6, dtype=bool))
        table = patching_results(made, linear.stimuli, between=BETWEEN, options={"n_permutations": 500})
        hits += bool((table["p_corr"] <= 0.05).any())
    assert hits <= 7  # 99.9 % of binomial(40, .05)


def test_places_without_an_effect_have_a_reason(linear):
    """Idle places and equal texts are told apart, and have no numbers."""
    table = results(linear, ["blocks.1.hook_resid_post", "hook_embed"], regions=("word", "first"))
    notes = {key: rows["note"] for key, rows in table.groupby(["site", "region"])}
    assert notes["blocks.1.hook_resid_post", "first"].str.contains("nothing leads from here").all()
    for site in ("blocks.1.hook_resid_post", "hook_embed"):
        assert notes[site, "word"].str.contains("both texts have the same here").all()
    silent = table[table["status"] == "untestable"]
    assert silent["estimate"].isna().all()
    assert len(silent) == 6


def test_no_share_where_texts_do_not_differ(linear):
    """The effect stays in logits; a share of a difference of nothing is refused, and said."""
    grid = patch_grid(linear.stimuli, linear.model, [HOOK], between=BETWEEN, regions=["last"])
    flip = np.where(np.arange(len(grid.clean)) // 2 % 2, 1.0, -1.0)
    same = grid._replace(other=grid.clean + 0.01 * flip)
    table = patching_results(same, linear.stimuli, between=BETWEEN)
    assert table["x_share"].isna().all() if "x_share" in table else True
    assert table["note"].str.contains("no share of it").all()
    assert table["estimate"].notna().any()


def study_of(circuit, **block):
    spec = SimpleNamespace(
        tests={"patch": PatchingBlock.model_validate(ASK | block)}, seed=3,
        inference=SimpleNamespace(n_permutations=1000, alpha=0.05),
    )  # fmt: skip
    live = lambda: (circuit.model, {"concepts": circuit.dictionary})  # noqa: E731
    return SimpleNamespace(spec=spec, live=live, stimuli=circuit.stimuli, design=circuit.design)


def test_block_runs_hooks_and_features(linear):
    """One family over hook points and features; the long table has one row per pair, place and direction."""
    adata = SimpleNamespace(var=pd.DataFrame({"feature": np.arange(linear.dictionary.n_features)}))
    study = study_of(linear, region="last", hooks=[HOOK], features={"ids": [A, B]})
    tested = run({"concepts": adata}, study.spec.tests["patch"], study=study, earlier={}, rng=np.random.default_rng(0))
    table = check_results(tested.table)
    assert len(table) == 6
    assert set(table["n_family"].dropna()) == {4}  # concept B differs in no pair: not tested
    rows = table[table["feature"].notna()].set_index(["x_direction", "feature"])
    assert rows.loc[("noising", A), "x_share"] == pytest.approx(1, abs=2e-3)
    assert rows.loc[("denoising", B), "status"] == "untestable"
    assert len(tested.extras["patched"]) == 6 * len(linear.stimuli) / 2


def test_signs_of_one_value_are_patched_together(and_circuit):
    """Neurons are pairs of features; patching one patches both signs, and the row names the first."""
    from neurosae.dictionary.kinds import neuron_dictionary

    raw = neuron_dictionary("blocks.1.mlp.hook_post", 32)
    raw = raw if raw.d_in == 8 else neuron_dictionary("blocks.1.mlp.hook_post", 8)
    partner = (0, int(raw.partner[0]))
    table = results(and_circuit, [Thing(raw.hook, raw, partner, "neurons")], regions=("last",))
    assert set(table["feature"]) == {0}
    assert table["x_share"].iloc[0] == pytest.approx(1, abs=0.05)


def test_every_hook_writes_layers_and_heads_out(linear):
    """`*` is every layer, `.h*` every head; a point without heads is refused."""
    assert every_hook(["blocks.*.hook_resid_post"], linear.model) == [f"blocks.{k}.hook_resid_post" for k in (0, 1)]
    heads = every_hook(["blocks.*.attn.hook_z.h*"], linear.model)
    assert len(heads) == 8
    assert heads[-1] == "blocks.1.attn.hook_z.h3"
    with pytest.raises(ModelError, match="no vector per head"):
        every_hook(["blocks.0.hook_resid_post.h*"], linear.model)
