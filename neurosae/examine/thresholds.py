"""Above which activation a text counts as strong: the median of a feature's active values on other text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from neurosae.dictionary.texts import read_texts, sample_texts
from neurosae.errors import DataError
from neurosae.examine.activity import text_activity
from neurosae.examine.scores import active_median

TOKENS = 50_000  # of reference text


def reference_medians(
    model: Any,
    dictionaries: Mapping[str, Any],
    texts: Sequence[str] = (),
    *,
    n_tokens: int | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Median active value of every feature on reference text, {site: (n_features,)}; NaN where it was never active.

    Parameters
    ----------
    model, dictionaries : as given to `extract`
    texts : files or folders; none: what the model writes itself
    n_tokens : left out, 50,000
    seed : of what the model writes
    """
    wanted = n_tokens or TOKENS
    written = read_texts(list(texts)) if texts else sample_texts(model, wanted, seed=seed)
    seen = text_activity(model, dictionaries, written, n_tokens=wanted)
    return {site: activity.quantile(0.5) for site, activity in seen.items()}


def thresholds(A: sp.csc_matrix, given: np.ndarray | float | None, features: np.ndarray) -> np.ndarray:
    """Threshold of every column of A (m,): one number, one per feature of the dictionary, or A's own active median.

    Examples
    --------
    >>> thresholds(sp.csc_matrix([[1.0, 4.0], [3.0, 0.0]]), None, np.arange(2)).tolist()
    [2.0, 4.0]
    """
    if given is None:
        return active_median(A)
    if np.ndim(given) == 0:
        return np.full(len(features), float(given))
    own = np.asarray(given, dtype=float)
    if len(own) <= int(features.max(initial=-1)):
        raise DataError(f"theta has {len(own)} values, but features go up to {features.max()}; give one per feature.")
    return own[features]
