"""What is said before the first batch: memory, disk and time."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from neurosae.errors import ModelError
from neurosae.extraction import budget
from neurosae.extraction.budget import Load, check_budget, operations, time_teller, total_load
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract


def test_total_load_counts_columns_as_they_are_read():
    """A shared beginning is read once; squares are those of tries, or of texts; shards do not share."""
    lists = [np.array([1, 2, 3]), np.array([1, 2, 4])] * 2
    ask = dict(n_cells=5, shard=2, max_nodes=384)
    assert total_load(lists, "buckets", **ask) == Load(12, 36, 5)
    assert total_load(lists, "trie", **ask) == Load(8, 32, 5)


def test_operations_follow_depth_and_dictionaries(toy_model, tiny):
    """2 N T below the deepest hook point, 4 L d T^2 for attention, 2 d m per cell."""
    sites = {"s": tiny(1)}
    base = operations(Load(100, 0, 0), model=toy_model, dictionaries=sites, hooks=["blocks.1.hook_resid_post"])
    deep = operations(Load(100, 0, 0), model=toy_model, dictionaries=sites, hooks=[toy_model.last_hook])
    assert deep == pytest.approx(2 * base)
    squares = operations(Load(0, 10, 0), model=toy_model, dictionaries=sites, hooks=[toy_model.last_hook])
    assert squares == 4 * 4 * 64 * 10
    cells = operations(Load(0, 0, 7), model=toy_model, dictionaries=sites, hooks=[toy_model.last_hook])
    assert cells == 2 * 64 * 96 * 7


def test_time_is_told_after_two_batches(monkeypatch, capsys):
    """Scaled by operations from the faster of two batches, printed once, and kept for the record."""
    clock = iter([0.0, 5.0, 7.0, 9.0])
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(clock))
    told: dict[str, float] = {}
    bar = SimpleNamespace(total=5000, update=lambda n: None)
    tick = time_teller(bar, cost=lambda load: load.columns, total=Load(1000, 0, 0), told=told)
    tick(50, 1, 10)
    assert not told
    tick(50, 2, 5)
    tick(50, 1, 10)
    assert told == {"estimated_seconds": 200.0}
    assert capsys.readouterr().err == "extraction: about 3.3 minutes for 5,000 tokens\n"


def test_estimates_are_recorded(toy_stimuli, toy_model, tiny):
    """Memory, disk, tokens and time are in the record; many small batches give an estimate."""
    out = extract(toy_stimuli, toy_model, {"s": tiny(1)}, positions={"regions": ["whole"]}, batch_tokens=96)["s"]
    record = provenance_of(out)
    assert record["packing"]["needs"]["memory_bytes"] > 0
    assert record["extraction"]["tokens"] > 0
    assert 0 <= record["extraction"]["estimated_seconds"] < 20


@pytest.mark.parametrize(
    ("device", "host", "accelerator", "message"),
    [
        (
            "cpu",
            1000,
            None,
            r"GB of memory and 0\.0 GB are free; use fewer regions or sites, keep_x: false, or a smaller",
        ),
        ("cuda:0", 10**12, 1000, r"GB of memory of cuda:0 and 0\.0 GB are free; .* a smaller batch_tokens"),
        ("cuda:0", 10**12, 10**12, None),
    ],
)
def test_memory_is_refused_where_it_is_needed(toy_model, tiny, monkeypatch, *, device, host, accelerator, message):
    """The pass needs the memory of its device, what is stored needs that of the host."""
    monkeypatch.setattr(budget, "free_memory", lambda: host)
    monkeypatch.setattr(budget, "free_device_memory", lambda _: accelerator)
    model = dataclasses.replace(toy_model, device=device)
    ask = dict(n_cells=100, longest=20, folder=None, keep_x=False, batch_tokens=4096)
    if message is None:
        assert check_budget(model, {"s": tiny(1)}, **ask)["disk_bytes"] == 0
        return
    with pytest.raises(ModelError, match=message):
        check_budget(model, {"s": tiny(1)}, **ask)


def test_a_byte_too_few_is_refused(toy_model, tiny, monkeypatch):
    """What is needed fits into exactly as much, and into no less."""
    ask = dict(n_cells=100, longest=20, folder=None, keep_x=False, batch_tokens=64)
    monkeypatch.setattr(budget, "free_memory", lambda: None)
    needed = int(check_budget(toy_model, {"s": tiny(1)}, **ask)["memory_bytes"])
    monkeypatch.setattr(budget, "free_memory", lambda: needed)
    check_budget(toy_model, {"s": tiny(1)}, **ask)
    monkeypatch.setattr(budget, "free_memory", lambda: needed - 1)
    with pytest.raises(ModelError, match="GB of memory"):
        check_budget(toy_model, {"s": tiny(1)}, **ask)


@pytest.mark.parametrize(
    ("card", "n"), [({"l0": 5.5}, 5), ({"k": 7}, 7), ({"l0": 900.0}, 600), ({}, 128), ({"k": "auto"}, 128)]
)
def test_active_features_are_those_of_the_card(card, n):
    """L0 of the card, else k, else 128; never more than there are features."""
    assert budget._active(SimpleNamespace(metadata=card, n_features=600)) == n


def test_estimates_follow_what_is_stored_and_held(toy_model, tiny, tmp_path, *, monkeypatch):
    """Disk is asked for shards and the final copy, 4 bytes more per raw coordinate; memory holds the longest text."""
    asked = []
    monkeypatch.setattr(budget, "require_space", lambda folder, size: asked.append(size))
    monkeypatch.setattr(budget, "free_memory", lambda: None)
    ask = dict(n_cells=100, longest=20, folder=tmp_path, keep_x=False, batch_tokens=64)
    lean = check_budget(toy_model, {"s": tiny(1)}, **ask)
    raw = check_budget(toy_model, {"s": tiny(1)}, **ask | {"keep_x": True})
    cell = 96 * 8 + 80  # up to 96 active features and the columns that describe the cell
    assert asked == [2 * 100 * cell, 2 * 100 * (cell + 4 * 64)]
    assert [lean["disk_bytes"], raw["disk_bytes"]] == asked
    long = check_budget(toy_model, {"s": tiny(1)}, **ask | {"longest": 80})
    batch = [4 * n * (16 * 64 + n_longest) for n, n_longest in ((64, 20), (80, 80))]
    assert long["memory_bytes"] - lean["memory_bytes"] == batch[1] - batch[0]
    assert lean["memory_bytes"] > 2 * budget.CHUNK_BYTES + asked[0]
