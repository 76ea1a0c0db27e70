"""Activations on disk: the rows of the model, written once, read in shuffled batches that are pure functions."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neurosae.dictionary import rows as module
from neurosae.dictionary.rows import Place, cached_batches, cached_rows, first_rows
from neurosae.dictionary.stream import context_rows
from neurosae.dictionary.texts import make_contexts
from neurosae.errors import DataError, StoreError
from neurosae.spec.files import lock
from tests.dictionary.conftest import HOOK

HOOKS = ["blocks.0.hook_resid_post", HOOK]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def contexts(toy, toy_texts):
    """Contexts of 30 ids."""
    return make_contexts(toy.tokens, toy_texts, length=30)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder, and blocks of few rows."""
    monkeypatch.setattr(module, "BUFFER", 700)
    return Place(tmp_path / "activations", "float32", {"text": "toy"})


def everything(toy, contexts, hook=HOOK):
    """All rows at once."""
    return context_rows(toy, contexts, np.arange(len(contexts.ids)), hooks=[hook])[hook]


def test_rows_are_those_of_the_model(toy, contexts, place):
    """Every token once, in order, without specials; as bfloat16 rounded and half as large."""
    found, all_ = cached_rows(toy, contexts, HOOKS, place=place), everything(toy, contexts)
    assert_close(found[HOOK].take(np.arange(len(all_))), all_, rtol=1e-4, atol=1e-5)
    short = cached_rows(toy, contexts, HOOKS, place=place._replace(dtype="bfloat16"))[HOOK]
    assert_close(short.take(np.arange(len(all_))), all_.bfloat16().float(), rtol=1e-2, atol=1e-2)
    sizes = [place._replace(dtype=d).path(HOOK).stat().st_size for d in ("float32", "bfloat16")]
    assert sizes == [4 * all_.numel(), 2 * all_.numel()]


def test_rows_are_written_once(toy, contexts, place, *, monkeypatch):
    """A second dictionary needs no model; another hook point extracts only itself."""
    cached_rows(toy, contexts, HOOKS[:1], place=place)
    monkeypatch.setattr(module, "context_rows", lambda *a, **k: pytest.fail("the model was run again"))
    cached_rows(toy, contexts, HOOKS[:1], place=place)
    with pytest.raises(pytest.fail.Exception, match="run again"):
        cached_rows(toy, contexts, HOOKS, place=place)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_killed_extraction_goes_on(toy, contexts, place, *, monkeypatch, at):
    """Killed while writing a block: blocks that were finished are not run again, and the file is the same."""
    whole = place._replace(folder=place.folder / "whole")
    cached_rows(toy, contexts, HOOKS, place=whole)
    plain, seen = module.context_rows, []

    def dies(model, contexts, chosen, *, hooks):
        if len(seen) == at:
            raise Killed
        seen.append(int(chosen[0]))
        return plain(model, contexts, chosen, hooks=hooks)

    monkeypatch.setattr(module, "context_rows", dies)
    with pytest.raises(Killed):
        cached_rows(toy, contexts, HOOKS, place=place)
    before, at = list(seen), 99
    cached_rows(toy, contexts, HOOKS, place=place)
    assert not set(before) & set(seen[len(before) :])
    for hook in HOOKS:
        assert place.path(hook).read_bytes() == whole.path(hook).read_bytes()
    assert not list(place.folder.glob("*.part*"))


def test_batches_are_pure_functions(toy, contexts, place):
    """Every row once an epoch, in another order in the next; a batch is the same wherever reading starts."""
    rows = cached_rows(toy, contexts, HOOKS, place=place)
    n, batch = len(rows[HOOK].rows), 100
    ask = {"batch": batch, "seed": 1, "n_steps": 3 * (n // batch)}
    whole = list(cached_batches(rows, **ask, start=0))
    for start in (1, 17, n // batch, ask["n_steps"] - 1):
        late = next(cached_batches(rows, **ask, start=start))
        assert all(torch.equal(late[hook], whole[start][hook]) for hook in HOOKS)
    epoch = torch.cat([one[HOOK] for one in whole[: n // batch]])
    again = torch.cat([one[HOOK] for one in whole[n // batch : 2 * (n // batch)]])
    everyone = {row.numpy().tobytes() for row in rows[HOOK].take(np.arange(n))}
    assert {row.numpy().tobytes() for row in epoch} <= everyone
    assert len({row.numpy().tobytes() for row in epoch}) > 0.9 * len(everyone)
    assert not torch.equal(epoch, again)
    assert not torch.equal(next(islice(cached_batches(rows, **ask | {"seed": 2}, start=0), 1))[HOOK], whole[0][HOOK])
    assert first_rows(rows, seed=1)[HOOK].shape == (min(n, 700), 16)


def test_rows_refuse(toy, contexts, place):
    """Half a file, one changed byte, a record that was cut, and fewer rows than a batch."""
    rows = cached_rows(toy, contexts, [HOOK], place=place)
    with pytest.raises(DataError, match="fewer than a batch of 100,000"):
        next(cached_batches(rows, batch=100_000, seed=0, start=0, n_steps=1))
    path = place.path(HOOK)
    whole, record = path.read_bytes(), path.with_suffix(".json").read_text()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 64
    for data, said in ((bytes(changed), record), (whole, record[:-5])):
        path.write_bytes(data)
        path.with_suffix(".json").write_text(said)
        with pytest.raises(StoreError, match="is not whole; delete it"):
            cached_rows(toy, contexts, [HOOK], place=place)
    path.with_suffix(".json").write_text(record)
    path.write_bytes(whole[:-4])
    with pytest.raises(StoreError, match="is not whole; delete it"):
        cached_rows(toy, contexts, [HOOK], place=place)
    assert json.loads(path.with_suffix(".json").read_text())["shape"][1] == 16


def test_a_second_run_never_writes_beside_the_first(toy, contexts, place):
    """While one run extracts, another one is refused: it would begin renamed parts again, with holes."""
    with lock(place.folder), pytest.raises(StoreError):
        cached_rows(toy, contexts, HOOKS, place=place)
    assert not list(place.folder.glob("*.rows"))
    cached_rows(toy, contexts, HOOKS, place=place)
    assert sorted(p.suffix for p in place.folder.iterdir()) == [".json", ".json", ".rows", ".rows"]


def test_progress_without_its_parts_is_not_believed(toy, contexts, place, *, monkeypatch):
    """Where a part was lost after a kill, everything is extracted again, not only its first block."""
    whole = place._replace(folder=place.folder / "whole")
    cached_rows(toy, contexts, HOOKS, place=whole)
    monkeypatch.setattr(module, "write_atomic", _write_or_die)
    with pytest.raises(Killed):
        cached_rows(toy, contexts, HOOKS, place=place)
    monkeypatch.undo()
    monkeypatch.setattr(module, "BUFFER", 700)
    place.path(HOOKS[0]).unlink()
    for part in place.folder.glob("*.part"):
        part.unlink()
    cached_rows(toy, contexts, HOOKS, place=place)
    for hook in HOOKS:
        assert place.path(hook).read_bytes() == whole.path(hook).read_bytes()


def _write_or_die(path, text):
    if "shape" in text:
        raise Killed
    path.write_text(text, encoding="utf-8")


def test_first_rows_come_from_everywhere(monkeypatch):
    """Mean and scale are of random rows of the whole file, not of the texts that it begins with."""
    monkeypatch.setattr(module, "BUFFER", 100)
    kept = {"h": module.Cached(np.arange(4000, dtype=np.float32)[:, None], "float32")}
    found = [first_rows(kept, seed=seed)["h"][:, 0].tolist() for seed in (0, 0, 1)]
    assert len(set(found[0])) == 100
    assert max(np.diff([0, *found[0], 4000])) < 600
    assert found[0] == found[1] != found[2]
