"""Features that are named by their indices enter the tests that chosen ones enter."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from neurosae.errors import DataError
from neurosae.spec.block import FeatureChoice
from neurosae.spec.results import Tested
from neurosae.stats.asked import features_from_earlier
from neurosae.stats.contrast import contrast
from neurosae.stats.simulate import example_design, simulate

NUMBER = {"number": {"pl": 1, "sg": -1}}


@pytest.fixture(scope="module")
def fake():
    """16 items, 12 features."""
    return simulate(example_design(16), n_features=12, density=0.6, effects={"number": 3}, shift=4.0, seed=1)


def ask(**given):
    return SimpleNamespace(features=FeatureChoice.model_validate(given), split="test")


def test_named_features_agree_with_an_array(fake):
    """`{ids: {late: …}}` are the indices, sorted and once each; no earlier test is looked at."""
    features, name = features_from_earlier(ask(ids={"late": [7, 2, 7]}), {"late": fake}, {})
    assert features["late"].tolist() == [2, 7]
    assert name == "named features"
    assert features_from_earlier(ask(ids=[3]), {"late": fake}, {})[0]["late"].tolist() == [3]
    rows = contrast(fake, {"number": {"pl": 1, "sg": -1}}, region="noun", features=features["late"], seed=1)
    assert set(rows["feature"].dropna()) <= {2, 7}


def test_named_features_refuses_what_a_site_lacks(fake):
    """An index beyond the dictionary is a mistake, never dropped."""
    with pytest.raises(DataError, match="whose features are 0 to 11"):
        features_from_earlier(ask(ids=[12]), {"late": fake}, {})
    with pytest.raises(DataError, match="names none of site 'late'"):
        features_from_earlier(ask(ids={"early": [1]}), {"late": fake}, {})


def found_by(fake, effects):
    """What a localizer test hands over; its items are those of the fake."""
    table = contrast(fake, effects, region="noun", seed=1)
    return {"find": Tested(table.assign(split=pd.array(["localizer"] * len(table), dtype="string")), None, {})}


def test_an_earlier_test_ranks_by_its_largest_statistic(fake):
    """Top features by |value| over the regions of the test, sorted by index, each once."""
    other = simulate(example_design(16), n_features=12, density=0.6, effects={"number": 3}, shift=2.0, seed=2)
    both = [found_by(one, {"number": NUMBER})["find"].table for one in (fake, other)]
    both[1]["region"] = pd.array(["again"] * len(both[1]), dtype="string")
    earlier = {"find": Tested(pd.concat(both, ignore_index=True), None, {})}
    rows = earlier["find"].table[lambda t: t["status"] == "ok"]
    best = rows.assign(size=rows["value"].abs()).groupby("feature")["size"].max().nlargest(4).index
    site = str(rows["site"].iloc[0])
    chosen, name = features_from_earlier(ask(**{"from": "find", "top": 4}), {site: fake}, earlier)
    assert chosen[site].tolist() == sorted(best)
    assert name == "find top 4"


def test_an_earlier_test_of_several_effects_refuses_to_rank(fake):
    """Two effects are two rankings: which one is meant is said by a test of one effect, never guessed."""
    earlier = found_by(fake, {"number": NUMBER, "turned": {"number": {"pl": -1, "sg": 1}}})
    with pytest.raises(DataError, match="'find' tests number, turned, whose statistics are no one ranking"):
        features_from_earlier(ask(**{"from": "find", "top": 4}), {"late": fake}, earlier)


@pytest.mark.parametrize("given", [{}, {"from": "find"}, {"ids": {"late": []}}, {"from": "find", "top": 3, "ids": [1]}])
def test_feature_choice_refuses_halves(given):
    """From an earlier test or named, never both, never neither."""
    with pytest.raises(ValueError, match=r"from an earlier test|belongs to|names no feature"):
        FeatureChoice.model_validate(given)
