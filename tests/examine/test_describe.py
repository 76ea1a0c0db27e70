"""Descriptions of stored responses: the lists of a dashboard, and tuning with bands over items."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

import neurosae as ns
from neurosae.errors import DataError, NeurosaeError
from neurosae.examine.profiles import leading, score_table
from neurosae.examine.scores import as_columns
from neurosae.stats.simulate import example_design, simulate
from tests.examine.test_specialists import noise, responses_to, topic_design, topics_of, within_design


def test_examine_features_recovers_the_lists():
    """Planted: one very strong, one everywhere, one lone, and the feature that is weak everywhere but in one text."""
    X = noise(70, 30, seed=1, density=0.3) * 0.5
    X[:, 0] = 0
    X[5, 0] = 99.0
    X[:, 1] = 4.0
    X[:, 2] = 0.2
    X[10, 2] = 9.0
    fake = responses_to(topic_design(), X)
    table = ns.examine_features(fake, theta=5.0).set_index("feature")
    assert table.rank_strongest[0] == 1
    assert table.rank_frequent[1] == 1
    assert table.rank_frequent[2] == 2
    assert table.rank_selective[0] == 1
    assert table.rank_legacy[[0, 2]].tolist() == [1, 2]
    assert table.rank_legacy[2] < table.rank_selective[2] or table.rank_selective[2] == 2
    assert table.sparseness[2] < table.sparseness[0]
    assert table.text[0] == fake.obs["stimulus"].astype(str).iloc[5]


def test_lists_are_in_order_and_ties_go_by_index():
    """Best first; equal scores by feature index; features that are never strong are not selective."""
    A = as_columns(np.array([[1.0, 1.0, 6.0, 0.0], [0.0, 0.0, 6.0, 0.3]]))
    table = score_table(A, np.full(4, 0.5), np.arange(4))
    assert leading(table, "strongest")["feature"].tolist() == [2, 0, 1, 3]
    assert leading(table, "selective")["feature"].tolist() == [0, 1, 2]
    assert leading(table, "legacy", 2)["feature"].tolist() == [0, 1]


def test_examine_features_of_chosen_features_keeps_their_ranks():
    """A choice shows rows, it changes no rank; unknown features are refused."""
    fake = responses_to(topic_design(), noise(70, 12, seed=2))
    whole, part = ns.examine_features(fake), ns.examine_features(fake, features=[3, 7])
    assert part.feature.tolist() == [3, 7]
    wanted = whole[whole.feature.isin([3, 7])].reset_index(drop=True)
    assert part.equals(wanted)
    with pytest.raises(DataError, match=r"no feature 12; its features are 0 to 11"):
        ns.examine_features(fake, features=[12])


def test_theta_may_come_from_reference_text():
    """One threshold per feature of the dictionary, by site."""
    fake = responses_to(topic_design(), noise(70, 4, seed=3))
    theta = np.array([0.1, 1.0, 2.0, np.nan])
    table = ns.examine_features({"late": fake}, theta={"late": theta})
    X = fake.X.toarray()
    assert table.n_strong.tolist() == [*(X > theta).sum(axis=0)[:3], 0]
    with pytest.raises(DataError, match="one per feature"):
        ns.examine_features({"late": fake}, theta={"late": theta[:2]})


def test_tuning_agrees_with_means_over_items():
    """Means and densities over items of every cell; AUROC and d' of a cell against all others."""
    fake = responses_to(topic_design(), noise(70, 5, seed=4))
    table = ns.tuning(fake, "topic", features=[1, 4], seed=1)
    assert table.groupby("feature").size().tolist() == [7, 7]
    X, topic = fake.X.toarray(), topics_of(fake)
    for row in table.itertuples():
        own = X[topic == row.topic, row.feature]
        assert_allclose([row.mean, row.density], [own.mean(), (own > 0).mean()], rtol=1e-6)
        assert row.mean_low <= row.mean <= row.mean_high
        assert np.isnan(row.d_z)
    sea, rest = X[topic == "sea", 1], X[topic != "sea", 1]
    wanted = (sea[:, None] > rest).mean() + (sea[:, None] == rest).mean() / 2
    assert table.auroc[table.topic.eq("sea") & table.feature.eq(1)].item() == pytest.approx(wanted)


def test_tuning_within_items_averages_frames_and_gives_d_z():
    """The unit is the item, its frames are averaged; d_z is of the item's differences."""
    design = within_design()
    fake = responses_to(design, noise(84, 3, seed=5), region="word")
    table = ns.tuning(fake, "load", features=[0], seed=1)
    obs, x = fake.obs, fake.X.toarray()[:, 0]
    cells = np.zeros((14, 3))
    for k, level in enumerate(design.factors["load"].levels):
        for i in range(14):
            rows = (obs["item"] == f"i{i}").to_numpy() & (obs["load"].astype(str) == level).to_numpy()
            cells[i, k] = x[rows].mean()
    assert_allclose(table["mean"], cells.mean(axis=0), rtol=1e-6)
    D = cells[:, 1] - cells[:, [0, 2]].mean(axis=1)
    assert table.d_z[1] == pytest.approx(D.mean() / D.std(ddof=1), rel=1e-5)
    assert table.n_items.tolist() == [14, 14, 14]


def test_tuning_bands_hold_the_truth():
    """95 % bands of the mean cover the known mean in most of 120 features."""
    fake = simulate(example_design(60), n_features=120, density=0.5, seed=6)
    X = np.abs(np.random.default_rng(7).normal(3, 1, fake.shape)).astype(np.float32)
    fake.X = sp.csr_matrix(X)
    table = ns.tuning(fake, "number", features=np.arange(120), seed=1, region="noun")
    held = (table.mean_low <= 3.0) & (table.mean_high >= 3.0)
    assert 0.86 <= held.mean() <= 1.0


def test_tuning_refuses():
    """No features, an unknown factor, and a region that has to be named."""
    fake = responses_to(topic_design(), noise(70, 3, seed=8))
    with pytest.raises(DataError, match="named features"):
        ns.tuning(fake, "topic", features=None, seed=1)
    with pytest.raises(NeurosaeError, match="Did you mean 'topic'"):
        ns.tuning(fake, "topics", features=[0], seed=1)
