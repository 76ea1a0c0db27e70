"""One stream for many dictionaries: the model is read once, and each is what it would be alone, bit for bit."""

from __future__ import annotations

import pytest

from neurosae.dictionary import rows, stream
from neurosae.dictionary.sweep import train_sweep
from neurosae.dictionary.train import train_dictionary
from neurosae.errors import ModelError
from tests.dictionary.conftest import HOOK

SHARED = {"d_sae": 64, "n_tokens": 4000, "batch": 100, "order": 2}
OVER = {"architecture": ["topk", "batchtopk", "gated"], "d_sae": [48, 64], "k": [3, 4], "seed": [0, 1]}


def counting(monkeypatch):
    """How often the rows of a block are asked for, by the live stream or for the file."""
    plain, calls = stream.context_rows, []

    def counted(model, contexts, chosen, *, hooks):
        if contexts.n_rows.sum() > 1:  # one token measures the width of a hook point
            calls.append(list(hooks))
        return plain(model, contexts, chosen, hooks=hooks)

    monkeypatch.setattr(stream, "context_rows", counted)
    monkeypatch.setattr(rows, "context_rows", counted)
    return calls


def bytes_of(folder):
    """Every file of a dictionary."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("cache", ["", "bfloat16"])
def test_together_equals_alone(toy, toy_texts, tmp_path, *, monkeypatch, cache):
    """24 dictionaries cost the passes of one, and any of them equals its own run byte by byte."""
    calls, texts = counting(monkeypatch), toy_texts[:40]  # read three times over
    made, table = train_sweep(
        toy, texts, hook=HOOK, out=tmp_path / "all", over=OVER, settings=SHARED | {"cache": cache}
    )
    assert len(made) == len(table) == 24
    passes = len(calls)
    assert passes == 1 if cache else passes > 1
    for name in ("topk_d_sae48_k3_seed1", "batchtopk_d_sae64_k4_seed0", "gated_d_sae48_k4_seed1"):
        calls.clear()
        row = table.set_index("name").loc[name]
        asked = {n: row[n] if n == "architecture" else int(row[n]) for n in OVER}
        alone = {"hook": HOOK, "out": tmp_path / "alone" / name, "settings": SHARED | {"cache": cache} | asked}
        train_dictionary(toy, texts, **alone)
        assert len(calls) <= passes  # 0 where the rows are on the disk already
        assert bytes_of(tmp_path / "alone" / name) == bytes_of(tmp_path / "all" / name)
    assert table["fvu"].between(0, 1.2).all()
    weights = {(tmp_path / "all" / name / "sae_weights.safetensors").read_bytes() for name in made}
    assert len(weights) >= 20  # far above k, two gated runs that differ in k are steered alike


def test_sweep_trains_only_what_is_missing(toy, toy_texts, tmp_path, *, monkeypatch):
    """Asked for one more k, finished dictionaries stay as they are."""
    ask = {"hook": HOOK, "out": tmp_path, "settings": SHARED}
    train_sweep(toy, toy_texts, **ask, over={"k": [3]})
    before = (tmp_path / "k3" / "cfg.json").stat().st_mtime_ns
    _, table = train_sweep(toy, toy_texts, **ask, over={"k": [3, 5]})
    assert table["k"].tolist() == [3, 5]
    assert (tmp_path / "k3" / "cfg.json").stat().st_mtime_ns == before
    calls = counting(monkeypatch)
    train_sweep(toy, toy_texts, **ask, over={"k": [3, 5]})
    assert not calls


def test_sweep_refuses(toy, toy_texts, tmp_path):
    """What makes the stream cannot be varied within it; an empty list is no sweep."""
    ask = {"hook": HOOK, "out": tmp_path, "settings": SHARED}
    with pytest.raises(ModelError, match="batch cannot be swept"):
        train_sweep(toy, toy_texts, **ask, over={"batch": [10, 20]})
    with pytest.raises(ModelError, match="k has no values"):
        train_sweep(toy, toy_texts, **ask, over={"k": []})
