"""What fires in a forward pass, and in which order: hook points are refused before the first batch, not after it.

One pass over a few ids tells for every site whether its hook point fires once, with a vector per token of the width
that the dictionary reads, and which normalisation comes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from neurosae.errors import ModelError, SpecError
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.sites import check_hook, split_head

PROBE = (2, 3)  # sequences, tokens: no hook point gives these two sizes by chance of a broadcast


class Firing(NamedTuple):
    """A hook point as it fired: its name, and the shape of what it gave (empty where that is no tensor)."""

    name: str
    shape: tuple[int, ...]


def firing_order(model: LanguageModel, hooks: Sequence[str]) -> list[Firing]:
    """Which of some hook points fire in a whole forward pass, in order, as often as they do."""
    found: list[Firing] = []

    def keep(name: str) -> Any:
        def hook_function(tensor: Any, hook: Any) -> None:
            found.append(Firing(name, tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else ()))

        return hook_function

    ids = torch.arange(PROBE[0] * min(PROBE[1], model.n_ctx), device=model.device).reshape(PROBE[0], -1)
    ids = ids % model.n_vocab
    pairs = [(name, keep(name)) for name in dict.fromkeys(hooks)]
    with torch.inference_mode(), precision(model):
        model.bridge.run_with_hooks(ids, fwd_hooks=pairs, return_type=None, attention_mask=torch.ones_like(ids))
    return found


def check_sites(model: LanguageModel, dictionaries: Mapping[str, Any]) -> dict[str, str | None]:
    """Refuse sites that cannot be read; returns for every hook point the scale of the normalisation after it.

    Raises
    ------
    ModelError
        A hook point is unknown, never fires, fires several times, gives no vector per token, or gives one of another
        width than the dictionary reads.
    """
    if not dictionaries:
        raise SpecError("extract needs at least one site; name a hook point and a dictionary under `sites:`.")
    for site, dictionary in dictionaries.items():
        check_hook(dictionary.hook, model.hooks, where=f"sites.{site}")
    hooks = list(dict.fromkeys(dictionary.hook for dictionary in dictionaries.values()))
    points = list(dict.fromkeys(split_head(hook)[0] for hook in hooks))
    scales = [name for name in dict.fromkeys(model.hooks.values()) if name.endswith(".hook_scale")]
    order = firing_order(model, [*points, *scales])
    for site, dictionary in dictionaries.items():
        width = _width(model, dictionary.hook, order, where=f"sites.{site}")
        if dictionary.W_dec.shape[1] != width:
            raise ModelError(
                f"sites.{site}: the dictionary reads vectors of length {dictionary.W_dec.shape[1]}, but "
                f"{dictionary.hook} of {model.name} has {width}; use one trained on this model."
            )
    return {hook: _next_scale(model, split_head(hook)[0], order) for hook in hooks}


def _width(model: LanguageModel, hook: str, order: Sequence[Firing], *, where: str) -> int:
    point, head = split_head(hook)
    shapes = [firing.shape for firing in order if firing.name == point]
    if len(shapes) != 1:
        times = "never fires" if not shapes else f"fires {len(shapes)} times in one pass"
        raise ModelError(f"{where}: hook point '{point}' {times} in {model.name}; name another one.")
    shape = shapes[0]
    if shape[:2] != (PROBE[0], min(PROBE[1], model.n_ctx)) or len(shape) not in ((3, 4) if head is None else (4,)):
        what = "one vector per token" if head is None else "one vector per head and token"
        raise ModelError(f"{where}: hook point '{point}' gives shape {shape}, not {what}; name another one.")
    if head is not None and head >= shape[2]:
        raise ModelError(f"{where}: {point} has {shape[2]} heads, h0 to h{shape[2] - 1}; there is no h{head}.")
    return int(np.prod(shape[2:] if head is None else shape[3:]))


def _next_scale(model: LanguageModel, point: str, order: Sequence[Firing]) -> str | None:
    """The normalisation that fires next; where attention and MLP run side by side, the one of the next block."""
    names = [firing.name for firing in order]
    block = point.rsplit(".attn.", 1)[0] if ".attn." in point else point.removesuffix(".hook_attn_out")
    beside = f"{block}.ln2.hook_scale" if getattr(model.bridge.cfg, "parallel_attn_mlp", False) else ""
    after = order[names.index(point) + 1 :]
    scales = [f for f in after if f.name.endswith(".hook_scale") and f.name != beside]
    return scales[0].name if scales and scales[0].shape[-1] == 1 and len(scales[0].shape) == 3 else None
