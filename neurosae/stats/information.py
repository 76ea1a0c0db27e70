r"""Information that two sources hold only together, against an additive surrogate. Exploratory: never evidence alone.

Sources and target are split at their medians. Two measures, in bits:

    synergy (BROJA) = I(T; A, B) - min over q of I_q(T; A, B), q having the (T, A) and (T, B) margins of p;
    interaction information = I(T; A, B) - I(T; A) - I(T; B), entropies corrected for their bias.

Their size cannot tell a readout that adds two sources from one that needs both: a sum has synergy too. So p comes from
surrogates: T is fitted by a logistic regression on the sources one by one, drawn anew from the fit, and measured again.
Shuffling the target instead rejects for every additive readout, and is not offered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neurosae.errors import DataError, choose
from neurosae.spec.integration import EXCLUDED, MEASURES

GRID, ROUNDS = 9, 7  # the minimum is bracketed to 4^-7 of its range


class Synergy(NamedTuple):
    """One measure: bits, mean of its surrogates, bits above it, one-sided p, and share of ones of the three splits."""

    measure: str
    value: float
    surrogate: float
    above: float
    p: float
    null: np.ndarray


def check_measure(name: str) -> str:
    """A measure that is offered; the others are refused with the reason.

    Examples
    --------
    >>> check_measure("i_min")
    Traceback (most recent call last):
    neurosae.errors.DataError: i_min gives 1 bit of redundancy and 1 bit of synergy to a target that copies two ...
    """
    if name in EXCLUDED:
        raise DataError(f"{name} {EXCLUDED[name]}; use {' or '.join(MEASURES)} with the additive surrogate.")
    choose("measure of synergy", name, dict.fromkeys(MEASURES))
    return name


def synergy(
    first: np.ndarray, second: np.ndarray, target: np.ndarray, *, n_surrogates: int = 999, seed: int
) -> list[Synergy]:
    """Both measures of one target and two sources, with their additive surrogates.

    Parameters
    ----------
    first, second, target : arrays of shape (n_stimuli,)
        Scores. The target is a quantity inside the model, never the condition: that a stimulus is in cell 11 has half a
        bit of synergy by construction.
    n_surrogates : int
    seed : int

    Returns
    -------
    list of Synergy : `broja`, `interaction_information`

    Raises
    ------
    DataError
        If a score takes one value on one side of its median only, so that it cannot be split.

    Notes
    -----
    H0: P(T = 1) is a logistic function of f(A) + f(B). Approximate. A threshold on a sum is outside H0 and is found in
    16 to 49 % of data sets although a monotone link would remove it. Stimuli count as independent.

    References
    ----------
    Bertschinger et al. (2014), Entropy 16:2161. Fomins, Sych & Helmchen (2022), Network Neuroscience 6:1243.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b, e = rng.standard_normal((3, 200))
    >>> [round(one.p, 3) for one in synergy(a, b, a * b + 0.5 * e, n_surrogates=99, seed=0)]
    [0.01, 0.01]
    """
    A, B, T = (split(x, name) for x, name in ((first, "first"), (second, "second"), (target, "target")))
    n, rng = len(T), np.random.default_rng(seed)
    drawn = (rng.random((n_surrogates, n)) < additive_probability(T, A, B)).astype(int)
    return _measured(A, B, np.concatenate([T[None], drawn]))


def shuffled_synergy(first: np.ndarray, second: np.ndarray, target: np.ndarray, *, n: int, seed: int) -> float:
    """One-sided p of the BROJA synergy against shuffled targets, which must not be used: it fails in control worlds."""
    A, B, T = (split(x, name) for x, name in ((first, "first"), (second, "second"), (target, "target")))
    order = np.argsort(np.random.default_rng(seed).random((n, len(T))), axis=1)
    return _measured(A, B, np.concatenate([T[None], T[order]]))[0].p


def _measured(A: np.ndarray, B: np.ndarray, targets: np.ndarray) -> list[Synergy]:
    """Both measures of the observed target, row 0, and of its surrogates."""
    p = joint(targets, A, B)
    values = {"broja": broja_synergy(p), "interaction_information": interaction_information(p, len(A))}
    out = []
    for measure, bits in values.items():
        null = bits[1:]
        mean = float(null.mean())
        reached = (1 + (null >= bits[0] - 1e-12).sum()) / (1 + len(null))
        out.append(Synergy(measure, float(bits[0]), mean, float(bits[0]) - mean, float(reached), null))
    return out


def split(x: np.ndarray, name: str) -> np.ndarray:
    """1 above the median, else 0; refused where one side would be almost empty."""
    x = np.asarray(x, dtype=float)
    out = (x > np.median(x)).astype(int)
    if not 0.1 <= out.mean() <= 0.9:
        raise DataError(
            f"the {name} score lies on one side of its median in {max(out.mean(), 1 - out.mean()):.0%} of the stimuli; "
            "it cannot be split in two."
        )
    return out


def joint(T: np.ndarray, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Shares of the eight combinations, (R, 2, 2, 2) over (T, A, B), of binary targets (R, n) and sources (n,).

    Examples
    --------
    >>> joint(np.array([[0, 1]]), np.array([0, 1]), np.array([0, 1]))[0, 1, 1, 1].item()
    0.5
    """
    code = T * 4 + A * 2 + B
    return (np.stack([(code == k).sum(axis=1) for k in range(8)], axis=1) / code.shape[1]).reshape(-1, 2, 2, 2)


def broja_synergy(p: np.ndarray) -> np.ndarray:
    """BROJA synergy in bits (R,) of joint laws (R, 2, 2, 2) over (T, A, B).

    Given its margins q has two free numbers, q(t, 1, 1) for t = 0, 1; I_q is convex in them, and a grid that closes in
    on its smallest value finds the minimum.

    Examples
    --------
    >>> xor = np.zeros((1, 2, 2, 2))
    >>> xor[0, [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]] = 0.25
    >>> broja_synergy(xor).round(4)
    array([1.])
    """
    pt, a, b = p.sum(axis=(2, 3)), p[:, :, 1, :].sum(axis=2), p[:, :, :, 1].sum(axis=2)
    least, most = np.maximum(0, a + b - pt), np.minimum(a, b)
    low, high, steps, rows = least.copy(), most.copy(), np.linspace(0, 1, GRID), np.arange(len(p))
    best = np.zeros(len(p))
    for _ in range(ROUNDS):
        x = low[..., None] + (high - low)[..., None] * steps
        q = np.stack([x, a[..., None] - x, b[..., None] - x, pt[..., None] - a[..., None] - b[..., None] + x], axis=-1)
        own = _entropy(q).sum(axis=-1)
        value = _entropy(q[:, 0, :, None, :] + q[:, 1, None, :, :]).sum(axis=-1) - own[:, 0, :, None] - own[:, 1, None]
        flat = value.reshape(len(p), -1)
        k = flat.argmin(axis=1)
        best = flat[rows, k]
        at = np.stack([x[rows, 0, k // GRID], x[rows, 1, k % GRID]], axis=1)
        width = (high - low) / (GRID - 1)
        low, high = np.maximum(least, at - width), np.minimum(most, at + width)
    joint_information = _entropy(pt).sum(axis=1) + _entropy(p.sum(axis=1)).sum(axis=(1, 2)) - _entropy(p).sum((1, 2, 3))
    return joint_information - (best + _entropy(pt).sum(axis=1))


def interaction_information(p: np.ndarray, n: int) -> np.ndarray:
    """I(T; A, B) - I(T; A) - I(T; B) in bits (R,), every entropy with the correction of Miller and Madow for n draws.

    Examples
    --------
    >>> xor = np.zeros((1, 2, 2, 2))
    >>> xor[0, [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 1]] = 0.25
    >>> interaction_information(xor, 10**9).round(6)
    array([1.])
    """

    def h(q: np.ndarray) -> np.ndarray:
        cells = q.reshape(len(q), -1)
        return _entropy(cells).sum(axis=1) + ((cells > 0).sum(axis=1) - 1) / (2 * n * np.log(2))

    T, A, B = p.sum(axis=(2, 3)), p.sum(axis=(1, 3)), p.sum(axis=(1, 2))
    both = h(T) + h(p.sum(axis=1)) - h(p)
    return both - (h(T) + h(A) - h(p.sum(axis=3))) - (h(T) + h(B) - h(p.sum(axis=2)))


def additive_probability(T: np.ndarray, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Fitted P(T = 1) of every stimulus, logistic in A and B without their product; ridge 1e-3 against separation."""
    X, b = np.column_stack([np.ones(len(T)), A, B]).astype(float), np.zeros(3)
    for _ in range(25):
        mu = _logistic(X @ b)
        w = np.maximum(mu * (1 - mu), 1e-6)
        b = b + np.linalg.solve(X.T @ (X * w[:, None]) + 1e-3 * np.eye(3), X.T @ (T - mu) - 1e-3 * b)
    return _logistic(X @ b)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -8, 8)))


def _entropy(p: np.ndarray) -> np.ndarray:
    """-p log2 p of every entry."""
    p = np.maximum(p, 1e-15)
    return -p * np.log2(p)
