"""Models and stimuli that the tests of attribution share, made once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurosae.causal.scored import Scored
from neurosae.design.expand import expand
from neurosae.dictionary.kinds import neuron_dictionary
from neurosae.dictionary.record import read_folder
from neurosae.extraction.model import load_model
from neurosae.spec.design import load_design

ROOT = Path(__file__).resolve().parents[2]
TOY = dict(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=32, d_vocab=50, act_fn="gelu", seed=3)


@cache
def toy() -> Any:
    """A seeded toy without a tokenizer: token ids are its stimuli."""
    return load_model(TOY, device="cpu")


def toy_scored(model: Any = None, n: int = 5, seed: int = 0) -> Scored:
    """Random sequences of different lengths; the last token predicts, the region `end` is the last two tokens."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 50, length) for length in rng.integers(4, 9, n)]
    at = np.array([len(row) - 1 for row in ids])
    answers = np.stack([rng.permutation(50)[:2] for _ in range(n)])
    cells = {"end": [np.array([t - 1, t]) for t in at], "target": [np.array([t]) for t in at]}
    return Scored(model or toy(), None, ids, at, answers, cells, {name: ["x"] * n for name in cells})


def toy_dictionary(hook: str, d: int = 16) -> Any:
    """The coordinates of a hook point as features: exact, both signs."""
    return neuron_dictionary(hook, d)


@cache
def embedded() -> Any:
    """The model inside the package."""
    return load_model("embedded", device="cpu")


@cache
def dictionary(name: str) -> Any:
    """A dictionary of the model inside the package."""
    return read_folder(ROOT / "neurosae" / "embedded" / name)


@cache
def agreement() -> Any:
    """The design of number agreement."""
    return load_design(ROOT / "stimuli" / "number_agreement.yaml")


def agreement_stimuli(n_items: int = 8, split: str = "test") -> pd.DataFrame:
    """Stimuli of the first items of a split."""
    table = expand(agreement())
    kept = table[table["split"] == split]
    kept = kept[kept["item"].isin(list(dict.fromkeys(kept["item"]))[:n_items])].copy()
    kept.attrs["design"] = agreement().to_json()
    return kept
