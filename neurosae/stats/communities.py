"""Feature sets found without the responses that are tested: decoder directions, and what fires together elsewhere.

Such a set may be tested on all items: nothing about the contrast was looked at. A set says where in the dictionary an
effect lies; it claims nothing about each of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from neurosae.errors import DataError

BLOCK = 512  # features whose co-activation with all others is made dense at a time
SMALLEST = 3  # features of a community


def decoder_clusters(W_dec: Any, n: int = 20, *, seed: int) -> dict[str, np.ndarray]:
    """Cluster features by the directions that they write: k-means on unit decoder vectors.

    With w_j the decoder vector of feature j divided by its length, minimize sum_j |w_j - m_c(j)|^2 over clusters, which
    for unit vectors gathers features of high mutual cosine.

    Parameters
    ----------
    W_dec : array or tensor of shape (n_features, d), the rows of the decoder
    n : int
        Number of clusters.
    seed : int

    Returns
    -------
    dict
        `{"decoder cluster 1": feature indices, …}`, the largest first; every feature is in one of them. Give it as
        `features=` to `roi`.

    Raises
    ------
    DataError
        More clusters than features, or a decoder vector of length 0.

    References
    ----------
    Dhillon & Modha (2001), Machine Learning 42:143 (k-means on directions); computed by scikit-learn.

    Examples
    --------
    >>> W_dec = np.repeat([[1.0, 0.0], [0.0, 2.0]], [3, 2], axis=0)
    >>> {name: features.tolist() for name, features in decoder_clusters(W_dec, 2, seed=0).items()}
    {'decoder cluster 1': [0, 1, 2], 'decoder cluster 2': [3, 4]}
    """
    from sklearn.cluster import KMeans

    W = np.asarray(W_dec.detach().cpu() if hasattr(W_dec, "detach") else W_dec, dtype=np.float64)
    length = np.sqrt((W**2).sum(axis=1))
    if not 1 <= n <= len(W):
        raise DataError(f"n is {n} clusters, but the decoder has {len(W)} features; ask for fewer.")
    if (length == 0).any():
        raise DataError(f"{int((length == 0).sum())} decoder vectors have length 0 and point nowhere; leave them out.")
    with threadpool_limits(1):  # sums in another order could move a feature between clusters
        starts: Any = 4  # the best of four; annotated as a word by scikit-learn
        found = KMeans(n, n_init=starts, random_state=seed).fit_predict(W / length[:, None])
    return _named("decoder cluster", found)


def coactivation_communities(
    activations: Any, *, n: int = 20, neighbours: int = 15, min_active: int = 20, seed: int
) -> dict[str, np.ndarray]:
    r"""Communities of features that fire on the same tokens of an independent text.

    With p_f the share of tokens where f fires and p_fg where both do, features are joined to their nearest neighbours
    by the correlation of firing

        phi_fg = (p_fg - p_f p_g) / sqrt(p_f (1 - p_f) p_g (1 - p_g)) > 0,

    and communities maximize the modularity of that graph (Louvain).

    Parameters
    ----------
    activations : sparse or dense array of shape (n_tokens, n_features)
        Activations on text that shares nothing with the stimuli; only whether they are above 0 is used.
    n : int
        The largest communities are returned.
    neighbours : int
        Each feature's strongest neighbours that become edges.
    min_active : int
        Features active on fewer tokens belong to no community; nor do those without company.
    seed : int

    Returns
    -------
    dict
        `{"community 1": feature indices, …}`, the largest first, of at least 3 features each. Give it as `features=`
        to `roi`.

    Notes
    -----
    Exploratory: every text has communities, also one in which features fire by chance. Nothing is tested here; whether
    they hold on other documents says `community_coactivation`.

    References
    ----------
    Blondel et al. (2008), J. Stat. Mech. P10008; computed by networkx.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> topic = rng.integers(0, 3, 600)
    >>> text = (topic[:, None] == np.repeat([0, 1, 2], 5)) & (rng.random((600, 15)) < 0.5)
    >>> [f.tolist() for f in coactivation_communities(text, seed=0).values()]
    [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    """
    import networkx as nx

    B = sp.csr_matrix(activations > 0, dtype=np.float32)
    count = np.asarray(B.sum(axis=0)).ravel()
    n_tokens = B.shape[0]  # pyright: ignore[reportOptionalSubscript]
    often = np.flatnonzero((count >= min_active) & (count < n_tokens))
    if len(often) < SMALLEST:
        raise DataError(
            f"{len(often)} features are active on {min_active} of the {n_tokens} tokens; give more reference text."
        )
    edges = _neighbours(sp.csc_matrix(B[:, often]), count[often], neighbours=neighbours)
    graph = nx.Graph()
    graph.add_nodes_from(range(len(often)))
    graph.add_weighted_edges_from(edges)
    found = nx.community.louvain_communities(graph, seed=seed)
    label = np.full(len(often), -1)
    for k, members in enumerate(found):
        if len(members) >= SMALLEST:
            label[list(members)] = k
    sets = _named("community", label)
    return {name: often[members] for name, members in list(sets.items())[:n]}


def _neighbours(B: sp.csc_matrix, count: np.ndarray, *, neighbours: int) -> list[tuple[int, int, float]]:
    """Edges to the strongest neighbours of every feature, positive correlations only."""
    N, m = B.shape  # pyright: ignore[reportGeneralTypeIssues]
    share = count / N
    sd, k = np.sqrt(share * (1 - share)), min(neighbours, m - 1)
    edges: dict[tuple[int, int], float] = {}
    for start in range(0, m, BLOCK):
        both = (B[:, start : start + BLOCK].T @ B).toarray() / N
        own = np.arange(start, min(start + BLOCK, m))
        phi = (both - np.outer(share[own], share)) / np.outer(sd[own], sd)
        phi[np.arange(len(own)), own] = -1
        best = np.argsort(-phi, axis=1, kind="stable")[:, :k]
        for row, f in enumerate(own.tolist()):
            for g in best[row].tolist():
                if phi[row, g] > 0:
                    edges[(min(f, g), max(f, g))] = float(phi[row, g])
    return [(f, g, weight) for (f, g), weight in sorted(edges.items())]


def _named(what: str, label: np.ndarray) -> dict[str, np.ndarray]:
    """Members of every label >= 0, the largest first, ties by their first member."""
    sets = [np.flatnonzero(label == k) for k in np.unique(label[label >= 0])]
    sets.sort(key=lambda members: (-len(members), members[0]))
    return {f"{what} {number}": members for number, members in enumerate(sets, 1)}


def reference_activations(
    model: Any, dictionary: Any, texts: Sequence[str], *, n_tokens: int = 50_000, seed: int = 0
) -> sp.csr_matrix:
    """Activations of a dictionary on running text, (n_tokens, n_features): for `coactivation_communities`.

    Parameters
    ----------
    model, dictionary : as given to `extract`
    texts : documents; random contexts of them are read until they hold about `n_tokens` tokens
    seed : of the draw of contexts
    """
    from neurosae.dictionary.evaluate import reference_contexts
    from neurosae.dictionary.stream import context_rows

    contexts = reference_contexts(model, texts, n_tokens=n_tokens, seed=seed)
    parts = []
    for start in range(0, len(contexts.ids), 64):
        chosen = np.arange(start, min(start + 64, len(contexts.ids)))
        x = context_rows(model, contexts, chosen, hooks=[dictionary.hook])[dictionary.hook]
        parts.append(dictionary.encode(x.to(dictionary.W_dec.device)))
    return sp.csr_matrix(sp.vstack(parts))
