"""A toy model, toy texts and a small dictionary; sae-lens imported without its announcements."""

from __future__ import annotations

import pytest
import torch

from neurosae.dictionary.record import Dictionary, import_sae_lens
from neurosae.extraction.model import load_model

TOY = dict(n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=48, d_vocab=257, act_fn="gelu", seed=0)
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def toy():
    """A seeded model with bytes as tokens."""
    return load_model(TOY)


@pytest.fixture(scope="session")
def toy_texts():
    """120 different documents of 30 to 70 bytes."""
    words = "the dog saw a red box near old trees and then ran home again slowly".split()
    return [" ".join(words[(i * k) % len(words)] for k in range(1, 9 + i % 5)) + f" {i}." for i in range(120)]


@pytest.fixture(scope="session")
def lens():
    """The sae-lens package."""
    return import_sae_lens()


@pytest.fixture
def make_dictionary():
    """A function that makes a random dictionary of a kind."""

    def make(kind: str, *, d: int = 16, m: int = 64, k: int = 4, hook: str = HOOK, **changes) -> Dictionary:
        draws = torch.Generator().manual_seed(1)
        encoder, decoder = (torch.randn(m, d, generator=draws) for _ in range(2))
        bias, center = torch.randn(m, generator=draws) * 0.3, torch.randn(d, generator=draws)
        level = torch.rand(m, generator=draws) if kind == "jumprelu" else torch.zeros(m)
        rest = {"k": k if kind == "topk" else None, "metadata": {"hook_name": hook}} | changes
        return Dictionary(hook, kind, encoder, bias, decoder, center, level, **rest)

    return make
