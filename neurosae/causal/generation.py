"""Texts that a model writes under edits, beside what it writes without them from the same random numbers.

1. Prompts of equal length form a batch, so nothing is padded; each sample of a prompt is a row of its own.
2. The edits are hooks that stay during decoding. A model with a key-value cache gives a hook the whole prompt first and
   then one token at a time: which token that is, the running offset tells. Places are absolute positions in the text.
3. The next token is drawn by inverting the cumulated distribution at a uniform number that depends on seed, prompt,
   sample and step alone: a steered text differs from the plain one only where the edit moved the distribution.
4. A row ends where the model writes a special token, or after `n_tokens`.

A hook that does not fire, and an edit that changes activations but no logit, are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch

from neurosae.causal.edits import Edit
from neurosae.causal.steering import Steering, steered
from neurosae.dictionary.texts import one_thread, special_ids
from neurosae.errors import DataError, ModelError
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.tokens import agreed_bos, decode, encode

ROWS = 256  # texts that are written side by side


class Sampling(NamedTuple):
    """How a continuation is drawn.

    Attributes
    ----------
    n_tokens : largest number of new tokens
    n_samples : texts per prompt
    temperature : the logits are divided by it; 0 takes the most likely token, the same in every sample
    """

    n_tokens: int = 40
    n_samples: int = 1
    temperature: float = 1.0


class Written(NamedTuple):
    """Texts under one condition, one row per prompt and sample, in this order.

    Attributes
    ----------
    prompt, sample : int arrays (n,), which prompt, which of its samples
    ids : token ids, specials in front included, prompt and new tokens
    start : int array (n,), index of the first new token
    texts : the new text
    ended : bool array (n,), whether the model ended the text itself
    log_prob : of every new token under the edited model, at temperature 1
    moved : largest change of a coordinate, relative to the root mean square of its vector; 0 without edits
    """

    prompt: np.ndarray
    sample: np.ndarray
    ids: list[np.ndarray]
    start: np.ndarray
    texts: list[str]
    ended: np.ndarray
    log_prob: list[np.ndarray]
    moved: float


class Generated(NamedTuple):
    """A steered continuation beside the plain one.

    Attributes
    ----------
    prompt : what was continued
    plain, steered : new text without and with the edit, from the same random numbers
    record : seed, temperature, what was edited, how each text ended, and the perplexity of both for the plain model
    """

    prompt: str
    plain: str
    steered: str
    record: dict[str, Any]


def generate(
    model: LanguageModel,
    dictionary: Any,
    prompt: str,
    *,
    clamp: Mapping[int, float] | Sequence[Edit],
    n_tokens: int = 40,
    temperature: float = 1.0,
    seed: int,
) -> Generated:
    """Continue a prompt with clamped features, and beside it without, from the same random numbers.

    Parameters
    ----------
    model : a causal LanguageModel with a head and a tokenizer
    dictionary : that of the features
    prompt : text; special tokens are put in front of it by the model's rule and are never edited
    clamp : {feature: value in activation units}, at all tokens of prompt and continuation; for other modes and places
        a sequence of `Edit`, whose `where` is `all`, `prompt` or `generated`, or per prompt an array of positions
        counted from the first id, specials included
    n_tokens : largest number of new tokens
    temperature : 0 is greedy
    seed : of the random numbers that both texts share

    Returns
    -------
    Generated

    Raises
    ------
    ModelError
        The model cannot write, a hook point is unknown or does not fire, or the edit changes no logit.
    DataError
        Prompt and continuation are longer than the context, or nothing is edited.

    Notes
    -----
    One text is an example, no evidence. `test: generation` scores many prompts and compares with control features.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> two = generate(load_model(toy), raw, "ab", clamp={3: 50.0}, n_tokens=4, temperature=0, seed=1)
    >>> two.plain != two.steered, two.record["temperature"]
    (True, 0)
    """
    edits = _as_edits(dictionary, clamp)
    sampling = Sampling(n_tokens, 1, temperature)
    plain = continue_texts(model, [prompt], (), sampling=sampling, seed=seed)
    written = continue_texts(model, [prompt], edits, sampling=sampling, seed=seed)
    refuse_idle(plain, written, edits)
    costs = [continuation_costs(model, w)[0] for w in (plain, written)]
    record = {
        "seed": seed,
        "temperature": temperature,
        "edits": [_words(edit) for edit in edits],
        "ended": {"plain": bool(plain.ended[0]), "steered": bool(written.ended[0])},
        "perplexity": {"plain": float(np.exp(costs[0])), "steered": float(np.exp(costs[1]))},
        "model": model.name,
    }
    return Generated(prompt, plain.texts[0], written.texts[0], record)


def _as_edits(dictionary: Any, clamp: Mapping[int, float] | Sequence[Edit]) -> tuple[Edit, ...]:
    if not len(clamp):
        raise DataError("clamp is empty, so nothing would be steered; give {feature: value}.")
    if not isinstance(clamp, Mapping):
        return tuple(clamp)
    dose = np.array(list(clamp.values()), dtype=float)
    features = tuple(int(j) for j in clamp)
    return (Edit(dictionary.hook, "clamp", "all", dictionary=dictionary, features=features, dose=dose),)


def _words(edit: Edit) -> str:
    dose = np.round(np.atleast_1d(np.asarray(edit.dose, dtype=float)), 4).tolist()
    what = f"{edit.mode} features {list(edit.features)} at {dose}" if edit.features else edit.mode
    place = edit.where if isinstance(edit.where, str) else "given positions"
    return f"{edit.hook}: {what}, {place} tokens"


def continue_texts(
    model: LanguageModel, prompts: Sequence[str], edits: Sequence[Edit], *, sampling: Sampling, seed: int
) -> Written:
    """Continue every prompt `n_samples` times under edits that act jointly; without edits, plainly.

    A row's text depends on seed, prompt text, sample and edits alone, not on the other rows.
    """
    model = writer(model, edits)
    assert model.tokens is not None
    coded = [e.ids[: len(e.ids) - len(model.tokens.suffix)] for e in encode(model.tokens, list(prompts))]
    for prompt, ids in zip(prompts, coded, strict=True):
        if len(ids) + sampling.n_tokens > model.n_ctx:
            raise DataError(
                f"prompt '{prompt[:40]}' has {len(ids)} tokens, and {sampling.n_tokens} new ones exceed the "
                f"context of {model.name}, {model.n_ctx}; ask for fewer tokens, or shorten the prompt."
            )
        if len(ids) == 0:
            raise DataError("an empty prompt has no token to start from; give a word at least.")
    rows = [(p, s) for p in range(len(coded)) for s in range(sampling.n_samples)]
    out: dict[tuple[int, int], tuple[list[int], bool, list[float]]] = {}
    moved = 0.0
    with one_thread(model), torch.inference_mode(), precision(model):
        for batch in _batches(rows, coded):
            ids = torch.as_tensor(np.stack([coded[p] for p, _ in batch]))
            u = np.stack([_uniform((seed, prompts[p], s), sampling.n_tokens) for p, s in batch])
            hooks = Steering(edits, [p for p, _ in batch], first=model.tokens.first, n_prompt=ids.shape[1])
            found = _write(model, ids, u, hooks=hooks, temperature=sampling.temperature)
            moved = max(moved, hooks.moved)
            out |= dict(zip(batch, found, strict=True))
    new = [out[row] for row in rows]
    written = [
        np.concatenate([coded[p], np.array(t, dtype=np.int64)]) for (p, _), (t, _, _) in zip(rows, new, strict=True)
    ]
    start = np.array([len(coded[p]) for p, _ in rows])
    texts = [_new_text(model, ids, n) for ids, n in zip(written, start, strict=True)]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 2)
    log_prob = [np.array(found[2]) for found in new]
    return Written(
        columns[:, 0], columns[:, 1], written, start, texts, np.array([f[1] for f in new], dtype=bool), log_prob, moved
    )


def writer(model: LanguageModel, edits: Sequence[Edit]) -> LanguageModel:
    """The model with the rule about BOS that the dictionaries of the edits want; refused where it cannot write."""
    if model.tokens is None or not (model.is_causal and model.has_head):
        raise ModelError(f"{model.name} does not write text: it has no tokenizer or head, or it is not causal.")
    wanted = {str(i): e.dictionary for i, e in enumerate(edits) if e.dictionary is not None}
    return replace(model, tokens=agreed_bos(model.tokens, wanted))


def _batches(rows: Sequence[tuple[int, int]], coded: Sequence[np.ndarray]) -> Iterator[list[tuple[int, int]]]:
    """Rows whose prompts have the same number of tokens, some hundred at a time."""
    lengths = np.array([len(coded[p]) for p, _ in rows])
    for n in np.unique(lengths):
        same = [row for row, length in zip(rows, lengths, strict=True) if length == n]
        yield from (same[a : a + ROWS] for a in range(0, len(same), ROWS))


def _uniform(row: tuple[int, str, int], n: int) -> np.ndarray:
    """Random numbers of one text, whatever else is written beside it."""
    seed, prompt, sample = row
    return np.random.default_rng([seed, crc32(prompt.encode()), sample]).random(n)


def _write(
    model: LanguageModel, ids: torch.Tensor, u: np.ndarray, *, hooks: Steering, temperature: float
) -> list[tuple[list[int], bool, list[float]]]:
    """New ids of every row, whether it ended itself, and the log probability of its new ids."""
    ends = torch.tensor(sorted(special_ids(model)), dtype=torch.long)
    draws, n_prompt = torch.as_tensor(u, dtype=torch.float64), ids.shape[1]
    alive, log_prob = torch.ones(len(ids), dtype=torch.bool), []
    with steered(model, hooks):
        for step, logits in enumerate(_each_step(model, hooks, ids, n=draws.shape[1])):
            total = logits.log_softmax(-1)
            new = _draw(logits, draws[:, step], temperature)
            log_prob.append(total.gather(1, new[:, None])[:, 0])
            hooks.ids = torch.cat([hooks.ids, new[:, None]], dim=1)
            alive &= ~torch.isin(new, ends)
            if not alive.any():
                break
    whole = hooks.ids[:, n_prompt:]
    stop = torch.isin(whole, ends)
    n = torch.where(stop.any(1), stop.int().argmax(1), whole.shape[1])
    lp = torch.stack(log_prob, dim=1)
    return [
        (row[: int(k)].tolist(), bool(s.any()), p[: int(k)].tolist())
        for row, k, s, p in zip(whole, n, stop, lp, strict=True)
    ]


def _draw(logits: torch.Tensor, u: torch.Tensor, temperature: float) -> torch.Tensor:
    """The most likely token, or the one at which the cumulated distribution passes u."""
    if temperature == 0:
        return logits.argmax(-1)
    total = (logits / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(total, (u * total[:, -1])[:, None])[:, 0].clamp(max=total.shape[1] - 1)


def _each_step(model: LanguageModel, hooks: Steering, ids: torch.Tensor, *, n: int) -> Iterator[torch.Tensor]:
    """Logits (rows, vocabulary) of the next token, float64 on the CPU; the caller appends the drawn ids to `hooks.ids`.

    With a key-value cache the model is fed what is new, and the offset says where that stands.
    """
    network: Any = getattr(model.bridge, "original_model", None)
    cached = getattr(getattr(network, "config", None), "use_cache", None) is not None
    hooks.ids, past = ids, None
    for _ in range(n):
        hooks.offset = hooks.ids.shape[1] - 1 if past is not None else 0
        fed = hooks.ids[:, hooks.offset :].to(model.device)
        if cached:
            out = network(input_ids=fed, past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[:, -1]
        else:
            logits = model.bridge(fed, return_type="logits")[:, -1]
        hooks.check_fired(model)
        yield logits.double().cpu()


def _new_text(model: LanguageModel, ids: np.ndarray, start: int) -> str:
    """What was added to the prompt; decoded with it, because some tokenizers drop a blank at the start of a text."""
    assert model.tokens is not None
    first = model.tokens.first
    whole, before = decode(model.tokens, ids[first:].tolist()), decode(model.tokens, ids[first:start].tolist())
    return whole[len(before) :] if whole.startswith(before) else decode(model.tokens, ids[start:].tolist())


def refuse_idle(plain: Written, written: Written, edits: Sequence[Edit]) -> None:
    """An edit that moved activations and no probability at all is an error (a hook that the model does not read).

    Raises
    ------
    ModelError
    """
    same = all(np.array_equal(a, b) for a, b in zip(plain.log_prob, written.log_prob, strict=True))
    if written.moved > 0 and same and plain.texts == written.texts:
        hooks = ", ".join(dict.fromkeys(edit.hook for edit in edits))
        raise ModelError(
            f"the edit at {hooks} moved activations by up to {written.moved:.3g} of their size, and no logit changed; "
            "the model does not read this hook point, or not at these tokens. Edit a residual stream at all tokens."
        )


def continuation_costs(model: LanguageModel, written: Written) -> np.ndarray:
    """Mean surprisal per new token of every text for the model without edits, nats (n,); nan where none was written.

    exp of it is the perplexity: how strange the unedited model finds what was written.
    """
    out = np.full(len(written.ids), np.nan)
    lengths = np.array([len(ids) for ids in written.ids])
    with one_thread(model), torch.inference_mode(), precision(model):
        for n in np.unique(lengths):
            for rows in np.array_split(np.flatnonzero(lengths == n), -(-int((lengths == n).sum()) // 64)):
                ids = torch.as_tensor(np.stack([written.ids[i] for i in rows])).to(model.device)
                total = model.bridge(ids, return_type="logits").double().log_softmax(-1)
                lp = total[:, :-1].gather(2, ids[:, 1:, None])[..., 0].cpu().numpy()
                for i, row in zip(rows, lp, strict=True):
                    if n > written.start[i]:
                        out[i] = -row[written.start[i] - 1 :].mean()
    return out
