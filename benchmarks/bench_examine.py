"""Examination of 24,576 features on running text in one pass: memory that does not grow, at little more than encoding.

Equality first: counts, sums and maxima of the streamed summary equal those of all codes kept in memory; quantiles lie
within a bin. The text is 128 k tokens by default and 1 M with `--full`: what is asserted of memory is the peak of the
process (under 2 GB, torch and all) and its growth between the first and the last half of the text, which is what a
longer text would add. The model is a toy of width 64 with bytes as tokens, so that nearly all time is the dictionary's.
Run alone: `python benchmarks/bench_examine.py [--full]`.
"""

from __future__ import annotations

import resource
import sys

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import numpy as np
import scipy.sparse as sp
import torch

from neurosae.dictionary.kinds import Dictionary
from neurosae.examine.activity import Activity, activity_table
from neurosae.examine.stream import stream_text
from neurosae.extraction.model import load_model

D, M, K = 64, 24_576, 32
HOOK = "blocks.0.hook_resid_post"
TOY = dict(n_layers=1, d_model=D, n_heads=1, d_head=8, d_mlp=8, n_ctx=256, d_vocab=257, act_fn="gelu", seed=0)
LIMIT, GROWTH = 2048, 64  # MB


def made_dictionary() -> Dictionary:
    """Random unit directions, k = 32 of 24,576."""
    torch.manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(M, D), dim=1)
    return Dictionary(HOOK, "topk", weights, 0.05 * torch.randn(M), weights, torch.zeros(D), torch.zeros(M), k=K)


def made_texts(n_tokens: int, *, seed: int = 0):
    """Documents of 200 random letters, written as they are read."""
    draws = np.random.default_rng(seed)
    for _ in range(n_tokens // 200 + 1):
        yield bytes(draws.integers(97, 123, 200, dtype=np.uint8)).decode()


def peak() -> float:
    """Largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check_equal(model, dictionary: Dictionary) -> None:
    """The streamed summary against one of all codes."""
    seen, parts = Activity(M), []

    def take(site: str, codes: sp.csr_matrix, tokens) -> None:
        seen.add(codes)
        parts.append(codes.copy())

    stream_text(model, {"site": dictionary}, made_texts(8000), take=take, n_tokens=8000)
    X = sp.csc_matrix(sp.vstack(parts))
    table = activity_table("site", seen)
    assert seen.n_tokens == X.shape[0] == 8000
    assert np.array_equal(seen.n_active, np.diff(X.indptr))
    assert np.allclose(seen.total, np.asarray(X.sum(axis=0)).ravel(), rtol=1e-5)
    alive = np.flatnonzero(seen.n_active > 20)
    for j in alive[:200]:
        own = X.data[X.indptr[j] : X.indptr[j + 1]]
        assert table["max"][j] == own.max()
        assert abs(table["q50"][j] / np.quantile(own, 0.5) - 1) < 0.0625


def main() -> int:
    """Compare, then measure memory and time."""
    header("torch")
    torch.set_num_threads(1)
    n_tokens = 1_000_000 if "--full" in sys.argv else 128_000
    model, dictionary, floors = load_model(TOY, device="cpu"), made_dictionary(), Floors()
    check_equal(model, dictionary)
    started = peak()
    seen = Activity(M)
    halves = []
    for part in range(2):
        stream_text(
            model, {"site": dictionary}, made_texts(n_tokens // 2, seed=part), n_tokens=n_tokens // 2,
            take=lambda site, codes, tokens: seen.add(codes),
        )  # fmt: skip
        halves.append(peak())
    activity_table("site", seen)
    end = peak()
    what = f"{seen.n_tokens // 1000} k tokens x {M:,} features"
    print(f"  {what}: {seen.n_active.sum():,} active cells; memory at its peak: {started:.0f} MB before the text")
    floors.add("stream", f"peak memory, MB, {what}", end, floor=LIMIT, most=True)
    floors.add("stream", "its growth in the last half of the text, MB", halves[1] - halves[0], floor=GROWTH, most=True)

    def stream(take) -> None:
        stream_text(model, {"site": dictionary}, made_texts(16_000), take=take, n_tokens=16_000)

    again = Activity(M)
    floors.ratio(
        "stream", "stream without a summary / with it", floor=0.5, peer=lambda: cpu(lambda: stream(lambda *_: None), 2),
        ours=lambda: cpu(lambda: stream(lambda site, codes, tokens: again.add(codes)), 2),
    )  # fmt: skip
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
