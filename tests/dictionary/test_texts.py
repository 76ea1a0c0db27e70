"""Documents from files, from the model itself, and contexts that never mix them."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from neurosae.dictionary import texts
from neurosae.dictionary.texts import make_contexts, read_texts, sample_texts, take_rows
from neurosae.errors import DataError
from neurosae.extraction.tokens import byte_tokenizer

WANTED = ["One.\nStill one.", "Two é."]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "marked.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_read_texts_recovers_documents(tmp_path, name):
    """The same two documents from every kind of file, and from a folder that holds it."""
    path = tmp_path / name
    text = "\n\n".join(WANTED) + "\n"
    if name == "marked.txt":
        text = "".join(f"<|doc|>\tid{i}\n{t}\n" for i, t in enumerate(WANTED))
    if "jsonl" in name:
        text = "".join(json.dumps({"text": t}) + "\n" for t in WANTED)
    if name.endswith("parquet"):
        pd.DataFrame({"text": WANTED}).to_parquet(path)
    elif name.endswith("arrow"):
        write_arrow(path)
    elif name.endswith("gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    assert list(read_texts(path)) == WANTED
    assert list(read_texts([tmp_path, path])) == WANTED * 2


def write_arrow(path):
    """A stream file, as Hugging Face data sets keep them."""
    import pyarrow as pa

    table = pa.table({"text": WANTED})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_read_texts_invariant_to_line_ends(tmp_path):
    """A marked file keeps empty lines inside a document, and Windows line ends are line ends."""
    (tmp_path / "a.txt").write_bytes(b"<|doc|>\tx\r\nOne.\r\n\r\nStill.\r\n<|doc|>\r\nTwo.")
    assert list(read_texts(tmp_path / "a.txt")) == ["One.\n\nStill.", "Two."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", b"\n\n", "holds no text"),
        ("a.jsonl", b'{"story": "x"}\n', "a.jsonl:1: .* key 'text'"),
        ("a.parquet", b"PAR1junk", "cannot be read as a table"),
        ("a.txt.gz", b"junk", "cannot be read as text"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read as text"),
    ],
)
def test_read_texts_refuses(tmp_path, name, *, content, message):
    """A missing, empty or broken file is named in one sentence."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_texts(tmp_path / name))


def test_read_texts_refuses_another_column(tmp_path):
    """A table without the column names those that it has."""
    pd.DataFrame({"story": ["x"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; it has story"):
        list(read_texts(tmp_path))


def test_contexts_never_mix_documents():
    """Every context is BOS and a piece of one document; together they are the documents."""
    texts = ["a" * 30, "b" * 5, "c" * 8]
    made = make_contexts(byte_tokenizer(), texts, length=9)
    pieces = [bytes(ids[1:].astype(np.uint8)) for ids in made.ids]
    assert all(len(set(piece)) == 1 and ids[0] == 256 for piece, ids in zip(pieces, made.ids, strict=True))
    assert [made.n_rows[made.documents == d].sum() for d in range(3)] == [30, 5, 8]
    assert max(len(ids) for ids in made.ids) == 9


def test_take_rows_recovers_the_wanted_number():
    """Enough contexts, not one more; all when there are too few; the same for a seed."""
    made = make_contexts(byte_tokenizer(), ["x" * 10] * 20, length=6)
    some = take_rows(made, 42, seed=3)
    assert 42 <= some.n_rows.sum() < 47
    assert take_rows(made, 10**6, seed=3).n_rows.sum() == 200
    assert np.array_equal(take_rows(made, 42, seed=3).documents, some.documents)


def test_sample_texts_invariant_to_repetition(toy):
    """One seed, one set of documents; another seed, another set."""
    first, again, other = (sample_texts(toy, 100, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_sample_texts_says_what_for_and_leaves_the_threads_alone(toy, capsys, monkeypatch):
    """The bar names the model, the purpose and tokens per second; a small model writes with one thread, then not."""
    seen, before = [], torch.get_num_threads()
    honest = texts._write
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # bars are for terminals
    monkeypatch.setattr(texts, "_write", lambda *a, **k: seen.append(torch.get_num_threads()) or honest(*a, **k))
    try:
        torch.set_num_threads(2)
        texts.sample_texts(toy, 30, seed=1, purpose="text for a test")
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(texts, "SMALL", 0)
        texts.sample_texts(toy, 30, seed=1)
    finally:
        torch.set_num_threads(before)
    assert (seen[0], seen[-1]) == (1, 2)
    bar = capsys.readouterr().err
    assert f"{toy.name} writes text for a test" in bar
    assert "tok/s" in bar


def test_sample_texts_agrees_with_the_model(shared_data):
    """A small model of stories writes stories, with its key-value cache, and ends them."""
    from neurosae.extraction.model import load_model

    texts = sample_texts(load_model(shared_data("models/stories260K")), 1500, seed=0, length=120)
    assert sum("Once upon a time" in text or "One day" in text for text in texts) >= len(texts) / 2
    assert not any("<s>" in text or "</s>" in text for text in texts)
