"""Training from a live model: resumed bit for bit, folded, saved with its card, refused where it would overwrite."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from neurosae.dictionary.learn import TopKLearner
from neurosae.dictionary.record import read_folder
from neurosae.dictionary.train import train_dictionaries, train_dictionary
from neurosae.errors import DataError, ModelError, StoreError
from tests.dictionary.conftest import HOOK

SMALL = {"d_sae": 64, "k": 4, "n_tokens": 12_000, "batch": 100, "seed": 1}
EARLY = "blocks.0.hook_resid_post"


def weights(folder):
    """The bytes that matter."""
    return (folder / "sae_weights.safetensors").read_bytes()


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package catches it."""


def kill_at(monkeypatch, step):
    """Let a learner die at a step."""
    plain = TopKLearner.step

    def dies(self, x, at):
        if at == step:
            raise Killed
        return plain(self, x, at)

    monkeypatch.setattr(TopKLearner, "step", dies)


@pytest.mark.parametrize("step", [3, 25, 77])
def test_resumed_equals_uninterrupted(toy, toy_texts, tmp_path, *, step):
    """Killed before, after and between checkpoints: the same bytes, curves and card in the end."""
    ask = {"hook": HOOK, "settings": SMALL, "checkpoint_every": 10}
    train_dictionary(toy, toy_texts, **ask, out=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            train_dictionary(toy, toy_texts, **ask, out=tmp_path / "part")
    assert not (tmp_path / "part").exists()
    assert (tmp_path / "part.part.safetensors").exists() == (step > 10)
    train_dictionary(toy, toy_texts, **ask, out=tmp_path / "part")
    for name in ("sae_weights.safetensors", "training.csv", "card.json", "density.npy", "cfg.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part", "whole"]


REVIVING = {"resample_every": 15, "ghost_grads": True, "dead_window": 0.02}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("batchtopk", {}), ("matryoshka", {}), ("standard", REVIVING), ("gated", {}), ("jumprelu", REVIVING),
     ("abstopk", {}), ("topk", REVIVING), ("topk", {"cache": "bfloat16"})],
)  # fmt: skip
def test_other_architectures_resume(toy, toy_texts, tmp_path, *, monkeypatch, architecture, changes):
    """Buffers, steered coefficients and what was drawn are the same after a kill, and so is every file."""
    ask = {"hook": HOOK, "settings": SMALL | {"architecture": architecture} | changes, "checkpoint_every": 10}
    train_dictionary(toy, toy_texts, **ask, out=tmp_path / "whole")
    from neurosae.dictionary import train

    plain = train.write_checkpoint

    def dies(checkpoint, runs, step):
        plain(checkpoint, runs, step)
        if step == 50:
            raise Killed

    monkeypatch.setattr(train, "write_checkpoint", dies)
    with pytest.raises(Killed):
        train_dictionary(toy, toy_texts, **ask, out=tmp_path / "part")
    monkeypatch.undo()
    train_dictionary(toy, toy_texts, **ask, out=tmp_path / "part")
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / file.name).read_bytes() == file.read_bytes(), file.name


def test_together_equals_alone(toy, toy_texts, tmp_path):
    """Two sites from one pass are the same bytes as each from its own."""
    asks = {name: {"hook": hook, "out": tmp_path / name, **SMALL} for name, hook in {"a": EARLY, "b": HOOK}.items()}
    asks["b"]["d_sae"] = 48
    train_dictionaries(toy, toy_texts, asks)
    alone = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "c", settings=SMALL | {"d_sae": 48})
    assert weights(tmp_path / "b") == weights(tmp_path / "c")
    assert alone.n_features == 48
    assert alone.hash == read_folder(tmp_path / "b").hash


def test_saved_folder_tells_everything(toy, toy_texts, tmp_path, *, lens):
    """Card, metadata, densities and curves; plain sae-lens loads it and gives the same features."""
    made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=SMALL | {"dtype": "float16"})
    theirs = lens.SAE.load_from_disk(str(tmp_path / "d"))
    x = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(made.encode(x).toarray(), theirs.encode(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    facts = theirs.cfg.metadata
    assert (facts.hook_name, facts.prepend_bos, facts.model_hash) == (HOOK, True, toy.provenance["weights_hash"])
    assert made.card["dead"] == (made.density == 0).mean()
    assert 0 < made.card["fvu"] < 1
    assert made.card["l0"] <= 4
    assert len(made.density) == 64
    log = pd.read_csv(tmp_path / "d" / "training.csv")
    assert {"step", "tokens", "loss", "fvu", "l0", "dead", "k", "lr", "fvu_held_out"} <= set(log)
    assert log["tokens"].iloc[-1] == 12_000
    assert log["fvu_held_out"].notna().sum() >= 10


def test_own_samples_are_the_default(toy, tmp_path):
    """Without text the model writes it; the record says so, and a second call reuses the folder."""
    settings = SMALL | {"n_tokens": 2400}
    made = train_dictionary(toy, None, hook=HOOK, out=tmp_path / "d", settings=settings)
    assert made.metadata["text"] == {"sampled_tokens": 2400, "sampled_seed": 0}
    before = (tmp_path / "d" / "cfg.json").stat().st_mtime_ns
    again = train_dictionary(toy, None, hook=HOOK, out=tmp_path / "d", settings=settings)
    assert again.hash == made.hash
    assert (tmp_path / "d" / "cfg.json").stat().st_mtime_ns == before


def test_train_refuses_to_overwrite(toy, toy_texts, tmp_path):
    """Another dictionary, or anything else in the folder, stays."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match="choose another folder"):
        train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "notes", settings=SMALL)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("broken", [False, True])
def test_train_refuses_a_foreign_checkpoint(toy, toy_texts, tmp_path, *, monkeypatch, broken):
    """A checkpoint of other settings, or half of one, is never continued from."""
    ask = {"hook": HOOK, "out": tmp_path / "d", "checkpoint_every": 10}
    kill_at(monkeypatch, 25)
    with pytest.raises(Killed):
        train_dictionary(toy, toy_texts, **ask, settings=SMALL)
    part = tmp_path / "d.part.safetensors"
    if broken:
        part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(StoreError, match="is broken" if broken else "another training"):
        train_dictionary(toy, toy_texts, **ask, settings=SMALL | {"k": 4 if broken else 5})


def test_train_refuses(toy, toy_texts, tmp_path):
    """Unknown hook points, single documents, and folders that cannot be written."""
    ask = {"out": tmp_path / "d", "settings": SMALL}
    with pytest.raises(ModelError, match=r"unknown hook point 'blocks\.1\.hook_resid_pst'\. Did you mean"):
        train_dictionary(toy, toy_texts, hook="blocks.1.hook_resid_pst", **ask)
    with pytest.raises(DataError, match="at least 2 documents"):
        train_dictionary(toy, toy_texts[:1], hook=HOOK, **ask)
    with pytest.raises(DataError, match="2 different documents"):
        train_dictionary(toy, ["same", "same"], hook=HOOK, **ask)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "file" / "d", settings=SMALL)


def test_held_out_documents_are_never_trained_on(toy, toy_texts):
    """The split is by document, and a document that occurs twice is on one side only."""
    from neurosae.dictionary.plan import split_documents
    from neurosae.dictionary.settings import settings_of

    data = split_documents(toy, toy_texts + toy_texts[:60], settings_of(SMALL, 16))
    trained = {bytes(ids[1:].astype(np.uint8)) for ids in data.train.ids}
    bytes_of = {toy.tokens.backend.encode(text, add_special_tokens=False).ids.__str__() for text in data.held_out}
    assert len(data.held_out) == 6
    assert len(bytes_of) == 6
    firsts = {str(list(map(int, ids[1:]))) for ids in data.train.ids}
    assert len(trained)
    assert not bytes_of & firsts


def test_centring_is_a_choice(toy, toy_texts, tmp_path):
    """Without it the mean is not in b_dec; both say so, and the card has the distance of the mean in both."""
    made = {
        center: train_dictionary(
            toy, toy_texts, hook=HOOK, out=tmp_path / str(center), settings=SMALL | {"center": center}
        )
        for center in (True, False)
    }
    assert made[True].metadata["centring"].startswith("mean")
    assert made[False].metadata["centring"] == "none"
    assert made[True].card["gamma"] == made[False].card["gamma"]
    assert not torch.equal(made[True].b_dec, made[False].b_dec)
    assert made[True].card["settings"]["center"] is True


def test_thresholds_are_recalibrated_on_held_out_rows(toy, toy_texts, tmp_path):
    """L0 and FVU before and after are on the card; after, L0 is k; it can be left out."""
    ask = SMALL | {"architecture": "matryoshka", "k": 3}
    made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "a", settings=ask)
    record = made.card["recalibrated"]
    assert set(record) == {"l0_before", "fvu_before", "l0_after", "fvu_after"}
    assert record["l0_after"] == pytest.approx(3, rel=0.1)
    assert record["l0_before"] > 1.3 * record["l0_after"]
    plain = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "b", settings=ask | {"recalibrate": False})
    assert "recalibrated" not in plain.card
    assert plain.card["l0"] > 1.3 * made.card["l0"]


def test_seed_moves_the_weights_and_order_the_text(toy, toy_texts, tmp_path):
    """Dictionaries of two seeds share their held-out documents; those of two orders do not."""
    from neurosae.dictionary.plan import split_documents
    from neurosae.dictionary.settings import settings_of

    held = [
        set(split_documents(toy, toy_texts, settings_of(SMALL | c, 16)).held_out)
        for c in ({}, {"seed": 5}, {"order": 5})
    ]
    assert held[0] == held[1] != held[2]
    for name, changes in {"a": {}, "b": {"seed": 5}, "c": {"order": 5}}.items():
        train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / name, settings=SMALL | {"n_tokens": 2000} | changes)
    assert len({weights(tmp_path / name) for name in "abc"}) == 3


def test_a_card_has_its_curve(toy, toy_texts, tmp_path):
    """What the report draws: the log's columns, with None where held-out text was not measured."""
    made = train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=SMALL)
    log, curve = pd.read_csv(tmp_path / "d" / "training.csv"), made.card["curve"]
    assert curve["tokens"] == log["tokens"].tolist()
    assert [v for v in curve["fvu_held_out"] if v is not None] == pytest.approx(log["fvu_held_out"].dropna().tolist())
    assert "NaN" not in (tmp_path / "d" / "card.json").read_text()


def test_nothing_is_written_beside_the_folder(toy, toy_texts, tmp_path, *, monkeypatch):
    """No output, checkpoints or wandb folder in the working directory, no signal handler left behind."""
    import signal

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    stops = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(s, lambda *_: None) for s in stops]  # its own: an earlier test may have left others behind
    try:
        here = [signal.getsignal(s) for s in stops]
        train_dictionary(toy, toy_texts, hook=HOOK, out=tmp_path / "d", settings=SMALL | {"architecture": "gated"})
        assert [signal.getsignal(s) for s in stops] == here
    finally:
        for s, handler in zip(stops, before, strict=True):
            signal.signal(s, handler)
    assert not list((tmp_path / "here").iterdir())


def test_specials_never_enter_training(toy, toy_texts):
    """Rows of BOS, whose norm is another, are in no batch; documents never share a context."""
    from neurosae.dictionary.plan import split_documents
    from neurosae.dictionary.settings import settings_of

    data = split_documents(toy, toy_texts, settings_of(SMALL | {"context": 40}, 16))
    assert all(int(ids[0]) == toy.tokens.prefix[0] for ids in data.train.ids)
    assert data.train.n_rows.sum() == sum(len(ids) - 1 for ids in data.train.ids)
    texts = [t for t in toy_texts if t not in data.held_out]
    for ids, document in zip(data.train.ids, data.train.documents, strict=True):
        assert toy.tokens.backend.decode(ids[1:].tolist()) in texts[document]
