"""The prior of the moderated t against limma."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from neurosae.stats.moderation import fit_prior, shrink


def data(oracles, name):
    return np.loadtxt(oracles(f"inputs/{name}.csv"), delimiter=",")


INPUTS = {
    "one_sample": "eb_one",
    "one_sample_trend": "eb_one",
    "seed7": "eb_seed7",
    "homogeneous": "eb_flat",
    "zero_variance": "eb_zero",
}


@pytest.mark.parametrize("key", INPUTS)
def test_moderated_t_agrees_with_limma(oracles, key):
    """One sample: prior and t, with a trend, without, with equal and with zero variances."""
    known = json.loads(oracles("limma_ebayes.json").read_text())[key]
    y, trend = data(oracles, INPUTS[key]), key.endswith("trend")
    n, variance = y.shape[1], y.var(axis=1, ddof=1)
    d0, s02 = fit_prior(variance, n - 1, data(oracles, "eb_amean") if trend else None)
    t = y.mean(axis=1) / np.sqrt(shrink(variance, n - 1, d0=d0, s02=s02) / n)
    assert d0 == pytest.approx(np.inf if known["df_prior"] is None else known["df_prior"], rel=1e-10)
    assert_allclose(s02, np.broadcast_to(known["s2_prior"], s02.shape), rtol=1e-10)
    expected = np.array(known["t"], dtype=float)
    assert_allclose(t[np.isfinite(expected)], expected[np.isfinite(expected)], atol=1e-10)


def test_invariant_prior_agrees_with_limma(oracles):
    """The form used inside flips: second moments q/n with df = n."""
    known = json.loads(oracles("limma_ebayes.json").read_text())["invariant_prior"]
    q = (data(oracles, "eb_one") ** 2).mean(axis=1)
    assert fit_prior(q, 8)[0] == pytest.approx(known["df_prior"], rel=1e-10)
    d0, s02 = fit_prior(q, 8, data(oracles, "eb_amean"))
    assert d0 == pytest.approx(known["trend_df_prior"], rel=1e-10)
    assert_allclose(s02, known["trend_s2_prior"], rtol=1e-10)


def test_prior_invariant_to_flips_and_one_feature():
    """Signs change no second moment; a single feature has nothing to borrow from."""
    D = np.random.default_rng(0).standard_normal((12, 40))
    s = np.random.default_rng(1).choice([-1.0, 1.0], (12, 1))
    assert_allclose(fit_prior((D**2).mean(axis=0), 12)[1], fit_prior(((s * D) ** 2).mean(axis=0), 12)[1])
    assert fit_prior(np.array([2.0]), 12)[0] == 0.0


def test_trend_invariant_to_repeated_activity():
    """Many features of the same activity merge knots instead of dividing by zero."""
    variance, activity = np.random.default_rng(0).chisquare(5, 60), np.r_[np.zeros(50), np.arange(10.0)]
    assert np.isfinite(fit_prior(variance, 10, activity)[1]).all()
