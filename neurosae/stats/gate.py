r"""Context-dependent coupling: does one feature set follow another more closely in a phrase than in a list?

Both concepts are present in both contexts (cell 11). Scores of the two sets are centred over items inside each context,
what the recorded gain of the stimulus explains is taken out, and they are scaled to unit variance. The statistic is

    T = atanh r_phrase - atanh r_list,

under swaps of the two contexts within items, the scores of a stimulus together. A correlation, unlike a slope, does not
change when a context multiplies the variance of a score; what a shared gain adds is taken out by measuring the gain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError

LARGEST = 0.999  # of a correlation, before it is transformed
TIE = 1e-12


class Coupling(NamedTuple):
    """Couplings of k pairs of sets in two contexts.

    Attributes
    ----------
    r : array of shape (2, k), correlation in the list and in the phrase, gain taken out
    value : T of every pair (k,)
    p_unc, p_corr : two-sided p (k,), single and over the maximum of all pairs
    seed, target : scores as they entered the correlation (2, n_items, k), for figures
    """

    r: np.ndarray
    value: np.ndarray
    p_unc: np.ndarray
    p_corr: np.ndarray
    seed: np.ndarray
    target: np.ndarray


def coupling(seed: np.ndarray, target: np.ndarray, signs: np.ndarray, *, gain: np.ndarray | None = None) -> Coupling:
    """Test whether the coupling of two scores differs between two contexts.

    Parameters
    ----------
    seed, target : arrays of shape (2, n_items) or (2, n_items, k)
        Scores in the list (0) and in the phrase (1): mean pre-activation of a set; k pairs of sets at once.
    signs : array of shape (n_relabellings, n_items), the identity first; -1 swaps the contexts of an item
    gain : array of shape (2, n_items) or (2, n_items, q), optional
        What a stimulus may do to both scores at once, as it was measured: log norm, number of tokens.

    Raises
    ------
    DataError
        If a score does not vary in one of the contexts: coupling is undefined there.

    Notes
    -----
    H0: the contexts are exchangeable within items once the gain is taken out. Approximate, because the gain is
    regressed out inside each context before contexts are swapped.

    References
    ----------
    McLaren et al. (2012), NeuroImage 61:1277 (context-dependent connectivity).

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> s, e = rng.standard_normal((2, 2, 40))
    >>> t = np.stack([e[0], s[1] + 0.5 * e[1]])
    >>> signs = np.where(rng.random((500, 40)) < 0.5, -1.0, 1.0)
    >>> signs[0] = 1
    >>> found = coupling(s, t, signs)
    >>> found.r.round(2).ravel().tolist(), float(found.p_corr[0])
    ([-0.01, 0.82], 0.004)
    """
    S, T = (_centred(np.asarray(x, dtype=float)) for x in (seed, target))
    if gain is not None:
        G = _centred(np.asarray(gain, dtype=float))
        S, T = _without(S, G), _without(T, G)
    S, T = _standardized(S, "seed", seed), _standardized(T, "target", target)
    values = fisher_differences(S, T, signs)
    size = np.abs(values)
    limit = size[0] - TIE * (1 + size[0])
    p_unc = (size >= limit).mean(axis=0)
    p_corr = (size.max(axis=1)[:, None] >= limit).mean(axis=0)
    return Coupling((S * T).mean(axis=1), values[0], p_unc, p_corr, S, T)


def fisher_differences(S: np.ndarray, T: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Difference of Fisher z, phrase - list, under every swap (n_relabellings, k): a matrix product per sum."""
    swap = (signs < 0).astype(float)
    n = S.shape[1]

    def sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moved = swap @ (x[1] - x[0])
        return x[0].sum(axis=0) + moved, x[1].sum(axis=0) - moved

    parts = zip(sums(S), sums(T), sums(S * T), sums(S * S), sums(T * T), strict=True)
    z = []
    for s, t, st, ss, tt in parts:
        scale = np.sqrt(np.maximum(ss - s * s / n, 1e-30) * np.maximum(tt - t * t / n, 1e-30))
        z.append(np.arctanh(np.clip((st - s * t / n) / scale, -LARGEST, LARGEST)))
    return z[1] - z[0]


def slope_differences(seed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Student's t of the difference between the two contexts' regression slopes (k,): what must not be used.

    A context that multiplies the variance of the seed changes the slope and not the coupling. Kept for the table of
    control worlds, where it is shown failing.
    """
    S, T = (_centred(np.asarray(x, dtype=float)) for x in (seed, target))
    n = S.shape[1]
    b = (S * T).sum(axis=1) / (S * S).sum(axis=1)
    left = ((T - b[:, None] * S) ** 2).sum(axis=1) / (n - 2)
    return (b[1] - b[0]) / np.sqrt((left / (S * S).sum(axis=1)).sum(axis=0))


def _centred(x: np.ndarray) -> np.ndarray:
    x = x[:, :, None] if x.ndim == 2 else x
    if x.ndim != 3 or len(x) != 2:
        raise DataError(f"scores have shape {x.shape}; give (2 contexts, items) or (2 contexts, items, pairs).")
    return x - x.mean(axis=1, keepdims=True)


def _without(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """What the gain does not explain, context by context; a gain that does not vary explains nothing."""
    out = np.empty_like(x)
    for c in range(2):
        size = np.sqrt((gain[c] ** 2).sum(axis=0))
        used = gain[c][:, size > 1e-9 * np.maximum(1.0, np.abs(gain[c]).max(initial=0.0))]
        if used.shape[1] >= len(used) - 3:
            raise DataError(f"{used.shape[1]} measures of gain for {len(used)} items; give fewer.")
        q = np.linalg.qr(used)[0] if used.shape[1] else used
        out[c] = x[c] - q @ (q.T @ x[c])
    return out


def _standardized(x: np.ndarray, name: str, given: np.ndarray) -> np.ndarray:
    sd = x.std(axis=1)
    size = np.abs(np.asarray(given, dtype=float)).max(initial=0.0)
    if (sd <= 1e-9 * max(size, 1e-300)).any():
        context = ("list", "phrase")[int(np.argwhere(sd <= 1e-9 * max(size, 1e-300))[0, 0])]
        raise DataError(f"the {name} score does not vary over items in the {context}: coupling is undefined there.")
    return x / sd[:, None]
