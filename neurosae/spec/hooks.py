"""Names of hook points, as far as they can be judged without a model: misspellings are refused when a file is read.

A name is `hook_embed`, `ln_final.hook_normalized`, or a path below a block: `blocks.3.hook_resid_post`,
`blocks.*.mlp.hook_post` (one site per layer), `blocks.2.attn.hook_q`, `blocks.2.attn.hook_z.h3` (one head). What only
some architectures have is left to the model, which knows its own hook points.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from neurosae.errors import unknown
from neurosae.spec.words import short, text_problem

HOOKS = "hook_resid_pre hook_resid_mid hook_resid_post hook_attn_out hook_mlp_out mlp.hook_post attn.hook_z".split()
"""Hook points of a layer that give one vector per token and that nearly every model has."""

OTHERS = (
    "attn.hook_q attn.hook_k attn.hook_v attn.hook_rot_q attn.hook_rot_k mlp.hook_pre mlp.hook_pre_linear "
    "ln1.hook_normalized ln1.hook_scale ln2.hook_normalized ln2.hook_scale attn.hook_hidden_states hook_in hook_out"
).split()
OUTSIDE = "hook_embed hook_pos_embed embed.hook_out pos_embed.hook_out ln_final.hook_normalized".split()
PAIRWISE = ("hook_pattern", "hook_attn_scores", "hook_cross_pattern")
PARTS = "attn mlp ln1 ln2 ln1_post ln2_post embed pos_embed ln_final unembed q k v o qkv in out gate".split()


def hook_problem(value: Any) -> str | None:
    """What is wrong with the name of a hook point; None where only the model can tell.

    Examples
    --------
    >>> hook_problem("blocks.3.hook_resid_post"), hook_problem("blocks.*.attn.hook_z.h3")
    (None, None)
    >>> hook_problem("blocks.3.hook_resid_past").split(" Known")[0]
    "unknown hook point 'hook_resid_past'. Did you mean 'hook_resid_post'?"
    """
    if wrong := text_problem(value):
        return wrong
    found = re.fullmatch(r"(?:blocks\.(?:[0-9]+|\*)\.)?((?:[a-z_0-9]+\.)*)(hook_\w+?)(\.h[0-9]+)?", value)
    if not found or (found[1] + found[2]).startswith(("blocks.", "layer")):
        return f"'{short(value)}' is no hook point; write blocks.3.hook_resid_post, or blocks.*.… for every layer."
    point = found[1] + found[2]
    known = [*HOOKS, *OTHERS] if value.startswith("blocks.") else OUTSIDE
    if found[2] in PAIRWISE:
        return f"{point} gives numbers per pair of tokens, not a vector per token; use {', '.join(HOOKS)}."
    words = {name.rpartition(".")[2] for name in (*HOOKS, *OTHERS, *OUTSIDE)}
    typos = [w for w in found[1].split(".")[:-1] if w not in PARTS and difflib.get_close_matches(w, PARTS, 1, 0.8)]
    near = difflib.get_close_matches(found[2], words, 1, 0.8)
    if typos or (found[2] not in words and near) or (found[2] in HOOKS and found[1]) or found[2] == "hook_resid":
        return unknown("hook point", short(point), known)
    if found[3] and not re.search(r"hook_(z|q|k|v|rot_q|rot_k)$", found[2]):
        return f"'{short(value)}' names one head, but {found[2]} has none; use attn.hook_z{found[3]}."
    return None
