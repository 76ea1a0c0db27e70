"""Random sets of features that match a given set in number, density and energy: what any such set would show."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

NEAREST = 20  # candidates for the place of a feature


def matched_sets(
    Y: sp.csr_matrix, kept: np.ndarray, chosen: np.ndarray, *, n: int = 199, seed: int
) -> list[np.ndarray] | None:
    """Random sets drawn from the other features, one for one near a chosen feature in density and energy.

    Parameters
    ----------
    Y : sparse array of shape (n_rows, n_features), the responses; only their size is used, never their labels
    kept, chosen : int arrays, the features that could be tested and those that were
    n : number of sets

    Returns
    -------
    list of sorted int arrays, each as long as `chosen`; None where the other features are fewer than the chosen

    Notes
    -----
    Distance is that of log density and log mean square, each divided by its standard deviation over all features. A
    feature's stand-in is drawn from its 20 nearest neighbours that this set does not hold yet.

    Examples
    --------
    >>> Y = sp.random(40, 30, density=0.5, random_state=1, format="csr")
    >>> sets = matched_sets(Y, np.arange(30), np.arange(5), n=3, seed=0)
    >>> [len(set(s.tolist()) - set(range(5))) for s in sets]
    [5, 5, 5]
    """
    others = np.setdiff1d(kept, chosen)
    if len(others) < len(chosen) or not len(chosen):
        return None
    density = np.diff(sp.csc_matrix(Y).indptr) / Y.shape[0]  # pyright: ignore[reportOptionalSubscript]
    energy = np.asarray(Y.power(2).mean(axis=0)).ravel()
    place = np.log(np.maximum(np.stack([density, energy], axis=1), 1e-12))
    place = place / np.maximum(place[kept].std(axis=0), 1e-12)
    gap = ((place[chosen][:, None] - place[others][None]) ** 2).sum(axis=2)
    order = np.argsort(gap, axis=1, kind="stable")
    rng = np.random.default_rng([seed, len(kept), len(chosen)])
    sets = []
    for _ in range(n):
        free, members = np.ones(len(others), dtype=bool), []
        for j in rng.permutation(len(chosen)):
            near = order[j][free[order[j]]][:NEAREST]
            pick = int(rng.choice(near))
            free[pick] = False
            members.append(others[pick])
        sets.append(np.sort(np.array(members)))
    return sets
