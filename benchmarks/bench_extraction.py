"""G14 and G15: extraction of a factorial design, in time and in memory, against `run_with_cache`.

The model is a random one of the size of GPT-2 small (random weights cost what trained ones cost). The design is 2 x 2
within items: a carrier that all share, a word of factor A, three words, a word of factor B, four words, a verb. The
newcomer's loop runs `run_with_cache` on one prompt after the other and picks its cells; it is timed on every eighth
prompt and scaled. Ours are the forward passes of `extract` over all prompts, at the same cells: length buckets, a trie,
and a trie in bfloat16. Vectors are asserted to be equal first.
Run alone: `python benchmarks/bench_extraction.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Floors, cpu, header  # isort: skip  (sets one thread)

import numpy as np
import pandas as pd
import torch

from neurosae.dictionary.record import neuron_dictionary
from neurosae.extraction import run, shard
from neurosae.extraction.model import hooked_pass, load_model
from neurosae.extraction.run import extract

HOOK, EVERY = "blocks.6.hook_resid_post", 8
REGIONS = {"a": (8, 9), "b": (12, 13), "verb": (17, 18)}


def gpt2(n_layers: int = 12, width: int = 768) -> Any:
    """A random model of the family, in memory."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=n_layers, n_embd=width, n_head=width // 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model((transformers.GPT2LMHeadModel(config).eval(), None), device="cpu")


def factorial(n_items: int = 50, seed: int = 0) -> pd.DataFrame:
    """Prompts of 19 token ids: four cells per item."""
    rng = np.random.default_rng(seed)
    carrier = rng.integers(0, 50_000, 8).tolist()
    rows = []
    for item in range(n_items):
        words = {name: rng.integers(0, 50_000, n).tolist() for name, n in (("a", 2), ("b", 2), ("verb", 2))}
        middle, after = rng.integers(0, 50_000, 3).tolist(), rng.integers(0, 50_000, 4).tolist()
        for a in (0, 1):
            for b in (0, 1):
                ids = [*carrier, words["a"][a], *middle, words["b"][b], *after, words["verb"][a], 13]
                rows.append({"ids": ids, "item": f"i{item}", "frame": "f", "split": "test"})
    table = pd.DataFrame(rows, index=[f"s{i}" for i in range(len(rows))])
    for name, (start, end) in REGIONS.items():
        table[f"{name}_start"], table[f"{name}_end"] = start, end
    return table


def work_of(model: Any, stimuli: pd.DataFrame, packing: str, *, scores: bool = False) -> shard.Work:
    """What `extract` hands to its shards."""
    kept: dict[str, Any] = {}

    def keep(work: shard.Work, *_: Any) -> Any:
        kept["work"] = work
        raise StopIteration

    original, run._gathered = run._gathered, keep
    positions = {"regions": list(REGIONS), "scores": scores}
    with contextlib.suppress(StopIteration):
        extract(
            stimuli, replace(model, packing=packing), {"s": neuron_dictionary(HOOK, model.d_model)}, positions=positions
        )
    run._gathered = original
    return kept["work"]


def forward(work: shard.Work) -> np.ndarray:
    """Vectors of all cells, through the forward passes of a shard, in the order of the cells."""
    rows = work.cells.rows.drop_duplicates(["row", "token_index"]).reset_index(drop=True)
    done, _ = shard._forward(work, np.arange(len(work.ids)), rows)
    x = np.concatenate([batch.x[HOOK] for batch in done])
    return x[shard._node_of_rows(rows, rows, done)]


def one_by_one(model: Any, stimuli: pd.DataFrame) -> np.ndarray:
    """The newcomer's loop: every prompt alone, the whole cache, then the cells."""
    cells = [start for start, _ in REGIONS.values()]
    with torch.inference_mode():
        caches = [model.bridge.run_with_cache(torch.tensor([ids]))[1][HOOK][0, cells] for ids in stimuli["ids"]]
    return torch.cat(caches).numpy()


def time_of_prompts(floors: Floors, model: Any) -> None:
    """G14."""
    stimuli = factorial()
    some = stimuli.iloc[::EVERY]
    works = {packing: work_of(model, stimuli, packing) for packing in ("buckets", "trie")}
    half = replace(works["trie"], model=replace(model, dtype="bfloat16"))
    truth = one_by_one(model, some).reshape(len(some), -1)
    found = {name: forward(work) for name, work in {**works, "bf16": half}.items()}
    size = float(np.abs(truth).max())
    for name, x in found.items():
        error = np.abs(x.reshape(len(stimuli), -1)[::EVERY] - truth).max() / size
        bound = 2e-6 if name != "bf16" else 0.1
        floors.add("G14", f"{name} against one by one, relative error", error, floor=bound, most=True)
    tokens, cut = sum(map(len, stimuli["ids"])), sum(map(len, works["trie"].ids))
    print(f"  {len(stimuli)} prompts, {tokens} tokens, {cut} after the cut; one by one on every {EVERY}th, scaled")
    peer = lambda: cpu(lambda: one_by_one(model, some), 3) * EVERY  # noqa: E731
    for name, work, floor in (
        ("buckets", works["buckets"], 3.2),
        ("trie", works["trie"], 5.6),
        ("trie, bf16", half, None),
    ):
        floors.ratio(
            "G14",
            f"run_with_cache one by one: {name}, stop",
            peer=peer,
            ours=lambda work=work: cpu(lambda: forward(work), 3),
            floor=floor,
        )
    scored = work_of(model, stimuli, "trie", scores=True)
    floors.ratio(
        "G14",
        "run_with_cache one by one: trie, all layers, with surprisal",
        peer=peer,
        ours=lambda: cpu(lambda: forward(scored), 2),
        floor=None,
    )
    site = {"s": neuron_dictionary(HOOK, model.d_model)}
    positions = {"regions": list(REGIONS), "scores": False}
    floors.ratio(
        "G14",
        "run_with_cache one by one: extract as a whole, self-tests and tables included",
        peer=peer,
        ours=lambda: cpu(lambda: extract(stimuli, model, site, positions=positions), 1),
        floor=None,
    )


def peak(run_it: Callable[[], Any]) -> float:
    """Bytes over what the process holds already, at the highest point of a call."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run_it()
    return status("VmHWM") - before


def status(name: str) -> float:
    """An entry of /proc/self/status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def memory(floors: Floors, model: Any) -> None:
    """G15: all layers x three sites, of which three positions are wanted."""
    ids = np.random.default_rng(0).integers(0, 50_000, (32, 64))
    names = ("hook_resid_post", "hook_attn_out", "hook_mlp_out")
    hooks = [f"blocks.{layer}.{name}" for layer in range(model.n_layers) for name in names]
    rows, cols = np.repeat(np.arange(32), 3), np.tile([20, 40, 63], 32)
    place = dict(rows=rows, cols=cols)

    def ours() -> Any:
        return hooked_pass(model, ids, ids * 0 + 1, hooks=hooks, **place)

    def theirs() -> Any:
        with torch.inference_mode():
            return model.bridge.run_with_cache(torch.tensor(ids))[1]

    high = peak(lambda: ours()), peak(lambda: theirs())
    cache, got = theirs(), ours()
    for hook in hooks:
        assert torch.equal(got[hook], cache[hook][rows, cols]), hook
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in cache.values() if torch.is_tensor(x)}
    own = sum(x.numel() * x.element_size() for x in got.values())
    floors.add(
        "G15", "bytes held, full cache over ours", sum(held.values()) / own, floor=59, note=f"{own / 1e6:.1f} MB"
    )
    note = f"{high[1] / 1e6:.0f} / {high[0] / 1e6:.0f} MB over the model"
    floors.add("G15", "peak memory, full cache over ours", high[1] / high[0], floor=2.1, note=note)


def layers(floors: Floors) -> None:
    """G15: the sites of the first three of eight layers, against all eight."""
    model = gpt2(8, 256)
    ids = np.random.default_rng(0).integers(0, 50_000, (32, 48))
    place = dict(rows=np.arange(32), cols=np.full(32, 47))
    names = ("hook_resid_post", "hook_attn_out", "hook_mlp_out")

    def first(n: int) -> Any:
        hooks = [f"blocks.{layer}.{name}" for layer in range(n) for name in names]
        return hooked_pass(model, ids, ids * 0 + 1, hooks=hooks, **place)

    some, every = cpu(lambda: first(3), 5), cpu(lambda: first(8), 5)
    whole = cpu(lambda: model.bridge.run_with_cache(torch.tensor(ids)), 3)
    note = f"{some * 1e3:.0f} / {whole * 1e3:.0f} ms; all layers, ours {every * 1e3:.0f} ms"
    floors.add(
        "G15", "time of the first 3 of 8 layers over run_with_cache", some / whole, floor=0.52, most=True, note=note
    )


def main() -> int:
    """Compare, assert."""
    torch.set_num_threads(1)
    header("torch", "transformers", "transformer-lens")
    floors, model = Floors(), gpt2()
    memory(floors, model)
    layers(floors)
    time_of_prompts(floors, model)
    return floors.finish()


if __name__ == "__main__":
    sys.exit(main())
