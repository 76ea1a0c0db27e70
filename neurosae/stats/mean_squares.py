"""Variance ratios of a complete table of items x frames from its mean squares, without iteration."""

from __future__ import annotations

import numpy as np


def log_ratios(squares: np.ndarray, by_items: np.ndarray, frame_sums: np.ndarray, *, n_items: int) -> np.ndarray:
    r"""REML of y ~ 1 + (1 | item) + (1 | frame) where every item stands once in every frame.

    With the expectations l of the mean squares of items, frames and residual, the criterion falls apart,

        sum_k df_k log l_k + SS_k / l_k,   l_items >= l_rest,   l_frames >= l_rest,

    and its minimum are the mean squares, one below the residual's being pooled with it, the smallest first.

    Parameters
    ----------
    squares, by_items : arrays of shape (m,), sum of y^2, and of the squared sums of items
    frame_sums : array of shape (m, n_frames)
    n_items : int

    Returns
    -------
    array of shape (m, 2)
        log(l_items / l_rest) and log(l_frames / l_rest): 0 where a variance is 0, inf where only the rest is 0.

    Examples
    --------
    >>> y = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 6.0]])  # 2 items x 3 frames
    >>> of_items, of_frames = y.sum(axis=1), y.sum(axis=0)
    >>> log_ratios(np.array([(y**2).sum()]), np.array([(of_items**2).sum()]), of_frames[None], n_items=2).round(3)
    array([[3.892, 2.944]])
    """
    T = frame_sums.shape[1]
    total = frame_sums.sum(axis=1) ** 2 / (T * n_items)
    sums = np.stack([by_items / T - total, (frame_sums**2).sum(axis=1) / n_items - total], axis=1).clip(0)
    own, df = (squares - total - sums.sum(axis=1)).clip(0), np.array([n_items - 1.0, T - 1.0])
    pooled = np.full(len(own), df[0] * df[1])
    means = sums / df
    order = np.argsort(means, axis=1)
    for k in (0, 1):
        which = order[:, k]
        low = means[np.arange(len(own)), which] < own / pooled
        own = own + np.where(low, sums[np.arange(len(own)), which], 0)
        pooled = pooled + np.where(low, df[which], 0)
    rest = (own / pooled)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.where(means > rest, means / rest, 1.0))
