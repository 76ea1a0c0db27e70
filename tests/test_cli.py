"""The command line as a user meets it: help, exit codes, one-line errors, Ctrl-C, no traceback without --debug."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
DESIGN, ANALYSIS = ROOT / "stimuli" / "number_agreement.yaml", ROOT / "analyses" / "number_agreement.yaml"


def neurosae(*words, cwd=None, **env):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "neurosae.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | env, check=False)


def test_help_teaches():
    """Every verb is listed with what it does."""
    out = neurosae("--help").stdout
    for verb in ("check", "expand", "train", "extract", "test", "report", "run"):
        assert f"\n  {verb}" in out
    assert "results/number_agreement/report.html" in out


def test_check_prints_the_design_table():
    """Cells, exchangeability and smallest p, without a model."""
    done = neurosae("check", ANALYSIS)
    assert done.returncode == 0, done.stderr
    assert "2^24 = 16,777,216 relabellings" in done.stdout
    assert "pre_verb" in done.stdout


@pytest.mark.parametrize("name", ["number_agreement", "achievement", "composition"])
def test_check_accepts_every_shipped_design(name):
    """All shipped YAML is valid."""
    done = neurosae("check", ROOT / "stimuli" / f"{name}.yaml")
    assert done.returncode == 0, done.stderr


def test_expand_writes_the_stimulus_table(tmp_path):
    """One row per text, with character spans."""
    done = neurosae("expand", DESIGN, "-o", tmp_path / "stimuli.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "stimuli.csv")
    assert len(table) == 384
    assert all(
        t[a:b] == t.split()[1] for t, a, b in zip(table["text"], table["head_start"], table["head_end"], strict=True)
    )


def test_a_typo_is_one_line_with_file_line_and_remedy(tmp_path):
    """A misspelt key is refused with the nearest known one, exit code 1 and no traceback."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(DESIGN.read_text().replace("partition:", "partitoin:"))
    done = neurosae("check", bad)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "bad.yaml:12: partitoin: unknown key. Did you mean 'partition'?" in done.stderr
    assert "Traceback" in neurosae("check", bad, "--debug").stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["check", "nowhere.yaml"], 1, "nowhere.yaml"),
        (["report", "nowhere"], 1, "no such folder"),
        (["expand", str(DESIGN), "-o", "table.xlsx"], 1, ".csv or .parquet"),
        (["walk"], 2, "walk"),
        (["run"], 2, "analysis"),
    ],
)
def test_refusals_have_exit_codes(tmp_path, words, *, code, message):
    """1 is a refusal with one line, 2 is wrong usage."""
    done = neurosae(*words, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_one_line(tmp_path):
    """A folder that does not exist, and a hub id without a network."""
    for name, message in (("./nowhere", "model.name: there is no model"), ("nobody/no-such-model", "no-such-model")):
        text = ANALYSIS.read_text().replace("name: embedded", f"name: {name}")
        text = text.replace("../stimuli", str(DESIGN.parent)).replace("embedded: early", "neurons: true")
        (tmp_path / "stimuli").mkdir(exist_ok=True)
        (tmp_path / "analyses").mkdir(exist_ok=True)
        (tmp_path / "stimuli" / DESIGN.name).write_text(DESIGN.read_text())
        path = tmp_path / "analyses" / "a.yaml"
        path.write_text(text.replace(str(DESIGN.parent), "../stimuli"))
        done = neurosae("run", path, "-o", tmp_path / "results", "--offline")
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_an_unwritable_folder_is_one_line(tmp_path):
    """A file where the results folder should be."""
    (tmp_path / "results").write_text("a file")
    done = neurosae("run", ANALYSIS, "-o", tmp_path / "results")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "bars"), [([], True), (["--quiet"], False)])
def test_quiet_shows_no_progress_bars(tmp_path, words, *, bars):
    """At a terminal there are bars, with --quiet there are none; what the verb says stays."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a terminal of no width has no bars
    command = [sys.executable, "-m", "neurosae.cli", "calibrate", "--sets", "2", "--out", str(tmp_path), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, check=False, timeout=300)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone: everything was read
        while part := os.read(master, 65536):
            shown += part
    os.close(master)
    assert done.returncode == 0, shown.decode()
    assert (b"calibrate" in shown) is bars
    assert done.stdout


def test_interrupt_exits_130_and_leaves_nothing_half_written(tmp_path):
    """Ctrl-C while the model loads: one line, exit code 130, no lock left behind."""
    command = [sys.executable, "-m", "neurosae.cli", "run", str(ANALYSIS), "-o", str(tmp_path)]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background would pass on to ignore it
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, preexec_fn=heed)
    folder = tmp_path / "number_agreement"
    for _ in range(600):
        if (folder / "stimuli.csv").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (folder / "lock").exists()
    assert not (folder / "results.parquet").exists()


def test_nothing_uses_the_network():
    """`check` and the imports of a run open no socket, even if they try."""
    code = (
        "import socket, os, sys\n"
        "def trap(*a, **k): raise AssertionError('network')\n"
        "socket.create_connection = trap; socket.socket.connect = trap\n"
        "import neurosae as ns\n"
        "os.environ.update(ns.OFFLINE)\n"
        "model = ns.load_model('embedded')\n"
        "print(model.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
