"""An unfinished training run on disk: tensors and record of all its sites in one file, read back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from neurosae.dictionary.learn import Learner
from neurosae.errors import StoreError
from neurosae.spec.files import write_atomic


class Running(NamedTuple):
    """A learner with the centring of its site, the rows of its log, and how far the mean lies from the origin."""

    learner: Learner
    hook: str
    mean: Tensor
    scale: float
    log: list[dict[str, Any]]
    gamma: float


class Checkpoint(NamedTuple):
    """Where a run is kept while it is unfinished; `keys` tells what each site is trained on and how.

    `every` is the number of steps between two, None for a time.
    """

    path: Path
    keys: dict[str, str]
    every: int | None


def write_checkpoint(checkpoint: Checkpoint, runs: Mapping[str, Running], step: int) -> None:
    """Keep everything that the next step depends on, in one file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, run in runs.items():
        numbers = {n: torch.tensor(getattr(run, n), dtype=torch.float64) for n in ("scale", "gamma")}
        state = run.learner.state() | {"mean": run.mean, **numbers}
        tensors |= {f"{checkpoint.keys[name]}/{n}": value.contiguous() for n, value in state.items()}
    logs = {checkpoint.keys[name]: run.log for name, run in runs.items()}
    record = json.dumps({"step": step, "logs": logs})
    write_atomic(checkpoint.path, safetensors.torch.save(tensors, metadata={"record": record}))


def read_checkpoint(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a checkpoint; empty when there is none, an error when it belongs to another run."""
    path = checkpoint.path
    if not path.exists():
        return {}, {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # the Rust side raises its own class
        raise StoreError(f"checkpoint {path} is broken; delete it to start again.") from error
    if not set(checkpoint.keys.values()) <= set(record["logs"]):
        raise StoreError(
            f"{path} is the checkpoint of another training (texts, model or settings differ); "
            "delete it, or choose another folder."
        )
    return tensors, record


def tensors_of(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The tensors of one site, by their own names."""
    return {n.removeprefix(f"{key}/"): value for n, value in tensors.items() if n.startswith(f"{key}/")}
