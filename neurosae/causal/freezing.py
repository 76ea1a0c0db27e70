"""Normalisations and attention held at what they were without the edits.

A normalisation divides by the length of the stream, so two edits that do not meet anywhere still change each other's
effect through it. Frozen, every row of a batch gets the scales of the row of the same stimulus without edits, and what
is left of an interaction is not the work of the scale. Claims about interaction report both.

| `freeze` | held at the clean run |
|---|---|
| `none` | nothing |
| `final` | scale of the last normalisation |
| `downstream` | scales of all normalisations after the first edit |
| `attention` | those, and all attention patterns after the first edit |
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neurosae.errors import ModelError
from neurosae.extraction.packing import pad
from neurosae.extraction.passes import LanguageModel, precision
from neurosae.extraction.selftest import TOLERANCE

Hook = tuple[str, Callable[..., Any]]
FINAL = "ln_final.hook_scale"
NO_OP = 1e-5  # largest change of a logit, relative to the largest logit, by replaying what was there anyway


class Frozen(NamedTuple):
    """Whether the last scale is held, and the endings of the other hook points that are."""

    final: bool
    endings: tuple[str, ...]


FREEZE: Mapping[str, Frozen] = {
    "none": Frozen(False, ()),
    "final": Frozen(True, ()),
    "downstream": Frozen(True, (".hook_scale",)),
    "attention": Frozen(True, (".hook_scale", ".hook_pattern")),
}


def frozen_points(model: LanguageModel, freeze: str) -> list[str]:
    """Hook points inside the stack that a way of freezing holds, in no order."""
    endings = FREEZE[freeze].endings
    names = dict.fromkeys(model.hooks.values())
    return [
        name for name in names if name != FINAL and name.startswith("blocks.") and name.endswith(endings or ("\0",))
    ]


def replay(points: Sequence[str], clean: Tensor) -> list[Hook]:
    """Hooks that give every row what the row `clean[row]` has."""
    return [(name, lambda tensor, hook: tensor[clean.to(tensor.device)]) for name in points]


@contextlib.contextmanager
def held(model: LanguageModel, freeze: str, clean: Tensor) -> Iterator[None]:
    """While the head reads vectors, the last scale of vector i is that of vector `clean[i]`."""
    hooks = replay([FINAL], clean) if FREEZE[freeze].final else []
    with model.bridge.hooks(fwd_hooks=hooks), quiet_norms():
        yield


@contextlib.contextmanager
def quiet_norms() -> Iterator[None]:
    """The bridge warns that an edited scale is computed in another way than an unedited one; `check_freezing` looks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
        yield


def check_freezing(model: LanguageModel, freeze: str, ids: Sequence[Any]) -> float:
    """Refuse a way of freezing that this model does not obey; returns how far replaying moves it.

    Replaying what was there anyway must change nothing, and replaying something else must change something: some models
    compute attention without looking at the patterns that they hand out.

    Parameters
    ----------
    ids : token ids of a few stimuli

    Returns
    -------
    float
        Largest change of a logit by replaying, relative to the largest logit.

    Raises
    ------
    ModelError
        The model lacks the hook points, or does not do what they say.
    """
    if freeze == "none":
        return 0.0
    kinds: list[list[str]] = [[FINAL]] + [
        [p for p in frozen_points(model, freeze) if p.endswith(ending)] for ending in FREEZE[freeze].endings
    ]
    if any(not points for points in kinds) or FINAL not in model.hooks:
        raise ModelError(f"{model.name} has no hook points for freeze: {freeze}; use freeze: none.")
    padded, mask = (torch.as_tensor(a, device=model.device) for a in pad(ids))
    real = mask.bool()

    def logits(points: Sequence[str], change: Callable[[Tensor], Tensor]) -> Tensor:
        hooks = [(name, lambda tensor, hook: change(tensor)) for name in points]
        with torch.inference_mode(), precision(model), quiet_norms():
            out = model.bridge.run_with_hooks(padded, fwd_hooks=hooks, return_type="logits", attention_mask=mask)
        return out.float()[real]

    base = logits([], torch.clone)
    size = float(base.abs().max())
    moved = float((logits([p for points in kinds for p in points], torch.clone) - base).abs().max()) / size
    if not moved <= NO_OP * TOLERANCE[model.dtype] / TOLERANCE["float32"]:
        raise ModelError(
            f"freeze: {freeze} moves the logits of {model.name} by {moved:.1e} of the largest one without any edit; "
            "use freeze: none, or dtype: float32."
        )
    for points in kinds:
        if float((logits(points, lambda x: 0.5 * x) - base).abs().max()) == 0:
            raise ModelError(
                f"{points[0].rpartition('.')[2]} of {model.name} fires without effect, so freeze: {freeze} would hold "
                "nothing; use freeze: downstream, or the model in Hugging Face format."
            )
    return moved
