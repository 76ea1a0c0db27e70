"""The record of a study: what it says of the command, and what it keeps to itself."""

from __future__ import annotations

import sys

import pytest

from neurosae.provenance import command_line, public


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/opt/env/bin/neurosae", "run", "analyses/a.yaml"], "neurosae run analyses/a.yaml"),
        (["neurosae", "run", "/srv/people/anna/study/a.yaml"], "neurosae run …/study/a.yaml"),
        (["neurosae", "run", "a.yaml", "--out=/srv/people/anna/x/out"], "neurosae run a.yaml --out=…/x/out"),
        (["neurosae", "run", "a.yaml", "--out", "/home/anna/out"], "neurosae run a.yaml --out …/out"),
        (["neurosae", "generate", "a.yaml", "either / or"], "neurosae generate a.yaml either / or"),
    ],
)
def test_command_names_no_folder_of_the_machine(monkeypatch, words, said):
    """Absolute paths lose what stands before their last two parts, and whose home they lie in."""
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == said


def test_public_records_hold_no_absolute_path(monkeypatch):
    """Nested values too; text that only begins with a slash and goes on over lines stays."""
    monkeypatch.setenv("HOME", "/home/anna")
    found = public({"a": ["/home/anna/model", {"b": "/srv/x/y/z"}], "text": "/a\nb", "n": 3})
    assert found == {"a": ["…/model", {"b": "…/y/z"}], "text": "/a\nb", "n": 3}
