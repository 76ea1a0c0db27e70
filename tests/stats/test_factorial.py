"""Factorial effects on real designs: F and contrasts of afex, car and emmeans, from cell means that count equally."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from neurosae.design.expand import expand
from neurosae.spec.design import Design
from neurosae.stats.contrast import contrast
from neurosae.stats.simulate import responses_of, simulate

A, B, C = ({name: {f"{name}2": 1, f"{name}1": -1}} for name in "abc")


def responses(design, value):
    """One feature with the value of every stimulus, a function of its row in the table of stimuli."""
    fake = simulate(design, n_features=1, density=0.5, seed=0)
    table = expand(design).loc[fake.obs["stimulus"].astype(str)]
    y = np.array([value(row) for row in table.itertuples()], dtype=float)
    return responses_of(
        sp.csr_matrix(y[:, None]), fake.obs.reset_index(drop=True), fake.var, design=design, provenance={}
    )


def row_of(fake, effect, statistic="t"):
    region = str(fake.obs["region"].iloc[0])
    asked = {"statistic": statistic, "n_permutations": 200, "min_informative": 2, "alpha": 0.25}
    return contrast(fake, effect, region=region, inference=asked, seed=1).iloc[0]


def repeated(oracles, groups=False):
    """20 items x 2 x 2 x 2 cells; `groups`: items 1-8 and 9-20 are two groups, and cells are averaged to a."""
    Y = np.loadtxt(oracles("inputs/rm_Y.csv"), delimiter=",")
    factors = {name: [f"{name}1", f"{name}2"] for name in "abc"}
    items = {f"i{k}": {n: {level: f"{level}of{k}" for level in factors[n]} for n in "abc"} for k in range(20)}
    frame = "It {a:a} {b:b} {c:c} was"
    if groups:
        factors = {"a": factors["a"], "group": {"levels": ["g1", "g2"], "varies": "between"}}
        items = {n: {"a": form["a"], "group": "g1" if k < 8 else "g2"} for k, (n, form) in enumerate(items.items())}
        frame = "It {a:a} was"
    design = Design.model_validate(
        {"schema": "neurosae/design/1", "name": "rm", "factors": factors, "frames": {"f": frame}, "items": items}
    )
    cells = list(product("12", repeat=3))

    def value(row):
        k, levels = int(row.item[1:]), [str(getattr(row, n))[1] for n in "abc" if hasattr(row, n)]
        return np.mean([Y[k, j] for j, cell in enumerate(cells) if list(cell[: len(levels)]) == levels])

    return responses(design, value)


def test_within_effects_agree_with_afex(oracles):
    """Main effects and interactions of 2 x 2 x 2 within items: t^2 is F(1, 19); so is F of `all`."""
    known = json.loads(oracles("anova_factorial.json").read_text())
    fake = repeated(oracles)
    effects = [A, B, C, A | B, A | C, B | C, A | B | C]
    rows = [row_of(fake, effect) for effect in effects]
    assert_allclose([row["value"] ** 2 for row in rows], known["repeated_2x2x2"]["F"], rtol=1e-5, atol=1e-7)
    assert {row["dof"] for row in rows} == {19}
    both = known["interaction_AB_in_rm"]
    assert_allclose([rows[3]["estimate"], rows[3]["se"], rows[3]["value"]], list(both.values())[:3], rtol=1e-6)
    every = row_of(fake, {"a": "all"} | B)
    assert every["stat"] == "F"
    assert_allclose(every["value"], known["repeated_2x2x2"]["F"][3], rtol=1e-5)
    assert (every["x_df1"], every["dof"]) == (1, 19)


def test_mixed_interaction_agrees_with_afex(oracles):
    """Group x a: all levels between items of the difference inside them is the pooled F of 8 and 12 items."""
    known = json.loads(oracles("anova_factorial.json").read_text())["mixed_between_within"]
    fake = repeated(oracles, groups=True)
    assert_allclose(row_of(fake, A | {"group": "all"}, "F")["value"], known["F"][2], rtol=1e-5)
    assert_allclose(row_of(fake, {"group": "all"}, "F")["value"], known["F"][0], rtol=1e-5)


def two_way(table):
    factors = {name: {"levels": [f"{name}{k}" for k in levels], "varies": "between"} for name, levels in
               {"a": (1, 2), "b": (1, 2, 3)}.items()}  # fmt: skip
    items = {
        f"i{k}": {"a": f"a{int(row.a)}", "b": f"b{int(row.b)}", "w": f"w{k}"}
        for k, row in enumerate(table.itertuples())
    }
    design = Design.model_validate(
        {
            "schema": "neurosae/design/1",
            "name": "two",
            "factors": factors,
            "frames": {"f": "It {w} was"},
            "items": items,
        }
    )
    return responses(design, lambda row: table["y"].iloc[int(row.item[1:])])


def test_unbalanced_effects_agree_with_car_and_emmeans(oracles):
    """Type III: cells weigh equally, whatever their sizes; contrasts and simple effects are those of emmeans."""
    table = pd.read_csv(oracles("inputs/two_way.csv"), names=["a", "b", "y"])
    known = json.loads(oracles("anova_factorial.json").read_text())["two_way_unbalanced"]
    fake = two_way(table)
    rows = [row_of(fake, effect, "F") for effect in ({"a": "all"}, {"b": "all"}, A | {"b": "all"})]
    assert_allclose([row["value"] for row in rows], known["type3"]["F"], rtol=1e-5)
    assert [row["x_df1"] for row in rows] == [1, 2, 2]
    assert "approximate: labels of all cells are permuted" in rows[2]["note"]
    assert rows[2]["p_method"] == "permutations (approximate)"
    back = {"a": {"a1": 1, "a2": -1}}
    assert_allclose(row_of(fake, back, "mean")["estimate"], known["equal_weight_A"]["estimate"], rtol=1e-5)
    for k, level in enumerate(("b1", "b2", "b3")):
        simple = row_of(fake, back | {"b": {level: 1}}, "mean")
        assert_allclose(simple["estimate"], known["simple_A_at_B"]["estimate"][k], rtol=1e-5)
    for k, (one, other) in enumerate((("b1", "b2"), ("b1", "b3"), ("b2", "b3"))):
        crossed = row_of(fake, back | {"b": {one: 1, other: -1}}, "mean")
        assert_allclose(crossed["estimate"], known["interaction"]["estimate"][k], rtol=1e-5)


def test_ants_agree_with_published_f(oracles):
    """Manly's ants, month x size, whole and without two observations."""
    known = json.loads(oracles("anova_factorial.json").read_text())["manly_ants"]
    months = list(dict.fromkeys(known["month"]))
    for dropped, expected in (([], known["F"]), ([20, 22], known["type3_without_obs_21_23"]["F"])):
        table = pd.DataFrame({"b": known["size"], "a": known["month"], "y": known["y"]}).drop(index=dropped)
        names = {"m": (months, "a"), "s": (["small", "large"], "b")}
        factors = {f: {"levels": levels, "varies": "between"} for f, (levels, _) in names.items()}
        items = {f"i{k}": {"m": r.a, "s": r.b, "w": f"w{k}"} for k, r in enumerate(table.itertuples())}
        design = Design.model_validate(
            {"schema": "neurosae/design/1", "name": "ants", "factors": factors, "frames": {"f": "It {w} was"},
             "items": items}
        )  # fmt: skip
        y = table["y"].to_numpy()
        fake = responses(design, lambda row, y=y: y[int(row.item[1:])])
        effects = [{"m": "all"}, {"s": "all"}, {"m": "all", "s": {"small": 1, "large": -1}}]
        assert_allclose([row_of(fake, effect, "F")["value"] for effect in effects], expected, rtol=1e-6)


@pytest.mark.parametrize("effect", [{"a": "all"} | B, A])
def test_an_effect_of_two_levels_has_the_p_of_flips(oracles, effect):
    """Exchanging two levels inside items is flipping their difference; p of F counts what p of t knows exactly."""
    fake = repeated(oracles)
    row = row_of(fake, effect)
    assert (row["p_method"] == "permutations") == ("all" in effect.values())
    exact = row_of(fake, A | B if "all" in effect.values() else A)["p_unc"]
    assert abs(row["p_unc"] - exact) <= 4 * np.sqrt(exact * (1 - exact) / 200)
