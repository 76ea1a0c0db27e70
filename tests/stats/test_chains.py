"""Cluster mass along positions: scipy's labels flip by flip, with and without stopping early, on any threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import label

from neurosae.errors import DataError
from neurosae.stats.chains import _longest, chain_maxima, chains
from neurosae.stats.relabel import flip_mask, flips, signs

N, M, LENGTH = 30, 50, 9


def contrasts(seed=0):
    D = sp.random(N, M * LENGTH, 0.2, "csc", random_state=seed, data_rvs=np.random.default_rng(seed).standard_normal)
    return sp.csc_matrix(D)


def prepared(D, *, joined=None, threshold=1.5, n=N):
    scale = np.sqrt(n * np.asarray(D.power(2).sum(axis=0)).ravel())
    return chains(D, LENGTH, df=n - 1.0, threshold=threshold, scale=scale, joined=joined)


def labelled(D, how, *, joined, two_sided, threshold=1.5):
    """Largest mass per flip by dense algebra and scipy's labels of every run."""
    X = D.toarray()
    scale = np.sqrt(N * (X**2).sum(axis=0))
    r = signs(how) @ (X / np.where(scale > 0, scale, 1))
    t = (r * np.sqrt((N - 1) / (1 - r**2))).reshape(-1, M, LENGTH)
    starts = np.flatnonzero(~np.asarray(joined))
    out = np.zeros(len(t))
    for k, one in enumerate(t):
        for row in one:
            for part in np.split(row, starts[starts > 0]):
                for sign in (1, -1) if two_sided else (1,):
                    which, n = label(sign * part > threshold)
                    out[k] = max(out[k], np.bincount(which, sign * part, n + 1)[1:].max(initial=0))
    return out


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("parted", [False, True])
def test_chain_maxima_agree_with_labels(two_sided, parted):
    """Every flip's largest mass, also where a position does not follow the one before it."""
    joined = np.ones(LENGTH, dtype=bool)
    if parted:
        joined[4] = False
    D, how = contrasts(), flips(np.arange(N), 150, seed=3)
    found = chain_maxima(prepared(D, joined=joined), how, two_sided=two_sided)
    assert_allclose(found, labelled(D, how, joined=joined, two_sided=two_sided), rtol=3e-6)


def test_chain_maxima_invariant_to_pruning_threads_and_order():
    """Stopping early is exact: bit for bit the same without it, on one thread and all, in any order of features."""
    D, how = contrasts(1), flips(np.arange(N), 1500, seed=3)
    made = prepared(D)
    base = chain_maxima(made, how)
    assert_array_equal(chain_maxima(made, how, prune=False), base)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    assert_array_equal(chain_maxima(made, how), base)
    numba.set_num_threads(before)
    order = np.random.default_rng(2).permutation(M)
    moved = sp.csc_matrix(D[:, (order[:, None] * LENGTH + np.arange(LENGTH)).ravel()])
    assert_array_equal(chain_maxima(prepared(moved), how), base)
    assert_array_equal(chain_maxima(prepared(sp.csc_matrix(-D)), how), base)


def test_stopping_early_is_exact_where_it_matters():
    """Most features of few items are never visited, and the maxima are those of all of them."""
    rng = np.random.default_rng(5)
    density = np.repeat(np.exp(rng.uniform(np.log(0.05), np.log(0.2), 600)), LENGTH)
    D = sp.csc_matrix(rng.standard_normal((N, 600 * LENGTH)) * (rng.random((N, 600 * LENGTH)) < density))
    made, W, mx = prepared(D, threshold=2.0), flip_mask(flips(np.arange(N), 512, seed=3), 0), np.empty(512, np.float32)
    visited = _longest(made, W, mx, two_sided=True, prune=True)
    pruned = mx.copy()
    assert _longest(made, W, mx, two_sided=True, prune=False) == 600
    assert visited < 300
    assert_array_equal(pruned, mx)


def test_a_missing_position_ends_a_run():
    """An empty column joins nothing and is no t of its own."""
    D = np.zeros((6, LENGTH))
    D[:, :5] = np.array([1.0, 2, 3, 1, 2, 3])[:, None]
    D[:, 2] = 0.0
    made = prepared(sp.csc_matrix(D), threshold=2.0, n=6)
    assert_allclose(chain_maxima(made, flips(np.arange(6), 64, seed=0))[0], 2 * 5.477226, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "text"), [({"length": 7}, "not the same 7 positions"), ({"threshold": 0.0}, "t needs both")]
)
def test_chains_refuse(change, text):
    """Columns that are no chains, and thresholds without a cluster."""
    ask = {"length": LENGTH, "threshold": 1.5} | change
    with pytest.raises(DataError, match=text):
        chains(contrasts(), ask["length"], df=29.0, threshold=ask["threshold"], scale=np.ones(M * LENGTH))
