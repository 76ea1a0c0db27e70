"""A planted difference between two levels: one direction of the stream says which, and the model reads it linearly.

Texts are `role then pronoun`. Roles m0, m1 … carry +L, f0, f1 … carry -L, each beside noise of its own; attention
copies what it sees to every later token; `he` is favoured by +L and `she` by -L. Feature 0 is +L, feature 1 is -L, the
others are directions without any effect on either pronoun.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

from neurosae.design.expand import expand
from neurosae.dictionary.kinds import Dictionary
from neurosae.extraction.model import load_model
from neurosae.spec.design import Design

D, N, N_FEATURES, N_NOISE = 48, 24, 160, 10
HOOK = "blocks.0.hook_resid_post"
GAIN = 3.0
EFFECT = {"group": {"m": 1, "f": -1}}


class World(NamedTuple):
    """Model, dictionary, stimuli of 24 items (12 of them localizer), and running text."""

    model: Any
    dictionary: Dictionary
    stimuli: pd.DataFrame
    texts: list[str]


@cache
def world() -> World:
    """Made once."""
    words = [f"{level}{i}" for i in range(N) for level in "mf"] + ["then", "he", "she", "and", "so", "now"]
    model = load_model((_network(words), _tokenizer(words)))
    items = {f"i{i}": {"role": {"m": f"m{i}", "f": f"f{i}"}, "pronoun": {"m": "he", "f": "she"}} for i in range(N)}
    long = "so {role:group} now then {pronoun:group}"
    design = Design.model_validate(
        {
            "schema": "neurosae/design/1", "name": "levels", "factors": {"group": ["f", "m"]},
            "frames": {"short": "{role:group} then {pronoun:group}", "long": long},
            "target": {"slot": "pronoun", "foil": "other_level"}, "partition": {"localizer": 12, "seed": 1},
            "items": items,
        }
    )  # fmt: skip
    draws = np.random.default_rng(0)
    texts = [" ".join(draws.choice(words, 12)) for _ in range(150)]
    return World(model, _dictionary(), expand(design), texts)


def directions() -> torch.Tensor:
    """Orthonormal rows of mean 0: L, constant, then noise."""
    raw = torch.randn(D - 1, D, generator=torch.Generator().manual_seed(7))
    return torch.linalg.qr(torch.cat([torch.ones(1, D), raw]).T)[0].T[1:]


def _dictionary() -> Dictionary:
    e, draws = directions(), torch.Generator().manual_seed(2)
    mixed = torch.randn(N_FEATURES - 2, N_NOISE, generator=draws) @ e[2 : 2 + N_NOISE]
    W = torch.cat([e[:1], -e[:1], mixed / mixed.norm(dim=1, keepdim=True)])
    zeros = torch.zeros(N_FEATURES)
    return Dictionary(HOOK, "standard", W, zeros, W, torch.zeros(D), zeros, metadata={"hook_name": HOOK})


def _tokenizer(words: list[str]) -> tokenizers.Tokenizer:
    vocab = {word: i for i, word in enumerate(["<bos>", "<unk>", *words])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return made


def _network(words: list[str]) -> Any:
    config = transformers.GPT2Config(
        vocab_size=len(words) + 2, n_positions=32, n_embd=D, n_layer=2, n_head=1, n_inner=4, tie_word_embeddings=False,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    made, e, draw = transformers.GPT2LMHeadModel(config).eval(), directions(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(torch.ones_like(weight) if ".ln_" in name and name.endswith("weight") else 0 * weight)
        stack, at = made.transformer, {word: i + 2 for i, word in enumerate(words)}
        stack.wte.weight += 6 * e[1]
        for i, level in ((i, level) for i in range(N) for level in "mf"):
            size = 0.6 + 0.4 * float(torch.rand(1, generator=draw))
            noise = 0.6 * torch.randn(N_NOISE, generator=draw) @ e[2 : 2 + N_NOISE]
            stack.wte.weight[at[f"{level}{i}"]] += (size if level == "m" else -size) * e[0] + noise
        stack.h[1].attn.c_attn.weight[:, 2 * D :] = torch.eye(D)
        stack.h[1].attn.c_proj.weight.copy_(torch.eye(D))
        made.lm_head.weight[at["he"]] = GAIN * e[0]
        made.lm_head.weight[at["she"]] = -GAIN * e[0]
    return made
