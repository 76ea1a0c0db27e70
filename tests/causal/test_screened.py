"""`test: attribution` from the file: a screen on other items, exact ablation, what is missed, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.causal.attribution import attributed
from neurosae.causal.scored import score_stimuli
from neurosae.causal.screened import OTHERS, TOP, Spot, _compared, ablate_each
from neurosae.spec.results import as_results
from neurosae.study import prepare_study, test_study
from tests.causal.scenes import ROOT, agreement_stimuli, dictionary, embedded
from tests.causal.test_attribution import edited_ld

FILE = """
schema: neurosae/analysis/1
name: circuits
design: ../stimuli/number_agreement.yaml
seed: 3
model: {name: embedded}
sites: {late: {hook: blocks.3.hook_resid_post, dictionary: {embedded: late}}}
positions: {regions: [head]}
inference: {n_permutations: 500}
effects: {subject: {subject: {pl: 1, sg: -1}}}
tests:
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuits")
    for name in ("stimuli", "analyses"):
        (folder / name).mkdir()
    (folder / "stimuli/number_agreement.yaml").write_bytes((ROOT / "stimuli/number_agreement.yaml").read_bytes())
    tests = """  used: {test: attribution, region: target, screen: {top: 4, random: 12}}
  parts: {test: attribution, region: target, method: direct, effect: subject}
  lens: {test: logit_lens, effect: subject}
  looks: {test: attention, region: target, keys: [head, first], effect: subject}
"""
    (folder / "analyses/a.yaml").write_text(FILE + tests)
    made = prepare_study(folder / "analyses/a.yaml", folder / "out")
    return made, test_study(made)


def spot(baseline: str = "zero", region: str = "pre_verb") -> Spot:
    stimuli, late = agreement_stimuli(2), dictionary("early")
    scored = score_stimuli(stimuli, embedded(), dictionaries={"s": late}, regions=(region,))
    made = attributed(stimuli, scored, {"s": late}, region=region, baseline=baseline)["s"]
    return Spot("s", late, region, "test", stimuli, scored, made)


@pytest.mark.parametrize("baseline", ["zero", "partner"])
def test_exact_effects_agree_with_one_forward_pass_each(baseline):
    """The batched ablation of one feature is x + (f0 - f) W_dec at the region, run by hand."""
    here = spot(baseline)
    f = here.made.activations.toarray()
    j = int(f.sum(0).argmax())
    found = ablate_each(here, np.array([j]))[:, 0]
    W, codes = here.dictionary.W_dec[j], here.made.baseline[:, [j]].toarray()[:, 0]

    def change(tensor, i):
        out = tensor.clone()
        for t in here.scored.cells["pre_verb"][i]:
            f_t = float(here.dictionary.encode(tensor[0, [t]]).toarray()[0, j])
            out[0, t] = out[0, t] + (codes[i] - f_t) * W
        return out

    by_hand = edited_ld(here.scored, here.dictionary.hook, change)
    by_hand -= edited_ld(here.scored, here.dictionary.hook, lambda t, i: t)
    assert_allclose(found, by_hand, atol=2e-4)
    assert np.abs(found).max() > 1e-2


def test_screen_agrees_with_exact_ablation_at_the_last_layer(study):
    """At the stream before the head the approximation is close; screened and random rows are told apart."""
    rows = study[1][study[1]["test"] == "used"]
    tested = rows[rows["feature"].notna() & rows["status"].eq("ok")]
    assert set(rows["set"].dropna()) >= {TOP, OTHERS}
    assert (rows["set"] == TOP).sum() == 4
    assert tested["x_agreement"].iloc[0] > 0.8
    assert (tested["x_screen"][tested["set"] == TOP].min()) >= tested["x_screen"][tested["set"] == OTHERS].max()
    spoken = rows["n_features"].sum()
    silent = rows[rows["set"] == "not ablated"]
    assert len(silent) == 1
    assert spoken == 16 + silent["n_features"].iloc[0]


def test_every_row_says_dose_freezing_and_controls(study):
    """The note of an ablation names what was set, that the normalisation was free, that controls are not matched."""
    rows = study[1][(study[1]["test"] == "used") & study[1]["feature"].notna()]
    for words in ("set to 0", "normalisation free", "not matched", "r = ", "screen misses at most"):
        assert rows["note"].str.contains(words, regex=False).all()


def test_items_of_the_screen_are_not_the_tested_ones(study):
    """The ranking of the top features is that of localizer items."""
    made, results = study
    rows = results[(results["test"] == "used") & (results["set"] == TOP)].set_index("feature")
    model, dictionaries = made.live()
    table = made.stimuli[made.stimuli["split"] == "localizer"].copy()
    table.attrs = dict(made.stimuli.attrs)
    scored = score_stimuli(table, model, dictionaries=dictionaries, regions=("target",))
    effects = attributed(table, scored, dictionaries, region="target")["late"].effects
    mean = np.abs(np.asarray(effects.mean(axis=0)).ravel())
    assert set(np.argsort(-mean)[:4]) == set(rows.index)
    assert_allclose(rows["x_screen"], mean[rows.index.to_numpy(dtype=int)], rtol=1e-4)


def test_missed_effects_are_bounded_as_binomial():
    """0 of 200 random others: at most 1.5 %; a found one raises the bound; ranks count the target itself."""
    base = {"test": "t", "status": "ok", "feature": np.arange(201), "estimate": np.r_[5.0, np.linspace(0.001, 1, 200)]}
    base |= {"x_approximate": base["estimate"] * 0.9, "set": [TOP, *[OTHERS] * 200]}
    none, _ = _compared(as_results(base | {"p_corr": [0.001, *[0.9] * 200]}), alpha=0.05)
    assert 0.0148 < none["x_missed_bound"].iloc[0] < 0.015
    assert_allclose(none["x_p_others"].iloc[0], 1 / 201)
    one, words = _compared(as_results(base | {"p_corr": [0.001, 0.01, *[0.9] * 199]}), alpha=0.05)
    assert one["x_missed"].iloc[0] == 0.005
    assert one["x_missed_bound"].iloc[0] > 0.02
    assert "r = 1.000" in words


def test_direct_parts_of_an_effect_add_up_to_its_effect_on_ld(study):
    """Estimates of all components sum to the contrast of LD itself."""
    made, results = study
    rows = results[(results["test"] == "parts") & results["feature"].notna()]
    table = made.stimuli[made.stimuli["split"] == "test"].copy()
    table.attrs = dict(made.stimuli.attrs)
    from neurosae.causal.lens import logit_lens

    read = logit_lens(table, made.live()[0])
    last = read[read["layer"] == read["layer"].max()]
    sign = np.where(last["subject"] == "pl", 1, -1)
    total = 2 * (sign * last["logit_diff"]).mean()
    assert_allclose(rows["estimate"].sum(), total, atol=1e-3)


def test_kinds_families_and_stored_tables(study):
    """Each test is one family of its own kind; long tables of the figures are stored beside."""
    made, results = study
    kinds = results.groupby("test")["kind"].unique().map(list).to_dict()
    assert kinds == {"used": ["attribution"], "parts": ["attribution"], "lens": ["logit_lens"], "looks": ["attention"]}
    assert (results.groupby("test")["family"].nunique() == 1).all()
    assert results.loc[results["test"] == "looks", "x_head"].str.match(r"L\d+H\d+").sum() == 64
    lens = pd.read_parquet(made.folder / "tests" / "lens.lens.parquet")
    assert set(lens["cell"]) == {"sg/sg", "sg/pl", "pl/sg", "pl/pl"}
    assert (lens["n"] == 48).all()  # items x frames of the tested split


def test_what_makes_no_sense_is_refused_when_the_file_is_read(tmp_path):
    """Screens without another split, unknown places and effects, options that belong to something else."""
    from neurosae.errors import SpecError
    from neurosae.spec.analysis import load_analysis

    (tmp_path / "stimuli").mkdir()
    (tmp_path / "analyses").mkdir()
    text = (ROOT / "stimuli/number_agreement.yaml").read_text()
    part = "partition: {localizer: 24, seed: 7}"
    for block, said in (
        ("{test: attribution, region: head}", "screens features on other items"),
        ("{test: attribution, region: heads}", "unknown region 'heads'. Did you mean 'head'"),
        ("{test: attribution, region: head, method: direct}", "region: of direct is `target`"),
        ("{test: attribution, region: target, method: direct, baseline: mean}", "has no meaning with direct"),
        ("{test: attribution, region: target, steps: 4}", "belongs to integrated_gradients"),
        ("{test: attribution, region: target, method: direct, effect: subjekt}", "uses effect 'subjekt'"),
        ("{test: logit_lens, measure: rank}", "name effects, or use logit_diff"),
        ("{test: logit_lens, statistic: hurdle}", "statistic"),
        ("{test: attention, region: head, keys: heat, effect: subject}", "unknown region 'heat'"),
        ("{test: attention, region: head, keys: head, effect: subject, sites: late}", "have no heads"),
        ("{test: heads, lengths: [9, 4]}", "write the smallest first"),
        ("{test: heads, n_sequences: 5}", "n_sequences"),
    ):
        whole = "on other items" not in said
        (tmp_path / "stimuli/number_agreement.yaml").write_text(text if whole else text.replace(part, ""))
        (tmp_path / "analyses/a.yaml").write_text(f"{FILE}  t: {block}\n")
        with pytest.raises(SpecError) as refused:
            load_analysis(tmp_path / "analyses/a.yaml")
        assert said in str(refused.value), str(refused.value)
        assert "a.yaml:12" in str(refused.value)
