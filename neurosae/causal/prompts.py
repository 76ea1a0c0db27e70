"""Stimuli as an intervention needs them: token ids, the token that predicts the target, and the tokens of any region.

Two kinds of stimuli are read. Where a design says which slot holds the target, the target is predicted from what comes
before that slot. Without a design the target continues the text: `text` "The keys", `target` " are", `foil` " is".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neurosae.errors import DataError, ModelError, unknown
from neurosae.extraction.cells import scored_targets
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.tokens import Encoded, agreed_bos, check_lengths, encode, encode_ids, region_tokens
from neurosae.spec.design import Design

TARGET, ALL = "target", "all"
"""Places that are no region: the token that predicts the target; every token of the text, specials left out."""
CONTINUATION = "@target"

Where = str | Sequence[np.ndarray]


class Prompts(NamedTuple):
    """Stimuli as a model reads them.

    Attributes
    ----------
    model : with the rule about BOS that the dictionaries want
    names : of the stimuli
    ids : token ids, specials included
    first, stop : tokens [first, stop) are those of the text
    at : int64 (n,), token whose output predicts the target; -1 where nothing is scored
    target, foil : int64 (n,), their ids; -1 where nothing is scored
    reason : why a stimulus is not scored; empty where it is
    spans : {region: (start, end) of each stimulus in characters, -1 where it has none}
    coded : tokens with their characters
    """

    model: LanguageModel
    names: list[str]
    ids: list[np.ndarray]
    first: int
    stop: np.ndarray
    at: np.ndarray
    target: np.ndarray
    foil: np.ndarray
    reason: list[str]
    spans: dict[str, np.ndarray]
    coded: list[Encoded]


def read_prompts(stimuli: pd.DataFrame, model: LanguageModel, dictionaries: Sequence[Any] = ()) -> Prompts:
    """Encode stimuli and find what they score.

    Parameters
    ----------
    stimuli : from `expand`; or any table with `text` and, where logits are to be scored, `target` and `foil`; or with
        `ids`, lists of token ids, whose `target` and `foil` are ids that continue them
    model : LanguageModel that predicts the next token
    dictionaries : those that are used; they know whether their training texts began with BOS

    Raises
    ------
    DataError
        A text is longer than the context, or the table has no texts.
    ModelError
        The model does not predict the next token, or its dictionaries disagree about BOS.
    """
    if not (model.is_causal and model.has_head):
        raise ModelError(f"{model.name} does not predict the next token, so interventions on it have no outcome.")
    if not len(stimuli) or not {"text", "ids"} & set(stimuli.columns):
        raise DataError("stimuli: there are none; give a table with a column `text`, or `ids`, and one row each.")
    tokens = agreed_bos(model.tokens, {str(i): d for i, d in enumerate(dictionaries)})
    if tokens is None and "ids" not in stimuli:
        raise DataError(f"{model.name} has no tokenizer; give token ids in a column `ids` in place of texts.")
    model = replace(model, tokens=tokens)
    coded, targets = _scored(stimuli, model)
    names = [str(name) for name in stimuli.index]
    check_lengths(dict(zip(names, (len(e.ids) for e in coded), strict=True)), model.n_ctx, model=model.name)
    n_suffix = len(tokens.suffix) if tokens else 0
    spans = {
        name.removesuffix("_start"): _span(stimuli, name.removesuffix("_start"))
        for name in stimuli.columns
        if name.endswith("_start") and f"{name.removesuffix('_start')}_end" in stimuli
    }
    at, target, foil = (targets[name].to_numpy(np.int64) for name in ("at", "target", "foil"))
    ids = [np.asarray(e.ids, dtype=np.int64) for e in coded]
    stop = np.array([len(i) - n_suffix for i in ids])
    first = tokens.first if tokens else 0
    return Prompts(model, names, ids, first, stop, at, target, foil, targets["reason"].tolist(), spans, coded)


def _span(stimuli: pd.DataFrame, region: str) -> np.ndarray:
    both = stimuli[[f"{region}_start", f"{region}_end"]].astype("Float64")
    return both.fillna(-1).to_numpy(np.int64)


def _scored(stimuli: pd.DataFrame, model: LanguageModel) -> tuple[list[Encoded], pd.DataFrame]:
    """Tokens of every stimulus, and the table of targets of `extraction.cells`."""
    if "ids" in stimuli:
        return _scored_ids(stimuli, model)
    assert model.tokens is not None
    design = Design.from_json(stimuli.attrs["design"]) if "design" in stimuli.attrs else None
    if design is not None or not {"target", "foil"} <= set(stimuli.columns):
        slot = design.target.slot if design is not None and design.target is not None else None
        coded = encode(model.tokens, stimuli["text"].tolist())
        return coded, scored_targets(stimuli, model.tokens, coded, slot=slot)
    given = stimuli["target"].notna() & stimuli["foil"].notna()
    words = stimuli["target"].where(given, "").astype(str)
    texts = stimuli["text"] + words
    blanks = words.str.len() - words.str.lstrip().str.len()
    spans = {
        f"{CONTINUATION}_start": (stimuli["text"].str.len() + blanks).where(given),
        f"{CONTINUATION}_end": texts.str.len().where(given),
    }
    whole = encode(model.tokens, texts.tolist())
    targets = scored_targets(stimuli.assign(text=texts, **spans), model.tokens, whole, slot=CONTINUATION)
    alone = encode(model.tokens, stimuli["text"].tolist())
    n_suffix = len(model.tokens.suffix)
    for i, (one, both) in enumerate(zip(alone, whole, strict=True)):
        n = len(one.ids) - n_suffix
        if int(targets["at"].iloc[i]) >= 0 and not np.array_equal(one.ids[:n], both.ids[:n]):
            targets.loc[i, ["at", "reason"]] = [-1, "the tokens of the text change when the target follows"]
    return alone, targets


def _scored_ids(stimuli: pd.DataFrame, model: LanguageModel) -> tuple[list[Encoded], pd.DataFrame]:
    coded = encode_ids(model.tokens, stimuli["ids"].tolist())
    n_suffix = len(model.tokens.suffix) if model.tokens else 0
    is_scored = {"target", "foil"} <= set(stimuli.columns)
    rows = []
    for i, e in enumerate(coded):
        answers = stimuli[["target", "foil"]].iloc[i].tolist() if is_scored else [None, None]
        if not all(isinstance(a, int | np.integer) and 0 <= a < model.n_vocab for a in answers):
            rows.append({"at": -1, "target": -1, "foil": -1, "reason": "target and foil are no token ids"})
        else:
            at = len(e.ids) - n_suffix - 1
            rows.append({"at": at, "target": answers[0], "foil": answers[1], "reason": ""})
    return coded, pd.DataFrame(rows)


def tokens_at(prompts: Prompts, where: Where) -> list[np.ndarray]:
    """The tokens of a place in every stimulus, as indices among the ids that the model gets.

    Parameters
    ----------
    where : name of a region; `target`, the token that predicts the target; `all`, every token of the text; or one
        array of token indices per stimulus, the only way to name a special

    Raises
    ------
    DataError
        The region is unknown or missing from a stimulus, or an index lies outside its stimulus.
    """
    n = len(prompts.ids)
    if not isinstance(where, str):
        return _given(prompts, where)
    if where == ALL:
        return [np.arange(prompts.first, stop) for stop in prompts.stop]
    if where == TARGET:
        return [np.array([at] if at >= 0 else [], dtype=np.int64) for at in prompts.at]
    if where not in prompts.spans:
        raise DataError(unknown("place", where, [TARGET, ALL, *prompts.spans]))
    spans = prompts.spans[where]
    if lost := [prompts.names[i] for i in range(n) if spans[i, 0] < 0]:
        raise DataError(
            f"region '{where}' is missing from {len(lost)} of {n} stimuli, such as '{lost[0]}'; leave them out, or "
            "name another region."
        )
    told = [f"stimulus '{name}', region '{where}'" for name in prompts.names]
    return [
        region_tokens(e, (int(span[0]), int(span[1])), where=text)
        for e, span, text in zip(prompts.coded, spans, told, strict=True)
    ]


def _given(prompts: Prompts, where: Sequence[np.ndarray]) -> list[np.ndarray]:
    if len(where) != len(prompts.ids):
        raise DataError(
            f"where: holds tokens of {len(where)} stimuli, but there are {len(prompts.ids)}; give one each."
        )
    out = []
    for name, ids, one in zip(prompts.names, prompts.ids, where, strict=True):
        tokens = np.asarray(one, dtype=np.int64).reshape(-1)
        if (np.diff(tokens) <= 0).any() or (len(tokens) and not 0 <= tokens[0] <= tokens[-1] < len(ids)):
            raise DataError(f"where: stimulus '{name}' has tokens 0 to {len(ids) - 1}; name them in ascending order.")
        out.append(tokens)
    return out


def predicted(prompts: Prompts, where: str) -> list[np.ndarray]:
    """The tokens of a place that are predicted from something: the first one without a BOS before it is not."""
    return [tokens[tokens > 0] for tokens in tokens_at(prompts, where)]


def unscored(prompts: Prompts) -> Mapping[str, str]:
    """The stimuli without a scored target, and why."""
    return {name: why for name, why, at in zip(prompts.names, prompts.reason, prompts.at, strict=True) if at < 0}
