"""Where a model is read: hook points and their names.

A site is a hook point plus a dictionary. `blocks.*.hook_resid_post` names one hook point per layer. Names are checked
against the model's own list before anything runs, because the model itself accepts a misspelt name and does nothing.
"""

from __future__ import annotations

import difflib
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
PAIRWISE = ("hook_pattern", "hook_attn_scores")  # a number per pair of tokens
UNUSED = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_attn_in")


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


def canonical_hooks(hooks: Mapping[str, T]) -> dict[str, str]:
    """Every known hook name -> the first name of the same hook point (aliases share the object)."""
    first: dict[int, str] = {}
    for name, point in hooks.items():
        first.setdefault(id(point), name)
    return {name: first[id(point)] for name, point in hooks.items()}


def split_head(hook: str) -> tuple[str, int | None]:
    """A hook point, and the head that is read of it: all where none is named.

    Examples
    --------
    >>> split_head("blocks.2.attn.hook_z.h3"), split_head("blocks.2.attn.hook_z")
    (('blocks.2.attn.hook_z', 3), ('blocks.2.attn.hook_z', None))
    """
    found = re.fullmatch(r"(.+)\.h(\d+)", hook)
    return (found[1], int(found[2])) if found else (hook, None)


def check_hook(hook: str, known: Mapping[str, str], *, where: str = "hook") -> str:
    """Refuse a hook point that the model does not have, or that gives no vector per token; returns it unchanged."""
    point = split_head(hook)[0]
    if point not in known:
        same = [name for name in known if hook_layer(name) == hook_layer(point)]
        raise ModelError(f"{where}: " + unknown("hook point", point, _nearest(point, same or list(known))))
    if point.endswith(PAIRWISE):
        raise ModelError(
            f"{where}: hook point '{point}' is not one that gives a vector per token; use {', '.join(IN_BLOCK)}."
        )
    if point.endswith(UNUSED):
        raise ModelError(
            f"{where}: hook point '{point}' is switched off in this model; use blocks.N.attn.hook_z for heads, or "
            "blocks.N.hook_resid_pre and hook_resid_mid for what attention and MLP read."
        )
    return hook


def _nearest(hook: str, names: list[str]) -> list[str]:
    """The names to suggest from, the usual ones first: an alias is as good as a canonical name."""
    usual = [name for name in names if READABLE.fullmatch(name)]
    near = difflib.get_close_matches(hook, names, n=8, cutoff=0.0)
    return usual if near[:1] and near[0] in usual else near
