"""Whatever takes long shows a bar: on a terminal, after a while, with a rate."""

from __future__ import annotations

import io
import re
from pathlib import Path

import neurosae.causal
from neurosae.causal import passes, progress
from neurosae.causal.edits import Edit
from neurosae.causal.passes import edited_outcomes
from neurosae.causal.progress import with_bar

PASSES = ("attention", "direct", "gradients", "lens", "material", "replacements", "sequences")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_alone(monkeypatch):
    """Count and rate once the wait is over; nothing before it, nothing where no one looks."""
    for stream, patience, shown in ((Terminal(), 0, True), (Terminal(), 60, False), (io.StringIO(), 0, False)):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(progress, "PATIENCE", patience)
        assert list(with_bar(iter([3, 1, 2]), "read")) == [3, 1, 2]
        assert ("read" in stream.getvalue()) == shown
        assert ("batch" in stream.getvalue()) == shown


def test_interventions_show_rows_and_their_rate(and_circuit, monkeypatch):
    """Every row with an edit is counted once."""
    d, stream = and_circuit.dictionary, Terminal()
    conditions = [(Edit(d.hook, "steer", "last", dictionary=d, features=(j,), dose=1.0),) for j in range(3)]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(passes, "PATIENCE", 0)
    edited_outcomes(and_circuit.stimuli.head(4), and_circuit.model, conditions, batch_tokens=20)
    assert "12/12" in stream.getvalue()
    assert "row/s" in stream.getvalue()


def test_every_loop_over_batches_has_a_bar():
    """Loops over batches of forward passes are those that take long."""
    folder = Path(neurosae.causal.__file__).parent
    for name in PASSES:
        loops = re.findall(r"for rows in (.*):", (folder / f"{name}.py").read_text(encoding="utf-8"))
        assert loops
        assert all(loop.startswith("with_bar(") for loop in loops if "length_buckets" in loop), name
