"""Views: tables that agree with a loop over rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.extraction.align import align
from neurosae.extraction.run import extract
from neurosae.extraction.views import category_means, example_view, feature_sums, onsets, token_courses


@pytest.fixture
def responses(toy_stimuli, toy_model, tiny):
    """All tokens of head and verb."""
    asked = {"regions": ["head", "verb"], "tokens": "all"}
    return align(extract(toy_stimuli, toy_model, {"s": tiny(1)}, positions=asked))["s"]


def test_example_view_shows_one_text(responses):
    """Tokens in their order, features by their peak."""
    name = responses.obs["stimulus"].iloc[0]
    table = example_view(responses, name, top=4)
    assert "".join(table.loc["head"].index.get_level_values("token")) == " key" or len(table.loc["head"]) >= 3
    peaks = table.abs().max().to_numpy()
    assert (np.diff(peaks) <= 0).all()
    assert len(table.columns) == 4
    assert responses.X[(responses.obs["stimulus"] == name).to_numpy()].max() == pytest.approx(peaks[0])
    with pytest.raises(DataError, match="unknown stimulus"):
        example_view(responses, "nobody")


def test_feature_sums_are_sums_of_z_scores(responses):
    """Agrees with pandas; a constant feature has no z-score."""
    table = pd.DataFrame(responses.X[:, [3, 8]].toarray().astype(float))
    expected = ((table - table.mean()) / table.std(ddof=0)).sum(axis=1)
    assert_allclose(feature_sums(responses, {"pair": [3, 8]})["pair"], expected)
    flat = responses.copy()
    flat.X = flat.X.multiply(np.arange(flat.n_vars) != 3).tocsr().astype(np.float32)
    with pytest.raises(DataError, match="feature 3 is the same in all rows"):
        feature_sums(flat, {"pair": [3, 8]})


def test_category_means_weigh_items_equally(responses):
    """The mean of item means, not of rows."""
    rows = responses.obs.reset_index(drop=True).assign(y=responses.X[:, 5].toarray().ravel())
    rows = rows[~((rows["item"] == "i0") & (rows["frame"] == "b"))]
    part = responses[rows.index.to_numpy()].copy()
    found = category_means(part, ["number"], features=[5])
    cell = rows[(rows["region"] == "verb") & (rows["position"] == 0) & (rows["number"] == "sg")]
    expected = cell.groupby("item", observed=True)["y"].mean().mean()
    one = found[(found["region"] == "verb") & (found["position"] == 0) & (found["number"] == "sg")]
    assert_allclose(one["mean"], expected)
    assert one["n_items"].tolist() == [3]


def test_onsets_are_first_active_tokens(responses):
    """The first token above 0, NA where there is none; every text and region has a row."""
    table = onsets(responses, features=[5, 9])
    assert len(table) == 2 * len(responses.obs.drop_duplicates(["stimulus", "region"]))
    values = responses.X[:, 9].toarray().ravel()
    for _, row in table[table["feature"] == 9].iloc[:12].iterrows():
        own = ((responses.obs["stimulus"] == row["stimulus"]) & (responses.obs["region"] == row["region"])).to_numpy()
        active = responses.obs["position"].to_numpy()[own & (values > 0)]
        assert pd.isna(row["position"]) if not len(active) else row["position"] == active.min()


def test_token_courses_agree_with_a_loop(responses):
    """Means over items of weighted means over cells, at every token of both sides."""
    weights = {("sg", "sg"): 1.0, ("pl", "sg"): -1.0, ("sg", "pl"): 1.0, ("pl", "pl"): -1.0}
    spread = responses.X.toarray().std(axis=0)
    one_of = int(spread.argmax())  # a feature that is seldom silent
    found = token_courses(responses, weights, features=[4, one_of], region="head", split="test")
    rows = responses.obs.reset_index(drop=True).assign(y=responses.X[:, one_of].toarray().ravel())
    rows = rows[rows["region"] == "head"]
    singular = rows["number"].astype(str) == "sg"
    for side, kept in (("plus", rows[singular]), ("minus", rows[~singular])):
        expected = kept.groupby(["position", "item"], observed=True)["y"].mean().groupby("position").mean()
        one = found[(found["feature"] == one_of) & (found["side"] == side)].set_index("token")["mean"]
        assert_allclose(one, expected.reindex(one.index), rtol=1e-5)
        assert one.max() > 0
    with pytest.raises(DataError, match="there is no feature 999"):
        token_courses(responses, weights, features=[999], region="head", split="test")
