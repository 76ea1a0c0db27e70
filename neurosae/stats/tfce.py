"""Threshold-free cluster enhancement, exact, and cluster mass, on any neighbourhood graph.

TFCE needs no steps: between two heights at which a component of {x >= h} changes, its size is constant, so the integral
of size^E h^H over that stretch is size^E (h1^(H+1) - h2^(H+1)) / (H+1). Nodes are visited by falling height and joined
by union-find. A root keeps its size, the height of its last change and what it has collected; a joined root keeps what
it had collected beyond its new root, so a node's score is the sum on its path. O(n log n), both signs in one sweep:
components of opposite sign never touch. Missing nodes (nan) belong to no component and join none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError
from neurosae.stats.kernels import compiled

E, H = 0.5, 2.0  # Smith and Nichols' exponents of size and height
CROWD = 24  # heights in one bucket from which sorting by comparison is faster


class Graph(NamedTuple):
    """Which nodes are neighbours: CSR without weights, symmetric, no node its own neighbour."""

    indptr: np.ndarray
    indices: np.ndarray

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.indptr) - 1


class Clusters(NamedTuple):
    """Components above a threshold.

    Attributes
    ----------
    label : int array of shape (n,), number of each node's cluster, 0 outside; 1 is the cluster of largest mass
    mass : array of shape (n_clusters,), sum of the values inside: negative for a cluster of negative values
    """

    label: np.ndarray
    mass: np.ndarray


def graph_of(n: int, edges: Sequence[tuple[int, int]] | np.ndarray) -> Graph:
    """Graph of n nodes from pairs of neighbours, in any order and direction, repeated or not.

    Examples
    --------
    >>> graph_of(4, [(0, 1), (1, 0), (2, 1)])
    Graph(indptr=array([0, 1, 3, 4, 4]), indices=array([1, 0, 2, 1]))
    """
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    if pairs.size and not (pairs.min() >= 0 and pairs.max() < n):
        raise DataError(f"an edge names node {int(pairs.max())} of a graph with nodes 0 to {n - 1}.")
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(both[:, 0], minlength=n))]).astype(np.int64)
    return Graph(indptr, both[:, 1].copy())


def grid(*shape: int) -> Graph:
    """Lattice of any dimension; a node's neighbours differ from it by one step along one axis. Nodes in C order.

    Examples
    --------
    >>> grid(2, 2).indices.reshape(4, 2).tolist()
    [[1, 2], [0, 3], [0, 3], [1, 2]]
    """
    number = np.arange(math.prod(shape)).reshape(shape)
    edges = [
        np.stack([np.delete(number, -1, axis).ravel(), np.delete(number, 0, axis).ravel()], axis=1)
        for axis in range(len(shape))
    ]
    return graph_of(number.size, np.concatenate(edges) if edges else np.empty((0, 2)))


def cosine_graph(vectors: np.ndarray, k: int) -> Graph:
    """Graph of the k nearest neighbours by cosine, of the decoder directions of a dictionary, say.

    Two nodes are neighbours if one is among the k nearest of the other. Only directions decide, no response does, so a
    test on this graph needs no correction for having chosen it. Ties go to the lower number; a zero vector has none.

    Parameters
    ----------
    vectors : array of shape (n, d), one row per node
    k : number of neighbours, below n

    Examples
    --------
    >>> cosine_graph(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.0, 0.0]]), k=1).indices.tolist()
    [1, 0, 2, 1]
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    n = len(vectors)
    if not 1 <= k < n:
        raise DataError(f"k is {k}, but {n} nodes have 1 to {n - 1} neighbours; choose k in that range.")
    if not np.isfinite(vectors).all():
        raise DataError("directions must be finite numbers; at least one is nan or infinite.")
    length = np.sqrt((vectors**2).sum(axis=1))
    unit = vectors / np.where(length > 0, length, 1)[:, None]
    edges = []
    for first in range(0, n, 1024):
        cosine = unit[first : first + 1024] @ unit.T
        rows = np.arange(len(cosine))
        cosine[rows, first + rows] = -np.inf
        cosine[:, length == 0] = -np.inf
        nearest = np.argsort(-np.round(cosine, 12), axis=1, kind="stable")[:, :k]
        near = np.isfinite(np.take_along_axis(cosine, nearest, axis=1)) & (length[first : first + 1024] > 0)[:, None]
        edges.append(np.stack([np.broadcast_to(first + rows[:, None], nearest.shape)[near], nearest[near]], axis=1))
    return graph_of(n, np.concatenate(edges))


def tfce(values: np.ndarray, graph: Graph, *, E: float = E, H: float = H) -> np.ndarray:
    r"""Enhance every node by the extent of its neighbourhood at all heights, exactly.

        TFCE(v) = integral_0^{|x_v|} size_v(h)^E h^H dh,

    size_v(h) the number of nodes of v's component among those whose value has v's sign and a size of at least h.

    Parameters
    ----------
    values : array of shape (n,) or (n_maps, n); nan marks a missing node
    graph : Graph of n nodes
    E, H : exponents of extent and height

    Returns
    -------
    Scores of the same shape with the signs of the values; nan where the value is nan.

    Raises
    ------
    DataError
        Sizes differ, or a value is infinite.

    References
    ----------
    Smith & Nichols (2009), Threshold-free cluster enhancement, NeuroImage 44:83.

    Examples
    --------
    Alone, a node of height 3 collects 3^3 / 3 = 9; beside one of height 1 it gains (sqrt(2) - 1) / 3:

    >>> tfce(np.array([3.0, 0.0, -3.0]), grid(3))
    array([ 9.,  0., -9.])
    >>> print(round(tfce(np.array([3.0, 1.0]), grid(2))[0] - 9, 6), round((2**0.5 - 1) / 3, 6))
    0.138071 0.138071
    """
    maps = _maps(values, graph)
    out = np.empty_like(maps)
    _enhance(maps, graph, _powers(graph.n, E), H=float(H), out=out)
    return np.where(np.isnan(maps), np.nan, np.copysign(out, maps)).reshape(np.shape(values))


def tfce_maxima(values: np.ndarray, graph: Graph, *, E: float = E, H: float = H, two_sided: bool = True) -> np.ndarray:
    """Largest score of each map (n_maps,), of positive values alone unless `two_sided`; 0 where there is none."""
    maps = _maps(values, graph)
    out = np.empty(len(maps))
    _enhance_maxima(maps, graph, _powers(graph.n, E), H=float(H), two_sided=two_sided, out=out)
    return out


def clusters(values: np.ndarray, graph: Graph, threshold: float) -> Clusters:
    """Components of {x > threshold} and of {x < -threshold}, the largest mass first; ties keep the order of nodes.

    Examples
    --------
    >>> clusters(np.array([3.0, 2.5, 0.0, -4.0, np.nan, -3.0]), grid(6), 2.0)
    Clusters(label=array([1, 1, 0, 2, 0, 3]), mass=array([ 5.5, -4. , -3. ]))
    """
    x = _maps(values, graph)[0]
    root = np.empty(graph.n, dtype=np.int64)
    _components(x, graph, (root, _positive(threshold)))
    roots = np.unique(root[root >= 0])
    mass = np.array([x[root == r].sum() for r in roots])
    order = np.argsort(-np.abs(mass), kind="stable")
    label = np.zeros(graph.n, dtype=np.int64)
    for number, which in enumerate(order, start=1):
        label[root == roots[which]] = number
    return Clusters(label, mass[order])


def cluster_maxima(values: np.ndarray, graph: Graph, threshold: float, *, two_sided: bool = True) -> np.ndarray:
    """Largest |mass| of a cluster in each map, of positive clusters alone unless `two_sided`; 0 without any cluster."""
    maps = _maps(values, graph)
    out = np.empty(len(maps))
    _mass_maxima(maps, graph, out, threshold=_positive(threshold), two_sided=two_sided)
    return out


def _maps(values: np.ndarray, graph: Graph) -> np.ndarray:
    maps = np.ascontiguousarray(np.atleast_2d(np.asarray(values, dtype=np.float64)))
    if maps.ndim != 2 or maps.shape[1] != graph.n:
        raise DataError(f"the values have shape {np.shape(values)}, but the graph has {graph.n} nodes.")
    if np.isinf(maps).any():
        raise DataError("a map holds an infinite value; its extent-weighted integral is not defined.")
    return maps


def _positive(threshold: float) -> float:
    if not 0 < threshold < math.inf:
        raise DataError(f"the threshold is {threshold}; a cluster lies above a positive, finite one.")
    return float(threshold)


def _powers(n: int, E: float) -> np.ndarray:
    """size^E of every possible size."""
    return np.arange(n + 1, dtype=np.float64) ** E


# ------------------------------------------------------------------ loops over nodes


class _Forest(NamedTuple):
    """Union-find of one map: parent n is a node not yet visited; `last` holds height^(H+1) of the root's last change.

    Numbers of nodes are unsigned, so that no look-up asks whether they count from the end.
    extra : of a root, by how much its best node has collected more than the root;  order, place, counts : for sorting
    """

    parent: np.ndarray
    size: np.ndarray
    last: np.ndarray
    collected: np.ndarray
    extra: np.ndarray
    nodes: np.ndarray
    heights: np.ndarray
    order: np.ndarray
    place: np.ndarray
    counts: np.ndarray


@compiled()
def _forest(n):
    whole, real = np.empty((6, n + 2), np.uint64), np.empty((4, n))
    return _Forest(
        whole[0], whole[1], real[0], real[1], real[2], whole[2], real[3], whole[3], whole[4], whole[5]
    )  # fmt: skip


@compiled()
def _falling(forest, k):
    """Put the numbers of the first k heights into `forest.order` by falling height; equal ones keep their order.

    As many buckets as heights, then neighbours are put right: linear, unless the heights crowd in a few buckets.
    """
    heights, order, place, counts = forest.heights, forest.order, forest.place, forest.counts
    scale, one = k / heights[:k].max() if k else 0.0, np.uint64(1)
    counts[: k + 2] = 0
    for i in range(k):
        place[i] = np.uint64(k - min(int(heights[i] * scale), k))
        counts[place[i] + one] += one
    crowd = np.uint64(0)
    for b in range(1, k + 2):
        crowd = max(crowd, counts[b])
        counts[b] += counts[b - 1]
    if crowd > CROWD:
        order[:k] = np.argsort(-heights[:k], kind="mergesort").astype(np.uint64)
        return
    for i in range(k):
        order[counts[place[i]]] = np.uint64(i)
        counts[place[i]] += one
    for q in range(1, k):
        moved, p = order[q], q
        while p > 0 and heights[order[p - 1]] < heights[moved]:
            order[p] = order[p - 1]
            p -= 1
        order[p] = moved


@compiled()
def _grow(x, links, work):
    """Visit the nodes of one map by falling height; returns how many were visited, in `forest.nodes`.

    work = (forest, powers, H, two_sided, keep): `keep` leaves every joined root's own offset on its path, for `_score`;
    without it paths are shortened and only `_best` may be asked. What was collected still lacks the factor 1 / (H + 1).
    """
    (indptr, indices), (forest, powers, H, two_sided, keep) = links, work
    parent, size, last, collected, extra, nodes = forest[:6]
    k, unseen, one = 0, np.uint64(x.size), np.uint64(1)
    for i in range(x.size):
        parent[i] = unseen
        if x[i] > 0.0 or (two_sided and x[i] < 0.0):  # false for nan
            forest.heights[k] = abs(x[i])
            nodes[k] = np.uint64(i)
            k += 1
    _falling(forest, k)
    for q in range(k):
        i = nodes[forest.order[q]]
        h = abs(x[i])
        high = h * h * h if H == 2.0 else h ** (H + 1.0)
        parent[i], size[i], last[i], collected[i], extra[i] = i, one, high, 0.0, 0.0
        a, positive = i, x[i] > 0.0
        for p in range(indptr[i], indptr[i + one]):
            b = indices[p]
            if (parent[b] == unseen) | ((x[b] > 0.0) != positive):  # one jump for both
                continue
            while parent[b] != b:
                if not keep:
                    parent[b] = parent[parent[b]]
                b = parent[b]
            if b == a:
                continue
            collected[a] += powers[size[a]] * (last[a] - high)
            collected[b] += powers[size[b]] * (last[b] - high)
            last[a] = high
            last[b] = high
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            collected[b] -= collected[a]
            extra[a] = max(extra[a], extra[b] + collected[b])
    for q in range(k):
        i = nodes[q]
        if parent[i] == i:
            collected[i] += powers[size[i]] * last[i]
    return k


@compiled()
def _score(i, forest):
    total = forest.collected[i]
    while forest.parent[i] != i:
        i = forest.parent[i]
        total += forest.collected[i]
    return total


@compiled()
def _best(forest, k):
    """The largest score of the k nodes; max and rounding commute, so it is that of `_score` bit by bit."""
    best = 0.0
    for q in range(k):
        i = forest.nodes[q]
        if forest.parent[i] == i:
            best = max(best, forest.extra[i] + forest.collected[i])
    return best


@compiled()
def _enhance(maps, graph, powers, *, H, out):
    """out[m, v] = score of node v in map m, without its sign."""
    forest, links = _forest(maps.shape[1]), (graph.indptr.astype(np.uint64), graph.indices.astype(np.uint64))
    for m in range(maps.shape[0]):
        out[m] = 0.0
        k = _grow(maps[m], links, (forest, powers, H, True, True))
        for q in range(k):
            out[m, forest.nodes[q]] = _score(forest.nodes[q], forest) / (H + 1.0)


@compiled()
def _enhance_maxima(maps, graph, powers, *, H, two_sided, out):
    forest, links = _forest(maps.shape[1]), (graph.indptr.astype(np.uint64), graph.indices.astype(np.uint64))
    for m in range(maps.shape[0]):
        k = _grow(maps[m], links, (forest, powers, H, two_sided, False))
        out[m] = _best(forest, k) / (H + 1.0)


@compiled()
def _components(x, graph, work):
    """root[v] = lowest node of v's cluster, -1 outside every cluster; work = (root, threshold)."""
    (root, threshold), n = work, x.size
    stack = np.empty(n, np.int64)
    for v in range(n):
        root[v] = -1
    for v in range(n):
        if root[v] >= 0 or not abs(x[v]) > threshold:
            continue
        root[v], stack[0], k = v, v, 1
        while k:
            k -= 1
            u = stack[k]
            for p in range(graph.indptr[u], graph.indptr[u + 1]):
                w = graph.indices[p]
                if root[w] < 0 and abs(x[w]) > threshold and (x[w] > 0.0) == (x[v] > 0.0):
                    root[w], stack[k] = v, w
                    k += 1


@compiled()
def _mass_maxima(maps, graph, out, *, threshold, two_sided):
    n = maps.shape[1]
    root, mass = np.empty(n, np.int64), np.empty(n)
    for m in range(maps.shape[0]):
        x, best = maps[m], 0.0
        _components(x, graph, (root, threshold))
        for v in range(n):
            if root[v] < 0 or (x[v] < 0.0 and not two_sided):
                continue
            if root[v] == v:
                mass[v] = 0.0
            mass[root[v]] += abs(x[v])
            best = max(best, mass[root[v]])
        out[m] = best
