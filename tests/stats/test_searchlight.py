"""Searchlights: D_c of every set as contrast_length has it, planted neighbourhoods, matched controls, refusals."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from neurosae.errors import DataError, NeurosaeError
from neurosae.stats.length import contrast_length, relabellings_of, solid
from neurosae.stats.relabel import flips
from neurosae.stats.searchlight import decoder_neighbours, searchlight
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import item_data
from tests.stats.test_rsa import A, crossed, nested

NUMBER = {"number": {"pl": 1, "sg": -1}}


def test_a_set_of_all_features_agrees_with_contrast_length():
    """With the whole site as one set, value, null and p are those of D_c."""
    fake = simulate(example_design(12), n_features=80, effects={"number": 8}, density=0.5, seed=1)
    row = searchlight(fake, NUMBER, sets={"all": range(80), "few": range(5)}, region="noun", seed=3,
                      inference={"n_permutations": 500}).iloc[0]  # fmt: skip
    design = example_design(12)
    data = item_data(fake, design, NUMBER, region="noun")
    length = contrast_length(solid(data), flips(data.numbers, 500, seed=3))
    assert_allclose(row.estimate, length.value, rtol=1e-9)
    assert_allclose(row.value, length.null[0], rtol=1e-9)
    assert row.p_unc == length.p


def test_searchlight_recovers_a_planted_neighbourhood():
    """Features that point alike carry the effect: their neighbourhoods are found and beat matched random sets."""
    rng = np.random.default_rng(0)
    fake = simulate(crossed(20), n_features=120, effects={"a": 10}, density=0.5, shift=3.0, seed=2,
                    regions=("everything",))  # fmt: skip
    W = rng.standard_normal((120, 16))
    W[:10] = W[0] + 0.1 * rng.standard_normal((10, 16))
    sets = decoder_neighbours(W, 10)
    found = searchlight(fake, A, sets=sets, region="everything", seed=1, inference={"n_permutations": 1000})
    planted = found[found.x_centre < 10]
    assert (planted.p_corr <= 0.05).all()
    assert (planted.x_p_control <= 0.05).all()
    far = found[(found.x_centre >= 10) & ~found["set"].isin([n for n, s in sets.items() if (s < 10).any()])]
    assert (far.p_corr > 0.05).all()


def test_controls_are_matched_not_merely_random():
    """An effect in every dense feature: a dense set does not beat sets as dense as itself."""
    fake = simulate(crossed(20), n_features=100, effects={"a": 50}, density=0.6, shift=3.0, seed=3,
                    regions=("everything",))  # fmt: skip
    found = searchlight(fake, A, sets={"some of it": range(0, 50, 5)}, region="everything", seed=1,
                        inference={"n_permutations": 500}).iloc[0]  # fmt: skip
    assert found.p_corr <= 0.01
    assert found.x_control > 0
    assert found.x_p_control > 0.01


def test_searchlight_controls_its_error_over_sets():
    """No effect, 30 data sets, 20 overlapping sets: rejections stay inside the 99.9 % band."""
    wrong = 0
    for seed in range(30):
        fake = simulate(example_design(10), n_features=40, density=0.5, seed=seed)
        sets = {f"s{k}": np.arange(k, k + 15) for k in range(20)}
        found = searchlight(fake, NUMBER, sets=sets, region="noun", seed=seed, settings={"n_controls": 19},
                            inference={"n_permutations": 200, "min_informative": 4})  # fmt: skip
        wrong += bool((found.p_corr <= 0.05).any())
    assert wrong <= 6


def test_decoder_neighbours_stay_among_the_given_features():
    """Nearest by cosine whatever the length, the centre first."""
    W = np.array([[1.0, 0], [5, 0.1], [0, 1], [0.1, 3], [-1, 0]])
    found = decoder_neighbours(W, 2, among=[0, 1, 3])
    assert {k: v.tolist() for k, v in found.items()} == {"feature 0": [0, 1], "feature 1": [1, 0], "feature 3": [3, 1]}


def test_searchlight_between_items_agrees_with_the_length_of_a_set():
    """Labels are permuted over items: D_c of a set is that of `contrast_length` for weights that the set shares."""
    fake = simulate(nested(16), n_features=60, effects={"a": 8}, density=0.6, shift=4.0, seed=2)
    sets = {"planted": range(8), "others": range(30, 38), "everything": range(60)}
    found = searchlight(fake, A, sets=sets, region="everything", seed=1).set_index("set")
    assert (found.p_corr <= 0.05).to_dict() == {"planted": True, "others": False, "everything": True}
    assert found.x_p_control["planted"] <= 0.05
    assert (found.p_method == "permutations").all()
    assert (found.status == "ok").all()
    data = item_data(fake, nested(16), A, region="everything", position=0)
    how, _ = relabellings_of([data], 10_000, seed=1, split="test")[0]
    whole = contrast_length(solid(data), how, weights=data.groups, min_informative=6)
    assert found.estimate["everything"] == pytest.approx(whole.value)
    assert found.p_unc["everything"] == pytest.approx(whole.p, abs=1e-12)


def test_searchlight_between_items_controls_errors():
    """Without an effect the family-wise error over 12 sets lies in its 99 % band."""
    wrong, sets = 0, {f"s{k}": range(5 * k, 5 * k + 5) for k in range(12)}
    for seed in range(120):
        fake = simulate(nested(5), n_features=60, density=0.5, seed=seed)
        settings = {"n_controls": 19}
        found = searchlight(fake, A, sets=sets, region="everything", inference={"n_permutations": 199},
                            settings=settings, seed=seed)  # fmt: skip
        wrong += bool((found.p_corr <= 0.05).any())
    low, high = stats.binom.interval(0.99, 120, 0.05)
    assert low <= wrong <= high


def test_a_position_without_complete_items_is_a_row_with_the_reason():
    """Cells that no item has completely at one position cost that position, never the others, and never silently."""
    fake = simulate(example_design(10), n_features=30, density=0.5, seed=0)
    late = fake[(fake.obs["number"] == "sg").to_numpy()].copy()
    late.obs["position"] = 1
    late.obs_names = [f"late {name}" for name in late.obs_names]
    both = ad.concat([fake, late], merge="same", uns_merge="same")
    found = searchlight(both, NUMBER, sets={"s": range(10)}, region="noun", seed=0).set_index("position")
    assert found.loc[0, "status"] == "ok"
    assert found.loc[0, "n_family"] == 1
    assert found.loc[1, "status"] == "untestable"
    assert "pl" in found.loc[1, "note"]
    assert np.isnan(found.loc[1, "p_corr"])
    with pytest.raises(NeurosaeError, match="pl"):
        searchlight(late, NUMBER, sets={"s": range(10)}, region="noun", seed=0)


def test_searchlight_refuses():
    """Sets without usable features have a reason; unknown features, between factors and settings are refused."""
    fake = simulate(example_design(8), n_features=30, density=0.5, seed=0)
    row = searchlight(fake, NUMBER, sets={"one": [3]}, region="noun", seed=0).iloc[0]
    assert row.status == "untestable"
    assert "two features" in row.note
    with pytest.raises(DataError, match="names feature 99"):
        searchlight(fake, NUMBER, sets={"x": [1, 99]}, region="noun", seed=0)
    with pytest.raises(NeurosaeError, match="compared at once"):
        searchlight(fake, {"number": "all"}, sets={"x": [1, 2]}, region="noun", seed=0)
    with pytest.raises(DataError, match="unknown setting"):
        searchlight(fake, NUMBER, sets={"x": [1, 2]}, region="noun", settings={"k": 3}, seed=0)
    with pytest.raises(DataError, match="take fewer"):
        decoder_neighbours(np.eye(3), 4)
