"""Run every benchmark in a process of its own, print one table, and with --docs write docs/benchmarks.md.

    python benchmarks/run.py [--docs] [NAME ...]

With names, --docs renews the rows of these files and keeps the others. Exit status 1 if a floor is not reached. The
peers are the dependency group `bench`; `make bench` installs them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
INTRO = """# Benchmarks

Measured by `make bench` (`python benchmarks/run.py --docs`), one thread, CPU time, minimum over repeats, peer and
neurosae in one process on the same arrays; results are asserted to be equal before a clock is read. A ratio is the time
of the peer over ours. `u` is the CPU time of a 2048 x 2048 x 2048 float32 matrix product in the same process. The floor
is what the suite asserts; "reported" rows have none. Peers run at their best: nilearn is asserted with dead columns
removed for it. It needs one call per contrast where ours takes three in one pass; one contrast against one call is
reported beside it. Machines differ: read ratios, not digits.

Data are simulated (`benchmarks/common.py`): N stimuli = 4 x items of a 2 x 2 design within items, densities log-uniform
with sum L0 = 64 over 24,576 features, half of it in about 49 features that nearly all stimuli share.
"""
PACKAGES = ("numpy", "scipy", "numba", "statsmodels", "nilearn", "mne", "scikit-learn", "rsatoolbox")


def main() -> int:
    """Run what was asked for; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="maxt, glm, …; all by default")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md")
    asked = parser.parse_args()
    files = sorted(HERE.glob("bench_*.py"))
    files = [f for f in files if not asked.names or f.stem.removeprefix("bench_") in asked.names]
    status, rows = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            out = Path(folder) / f"{file.stem}.jsonl"
            print(f"== {file.stem}", flush=True)
            done = subprocess.run([sys.executable, str(file)], env={**os.environ, "BENCH_ROWS": str(out)}, check=False)
            status |= done.returncode != 0
            found = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
            rows += [json.loads(line) | {"file": file.name} for line in found]
    if asked.docs:
        path = HERE.parent / "docs" / "benchmarks.md"
        path.write_text(page(rows, old_lines(path, {file.name for file in files})), encoding="utf-8")
    print(f"{len(rows)} rows, {sum(not row['ok'] for row in rows)} below their floor")
    return int(status)


def old_lines(path: Path, renewed: set[str]) -> list[str]:
    """The lines of the page that stand for other files than those that were run now."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    known = [(line, line.strip("| ").rpartition("| ")[2].strip()) for line in lines if line.endswith(".py |")]
    return [line for line, name in known if name not in renewed and (HERE / name).is_file()]


def page(rows: list[dict], kept: list[str]) -> str:
    """The rows as a Markdown page, in the order of the files."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if present(name))
    lines = [INTRO, f"Python {platform.python_version()}, {platform.machine()}; {versions}.", ""]
    lines += ["| goal | what | reached | bound | times | file |", "|---|---|---|---|---|---|"]
    made = list(kept)
    for row in rows:
        value = f"{row['value']:,.0f}" if abs(row["value"]) >= 100 else f"{row['value']:.3g}"
        failed = "" if row["ok"] else " **not reached**"
        what = row["what"].replace("|", "\\|")
        made.append(f"| {row['goal']} | {what} | {value} | {row['bound']}{failed} | {row['note']} | {row['file']} |")
    made.sort(key=lambda line: line.split("| ")[-1])  # stable: rows of one file keep their order
    return "\n".join([*lines, *made]) + "\n"


def present(name: str) -> bool:
    """Whether a package is installed."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
