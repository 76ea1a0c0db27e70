r"""Joint against single clamps: is the effect of two edits together more than the sum of the single ones?

With L(0), L(A), L(B), L(AB) the logit difference of an item without edit, with either and with both,

    I_i = L_i(AB) - L_i(A) - L_i(B) + L_i(0).

A normalization behind the edits makes I differ from 0 in any linear network, so I counts only with its scales frozen to
the clean run, and only if it stands out among matched pairs. For more than two players: Shapley-Taylor interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from neurosae.causal.inference import ItemTests, claim_p, item_tests, rank_p, without_rounding
from neurosae.errors import DataError

EXACT_PLAYERS = 8  # up to which all coalitions are run
NONE, FIRST, SECOND, BOTH = range(4)


class JointFound(NamedTuple):
    """A 2 x 2 clamp: I over items, free and frozen, and its place among matched pairs.

    free, frozen : tests of I with one column each;  p : all of them together, the largest
    share, share_free : mean I / mean (|A| + |B|), frozen and free;  of_joint : I / (L(AB) - L(0)), frozen
    """

    free: ItemTests
    frozen: ItemTests
    p_controls_free: float
    p_controls: float
    p: float
    share: float
    share_free: float
    of_joint: float


def interaction_of(L: np.ndarray) -> np.ndarray:
    """I of outcomes (..., 4) in the order 0, A, B, AB; exact zeros where it is no more than rounding.

    Examples
    --------
    >>> interaction_of(np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 5.0]])).tolist()
    [0.0, 2.0]
    """
    joint = L[..., BOTH] - L[..., FIRST] - L[..., SECOND] + L[..., NONE]
    return without_rounding(joint, np.abs(L).sum(axis=-1))


def joint_tests(
    free: np.ndarray,
    frozen: np.ndarray,
    numbers: np.ndarray,
    *,
    controls: tuple[np.ndarray, np.ndarray],
    n_permutations: int = 10_000,
    seed: int,
) -> JointFound:
    """Test a 2 x 2 clamp over items and among matched pairs, with the normalization free and frozen.

    Parameters
    ----------
    free, frozen : arrays of shape (n_units, 4), logit differences without edit, with A, with B, with both
    numbers : numbers of the units in the design table
    controls : mean I of the matched pairs, free and frozen, two arrays of shape (K,)

    Returns
    -------
    JointFound
        `p` is the largest of four: flips of I over items and rank of the mean I among target and controls (distance
        from their median), free and frozen.

    Notes
    -----
    H0: the edits add up, or no more fails to add up than for pairs like these. Each of the four alone is fooled: items
    by the normalization (linear network with LayerNorm: 1.00 of data sets), controls by pairs of another size, and
    freezing by a probability as outcome, which is therefore refused.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> L = rng.standard_normal((12, 4)) * 0.01 + np.array([0.0, 1.0, 1.0, 3.0])
    >>> found = joint_tests(L, L, np.arange(12), controls=(rng.standard_normal(99) * 0.1,) * 2, seed=0)
    >>> round(found.p, 3), round(found.share, 2)
    (0.01, 0.5)
    """
    parts = []
    for L in (free, frozen):
        parts.append(item_tests(interaction_of(L)[:, None], numbers, n_permutations=n_permutations, seed=seed))
    means = [float(interaction_of(L).mean()) for L in (free, frozen)]
    ranks = [rank_p(mean, control, center=True) for mean, control in zip(means, controls, strict=True)]
    items = [1.0 if part.informative[0] == 0 else float(part.p[0]) for part in parts]
    single = [float(np.abs(L[:, [FIRST, SECOND]] - L[:, [NONE]]).mean(axis=0).sum()) for L in (free, frozen)]
    # beside single effects that are 0, as those of a conjunction may be, the share has no meaning
    shares = [mean / size if size > 1e-3 * abs(mean) else np.nan for mean, size in zip(means, single, strict=True)]
    joint = float((frozen[:, BOTH] - frozen[:, NONE]).mean())
    return JointFound(
        parts[0], parts[1], ranks[0], ranks[1], claim_p(*items, *ranks),
        share=shares[1], share_free=shares[0], of_joint=means[1] / joint if joint else np.nan,
    )  # fmt: skip


# ------------------------------------------------------------------ more than two players


class Interactions(NamedTuple):
    """Shapley-Taylor interactions of order 2: pairs (n_pairs, 2), values (n_pairs, n_units), and whether exact."""

    pairs: np.ndarray
    values: np.ndarray
    exact: bool
    n_coalitions: int


def shapley_taylor(
    outcome: Callable[[np.ndarray], np.ndarray], n_players: int, *, n_orders: int = 200, seed: int
) -> Interactions:
    r"""Shapley-Taylor interaction of every pair of players, by unit.

    With v(S) the outcome when the players of S are edited, and S the players before both i and j in a random order,

        phi_ij = E [v(S + ij) - v(S + i) - v(S + j) + v(S)],   v({i}) - v(0) for single players,

    so that v(all) = v(0) + sum_i (v({i}) - v(0)) + sum_ij phi_ij.

    Parameters
    ----------
    outcome : bool array (n_coalitions, n_players) -> array (n_units, n_coalitions); asked once, every coalition once
    n_players : k; up to 8 all 2^k coalitions are used, beyond that those that `n_orders` random orders need
    n_orders, seed : of the sampled orders

    References
    ----------
    Sundararajan, Dhamdhere & Agarwal (2020), The Shapley Taylor interaction index, ICML.

    Examples
    --------
    A product of the first two of three players:

    >>> found = shapley_taylor(lambda S: (1.0 * S[:, 0] * S[:, 1] + S[:, 2])[None], 3, seed=0)
    >>> found.pairs.tolist(), found.values[:, 0].round(9).tolist(), found.exact
    ([[0, 1], [0, 2], [1, 2]], [1.0, 0.0, 0.0], True)
    """
    if n_players < 2:
        raise DataError(f"{n_players} player has no interaction; give two sets of features or more.")
    pairs = np.array(list(combinations(range(n_players), 2)))
    exact = n_players <= EXACT_PLAYERS
    asked = _all_orders(n_players, pairs) if exact else _some_orders(n_players, pairs, n_orders, seed=seed)
    coalitions = sorted({S | extra for terms in asked for S, _, ij in terms for extra in _corners(ij)})
    at = {S: k for k, S in enumerate(coalitions)}
    table = np.array([[bool(S >> i & 1) for i in range(n_players)] for S in coalitions])
    v = np.asarray(outcome(table), dtype=float)
    values = np.zeros((len(pairs), v.shape[0]))
    for row, terms in enumerate(asked):
        for S, weight, ij in terms:
            both, i, j, none = (v[:, at[S | extra]] for extra in reversed(_corners(ij)))
            values[row] += weight * (both - i - j + none)
    return Interactions(pairs, values, exact, len(coalitions))


def _corners(ij: tuple[int, int]) -> tuple[int, int, int, int]:
    i, j = 1 << ij[0], 1 << ij[1]
    return 0, j, i, i | j


def _all_orders(k: int, pairs: np.ndarray) -> list[list[tuple[int, float, tuple[int, int]]]]:
    """Every coalition S without i and j, weighted by the share of orders in which S comes before both."""
    out = []
    for i, j in pairs.tolist():
        rest = [p for p in range(k) if p not in (i, j)]
        terms = []
        for size in range(len(rest) + 1):
            weight = 2.0 / (k * comb(k - 1, size))
            terms += [(sum(1 << p for p in S), weight, (i, j)) for S in combinations(rest, size)]
        out.append(terms)
    return out


def _some_orders(
    k: int, pairs: np.ndarray, n_orders: int, *, seed: int
) -> list[list[tuple[int, float, tuple[int, int]]]]:
    rng = np.random.default_rng([seed, k, n_orders])
    orders = [rng.permutation(k).tolist() for _ in range(n_orders)]
    out = []
    for i, j in pairs.tolist():
        before = [order[: min(order.index(i), order.index(j))] for order in orders]
        out.append([(sum(1 << p for p in S), 1 / n_orders, (i, j)) for S in before])
    return out
