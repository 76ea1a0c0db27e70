"""A language model, loaded and checked.

The backend is the bridge of transformer-lens. It accepts misspelt hook names, missing weights and left-padded strings
without a word; everything that it would let pass is checked here.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from neurosae.errors import ModelError, choose
from neurosae.extraction.boot import boot_folder, boot_objects, boot_toy, fuse_activations, quiet, state_hash
from neurosae.extraction.passes import DTYPES, LanguageModel, hooked_pass, logits_of
from neurosae.extraction.selftest import batch_invariance, mlp_by_token, probe, trie_problem
from neurosae.extraction.sites import canonical_hooks
from neurosae.extraction.source import find_checkpoint, weights_hash
from neurosae.extraction.tokens import Bos, Tokenizer, byte_tokenizer, load_tokenizer, tokenizer_in_memory

Source = str | Path | Mapping[str, Any] | tuple[Any, Any]

__all__ = ["LanguageModel", "batch_invariance", "hooked_pass", "load_model", "logits_of", "random_control"]


def load_model(
    source: Source,
    *,
    dtype: str = "float32",
    device: str = "auto",
    weights: Literal["raw", "compat"] = "raw",
    bos: Bos = "auto",
    packing: Literal["auto", "trie", "buckets"] = "auto",
) -> LanguageModel:
    """Load a causal language model, or an encoder for extraction only.

    Parameters
    ----------
    source : a folder in Hugging Face format; `embedded`, the model inside this package; a hub id, the only source
        that may use the network; a dict of settings for a seeded toy (`boot_native`; a key `tokenizer` may name
        a tokenizer.json, else bytes are tokens); or a pair (model, tokenizer) of transformers objects, which are
        copied (tokenizer None: token ids are the stimuli)
    dtype : `float32`, or `bfloat16` or `float16` by autocast
    device : `auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1` …
    weights : `raw`, or `compat` for dictionaries trained on folded and centred weights
    bos : `auto` (the dictionary's habit, else the tokenizer's), `true` or `false`
    packing : how stimuli share a forward pass: `buckets` of similar length; `trie`, where the tokens of a common
        beginning are computed once; `auto`, a trie where the model allows it and a quarter of the tokens is saved

    Raises
    ------
    ModelError
        If the model is missing, incomplete or broken, or the device does not exist.

    Examples
    --------
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> model = load_model(toy)
    >>> model.name, model.d_model, model.is_causal
    ('toy', 8, True)
    """
    choose("dtype", dtype, DTYPES, error=ModelError)
    choose("weights", weights, {"raw": 1, "compat": 1}, error=ModelError)
    choose("packing", packing, {"auto": 1, "trie": 1, "buckets": 1}, error=ModelError)
    place = _device(device)
    if isinstance(source, Mapping):
        found = _toy(dict(source), place, bos)
    else:
        found = _objects(source, place, bos) if isinstance(source, tuple) else _folder(source, place, bos)
    model = _finished(*found, dtype=dtype, device=str(place), weights=weights)
    return replace(model, packing=packing)


def _finished(
    bridge: Any, tokens: Tokenizer | None, facts: dict[str, Any], *, dtype: str, device: str, weights: str
) -> LanguageModel:
    """Fold the weights where that is asked for, then measure and describe the model."""
    if weights == "compat":
        with quiet():
            bridge.enable_compatibility_mode()
    cfg = bridge.cfg
    if f"blocks.{cfg.n_layers - 1}.hook_resid_post" not in bridge.hook_dict:
        raise ModelError(
            f"{facts['name']} is no single stack of layers (an encoder with a decoder, or a model of images); use a "
            "decoder (GPT-2, Llama …) or an encoder (BERT)."
        )
    complete = facts.pop("complete", True)
    numbers = {"d_model": cfg.d_model, "n_layers": cfg.n_layers, "n_ctx": cfg.n_ctx, "n_vocab": cfg.d_vocab}
    bridge.eval()
    fuse_activations(bridge)
    draft = LanguageModel(
        bridge=bridge, tokens=tokens, name=facts["name"], **numbers, is_causal=False, has_head=False,
        device=device, dtype=dtype, hooks=canonical_hooks(bridge.hook_dict), provenance={},
    )  # fmt: skip
    draft = replace(draft, mlp_by_token=mlp_by_token(draft))
    is_causal, has_head = probe(draft)
    no_trie = trie_problem(replace(draft, is_causal=is_causal), facts["config"])
    facts |= numbers | {
        "dtype": dtype if dtype == "float32" else f"{dtype} (autocast)",
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "weights": weights,
        "tokenizer_hash": tokens.hash if tokens else None,
        "bos": tokens.words if tokens else None,
        "is_causal": is_causal,
        "n_parameters": sum(p.numel() for p in bridge.parameters()),
        "threads": torch.get_num_threads(),
        "versions": {n: version(n) for n in ("torch", "transformers", "transformer-lens", "tokenizers")},
    }
    return replace(draft, is_causal=is_causal, has_head=has_head and complete, no_trie=no_trie, provenance=facts)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"device '{device}' is not available here; use cpu, or auto.") from None
    return place


def _toy(settings: dict[str, Any], device: torch.device, bos: Bos) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    path = settings.pop("tokenizer", None)
    settings.setdefault("seed", 0)
    bridge = boot_toy(settings, device)
    tokens = load_tokenizer(path, bos=bos) if path else byte_tokenizer(bos=bos)
    if path is None and bridge.cfg.d_vocab < 257:
        tokens = None
    facts = {"name": "toy", "source": "boot_native", "weights_hash": state_hash(bridge), "config": settings}
    return bridge, tokens, facts


def _objects(pair: tuple[Any, Any], device: torch.device, bos: Bos) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    model, tokenizer = pair
    bridge = boot_objects(model, device)
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    facts = {"name": name, "source": "memory", "weights_hash": state_hash(bridge), "config": model.config.to_dict()}
    return bridge, None if tokenizer is None else tokenizer_in_memory(tokenizer, bos=bos), facts


def _folder(source: str | Path, device: torch.device, bos: Bos) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    folder = find_checkpoint(source)
    tokens = load_tokenizer(folder, bos=bos)  # first: what it lacks is told in our words
    bridge, complete = boot_folder(folder, device, tokens=tokens)
    facts = {"name": folder.name if Path(source).is_dir() else str(source), "source": str(folder)}
    facts |= {"complete": complete, "weights_hash": weights_hash(folder)}
    facts["config"] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bridge, tokens, facts


# --- its control ----------------------------------------------------------------------------------------------------


def random_control(
    model: LanguageModel, mode: Literal["reinit", "shuffle"] = "reinit", *, seed: int = 0
) -> LanguageModel:
    """The same architecture without what was learned: a control for everything that a dictionary finds.

    Parameters
    ----------
    model : loaded from a folder, the hub, or the settings of a toy; it is left as it is
    mode : `reinit` draws the weights as before training; `shuffle` permutes the entries of every weight matrix, which
        keeps their distribution
    seed : of the draw or permutation

    Raises
    ------
    ModelError
        If the mode is unknown, or the model was given as objects in memory.

    Examples
    --------
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> model = load_model(toy)
    >>> control = random_control(model, "shuffle", seed=1)
    >>> control.name, control.provenance["weights_hash"] == model.provenance["weights_hash"]
    ('toy, shuffle control', False)
    """
    change = choose("control", mode, {"reinit": _reinit, "shuffle": _shuffle}, error=ModelError)
    facts, place = dict(model.provenance), torch.device(model.device)
    if facts["source"] == "memory":
        raise ModelError("a random control is made from a folder; save the model with save_pretrained, and load that.")
    if facts["source"] == "boot_native":
        again = {**facts["config"], "seed": facts["config"]["seed"] + 1 + seed} if mode == "reinit" else facts["config"]
        bridge, complete = boot_toy(dict(again), place), True
        if mode == "shuffle":
            _shuffle(bridge, seed)
    else:
        bridge, complete = boot_folder(Path(facts["source"]), place, lambda plain: change(plain, seed))
    facts |= {"control": {"mode": mode, "seed": seed}, "weights_hash": state_hash(bridge), "complete": complete}
    facts["name"] = f"{model.name}, {mode} control"
    made = _finished(bridge, model.tokens, facts, dtype=model.dtype, device=model.device, weights=facts["weights"])
    return replace(made, packing=model.packing)


def _reinit(model: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config).to(next(model.parameters()).device)


def _shuffle(model: Any, seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
                weight.copy_(weight.reshape(-1)[order].reshape(weight.shape))
    return model
