"""Stimuli to responses: the same numbers however they were batched, stored, killed or resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from neurosae.errors import DataError, ModelError, SpecError, StoreError
from neurosae.extraction import budget, run, shard
from neurosae.extraction.model import hooked_pass, load_model
from neurosae.extraction.responses import provenance_of
from neurosae.extraction.run import extract
from neurosae.extraction.store import read_shard, shard_path, stored_responses, write_shard
from neurosae.extraction.tokens import encode, region_tokens


def assert_same(a, b):
    """Two responses are equal byte for byte."""
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(a.X, name), getattr(b.X, name))
    np.testing.assert_array_equal(a.obsm["x"], b.obsm["x"])
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)


@pytest.fixture
def ask(toy_stimuli, toy_model, tiny):
    """Extract the toy; keywords go to extract, or replace stimuli, model, sites, positions."""
    default = {"stimuli": toy_stimuli, "model": toy_model, "sites": {"early": tiny(1), "late": tiny(3, seed=1)}}

    def call(*, positions=None, **kw):
        given = {name: kw.pop(name, value) for name, value in default.items()}
        positions = {"regions": ["head", "pre_verb", "verb"], "keep_x": True} | (positions or {})
        return extract(given["stimuli"], given["model"], given["sites"], positions=positions, **kw)

    return call


def test_extract_agrees_with_one_text_at_a_time(ask, toy_stimuli, toy_model, *, tiny):
    """Every row equals the dictionary's code of the vector that a pass over its text alone gives."""
    out = ask()["late"]
    for stimulus in toy_stimuli.index[[0, 11, 23]]:
        line = toy_stimuli.loc[stimulus]
        coded = encode(toy_model.tokens, [line["text"]])[0]
        tokens = region_tokens(coded, (line["head_start"], line["head_end"]), where="")
        ids = coded.ids[None]
        hook = "blocks.3.hook_resid_post"
        x = hooked_pass(toy_model, ids, ids * 0 + 1, hooks=[hook], rows=tokens * 0, cols=tokens)[hook]
        mine = (out.obs["stimulus"] == stimulus).to_numpy() & (out.obs["region"] == "head").to_numpy()
        assert_allclose(out.obsm["x"][mine], x.numpy(), atol=1e-5)
        assert_allclose(out.obs["norm"][mine], x.norm(dim=1).numpy(), rtol=1e-5)
        assert_allclose(out.X[mine].toarray(), tiny(3, seed=1).encode(x).toarray(), atol=1e-4)


def test_surprisal_and_logit_diff_agree_with_the_full_logits(checkpoint, toy_stimuli, tiny):
    """Bits of each token given its text so far; target minus foil where both are one token."""
    import torch

    model = load_model(checkpoint("gpt2"), device="cpu")
    site = dataclasses.replace(tiny(1), d=32)
    out = extract(toy_stimuli, model, {"s": site}, positions={"regions": ["verb"]})["s"].obs
    row = out[out["stimulus"] == "i1/b/sg/pl"].iloc[-1]
    ids = encode(model.tokens, [toy_stimuli.loc["i1/b/sg/pl", "text"]])[0].ids
    with torch.inference_mode():
        logits = model.bridge(torch.tensor(ids)[None], return_type="logits")[0, row["token_index"] - 1]
    expected = -float(logits.log_softmax(-1)[ids[row["token_index"]]]) / np.log(2)
    assert row["surprisal"] == pytest.approx(expected, rel=1e-4)
    target, foil = (model.tokens.backend.token_to_id(w) for w in ("Ġis", "Ġare"))
    assert row["logit_diff"] == pytest.approx(float(logits[target] - logits[foil]), rel=1e-3)


def test_batch_size_moves_rounding_only(ask):
    """One text at a time or all at once: same active cells up to rounding, same rows."""
    large, small = ask()["late"], ask(batch_tokens=1)["late"]
    pd.testing.assert_index_equal(large.obs_names, small.obs_names)
    assert_allclose(large.X.toarray(), small.X.toarray(), atol=1e-5)
    assert_allclose(large.obsm["x"], small.obsm["x"], atol=1e-5)


def test_store_gives_the_same_bytes(ask, tmp_path):
    """In memory, freshly stored and read again: equal, and the second call computes nothing."""
    memory, first = ask(), ask(store=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_shard", None)
        again = ask(store=tmp_path)
    for site in memory:
        assert_same(memory[site], first[site])
        assert_same(first[site], again[site])
    folder = next((tmp_path / "_store").iterdir())
    assert sorted(p.name for p in folder.iterdir() if p.name != "lock") == [
        "early.zarr",
        "files.json",
        "key.json",
        "late.zarr",
    ]


def test_killed_run_resumes_to_the_same_bytes(ask, tmp_path, monkeypatch):
    """Killed in the third shard: nothing is trusted, two shards are kept, the arrays end up identical."""
    monkeypatch.setattr(run, "SHARD", 7)
    monkeypatch.setattr(shard, "SHARD", 7)
    whole = ask()
    real, computed = shard._forward, []

    def killed(work, stimuli, unique):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(stimuli[0])
        return real(work, stimuli, unique)

    monkeypatch.setattr(shard, "_forward", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(store=tmp_path / "killed")
    folder = next((tmp_path / "killed" / "_store").iterdir())
    assert not (folder / "key.json").exists()
    assert len(list(folder.glob("parts/late/*.npz"))) == 2
    resumed: list[int] = []
    monkeypatch.setattr(shard, "_forward", lambda w, s, u: (resumed.append(s[0]), real(w, s, u))[1])
    out = ask(store=tmp_path / "killed")
    assert resumed == [14, 21]
    for site in out:
        assert_same(whole[site], out[site])


@pytest.mark.parametrize("lost", ["early", "late"])
def test_a_shard_counts_as_stored_when_every_site_has_it(ask, tmp_path, monkeypatch, *, lost):
    """Killed between the files of two sites: the shard is computed again, and nothing else is."""
    for module in (run, shard):
        monkeypatch.setattr(module, "SHARD", 7)
    whole = ask()
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_site", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ask(store=tmp_path)
    shard_path(next((tmp_path / "_store").iterdir()), lost, 1).unlink()
    real, computed = shard._forward, []
    monkeypatch.setattr(shard, "_forward", lambda w, s, u: (computed.append(s[0]), real(w, s, u))[1])
    out = ask(store=tmp_path)
    assert computed == [7]
    for site in out:
        assert_same(whole[site], out[site])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other key"])
def test_damaged_shards_are_computed_again(ask, tmp_path, damage):
    """A half-written or changed shard, or one of another key, is never used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "finish", lambda *a: None)
        patch.setattr(run, "stored_responses", lambda *a, **k: {} if list(tmp_path.rglob("*.zarr")) else None)
        ask(store=tmp_path)
    path = next(tmp_path.rglob("parts/late/00000.npz"))
    digest = str(np.load(path)["digest"])
    assert read_shard(path, digest=digest) is not None
    data = path.read_bytes()
    middle = len(data) // 2
    changed = {"truncated": data[:middle], "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]}
    path.write_bytes(changed.get(damage, data))
    assert read_shard(path, digest=digest + "x" * (damage == "other key")) is None


def test_a_shard_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Killed while a shard is written: nothing lies under its name, not even half of it."""
    path = shard_path(tmp_path, "late", 0)

    def dies(file, **_):
        Path(file).write_bytes(b"half") if isinstance(file, str | Path) else file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("neurosae.extraction.store.np.savez", dies)
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, {"row": np.arange(3)}, digest="x")
    assert not path.exists()


def test_a_folder_is_trusted_for_its_whole_key_only(ask, toy_stimuli, tmp_path):
    """Its name holds 12 digits of the hash; what was hashed is compared in full, and damage is no key."""
    ask(store=tmp_path)
    (folder,) = (tmp_path / "_store").iterdir()
    key = json.loads((folder / "key.json").read_text())
    assert stored_responses(tmp_path, key, stimuli=toy_stimuli) is not None
    for content in (json.dumps(key | {"version": -1}), "{", ""):
        (folder / "key.json").write_text(content)
        assert stored_responses(tmp_path, key, stimuli=toy_stimuli) is None


DAMAGE = {
    "lost": lambda path: path.unlink(),  # zarr would read zeros
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["late.zarr/X/data/c/0", "late.zarr/obs/surprisal/c/0", "files.json"])
def test_damaged_responses_are_refused(ask, tmp_path, *, damage, file):
    """A file of stored responses that was changed, cut or lost is never read as other numbers."""
    first = ask(store=tmp_path)
    (folder,) = (tmp_path / "_store").iterdir()
    DAMAGE[damage](folder / file)
    if file == "files.json" and damage == "lost":  # as a version wrote it that kept no hashes: extracted again
        assert_same(ask(store=tmp_path)["late"], first["late"])
        return
    with pytest.raises(StoreError, match=r"is damaged or lost; delete .* and extract again"):
        ask(store=tmp_path)


def test_key_follows_numbers_not_names(ask, toy_stimuli, tmp_path):
    """Renaming a level reads the store with the new name; another text, region or dictionary is another key."""
    ask(store=tmp_path)
    renamed = toy_stimuli.assign(near=toy_stimuli["near"].cat.rename_categories({"sg": "one", "pl": "many"}))
    again = ask(store=tmp_path, stimuli=renamed)["late"]
    assert set(again.obs["near"]) == {"one", "many"}
    assert len(list((tmp_path / "_store").iterdir())) == 1
    ask(store=tmp_path, positions={"regions": ["head"]})
    assert len(list((tmp_path / "_store").iterdir())) == 2


def test_memory_that_runs_out_halves_the_batch(ask, monkeypatch):
    """Batches are halved until they fit; the result moves by rounding and the record says so."""
    real = shard.hooked_pass

    def small(model, ids, mask, **kw):
        if len(ids) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, ids, mask, **kw)

    whole = ask()["late"]
    monkeypatch.setattr(shard, "hooked_pass", small)
    halved = ask()["late"]
    assert_allclose(whole.X.toarray(), halved.X.toarray(), atol=1e-5)
    assert any("batches were halved" in w for w in provenance_of(halved)["warnings"])
    monkeypatch.setattr(shard, "hooked_pass", lambda *a, **k: small(a[0], [0] * 9, None))
    with pytest.raises(ModelError, match=r"one text of \d+ tokens does not fit"):
        ask()


def test_mapper_may_run_shards_in_any_order(ask, monkeypatch):
    """Shards are pure functions of their number."""
    monkeypatch.setattr(run, "SHARD", 5)
    monkeypatch.setattr(shard, "SHARD", 5)
    backwards = ask(mapper=lambda f, numbers: [f(n) for n in reversed(numbers)][::-1])
    assert_same(ask()["early"], backwards["early"])


def test_encoder_is_extracted_uncut(checkpoint, toy_stimuli, tiny):
    """BERT sees the whole text; what needs a next-token head is NA."""
    model = load_model(checkpoint("bert"), device="cpu")
    out = extract(toy_stimuli, model, {"s": dataclasses.replace(tiny(1), d=32)}, positions={"regions": ["head"]})["s"]
    assert out.obs["surprisal"].isna().all()
    moved = toy_stimuli.assign(text=toy_stimuli["text"].str.replace("near", "dogs"))
    other = extract(moved, model, {"s": dataclasses.replace(tiny(1), d=32)}, positions={"regions": ["head"]})["s"]
    plain = (out.obs["frame"] == "a").to_numpy()
    assert np.abs((out.X - other.X)[plain]).max() > 1e-2


def test_reduced_precision_reports_switched_features(checkpoint, toy_stimuli, tiny):
    """Under bfloat16 the record says which share of active cells a batch switches on or off."""
    model = load_model(checkpoint("llama"), device="cpu", dtype="bfloat16")
    out = extract(toy_stimuli, model, {"s": dataclasses.replace(tiny(1), d=32)}, positions={"regions": ["head"]})["s"]
    assert 0 <= provenance_of(out)["batch_switched"] < 0.05
    assert provenance_of(out)["model"]["dtype"] == "bfloat16 (autocast)"


def test_dictionaries_decide_about_bos(ask, toy_model, tiny):
    """prepend_bos of the dictionaries holds while bos is auto, and is recorded; a disagreement is refused."""
    open_rule = dataclasses.replace(toy_model, tokens=dataclasses.replace(toy_model.tokens, rule="auto"))
    without, with_ = tiny(1, metadata={"prepend_bos": False}), tiny(1, metadata={"prepend_bos": True})
    assert run._with_bos(open_rule, {"a": without})[1].prefix == ()
    assert run._with_bos(toy_model, {"a": without})[1].prefix == (256,)
    found = provenance_of(ask(model=open_rule, sites={"a": without})["a"])
    assert found["model"]["bos"].startswith("nothing before")
    assert found["first_token"] == 0
    assert toy_model.provenance["bos"].startswith("<bos> before")
    with pytest.raises(ModelError, match=r"disagree about BOS \(a without, b with\)"):
        run._with_bos(open_rule, {"a": without, "b": with_})


def test_extract_refuses_before_the_first_batch(ask, tiny, monkeypatch):
    """What does not fit is said before anything is computed."""
    monkeypatch.setattr(run, "run_shard", None)
    with pytest.raises(ModelError, match=r"sites\.s: the dictionary reads vectors of length 32, but .* has 64"):
        ask(sites={"s": dataclasses.replace(tiny(1), d=32)})
    with pytest.raises(ModelError, match=r"sites\.s: unknown hook point .*Did you mean 'blocks\.1\.hook_resid_post'"):
        ask(sites={"s": dataclasses.replace(tiny(1), hook="blocks.1.hook_resid_pots")})
    with pytest.raises(DataError, match="Did you mean 'head'"):
        ask(positions={"regions": ["heads"]})
    with pytest.raises(SpecError, match="positions"):
        ask(positions={"region": "head"})
    monkeypatch.setattr(budget, "free_memory", lambda: 1000)
    with pytest.raises(ModelError, match=r"needs about .* GB of memory .* use fewer regions"):
        ask()


def test_unwritable_store_is_one_sentence(ask, tmp_path):
    """A store that cannot be written, or is damaged after it was finished, is a StoreError."""
    (tmp_path / "_store").write_text("a file")
    with pytest.raises(StoreError):
        ask(store=tmp_path)
    ask(store=tmp_path / "good")
    chunk = max((tmp_path / "good").rglob("late.zarr/X/data/c/*"))
    chunk.write_bytes(b"")
    with pytest.raises(StoreError, match=r"late\.zarr/X/data/c/0 is damaged .* extract again"):
        ask(store=tmp_path / "good")
