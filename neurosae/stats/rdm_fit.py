"""Models with parameters: non-negative mixtures of RDMs, and the best of several; evaluated on other data.

Weights minimize the squared distance to the data RDM in the space of the comparator (ranks: of centred distances, since
ranks of a mixture are no mixture of ranks). A fit on the data that chose the weights flatters the model; therefore they
are found on some items (and conditions) and evaluated on the others.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

from neurosae.errors import DataError
from neurosae.stats.rdm_compare import RANKS, compare_rdms, embed

SMALLEST = 9  # conditions from which they too are divided: a group needs 3 for as many distances


def fit_weights(data: np.ndarray, models: np.ndarray, compare: str, *, kind: str) -> np.ndarray:
    """Weights of the models: a non-negative mixture (`weighted`), or 1 for the best and 0 for the others (`select`).

    Parameters
    ----------
    data : array of shape (n_rdms, n_pairs)
    models : array of shape (n_models, n_pairs)

    Examples
    --------
    >>> models = np.array([[0.0, 1, 1, 1, 1, 0], [1.0, 0, 1, 1, 0, 1]])
    >>> fit_weights((3 * models[0] + models[1])[None], models, "cosine", kind="weighted").round(6)
    array([3., 1.])
    """
    if kind == "select":
        fits = np.array([np.mean([compare_rdms(v, m, compare) for v in data]) for m in models])
        if np.isnan(fits).all():
            raise DataError("no model varies over these conditions, so none can be chosen.")
        return (np.arange(len(models)) == np.nanargmax(fits)).astype(float)
    space = "corr" if compare in RANKS else compare
    x = np.stack([embed(v, space) for v in data])
    lengths = np.sqrt((x**2).sum(axis=1))
    target = (x / np.where(lengths > 0, lengths, 1)[:, None]).mean(axis=0) * lengths.mean()
    columns = np.stack([embed(m, space) for m in models], axis=1)
    return scipy.optimize.nnls(columns, target)[0]


def condition_groups(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random groups of conditions for cross-validation, as many as rsatoolbox makes; one where they are too few."""
    n_groups = 1 if n < SMALLEST else 2 if n < 12 else 3 if n < 24 else 4 if n < 40 else 5
    return [np.sort(part) for part in np.array_split(rng.permutation(n), n_groups)]


def cross_validate(
    train: np.ndarray, test: np.ndarray, models: np.ndarray, *, compare: str, kind: str | None,
    groups: list[np.ndarray],
) -> float:  # fmt: skip
    """Mean fit of models to test RDMs, with weights from the training RDMs and from other conditions.

    Parameters
    ----------
    train, test : arrays of shape (n_folds, n_pairs), of different items
    models : array of shape (n_models, n_pairs)
    kind : "weighted", "select", or None for one fixed model
    groups : of conditions; with more than one, weights come from pairs outside a group and fits from pairs inside it

    Returns
    -------
    float
        NaN where a test RDM has no variation.
    """
    K = round((1 + np.sqrt(1 + 8 * models.shape[1])) / 2)
    i, j = np.triu_indices(K, 1)
    values = []
    for group in groups:
        inside = np.isin(i, group) & np.isin(j, group)
        outside = ~(np.isin(i, group) | np.isin(j, group)) if len(groups) > 1 else inside
        for old, new in zip(train, test, strict=True):
            w = np.ones(1) if kind is None else fit_weights(old[None, outside], models[:, outside], compare, kind=kind)
            values.append(compare_rdms(new[inside], w @ models[:, inside], compare))
    return float(np.mean(values))
