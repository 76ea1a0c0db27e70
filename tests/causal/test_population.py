"""Edits of single features taken together: one row per place, mode and contrast, corrected over them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from neurosae.causal.population import gather, population_rows
from neurosae.stats.multiplicity import holm

N, FEATURES = 12, range(8)
SHARED = SimpleNamespace(correction="holm", test="t", freeze="none")


def found_of(*, modes=("ablate", "steer"), contrasts=("number", "tense")):
    """Slopes of eight features under every mode and contrast; the wanted one first, two controls beside it."""
    draws, found = np.random.default_rng(0), {}
    for mode in modes:
        for j in FEATURES:
            made = SimpleNamespace(mode=mode, labels=("p50", "p90"), based=0, features=(j,))
            for what in contrasts:
                slope = 0.4 + draws.standard_normal((N, 3)) + draws.standard_normal(3)
                seen = SimpleNamespace(slope=slope, D=None, data=SimpleNamespace(unit="item"))
                gather(found, seen, made, where={"site": "late", "feature": j}, what=what)
    return found


def test_modes_and_contrasts_are_samples_of_their_own():
    """Neither shares a feature's column with another; the feature itself is no part of the place."""
    found = found_of()
    assert [(one.mode, one.what) for one in found.values()] == [
        (mode, what) for mode in ("ablate", "steer") for what in ("number", "tense")
    ]
    assert all(list(one.columns) == list(FEATURES) and one.where == {"site": "late"} for one in found.values())
    rows = population_rows(list(found.values()), SHARED)
    for one, row in zip(found.values(), rows, strict=True):
        assert row["x_estimate"] == pytest.approx(np.mean(list(one.columns.values())))
        assert (row["n_units"], row["n_features"]) == (N, len(FEATURES))


def test_rows_are_corrected_over_those_that_could_be_tested():
    """Holm over all places, modes and contrasts with a p; none where it is not asked for, nor for one feature."""
    found = list(found_of().values())
    found[0] = found[0]._replace(columns={0: found[0].columns[0]})
    rows = population_rows(found, SHARED)
    assert [row["status"] for row in rows] == ["ok"] * 3
    p = np.array([row["p_unc"] for row in rows])
    assert [row["p_corr"] for row in rows] == pytest.approx(holm(p).tolist())
    assert (np.array([row["p_corr"] for row in rows]) >= p).all()
    assert rows[0]["n_family"] == 3
    assert max(row["p_corr"] - row["p_unc"] for row in rows) > 0
    alone = population_rows(found, SimpleNamespace(correction="none", test="t", freeze="none"))
    assert all("p_corr" not in row for row in alone)
