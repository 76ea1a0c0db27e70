"""Two one-sided tests against R and pingouin, their error rate at the bound, and what shows no absence."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pingouin
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.report.absence import EQUIVALENCE
from neurosae.spec.blocks import TESTS, Inference
from neurosae.stats.equivalence import _bounds, _rows, equivalence, run
from neurosae.stats.multiplicity import holm
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import item_data

NUMBER = {"number": {"pl": 1, "sg": -1}}
PLACE = {"test": "e", "kind": "equivalence", "effect": "number", "site": "s", "region": "noun"}


def rows_of(D, *, smallest, scale="units", between=False):
    """The rows of given contrasts, or of given item values."""
    design = example_design(len(D), between=between)
    data = item_data(simulate(design, n_features=D.shape[1], density=0.4, seed=1), design, NUMBER, region="noun")
    return _rows(replace(data, D=sp.csc_matrix(D)), PLACE, (smallest, scale), label=None)


def test_equivalence_agrees_with_r(oracles):
    """Student's sleep inside (-1, 3): moved by -1 it is inside +-2."""
    known = json.loads(oracles("power_tost_effects.json").read_text())["tost_sleep_bounds_minus1_plus3"]
    d = np.array(json.loads(oracles("signflip.json").read_text())["sleep"]["d"]) - 1
    se = np.array([d.std(ddof=1) / np.sqrt(10)])
    made = _bounds(d.mean() / se, se, np.full(1, 9.0), spread=se, asked=(2.0, "units"), n=10)
    assert_allclose(made.p_above, known["p_lower"], rtol=1e-9)
    assert_allclose(made.p_below, known["p_upper"], rtol=1e-9)
    assert np.isnan(rows_of(d[:, None], smallest=2.0)["p_unc"][0])  # one item is equal: 9 informative ones


def test_equivalence_agrees_with_pingouin():
    """Paired and Welch's TOST in activation units."""
    rng = np.random.default_rng(0)
    D = rng.standard_normal((16, 4)) + np.array([0, 0.3, -0.5, 2.0])
    table = rows_of(D, smallest=0.9)
    for j in range(4):
        known = pingouin.tost(D[:, j], np.zeros(16), bound=0.9, paired=True)["pval"].iloc[0]
        assert table["x_p_parametric"][j] == pytest.approx(known, abs=2e-3 if known > 0.01 else 1e-3)
        exact = max(
            stats.ttest_1samp(D[:, j], -0.9, alternative="greater").pvalue,
            stats.ttest_1samp(D[:, j], 0.9, alternative="less").pvalue,
        )
        assert table["x_p_parametric"][j] == pytest.approx(exact, rel=1e-9)
    table = rows_of(D, smallest=1.4, between=True)
    codes = np.repeat([0, 1], 8)
    for j in range(4):
        low = stats.ttest_ind(D[codes == 1, j] + 1.4, D[codes == 0, j], equal_var=False, alternative="greater").pvalue
        high = stats.ttest_ind(D[codes == 1, j] - 1.4, D[codes == 0, j], equal_var=False, alternative="less").pvalue
        assert sorted([table["x_p_above"][j], table["x_p_below"][j]]) == pytest.approx(sorted([low, high]), rel=1e-9)
    assert set(table["p_method"]) == {"parametric"}


def test_equivalence_in_units_agrees_with_all_flips():
    """The flip p of both sides, by scipy over all 1,024 flips of the shifted contrasts."""
    D = np.random.default_rng(1).standard_normal((10, 2))
    table = rows_of(D, smallest=0.8)
    for j in range(2):
        known = [
            stats.permutation_test((D[:, j] + s,), np.mean, permutation_type="samples", alternative=a, n_resamples=9999)
            for s, a in ((0.8, "greater"), (-0.8, "less"))
        ]
        assert_allclose(table["p_unc"][j], max(k.pvalue for k in known))
    assert set(table["p_method"]) == {"exact"}


def test_interval_agrees_with_the_decision():
    """The parametric p is at most .05 exactly where the 90 % interval lies inside the bounds."""
    D = np.random.default_rng(2).standard_normal((20, 60)) * 0.8
    table = rows_of(D, smallest=0.4)
    inside = (table["ci_low"] > -0.4) & (table["ci_high"] < 0.4)
    assert ((table["x_p_parametric"] < 0.05) == inside).all()
    assert 5 < inside.sum() < 55
    assert set(table["ci_level"]) == {0.9}


@pytest.mark.parametrize("scale", ["units", "d_z"])
def test_equivalence_controls_error_at_the_bound(scale):
    """True effect of exactly the bound, 1,500 features: about 5 % are wrongly called equivalent."""
    D = np.random.default_rng(3).standard_normal((24, 1500)) + 0.7
    table = rows_of(D, smallest=0.7, scale=scale)
    low, high = stats.binom.interval(0.999, 1500, 0.05)
    assert low <= (table["p_unc"] <= 0.05).sum() <= high


def test_equivalence_in_d_agrees_with_power_tables():
    """80 % power at a true 0 and a bound of d_z .5 needs 36 items."""
    D = np.random.default_rng(4).standard_normal((36, 1500))
    assert (rows_of(D, smallest=0.5, scale="d_z")["p_unc"] <= 0.05).mean() == pytest.approx(0.8, abs=0.05)


def test_equivalence_tests_sets_and_keeps_all_features():
    """A set is its mean response; every feature has a row, and rare ones claim nothing."""
    fake = simulate(example_design(40), n_features=30, effects={"number": 2}, density=(0.005, 0.5), shift=5.0, seed=5)
    table = equivalence(fake, NUMBER, region="noun", smallest=0.8)
    assert len(table) == 30
    silent = table[table["status"] == "untestable"]
    assert (silent["n_informative"] < 10).all()
    assert len(silent)
    assert silent["note"].str.contains("too few to show the absence").all()
    sets = {"planted": [0, 1], "others": list(range(2, 30))}
    pooled = equivalence(fake, NUMBER, region="noun", smallest=0.8, sets=sets, correction="none")
    assert pooled["set"].tolist() == ["planted", "others"]
    each = equivalence(fake, NUMBER, region="noun", smallest=0.8, sets={"one": [3]})
    assert_allclose(each["estimate"], table.loc[3, "estimate"])
    assert pooled["p_unc"][0] > 0.5 > pooled["p_unc"][1]
    assert pd.isna(pooled["p_corr"]).all()


def test_equivalence_refuses_what_means_nothing():
    """No bound, an unknown feature, a correction without p."""
    fake = simulate(example_design(20), n_features=10, density=0.5, seed=5)
    for how, message in (
        ({"smallest": 0.0}, "positive number"),
        ({"smallest": 1.0, "sets": {"a": [99]}}, "set 'a'"),
        ({"smallest": 1.0, "correction": "maxT"}, "not made from single p"),
        ({"smallest": 1.0, "scale": "logits"}, "unknown scale"),
    ):
        with pytest.raises(DataError, match=message):
            equivalence(fake, NUMBER, region="noun", **how)


def test_a_block_of_a_study_agrees_with_the_function():
    """Every feature once, dead ones together; one family over effects; p of the function where it asks the same."""
    fake = simulate(example_design(40), n_features=30, density=0.4, seed=1)
    X = fake.X.tolil()
    X[:, [3, 7]] = 0
    fake.X = sp.csr_matrix(X)
    asked = {"test": "equivalence", "region": "noun", "effect": ["a", "b"], "smallest": 0.6, "scale": "units"}
    block = TESTS["equivalence"][0].model_validate(asked)
    effects = {"a": NUMBER, "b": {"number": {"pl": -1, "sg": 1}}}
    spec = SimpleNamespace(tests={"none": block}, effects=effects, inference=Inference(), seed=1)
    made = run({"late": fake}, block, study=SimpleNamespace(spec=spec), earlier={}, rng=None)
    known = equivalence(fake, NUMBER, region="noun", smallest=0.6, scale="units")
    table = made.table
    assert made.null_max is None
    assert set(table["test"]) == {"none"}
    assert table.groupby("effect")["n_features"].sum().to_dict() == {"a": 30, "b": 30}
    assert table.loc[table["status"] == "dead", "n_features"].tolist() == [2, 2]
    for effect in effects:
        mine = table[(table["effect"] == effect) & (table["status"] == "ok")].set_index("feature")
        assert_allclose(mine["p_unc"], known[known["status"] == "ok"].set_index("feature").loc[mine.index, "p_unc"])
    tested = table["p_unc"].notna()
    assert (table["n_family"] == tested.sum()).all()
    assert_allclose(table.loc[tested, "p_corr"], holm(table.loc[tested, "p_unc"].to_numpy(dtype=float)))


def test_the_page_states_what_was_bounded():
    """The bound and the number of features in the sentence; nothing is claimed of the others."""
    fake = simulate(example_design(60), n_features=12, effects={"number": 2}, density=0.5, shift=6.0, seed=1)
    table = equivalence(fake, NUMBER, region="noun", smallest=0.8).assign(test="none")
    study: Any = SimpleNamespace(analysis={"inference": {"alpha": 0.05}}, results=table)
    said = next(iter(EQUIVALENCE.statements(study, "none", table)))
    assert "less than would matter (0.8 standard deviations of the items' contrasts)" in said.text
    assert "nothing is known" in said.cautions[0]
    assert "[schuirmann1987; lakens2017]" in next(iter(EQUIVALENCE.methods(study, table)))
