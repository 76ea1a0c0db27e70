"""A language model, loaded and checked: own token ids in, vectors of named hook points out.

The backend is the bridge of transformer-lens. It accepts misspelt hook names, missing weights and left-padded strings
without a word; everything that it would let pass is checked here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from neurosae.errors import ModelError, choose
from neurosae.extraction.packing import pad
from neurosae.extraction.sites import canonical_hooks, check_hook
from neurosae.extraction.source import find_checkpoint, first_line, weights_hash
from neurosae.extraction.tokens import Bos, Tokenizer, byte_tokenizer, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# largest max|d| / rms between a batch and single sequences: ten times what float32 shows on real models (1e-6 to 1e-5),
# a thousandth of what a fault of padding or masking does; reduced precision rounds by its own step
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model and what is known about it.

    Attributes
    ----------
    bridge : the transformer-lens bridge; only this module and interventions touch it
    tokens : its tokenizer, None for a toy whose vocabulary is too small for bytes
    is_causal : measured: later tokens do not change earlier vectors
    has_head : measured: the unembedding of the last residual stream gives the model's logits
    hooks : every known hook name -> canonical name
    provenance : source, hashes, config, dtype, device, weights mode, BOS rule, versions
    """

    bridge: Any
    tokens: Tokenizer | None
    name: str
    d_model: int
    n_layers: int
    n_ctx: int
    n_vocab: int
    is_causal: bool
    has_head: bool
    device: str
    dtype: str
    hooks: Mapping[str, str]
    provenance: Mapping[str, Any]

    @property
    def last_hook(self) -> str:
        """The residual stream after the last block, which the unembedding reads."""
        return f"blocks.{self.n_layers - 1}.hook_resid_post"


def load_model(
    source: Source,
    *,
    dtype: str = "float32",
    device: str = "auto",
    weights: Literal["raw", "compat"] = "raw",
    bos: Bos = "auto",
) -> LanguageModel:
    """Load a causal language model, or an encoder for extraction only.

    Parameters
    ----------
    source : a folder in Hugging Face format; `embedded`, the model inside this package; a hub id, the only source
        that may use the network; or a dict of settings for a seeded toy (`boot_native`; a key `tokenizer` may name
        a tokenizer.json, else bytes are tokens)
    dtype : `float32`, or `bfloat16` or `float16` by autocast
    device : `auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1` …
    weights : `raw`, or `compat` for dictionaries trained on folded and centred weights
    bos : `auto` (the dictionary's habit, else the tokenizer's), `true` or `false`

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
    place = _device(device)
    if isinstance(source, Mapping):
        bridge, tokens, facts = _toy(dict(source), place, bos)
    else:
        folder = find_checkpoint(source)
        bridge, complete = _boot(folder, place)
        tokens = load_tokenizer(folder, bos=bos)
        facts = {"name": folder.name if Path(source).is_dir() else str(source), "source": str(folder)}
        facts |= {"complete": complete, "weights_hash": weights_hash(folder)}
        facts["config"] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if weights == "compat":
        with _quiet():
            bridge.enable_compatibility_mode()
    return _described(bridge, tokens, facts, dtype=dtype, device=str(place), weights=weights)


def _described(
    bridge: Any, tokens: Tokenizer | None, facts: dict[str, Any], *, dtype: str, device: str, weights: str
) -> LanguageModel:
    cfg = bridge.cfg
    complete = facts.pop("complete", True)
    numbers = {"d_model": cfg.d_model, "n_layers": cfg.n_layers, "n_ctx": cfg.n_ctx, "n_vocab": cfg.d_vocab}
    bridge.eval()
    draft = LanguageModel(
        bridge=bridge, tokens=tokens, name=facts["name"], **numbers, is_causal=False, has_head=False,
        device=device, dtype=dtype, hooks=canonical_hooks(bridge.hook_dict), provenance={},
    )  # fmt: skip
    is_causal, has_head = _probe(draft)
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
    return LanguageModel(**(draft.__dict__ | {"is_causal": is_causal, "has_head": has_head and complete,
                                              "provenance": facts}))  # fmt: skip


# --- where a model comes from ---------------------------------------------------------------------------------------


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"device '{device}' is not available here; use cpu, or auto.") from None
    return place


def _boot(folder: Path, device: torch.device) -> tuple[Any, bool]:
    """The bridge, and whether its head was in the checkpoint; missing weights are an error, not a random fill."""
    from transformer_lens.model_bridge import TransformerBridge  # 3 to 11 s: only when a model is loaded
    from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture

    lost: list[str] = []

    class Checked:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            architecture = kwargs["config"].architectures[0] if kwargs["config"].architectures else ""
            auto = cast(Any, get_hf_model_class_for_architecture(architecture))
            model, info = auto.from_pretrained(*args, output_loading_info=True, **kwargs)
            lost.extend(sorted(info["missing_keys"]))
            return model

    try:
        with _quiet():
            bridge = TransformerBridge.boot_transformers(str(folder), device=device, model_class=Checked)
    except Exception as error:  # transformers, safetensors and the bridge each raise their own
        raise ModelError(
            f"{folder} cannot be loaded as a language model ({first_line(error)}); "
            "check config.json and the weight files, or copy the checkpoint again."
        ) from error
    trunk = [
        name for name in lost if not re.match(r"(cls|lm_head|predictions|vocab_projector|vocab_transform)\b", name)
    ]
    if trunk:
        raise ModelError(
            f"{folder}: the checkpoint lacks {len(trunk)} weights, such as {trunk[0]}; copy the whole checkpoint again."
        )
    return bridge, not lost


def _toy(settings: dict[str, Any], device: torch.device, bos: Bos) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    from transformer_lens.model_bridge import TransformerBridge

    path = settings.pop("tokenizer", None)
    settings.setdefault("seed", 0)
    bridge = TransformerBridge.boot_native(settings, device=device)
    tokens = load_tokenizer(path, bos=bos) if path else byte_tokenizer(bos=bos)
    if path is None and bridge.cfg.d_vocab < 257:
        tokens = None
    digest = hashlib.sha256()
    for name, value in sorted(bridge.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    facts = {"name": "toy", "source": "boot_native", "weights_hash": digest.hexdigest(), "config": settings}
    return bridge, tokens, facts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars of transformers are switched off, and back on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# --- the one hooked pass --------------------------------------------------------------------------------------------


class _Stop(Exception):
    """Ends a forward pass once the last wanted hook point has fired."""


def hooked_pass(
    model: LanguageModel,
    ids: np.ndarray | torch.Tensor,
    mask: np.ndarray | torch.Tensor,
    *,
    hooks: Sequence[str],
    rows: Sequence[int] | np.ndarray | torch.Tensor,
    cols: Sequence[int] | np.ndarray | torch.Tensor,
) -> dict[str, torch.Tensor]:
    """One forward pass for all hook points: only the wanted cells are kept, nothing deeper is computed.

    Parameters
    ----------
    ids, mask : integers of shape (n_sequences, length), right-padded; mask is 1 at real tokens
    hooks : names of hook points
    rows, cols : sequence and token index of each wanted cell

    Returns
    -------
    dict of float32 tensors of shape (n_cells, width) on the model's device; heads are flattened

    Raises
    ------
    ModelError
        If a name is unknown, or a hook point never fired.
    """
    for name in hooks:
        check_hook(name, model.hooks)
    place = torch.device(model.device)
    ids, mask, rows, cols = (torch.as_tensor(a, dtype=torch.long).to(place) for a in (ids, mask, rows, cols))
    got: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook_function(tensor: torch.Tensor, hook: Any) -> None:
            if tensor.shape[:2] != ids.shape:
                raise ModelError(f"hook point '{name}' gives shape {tuple(tensor.shape)}, not one vector per token.")
            got[name] = tensor[rows, cols].float().flatten(1).clone()  # clone: hooks hand out references
            if len(got) == len(set(hooks)):
                raise _Stop

        return hook_function

    pairs = [(name, keep(name)) for name in dict.fromkeys(hooks)]
    with torch.inference_mode(), _precision(model), contextlib.suppress(_Stop):
        model.bridge.run_with_hooks(ids, fwd_hooks=pairs, return_type=None, attention_mask=mask)
    if silent := [name for name in hooks if name not in got]:
        raise ModelError(f"hook points never fired: {', '.join(silent)}; this model does not compute them.")
    return got


def _precision(model: LanguageModel) -> contextlib.AbstractContextManager[Any]:
    if model.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(model.device).type, dtype=DTYPES[model.dtype])


def logits_of(model: LanguageModel, x: torch.Tensor) -> torch.Tensor:
    """Logits (n, n_vocab), float32, from vectors of the last residual stream (`model.last_hook`)."""
    if not model.has_head:
        raise ModelError(f"{model.name} has no head that predicts the next token; surprisal and targets need one.")
    with torch.inference_mode(), _precision(model):
        return model.bridge.unembed(model.bridge.ln_final(x)).float()


def _probe(model: LanguageModel) -> tuple[bool, bool]:
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
    with torch.inference_mode(), _precision(model):
        logits = model.bridge(ids, return_type="logits", attention_mask=torch.ones_like(ids)).float()
        try:
            own = model.bridge.unembed(model.bridge.ln_final(stream)).float()
        except (AttributeError, TypeError, RuntimeError):
            return True, False
    spread = TOLERANCE[model.dtype] * float(logits.square().mean().sqrt())
    return True, own.shape == logits.shape and float((own - logits).abs().max()) <= max(spread, 1e-5)


def in_batch_and_alone(
    model: LanguageModel, id_lists: Sequence[Sequence[int] | np.ndarray], hooks: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Vectors of up to 8 sequences at some hook points, from one padded batch and one sequence at a time."""
    lists = [np.asarray(ids) for ids in id_lists][:8]
    first = model.tokens.first if model.tokens else 0  # BOS is no row, and its vector is far longer than the others
    rows = np.repeat(np.arange(len(lists)), [len(ids) - first for ids in lists])
    cols = np.concatenate([np.arange(first, len(ids)) for ids in lists])
    ids, mask = pad(lists)
    batch = hooked_pass(model, ids, mask, hooks=hooks, rows=rows, cols=cols)
    alone = []
    for one in lists:
        n = np.arange(first, len(one))
        alone.append(hooked_pass(model, one[None], np.ones_like(one)[None], hooks=hooks, rows=0 * n, cols=n))
    return batch, {hook: torch.cat([single[hook] for single in alone]) for hook in hooks}


def batch_invariance(model: LanguageModel, id_lists: Sequence[Sequence[int] | np.ndarray], hook: str) -> float:
    """How far a padded batch moves a hook point against one sequence at a time: max|d| / rms.

    Parameters
    ----------
    id_lists : up to 8 sequences of different length
    hook : the deepest hook point that is read

    Raises
    ------
    ModelError
        If it exceeds rounding (1e-4 in float32).
    """
    batch, single = (vectors[hook] for vectors in in_batch_and_alone(model, id_lists, [hook]))
    error = float((batch - single).abs().max() / single.square().mean().sqrt())
    if not error <= TOLERANCE[model.dtype]:
        raise ModelError(
            f"{model.name} gives other vectors in a batch than alone at {hook} (relative error {error:.1e}, allowed "
            f"{TOLERANCE[model.dtype]:.0e}); use batch_tokens=1, or dtype: float32."
        )
    return error
