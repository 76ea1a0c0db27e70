"""Feature sets without the tested responses: planted clusters and communities come back, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.communities import coactivation_communities, decoder_clusters


def directions(n: int = 4, size: int = 12, d: int = 24, *, seed: int = 0) -> np.ndarray:
    """Decoder rows in bundles around orthogonal axes, of very different lengths."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((d, n)))[0].T
    W = np.repeat(axes, size, axis=0) + 0.1 * rng.standard_normal((n * size, d))
    return W * rng.uniform(0.1, 10, (n * size, 1))


def text(n_tokens: int = 2000, n: int = 5, size: int = 8, *, seed: int = 0) -> np.ndarray:
    """Features that fire with their own topic, at different rates, over a background."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, n, n_tokens)
    rate = rng.uniform(0.2, 0.8, n * size)
    fires = (topic[:, None] == np.repeat(np.arange(n), size)) & (rng.random((n_tokens, n * size)) < rate)
    return fires | (rng.random(fires.shape) < 0.02)


def as_sets(found: dict[str, np.ndarray]) -> set[frozenset[int]]:
    return {frozenset(members.tolist()) for members in found.values()}


def test_decoder_clusters_recover_bundles_of_directions():
    """Lengths do not matter, directions do; every feature is in one cluster; the same seed gives the same sets."""
    W = directions()
    found = decoder_clusters(W, 4, seed=1)
    assert as_sets(found) == {frozenset(range(12 * k, 12 * k + 12)) for k in range(4)}
    assert as_sets(found) == as_sets(decoder_clusters(3.0 * W, 4, seed=1))


def test_decoder_clusters_invariant_to_feature_order():
    """Shuffled rows give the same sets of features."""
    W, order = directions(), np.random.default_rng(1).permutation(48)
    moved = decoder_clusters(W[order], 4, seed=1)
    assert {frozenset(order[list(s)].tolist()) for s in as_sets(moved)} == as_sets(decoder_clusters(W, 4, seed=1))


def test_coactivation_communities_recover_topics():
    """Five topics of eight features, found again; a feature that hardly fires belongs to none."""
    fires = np.column_stack([text(), np.zeros(2000, bool)])
    fires[:3, -1] = True
    found = coactivation_communities(sp.csr_matrix(fires * 1.5), seed=1)
    assert as_sets(found) == {frozenset(range(8 * k, 8 * k + 8)) for k in range(5)}
    assert list(coactivation_communities(fires, n=2, seed=1)) == ["community 1", "community 2"]


@pytest.mark.parametrize("n", [4, 17])
def test_coactivation_communities_agree_with_numpy_correlations(monkeypatch, n):
    """Edges are the strongest positive correlations of firing, also when blocks are small."""
    from neurosae.stats import communities

    fires = text(400, 3, 6)
    monkeypatch.setattr(communities, "BLOCK", 5)
    edges = communities._neighbours(sp.csc_matrix(fires, dtype=float), fires.sum(axis=0), neighbours=n)
    phi = np.corrcoef(fires.T.astype(float)) - 2 * np.eye(18)
    best = {(min(f, g), max(f, g)) for f in range(18) for g in np.argsort(-phi[f])[:n] if phi[f, g] > 0}
    assert {(f, g) for f, g, _ in edges} == best
    assert all(np.isclose(weight, phi[f, g]) for f, g, weight in edges)


def test_communities_refuse_what_cannot_be_clustered():
    """Too many clusters, a direction of length 0, a text on which nothing fires."""
    with pytest.raises(DataError, match="99 clusters, but the decoder has 48"):
        decoder_clusters(directions(), 99, seed=0)
    with pytest.raises(DataError, match="1 decoder vectors have length 0"):
        decoder_clusters(np.vstack([directions(), np.zeros(24)]), 4, seed=0)
    with pytest.raises(DataError, match="more reference text"):
        coactivation_communities(np.zeros((100, 10)), seed=0)
