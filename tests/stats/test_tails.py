"""p without random numbers: published cases, enumeration, saddlepoint against exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from neurosae.stats.tails import exact_tails, flip_p, saddle_tails


def p_of(d, alternative="two-sided"):
    D = sp.csc_matrix(np.asarray(d, dtype=float)[:, None])
    D.eliminate_zeros()
    return flip_p(D, alternative=alternative)[0][0]


def enumerated(d, alternative="two-sided"):
    s = np.zeros(1)
    for x in d:
        s = np.concatenate([s + x, s - x])
    tie, x = 1e-10 * np.abs(d).sum(), np.sum(d)
    sides = {"two-sided": (np.abs(s), abs(x)), "greater": (s, x), "less": (-s, -x)}
    values, limit = sides[alternative]
    return np.mean(values >= limit - tie)


def test_flip_p_agrees_with_published_counts(oracles):
    """Darwin's maize 1726 of 32768, Student's sleep 4 of 1024."""
    known = json.loads(oracles("signflip.json").read_text())
    assert p_of(known["darwin"]["d"]) == known["darwin"]["p_flip"] == 1726 / 32768
    assert p_of(known["sleep"]["d"]) == known["sleep"]["p_flip"] == 4 / 1024


def test_flip_p_agrees_with_r(oracles):
    """Twelve sparse features, one dead and one with a single item."""
    D = sp.csc_matrix(np.loadtxt(oracles("inputs/flip_D.csv"), delimiter=","))
    known = json.loads(oracles("signflip.json").read_text())["maxt"]
    assert_allclose(flip_p(D)[0], np.array(known["p_unc"], dtype=float), rtol=0, atol=0)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_flip_p_agrees_with_enumeration(alternative, k):
    """Random and tied values, both signs of the sum."""
    rng = np.random.default_rng(k)
    for d in (rng.standard_normal(k), rng.integers(-3, 4, k) + 0.5, -np.abs(rng.standard_normal(k)), np.ones(k) * 0.1):
        assert p_of(d, alternative) == pytest.approx(enumerated(d, alternative), abs=1e-15)


def test_saddlepoint_agrees_with_exact_p():
    """17 to 22 informative items: median within 1 %, 5 to 95 % within 6 %."""
    rng = np.random.default_rng(1)
    ratios = []
    for k in np.repeat([17, 19, 22], 40):
        d = np.exp(0.6 * rng.standard_normal(k)) * np.where(rng.random(k) < 0.72, 1, -1)
        exact, smooth = np.empty(1), np.empty(1)
        exact_tails(np.array([0, k]), d, exact, largest=24, slack=-1e-10)
        saddle_tails(np.array([0, k]), d, smooth)
        if 1e-5 < 2 * exact[0] < 0.9:
            ratios.append(smooth[0] / exact[0])
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    assert abs(middle - 1) < 0.01
    assert low > 0.94
    assert high < 1.06


def test_flip_p_invariant_to_scale_and_never_zero():
    """One sign throughout gives 2^(1-k), exactly or by saddlepoint."""
    assert p_of(np.ones(20)) == p_of(np.full(20, 1e-9)) == 2.0**-19
    assert p_of(np.ones(60)) == 2.0**-59
    assert p_of(np.r_[np.ones(40), -1.0]) > 0
