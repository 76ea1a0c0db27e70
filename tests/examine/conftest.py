"""A toy model, texts and dictionaries whose codes are known."""

from __future__ import annotations

import pytest
import torch

from neurosae.dictionary.record import Dictionary
from neurosae.extraction.model import load_model

TOY = dict(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=48, d_vocab=257, act_fn="gelu", seed=0)


@pytest.fixture(scope="session")
def toy():
    """A seeded model with bytes as tokens."""
    return load_model(TOY)


@pytest.fixture(scope="session")
def words():
    """40 documents of 8 to 90 bytes, some longer than a context."""
    parts = "the dog saw a red box near old trees and then ran home again slowly".split()
    return [" ".join(parts[(i * k) % len(parts)] for k in range(1, 3 + i % 18)) + f" {i}." for i in range(40)]


@pytest.fixture
def made_dictionary():
    """A function that makes a random top-k dictionary at a layer."""

    def make(layer: int = 1, *, m: int = 64, k: int = 4, seed: int = 1, **changes) -> Dictionary:
        draws = torch.Generator().manual_seed(seed)
        encoder, decoder = (torch.randn(m, 16, generator=draws) for _ in range(2))
        bias, center = torch.randn(m, generator=draws) * 0.3, torch.randn(16, generator=draws)
        hook = f"blocks.{layer}.hook_resid_post"
        rest = {"k": k, "metadata": {"hook_name": hook}} | changes
        return Dictionary(hook, "topk", encoder, bias, decoder, center, torch.zeros(m), **rest)

    return make
