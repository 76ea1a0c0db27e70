r"""Which features fire together, on text that shares nothing with the stimuli.

Documents are the units, since tokens of one document are not independent: with n_i the documents (of N) where feature
i is active and n_ij those where both are,

    PMI = log(n_ij N / (n_i n_j)),   Jaccard = n_ij / (n_i + n_j - n_ij),
    phi = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j)).

p is that of Fisher's exact test, one-sided (together more often than by chance), corrected over all pairs that were
looked at. Communities of the features, by tokens, are those of `coactivation_communities`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import hypergeom

from neurosae.errors import DataError, choose
from neurosae.examine.stream import Tokens, stream_text
from neurosae.stats.multiplicity import fdr_bh, holm

WINDOW = 64  # tokens of a document that are looked at together
PAIRS = 2_000_000  # pairs tested at once


def active_documents(
    model: Any, dictionaries: Mapping[str, Any], texts: Sequence[str], *, window: int = WINDOW
) -> dict[str, sp.csc_matrix]:
    """Whether each feature is active in the first tokens of each document, {site: CSC 0/1 (n_documents, n_features)}.

    Parameters
    ----------
    model, dictionaries : as given to `extract`
    texts : documents; shorter ones than `window` are left out, since length alone would join all features
    window : tokens of a document that are read: in long documents nearly everything fires once

    Raises
    ------
    DataError
        No document is that long.
    """
    found: dict[str, list[np.ndarray]] = {site: [] for site in dictionaries}
    length = np.zeros(len(texts), dtype=np.int64)

    def take(site: str, codes: sp.csr_matrix, tokens: Tokens) -> None:
        rows = codes.tocoo()
        near = tokens.token_index[rows.row] < window
        found[site].append(np.unique(np.stack([tokens.text[rows.row[near]], rows.col[near]]), axis=1))
        np.maximum.at(length, tokens.text, tokens.token_index + 1)

    stream_text(model, dictionaries, texts, take=take, length=window + 8)
    kept = np.flatnonzero(length >= window)
    if not len(kept):
        raise DataError(f"no document has {window} tokens; the longest has {length.max()}. Set a shorter window.")
    out = {}
    for site, parts in found.items():
        row, col = np.unique(np.concatenate(parts, axis=1), axis=1)
        shape = (len(texts), dictionaries[site].n_features)
        out[site] = sp.csc_matrix(sp.csr_matrix((np.ones(len(row)), (row, col)), shape=shape)[kept])
    return out


def coactivation_pairs(
    active: Any,
    *,
    features: Sequence[int] | None = None,
    min_active: int = 10,
    correction: str = "holm",
    alpha: float = 0.05,
) -> pd.DataFrame:
    r"""Pairs of features that are active in the same documents more often than by chance.

    Parameters
    ----------
    active : array or sparse matrix (n_documents, n_features), above 0 where a feature is active: of
        `active_documents`, on documents independent of each other and of the stimuli
    features : pairs with at least one of these; left out, all pairs
    min_active : features active in fewer documents, or inactive in fewer, are left out
    correction : over all pairs looked at: `holm` or `fdr_bh`
    alpha : pairs with a corrected p above this are not listed

    Returns
    -------
    DataFrame, the smallest p first
        `first second n_first n_second n_both pmi jaccard phi p_unc p_corr n_pairs`; `n_pairs` is how many pairs were
        looked at, whether they are listed or not.

    Notes
    -----
    H0 of a pair: given how often each is active, the documents of the one are a random draw with respect to those of
    the other. Documents of several kinds violate it for every pair of features that know the kind: firing together is
    no integration.

    References
    ----------
    Fisher (1922), JRSS 85:87. Church & Hanks (1990), Computational Linguistics 16:22.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> topic = rng.random(200) < 0.3
    >>> text = np.column_stack([topic, topic, rng.random((200, 3)) < 0.4])
    >>> found = coactivation_pairs(text)
    >>> found[["first", "second", "n_pairs"]].values.tolist(), bool(round(found["phi"][0], 9) == 1)
    ([[0, 1, 10]], True)
    """
    correct = choose("correction", correction, {"holm": holm, "fdr_bh": fdr_bh})
    B = sp.csc_matrix(active, dtype=np.float64)
    B.data = (B.data > 0).astype(np.float64)
    B.eliminate_zeros()
    N, count = B.shape[0], np.diff(B.indptr)  # pyright: ignore[reportOptionalSubscript]
    often = np.flatnonzero((count >= min_active) & (N - count >= min_active))
    if len(often) < 2:
        raise DataError(
            f"{len(often)} features are active in {min_active} of the {N} documents and inactive in as many; give more "
            "documents, or lower min_active."
        )
    first, second, both = _pairs(B[:, often], None if features is None else np.isin(often, features))
    n1, n2 = count[often][first], count[often][second]
    p = np.concatenate([
        hypergeom.sf(both[a : a + PAIRS] - 1, N, n1[a : a + PAIRS], n2[a : a + PAIRS])
        for a in range(0, max(len(both), 1), PAIRS)
    ])  # fmt: skip
    p_corr = correct(np.clip(p, np.finfo(float).tiny, 1.0)) if len(p) else p
    with np.errstate(divide="ignore"):
        pmi = np.log(both * N / (n1 * n2))
    phi = (N * both - n1 * n2) / np.sqrt(n1 * (N - n1.astype(float)) * n2 * (N - n2))
    table = pd.DataFrame({
        "first": often[first], "second": often[second], "n_first": n1, "n_second": n2, "n_both": both.astype(np.int64),
        "pmi": pmi, "jaccard": both / (n1 + n2 - both), "phi": phi, "p_unc": np.clip(p, np.finfo(float).tiny, 1.0),
        "p_corr": p_corr, "n_pairs": len(p),
    })  # fmt: skip
    kept = table[table["p_corr"] <= alpha]
    return kept.sort_values(["p_unc", "first", "second"], kind="stable").reset_index(drop=True)


def _pairs(B: sp.csc_matrix, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs first < second (with one chosen), and in how many documents both are active."""
    m = B.shape[1]  # pyright: ignore[reportOptionalSubscript]
    out: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    step = max(1, PAIRS // m)
    for start in range(0, m, step):
        together = (B[:, start : start + step].T @ B).toarray()
        row, col = np.nonzero(np.arange(m)[None, :] > np.arange(start, min(start + step, m))[:, None])
        keep = slice(None) if chosen is None else chosen[row + start] | chosen[col]
        out.append((row[keep] + start, col[keep], together[row[keep], col[keep]]))
    first, second, both = (np.concatenate(parts) for parts in zip(*out, strict=True))
    return first, second, both
