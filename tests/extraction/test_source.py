"""A missing checkpoint is one sentence: what is missing, and where to put it."""

from __future__ import annotations

import socket

import pytest

from neurosae.errors import ModelError
from neurosae.extraction.source import find_checkpoint, weights_hash


def test_find_checkpoint_refuses_a_hub_id_offline(monkeypatch, tmp_path):
    """Without network and cache a hub id says where a checkpoint may be put."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"model 'no/such-model' is not on this machine .*model: \{name: path"
    ) as error:
        find_checkpoint("no/such-model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [([], r"has no config\.json"), (["config.json"], "has no weights")],
)
def test_find_checkpoint_refuses_a_folder(tmp_path, files, message):
    """A folder without config or weights is named."""
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        find_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        find_checkpoint(tmp_path / "nothing")


def test_weights_hash_invariant_to_place(checkpoint, tmp_path):
    """The hash knows the bytes of the weights, not their folder."""
    source = checkpoint("gpt2") / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(source.read_bytes())
    assert weights_hash(tmp_path) == weights_hash(source.parent)
    (tmp_path / "model.safetensors").write_bytes(source.read_bytes()[:-1] + b"\0")
    assert weights_hash(tmp_path) != weights_hash(source.parent)


def trap(*_, **__):
    """What nobody may call."""
    raise AssertionError("the network was asked")


def test_find_checkpoint_refuses_to_ask_an_offline_hub(monkeypatch, tmp_path):
    """With HF_HUB_OFFLINE not even a connection is tried."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "create_connection", trap)
    monkeypatch.setattr("huggingface_hub.snapshot_download", trap)
    with pytest.raises(ModelError, match="is not on this machine"):
        find_checkpoint("no/such-model")


def test_find_checkpoint_refuses_an_unreachable_hub_at_once(monkeypatch, tmp_path):
    """Where no connection can be made, the hub's client, which tries for half a minute, is never called."""

    def unreachable(*_, **__):
        raise OSError("no route")

    for name in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", trap)
    with pytest.raises(ModelError, match=r"the hub cannot be reached; put its checkpoint .* into a folder"):
        find_checkpoint("no/such-model")
