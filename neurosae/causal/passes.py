"""Many interventions in few forward passes.

Rows of a batch are (stimulus, condition): each row has edits of its own, and every stimulus of a batch has one row
without edits beside them. What that row gives is the clean run: frozen scales, the divergence and the change of logits
are read off it, in the same pass. Layers below the first edit are run once per stimulus, where the model allows it.

stimuli -> tokens, cells -> rows (stimulus, condition) -> batches -> logits at the scored tokens -> outcomes
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from neurosae.causal.conditions import Condition, Placed
from neurosae.causal.deltas import Cells, edited, flat
from neurosae.causal.freezing import check_freezing, held, quiet_norms, replay
from neurosae.causal.outcomes import Ask, Predictions, score
from neurosae.causal.plan import Batch, Plan, causal_mask, halves, make_batches, make_plan, parting
from neurosae.causal.progress import PATIENCE
from neurosae.causal.prompts import unscored
from neurosae.errors import DataError, ModelError, NeurosaeError
from neurosae.extraction.packing import pad
from neurosae.extraction.passes import LanguageModel, precision, read_head
from neurosae.extraction.selftest import TOLERANCE
from neurosae.extraction.shard import is_out_of_memory

LOGITS = 1 << 23  # logits held at once: 32 MB
LAST = ""  # what is kept of the last residual stream; no outcome is called so
FELT = 1e-4  # of the root mean square of a vector: an edit of this size moves a logit, or reaches none


class Edited(NamedTuple):
    """What conditions do to stimuli.

    Attributes
    ----------
    values : {outcome: float64 (n_stimuli, n_conditions)}; nan where a stimulus has no target, see `record["unscored"]`
    clean : {outcome: float64 (n_stimuli,)}, without any edit
    moved : float64 (n_stimuli, n_conditions), largest |change of a logit| at the scored tokens
    record : how it was run: `freeze`, `replay` (largest relative change of a logit by replaying alone), `rows`,
        `passes`, `halved` (how often a batch was halved because memory ran out), `shared_layers` (run once per
        stimulus), `unscored` {stimulus: why}, `idle` {condition: why}, and `size` (n_stimuli, n_conditions), the
        largest change of an activation by an edit, relative to the root mean square of its vector
    """

    values: dict[str, np.ndarray]
    clean: dict[str, np.ndarray]
    moved: np.ndarray
    record: dict[str, Any]


def edited_outcomes(
    stimuli: pd.DataFrame,
    model: LanguageModel,
    conditions: Sequence[Condition],
    *,
    outcomes: Sequence[Ask] = ("logit_diff",),
    freeze: str = "none",
    idle: Literal["error", "note"] = "error",
    batch_tokens: int = 4096,
) -> Edited:
    r"""Run stimuli under interventions and score what the model predicts.

    Parameters
    ----------
    stimuli : from `expand`; or a table with `text` and, where a target is scored, `target` and `foil`, which continue
        the text; or with `ids` in place of `text`
    model : LanguageModel that predicts the next token
    conditions : each a tuple of edits that act jointly; the empty tuple is the clean run
    outcomes : names of `OUTCOMES`, with `:region` where one is read; `Activation`; or functions of `Predictions`
    freeze : what is held at the clean run, `none`, `final`, `downstream` or `attention`
    idle : a condition that changes activations and no logit is an `error`; a grid of places, some of which cannot reach
        what is scored, takes a `note` in `record["idle"]`, and refuses only where no condition moves anything
    batch_tokens : ids in a forward pass, padding included

    Returns
    -------
    Edited

    Raises
    ------
    DataError, ModelError
        A hook point, region, head, feature or outcome does not exist; the model does not obey `freeze`; or a condition
        changes activations but no logit, which is no result but a fault: a hook point without effect, or tokens that
        come after everything that is scored.

    Notes
    -----
    A row that its edits leave exactly as it was has exactly the outcomes of the clean run. Batches of other sizes give
    other last bits, as everywhere.

    Examples
    --------
    >>> from neurosae.causal.edits import Edit
    >>> from neurosae.dictionary.kinds import neuron_dictionary
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> stimuli = pd.DataFrame({"text": ["A dog"], "target": ["s"], "foil": ["!"]}, index=["one"])
    >>> raw = neuron_dictionary("blocks.0.hook_resid_post", 8)
    >>> up, down = (Edit(raw.hook, "steer", "target", dictionary=raw, features=(j,), dose=1.0) for j in (2, 10))
    >>> found = edited_outcomes(stimuli, load_model(toy), [(up,), (down,), (up, down), ()])
    >>> (found.values["logit_diff"] - found.clean["logit_diff"][:, None]).round(3) + 0.0
    array([[-0.591,  0.693,  0.   ,  0.   ]])
    """
    plan = make_plan(stimuli, model, conditions, outcomes=outcomes, freeze=freeze)
    replayed = check_freezing(plan.model, freeze, plan.prompts.ids[:2])
    shape = (len(plan.prompts.ids), len(conditions))
    clean = {name: np.full(shape[0], np.nan) for name in plan.names}
    values = {name: np.full(shape, np.nan) for name in plan.names}
    moved, size, shared = np.zeros(shape), np.zeros(shape), []
    passes = n_rows = n_halved = 0
    for batch, found, halved in _each_batch(plan, make_batches(plan, batch_tokens)):
        passes, n_rows, n_halved = passes + 1, n_rows + len(batch.stimulus), halved
        row, other = batch.stimulus, batch.condition >= 0
        for name, value in found.values.items():
            fresh = ~other & np.isnan(clean[name][row])
            clean[name][row[fresh]] = value[fresh]
            values[name][row[other], batch.condition[other]] = value[other]
        moved[row[other], batch.condition[other]] = found.moved[other]
        size[row[other], batch.condition[other]] = found.size[other]
        shared.append(found.shared)
    for name, base in clean.items():  # what no edit changed has the outcomes of the clean run, to the last bit
        values[name] = np.where(size == 0, base[:, None], values[name])
    moved[size == 0] = 0
    found_idle = _idle(plan, moved, size)
    if found_idle and (idle == "error" or not (moved > 0).any()):
        raise next(iter(found_idle.values()))
    record = {
        "freeze": freeze, "replay": replayed, "passes": passes, "shared_layers": min(shared, default=0),
        "rows": n_rows, "halved": n_halved, "unscored": dict(unscored(plan.prompts)), "size": size,
        "idle": {c: str(why) for c, why in found_idle.items()},
    }  # fmt: skip
    return Edited(values, clean, moved, record)


def _each_batch(plan: Plan, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Found, int]]:
    """Batches with what they gave, and how often one was halved because memory ran out.

    Once memory has run out, no later batch is larger than half of the one that did not fit; numbers move by rounding.
    """
    todo, most, halved = list(batches)[::-1], max((len(b.stimulus) for b in batches), default=0), 0
    total = sum(int((b.condition >= 0).sum()) for b in batches)
    with tqdm(total=total, unit="row", desc="intervene", disable=None, delay=PATIENCE, mininterval=1) as bar:
        while todo:
            batch = todo.pop()
            if len(batch.stimulus) <= most:
                found = _run_if_it_fits(plan, batch)
                if found is not None:
                    bar.update(int((batch.condition >= 0).sum()))
                    yield batch, found, halved
                    continue
                # the error is gone by now, and with it the tensors that its frames held
                if torch.device(plan.model.device).type == "cuda":
                    torch.cuda.empty_cache()
                most, halved = max(2, len(batch.stimulus) // 2), halved + 1
                if halved == 1:
                    said = f"memory ran out at {len(batch.stimulus)} texts under edits in one pass; batches are halved"
                    tqdm.write(said, file=sys.stderr)
            parts = halves(batch)
            if not parts:
                n = int(plan.last[batch.stimulus].max()) + 1
                raise ModelError(
                    f"one text of {n} tokens with and without an edit does not fit into the memory of "
                    f"{plan.model.device}; use another device, a smaller model, or dtype: bfloat16."
                )
            todo += parts[::-1]


def _run_if_it_fits(plan: Plan, batch: Batch) -> Found | None:
    try:
        return _run(plan, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def _idle(plan: Plan, moved: np.ndarray, size: np.ndarray) -> dict[int, NeurosaeError]:
    """Conditions that change activations and no logit, or only what comes too late: faults, not results."""
    found: dict[int, NeurosaeError] = {}
    felt = FELT * TOLERANCE[plan.model.dtype] / TOLERANCE["float32"]
    for c, edits in enumerate(plan.conditions):
        hooks = " and ".join(dict.fromkeys(p.edit.hook for p in edits))
        is_late = not any(plan.reaches(s, c) for s in range(len(moved)))
        if edits and is_late and any(len(tokens) for p in edits for tokens in p.tokens):
            found[c] = DataError(
                f"condition {c} edits {hooks} only at tokens after everything that is scored, which it cannot change; "
                "name an earlier region, or where='target'."
            )
        if size[:, c].max(initial=0) > felt and moved[:, c].max(initial=0) == 0:
            found[c] = ModelError(
                f"condition {c} changes the activations at {hooks} by up to {size[:, c].max():.2g} of their size, and "
                f"no logit that is scored: {plan.model.name} does not use them there (after the last layer a token "
                "acts on its own prediction alone); edit another hook point, or other tokens."
            )
    return found


# --- one batch ------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What the rows of one batch gave: outcomes, largest change of a logit, of an activation, and layers shared."""

    values: dict[str, np.ndarray]
    moved: np.ndarray
    size: np.ndarray
    shared: int


class _Stop(Exception):
    """Ends a forward pass at the last residual stream."""


def _run(plan: Plan, batch: Batch) -> Found:
    with torch.inference_mode(), precision(plan.model):
        x, features, size, shared = _forward(plan, batch)
        values, moved = _scores(plan, batch, x)
    for i, read in enumerate(plan.reads):
        values[read.ask.name] = _activity(plan, batch, features[read.ask.name], index=i)
    return Found(values, moved, size, shared)


def _forward(plan: Plan, batch: Batch) -> tuple[Tensor, dict[str, Tensor], np.ndarray, int]:
    """One pass: the last residual stream at the scored cells, what features are read from, sizes of the edits."""
    model, jobs, size = plan.model, _jobs(plan, batch), np.zeros(len(batch.stimulus))
    fired: set[str] = set()
    kept: dict[str, Tensor] = {}
    part, shared = parting(plan, [*jobs, *(read.point for read in plan.reads)])
    stimuli = np.unique(batch.stimulus) if shared else batch.stimulus
    cut = [plan.prompts.ids[s][: plan.last[s] + 1] for s in stimuli]
    ids, mask = (torch.as_tensor(a, device=model.device) for a in pad(cut))
    clean = torch.as_tensor(batch.clean, device=model.device)
    first = min((plan.order[point] for point in jobs), default=len(plan.order))
    hooks = replay([point for point in plan.held if plan.order.get(point, -1) > first], clean)
    if shared:
        rows = torch.as_tensor(np.searchsorted(stimuli, batch.stimulus), device=model.device)
        hooks.insert(0, (part, lambda x, hook: x[rows]))
    for point, cells in jobs.items():
        hooks.append((point, _editor(cells, _origin(plan, batch, point), size=size, tell=partial(fired.add, point))))
    for read in plan.reads:
        hooks.append((read.point, _keeper(kept, read.ask.name, _where(batch, read.cells), head=read.head)))
    hooks.append((model.last_hook, _keeper(kept, LAST, _where(batch, plan.cells))))
    settings = causal_mask(model, ids.shape[1]) if shared else {"attention_mask": mask}
    with contextlib.suppress(_Stop), quiet_norms():
        model.bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type=None, **settings)
    if silent := sorted(set(jobs) - fired):
        raise ModelError(f"hook points never fired: {', '.join(silent)}; {model.name} does not compute them.")
    return kept[LAST], kept, size, shared


def _jobs(plan: Plan, batch: Batch) -> dict[str, list[Cells]]:
    """The edits of a batch: hook point -> edits with the cells that they change, all rows of an edit together."""
    found: dict[int, list[tuple[int, int]]] = {}
    every: dict[int, Placed] = {}
    for row, (s, c) in enumerate(zip(batch.stimulus.tolist(), batch.condition.tolist(), strict=True)):
        for placed in plan.conditions[c] if c >= 0 else ():
            every[id(placed)] = placed
            found.setdefault(id(placed), []).append((row, s))
    jobs: dict[str, list[Cells]] = {}
    for key, rows in found.items():
        placed = every[key]
        kept = [placed.tokens[s] <= plan.last[s] for _, s in rows]
        cols = [placed.tokens[s][k] for (_, s), k in zip(rows, kept, strict=True)]
        values = [placed.values[s][k] for (_, s), k in zip(rows, kept, strict=True)]
        where = np.repeat([row for row, _ in rows], [len(c) for c in cols])
        own = placed.keys
        keys = None if own is None else np.concatenate([own[s][k] for (_, s), k in zip(rows, kept, strict=True)])
        cells = Cells(placed.edit, placed.head, where, np.concatenate(cols), np.concatenate(values), keys)
        if len(where):
            jobs.setdefault(placed.point, []).append(cells)
    return jobs


def _origin(plan: Plan, batch: Batch, point: str) -> np.ndarray:
    """For each row one with the same vectors at a hook point: the row without edits, until an edit has touched it."""
    out = batch.clean.copy()
    for row, (s, c) in enumerate(zip(batch.stimulus.tolist(), batch.condition.tolist(), strict=True)):
        if c >= 0 and any(p.order < plan.order[point] and len(p.tokens[s]) for p in plan.conditions[c]):
            out[row] = row
    return out


def _where(batch: Batch, cells: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cells of every row, row by row."""
    mine = [cells[s] for s in batch.stimulus]
    return np.repeat(np.arange(len(mine)), [len(c) for c in mine]), np.concatenate(mine).astype(np.int64)


def _editor(cells: Sequence[Cells], origin: np.ndarray, *, size: np.ndarray, tell: Any) -> Any:
    def hook_function(tensor: Tensor, hook: Any) -> Tensor:
        tell()
        return edited(tensor, cells, origin, size=size)

    return hook_function


def _keeper(kept: dict[str, Tensor], name: str, at: tuple[np.ndarray, np.ndarray], *, head: int | None = None) -> Any:
    def hook_function(tensor: Tensor, hook: Any) -> None:
        rows, cols = (torch.as_tensor(a, device=tensor.device) for a in at)
        kept[name] = flat(tensor, head)[rows, cols].float()
        if name == LAST:
            raise _Stop

    return hook_function


# --- what it is scored by -------------------------------------------------------------------------------------------


def _scores(plan: Plan, batch: Batch, x: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Outcomes of every row, and the largest change of a logit against the row without edits."""
    n = len(batch.stimulus)
    counts = np.array([len(plan.cells[s]) for s in batch.stimulus])
    starts = np.r_[0, np.cumsum(counts)]
    clean = np.concatenate([starts[c] + np.arange(k) for c, k in zip(batch.clean, counts, strict=True)])
    row = np.repeat(np.arange(n), counts)
    asked = {one.name: _scored_cells(plan, batch, starts, index=i) for i, one in enumerate(plan.asked)}
    sums = {name: np.zeros(n) for name in asked}
    moved = np.zeros(n)
    for a, b in _chunks(starts, most=max(1, LOGITS // plan.model.n_vocab)):
        base, back = np.unique(clean[a:b], return_inverse=True)
        source = torch.as_tensor(np.r_[np.arange(len(base)), back], device=x.device)
        with held(plan.model, plan.freeze, source):
            logits = read_head(plan.model.bridge, x[torch.as_tensor(np.r_[base, a:b], device=x.device)])
        before, after = logits[: len(base)][source[len(base) :]], logits[len(base) :]
        np.maximum.at(moved, row[a:b], (after - before).abs().amax(1).double().cpu().numpy())
        for one in plan.asked:
            cell, target, foil = asked[one.name]
            now = slice(*np.searchsorted(cell, [a, b]))
            if now.start == now.stop:
                continue
            at = torch.as_tensor(cell[now] - a, device=x.device)
            ids = [torch.as_tensor(values[now], device=x.device) for values in (target, foil)]
            scored = score(one, Predictions(after[at], before[at], *ids))
            sums[one.name] += np.bincount(row[cell[now]], weights=scored, minlength=n)
    for one in plan.asked:
        found = np.bincount(row[asked[one.name][0]], minlength=n)
        total = sums[one.name] / (np.maximum(found, 1) if one.outcome.join == "mean" else 1)
        sums[one.name] = np.where(found > 0, total, np.nan)
    return sums, moved


def _scored_cells(plan: Plan, batch: Batch, starts: np.ndarray, *, index: int) -> tuple[np.ndarray, ...]:
    """Of one outcome: the cells that it reads, among those of the batch, and the ids that are scored there."""
    one = plan.asked[index]
    cells = [
        start + np.searchsorted(plan.cells[s], one.cells[s])
        for s, start in zip(batch.stimulus, starts[:-1], strict=True)
    ]
    parts = cells, [one.target[s] for s in batch.stimulus], [one.foil[s] for s in batch.stimulus]
    return tuple(np.concatenate(part).astype(np.int64) for part in parts)


def _chunks(starts: np.ndarray, *, most: int) -> list[tuple[int, int]]:
    """Whole rows at a time, as many as `most` cells; a longer row is a chunk of its own."""
    out: list[tuple[int, int]] = []
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if out and b - out[-1][0] <= most:
            out[-1] = (out[-1][0], b)
        elif b > a:
            out.append((a, b))
    return out


def _activity(plan: Plan, batch: Batch, x: Tensor, *, index: int) -> np.ndarray:
    """Mean activation of a feature over its cells, of every row; nan where a stimulus has none."""
    read = plan.reads[index]
    rows = _where(batch, read.cells)[0]
    values = read.ask.dictionary.encode(x)[:, [read.ask.feature]].toarray()[:, 0].astype(float)
    found = np.bincount(rows, minlength=len(batch.stimulus))
    total = np.bincount(rows, weights=values, minlength=len(batch.stimulus))
    return np.where(found > 0, total / np.maximum(found, 1), np.nan)
