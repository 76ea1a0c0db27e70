# pyright: basic
# (pandas carries partial types, which the strict mode of this package would report line by line)
"""The results schema: one long tidy table with a row per thing asked, its checks, its families, and its files."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from neurosae.errors import DataError, StoreError, unknown
from neurosae.spec.files import write_atomic

TEXT, WHOLE, REAL = "string", "Int64", "float64"
COLUMNS: dict[str, str] = {
    **dict.fromkeys(("test", "kind", "effect", "site", "region"), TEXT),
    "position": WHOLE,
    "split": TEXT,
    "feature": WHOLE,
    "set": TEXT,
    "n_features": WHOLE,
    "stat": TEXT,
    **dict.fromkeys(("value", "dof", "estimate", "se", "effsize"), REAL),
    "eftype": TEXT,
    **dict.fromkeys(("ci_low", "ci_high", "ci_level", "p_unc", "p_corr"), REAL),
    **dict.fromkeys(("p_adjust", "p_method", "family"), TEXT),
    "n_family": WHOLE,
    "unit": TEXT,
    **dict.fromkeys(("n_units", "n_informative", "n_perm"), WHOLE),
    "p_min": REAL,
    **dict.fromkeys(("alternative", "h0", "status", "note"), TEXT),
}
STATUSES = ("ok", "dead", "untestable", "degenerate", "undefined", "failed")
NUMBERS = ("value", "dof", "estimate", "se", "effsize", "ci_low", "ci_high", "p_unc", "p_corr")
KEY = ["test", "effect", "site", "region", "position", "split", "set", "feature"]
MIXED = "relabelled in different ways"
WAYS = {
    "flip": "whole items are sign-flipped",
    "permute_labels": "labels are permuted over items",
    "permute_levels": "levels are permuted within items",
}
TOLERANCE = 1e-5  # of float32 maxima: mirrored relabellings differ in their last bits


class Tested(NamedTuple):
    """What one test hands over: its table, the maxima of its family per relabelling, long tables for the report."""

    table: pd.DataFrame
    null_max: np.ndarray | None
    extras: dict[str, pd.DataFrame]
    __test__ = False  # pytest collects by name


def as_results(columns: Mapping[str, object], *, n_rows: int | None = None) -> pd.DataFrame:
    """Build a table of the results schema; columns that are not given are NA, names beyond it must begin with `x_`.

    Parameters
    ----------
    columns : mapping from column name to an array of shape (n_rows,) or a single value
    n_rows : int, optional
        Needed only where every column is a single value.

    Examples
    --------
    >>> table = as_results({"test": "number", "site": "late", "feature": [3, 8], "status": "ok", "x_auc": [0.5, 1.0]})
    >>> table[["test", "feature", "x_auc"]].values.tolist()
    [['number', 3, 0.5], ['number', 8, 1.0]]
    """
    extra = [name for name in columns if name not in COLUMNS]
    if wrong := [name for name in extra if not name.startswith("x_")]:
        raise DataError(unknown("results column", wrong[0], COLUMNS) + " A column of one kind of test begins with x_.")
    sizes = [len(v) for v in columns.values() if isinstance(v, Sized) and not isinstance(v, str)]
    index = pd.RangeIndex(sizes[0] if sizes else (1 if n_rows is None else n_rows))
    made = {name: _column(columns.get(name), dtype, index) for name, dtype in COLUMNS.items()}
    made |= {name: _column(columns[name], None, index) for name in extra}
    return pd.DataFrame(made, index=index)


def _column(values: object, dtype: str | None, index: pd.Index) -> pd.Series:
    if isinstance(values, pd.Series):
        values = values.array
    if values is None:
        values = np.nan if dtype == REAL else pd.NA
    return pd.Series(values, index=index, dtype=dtype)  # pyright: ignore


def check_results(table: pd.DataFrame, sizes: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Refuse a table that breaks the results schema; returns it unchanged.

    Checked: columns, order and types; a known status on every row, no number missing in `ok` rows; p in (0, 1];
    no thing asked twice; a family and its size beside every corrected p; kept + untestable + dead = all features.

    Parameters
    ----------
    table : DataFrame
    sizes : mapping from site to the number of features of its dictionary, optional
        Where given, the rows of a site and region without a named feature set must speak for that many features.

    Examples
    --------
    >>> row = dict(test="t", kind="contrast", site="late", feature=[0], n_features=1, status="ok", value=2.0, p_unc=0.0)
    >>> check_results(as_results(row))
    Traceback (most recent call last):
    neurosae.errors.DataError: p_unc of test 't' has a value outside (0, 1]; p counts the identity and is never 0.
    """
    _check_columns(table)
    _check_rows(table)
    _check_counts(table, sizes or {})
    return table


def _check_columns(table: pd.DataFrame) -> None:
    names = list(table.columns)
    if names[: len(COLUMNS)] != list(COLUMNS):
        first = next((a for a, b in zip(COLUMNS, [*names, *[""] * len(COLUMNS)], strict=False) if a != b), "")
        raise DataError(f"a results table lacks column '{first}' at its place; build it with as_results.")
    if wrong := [name for name in names[len(COLUMNS) :] if not name.startswith("x_")]:
        raise DataError(unknown("results column", wrong[0], COLUMNS) + " A column of one kind of test begins with x_.")
    for name, dtype in COLUMNS.items():
        if str(table[name].dtype) != dtype:
            raise DataError(f"results column '{name}' has type {table[name].dtype}, not {dtype}.")


def _check_rows(table: pd.DataFrame) -> None:
    status = table["status"].fillna("missing")
    if bad := sorted(set(status) - set(STATUSES)):
        raise DataError(unknown("status", bad[0], STATUSES))
    test = ", ".join(sorted(set(table["test"].fillna("?"))))
    for name in ("p_unc", "p_corr"):
        p = table[name].dropna()
        if not ((p > 0) & (p <= 1)).all():
            raise DataError(
                f"{name} of test '{test}' has a value outside (0, 1]; p counts the identity and is never 0."
            )
    if table.loc[status == "ok", "value"].isna().any():
        raise DataError(f"test '{test}' has a row with status ok and no value; give it a status and a reason.")
    silent = ~status.isin(["ok", "degenerate"])
    if table.loc[silent, list(NUMBERS)].notna().any(axis=None):
        raise DataError(
            f"test '{test}' has numbers in a row whose status is neither ok nor degenerate; they must be NA."
        )
    if (table["note"].isna() & (status != "ok")).any():
        raise DataError(f"test '{test}' has a row whose status is not ok and whose note gives no reason.")
    corrected = table["p_corr"].notna()
    if table.loc[corrected, ["p_adjust", "family", "n_family"]].isna().any(axis=None):
        raise DataError(f"test '{test}' has p_corr without p_adjust, family and n_family.")
    if table.duplicated(KEY).any():
        raise DataError(f"test '{test}' has two rows for the same {', '.join(KEY[1:])}.")


def _check_counts(table: pd.DataFrame, sizes: Mapping[str, int]) -> None:
    named = table[table["n_features"].notna() & table["set"].isna()]
    groups = named.groupby(["test", "effect", "site", "region", "position", "split"], dropna=False, observed=True)
    for key, total in groups["n_features"].sum().items():
        site = key[2]  # pyright: ignore
        if site in sizes and total != sizes[site]:
            raise DataError(
                f"the rows of {key} speak for {total} features, but the dictionary of site '{site}' has {sizes[site]}: "
                "kept + untestable + dead must be all."
            )


def counted_p(null_max: np.ndarray, values: np.ndarray, *, tolerance: float = TOLERANCE) -> np.ndarray:
    """Corrected p of each value: the share of maxima that reach it, p = #{max >= value} / B, identity included.

    Parameters
    ----------
    null_max : array of shape (n_permutations,)
        Maximum of the family per relabelling; entry 0 is the identity.
    values : array of shape (n,), on the same scale, larger = more extreme; NaN gives NaN
    tolerance : float
        Relative to 1 + |value|; ties that rounding broke count as ties.

    Examples
    --------
    >>> counted_p(np.array([3.0, 1.0, 2.0, 0.5]), np.array([3.0, 1.0, np.nan]))
    array([0.25, 0.75,  nan])
    """
    ordered = np.sort(np.asarray(null_max, dtype=np.float64))
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    limit = np.where(known, values - tolerance * (1 + np.abs(values)), 0.0)
    reached = len(ordered) - np.searchsorted(ordered, limit, side="left")
    return np.where(known, np.maximum(reached, 1) / len(ordered), np.nan)


def corrected_by_maximum(
    table: pd.DataFrame, null_max: np.ndarray, size: np.ndarray, *, over: str, tolerance: float
) -> pd.DataFrame:
    """A results table whose tested rows carry the p by the maximum over all of them.

    Parameters
    ----------
    table : rows of one family, with the columns of the schema
    null_max : array of shape (n_permutations,), maximum of the family per relabelling
    size : array of shape (n_rows,), what is compared with the maxima; nan in rows that were not tested
    over : what the maximum runs over, in words
    tolerance : see `counted_p`

    Examples
    --------
    >>> rows = as_results({"set": ["a", "b"], "status": ["ok", "untestable"]})
    >>> made = corrected_by_maximum(rows, np.array([3.0, 1.0]), np.array([3.0, np.nan]), over="sets", tolerance=0.0)
    >>> print(made[["set", "p_corr", "n_family", "family"]])
      set  p_corr  n_family                          family
    0   a     0.5         1  maximum over sets of this test
    1   b     NaN      <NA>                            <NA>
    """
    tested, out = np.isfinite(size), table.copy()
    out.loc[tested, "p_corr"] = counted_p(null_max, size[tested], tolerance=tolerance)
    out.loc[tested, "p_adjust"], out.loc[tested, "family"] = "maxT", f"maximum over {over} of this test"
    out.loc[tested, "n_family"] = int(tested.sum())
    return out


def directed(z: np.ndarray, alternative: str) -> np.ndarray:
    """Turn signed statistics so that larger is more extreme: |z|, z or -z for two-sided, greater or less.

    Examples
    --------
    >>> directed(np.array([-2.0, 1.0]), "two-sided"), directed(np.array([-2.0, 1.0]), "less")
    (array([2., 1.]), array([ 2., -1.]))
    """
    return {"two-sided": np.abs(z), "greater": z, "less": -z}[alternative]


def is_found(table: pd.DataFrame, alpha: float = 0.05) -> np.ndarray:
    """Whether each row is ok and its corrected p is at most alpha; a degenerate row is never found.

    Examples
    --------
    >>> is_found(as_results({"p_corr": [0.01, 0.01, np.nan], "status": ["ok", "degenerate", "ok"]})).tolist()
    [True, False, False]
    """
    return (table["p_corr"].astype(float) <= alpha).to_numpy() & table["status"].eq("ok").to_numpy(dtype=bool)


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """The strongest first: by corrected p, then |value|, then the index of the feature; further ties keep their order.

    Examples
    --------
    >>> rows = as_results({"feature": [5, 4, 3], "value": [2.0, -2.0, 9.0], "p_corr": [0.01, 0.01, 0.5]})
    >>> ranked(rows)["feature"].tolist()
    [4, 5, 3]
    """
    keys = pd.DataFrame({"p": rows["p_corr"], "size": -rows["value"].abs(), "feature": rows["feature"]})
    return rows.iloc[keys.reset_index(drop=True).sort_values(["p", "size", "feature"], kind="stable").index]


def strongest(rows: pd.DataFrame) -> pd.Series:
    """The first of `ranked`, among the ok rows where there are any."""
    ok = rows[rows["status"].eq("ok").to_numpy(dtype=bool)]
    return ranked(ok if len(ok) else rows).iloc[0]


def stack(
    done: Mapping[str, Tested], inference: object = None, *, kinds: Mapping[str, Collection[str]] | None = None
) -> pd.DataFrame:
    """Join the tests of a study into one table; tests of a declared family share one maximum per relabelling.

    Parameters
    ----------
    done : mapping from the name of a test to its `Tested`, in file order
    inference : object with attribute `families`, optional
        `families` maps a name to the tests it joins. All of them must be corrected by max-T on the same split, with
        the same number of relabellings and the same alternative: relabelling b is then the same in each of them.
    kinds : mapping from the name of a test to its kinds of relabelling (`Exchange.kind`), optional
        A family that joins several kinds says so in its sentence.

    Notes
    -----
    The joint null is the elementwise maximum of the tests' `null_max`, on the normal-equivalent scale of `x_z`. Where
    one test flips items and another permutes labels, relabelling b does both; that is exact if a flip leaves the
    statistics of the permuted test as they are, and the reverse, as in a design where every item has the same cells.
    """
    tables = {name: tested.table for name, tested in done.items()}
    families: Mapping[str, list[str]] = getattr(inference, "families", None) or {}
    for family, tests in families.items():
        for test in tests:
            if test not in done:
                raise DataError(f"family '{family}' names a test that was not run: " + unknown("test", test, done))
        mixed = _mixed({test: tuple((kinds or {}).get(test, ())) for test in tests})
        tables |= _join(family, {test: done[test] for test in tests}, remark=mixed)
    if not tables:
        return as_results({}, n_rows=0)
    return check_results(
        pd.concat([t.dropna(axis=1, how="all") for t in tables.values()], ignore_index=True).pipe(_fill)
    )


def _fill(table: pd.DataFrame) -> pd.DataFrame:
    """Columns and types of the schema after tables were joined without their empty columns."""
    extra = [name for name in table.columns if name not in COLUMNS]
    return as_results({name: table[name] for name in [*COLUMNS, *extra] if name in table}, n_rows=len(table))


def _mixed(kinds: Mapping[str, tuple[str, ...]]) -> str:
    """What the reader of a family must know if its tests are relabelled in different ways."""
    ways = {name: " and ".join(dict.fromkeys(WAYS.get(kind, kind) for kind in own)) for name, own in kinds.items()}
    if len({kind for own in kinds.values() for kind in own}) < 2:
        return ""
    said = "; ".join(f"{name}: {way}" for name, way in ways.items() if way)
    return f", {MIXED} ({said}), all in one relabelling; exact where neither way moves the statistics of the other"


def _join(family: str, tests: Mapping[str, Tested], *, remark: str = "") -> dict[str, pd.DataFrame]:
    nulls = [tested.null_max for tested in tests.values()]
    tested = pd.concat([t.table[t.table["p_corr"].notna()].dropna(axis=1, how="all") for t in tests.values()])
    if any(null is None for null in nulls) or set(tested["p_adjust"]) != {"maxT"}:
        raise DataError(f"family '{family}' joins {', '.join(tests)}: each needs correction maxT.")
    for column in ("split", "n_perm", "alternative", "unit"):
        if len(seen := sorted(set(tested[column].astype(str)))) > 1:
            raise DataError(
                f"family '{family}' joins tests that differ in {column} ({', '.join(seen)}); give each its own."
            )
    joint = np.maximum.reduce([null for null in nulls if null is not None])
    words = f"family {family}: all features, positions and sites of {', '.join(tests)}{remark}"
    return {name: _recount(t.table, joint, family=words, n_family=len(tested)) for name, t in tests.items()}


def _recount(table: pd.DataFrame, joint: np.ndarray, *, family: str, n_family: int) -> pd.DataFrame:
    from_max = (table["p_corr"].notna()).to_numpy()
    z = table.loc[from_max, "x_z"].to_numpy(dtype=float)
    p = counted_p(joint, directed(z, str(table.loc[from_max, "alternative"].iloc[0]))) if from_max.any() else z
    table = table.copy()
    table.loc[from_max, "p_corr"] = p
    table["family"], table["n_family"] = pd.array([family] * len(table), dtype=TEXT), n_family
    return table.astype({"n_family": WHOLE}).drop(columns=["x_p_low", "x_p_high"], errors="ignore")


def write_results(folder: str | Path, table: pd.DataFrame) -> Path:
    """Write `results.parquet` and `results.csv` into a folder, each complete or not at all; returns the first path.

    Examples
    --------
    >>> import tempfile
    >>> table = as_results({"test": "t", "site": "late", "status": "dead", "note": "no activity", "n_features": 7})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read_results(write_results(folder, table)).equals(table)
    True
    """
    check_results(table)
    folder = Path(folder)
    parquet = io.BytesIO()
    table.to_parquet(parquet)
    write_atomic(folder / "results.csv", table.to_csv(index=False).encode())
    write_atomic(folder / "results.parquet", parquet.getvalue())
    return folder / "results.parquet"


def read_results(path: str | Path) -> pd.DataFrame:
    """Read a results table from a parquet file, or from the folder of a study that holds `results.parquet`."""
    path = Path(path)
    path = path / "results.parquet" if path.is_dir() else path
    if not path.is_file():
        raise StoreError(f"no results at {path}: run the analysis first, or give the folder of a study.")
    return check_results(pd.read_parquet(path))
