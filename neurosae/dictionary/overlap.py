"""Are two dictionaries the same one twice, and does one feature swallow a part of another?"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from neurosae.dictionary.kinds import Dictionary
from neurosae.errors import DataError

LARGEST = 8_192  # features matched exactly; the assignment takes time with the cube
CLOSE, TOGETHER, TRUE_OF_CHILD, TRUE_OF_PARENT, SEEN = 0.3, 0.05, 0.9, 0.5, 10


def decoder_overlap(
    one: Dictionary, other: Dictionary, *, alive: tuple[np.ndarray, np.ndarray] | None = None
) -> pd.DataFrame:
    """Match the features of two dictionaries one to one by the cosine of their decoder rows (Hungarian method).

    Parameters
    ----------
    one, other : dictionaries of one hook point
    alive : boolean masks of the features that take part; all without

    Returns
    -------
    DataFrame of one row: `n_one n_other n_matched overlap_70 overlap_90 cosine_median note`: shares of the matched
    pairs with a cosine above .7 and .9, and the median. Missing values and the reason where there are more than 8,192.

    Notes
    -----
    A feature index is never evidence across seeds: features are found again, if at all, under another index.

    References
    ----------
    Paulo & Belrose (2025), Sparse autoencoders trained on the same data learn different features, arXiv 2501.16615.

    Examples
    --------
    >>> from neurosae.dictionary.kinds import neuron_dictionary
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 4)
    >>> decoder_overlap(raw, raw)[["n_matched", "overlap_90", "cosine_median"]].iloc[0].tolist()
    [8.0, 1.0, 1.0]
    """
    if one.d_in != other.d_in:
        raise DataError(f"the dictionaries read vectors of width {one.d_in} and {other.d_in}; they cannot be matched.")
    chosen = [np.ones(made.n_features, dtype=bool) for made in (one, other)] if alive is None else list(alive)
    rows = [made.W_dec.cpu()[torch.from_numpy(kept)] for made, kept in zip((one, other), chosen, strict=True)]
    record = {"n_one": len(rows[0]), "n_other": len(rows[1]), "n_matched": min(map(len, rows))}
    if not record["n_matched"] or max(map(len, rows)) > LARGEST:
        why = "no alive features" if not record["n_matched"] else f"over {LARGEST:,} features, not matched"
        none = dict.fromkeys(("overlap_70", "overlap_90", "cosine_median"), np.nan)
        return pd.DataFrame([record | none | {"note": why}])
    unit = [torch.nn.functional.normalize(part, dim=1) for part in rows]
    cosine = (unit[0] @ unit[1].t()).numpy()
    best = cosine[linear_sum_assignment(cosine, maximize=True)]
    shares = {"overlap_70": (best > 0.7).mean(), "overlap_90": (best > 0.9).mean(), "cosine_median": np.median(best)}
    return pd.DataFrame([record | {name: float(value) for name, value in shares.items()} | {"note": ""}])


def absorption(codes: sparse.csr_matrix, tokens: np.ndarray, decoder: torch.Tensor) -> pd.DataFrame:
    """Pairs in which a feature for one token seems to have taken that token from a broader feature of like content.

    Feature j (the broader) and k (the narrower) are listed when their decoder rows have a cosine above .3, j is active
    on less than 5 % of the tokens of k, and the token that makes up at least 90 % of k's is at least half of j's.

    Parameters
    ----------
    codes : CSR (n_tokens, n_features)
    tokens : int (n_tokens,), the token of each row: the rule is "the word is t"
    decoder : (n_features, d)

    Returns
    -------
    DataFrame `broad narrow token cosine together`, one row per pair; features with fewer than 10 active tokens are left
    out

    Notes
    -----
    A screen of our own, not the published score (arXiv 2409.14507). Absorption is a false negative of contrasts.

    Examples
    --------
    Feature 0 fires on token 7 where feature 1 does not, and points the same way:

    >>> active = np.zeros((60, 2)); active[:20, 0], active[20:40, 1] = 1, 1
    >>> pairs = absorption(sparse.csr_matrix(active), np.full(60, 7), torch.tensor([[1.0, 0.2], [1.0, 0.0]]))
    >>> pairs[["broad", "narrow", "token"]].to_numpy().tolist()
    [[0, 1, 7], [1, 0, 7]]
    """
    active = sparse.csc_matrix(codes != 0, dtype=np.float32)
    seen = np.asarray(active.sum(0)).ravel()
    kept = np.flatnonzero(seen >= SEEN)
    columns = ["broad", "narrow", "token", "cosine", "together"]
    if not len(kept):
        return pd.DataFrame(columns=columns)
    active, seen = active[:, kept], seen[kept]
    names, place = np.unique(tokens, return_inverse=True)
    by_token = sparse.csr_matrix((np.ones(len(place), np.float32), (place, np.arange(len(place)))))
    share = sparse.csr_matrix(by_token @ active) @ sparse.diags(1 / seen)
    top = np.asarray(share.argmax(axis=0)).ravel()
    narrow = np.flatnonzero(cast(Any, share).max(axis=0).toarray().ravel() >= TRUE_OF_CHILD)
    if not len(narrow):
        return pd.DataFrame(columns=columns)
    unit = torch.nn.functional.normalize(decoder.cpu()[torch.from_numpy(kept)], dim=1)
    cosine = (unit @ unit[torch.from_numpy(narrow)].t()).numpy()
    together = sparse.csc_matrix(active.T @ active[:, narrow]).toarray() / seen[narrow]
    true_of = sparse.csr_matrix(share[top[narrow]]).toarray().T
    found = (cosine > CLOSE) & (together < TOGETHER) & (true_of >= TRUE_OF_PARENT)
    found[narrow, np.arange(len(narrow))] = False
    j, k = np.nonzero(found)
    return pd.DataFrame(
        {"broad": kept[j], "narrow": kept[narrow[k]], "token": names[top[narrow[k]]], "cosine": cosine[j, k],
         "together": together[j, k]}
    )  # fmt: skip
