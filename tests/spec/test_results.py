"""The results schema: what is refused, what is joined, what survives the disk."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError, StoreError
from neurosae.spec.results import (
    COLUMNS,
    MIXED,
    Tested,
    as_results,
    check_results,
    counted_p,
    read_results,
    stack,
    write_results,
)


def table_of(test, z, *, null=None, **more):
    rows = {"test": test, "kind": "contrast", "effect": "e", "site": "s", "region": "r", "position": 0, "split": "test"}
    rows |= {"feature": np.arange(len(z)), "n_features": 1, "stat": "t", "value": z, "x_z": z, "status": "ok"}
    rows |= {
        "p_adjust": "maxT",
        "family": test,
        "n_family": len(z),
        "alternative": "two-sided",
        "unit": "item",
        "n_perm": 4,
    }
    p = counted_p(null, np.abs(z)) if null is not None else np.full(len(z), 0.5)
    return as_results(rows | {"p_unc": 0.5, "p_corr": p} | more)


def outcome_of(test, z, null):
    return Tested(table_of(test, np.array(z), null=np.array(null)), np.array(null, dtype=np.float32), {})


def test_as_results_has_the_columns_and_types_of_the_schema():
    """Everything that is not given is NA, of the right type."""
    table = as_results({"feature": [3, None], "x_auc": [0.1, 0.2]})
    assert list(table.columns) == [*COLUMNS, "x_auc"]
    assert {name: str(dtype) for name, dtype in table[list(COLUMNS)].dtypes.items()} == COLUMNS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_unc": 0.0}, "never 0"),
        ({"p_corr": 1.5}, "outside"),
        ({"value": np.nan}, "no value"),
        ({"status": "fine"}, "unknown status 'fine'"),
        ({"status": "untestable", "note": "few"}, "must be NA"),
        ({"status": "degenerate"}, "gives no reason"),
        ({"n_family": pd.NA}, "without p_adjust, family"),
        ({"feature": 1}, "two rows for the same"),
    ],
)
def test_check_results_refuses(change, message):
    """Each rule of the schema, broken alone."""
    with pytest.raises(DataError, match=message):
        check_results(table_of("t", np.array([1.0, 2.0])).assign(**change).astype(COLUMNS))


def test_check_results_refuses_lost_features():
    """Kept + untestable + dead must be the dictionary."""
    with pytest.raises(DataError, match=r"speak for 2 features, .* has 3"):
        check_results(table_of("t", np.array([1.0, 2.0])), {"s": 3})


def test_stack_joins_families_by_the_maximum():
    """p of both tests against the elementwise maximum of their nulls; n_family is their sum."""
    done = {"a": outcome_of("a", [3.0, 1.0], [3.0, 1, 2, 1.5]), "b": outcome_of("b", [2.5], [2.5, 0.5, 4, 1])}
    apart, joined = stack(done), stack(done, SimpleNamespace(families={"both": ["a", "b"]}))
    assert_allclose(apart["p_corr"], [0.25, 1.0, 0.5])
    assert_allclose(joined["p_corr"], [0.5, 1.0, 0.5])
    assert joined["n_family"].tolist() == [3, 3, 3]
    assert joined["family"].str.startswith("family both").all()


def test_stack_says_that_a_family_mixes_kinds_of_relabelling():
    """Flips and permuted labels in one family: the sentence names both; one kind needs no remark."""
    done = {"a": outcome_of("a", [3.0, 1.0], [3.0, 1, 2, 1.5]), "b": outcome_of("b", [2.5], [2.5, 0.5, 4, 1])}
    families = SimpleNamespace(families={"both": ["a", "b"]})
    same = stack(done, families, kinds={"a": {"flip"}, "b": {"flip"}})
    mixed = stack(done, families, kinds={"a": {"flip"}, "b": {"permute_labels"}})
    assert not same["family"].str.contains(MIXED).any()
    assert mixed["family"].str.contains("a: whole items are sign-flipped; b: labels are permuted over items").all()
    assert_allclose(mixed["p_corr"], same["p_corr"])


def test_stack_refuses_what_cannot_be_joined():
    """Other corrections, other splits, tests that were not run."""
    a, b = outcome_of("a", [3.0], [3.0, 1, 2, 1]), outcome_of("b", [2.0], [2.0, 1, 1, 1])
    families = SimpleNamespace(families={"both": ["a", "b"]})
    with pytest.raises(DataError, match="was not run"):
        stack({"a": a}, families)
    with pytest.raises(DataError, match="needs correction maxT"):
        stack({"a": a, "b": b._replace(null_max=None)}, families)
    other = b._replace(table=b.table.assign(split=pd.array(["localizer"], dtype="string")))
    with pytest.raises(DataError, match="differ in split"):
        stack({"a": a, "b": other}, families)


def test_counted_p_counts_ties_and_the_identity():
    """A maximum that differs by rounding counts; p is never 0."""
    assert_allclose(counted_p(np.array([2.0, 1.0]), np.array([2.0 + 1e-7, 5.0])), [0.5, 0.5])


def test_results_survive_the_disk(tmp_path):
    """Parquet gives back the same table; a folder without results is refused."""
    table = stack({"a": outcome_of("a", [3.0, 1.0], [3.0, 1, 2, 1.5])})
    write_results(tmp_path, table)
    pd.testing.assert_frame_equal(read_results(tmp_path), table)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2
    with pytest.raises(StoreError, match="run the analysis first"):
        read_results(tmp_path / "nowhere")
