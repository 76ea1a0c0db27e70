"""One family of parts: a maximum over parts that were relabelled alike, whatever their kind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError
from neurosae.stats.joined import in_deviations, joined


def rows(values, **given) -> pd.DataFrame:
    made = {"test": "t", "set": [f"s{k}" for k in range(len(values))], "value": values, "p_unc": 0.5, "status": "ok"}
    return pd.DataFrame({**made, **given})


def test_deviations_are_those_of_every_column():
    """Mean 0 and standard deviation 1 over relabellings; what never moves is 0, however large it is."""
    null = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 1e-4, 0.0] + [0.0, 5.0, 7.0]
    z = in_deviations(null)
    assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    assert_allclose(z.std(axis=0), [1, 1, 0], rtol=1e-6)
    assert_allclose(in_deviations(null[:, 0]), z[:, 0])


def test_joined_counts_the_maximum_over_all_parts():
    """p is the share of joint maxima that reach a value; two-sided rows are compared by their size."""
    tops = [np.array([2.0, 1.0, 0.5, 3.0]), np.array([1.5, 2.5, 0.1, 0.2])]
    both = rows([-1.5], alternative="two-sided", set="other")
    table, null = joined([rows([2.0, 0.4]), both, {"set": "lost", "status": "untestable"}], tops, over="parts")
    assert null is not None
    assert_allclose(null, [2.0, 2.5, 0.5, 3.0])
    assert_allclose(table["p_corr"].to_numpy(dtype=float), [0.75, 1.0, 0.75, np.nan])
    assert table["n_family"].tolist()[:3] == [3, 3, 3]
    assert pd.isna(table["n_family"].iloc[3])


def test_joined_invariant_to_the_order_of_parts():
    """The maximum does not know which part came first."""
    tops = [np.array([2.0, 1.0]), np.array([1.5, 2.5])]
    one, _ = joined([rows([2.0]), rows([1.5], set="b")], tops, over="parts")
    two, _ = joined([rows([1.5], set="b"), rows([2.0])], tops[::-1], over="parts")
    assert one.set_index("set")["p_corr"].to_dict() == two.set_index("set")["p_corr"].to_dict()


def test_joined_refuses_unequal_numbers_of_relabellings():
    """Without tested parts nothing is corrected; parts of unequal numbers have no joint maximum."""
    table, null = joined([{"set": "lost", "status": "untestable"}], [], over="parts", about={"test": "t"})
    assert null is None
    assert table["p_corr"].isna().all()
    assert table["test"].tolist() == ["t"]
    with pytest.raises(DataError, match="share no maximum"):
        joined([rows([1.0]), rows([2.0])], [np.ones(3), np.ones(4)], over="parts")
