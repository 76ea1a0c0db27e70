r"""D-perp: the part of an interaction that no gain of a stimulus and no sum of its parts can produce.

Pre-activations relative to the origin, z - z0, of two factors within items, cells numbered a + 2 b. Of every item

    mu_i = mean of the cells,  alpha_i, beta_i = effects of a and b,  d_i = z_11 - z_10 - z_01 + z_00.

If each stimulus only multiplies an additive pattern by a positive number, the mean d lies in the span of mu, alpha and
beta. D-perp is the cross-validated squared length of what is left of d outside that span.

    delta(x, y) = (sum_i x_i . sum_k y_k - sum_i x_i . y_i) / (n (n - 1))
    c = delta(P, P)^-1 delta(P, d) for P = (mu, alpha, beta), ridge 1e-3 tr / 3;  r_i = d_i - c'P_i;  T = delta(r, r)

With several frames P holds mu, alpha and beta of every frame, because a gain that differs between frames moves their
average out of the span of averaged patterns. Features are weighted by 1 / (q + median q), q_j = mean_i d_ij^2, which no
flip changes. Everything is computed from one Gram matrix of the items' patterns, so features enter once and every
relabelling costs n^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError
from neurosae.stats.pattern import reached_share

RIDGE = 1e-3  # of the mean diagonal of delta(P, P)
ROUNDING = 2.0**-20  # of float32 pre-activations, relative to the sizes that make up an interaction


class Lengths(NamedTuple):
    """What a set of items says: T = delta(r, r), its share of the main effects, the coefficients c, and R (n, n).

    R : inner products of the items' r;  effects : delta(alpha, alpha) + delta(beta, beta)
    """

    value: float
    share: float
    coefficients: np.ndarray
    R: np.ndarray
    effects: float


@dataclass(frozen=True)
class OutOfPlane:
    """D-perp of one place.

    Attributes
    ----------
    value : T, in squared weighted units; negative values are legal
    null : T under every flip (n_relabellings,), entry 0 is observed
    p : one-sided, large lengths are evidence
    share : T / (delta(alpha, alpha) + delta(beta, beta)), the emergent share; nan where no main effect is there
    low, high : smallest and largest share when one item is left out
    item : number of the item whose absence lowers the share most
    coefficients : of mu, alpha and beta
    n_features : features that enter
    """

    value: float
    null: np.ndarray
    p: float
    share: float
    low: float
    high: float
    item: int
    coefficients: np.ndarray
    n_features: int


@dataclass(frozen=True)
class ListControl:
    """The interaction of the phrase beyond that of the list.

    Attributes
    ----------
    value, null : cross-validated squared length of mean r_phrase - r_list, each in units of its context's main effects,
        observed and under every flip
    p : of the length, one-sided; 1 where the list's own interaction is at least as long, or as large a share
    phrase, list_ : delta(r, r) in both contexts, with the same weights
    difference : share of the phrase minus share of the list
    ratio : delta(r, r) of the list as a share of that of the phrase; nan where the phrase has none
    n_features : features that enter
    """

    value: float
    null: np.ndarray
    p: float
    phrase: float
    list_: float
    difference: float
    ratio: float
    n_features: int


def interaction(Z: np.ndarray) -> np.ndarray:
    """Interaction of every item, 11 - 10 - 01 + 00, from (4, n_items, m); what cancels up to rounding is 0.

    Examples
    --------
    >>> interaction(np.array([[[0.0]], [[1.0]], [[2.0]], [[7.0]]]))
    array([[4.]])
    """
    d = Z[3] - Z[1] - Z[2] + Z[0]
    return np.where(np.abs(d) <= ROUNDING * np.abs(Z).sum(axis=0), 0.0, d)


def flip_weights(d: np.ndarray) -> np.ndarray:
    """Weight of every feature, 1 / (q + median q) with q the mean square over items: no flip changes it.

    Examples
    --------
    >>> flip_weights(np.array([[1.0, 3.0], [-1.0, 3.0]])).round(3).tolist()
    [0.167, 0.071]
    """
    q = (d**2).mean(axis=0)
    return 1 / (q + np.median(q[q > 0])) if (q > 0).any() else np.zeros_like(q)


def out_of_plane(
    Z: np.ndarray, signs: np.ndarray, *, frames: np.ndarray | None = None, min_informative: int = 6
) -> OutOfPlane:
    """Test the interaction outside the span of mean and main effects, under every flip of whole items.

    Parameters
    ----------
    Z : array of shape (4, n_items, m)
        Pre-activations minus their value at x = 0, cells 00, 10, 01, 11. Never activations: thresholds and
        competition alone make those interact outside the plane.
    signs : array of shape (n_relabellings, n_items), the identity first
    frames : array of shape (n_frames, 4, n_items, m), optional
        The same of every frame, where Z is their mean.
    min_informative : int
        Features whose interaction is not zero in fewer items are left out, which no flip changes.

    Raises
    ------
    DataError
        If fewer than 4 items or no feature is left.

    Notes
    -----
    H0: z_ic - z0 = g_ic (mu_i + a alpha_i + b beta_i) with any positive gain g of the stimulus, so r_i is symmetric
    around 0. Exchanged: signs of r_i. Asymptotic, because c is estimated; slightly conservative at 24 items. A gain of
    its own for every feature is outside H0 and counts as integration.

    References
    ----------
    Allefeld & Haynes (2014), NeuroImage 89:345 (cross-validated length).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mu, a, b = rng.standard_normal((3, 30))
    >>> Z = rng.standard_normal((4, 16, 30)) + np.array([mu, mu + a, mu + b, mu + a + b])[:, None]
    >>> signs = np.where(rng.random((500, 16)) < 0.5, -1.0, 1.0)
    >>> signs[0] = 1
    >>> additive = out_of_plane(Z, signs).p
    >>> Z[3, :, :5] += 4.0  # features for the conjunction
    >>> additive > 0.1, out_of_plane(Z, signs).p
    (True, 0.002)
    """
    _check(Z)
    d = interaction(Z)
    kept = (d != 0).sum(axis=0) >= min_informative
    if not kept.any():
        raise DataError(f"no feature has an interaction in {min_informative} items or more; nothing can be tested.")
    n = Z.shape[1]
    X = _patterns(Z, d, kept, weights=flip_weights(d[:, kept]), frames=frames)
    K, every = X @ X.T, np.arange(n)
    whole = lengths(K, every, n)
    shares = np.array([lengths(K, np.delete(every, i), n).share for i in range(n)])
    shares = shares if np.isfinite(shares).all() and np.isfinite(whole.share) else np.full(n, np.nan)
    item = 0 if np.isnan(shares[0]) else int(shares.argmin())
    null = flipped_lengths(whole.R, signs)
    return OutOfPlane(
        float(null[0]), null, reached_share(null), whole.share, float(shares.min()), float(shares.max()), item,
        whole.coefficients, int(kept.sum()),
    )  # fmt: skip


def list_control(
    phrase: np.ndarray,
    list_: np.ndarray,
    signs: np.ndarray,
    *,
    frames: tuple[np.ndarray, np.ndarray] | None = None,
    min_informative: int = 6,
) -> ListControl:
    """Test whether the out-of-plane interaction is that of the phrase: longer than in the list, and another one.

    Parameters
    ----------
    phrase, list_ : arrays of shape (4, n_items, m), as in `out_of_plane`, the same words in both contexts
    signs : array of shape (n_relabellings, n_items), the identity first
    frames : arrays of shape (n_frames, 4, n_items, m), phrase and list, optional

    Notes
    -----
    H0: r_phrase and r_list are exchangeable within items, as for a detector of word pairs, which responds in lists too.
    Exchanged: signs of r_phrase - r_list. The evidence is joined with D-perp by the larger p.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> base = rng.standard_normal((4, 12, 30))
    >>> both, only = base + 0.3 * rng.standard_normal(base.shape), base + 0.3 * rng.standard_normal(base.shape)
    >>> signs = np.where(rng.random((500, 12)) < 0.5, -1.0, 1.0)
    >>> signs[0] = 1
    >>> base[3, :, :5] += 3.0
    >>> both[3, :, :5] += 3.0
    >>> list_control(both, base, signs).p > 0.05  # a detector of word pairs
    True
    """
    _check(phrase)
    _check(list_)
    d = [interaction(Z) for Z in (phrase, list_)]
    difference = d[0] - d[1]
    kept = (difference != 0).sum(axis=0) >= min_informative
    if not kept.any():
        raise DataError(f"no feature differs between the contexts in {min_informative} items; nothing can be tested.")
    w = flip_weights(difference[:, kept])
    both = zip((phrase, list_), d, frames or (None, None), strict=True)
    parts = [_patterns(Z, one, kept, weights=w, frames=f) for Z, one, f in both]
    n, size = phrase.shape[1], len(parts[0])
    K = np.concatenate(parts) @ np.concatenate(parts).T
    own = [lengths(K[a : a + size, a : a + size], np.arange(n), n) for a in (0, size)]
    # a gain of the phrase alone lengthens all of it: both contexts in units of their own main effects
    scale = np.sqrt([one.effects for one in own]) if min(one.effects for one in own) > 0 else np.ones(2)
    v = np.concatenate([_turned(own[0].coefficients) / scale[0], -_turned(own[1].coefficients) / scale[1]])
    null = flipped_lengths(np.einsum("a,aibk,b->ik", v, K.reshape(len(v), n, len(v), n), v), signs)
    longer = own[0].value > own[1].value and not own[0].share <= own[1].share
    ratio = own[1].value / own[0].value if own[0].value > 0 else np.nan
    return ListControl(
        float(null[0]), null, reached_share(null) if longer else 1.0, own[0].value, own[1].value,
        own[0].share - own[1].share, float(ratio), int(kept.sum()),
    )  # fmt: skip


def flipped_lengths(R: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Cross-validated squared length of the mean under every flip, (s'Rs - tr R) / (n (n - 1)).

    Parameters
    ----------
    R : array of shape (n_items, n_items), inner products of the items
    signs : array of shape (n_relabellings, n_items)
    """
    n = len(R)
    return (np.einsum("bi,bi->b", signs @ R, signs) - np.trace(R)) / (n * (n - 1))


def lengths(K: np.ndarray, items: np.ndarray, n_all: int) -> Lengths:
    """Coefficients, residual products and lengths of some items, from the Gram matrix of all items' patterns.

    Parameters
    ----------
    K : square array with rows mu, alpha, beta of all items, frame by frame, and d of all items last
    items : numbers of the items that count
    n_all : number of items in K
    """
    blocks, n = len(K) // n_all, len(items)
    G = K.reshape(blocks, n_all, blocks, n_all)[:, items][..., items]
    total, diagonal = G.sum(axis=(1, 3)), np.einsum("aibi->ab", G)
    delta = (total - diagonal) / (n * (n - 1))
    delta = (delta + delta.T) / 2
    k = blocks - 1
    PP = delta[:k, :k]
    c = np.linalg.solve(PP + RIDGE * max(np.trace(PP), np.finfo(float).tiny) / k * np.eye(k), delta[:k, k])
    v = _turned(c)
    R = np.einsum("a,aibk,b->ik", v, G, v)
    value = float((R.sum() - np.trace(R)) / (n * (n - 1)))
    effects = float(PP[1::3, 1::3].mean() + PP[2::3, 2::3].mean())  # of the averages over frames
    return Lengths(value, value / effects if effects > 0 else np.nan, c, R, effects)


def _turned(c: np.ndarray) -> np.ndarray:
    """Weights of mu, alpha, beta and d in r."""
    return np.append(-c, 1.0)


def _patterns(
    Z: np.ndarray, d: np.ndarray, kept: np.ndarray, *, weights: np.ndarray, frames: np.ndarray | None
) -> np.ndarray:
    """Rows mu, alpha, beta of all items, frame by frame, then d; kept features, weighted."""
    rows = []
    for one in (Z[None] if frames is None else frames)[..., kept]:
        rows += [one.mean(axis=0), (one[1] - one[0] + one[3] - one[2]) / 2, (one[2] - one[0] + one[3] - one[1]) / 2]
    return np.concatenate([*rows, d[:, kept]]) * np.sqrt(weights)


def _check(Z: np.ndarray) -> None:
    if Z.ndim != 3 or len(Z) != 4 or Z.shape[1] < 4:
        raise DataError(f"pre-activations have shape {Z.shape}; give (4 cells, at least 4 items, features).")
    if not np.isfinite(Z).all():
        raise DataError("pre-activations are not all finite; extract them with the model in float32.")
