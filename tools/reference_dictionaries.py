"""Train the reference dictionaries of a small model, two seeds each, and print what they lose: a table for any machine.

    python tools/reference_dictionaries.py MODEL --text FILE ... --valid FILE ... [--control]

Rows: k active of d_sae features at one residual stream, 1,500 steps of 512 tokens. With --control the last row is the
same recipe on the model with fresh weights, whose scores say nothing about structure that was learned.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

import neurosae as ns

SIZES = ((4, 128), (4, 256), (8, 256), (16, 512))
STEPS, BATCH = 1_500, 512


def row_of(model: object, texts: list[str], valid: list[str], *, hook: str, size: tuple[int, int]) -> dict[str, object]:
    """Scores of one dictionary, and its overlap with that of another seed."""
    k, d_sae = size
    settings = {"d_sae": d_sae, "k": k, "n_tokens": STEPS * BATCH, "batch": BATCH, "cache": "float32"}
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1):
            out = Path(folder) / str(seed)
            made.append(ns.train_dictionary(model, texts, hook=hook, out=out, settings=settings | {"seed": seed}))
    scores = ns.evaluate_dictionary(made[0], model, valid, n_tokens=10**6).iloc[0]
    lost = ns.pathology(made[0], model, valid, n_tokens=10**6).iloc[0]
    shared = ns.decoder_overlap(*made).iloc[0]
    names = {
        "fvu": "FVU",
        "ce_base": "CE base",
        "ce_sae": "CE",
        "ce_recovered_zero": "zero",
        "ce_recovered_mean": "mean",
    }
    return {
        "k / d_sae": f"{k} / {d_sae}",
        "dead": made[0].card["dead"],
        **{title: scores[name] for name, title in names.items()},
        "KL": lost["kl_sae"],
        "ratio": lost["pathology"],
        ".7": shared["overlap_70"],
        ".9": shared["overlap_90"],
    }


def main() -> None:
    """Read, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint folder, or embedded")
    parser.add_argument("--text", nargs="+", required=True, help="training text")
    parser.add_argument("--valid", nargs="+", required=True, help="held-out text")
    parser.add_argument("--hook", default="blocks.2.hook_resid_post")
    parser.add_argument("--control", action="store_true", help="a last row on fresh weights")
    asked = parser.parse_args()
    model = ns.load_model(asked.model)
    backend = model.tokens.backend  # the first 256 tokens of each held-out text, BOS among them
    valid = [
        backend.decode(backend.encode(text, add_special_tokens=False).ids[:255]) for text in ns.read_texts(asked.valid)
    ]
    texts = list(ns.read_texts(asked.text))
    rows = [row_of(model, texts, valid, hook=asked.hook, size=size) for size in SIZES]
    if asked.control:
        fresh = ns.random_control(model, seed=0)
        last = row_of(fresh, texts, valid, hook=asked.hook, size=SIZES[-1])
        rows.append(last | {"k / d_sae": f"{last['k / d_sae']}, fresh weights"})
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
