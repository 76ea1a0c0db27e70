"""What some features do on every token of some texts: the record that examples, rules, labels and viewers start from.

Only the columns of the wanted features are kept, sparse, so memory grows with how often they fire, not with the size
of the dictionary: about 12 bytes per active token and feature, and 32 bytes per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from neurosae.errors import DataError, choose
from neurosae.examine.stream import Tokens, stream_text
from neurosae.extraction.tokens import Tokenizer

MOST = 50_000_000  # active tokens over all wanted features: 600 MB


class Seen(NamedTuple):
    """Some features of one site on every token of some texts; rows ascend by text and token.

    Attributes
    ----------
    site : name of the site
    features : int64 (n_features,), indices of the columns
    codes : CSC float32 (n_tokens, n_features), activations
    text : int64 (n_tokens,), number of the text
    token_index : int64 (n_tokens,), place among the tokens of that text, specials not counted
    start : int64 (n_tokens,), first token of the context that the model saw
    ids : int64 (n_tokens,), token ids
    """

    site: str
    features: np.ndarray
    codes: sp.csc_matrix
    text: np.ndarray
    token_index: np.ndarray
    start: np.ndarray
    ids: np.ndarray

    def column(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows where a feature is active, ascending, and its activations there."""
        at = np.flatnonzero(self.features == feature)
        if not len(at):
            raise DataError(f"feature {feature} of '{self.site}' was not watched; it has {self.features.tolist()}.")
        a, b = self.codes.indptr[at[0]], self.codes.indptr[at[0] + 1]
        return self.codes.indices[a:b].astype(np.int64), self.codes.data[a:b]


def watch(
    model: Any,
    dictionaries: Mapping[str, Any],
    texts: Iterable[str],
    *,
    features: Mapping[str, Sequence[int]],
    n_tokens: int | None = None,
) -> dict[str, Seen]:
    """Run texts through the model once and keep what the wanted features do on every token.

    Parameters
    ----------
    model : LanguageModel with a tokenizer
    dictionaries : {site: dictionary}
    texts : documents; an empty one stays in the count, with no token
    features : {site: feature indices}; sites without features are not read
    n_tokens : stop after this many tokens; left out, all are read

    Returns
    -------
    {site: Seen}

    Raises
    ------
    DataError
        A feature that a dictionary does not have, no feature at all, or more than 50 million active tokens.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = {"raw": neuron_dictionary("blocks.0.hook_resid_post", 8)}
    >>> seen = watch(load_model(toy), raw, ["ab", "c"], features={"raw": [3, 11]})["raw"]
    >>> seen.codes.shape, seen.text.tolist(), [len(seen.column(f)[0]) for f in (3, 11)]
    ((3, 2), [0, 0, 1], [1, 2])
    """
    wanted = _wanted(dictionaries, features)
    parts: dict[str, list[tuple[sp.csr_matrix, Tokens]]] = {site: [] for site in wanted}
    counts = dict.fromkeys(wanted, 0)

    def take(site: str, codes: sp.csr_matrix, tokens: Tokens) -> None:
        kept = sp.csr_matrix(codes[:, wanted[site]])
        counts[site] += kept.nnz
        if sum(counts.values()) > MOST:
            n = sum(len(f) for f in wanted.values())
            raise DataError(f"{n} features are active on more than {MOST:,} tokens; ask for fewer, or for less text.")
        parts[site].append((kept, tokens))

    stream_text(model, {site: dictionaries[site] for site in wanted}, texts, take=take, n_tokens=n_tokens)
    return {site: _joined(site, wanted[site], parts[site]) for site in wanted}


def _wanted(dictionaries: Mapping[str, Any], features: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    wanted = {site: np.unique(np.asarray(list(ids), dtype=np.int64)) for site, ids in features.items() if len(ids)}
    if not wanted:
        raise DataError("no feature is named; give {site: [indices]}.")
    for site, ids in wanted.items():
        size = choose("site", site, dictionaries).n_features
        if ids[0] < 0 or ids[-1] >= size:
            wrong = ids[0] if ids[0] < 0 else ids[-1]
            raise DataError(f"there is no feature {wrong} at site '{site}', whose dictionary has 0 to {size - 1}.")
    return wanted


def _joined(site: str, features: np.ndarray, parts: Sequence[tuple[sp.csr_matrix, Tokens]]) -> Seen:
    """The batches in the order of texts and tokens; they come by length."""
    tokens = [part[1] for part in parts]
    text, index = (np.concatenate([getattr(t, name) for t in tokens]) for name in ("text", "token_index"))
    order = np.lexsort((index, text))
    codes = sp.csr_matrix(sp.vstack([part[0] for part in parts], format="csr"))[order]
    start, ids = (np.concatenate([getattr(t, name) for t in tokens])[order] for name in ("start", "ids"))
    made = sp.csc_matrix(codes)
    made.sort_indices()
    return Seen(site, features, made, text[order], index[order], start, ids)


def cut_text(tokenizer: Tokenizer, text: str) -> list[str]:
    """A text cut at its tokens, one piece each, nothing lost: white space goes with the token that follows it.

    Pieces of one character that is several tokens: the first has it, the others are empty.

    Examples
    --------
    >>> from neurosae.extraction.tokens import byte_tokenizer
    >>> cut_text(byte_tokenizer(), "a é")
    ['a', ' ', 'é', '']
    """
    offsets = tokenizer.backend.encode(text, add_special_tokens=False).offsets
    ends, last = [], 0
    for _, end in offsets:
        last = max(last, min(int(end), len(text)))
        ends.append(last)
    if ends:
        ends[-1] = len(text)
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def text_maxima(seen: Seen, n_texts: int) -> sp.csc_matrix:
    """Largest activation of every feature in every text, CSC float32 (n_texts, n_features): EXA's pooling by max."""
    columns = []
    for feature in seen.features:
        rows, values = seen.column(int(feature))
        most = np.zeros(n_texts, dtype=np.float32)
        np.maximum.at(most, seen.text[rows], values)
        columns.append(sp.csc_matrix(most[:, None]))
    return sp.csc_matrix(sp.hstack(columns, format="csc"))
