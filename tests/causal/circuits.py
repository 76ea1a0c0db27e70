"""Planted circuits: tiny GPT-2 models whose weights are set by hand, so that every effect is known.

Texts are `word colour animal then`, and the last token predicts `yes` or `no`. Two words carry the concepts: `red` is
concept A, `dog` is concept B; `w0`, `w1` … are items that add noise of their own. Attention in layer 0 sees all tokens
alike and copies a concept to every later token with the share 1 / (number of tokens), so at `then` each concept has
strength 1. Everything lies in planes of vectors with mean 0, and a constant vector sets the scale of the norms.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

from neurosae.dictionary.kinds import Dictionary
from neurosae.extraction.model import load_model
from neurosae.extraction.passes import LanguageModel
from neurosae.spec.design import Design, load_design

D, N_NOISE, N_LENGTH = 48, 16, 5  # width, noise directions, ids of a text with BOS
A, B = 0, 1  # features of the concepts
HOOK = "blocks.0.hook_resid_post"
GAIN = 4.0  # logits per unit of the target direction, before the norm


class Circuit(NamedTuple):
    """A planted circuit.

    Attributes
    ----------
    pair : the model of transformers and its tokenizer, as `load_model` takes them
    model : the same, loaded
    dictionary : of `HOOK`; features 0 and 1 are the concepts A and B, then noise directions, then random directions
    stimuli : 2 x 2 texts of every item, with `target`, `foil`, factors `a` and `b`, and their design
    design : the design behind the stimuli
    """

    pair: tuple[Any, Any]
    model: LanguageModel
    dictionary: Dictionary
    stimuli: pd.DataFrame
    design: Design


def directions() -> torch.Tensor:
    """Orthonormal rows of mean 0: A, B, target, constant, then noise."""
    raw = torch.randn(D - 1, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    raw = torch.cat([torch.ones(1, D, dtype=torch.float64), raw])
    return torch.linalg.qr(raw.T)[0].T[1:].float()


def tokenizer_of(words: list[str]) -> tokenizers.Tokenizer:
    """One token per word, BOS in front of every text."""
    vocab = {word: i for i, word in enumerate(["<bos>", "<unk>", *words])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return made


def build(words: list[str], *, constant: float, linear: float, conjunction: float, noise: float) -> Any:
    """A GPT-2 of two layers: attention of layer 0 gathers, MLP of layer 1 is the AND neuron, the rest is off."""
    config = transformers.GPT2Config(
        vocab_size=len(words) + 2, n_positions=16, n_embd=D, n_layer=2, n_head=4, n_inner=8, tie_word_embeddings=False,
        activation_function="relu", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    made, draw, e = transformers.GPT2LMHeadModel(config).eval(), torch.Generator().manual_seed(3), directions()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.copy_(torch.ones_like(weight) if ".ln_" in name and name.endswith("weight") else 0 * weight)
        stack, at = made.transformer, {word: i + 2 for i, word in enumerate(words)}
        stack.wte.weight += constant * e[3]
        stack.wte.weight[at["red"]] += e[A]
        stack.wte.weight[at["dog"]] += e[B]
        for word in [w for w in words if w[0] == "w" and w[1:].isdigit()]:
            stack.wte.weight[at[word]] += noise * e[4 : 4 + N_NOISE].T @ torch.randn(N_NOISE, generator=draw)
        # the norm before attention divides by nearly the same number at every token; what it took is given back
        scale = (constant**2 + 0.5) ** 0.5 / D**0.5
        gather = e[[A, B]].T @ e[[A, B]] + e[4 : 4 + N_NOISE].T @ e[4 : 4 + N_NOISE]
        stack.h[0].attn.c_attn.weight[:, 2 * D :] = gather
        stack.h[0].attn.c_proj.weight.copy_(N_LENGTH * scale * torch.eye(D))
        if conjunction:  # relu(A + B - 1.5): on where both are there
            before = (constant**2 + 2) ** 0.5 / D**0.5
            stack.h[1].mlp.c_fc.weight[:, 0] = before * (e[A] + e[B])
            stack.h[1].mlp.c_fc.bias[0] = -1.5
            stack.h[1].mlp.c_proj.weight[0] = conjunction * e[2]
        scale = constant / D**0.5
        head = 0.02 * torch.randn(len(words) + 2, D, generator=draw)  # every direction moves some logit
        toward = GAIN * scale * (e[2] + linear * (e[A] + e[B]) + 0.2 * e[4])
        head[at["yes"]], head[at["no"]] = toward / 2, -toward / 2
        made.lm_head.weight.copy_(head)
    return made


def planted(*, n_items: int, n_controls: int, **settings: float) -> Circuit:
    """The circuit with its stimuli and a dictionary of its directions."""
    words = ["red", "blue", "dog", "cat", "then", "yes", "no", *(f"w{i}" for i in range(n_items))]
    pair = build(words, **settings), tokenizer_of(words)
    stimuli, design = texts(n_items)
    return Circuit(pair, load_model(pair, device="cpu"), concepts(n_controls), stimuli, design)


def and_circuit(*, n_items: int = 32, n_controls: int = 120, noise: float = 0.3) -> Circuit:
    """A neuron of layer 1 fires where A and B are both there, and writes the target: a true conjunction."""
    return planted(n_items=n_items, n_controls=n_controls, constant=30.0, linear=0.0, conjunction=2.0, noise=noise)


def linear_circuit(layernorm: bool = True, *, n_items: int = 32, n_controls: int = 120, noise: float = 0.3) -> Circuit:
    """A and B are read linearly: no interaction but that of the final norm, whose scale `layernorm` lets vary."""
    constant = 1.5 if layernorm else 300.0
    return planted(n_items=n_items, n_controls=n_controls, constant=constant, linear=1.0, conjunction=0.0, noise=noise)


def concepts(n_controls: int, seed: int = 0) -> Dictionary:
    """Features A, B, noise directions and random directions of mean 0, each active above .05 (above .3 if random)."""
    e, draw = directions(), torch.Generator().manual_seed(seed)
    span = torch.cat([e[:3], e[4:]])
    random = torch.nn.functional.normalize(torch.randn(n_controls, len(span), generator=draw) @ span, dim=1)
    rows = torch.cat([e[[A, B]], e[4 : 4 + N_NOISE], random])
    threshold = torch.cat([torch.full((2 + N_NOISE,), 0.05), torch.full((n_controls,), 0.3)])
    return Dictionary(
        HOOK, "jumprelu", rows, torch.zeros(len(rows)), rows, torch.zeros(D), threshold,
        metadata={"hook_name": HOOK}, hash=f"concepts-{n_controls}-{seed}",
    )  # fmt: skip


DESIGN = """schema: neurosae/design/1
name: circuit
factors: {a: [absent, present], b: [absent, present]}
frames: {plain: "{word} {first:a} {second:b} then {answer:a}"}
regions: {last: {before: answer}}
target: {slot: answer, foil: other_level}
items:
"""


def texts(n_items: int) -> tuple[pd.DataFrame, Design]:
    """2 x 2 texts per item; the target is `yes` in every text, so that outcomes compare between cells."""
    import tempfile
    from pathlib import Path

    slots = (
        "first: {absent: blue, present: red}, second: {absent: cat, present: dog}, answer: {absent: no, present: yes}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "circuit.yaml"
        path.write_text(
            DESIGN + "".join(f"  i{i}: {{word: w{i}, {slots}}}\n" for i in range(n_items)), encoding="utf-8"
        )
        design = load_design(path)
    rows = []
    for i, a, b in product(range(n_items), ("absent", "present"), ("absent", "present")):
        parts = [f"w{i}", "red" if a == "present" else "blue", "dog" if b == "present" else "cat", "then", "yes"]
        ends = np.cumsum([len(part) + 1 for part in parts]) - 1
        spans = {f"{name}_start": end - len(part) for name, part, end in
                 zip(("word", "first", "second", "last", "answer"), parts, ends, strict=True)}  # fmt: skip
        spans |= {name.replace("_start", "_end"): start + len(part) for (name, start), part in
                  zip(list(spans.items()), parts, strict=True)}  # fmt: skip
        row = {"stimulus": f"i{i}/plain/{a}/{b}", "item": f"i{i}", "frame": "plain", "a": a, "b": b, "split": "test"}
        rows.append(row | {"text": " ".join(parts), "target": " yes", "foil": " no"} | spans)
    table = pd.DataFrame(rows).set_index("stimulus")
    for name in ("a", "b"):
        table[name] = pd.Categorical(table[name], categories=["absent", "present"], ordered=True)
    table = table.astype({"frame": "category", "split": "category"})
    table = table.astype(dict.fromkeys([c for c in table if c.endswith(("_start", "_end"))], "Int64"))
    table.attrs["design"] = design.to_json()
    return table, design
