"""Models, dictionaries and stimuli for the tests of extraction, all made in process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from neurosae.extraction.model import load_model
from neurosae.extraction.tokens import byte_tokenizer, make_tokenizer, tokenizer_in_memory
from neurosae.spec.design import Design, load_design

TOY = dict(n_layers=4, d_model=64, n_heads=4, d_head=16, d_mlp=128, n_ctx=96, d_vocab=300, act_fn="gelu", seed=0)
WORDS = "the key keys to cabinet cabinets is are was café naïve 😀 dog dogs near house houses old"
DESIGN = """
schema: neurosae/design/1
name: toy
factors: {number: [sg, pl], near: [sg, pl]}
frames:
  a: "The {head:number} near the {local:near} {verb:number}"
  b: "One {head:number} by an old {local:near} {verb:number} here"
regions: {pre_verb: {before: verb}, whole: {words: [0, -1]}}
target: {slot: verb, foil: other_level, single_token: false}
items:
  i0: {head: {sg: key, pl: keys}, local: {sg: house, pl: houses}, verb: {sg: is, pl: are}}
  i1: {head: {sg: dog, pl: dogs}, local: {sg: cabinet, pl: cabinets}, verb: {sg: is, pl: are}}
  i2: {head: {sg: café, pl: cafés}, local: {sg: 😀, pl: 😀😀}, verb: {sg: is, pl: are}}
"""


@dataclass(frozen=True)
class TinyDictionary:
    """The smallest object that extraction may be given as a dictionary."""

    hook: str
    d: int
    n_features: int = 96
    seed: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def W_dec(self) -> torch.Tensor:
        return torch.randn(self.n_features, self.d, generator=torch.Generator().manual_seed(self.seed)) / self.d**0.5

    b_dec = property(lambda self: torch.zeros(self.d))
    hash = property(lambda self: f"tiny-{self.hook}-{self.d}-{self.n_features}-{self.seed}")
    decoder_norm = property(lambda self: self.W_dec.norm(dim=1))
    threshold = property(lambda self: torch.full((self.n_features,), 0.1))
    origin = property(lambda self: torch.zeros(self.n_features))
    density = None

    def encode(self, x: torch.Tensor) -> sp.csr_matrix:
        z = x @ self.W_dec.T
        return sp.csr_matrix(torch.where(z > 0.1, z, 0).numpy())

    def decode(self, f: sp.csr_matrix) -> torch.Tensor:
        return torch.as_tensor(f @ self.W_dec.numpy())


def expanded(design: Design) -> pd.DataFrame:
    """A stimulus table as `expand` makes it, for slots with one factor at most."""
    rows = []
    for (item, slots), frame, levels in product(
        design.items.items(), design.frames, product(*(f.levels for f in design.factors.values()))
    ):
        cell = dict(zip(design.factors, levels, strict=True))
        text, spans = "", {}
        for part in design.frames[frame].replace("}", "{").split("{"):
            name, _, factor = part.partition(":")
            if name in slots:
                form = slots[name] if isinstance(slots[name], str) else slots[name][cell[factor]]
                spans |= {f"{name}_start": len(text), f"{name}_end": len(text) + len(form)}
                part = form
            text += part
        verb = spans["verb_start"]
        start = text[: verb - 1].rfind(" ") + 1
        spans |= {"pre_verb_start": start, "pre_verb_end": verb - 1, "whole_start": 0, "whole_end": len(text)}
        words = {
            "target": slots["verb"][cell["number"]],
            "foil": slots["verb"]["pl" if cell["number"] == "sg" else "sg"],
        }
        row = {"item": item, "frame": frame, **cell, "text": text, "split": "test", **spans}
        rows.append(row | {k: " " + w for k, w in words.items()} | {"stimulus": f"{item}/{frame}/{'/'.join(levels)}"})
    table = pd.DataFrame(rows).set_index("stimulus")
    for name, factor in design.factors.items():
        table[name] = pd.Categorical(table[name], categories=list(factor.levels), ordered=True)
    for name in ("frame", "split"):
        table[name] = table[name].astype("category")
    spans = [c for c in table if c.endswith(("_start", "_end"))]
    table = table.astype(dict.fromkeys(spans, "Int64"))
    table.attrs["design"] = design.to_json()
    return table


@pytest.fixture(scope="session")
def toy_design(tmp_path_factory) -> Design:
    path = tmp_path_factory.mktemp("design") / "toy.yaml"
    path.write_text(DESIGN, encoding="utf-8")
    return load_design(path)


@pytest.fixture
def toy_stimuli(toy_design) -> pd.DataFrame:
    return expanded(toy_design)


@pytest.fixture
def toy_settings():
    """Settings of the toy, a new dict each time."""
    return dict(TOY)


@pytest.fixture(scope="session")
def toy_model():
    return load_model(TOY, device="cpu")


@pytest.fixture
def tiny():
    """A dictionary for the toy, by layer."""
    return lambda layer=1, **kw: TinyDictionary(f"blocks.{layer}.hook_resid_post", 64, **kw)


def byte_level() -> Tokenizer:
    """A byte-level BPE trained on a handful of words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS] * 20, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """A Llama-style BPE: a leading blank sign, byte fallback, BOS by habit."""
    blank = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = blank
    trainer = trainers.BpeTrainer(vocab_size=70, special_tokens=["<unk>", "<s>", "</s>"])
    trained.train_from_iterator([w for w in WORDS.split() if w.isascii()] * 20, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{b:02X}>": len(model["vocab"]) + b for b in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = blank
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def wordpiece() -> Tokenizer:
    """A WordPiece as encoders have it, with their specials."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained.train_from_iterator([WORDS] * 20, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    letters = sorted(set(WORDS + "ét") - {" "})
    names = dict.fromkeys([*vocab, *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(models.WordPiece(vocab={name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


def characters() -> Tokenizer:
    """One token per character."""
    letters = sorted({*WORDS, "t"})
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(["?", *letters])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_of():
    """A function from a kind of tokenizer to one of ours."""
    from transformers import ByT5Tokenizer  # has no fast version

    kinds = {
        "bytes": lambda: byte_tokenizer(),
        "bytes without bos": lambda: byte_tokenizer(bos=False),
        "byte-level": lambda: make_tokenizer(byte_level()),
        "byte-level with bos": lambda: make_tokenizer(byte_level(), bos_token="<|endoftext|>", bos=True),
        "wordpiece": lambda: make_tokenizer(wordpiece()),
        "characters": lambda: make_tokenizer(characters()),
        "slow bytes": lambda: tokenizer_in_memory(ByT5Tokenizer()),
        "sentencepiece": lambda: make_tokenizer(sentencepiece()),
        "sentencepiece without bos": lambda: make_tokenizer(sentencepiece(), bos=False),
    }
    return lambda kind: kinds[kind]()


def save_checkpoint(folder: Path, family: str) -> Path:
    """A random model of a family with its tokenizer, in Hugging Face format."""
    import transformers

    tokenizer = sentencepiece() if family == "llama" else byte_level()
    if family == "bert":
        tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
        ids = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    n = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    common = dict(vocab_size=n, bos_token_id=1 if family == "llama" else 0, eos_token_id=0, pad_token_id=0)
    wide = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    model = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=64, **common)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**wide, num_key_value_heads=2, max_position_embeddings=64, **common)
        ),
        "neox": lambda: transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(**wide, max_position_embeddings=64, **common)
        ),
        "mistral": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(
                **wide, num_key_value_heads=2, max_position_embeddings=64, sliding_window=8, **common
            )
        ),
        "bert": lambda: transformers.BertForMaskedLM(
            transformers.BertConfig(**wide, max_position_embeddings=64, **common)
        ),
    }[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "llama": {"bos_token": "<s>"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | special.get(family, {"cls_token": "[CLS]"})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function from a family (gpt2, llama, neox, mistral, bert) to the folder of a tiny random checkpoint."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make
