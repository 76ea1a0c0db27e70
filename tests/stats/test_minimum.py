"""Conjunction of effects: its largest p, its error rate with one real effect, and its rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError
from neurosae.spec.design import Design
from neurosae.stats.contrast import contrast
from neurosae.stats.minimum import conjunction
from neurosae.stats.simulate import simulate

TWO = {"a": {"number": {"pl": 1, "sg": -1}}, "b": {"tense": {"past": 1, "now": -1}}}


def two_by_two(n_items):
    """Number and tense within items."""
    verb = {"past": "fell", "now": "falls"}
    items = {f"i{k}": {"noun": {"sg": f"noun{k}", "pl": f"nouns{k}"}} for k in range(n_items)}
    made = {"schema": "neurosae/design/1", "name": "two", "factors": {"number": ["sg", "pl"], "tense": ["now", "past"]}}
    made["frames"] = {"f": "The {noun:number} {verb:tense}"}
    made["items"] = {k: v | {"verb": verb} for k, v in items.items()}
    return Design.model_validate(made)


@pytest.mark.parametrize("correction", ["maxT", "fdr_bh", "none"])
def test_conjunction_agrees_with_its_parts(correction):
    """p is the largest of the effects' p, the estimate that of the weakest effect."""
    effects = {"number": 5, "tense": 5}
    fake = simulate(two_by_two(24), n_features=60, effects=effects, density=(0.02, 0.5), shift=4.0, seed=1)
    rule = {"correction": correction, "n_permutations": 500}
    table = conjunction(fake, TWO, region="noun", inference=rule, seed=1)
    parts = contrast(fake, TWO, region="noun", inference=rule, seed=1)
    rows = parts[parts["p_unc"].notna()]
    wide = {
        c: rows.pivot_table(index="feature", columns="effect", values=c) for c in ("p_unc", "p_corr", "x_z", "estimate")
    }
    full = wide["p_unc"].dropna().index
    ok = table[table["status"] == "ok"].set_index("feature")
    assert list(ok.index) == list(full)
    assert_allclose(ok["p_unc"], wide["p_unc"].loc[full].max(axis=1))
    weakest = wide["x_z"].loc[full].abs().idxmin(axis=1)
    assert (ok["x_weakest"] == weakest).all()
    assert_allclose(ok["estimate"], [wide["estimate"].loc[f, e] for f, e in weakest.items()])
    if correction == "maxT":
        assert_allclose(ok["p_corr"], wide["p_corr"].loc[full].max(axis=1))
    if correction == "fdr_bh":
        assert_allclose(ok["p_corr"], stats.false_discovery_control(ok["p_unc"]))
    assert table["n_features"].sum() == 60
    assert set(table["effect"]) == {"a & b"}
    assert "absent" in ok["h0"].iloc[0]
    assert "interaction" not in " ".join(ok["h0"])


def test_conjunction_controls_error_with_one_real_effect():
    """Every feature responds to number, none to tense: hardly ever a family with a conjunction."""
    hits = 0
    for seed in range(24):
        fake = simulate(two_by_two(16), n_features=25, effects={"number": 25}, density=0.4, shift=6.0, seed=seed)
        table = conjunction(fake, TWO, region="noun", inference={"n_permutations": 300}, seed=seed)
        hits += bool((table["p_corr"] <= 0.05).any())
    assert hits <= stats.binom.isf(0.0005, 24, 0.05)


def test_conjunction_recovers_features_with_both_effects():
    """The same contrast twice, once mirrored: all its features are found, in opposite directions."""
    fake = simulate(two_by_two(24), n_features=40, effects={"number": 4}, density=0.4, shift=5.0, seed=3)
    both = {"more": TWO["a"], "less": {"number": {"pl": -1, "sg": 1}}}
    table = conjunction(fake, both, region="noun", seed=1)
    found = table[table["p_corr"] <= 0.05]
    assert set(found["feature"]) <= set(range(4))
    assert len(found) >= 3
    assert not found["x_same_sign"].any()
    one_sided = conjunction(fake, both, region="noun", inference={"alternative": "greater"}, seed=1)
    assert one_sided["p_corr"].min() > 0.05


def test_conjunction_refuses_one_effect():
    """One effect is a contrast."""
    fake = simulate(two_by_two(16), n_features=10, density=0.4, seed=3)
    with pytest.raises(DataError, match="use contrast"):
        conjunction(fake, {"a": TWO["a"]}, region="noun", seed=1)
    assert np.isfinite(conjunction(fake, TWO, region="noun", seed=1)["p_unc"]).any()
