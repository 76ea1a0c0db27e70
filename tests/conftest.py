"""Fixtures that several test modules share; nothing here is downloaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _shared() -> Path | None:
    candidates = [os.environ.get("NEUROSAE_SHARED"), ROOT.parent / "shared", ROOT / "shared"]
    return next((Path(c) for c in candidates if c and (Path(c) / "data").is_dir()), None)


@pytest.fixture(autouse=True)
def threads_as_asked():
    """A test that leaves torch with more threads than the suite was given makes all later training wait for cores."""
    yield
    torch, asked = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and asked.isdecimal() and torch.get_num_threads() != int(asked):
        torch.set_num_threads(int(asked))


@pytest.fixture(scope="session")
def shared_data():
    """A function from a path inside the shared data to that file or folder; skips, naming it, where it is absent."""

    def find(name: str) -> Path:
        folder = _shared()
        if folder is None or not (folder / "data" / name).exists():
            pytest.skip(f"shared/data not available: {name}")
        return folder / "data" / name

    return find


@pytest.fixture(scope="session")
def oracles():
    """A function from the name of an oracle file to its path; skips, naming it, where it is absent."""

    def find(name: str) -> Path:
        folder = _shared()
        if folder is None or not (folder / "oracles" / name).exists():
            pytest.skip(f"shared/oracles not available: {name}")
        return folder / "oracles" / name

    return find
