"""Texts of one region pooled to one row each, and items with the categories that are permuted over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError, choose
from neurosae.extraction.collapse import collapse
from neurosae.extraction.responses import take_rows
from neurosae.spec.design import Design
from neurosae.spec.examine_tests import POOLS
from neurosae.stats.units import AnnData, ItemData


def pooled_region(
    adata: AnnData, region: str | None = None, *, pool: str | None = None, split: str | None = None
) -> AnnData:
    """One row per text: the rows of a region, its tokens pooled where they were kept apart.

    Parameters
    ----------
    adata : responses of one site
    region : left out where there is only one
    pool : `max`, `mean` or `last`; left out, max. Responses that are collapsed already keep what they have
    split : left out, all items

    Raises
    ------
    DataError
        Unknown region; or pool max, which grows with length, where lengths differ by condition.
    """
    known = list(dict.fromkeys(adata.obs["region"].astype(str)))
    if region is None and len(known) > 1:
        raise DataError(f"the responses have the regions {', '.join(known)}; name one, region='{known[0]}'.")
    name = choose("region of these responses", region or known[0], {one: one for one in known})
    keep = (adata.obs["region"].astype(str) == name).to_numpy()
    if split is not None:
        keep &= (adata.obs["split"].astype(str) == split).to_numpy()
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise DataError(f"no text of split '{split}' has region '{name}'.")
    part = take_rows(adata, rows, adata.obs.iloc[rows].copy())
    if not part.obs["stimulus"].duplicated().any():
        return part
    return collapse(part, choose("pool", pool or "max", {one: one for one in POOLS}))


@dataclass(frozen=True)
class CategoryItems:
    """Rows whose categories are permuted: items where the factor varies between them, else items x levels.

    Attributes
    ----------
    data : the item data of the effect;  between : whether the factor varies between items
    levels : names of the categories;  codes : category of each row (n_rows,)
    row : row of every item x cell of `data`
    blocks : inside which categories change places (n_rows,): strata, or the item
    category_of_group : category of each group of `data.codes`, where labels move over items
    """

    data: ItemData
    factor: str
    between: bool
    levels: tuple[str, ...]
    codes: np.ndarray
    row: np.ndarray
    blocks: np.ndarray
    category_of_group: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of rows of each category; no relabelling changes it."""
        return np.bincount(self.codes, minlength=len(self.levels)).astype(float)

    def means(self, Y: sp.csr_matrix) -> sp.csc_matrix:
        """Mean of the item x cell rows of `data` that belong to each row (n_rows, m)."""
        size = np.bincount(self.row)
        pick = sp.csr_matrix((1 / size[self.row], (self.row, np.arange(len(self.row)))))
        out = sp.csc_matrix(pick @ Y)
        out.eliminate_zeros()
        return out

    def standardized(self, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Y centred inside blocks and of unit variance there, with which columns vary at all: (Z, bool (m,))."""
        _, block = np.unique(self.blocks, return_inverse=True)
        size = np.bincount(block)
        pick = sp.csr_matrix((1 / size[block], (block, np.arange(len(block)))))
        Z = Y - (pick @ Y)[block]
        spread = np.sqrt((Z**2).sum(axis=0) / max(len(Y) - len(size), 1))
        varies = spread > 1e-9 * np.maximum(np.abs(Y).max(axis=0, initial=0), 1e-300)
        return Z / np.where(varies, spread, 1), varies

    def sums(self, Z: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Sums of Z over the rows of every category, for every row of codes: (n_relabellings, K, m)."""
        K = len(self.levels)
        member = (codes[:, None, :] == np.arange(K)[None, :, None]).astype(float)
        return (member.reshape(-1, len(Z)) @ Z).reshape(len(codes), K, -1)

    def category_of_text(self, adata: AnnData) -> np.ndarray:
        """Category of every row of pooled responses."""
        order = {level: k for k, level in enumerate(self.levels)}
        return adata.obs[self.factor].astype(str).map(order).to_numpy(dtype=np.int64)


def category_items(data: ItemData, design: Design, factor: str) -> CategoryItems:
    """Rows, categories and blocks of an effect over all levels of one factor."""
    names, at = tuple(design.factors[factor].levels), list(design.factors).index(factor)
    level = np.array([names.index(cell[at]) for cell in data.cells])[data.row_cell]
    between = data.exchange.levels is None
    row = data.row_unit if between else data.row_unit * len(names) + level
    codes = np.zeros(int(row.max()) + 1, dtype=np.int64)
    codes[row] = level
    if not between:
        blocks = np.repeat(np.arange(data.n), len(names))
        return CategoryItems(data, factor, between, names, codes, row, blocks, np.arange(len(names)))
    assert data.codes is not None
    of_group = np.zeros(int(data.codes.max()) + 1, dtype=np.int64)
    of_group[data.codes] = codes
    strata = np.zeros(data.n, dtype=np.int64) if data.strata is None else np.asarray(data.strata)
    return CategoryItems(data, factor, between, names, codes, row, strata, of_group)
