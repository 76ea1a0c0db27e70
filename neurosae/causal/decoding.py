"""Write token by token: texts of many conditions, prompts and samples side by side, each with its own edits.

1. Prompts of equal length form a batch, so nothing is padded. A prompt is read once per condition, for all its samples;
   the model's keys and values of it are then handed to each of them.
2. From there on the model is fed one token per text, and only the logits of the newest token are computed. A model that
   keeps no keys and values is given the whole text each time.
3. The next token is where the cumulated distribution passes a given uniform number.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from neurosae.causal.edits import Edit
from neurosae.causal.steering import Steering, steered
from neurosae.dictionary.texts import one_thread, special_ids
from neurosae.extraction.passes import LanguageModel

ROWS = 512  # texts that are written side by side, at most
HELD = 1 << 30  # bytes of keys, values and probabilities of all of them
SHARED = 128  # texts from which on a step is long enough to be shared among threads
BLOCK = 128  # tokens whose probabilities are added up first, to find where the cumulated distribution passes a number


class Batch(NamedTuple):
    """Texts that are written side by side.

    Attributes
    ----------
    ids : long (n_pairs, n), prompts of equal length, one row per pair of condition and prompt
    condition, owner : int (n_pairs,), number of the condition, number of the prompt
    pair : int (n_texts,), the pair of every text
    """

    ids: Tensor
    condition: np.ndarray
    owner: np.ndarray
    pair: np.ndarray


class Drawn(NamedTuple):
    """One written text: new ids, their log probabilities, whether the model ended it, and how far edits moved."""

    ids: list[int]
    log_prob: list[float]
    ended: bool
    moved: float


def threads(model: LanguageModel, n: int) -> AbstractContextManager[Any]:
    """One thread for few texts of a small model, the caller's number for many."""
    return one_thread(model) if n < SHARED else nullcontext()


def rows_at_once(model: LanguageModel, length: int) -> int:
    """How many texts of so many tokens are written side by side."""
    each = 8 * model.n_layers * model.d_model * length + 16 * model.n_vocab
    return max(1, min(ROWS, HELD // each))


def batches(
    coded: Sequence[np.ndarray], *, n_conditions: int, n_samples: int, size: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """All texts by condition, prompt and sample, some hundred of equal prompt length at a time, with their samples."""
    lengths = np.array([len(ids) for ids in coded])
    for n in np.unique(lengths):
        prompts = np.flatnonzero(lengths == n)
        condition = np.repeat(np.arange(n_conditions), len(prompts))
        owner = np.tile(prompts, n_conditions)
        pair = np.repeat(np.arange(len(owner)), n_samples)
        for a in range(0, len(pair), size):
            used, own = np.unique(pair[a : a + size], return_inverse=True)
            ids = torch.as_tensor(np.stack([coded[p] for p in owner[used]]).astype(np.int64))
            yield Batch(ids, condition[used], owner[used], own), np.arange(a, a + len(own)) % n_samples


def write_batch(
    model: LanguageModel, conditions: Sequence[Sequence[Edit]], batch: Batch, *, u: np.ndarray, temperature: float
) -> list[Drawn]:
    """Write every text of a batch; `u` are uniform numbers (n_texts, n_new).

    A text ends where a special token is drawn, which is no part of it.
    """
    ends = torch.tensor(sorted(special_ids(model)), dtype=torch.long)
    draws, given = torch.as_tensor(u, dtype=torch.float64), batch.ids[batch.pair]
    n_prompt, n_new = given.shape[1], draws.shape[1]
    first, past, moved = _read(model, conditions, batch, keep=n_new > 1)
    logits, new, log_prob = first[batch.pair], [], []
    alive = torch.ones(len(given), dtype=torch.bool)
    hooks = _hooks(model, conditions, batch.condition[batch.pair], owner=batch.owner[batch.pair], n_prompt=n_prompt)
    with steered(model, hooks):
        for step in range(n_new):
            token, lp = draw(logits, draws[:, step], temperature)
            new.append(token)
            log_prob.append(lp)
            alive &= ~torch.isin(token, ends)
            if step == n_new - 1 or not alive.any():
                break
            hooks.offset = n_prompt + step if past is not None else 0
            fed = token[:, None] if past is not None else torch.cat([given, torch.stack(new, 1)], 1)
            logits, past = _pass(model, hooks, fed, past=past, keep=past is not None)
    written, lp = torch.stack(new, 1), torch.stack(log_prob, 1)
    stop = torch.isin(written, ends)
    n = torch.where(stop.any(1), stop.int().argmax(1), written.shape[1])
    moved = np.maximum(moved[batch.pair], hooks.moved)
    return [
        Drawn(row[: int(k)].tolist(), p[: int(k)].tolist(), bool(s.any()), float(m))
        for row, k, s, p, m in zip(written, n, stop, lp, moved, strict=True)
    ]


def next_logits(model: LanguageModel, conditions: Sequence[Sequence[Edit]], batch: Batch) -> Tensor:
    """Logits of the token after every prompt of a batch, float32 (n_pairs, n_vocab) on the CPU."""
    return _read(model, conditions, batch, keep=False)[0]


def _read(
    model: LanguageModel, conditions: Sequence[Sequence[Edit]], batch: Batch, *, keep: bool
) -> tuple[Tensor, Any, np.ndarray]:
    """Logits after every prompt, keys and values of every text where the model keeps any, how far edits moved."""
    hooks = _hooks(model, conditions, batch.condition, owner=batch.owner, n_prompt=batch.ids.shape[1])
    with steered(model, hooks):
        logits, past = _pass(model, hooks, batch.ids, past=None, keep=keep)
    if past is not None:
        past.batch_select_indices(torch.as_tensor(batch.pair, device=model.device))
    return logits, past, hooks.moved


def _hooks(
    model: LanguageModel,
    conditions: Sequence[Sequence[Edit]],
    condition: np.ndarray,
    *,
    owner: np.ndarray,
    n_prompt: int,
) -> Steering:
    """The edits of every row's condition."""
    assert model.tokens is not None
    pairs = [(edit, np.flatnonzero(condition == c)) for c in np.unique(condition) for edit in conditions[c]]
    edits, rows = [edit for edit, _ in pairs], [row for _, row in pairs]
    return Steering(edits, owner, first=model.tokens.first, n_prompt=n_prompt, rows=rows)


def _pass(model: LanguageModel, hooks: Steering, ids: Tensor, *, past: Any, keep: bool) -> tuple[Tensor, Any]:
    """Logits of the last token (n, n_vocab), float32 on the CPU; keys and values where they are kept and can be."""
    network: Any = getattr(model.bridge, "original_model", None)
    cached = getattr(getattr(network, "config", None), "use_cache", None) is not None
    fed = ids.to(model.device)
    if cached:
        known = inspect.signature(network.forward).parameters
        last = "logits_to_keep" in known and not any(edit.hook.startswith("unembed") for edit in hooks.edits)
        settings = {"logits_to_keep": 1} if last else {}
        out = network(input_ids=fed, past_key_values=past, use_cache=keep, **settings)
        logits, past = out.logits[:, -1], out.past_key_values if keep else None
    else:
        logits = model.bridge(fed, return_type="logits")[:, -1]
    hooks.check_fired(model)
    return logits.float().cpu(), past


def draw(logits: Tensor, u: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A token for every row, and its log probability at temperature 1.

    Temperature 0 takes the most likely token, else the one at which the cumulated distribution passes u.
    """
    if temperature == 0:
        token = logits.argmax(-1)
        return token, logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    p = (logits if temperature == 1 else logits / temperature).softmax(-1)
    token = passed(p, u)
    if temperature == 1:
        return token, p.gather(1, token[:, None])[:, 0].log()
    return token, logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)


def passed(p: Tensor, u: Tensor) -> Tensor:
    """Index at which the cumulated sum of every row of p (n, m) passes the share u (n,) of its total.

    Blocks first, then inside the block in which the number lies: adding up all of a row in order takes as long as the
    model does. Shares are exact to the rounding of float32.

    Examples
    --------
    >>> passed(torch.tensor([[0.1, 0.2, 0.0, 0.7]] * 3), torch.tensor([0.05, 0.3001, 1.0])).tolist()
    [0, 3, 3]
    """
    parts = pad(p, (0, -p.shape[1] % BLOCK)).view(len(p), -1, BLOCK)
    sums = parts.sum(-1).double()
    total = sums.cumsum(-1)
    aim = (u * total[:, -1])[:, None]
    block = torch.searchsorted(total, aim).clamp(max=total.shape[1] - 1)
    share = (aim - total.gather(1, block)) / sums.gather(1, block) + 1  # of the block, that lies before the number
    inside = parts[torch.arange(len(p)), block[:, 0]].double().cumsum(-1)
    at = torch.searchsorted(inside, share * inside[:, -1:]).clamp(max=BLOCK - 1)
    return (block * BLOCK + at)[:, 0].clamp(max=p.shape[1] - 1)
