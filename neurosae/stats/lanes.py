"""The statistic of every column under every relabelling of one tile, where a maximum over columns is not enough.

Used where something is done to the values of a feature before features are compared: parts are combined, or a quantile
over relabellings is wanted. A tile is `kernels.LANES` relabellings, lane 0 of the first tile is the identity.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from neurosae.stats import kernels
from neurosae.stats.flips import FLIPPED, GROUPED, Columns, take, to_z
from neurosae.stats.relabel import Relabelling, flip_mask, labels


def lane_values(columns: Columns, relabelling: Relabelling, first: int) -> np.ndarray:
    """Statistics of shape (m, lanes) under relabellings first, first + 1, ..., float64, on the scale of `Columns.u`.

    Examples
    --------
    >>> from neurosae.stats.flips import flip_columns
    >>> from neurosae.stats.relabel import flips
    >>> D = sp.csc_matrix(np.array([[1.0], [2.0], [4.0]]))
    >>> lane_values(flip_columns(D, scale=np.ones(1), df=np.inf), flips(np.arange(3), 8, seed=0), 0)
    array([[ 7., -1.,  3., -5.]])
    """
    lanes = min(kernels.LANES, relabelling.n - first)
    if columns.how is FLIPPED:
        V, n = columns.V, len(relabelling.rows)
        signs = np.where(flip_mask(relabelling, first)[:, :lanes], 1.0, -1.0)
        matrix = sp.csc_matrix((V.val.astype(float), V.idx, V.indptr), shape=(n, len(columns.u)))
        return np.asarray(matrix.T @ signs)
    if columns.how is GROUPED:
        codes, C = labels(relabelling, first, lanes), len(columns.more.counts)
        masks = np.ascontiguousarray(codes.T[None] == np.arange(1, C)[:, None, None])
        out = np.empty((len(columns.u), lanes))
        _group_values(columns.V, columns.more._replace(masks=masks), out)
        return out
    alone = {"two_sided": False, "prune": False, "limit": np.full(1, np.inf)}
    each = (take(columns, np.array([j])) for j in range(len(columns.u)))
    rows = [one.how.tile(one, relabelling, first, **alone)[0][:lanes] for one in each]
    return np.array(rows, dtype=float).reshape(len(columns.u), lanes)


@kernels.compiled()
def _group_values(V, labels, out):
    """out[f, lane] = the statistic of column f under each relabelling of the tile."""
    C, L = labels.counts.size, labels.masks.shape[2]
    work = kernels.Scratch(np.empty((C, L)), np.empty((C, L)), np.empty(L), np.empty(L))
    for f in range(V.total.size):
        kernels._group_lanes(V, f, (labels, work))
        out[f] = work.out


def lane_z(columns: Columns, u: np.ndarray) -> np.ndarray:
    """Normal equivalents of statistics that `lane_values` gave; those of t by a table, to about 1e-6."""
    if columns.how.to_z is not to_z or np.isinf(columns.df):
        return np.asarray(columns.how.to_z(u, columns.df))
    table = to_z(np.tanh(np.linspace(0, kernels.STEEPEST, 4097)), columns.df)
    out = np.empty_like(u)
    _look_up(u.ravel(), table, out.ravel())
    return out


@kernels.compiled()
def _look_up(u, table, out):
    for j in range(u.size):
        out[j] = kernels.z_of(u[j], table)
