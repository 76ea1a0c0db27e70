"""JSON Schemas for editors: committed ones are fresh, accept the example files, and explain every key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from neurosae.spec.editor import SCHEMAS, main, schema_text
from neurosae.spec.load import parse_yaml

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schema"


def objects(schema):
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from objects(part)


@pytest.mark.parametrize("name", SCHEMAS)
def test_committed_schema_agrees_with_fresh(name):
    """After a change of the schemas: python -m neurosae.spec.editor docs/schema."""
    assert (FOLDER / name).read_text(encoding="utf-8") == schema_text(name)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_explains_every_key(name):
    """Every key has a tooltip, and every record refuses other keys."""
    for part in objects(json.loads(schema_text(name))):
        if part.get("type") == "object" and "properties" in part:
            assert part["additionalProperties"] is False
            assert all(field.get("description") for field in part["properties"].values()), part["title"]


def test_schema_agrees_with_example_files(study_files):
    """An editor finds nothing wrong with files that load, and something with a misspelt key."""
    jsonschema = pytest.importorskip("jsonschema")
    for path, text in study_files.items():
        kind = "design" if path.startswith("stimuli") else "analysis"
        validator = jsonschema.Draft202012Validator(json.loads(schema_text(f"{kind}.schema.json")))
        assert not list(validator.iter_errors(parse_yaml(text, name="x").data))
        misspelt = re.sub("^name:", "nmae:", text, flags=re.MULTILINE)
        assert list(validator.iter_errors(parse_yaml(misspelt, name="x").data))


def test_main_writes_schemas_or_refuses(tmp_path, capsys):
    """The command writes both files; without a folder or with a file in its way it says so."""
    assert main([str(tmp_path / "schema")]) == 0
    assert sorted(p.name for p in (tmp_path / "schema").iterdir()) == sorted(SCHEMAS)
    assert main([]) == 2
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file")]) == 1
    assert "error: cannot write" in capsys.readouterr().err
