"""What a model is and does, measured on it: whether it is causal, and whether packing moves its vectors.

A peer that pads without a mask, or packs what must not be packed, gives plausible numbers. Here a few texts are read in
a batch, or in a trie, and one at a time, and the two must agree to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from neurosae.errors import ModelError
from neurosae.extraction.packing import Packing, pack
from neurosae.extraction.passes import LanguageModel, hooked_pass, precision, read_head
from neurosae.extraction.trie import trie_groups

# largest max|d| / rms between a batch and single sequences: ten times what float32 shows on real models (1e-6 to 1e-5),
# a thousandth of what a fault of padding or masking does; reduced precision rounds by its own step
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
WORTHWHILE = 0.25  # share of tokens that a trie must save to be taken of its own accord
STATEFUL = ("mamba", "rwkv", "recurrent", "jamba", "bamba", "zamba", "xlstm", "ssm", "nemotron_h", "lfm2")
Vectors = dict[str, torch.Tensor]


def probe(model: LanguageModel) -> tuple[bool, bool]:
    """Measure on fixed ids whether the model is causal, and whether its head reads the last residual stream."""
    n = min(6, model.n_ctx)
    ids = torch.arange(n).repeat(2, 1) * 7 % model.n_vocab
    ids[1, -1] = (ids[1, -1] + 1) % model.n_vocab
    ids = ids.to(model.device)
    every = torch.arange(2).repeat_interleave(n), torch.arange(n).repeat(2)
    x = hooked_pass(model, ids, torch.ones_like(ids), hooks=[model.last_hook], rows=every[0], cols=every[1])
    stream = x[model.last_hook].reshape(2, n, -1)
    step = TOLERANCE[model.dtype] * float(stream.square().mean().sqrt())
    is_causal = n > 1 and float((stream[0, :-1] - stream[1, :-1]).abs().max()) <= step
    if not is_causal:
        return False, False
    with torch.inference_mode(), precision(model):
        logits = model.bridge(ids, return_type="logits", attention_mask=torch.ones_like(ids)).float()
        try:
            own = read_head(model.bridge, stream)
        except (AttributeError, TypeError, RuntimeError):
            return True, False
    spread = TOLERANCE[model.dtype] * float(logits.square().mean().sqrt())
    return True, own.shape == logits.shape and float((own - logits).abs().max()) <= max(spread, 1e-5)


def mlp_by_token(model: LanguageModel) -> bool:
    """Measure whether the last MLP may run on single tokens: whether it gives a token what it gives it among others."""
    n = min(6, model.n_ctx)
    ids, alone = torch.arange(n)[None] * 7 % model.n_vocab, replace(model, mlp_by_token=True)
    whole = replace(model, mlp_by_token=False)
    ask = {"hooks": [model.last_hook], "rows": [0], "cols": [n - 1]}
    some, among = (hooked_pass(one, ids, torch.ones_like(ids), **ask)[model.last_hook] for one in (alone, whole))
    return float((some - among).abs().max()) <= TOLERANCE[model.dtype] * float(among.square().mean().sqrt())


def packed_and_alone(
    model: LanguageModel, id_lists: Sequence[Sequence[int] | np.ndarray], hooks: Sequence[str], *, packing: Packing
) -> tuple[Vectors, Vectors]:
    """Vectors of up to 8 sequences at some hook points, from one packed pass and one sequence at a time."""
    lists = [np.asarray(ids) for ids in id_lists][:8]
    first = model.tokens.first if model.tokens else 0  # BOS is no row, and its vector is far longer than the others
    packed = pack(lists, packing, max_nodes=model.max_nodes)
    rows = np.concatenate([np.full(len(path) - first, row) for row, path in zip(packed.row, packed.paths, strict=True)])
    cols = np.concatenate([path[first:] for path in packed.paths])
    together = hooked_pass(
        model, packed.ids, packed.mask, hooks=hooks, rows=rows, cols=cols, positions=packed.positions
    )
    alone = []
    for one in lists:
        n = np.arange(first, len(one))
        alone.append(hooked_pass(model, one[None], np.ones_like(one)[None], hooks=hooks, rows=0 * n, cols=n))
    return together, {hook: torch.cat([single[hook] for single in alone]) for hook in hooks}


def packing_error(
    model: LanguageModel, id_lists: Sequence[Sequence[int] | np.ndarray], hooks: Sequence[str], *, packing: Packing
) -> tuple[float, str]:
    """How far packing moves the worst of some hook points against one sequence at a time, max|d| / rms; its name."""
    packed, alone = packed_and_alone(model, id_lists, hooks, packing=packing)
    size = {hook: x.square().mean().sqrt().clamp_min(1e-30) for hook, x in alone.items()}
    errors = {hook: float((packed[hook] - x).abs().max() / size[hook]) for hook, x in alone.items()}
    worst = max(errors, key=lambda hook: np.nan_to_num(errors[hook], nan=np.inf))
    return errors[worst], worst


def batch_invariance(
    model: LanguageModel, id_lists: Sequence[Sequence[int] | np.ndarray], hooks: str | Sequence[str]
) -> float:
    """How far a padded batch moves some hook points against one sequence at a time: the largest max|d| / rms.

    Parameters
    ----------
    id_lists : up to 8 sequences of different length
    hooks : the hook points that are read

    Raises
    ------
    ModelError
        If it exceeds rounding (1e-4 in float32), or the vectors are not finite.
    """
    error, hook = packing_error(model, id_lists, [hooks] if isinstance(hooks, str) else hooks, packing="buckets")
    if not np.isfinite(error):
        remedy = "copy its checkpoint again" if model.dtype == "float32" else "set `model: {dtype: float32}`"
        raise ModelError(f"{model.name} gives vectors at {hook} that are no numbers; {remedy}.")
    if not error <= TOLERANCE[model.dtype]:
        raise ModelError(
            f"{model.name} gives other vectors in a batch than alone at {hook} (relative error {error:.1e}, allowed "
            f"{TOLERANCE[model.dtype]:.0e}); use batch_tokens=1, or dtype: float32."
        )
    return error


def trie_problem(model: LanguageModel, config: Mapping[str, Any]) -> str:
    """Why the stimuli of this model cannot share the tokens of a common beginning; empty where they can.

    Parameters
    ----------
    model : loaded, with `is_causal` measured
    config : settings of its checkpoint
    """
    if not model.is_causal:
        return "every token sees the whole text"
    if reason := _restricted(config, is_stateful=bool(getattr(model.bridge.cfg, "is_stateful", False))):
        return reason
    n = min(12, model.n_ctx)
    base = np.arange(1, n + 1) * 7 % model.n_vocab
    lists = [base, base.copy(), base.copy(), base[::-1].copy()]
    lists[1][n // 3 :] = (lists[1][n // 3 :] + 1) % model.n_vocab
    lists[2][2 * n // 3 :] = (lists[2][2 * n // 3 :] + 2) % model.n_vocab
    try:
        error = packing_error(model, lists, [model.last_hook], packing="trie")[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        return f"its forward pass takes no positions and masks of a trie ({type(error).__name__})"
    if not error <= TOLERANCE[model.dtype]:
        return f"a trie gives other vectors than single texts (relative error {error:.1e})"
    return ""


def _restricted(config: Mapping[str, Any], *, is_stateful: bool) -> str:
    """Attention that is not full, or a state along the text, as the settings of a checkpoint name them."""
    config = config.get("text_config") or config
    kind = str(config.get("model_type", ""))
    window = config.get("sliding_window") and config.get("use_sliding_window", True)
    kinds = {str(k) for k in config.get("layer_types") or ()} - {"full_attention"}
    if (
        is_stateful
        or any(word in kind for word in STATEFUL)
        or any("attention" not in k or "linear" in k for k in kinds)
    ):
        return f"{kind or 'it'} carries a state along the text"
    local = "local" in str(config.get("attention_types", "")) or "local" in str(config.get("attention_layers", ""))
    if window or kinds or local or config.get("attention_chunk_size"):
        return "its attention looks back a limited number of tokens"
    return ""


def choose_packing(
    model: LanguageModel, sequences: Sequence[np.ndarray], *, hooks: Sequence[str], shard: int
) -> tuple[Packing, dict[str, Any]]:
    """How stimuli share forward passes, and the record of why.

    A trie is taken where it was asked for, or saves a quarter of the tokens, and where it gives the vectors of single
    texts: measured on the model when it was loaded, and here on the stimuli at every hook point that is read.

    Parameters
    ----------
    sequences : ids of all stimuli, cut after the last wanted token
    hooks : hook points that are read
    shard : stimuli in a shard; sharing ends at its border
    """
    parts = [sequences[i : i + shard] for i in range(0, len(sequences), shard)]
    tokens, nodes = sum(map(len, sequences)), sum(sum(trie_groups(part, model.max_nodes)[1]) for part in parts)
    record: dict[str, Any] = {"asked": model.packing, "tokens": tokens, "nodes": nodes, "saving": 1 - nodes / tokens}
    if model.packing == "buckets":
        return "buckets", record | {"used": "buckets", "reason": "asked for"}
    if model.packing == "auto" and record["saving"] < WORTHWHILE:
        return "buckets", record | {"used": "buckets", "reason": f"a trie would save {record['saving']:.0%} of tokens"}
    reason = model.no_trie
    if not reason:
        largest = max(trie_groups(parts[0], model.max_nodes)[0], key=len)
        error, hook = packing_error(model, [parts[0][i] for i in largest[:8]], hooks, packing="trie")
        record["error"] = error
        if not error <= TOLERANCE[model.dtype]:
            reason = f"a trie gives other vectors than single texts at {hook} (relative error {error:.1e})"
    used: Packing = "buckets" if reason else "trie"
    return used, record | {"used": used, "reason": reason or f"a trie saves {record['saving']:.0%} of tokens"}
