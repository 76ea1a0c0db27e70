"""Inversion of a feature: which tokens, put into a text, drive its pre-activation highest?

Three views, from cheap to exact: the cosine of its encoder with the embeddings (early layers only), the exact value
with one token replaced by every token of the vocabulary, and a greedy search over several places whose candidates a
gradient proposes and a forward pass decides. What is found is a string that drives the feature, often no language: its
surprisal stands beside it, and it counts only where a rule found on running text predicts it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurosae.causal.gradients import Stop, frozen_weights
from neurosae.errors import DataError, ModelError
from neurosae.examine.directions import checked, token_text
from neurosae.extraction.passes import LanguageModel, hooked_pass, logits_of, precision
from neurosae.extraction.tokens import agreed_bos, decode, token_ids

EMBED = "hook_embed"
BATCH = 8192  # ids in a batch of candidates


@dataclass(frozen=True)
class Target:
    """What is driven: pre-activation of one feature at one place of a sequence of ids, specials included."""

    model: LanguageModel
    dictionary: Any
    feature: int
    read: int


def embedding_cosines(model: LanguageModel, dictionary: Any, feature: int, *, n: int = 10) -> pd.DataFrame:
    """Tokens whose embeddings point along a feature's encoder: `rank token token_id cosine`.

    For a dictionary of an early residual stream only, where the embedding still stands in it as it is.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> embedding_cosines(load_model(toy), neuron_dictionary("blocks.0.hook_resid_pre", 8), 2, n=3)["rank"].tolist()
    [1, 2, 3]
    """
    j = int(checked(dictionary, [feature])[0])
    E = _embeddings(model)
    if dictionary.d_in != E.shape[1]:
        raise ModelError(
            f"{dictionary.hook} has width {dictionary.d_in}, embeddings {E.shape[1]}: they cannot be compared."
        )
    w = dictionary.W_enc[j].detach().float().cpu()
    E = E.cpu()
    cosine = ((E @ w) / (E.norm(dim=1) * w.norm()).clamp(min=1e-12)).numpy()
    order = np.argsort(-cosine, kind="stable")[:n]
    names = [token_text(model.tokens, int(i)) for i in order]
    return pd.DataFrame(
        {"rank": np.arange(1, len(order) + 1), "token": names, "token_id": order, "cosine": cosine[order]}
    )


def swap_scores(
    model: LanguageModel, dictionary: Any, feature: int, *, ids: Sequence[int], place: int, read: int | None = None
) -> np.ndarray:
    """Exact pre-activation of a feature with one token replaced by every token of the vocabulary, float64 (n_vocab,).

    Parameters
    ----------
    model, dictionary : as given to `invert_feature`
    feature : feature index
    ids : token ids as the model gets them, specials included
    place : index among them of the token that is replaced
    read : index of the token where the feature is read; left out, the last
    """
    j = int(checked(dictionary, [feature])[0])
    target = Target(model, dictionary, j, len(ids) - 1 if read is None else read)
    if not 0 <= place <= target.read < len(ids):
        raise DataError(
            f"place is {place} and read {target.read} of {len(ids)} tokens; place must not come after read."
        )
    return _swapped(target, list(ids), np.arange(model.n_vocab), place=place)


def invert_feature(
    model: LanguageModel,
    dictionary: Any,
    feature: int,
    *,
    text: str = "",
    n_tokens: int = 1,
    shortlist: int | None = 64,
    settings: dict[str, Any] | None = None,
) -> pd.DataFrame:
    r"""Find tokens that drive a feature's pre-activation z_j at the last of them, greedily, one place at a time.

    At place p with embedding E_x, candidates v are ranked by the first-order score

        <dz_j / dE_p, E_v - E_x>,

    the best `shortlist` of them are run, and the token with the largest z_j - penalty * surprisal is kept, the present
    one included. Places are visited from the last to the first until none changes.

    Parameters
    ----------
    model : LanguageModel with a tokenizer
    dictionary : Dictionary at its hook point
    feature : feature index
    text : what stands before the searched tokens; may be empty
    n_tokens : how many tokens are searched for
    shortlist : candidates per place that are run; None runs the whole vocabulary, which is exact for one place.
        The gradient alone is a poor judge: a best token may rank third or lower under it
    settings : `penalty` (of the mean surprisal in bits of the searched tokens, default 0), `rounds` (most visits of
        every place, 4), `seed` (of the tokens that the search starts from, 0), `rule` (a function from the found
        text to whether the feature's rule predicts it)

    Returns
    -------
    DataFrame
        One row per round, `round text token_ids z activation surprisal n_run predicted`: z and activation at the last
        token, surprisal in bits per searched token, how many sequences were run so far, and what the rule says
        (missing without one). The last row is what was found.

    Raises
    ------
    ModelError
        The model has no tokenizer, or the hook point is not reached from the embeddings.

    References
    ----------
    Zou et al. (2023), arXiv 2307.15043 (greedy search with gradients). Ebrahimi et al. (2018), ACL, HotFlip.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> model, raw = load_model(toy), neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> found = invert_feature(model, raw, 3, text="ab", shortlist=None)
    >>> best = swap_scores(model, raw, 3, ids=[256, 64, 65, 0], place=3).max()
    >>> bool(abs(found["z"].iloc[-1] - best) < 1e-5)
    True
    """
    options = _options(settings)
    if n_tokens < 1 or (shortlist is not None and shortlist < 1):
        raise DataError(f"n_tokens is {n_tokens} and shortlist {shortlist}; both must be at least 1.")
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so a text cannot be given; use swap_scores on ids.")
    j = int(checked(dictionary, [feature])[0])
    tokens: Any = agreed_bos(model.tokens, {"": dictionary})
    before = [*tokens.prefix, *token_ids(tokens, [text], specials=False)[0]]
    draw = np.random.default_rng(options["seed"])
    usual = np.setdiff1d(np.arange(min(model.n_vocab, tokens.backend.get_vocab_size())), _special(tokens))
    ids = [*before, *draw.choice(usual, n_tokens).tolist()]
    if options["penalty"] and (not model.has_head or len(ids) < 2):
        why = "there is no token before it" if model.has_head else f"{model.name} has no head"
        raise DataError(f"penalty is {options['penalty']}, but the string has no surprisal: {why}; leave penalty out.")
    if len(ids) > model.n_ctx:
        raise DataError(f"{len(ids)} tokens are longer than the context of {model.name}, {model.n_ctx}; use fewer.")
    target = Target(model, dictionary, j, len(ids) - 1)
    rows, n_run = [], 0
    for number in range(1, options["rounds"] + 1):
        old = list(ids)
        for place in range(len(ids) - 1, len(before) - 1, -1):
            tried = usual if shortlist is None else _shortlist(target, ids, place=place, usual=usual, n=shortlist)
            tried = np.concatenate([[ids[place]], tried[tried != ids[place]]])
            score = _swapped(target, ids, tried, place=place)
            if options["penalty"]:
                score = score - options["penalty"] * _surprisal(target, ids, tried, place=place, first=len(before))
            ids[place] = int(tried[np.argmax(score)])  # the present token is first: it stays where nothing is better
            n_run += len(tried)
        rows.append(
            {"round": number, **_described(target, ids, first=len(before), rule=options["rule"]), "n_run": n_run}
        )
        if ids == old or (n_tokens == 1 and shortlist is None):  # the one place was decided by all there is
            break
    order = ["round", "text", "token_ids", "z", "activation", "surprisal", "n_run", "predicted"]
    return pd.DataFrame(rows)[order].astype({"predicted": "boolean"})


def _options(given: dict[str, Any] | None) -> dict[str, Any]:
    known: dict[str, Any] = {"penalty": 0.0, "rounds": 4, "seed": 0, "rule": None}
    if wrong := sorted(set(given or {}) - set(known)):
        raise DataError(f"settings has no '{wrong[0]}'; known: {', '.join(known)}.")
    made = known | (given or {})
    if made["rounds"] < 1 or made["penalty"] < 0:
        raise DataError(f"rounds is {made['rounds']} and penalty {made['penalty']}; use at least 1, and not below 0.")
    return made


def _special(tokens: Any) -> np.ndarray:
    added = tokens.backend.get_added_tokens_decoder()
    return np.array([i for i, token in added.items() if token.special], dtype=np.int64)


def _embeddings(model: LanguageModel) -> torch.Tensor:
    return model.bridge.W_E.detach().float()


def _runs(
    target: Target, ids: Sequence[int], tried: np.ndarray, *, place: int, whole: bool = False
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Vectors with `tried` at one place, a batch at a time: where the feature is read, or all of the last stream."""
    hook = target.model.last_hook if whole else target.dictionary.hook
    length = target.read + 1
    rows = max(1, BATCH // length)
    for start in range(0, len(tried), rows):
        batch = np.tile(np.asarray(ids[:length], dtype=np.int64), (len(tried[start : start + rows]), 1))
        batch[:, place] = tried[start : start + rows]
        n = len(batch)
        cols = np.tile(np.arange(length), n) if whole else np.full(n, target.read)
        at = np.repeat(np.arange(n), length) if whole else np.arange(n)
        yield batch, hooked_pass(target.model, batch, np.ones_like(batch), hooks=[hook], rows=at, cols=cols)[hook]


def _swapped(target: Target, ids: Sequence[int], tried: np.ndarray, *, place: int) -> np.ndarray:
    """Pre-activation at the place that is read, for every token tried."""
    parts = [
        target.dictionary.preactivations(x, [target.feature])[:, 0].double().cpu().numpy()
        for _, x in _runs(target, ids, tried, place=place)
    ]
    return np.concatenate(parts)


def _surprisal(target: Target, ids: Sequence[int], tried: np.ndarray, *, place: int, first: int) -> np.ndarray:
    """Mean surprisal in bits of the tokens from index `first` on; the first of a text without BOS has none."""
    out, first = [], max(first, 1)
    for batch, x in _runs(target, ids, tried, place=place, whole=True):
        n, length = batch.shape
        at = x.reshape(n, length, -1)[:, first - 1 : length - 1]
        logp = logits_of(target.model, at.flatten(0, 1)).log_softmax(-1).reshape(n, length - first, -1)
        own = logp.gather(2, torch.as_tensor(batch[:, first:], device=logp.device)[..., None])[..., 0]
        out.append((-own.mean(dim=1) / np.log(2)).double().cpu().numpy())
    return np.concatenate(out)


def surprisal_at(model: LanguageModel, dictionary: Any, ids: Sequence[int], *, n: int) -> float:
    """Mean surprisal in bits of the last n tokens of a text, given all before them; specials are put in front.

    Parameters
    ----------
    model, dictionary : as given to `invert_feature`
    ids : token ids of the text, without specials
    n : tokens from the end; fewer where the text is shorter. NaN where there is none that anything stands before
    """
    tokens: Any = agreed_bos(model.tokens, {"": dictionary})
    whole = [*tokens.prefix, *ids]
    first = max(len(tokens.prefix), len(whole) - n, 1)
    if first >= len(whole):
        return float("nan")
    target = Target(model, dictionary, 0, len(whole) - 1)
    return float(_surprisal(target, whole, np.array([whole[-1]]), place=len(whole) - 1, first=first)[0])


def _shortlist(target: Target, ids: Sequence[int], *, place: int, usual: np.ndarray, n: int) -> np.ndarray:
    """Tokens of the largest first-order score at a place."""
    gradient = _gradient(target, ids)[place]
    E = _embeddings(target.model).to(gradient.device)
    score = ((E - E[ids[place]]) @ gradient).double().cpu().numpy()[usual]
    return usual[np.argsort(-score, kind="stable")[:n]]


def _gradient(target: Target, ids: Sequence[int]) -> torch.Tensor:
    """Gradient of the pre-activation with respect to the embeddings, (length, d)."""
    model, hook = target.model, target.dictionary.hook
    if EMBED not in model.hooks:
        raise ModelError(f"{model.name} has no {EMBED}, so gradients cannot reach its tokens; use shortlist=None.")
    length = target.read + 1
    caught: dict[str, torch.Tensor] = {}

    def embed(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        caught["embed"] = tensor.detach().clone().requires_grad_(True)
        return caught["embed"]

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        caught["x"] = tensor
        raise Stop

    batch = torch.as_tensor([list(ids[:length])], device=model.device)
    with frozen_weights(model), precision(model), torch.enable_grad():
        with contextlib.suppress(Stop):
            pairs = [(EMBED, embed), (hook, keep)]
            model.bridge.run_with_hooks(batch, fwd_hooks=pairs, return_type=None, attention_mask=torch.ones_like(batch))
        if "x" not in caught or "embed" not in caught:
            raise ModelError(f"{hook} or {EMBED} never fired; use shortlist=None.")
        x = caught["x"][0, target.read].float().flatten()[None]
        z = target.dictionary.preactivations(x, [target.feature]).sum()
        (gradient,) = torch.autograd.grad(z, caught["embed"])
    return gradient[0].float()


def _described(target: Target, ids: Sequence[int], *, first: int, rule: Callable[[str], Any] | None) -> dict[str, Any]:
    """z, activation and surprisal of the tokens as they stand."""
    here = np.array([ids[-1]])
    ((_, x),) = _runs(target, ids, here, place=len(ids) - 1)
    z = float(target.dictionary.preactivations(x, [target.feature])[0, 0])
    active = float(target.dictionary.encode(x)[0, target.feature])
    bits = float(_surprisal(target, ids, here, place=len(ids) - 1, first=first)[0]) if target.model.has_head else np.nan
    tokens: Any = target.model.tokens
    text = decode(tokens, ids[first:])
    verdict = None if rule is None else bool(rule(text))
    return {"text": text, "token_ids": list(map(int, ids[first:])), "z": z, "activation": active, "surprisal": bits,
            "predicted": verdict}  # fmt: skip
