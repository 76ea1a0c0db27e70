"""Texts that a model writes under edits, beside what it writes without them from the same random numbers.

1. Texts of all conditions, prompts and samples are written side by side (`decoding`).
2. The edits are hooks that stay during decoding. A model with a key-value cache gives a hook the whole prompt first and
   then one token at a time: which token that is, the running offset tells. Places are absolute positions in the text.
3. The next token is drawn by inverting the cumulated distribution at a uniform number that depends on seed, prompt,
   sample and step alone: a steered text differs from the plain one only where the edit moved the distribution.
4. A text ends where the model writes a special token, or after `n_tokens`.

A hook that does not fire, and an edit that changes activations but no logit, are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch

from neurosae.causal.decoding import Drawn, batches, rows_at_once, threads, write_batch
from neurosae.causal.edits import Edit
from neurosae.dictionary.texts import one_thread
from neurosae.errors import DataError, ModelError
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.tokens import agreed_bos, decode, encode

SAME = 2e-5  # nats: log probabilities of the same text in two places of a batch differ by rounding alone


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
    """Continue every prompt `n_samples` times under edits that act jointly; without edits, plainly."""
    return continue_conditions(model, prompts, [edits], sampling=sampling, seed=seed)[0]


def continue_conditions(
    model: LanguageModel,
    prompts: Sequence[str],
    conditions: Sequence[Sequence[Edit]],
    *,
    sampling: Sampling,
    seed: int,
) -> list[Written]:
    """Continue every prompt `n_samples` times under every condition, all side by side.

    A text depends on seed, prompt text, sample and the edits of its condition alone, not on what else is written, up to
    the rounding of float32: a token changes only where its random number lies that close to the next token.

    Parameters
    ----------
    conditions : edits of one condition act jointly; () is the plain text

    Raises
    ------
    DataError
        A prompt is empty, or too long for the context; a number of tokens, samples, a temperature or seed that is none.
    """
    _check(sampling, seed)
    model = writer(model, [edit for edits in conditions for edit in edits])
    coded = _coded(model, prompts, sampling.n_tokens)
    n_samples, n_prompts = sampling.n_samples, len(prompts)
    uniform = np.stack([_uniform((seed, text, s), sampling.n_tokens) for text in prompts for s in range(n_samples)])
    longest = max(len(ids) for ids in coded) + sampling.n_tokens
    size, n_texts = rows_at_once(model, longest), len(conditions) * n_prompts * n_samples
    found: list[Any] = [None] * n_texts
    with threads(model, min(size, n_texts)), torch.inference_mode(), precision(model):
        for batch, sample in batches(coded, n_conditions=len(conditions), n_samples=n_samples, size=size):
            at = batch.owner[batch.pair] * n_samples + sample
            drawn = write_batch(model, conditions, batch, u=uniform[at], temperature=sampling.temperature)
            for k, one in zip(batch.condition[batch.pair] * n_prompts * n_samples + at, drawn, strict=True):
                found[int(k)] = one
    n = n_prompts * n_samples
    return [_written(model, coded, found[k * n : (k + 1) * n]) for k in range(len(conditions))]


def _check(sampling: Sampling, seed: int) -> None:
    """Refuse settings under which nothing can be drawn."""
    for name, least in (("n_tokens", 1), ("n_samples", 1)):
        if (value := getattr(sampling, name)) < least:
            raise DataError(f"{name} is {value}; write at least {least}.")
    if not 0 <= sampling.temperature < float("inf"):
        raise DataError(f"temperature is {sampling.temperature:g}; give a number from 0, which is greedy, upwards.")
    if seed < 0:
        raise DataError(f"seed is {seed}; random numbers need one of 0 or above.")


def _coded(model: LanguageModel, prompts: Sequence[str], n_new: int) -> list[np.ndarray]:
    """Ids of the prompts, specials in front; refused where there are none, or too many."""
    assert model.tokens is not None
    coded = [e.ids[: len(e.ids) - len(model.tokens.suffix)] for e in encode(model.tokens, list(prompts))]
    for prompt, ids in zip(prompts, coded, strict=True):
        if len(ids) + n_new > model.n_ctx:
            raise DataError(
                f"prompt '{prompt[:40]}' has {len(ids)} tokens, and {n_new} new ones exceed the "
                f"context of {model.name}, {model.n_ctx}; ask for fewer tokens, or shorten the prompt."
            )
        if len(ids) == 0:
            raise DataError("an empty prompt has no token to start from; give a word at least.")
    return coded


def _written(model: LanguageModel, coded: Sequence[np.ndarray], drawn: Sequence[Drawn]) -> Written:
    """The texts of one condition, prompt by prompt."""
    n_samples = len(drawn) // len(coded)
    prompt = np.repeat(np.arange(len(coded)), n_samples)
    own = [coded[int(p)] for p in prompt]
    ids = [np.concatenate([given, np.array(d.ids, dtype=np.int64)]) for given, d in zip(own, drawn, strict=True)]
    start = np.array([len(given) for given in own])
    return Written(
        prompt, np.tile(np.arange(n_samples), len(coded)), ids, start,
        [_new_text(model, row, n) for row, n in zip(ids, start, strict=True)],
        np.array([d.ended for d in drawn], dtype=bool), [np.array(d.log_prob) for d in drawn],
        max(d.moved for d in drawn),
    )  # fmt: skip


def writer(model: LanguageModel, edits: Sequence[Edit]) -> LanguageModel:
    """The model with the rule about BOS that the dictionaries of the edits want; refused where it cannot write."""
    if model.tokens is None or not (model.is_causal and model.has_head):
        raise ModelError(f"{model.name} does not write text: it has no tokenizer or head, or it is not causal.")
    wanted = {str(id(e.dictionary)): e.dictionary for e in edits if e.dictionary is not None}
    return replace(model, tokens=agreed_bos(model.tokens, wanted))


def _uniform(row: tuple[int, str, int], n: int) -> np.ndarray:
    """Random numbers of one text, whatever else is written beside it."""
    seed, prompt, sample = row
    return np.random.default_rng([seed, crc32(prompt.encode()), sample]).random(n)


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
    same = plain.texts == written.texts and all(
        np.allclose(a, b, rtol=0, atol=SAME) for a, b in zip(plain.log_prob, written.log_prob, strict=True)
    )
    if written.moved > 0 and same:
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
