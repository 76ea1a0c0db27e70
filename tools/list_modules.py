"""Write docs/modules.md: every module with the first sentence of its docstring, in the order of the layers.

    python tools/list_modules.py [--check]

A module imports only from layers above it in the table; `tests/test_architecture.py` holds the layers.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
HEAD = """# The house, module by module

Written by `python tools/list_modules.py` from the first sentence of every module. A module imports only from modules
with a smaller number; `tests/test_architecture.py` holds these numbers, and which module may import which third party.
Begin with `study` (the whole flow on one page), then `extraction.responses` (what a response is) and `stats.contrast`.

| layer | module | what it is |
|---|---|---|
"""


def layers() -> list[tuple[int, str]]:
    """(layer, module) in the order of the architecture test."""
    source = (ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LAYERS":
            text = ast.literal_eval(node.value)
            break
    else:
        raise SystemExit("tests/test_architecture.py holds no LAYERS")
    lines = [line.split() for line in text.strip().splitlines()]
    return sorted((int(words[0]), name) for words in lines for name in words[1:])


def first_sentence(module: str) -> str:
    """The first line of a module's docstring, safe in a table."""
    path = ROOT / "neurosae" / Path(*module.split(".")).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0].replace("|", "\\|").removesuffix(".")


def page() -> str:
    """The page as it should be."""
    return HEAD + "".join(f"| {layer} | `{name}` | {first_sentence(name)} |\n" for layer, name in layers())


def main() -> int:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the page is old")
    asked = parser.parse_args()
    if asked.check:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
