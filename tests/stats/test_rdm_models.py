"""Model RDMs from texts, matrices and norms: by hand, against scipy, and with what users get wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from neurosae.errors import DataError
from neurosae.stats.rdm_models import differences, edit_distance, edit_rdm, matrix_rdm, norms_rdm
from tests.stats.test_rdm import found

LABELS = ["sg/pl", "pl/pl", "pl/sg"]


def test_differences_are_what_they_say():
    """Absolute, squared and equal; several columns span a Euclidean distance; rounding is no difference."""
    values = np.array([1.0, 3.0, 3.0 + 1e-9])
    assert_array_equal(differences(values), [2, 2 + 1e-9, 0])
    assert_allclose(differences(values, "squared"), [4, 4, 0])
    assert_array_equal(differences(values, "equal"), [1, 1, 0])
    assert_array_equal(differences(np.array([[0.0, 0], [3, 4], [0, 0]])), [5, 0, 5])
    assert np.isnan(differences(np.array([1.0, np.nan]), "equal")).all()


def test_edit_distance_agrees_with_the_recursion():
    """Against the textbook's recursion on random strings."""

    def plain(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(plain(a[1:], b) + 1, plain(a, b[1:]) + 1, plain(a[1:], b[1:]) + (a[0] != b[0]))

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 6))) for _ in range(2))
        assert edit_distance(a, b) == plain(a, b)


def test_edit_rdm_compares_texts_of_the_same_item():
    """Crossed items: within the item and frame; nested items: all pairs of the two conditions."""
    crossed = found(np.ones((2, 3, 1)))
    texts = [{"f": w} for w in ("cat", "cats", "bat", "dog", "dogs", "dig")]
    assert_allclose(edit_rdm(texts, crossed), [1, 1, 2])
    nested = found(np.ones((4, 1)), np.arange(4), np.array([0, 0, 1, 1]))
    assert_allclose(edit_rdm([{"-": w} for w in ("a", "ab", "abc", "abcd")], nested), [(2 + 3 + 1 + 2) / 4])
    assert_allclose(edit_rdm([{"-": w} for w in ("a b", "a b", "a c", "d c")], nested, "words"), [1.5])


def write(path, table: pd.DataFrame, **options):
    table.to_csv(path, **options)
    return path


def test_matrix_rdm_reads_squares_and_pairs(tmp_path):
    """In the order of the conditions, further labels left out; raters are averaged; similarities are turned round."""
    square = pd.DataFrame([[0, 1, 2, 9], [1, 0, 3, 9], [2, 3, 0, 9], [9, 9, 9, 0.0]], index=[*LABELS, "x"])
    square.columns = square.index
    path = write(tmp_path / "m.csv", square.iloc[::-1, ::-1])
    assert_array_equal(matrix_rdm(path, LABELS), [1, 2, 3])
    pairs = pd.DataFrame({"first": ["sg/pl", "pl/pl", "pl/sg", "pl/sg"], "second": ["pl/pl", "sg/pl", "sg/pl", "pl/pl"],
                          "value": [1.0, 3.0, 5.0, 6.0]})  # fmt: skip
    assert_array_equal(matrix_rdm(write(tmp_path / "p.csv", pairs, index=False), LABELS), [2, 5, 6])
    alike = 1 - square / 10
    assert_allclose(matrix_rdm(write(tmp_path / "s.csv", alike), LABELS, similarity=True), [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(index="pl/sg"), "no row for condition 'pl/sg'"),
        (lambda s: s.drop(columns="pl/sg"), "no column for condition 'pl/sg'"),
        (lambda s: s.replace(3.0, 4.0).where(lambda t: t != 4.0, np.triu(np.full((3, 3), 5.0))), "not symmetric"),
        (lambda s: s + 1, "diagonal is not 0"),
        (lambda s: s.replace(3.0, np.nan), "no value for 'pl/pl' and 'pl/sg'"),
        (lambda s: s.astype(str).replace("3.0", "far"), "no number"),
    ],
)
def test_matrix_rdm_refuses(tmp_path, change, message):
    """Labels, symmetry, diagonal, gaps and words, each by name."""
    square = pd.DataFrame([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]], index=LABELS, columns=LABELS)
    with pytest.raises(DataError, match=message):
        matrix_rdm(write(tmp_path / "m.csv", change(square)), LABELS)
    with pytest.raises(DataError, match="no such file"):
        matrix_rdm(tmp_path / "other.csv", LABELS)


def test_norms_rdm_averages_raters_and_names_what_is_missing(tmp_path):
    """By condition or by factors; one column as it is, several standardised; a condition without ratings is refused."""
    keys = pd.DataFrame({"condition": LABELS, "subject": ["sg", "pl", "pl"], "attractor": ["pl", "pl", "sg"]})
    by = keys.loc[[0, 1, 2, 2], ["subject", "attractor"]].assign(valence=[1.0, 2.0, 4.0, 6.0], word="w")
    path = write(tmp_path / "n.csv", by, index=False)
    assert_array_equal(norms_rdm(path, keys), [1, 4, 3])
    assert_array_equal(norms_rdm(path, keys, metric="squared"), [1, 16, 9])
    two = keys[["condition"]].assign(a=[0.0, 1.0, 2.0], b=[0.0, 100.0, 200.0])
    other = write(tmp_path / "two.csv", two, index=False)
    assert_allclose(norms_rdm(other, keys) / np.sqrt(3), [1, 2, 1])
    assert_array_equal(norms_rdm(other, keys, columns=["b"]), [100, 200, 100])
    with pytest.raises(DataError, match=r"unknown column .*'c'"):
        norms_rdm(other, keys, columns=["c"])
    with pytest.raises(DataError, match="no ratings for 1 conditions, 'pl/sg' first"):
        norms_rdm(write(tmp_path / "few.csv", two.iloc[:2], index=False), keys)
    with pytest.raises(DataError, match="no column names a condition"):
        norms_rdm(write(tmp_path / "none.csv", two[["a"]], index=False), keys)
