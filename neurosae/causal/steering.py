"""Edits as hooks that stay in place while a text is written: which tokens they touch, and whether they fired.

A hook is given the whole text, or with a key-value cache only its newest token. Tokens are therefore named by their
absolute position, counted from the first id that the model ever got, and the running offset says where a call begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from neurosae.causal.deltas import Cells, edited
from neurosae.causal.edits import Edit
from neurosae.errors import DataError, ModelError, choose
from neurosae.extraction.passes import LanguageModel
from neurosae.extraction.sites import check_hook, split_head

PLACES = ("all", "prompt", "generated")
"""Tokens of a text that is being written: all but the specials in front, those given, those written."""


class Steering:
    """Edits of a batch of texts of equal length, and where in them the model is.

    Attributes
    ----------
    edits : they act jointly: edits of one hook point see the same activations, and their changes add up
    owner : for every row of the batch the number of its prompt, by which doses and places may differ
    first : index of the first token of the prompt, behind the specials;  n_prompt : index of the first written token
    offset : absolute position of the first token that the hooks are given next
    ids : the texts so far (n_rows, length)
    moved : largest change that an edit made to one coordinate, relative to the root mean square of its vector
    """

    def __init__(self, edits: Sequence[Edit], owner: Sequence[int] | np.ndarray, *, first: int, n_prompt: int) -> None:
        self.edits, self.owner = tuple(edits), np.asarray(owner)
        self.first, self.n_prompt = first, n_prompt
        self.offset, self.moved = 0, 0.0
        self.ids = torch.empty(0, 0, dtype=torch.long)
        self._fired: set[str] = set()
        for edit in self.edits:
            if isinstance(edit.where, str):
                choose("place in a written text", edit.where, dict.fromkeys(PLACES))

    def cells(self, edit: Edit, length: int) -> np.ndarray:
        """Which of the tokens offset .. offset + length - 1 an edit touches, bool (n_rows, length)."""
        at = np.arange(self.offset, self.offset + length)
        if not isinstance(edit.where, str):
            return np.stack([np.isin(at, np.asarray(edit.where[p])) for p in self.owner])
        bounds = {"all": (self.first, None), "prompt": (self.first, self.n_prompt), "generated": (self.n_prompt, None)}
        low, high = bounds[edit.where]
        inside = (at >= low) & (at < (at[-1] + 1 if high is None else high))
        return np.broadcast_to(inside, (len(self.owner), length))

    def hook(self, name: str) -> Any:
        """The function that a hook point calls with its activations (n_rows, length, ...)."""
        own = [edit for edit in self.edits if split_head(edit.hook)[0] == name]

        def hook_function(x: torch.Tensor, hook: Any = None) -> torch.Tensor:
            del hook
            self._fired.add(name)
            jobs = [job for edit in own if len((job := self._job(edit, x)).rows)]
            if not jobs:
                return x
            size = np.zeros(len(self.owner))
            out = edited(x, jobs, np.arange(len(self.owner)), size=size)
            self.moved = max(self.moved, float(size.max()))
            return out

        return hook_function

    def _job(self, edit: Edit, x: torch.Tensor) -> Cells:
        head = split_head(edit.hook)[1]
        if head is not None and not (x.ndim == 4 and head < x.shape[2]):
            raise ModelError(f"hook point '{edit.hook}': there is no head h{head}; give h0 to h{x.shape[2] - 1}.")
        rows, cols = np.nonzero(self.cells(edit, x.shape[1]))
        width = int(np.prod(x.shape[2:] if head is None else x.shape[3:]))
        if edit.dictionary is not None and edit.dictionary.d_in != width:
            raise ModelError(
                f"the dictionary reads vectors of length {edit.dictionary.d_in}, but {edit.hook} has {width}; use one "
                "that was trained at this hook point."
            )
        return Cells(edit, head, rows, cols, _values(edit, self.owner[rows], width=width))

    def check_fired(self, model: LanguageModel) -> None:
        """Refuse a hook point that has not fired in the pass that just ended."""
        silent = {split_head(edit.hook)[0] for edit in self.edits} - self._fired
        if silent:
            raise ModelError(f"hook points never fired: {', '.join(sorted(silent))}; {model.name} does not use them.")
        self._fired = set()


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
    for edit in hooks.edits:
        check_hook(edit.hook, model.hooks)
    if not points:
        yield
        return
    with model.bridge.hooks(fwd_hooks=[(name, hooks.hook(name)) for name in points]):
        yield
