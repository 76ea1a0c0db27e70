"""Prompts of a design's items, and the score of what follows them under a condition.

A prompt is the text of a stimulus up to a region. Cells of an item that differ only after it give the same prompt,
which counts once; frames give several. Samples are averaged inside a prompt, prompts inside an item: items are the
units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from neurosae.causal.decoding import batches, next_logits, rows_at_once, threads
from neurosae.causal.edits import Edit
from neurosae.causal.generation import Sampling, Written, continue_conditions, writer
from neurosae.causal.scoring import SCORES, Lexicon, score_texts
from neurosae.errors import DataError
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.tokens import token_ids


class Condition(NamedTuple):
    """Features that are pushed: what each is set to, or what is added to it, by feature."""

    mode: str
    doses: Mapping[int, float]


class Asked(NamedTuple):
    """What is written and scored, the same for every condition."""

    prompts: pd.DataFrame
    lexicon: Lexicon
    score: str
    sampling: Sampling
    where: str
    seed: int


def prompts_of(
    stimuli: pd.DataFrame, region: str, *, through: bool = False, split: str | None = "test"
) -> pd.DataFrame:
    """Prompts of the items of a split: columns `item frame prompt`, items in the order of the table.

    Parameters
    ----------
    through : with the region itself; else the text before it, without the blank that separates them

    Raises
    ------
    DataError
        Nothing stands before the region.

    Examples
    --------
    >>> table = pd.DataFrame({"item": ["a", "a"], "frame": ["f", "f"], "split": ["test"] * 2,
    ...     "text": ["The cake was good", "The cake was bad"], "word_start": [13, 13], "word_end": [17, 16]})
    >>> prompts_of(table, "word").values.tolist()
    [['a', 'f', 'The cake was']]
    >>> prompts_of(table, "word", through=True)["prompt"].tolist()
    ['The cake was good', 'The cake was bad']
    """
    edge = f"{region}_{'end' if through else 'start'}"
    if edge not in stimuli:
        raise DataError(f"the stimuli have no region '{region}'; name one of the design.")
    kept = stimuli[edge].notna()
    if split is not None and "split" in stimuli:
        kept &= stimuli["split"].astype(str) == split
    rows = stimuli[kept]
    cut = [text[: int(at)].rstrip() for text, at in zip(rows["text"], rows[edge], strict=True)]
    made = pd.DataFrame({"item": rows["item"].astype(str), "frame": rows["frame"].astype(str), "prompt": cut})
    made = made.drop_duplicates(ignore_index=True)
    if not len(made):
        raise DataError(f"no text of split '{split}' has region '{region}', so there is nothing to continue.")
    if (made["prompt"] == "").any():
        raise DataError(f"nothing stands before region '{region}' in some texts; use a later region.")
    return made


def edits_of(condition: Condition | None, dictionary: Any, *, where: str) -> tuple[Edit, ...]:
    """The edit of a condition: of `steer` what is added, of `clamp` what features are set to; None is no edit."""
    if condition is None:
        return ()
    dose = np.array(list(condition.doses.values()), dtype=float)
    features = tuple(int(j) for j in condition.doses)
    return (Edit(dictionary.hook, condition.mode, where, dictionary=dictionary, features=features, dose=dose),)


def follow(
    model: LanguageModel, asked: Asked, conditions: Sequence[Sequence[Edit]]
) -> tuple[np.ndarray, list[Written | None]]:
    """Score of every prompt under every condition (n_conditions, n_prompts), and the texts where any were written."""
    prompts = asked.prompts["prompt"].tolist()
    if asked.score not in SCORES:
        found = next_word_odds(model, prompts, conditions, lexicon=asked.lexicon)[0]
        return found, [None] * len(conditions)
    written = continue_conditions(model, prompts, conditions, sampling=asked.sampling, seed=asked.seed)
    scores = [score_texts(w.texts, asked.lexicon, asked.score).reshape(len(prompts), -1).mean(axis=1) for w in written]
    return np.stack(scores), list(written)


def next_word_odds(
    model: LanguageModel, prompts: Sequence[str], conditions: Sequence[Sequence[Edit]], *, lexicon: Lexicon
) -> tuple[np.ndarray, list[str]]:
    """Log of P(any + word) / P(any - word) as the next word, by condition and prompt, and words that are not scored.

    Notes
    -----
    Only words that are one token after the prompts count; the others are handed back, to be named.
    """
    model = writer(model, [edit for edits in conditions for edit in edits])
    assert model.tokens is not None
    plus, minus, lost = _single_tokens(model, prompts[0], lexicon)
    coded = [np.array(ids) for ids in token_ids(model.tokens, list(prompts))]
    coded = [ids[: len(ids) - len(model.tokens.suffix)] for ids in coded]
    size, out = rows_at_once(model, max(len(ids) for ids in coded)), np.empty((len(conditions), len(prompts)))
    with threads(model, min(size, out.size)), torch.inference_mode(), precision(model):
        for batch, _ in batches(coded, n_conditions=len(conditions), n_samples=1, size=size):
            logits = next_logits(model, conditions, batch).double()
            odds = logits[:, plus].logsumexp(-1) - logits[:, minus].logsumexp(-1)
            out[batch.condition, batch.owner] = odds.numpy()
    return out, lost


def _single_tokens(model: LanguageModel, prompt: str, lexicon: Lexicon) -> tuple[list[int], list[int], list[str]]:
    assert model.tokens is not None
    base = token_ids(model.tokens, [prompt], specials=False)[0]
    found: dict[str, list[int]] = {"plus": [], "minus": []}
    lost = []
    for side, own in found.items():
        for word in getattr(lexicon, side):
            ids = token_ids(model.tokens, [f"{prompt} {word}"], specials=False)[0]
            if len(ids) == len(base) + 1 and ids[:-1] == base:
                own.append(ids[-1])
            else:
                lost.append(word)
        if not own:
            raise DataError(f"no {side} word of the list is a single token of {model.name}; add more common words.")
    return found["plus"], found["minus"], lost
