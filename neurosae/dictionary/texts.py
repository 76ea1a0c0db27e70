"""Running text for dictionaries: documents from files, documents that the model writes itself, contexts of token ids.

A context holds tokens of one document only, with the specials of the tokenizer's rule around them; a document that is
longer than a context continues in the next one.
"""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from neurosae.errors import DataError, ModelError
from neurosae.extraction.tokens import Tokenizer, decode, token_ids

SEPARATOR = "<|doc|>"
COLUMN = "text"
TABLES = {".parquet", ".jsonl", ".json", ".arrow"}
WRITERS = 8, 64  # documents that the model writes side by side: for few tokens, for many
SMALL = 30_000_000  # parameters up to which one thread writes fastest: a step is too short to be shared


def read_texts(paths: str | Path | Iterable[str | Path]) -> Iterator[str]:
    r"""Documents of text files and of local data sets, in the order given.

    Parameters
    ----------
    paths : files (.txt, .txt.gz, .jsonl, .jsonl.gz, .parquet, .arrow) or folders of them; a folder is read in the
        order of its file names

    Yields
    ------
    str
        In a text file a line that begins with `<|doc|>` starts a document; where there is none, empty lines separate
        documents. In a table every row is one, its column `text`.

    Raises
    ------
    DataError
        If a path is missing, has no column `text`, or holds no text.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "a.txt").write_text("One.\nStill one.\n\nTwo.\n")
    ...     list(read_texts(folder))
    ['One.\nStill one.', 'Two.']
    """
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = False
        for file in _files(Path(path).expanduser()):
            for text in _documents(file):
                found = True
                yield text
        if not found:
            raise DataError(f"{path} holds no text; give a file with documents.")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"text file {path} does not exist; give a .txt, .txt.gz, .jsonl or .parquet file, or a folder.")
    kinds = [*TABLES, ".txt"]
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p) in kinds]
    # a data set folder keeps its settings in JSON beside the rows
    tables = [p for p in files if p.name not in {"dataset_info.json", "state.json", "dataset_dict.json"}]
    if not tables:
        raise DataError(f"{path} holds no .txt, .txt.gz, .jsonl, .parquet or .arrow file; name one that does.")
    return tables


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _documents(path: Path) -> Iterator[str]:
    kind = _kind(path)
    try:
        if kind in {".parquet", ".arrow"}:
            yield from _from_table(path, kind)
            return
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from _from_json(file, path) if kind in {".jsonl", ".json"} else _from_lines(file)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({str(error).rstrip('.')}); check the file.") from None


def _from_lines(lines: Iterable[str]) -> Iterator[str]:
    marked, current = False, list[str]()
    for line in lines:
        line = line.rstrip("\r\n")
        if line.startswith(SEPARATOR):
            # what stands before the first separator was split at empty lines: those were documents already
            marked, boundary = True, True
        else:
            boundary = not line.strip() and not marked
        if boundary:
            if text := "\n".join(current).strip():
                yield text
            current = []
        else:
            current.append(line)
    if text := "\n".join(current).strip():
        yield text


def _from_json(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[COLUMN]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: is not a JSON object with the key '{COLUMN}'.") from None
        if str(text).strip():
            yield str(text).strip()


def _from_table(path: Path, kind: str) -> Iterator[str]:
    names, batches = _batches(path, kind)
    if COLUMN not in names:
        raise DataError(f"{path} has no column '{COLUMN}'; it has {', '.join(names)}.")
    for batch in batches:
        yield from (text.strip() for text in batch.column(COLUMN).to_pylist() if text and text.strip())


def _batches(path: Path, kind: str) -> tuple[list[str], Iterable[Any]]:
    arrow = importlib.import_module("pyarrow")
    try:
        if kind == ".parquet":
            file = importlib.import_module("pyarrow.parquet").ParquetFile(path)
            return file.schema_arrow.names, file.iter_batches(
                columns=[COLUMN]
            ) if COLUMN in file.schema_arrow.names else []
        try:
            reader = arrow.ipc.open_stream(arrow.memory_map(str(path)))
        except arrow.ArrowInvalid:
            reader = arrow.ipc.open_file(arrow.memory_map(str(path)))
            return reader.schema.names, (reader.get_batch(i) for i in range(reader.num_record_batches))
        return reader.schema.names, reader
    except arrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as a table ({str(error).splitlines()[0].rstrip('.')}).") from None


class Contexts(NamedTuple):
    """Token ids of contexts, with specials, and the document that each belongs to."""

    ids: list[np.ndarray]
    documents: np.ndarray
    n_prefix: int
    n_suffix: int

    @property
    def n_rows(self) -> np.ndarray:
        """Tokens of each context without specials: the rows that it gives."""
        return np.array([len(ids) - self.n_prefix - self.n_suffix for ids in self.ids], dtype=np.int64)


def make_contexts(tokenizer: Tokenizer, texts: Sequence[str], *, length: int) -> Contexts:
    """Cut documents into contexts of at most `length` ids, specials included; no context holds two documents.

    Examples
    --------
    >>> from neurosae.extraction.tokens import byte_tokenizer
    >>> made = make_contexts(byte_tokenizer(), ["abcde", "f"], length=4)
    >>> [ids.tolist() for ids in made.ids], made.documents.tolist(), made.n_rows.tolist()
    ([[256, 64, 65, 66], [256, 67, 68], [256, 69]], [0, 0, 1], [3, 2, 1])
    """
    before, after = list(tokenizer.prefix), list(tokenizer.suffix)
    room = length - len(before) - len(after)
    if room < 1:
        raise DataError(f"contexts of {length} tokens have no room beside the special tokens; use a longer context.")
    ids, documents = [], []
    for start in range(0, len(texts), 1024):  # the encodings of many documents are large
        for number, tokens in enumerate(token_ids(tokenizer, texts[start : start + 1024], specials=False), start):
            for a in range(0, len(tokens), room):
                ids.append(np.array([*before, *tokens[a : a + room], *after], dtype=np.int32))
                documents.append(number)
    return Contexts(ids, np.array(documents, dtype=np.int64), len(before), len(after))


def take_rows(contexts: Contexts, n_tokens: int, *, seed: int) -> Contexts:
    """Contexts in random order until they hold at least `n_tokens` tokens; all if there are fewer."""
    order = np.random.default_rng(seed).permutation(len(contexts.ids))
    n_kept = int(np.searchsorted(np.cumsum(contexts.n_rows[order]), n_tokens)) + 1
    kept = np.sort(order[:n_kept])
    return contexts._replace(ids=[contexts.ids[i] for i in kept], documents=contexts.documents[kept])


def sample_texts(
    model: Any, n_tokens: int, *, seed: int, length: int = 256, purpose: str = "reference text"
) -> list[str]:
    """Documents that the model writes itself, at temperature 1 and without any truncation of its distribution.

    Parameters
    ----------
    model : LanguageModel
    n_tokens : at least this many tokens, specials not counted
    seed : of the draws; the same seed gives the same documents on the same device
    length : largest number of tokens of a document
    purpose : what the text is for, beside the progress bar

    Returns
    -------
    list of str
        A document ends where the model writes a special token, or at `length`.

    Notes
    -----
    Documents start from BOS; for a model without one, from a random token. A small model writes with one thread of the
    CPU: shared among threads that other programs want too, its short steps take many times as long.

    Examples
    --------
    >>> from neurosae.extraction.model import load_model
    >>> toy = dict(n_layers=1, d_model=8, n_heads=1, d_head=8, d_mlp=8, n_ctx=16, d_vocab=257, act_fn="gelu", seed=0)
    >>> model = load_model(toy)
    >>> sample_texts(model, 30, seed=1) == sample_texts(model, 30, seed=1)
    True
    """
    if model.tokens is None:
        raise ModelError(f"{model.name} has no tokenizer, so it cannot write text; give texts.")
    if not model.is_causal:
        raise ModelError(f"{model.name} is not causal, so it cannot write text; give texts.")
    draws = torch.Generator().manual_seed(seed)
    n_writers = min(max(n_tokens // length, WRITERS[0]), WRITERS[1])
    texts, n_done = [], 0
    name = f"{model.name} writes {purpose}"
    with (
        one_thread(model),
        tqdm(total=n_tokens, desc=name, unit="tok", unit_scale=True, disable=None, mininterval=1) as bar,
    ):
        while n_done < n_tokens:
            written = _write(model, draws, length=min(length, model.n_ctx - 1), n_writers=n_writers)
            for ids in written:
                n_done += len(ids)
                bar.update(len(ids))
                if text := decode(model.tokens, ids).strip():
                    texts.append(text)
            if not any(len(ids) for ids in written):
                raise ModelError(f"{model.name} writes nothing but special tokens; give texts.")
    return texts


@contextmanager
def one_thread(model: Any) -> Iterator[None]:
    """One thread for a small model on the CPU, and the caller's number of threads afterwards."""
    before = torch.get_num_threads()
    small = model.device == "cpu" and model.provenance.get("n_parameters", SMALL) < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(model: Any, draws: torch.Generator, *, length: int, n_writers: int) -> list[list[int]]:
    """One batch of documents, in lockstep: all have the same length at every step, so nothing is padded."""
    start = model.tokens.prefix[-1:] or ((model.tokens.bos_id,) if model.tokens.bos_id is not None else ())
    ids = torch.tensor([start] * n_writers) if start else torch.randint(model.n_vocab, (n_writers, 1), generator=draws)
    ends = torch.tensor(sorted(special_ids(model)), dtype=torch.long)
    alive = torch.ones(n_writers, dtype=torch.bool)
    step = _next_logits(model)
    for _ in range(length):
        logits = step(ids)
        u = torch.rand(n_writers, 1, generator=draws, dtype=torch.float64)
        total = logits.double().softmax(-1).cumsum(-1).cpu()
        new = torch.searchsorted(total, u * total[:, -1:]).clamp(max=total.shape[1] - 1)
        ids = torch.cat([ids, new], dim=1)
        alive &= ~torch.isin(new[:, 0], ends)
        if not alive.any():
            break
    stop = torch.isin(ids[:, 1:], ends).int()
    n = torch.where(stop.any(1), stop.argmax(1), stop.shape[1])
    first = 1 if start else 0
    return [row[first : 1 + int(m)].tolist() for row, m in zip(ids, n, strict=True)]


def special_ids(model: Any) -> set[int]:
    """Ids of special tokens: where one is written, a text ends."""
    added = model.tokens.backend.get_added_tokens_decoder()
    ends = {int(i) for i, token in added.items() if token.special}
    config = model.provenance.get("config") or {}
    for name in ("bos_token_id", "eos_token_id"):
        value = config.get(name)
        ends |= {int(v) for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    return ends | set(model.tokens.prefix) | ({model.tokens.bos_id} if model.tokens.bos_id is not None else set())


def _next_logits(model: Any) -> Any:
    """A function from ids so far to the logits of the next token; keys and values are kept where the model can."""
    network: Any = getattr(model.bridge, "original_model", None)
    cached = getattr(getattr(network, "config", None), "use_cache", None) is not None
    state: dict[str, Any] = {"past": None}

    def step(ids: torch.Tensor) -> torch.Tensor:
        ids = ids.to(model.device)
        with torch.inference_mode():
            if not cached:
                return model.bridge(ids, return_type="logits")[:, -1].float()
            fed = ids if state["past"] is None else ids[:, -1:]
            out = network(input_ids=fed, past_key_values=state["past"], use_cache=True)
        state["past"] = out.past_key_values
        return out.logits[:, -1].float()

    return step
