"""How often and how strongly features fire on running text, counted in one pass with memory that does not grow.

Of every feature are kept: on how many tokens it is active, sum, sum of squares and maximum of its activations, and a
histogram with 16 bins per doubling, from which quantiles are read. A bin is 4.4 to 6.3 % wide, so a quantile of the
active values is known to within that; counts, mean and maximum are exact. 416 bins of 4 bytes are 1.7 kB per feature:
41 MB for 24,576 features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from neurosae.errors import DataError
from neurosae.examine.stream import Tokens, stream_text

PER_DOUBLING = 16  # bins; the first four bits of the mantissa
LOWEST, HIGHEST = -10, 16  # activations from 2^-10 to 2^16 have bins of their own, others count in the outermost
N_BINS = (HIGHEST - LOWEST) * PER_DOUBLING
_FIRST = (127 + LOWEST) * PER_DOUBLING  # exponent bits of float32 are offset by 127
QUANTILES = (0.5, 0.9, 0.99)


class Activity:
    """An accumulator of the activity of one dictionary's features; give `add` the codes of every batch.

    Attributes
    ----------
    n_tokens : tokens seen
    n_active, total, square, largest : arrays of shape (n_features,)
    histogram : uint32 (n_features, N_BINS), tokens whose activation lies in each bin (`bin_edges`)

    Examples
    --------
    >>> seen = Activity(2)
    >>> seen.add(sp.csr_matrix([[0.0, 2.0], [0.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    >>> seen.n_tokens, seen.n_active.tolist(), seen.largest.tolist()
    (3, [0, 2], [0.0, 4.0])
    """

    def __init__(self, n_features: int) -> None:
        self.n_tokens = 0
        self.n_active = np.zeros(n_features, dtype=np.int64)
        self.total, self.square = np.zeros(n_features), np.zeros(n_features)
        self.largest = np.zeros(n_features, dtype=np.float32)
        self.histogram = np.zeros((n_features, N_BINS), dtype=np.uint32)

    def add(self, codes: sp.csr_matrix) -> None:
        """Count one batch, CSR float32 (n, n_features)."""
        n, m = codes.shape  # pyright: ignore[reportGeneralTypeIssues]
        feature, value = codes.indices, np.asarray(codes.data, dtype=np.float32)
        if len(value) and not value.min() > 0:
            raise DataError("codes hold values that are not above 0; drop exact zeros, and split signed features.")
        self.n_tokens += n
        self.n_active += np.bincount(feature, minlength=m)
        exact = value.astype(np.float64)
        self.total += np.bincount(feature, exact, minlength=m)
        self.square += np.bincount(feature, exact * exact, minlength=m)
        np.maximum.at(self.largest, feature, value)
        cell = feature.astype(np.int64) * N_BINS + bin_of(value)
        np.add.at(self.histogram.reshape(-1), cell, np.uint32(1))

    def quantile(self, q: float) -> np.ndarray:
        """Quantile of the active values of every feature (n_features,), to within a bin; NaN where never active."""
        if not 0 <= q <= 1:
            raise DataError(f"quantile {q} is outside 0 to 1.")
        filled = np.cumsum(self.histogram, axis=1, dtype=np.int64)
        wanted = q * self.n_active
        at = np.minimum((filled < wanted[:, None]).sum(axis=1), N_BINS - 1)
        row = np.arange(len(at))
        inside = self.histogram[row, at].astype(float)
        before = filled[row, at] - inside
        edges = bin_edges()
        share = np.divide(wanted - before, inside, out=np.zeros(len(at)), where=inside > 0)
        value = edges[at] + share * (edges[at + 1] - edges[at])
        return np.where(self.n_active > 0, np.minimum(value, self.largest), np.nan)


def bin_of(values: np.ndarray) -> np.ndarray:
    """Number of the histogram bin of positive float32 values, read from their bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> np.uint32(19)
    return np.clip(bits.astype(np.int64) - _FIRST, 0, N_BINS - 1)


def bin_edges() -> np.ndarray:
    """Edges of the histogram bins, (N_BINS + 1,).

    Examples
    --------
    >>> edges = bin_edges()
    >>> bool((edges[bin_of(np.float32([1.0, 3.1]))] <= [1.0, 3.1]).all()), float(edges[0] * 1024)
    (True, 1.0)
    """
    power, part = np.divmod(np.arange(N_BINS + 1), PER_DOUBLING)
    return 2.0 ** (power + LOWEST) * (1 + part / PER_DOUBLING)


def text_activity(
    model: Any, dictionaries: Mapping[str, Any], texts: Iterable[str], *, n_tokens: int | None = None
) -> dict[str, Activity]:
    """The accumulated activity of every site on running text; see `feature_summary` for the arguments."""
    seen = {site: Activity(dictionary.n_features) for site, dictionary in dictionaries.items()}

    def take(site: str, codes: sp.csr_matrix, tokens: Tokens) -> None:
        seen[site].add(codes)

    stream_text(model, dictionaries, texts, take=take, n_tokens=n_tokens)
    return seen


def feature_summary(
    model: Any,
    dictionaries: Any,
    texts: Iterable[str],
    *,
    n_tokens: int | None = None,
    quantiles: Sequence[float] = QUANTILES,
) -> pd.DataFrame:
    """Density and size of the activity of all features on running text, in one pass.

    Parameters
    ----------
    model : LanguageModel
    dictionaries : {site: dictionary}, or one dictionary, whose site is then called by its hook point
    texts : documents; an iterator is read as it is needed
    n_tokens : stop after this many tokens; left out, all are read
    quantiles : of the active values, as columns q50, q90, q99: natural doses of an intervention

    Returns
    -------
    DataFrame, one row per site and feature
        `site feature n_tokens n_active density density_high mean_active sd_active max q50 …`, in activation units;
        `density` is the share of tokens with activation > 0, `density_high` the upper 95 % bound where there were none
        (3 / n_tokens), else NaN. Numbers of active values are NaN for a feature that was never active.

    Notes
    -----
    Quantiles are read from a histogram with 16 bins per doubling and known to within 6.3 %; all else is exact.
    Specials (BOS) are never counted. Memory is 1.7 kB per feature, however long the text is.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> table = feature_summary(load_model(toy), neuron_dictionary("blocks.0.hook_resid_post", 8), ["Two cats."])
    >>> len(table), int(table.n_tokens[0]), bool((table.density[:8] + table.density[8:].to_numpy() == 1).all())
    (16, 9, True)
    """
    named: dict[str, Any] = {**dictionaries} if isinstance(dictionaries, Mapping) else {dictionaries.hook: dictionaries}
    seen = text_activity(model, named, texts, n_tokens=n_tokens)
    return pd.concat([activity_table(site, one, quantiles) for site, one in seen.items()], ignore_index=True)


def activity_table(site: str, seen: Activity, quantiles: Sequence[float] = QUANTILES) -> pd.DataFrame:
    """The table of `feature_summary` for one accumulated site."""
    n, active = max(seen.n_tokens, 1), seen.n_active > 0
    count = np.where(active, seen.n_active, 1)
    mean = seen.total / count
    spread = np.sqrt(np.maximum(seen.square / count - mean**2, 0) * count / np.maximum(count - 1, 1))
    columns = {
        "site": site,
        "feature": np.arange(len(active)),
        "n_tokens": seen.n_tokens,
        "n_active": seen.n_active,
        "density": seen.n_active / n,
        "density_high": np.where(active, np.nan, min(3 / n, 1.0)),
        "mean_active": np.where(active, mean, np.nan),
        "sd_active": np.where(seen.n_active > 1, spread, np.nan),
        "max": np.where(active, seen.largest, np.nan).astype(float),
    }
    return pd.DataFrame(columns | {f"q{round(100 * q, 4):g}": seen.quantile(q) for q in quantiles})
