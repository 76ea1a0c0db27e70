"""Temporal RSA: the definition written out, planted courses, error rates within and between items, refusals."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.stats.simulate import simulate
from neurosae.stats.temporal import course_statistics, temporal_rsa
from tests.stats.test_rsa import crossed, nested

FAST = {"n_permutations": 300}


def courses(design, *, n_features: int = 20, n_tokens: int = 6, planted: int = 0, seed: int = 0, silent: float = 0.0):
    """Responses at several positions; the first features rise over tokens where a is x, and fall where it is y."""
    base = simulate(design, n_features=n_features, density=0.5, seed=seed, regions=("everything",))
    rng, rising = np.random.default_rng(seed), base.obs["a"].astype(str).to_numpy() == "x"
    parts = []
    for t in range(n_tokens):
        X = rng.random((base.n_obs, n_features)) + 0.5
        slope = np.where(rising, t, n_tokens - 1 - t) / n_tokens
        X[:, :planted] += 1.5 * slope[:, None]
        part = base.copy()
        part.X = sp.csr_matrix(np.where(rng.random(X.shape) < silent, 0, X), dtype=np.float32)
        part.obs["position"] = np.int32(t - n_tokens + 1)
        part.obs_names = [f"{name}@{t}" for name in part.obs_names]
        parts.append(part)
    return anndata.concat(parts, merge="same", uns_merge="first")


def test_statistics_agree_with_their_definition():
    """A loop over pairs of texts of different items, courses that do not vary left out."""
    rng = np.random.default_rng(0)
    P = rng.random((12, 5, 3))
    P[2, :, 1] = 0.7
    codes, items = np.tile([0, 1, 2], 4), np.repeat(np.arange(6), 2)
    ours = course_statistics(P, codes, pair=(2, 0), items=items)
    for j in range(3):
        kinds = {"within": [], "across": [], 0: [], 2: []}
        for s in range(12):
            for t in range(s):
                if items[s] == items[t] or (j == 1 and 2 in (s, t)):
                    continue
                r = np.corrcoef(P[s, :, j], P[t, :, j])[0, 1]
                kinds["within" if codes[s] == codes[t] else "across"].append(r)
                if codes[s] == codes[t] and codes[s] in kinds:
                    kinds[codes[s]].append(r)
        mean = {k: np.mean(v) for k, v in kinds.items()}
        assert_allclose(ours[:, j], [mean["within"] - mean["across"], mean[2] - mean[0]], atol=1e-12)


@pytest.mark.parametrize("make", [crossed, nested])
def test_temporal_rsa_recovers_planted_courses(make):
    """Rising against falling: found for the planted features alone, factor within or between items."""
    found = temporal_rsa(courses(make(8), planted=4, seed=1), factor="a", region="everything", inference=FAST, seed=1)
    rows = found[(found.effect == "a: discriminative") & found.feature.notna()]
    assert (rows.p_corr[rows.feature < 4] <= 0.05).all()
    assert (rows.p_corr[rows.feature >= 4] > 0.05).all()
    assert (found.unit.dropna() == "item").all()
    assert set(rows.x_n_tokens) == {6}


def test_the_categorical_form_has_a_direction():
    """Alike within x, unlike within y: positive; the other way round negative."""
    data = courses(nested(10), planted=0, seed=2)
    rng, x = np.random.default_rng(0), data.obs["a"].astype(str).to_numpy() == "x"
    X = data.X.toarray()
    X[:, 0] = np.where(x, data.obs["position"] + 6 + 0.1 * rng.random(len(x)), X[:, 0])
    data.X = sp.csr_matrix(X, dtype=np.float32)
    ask = {"factor": "a", "region": "everything", "inference": FAST, "seed": 1}
    one, other = (temporal_rsa(data, levels=pair, **ask) for pair in (("x", "y"), ("y", "x")))
    for table, sign in ((one, 1), (other, -1)):
        row = table[(table.effect == "a: categorical") & (table.feature == 0)].iloc[0]
        assert row.p_corr <= 0.05
        assert np.sign(row.estimate) == np.sign(row.value) == sign


@pytest.mark.parametrize("make", [crossed, nested])
def test_temporal_rsa_controls_its_error(make):
    """No difference between categories, half of the cells silent: 20 data sets inside the 99.9 % band."""
    wrong = 0
    for seed in range(20):
        data = courses(make(6), n_features=12, n_tokens=4, seed=seed, silent=0.5)
        found = temporal_rsa(data, factor="a", region="everything", inference={"n_permutations": 100}, seed=seed)
        wrong += bool((found.p_corr <= 0.05).any())
    assert wrong <= 5


def test_temporal_rsa_refuses_and_counts():
    """Two tokens are no course; levels are checked; what is not tested is counted."""
    data = courses(crossed(8), n_features=10, seed=3)
    ask = {"factor": "a", "region": "everything", "inference": FAST, "seed": 1}
    X = data.X.toarray()
    X[:, 7] = 0
    data.X = sp.csr_matrix(X)
    found = temporal_rsa(data, **ask)
    assert found[found.status == "untestable"].n_features.tolist() == [1, 1]
    with pytest.raises(DataError, match="at least 3"):
        temporal_rsa(data[(data.obs["position"] > -2).to_numpy()].copy(), **ask)
    with pytest.raises(DataError, match="unknown level 'z'"):
        temporal_rsa(data, levels=("x", "z"), **ask)
    with pytest.raises(DataError, match="unknown factor 'c'"):
        temporal_rsa(data, **{**ask, "factor": "c"})
