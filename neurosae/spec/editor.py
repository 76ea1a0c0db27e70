"""JSON Schema of designs and analyses, so that an editor completes and checks them while they are written.

    python -m neurosae.spec.editor docs/schema

The docstrings of the fields become tooltips. A file asks for its schema in its first line:

    # yaml-language-server: $schema=../docs/schema/analysis.schema.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from neurosae.errors import StoreError
from neurosae.spec.analysis import Analysis
from neurosae.spec.design import Design
from neurosae.spec.files import write_atomic

SCHEMAS = {"design.schema.json": Design, "analysis.schema.json": Analysis}
"""File name -> the record it describes."""


def schema_text(name: str) -> str:
    """The JSON Schema of one kind of file.

    Examples
    --------
    >>> json.loads(schema_text("design.schema.json"))["properties"]["frames"]["description"][:15]
    'Templates with '
    """
    schema = _without_null(SCHEMAS[name].model_json_schema(by_alias=True))
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


def _without_null(schema: Any) -> Any:
    """The schema without null, which no key of a file may hold: what is not wanted is left out."""
    if isinstance(schema, list):
        return [_without_null(part) for part in schema if part != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    parts = {
        key: _without_null(part)
        for key, part in schema.items()
        if key != "default" or isinstance(part, str | int | float)
    }
    if len(parts.get("anyOf", ())) == 1:
        parts |= parts.pop("anyOf")[0]
    return parts


def write_schemas(folder: str | Path) -> list[Path]:
    """Write both schemas into a folder, and return their paths."""
    paths = [Path(folder) / name for name in SCHEMAS]
    for path in paths:
        write_atomic(path, schema_text(path.name))
    return paths


def main(arguments: list[str]) -> int:
    """Write the schemas into the folder that the command line names; 2 when it names none."""
    if len(arguments) != 1:
        print("usage: python -m neurosae.spec.editor FOLDER", file=sys.stderr)
        return 2
    try:
        for path in write_schemas(arguments[0]):
            print(path)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
