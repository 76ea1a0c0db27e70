"""TFCE and cluster mass on graphs: against the integral itself, scipy, MNE; ties, missing nodes, lonely nodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import label
from scipy.sparse.csgraph import connected_components

from neurosae.errors import DataError
from neurosae.stats.tfce import cluster_maxima, clusters, cosine_graph, graph_of, grid, tfce, tfce_maxima


def integral(x, graph, *, E=0.5, H=2.0):
    """The definition: at every distinct height, the components of what is at least as high, with scipy."""
    G = sp.csr_matrix((np.ones(len(graph.indices)), graph.indices, graph.indptr), shape=(graph.n, graph.n))
    out = np.zeros(x.size)
    for sign in (1, -1):
        low = 0.0
        for high in np.unique(sign * x[sign * x > 0]):
            on = np.flatnonzero(sign * x >= high)
            which = connected_components(G[on][:, on], directed=False)[1]
            out[on] += np.bincount(which)[which] ** E * (high ** (H + 1) - low ** (H + 1)) / (H + 1)
            low = high
    return np.copysign(out, x)


def random_graph(n=150, *, seed=1):
    rng = np.random.default_rng(seed)
    return graph_of(n, rng.integers(0, n - 5, (220, 2)))  # the last five nodes have no neighbour


def some_map(n, *, seed=0, decimals=9):
    return np.round(np.random.default_rng(seed).standard_normal(n) + 0.5, decimals)


@pytest.mark.parametrize(
    "graph", [grid(16, 12), grid(40), grid(4, 5, 6), random_graph()], ids=["2d", "1d", "3d", "any"]
)
@pytest.mark.parametrize("exponents", [(0.5, 2.0), (1.0, 2.0), (1.0, 1.5), (0.0, 1.0)])
@pytest.mark.parametrize("decimals", [9, 1])
def test_tfce_agrees_with_the_integral(graph, exponents, decimals):
    """On lattices of one to three dimensions and on a random graph, also with many tied heights."""
    (E, H), x = exponents, some_map(graph.n, decimals=decimals)
    want = integral(x, graph, E=E, H=H)
    assert_allclose(tfce(x, graph, E=E, H=H), want, rtol=1e-9, atol=1e-13 * np.abs(want).max())


def test_tfce_of_a_lonely_node_is_its_own_integral():
    """A node without neighbours collects |x|^3 / 3, with its sign."""
    graph = random_graph()
    x = some_map(graph.n)
    assert_allclose(tfce(x, graph)[-5:], x[-5:] ** 3 / 3, rtol=1e-14)


def test_tfce_agrees_with_the_integral_for_nearly_tied_heights():
    """Heights that differ in their last bits only are visited in the right order, on few nodes and on very many."""
    x = 2.0 + np.random.default_rng(6).integers(0, 9, 48) * 2.0**-51
    assert_allclose(tfce(x, grid(6, 8)), integral(x, grid(6, 8)), rtol=1e-14)
    many = np.random.default_rng(7).standard_normal(70_000)
    assert_allclose(tfce(many, grid(70_000))[:9000], tfce(many[:9020], grid(9020))[:9000], rtol=1e-12)


@pytest.mark.parametrize("outlier", [1e9, 1.0])
def test_maxima_agree_with_the_integral_whatever_the_heights(outlier):
    """Heights that crowd below an outlier, or are all alike, are sorted as well as spread ones."""
    graph = random_graph()
    x = some_map(150, seed=4) if outlier > 1 else np.sign(some_map(150, seed=4))
    x[17] = outlier
    known = integral(x, graph)
    assert_allclose(tfce(x, graph), known, rtol=1e-10, atol=1e-12)
    assert_allclose(tfce_maxima(x, graph), np.abs(known).max(), rtol=1e-10)
    x[17] = 0.0
    known = integral(x, graph)
    assert tfce_maxima(x, graph)[0] == np.abs(tfce(x, graph)).max()
    assert_allclose(tfce_maxima(-x, graph, two_sided=False), -known.min(), rtol=1e-10)


def test_maxima_agree_with_the_maps():
    """The maxima of many maps are those of the scores; one-sided, of their positive part."""
    graph, x = grid(6, 8), np.random.default_rng(2).standard_normal((40, 48))
    scores = tfce(x, graph)
    assert_allclose(tfce_maxima(x, graph), np.abs(scores).max(axis=1), rtol=1e-14)
    assert_allclose(tfce_maxima(x, graph, two_sided=False), scores.max(axis=1), rtol=1e-14)
    masses = [clusters(one, graph, 1.0).mass for one in x]
    assert_allclose(cluster_maxima(x, graph, 1.0), [np.abs(m).max() for m in masses], rtol=1e-14)
    want = [m[m > 0].max(initial=0) for m in masses]
    assert_allclose(cluster_maxima(x, graph, 1.0, two_sided=False), want, rtol=1e-14)


def test_clusters_agree_with_labels_of_scipy():
    """The same components and sums as labelling each sign of a lattice."""
    x = some_map(16 * 12)
    found = clusters(x, grid(16, 12), 0.8)
    want = []
    for sign in (1, -1):
        labels, n = label(sign * x.reshape(16, 12) > 0.8)
        want += [x[labels.ravel() == k].sum() for k in range(1, n + 1)]
    assert_allclose(np.sort(found.mass), np.sort(want), rtol=1e-12)
    assert_array_equal(np.abs(found.mass), np.sort(np.abs(found.mass))[::-1])
    for k, mass in enumerate(found.mass, start=1):
        assert_allclose(x[found.label == k].sum(), mass)


def test_tfce_and_clusters_agree_with_mne(oracles):
    """8 x 6 lattice: the four cluster masses, and TFCE with step .002 within its own error."""
    want = json.loads(oracles("mne_nilearn.json").read_text())["maps"]
    t, graph = np.array(want["t"]), grid(8, 6)
    found = clusters(t, graph, 2.2)
    theirs = sorted((c["sum_abs_t"] * c["sign"], c["size"]) for c in want["clusters"])
    ours = sorted((m, int((found.label == k).sum())) for k, m in enumerate(found.mass, start=1))
    assert_allclose([m for m, _ in ours], [m for m, _ in theirs], atol=1e-6)
    assert [n for _, n in ours] == [n for _, n in theirs]
    scores = np.abs(tfce(t, graph))
    assert_allclose(scores, want["tfce_E0p5_H2_step0p002"], atol=0.002 * scores.max())


def test_missing_nodes_join_nothing():
    """nan between two nodes parts them, stays nan, and changes nobody else."""
    x = np.array([3.0, np.nan, 2.0, 1.0])
    assert_array_equal(np.isnan(tfce(x, grid(4))), [False, True, False, False])
    assert_allclose(tfce(x, grid(4))[[0, 2, 3]], tfce(np.array([3.0, 2.0, 1.0]), graph_of(3, [(1, 2)])))
    assert clusters(x, grid(4), 1.5).mass.tolist() == [3.0, 2.0]
    assert np.isnan(tfce(np.full(4, np.nan), grid(4))).all()
    assert tfce_maxima(np.full((1, 4), np.nan), grid(4)).tolist() == [0.0]


def test_opposite_signs_never_join():
    """Neighbours of opposite sign are two clusters, and enhance each other by nothing."""
    x = np.array([3.0, -3.0, -2.5])
    found = clusters(x, grid(3), 2.0)
    assert found.mass.tolist() == [-5.5, 3.0]
    assert found.label.tolist() == [2, 1, 1]
    assert_allclose(tfce(x, grid(3))[0], 9.0)
    assert_allclose(tfce(-x, grid(3)), -tfce(x, grid(3)))


def test_tfce_invariant_to_the_order_of_nodes():
    """Renumbering the nodes renumbers the scores."""
    graph, x = random_graph(), some_map(150)
    order = np.random.default_rng(3).permutation(150)
    place = np.argsort(order)
    edges = [(place[a], place[b]) for a in range(150) for b in graph.indices[graph.indptr[a] : graph.indptr[a + 1]]]
    assert_allclose(tfce(x[order], graph_of(150, edges)), tfce(x, graph)[order], rtol=1e-12)


def test_cosine_graph_agrees_with_sorted_cosines():
    """Symmetric union of everybody's k nearest, whatever the lengths of the vectors."""
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((60, 8))
    graph = cosine_graph(vectors * rng.uniform(0.1, 9, 60)[:, None], 5)
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    near = np.zeros((60, 60), dtype=bool)
    np.put_along_axis(near, np.argsort(-cosine, axis=1)[:, :5], True, axis=1)
    made = np.zeros((60, 60), dtype=bool)
    made[np.repeat(np.arange(60), np.diff(graph.indptr)), graph.indices] = True
    assert_array_equal(made, near | near.T)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: tfce(np.zeros(5), grid(4)), r"shape \(5,\), but the graph has 4 nodes"),
        (lambda: tfce(np.array([np.inf, 0, 0, 0]), grid(4)), "infinite"),
        (lambda: clusters(np.zeros(4), grid(4), 0.0), "positive, finite"),
        (lambda: graph_of(3, [(0, 3)]), "names node 3 of a graph with nodes 0 to 2"),
        (lambda: cosine_graph(np.eye(3), 3), "3 nodes have 1 to 2 neighbours"),
        (lambda: cosine_graph(np.array([[np.nan, 1], [1, 1]]), 1), "finite"),
    ],
)
def test_graphs_refuse(call, text):
    """The message names what is wrong and what would do."""
    with pytest.raises(DataError, match=text):
        call()
