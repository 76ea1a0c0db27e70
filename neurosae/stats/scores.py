"""Worlds of scores: small arrays with planted truth, for tests of coupling, synergy, prediction, alignment and clamps.

A score is what one feature set does in one stimulus. Each function says in its docstring what is true in its world and
what is not. `neurosae.stats.worlds` names them all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DIM, N_DIRECTIONS, N_NEURONS = 64, 400, 128


class Coupling(NamedTuple):
    """Scores of two feature sets over items in two contexts, each (2, n_items): 0 = list, 1 = phrase.

    gain : a scalar of each stimulus that may move both scores, as it was recorded
    """

    seed: np.ndarray
    target: np.ndarray
    gain: np.ndarray


class Sources(NamedTuple):
    """Two sources and a target, each (n_items,)."""

    first: np.ndarray
    second: np.ndarray
    target: np.ndarray


class Groups(NamedTuple):
    """Two groups of scores (4 n_items, p), their target and recorded gain (4 n_items,); item of each stimulus."""

    first: np.ndarray
    second: np.ndarray
    target: np.ndarray
    gain: np.ndarray
    item: np.ndarray


class Aligned(NamedTuple):
    """Responses of two conditions, and reference features with the same shifts, each (2, n_items, n_positions)."""

    responses: np.ndarray
    reference: np.ndarray


class Network(NamedTuple):
    """A residual network of one layer, L = v . norm(x + W2 relu(W1 x + b1)), and stimuli X (n_items, 64) for it.

    directions : unit decoder directions (400, 64), of which 0 and 1 are clamped
    normalized, probability : whether the readout normalizes its input, and is squashed into a probability
    """

    X: np.ndarray
    directions: np.ndarray
    v: np.ndarray
    W1: np.ndarray
    b1: np.ndarray
    W2: np.ndarray
    normalized: bool
    probability: bool


def coupling(name: str, *, n_items: int, seed: int) -> Coupling:
    """P0-P7 and I3_scores, I3_scores_sparse: does the phrase context couple two feature sets?

    True in I3_scores: the target follows the seed by .6 in the phrase alone (sparse: by .8, then both are rectified).
    Not true elsewhere, where the coupling is the same in both contexts but for a gain, although P1 shifts both means,
    P2 shares the strength of the item, P3 a gain in both contexts, P4 doubles the variance of the target in the
    phrase, P5 that of the seed (coupled in both), P6 shares a gain in the phrase alone, and P7 is sparse, coupled in
    both and shifted.
    """
    rng = np.random.default_rng(seed)
    g, s, t = rng.standard_normal((3, 2, n_items))
    c, phrase = rng.standard_normal(n_items), np.array([[0.0], [1.0]])
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    made = {
        "P0": lambda: (s, t),
        "P1": lambda: (s + 2 * phrase, t + 2 * phrase),
        "P2": lambda: (s + c, t + c),
        "P3": lambda: (s + g, t + g),
        "P4": lambda: (s, t * (1 + phrase)),
        "P5": lambda: (s * (1 + phrase), 0.6 * s + t),
        "P6": lambda: (s + g * phrase, t + g * phrase),
        "P7": lambda: (relu(s - 0.5 + phrase), relu(0.6 * s + t - 0.5 + phrase)),
        "I3_scores": lambda: (s, t + 0.6 * s * phrase),
        "I3_scores_sparse": lambda: (relu(s), relu(t + 0.8 * s * phrase)),
    }[name]()
    return Coupling(*made, gain=g + 0.3 * rng.standard_normal(g.shape))


def information(name: str, *, n_items: int, seed: int) -> Sources:
    """W0-W4 and I5-I7: does a target need both sources together?

    True in I5 (product), I6 (sum + product) and I7 (the sign of one source gates the other). Not true in W0
    (independent), W1 (sum), W2 (thresholded sum: a monotone link removes it), W3 (redundant sources) and W4 (two noisy
    measurements of one source).
    """
    rng = np.random.default_rng(seed)
    a, b, e, c = rng.standard_normal((4, n_items))
    if name == "W3":
        return Sources(c + 0.4 * a, c + 0.4 * b, c + 0.7 * e)
    if name == "W4":
        return Sources(a + 0.7 * rng.standard_normal(n_items), 0.6 * a + 0.8 * b, a + 0.5 * e)
    target = {
        "W0": lambda: e,
        "W1": lambda: a + b + e,
        "W2": lambda: np.maximum(a + b - 0.5, 0) + 0.5 * e,
        "I5": lambda: a * b + 0.7 * e,
        "I6": lambda: a + b + a * b + e,
        "I7": lambda: np.where(a > 0, 1, -1) * b + 0.7 * e,
    }[name]()
    return Sources(a, b, target)


def groups(name: str, *, n_items: int, seed: int, sparse: bool = False, p: int = 2) -> Groups:
    """D0, D1, D1e, D2, D3 and I5_groups-I7_groups: does the product of two feature groups predict a target?

    True in I5_groups (product), I6_groups (sum + product) and I7_groups (one group gates the other). Not true in D0
    (sum), D1 (thresholded sum), D1e (exponential of the sum), D2 (correlated groups, curvature in the first alone) and
    D3 (a gain of the stimulus in scores and target, which dividing by the recorded gain removes).
    """
    rng, n = np.random.default_rng(seed), 4 * n_items
    shape = (n_items, 4, 2 * p)
    latent = (0.7 * rng.standard_normal((n_items, 1, 2 * p)) + 0.7 * rng.standard_normal(shape)).reshape(n, 2 * p)
    if name == "D2":
        latent[:, p:] = 0.7 * latent[:, :p] + 0.7 * latent[:, p:]
    gain = np.exp(0.5 * rng.standard_normal(n)) if name == "D3" else np.ones(n)
    F = (np.maximum(latent - 0.3, 0) if sparse else latent) * gain[:, None]
    a, b = F[:, :p].sum(axis=1), F[:, p:].sum(axis=1)
    if name != "D3":
        a, b = a - a.mean(), b - b.mean()
    a, b, item = a / a.std(), b / b.std(), np.repeat(np.arange(n_items), 4)
    e = 0.4 * rng.standard_normal(n_items)[item] + 0.7 * rng.standard_normal(n)
    target = {
        "D0": lambda: a + b + e,
        "D1": lambda: np.maximum(a + b - 0.5, 0) + 0.4 * e,
        "D1e": lambda: np.exp(0.7 * (a + b) + 0.4 * e),
        "D2": lambda: 0.5 * a**2 + b + e,
        "D3": lambda: a + b + e * gain,
        "I5_groups": lambda: 0.7 * a * b + e,
        "I6_groups": lambda: a + b + 0.6 * a * b + e,
        "I7_groups": lambda: 0.7 * np.sign(a) * b + e,
    }[name]()
    return Groups(F[:, :p], F[:, p:], target, gain, item)


def alignment(
    name: str, *, n_items: int, seed: int, height: float = 2.0, jitter: int = 3, gain: float = 0.0
) -> Aligned:
    """The same bump in both conditions, at positions that differ by up to `jitter` between stimuli, on rectified noise.

    True: a bump of the given height, (1 + gain) times as high in condition 1; the reference has its shifts. Not true
    with gain 0: any difference between the conditions.
    """
    rng, n_positions = np.random.default_rng(seed), 16
    bump = np.exp(-0.5 * (np.arange(n_positions) - n_positions // 2) ** 2)
    shifts = rng.integers(-jitter, jitter + 1, (2, n_items))
    moved = np.array([[np.roll(bump, k) for k in row] for row in shifts])
    noise = np.maximum(rng.standard_normal(moved.shape), 0)
    responses = height * moved * np.array([1.0, 1 + gain])[:, None, None] + noise
    return Aligned(responses, max(height, 2.0) * moved + 0.5 * rng.standard_normal(moved.shape))


def toy_network(name: str, *, n_items: int, seed: int) -> Network:
    """toy_linear, toy_norm, toy_probability, toy_mlp and toy_and: do two directions act jointly on the output?

    True in toy_and: one neuron fires only where both directions are present, and writes to the readout. Not true in
    toy_linear, toy_norm (linear + normalization), toy_probability (the same, read as a probability) and toy_mlp (random
    neurons + normalization), although normalization and squashing make joint effects differ from sums there.
    """
    rng = np.random.default_rng(seed)
    directions = _unit(rng.standard_normal((N_DIRECTIONS, DIM)))
    v = _unit(rng.standard_normal(DIM)) + 0.5 * directions[0] + 0.5 * directions[1]
    W1, b1 = rng.standard_normal((N_NEURONS, DIM)) / np.sqrt(DIM), np.full(N_NEURONS, -0.5)
    W2 = 0.5 * rng.standard_normal((DIM, N_NEURONS)) / np.sqrt(N_NEURONS)
    if name in ("toy_linear", "toy_norm", "toy_probability"):
        W2 = 0 * W2
    if name == "toy_and":
        W1, b1 = np.vstack([W1, 1.2 * (directions[0] + directions[1])]), np.append(b1, -6.5)
        W2 = np.column_stack([W2, 1.5 * v / (v @ v)])
    others = np.maximum(rng.standard_normal((n_items, 6)), 0) @ directions[10:16]
    X = 1.2 * rng.standard_normal((n_items, DIM)) + 1.5 * others
    return Network(X, directions, v, W1, b1, W2, name != "toy_linear", name == "toy_probability")


def toy_output(network: Network, X: np.ndarray, *, scale: np.ndarray | None = None) -> np.ndarray:
    """Output for residual vectors X (n, 64); `scale` freezes the normalization, e.g. to `toy_scale` of the clean run.

    Examples
    --------
    >>> net = toy_network("toy_norm", n_items=3, seed=0)
    >>> toy_output(net, net.X, scale=toy_scale(net, net.X)).shape
    (3,)
    """
    logit = _residual(network, X) @ network.v
    if network.normalized:
        logit = logit / (toy_scale(network, X) if scale is None else scale)
    return 1 / (1 + np.exp(-1.5 * logit)) if network.probability else logit


def toy_scale(network: Network, X: np.ndarray) -> np.ndarray:
    """Root mean square of the last residual vectors: what the normalization divides by."""
    return np.sqrt((_residual(network, X) ** 2).mean(axis=-1))


def _residual(network: Network, X: np.ndarray) -> np.ndarray:
    return X + np.maximum(X @ network.W1.T + network.b1, 0) @ network.W2.T


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
