"""Files and folders that are either complete or absent: atomic writes, content hashes, a lock, free space.

Everything is written under a temporary name in the same folder (so that the rename stays inside one file system),
flushed, fsynced and renamed. A crash leaves the old file, and at most a temporary one whose name starts with
`.tmp-` and which nothing ever reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from neurosae.errors import StoreError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder with --out",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder with --out",
    errno.EACCES: "permission denied; choose a folder that you may write to with --out",
    errno.EPERM: "permission denied; choose a folder that you may write to with --out",
    errno.EROFS: "the file system is read-only; choose another folder with --out",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EEXIST: "a part of its path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


def _refusal(path: Path, error: OSError) -> StoreError:
    reason = _REASONS.get(error.errno or 0) or (error.strerror or str(error) or type(error).__name__).rstrip(".")
    return StoreError(f"cannot write {path}: {reason}.")


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a whole file, or leave what was there before.

    Parameters
    ----------
    path : path of the file; missing parent folders are made
    data : bytes, or str (written as UTF-8, line ends untouched)

    Raises
    ------
    StoreError
        The disk is full, or the folder cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "card.json", "{}")
    ...     [p.name for p in Path(folder).iterdir()]
    ['card.json']
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """A temporary sibling to write to (a file or a folder), renamed onto `path` when the block succeeds.

    The temporary name keeps the suffix, because numpy and matplotlib read it. A folder that exists already is
    replaced as a whole. On an error, Ctrl-C included, the temporary is removed and `path` is untouched.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "site.zarr") as temporary:
    ...         temporary.mkdir()
    ...         _ = (temporary / "0.0").write_bytes(b"chunk")
    ...     (Path(folder) / "site.zarr" / "0.0").read_bytes()
    b'chunk'
    """
    path = Path(path)
    temporary = _sibling(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if not temporary.exists():
            raise StoreError(f"cannot write {path}: nothing was written to its temporary name.")
        _sync(temporary)
        _rename(temporary, path)
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        _remove(temporary)


def _sibling(path: Path) -> Path:
    return path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # a part of its path may be a file
            path.unlink()


def _sync(path: Path) -> None:
    """Force a file, or every file of a folder, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(temporary: Path, path: Path) -> None:
    # os.replace cannot put a folder onto a folder that has content: the old one steps aside, and comes back on failure.
    aside = _sibling(path) if path.is_dir() and not path.is_symlink() else None
    if aside is not None:
        path.rename(aside)
    try:
        temporary.replace(path)
    except OSError:
        if aside is not None:
            aside.rename(path)
        raise
    _sync_folder(path.parent)
    if aside is not None:
        _remove(aside)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def content_hash(*parts: object) -> str:
    """SHA-256 (hex) of bytes, strings and JSON values; the boundary between parts counts.

    JSON is canonical (sorted keys), so two dicts that are equal hash alike; where order matters, hash the text.

    Examples
    --------
    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    >>> content_hash("ab", "c") == content_hash("a", "bc")
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes | bytearray | memoryview):
            kind, data = b"b", bytes(part)
        elif isinstance(part, str):
            kind, data = b"s", part.encode("utf-8", "surrogatepass")
        else:
            text = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
            kind, data = b"j", text.encode("ascii")
        digest.update(kind + len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 (hex) of a file, read in pieces.

    Raises
    ------
    StoreError
        The file is missing or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "empty", b"")
    ...     file_hash(Path(folder) / "empty")[:12]
    'e3b0c44298fc'
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from error


@contextmanager
def lock(folder: str | Path) -> Generator[Path]:
    """Hold `<folder>/lock` while the block runs, so that two runs never write into one study.

    The file names the process, its start and the machine. The lock of a dead process is taken over; a lock that
    was made on another machine counts as live, because nobody can ask that machine.

    Raises
    ------
    StoreError
        Another run holds the lock, or the folder cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with lock(folder) as held:
    ...         held.exists()
    ...     held.exists()
    True
    False
    """
    folder = Path(folder)
    require_writable(folder)
    path = folder / "lock"
    mine = json.dumps({"pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()})
    _acquire(path, mine)
    try:
        yield path
    finally:
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _acquire(path: Path, mine: str) -> None:
    for _ in range(10):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(mine)
            return
        except FileExistsError:
            theirs = _read(path)
        except OSError as error:
            raise _refusal(path, error) from error
        if theirs is not None:
            _evict(path, theirs)
    raise StoreError(f"cannot lock {path.parent}: other runs keep taking the lock; wait until they are done.")


def _evict(path: Path, theirs: str) -> None:
    """Remove a lock whose process is dead; refuse when it lives."""
    holder = _holder(theirs)
    if holder is not None:
        raise StoreError(f"{path.parent} is in use by {holder}; wait until it is done, or delete {path} if it is over.")
    # Two runs may see the same dead lock: each takes it aside first, and returns what turns out to be a fresh one.
    aside = _sibling(path)
    try:
        path.rename(aside)
        if _read(aside) != theirs:
            aside.rename(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def _holder(text: str) -> str | None:
    """Who holds a lock, in words, or None when nobody does any more."""
    try:
        record = json.loads(text)
        pid, started, host = int(record["pid"]), record["started"], str(record["host"])
    except (ValueError, TypeError, KeyError):
        return None
    if host != socket.gethostname():
        return f"process {pid} on {host}"
    alive = _started(pid)
    return f"process {pid}" if alive is not None and alive == started else None


def _started(pid: int) -> str | None:
    """When a process started ("?" where the system does not say), None when there is no such process.

    The start distinguishes a process from a later one with the same number.
    """
    if pid <= 0:  # to os.kill these are groups of processes
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return None
    except PermissionError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def require_writable(folder: str | Path) -> None:
    """Make the folder if need be, and refuse before any work is done when nothing can be written into it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     require_writable(Path(folder) / "results")
    """
    folder = Path(folder)
    probe = folder / f".tmp-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _refusal(folder, error) from error


def require_space(folder: str | Path, n_bytes: int) -> None:
    """Refuse before any work is done when the disk of `folder` has fewer than `n_bytes` free.

    Examples
    --------
    >>> require_space(".", 1)
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise StoreError(
            f"{folder} needs {n_bytes / 1e6:,.0f} MB, but its disk has {free / 1e6:,.0f} MB free; "
            "free some space or choose another folder with --out."
        )
