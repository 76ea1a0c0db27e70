"""Item-wise differences of several scores: t of every column under sign flips, and intervals from resampled items."""

from __future__ import annotations

import numpy as np

from neurosae.stats.relabel import Relabelling, signs

N_BOOT = 2000


def resampled_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of the mean over resampled items; every rule resamples the same items."""
    rng = np.random.default_rng([seed, len(values)])
    means = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=N_BOOT) @ values / len(values)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def sign_tiles(relabelling: Relabelling) -> list[np.ndarray]:
    """All flips as signs, in tiles of at most 1,024."""
    return [signs(relabelling, a, min(1024, relabelling.n - a)) for a in range(0, relabelling.n, 1024)]


def flip_t(D: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Student's t of the mean of every column under every flip (n_flips, n_columns); 0 for a column of zeros.

    Examples
    --------
    >>> flip_t(np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]), np.ones((1, 3))).round(3).tolist()
    [[2.646, 0.0]]
    """
    n = len(D)
    mean, q = S @ D / n, (D**2).sum(axis=0)
    left = np.maximum(q - n * mean**2, 1e-12 * np.maximum(q, 1e-300))
    return np.where(q > 0, mean / np.sqrt(left / (n * (n - 1))), 0.0)
