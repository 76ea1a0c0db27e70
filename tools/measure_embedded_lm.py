"""Measure what a small causal language model does, with statistics over lexical items, for its model card.

    python tools/measure_embedded_lm.py MODEL [--compare MODEL...] [--texts FILE...] [--out card.json card.md]

In four steps:

1. the words of `embedded_lm_items.yaml` are put into frames, each a pair of strings that differ in the right and the
   wrong word: verb number (`The dogs were`), gender of pronouns, a/an, number across an attractor;
2. whole strings are encoded, beginning-of-text first, and LD = log p(right) - log p(wrong) is taken in nats; a word of
   several tokens counts with their sum;
3. LD is averaged over frames inside an item, and the item is the unit: share of items right with the exact
   Clopper-Pearson interval, mean, t, and a sign-flip test of whole items;
4. held-out texts are cut into the same pieces for all models; bits per character compare across tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import stats
from tokenizers import Tokenizer
from tqdm import tqdm
from train_embedded_lm import documents
from transformers import AutoModelForCausalLM

from neurosae.spec.files import write_atomic

ITEMS = Path(__file__).with_name("embedded_lm_items.yaml")
ATTRACTOR = "number across an attractor: was/were"
SIMPLE = ("number: was/were", "number: is/are", "gender: he/she")
GENDER_FRAMES = (
    ("The {noun} was very happy because", (" he", " she")),
    ("The {noun} sat down. Then", (" he", " she")),
    ("The {noun} sat down.", (" He", " She")),
)
ARTICLE_FRAMES = ("This is {article} {word}", "It was {article} {word}")


@dataclass(frozen=True)
class Scorer:
    """A causal language model with its own tokenizer; `bos` begins every string."""

    name: str
    model: torch.nn.Module
    tokenizer: Tokenizer
    bos: int
    n_ctx: int


# ------------------------------------------------------------------ the model


def load_scorer(folder: Path) -> Scorer:
    """Load a folder in Hugging Face format; nothing is downloaded."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise SystemExit(f"{folder}: {' and '.join(missing)} not found; give a model folder in Hugging Face format.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    config, tokenizer = model.config, Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if config.bos_token_id is None:
        raise SystemExit(f"{folder}: config.json names no bos_token_id; strings must begin with one.")
    return Scorer(folder.resolve().name, model, tokenizer, config.bos_token_id, config.max_position_embeddings)


def encode(scorer: Scorer, text: str, start: int = 0) -> tuple[list[int], list[bool]]:
    """Ids with the beginning-of-text token in front, and which of them spell `text[start:]`."""
    code = scorer.tokenizer.encode(text, add_special_tokens=False)
    for (a, b), token in zip(code.offsets, code.tokens, strict=True):
        if a < start < b:
            raise ValueError(f"token {token!r} of {text!r} straddles character {start}, where the scored words begin.")
    return [scorer.bos, *code.ids], [False, *(start == 0 or b > start for _, b in code.offsets)]


def log_probs(scorer: Scorer, strings: Sequence[tuple[str, int]], *, batch_tokens: int = 2048) -> np.ndarray:
    """Log probability of `text[start:]` given what stands before, for each (text, start), in nats.

    Whole strings are encoded and the log probabilities of the tokens from `start` on are added. Strings are batched by
    length and padded on the right, where a causal model does not look.
    """
    coded = [encode(scorer, text, start) for text, start in strings]
    order = sorted(range(len(coded)), key=lambda i: len(coded[i][0]))
    out = np.empty(len(coded))
    with torch.inference_mode(), tqdm(total=len(coded), desc=scorer.name, unit="string", leave=False) as bar:
        while order:
            width = len(coded[order[-1]][0])
            now = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // width)))]
            ids = torch.zeros(len(now), width, dtype=torch.long)
            seen, scored = torch.zeros_like(ids), torch.zeros(len(now), width, dtype=torch.bool)
            for row, i in enumerate(now):
                n = len(coded[i][0])
                ids[row, :n], seen[row, :n], scored[row, :n] = torch.tensor(coded[i][0]), 1, torch.tensor(coded[i][1])
            logits = scorer.model(ids, attention_mask=seen).logits[:, :-1].float()
            nats = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
            out[now] = (nats * scored[:, 1:]).sum(1).numpy()
            bar.update(len(now))
    return out


# ------------------------------------------------------------------ items in frames

COLUMNS = ("contrast", "frame", "item", "cell", "prefix", "right", "wrong")


def number_pairs(nouns: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """`The dog` and `The dogs`, before was/were and is/are."""
    for one, many in ((" was", " were"), (" is", " are")):
        for singular, plural in nouns.items():
            name = f"number:{one}/{many.strip()}"
            yield name, "The -", singular, "sg", f"The {singular}", one, many
            yield name, "The -", singular, "pl", f"The {plural}", many, one


def gender_pairs(nouns: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """The pronoun that fits a gendered noun, in three frames."""
    for frame, (he, she) in GENDER_FRAMES:
        for cell, right, wrong in (("male", he, she), ("female", she, he)):
            for noun in nouns[cell]:
                name = f"{frame.format(noun='-')}{he}/{she.strip()}"
                yield "gender: he/she", name, noun, cell, frame.format(noun=noun), right, wrong


def article_pairs(words: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    """The whole string with a and with an: the article stands before the word that decides."""
    for frame in ARTICLE_FRAMES:
        for right, wrong in (("an", "a"), ("a", "an")):
            for word in words[right]:
                texts = (frame.format(article=article, word=word) for article in (right, wrong))
                yield "article: a/an", frame.format(article="a/an", word="-"), word, right, "", *texts


def attractor_pairs(rows: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """`The dogs near the house` before was/were, subject x attractor; cells are named subject.attractor."""
    for row in rows:
        for number, noun, *verbs in (("sg", row[0], " was", " were"), ("pl", row[1], " were", " was")):
            for attractor, other in (("sg", row[2]), ("pl", row[3])):
                where = (ATTRACTOR, "The - near the -", f"{row[0]} near {row[2]}", f"{number}.{attractor}")
                yield *where, f"The {noun} near the {other}", *verbs


def build_pairs(items: dict) -> pd.DataFrame:
    """One row per pair of strings: contrast, frame, item, cell, what stands before, the right and the wrong end."""
    makers = {"number": number_pairs, "gender": gender_pairs, "article": article_pairs, "attractor": attractor_pairs}
    return pd.DataFrame([row for name, make in makers.items() for row in make(items[name])], columns=COLUMNS)


def differences(scorer: Scorer, pairs: pd.DataFrame) -> np.ndarray:
    """LD = log p(right) - log p(wrong) of every pair, in nats."""
    strings = [(row.prefix + end, len(row.prefix)) for row in pairs.itertuples() for end in (row.right, row.wrong)]
    values = log_probs(scorer, strings)
    return values[0::2] - values[1::2]


# ------------------------------------------------------------------ statistics over items


def sign_flip_p(values: np.ndarray, *, n_flips: int = 10_000, seed: int = 0) -> tuple[float, str]:
    """Two-sided p of the mean under flips of the signs of whole items, and whether all flips were used.

    Examples
    --------
    >>> sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    (0.03125, 'exact')
    """
    n = len(values)
    if n < 60 and 2**n <= n_flips:
        signs, how = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1), "exact"
    else:
        signs, how = np.random.default_rng(seed).choice([-1, 1], size=(n_flips, n)), f"{n_flips} flips"
        signs[0] = 1  # the identity counts, so p is never 0
    means = np.abs(signs @ values)
    return float((means >= means[0] * (1 - 1e-9)).mean()), how


def share(right: np.ndarray) -> dict:
    """Share of items right with the exact (Clopper-Pearson) 95 % interval."""
    k, n = int(np.sum(right)), len(right)
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    return {"n_right": k, "share_right": k / n, "ci_low": float(interval.low), "ci_high": float(interval.high)}


def over_items(values: np.ndarray, right: np.ndarray, *, seed: int = 0) -> dict:
    """Share of items right, and mean, t and flip p of one value per item; H0: the values are symmetric around 0."""
    n, mean, sd = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    t = mean / (sd / math.sqrt(n)) if sd > 0 else math.copysign(math.inf, mean) if mean else 0.0
    p_flip, how = sign_flip_p(values, seed=seed)
    return {"n_items": n, **share(right), "mean": mean, "sd": sd, "t": t, "dof": n - 1,
            "p_t": float(2 * stats.t.sf(abs(t), n - 1)), "p_flip": p_flip, "p_flip_method": how}  # fmt: skip


def summarize(pairs: pd.DataFrame, ld: np.ndarray, *, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Contrasts over items, and their cells; an item is right if LD > 0 in each of its cells, averaged over frames."""
    table, contrasts, cells = pairs.assign(ld=ld), [], []
    for contrast, part in table.groupby("contrast", sort=False):
        frames = [("all", part), *(part.groupby("frame", sort=False) if part["frame"].nunique() > 1 else ())]
        for frame, some in frames:
            by_cell = some.groupby(["item", "cell"], sort=False)["ld"].mean()
            by_item = by_cell.groupby("item", sort=False).agg(["mean", "min"])
            row = over_items(by_item["mean"].to_numpy(), by_item["min"].to_numpy() > 0, seed=seed)
            wrong = by_item.index[by_item["min"] <= 0].tolist()
            contrasts.append({"contrast": contrast, "frame": frame, **row, "wrong": wrong})
        for cell, some in part.groupby("cell", sort=False):
            values = some.groupby("item", sort=False)["ld"].mean().to_numpy()
            row = {"n_items": len(values), "mean": float(values.mean()), **share(values > 0)}
            cells.append({"contrast": contrast, "cell": cell, **row})
    effects = attractor_effects(table[table["contrast"] == ATTRACTOR])
    return contrasts + [
        {"contrast": f"{name} effect on was/were", "frame": "all", **over_items(values, values > 0, seed=seed)}
        for name, values in effects.items()
    ], cells


def attractor_effects(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Per item: subject, attractor and interaction effect (sg minus pl) on log p(was) - log p(were)."""
    signed = table.assign(ld=np.where(table["cell"].str.startswith("sg"), table["ld"], -table["ld"]))
    wide = signed.pivot_table(index="item", columns="cell", values="ld", sort=False)
    ss, sp, ps, pp = (wide[cell].to_numpy() for cell in ("sg.sg", "sg.pl", "pl.sg", "pl.pl"))
    return {"subject": (ss + sp - ps - pp) / 2, "attractor": (ss + ps - sp - pp) / 2, "interaction": ss - sp - ps + pp}


# ------------------------------------------------------------------ held-out text


def pieces(text: str, limit: int = 600) -> list[str]:
    """Cut a text at ends of sentences into pieces of at most `limit` characters; longer sentences anywhere.

    Examples
    --------
    >>> pieces("One came. Two went home. Three stayed.", 24)
    ['One came. Two went home.', 'Three stayed.']
    """
    done, now = [], ""
    for sentence in re.findall(rf".{{1,{limit}}}?(?:[.!?][\"']*\s+|\n|$)|.{{1,{limit}}}", text, flags=re.DOTALL):
        if now and len((now + sentence).strip()) > limit:
            done.append(now.strip())
            now = ""
        now += sentence
    return [piece for piece in (*done, now.strip()) if piece]


def sample_pieces(path: Path, *, characters: int, scorers: Sequence[Scorer]) -> list[str]:
    """Pieces spread evenly over a file, about `characters` in all; each fits every model."""
    every = [piece for text in documents(path) for piece in pieces(text)]
    step = max(1, sum(map(len, every)) // characters)
    chosen = every[::step]
    for scorer in scorers:
        longest = max(len(encode(scorer, piece)[0]) for piece in chosen)
        if longest > scorer.n_ctx:
            raise SystemExit(f"{path.name}: a piece has {longest} tokens; {scorer.name} reads at most {scorer.n_ctx}.")
    return chosen


def fit_to_text(scorer: Scorer, chosen: Sequence[str]) -> dict:
    """Nats per token and bits per character, with the standard error over pieces."""
    nats = -log_probs(scorer, [(piece, 0) for piece in chosen], batch_tokens=4096)
    tokens = sum(len(encode(scorer, piece)[0]) - 1 for piece in chosen)
    bits, n_chars = nats / math.log(2), np.array([len(piece) for piece in chosen])
    mean, error = ratio(bits, n_chars)
    return {"n_pieces": len(chosen), "n_characters": int(n_chars.sum()), "n_tokens": tokens, "bits": bits,
            "nats_per_token": float(nats.sum() / tokens), "perplexity": math.exp(nats.sum() / tokens),
            "bits_per_character": mean, "se": error}  # fmt: skip


def ratio(amounts: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Sum of amounts over sum of sizes, and its standard error over pieces (linearized).

    Examples
    --------
    >>> ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0]))
    (2.0, 0.0)
    """
    n, r = len(amounts), float(amounts.sum() / sizes.sum())
    return r, float(math.sqrt(n / max(1, n - 1) * np.sum((amounts - r * sizes) ** 2)) / sizes.sum())


def measure_texts(scorers: Sequence[Scorer], paths: Sequence[Path], *, characters: int) -> list[dict]:
    """One row per file and model; `difference` is in bits per character from the first model on the same pieces."""
    rows = []
    for path in paths:
        chosen = sample_pieces(path, characters=characters, scorers=scorers)
        n_chars = np.array([len(piece) for piece in chosen])
        done = [fit_to_text(scorer, chosen) for scorer in scorers]
        for scorer, row in zip(scorers, done, strict=True):
            mean, error = ratio(row["bits"] - done[0]["bits"], n_chars)
            numbers = {key: value for key, value in row.items() if key != "bits"}
            rows.append({"source": path.name.split(".txt")[0], "model": scorer.name, **numbers,
                         "difference": mean, "difference_se": error})  # fmt: skip
    return rows


# ------------------------------------------------------------------ the card


def measure(scorers: Sequence[Scorer], items: dict, texts: Sequence[Path], *, characters: int, seed: int) -> dict:
    """Everything the card states: contrasts, cells and texts, each a list of rows with a column `model`."""
    pairs, card = build_pairs(items), {"seed": seed, "contrasts": [], "cells": [], "texts": []}
    for scorer in scorers:
        contrasts, cells = summarize(pairs, differences(scorer, pairs), seed=seed)
        card["contrasts"] += [{"model": scorer.name, **row} for row in contrasts]
        card["cells"] += [{"model": scorer.name, **row} for row in cells]
    card["texts"] = measure_texts(scorers, texts, characters=characters)
    return card


def shown(row: dict) -> dict[str, str]:
    """A row of the card as words: shares in percent with their interval, means with their t."""
    out = {key: str(row[key]) for key in ("source", "model", "contrast", "frame", "cell", "n_items") if key in row}
    if "n_right" in row:
        interval = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
        out |= {"right": f"{100 * row['share_right']:.1f} % {interval}", "mean": f"{row['mean']:+.2f}"}
    if "t" in row:
        out |= {"t": f"{row['t']:.1f}", "p (flips)": f"{row['p_flip']:.4f}"}
    if "nats_per_token" in row:
        out |= {"tokens": f"{row['n_tokens']:,}", "nats/token": f"{row['nats_per_token']:.3f}"}
        out["perplexity"] = f"{row['perplexity']:.1f}"
        out["bits/character"] = f"{row['bits_per_character']:.3f} ± {row['se']:.3f}"
        out["difference"] = f"{row['difference']:+.3f} ± {row['difference_se']:.3f}"
    return out


def markdown(rows: Sequence[dict]) -> str:
    """Rows with the same keys as a table in Markdown.

    Examples
    --------
    >>> print(markdown([{"cell": "sg", "n_items": 48}]))
    | cell | n_items |
    |---|---|
    | sg | 48 |
    """
    lines = [shown(row) for row in rows]
    head = ["| " + " | ".join(lines[0]) + " |", "|" + "---|" * len(lines[0])]
    return "\n".join(head + ["| " + " | ".join(line.values()) + " |" for line in lines])


def as_text(card: dict) -> str:
    """The card as Markdown: contrasts, cells, texts, and whether the simple frames are mastered."""
    intro = (
        "Mean: log p(right) - log p(wrong) in nats, averaged over an item's cells and frames; an item is right if all "
        "its cells are. Effects: on log p(was) - log p(were); right: the share above 0. Intervals: exact, 95 %."
    )
    parts = [intro, markdown(card["contrasts"]), markdown(card["cells"])]
    if card["texts"]:
        parts.append("Difference: bits per character from the first model, same pieces; ±: standard error over pieces.")
        parts.append(markdown(card["texts"]))
    for row in card["contrasts"]:
        if row["contrast"] in SIMPLE and row["frame"] == "all":
            verdict = "at least" if row["share_right"] >= 0.9 else "below"
            count = f"{row['n_right']} of {row['n_items']} items right"
            parts.append(f"{row['model']}, {row['contrast']}: {count}, {verdict} 90 %.")
    return "\n\n".join(parts) + "\n"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="model folder in Hugging Face format")
    p.add_argument("--compare", nargs="*", type=Path, default=[], help="further model folders, measured alike")
    p.add_argument("--texts", nargs="*", type=Path, default=[], help="held-out text, .txt or .txt.gz")
    p.add_argument("--characters", type=int, default=40_000, help="characters read of each text, spread evenly over it")
    p.add_argument("--items", type=Path, default=ITEMS, help="words of the frames")
    p.add_argument("--out", nargs="*", type=Path, default=[], help="where the card goes: .json or .md")
    p.add_argument("--seed", type=int, default=0, help="seed of the sign flips")
    return p.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    a = parse(argv)
    if wrong := [str(path) for path in a.out if path.suffix not in (".json", ".md")]:
        raise SystemExit(f"--out {' '.join(wrong)}: a card is written as .json or .md.")
    items = yaml.safe_load(a.items.read_text(encoding="utf-8"))
    scorers = [load_scorer(folder) for folder in (a.model, *a.compare)]
    card = measure(scorers, items, a.texts, characters=a.characters, seed=a.seed)
    for path in a.out:
        write_atomic(path, json.dumps(card, indent=1) + "\n" if path.suffix == ".json" else as_text(card))
    print(as_text(card))


if __name__ == "__main__":
    main()
