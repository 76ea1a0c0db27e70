"""What a child process of `test_kill` does: load a toy and train, on its own samples or on texts."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from neurosae.dictionary.record import import_sae_lens
from neurosae.dictionary.train import train_dictionaries
from neurosae.extraction.model import load_model
from tests.dictionary.conftest import HOOK, TOY

import_sae_lens()  # once, in the server that the children are forked from
load_model(TOY)


def train(folder: str, texts: list[str] | None) -> None:
    """Two dictionaries at once, from a file of activations where texts are given, else from samples."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = load_model(TOY)
    shared = {"hook": HOOK, "d_sae": 64, "n_tokens": 6000, "batch": 50, "cache": "float32" if texts else ""}
    asked = {
        "a": {**shared, "out": Path(folder) / "a", "k": 4, "resample_every": 30},
        "b": {**shared, "out": Path(folder) / "b", "k": 3, "architecture": "batchtopk", "seed": 1},
    }
    train_dictionaries(model, texts, asked, checkpoint_every=7)
