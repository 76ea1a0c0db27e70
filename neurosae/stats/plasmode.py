"""Studies that were never run: the noise of real or simulated responses, without their effect, and a stated effect.

    y_i of a new item = a random pilot item, its + and - cells exchanged with probability 1/2 for all features at once
    (between items: its label is drawn anew); then features are chosen at random, fire more often in + by the stated
    difference of densities, with magnitudes of their own, and as many times as strongly.

The exchange keeps sparsity and dependence between features and removes the pilot's mean effect, so that an effect
estimated from few items never plans the next study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.stats.simulate import example_design, simulate
from neurosae.stats.units import ItemData, firing, item_data

EXAMPLE = {"number": {"pl": 1, "sg": -1}}


class Pilot(NamedTuple):
    """Where noise comes from: mean responses of every item in the + and in the - cells, dense (n_items, m).

    minus : None where the factor varies between items; then `plus` is the item's response, whatever its group
    share : share of items in the + group
    """

    plus: np.ndarray
    minus: np.ndarray | None = None
    share: float = 0.5

    @property
    def density(self) -> np.ndarray:
        """Share of items x cells where a feature fires, (m,)."""
        both = self.plus if self.minus is None else np.concatenate([self.plus, self.minus])
        return (both > 0).mean(axis=0)


def pilot_of(data: ItemData) -> Pilot:
    """The pilot in one effect's item data, with all its features.

    Raises
    ------
    DataError
        The effect is not one of two sides, or it is a difference between groups of a difference within items.
    """
    plus, minus, _, _ = firing(data, np.arange(data.Y.shape[1]))  # pyright: ignore[reportOptionalSubscript]
    if data.codes is None:
        if not (data.weights.min() < 0 < data.weights.max()):
            raise DataError("power needs an effect with + and - cells; give a difference of levels.")
        return Pilot(plus, minus)
    if len(set(data.codes.tolist())) != 2 or (data.D.data < 0).any():
        raise DataError(
            "power between items is for a difference of two groups; give the effect of one factor with two levels."
        )
    codes, weights = data.grouping
    return Pilot(plus + minus, None, float((weights[codes] > 0).mean()))


def join_pilots(pilots: Sequence[Pilot]) -> Pilot:
    """The items of several pilots with the same features as one; features that never fire are left out."""
    plus = np.concatenate([pilot.plus for pilot in pilots])
    minus = None if pilots[0].minus is None else np.concatenate([cast(np.ndarray, p.minus) for p in pilots])
    alive = Pilot(plus, minus).density > 0
    if not alive.any():
        raise DataError("no feature is active in these responses; there is no noise to plan with.")
    return Pilot(plus[:, alive], None if minus is None else minus[:, alive], pilots[0].share)


class Draw(NamedTuple):
    """One study: responses in the + and - cells (or all items, + group first, and None), and the planted features."""

    plus: np.ndarray
    minus: np.ndarray | None
    n_plus: int
    planted: np.ndarray


def draw(pilot: Pilot, n_items: int, rng: np.random.Generator, *, n_planted: int = 0, effect=(0.1, 1.5)) -> Draw:
    """Draw a study of n items; `effect` = (difference of densities, factor on the magnitude)."""
    rows = rng.integers(0, len(pilot.plus), n_items)
    planted = np.sort(rng.choice(pilot.plus.shape[1], n_planted, replace=False))
    if pilot.minus is None:
        n_plus = int(np.clip(round(pilot.share * n_items), 2, n_items - 2))
        made = pilot.plus[rows]
        made[:n_plus, planted], made[n_plus:, planted] = _inject(
            made[:n_plus, planted], made[n_plus:, planted], pilot.plus[:, planted], effect=effect, rng=rng
        )
        return Draw(made, None, n_plus, planted)
    flip = rng.integers(0, 2, (n_items, 1)) == 1  # whole items: the dependence between features stays
    plus, minus = (
        np.where(flip, pilot.minus[rows], pilot.plus[rows]),
        np.where(flip, pilot.plus[rows], pilot.minus[rows]),
    )
    pool = np.concatenate([pilot.plus[:, planted], pilot.minus[:, planted]])
    plus[:, planted], minus[:, planted] = _inject(plus[:, planted], minus[:, planted], pool, effect=effect, rng=rng)
    return Draw(plus, minus, n_items, planted)


def _inject(
    plus: np.ndarray, minus: np.ndarray, pool: np.ndarray, *, effect: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Raise the density in + and lower it in - by half the difference each, or as far as density 0 or 1 allows."""
    difference, factor = effect
    p = (pool > 0).mean(axis=0)
    up = np.clip(difference / 2 + np.maximum(difference / 2 - p, 0), 0, 1 - p)
    down = np.clip(difference - up, 0, p)
    new = (plus == 0) & (rng.random(plus.shape) < up / np.maximum(1 - p, 1e-12))
    gone = (minus > 0) & (rng.random(minus.shape) < down / np.maximum(p, 1e-12))
    plus = np.where(new, _magnitudes(pool, len(plus), rng), plus) * np.sqrt(factor)
    return plus, np.where(gone, 0.0, minus) / np.sqrt(factor)


def _magnitudes(pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random active values (n, m) of every feature of the pool, which fires somewhere."""
    active = -np.sort(-pool, axis=0)
    count = (pool > 0).sum(axis=0)
    return np.take_along_axis(active, (rng.random((n, pool.shape[1])) * count).astype(int), axis=0)


# ------------------------------------------------------------------ from arrays to what the tests take


def paired_template(n_items: int) -> ItemData:
    """Item data of a two-level factor within n items, to be filled by `paired_data`."""
    design = example_design(n_items)
    return item_data(simulate(design, n_features=2, density=0.5, seed=0), design, EXAMPLE, region="noun")


def grouped_template(n_items: int) -> ItemData:
    """Item data of a two-level factor between n items, to be filled by `grouped_data`."""
    design = example_design(n_items + n_items % 2, between=True)
    return item_data(simulate(design, n_features=2, density=0.5, seed=0), design, EXAMPLE, region="noun")


def paired_data(template: ItemData, plus: np.ndarray, minus: np.ndarray) -> ItemData:
    """The template's items with other responses in its + and - cells, dense (n, m) each; d = plus - minus."""
    cells = [int(np.argmin(template.weights)), int(np.argmax(template.weights))]
    return replace(
        template,
        D=_columns(plus - minus),
        Y=sp.csr_matrix(np.concatenate([minus, plus])),
        row_unit=np.tile(np.arange(len(plus)), 2),
        row_cell=np.repeat(cells, len(plus)),
        features=np.arange(plus.shape[1]),
    )


def grouped_data(template: ItemData, values: np.ndarray, n_plus: int) -> ItemData:
    """The template's items with other responses, dense (n, m), the first n_plus of them in the + group."""
    _, weights = template.grouping
    side = np.where(np.arange(len(values)) < n_plus, np.argmax(weights), np.argmin(weights))
    cells = np.where(np.arange(len(values)) < n_plus, np.argmax(template.weights), np.argmin(template.weights))
    keep = slice(0, len(values))
    return replace(
        template,
        names=template.names[keep],
        numbers=template.numbers[keep],
        D=_columns(values),
        Y=sp.csr_matrix(values),
        row_unit=np.arange(len(values)),
        row_cell=cells,
        codes=side.astype(template.grouping[0].dtype),
        strata=None if template.strata is None else template.strata[keep],
        features=np.arange(values.shape[1]),
    )


def _columns(values: np.ndarray) -> sp.csc_matrix:
    D = sp.csc_matrix(values)
    D.eliminate_zeros()
    D.sort_indices()
    return D
