r"""D_c, the cross-validated length of an effect in the space of all features, under whole-item relabellings.

With d_i (m,) the contrast of item i,

    D_c = 1/(n (n-1)) sum_{i != k} d_i'W d_k,   W = diag(1 / (q_j/n + median q/n)),   q_j = sum_i d_ij^2.

The mean contrast is multiplied with itself only through pairs of different items, so D_c is unbiased for its squared
length and may be negative. q and therefore W do not change when items are flipped: the test is exact. One Gram matrix
G of the items serves all flips, s'Gs - tr G. Between items, the same length of the difference of two group means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from neurosae.spec.results import counted_p
from neurosae.stats.rdm import SAME
from neurosae.stats.rdm_noise import gram
from neurosae.stats.relabel import Relabelling, flips, labels, permutations, signs
from neurosae.stats.units import ItemData

TILE = 1024


@dataclass(frozen=True)
class Length:
    """D_c of one effect at one place.

    Attributes
    ----------
    value : D_c, in squared standardized units
    null : array of shape (n_permutations,), D_c in standard deviations over the relabellings; entry 0 is observed
    p : one-sided, large lengths are evidence
    n_features, n_informative : features that enter, and items whose contrast is not zero in them
    """

    value: float
    null: np.ndarray
    p: float
    n_features: int
    n_informative: int


def contrast_length(
    D: sp.csr_matrix,
    relabelling: Relabelling,
    *,
    columns: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    min_informative: int = 6,
) -> Length | None:
    """D_c of item data and its distribution over relabellings; None where no feature has enough items.

    Parameters
    ----------
    D : sparse array of shape (n_items, n_features), without stored zeros
        Contrast of every item (flips), or the item's own value (permutations of labels).
    relabelling : of these items, or of more
    columns : int array of shape (n_items,), optional
        Place of each item among the items that are relabelled; by default they are the same.
    weights : array of shape (n_groups,), optional
        For permutations the weights of the group means in the effect, which sum to 0; e.g. (-1, 1).
    min_informative : int
        Features with a value in fewer items are left out, which no relabelling changes.

    Notes
    -----
    H0: for every item the law of d_i over all features jointly is the same as that of -d_i (flips), or the items'
    labels are exchangeable inside their strata. Not a test of any single feature.

    References
    ----------
    Allefeld & Haynes (2014), NeuroImage 89:345. Walther et al. (2016), NeuroImage 137:188.

    Examples
    --------
    >>> from neurosae.stats.relabel import flips
    >>> D = sp.csr_matrix([[1.0, 2.0], [1.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 2.0], [3.0, 1.0]])
    >>> found = contrast_length(D, flips(np.arange(6), 1000, seed=0))
    >>> found.p == 1 / 32, found.n_features, len(found.null)
    (True, 2, 32)
    """
    D = sp.csr_matrix(D[:, np.flatnonzero(np.diff(D.tocsc().indptr) >= min_informative)])
    n, m = D.shape  # pyright: ignore[reportGeneralTypeIssues]
    if m == 0:
        return None
    squares = np.asarray(D.power(2).sum(axis=0)).ravel()
    if relabelling.kind != "flip":
        squares = (
            squares - np.asarray(D.sum(axis=0)).ravel() ** 2 / n
        )  # around the mean of all items: no label moves it
    typical = float(np.median(squares))
    scale = np.sqrt(n / np.maximum(squares + typical, np.finfo(float).tiny))
    G = gram(sp.csr_matrix(D @ sp.diags(scale)))
    np.fill_diagonal(G, 0.0)
    place = np.arange(n) if columns is None else columns
    starts = range(0, relabelling.n, TILE)
    values = np.concatenate([_values(G, relabelling, place, first=first, weights=weights) for first in starts])
    size = float(np.abs(G).sum() / (n * (n - 1)))
    return length_of(values, size, n_features=m, n_informative=int((np.diff(D.indptr) > 0).sum()))


def length_of(values: np.ndarray, size: float, *, n_features: int, n_informative: int) -> Length:
    """D_c, its null in standard deviations and its p, from values under relabelling; size is that of their summands."""
    # rounding breaks ties between a relabelling and its mirror image: a tolerance in units of the summands
    spread, tie = float(np.sqrt((values**2).mean())), 1e-10 * size
    return Length(
        value=float(values[0]),
        null=values / spread if spread > tie else np.zeros(len(values)),
        p=float((values >= values[0] - tie).mean()),
        n_features=n_features,
        n_informative=n_informative,
    )


def _values(
    G: np.ndarray, relabelling: Relabelling, place: np.ndarray, *, first: int, weights: np.ndarray | None
) -> np.ndarray:
    """D_c of one tile of relabellings, G without its diagonal."""
    count, n = min(TILE, relabelling.n - first), len(G)
    if relabelling.kind == "flip":
        S = signs(relabelling, first, count)[:, place]
        return np.einsum("bi,bi->b", S @ G, S) / (n * (n - 1))
    return group_lengths(
        G, labels(relabelling, first, count)[:, place], np.array([-1.0, 1.0]) if weights is None else weights
    )


def group_lengths(G: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""|sum_g w_g mean_g|^2 without the products of an item with itself, per row of group codes.

    Parameters
    ----------
    G : array of shape (n_items, n_items), inner products of the items, zero diagonal
    codes : int array of shape (n_relabellings, n_items)
    weights : array of shape (n_groups,)

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 5.0, 6.0])
    >>> G = np.outer(x, x) - np.diag(x**2)
    >>> float(group_lengths(G, np.array([[0, 0, 1, 1]]), np.array([-1.0, 1.0]))[0])  # 30 + 2 - 2 * 5.5 * 1.5
    15.5
    """
    counts = np.bincount(codes[0], minlength=len(weights)).astype(float)
    a = (weights / counts)[codes]
    total = np.einsum("bi,bi->b", a @ G, a)
    for g, (weight, size) in enumerate(zip(weights, counts, strict=True)):
        one = (codes == g).astype(float)
        within = np.einsum("bi,bi->b", one @ G, one)  # pairs of different items: size (size - 1) of them, not size^2
        total += weight**2 * within * (1 / (size * (size - 1)) - 1 / size**2)
    return total


def feature_lengths(
    D: np.ndarray, relabelling: Relabelling, place: np.ndarray, *, first: int, weights: np.ndarray | None
) -> np.ndarray:
    """D_c of every feature alone under one tile of relabellings, (n, m), unweighted; over features they add up.

    Parameters
    ----------
    D : array of shape (n_items, m)
    place : where these items stand in the relabelling
    weights : of the groups, where labels are permuted

    Examples
    --------
    >>> from neurosae.stats.relabel import permutations
    >>> how = permutations(np.arange(4), np.array([0, 0, 1, 1]), 100, seed=0)
    >>> D = np.array([[1.0], [2.0], [5.0], [6.0]])
    >>> float(feature_lengths(D, how, np.arange(4), first=0, weights=np.array([-1.0, 1.0]))[0, 0])
    15.5
    """
    count, n, square = min(TILE, relabelling.n - first), len(D), D**2
    if relabelling.kind == "flip":
        return ((signs(relabelling, first, count)[:, place] @ D) ** 2 - square.sum(axis=0)) / (n * (n - 1))
    codes = labels(relabelling, first, count)[:, place]
    weights = np.array([-1.0, 1.0]) if weights is None else weights
    counts = np.bincount(codes[0], minlength=len(weights)).astype(float)
    a = (weights / counts)[codes]
    out = (a @ D) ** 2 - a**2 @ square
    for g, (weight, size) in enumerate(zip(weights, counts, strict=True)):
        one = (codes == g).astype(float)
        out += weight**2 * ((one @ D) ** 2 - one @ square) * (1 / (size * (size - 1)) - 1 / size**2)
    return out


# --- one effect at many places, many effects ------------------------------------------------------------------------


@dataclass(frozen=True)
class LengthTest:
    """D_c of one effect at one place, the item data it was made of, and how they were relabelled."""

    length: Length
    data: ItemData
    relabelling: Relabelling


def effect_lengths(
    data: Mapping[Any, ItemData], *, n_permutations: int, min_informative: int = 6, seed: int, split: str = "test"
) -> dict[Any, LengthTest]:
    """D_c of one effect at several places; places where no feature has enough items are absent.

    Parameters
    ----------
    data : mapping from a place to the item data of the effect there
    n_permutations, seed, split : of the relabellings; number b means the same at all places and in all tests
    """
    relabellings = relabellings_of(list(data.values()), n_permutations, seed=seed, split=split)
    out = {}
    for (key, one), (relabelling, columns) in zip(data.items(), relabellings, strict=True):
        length = contrast_length(
            solid(one), relabelling, columns=columns, weights=one.groups, min_informative=min_informative
        )
        if length is not None:
            out[key] = LengthTest(length, one, relabelling)
    return out


def relabellings_of(
    data: Sequence[ItemData], n: int, *, seed: int, split: str
) -> list[tuple[Relabelling, np.ndarray | None]]:
    """For each place its relabelling, and where its units stand in it."""
    everyone = np.unique(np.concatenate([d.numbers for d in data])) if data else np.empty(0)
    same = all(np.array_equal(d.numbers, everyone) for d in data)
    out = []
    for d in data:
        if d.codes is None:
            out.append((flips(everyone, n, seed=seed, split=split), np.searchsorted(everyone, d.numbers)))
        else:
            # distinct permutations are listed only where all places have the same units
            listed = None if same else False
            made = permutations(d.numbers, d.codes, n, blocks=d.strata, seed=seed, split=split, enumerate_all=listed)
            out.append((made, None))
    return out


def solid(data: ItemData) -> sp.csr_matrix:
    """Item data without differences that are float32 rounding, which the weights of D_c would blow up to size 1."""
    D = sp.csc_matrix(data.D, copy=True)
    largest = abs(data.Y).max(axis=0).toarray().ravel()
    D.data[np.abs(D.data) <= SAME * np.repeat(largest, np.diff(D.indptr))] = 0.0
    D.eliminate_zeros()
    return sp.csr_matrix(D)


def corrected_lengths(
    tests: Mapping[str, Mapping[Any, LengthTest | str]],
) -> tuple[dict[tuple[str, Any], float], np.ndarray | None]:
    """Correct p over places by the maximum, then over effects by Holm.

    Parameters
    ----------
    tests : for each effect and place the test, or a reason why there is none

    Returns
    -------
    p : by (effect, place)
    null_max : float32 (n_permutations,), maximum over everything; None where effects have unequal numbers

    Notes
    -----
    At every step Holm counts the effects of which some place is not yet rejected. That is the closed test whose
    intersections are Bonferroni over effects of a maximum over places, so the family-wise error is controlled strongly.
    """
    p, tops = {}, []
    for name, by_place in tests.items():
        done = {key: test.length.null for key, test in by_place.items() if isinstance(test, LengthTest)}
        if done:
            tops.append(np.max(list(done.values()), axis=0))
            values = counted_p(tops[-1], np.array([null[0] for null in done.values()]), tolerance=1e-9)
            p |= {(name, key): float(value) for key, value in zip(done, values, strict=True)}
    order, running, out = sorted(p, key=lambda one: p[one]), 0.0, {}
    for step, one in enumerate(order):
        left = len({name for name, _ in order[step:]})
        running = max(running, min(1.0, left * p[one]))
        out[one] = running
    alike = len({len(top) for top in tops}) == 1
    return out, np.max(tops, axis=0).astype(np.float32) if alike else None
