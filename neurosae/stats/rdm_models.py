"""Model RDMs from what is known about conditions: columns, texts, tables and matrices of a user. Condensed vectors.

Labels of conditions are levels joined by "/", as in the data RDM; where items are conditions, their names come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurosae.errors import DataError, unknown
from neurosae.stats.kernels import compiled
from neurosae.stats.rdm import SAME, Patterns
from neurosae.stats.rdm_compare import condensed_to_square


def differences(values: np.ndarray, metric: str = "absolute") -> np.ndarray:
    """Distance of every pair of values: |a - b|, its square, or whether they differ; rows of several columns: Euclid.

    Differences that are rounding, relative to the largest value, are 0.

    Examples
    --------
    >>> differences(np.array([1.0, 4.0, 4.0])), differences(np.array([1.0, 4.0, 4.0]), "equal")
    (array([3., 3., 0.]), array([1., 1., 0.]))
    """
    table = np.asarray(values, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    i, j = np.triu_indices(len(table), 1)
    apart = np.sqrt(((table[i] - table[j]) ** 2).sum(axis=1))
    largest = np.abs(table[np.isfinite(table)]).max(initial=0.0)
    apart = np.where(np.isnan(apart) | (apart > SAME * largest), apart, 0.0)
    if metric == "squared":
        return apart**2
    return np.where(np.isnan(apart), np.nan, (apart > 0).astype(float)) if metric == "equal" else apart


@compiled(error_model="numpy")
def _levenshtein(a, b):
    """Insertions, deletions and substitutions that turn one sequence into the other."""
    row = np.arange(len(b) + 1)
    for i in range(len(a)):
        left, row[0] = row[0], i + 1
        for j in range(len(b)):
            above = row[j + 1]
            row[j + 1] = min(above + 1, row[j] + 1, left + (a[i] != b[j]))
            left = above
    return row[len(b)]


def edit_distance(a: str, b: str, by: str = "characters") -> int:
    """Levenshtein distance of two texts, in characters or in words.

    Examples
    --------
    >>> edit_distance("kitten", "sitting"), edit_distance("a red boat", "a cold boat", "words")
    (3, 1)
    """
    parts = [text.split() if by == "words" else list(text) for text in (a, b)]
    number = {part: k for k, part in enumerate(dict.fromkeys([*parts[0], *parts[1]]))}
    one, two = (np.array([number[p] for p in part], dtype=np.int64) for part in parts)
    return int(_levenshtein(one, two))


def edit_rdm(texts: Sequence[Mapping[Any, str]], found: Patterns, by: str = "characters") -> np.ndarray:
    """Mean edit distance between the texts of two conditions.

    Parameters
    ----------
    texts : for every row of the patterns its texts, by what else distinguishes them (frame, levels of other factors)
    found : the patterns; texts of the same item (or, where items are conditions, of the same frame) are compared,
        or all texts of the two conditions where no item is in both
    by : "characters" or "words"
    """
    K = len(found.conditions)
    rows = [{found.item[r]: texts[r] for r in np.flatnonzero(found.condition == c)} for c in range(K)]  # pyright: ignore
    return np.array([_mean_edit(rows[k], rows[other], by) for k in range(K) for other in range(k + 1, K)])


def _mean_edit(one: Mapping[int, Mapping[Any, str]], two: Mapping[int, Mapping[Any, str]], by: str) -> float:
    shared = [item for item in one if item in two]
    pairs = [(item, item) for item in shared] or [(a, b) for a in one for b in two]
    said = [(one[a][key], two[b][key]) for a, b in pairs for key in one[a] if key in two[b]]
    said = said or [(x, y) for a, b in pairs for x in one[a].values() for y in two[b].values()]
    return float(np.mean([edit_distance(x, y, by) for x, y in said]))


def matrix_rdm(path: str | Path, labels: Sequence[str], *, similarity: bool = False) -> np.ndarray:
    """A user's matrix from a csv file: square with labels, or long with the columns first, second, value.

    In a long file pairs may come in any order and more than once (several raters); their mean is taken.

    Parameters
    ----------
    path : csv
    labels : of the conditions, all of which must be there; others in the file are left out
    similarity : larger values mean more alike; then the distance is the largest value minus the value

    Raises
    ------
    DataError
        No such file, unknown labels, values that are missing, not symmetric, or not 0 on the diagonal.
    """
    table = _read(path)
    if {"first", "second", "value"} <= set(table.columns):
        square = _from_pairs(table, path)
    else:
        square = table.set_index(table.columns[0])
        square.index, square.columns = square.index.astype(str), square.columns.astype(str)
    for name in labels:
        for axis, known in (("row", square.index), ("column", square.columns)):
            if name not in known:
                raise DataError(f"{path}: no {axis} for condition '{name}'; " + unknown("label", name, known))
    if square.index.has_duplicates or square.columns.has_duplicates:
        raise DataError(f"{path}: a label occurs twice; name each condition once.")
    try:
        M = square.loc[list(labels), list(labels)].to_numpy(dtype=float)
    except ValueError as error:
        raise DataError(f"{path}: holds something that is no number ({error}).") from None
    _check_square(M, path, labels, similarity=similarity)
    vector = M[np.triu_indices(len(M), 1)]
    return float(np.nanmax(M)) - vector if similarity else vector


def _from_pairs(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    pairs = table.assign(value=pd.to_numeric(table["value"], errors="coerce"))
    if pairs["value"].isna().any():
        raise DataError(f"{path}: a value is missing or no number; every pair needs one.")
    names = pairs[["first", "second"]].astype(str)
    ordered = pd.DataFrame(np.sort(names.to_numpy(), axis=1), columns=["first", "second"]).assign(value=pairs["value"])
    mean = ordered.groupby(["first", "second"])["value"].mean()
    labels = list(dict.fromkeys([*names["first"], *names["second"]]))
    square = pd.DataFrame(np.nan, index=labels, columns=labels)
    for (a, b), value in mean.items():  # pyright: ignore[reportGeneralTypeIssues]
        square.loc[a, b] = square.loc[b, a] = value
    for name in labels:
        if np.isnan(square.loc[name, name]):  # pyright: ignore
            square.loc[name, name] = 0.0 if pairs["value"].min() >= 0 else np.nan
    return square


def _check_square(M: np.ndarray, path: str | Path, labels: Sequence[str], *, similarity: bool) -> None:
    off = ~np.eye(len(M), dtype=bool)
    if not np.isfinite(M[off]).all():
        i, j = np.argwhere(~np.isfinite(M) & off)[0]
        raise DataError(f"{path}: no value for '{labels[i]}' and '{labels[j]}'; every pair of conditions needs one.")
    size = np.abs(M[off]).max(initial=0.0)
    if (np.abs(M - M.T)[off] > 1e-6 * size).any():
        i, j = np.argwhere((np.abs(M - M.T) > 1e-6 * size) & off)[0]
        raise DataError(
            f"{path}: not symmetric, '{labels[i]}' and '{labels[j]}' have {M[i, j]:g} and {M[j, i]:g}; average them."
        )
    diagonal = np.diag(M)
    if not similarity and (np.abs(diagonal[np.isfinite(diagonal)]) > 1e-6 * size).any():
        raise DataError(
            f"{path}: the diagonal is not 0, so these are no dissimilarities; set similarity: true, or subtract."
        )


def given_rdm(name: str, model: Any, labels: Sequence[str]) -> np.ndarray:
    """The condensed RDM of an rsatoolbox object, its conditions put into the order of `labels`.

    Parameters
    ----------
    name : what a refusal calls it
    model : ModelFixed, or RDMs that hold one RDM. With `pattern_descriptors["condition"]` labels are matched, and there
        may be more of them; without, the conditions stand in the order of `labels`

    Raises
    ------
    DataError
        Something else was given, several RDMs, a label is missing, or the numbers of conditions differ.

    Examples
    --------
    >>> from rsatoolbox.rdm import RDMs
    >>> people = RDMs(np.array([[1.0, 2.0, 3.0]]), pattern_descriptors={"condition": ["c", "a", "b"]})
    >>> given_rdm("people", people, ["a", "b", "c"])
    array([3., 1., 2.])
    """
    found = getattr(model, "rdm_obj", model)
    if not hasattr(found, "dissimilarities"):
        raise DataError(f"model '{name}' is {type(model).__name__}; give a mapping, rsatoolbox RDMs or a ModelFixed.")
    rows = np.asarray(found.dissimilarities, dtype=float)
    if len(rows) != 1:
        raise DataError(f"model '{name}' holds {len(rows)} RDMs; give one, such as their mean.")
    square = condensed_to_square(rows[0])
    known = [str(one) for one in found.pattern_descriptors.get("condition", [])] or list(labels)
    if len(known) != len(square):
        raise DataError(
            f"model '{name}' has {len(square)} conditions, but the data has {len(labels)}: {', '.join(labels[:6])}; "
            "name them, pattern_descriptors={'condition': [...]}."
        )
    for label in labels:
        if label not in known:
            raise DataError(f"model '{name}' has no condition '{label}'; " + unknown("label", label, known))
    at = [known.index(label) for label in labels]
    return square[np.ix_(at, at)][np.triu_indices(len(at), 1)]


def norms_rdm(
    path: str | Path, keys: pd.DataFrame, *, columns: Sequence[str] | None = None, metric: str = "absolute"
) -> np.ndarray:
    """Distances between the ratings of conditions, from a csv file with a row per condition (or per rater).

    Parameters
    ----------
    path : csv with the columns that name a condition (`condition`, or item and factors) and numeric columns
    keys : a row per condition, with `condition` and a column per factor, and `item` where items are conditions
    columns : the ratings to use; left out, all numeric columns. Several are standardised and span one distance
    metric : "absolute", "squared" or "equal"

    Raises
    ------
    DataError
        No such file or column, or a condition without ratings.
    """
    table = _read(path)
    naming = ["condition"] if "condition" in table else [name for name in keys.columns if name in table]
    if not naming:
        raise DataError(f"{path}: no column names a condition; add condition, or {', '.join(keys.columns[1:])}.")
    numeric = [c for c in table.select_dtypes("number").columns if c not in naming]
    for name in columns or ():
        if name not in numeric:
            raise DataError(f"{path}: " + unknown("column with numbers", name, numeric))
    chosen = list(columns or numeric)
    if not chosen:
        raise DataError(f"{path}: no column holds numbers; add the ratings.")
    for name in naming:
        table[name] = table[name].astype(str)
    means = table.groupby(naming)[chosen].mean()
    wanted = keys[naming].astype(str)
    rows = means.reindex(pd.MultiIndex.from_frame(wanted) if len(naming) > 1 else pd.Index(wanted[naming[0]]))
    lacking = rows.isna().any(axis=1).to_numpy()
    if lacking.any():
        first = keys.loc[lacking, "condition"].iloc[0]
        raise DataError(
            f"{path}: no ratings for {int(lacking.sum())} conditions, '{first}' first; every one needs them."
        )
    values = rows.to_numpy(dtype=float)
    if len(chosen) > 1:
        spread = values.std(axis=0)
        values = values[:, spread > 0] / spread[spread > 0]
    return differences(values, metric)


def _read(path: str | Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as csv ({error}).") from None
