"""The page on feature sets and pairs: statements with their cautions, a figure of every item, sentences for methods."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from neurosae.report.figures_sets import set_items
from neurosae.report.regions import PAIRS, ROI, SCREEN, SOME
from neurosae.spec.blocks import Inference, RoiBlock
from neurosae.stats.pairs import pairs
from neurosae.stats.selection import run as run_roi
from neurosae.stats.simulate import example_design, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}


@pytest.fixture(scope="module")
def tested():
    """Two tests of sets, one of pairs, with what a finished study knows of them."""
    fake = simulate(example_design(20), n_features=40, effects={"number": 4}, density=0.4, shift=5.0, seed=1)
    extras, tables = {}, []
    for name, features in (("fitted", {"cross_fit": {"top": 4}}), ("whole", {"all": True})):
        ask = RoiBlock.model_validate({"test": "roi", "effect": "number", "region": "noun", "features": features})
        spec = SimpleNamespace(tests={name: ask}, effects={"number": NUMBER}, inference=Inference(), seed=1)
        made = run_roi({"late": fake}, ask, study=SimpleNamespace(spec=spec), earlier={}, rng=None)
        tables.append(made.table)
        extras |= {(name, key): long for key, long in made.extras.items()}
    together = pairs({"late": fake}, {"number": NUMBER}, region="noun", seed=1).assign(test="together")
    results = pd.concat([t.dropna(axis=1, how="all") for t in (*tables, together)], ignore_index=True)
    return SimpleNamespace(results=results.reindex(columns=[*together.columns, "x_overlap"]), extras=extras,
                           analysis={"inference": {"alpha": 0.05}}, provenance={})  # fmt: skip


def of(tested, test: str) -> pd.DataFrame:
    return tested.results[tested.results["test"] == test]


def test_statements_count_sets_and_pairs(tested):
    """One set found of one; pairs count those that have no row of their own; each carries its caution."""
    (fitted,) = ROI.statements(tested, "fitted", of(tested, "fitted"))
    assert fitted.text.startswith("1 of 1 tested set of features responds to number")
    assert fitted.cautions == (SOME,)
    (together,) = PAIRS.statements(tested, "together", of(tested, "together"))
    ok = of(tested, "together").query("status == 'ok'")
    assert f"of {int(ok['n_features'].sum()):,} tested pairs" in together.text
    assert together.cautions == (SCREEN,)


def test_figure_shows_every_item_of_every_set(tested):
    """As many dots as items, at the held-out contrasts of the table."""
    (drawing,) = ROI.drawings(tested, "fitted", of(tested, "fitted"))
    dots = drawing.figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(np.sort(dots[:, 0]), np.sort(tested.extras["fitted", "items"]["difference"]))
    assert "held-out" in drawing.caption
    figure = set_items(of(tested, "whole"), tested.extras["whole", "items"])
    assert len(figure.axes[0].collections[0].get_offsets()) == 20


def test_methods_say_how_sets_were_chosen(tested):
    """The choice inside the relabelling is named; so is that nothing was looked at."""
    words = " ".join(ROI.methods(tested, tested.results[tested.results["kind"] == "roi"]))
    assert "repeated inside every relabelling [kriegeskorte2009]" in words
    assert "whole: the mean response of 1 set of features was tested; sets were chosen without looking" in words
    assert SCREEN in " ".join(PAIRS.methods(tested, of(tested, "together")))
