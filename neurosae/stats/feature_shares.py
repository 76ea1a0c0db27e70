r"""Which features an RDM is made of: shares of every feature, exactly, and their distribution under swapped labels.

Squared distances add over features, D = sum_j D_j, so with the centred model M~

    phi_j = <M~, D_j>,   sum_j phi_j = <M~, D>,

which is the Shapley value of feature j for the covariance criterion. With u_ij the pattern of item i over the K
conditions, 0 where it is in none, N_kl the number of pairs of different items in conditions k and l, and L the
Laplacian of M~ with every entry divided by N_kl,

    phi_j = 1/m (S_j' L S_j - sum_i u_ij' L u_ij),   S_j = sum_i u_ij.

A swap R of labels inside item i leaves the even part (I + R)/2 u and turns the sign of the odd part, so that phi under
any swaps s is a constant plus sum_r lam_r ((sum_i s_i z_irj)^2 - sum_i z_irj^2), z along the eigenvectors of odd L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from neurosae.errors import DataError
from neurosae.stats.rdm import Patterns
from neurosae.stats.rdm_compare import RANKS, embed

TILE = 256


def feature_rdms(found: Patterns, weights: np.ndarray | None = None) -> np.ndarray:
    """Cross-validated squared distances of every feature alone, (n_pairs, m); their sum is the RDM.

    Divided by the number of features, as the RDM is. `weights` says how often each item counts, (n_items,).
    """
    K, X = len(found.conditions), found.X.toarray()
    w = (np.ones(len(found.items)) if weights is None else weights)[found.item]
    Z = np.zeros((K, len(w)))
    Z[found.condition, np.arange(len(w))] = w
    sums, counts = Z @ X, Z.sum(axis=1)
    own = (Z * w) @ X**2
    own_counts = (Z * w).sum(axis=1)
    same = (sums**2 - own) / (counts**2 - own_counts)[:, None]
    i, j = np.triu_indices(K, 1)
    cross, pairs = sums[i] * sums[j], counts[i] * counts[j]
    if len(found.item) > len(found.items):  # an item's product with itself in another condition is left out
        U, inside = by_item(found), membership(found)
        v = np.ones(len(found.items)) if weights is None else weights
        cross = cross - np.einsum("i,ikm,ikm->km", v**2, U[:, i], U[:, j], optimize=True)
        pairs = pairs - np.einsum("i,ik,ik->k", v**2, inside[:, i], inside[:, j])
    return (same[i] + same[j] - 2 * cross / pairs[:, None]) / X.shape[1]


def by_item(found: Patterns) -> np.ndarray:
    """Patterns of every item over the conditions (n_items, K, m), 0 where it is in none."""
    U = np.zeros((len(found.items), len(found.conditions), found.n_features))
    U[found.item, found.condition] = found.X.toarray()
    return U


def membership(found: Patterns) -> np.ndarray:
    """Whether an item is in a condition, 1 or 0 (n_items, K)."""
    inside = np.zeros((len(found.items), len(found.conditions)))
    inside[found.item, found.condition] = 1.0
    return inside


def coefficients(model: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """L of the module docstring (K, K): the model's Laplacian over the numbers of pairs of different items.

    Examples
    --------
    >>> coefficients(np.array([1.0]), np.array([[1.0, 1.0], [1.0, 1.0]])).tolist()  # two items in both conditions
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    K = inside.shape[1]
    W = np.zeros((K, K))
    W[np.triu_indices(K, 1)] = model
    W = W + W.T
    pairs = np.outer(inside.sum(axis=0), inside.sum(axis=0)) - inside.T @ inside
    return (np.diag(W.sum(axis=1)) - W) / pairs


def centred_model(model: np.ndarray) -> np.ndarray:
    """The model with its largest distance 1 and mean 0.

    Examples
    --------
    >>> centred_model(np.array([0.0, 4.0, 4.0, 0.0])).tolist()
    [-0.5, 0.5, 0.5, -0.5]
    """
    top = np.abs(model).max()
    if not np.isfinite(top) or np.ptp(model) <= 1e-12 * max(top, 1e-300):
        raise DataError("the model has only equal distances, so no feature can carry it.")
    return model / top - (model / top).mean()


@dataclass(frozen=True)
class Swapped:
    """phi of every feature and its distribution under swaps: phi(s) = rest + sum_r value_r ((s'z_r)^2 - sum z_r^2).

    rest : (m,);  values : (R,);  z : (R, n_items, m);  linear : (n_items, m), or None where odd and even do not mix
    """

    rest: np.ndarray
    values: np.ndarray
    z: np.ndarray
    linear: np.ndarray | None

    def at(self, s: np.ndarray) -> np.ndarray:
        """Phi of every feature for every row of signs, (n, m)."""
        out = np.repeat(self.rest[None], len(s), axis=0)
        for value, z in zip(self.values, self.z, strict=True):
            out += value * ((s @ z) ** 2)
        return out if self.linear is None else out + s @ self.linear


def swapped(found: Patterns, model: np.ndarray, R: np.ndarray) -> Swapped:
    """Prepare phi for swaps of labels inside items.

    Parameters
    ----------
    found : patterns of items, each in all conditions or in those of its group
    model : condensed, centred
    R : array (K, K), symmetric, R R = I: the swap of one item's pattern over conditions

    Raises
    ------
    DataError
        Where the swap would move an item into a condition that it is not in.
    """
    U, inside = by_item(found), membership(found)
    K, scale = len(found.conditions), U.shape[2]
    if ((inside[:, :, None] != inside[:, None, :]) & (np.abs(R) > 1e-12)[None]).any():
        raise DataError("some items are not in all conditions that would be swapped, so nothing can be swapped there.")
    L = coefficients(model, inside)
    even, odd = (np.eye(K) + R) / 2, (np.eye(K) - R) / 2
    S = U.sum(axis=0)
    own = np.einsum("ikm,kl,ilm->m", U, L, U, optimize=True)
    value, vector = np.linalg.eigh(odd @ L @ odd)
    used = np.abs(value) > 1e-10 * np.abs(L).max()
    z = np.einsum("kr,ikm->rim", odd @ vector[:, used], U, optimize=True)
    # what no swap changes: the even part and everybody's product with himself
    rest = np.einsum("km,kl,lm->m", even @ S, L, even @ S, optimize=True) - own
    mixed = odd @ L @ even
    linear = None
    if np.abs(mixed).max() > 1e-10 * np.abs(L).max():
        # sum over different items only: an item's own product stays as it was observed
        V = np.einsum("kl,ilm->ikm", mixed, S[None] - U, optimize=True)
        linear = 2 * np.einsum("ikm,ikm->im", U, V, optimize=True) / scale
        rest = rest + 2 * np.einsum("ikm,kl,ilm->m", U, mixed, U, optimize=True)
    return Swapped(rest / scale, value[used] / scale, z, linear)


def largest_shares(
    draw: Callable[[int, int], np.ndarray], n: int, q: np.ndarray, *, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of phi/q over features per relabelling, and how many relabellings reach each feature's own value.

    Parameters
    ----------
    draw(first, count) : phi of every feature under relabellings first … first + count - 1, (count, m)
    n : number of relabellings
    q : array (m,), sums of squares of every feature, which no relabelling changes
    size : array (m,), of the terms that phi is the difference of: what is closer than their rounding is a tie
    """
    maxima, reached, observed = np.empty(n), np.zeros(len(q), dtype=np.int64), None
    for first in range(0, n, TILE):
        count = min(TILE, n - first)
        values = draw(first, count) / q
        observed = values[0] if observed is None else observed
        reached += (values >= observed - 1e-9 * (np.abs(observed) + np.abs(size) / q)).sum(axis=0)
        maxima[first : first + count] = values.max(axis=1)
    return maxima, reached


def linear_space(D: np.ndarray, compare: str) -> np.ndarray:
    """Embedded distances of every feature (E, m): the embedding of their sum is their sum."""
    if compare in RANKS:
        raise DataError(f"{compare} ranks distances, which do not add over features; set compare: cosine_cov.")
    return np.stack([embed(v, compare) for v in D.T], axis=1)


def leave_one_out(Y: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Loss of fit when a feature is left out, cos(sum Y, m) - cos(sum Y - Y_j, m), of shape (m,).

    Examples
    --------
    >>> leave_one_out(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0])).round(4)
    array([ 0.7071, -0.2929])
    """
    total, unit = Y.sum(axis=1), m / np.sqrt(m @ m)
    along, size = unit @ Y, (total @ total) - 2 * total @ Y + (Y**2).sum(axis=0)
    length = np.sqrt(np.where(size > 1e-24 * (total @ total), size, np.nan))
    return unit @ total / np.sqrt(total @ total) - (unit @ total - along) / length


def sampled_shapley(
    Y: np.ndarray, m: np.ndarray, *, n_orders: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shapley values of the features for the fit cos(sum Y, m), and their standard errors over random orders.

    Every order is also run backwards, which halves the error for nearly additive fits; values add up to the fit.

    Examples
    --------
    >>> Y = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> values, _ = sampled_shapley(Y, np.array([1.0, 0.0]), n_orders=10, rng=np.random.default_rng(0))
    >>> values.round(4).tolist()
    [0.8536, -0.1464]
    """
    unit, runs = m / np.sqrt(m @ m), []
    for _ in range(n_orders):
        order, both = rng.permutation(Y.shape[1]), np.zeros(Y.shape[1])
        for way in (order, order[::-1]):
            path = np.cumsum(Y[:, way], axis=1)
            length = np.sqrt((path**2).sum(axis=0))
            fit = np.where(length > 0, unit @ path / np.where(length > 0, length, 1), 0.0)
            both[way] += np.diff(fit, prepend=0.0) / 2
        runs.append(both)
    values = np.array(runs)
    spread = values.std(axis=0, ddof=1) / np.sqrt(n_orders) if n_orders > 1 else np.full(Y.shape[1], np.nan)
    return values.mean(axis=0), spread


def reweighted(Y: np.ndarray, m: np.ndarray, ridge: float) -> np.ndarray:
    """Non-negative weights of features that move their sum towards the model, shrunk to equal weights.

    min |Y w - t m|^2 + ridge tr(YY')/E |w - 1|^2 with t the scale of the unweighted fit, solved through E x E; weights
    below 0 are set to 0. Ones where the unweighted fit is not positive.
    """
    total = Y.sum(axis=1)
    t = float(total @ m / (m @ m))
    if t <= 0:
        return np.ones(Y.shape[1])
    inner = Y @ Y.T
    penalty = ridge * np.trace(inner) / len(inner)
    step = np.linalg.solve(inner + penalty * np.eye(len(inner)), t * m - total)
    return np.maximum(1 + Y.T @ step, 0.0)
