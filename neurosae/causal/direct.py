r"""Direct logit attribution: LD as a sum over what was written into the stream, the final normalisation held fixed.

The last residual stream is a sum of components (embedding, heads, biases of attention, MLPs), and with its scale s
fixed the final normalisation and the unembedding are linear, so

    LD = sum_c <c, u> + const,   u = C(w * (W_U[:, target] - W_U[:, foil])) / s,

C centring over the width for LayerNorm, nothing for RMSNorm. What is linear is measured, not assumed: the parts must
add up to LD, else the model is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from neurosae.causal.attribution import times_products
from neurosae.causal.gradients import Stop, frozen_weights, logit_difference
from neurosae.causal.progress import with_bar
from neurosae.causal.scored import TARGET, Scored, as_responses, score_stimuli
from neurosae.errors import DataError, ModelError
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.run import features_table
from neurosae.extraction.sites import split_head

TOLERANCE = 1e-4  # logits; relative where LD is larger than 1
SITE = "direct"  # name of the site whose features are the components


class Parts(NamedTuple):
    """Components of LD.

    Attributes
    ----------
    names : DataFrame, index `direct/name`: `component` (embedding, head, attention bias, MLP, constant), `layer head`
    values : (n_stimuli, n_components), logits; rows add up to `logit_diff`
    streams : {hook: (n_stimuli, d)} at the token that predicts the target
    direction : u (n_stimuli, d)
    """

    names: pd.DataFrame
    values: np.ndarray
    logit_diff: np.ndarray
    streams: dict[str, np.ndarray]
    direction: np.ndarray


def direct_attribution(
    stimuli: pd.DataFrame, model: LanguageModel, dictionaries: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    r"""How much every component writes directly towards the target's logit, minus the foil's.

    Parameters
    ----------
    stimuli : from `expand`; the design needs a target
    model : LanguageModel, causal and with a head
    dictionaries : {site: dictionary} at hook points of the residual stream, or of what is added to it (`hook_attn_out`,
        `hook_mlp_out`, one head's or all heads' `attn.hook_z` are not: their width differs)

    Returns
    -------
    {"direct": AnnData, site: AnnData ...}
        Responses in which a value is a part of LD (logits), one row per stimulus. The components of `direct` add up to
        `obs["logit_diff"]`; the features of a site and `obs["rest"]` (its bias, its reconstruction error, and
        everything that is written elsewhere) do too. `var` names component, layer and head.

    Raises
    ------
    ModelError
        If the parts do not add up to LD within 1e-4 (relative above 1): the head or its normalisation is not linear.

    Notes
    -----
    Direct effects alone: what a component does through later layers is not counted, and the fixed scale hides that
    removing a large component rescales all others. A description of one path, not an intervention.

    References
    ----------
    Elhage et al. (2021), A Mathematical Framework for Transformer Circuits. Wang et al. (2023), Interpretability in the
    Wild (GPT-2 small, indirect objects).

    Examples
    --------
    >>> from neurosae.causal.scored import example_stimuli
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> found = direct_attribution(example_stimuli(), load_model(toy, device="cpu"))["direct"]
    >>> bool(abs(found.X.sum(axis=1).ravel() - found.obs["logit_diff"].to_numpy()).max() < 1e-5)
    True
    >>> found.var["component"].tolist()
    ['embedding', 'position embedding', 'head', 'head', 'attention bias', 'MLP', 'constant']
    """
    scored = score_stimuli(stimuli, model, dictionaries=dictionaries, regions=(TARGET,))
    sites = dictionaries or {}
    parts = split_logit_difference(scored, [d.hook for d in sites.values()])
    out = {SITE: as_responses(stimuli, scored, {TARGET: parts.values}, var=parts.names, logit_diff=parts.logit_diff)}
    for site, d in sites.items():
        x, u = parts.streams[d.hook], parts.direction
        if x.shape[1] != u.shape[1]:
            raise DataError(
                f"sites.{site}: {d.hook} has width {x.shape[1]}, the residual stream {u.shape[1]}, so its features "
                "have no direct part of LD; use a dictionary of the residual stream, of attn_out or of mlp_out."
            )
        codes = sp.csr_matrix(d.encode(torch.as_tensor(x)), dtype=np.float64)
        values = times_products(codes, u, d.W_dec.detach().double().cpu().numpy())
        adata = as_responses(
            stimuli, scored, {TARGET: values}, var=features_table(site, d), logit_diff=parts.logit_diff
        )
        adata.obs["rest"] = parts.logit_diff - np.asarray(values.sum(axis=1)).ravel()
        out[site] = adata
    return out


def split_logit_difference(scored: Scored, hooks: Sequence[str] = (), *, batch_tokens: int = 2048) -> Parts:
    """Parts of LD of every stimulus, and the stream at further hook points; see `direct_attribution`."""
    n, found = len(scored.ids), []
    with frozen_weights(scored.model), precision(scored.model):
        for rows in with_bar(length_buckets([len(ids) for ids in scored.ids], batch_tokens), "direct effects"):
            found.append((rows, *_batch(scored, rows, hooks)))
    order = np.argsort(np.concatenate([rows for rows, *_ in found]))
    values, logit_diff, u = (np.concatenate([part[k] for part in found])[order] for k in (2, 3, 4))
    streams = {hook: np.concatenate([part[5][hook] for part in found])[order] for hook in dict.fromkeys(hooks)}
    gap = np.abs(values.sum(axis=1) - logit_diff) / np.maximum(1, np.abs(logit_diff))
    if n and gap.max() > TOLERANCE * (1 if scored.model.dtype == "float32" else 1e3):
        raise ModelError(
            f"the components of {scored.model.name} miss its logit difference by up to {gap.max():.2g}: its head, its "
            "normalisation or its blocks are not the plain sum that direct attribution needs; use act x grad instead."
        )
    return Parts(found[0][1], values, logit_diff, streams, u)


def _batch(scored: Scored, rows: np.ndarray, hooks: Sequence[str]) -> tuple[Any, ...]:
    model, place = scored.model, torch.device(scored.model.device)
    ids, mask = (torch.as_tensor(a, device=place) for a in pad([scored.ids[i] for i in rows]))
    line, at = torch.arange(len(rows), device=place), torch.as_tensor(scored.at[rows], device=place)
    kept, graph = _caught(model, (ids, mask), (line, at), hooks=hooks)
    last = kept[model.last_hook]
    u, const, found = _linear_head(model, last, scored.answers[rows], scale=kept.get("ln_final.hook_scale"))
    names: list[dict[str, Any]] = []
    values: list[torch.Tensor] = []

    def add(component: str, value: torch.Tensor, *, layer: int = -1, head: int = -1) -> None:
        names.append({"component": component, "layer": layer, "head": head})
        values.append(value)

    start = kept["blocks.0.hook_resid_pre"]
    words = (kept["hook_embed"] * u).sum(-1) if "hook_embed" in kept else (start * u).sum(-1)
    add("embedding", words)
    add("position embedding", (start * u).sum(-1) - words)
    for layer in range(model.n_layers):
        z, out = graph[layer]
        (pull,) = torch.autograd.grad((out[line, at].float() * u).sum(), z)
        heads = (z.detach() * pull)[line, at].float().sum(-1)
        for head in range(heads.shape[1]):
            add("head", heads[:, head], layer=layer, head=head)
        add("attention bias", (out.detach()[line, at].float() * u).sum(-1) - heads.sum(1), layer=layer)
        add("MLP", (kept[f"blocks.{layer}.hook_mlp_out"] * u).sum(-1), layer=layer)
    add("constant", const)
    table = pd.DataFrame(names).astype({"layer": "int32", "head": "int32"})
    table.index = pd.Index([f"{SITE}/{component_name(row)}" for row in names])
    made = torch.stack(values, dim=1).double().cpu().numpy()
    streams = {hook: kept[hook].cpu().numpy() for hook in hooks}
    return table, made, found.double().cpu().numpy(), u.double().cpu().numpy(), streams


def component_name(row: Mapping[str, Any]) -> str:
    """Short name of a component.

    Examples
    --------
    >>> component_name({"component": "head", "layer": 2, "head": 5}), component_name({"component": "MLP", "layer": 0})
    ('L2H5', 'MLP 0')
    """
    if row["component"] == "head":
        return f"L{row['layer']}H{row['head']}"
    return row["component"] if row["layer"] < 0 else f"{row['component']} {row['layer']}"


def _caught(
    model: LanguageModel,
    given: tuple[torch.Tensor, torch.Tensor],
    cells: tuple[torch.Tensor, torch.Tensor],
    *,
    hooks: Sequence[str],
) -> tuple[dict[str, torch.Tensor], dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Vectors at the scored token by hook point, and per layer heads z with the graph to the attention's output."""
    kept: dict[str, torch.Tensor] = {}
    z: dict[int, torch.Tensor] = {}
    graph: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    layers = range(model.n_layers)
    heads = {f"blocks.{k}.attn.hook_z": k for k in layers}
    outs = {f"blocks.{k}.hook_attn_out": k for k in layers}
    wanted = ["hook_embed", "blocks.0.hook_resid_pre", *(f"blocks.{k}.hook_mlp_out" for k in layers), model.last_hook]
    wanted += ["ln_final.hook_scale", *(split_head(hook)[0] for hook in hooks)]
    points = [name for name in dict.fromkeys([*wanted, *heads, *outs]) if name in model.hooks]

    def keep(name: str) -> Any:
        def hook_function(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            del hook
            if name in heads:
                tensor = z[heads[name]] = tensor.detach().requires_grad_(True)
            if name in outs:
                graph[outs[name]] = (z[outs[name]], tensor)
                tensor = tensor.detach()
            if name in wanted or name in hooks:
                kept[name] = tensor.detach()[cells].float()
            for asked in (h for h in hooks if h != name and split_head(h)[0] == name):
                kept[asked] = tensor.detach()[cells][:, split_head(asked)[1]].float()
            if name == "ln_final.hook_scale":
                raise Stop
            return tensor

        return hook_function

    with torch.enable_grad(), contextlib.suppress(Stop):
        pairs = [(name, keep(name)) for name in points]
        model.bridge.run_with_hooks(given[0], fwd_hooks=pairs, return_type=None, attention_mask=given[1])
    lost = [name for name in (*wanted[1:-1], *heads, *outs) if name in points and name not in kept | heads | outs]
    lost += [f"blocks.{k}.attn.hook_z" for k in layers if k not in graph]
    lost += [name for name in wanted if name.startswith("blocks") and name not in kept]
    if lost:
        raise ModelError(f"hook points never fired: {', '.join(dict.fromkeys(lost))}; direct attribution needs them.")
    return kept, graph


def _linear_head(
    model: LanguageModel, x: torch.Tensor, answers: np.ndarray, *, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return u and const with LD = <x, u> + const at the clean scale, and LD itself.

    Whether the normalisation centres, and whether its weight is w or 1 + w, is decided by what reproduces LD.
    """
    norm = model.bridge.ln_final
    both = torch.as_tensor(answers, device=x.device)
    with torch.enable_grad():
        y = norm(x[:, None])[:, 0].detach().requires_grad_(True)
        logits = _unembedded(model, y).gather(1, both)
        (answer,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), y)
        zero = _unembedded(model, torch.zeros_like(y)).gather(1, both)
    found = logit_difference(model, x, answers).detach()
    const = (zero[:, 0] - zero[:, 1]).detach()
    named = {name.rpartition(".")[2]: p.detach().float() for name, p in norm.named_parameters()}
    w = named.get("weight", named.get("w", torch.ones_like(x[0])))
    bias = named.get("bias", named.get("b"))
    const = const + (0 if bias is None else (answer * bias).sum(-1))
    best: tuple[float, torch.Tensor] | None = None
    for center in (True, False):
        for weight in (w, 1 + w):
            s = scale if scale is not None else _scale(x, center=center)
            u = answer * weight / s
            u = u - u.mean(-1, keepdim=True) if center else u
            gap = float(((x * u).sum(-1) + const - found).abs().max())
            if best is None or gap < best[0]:
                best = (gap, u)
    assert best is not None
    return best[1], const, found


def _unembedded(model: LanguageModel, y: torch.Tensor) -> torch.Tensor:
    logits = model.bridge.unembed(y).float()
    return getattr(model.bridge.adapter, "apply_output_logits_transform", lambda plain: plain)(logits)


def _scale(x: torch.Tensor, *, center: bool) -> torch.Tensor:
    """Root mean square of the (centred) stream; the epsilon is below what the check of the sum can see."""
    x = x - x.mean(-1, keepdim=True) if center else x
    return x.square().mean(-1, keepdim=True).sqrt()
