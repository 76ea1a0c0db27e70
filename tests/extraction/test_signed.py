"""Two halves, one value: exact, paired, recorded, and refused where halves are missing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import neurosae as ns
from neurosae.errors import DataError
from neurosae.extraction.responses import build_responses, provenance_of
from neurosae.extraction.signed import signed
from neurosae.stages import as_values
from neurosae.stats.simulate import example_design, simulate

INFERENCE = {"n_permutations": 500}


def halves(values, like, *, partner=True):
    """Responses with both halves of some values, rows and design as in other responses."""
    both = np.concatenate([np.maximum(values, 0), np.maximum(-values, 0)], axis=1)
    n = values.shape[1]
    columns = {name: np.full(2 * n, 0.25, dtype=np.float32) for name in ("decoder_norm", "density", "origin")}
    var = pd.DataFrame({"feature": np.arange(2 * n, dtype=np.int32), "threshold": np.float32(0), **columns})
    if partner:
        var["partner"] = np.roll(np.arange(2 * n, dtype=np.int32), n)
    var.index = [f"pca/{j}" for j in range(2 * n)]
    record = json.loads(like.uns["neurosae"])
    design = example_design(24)
    return build_responses(sp.csr_matrix(both), like.obs, var, design=design, provenance=record["provenance"])


@pytest.fixture
def fake():
    """Simulated responses and signed values of the same rows: three features carry the number, with either sign."""
    fake = simulate(example_design(24), n_features=40, effects={"number": 8}, density=0.5, shift=6.0, seed=1)
    values = fake.X.toarray() - fake.X.toarray().mean(axis=0)
    values[:, ::2] *= -1
    return fake, values.astype(np.float32)


def test_signed_recovers_the_values(fake):
    """f+ - f-, one column per pair, densities added, provenance and a note for the reader."""
    like, values = fake
    one = signed({"pca": halves(values, like), "late": like})
    made = one["pca"]
    np.testing.assert_array_equal(made.X.toarray(), values)
    assert made.var["feature"].tolist() == list(range(40))
    assert (made.var["density"] == 0.5).all()
    assert made.var["threshold"].isna().all()
    assert provenance_of(made)["signed"] is True
    assert "signed values" in provenance_of(made)["warnings"][-1]
    assert one["late"] is like
    assert signed(made) is made


def test_a_study_tests_values_unless_it_asks_for_halves(fake):
    """By default f+ - f-, also at the layers of a pattern; `signed: false` of a site keeps its halves apart."""
    like, values = fake
    sites = {name: SimpleNamespace(signed=name != "apart") for name in ("pca", "apart", "every")}
    study = SimpleNamespace(spec=SimpleNamespace(sites=sites))
    given = {name: halves(values, like) for name in ("pca", "apart", "every.0")}
    made = as_values(study, given)
    assert {name: adata.n_vars for name, adata in made.items()} == {"pca": 40, "apart": 80, "every.0": 40}


def test_signed_values_are_tested_as_they_are(fake):
    """A value below 0 is a value: p is that of the value plus a constant, and effects of both signs are found."""
    like, values = fake
    lifted = signed(halves(values, like)).copy()
    lifted.X = sp.csr_matrix(values - values.min(axis=0) + 1)
    number = {"number": {"pl": 1, "sg": -1}}
    for statistic in ("mean", "t", "signed_rank"):
        ask = {"region": "noun", "seed": 1, "inference": INFERENCE | {"statistic": statistic}}
        a, b = (ns.contrast(x, number, **ask) for x in (signed(halves(values, like)), lifted))
        np.testing.assert_allclose(a["p_corr"].astype(float), b["p_corr"].astype(float))
    found = a[a["p_corr"] < 0.05]
    assert set(found["value"] > 0) == {True, False}


def test_hurdle_refuses_signed_values(fake):
    """Logarithms of negative values are not taken, nor are they counted as silent; ratios are missing elsewhere."""
    like, values = fake
    number, made = {"number": {"pl": 1, "sg": -1}}, signed(halves(values, like))
    ask = {"region": "noun", "seed": 1}
    with pytest.raises(DataError, match="negative responses leave that open"):
        ns.contrast(made, number, **ask, inference=INFERENCE | {"statistic": "hurdle"})
    table = ns.contrast(made, number, **ask, inference=INFERENCE)
    below = (values < 0).any(axis=0)[table["feature"].astype(int)]
    assert table.loc[below, "x_log_ratio"].isna().all()
    assert table.loc[below, "x_odds_ratio"].isna().all()
    active = (made.X.toarray() != 0).mean(axis=0)
    assert (table["x_density_plus"] + table["x_density_minus"] > 1.9).all() == (active > 0.95).all()


def test_signed_refuses_missing_halves(fake):
    """A site of which features were taken out has no pairs."""
    like, values = fake
    with pytest.raises(DataError, match="not paired"):
        signed(halves(values, like)[:, :50].copy())
