r"""Which features fire together, on text that shares nothing with the stimuli.

Documents are the units, since tokens of one document are not independent: with n_i the documents (of N) where feature
i is active and n_ij those where both are,

    PMI = log(n_ij N / (n_i n_j)),   Jaccard = n_ij / (n_i + n_j - n_ij),
    phi = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j)).

p is that of Fisher's exact test, one-sided (together more often than by chance), corrected over all pairs that were
looked at.

Any text has communities (`coactivation_communities`), whether its features know of each other or not. Whether one holds
on documents that it was not found in is asked by `community_coactivation`, over the mean phi of its pairs.
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


def community_coactivation(
    active: Any, communities: Mapping[str, Sequence[int] | np.ndarray], *, n_permutations: int = 1000, seed: int
) -> pd.DataFrame:
    r"""Whether the features of each community are active together in documents that the community was not found in.

    With phi_ij as above and K pairs of a community's features, over N documents,

        z = mean over pairs of phi_ij * sqrt((N - 1) K),

    the mean in standard deviations under the null, where each phi has variance 1 / (N - 1) and pairs are uncorrelated.

    Parameters
    ----------
    active : array or sparse matrix (n_documents, n_features), above 0 where a feature is active: of `active_documents`,
        on other documents than those that the communities were found in, and independent of the stimuli
    communities : {name: feature indices}, of `coactivation_communities`; or any sets
    n_permutations : relabellings, the identity included
    seed : of the permutations

    Returns
    -------
    DataFrame, in the order given
        `community n_features n_used n_documents mean_phi z p_unc p_corr n_communities n_perm note`: p_corr holds over
        all communities given, whose maximum z is counted; `n_used` features are active in some documents and not in
        all. A community with fewer than two of them is not tested, with the reason.

    Raises
    ------
    DataError
        No community, an index beyond the features, or none that can be tested.

    Notes
    -----
    H0: given in how many documents each feature is active, the documents of every feature are a random draw,
    independent of those of the others. Each feature's documents are permuted by themselves, so its degree and the sizes
    of the sets stay. One-sided. On the documents that communities were found in, p means nothing: pairs were put
    together because they have large phi there. Documents of several kinds violate the null for all features that know
    the kind: such a community is a kind of text.

    References
    ----------
    Westfall & Young (1993), Resampling-Based Multiple Testing.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> topic = rng.random(300) < 0.4
    >>> text = np.column_stack([topic[:, None] & (rng.random((300, 3)) < 0.7), rng.random((300, 3)) < 0.3])
    >>> found = community_coactivation(text, {"one": [0, 1, 2], "none": [3, 4, 5]}, n_permutations=200, seed=0)
    >>> (found["p_corr"] <= 0.05).tolist()
    [True, False]
    """
    B = sp.csc_matrix(active)
    N, m = B.shape  # pyright: ignore[reportGeneralTypeIssues]
    if not communities or n_permutations < 1:
        raise DataError(f"there are {len(communities)} communities and {n_permutations} relabellings; give some.")
    rows, members = [], {}
    for name, features in communities.items():
        chosen = np.unique(np.asarray(features, dtype=np.int64))
        if len(wrong := chosen[(chosen < 0) | (chosen >= m)]):
            raise DataError(f"community '{name}' has feature {wrong[0]}; these documents have features 0 to {m - 1}.")
        fires = B[:, chosen].toarray() > 0
        used = np.flatnonzero(fires.any(axis=0) & ~fires.all(axis=0))
        rows.append({"community": name, "n_features": len(chosen), "n_used": len(used), "n_documents": N, "note": None})
        if len(used) > 1:
            members[name] = _unit(fires[:, used].astype(np.float64))
        else:
            rows[-1]["note"] = "not tested: fewer than two of its features are active in some documents and not in all."
    if not members:
        raise DataError("no community has two features that are active in some documents and not in all; give more.")
    pairs = np.array([one.shape[1] * (one.shape[1] - 1) / 2 for one in members.values()])
    null = _permuted_phi(list(members.values()), n_permutations=n_permutations, seed=seed)
    z = null * np.sqrt((N - 1) * pairs)
    most = z.max(axis=1)
    tested = pd.DataFrame({
        "community": list(members), "mean_phi": null[0], "z": z[0],
        "p_unc": (z >= z[0] - 1e-9).mean(axis=0), "p_corr": (most[:, None] >= z[0] - 1e-9).mean(axis=0),
    })  # fmt: skip
    table = pd.DataFrame(rows).merge(tested, on="community", how="left")
    table = table.assign(n_communities=len(members), n_perm=n_permutations)
    return table[[*(c for c in table if c != "note"), "note"]]


def _unit(X: np.ndarray) -> np.ndarray:
    """Columns centred and of length 1, so that products of two are their correlations."""
    X = X - X.mean(axis=0)
    return X / np.sqrt((X**2).sum(axis=0))


def _permuted_phi(members: Sequence[np.ndarray], *, n_permutations: int, seed: int) -> np.ndarray:
    """Mean phi over the pairs of every community (n_permutations, n_communities); the first row is as observed."""
    rng, out = np.random.default_rng(seed), np.empty((n_permutations, len(members)))
    for k, U in enumerate(members):
        n = U.shape[1]
        for r in range(n_permutations):
            # the sum over all pairs, both ways, is the squared length of the sum less n squared lengths of 1
            total = (U if r == 0 else rng.permuted(U, axis=0)).sum(axis=1)
            out[r, k] = ((total**2).sum() - n) / (n * (n - 1))
    return out


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
