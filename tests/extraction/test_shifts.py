"""Shifts: known ones are found, and only condition-blind ones keep the error rate of a contrast."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.extraction.shifts import estimate_shifts, warping_paths
from neurosae.stats.worlds import world

LIMIT = 3
BUMP = np.exp(-0.5 * (np.arange(16) - 8.0) ** 2)


def wrapped(traces):
    """Traces on a ring, so that every shift has all its positions."""
    return np.pad(traces, ((0, 0), (LIMIT, LIMIT)), mode="wrap")


def moved(traces, shift):
    return np.stack([np.roll(trace, -s) for trace, s in zip(traces, shift, strict=True)])


def aligned(X, reference, how):
    """Traces (2 conditions, items, positions) after one of the four ways to align them."""
    both = X.reshape(-1, X.shape[-1])
    if how == "none":
        return X
    if how == "pooled":
        return moved(both, estimate_shifts(wrapped(both), LIMIT).shift).reshape(X.shape)
    if how == "one condition":
        return np.stack([X[0], moved(X[1], estimate_shifts(wrapped(X[1]), LIMIT).shift)])
    found = estimate_shifts(wrapped(reference.reshape(both.shape)), LIMIT, template=BUMP).shift
    return moved(both, found).reshape(X.shape)


def rejects(difference, rng):
    """max-T over positions by 200 sign flips of the items."""
    n = len(difference)
    signs = np.vstack([np.ones(n), rng.choice([-1.0, 1.0], (199, n))])
    mean = signs @ difference / n
    spread = np.sqrt(np.maximum((difference**2).mean(0) - mean**2, 1e-12) / (n - 1))
    top = np.abs(mean / spread).max(1)
    return (top >= top[0] - 1e-9).mean() <= 0.05


def test_planted_shifts_are_found():
    """A bump moved by a known number of tokens, in noise; the smallest shift where nothing tells."""
    rng = np.random.default_rng(0)
    shift = rng.integers(-LIMIT, LIMIT + 1, 40)
    traces = np.stack([np.roll(BUMP, s) for s in shift]) * 3 + 0.05 * rng.standard_normal((40, 16))
    found = estimate_shifts(wrapped(traces), LIMIT, template=BUMP)
    assert_array_equal(found.shift, shift)
    assert_array_equal(estimate_shifts(np.ones((3, 9)), 2).shift, 0)
    gaps = wrapped(traces)
    gaps[:, :2] = np.nan  # tokens before the text
    assert (estimate_shifts(gaps, LIMIT, template=BUMP).shift == shift).mean() > 0.9
    high = np.zeros((1, 13))
    high[0, 6], high[0, 11:] = 1.0, 3.0  # a loud end outside the window is no reason to move
    assert estimate_shifts(high, 2, template=np.exp(-0.5 * (np.arange(9) - 4.0) ** 2) + 5).shift.tolist() == [0]
    with pytest.raises(DataError, match="too short for shifts"):
        estimate_shifts(np.ones((3, 6)), 2)


def test_order_of_stimuli_changes_nothing():
    """The template is a mean over all; permuted traces get permuted shifts, and so do units."""
    rng = np.random.default_rng(1)
    traces, order, unit = rng.random((30, 12)), rng.permutation(30), np.arange(30) // 3
    first = estimate_shifts(traces, 2).shift
    assert_array_equal(estimate_shifts(traces[order], 2).shift, first[order])
    together = estimate_shifts(traces, 2, unit=unit).shift
    assert all(len(set(together[unit == u])) == 1 for u in range(10))
    assert_array_equal(estimate_shifts(traces[order], 2, unit=unit[order]).shift, together[order])


def worlds(n, **kw):
    """Data sets of the world `alignment`: a bump in both conditions, with other shifts in every stimulus."""
    return (world("alignment", n_items=32, seed=seed, options=kw) for seed in range(n))


def test_only_condition_blind_shifts_keep_the_error_rate():
    """FWER of the contrast, no difference there: blind shifts within the 99.9 % band of .05, one-sided above .8."""
    rng, n, hits = np.random.default_rng(2), 120, dict.fromkeys(("none", "pooled", "one condition", "reference"), 0)
    for one in worlds(n, jitter=2):
        for how in hits:
            X = aligned(one.responses, one.reference, how)
            hits[how] += rejects(X[1] - X[0], rng)
    assert hits["one condition"] / n > 0.8
    assert all(hits[how] <= 15 for how in ("none", "pooled", "reference")), hits  # 1 - binom.cdf(15, 120, .05) = .0006


def test_blind_shifts_gain_power_and_make_peaks_of_noise():
    """Power for a bump 1.5 times as high: none .21, blind 1; on noise the mean has a peak of .9 instead of .14."""
    rng, n, hits, peaks = np.random.default_rng(3), 40, {}, {}
    for how in ("none", "pooled", "reference"):
        found = [aligned(w.responses, w.reference, how) for w in worlds(n, jitter=3, gain=0.5)]
        hits[how] = sum(rejects(X[1] - X[0], rng) for X in found) / n
        noise = [aligned(w.responses, w.reference, how).mean((0, 1)) for w in worlds(n, jitter=0, height=0.0)]
        peaks[how] = np.mean([m.max() - np.median(m) for m in noise])
    assert hits["pooled"] > 0.95
    assert hits["reference"] > 0.95
    assert hits["none"] < 0.5
    assert_allclose([peaks["none"], peaks["pooled"], peaks["reference"]], [0.14, 0.9, 0.14], atol=0.06)


def test_warping_agrees_with_a_search_over_all_paths():
    """The path is the cheapest of all monotone paths, with diagonal steps counted twice."""
    rng = np.random.default_rng(4)
    traces = rng.random((6, 5))
    template = traces.mean(0)
    standard = lambda v: (v - v.mean()) / v.std()  # noqa: E731

    def paths(i, j):
        if (i, j) == (4, 4):
            yield [(4, 4)]
            return
        for step in ((1, 1), (1, 0), (0, 1)):
            if i + step[0] < 5 and j + step[1] < 5:
                yield from ([(i, j), *rest] for rest in paths(i + step[0], j + step[1]))

    for trace, found in zip(traces, warping_paths(traces), strict=True):
        cost = np.subtract.outer(standard(trace), standard(template)) ** 2

        def total(path, cost=cost):
            steps = pairwise(path)
            return 2 * cost[0, 0] + sum(cost[b] * (2 if (b[0] - a[0], b[1] - a[1]) == (1, 1) else 1) for a, b in steps)

        best = min(map(total, paths(0, 0)))
        assert_allclose(total([tuple(p) for p in found]), best, rtol=1e-12)
