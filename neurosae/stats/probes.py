"""Sparse probes: how well k features of a dictionary tell the levels of a factor apart in items they never saw."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from neurosae.errors import DataError
from neurosae.stats.agreement import alive_values, auroc_of, d_prime_of, levels_of, rows_of

SIZES = (1, 5, 20)


def probe_scores(
    adata: Any, *, region: str, position: int = 0, split: str | None = "test", sizes: Sequence[int] = SIZES,
    n_folds: int = 4, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Held-out AUROC of a logistic regression with an L1 penalty on the k features that separate a level best.

    Items are dealt into folds; features are chosen, scaled and weighted on the other folds only. At an equal k any two
    dictionaries, and raw activations, can be compared.

    Parameters
    ----------
    adata : aligned responses of one site
    sizes : numbers of features
    n_folds : groups of items
    seed : of the folds

    Returns
    -------
    DataFrame `factor level k auroc auroc_se n_items`: mean over folds and its standard error (folds share training
    items, so it is too small a little)

    Raises
    ------
    DataError
        If there are fewer items than folds.

    References
    ----------
    Gurnee et al. (2023), Finding neurons in a haystack: case studies with sparse probing, arXiv 2305.01610.
    """
    rows = rows_of(adata, region=region, position=position, split=split)
    if len(rows.items) < n_folds:
        raise DataError(f"{len(rows.items)} items cannot be dealt into {n_folds} folds; give more items.")
    _, values = alive_values(rows)
    fold = np.random.default_rng(seed).permutation(np.arange(len(rows.items)) % n_folds)[rows.row_item]
    out = []
    for level in levels_of(adata, rows):
        for k in sizes:
            scores = [_held_out(values, level.inside, fold == f, k=k) for f in range(n_folds)]
            known = np.array([score for score in scores if np.isfinite(score)])
            if len(known) > 1:
                spread = float(known.std(ddof=1) / np.sqrt(len(known)))
                out.append({"factor": level.factor, "level": level.level, "k": k, "auroc": float(known.mean()),
                            "auroc_se": spread, "n_items": len(rows.items)})  # fmt: skip
    return pd.DataFrame(out, columns=["factor", "level", "k", "auroc", "auroc_se", "n_items"])


def _held_out(values: np.ndarray, inside: np.ndarray, held: np.ndarray, *, k: int) -> float:
    """AUROC on the held-out rows; nan where they, or the others, have one level only."""
    if len({*inside[held]}) < 2 or len({*inside[~held]}) < 2:
        return float("nan")
    train = values[~held]
    chosen = np.argsort(-np.abs(d_prime_of(train, inside[~held])), kind="stable")[:k]
    center, scale = train[:, chosen].mean(0), train[:, chosen].std(0)
    scale = np.where(scale > 0, scale, 1)
    # scikit-learn 1.8 renamed penalty="l1" to l1_ratio=1
    old = inspect.signature(LogisticRegression).parameters["penalty"].default != "deprecated"
    settings: dict[str, Any] = {"penalty": "l1"} if old else {"l1_ratio": 1.0}
    probe = LogisticRegression(solver="liblinear", random_state=0, max_iter=1_000, **settings)
    probe.fit((train[:, chosen] - center) / scale, inside[~held])
    score = probe.decision_function((values[held][:, chosen] - center) / scale)
    return float(auroc_of(rankdata(score)[:, None], inside[held][:, None])[0, 0])
