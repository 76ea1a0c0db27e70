"""What runs keep for the next, `<out>/_store`: how large it is, how old, whose; and how to remove it.

    <out>/_store/<hash12>/               responses of one extraction
    <out>/_store/dictionaries/<hash12>/  trained and fitted dictionaries
    <out>/_store/activations/            rows that dictionaries were trained from
    <out>/_store/texts/, answers/        what a model or a judge wrote

All of it can be made again from the study files; results and reports lie elsewhere and are never touched.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pandas as pd

from neurosae.errors import StoreError
from neurosae.spec.files import lock

KINDS = ("dictionaries", "activations", "texts", "answers")
COLUMNS = ["kind", "name", "bytes", "days", "used_by"]


def cache_table(out: str | Path = "results") -> pd.DataFrame:
    """List what is kept, the oldest first.

    Parameters
    ----------
    out : folder of all studies

    Returns
    -------
    DataFrame
        `kind` (responses, dictionaries, activations, texts, answers), `name`, `bytes`, `days` since it was last
        written, and `used_by`: the studies whose results rest on it, as far as their provenance names it

    Raises
    ------
    StoreError
        If the folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = Path(folder) / "_store" / "0123456789ab"
    ...     made.mkdir(parents=True)
    ...     _ = (made / "key.json").write_text("{}")
    ...     cache_table(folder)[["kind", "name", "bytes"]].values.tolist()
    [['responses', '0123456789ab', 2]]
    """
    store, named = Path(out) / "_store", _named(Path(out))
    if not Path(out).is_dir():
        raise StoreError(f"{out} is no folder of studies; name it with --out.")
    rows = []
    for kind, path in _entries(store):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        facts = [file.stat() for file in files]
        written = max((fact.st_mtime for fact in facts), default=path.stat().st_mtime)
        days = max(time.time() - written, 0) / 86_400
        users = sorted(study for study, text in named.items() if path.stem[:12] in text)
        rows.append((kind, path.name, sum(fact.st_size for fact in facts), days, ", ".join(users)))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("days", ascending=False, ignore_index=True)


def prune_cache(
    out: str | Path = "results", *, older_than: float | None = None, keep: float | None = None
) -> pd.DataFrame:
    """Remove what is old, or the oldest until the rest is small enough; what a run holds is left and said.

    Parameters
    ----------
    out : folder of all studies
    older_than : days since an entry was last written
    keep : bytes that may stay

    Returns
    -------
    DataFrame
        As `cache_table`, the rows that were chosen, with `removed`; False where a run was using the entry

    Raises
    ------
    StoreError
        If neither rule is given, one is negative, or an entry cannot be removed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = Path(folder) / "_store" / "0123456789ab"
    ...     made.mkdir(parents=True)
    ...     _ = (made / "key.json").write_text("{}")
    ...     len(prune_cache(folder, older_than=30)), len(prune_cache(folder, keep=0)), made.exists()
    (0, 1, False)
    """
    if older_than is None and keep is None:
        raise StoreError("nothing says what to remove; give --older-than DAYS, --keep SIZE (2GB, say), or both.")
    if min(older_than or 0, keep or 0) < 0:
        raise StoreError("--older-than and --keep cannot be negative.")
    table = cache_table(out)
    chosen = pd.Series(False, index=table.index)
    if older_than is not None:
        chosen |= table["days"] >= older_than
    if keep is not None:
        left = table["bytes"].where(~chosen, 0)
        stays = left[::-1].cumsum()[::-1]  # with everything that is younger
        chosen |= (stays > keep) & (left > 0)
    table = table[chosen].reset_index(drop=True)
    return table.assign(
        removed=[_remove(Path(out) / "_store", kind, name) for kind, name in table[["kind", "name"]].values]
    )


def kept(out: str | Path = "results") -> str:
    """`cache_table` as text for a terminal."""
    table = cache_table(out)
    if table.empty:
        return f"nothing is kept in {Path(out) / '_store'}"
    shown = table.assign(size=table["bytes"].map(in_words), days=table["days"].map("{:.0f}".format))
    lines = shown[["kind", "name", "size", "days", "used_by"]].to_string(index=False)
    return f"{lines}\n{len(table)} entries, {in_words(table['bytes'].sum())}"


def pruned(out: str | Path = "results", *, older_than: float | None = None, keep: str | None = None) -> str:
    """`prune_cache`, and what it did as a line; `keep` is a size such as 2GB."""
    table = prune_cache(out, older_than=older_than, keep=None if keep is None else bytes_of(keep))
    gone = int(table.loc[table["removed"].astype(bool), "bytes"].sum())
    held = table.loc[~table["removed"].astype(bool), "name"].tolist()
    left = f"; in use by a run, so left: {', '.join(held)}" if held else ""
    return f"{in_words(gone)} removed, {in_words(cache_table(out)['bytes'].sum())} kept{left}"


def in_words(n: float) -> str:
    """A number of bytes, in decimal units.

    Examples
    --------
    >>> in_words(850), in_words(1_250_000), in_words(3e9)
    ('850 bytes', '1.2 MB', '3.0 GB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1_000 or unit == "GB":
            return f"{n:.0f} bytes" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1_000
    return ""


def bytes_of(size: str) -> float:
    """Bytes of a size such as `500MB`, `2 GB` or `1e9`.

    Examples
    --------
    >>> bytes_of("1.5GB"), bytes_of("10 kb"), bytes_of("1e9")
    (1500000000.0, 10000.0, 1000000000.0)
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)b?\s*", size, re.IGNORECASE)
    try:
        return float(found[1]) * 1_000 ** " kmgt".index(found[2].lower() or " ")  # type: ignore[index]
    except (TypeError, ValueError):
        raise StoreError(f"'{size}' is no size; write 500MB or 2GB.") from None


def _entries(store: Path) -> list[tuple[str, Path]]:
    """Every entry with its kind; files of a run in progress (dotted) are none."""
    if not store.is_dir():
        return []
    found = [(kind, path) for kind in KINDS if (store / kind).is_dir() for path in (store / kind).iterdir()]
    found += [("responses", path) for path in store.iterdir() if path.is_dir() and path.name not in KINDS]
    return [(kind, path) for kind, path in found if not path.name.startswith(".") and path.name != "lock"]


def _named(out: Path) -> dict[str, str]:
    """The provenance of each study, as text: the hash of whatever it names is found in it."""
    records = sorted(out.glob("*/provenance.json"))
    return {path.parent.name: path.read_text(encoding="utf-8", errors="replace") for path in records}


def _remove(store: Path, kind: str, name: str) -> bool:
    path = store / name if kind == "responses" else store / kind / name
    try:
        if path.is_file():
            path.unlink()
            return True
        with lock(path):
            aside = path.with_name(f".tmp-removed-{path.name}")
            path.rename(aside)  # at once: nobody reads the half of it
        shutil.rmtree(aside)
    except StoreError:
        return False
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {(error.strerror or str(error)).lower()}.") from error
    return True
