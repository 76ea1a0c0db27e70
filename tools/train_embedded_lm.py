"""Train a small causal language model from text files: the recipe of the model that neurosae ships.

    python tools/train_embedded_lm.py TEXT... --valid TEXT... --out DIR

Text in (plain or gzip; a line that begins with `<|doc|>` starts a document, otherwise blank lines do), a folder in
Hugging Face format out: GPT-2 architecture, byte-level BPE, fp16 safetensors. In four steps:

1. a byte-level BPE vocabulary is learnt on the training files;
2. every context starts with `<|endoftext|>` at the start of a sentence, because that is where stimuli start;
3. Muon (blocks) and AdamW (the rest) with a linear warm-up and a cosine decay, bf16 autocast; batch i is a pure
   function of (seed, i);
4. a checkpoint every few hundred steps, so that a killed run continues with the same batches.

`--init MODEL` starts from the weights of a finished model, and `--balance he she` draws contexts with more of the
second word so much more often that both words are equally frequent: old books write *he* twice as often as *she*, and a
small model then says *he* after any noun that it hardly knows.

The last line printed is the validation loss per source, also written to `training.json`.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

BOS = "<|endoftext|>"


def documents(path: Path):
    """Yield the documents of one file as single strings, their paragraphs joined by line breaks."""
    opener = gzip.open if path.suffix == ".gz" else open
    lines: list[str] = []
    with opener(path, "rt", encoding="utf-8") as handle:
        for line in handle:
            line = line.rstrip("\n")
            if line.startswith("<|doc|>") or not line.strip():
                if lines:
                    yield "\n".join(lines)
                lines = []
            else:
                lines.append(line)
    if lines:
        yield "\n".join(lines)


def learn_vocabulary(paths: list[Path], size: int) -> Tokenizer:
    """Byte-level BPE as in GPT-2: a leading blank belongs to the word, every string can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BOS], initial_alphabet=alphabet, min_frequency=2)
    tokenizer.train_from_iterator((text for path in paths for text in documents(path)), trainer)
    return tokenizer


def encode_files(tokenizer: Tokenizer, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """All documents as one stream of ids, each ended by BOS, and the positions where a context may start."""
    stream, starts, offset = [], [], 0
    bare = {w: i for w, i in tokenizer.get_vocab().items() if not w.startswith("Ġ")}
    table = np.full(tokenizer.get_vocab_size(), -1, dtype=np.int64)
    for word, index in tokenizer.get_vocab().items():
        table[index] = bare.get(word.removeprefix("Ġ"), -1)
    sentence = re.compile(r"(?:^|\n|[.!?][\"']? )(?=[\"']?[A-Z])")
    for path in paths:
        for text in documents(path):
            code = tokenizer.encode(text, add_special_tokens=False)
            ids = np.array([*code.ids, 0], dtype=np.int64)
            first_char = np.array([a + (text[a : a + 1] == " ") for a, _ in code.offsets])
            wanted = np.array([m.end() for m in sentence.finditer(text)], dtype=np.int64)
            here = np.flatnonzero(np.isin(first_char, wanted))
            starts.append(offset + here[table[ids[here]] >= 0])
            stream.append(ids)
            offset += len(ids)
    return np.concatenate(stream), np.concatenate(starts)


def blank_free(tokenizer: Tokenizer) -> torch.Tensor:
    """Id of each token without its leading blank, for the first word of a context."""
    vocabulary = tokenizer.get_vocab()
    table = torch.arange(tokenizer.get_vocab_size())
    for word, index in vocabulary.items():
        if word.startswith("Ġ") and word[1:] in vocabulary:
            table[index] = vocabulary[word[1:]]
    return table


def batch_at(step: int, stream: torch.Tensor, starts: np.ndarray, *, size: int, context: int, seed: int):
    """Batch number `step`: (size, context - 1) ids, a pure function of (seed, step).

    A pass cuts the stream into windows at a random phase and visits them in random order; each window is moved to
    the next start of a sentence, so that a pass sees nearly every token once.
    """
    n_windows = len(stream) // (context - 1) - 1
    rows = []
    for row in range(step * size, (step + 1) * size):
        number, j = divmod(row, n_windows)
        rng = np.random.default_rng([seed, number])
        phase, order = rng.integers(context - 1), rng.permutation(n_windows)
        place = min(int(np.searchsorted(starts, phase + order[j] * (context - 1))), len(starts) - 1)
        rows.append(min(int(starts[place]), len(stream) - context))
    return stream[torch.tensor(rows)[:, None] + torch.arange(context - 1)]


def balanced(stream: torch.Tensor, starts: np.ndarray, tokenizer: Tokenizer, *, words: list[str], context: int):
    """Cumulative probability of each start, such that both words are expected equally often; and the factor used."""
    forms = [{v for w in (word, word.title()) for v in (w, f"Ġ{w}")} for word in words]
    ids = [[i for w, i in tokenizer.get_vocab().items() if w in known] for known in forms]
    excess = np.isin(stream.numpy(), ids[1]).astype(np.int64) - np.isin(stream.numpy(), ids[0])
    total = np.concatenate([[0], np.cumsum(excess)])
    inside = total[np.minimum(starts + context - 1, len(stream))] - total[starts]
    factor = -inside[inside < 0].sum() / inside[inside > 0].sum()
    weights = np.where(inside > 0, factor, 1.0)
    return np.cumsum(weights) / weights.sum(), float(factor)


def drawn_batch(
    step: int, stream: torch.Tensor, starts: np.ndarray, *, share: np.ndarray, size: int, context: int, seed: int
):
    """Batch number `step` drawn with the cumulative probabilities `share`, a pure function of (seed, step)."""
    places = np.searchsorted(share, np.random.default_rng([seed, step]).random(size))
    rows = np.minimum(starts[places], len(stream) - context)
    return stream[torch.from_numpy(rows)[:, None] + torch.arange(context - 1)]


def with_bos(ids: torch.Tensor, bare: torch.Tensor) -> torch.Tensor:
    """BOS in front, and the first word without its leading blank."""
    ids = ids.clone()
    ids[:, 0] = bare[ids[:, 0]]
    return torch.cat([torch.zeros(len(ids), 1, dtype=torch.long), ids], dim=1)


def learning_rate(step: int, *, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@torch.no_grad()
def validation_loss(model, tokenizer: Tokenizer, path: Path, *, context: int, limit: int, device: str) -> dict:
    """Mean loss in nats per token and bits per character over the first `limit` tokens of one file."""
    model.eval()
    nats, tokens, characters = 0.0, 0, 0
    for text in documents(path):
        for paragraph in re.findall(r".+(?:\n.+){0,3}", text):
            ids = [0, *tokenizer.encode(paragraph, add_special_tokens=False).ids][:context]
            x = torch.tensor([ids], device=device)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                logits = model(x).logits[0, :-1].float()
            nats += float(torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="sum"))
            tokens += len(ids) - 1
            characters += len(tokenizer.decode(ids[1:]))
            if tokens >= limit:
                break
        if tokens >= limit:
            break
    model.train()
    return {"nats_per_token": nats / tokens, "bits_per_character": nats / math.log(2) / characters, "tokens": tokens}


def save(out: Path, model, tokenizer: Tokenizer, *, record: dict) -> None:
    """Write the Hugging Face folder: fp16 weights, configuration, tokenizer, training record."""
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = 0
    copy.deepcopy(model).half().save_pretrained(out)
    # the model has only seen contexts that begin with BOS, so its tokenizer puts one there
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": BOS, "unk_token": BOS, "add_bos_token": True}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.n_positions, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("texts", nargs="+", type=Path, help="training text, .txt or .txt.gz")
    p.add_argument("--valid", nargs="*", type=Path, default=[], help="held-out text, one loss per file")
    p.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    p.add_argument("--vocabulary", type=int, default=8192)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--width", type=int, default=192)
    p.add_argument("--heads", type=int, default=6)
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--passes", type=float, default=1.5, help="passes over the training tokens")
    p.add_argument("--batch", type=int, default=16, help="contexts per step")
    p.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    p.add_argument("--dropout", type=float, default=0.0)
    p.add_argument("--init", type=Path, help="finished model to start from; its tokenizer is used")
    p.add_argument("--balance", nargs=2, metavar="WORD", help="draw contexts so that both words are equally frequent")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    p.add_argument("--valid-tokens", type=int, default=60_000, help="held-out tokens per file")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--compile", action="store_true", help="compile the model (worth it on an accelerator)")
    p.add_argument("--quiet", action="store_true", help="no progress bar; a line per checkpoint")
    return p.parse_args()


def build(a: argparse.Namespace, n_vocabulary: int) -> GPT2LMHeadModel:
    """A fresh GPT-2 of the asked size, seeded."""
    torch.manual_seed(a.seed)
    drop = {"resid_pdrop": a.dropout, "embd_pdrop": a.dropout, "attn_pdrop": a.dropout}
    config = GPT2Config(
        vocab_size=n_vocabulary, n_positions=a.context, n_embd=a.width, n_layer=a.layers, n_head=a.heads,
        bos_token_id=0, eos_token_id=0, **drop,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(a.device)


def next_token_loss(model, x: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats; one function, so that a compiler fuses the large softmax."""
    logits = model(x).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def optimizers_of(model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, gains and biases."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    outer = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".h." in n)]
    muon = torch.optim.Muon(inner, lr=rate, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def main() -> None:
    a = parse()
    a.out.mkdir(parents=True, exist_ok=True)
    checkpoint = a.out / "checkpoint.pt"
    vocabulary = a.out / "tokenizer.json"
    if a.init and not vocabulary.exists():
        vocabulary.write_bytes((a.init / "tokenizer.json").read_bytes())
    if not vocabulary.exists():
        learn_vocabulary(a.texts, a.vocabulary).save(str(vocabulary))
    tokenizer = Tokenizer.from_file(str(vocabulary))
    ids, starts = encode_files(tokenizer, a.texts)
    stream, bare = torch.from_numpy(ids), blank_free(tokenizer)
    steps = round(a.passes * len(stream) / (a.batch * a.context))
    print(f"{len(stream):,} tokens, {len(starts):,} context starts, {steps:,} steps on {a.device}", flush=True)
    model, first, history = build(a, tokenizer.get_vocab_size()), 0, []
    if a.init:
        model.load_state_dict(GPT2LMHeadModel.from_pretrained(a.init, dtype=torch.float32).state_dict())
    optimizers = optimizers_of(model, a.rate)
    ask = {"size": a.batch, "context": a.context, "seed": a.seed}
    if a.balance:
        share, factor = balanced(stream, starts, tokenizer, words=a.balance, context=a.context)
        print(
            f"contexts with more {a.balance[1]} than {a.balance[0]} are drawn {factor:.2f} times as often", flush=True
        )
        draw = partial(drawn_batch, share=share, **ask)
    else:
        draw = partial(batch_at, **ask)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=a.device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, history = state["step"], state["history"]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {first}", flush=True)
    loss_of = torch.compile(partial(next_token_loss, model)) if a.compile else partial(next_token_loss, model)
    model.train()
    clock, seen = time.monotonic(), 0
    bar = tqdm(range(first, steps), initial=first, total=steps, unit="step", disable=a.quiet)
    for step in bar:
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = learning_rate(step, steps=steps, peak=a.rate, warmup=min(300, steps // 10 + 1))
        x = with_bos(draw(step, stream, starts), bare).to(a.device)
        with torch.autocast(a.device, dtype=torch.bfloat16):
            loss = loss_of(x)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seen += x.numel()
        if (step + 1) % a.every == 0 or step + 1 == steps:
            valid = {
                p.name.split(".txt")[0]: validation_loss(
                    model, tokenizer, p, context=a.context, limit=a.valid_tokens // 6, device=a.device
                )["nats_per_token"]
                for p in a.valid
            }
            rate = seen / (time.monotonic() - clock)
            history.append({"step": step + 1, "train": float(loss.detach()), "tokens_per_second": rate, **valid})
            tqdm.write(json.dumps({k: round(v, 4) for k, v in history[-1].items()}))
            unfinished = checkpoint.with_suffix(".tmp")
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step + 1,
                "history": history,
            }
            torch.save(state, unfinished)
            unfinished.replace(checkpoint)
    final = {
        p.name.split(".txt")[0]: validation_loss(
            model, tokenizer, p, context=a.context, limit=a.valid_tokens, device=a.device
        )
        for p in a.valid
    }
    recipe = {
        k: [getattr(q, "name", q) for q in v] if isinstance(v, list) else getattr(v, "name", v)
        for k, v in vars(a).items()
        if k not in ("out", "quiet")
    }
    record = {"recipe": recipe, "n_tokens": len(stream), "steps": steps, "valid": final, "curve": history}
    save(a.out, model, tokenizer, record=record)
    print(json.dumps(final))


if __name__ == "__main__":
    main()
