"""Where a checkpoint comes from: a folder, this package, or the hub, whose cache is used before its network."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurosae.errors import ModelError
from neurosae.spec.files import content_hash, file_hash

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "lm"
# set before transformers or huggingface_hub is imported, unless a hub id is asked for
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
}


def is_hub_id(name: str) -> bool:
    """Whether a model name can only be a hub id (`gpt2`, `EleutherAI/pythia-70m`), judged by its form.

    Examples
    --------
    >>> is_hub_id("gpt2"), is_hub_id("embedded"), is_hub_id("./gpt2"), is_hub_id("/models/gpt2")
    (True, False, False, False)
    """
    return name != "embedded" and re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) is not None


def find_checkpoint(source: str | Path) -> Path:
    """The folder of a checkpoint: a folder, `embedded`, or a hub id (looked up in its cache, then on the network).

    Raises
    ------
    ModelError
        In one sentence: what is missing, and where to put it.
    """
    source = str(source)
    folder = EMBEDDED if source == "embedded" else Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json; a model folder holds config.json, tokenizer.json, weights.")
        if not weight_files(folder):
            raise ModelError(f"{folder} has no weights (model.safetensors); copy them there.")
        return folder
    if source == "embedded":
        raise ModelError(f"the embedded model is missing from {folder}; install the package again.")
    if not is_hub_id(source):
        raise ModelError(f"model folder {source} does not exist; give a checkpoint folder, a hub id, or 'embedded'.")
    return _from_hub(source)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, safetensors before pickled ones."""
    found = [sorted(folder.glob(pattern)) for pattern in WEIGHTS]
    return next((files for files in found if files), [])


def _from_hub(name: str) -> Path:
    import huggingface_hub  # after the environment has been set: it reads HF_HUB_OFFLINE once

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str) and weight_files(Path(cached).parent):
        return Path(cached).parent
    missing = (
        f"model '{name}' is not on this machine and the hub cannot be reached; put its checkpoint (config.json, "
        "tokenizer.json, model.safetensors) into a folder and name that folder as `model: {name: path/to/folder}`."
    )
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"} or not _hub_answers():
        raise ModelError(missing)
    try:
        files = ["*.json", "*.safetensors", "*.model", "*.txt"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except Exception as error:  # its own tree of errors, requests' and the operating system's
        raise ModelError(f"{missing} ({first_line(error)})") from error


def _hub_answers() -> bool:
    """Whether the hub can be reached at all: without this, its client retries for half a minute."""
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    host = re.sub(r"^https?://|[:/].*$", "", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files, streamed."""
    return content_hash(*(file_hash(path) for path in weight_files(folder)))


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of the settings of a model, which the same weights compute with; names and versions are left out."""
    kept = {
        k: v for k, v in config.items() if k[0] != "_" and k not in ("transformers_version", "torch_dtype", "dtype")
    }
    return content_hash(json.dumps(kept, sort_keys=True, default=str))


def first_line(error: BaseException) -> str:
    """The first sentence of a foreign error, short enough for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
