"""Where a model is read: hook points and their names.

A site is a hook point plus a dictionary. `blocks.*.hook_resid_post` names one hook point per layer. Names are checked
against the model's own list before anything runs, because the model itself accepts a misspelt name and does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from neurosae.errors import ModelError, unknown

T = TypeVar("T")
IN_BLOCK = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_post",
    "attn.hook_z",
)  # fmt: skip
READABLE = re.compile(r"hook_embed|blocks\.\d+\.(" + "|".join(map(re.escape, IN_BLOCK)) + ")")


def expand_hook(site: str, hook: str, n_layers: int) -> dict[str, str]:
    """Site names and hook points of a pattern: `*` stands for every layer.

    Examples
    --------
    >>> expand_hook("late", "blocks.*.hook_resid_post", 2)
    {'late.0': 'blocks.0.hook_resid_post', 'late.1': 'blocks.1.hook_resid_post'}
    >>> expand_hook("late", "blocks.3.hook_resid_post", 4)
    {'late': 'blocks.3.hook_resid_post'}
    """
    if "*" not in hook:
        return {site: hook}
    return {f"{site}.{layer}": hook.replace("*", str(layer)) for layer in range(n_layers)}


def hook_layer(hook: str) -> int:
    """The layer that a hook point belongs to; -1 for the embedding.

    Examples
    --------
    >>> hook_layer("blocks.3.hook_resid_post"), hook_layer("hook_embed")
    (3, -1)
    """
    found = re.match(r"blocks\.(\d+)\.", hook)
    return int(found.group(1)) if found else -1


def hook_depth(hook: str) -> tuple[int, int]:
    """Sort key of hook points in the order in which a forward pass reaches them."""
    order = ("resid_pre", "hook_z", "attn_out", "resid_mid", "hook_post", "mlp_out", "resid_post")
    place = next((i for i, name in enumerate(order) if hook.endswith(name)), 0)
    return hook_layer(hook), place


def canonical_hooks(hooks: Mapping[str, T]) -> dict[str, str]:
    """Every known hook name -> the first name of the same hook point (aliases share the object)."""
    first: dict[int, str] = {}
    for name, point in hooks.items():
        first.setdefault(id(point), name)
    return {name: first[id(point)] for name, point in hooks.items()}


def check_hook(hook: str, known: Mapping[str, str], *, where: str = "hook") -> str:
    """Refuse a hook point that the model does not have, or that gives no vector per token; returns it unchanged."""
    readable = [name for name in known if READABLE.fullmatch(name)]
    if hook not in known:
        same = [name for name in readable if hook_layer(name) == hook_layer(hook)]
        raise ModelError(f"{where}: " + unknown("hook point", hook, same or readable[:8]))
    if hook not in readable:
        raise ModelError(
            f"{where}: hook point '{hook}' is not one that gives a vector per token; use {', '.join(IN_BLOCK)}."
        )
    return hook
