"""What a result rests on: versions, machine, hashes, model, dictionaries, counts. One JSON-able record per study."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from neurosae.spec.files import content_hash

PACKAGES = (
    *("neurosae", "torch", "transformers", "transformer-lens", "sae-lens", "tokenizers", "anndata", "zarr"),
    *("numpy", "scipy", "pandas", "numba", "statsmodels", "pingouin", "rsatoolbox", "scikit-learn"),
)


def versions() -> dict[str, str]:
    """Version of Python and of every package that a number may depend on; a missing one says so.

    Examples
    --------
    >>> versions()["python"].count(".")
    2
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor family, BLAS architectures and thread counts of this process."""
    from threadpoolctl import threadpool_info

    pools = threadpool_info()
    blas = [
        f"{p['internal_api']} {p.get('architecture', '')} {p['version']}".strip()
        for p in pools
        if p["user_api"] == "blas"
    ]
    threads = {p["internal_api"]: p["num_threads"] for p in pools}
    return {"blas": sorted(set(blas)), "threads": threads, "processor": platform.machine(), "cores": os.cpu_count()}


def command_line() -> str:
    """The command as typed, the program by its name only, absolute paths by their last two parts."""
    name = os.path.basename(sys.argv[0]) or "python"  # noqa: PTH119
    words = [re.sub(r"^(--[\w-]+=)?(/.+)$", lambda m: (m[1] or "") + _short(m[2]), word) for word in sys.argv[1:]]
    return " ".join(["python -m neurosae" if name == "__main__.py" else name, *words])


def table_hash(table: pd.DataFrame) -> str:
    """Hash of a table's columns, index and values.

    Examples
    --------
    >>> a = pd.DataFrame({"x": [1, 2]}); b = pd.DataFrame({"x": [1, 3]})
    >>> table_hash(a) == table_hash(a.copy()), table_hash(a) == table_hash(b)
    (True, False)
    """
    return content_hash(table.to_csv(lineterminator="\n"))


def counts(results: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Per test: features in total, tested, untestable, degenerate and dead, over its sites, regions and effects.

    Examples
    --------
    >>> table = pd.DataFrame({"test": "a", "kind": "contrast", "status": ["ok", "dead"], "n_features": [1, 9]})
    >>> counts(table)["a"]["m_total"], counts(table)["a"]["dead"]
    (10, 9)
    """
    out: dict[str, dict[str, Any]] = {}
    for name, rows in results.groupby("test", sort=False, observed=True):
        by_status = rows.groupby("status", observed=True)["n_features"].sum()
        status = {s: int(by_status.get(s, 0)) for s in ("ok", "degenerate", "untestable", "dead", "failed")}
        out[str(name)] = {
            "kind": str(rows["kind"].iloc[0]),
            "m_total": sum(status.values()),
            "m_kept": status["ok"] + status["degenerate"],
            **{k: status[k] for k in ("untestable", "dead", "failed")},
        }
    return out


def families(results: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Each declared or implied family: its sentence, its tests and its size."""
    tested = results[results["p_corr"].notna()]
    out: dict[str, dict[str, Any]] = {}
    for family, rows in tested.groupby("family", sort=False, observed=True):
        size = rows["n_family"].max()
        out[str(family)] = {"tests": sorted(set(rows["test"])), "n": int(size)}
    return out


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without absolute paths of the user's machine: a path is reduced to its last two parts."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        if isinstance(value, str) and value.startswith(os.sep) and "\n" not in value:
            return _short(value)
        return value

    return clean(record)


def _short(path: str) -> str:
    """The last two parts of an absolute path; of one in the home folder, those that stand inside of it."""
    home = os.path.join(os.path.expanduser("~"), "")  # noqa: PTH111, PTH118
    parts = [part for part in Path(path.removeprefix(home)).parts if part != os.sep]
    return str(Path("…", *parts[-2:]))
