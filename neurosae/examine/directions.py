"""What a feature writes and where it points: promoted tokens, the nearest decoder directions, links to its pages.

A feature adds f_j W_dec[j] to the residual stream. The part of that which reaches the logits directly, past all later
layers, is linear but for one number per token, the scale of the last normalisation; it is left out here, so weights
are in logits per unit of activation at scale 1 and only their order and shape mean something.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from neurosae.errors import DataError, ModelError
from neurosae.extraction.tokens import BLANK, Tokenizer

STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed",
          "hook_in", "hook_out", "attn.hook_out", "mlp.hook_out")  # fmt: skip
LARGE = 1e3  # entries of the vectors that measure the gain of the last normalisation: its epsilon is nothing beside
LINK = "https://www.neuronpedia.org"


def logit_weights(
    model: Any, dictionary: Any, features: Sequence[int], *, n: int = 10, scale: float = 1.0
) -> pd.DataFrame:
    r"""Tokens that features promote and suppress, by the direct path from the stream to the logits.

    With g the gain of the last normalisation, P the removal of the mean where it is a LayerNorm, and W_U the
    unembedding,

        w_j = (P W_dec[j] * g) W_U / scale,   minus its mean over the vocabulary.

    Parameters
    ----------
    model : LanguageModel with a head
    dictionary : read at the residual stream, at attn_out or mlp_out, at neurons or at heads, whose own weights then
        lead into the stream
    features : feature indices
    n : tokens listed on either side
    scale : standard deviation of the last residual stream, by which the normalisation divides

    Returns
    -------
    DataFrame
        `feature side rank token token_id weight skewness kurtosis`; side is promoted or suppressed; skewness and
        excess kurtosis are those of w_j over the vocabulary: large where few tokens are meant.

    Raises
    ------
    ModelError
        The model has no head, or the hook point does not lead into the stream linearly.

    Notes
    -----
    What later layers make of the feature is not in it; for early layers that is most of the effect.

    References
    ----------
    nostalgebraist (2020), interpreting GPT: the logit lens. Bloom & Lin (2024), understanding SAE features with the
    logit lens.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> found = logit_weights(load_model(toy), raw, [3], n=2)
    >>> found[["side", "rank"]].values.tolist()
    [['promoted', 1], ['promoted', 2], ['suppressed', 1], ['suppressed', 2]]
    """
    chosen = checked(dictionary, features)
    if n < 1 or not scale > 0:
        raise DataError(f"n is {n} and scale {scale}; both must be above 0.")
    w = vocabulary_weights(model, dictionary, chosen.tolist()) / scale
    n = min(n, w.shape[1])
    tables = []
    for feature, row in zip(chosen, w, strict=True):
        order = np.argsort(-row, kind="stable")
        ids = np.concatenate([order[:n], order[::-1][:n]])
        shape = {"skewness": float(stats.skew(row)), "kurtosis": float(stats.kurtosis(row))}
        table = {"feature": feature, "side": np.repeat(["promoted", "suppressed"], n), "rank": [*range(1, n + 1)] * 2}
        names = [token_text(model.tokens, int(i)) for i in ids]
        tables.append(pd.DataFrame({**table, "token": names, "token_id": ids, "weight": row[ids], **shape}))
    return pd.concat(tables, ignore_index=True)


def vocabulary_weights(model: Any, dictionary: Any, features: Sequence[int]) -> np.ndarray:
    """Direct logit weights of features over the whole vocabulary, centred, float64 (n_features, n_vocab)."""
    if not model.has_head:
        raise ModelError(f"{model.name} has no head that predicts the next token, so features promote none.")
    rows = stream_rows(model, dictionary, features)
    with torch.inference_mode():
        logits = read_direct(model, rows)
    w = logits.double().cpu().numpy()
    return w - w.mean(axis=1, keepdims=True)


def read_direct(model: Any, rows: Tensor) -> Tensor:
    """Logits (n, n_vocab) that vectors add to the stream's, at scale 1: linear in them, whatever the normalisation."""
    gain, centred = _last_norm(model)
    rows = rows - rows.mean(dim=1, keepdim=True) if centred else rows
    unembed = model.bridge.unembed
    return (unembed((rows * gain)[:, None]) - unembed(torch.zeros_like(rows[:1])[:, None]))[:, 0].float()


def _last_norm(model: Any) -> tuple[Tensor, bool]:
    """Gain of the last normalisation, and whether it takes the mean out; measured: every family writes it another way.

    The entries of +-x0 are +-1 with mean 0, so it divides by their size alone: gain = x0 (norm(x) - norm(-x)) / 2.
    """
    d, norm = model.d_model, model.bridge.ln_final
    if d % 2:
        raise ModelError(f"{model.name} has an odd width ({d}), for which the last normalisation cannot be measured.")
    x = torch.ones(1, 1, d, device=model.device)
    x[..., ::2] = -1
    plus, minus, moved = (norm(one * LARGE).float() for one in (x, -x, x + 1.0))
    gain = (x * (plus - minus) / 2)[0, 0]
    return gain, bool(torch.allclose(moved, plus, rtol=1e-3, atol=1e-4 * float(gain.abs().max())))


def stream_rows(model: Any, dictionary: Any, features: Sequence[int]) -> Tensor:
    """What one unit of each feature adds to the residual stream, float32 (n_features, d_model)."""
    rows = dictionary.W_dec[torch.as_tensor(np.asarray(features), device=dictionary.W_dec.device)].float()
    hook, bridge = dictionary.hook, model.bridge
    found = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.*?)(?:\.h(\d+))?", hook)
    layer, name, head = found.groups() if found else (None, hook, None)
    if name in STREAM and head is None:
        return rows
    if name == "mlp.hook_post" and layer is not None:
        return rows @ bridge.W_out[int(layer)].detach().float()
    if name == "attn.hook_z" and layer is not None:
        out = bridge.W_O[int(layer)].detach().float()
        return rows @ (out[int(head)] if head is not None else out.flatten(0, 1))
    raise ModelError(
        f"{hook} does not write to the residual stream by a matrix; logit weights need the stream, attn_out, mlp_out, "
        "mlp.hook_post or attn.hook_z."
    )


def nearest_features(dictionary: Any, features: Sequence[int], *, n: int = 5) -> pd.DataFrame:
    """The features whose decoder directions are nearest to those of some features.

    Parameters
    ----------
    dictionary : Dictionary
    features : feature indices
    n : neighbours of each, by falling cosine; the negative half of a signed feature is none

    Returns
    -------
    DataFrame
        `feature rank neighbour cosine`

    Examples
    --------
    >>> from neurosae.dictionary.vectors import vector_dictionary
    >>> three = vector_dictionary([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    >>> nearest_features(three, [0], n=2)[["neighbour", "cosine"]].round(2).values.tolist()
    [[1.0, 0.6], [2.0, 0.0]]
    """
    chosen = checked(dictionary, features)
    W = dictionary.W_dec.detach().cpu().numpy().astype(np.float64)
    length = np.sqrt((W**2).sum(axis=1))
    unit = W / np.where(length > 0, length, 1)[:, None]
    cosine = unit[chosen] @ unit.T
    cosine[:, length == 0] = -np.inf
    cosine[np.arange(len(chosen)), chosen] = -np.inf
    if dictionary.partner is not None:
        cosine[np.arange(len(chosen)), dictionary.partner[chosen]] = -np.inf
    n = min(n, W.shape[0] - 1)
    best = np.argsort(-cosine, axis=1, kind="stable")[:, :n]
    table = {
        "feature": np.repeat(chosen, n),
        "rank": np.tile(np.arange(1, n + 1), len(chosen)),
        "neighbour": best.ravel(),
    }
    found = pd.DataFrame({**table, "cosine": np.take_along_axis(cosine, best, axis=1).ravel()})
    return found[np.isfinite(found["cosine"])].reset_index(drop=True)


def feature_link(dictionary: Any, feature: int) -> str | None:
    """The page of a feature of a published dictionary; None where its folder names none. It is never opened here.

    Examples
    --------
    >>> from neurosae.dictionary.kinds import Dictionary, neuron_dictionary
    >>> from dataclasses import replace
    >>> known = replace(neuron_dictionary("x", 2), metadata={"neuronpedia_id": "gpt2-small/6-res-jb"})
    >>> feature_link(known, 3), feature_link(neuron_dictionary("x", 2), 3)
    ('https://www.neuronpedia.org/gpt2-small/6-res-jb/3', None)
    """
    name = dictionary.metadata.get("neuronpedia_id")
    return f"{LINK}/{quote(str(name), safe='/')}/{int(feature)}" if name else None


def checked(dictionary: Any, features: Sequence[int]) -> np.ndarray:
    """Feature indices as an array, refused beyond the dictionary; never dropped."""
    chosen = np.atleast_1d(np.asarray(features, dtype=np.int64))
    if not len(chosen):
        raise DataError("features is empty; name some by their indices.")
    wrong = chosen[(chosen < 0) | (chosen >= dictionary.n_features)]
    if len(wrong):
        raise DataError(f"there is no feature {wrong[0]}; this dictionary has 0 to {dictionary.n_features - 1}.")
    return chosen


def token_text(tokenizer: Tokenizer | None, token: int) -> str:
    """A token as it reads in a text, with its leading blank; its bare name where it is part of a character.

    Examples
    --------
    >>> from neurosae.extraction.tokens import byte_tokenizer
    >>> token_text(byte_tokenizer(), 64), token_text(None, 7)
    ('a', '<7>')
    """
    name = None if tokenizer is None else tokenizer.backend.id_to_token(int(token))
    if tokenizer is None or name is None:
        return f"<{token}>"
    text = tokenizer.backend.decode([int(token)], skip_special_tokens=False)
    if not text or "\ufffd" in text:
        return name
    blank = name.startswith((BLANK, "\u0120")) and not text.startswith(" ")
    return f" {text}" if blank else text
