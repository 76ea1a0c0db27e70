"""Prefix tries: stimuli that begin alike share the tokens of their common beginning, computed once.

A node is a distinct (beginning, token) of a group of stimuli. The nodes of a group form one row of a batch: the
position of a node is its depth, and it sees itself and its ancestors. In a causal model with full attention a node then
has exactly the vector that its token has in every stimulus that passes through it. Not so where tokens look ahead
(encoders), look back a fixed number of columns (sliding windows) or carry a state along the row (recurrent models).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_NODES = 256  # attention costs the square of it; what is lost is one common beginning per group
Ids = Sequence[int] | np.ndarray


class Trie(NamedTuple):
    """Nodes in an order in which ancestors come first.

    Attributes
    ----------
    ids, depths : token id and depth of each node, int64 (n,)
    visible : bool (n, n); row i is true at i and at the ancestors of i
    paths : of each sequence the nodes of its tokens
    """

    ids: np.ndarray
    depths: np.ndarray
    visible: np.ndarray
    paths: list[np.ndarray]


def grow(sequences: Sequence[Ids]) -> Trie:
    """The trie of some sequences.

    Examples
    --------
    >>> trie = grow([[1, 5, 6], [1, 5, 7]])
    >>> trie.ids.tolist(), trie.depths.tolist(), [path.tolist() for path in trie.paths]
    ([1, 5, 6, 7], [0, 1, 2, 2], [[0, 1, 2], [0, 1, 3]])
    >>> trie.visible[3].tolist()
    [True, True, False, True]
    """
    child: dict[tuple[int, int], int] = {}
    parents: list[int] = []
    depths: list[int] = []
    paths = []
    for sequence in sequences:
        node, path = -1, []
        for depth, token in enumerate(np.asarray(sequence).tolist()):
            new = len(parents)
            found = child.setdefault((node, token), new)
            if found == new:
                parents.append(node)
                depths.append(depth)
            node = found
            path.append(node)
        paths.append(np.array(path, dtype=np.int64))
    visible = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
    ids = np.array([token for _, token in child], dtype=np.int64)  # a dict keeps the order of its nodes
    return Trie(ids, np.array(depths, dtype=np.int64), visible, paths)


def trie_groups(sequences: Sequence[Ids], max_nodes: int = MAX_NODES) -> tuple[list[np.ndarray], list[int]]:
    """Groups of sequences whose tries hold at most `max_nodes` nodes, and the number of nodes of each.

    Sequences are sorted by their ids and groups are filled in this order, so that those with a common beginning stay
    together; what a group holds depends on the sequences alone. A longer sequence is a group of its own.

    Examples
    --------
    >>> groups, nodes = trie_groups([[1, 5, 6], [2, 2, 2], [1, 5, 7]], max_nodes=4)
    >>> [g.tolist() for g in groups], nodes
    ([[0, 2], [1]], [4, 3])
    """
    lists = [np.asarray(s).tolist() for s in sequences]
    groups: list[list[int]] = []
    nodes: list[int] = []
    for i in sorted(range(len(lists)), key=lambda i: lists[i]):
        # in sorted order no earlier sequence shares more with this one than its neighbour does
        new = len(lists[i]) - (_shared(lists[groups[-1][-1]], lists[i]) if groups else 0)
        if groups and nodes[-1] + new <= max_nodes:
            groups[-1].append(i)
            nodes[-1] += new
        else:
            groups.append([i])
            nodes.append(len(lists[i]))
    return [np.array(group, dtype=np.int64) for group in groups], nodes


def _shared(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def saving(sequences: Sequence[Ids], max_nodes: int = MAX_NODES) -> float:
    """Share of tokens that tries save.

    Examples
    --------
    >>> saving([[1, 5], [1, 6]])
    0.25
    """
    tokens = sum(map(len, sequences))
    return 1 - sum(trie_groups(sequences, max_nodes)[1]) / tokens if tokens else 0.0
