"""What is kept between runs is listed, and removed by age or size, never under a run."""

from __future__ import annotations

import json
import os
import time

import pytest
from typer.testing import CliRunner

import neurosae as ns
from neurosae.cache import bytes_of, cache_table, prune_cache
from neurosae.cli import app
from neurosae.errors import StoreError
from neurosae.spec.files import lock

ENTRIES = {  # bytes, days
    "aaaaaaaaaaaa/key.json": (100, 40),
    "bbbbbbbbbbbb/late.zarr/X": (300, 20),
    "texts/cccccccccccc.json": (50, 30),
    "dictionaries/dddddddddddd/weights": (400, 1),
}


@pytest.fixture
def out(tmp_path):
    """A folder of studies with four entries: bytes and days."""
    for name, (size, days) in ENTRIES.items():
        path = tmp_path / "_store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (time.time() - days * 86_400,) * 2)
    study = tmp_path / "near"
    study.mkdir()
    (study / "provenance.json").write_text(
        json.dumps({"responses": "b" * 64, "dictionaries": {"x": {"key": "d" * 64}}})
    )
    return tmp_path


def test_table_lists_everything_that_is_kept(out):
    """Kind, size, age and whose, the oldest first."""
    table = cache_table(out)
    assert table["kind"].tolist() == ["responses", "texts", "responses", "dictionaries"]
    assert table["name"].tolist() == ["a" * 12, "c" * 12 + ".json", "b" * 12, "d" * 12]
    assert table["bytes"].tolist() == [100, 50, 300, 400]
    assert table["days"].round().tolist() == [40, 30, 20, 1]
    assert table["used_by"].tolist() == ["", "", "near", "near"]


@pytest.mark.parametrize(
    ("rule", "left"),
    [({"older_than": 25}, "bd"), ({"older_than": 60}, "abcd"), ({"keep": 750}, "bcd"), ({"keep": 749}, "bd"),
     ({"keep": 0}, ""), ({"older_than": 35, "keep": 700}, "bd"), ({"older_than": 0.5}, "")],
)  # fmt: skip
def test_prune_removes_by_age_and_size(out, rule, left):
    """The oldest first, until the rest is small enough; results of studies stay."""
    removed = prune_cache(out, **rule)
    assert removed["removed"].all()
    assert sorted(name[0] for name in cache_table(out)["name"]) == sorted(left)
    assert len(removed) == 4 - len(left)
    assert (out / "near" / "provenance.json").is_file()
    assert not list((out / "_store").rglob(".tmp-*"))


def test_prune_leaves_what_a_run_holds(out):
    """A locked entry stays whole, and the row says so."""
    with lock(out / "_store" / ("a" * 12)):
        removed = prune_cache(out, keep=0).set_index("name")["removed"]
        assert not removed["a" * 12]
        assert removed.sum() == 3
        assert (out / "_store" / ("a" * 12) / "key.json").is_file()
    assert prune_cache(out, keep=0)["removed"].tolist() == [True]


def test_prune_refuses_without_a_rule(out, tmp_path):
    """Nothing is removed by default."""
    with pytest.raises(StoreError, match="nothing says what to remove; give --older-than DAYS"):
        prune_cache(out)
    with pytest.raises(StoreError, match="cannot be negative"):
        prune_cache(out, keep=-1)
    with pytest.raises(StoreError, match="no folder of studies"):
        cache_table(tmp_path / "none")
    assert len(cache_table(out)) == 4


@pytest.mark.parametrize(("size", "n"), [("2GB", 2e9), ("500 mb", 5e8), ("10", 10), ("1.5k", 1500)])
def test_sizes_are_read(size, n):
    """With and without a unit."""
    assert bytes_of(size) == n


@pytest.mark.parametrize("size", ["", "much", "2XB", "-1", "1.2.3"])
def test_sizes_that_are_none_are_refused(size):
    """With an example of one."""
    with pytest.raises(StoreError, match="is no size; write 500MB or 2GB"):
        bytes_of(size)


def test_the_command_lists_and_prunes(out):
    """Sizes in words, what was freed, and one line where nothing is kept."""
    run = CliRunner().invoke
    listed = run(app, ["cache", "--out", str(out)]).output
    assert "near" in listed
    assert "4 entries, 850 bytes" in listed
    pruned = run(app, ["cache", "--out", str(out), "--prune", "--keep", "400"])
    assert pruned.exit_code == 0, pruned.output
    assert "450 bytes removed, 400 bytes kept" in pruned.output
    assert run(app, ["cache", "--out", str(out), "--prune"]).exit_code == 1
    run(app, ["cache", "--out", str(out), "--prune", "--older-than", "0"])
    assert "nothing is kept" in run(app, ["cache", "--out", str(out)]).output
    assert list(ns.cache_table(out).columns) == ["kind", "name", "bytes", "days", "used_by"]


def test_rules_without_prune_are_refused(out):
    """--keep alone would look as if it had done something."""
    done = CliRunner().invoke(app, ["cache", "--out", str(out), "--keep", "1GB"])
    assert done.exit_code == 1
    assert len(cache_table(out)) == 4
