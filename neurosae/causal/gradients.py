"""Gradients of the logit difference with respect to what the model computes: one backward pass, nothing spliced in.

The stream at a hook point is caught, not replaced: the gradient there is that of the plain model. For integrated
gradients the stream may be moved by a given vector before it is caught, so that the gradient is taken elsewhere on a
straight line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from neurosae.causal.progress import with_bar
from neurosae.causal.scored import Scored
from neurosae.errors import ModelError
from neurosae.extraction.packing import length_buckets, pad
from neurosae.extraction.passes import LanguageModel, precision, read_head
from neurosae.extraction.sites import check_hook, split_head

BACKWARD_TOKENS = 2048  # ids of a batch; a backward pass holds the activations of all layers above the hook point


class Stop(Exception):
    """Ends a forward pass once everything that is wanted was caught."""


class Caught(NamedTuple):
    """One batch: stimuli, and per hook point the vectors x and the gradient of LD there, (n, length, d) each."""

    stimuli: np.ndarray
    x: dict[str, torch.Tensor]
    gradient: dict[str, torch.Tensor]
    logit_diff: torch.Tensor


@contextlib.contextmanager
def frozen_weights(model: LanguageModel) -> Iterator[None]:
    """No weight asks for a gradient meanwhile, so nothing below the first hook point is kept."""
    asking = [p for p in model.bridge.parameters() if p.requires_grad]
    try:
        for p in asking:
            p.requires_grad_(False)
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def logit_difference(model: LanguageModel, stream: torch.Tensor, answers: np.ndarray) -> torch.Tensor:
    """logit[target] - logit[foil] (n,) of vectors of the last residual stream, with its graph."""
    if not model.has_head:
        raise ModelError(f"{model.name} has no head that predicts the next token, so LD has no gradient.")
    both = torch.as_tensor(answers, device=stream.device)
    logits = read_head(model.bridge, stream).gather(1, both)
    return logits[:, 0] - logits[:, 1]


def ld_gradients(
    scored: Scored,
    hooks: Sequence[str],
    *,
    moved: Callable[[np.ndarray, int], Mapping[str, torch.Tensor]] | None = None,
    batch_tokens: int = BACKWARD_TOKENS,
) -> Iterator[Caught]:
    r"""Gradients of LD = logit[target] - logit[foil] with respect to the stream at some hook points.

    Parameters
    ----------
    scored : from `score_stimuli`
    hooks : hook points; `blocks.2.attn.hook_z.h3` is one head
    moved : (stimuli of a batch, its length) -> what is added to the stream at each hook point, (n, length, d)
    batch_tokens : ids in a batch, padding included

    Yields
    ------
    Caught, one per batch; together all stimuli

    Raises
    ------
    ModelError
        If a hook point is unknown or never fires, or LD does not depend on it in any stimulus.

    Examples
    --------
    The gradient at the stream that the unembedding reads is that of the head alone:

    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> model = load_model(toy, device="cpu")
    >>> one = Scored(model, None, [np.array([1, 2, 3])], np.array([2]), np.array([[5, 6]]), {}, {})
    >>> (batch,) = ld_gradients(one, [model.last_hook])
    >>> x = batch.x[model.last_hook][0, 2].detach().requires_grad_()
    >>> alone = torch.autograd.grad(logit_difference(model, x[None], one.answers).sum(), x)[0]
    >>> bool((batch.gradient[model.last_hook][0, 2] - alone).abs().max() < 1e-6)
    True
    """
    model = scored.model
    for hook in hooks:
        check_hook(hook, model.hooks)
    silent = set(hooks)
    lengths = [len(ids) for ids in scored.ids]
    with frozen_weights(model), precision(model):
        for rows in with_bar(length_buckets(lengths, batch_tokens), "gradients"):
            ids, mask = pad([scored.ids[i] for i in rows])
            added = {} if moved is None else moved(rows, ids.shape[1])
            batch = _backward(scored, rows, (ids, mask), hooks=hooks, added=added)
            silent -= {hook for hook in hooks if bool((batch.gradient[hook] != 0).any())}
            yield batch
    if silent and lengths:
        raise ModelError(
            f"the logit difference does not depend on {', '.join(sorted(silent))} in any stimulus; name a hook point "
            "that the model reads before it predicts the target."
        )


def _backward(
    scored: Scored,
    rows: np.ndarray,
    given: tuple[np.ndarray, np.ndarray],
    *,
    hooks: Sequence[str],
    added: Mapping[str, torch.Tensor],
) -> Caught:
    model, place = scored.model, torch.device(scored.model.device)
    points = dict.fromkeys(split_head(hook)[0] for hook in hooks)
    caught: dict[str, torch.Tensor] = {}
    last: list[torch.Tensor] = []

    def catch(name: str) -> Any:
        def hook_function(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            del hook
            if name in points:
                for wanted in (h for h in hooks if split_head(h)[0] == name and h in added):
                    tensor = _add(tensor, added[wanted], split_head(wanted)[1])
                tensor = tensor if tensor.requires_grad else tensor.detach().clone().requires_grad_(True)
                caught[name] = tensor
            if name == model.last_hook:
                last.append(tensor)
                raise Stop
            return tensor

        return hook_function

    ids, mask = (torch.as_tensor(part, dtype=torch.long, device=place) for part in given)
    pairs = [(name, catch(name)) for name in dict.fromkeys([*points, model.last_hook])]
    with torch.enable_grad():
        with contextlib.suppress(Stop):
            model.bridge.run_with_hooks(ids, fwd_hooks=pairs, return_type=None, attention_mask=mask)
        if missing := [name for name in points if name not in caught]:
            raise ModelError(f"hook points never fired: {', '.join(missing)}; this model does not compute them.")
        at = torch.as_tensor(scored.at[rows], device=place)
        found = logit_difference(model, last[0][torch.arange(len(rows), device=place), at], scored.answers[rows])
        names = list(caught)
        made = torch.autograd.grad(found.sum(), [caught[name] for name in names], allow_unused=True)
    each = {name: torch.zeros_like(caught[name]) if g is None else g for name, g in zip(names, made, strict=True)}
    x = {hook: _part(caught, hook).detach().float() for hook in hooks}
    gradient = {hook: _part(each, hook).detach().float() for hook in hooks}
    return Caught(rows, x, gradient, found.detach())


def _part(tensors: Mapping[str, torch.Tensor], hook: str) -> torch.Tensor:
    """One head of a hook point, or all heads side by side."""
    point, head = split_head(hook)
    tensor = tensors[point]
    return tensor.flatten(2) if head is None else tensor[:, :, head]


def _add(tensor: torch.Tensor, vector: torch.Tensor, head: int | None) -> torch.Tensor:
    vector = vector.to(tensor)
    if head is None:
        return tensor + vector.reshape(tensor.shape)
    out = tensor.clone()
    out[:, :, head] = out[:, :, head] + vector
    return out
