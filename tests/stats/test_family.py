"""One family under one set of relabellings: error rates, alternatives, joint scales, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, design_of
from neurosae.spec.blocks import Inference
from neurosae.spec.design import Design
from neurosae.stats.asked import Asked
from neurosae.stats.contrast import cells_of
from neurosae.stats.family import Cell, Place, infer, relabelled
from neurosae.stats.multiplicity import bb
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}
PLACE = Place("t", "number", "s", "noun", 0, "test", None)


def null_data(*, between=False, n_features=6000):
    design = example_design(32, between=between)
    fake = simulate(design, n_features=n_features, density=(0.1, 0.5), seed=11)
    return item_data(fake, design, NUMBER, region="noun")


def informative(data):
    return np.flatnonzero(np.diff(data.D.indptr) >= 6)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("statistic", ["t", "moderated_t", "signed_rank"])
def test_max_t_controls_familywise_error(statistic, between):
    """No effect, 100 families of independent features: rejections inside the binomial 99.9 % band around .05."""
    data, settings = null_data(between=between), Inference(statistic=statistic, n_permutations=400)
    kept = informative(data)
    families = np.array_split(kept, 100)
    p = [
        infer([Cell(PLACE, data, f)], settings, seed=k, split="test")[0][0].p_corr.min() for k, f in enumerate(families)
    ]
    low, high = stats.binom.interval(0.999, 100, 0.05)
    assert low <= np.sum(np.array(p) <= 0.05) <= high


def test_uncorrected_p_is_uniform_under_the_null():
    """Exact and saddlepoint p of null features, never anti-conservative."""
    data = null_data(n_features=3000)
    outcome = infer([Cell(PLACE, data, informative(data))], Inference(correction="none"), seed=1, split="test")[0][0]
    for level in (0.01, 0.05, 0.2):
        share = (outcome.p_unc <= level).mean()
        assert share <= level + 4 * np.sqrt(
            level * (1 - level) / len(outcome.p_unc) * 5
        )  # features correlate in blocks


def test_counted_p_recover_the_divisor_of_their_correction():
    """60 features, permuted labels: m / alpha relabellings for Holm and BH, m (1 + 1/2 + ... + 1/m) / alpha for BY."""
    data = null_data(between=True, n_features=300)
    cell = Cell(PLACE, data, informative(data)[:60])

    def drawn(correction):
        settings = Inference(correction=correction, n_permutations=400)
        return infer([cell], settings, seed=1, split="test")[0][0].relabelling.n

    by = int(np.ceil(60 * (1 / np.arange(1, 61)).sum() / 0.05))
    assert [drawn(name) for name in ("maxT", "holm", "fdr_bh", "fdr_by")] == [400, 1200, 1200, by]


def test_alternatives_agree_on_mirrored_data():
    """`greater` on d is `less` on -d, and the smaller of the two is about half the two-sided p."""
    data = null_data(n_features=200)
    cell = Cell(PLACE, data, informative(data))
    mirrored = cell._replace(data=relabelled(data, -np.ones(data.n), None))
    greater = infer([cell], Inference(alternative="greater"), seed=1, split="test")[0][0]
    less = infer([mirrored], Inference(alternative="less"), seed=1, split="test")[0][0]
    assert_allclose(greater.p_corr, less.p_corr)
    assert_allclose(greater.p_unc, less.p_unc)
    both = infer([cell], Inference(), seed=1, split="test")[0][0]
    other = infer([cell], Inference(alternative="less"), seed=1, split="test")[0][0]
    assert_allclose(np.minimum(1, 2 * np.minimum(greater.p_unc, other.p_unc)), both.p_unc, rtol=1e-6)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("between", [False, True])
def test_step_down_is_never_above_single_step(alternative, between):
    """For every alternative and both kinds of relabelling."""
    data = null_data(between=between, n_features=200)
    cell = Cell(PLACE, data, informative(data))
    settings = {"alternative": alternative, "n_permutations": 500}
    single = infer([cell], Inference(**settings), seed=1, split="test")[0][0].p_corr
    stepped = infer([cell], Inference(**settings, correction="stepdown"), seed=1, split="test")[0][0].p_corr
    assert (stepped <= single + 1e-12).all()
    assert stepped.min() == single.min()


def test_null_maximum_is_joined_over_cells():
    """The maximum over two halves of the features is the maximum over all of them, on the z scale."""
    data = null_data(n_features=300)
    kept, settings = informative(data), Inference(statistic="t", n_permutations=300)
    parts = [infer([Cell(PLACE, data, half)], settings, seed=1, split="test")[1] for half in np.array_split(kept, 2)]
    whole = infer([Cell(PLACE, data, kept)], settings, seed=1, split="test")[1]
    assert_allclose(np.maximum(*parts), whole)


def test_bh_raises_the_number_of_label_permutations():
    """Counted p must reach alpha / m: 100 relabellings asked for, m / alpha drawn."""
    data = null_data(between=True, n_features=100)
    cell = Cell(PLACE, data, informative(data))
    outcome = infer([cell], Inference(correction="fdr_bh", n_permutations=100), seed=1, split="test")[0][0]
    assert outcome.relabelling.n == len(cell.kept) / 0.05


def test_step_down_refuses_two_kinds_of_relabelling():
    """Flips and label permutations have no common order of maxima."""
    cells = [Cell(PLACE, d, informative(d)) for d in (null_data(n_features=60), null_data(between=True, n_features=60))]
    with pytest.raises(DataError, match="one kind of relabelling"):
        infer(cells, Inference(correction="stepdown"), seed=1, split="test")


def test_bb_agrees_with_the_sites_as_families():
    """The corrected p of two sites are Benjamini and Bogomolov's over their uncorrected p."""
    data = null_data(n_features=80)
    halves = np.array_split(informative(data), 2)
    cells = [Cell(PLACE._replace(site=site), data, half) for site, half in zip("ab", halves, strict=True)]
    outcomes, null = infer(cells, Inference(correction="bb"), seed=1, split="test")
    known = bb(np.concatenate([o.p_unc for o in outcomes]), np.repeat(["a", "b"], [len(h) for h in halves]))
    assert null is None
    assert_allclose(np.concatenate([o.p_corr for o in outcomes]), known.p)
    assert_allclose(np.concatenate([o.beside["x_p_family"] for o in outcomes]), known.p_family)


# ------------------------------------------------------------------ different kinds of relabelling in one family

NUMBER, KIND = {"number": {"sg": -1, "pl": 1}}, {"kind": {"x": -1, "y": 1}}
FAMILIES = {
    "flips and labels": {"number": NUMBER, "kind": KIND, "both": NUMBER | KIND},
    "flips and levels": {
        "linear": {"dose": {"low": -1, "mid": 0, "high": 1}},
        "peak": {"dose": {"low": -1, "mid": 2, "high": -1}},
        "all": {"dose": "all"},
    },
}


def mixed_design(name):
    """Number within and kind between items, 11 against 13; or three levels within items."""
    levels = ["sg", "pl"] if name == "flips and labels" else ["low", "mid", "high"]
    factor = "number" if name == "flips and labels" else "dose"
    items = {f"w{i}": {"w": {d: f"w{i}{d}" for d in levels}} for i in range(24)}
    factors = {factor: levels}
    if factor == "number":
        factors["kind"] = {"levels": ["x", "y"], "varies": "between"}
        items = {x: form | {"kind": "x" if i < 11 else "y"} for i, (x, form) in enumerate(items.items())}
    parts = {"factors": factors, "frames": {"f": f"It {{w:{factor}}} was"}, "items": items}
    return Design.model_validate({"schema": "neurosae/design/1", "name": "mixed", **parts})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_different_relabellings_controls_error(name):
    """Flips, label permutations and exchanged levels of the same items under one maximum: R = 400 null data sets.

    Items react strongly, so the statistics of different effects depend on each other; the rates are inside or below
    the 99 % band of .05, and the parts share the error instead of having .05 each.
    """
    fake = simulate(mixed_design(name), n_features=1, density=0.5, seed=0)
    n, region = fake.n_obs, str(fake.obs["region"].iloc[0])
    var = pd.DataFrame({"feature": np.arange(n), "decoder_norm": 1.0, "threshold": 0.0, "density": 0.5, "origin": 0.0})
    unit = build_responses(
        sp.eye(n, format="csr"), fake.obs, var.set_index(var["feature"].astype(str)), design=design_of(fake),
        provenance={},
    )  # fmt: skip
    rules = Inference(n_permutations=200, statistic="t", min_informative=1)
    maps, _ = cells_of({"s": unit}, Asked("t", FAMILIES[name], (region,), "test"), rules)
    rng, item, rejecting, alone = np.random.default_rng(7), pd.factorize(fake.obs["item"])[0], 0, []
    for number in range(400):
        drive = rng.standard_normal((24, 20))[item] + rng.standard_normal((n, 20))
        Y = sp.csr_matrix(np.where(drive > 0.3, np.exp(0.7 * rng.standard_normal((24, 20)))[item], 0.0))
        cells = []
        for cell in maps:
            made = {
                key: sp.csc_matrix(getattr(cell.data, key) @ Y)
                for key in ("D", "levels")
                if getattr(cell.data, key) is not None and not (key == "D" and cell.data.levels is not None)
            }
            made = {"D": made.get("levels"), **made, "Y": sp.csr_matrix(cell.data.Y @ Y)}
            data = replace(cell.data, features=np.arange(20), **made)
            cells.append(Cell(cell.place, data, np.flatnonzero(data.informative >= 6)))
        outcomes, _ = infer(cells, rules, seed=number, split="test")
        rejecting += min(o.p_corr.min() for o in outcomes) <= 0.05
        alone.append([(o.p_unc <= 0.05).mean() for o in outcomes])
    assert rejecting / 400 <= stats.binom.ppf(0.995, 400, 0.05) / 400
    assert rejecting / 400 >= 0.015
    assert (np.mean(alone, axis=0) <= 0.06).all()
