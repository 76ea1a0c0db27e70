"""Is the error of a reconstruction worse for the model than a random error of the same length?

Reconstruction errors of dictionaries move the output by a multiple of what random errors of the same length do (2 to
4.5 times in published ones). Two dictionaries are compared by this ratio, each with its own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.dictionary.evaluate import contexts_for
from neurosae.dictionary.kinds import Dictionary
from neurosae.dictionary.texts import Contexts
from neurosae.errors import ModelError
from neurosae.extraction.packing import length_buckets, pad

LOGITS = 1 << 22  # logits held at once per forward pass: 16 MB
N_BOOTSTRAP = 1000


def pathology(
    dictionary: Dictionary, model: Any, texts: Sequence[str], *, n_tokens: int = 5_000, n_draws: int = 3, seed: int = 0
) -> pd.DataFrame:
    r"""Divergence by the reconstruction over divergence by a random error of the same length at every token.

    With e = x - x^ at each token and u uniform on the sphere,

        ratio = KL(base, model with x^) / KL(base, model with x + \|e\| u).

    Parameters
    ----------
    dictionary : its `hook` names the hook point
    model : causal LanguageModel with a head
    texts : held-out documents
    n_tokens : contexts are drawn until they hold this many tokens
    n_draws : random directions per token, averaged
    seed : of the contexts, the directions and the bootstrap over documents

    Returns
    -------
    DataFrame of one row: `hook n_tokens n_documents ce_base ce_sae kl_sae kl_random pathology pathology_low
    pathology_high`; nats per token, 95 % percentile interval over documents

    Raises
    ------
    ModelError
        If the model predicts nothing, or the reconstruction has no error.

    References
    ----------
    Gurnee (2024), SAE reconstruction errors are (empirically) pathological.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from neurosae.dictionary.kinds import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> poor = replace(raw, W_dec=raw.W_dec * torch.tensor([1.0] * 4 + [0.0] * 4))
    >>> row = pathology(poor, load_model(toy), ["A dog.", "Two cats ran."]).iloc[0]
    >>> bool(row.kl_sae > 0), bool(row.pathology_low <= row.pathology <= row.pathology_high)
    (True, True)
    """
    if not (model.is_causal and model.has_head):
        raise ModelError(f"{model.name} predicts no next token, so a divergence cannot be measured.")
    contexts = contexts_for(dictionary, model, texts, n_tokens=n_tokens, seed=seed)
    sums = _sums(dictionary, model, contexts, n_draws=n_draws, seed=seed)
    n, random = sums["n"].sum(), sums["random"].sum() / n_draws
    if not random > 0:
        raise ModelError("the reconstruction has no error, so there is no random error of the same length.")
    row = {
        "hook": dictionary.hook, "n_tokens": int(contexts.n_rows.sum()),
        "n_documents": len(np.unique(contexts.documents)), "ce_base": sums["ce_base"].sum() / n,
        "ce_sae": sums["ce_sae"].sum() / n, "kl_sae": sums["sae"].sum() / n, "kl_random": random / n,
        "pathology": sums["sae"].sum() / random,
    }  # fmt: skip
    kept = np.flatnonzero(sums["n"])
    draws = kept[np.random.default_rng(seed).integers(len(kept), size=(N_BOOTSTRAP, len(kept)))]
    ratios = sums["sae"][draws].sum(1) / (sums["random"][draws].sum(1) / n_draws)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return pd.DataFrame([{**row, "pathology_low": low, "pathology_high": high}])


def random_error(x: Tensor, made: Tensor, draws: torch.Generator) -> Tensor:
    """X plus an error of the length of x - made, in a random direction, row by row.

    Examples
    --------
    >>> x, made = torch.zeros(1, 3), torch.tensor([[3.0, 4.0, 0.0]])
    >>> round(float(random_error(x, made, torch.Generator().manual_seed(0)).norm()), 5)
    5.0
    """
    u = torch.randn(x.shape, generator=draws).to(x.device)
    return x + (x - made).norm(dim=1, keepdim=True) * u / u.norm(dim=1, keepdim=True)


def _sums(dictionary: Dictionary, model: Any, contexts: Contexts, *, n_draws: int, seed: int) -> dict[str, np.ndarray]:
    """Sums over the predicted tokens of each document; the first token of a text is not predicted."""
    draws = torch.Generator().manual_seed(seed)
    n_documents = int(contexts.documents.max()) + 1
    sums = {name: np.zeros(n_documents) for name in ("n", "ce_base", "ce_sae", "sae", "random")}

    def made(x: Tensor) -> Tensor:
        return dictionary.reconstruct(x).to(x.device)

    for rows, ids, mask in tqdm(
        list(_padded(contexts, model.n_vocab)), desc="pathology", unit="batch", disable=None, mininterval=1
    ):
        at, n = torch.arange(mask.shape[1]), mask.sum(1, keepdim=True)
        inside = (at >= contexts.n_prefix) & (at < n - contexts.n_suffix)  # neither pad nor special
        predicted, document = inside[:, 1:].double(), contexts.documents[rows]
        base = _log_p(model, ids, mask)

        def add(name: str, values: Tensor, document: np.ndarray = document) -> None:
            sums[name] += np.bincount(document, weights=values.sum(1).numpy(), minlength=n_documents)

        def loss(log_p: Tensor, ids: Tensor = ids, predicted: Tensor = predicted) -> Tensor:
            return -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double() * predicted

        def divergence(log_p: Tensor, base: Tensor = base, predicted: Tensor = predicted) -> Tensor:
            return (base.exp() * (base - log_p)).sum(-1)[:, :-1].double() * predicted

        add("n", predicted)
        add("ce_base", loss(base))
        found = _log_p(model, ids, mask, hook=dictionary.hook, way=_at(inside, made))
        add("ce_sae", loss(found))
        add("sae", divergence(found))
        for _ in range(n_draws):
            way = _at(inside, lambda x: random_error(x, made(x), draws))
            add("random", divergence(_log_p(model, ids, mask, hook=dictionary.hook, way=way)))
    return sums


def _padded(contexts: Contexts, n_vocab: int) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    for rows in length_buckets([len(ids) for ids in contexts.ids], max(LOGITS // n_vocab, 1)):
        ids, mask = pad([contexts.ids[i] for i in rows])
        yield rows, torch.from_numpy(ids), torch.from_numpy(mask)


def _at(inside: Tensor, way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def replaced(x: Tensor) -> Tensor:
        cells, out = inside.to(x.device), x.clone()
        rows = x[cells].float()
        out[cells] = way(rows.flatten(1)).reshape(rows.shape).to(x.dtype)
        return out

    return replaced


def _log_p(
    model: Any, ids: Tensor, mask: Tensor, *, hook: str = "", way: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    fired = []

    def edit(x: Tensor, hook: Any) -> Tensor:
        del hook
        fired.append(1)
        return way(x) if way else x

    pairs = [(hook, edit)] if hook else []
    with torch.inference_mode():
        logits = model.bridge.run_with_hooks(
            ids.to(model.device), fwd_hooks=pairs, return_type="logits", attention_mask=mask.to(model.device)
        )
    if hook and not fired:
        raise ModelError(f"hook point '{hook}' never fired; this model does not compute it.")
    return logits.float().log_softmax(-1).cpu()
