r"""Search of features for a concept: by example texts, by the tokens that a feature promotes, by its label.

By example texts: the texts are divided at random into two halves. On the first, features are ranked; on the second,
which the ranking has not seen, the first of them are validated by the AUROC of positive against negative texts, whose
p is that of Mann and Whitney, corrected by Holm over the validated features. Texts are the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import mannwhitneyu

from neurosae.dictionary.texts import sample_texts
from neurosae.errors import DataError, choose
from neurosae.examine.directions import vocabulary_weights
from neurosae.examine.scores import active_median, as_columns, auroc, d_prime, strong_texts
from neurosae.examine.stream import Tokens, stream_text
from neurosae.extraction.tokens import decode, token_ids
from neurosae.stats.multiplicity import holm

Pool = Literal["max", "mean", "last"]
ATTEMPTS = 6  # twice as much text each time
LEAST = 4  # texts of either kind in either half


def pooled_texts(
    model: Any, dictionaries: Mapping[str, Any], texts: Sequence[str], *, pool: Pool = "max"
) -> dict[str, sp.csr_matrix]:
    """One activation per text and feature, {site: CSR float64 (n_texts, n_features)}, in one streaming pass.

    Parameters
    ----------
    model, dictionaries : as given to `extract`
    texts : documents
    pool : `max` over the tokens of a text, their `mean`, or the `last` token

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = {"raw": neuron_dictionary("blocks.0.hook_resid_post", 8)}
    >>> one, both = (pooled_texts(load_model(toy), raw, t)["raw"] for t in (["ab"], ["ab", "cde"]))
    >>> both.shape, bool(abs(both[0] - one[0]).max() < 1e-4)
    ((2, 16), True)
    """
    choose("pool", pool, {"max": 1, "mean": 1, "last": 1})
    shape = {site: (len(texts), dictionary.n_features) for site, dictionary in dictionaries.items()}
    out = {site: sp.csr_matrix(size) for site, size in shape.items()}
    length = np.zeros(len(texts))
    last = {site: np.full(len(texts), -1) for site in dictionaries}

    def take(site: str, codes: sp.csr_matrix, tokens: Tokens) -> None:
        rows = codes.tocoo()
        text = tokens.text[rows.row]
        if site == next(iter(dictionaries)):
            np.add.at(length, tokens.text, 1)
        if pool == "mean":
            out[site] = out[site] + sp.csr_matrix((rows.data.astype(float), (text, rows.col)), shape=shape[site])
        elif pool == "max":
            out[site] = sp.csr_matrix(out[site].maximum(_largest(rows, text, shape[site])))
        else:
            out[site] = _newest(out[site], codes, tokens, last=last[site])

    stream_text(model, dictionaries, texts, take=take)
    if (empty := np.flatnonzero(length == 0)).size:
        raise DataError(f"text {empty[0]} has no token; leave empty texts out.")
    if pool == "mean":
        out = {site: sp.csr_matrix(sp.diags(1 / length) @ X) for site, X in out.items()}
    return out


def _largest(rows: Any, text: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    order = np.lexsort((-rows.data, rows.col, text))
    first = np.flatnonzero(np.r_[True, (np.diff(text[order]) != 0) | (np.diff(rows.col[order]) != 0)][: len(order)])
    kept = order[first]
    return sp.csr_matrix((rows.data[kept].astype(float), (text[kept], rows.col[kept])), shape=shape)


def _newest(old: sp.csr_matrix, codes: sp.csr_matrix, tokens: Tokens, *, last: np.ndarray) -> sp.csr_matrix:
    """Rows of the texts whose last token so far lies in this batch; batches may come in any order."""
    ends = np.flatnonzero(np.r_[np.diff(tokens.text) != 0, True])
    ends = ends[tokens.token_index[ends] > last[tokens.text[ends]]]
    at = tokens.text[ends]
    last[at] = tokens.token_index[ends]
    keep = np.ones(old.shape[0])  # pyright: ignore[reportOptionalSubscript]
    keep[at] = 0
    shape = (len(keep), len(at))
    put = sp.csr_matrix((np.ones(len(at)), (at, np.arange(len(at)))), shape=shape)
    return sp.csr_matrix(sp.diags(keep) @ old + put @ codes[ends])


def concept_search(
    model: Any,
    dictionaries: Mapping[str, Any],
    positive: Sequence[str],
    *,
    negative: Sequence[str] | None = None,
    by: Literal["auroc", "composite", "smd"] = "auroc",
    top: int = 20,
    seed: int,
) -> pd.DataFrame:
    r"""Features that are active in texts of a concept, found on half of the texts and validated on the other half.

    On the first half, with a_sj the largest activation of feature j in text s and theta_j the median of its active
    values,

        composite = 100 P(a > theta | positive) x mean(a | positive),
        smd = (mean a | positive - mean a | negative) / root of the mean variance,
        auroc = P(a positive text has more of the feature than a negative one).

    Parameters
    ----------
    model : LanguageModel
    dictionaries : {site: dictionary}
    positive : texts that have the concept
    negative : texts that have not, alike in all else; left out, what the model writes itself, cut to the lengths of
        the positive texts
    by : what ranks: `auroc` (ties by smd), `composite`, `smd`
    top : features per site that are validated on the second half
    seed : of the division, and of what the model writes

    Returns
    -------
    DataFrame, a row per site and validated feature, best first
        `site feature rank composite auroc smd n_positive n_negative` of the first half, and of the second
        `auroc_held_out p_held_out p_holm n_positive_held_out n_negative_held_out`; `length_auroc` is the AUROC of the
        number of tokens over all texts: far from .5, a maximum over tokens differs for that reason alone.

    Raises
    ------
    DataError
        Fewer than 4 texts of either kind in either half, or a text without tokens.

    Notes
    -----
    H0 of a held-out p: positive and negative texts are exchangeable for this feature. Texts are the units, so they
    must be independent: ten sentences of one page are one text. Composite alone finds features that are strong
    everywhere. A feature that answers to the texts need not mean the concept: negatives that differ in one thing only
    decide what is found.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = {"raw": neuron_dictionary("blocks.0.hook_resid_post", 8)}
    >>> texts = [f"{i} wolves" for i in range(8)], [f"{i} apples" for i in range(8)]
    >>> found = concept_search(load_model(toy), raw, texts[0], negative=texts[1], top=3, seed=0)
    >>> found[["rank", "n_positive", "n_positive_held_out"]].values.tolist()
    [[1, 4, 4], [2, 4, 4], [3, 4, 4]]
    """
    choose("ranking", by, {"auroc": 1, "composite": 1, "smd": 1})
    against = matched_texts(model, positive, seed=seed) if negative is None else list(negative)
    texts = [*positive, *against]
    inside = np.arange(len(texts)) < len(positive)
    half = _halves(inside, seed=seed)
    lengths = np.array([len(ids) for ids in token_ids(model.tokens, texts, specials=False)], dtype=float)
    length = float(auroc(lengths[:, None], inside)[0])
    tables = []
    for site, X in pooled_texts(model, dictionaries, texts).items():
        first = _ranked(X[half], inside[half], by=by).head(top)
        rows = _validated(X[~half], inside[~half], first)
        tables.append(rows.assign(site=site, rank=np.arange(1, len(rows) + 1), length_auroc=length))
    table = pd.concat(tables, ignore_index=True)
    order = ["site", "feature", "rank"]
    return table[[*order, *(c for c in table if c not in order)]]


def _halves(inside: np.ndarray, *, seed: int) -> np.ndarray:
    """Whether each text is in the half that ranks; both kinds are divided evenly."""
    rng, half = np.random.default_rng(seed), np.zeros(len(inside), dtype=bool)
    for kind, name in ((True, "positive"), (False, "negative")):
        members = np.flatnonzero(inside == kind)
        if len(members) < 2 * LEAST:
            raise DataError(
                f"{len(members)} {name} texts do not make two halves of {LEAST}; give at least {2 * LEAST} of each."
            )
        half[rng.permutation(members)[: -(-len(members) // 2)]] = True
    return half


def _ranked(X: sp.csr_matrix, inside: np.ndarray, *, by: str) -> pd.DataFrame:
    A = as_columns(X)
    strong = sp.csr_matrix(strong_texts(A, active_median(A)))[inside]
    mean = np.asarray(sp.csr_matrix(A)[inside].mean(axis=0)).ravel()
    smd = d_prime(A, inside)
    table = pd.DataFrame({
        "feature": np.arange(len(mean)), "composite": 100 * np.asarray(strong.mean(axis=0)).ravel() * mean,
        "auroc": auroc(A, inside), "smd": smd, "n_positive": int(inside.sum()), "n_negative": int((~inside).sum()),
    })[np.diff(A.indptr) > 0]  # fmt: skip
    keys = [by, "smd", "feature"] if by != "smd" else ["smd", "feature"]
    return table.sort_values(keys, ascending=[*[False] * (len(keys) - 1), True], kind="stable", na_position="last")


def _validated(X: sp.csr_matrix, inside: np.ndarray, first: pd.DataFrame) -> pd.DataFrame:
    """The same features on the other half."""
    V = X[:, first["feature"].to_numpy()].toarray()
    p = [mannwhitneyu(v[inside], v[~inside], alternative="greater").pvalue if v.any() else 1.0 for v in V.T]
    held = {"auroc_held_out": auroc(V, inside), "p_held_out": p, "p_holm": holm(np.array(p))}
    return first.assign(
        **held, n_positive_held_out=int(inside.sum()), n_negative_held_out=int((~inside).sum())
    ).reset_index(drop=True)


def matched_texts(model: Any, texts: Sequence[str], *, seed: int) -> list[str]:
    """Text that the model writes itself, as many pieces as there are texts, each of the same number of tokens."""
    lengths = [len(ids) for ids in token_ids(model.tokens, list(texts), specials=False)]
    longest, wanted = max(lengths), 4 * sum(lengths) + 64
    for _ in range(ATTEMPTS):
        written = sample_texts(model, wanted, seed=seed, length=min(model.n_ctx, 2 * longest + 32), purpose="negatives")
        pieces = [ids for ids in token_ids(model.tokens, written, specials=False) if len(ids) >= longest]
        if len(pieces) >= len(texts):
            return [decode(model.tokens, ids[:n]) for ids, n in zip(pieces, lengths, strict=False)]
        wanted *= 2  # many of its documents end early
    raise DataError(f"{model.name} wrote {len(pieces)} texts of {longest} tokens, not {len(texts)}; give negative.")


# --- other ways -----------------------------------------------------------------------------------------------------


def promoting_features(model: Any, dictionary: Any, words: Sequence[str], *, top: int = 20) -> pd.DataFrame:
    """Features that promote given words, by the direct path to the logits: best first.

    Parameters
    ----------
    model : LanguageModel with a head
    dictionary : read at the residual stream
    words : as they stand in a text, with the leading blank where they have one: [" ship", " boat"]
    top : features listed

    Returns
    -------
    DataFrame
        `feature rank weight`: the mean over the words of the centred weight of their first token, in standard
        deviations over the vocabulary; and `tokens`, how many tokens the words have. Words that share their first
        token cannot be told apart.
    """
    ids = token_ids(model.tokens, list(words), specials=False)
    if not ids or not all(ids):
        raise DataError("words is empty, or holds an empty word; give words, [' ship', ' boat'].")
    w = vocabulary_weights(model, dictionary, np.arange(dictionary.n_features).tolist())
    spread = w.std(axis=1)
    z = np.divide(w, spread[:, None], out=np.zeros_like(w), where=spread[:, None] > 0)
    weight = z[:, [one[0] for one in ids]].mean(axis=1)
    order = np.argsort(-weight, kind="stable")[:top]
    rows = {"feature": order, "rank": np.arange(1, len(order) + 1), "weight": weight[order]}
    return pd.DataFrame(rows | {"tokens": sum(map(len, ids))})


def search_labels(labels: pd.DataFrame, words: str) -> pd.DataFrame:
    """Labels that hold all of some words, whatever their case.

    Parameters
    ----------
    labels : `site feature label`, of `read_labels` or `label_features`
    words : separated by blanks

    Examples
    --------
    >>> table = pd.DataFrame({"site": "late", "feature": [3, 8], "label": ["Ships at sea", "Hot soup"]})
    >>> search_labels(table, "sea ship")["feature"].tolist()
    [3]
    """
    if lost := sorted({"site", "feature", "label"} - set(labels)):
        raise DataError(f"labels lack the column '{lost[0]}'; they have {', '.join(map(str, labels))}.")
    text = labels["label"].fillna("").astype(str).str.lower()
    held = np.ones(len(labels), dtype=bool)
    for word in words.lower().split():
        held &= text.str.contains(word, regex=False).to_numpy()
    return labels[held].reset_index(drop=True)
