"""Columns with hardly a zero: their signed sums by a matrix product, which there beats masked sums over non-zeros.

A masked sum costs a fixed time per non-zero, a product per cell. Measured on one thread, the product wins from about
three quarters of non-zeros on and where there are enough items and columns to fill its tiles; sparser columns lose by
it (twice as slow at 30 %), so only the dense ones are handed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

DENSE = 0.8  # share of non-zeros from which the product wins
LEAST = 64  # items or columns below which it does not
BLOCK = 256  # columns of one product, so that its sums stay in cache


def find_dense(indptr: np.ndarray, n_items: int) -> np.ndarray:
    """Which columns of a CSC matrix are worth a matrix product: bool (m,), none where they are few or short.

    Examples
    --------
    >>> indptr = np.arange(0, 101 * 70, 70)  # 100 columns of 70 non-zeros
    >>> int(find_dense(indptr, n_items=80).sum()), int(find_dense(indptr, n_items=800).sum())
    (100, 0)
    """
    dense = np.diff(indptr) >= DENSE * n_items
    return dense if min(n_items, dense.sum()) >= LEAST else np.zeros(len(dense), dtype=bool)


def as_rows(indptr: np.ndarray, idx: np.ndarray, val: np.ndarray, *, n_items: int) -> np.ndarray:
    """The columns of a CSC matrix as rows: float32 (m, n_items)."""
    rows = np.zeros((len(indptr) - 1, n_items), dtype=np.float32)
    rows[np.repeat(np.arange(len(rows)), np.diff(indptr)), idx] = val
    return rows


def raise_maxima(rows: np.ndarray, W: np.ndarray, mx: np.ndarray, *, two_sided: bool) -> None:
    """Raise mx[lane] to the maximum over rows of |sum_i s_i row_i|, or of the sum; W (n_items, L) is True = keep."""
    signs = W.astype(np.float32)
    signs *= 2
    signs -= 1
    sums = np.empty((BLOCK, len(mx)), dtype=np.float32)
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        out = np.matmul(block, signs, out=sums[: len(block)])
        if two_sided:
            np.abs(out, out=out)
        np.maximum(mx, out.max(axis=0), out=mx)


@contextmanager
def one_blas_thread(needed: bool) -> Iterator[None]:
    """One order of summation whatever the number of threads; tiles run on threads of their own."""
    if not needed:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
