"""Running text through the model and its dictionaries once, a batch at a time; nothing of it is kept.

Whatever describes features on reference text (densities, quantiles of activity, top examples) is an accumulator that
is handed the codes of every batch. Memory is that of one batch and of the accumulators, however long the text is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse

from neurosae.dictionary.texts import Contexts, make_contexts, one_thread
from neurosae.errors import DataError, ModelError
from neurosae.extraction.firing import check_sites
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, hooked_pass, precision
from neurosae.extraction.tokens import agreed_bos

LENGTH = 256  # ids of a context, specials included
DOCUMENTS = 512  # read and packed together


class Tokens(NamedTuple):
    """Where the rows of a batch stand in the texts; ascending by text and token.

    Attributes
    ----------
    text : int64 (n,), number of the text, from 0
    token_index : int64 (n,), place among the tokens of that text, from 0; specials are not counted
    ids : int64 (n,), token ids
    start : int64 (n,), `token_index` of the first token of the context that the model saw; 0 but in long texts
    """

    text: np.ndarray
    token_index: np.ndarray
    ids: np.ndarray
    start: np.ndarray


Take = Callable[[str, sparse.csr_matrix, Tokens], Any]


def stream_text(
    model: LanguageModel,
    dictionaries: Mapping[str, Any],
    texts: Iterable[str],
    *,
    take: Take,
    n_tokens: int | None = None,
    batch_tokens: int = 4096,
    length: int = LENGTH,
) -> int:
    """Give the codes of every batch of running text to `take`; returns how many tokens were read.

    Parameters
    ----------
    model : LanguageModel with a tokenizer
    dictionaries : {site: dictionary}, each with its hook point; sites of one hook point share a forward pass
    texts : documents, one string each; an iterator is read as it is needed
    take : `take(site, codes, tokens)` with CSR float32 codes (n, n_features) and the `Tokens` of their rows; called
        once per batch and site. What it wants to keep it must copy out
    n_tokens : stop after this many tokens, in the order of the texts; left out, all are read
    batch_tokens : ids in a batch, padding included
    length : longest context, specials included; a longer text goes on in a new context, without its past

    Returns
    -------
    int
        Tokens read per site, specials not counted.

    Raises
    ------
    DataError
        The texts are one string, or hold no token.
    ModelError
        The model has no tokenizer, a hook point cannot be read, or a dictionary does not fit.

    Notes
    -----
    Specials (BOS and what else the tokenizer puts around a text) are never rows: the norm of BOS is a multiple of that
    of other tokens, and it would lead every list of top examples.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw, seen = {"raw": neuron_dictionary("blocks.0.hook_resid_post", 8)}, []
    >>> def take(site, codes, tokens):
    ...     seen.append((site, codes.shape, tokens.text.tolist(), tokens.token_index.tolist()))
    >>> stream_text(load_model(toy), raw, ["ab", "c"], take=take), seen
    (3, [('raw', (3, 16), [0, 0, 1], [0, 1, 0])])
    """
    if isinstance(texts, str):
        raise DataError("texts is one string; give a list of documents, [text].")
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so no text can be given to it.")
    check_sites(model, dictionaries)
    model = replace(model, tokens=agreed_bos(model.tokens, dictionaries))
    hooks = list(dict.fromkeys(dictionary.hook for dictionary in dictionaries.values()))
    n_read = 0
    with one_thread(model), precision(model):
        for contexts, starts in _portions(model, texts, length=length, n_tokens=n_tokens):
            for bucket in length_buckets([len(ids) for ids in contexts.ids], batch_tokens):
                x, tokens = _read(model, contexts, starts, bucket=np.sort(bucket), hooks=hooks)
                for site, dictionary in dictionaries.items():
                    take(site, _codes(dictionary, x[dictionary.hook]), tokens)
                n_read += len(tokens.ids)
    if not n_read:
        raise DataError("the texts hold no token; give documents with words.")
    return n_read


def _portions(
    model: Any, texts: Iterable[str], *, length: int, n_tokens: int | None
) -> Iterator[tuple[Contexts, np.ndarray]]:
    """Contexts of some hundred documents at a time, and where each begins in its text; the last is cut to n_tokens."""
    left, first, rest = n_tokens, 0, iter(texts)
    while documents := list(islice(rest, DOCUMENTS)):
        made = make_contexts(model.tokens, documents, length=min(length, model.n_ctx))
        n = made.n_rows
        ids, n_kept = made.ids, len(made.ids)
        if left is not None:
            n_kept = int(np.searchsorted(np.cumsum(n), left)) + 1
            ids = ids[:n_kept]
            if (over := int(n[:n_kept].sum()) - left) > 0:
                kept = len(ids[-1]) - made.n_suffix - over
                ids = [*ids[:-1], np.concatenate([ids[-1][:kept], ids[-1][len(ids[-1]) - made.n_suffix :]])]
            left -= int(n[:n_kept].sum())
        before = np.cumsum(n) - n
        new = np.flatnonzero(np.diff(made.documents, prepend=-1))
        starts = before - np.repeat(before[new], np.diff(np.append(new, len(n))))
        if n_kept:
            yield Contexts(ids, made.documents[:n_kept] + first, made.n_prefix, made.n_suffix), starts[:n_kept]
        if left is not None and left <= 0:
            return
        first += len(documents)


def _read(
    model: LanguageModel, contexts: Contexts, starts: np.ndarray, *, bucket: np.ndarray, hooks: list[str]
) -> tuple[dict[str, torch.Tensor], Tokens]:
    """Vectors of one batch, rows ascending by text and token, and where they stand."""
    ids = [contexts.ids[i] for i in bucket]
    n = np.array([len(one) - contexts.n_prefix - contexts.n_suffix for one in ids], dtype=np.int64)
    rows = np.repeat(np.arange(len(ids)), n)
    own = np.arange(len(rows)) - np.repeat(np.cumsum(n) - n, n)
    cols = own + contexts.n_prefix
    padded, mask = pad(ids)
    x = hooked_pass(model, padded, mask, hooks=hooks, rows=rows, cols=cols)
    start = starts[bucket][rows]
    return x, Tokens(contexts.documents[bucket][rows], start + own, padded[rows, cols], start)


def _codes(dictionary: Any, x: torch.Tensor) -> sparse.csr_matrix:
    codes = sparse.csr_matrix(dictionary.encode(x.to(dictionary.W_dec.device)), dtype=np.float32)
    codes.eliminate_zeros()
    return codes
