r"""Shares of features in a geometry when items are in the conditions of their group: permuted labels of whole items.

Groups are the levels of factors between items; an item is in the conditions of its group, one or, beside factors within
items, several. With L as in `feature_shares` and u_i the pattern of item i over the conditions of its group,

    phi = 1/m [ S' L S - sum_i u_i' L_g(i) u_i ],   S_g = sum of u_i over the items of group g,

m features. An item that gets another label takes its whole pattern along, level by level. Labels are permuted inside
blocks, so the number of items in every condition stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neurosae.design.exchange import exchangeability
from neurosae.design.weights import Effect
from neurosae.errors import DataError, SpecError
from neurosae.spec.design import Design
from neurosae.stats.feature_shares import coefficients, membership
from neurosae.stats.rdm import Patterns
from neurosae.stats.relabel import Relabelling, labels, permutations
from neurosae.stats.units import item_numbers


@dataclass(frozen=True)
class Permuted:
    """phi of every feature under any labels of the items.

    X : (n_items, n_levels, m), patterns of items at the levels within items;  L : (K, K)
    groups : (n_groups, n_levels), the condition of every group at every level
    """

    X: np.ndarray
    L: np.ndarray
    groups: np.ndarray

    def at(self, group: np.ndarray) -> np.ndarray:
        """Phi of every feature for every row of groups of the items, (n, m).

        Examples
        --------
        >>> X, L = np.array([[[1.0]], [[3.0]], [[0.0]], [[0.0]]]), np.array([[0.5, -0.25], [-0.25, 0.5]])
        >>> parts = Permuted(X, L, np.array([[0], [1]]))
        >>> parts.at(np.array([[0, 0, 1, 1], [0, 1, 0, 1]])).ravel().tolist()  # 1 x 3, 0; 1 x 0 - 2 x (1/2 x 3/2)
        [3.0, -1.5]
        """
        n, levels, m = self.X.shape
        sums, out = np.zeros((len(group), len(self.L), m)), np.zeros((len(group), m))
        for number, conditions in enumerate(self.groups):
            inside = (group == number).astype(float)
            sums[:, conditions] = (inside @ self.X.reshape(n, -1)).reshape(-1, levels, m)
            own = np.einsum("ikm,kl,ilm->im", self.X, self.L[np.ix_(conditions, conditions)], self.X, optimize=True)
            out -= inside @ own
        return (out + np.einsum("bkm,kl,blm->bm", sums, self.L, sums, optimize=True)) / m

    @property
    def size(self) -> np.ndarray:
        """How large the terms are that phi is the difference of, (m,): rounding is relative to it."""
        n_items = len(self.X)
        return np.abs(self.L).sum() * n_items * (self.X**2).sum(axis=(0, 1)) / self.X.shape[2]


def permuted(found: Patterns, model: np.ndarray) -> Permuted:
    """Prepare phi for permuted labels.

    Parameters
    ----------
    found : patterns of items that are in the conditions of their group
    model : condensed, centred
    """
    groups, _ = item_groups(found)
    order = np.lexsort((found.condition, found.item))
    X = found.X.toarray()[order].reshape(len(found.items), groups.shape[1], -1)
    return Permuted(X, coefficients(model, membership(found)), groups)


def item_groups(found: Patterns) -> tuple[np.ndarray, np.ndarray]:
    """Conditions of every group of items at every level within items (n_groups, n_levels), and the group of each item.

    Conditions are ordered by the levels of the factors, so those of one group stand in the order of the levels within
    items, whatever the group.

    Raises
    ------
    DataError
        Where items share some of their conditions but not all.
    """
    own = [tuple(sorted(found.condition[found.item == k].tolist())) for k in range(len(found.items))]
    groups = sorted(set(own))
    if len({len(one) for one in groups}) > 1 or len(set(sum(groups, ()))) < len(sum(groups, ())):
        raise DataError("items share some of their conditions but not all, so their labels cannot be permuted.")
    return np.array(groups), np.array([groups.index(one) for one in own])


@dataclass(frozen=True)
class Labelling:
    """How the labels of an effect move over items: codes of `relabelling` -> groups; H0 and exactness in words."""

    relabelling: Relabelling
    group: np.ndarray
    exact: bool
    h0: str
    p_min: float

    def draw(self, first: int, count: int) -> np.ndarray:
        """Group of every item under relabellings first … first + count - 1, (count, n_items)."""
        return self.group[labels(self.relabelling, first, count)]


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
        Items that share forms, an effect that weighs only some of the items, or that compares levels within items too.
    """
    if inner := [name for name in effect.factors if design.factors[name].varies == "within"]:
        raise DataError(
            f"the effect compares levels of {' and '.join(inner)} within items between groups of items; no permutation "
            "of whole items tests its shares. Test its length with `test: factorial`."
        )
    _, of_item = item_groups(found)
    try:
        how = exchangeability(design, effect, items=found.items)
    except SpecError as error:
        raise DataError(str(error)) from None
    if how.kind != "permute_labels" or how.groups is None or how.items != tuple(found.items):
        raise DataError("the effect does not compare all items with each other, so their labels cannot be permuted.")
    if how.n_units < len(found.items):
        raise DataError("items share forms and move together; their labels cannot be permuted one by one.")
    group = np.zeros(how.groups.max() + 1, dtype=np.int64)
    group[how.groups] = of_item
    if (group[how.groups] != of_item).any():
        raise DataError(
            "items of one label are in several conditions; take `conditions` that the effect's factors make."
        )
    made = permutations(
        item_numbers(design, found.items), how.groups, n, blocks=how.strata, seed=seed, split=split,
        enumerate_all=False if draw else None,
    )  # fmt: skip
    inside = how.words.removesuffix(", one permutation for all features, positions and sites").partition(": ")[2]
    h0 = f"items do not depend on the labels of {' and '.join(effect.factors)}, jointly for all features; {inside}"
    return Labelling(made, group, how.exact, h0, max(1 / made.n, 1 / how.n_relabellings))
