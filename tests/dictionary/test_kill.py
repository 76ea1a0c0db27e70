"""Kill -9 at random moments, run again: the same bytes as a run that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import signal
import time

import numpy as np
import pytest

from tests.dictionary.killed import train


def bytes_of(folder):
    """Every file of both dictionaries; beside them lie the file of activations and, at most, what was never renamed."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".tmp-" not in str(p)]
    assert {p.relative_to(folder).parts[0] for p in files} <= {"a", "activations", "b"}
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def start():
    """A function that starts a training in a process of its own; all are forked from a server that has imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.dictionary.killed"])

    def run(folder, texts):
        child = context.Process(target=train, args=(str(folder), texts))
        child.start()
        return child

    return run


@pytest.mark.parametrize("source", ["texts", "samples"])
def test_kill_at_random_moments(start, toy_texts, tmp_path, *, source):
    """During sampling, extraction, training and writing."""
    texts = toy_texts if source == "texts" else None
    for name in ("warm", "whole"):
        began = time.monotonic()
        start(tmp_path / name, texts).join()
        seconds = time.monotonic() - began
    draws, killed = np.random.default_rng(len(source)), 0
    for attempt in range(20):
        child = start(tmp_path / "part", texts)
        share = draws.uniform(0.1, 0.6) * (1 + attempt / 4) if attempt else 0.05  # the first try cannot have finished
        child.join(None if attempt == 19 else seconds * share)
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0:
            break
    assert killed >= 1
    assert bytes_of(tmp_path / "part") == bytes_of(tmp_path / "whole")
