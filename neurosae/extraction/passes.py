"""The one hooked pass: own token ids in, vectors of named hook points out.

A loaded model is a plain record. All hook points are read in one forward pass that keeps the wanted cells alone and
ends, by an exception, when the last of them has fired; hook points that never fire are an error. Weights stay in
float32: reduced precision is the autocast of the forward pass, the same on a CPU and on CUDA.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from neurosae.errors import ModelError
from neurosae.extraction.sites import check_hook, split_head
from neurosae.extraction.tokens import Tokenizer
from neurosae.extraction.trie import MAX_NODES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYER = re.compile(r"blocks\.(\d+)\.")
Whole = Sequence[int] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model and what is known about it.

    Attributes
    ----------
    bridge : the transformer-lens bridge; only this package's passes and interventions touch it
    tokens : its tokenizer, None for a toy whose vocabulary is too small for bytes
    is_causal : measured: later tokens do not change earlier vectors
    has_head : measured: the unembedding of the last residual stream gives the model's logits
    packing : asked for: `auto`, `trie` or `buckets`
    no_trie : why stimuli cannot share the tokens of a common beginning; empty where they can, measured
    mlp_by_token : measured: an MLP gives a token what it gives it among others, so it need not see all of them
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
    packing: str = "auto"
    no_trie: str = ""
    mlp_by_token: bool = False

    @property
    def last_hook(self) -> str:
        """The residual stream after the last block, which the unembedding reads."""
        return f"blocks.{self.n_layers - 1}.hook_resid_post"

    @property
    def max_nodes(self) -> int:
        """Largest number of nodes of a trie: a row of a batch must not be longer than the context."""
        return min(MAX_NODES, self.n_ctx)


class _Stop(Exception):
    """Ends a forward pass once the last wanted hook point has fired."""


def hooked_pass(
    model: LanguageModel,
    ids: Whole,
    mask: Whole,
    *,
    hooks: Sequence[str],
    rows: Whole,
    cols: Whole,
    positions: Whole | None = None,
) -> dict[str, torch.Tensor]:
    """One forward pass for all hook points: only the wanted cells are kept, nothing deeper is computed.

    Parameters
    ----------
    ids : integers of shape (n_sequences, length)
    mask : of the same shape, 1 at real tokens, which come first; or bool (n_sequences, length, length), the columns
        that each column sees, which goes with `positions`
    hooks : names of hook points; `blocks.2.attn.hook_z.h3` is one head
    rows, cols : sequence and token index of each wanted cell
    positions : position of each column in its sequence; left out, the columns themselves

    Returns
    -------
    dict of float32 tensors of shape (n_cells, width) on the model's device; heads are flattened

    Raises
    ------
    ModelError
        If a name or a token id is unknown, or a hook point never fired.
    """
    for name in hooks:
        check_hook(name, model.hooks)
    place = torch.device(model.device)
    tokens, row, col = (torch.as_tensor(a, dtype=torch.long).to(place) for a in (ids, rows, cols))
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < model.n_vocab:
        raise ModelError(
            f"token id {int(tokens.max())} was given to {model.name}, which knows 0 to {model.n_vocab - 1}; its "
            "tokenizer belongs to another model: copy the one of this checkpoint."
        )
    got: dict[str, torch.Tensor] = {}
    n_wanted = len(set(hooks))

    def keep(name: str) -> Any:
        head = split_head(name)[1]

        def hook_function(tensor: Any, hook: Any) -> None:
            _refuse_shape(name, tensor, tokens.shape)
            cells = tensor[row, col] if head is None else tensor[row, col, head]
            got[name] = cells.float().flatten(1)  # gathered, so a copy: no reference holds the whole tensor
            if len(got) == n_wanted:
                raise _Stop

        return hook_function

    pairs = [(split_head(name)[0], keep(name)) for name in dict.fromkeys(hooks)]
    settings = _settings(model, mask, positions)
    short = _fewer_rows(model, hooks, (row, col))
    with torch.inference_mode(), precision(model), short, contextlib.suppress(_Stop):
        model.bridge.run_with_hooks(tokens, fwd_hooks=pairs, return_type=None, **settings)
    if silent := [name for name in hooks if name not in got]:
        raise ModelError(f"hook points never fired: {', '.join(silent)}; this model does not compute them.")
    return got


def _fewer_rows(
    model: LanguageModel, hooks: Sequence[str], cells: tuple[torch.Tensor, torch.Tensor]
) -> contextlib.AbstractContextManager[Any]:
    """Run the MLP of the last block that is needed on the wanted cells alone.

    Nothing reads its other rows: the pass ends at that block's residual stream, or at the normalization behind it, and
    this model's MLPs work token by token, which was measured when it was loaded.
    """
    layers = [(int(found[1]), name) for name in hooks if (found := LAYER.match(name))]
    last = max((layer for layer, name in layers if name.endswith("hook_resid_post")), default=-1)
    deeper = [n for n in hooks if not (found := LAYER.match(n)) or int(found[1]) > last]
    inside = any(layer == last and "mlp" in name for layer, name in layers)
    if not model.mlp_by_token or last < 0 or inside or any(not name.endswith("hook_scale") for name in deeper):
        return contextlib.nullcontext()
    blocks = getattr(model.bridge, "blocks", None)
    mlp = getattr(blocks[last], "mlp", None) if blocks is not None else None
    whole = getattr(mlp, "original_component", None)
    if whole is None or getattr(mlp, "name", None) is None:
        return contextlib.nullcontext()
    return _of_wanted(whole, cells)


@contextlib.contextmanager
def _of_wanted(mlp: torch.nn.Module, cells: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """An MLP that gives zeros except at the cells."""
    forward, own = mlp.forward, mlp.__dict__.get("forward")

    def of_wanted(x: torch.Tensor, *more: Any, **named: Any) -> Any:
        if more or named or x.dim() != 3 or 2 * len(cells[0]) > x.shape[0] * x.shape[1]:
            return forward(x, *more, **named)
        some = forward(x[cells][None])
        if not isinstance(some, torch.Tensor):  # a mixture of experts, which gives more than its output
            return forward(x)
        out = some.new_zeros((*x.shape[:2], some.shape[-1]))
        out[cells] = some[0]
        return out

    mlp.forward = of_wanted
    try:
        yield
    finally:
        del mlp.forward
        if own is not None:
            mlp.forward = own


def _settings(model: LanguageModel, mask: Whole, positions: Whole | None) -> dict[str, torch.Tensor]:
    """Mask and positions as the model takes them: what is not seen gets the lowest score there is."""
    place = torch.device(model.device)
    if positions is None:
        return {"attention_mask": torch.as_tensor(mask, dtype=torch.long).to(place)}
    visible = torch.as_tensor(mask, dtype=torch.bool).to(place)
    hidden = torch.finfo(DTYPES[model.dtype]).min
    scores = torch.zeros(visible.shape, device=place).masked_fill(~visible, hidden)[:, None]
    return {"attention_mask": scores, "position_ids": torch.as_tensor(positions, dtype=torch.long).to(place)}


def _refuse_shape(name: str, tensor: Any, shape: torch.Size) -> None:
    """A hook point is read only where it gives one vector per token, or one per head and token."""
    found = list(tensor.shape) if isinstance(tensor, torch.Tensor) else []
    head = split_head(name)[1]
    if found[:2] != list(shape) or len(found) not in ((3, 4) if head is None else (4,)):
        what = "one vector per token" if head is None else "one vector per head and token"
        raise ModelError(f"hook point '{name}' gives shape {tuple(found)}, not {what}.")
    if head is not None and head >= found[2]:
        raise ModelError(f"hook point '{name}': there are {found[2]} heads, h0 to h{found[2] - 1}.")


def precision(model: LanguageModel) -> contextlib.AbstractContextManager[Any]:
    """Autocast of a model in reduced precision; around several passes, weights are rounded once for all of them."""
    if model.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(model.device).type, dtype=DTYPES[model.dtype])


def logits_of(model: LanguageModel, x: torch.Tensor) -> torch.Tensor:
    """Logits (n, n_vocab), float32, from vectors of the last residual stream (`model.last_hook`)."""
    if not model.has_head:
        raise ModelError(f"{model.name} has no head that predicts the next token; surprisal and targets need one.")
    with torch.inference_mode(), precision(model):
        return read_head(model.bridge, x)


def read_head(bridge: Any, x: torch.Tensor) -> torch.Tensor:
    """Logits of the last residual stream; some architectures scale or cap them after the unembedding."""
    logits = bridge.unembed(bridge.ln_final(x)).float()
    return getattr(bridge.adapter, "apply_output_logits_transform", lambda plain: plain)(logits)
