"""Edits as hooks that stay in place while texts are written: which tokens they touch, and whether they fired.

A hook is given the whole text, or with a key-value cache only its newest token. Tokens are therefore named by their
absolute position, counted from the first id that the model ever got, and the running offset says where a call begins.
Texts of several conditions stand in one batch: every edit has rows of its own. An edit that adds the same vector at
every token (`steer`, `add`) needs no features: what it adds is worked out once per batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurosae.causal.deltas import NONLINEAR, Cells, edited, flat
from neurosae.causal.edits import Edit
from neurosae.errors import DataError, ModelError, choose
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.sites import check_hook, split_head

PLACES = ("all", "prompt", "generated")
"""Tokens of a text that is being written: all but the specials in front, those given, those written."""


class _Push(NamedTuple):
    """What is added at every token of a place: (n_rows, width), 0 in rows that are not pushed."""

    head: int | None
    where: str
    added: Tensor


class Steering:
    """Edits of a batch of texts of equal length, and where in them the model is.

    Attributes
    ----------
    edits : those of one row act jointly: at one hook point they see the same activations, and their changes add up
    rows : for every edit the rows of the batch that it edits
    owner : for every row of the batch the number of its prompt, by which doses and places may differ
    first : index of the first token of the prompt, behind the specials;  n_prompt : index of the first written token
    offset : absolute position of the first token that the hooks are given next
    moved : float64 (n_rows,), largest change of a coordinate, relative to the root mean square of its vector
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        owner: Sequence[int] | np.ndarray,
        *,
        first: int,
        n_prompt: int,
        rows: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.edits, self.owner = tuple(edits), np.asarray(owner)
        self.rows = [np.arange(len(self.owner))] * len(self.edits) if rows is None else list(rows)
        self.first, self.n_prompt = first, n_prompt
        self.offset, self.moved = 0, np.zeros(len(self.owner))
        self._fired: set[str] = set()
        for edit in self.edits:
            if isinstance(edit.where, str):
                choose("place in a written text", edit.where, dict.fromkeys(PLACES))

    def span(self, where: str, length: int) -> tuple[int, int]:
        """Which of the tokens offset .. offset + length - 1 a place covers, as a slice of them."""
        end = self.offset + length
        bounds = {"all": (self.first, end), "prompt": (self.first, self.n_prompt), "generated": (self.n_prompt, end)}
        low, high = (min(max(at - self.offset, 0), length) for at in bounds[where])
        return low, max(low, high)

    def hook(self, name: str) -> Any:
        """The function that a hook point calls with its activations (n_rows, length, ...)."""
        own = [k for k, edit in enumerate(self.edits) if split_head(edit.hook)[0] == name]
        free = [k for k in own if not _is_constant(self.edits[k])]
        built: list[list[_Push]] = []

        def hook_function(x: Tensor, hook: Any = None) -> Tensor:
            del hook
            self._fired.add(name)
            if not built:
                built.append(self._pushes([k for k in own if k not in free], x))
            jobs = [job for k in free if len((job := self._job(k, x)).rows)]
            spans = [(push, *self.span(push.where, x.shape[1])) for push in built[0]]
            spans = [(push, low, high) for push, low, high in spans if low < high]
            if not jobs and not spans:
                return x
            x = x.contiguous()
            out = edited(x, jobs, np.arange(len(self.owner)), size=self.moved) if jobs else x.clone()
            for push, low, high in spans:
                flat(out, push.head)[:, low:high] += push.added[:, None]
                self._note_move(flat(x, push.head)[:, low:high], push.added)
            return out

        return hook_function

    def _pushes(self, which: Sequence[int], x: Tensor) -> list[_Push]:
        """The constant edits of a hook point, added up by place and head."""
        found: dict[tuple[int | None, str], Tensor] = {}
        for k in which:
            edit, rows = self.edits[k], self.rows[k]
            head, width = _shape(edit, x)
            values = torch.tensor(_values(edit, self.owner[rows], width=width), device=x.device)
            if edit.dictionary is not None:
                values = values @ edit.dictionary.W_dec[list(edit.features)].detach().float().to(x.device)
            key = head, str(edit.where)
            total = found.setdefault(key, torch.zeros(len(self.owner), width, device=x.device))
            total[torch.as_tensor(rows, device=x.device)] += values
        return [_Push(head, where, added.to(x.dtype)) for (head, where), added in found.items()]

    def _note_move(self, x: Tensor, added: Tensor) -> None:
        rms = x.float().square().mean(-1).sqrt().amin(1).clamp(min=1e-30)
        np.maximum(self.moved, (added.float().abs().amax(1) / rms).double().cpu().numpy(), out=self.moved)

    def _job(self, k: int, x: Tensor) -> Cells:
        edit, own = self.edits[k], self.rows[k]
        head, width = _shape(edit, x)
        if isinstance(edit.where, str):
            low, high = self.span(edit.where, x.shape[1])
            rows, cols = np.repeat(own, high - low), np.tile(np.arange(low, high), len(own))
        else:
            at = np.arange(self.offset, self.offset + x.shape[1])
            inside = np.array([np.isin(at, np.asarray(edit.where[p])) for p in self.owner[own]]).reshape(len(own), -1)
            of, cols = np.nonzero(inside)
            rows = own[of]
        return Cells(edit, head, rows, cols, _values(edit, self.owner[rows], width=width))

    def check_fired(self, model: LanguageModel) -> None:
        """Refuse a hook point that has not fired in the pass that just ended."""
        silent = {split_head(edit.hook)[0] for edit in self.edits} - self._fired
        if silent:
            raise ModelError(f"hook points never fired: {', '.join(sorted(silent))}; {model.name} does not use them.")
        self._fired = set()


def _is_constant(edit: Edit) -> bool:
    """Whether an edit adds the same at every token of its place, whatever is active there."""
    linear = edit.dictionary is None or edit.dictionary.kind not in NONLINEAR
    return isinstance(edit.where, str) and edit.mode in ("steer", "add") and linear


def _shape(edit: Edit, x: Tensor) -> tuple[int | None, int]:
    """Head and width of what an edit changes; refused where the hook point has none such."""
    head = split_head(edit.hook)[1]
    if head is not None and not (x.ndim == 4 and head < x.shape[2]):
        raise ModelError(f"hook point '{edit.hook}': there is no head h{head}; give h0 to h{x.shape[2] - 1}.")
    width = int(np.prod(x.shape[2:] if head is None else x.shape[3:]))
    if edit.dictionary is not None and edit.dictionary.d_in != width:
        raise ModelError(
            f"the dictionary reads vectors of length {edit.dictionary.d_in}, but {edit.hook} has {width}; use one "
            "that was trained at this hook point."
        )
    return head, width


def _values(edit: Edit, owner: np.ndarray, *, width: int) -> np.ndarray:
    """Doses (n, n_features) or vectors (n, width) of cells; `owner` is the number of the prompt of each."""
    of_features = edit.is_of_features
    given, n = (edit.dose, len(edit.features)) if of_features else (edit.vector, width)
    values = np.asarray(given, dtype=np.float32) if not isinstance(given, list | tuple) or np.ndim(given) < 3 else None
    if values is None or (values.ndim > 1 and values.shape[1] != n) or (values.ndim == 1 and len(values) != n):
        what = "dose" if of_features else "vector"
        raise DataError(f"{what} does not fit; while a text is written, give one number, ({n},) or (n_prompts, {n}).")
    return np.broadcast_to(values[owner] if values.ndim == 2 else values, (len(owner), n))


@contextmanager
def steered(model: LanguageModel, hooks: Steering) -> Iterator[None]:
    """Put the hooks of a batch in place; they are taken off whatever happens.

    Raises
    ------
    ModelError
        A hook point is unknown.
    """
    points = list(dict.fromkeys(split_head(edit.hook)[0] for edit in hooks.edits))
    for name in dict.fromkeys(edit.hook for edit in hooks.edits):
        check_hook(name, model.hooks)
    if not points:
        yield
        return
    with model.bridge.hooks(fwd_hooks=[(name, hooks.hook(name)) for name in points]):
        yield
