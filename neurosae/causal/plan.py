"""What all batches of an intervention share: placed conditions, what is read where, what is held, and the rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from neurosae.causal.conditions import Condition, Placed, place_conditions
from neurosae.causal.freezing import FREEZE, frozen_points
from neurosae.causal.outcomes import Activation, Ask, Asked, activation_cells, ask_outcome
from neurosae.causal.prompts import Prompts, read_prompts
from neurosae.errors import DataError, choose
from neurosae.extraction.passes import DTYPES, LanguageModel, precision
from neurosae.extraction.sites import check_hook, hook_layer, split_head

FEW = 2  # conditions that are worth a row without edits of their own
SAME = 1e-6  # relative difference between layers that were run once per stimulus, and once per row


@dataclass(frozen=True)
class Read:
    """A feature that is read as an outcome: its hook point, and its cells per stimulus."""

    ask: Activation
    point: str
    head: int | None
    cells: list[np.ndarray]


@dataclass(frozen=True)
class Plan:
    """Everything that the batches share.

    Attributes
    ----------
    conditions : placed edits of every condition
    asked, reads : outcomes read off logits, and off features
    cells : per stimulus the tokens whose logits are read
    last : per stimulus the last token that is read; -1 where none is
    order : place of every hook point in the order of firing
    held : hook points that are held at the clean run where they come after an edit
    share : layers below the first edit may run once per stimulus
    """

    model: LanguageModel
    prompts: Prompts
    conditions: list[tuple[Placed, ...]]
    asked: list[Asked]
    reads: list[Read]
    cells: list[np.ndarray]
    last: np.ndarray
    freeze: str
    order: dict[str, int]
    held: list[str]
    share: bool

    @property
    def names(self) -> list[str]:
        """Keys of the values."""
        return [*(asked.name for asked in self.asked), *(read.ask.name for read in self.reads)]

    def reaches(self, stimulus: int, condition: int) -> bool:
        """Whether a condition edits any token of a stimulus that what is read can depend on."""
        last = self.last[stimulus]
        return any(len(p.tokens[stimulus]) and p.tokens[stimulus][0] <= last for p in self.conditions[condition])


def make_plan(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    conditions: Sequence[Condition],
    *,
    outcomes: Sequence[Ask],
    freeze: str,
) -> Plan:
    """Place conditions and outcomes on the stimuli; what can be refused is refused here."""
    choose("freeze", freeze, FREEZE)
    if not outcomes:
        raise DataError("outcomes: there are none; name at least one, such as logit_diff.")
    watched = [ask for ask in outcomes if isinstance(ask, Activation)]
    used = [edit.dictionary for condition in conditions for edit in condition if edit.dictionary is not None]
    prompts = read_prompts(stimuli, model, list({id(d): d for d in [*used, *(w.dictionary for w in watched)]}.values()))
    asked = [ask_outcome(ask, prompts) for ask in outcomes if not isinstance(ask, Activation)]
    reads = [_read(ask, prompts) for ask in watched]
    names = [*(one.name for one in asked), *(one.ask.name for one in reads)]
    if len(set(names)) < len(names):
        raise DataError(f"outcomes: {', '.join(names)}; name each once.")
    held = frozen_points(prompts.model, freeze)
    stage = place_conditions(conditions, prompts, beside=[*held, *(read.point for read in reads)])
    if silent := [read.point for read in reads if read.point not in stage.order]:
        raise DataError(f"hook point '{silent[0]}' never fires in {model.name}, so no feature can be read there.")
    n = range(len(prompts.ids))
    cells = [np.unique(np.concatenate([one.cells[i] for one in asked] or [_end(prompts, i)])) for i in n]
    ends = [cells, *(read.cells for read in reads)]
    last = np.array([max((int(c[i][-1]) for c in ends if len(c[i])), default=-1) for i in n])
    share = may_share(prompts.model)
    return Plan(prompts.model, prompts, stage.conditions, asked, reads, cells, last, freeze, stage.order, held, share)


def _end(prompts: Prompts, stimulus: int) -> np.ndarray:
    """Where logits show whether an edit did anything when no outcome reads them: at the target, or at the end."""
    at = prompts.at[stimulus]
    return np.array([at if at >= 0 else prompts.stop[stimulus] - 1])


def _read(ask: Activation, prompts: Prompts) -> Read:
    check_hook(ask.dictionary.hook, prompts.model.hooks)
    point, head = split_head(ask.dictionary.hook)
    if not point.startswith("blocks."):
        raise DataError(f"a feature is read inside the stack of layers, not at {point}; use {prompts.model.last_hook}.")
    return Read(ask, prompts.model.hooks[point], head, activation_cells(ask, prompts))


# --- layers below the first edit ------------------------------------------------------------------------------------


def causal_mask(model: LanguageModel, width: int) -> dict[str, torch.Tensor]:
    """Mask and positions that hold for any number of rows: padding comes last, so no token sees it."""
    hidden = torch.finfo(DTYPES[model.dtype]).min
    past = torch.ones(width, width, dtype=torch.bool, device=model.device).tril()
    scores = torch.zeros(1, 1, width, width, device=model.device).masked_fill(~past, hidden)
    return {"attention_mask": scores, "position_ids": torch.arange(width, device=model.device)[None]}


def may_share(model: LanguageModel) -> bool:
    """Whether rows may part ways inside the stack: measured in the middle layer, against rows apart throughout.

    A model with attention over a window is left out: its masks are made before the first layer.
    """
    if model.no_trie or model.n_layers < 2:
        return False
    width, layer = min(6, model.n_ctx), model.n_layers // 2
    ids = torch.arange(2 * width, device=model.device).reshape(2, width) * 7 % model.n_vocab
    rows = torch.tensor([0, 0, 1, 1, 1], device=model.device)
    point = f"blocks.{layer}.hook_resid_pre"
    got: list[torch.Tensor] = []
    hooks = [(model.last_hook, lambda x, hook: got.append(x.clone()))]
    part = [(point, lambda x, hook: x[rows])]
    with torch.inference_mode(), precision(model), contextlib.suppress(RuntimeError, TypeError, ValueError, IndexError):
        ones = torch.ones(5, width, dtype=torch.long, device=model.device)
        model.bridge.run_with_hooks(ids[rows], fwd_hooks=hooks, return_type=None, attention_mask=ones)
        model.bridge.run_with_hooks(ids, fwd_hooks=[*part, *hooks], return_type=None, **causal_mask(model, width))
    if len(got) != 2 or got[0].shape != got[1].shape:
        return False
    return float((got[0] - got[1]).abs().max()) <= SAME * float(got[0].square().mean().sqrt())


def parting(plan: Plan, points: Sequence[str]) -> tuple[str, int]:
    """Where rows part ways: the last residual stream before, or at, the first of some hook points; layers below it."""
    if not plan.share or not points:
        return "", 0
    first = min(points, key=lambda point: plan.order[point])
    layer, hooks = hook_layer(first), plan.model.hooks
    if layer >= 0 and first == hooks[f"blocks.{layer}.hook_resid_post"]:
        return first, layer + 1
    return (hooks[f"blocks.{layer}.hook_resid_pre"], layer) if layer > 0 else ("", 0)


# --- rows -----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Rows of one forward pass: their stimulus, their condition (-1 for none), and the row without edits of each."""

    stimulus: np.ndarray
    condition: np.ndarray
    clean: np.ndarray


def make_batches(plan: Plan, batch_tokens: int) -> list[Batch]:
    """Rows (stimulus, condition) that go through the model together, stimuli of similar length side by side."""
    out: list[list[tuple[int, int, int]]] = []
    for group in _groups(plan):
        out += _group_batches(plan, group, batch_tokens)
    return [Batch(*(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))) for rows in out if rows]


def _groups(plan: Plan) -> list[list[int]]:
    """Conditions that begin in the same layer, so that they share the layers below; a few go with the layer below."""
    begin = [min((hook_layer(p.point) for p in edits), default=-1) for edits in plan.conditions]
    if not plan.share or plan.reads:
        return [list(range(len(begin)))]
    groups: list[list[int]] = []
    now: list[int] = []
    for layer in sorted(set(begin), reverse=True):
        now += [c for c, own in enumerate(begin) if own == layer]
        if len(now) >= FEW:
            groups.append(now)
            now = []
    return [*groups, now] if now or not groups else groups


def _group_batches(plan: Plan, group: Sequence[int], batch_tokens: int) -> list[list[tuple[int, int, int]]]:
    out: list[list[tuple[int, int, int]]] = [[]]
    for s in np.argsort(plan.last, kind="stable").tolist():
        if plan.last[s] < 0:
            continue
        left = [c for c in group if plan.reaches(s, c)]
        most = max(2, batch_tokens // (int(plan.last[s]) + 1))
        while True:
            if out[-1] and len(out[-1]) + min(2, 1 + len(left)) > most:
                out.append([])
            clean = len(out[-1])
            now, left = left[: most - clean - 1], left[most - clean - 1 :]
            out[-1] += [(s, -1, clean), *((s, c, clean) for c in now)]
            if not left:
                break
    return out


def halves(batch: Batch) -> list[Batch]:
    """The rows of a batch as two batches, each with the rows without edits that it needs; none where it has one row.

    Examples
    --------
    >>> whole = Batch(np.array([4, 4, 4, 7, 7]), np.array([-1, 0, 1, -1, 0]), np.array([0, 0, 0, 3, 3]))
    >>> [(one.stimulus.tolist(), one.condition.tolist(), one.clean.tolist()) for one in halves(whole)]
    [([4, 4], [-1, 0], [0, 0]), ([4, 4, 7, 7], [-1, 1, -1, 0], [0, 0, 2, 2])]
    """
    pairs = list(zip(batch.stimulus.tolist(), batch.condition.tolist(), strict=True))
    edited = {s for s, c in pairs if c >= 0}
    rows = [(s, c) for s, c in pairs if c >= 0 or s not in edited]
    if len(rows) < 2:
        return []
    middle = len(rows) // 2
    return [_with_clean(part) for part in (rows[:middle], rows[middle:])]


def _with_clean(rows: Sequence[tuple[int, int]]) -> Batch:
    out: list[tuple[int, int, int]] = []
    for s in dict.fromkeys(s for s, _ in rows):
        clean = len(out)
        out += [(s, -1, clean), *((s, c, clean) for other, c in rows if other == s and c >= 0)]
    return Batch(*(np.array(column, dtype=np.int64) for column in zip(*out, strict=True)))
