"""Files that are complete or absent: what was there survives full disks, missing rights and crashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from neurosae.errors import StoreError
from neurosae.spec.files import (
    atomic_path,
    content_hash,
    file_hash,
    lock,
    require_space,
    require_writable,
    write_atomic,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


# ------------------------------------------------------------------ recovers, invariant


@pytest.mark.parametrize("data", ["wörter\r\nand more", b"\x00\xff", "", b""])
def test_write_atomic_recovers_bytes(tmp_path, data):
    """What is read back is what was given, and no temporary file stays."""
    write_atomic(tmp_path / "new" / "file.bin", data)
    expected = data.encode() if isinstance(data, str) else data
    assert (tmp_path / "new" / "file.bin").read_bytes() == expected
    assert names(tmp_path / "new") == ["file.bin"]


def test_atomic_path_replaces_whole_folder(tmp_path):
    """A folder is replaced as a whole: nothing of the old one is left."""
    for content in ("old", "new"):
        with atomic_path(tmp_path / "site.zarr") as temporary:
            (temporary / "part").mkdir(parents=True)
            (temporary / "part" / content).write_text(content)
    assert names(tmp_path) == ["site.zarr"]
    assert names(tmp_path / "site.zarr" / "part") == ["new"]


def test_atomic_path_keeps_suffix(tmp_path):
    """Libraries that choose a format by its suffix write where they are told."""
    with atomic_path(tmp_path / "null.npy") as temporary:
        assert temporary.suffix == ".npy"
        temporary.write_bytes(b"x")


def test_content_hash_invariant_to_key_order_only():
    """Equal values hash alike in any order of keys; other values, types or boundaries do not."""
    parts = [
        ({"a": 1, "b": [1, 2]},),
        ({"b": [2, 1], "a": 1},),
        ("ab", "c"),
        ("a", "bc"),
        (b"ab", "c"),
        ("1",),
        (1,),
        (),
    ]
    hashes = [content_hash(*p) for p in parts]
    assert len(set(hashes)) == len(parts)
    assert content_hash({"b": [1, 2], "a": 1}) == hashes[0]


def test_content_hash_agrees_over_processes():
    """The hash does not depend on the process, as Python's own does."""
    code = "from neurosae.spec.files import content_hash; print(content_hash('x', {'b': 1, 'a': [2.5, None]}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == content_hash("x", {"a": [2.5, None], "b": 1})


def test_file_hash_agrees_with_hashlib(tmp_path):
    """A file larger than one piece has the SHA-256 of its bytes."""
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert file_hash(tmp_path / "f") == hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    "fault",
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "permission denied"), (errno.EIO, "output error")],
)
@pytest.mark.parametrize("step", ["write_bytes", "fsync", "replace"])
def test_write_atomic_refuses_and_keeps_old_file(tmp_path, fault, step):
    """Whichever step fails, the old file stays, no temporary is left, and the reason is one sentence."""
    write_atomic(tmp_path / "results.csv", "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, failing(fault[0]))
        with pytest.raises(StoreError, match=rf"^cannot write .*results\.csv: .*{fault[1]}"):
            write_atomic(tmp_path / "results.csv", "new")
    assert (tmp_path / "results.csv").read_text() == "old"
    assert names(tmp_path) == ["results.csv"]


def test_atomic_path_keeps_old_folder_when_rename_fails(tmp_path, monkeypatch):
    """The old folder, which steps aside for the new one, comes back."""
    write_atomic(tmp_path / "site.zarr" / "old", "old")
    monkeypatch.setattr(Path, "replace", failing(errno.ENOSPC))
    with pytest.raises(StoreError, match="disk is full"), atomic_path(tmp_path / "site.zarr") as temporary:
        fill(temporary / "new")
    monkeypatch.undo()
    assert names(tmp_path / "site.zarr") == ["old"]
    assert names(tmp_path) == ["site.zarr"]


def fill(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text("new")


def test_crash_before_rename_keeps_old_file(tmp_path):
    """A process that dies between write and rename leaves the old file, and a temporary that nothing reads."""
    write_atomic(tmp_path / "key.json", "old")
    code = (
        "import os, sys; from neurosae.spec.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n    t.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "key.json")], check=False).returncode == 9
    assert (tmp_path / "key.json").read_text() == "old"
    assert [name.startswith(".tmp-") for name in names(tmp_path)] == [True, False]


def write_half(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupt_leaves_nothing(tmp_path, error):
    """Ctrl-C and errors of the writer pass through and leave neither file nor temporary."""
    with pytest.raises(error):
        write_half(tmp_path / "x.parquet", error)
    assert names(tmp_path) == []


def test_atomic_path_refuses_an_empty_block(tmp_path):
    """A writer that wrote elsewhere is an error, not an absent file."""
    with pytest.raises(StoreError, match="nothing was written"), atomic_path(tmp_path / "x"):
        pass


def test_require_writable_refuses(tmp_path, monkeypatch):
    """A file in the way and missing rights are refused before any work."""
    require_writable(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        require_writable(tmp_path / "file" / "results")
    monkeypatch.setattr(Path, "touch", failing(errno.EACCES))
    with pytest.raises(StoreError, match=r"permission denied; choose a folder that you may write to with --out\.$"):
        require_writable(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_require_writable_refuses_read_only_folder(tmp_path):
    """A folder without write permission is refused."""
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="permission denied"):
        require_writable(tmp_path)
    tmp_path.chmod(0o700)


def test_require_space_refuses(tmp_path, monkeypatch):
    """Too little space is refused with both sizes, also for a folder that does not exist yet."""
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 5 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    require_space(tmp_path / "not" / "yet", 5 * 10**6)
    with pytest.raises(StoreError, match="needs 6 MB, but its disk has 5 MB free"):
        require_space(tmp_path / "not" / "yet", 6 * 10**6)


def test_file_hash_refuses_missing_file(tmp_path):
    """A missing file is one sentence."""
    with pytest.raises(StoreError, match=r"cannot read .*none: no such file"):
        file_hash(tmp_path / "none")


# ------------------------------------------------------------------ lock


def test_lock_refuses_second_run(tmp_path):
    """A second run, from this or from another process, is refused by name; afterwards the lock is gone."""
    code = "import sys; from neurosae.spec.files import lock\nwith lock(sys.argv[1]): print('held')"
    with lock(tmp_path) as held:
        with (
            pytest.raises(StoreError, match=rf"is in use by process {os.getpid()}; wait until it is done"),
            lock(tmp_path),
        ):
            pass
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert "StoreError" in other.stderr
        assert held.exists()
    assert names(tmp_path) == []


def test_lock_is_released_after_an_error(tmp_path):
    """Whatever happens inside, the lock is given back."""
    with pytest.raises(KeyboardInterrupt), lock(tmp_path):
        raise KeyboardInterrupt
    with lock(tmp_path) as held:
        assert held.name == "lock"


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"pid": -1, "started": "?", "host": "HOST"}', "DEAD", "REUSED"])
def test_stale_lock_is_taken_over(tmp_path, text):
    """The lock of a dead process, of a process number in use again, and a damaged one stop nobody."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    record = {
        "pid": dead.pid if text == "DEAD" else os.getpid(),
        "started": "another start",
        "host": socket.gethostname(),
    }
    text = json.dumps(record) if text in ("DEAD", "REUSED") else text.replace("HOST", socket.gethostname())
    (tmp_path / "lock").write_text(text)
    with lock(tmp_path) as held:
        assert json.loads(held.read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_lock_of_another_machine_is_live(tmp_path):
    """Nobody can ask another machine, so its lock holds, and the sentence says what to delete."""
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "started": "1", "host": "elsewhere"}))
    with (
        pytest.raises(StoreError, match=r"process 1 on elsewhere; .* or delete .*lock if it is over\.$"),
        lock(tmp_path),
    ):
        pass
    assert names(tmp_path) == ["lock"]


def test_lock_taken_over_by_somebody_else_is_left_alone(tmp_path):
    """A lock that is no longer ours is not removed when we end."""
    with lock(tmp_path) as held:
        held.write_text("somebody else's")
    assert held.read_text() == "somebody else's"
