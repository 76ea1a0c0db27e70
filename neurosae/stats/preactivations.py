r"""Pre-activations of a 2 x 2 (x context) experiment, item by item, relative to their value at x = 0.

A claim about integration is made before the nonlinearity: z - z0 = W_enc x of each stimulus, from the raw stream that
extraction kept (`positions.keep_x: true`) and the encoder of the site's dictionary. Frames are averaged within items
afterwards, by the same rule as everywhere; the measures of gain (norm, token count) are averaged with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.design.requirements import Parts
from neurosae.errors import DataError
from neurosae.extraction.responses import ItemCells, design_of, item_cells, provenance_of
from neurosae.stats.units import AnnData, item_numbers

CHUNK = 4096  # features whose pre-activations are made at a time
NO_ENCODER = {"omp": "orthogonal matching pursuit", "nnls": "non-negative least squares"}
AGREE = 1e-3  # relative difference of active features and their pre-activations that float32 may cause

Relative = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(rows of the raw stream, columns of the site) -> pre-activations minus their value at x = 0."""


@dataclass(frozen=True)
class Experiment:
    """The tested cells of one site, region and position.

    Attributes
    ----------
    items, numbers : names of the items, and their numbers in the design
    average : sparse array (n_contexts * 4 * n_items, n_rows), what turns rows of the responses into cell means; the
        last context is the composed one, cells are 00, 10, 01, 11
    n_contexts : 1 or 2
    adata : the responses
    relative : makes pre-activations
    dropped : what could not be used, in words
    by_frame : as `average`, for every frame alone; empty with one frame, or where items differ in their frames
    """

    items: tuple[str, ...]
    numbers: np.ndarray
    average: sp.csr_matrix
    n_contexts: int
    adata: AnnData
    relative: Relative
    dropped: str
    by_frame: tuple[sp.csr_matrix, ...] = ()

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.items)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Cell means (n_contexts, 4, n_items, ...) of numbers of every row of the responses."""
        out = np.asarray(self.average @ values)
        return out.reshape(self.n_contexts, 4, self.n, *out.shape[1:])

    def column(self, name: str) -> np.ndarray:
        """Cell means of a numeric column of obs, (n_contexts, 4, n_items)."""
        if name not in self.adata.obs:
            raise DataError(f"these responses have no column '{name}'; they have {', '.join(_numeric(self.adata))}.")
        used = np.unique(self.average.indices)
        values = np.zeros(self.adata.n_obs)
        values[used] = self.adata.obs[name].to_numpy(dtype=float, na_value=np.nan)[used]
        return self.means(values)

    def z(self, columns: np.ndarray | None = None, *, scale: str | None = None, frame: int | None = None) -> np.ndarray:
        """Cell means of z - z0, (n_contexts, 4, n_items, m), of some columns of the site or of all.

        Parameters
        ----------
        columns : column numbers of the responses
        scale : multiply by (`times`) or divide by (`over`) the recorded norm of each stimulus first
        frame : number of a frame in `by_frame`; None averages all
        """
        columns = np.arange(self.adata.n_vars) if columns is None else np.asarray(columns)
        whole = self.average if frame is None else self.by_frame[frame]
        used = np.unique(whole.indices)
        x, average = np.asarray(self.adata.obsm["x"])[used], sp.csr_matrix(whole[:, used])
        if scale is not None:
            norm = self.adata.obs["norm"].to_numpy(dtype=float)[used]
            average = sp.csr_matrix(average @ sp.diags(norm if scale == "times" else 1 / norm))
        out = np.empty((average.shape[0], len(columns)))  # pyright: ignore[reportOptionalSubscript]
        for start in range(0, len(columns), CHUNK):
            some = slice(start, start + CHUNK)
            out[:, some] = average @ self.relative(x, columns[some])
        return out.reshape(self.n_contexts, 4, self.n, len(columns))


def experiment(
    adata: AnnData,
    parts: Parts,
    *,
    region: str,
    position: int = 0,
    split: str = "test",
    dictionary: Any = None,
    need_x: bool = True,
) -> Experiment:
    """Assemble the cells of two parts and their context at one place.

    Parameters
    ----------
    adata : responses of one site, with the raw stream in obsm["x"]
    parts : factors and levels
    region, position, split : which rows
    dictionary : of the site; simulated responses, whose `x` are pre-activations, need none
    need_x : False where only columns of obs will be read

    Raises
    ------
    DataError
        If the raw stream was not kept, the dictionary has no linear encoder or is another one, or an item lacks cells.

    Examples
    --------
    >>> from neurosae.stats.worlds import world
    >>> made = world("I1", n_items=8, seed=0, options={"contexts": True})
    >>> parts = Parts(("a", "no", "yes"), ("b", "no", "yes"), ("context", "list", "phrase"))
    >>> found = experiment(made, parts, region="probe")
    >>> found.z(np.arange(5)).shape, found.column("norm").shape
    ((2, 4, 8, 5), (2, 4, 8))
    """
    design = design_of(adata)
    relative = relative_of(adata, dictionary) if need_x else _no_stream
    factors = [p[0] for p in parts if p is not None]
    own = SimpleNamespace(obs=adata.obs, uns=adata.uns, n_obs=adata.n_obs, X=sp.identity(adata.n_obs, format="csr"))
    found = item_cells(own, design, region=region, position=position, split=split, factors=factors)  # pyright: ignore
    order = [name for name in design.factors if name in factors]
    place = {cell: _place(dict(zip(order, cell, strict=True)), parts) for cell in found.cells}
    n, contexts = len(found.items), 1 if parts.context is None else 2
    rows = _rows(found, place, contexts * 4)
    lost = np.flatnonzero((rows.reshape(-1, n) < 0).any(axis=0))
    if len(lost):
        raise DataError(f"item '{found.items[lost[0]]}' lacks cells of the parts at region '{region}'.")
    dropped = f"{len(found.dropped)} item x frame dropped: incomplete" if len(found.dropped) else ""
    numbers = item_numbers(design, found.items)
    each = item_cells(own, design, region=region, position=position, split=split, factors=factors, frames="separate")  # pyright: ignore
    frames = list(dict.fromkeys(cell[-1] for cell in each.cells))
    at = [_rows(each, {c: place.get(c[:-1]) if c[-1] == f else None for c in each.cells}, contexts * 4) for f in frames]
    whole = len(frames) > 1 and all((one >= 0).all() for one in at)
    by_frame = tuple(sp.csr_matrix(each.X[one]) for one in at) if whole else ()
    if len(frames) > 1 and not whole:
        dropped = "; ".join(
            [*([dropped] if dropped else []), "items differ in their frames, whose gains count as equal"]
        )
    average = sp.csr_matrix(found.X[rows])
    return Experiment(found.items, numbers, average, contexts, adata, relative, dropped, by_frame)


def _rows(found: ItemCells, place: Mapping[tuple[str, ...], int | None], n_cells: int) -> np.ndarray:
    """Row of every cell and item, (n_cells * n_items,), -1 where there is none."""
    n = len(found.items)
    rows = np.full(n_cells * n, -1)
    for row, (item, cell) in enumerate(zip(found.row_item, found.row_cell, strict=True)):
        if (at := place[found.cells[cell]]) is not None:
            rows[at * n + item] = row
    return rows


def _no_stream(x: np.ndarray, columns: np.ndarray) -> np.ndarray:
    raise DataError("these cells were assembled for columns of obs alone.")


def relative_of(adata: AnnData, dictionary: Any) -> Relative:
    """What makes pre-activations of this site from its raw stream; refused where it would make others."""
    if "x" not in adata.obsm:
        raise DataError(
            "these responses hold no raw stream, so there are no pre-activations; extract with positions: {keep_x: "
            "true} and tokens: last, first or mean."
        )
    if dictionary is None:
        if not provenance_of(adata).get("simulated"):
            raise DataError("pre-activations need the site's dictionary; give dictionaries={site: dictionary}.")
        origin = adata.var["origin"].to_numpy(dtype=float)
        return lambda x, columns: x[:, columns] - origin[columns]
    if (kind := getattr(dictionary, "kind", "")) in NO_ENCODER:
        raise DataError(f"{NO_ENCODER[kind]} has no pre-activations; use a dictionary with a linear encoder.")
    features, origin = adata.var["feature"].to_numpy(dtype=np.int64), np.asarray(dictionary.origin, dtype=float)

    def relative(x: np.ndarray, columns: np.ndarray) -> np.ndarray:
        made = dictionary.preactivations(x, features[columns])
        return np.asarray(made, dtype=float) - origin[features[columns]]

    _refuse_other(adata, dictionary, features)
    return relative


def _refuse_other(adata: AnnData, dictionary: Any, features: np.ndarray) -> None:
    """An active feature equals its pre-activation; if not, dictionary and responses do not belong together."""
    x = np.asarray(adata.obsm["x"])
    norm = adata.obs["norm"].to_numpy(dtype=float)
    single = np.flatnonzero(np.abs(np.linalg.norm(x, axis=1) - norm) <= AGREE * norm)[:50]  # rows of one token
    X = sp.csr_matrix(adata.X[single]) if len(single) else None
    if X is None or not X.nnz:
        return
    columns = np.unique(X.indices)[:512]
    active = X[:, columns].toarray()
    z = np.asarray(dictionary.preactivations(x[single], features[columns]), dtype=float)
    fires = active > 0
    wrong = np.abs(active - z)[fires] > AGREE * (1 + np.abs(active[fires]))
    if wrong.mean() > 0.01:
        raise DataError(
            f"{wrong.mean():.0%} of the active features differ from the pre-activations of this dictionary; give the "
            "dictionary that made these responses, of a kind whose features are thresholded pre-activations."
        )


def columns_of(adata: AnnData, features: Sequence[int] | np.ndarray) -> np.ndarray:
    """Column numbers of features, by their indices in the dictionary."""
    columns = pd.Index(adata.var["feature"]).get_indexer(pd.Index(np.asarray(features, dtype=np.int64)))
    if (columns < 0).any():
        raise DataError(f"this site has {adata.n_vars} features and lacks one of the chosen ones.")
    return columns


def _place(levels: Mapping[str, str], parts: Parts) -> int | None:
    """Number of a cell, 4 x context + a + 2 b; None for levels that do not take part."""
    at = 0
    for (factor, low, high), size in zip((parts.first, parts.second), (1, 2), strict=True):
        if levels[factor] not in (low, high):
            return None
        at += size * (levels[factor] == high)
    if parts.context is not None:
        factor, low, high = parts.context
        if levels[factor] not in (low, high):
            return None
        at += 4 * (levels[factor] == high)
    return at


def _numeric(adata: AnnData) -> list[str]:
    return [str(name) for name in adata.obs.select_dtypes("number")]
