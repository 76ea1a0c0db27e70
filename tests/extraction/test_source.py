"""A missing checkpoint is one sentence: what is missing, and where to put it."""

from __future__ import annotations

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
