"""Means per level: averages inside items, bands over items, levels without texts."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# (pandas annotates all that an indexed table may be)

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.testing import assert_allclose

import neurosae as ns
from neurosae.examine.levels import level_means
from neurosae.stats.simulate import example_design, simulate


def test_level_means_agree_with_tuning():
    """The same means, densities and bands as tuning of stored responses gives, up to the draws of items."""
    fake = simulate(example_design(40), n_features=3, effects={"number": 1}, density=0.4, shift=2.0, seed=1)
    wanted = ns.tuning(fake, "number", features=[0], region="noun", seed=1)
    texts = fake[fake.obs["region"] == "noun"]
    values = texts.X.toarray()[:, 0]
    found = level_means(values, texts.obs[["number"]].reset_index(drop=True), texts.obs["item"].tolist(), seed=3)
    assert found["level"].tolist() == wanted["number"].tolist()
    assert_allclose(found[["mean", "density"]], wanted[["mean", "density"]], rtol=1e-6)
    assert_allclose(found[["mean_low", "mean_high"]], wanted[["mean_low", "mean_high"]], atol=0.15)
    assert found["n_items"].tolist() == [40, 40]


def test_texts_of_an_item_are_one_unit():
    """Every text five times: the same means and the same bands, since items are drawn."""
    draw = np.random.default_rng(0)
    values, levels = draw.exponential(size=24), pd.DataFrame({"number": ["sg", "pl"] * 12})
    items = np.repeat(np.arange(12), 2)
    once = level_means(values, levels, items)
    rows = np.repeat(np.arange(24), 5)
    five = level_means(values[rows], levels.iloc[rows].reset_index(drop=True), items[rows])
    assert_allclose(once["n_texts"] * 5, five["n_texts"])
    columns = ["n_items", "mean", "mean_low", "mean_high", "density", "density_low", "density_high"]
    assert_allclose(once[columns], five[columns])
    assert (once["mean_low"] < once["mean"]).all()


def test_unequal_items_weigh_alike():
    """An item with nine texts counts as much as one with one."""
    levels = pd.DataFrame({"kind": ["x"] * 10})
    found = level_means(np.array([1.0] * 9 + [3.0]), levels, [0] * 9 + [1])
    assert found["mean"].item() == 2.0
    assert found["note"].item() is None


def test_few_items_have_no_band():
    """One item: no interval, with the reason; a level without texts has counts alone."""
    levels = pd.DataFrame({"kind": pd.Categorical(["x", "y", "y"], ["x", "y", "z"])})
    found = level_means(np.array([1.0, 2.0, 0.0]), levels, ["a", "a", "b"]).set_index("level")
    assert found.loc["x", ["mean_low", "mean_high"]].isna().all()
    assert "fewer than two items" in found.loc["x", "note"]
    assert found.loc["z", ["n_items", "n_texts"]].tolist() == [0, 0]
    assert np.isnan(found.loc["z", "mean"])
    assert (found.loc["y", "mean"], found.loc["y", "density"]) == (1.0, 0.5)
