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


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked of the network: connections, and downloads by the hub's client, none of which succeeds."""
    calls = []

    def unreachable(name):
        def call(*_, **__):
            calls.append(name)  # an exception alone would become the sentence that is expected anyway
            raise OSError("no route")

        return call

    for name in ("HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "create_connection", unreachable("connection"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable("download"))
    return calls


def test_find_checkpoint_refuses_to_ask_an_offline_hub(monkeypatch, asked):
    """With HF_HUB_OFFLINE not even a connection is tried."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="is not on this machine"):
        find_checkpoint("no/such-model")
    assert asked == []


def test_find_checkpoint_refuses_an_unreachable_hub_at_once(asked):
    """Where no connection can be made, the hub's client, which tries for half a minute, is never called."""
    with pytest.raises(ModelError, match=r"the hub cannot be reached; put its checkpoint .* into a folder"):
        find_checkpoint("no/such-model")
    assert asked == ["connection"]
