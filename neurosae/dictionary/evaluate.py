"""How good a dictionary is, on held-out text: reconstruction, what the model loses by it, which features never fire.

Cross-entropy and divergence are in nats per token. Three replacements at the dictionary's hook point are compared
with the untouched model: by the reconstruction, by zero, and by the mean activation. Specials (BOS) are never
replaced. The zero denominator flatters: read the mean one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.dictionary.kinds import CELLS, Dictionary
from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import Contexts, make_contexts, take_rows
from neurosae.errors import DataError, ModelError
from neurosae.extraction.packing import length_buckets, pad

LONGEST = 256  # tokens of a context
LOGITS = 1 << 22  # logits held at once per forward pass: 16 MB
N_BOOTSTRAP = 1000
BINS = np.arange(-7, 0.5, 0.5)  # of log10 density


class Spliced(NamedTuple):
    """Sums over the predicted tokens of each document, (n_documents,) each."""

    n: np.ndarray
    base: np.ndarray
    sae: np.ndarray
    zero: np.ndarray
    mean: np.ndarray
    kl_sae: np.ndarray
    kl_zero: np.ndarray
    kl_mean: np.ndarray


def evaluate_dictionary(
    dictionary: Dictionary, model: Any, texts: Sequence[str], *, n_tokens: int = 20_000, seed: int = 0
) -> pd.DataFrame:
    r"""Measure a dictionary on text that it was not trained on.

    With x^ the reconstruction and e = x - x^,

        FVU = sum |e|^2 / sum |x - mean x|^2,   shrinkage = sum |x^|^2 / sum <x^, x>,
        CE recovered = (CE_ablated - CE_dictionary) / (CE_ablated - CE_base),
        KL recovered = 1 - KL(base, dictionary) / KL(base, ablated).

    Parameters
    ----------
    dictionary : its `hook` names the hook point
    model : LanguageModel
    texts : held-out documents
    n_tokens : contexts are drawn until they hold this many tokens
    seed : of that draw and of the bootstrap over documents

    Returns
    -------
    DataFrame of one row
        `hook n_tokens n_documents context l0 fvu explained_variance cosine l2_ratio shrinkage encoder_cosine ce_base
        ce_sae ce_zero ce_mean ce_recovered_zero ce_recovered_mean kl_sae kl_recovered_zero kl_recovered_mean n_features
        dead n_dead density_bound share_dense`; those of `BOUNDED` are followed by `…_low` and `…_high`;
        `dead` is the share of features that were never active on these tokens, `density_bound` (3 / n_tokens) the
        upper 95 % bound on the density of such a feature; intervals are 95 % percentiles of the bootstrap over
        documents. The columns of cross-entropy are missing values for a model without a head.

    Examples
    --------
    >>> from neurosae.dictionary.record import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> row = evaluate_dictionary(raw, load_model(toy), ["A dog.", "Two cats."]).iloc[0]
    >>> float(row.fvu), round(float(row.ce_recovered_mean), 6), int(row.l0)
    (0.0, 1.0, 8)
    """
    contexts = contexts_for(dictionary, model, texts, n_tokens=n_tokens, seed=seed)
    x = context_rows(model, contexts, np.arange(len(contexts.ids)), hooks=[dictionary.hook])[dictionary.hook]
    x = x.to(dictionary.W_dec.device)
    sums, counts = row_sums(dictionary, x)
    documents = np.repeat(contexts.documents, contexts.n_rows)
    row = _scores(sums) | {
        "n_tokens": len(x),
        "context": max(map(len, contexts.ids)),
        "encoder_cosine": _encoder_cosine(dictionary),
    }
    row |= _score_intervals(sums, documents, seed=seed) | never_active(counts, len(x))
    if model.is_causal and model.has_head:
        row |= _lost(splice(dictionary, model, contexts, center=x.mean(0)), seed)
    table = pd.DataFrame([{"hook": dictionary.hook, "n_documents": len(np.unique(contexts.documents)), **row}])
    return table.reindex(columns=COLUMNS)


BOUNDED = (
    *("l0", "fvu", "explained_variance", "cosine", "l2_ratio", "shrinkage"),
    *("ce_recovered_zero", "ce_recovered_mean", "kl_recovered_zero", "kl_recovered_mean"),
)
"""Columns that are followed by the ends of their interval, `…_low` and `…_high`."""
_NAMES = (
    *(
        "hook",
        "n_tokens",
        "n_documents",
        "context",
        "l0",
        "fvu",
        "explained_variance",
        "cosine",
        "l2_ratio",
        "shrinkage",
    ),
    *("encoder_cosine", "ce_base", "ce_sae", "ce_zero", "ce_mean", "ce_recovered_zero", "ce_recovered_mean", "kl_sae"),
    *("kl_recovered_zero", "kl_recovered_mean", "n_features", "dead", "n_dead", "density_bound", "share_dense"),
)
COLUMNS = [
    column for name in _NAMES for column in ((name, f"{name}_low", f"{name}_high") if name in BOUNDED else (name,))
]


def reference_contexts(
    model: Any, texts: Sequence[str], *, n_tokens: int, seed: int, length: int = LONGEST
) -> Contexts:
    """Random contexts that hold about `n_tokens` tokens."""
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so no text can be given to it.")
    contexts = make_contexts(model.tokens, list(texts), length=min(length, model.n_ctx))
    if contexts.n_rows.sum() < 2:
        raise DataError("the texts hold fewer than 2 tokens; give more text to measure a dictionary on.")
    return take_rows(contexts, n_tokens, seed=seed)


def contexts_for(dictionary: Dictionary, model: Any, texts: Sequence[str], *, n_tokens: int, seed: int) -> Contexts:
    """Random contexts no longer than those that a dictionary learned from: it never saw a later position."""
    length = min(int(dictionary.metadata.get("context_size") or LONGEST), LONGEST)
    return reference_contexts(model, texts, n_tokens=n_tokens, seed=seed, length=length)


@torch.no_grad()
def row_sums(dictionary: Dictionary, x: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the scores are sums of, for each row of x (n, d), and on how many rows each feature is active."""
    counts = np.zeros(dictionary.n_features, dtype=np.int64)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SUMMED}
    center = x.double().mean(0)
    # no more rows than are encoded at once: sae-lens decodes scaled inputs with the scale of its last call
    rows = max(1, min(4096, CELLS // dictionary.n_features))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        codes = dictionary.encode(part)
        counts += np.bincount(codes.indices, minlength=dictionary.n_features)
        real, made = part.double(), dictionary.decode(codes).to(part.device).double()
        product = (real * made).sum(1)
        length, length_hat = real.norm(dim=1), made.norm(dim=1)
        found = {
            "error": (real - made).square().sum(1), "spread": (real - center).square().sum(1),
            "cosine": product / (length * length_hat).clamp(min=1e-12), "norm": length, "norm_hat": length_hat,
            "hat": length_hat.square(), "product": product,
        }  # fmt: skip
        for name, values in found.items():
            parts[name].append(values.cpu().numpy())
        parts["active"].append(np.diff(codes.indptr).astype(np.float64))
        parts["one"].append(np.ones(len(part)))
    return {name: np.concatenate(values) for name, values in parts.items()}, counts


SUMMED = ("one", "active", "error", "spread", "cosine", "norm", "norm_hat", "hat", "product")
RATIOS = {
    "l0": ("active", "one"), "fvu": ("error", "spread"), "cosine": ("cosine", "one"), "l2_ratio": ("norm_hat", "norm"),
    "shrinkage": ("hat", "product"),
}  # fmt: skip
"""Scores that are ratios of two sums over rows."""


def reconstruction(dictionary: Dictionary, x: Tensor) -> tuple[dict[str, float], np.ndarray]:
    """Scores of the reconstruction of x (n, d), and on how many rows each feature is active."""
    sums, counts = row_sums(dictionary, x)
    return {"n_tokens": len(x), **_scores(sums), "encoder_cosine": _encoder_cosine(dictionary)}, counts


def _scores(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    row = {name: _share(float(sums[a].sum()), float(sums[b].sum())) for name, (a, b) in RATIOS.items()}
    return row | {"explained_variance": 1 - row["fvu"]}


def _score_intervals(sums: Mapping[str, np.ndarray], documents: np.ndarray, *, seed: int) -> dict[str, float]:
    """Intervals, over documents, of all scores of the reconstruction."""
    each = {name: np.bincount(documents, weights=values) for name, values in sums.items()}
    row: dict[str, float] = {}
    for name, (above, below) in RATIOS.items():
        row |= _interval(name, each[above], each[below], seed=seed)
    low, high = 1 - row["fvu_high"], 1 - row["fvu_low"]
    return row | {"explained_variance_low": low, "explained_variance_high": high}


def _encoder_cosine(dictionary: Dictionary) -> float:
    return float(torch.cosine_similarity(dictionary.W_enc, dictionary.W_dec, dim=1).mean())


def _share(above: float, below: float) -> float:
    """A ratio; a missing value where its denominator is 0, as where nothing is lost by ablation."""
    return above / below if below else float("nan")


def never_active(counts: np.ndarray, n_tokens: int) -> dict[str, float]:
    """Features without a single active token, the bound on their density, and features active on over a tenth.

    Examples
    --------
    >>> never_active(np.array([0, 5, 40]), 100)
    {'n_features': 3, 'dead': 0.333..., 'n_dead': 1, 'density_bound': 0.03, 'share_dense': 0.333...}
    """
    dead = counts == 0
    return {
        "n_features": len(counts), "dead": float(dead.mean()), "n_dead": int(dead.sum()),
        "density_bound": 3 / n_tokens, "share_dense": float((counts > 0.1 * n_tokens).mean()),
    }  # fmt: skip


def density_histogram(density: np.ndarray) -> dict[str, list[float]]:
    """Counts of features per half decade of density; those at 0 are left to `dead`."""
    counts, edges = np.histogram(np.log10(density[density > 0]), bins=BINS)
    return {"log10_density": edges.tolist(), "features": counts.tolist()}


def _interval(name: str, above: np.ndarray, below: np.ndarray, *, seed: int) -> dict[str, float]:
    """A bootstrap interval, over documents, of a ratio of sums."""
    kept = below != 0
    above, below = above[kept], below[kept]
    if not len(above):
        return {f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    draws = np.random.default_rng(seed).integers(len(above), size=(N_BOOTSTRAP, len(above)))
    low, high = np.percentile(above[draws].sum(1) / below[draws].sum(1), [2.5, 97.5])
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


# --- what the model loses -------------------------------------------------------------------------------------------


def splice(dictionary: Dictionary, model: Any, contexts: Contexts, *, center: Tensor) -> Spliced:
    """Loss and divergence per document when the hook point is replaced, everywhere but at specials.

    Every token of a document is predicted but its first, for which there may be no BOS to predict it from.
    """
    sums = {name: np.zeros(int(contexts.documents.max()) + 1) for name in Spliced._fields}
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "sae": lambda x: dictionary.reconstruct(x.flatten(1)).reshape(x.shape).to(x.device),
        "zero": torch.zeros_like,
        "mean": lambda x: center.to(x.device).reshape(x.shape[1:]).expand_as(x),
    }
    for rows, ids, mask in tqdm(
        list(_padded(contexts, model.n_vocab)), desc="evaluate", unit="batch", disable=None, mininterval=1
    ):
        inside = _inside(contexts, mask)
        base = _log_p(model, ids, mask)
        document = contexts.documents[rows]
        sums["n"] += _per_document(_predicted(contexts, mask).double(), document, sums["n"])
        sums["base"] += _per_document(_loss(base, ids, _predicted(contexts, mask)), document, sums["n"])
        for name, way in ways.items():
            log_p = _log_p(model, ids, mask, hook=dictionary.hook, way=_only_at(inside, way))
            loss = _loss(log_p, ids, _predicted(contexts, mask))
            divergence = (base.exp() * (base - log_p)).sum(-1)[:, :-1] * _predicted(contexts, mask)
            sums[name] += _per_document(loss, document, sums["n"])
            sums[f"kl_{name}"] += _per_document(divergence, document, sums["n"])
    return Spliced(**sums)


def _padded(contexts: Contexts, n_vocab: int) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    for rows in length_buckets([len(ids) for ids in contexts.ids], max(LOGITS // n_vocab, 1)):
        ids, mask = pad([contexts.ids[i] for i in rows])
        yield rows, torch.from_numpy(ids), torch.from_numpy(mask)


def _inside(contexts: Contexts, mask: Tensor) -> Tensor:
    """Tokens that are neither pad nor special."""
    n = mask.sum(1, keepdim=True)
    at = torch.arange(mask.shape[1])
    return (at >= contexts.n_prefix) & (at < n - contexts.n_suffix)


def _predicted(contexts: Contexts, mask: Tensor) -> Tensor:
    """Positions whose next token is one of the text."""
    return _inside(contexts, mask)[:, 1:]


def _only_at(inside: Tensor, way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def replaced(x: Tensor) -> Tensor:
        cells = inside.to(x.device)
        out = x.clone()
        out[cells] = way(x[cells].float()).to(x.dtype)
        return out

    return replaced


def _log_p(
    model: Any, ids: Tensor, mask: Tensor, *, hook: str | None = None, way: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    ids, mask = ids.to(model.device), mask.to(model.device)
    fired = []

    def edit(x: Tensor, hook: Any) -> Tensor:
        fired.append(1)
        return way(x) if way else x

    pairs = [(hook, edit)] if hook else []
    with torch.inference_mode():
        logits = model.bridge.run_with_hooks(ids, fwd_hooks=pairs, return_type="logits", attention_mask=mask)
    if hook and not fired:
        raise ModelError(f"hook point '{hook}' never fired; this model does not compute it.")
    return logits.float().log_softmax(-1).cpu()


def _loss(log_p: Tensor, ids: Tensor, predicted: Tensor) -> Tensor:
    return -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * predicted


def _per_document(values: Tensor, document: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.bincount(document, weights=values.double().sum(1).numpy(), minlength=len(like))


def _lost(sums: Spliced, seed: int) -> dict[str, float]:
    n = sums.n.sum()
    total = {name: float(getattr(sums, name).sum() / n) for name in Spliced._fields[1:]}
    row = {f"ce_{name}": total[name] for name in ("base", "sae", "zero", "mean")} | {"kl_sae": total["kl_sae"]}
    for name in ("zero", "mean"):
        lost, kl = getattr(sums, name), getattr(sums, f"kl_{name}")
        for score, above, below in (("ce", lost - sums.sae, lost - sums.base), ("kl", kl - sums.kl_sae, kl)):
            row[f"{score}_recovered_{name}"] = _share(float(above.sum()), float(below.sum()))
            row |= _interval(f"{score}_recovered_{name}", above, below, seed=seed)
    return row
