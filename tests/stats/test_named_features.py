"""Features that are named by their indices enter the tests that chosen ones enter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neurosae.errors import DataError
from neurosae.spec.block import FeatureChoice
from neurosae.stats.asked import features_from_earlier
from neurosae.stats.contrast import contrast
from neurosae.stats.simulate import example_design, simulate


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


@pytest.mark.parametrize("given", [{}, {"from": "find"}, {"ids": {"late": []}}, {"from": "find", "top": 3, "ids": [1]}])
def test_feature_choice_refuses_halves(given):
    """From an earlier test or named, never both, never neither."""
    with pytest.raises(ValueError, match=r"from an earlier test|belongs to|names no feature"):
        FeatureChoice.model_validate(given)
