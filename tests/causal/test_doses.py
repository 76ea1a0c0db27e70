"""Doses in natural units."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from neurosae.causal.doses import natural_doses, outside_natural_range
from neurosae.causal.material import as_dose, reference_of
from neurosae.errors import DataError
from neurosae.examine.activity import Activity

RNG = np.random.default_rng(0)
CODES = np.where(RNG.random((4000, 4)) < [0.5, 0.02, 0.9, 0], RNG.gamma(2, 1, (4000, 4)), 0).astype(np.float32)


def test_natural_doses_agree_with_quantiles_of_the_active_values():
    """Zeros do not count: a rare feature has the doses of its active tokens."""
    table = natural_doses(sp.csr_matrix(CODES), [1, 0])
    for j in (0, 1):
        active = CODES[:, j][CODES[:, j] > 0]
        assert_allclose(table.loc[j, ["q50", "q90", "q99"]].astype(float), np.quantile(active, [0.5, 0.9, 0.99]))
        assert table.loc[j, "max"] == active.max()
    assert table.loc[1, "density"] == pytest.approx((CODES[:, 1] > 0).mean())


def test_natural_doses_agree_between_codes_and_summary():
    """The histogram of a streamed pass gives the same doses to within a bin of 6 %."""
    seen = Activity(4)
    seen.add(sp.csr_matrix(CODES))
    summary = pd.DataFrame({"site": "late", "feature": np.arange(4), "n_tokens": 4000, "n_active": seen.n_active,
                            "density": seen.n_active / 4000, "max": seen.largest}
                           | {f"q{100 * q:g}": seen.quantile(q) for q in (0.5, 0.9, 0.99)})  # fmt: skip
    exact, binned = (natural_doses(given, [0, 2]) for given in (sp.csr_matrix(CODES), summary))
    assert_allclose(binned[["q50", "q90", "q99"]], exact[["q50", "q90", "q99"]], rtol=0.07)
    with pytest.raises(DataError, match="no column q25"):
        natural_doses(summary, [0], quantiles=(0.25,))
    with pytest.raises(DataError, match="holds 2 sites"):
        natural_doses(pd.concat([summary, summary.assign(site="early")]), [0])


def test_natural_doses_refuse_a_silent_feature():
    """A feature that never fires has no natural dose; none is made up."""
    with pytest.raises(DataError, match="feature 3 is never active on 4,000 reference tokens"):
        natural_doses(sp.csr_matrix(CODES), [0, 3])


def test_outside_natural_range():
    """Ten times the maximum, and below zero, are flagged; the maximum itself is not."""
    table = natural_doses(sp.csr_matrix(CODES), [0, 2])
    top = table["max"].to_numpy()
    flags = outside_natural_range(np.stack([0 * top, top, 10 * top, [-1, 0]]), table)
    assert flags.tolist() == [[False, False], [False, False], [True, True], [True, False]]


def test_interventions_dose_as_natural_doses_says():
    """p90 of a block is the q90 of `natural_doses`, negative values and rare features are left out alike."""
    codes = CODES.copy()
    codes[:40, 0] = -3.0
    codes[:, 3] = 0
    codes[:4, 3] = 1.0  # four active tokens
    table, reference = natural_doses(sp.csr_matrix(codes), [1, 0]), reference_of(codes)
    for word, name in (("p50", "q50"), ("p90", "q90"), ("p99", "q99")):
        assert_allclose(as_dose(word, reference, [1, 0]), table[name])
    assert_allclose(reference.quantile([1, 0], 1.0), table["max"])
    assert_allclose(reference.density[[1, 0]], table["density"])
    with pytest.raises(DataError, match="feature 3 is active on 4 of 4,000"):
        natural_doses(sp.csr_matrix(codes), [3])
    with pytest.raises(DataError, match="feature 3 is active on fewer than 5"):
        as_dose("p90", reference, [3])
