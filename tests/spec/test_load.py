"""Strict YAML: YAML 1.2 scalars, lines of every place, and one line per refusal whatever the file holds."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurosae.errors import SpecError
from neurosae.spec.analysis import load_analysis
from neurosae.spec.blocks import Inference
from neurosae.spec.design import load_design
from neurosae.spec.load import MAX_BYTES, as_record, load_yaml, parse_yaml


def refusal(text, name="x.yaml"):
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, name=name)
    return str(caught.value)


def value(text):
    return parse_yaml(f"a: {text}", name="x.yaml").data["a"]


# ------------------------------------------------------------------ recovers, agrees


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("y", "y"), ("true", True), ("False", False),
        ("012", 12), ("0o14", 12), ("0x0C", 12), ("1e3", 1000.0), ("1_000", "1_000"), ("-1", -1), (".5", 0.5),
        ("12:30:45", "12:30:45"), ("2001-01-01", "2001-01-01"), ("null", None), ("~", None), ("", None),
        ("'null'", "null"), ('"1812"', "1812"), ("-.inf", float("-inf")), ("=", "="), ("<<", "<<"),
        ("9" * 5000, float("inf")),
    ],
)  # fmt: skip
def test_parse_recovers_core_scalars(text, expected):
    """Plain scalars follow the YAML 1.2 core schema, not what stock readers make of them."""
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_parse_agrees_with_stock_reader():
    """Where nothing is ambiguous the values are those of yaml.safe_load."""
    text = "a: [1, two, {b: 'x: y', c: \"d\\te\"}]\ne:\n  - f\n  -\n    g: h\ni: |\n  two\n  lines\n"
    assert parse_yaml(text, name="x").data == yaml.safe_load(text)


def test_parse_recovers_lines_of_keys_and_entries():
    """Every key and list entry has its own line; a place that is not written has the line of what encloses it."""
    source = parse_yaml("a:\n  b:\n    - x\n    - y: 1\n\nc: {d: [\n  1,\n  2]}\n", name="x")
    assert [source.line(("a", "b", 0)), source.line(("a", "b", 1, "y")), source.line(("c", "d", 1))] == [3, 4, 8]
    assert [source.line(("a", "b", 9)), source.line(("a", "levels", "b", 1)), source.line(())] == [2, 4, 1]


def test_parse_agrees_between_parsers(study_files, monkeypatch):
    """The parser in C and the one in Python, used where the C library is absent, read the same values and lines."""
    fast = [parse_yaml(text, name="x") for text in study_files.values()]
    monkeypatch.setattr("neurosae.spec.load._Parser", yaml.SafeLoader)
    assert [parse_yaml(text, name="x") for text in study_files.values()] == fast
    assert "YAML: " in refusal("a: [1")
    assert "YAML: " in refusal('a: "\\UFFFFFFFF"')


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_parse_invariant_to_line_ends_and_byte_order_mark(ends):
    """Files from any system read the same, with the same lines."""
    plain, other = "a: 1\nb:\n  c: 2\n", "\ufeff" + "a: 1\nb:\n  c: 2\n".replace("\n", ends)
    assert parse_yaml(plain, name="x") == parse_yaml(other, name="x")


# ------------------------------------------------------------------ refuses


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3: a: is written twice (first in line 1); keep one."),
        ("a:\n  b: {c: 1, c: 2}", "x.yaml:2: a.b.c: is written twice (first in line 2); keep one."),
        ("a: 1\n1812: b", "x.yaml:2: file: the key 1812 is read as the number 1812; put it in quotes."),
        ("a:\n  true: b", "x.yaml:2: a: the key true is read as true; put it in quotes."),
        ("a:\n  null: b", "x.yaml:2: a: the key null is empty; put it in quotes."),
        ("?\n: b", "x.yaml:1: file: the key (nothing) is empty; put it in quotes."),
        ("? [a, b]\n: c", "x.yaml:1: file: has a key that is no word; put texts that begin with { [ * & ! in quotes."),
        ("a: &x 1", "x.yaml:1: a: uses an anchor or alias (& or *); write the value out, or put it in quotes."),
        ("a: 1\nb: *a", "x.yaml:2: b: uses an anchor or alias (& or *); write the value out, or put it in quotes."),
        ("a: !!python/object:os.system {}", "x.yaml:1: a: has the tag tag:yaml.org,2002:python/object:os.system; "
         "leave tags out (put a word in quotes)."),
        ("a: 1\n---\nb: 2", "x.yaml:2: file: a second document begins with ---; keep one document per file."),
        ("a:\n\tb: 1", "x.yaml:2: YAML: the line is indented with a tab; use blanks."),
        ("a: b\nc: \x07", "x.yaml:2: file: the character U+0007 cannot be read; is this a text file?"),
        ("a: b\u2028c", "x.yaml:1: file: the character U+2028 cannot be read; is this a text file?"),
        ("k" * 300 + ": 1", "x.yaml:1: file: has a key of 300 characters; is a quote or a colon missing?"),
    ],
)  # fmt: skip
def test_parse_refuses_in_one_line(text, message):
    """Whatever could be read in two ways is refused, with its line and a remedy."""
    assert refusal(text) == message


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "a: 'x", "a: b: c", "a: {b: 1}}", "pp: {head:x} is\nb: 1", "a\nb: 1", "@a"]
)
def test_parse_refuses_broken_yaml(text):
    """What is no YAML is refused with the line of the trouble."""
    assert refusal(text).startswith("x.yaml:")
    assert "YAML: " in refusal(text)


def test_parse_refuses_billion_laughs():
    """Nested aliases never unfold."""
    laughs = [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi")]
    assert "anchor or alias" in refusal("a: [x]\n" + "\n".join(laughs))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: " + "{b: " * 50_000, "\n".join(" " * i + "a:" for i in range(900))]
)
def test_parse_refuses_deep_nesting(text):
    """Depth ends in a refusal, not in a RecursionError."""
    assert "nested more than" in refusal(text)


def test_load_refuses_unreadable_files(tmp_path):
    """A missing file, a folder, other encodings and huge files are each named in one line."""
    (tmp_path / "design.yaml").write_text("a: 1")
    for path, pattern in (
        (tmp_path / "desing.yaml", r"desing.yaml: there is no such file. Did you mean .*design.yaml\?$"),
        (tmp_path, "no such file"),
        (tmp_path / ("x" * 300), "no such file"),
        (tmp_path / "none" / "x.yaml", "no such file"),
    ):
        with pytest.raises(SpecError, match=pattern):
            load_design(path)
    for content, pattern in (
        (b"a: b\nc: \xe9t\xe9", r"bad.yaml:2: file: byte 0xe9 is not UTF-8; save the file as UTF-8 text.$"),
        ("a: 1".encode("utf-16"), r"bad.yaml:1: file: byte 0xff is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", r"bad.yaml:1: file: byte 0x89"),
        (b"a: \0", r"bad.yaml:1: file: the character U\+0000"),
        (b"", r"bad.yaml:1: file: is empty"),
        (b"# only a comment\n", r"bad.yaml:1: file: is empty"),
        (b"---\n", r"bad.yaml:1: file: is empty"),
        (b"- a\n- b\n", r"bad.yaml:1: file: is a list; write a mapping of schema, name"),
        (b"hello", r"bad.yaml:1: file: is the word 'hello'; write a mapping"),
        (b" " * (MAX_BYTES + 1), r"bad.yaml:1: file: is larger than 20 MB"),
    ):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(SpecError, match=pattern):
            load_design(tmp_path / "bad.yaml")


def test_load_yaml_reports_first_problem_of_file(tmp_path):
    """Of several problems the one highest in the file is named."""
    path = tmp_path / "x.yaml"
    path.write_text("alpha: 2\nstatistic: tt\nmin_informative: 0\n")
    with pytest.raises(SpecError, match=r"x.yaml:1: alpha: is 2; it must be below 1.0.$"):
        load_yaml(path, Inference)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"correction": "maxt"}, "inference.correction: unknown correction 'maxt'. Did you mean 'maxT'?"),
        ({"n_permutation": 9}, "inference.n_permutation: unknown key. Did you mean 'n_permutations'?"),
        ({"alpha": True}, "inference.alpha: is true; write a number."),
        ({"n_permutations": 99.0}, "inference.n_permutations: is the number 99.0; write a whole number."),
        ("t", "inference: is the word 't'; write a mapping of statistic"),
    ],
)
def test_as_record_refuses_with_argument_name(value, message):
    """A Python argument is checked by the same schema, and named instead of a file."""
    with pytest.raises(SpecError) as caught:
        as_record(value, Inference, name="inference")
    assert str(caught.value).startswith(message)


def test_as_record_recovers_defaults():
    """None, an empty mapping and the record itself all give the record."""
    assert as_record(None, Inference, name="i") == as_record({}, Inference, name="i") == Inference()
    assert as_record(Inference(alpha=0.1), Inference, name="i").alpha == 0.1


# ------------------------------------------------------------------ whatever the file holds

JUNK = [
    "null", "yes", "1812", "[]", "{}", "[1, 2]", "{a: b}", "''", "\t", "- x", "&a", "*a", "!!x", "<<: *a", ": ", "{",
    "}", "[", '"', "'", "#", "|", ">", "\n", "  ", "\x00", "\u2028", "\ud800", "1e400", ".nan", "?", "---",
    "%YAML 1.1", "@", "a/b", "'{x}'", "{x:subject}", "sg", "head", "verb@start", "all", "item",
    "../../../../x", "é", "\U0001f600",
]  # fmt: skip
VALUES = [
    None, True, 0, -1, 3.5, float("nan"), "", " ", "x", "sg", "subject", "head", "all", "item", "a/b", "{x}", "cells",
    "{head:subject}", "/etc/passwd", "../../../x", "x" * 5000, [], {}, [1], ["sg", "sg"], {"sg": "x"}, [["a"]],
    [{"text": "q"}], 10**17, "localizer", "rsa", "number", "pre_verb@start", "middle_out", "start", "linear", "max",
]  # fmt: skip


def mutated_text(text, rng):
    for _ in range(rng.randint(1, 4)):
        i, piece = rng.randrange(len(text) + 1), rng.choice(JUNK)
        j = min(len(text), i + rng.choice([0, 0, 1, 5, 30]))
        text = text[:i] + (piece if rng.random() < 0.7 else text[j : j + 40]) + text[j:]
    return text


def mutated_values(data, rng):
    for _ in range(rng.randint(1, 3)):
        inner, key = data, rng.choice(list(data))
        while isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
            inner = inner[key]
            key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        change = rng.random()
        if change < 0.6:
            inner[key] = rng.choice(VALUES)
        elif change < 0.8 and len(data) > 1:
            del inner[key]
        elif isinstance(inner, dict):
            inner[rng.choice([f"{key}x", "sg", "item", 1812, None])] = inner.pop(key)
        if not data:
            break
    return yaml.dump(
        data, sort_keys=False, allow_unicode=True, Dumper=_Plain, default_flow_style=rng.choice([None, False])
    )


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


@pytest.fixture(scope="module")
def seeds(study_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for kind in ("stimuli", "analyses"):
        (folder / kind).mkdir()
    for name, text in study_files.items():
        (folder / name).write_text(text)
    return folder, list(study_files.items())


def outcome(load, path):
    try:
        load(path)
    except SpecError as error:
        return str(error)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), how=st.sampled_from(["text", "values"]) | st.text(max_size=200))
def test_load_refuses_anything_else_in_one_line(seeds, seed, how):
    """Mutated designs and analyses either load or end in one SpecError that begins with the name of the file."""
    folder, files = seeds
    rng = random.Random(seed)
    name, text = rng.choice(files)
    if how == "values":
        text = mutated_values(parse_yaml(text, name="x").data, rng)
    else:
        text = mutated_text(text, rng) if how == "text" else how
    path = folder / name.split("/")[0] / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = outcome(load_design if name.startswith("stimuli") else load_analysis, path)
    assert message is None or message.startswith(f"{path}:")
    assert message is None or len(message.splitlines()) == 1


def test_spec_imports_are_light():
    """Reading a design or an analysis loads no array, table or model library."""
    code = "import sys, neurosae.spec.editor; print({'numpy', 'pandas', 'torch', 'anndata'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
