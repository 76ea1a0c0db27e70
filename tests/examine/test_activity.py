"""Activity on running text: exact counts, quantiles to within a bin, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal

import neurosae as ns
from neurosae.errors import DataError
from neurosae.examine.activity import N_BINS, Activity, activity_table, bin_edges, bin_of, feature_summary
from neurosae.examine.stream import stream_text


def lognormal(n: int = 4000, m: int = 5, *, seed: int = 0) -> np.ndarray:
    """Codes that are zero half of the time, with features of very different sizes; the last is never active."""
    draws = np.random.default_rng(seed)
    values = np.exp(draws.normal(0, 1.2, (n, m))) * 10.0 ** np.arange(-2, m - 2) * (draws.random((n, m)) < 0.5)
    values[:, -1] = 0
    return values.astype(np.float32)


def test_activity_agrees_with_numpy():
    """Counts, mean, spread and maximum are exact; quantiles lie within a bin of the exact ones."""
    X, seen = lognormal(), Activity(5)
    for start in range(0, len(X), 700):
        seen.add(sp.csr_matrix(X[start : start + 700]))
    table = activity_table("a", seen, (0.1, 0.5, 0.99))
    for j in range(4):
        own = X[X[:, j] > 0, j].astype(float)
        row = table.loc[j]
        assert (row.n_tokens, row.n_active, row["max"]) == (4000, len(own), own.max())
        assert_allclose([row.mean_active, row.sd_active], [own.mean(), own.std(ddof=1)], rtol=1e-9)
        assert_allclose(row[["q10", "q50", "q99"]].astype(float), np.quantile(own, [0.1, 0.5, 0.99]), rtol=1 / 16)
    assert table.loc[4, ["n_active", "density"]].tolist() == [0, 0]
    assert table.loc[4, ["mean_active", "max", "q50"]].isna().all()
    assert table.density_high.tolist()[3:] == pytest.approx([np.nan, 3 / 4000], nan_ok=True)


def test_bins_hold_what_lies_between_their_edges():
    """Every value falls between the edges of its bin; outermost bins take what lies beyond."""
    values = np.exp(np.random.default_rng(1).uniform(np.log(2.0**-10), np.log(2.0**16), 5000)).astype(np.float32)
    at, edges = bin_of(values), bin_edges()
    assert ((edges[at] <= values) & (values < edges[at + 1])).all()
    assert_array_equal(bin_of(np.float32([1e-8, 1e9])), [0, N_BINS - 1])
    assert (np.diff(edges) / edges[:-1]).max() <= 1 / 16


def test_batches_do_not_matter():
    """Any cut of the text into batches gives the same counts."""
    X, one, many = lognormal(seed=2), Activity(5), Activity(5)
    one.add(sp.csr_matrix(X))
    for part in np.array_split(X, 37):
        many.add(sp.csr_matrix(part))
    assert_array_equal(one.histogram, many.histogram)
    assert_array_equal(one.quantile(0.9), many.quantile(0.9))


def test_summary_agrees_with_what_was_streamed(toy, words, made_dictionary):
    """Densities are shares of the tokens of the text, specials not counted, for every site apart."""
    dictionaries, parts = {"a": made_dictionary(0), "b": made_dictionary(1, m=48)}, {"a": [], "b": []}
    stream_text(toy, dictionaries, words, take=lambda site, codes, tokens: parts[site].append(codes))
    table = ns.feature_summary(toy, dictionaries, iter(words))
    assert table.groupby("site").size().to_dict() == {"a": 64, "b": 48}
    for site, codes in parts.items():
        X = sp.vstack(codes).toarray()
        assert_allclose(table[table.site == site].density, (X > 0).mean(axis=0))
        assert_allclose(table[table.site == site]["max"].fillna(0), X.max(axis=0))


def test_summary_of_one_dictionary_is_named_by_its_hook(toy, words, made_dictionary):
    """One dictionary needs no site name."""
    table = feature_summary(toy, made_dictionary(), words, n_tokens=50)
    assert set(table.site) == {"blocks.1.hook_resid_post"}
    assert set(table.n_tokens) == {50}


def test_activity_refuses_values_that_are_not_active():
    """Stored zeros and negative values would count as activity."""
    codes = sp.csr_matrix(np.float32([[1.0, 2.0]]))
    codes.data[0] = 0
    with pytest.raises(DataError, match="not above 0"):
        Activity(2).add(codes)
    with pytest.raises(DataError, match="outside 0 to 1"):
        Activity(2).quantile(90)


def test_quantiles_divide_a_bin_in_proportion():
    """Many values within one bin of the histogram: quantiles lie where they would if the bin were filled evenly."""
    seen, values = Activity(1), np.linspace(1, 1 + 1 / 16, 4001, endpoint=False, dtype=np.float32)
    seen.add(sp.csr_matrix(values[:, None]))
    for q in (0.25, 0.5, 0.9):
        assert seen.quantile(q)[0] == pytest.approx(1 + q / 16, abs=1e-3)
