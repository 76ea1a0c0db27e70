"""What edits cost on text that they are not about: divergence and perplexity on neutral text.

An edit that moves what it should may move everything else as well. The edits are made at every token of running text
(specials left out), and at each token the distribution of the next one is compared with that of the unedited model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from neurosae.causal.edits import Edit
from neurosae.causal.generation import writer
from neurosae.causal.progress import with_bar
from neurosae.causal.steering import Steering, steered
from neurosae.dictionary.texts import make_contexts, one_thread
from neurosae.errors import DataError
from neurosae.extraction.packing import length_buckets
from neurosae.extraction.passes import LanguageModel, precision

OFF_TARGET = 2_000  # tokens of reference text for the cost of every dose of a test
LENGTH, BATCH = 128, 2048  # ids of a context; ids of a batch, whose logits are held at once


class Costs(NamedTuple):
    """Costs of every condition; arrays of shape (n_conditions,) and by document (n_documents, n_conditions).

    Attributes
    ----------
    kl : mean KL(plain || edited) per token, nats;  kl_of : by document
    surprisal : mean surprisal of the text per token under the edit, nats;  surprisal_of : by document
    plain : that of the unedited model
    n_tokens : tokens of every document whose next token was predicted
    """

    kl: np.ndarray
    surprisal: np.ndarray
    plain: float
    kl_of: np.ndarray
    surprisal_of: np.ndarray
    n_tokens: np.ndarray

    @property
    def perplexity_ratio(self) -> np.ndarray:
        """Perplexity under each condition over that of the unedited model."""
        return np.exp(self.surprisal - self.plain)


def at_all_tokens(conditions: Sequence[Sequence[Edit]]) -> list[tuple[Edit, ...]]:
    """The same edits at every token of a text, whatever region they were made for."""
    return [tuple(replace(edit, where="all") for edit in condition) for condition in conditions]


def neutral_costs(
    model: LanguageModel, conditions: Sequence[Sequence[Edit]], texts: Sequence[str], *, n_tokens: int = 5_000
) -> Costs:
    """Divergence from the unedited model, and surprisal, on running text under each condition.

    Parameters
    ----------
    conditions : edits of one condition act jointly; their place is `all`
    texts : documents; contexts of at most 128 tokens, in order, until `n_tokens` are read

    Raises
    ------
    DataError
        An edit is not at `all` tokens, or the texts hold fewer than two tokens.

    Notes
    -----
    KL is in nats per token, of the whole distribution of the next token, and never negative up to rounding.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> up = Edit(raw.hook, "steer", "all", dictionary=raw, features=(3,), dose=2.0)
    >>> found = neutral_costs(load_model(toy), [(), (up,)], ["some neutral text", "more"])
    >>> bool(found.kl[0] == 0), bool(found.kl[1] > 0)
    (True, True)
    """
    every = [edit for condition in conditions for edit in condition]
    if other := [edit.where for edit in every if not isinstance(edit.where, str) or edit.where != "all"]:
        raise DataError(f"costs are measured with edits at all tokens, not at '{other[0]}'; set where: all.")
    model = writer(model, every)
    shape = (len(texts), len(conditions))
    kl, surprisal, plain, count = np.zeros(shape), np.zeros(shape), np.zeros(len(texts)), np.zeros(len(texts))
    with one_thread(model), torch.inference_mode(), precision(model):
        for ids, document in with_bar(_batches(model, texts, n_tokens), "off target"):
            base = _log_probabilities(model, ids, ())
            following = ids[:, model.tokens.first + 1 :, None]  # pyright: ignore[reportOptionalMemberAccess]
            np.add.at(plain, document, -base.gather(2, following).sum((1, 2)).cpu().numpy())
            np.add.at(count, document, following.shape[1])
            for k, condition in enumerate(conditions):
                if not condition:
                    np.add.at(surprisal[:, k], document, -base.gather(2, following).sum((1, 2)).cpu().numpy())
                    continue
                edited = _log_probabilities(model, ids, condition)
                divergence = (base.exp() * (base - edited)).sum((1, 2)).cpu().numpy()
                np.add.at(kl[:, k], document, divergence)
                np.add.at(surprisal[:, k], document, -edited.gather(2, following).sum((1, 2)).cpu().numpy())
    read = count > 0
    if not read.any():
        raise DataError("the texts hold no two tokens in a row; give longer texts.")
    n = count[read]
    by = tuple(total[read] / n[:, None] for total in (kl, surprisal))
    mean = [(part * n[:, None]).sum(axis=0) / n.sum() for part in by]
    return Costs(mean[0], mean[1], float(plain.sum() / n.sum()), by[0], by[1], n)


def _batches(model: Any, texts: Sequence[str], n_tokens: int) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Contexts of equal length, without the specials behind them, and their documents."""
    made = make_contexts(model.tokens, texts, length=min(LENGTH, model.n_ctx))
    least = made.n_prefix + 2
    own = [(ids[: len(ids) - made.n_suffix], d) for ids, d in zip(made.ids, made.documents, strict=True)]
    own = [(ids, d) for ids, d in own if len(ids) >= least]
    read = np.cumsum([len(ids) - made.n_prefix for ids, _ in own])
    own = own[: int(np.searchsorted(read, n_tokens)) + 1]
    lengths = np.array([len(ids) for ids, _ in own])
    for n in np.unique(lengths):
        same = np.flatnonzero(lengths == n)
        for part in length_buckets([int(n)] * len(same), BATCH):
            rows = same[np.sort(part)]
            ids = torch.as_tensor(np.stack([own[i][0] for i in rows]).astype(np.int64)).to(model.device)
            yield ids, np.array([own[i][1] for i in rows])


def _log_probabilities(model: Any, ids: torch.Tensor, edits: Sequence[Edit]) -> torch.Tensor:
    """Log probabilities of the token after each token of the text but the last, float32."""
    first = model.tokens.first
    hooks = Steering(edits, np.arange(len(ids)), first=first, n_prompt=ids.shape[1])
    with steered(model, hooks):
        logits = model.bridge(ids, return_type="logits")
    hooks.check_fired(model)
    return logits[:, first:-1].float().log_softmax(-1)
