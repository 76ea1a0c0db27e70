r"""Shares of features in a geometry when every item is in one condition: their distribution under permuted labels.

With s_k and t_k the sum and the sum of squares of a feature over the n_k items of condition k, W the centred model as a
matrix and w_k its row sums,

    phi = 1/m [ sum_k w_k (s_k^2 - t_k) / (n_k (n_k - 1)) - sum_{k != l} W_kl s_k s_l / (n_k n_l) ],

m features. Labels of whole items are permuted inside blocks, so every n_k stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurosae.design.exchange import exchangeability
from neurosae.design.weights import Effect
from neurosae.errors import DataError, SpecError
from neurosae.spec.design import Design
from neurosae.stats.rdm import Patterns
from neurosae.stats.relabel import Relabelling, labels, permutations
from neurosae.stats.units import item_numbers


@dataclass(frozen=True)
class Permuted:
    """phi of every feature under any labels of the items.

    X : (n_items, m);  W : (K, K), symmetric, diagonal 0;  counts : (K,)
    """

    X: np.ndarray
    W: np.ndarray
    counts: np.ndarray

    def at(self, conditions: np.ndarray) -> np.ndarray:
        """Phi of every feature for every row of conditions, (n, m).

        Examples
        --------
        >>> X = np.array([[1.0], [3.0], [0.0], [0.0]])
        >>> parts = Permuted(X, np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([2.0, 2.0]))
        >>> parts.at(np.array([[0, 0, 1, 1], [0, 1, 0, 1]])).ravel().tolist()  # 1 x 3, 0; 1 x 0 - 2 x (1/2 x 3/2)
        [3.0, -1.5]
        """
        n, square, out = self.counts, self.X**2, np.zeros((len(conditions), self.X.shape[1]))
        sums = [(conditions == k).astype(float) @ self.X for k in range(len(n))]
        for k, row in enumerate(self.W):
            own = (conditions == k).astype(float) @ square
            out += row.sum() * (sums[k] ** 2 - own) / (n[k] * (n[k] - 1))
            for other in range(k):
                out -= 2 * row[other] * sums[k] * sums[other] / (n[k] * n[other])
        return out / self.X.shape[1]

    @property
    def size(self) -> np.ndarray:
        """How large the terms are that phi is the difference of, (m,): rounding is relative to it."""
        return np.abs(self.W).sum() * (self.X**2).sum(axis=0) / (self.counts.min() * self.X.shape[1])


def permuted(found: Patterns, model: np.ndarray) -> Permuted:
    """Prepare phi for permuted labels.

    Parameters
    ----------
    found : patterns of items that are in one condition each
    model : condensed, centred
    """
    K = len(found.conditions)
    W = np.zeros((K, K))
    W[np.triu_indices(K, 1)] = model
    by_item = found.X.toarray()[np.argsort(found.item)]
    return Permuted(by_item, W + W.T, np.bincount(found.condition, minlength=K).astype(float))


@dataclass(frozen=True)
class Labelling:
    """How the labels of an effect move over items: codes of `relabelling` -> conditions; H0 and exactness in words."""

    relabelling: Relabelling
    condition: np.ndarray
    exact: bool
    h0: str
    p_min: float

    def draw(self, first: int, count: int) -> np.ndarray:
        """Condition of every item under relabellings first … first + count - 1, (count, n_items)."""
        return self.condition[labels(self.relabelling, first, count)]


def labelling(
    design: Design, effect: Effect, found: Patterns, *, n: int, draw: bool, split: str, seed: int
) -> Labelling:
    """The permutations of an effect's labels over items, as `contrast` has them.

    Parameters
    ----------
    n : number of permutations
    draw : draw them even where all could be enumerated

    Raises
    ------
    DataError
        Items in several conditions, items that share forms, an effect that weighs only some of the items.
    """
    if len(found.item) != len(found.items):
        raise DataError("items are nested in conditions and in several of them; only one condition per item is tested.")
    try:
        how = exchangeability(design, effect, items=found.items)
    except SpecError as error:
        raise DataError(str(error)) from None
    if how.kind != "permute_labels" or how.groups is None or how.items != tuple(found.items):
        raise DataError("the effect does not compare all items with each other, so their labels cannot be permuted.")
    if how.n_units < len(found.items):
        raise DataError("items share forms and move together; their labels cannot be permuted one by one.")
    condition = np.zeros(how.groups.max() + 1, dtype=np.int64)
    own = np.empty(len(found.items), dtype=np.int64)
    own[found.item] = found.condition
    condition[how.groups] = own
    if (condition[how.groups] != own).any():
        raise DataError(
            "items of one label are in several conditions; take `conditions` that the effect's factors make."
        )
    made = permutations(
        item_numbers(design, found.items), how.groups, n, blocks=how.strata, seed=seed, split=split,
        enumerate_all=False if draw else None,
    )  # fmt: skip
    inside = how.words.removesuffix(", one permutation for all features, positions and sites").partition(": ")[2]
    h0 = f"items do not depend on the labels of {' and '.join(effect.factors)}, jointly for all features; {inside}"
    return Labelling(made, condition, how.exact, h0, max(1 / made.n, 1 / how.n_relabellings))
