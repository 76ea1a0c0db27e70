"""Sequences of random tokens that repeat, and their controls that do not: what attention to a repetition is read on.

Each sequence is [BOS] s s, with s distinct tokens drawn anew; its control is [BOS] s r, with r as many other tokens.
The control has the same offsets and no repetition, so that a head which attends at a fixed distance does not pass for
one that looks for the same token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from neurosae.causal.attention import each_pattern
from neurosae.causal.progress import with_bar
from neurosae.errors import DataError
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, hooked_pass, logits_of

SCORES = ("previous", "duplicate", "induction", "sink", "entropy")
BATCH_TOKENS = 2048
HELD = 1 << 22  # logits held at once


class Sequences(NamedTuple):
    """Repeated sequences and their controls, paired.

    Attributes
    ----------
    repeated, control : token ids of each
    lengths : int (n,), T, the length of s
    first : index of the first token after BOS
    """

    repeated: list[np.ndarray]
    control: list[np.ndarray]
    lengths: np.ndarray
    first: int

    def second(self, i: int) -> np.ndarray:
        """Token indices of the second copy of sequence i."""
        T = int(self.lengths[i])
        return self.first + T + np.arange(T)


def draw_sequences(model: LanguageModel, n: int, *, lengths: tuple[int, int] = (16, 48), seed: int) -> Sequences:
    """Draw sequences; specials of the tokenizer are never drawn.

    Raises
    ------
    DataError
        The context, or the vocabulary, is too small.
    """
    tokens = model.tokens
    prefix = list(tokens.prefix) if tokens else []
    special = {*(tokens.habit if tokens else ()), *(tokens.suffix if tokens else ()), *prefix}
    special |= {t for t in ((tokens.bos_id, tokens.unknown_id) if tokens else ()) if t is not None}
    known = np.array([t for t in range(model.n_vocab) if t not in special])
    low, high = lengths
    if len(prefix) + 2 * high > model.n_ctx or 2 * high > len(known) or not 2 <= low <= high:
        raise DataError(
            f"sequences of two copies of {low} to {high} distinct tokens do not fit a context of {model.n_ctx} and a "
            f"vocabulary of {len(known)}; give shorter `lengths`."
        )
    rng = np.random.default_rng(seed)
    T = rng.integers(low, high + 1, n)
    repeated, control = [], []
    for size in T:
        drawn = rng.choice(known, 2 * size, replace=False)
        s, r = drawn[:size], drawn[size:]
        repeated.append(np.concatenate([prefix, s, s]).astype(np.int64))
        control.append(np.concatenate([prefix, s, r]).astype(np.int64))
    return Sequences(repeated, control, T, len(prefix))


def read_scores(model: LanguageModel, sequences: Sequences, *, repeated: bool) -> np.ndarray:
    """Scores of every head over the second half, float64 (n, len(SCORES), n_layers * n_heads).

    With t over the second half and T the length of the first: previous A[t, t-1], duplicate A[t, t-T], induction
    A[t, t-T+1], sink A[t, 0], and the entropy of A[t] in bits.
    """
    ids = sequences.repeated if repeated else sequences.control
    n_heads = int(model.bridge.cfg.n_heads)
    out = np.empty((len(ids), len(SCORES), model.n_layers * n_heads))
    for rows in with_bar(length_buckets([len(row) for row in ids], BATCH_TOKENS), "repeated sequences"):

        def reduce(layer: int, pattern: torch.Tensor, *, rows: np.ndarray = rows) -> None:
            at = slice(layer * n_heads, (layer + 1) * n_heads)
            for k, i in enumerate(rows):
                out[i, :, at] = _scores(pattern[k], sequences.second(i), int(sequences.lengths[i]))

        padded, mask = pad([ids[i] for i in rows])
        each_pattern(model, padded, mask, take=reduce)
    return out


def _scores(A: torch.Tensor, t: np.ndarray, T: int) -> np.ndarray:
    """The five scores of one layer and sequence (len(SCORES), n_heads) from A (n_heads, length, length)."""
    at = torch.as_tensor(t, device=A.device)
    rows = A[:, at].double()
    entropy = -(torch.where(rows > 0, rows * rows.clamp(min=1e-30).log2(), 0)).sum(-1)
    found = [A[:, at, at - 1], A[:, at, at - T], A[:, at, at - T + 1], A[:, at, 0], entropy]
    return np.stack([part.double().mean(-1).cpu().numpy() for part in found])


def uniform_scores(sequences: Sequences) -> np.ndarray:
    """What a head scores that attends to all tokens before alike, (n, len(SCORES)).

    Examples
    --------
    >>> one = Sequences([np.arange(5)], [np.arange(5)], np.array([2]), 1)
    >>> uniform_scores(one)[0].round(3).tolist()  # t = 3, 4 see 4 and 5 tokens
    [0.225, 0.225, 0.225, 0.225, 2.161]
    """
    seen = [sequences.second(i) + 1.0 for i in range(len(sequences.lengths))]
    share = np.array([(1 / n).mean() for n in seen])
    entropy = np.array([np.log2(n).mean() for n in seen])
    return np.column_stack([*[share] * (len(SCORES) - 1), entropy])


def copy_losses(model: LanguageModel, sequences: Sequences) -> np.ndarray:
    """Mean -ln p of the tokens of the first and of the second copy, nats, (n, 2); the first token of each is left out.

    The first token of a copy follows nothing that would tell it.
    """
    out = np.empty((len(sequences.repeated), 2))
    for rows in with_bar(length_buckets([len(row) for row in sequences.repeated], BATCH_TOKENS), "repeated sequences"):
        padded, _ = pad([sequences.repeated[i] for i in rows])
        for k, i in enumerate(rows):
            t = sequences.first + np.arange(1, 2 * int(sequences.lengths[i]))
            loss = _loss(model, padded[k : k + 1], t)
            T = int(sequences.lengths[i])
            out[i] = loss[: T - 1].mean(), loss[T:].mean()
    return out


def _loss(model: LanguageModel, ids: np.ndarray, t: np.ndarray) -> np.ndarray:
    """-ln p of the tokens t of one sequence."""
    hook, seen = model.last_hook, np.zeros_like(ids)
    seen[:, : t.max() + 1] = 1
    x = hooked_pass(model, ids, seen, hooks=[hook], rows=np.zeros(len(t), dtype=int), cols=t - 1)[hook]
    out, step = np.empty(len(t)), max(1, HELD // model.n_vocab)
    for a in range(0, len(t), step):
        logp = torch.log_softmax(logits_of(model, x[a : a + step]), dim=-1)
        wanted = torch.as_tensor(ids[0, t[a : a + step]], device=logp.device)[:, None]
        out[a : a + step] = -logp.gather(1, wanted)[:, 0].double().cpu().numpy()
    return out


def head_outputs(model: LanguageModel, sequences: Sequences) -> tuple[np.ndarray, list[np.ndarray]]:
    """Mean length of what every head writes in the second copy, and its mean z on controls, by head.

    Returns
    -------
    norms : float64 (n_layers * n_heads,), mean of |z W_O| over tokens
    means : z of every head, float32 (d_head,), averaged over the tokens of the controls
    """
    n_heads, layers = int(model.bridge.cfg.n_heads), range(model.n_layers)
    norms, means = np.zeros((model.n_layers, n_heads)), [np.zeros(0)] * model.n_layers
    copies = [sequences.second(i) for i in range(len(sequences.lengths))]
    for z in _heads_at(model, sequences.repeated, copies):
        for layer in layers:
            norms[layer] += _written(model, z[layer], layer=layer, n_heads=n_heads)
    whole = [np.arange(sequences.first, len(ids)) for ids in sequences.control]
    for z in _heads_at(model, sequences.control, whole):
        for layer in layers:
            total = z[layer].double().sum(0).cpu().numpy()
            means[layer] = total if not means[layer].size else means[layer] + total
    n_control = sum(map(len, whole))
    by_head = [part for mean in means for part in (mean / n_control).astype(np.float32).reshape(n_heads, -1)]
    return norms.ravel() / sequences.lengths.sum(), by_head


def _heads_at(
    model: LanguageModel, ids: Sequence[np.ndarray], tokens: Sequence[np.ndarray]
) -> Iterator[list[torch.Tensor]]:
    """Z of all layers at some tokens of every sequence, a batch at a time: per layer (n_cells, n_heads * d_head)."""
    hooks = [f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)]
    for rows in with_bar(length_buckets([len(row) for row in ids], BATCH_TOKENS), "repeated sequences"):
        padded, mask = pad([ids[i] for i in rows])
        line = np.repeat(np.arange(len(rows)), [len(tokens[i]) for i in rows])
        found = hooked_pass(model, padded, mask, hooks=hooks, rows=line, cols=np.concatenate([tokens[i] for i in rows]))
        yield [found[hook] for hook in hooks]


def _written(model: LanguageModel, z: torch.Tensor, *, layer: int, n_heads: int) -> np.ndarray:
    """Sum over tokens of the length of z_h W_O of each head; the bias, which belongs to none, is taken off."""
    output, out = model.bridge.blocks[layer].attn.o, np.empty(n_heads)
    with torch.inference_mode():
        bias = output(torch.zeros_like(z[:1, None]))
        for head in range(n_heads):
            alone = torch.zeros_like(z).reshape(len(z), n_heads, -1)
            alone[:, head] = z.reshape(len(z), n_heads, -1)[:, head]
            out[head] = float((output(alone.reshape(len(z), 1, -1)) - bias).norm(dim=-1).sum())
    return out
