"""Our own token ids, with offsets: the model never sees a string, so nothing is added, dropped or shifted silently.

Whole texts are encoded (a prefix and its continuation encoded apart give other tokens), without the tokenizer's
special tokens; those are put around the ids here, by a rule that is recorded. A region is a span of characters; a
token belongs to it if its own characters, stripped of white space, overlap the span.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from neurosae.errors import DataError, ModelError
from neurosae.extraction.slow_tokens import SlowBackend

Bos = Literal["auto", "true", "false"] | bool
Backend = tokenizers.Tokenizer | SlowBackend
BLANK = "\u2581"  # the sentencepiece sign for a blank; alone it is a piece without characters of its own


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with explicit specials.

    Attributes
    ----------
    backend : the fast tokenizer, truncation and padding switched off
    prefix, suffix : ids put around every text (BOS; [CLS] and [SEP])
    habit : the prefix that the tokenizer adds of its own accord
    bos_id : the BOS id, None if it has none
    rule : `auto` while a dictionary may still decide about BOS, else `true` or `false`
    hash : sha256 of the tokenizer's definition, the specials excluded
    unknown_id : the id that stands for whatever the vocabulary lacks, None where nothing is lost
    """

    backend: Backend
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    habit: tuple[int, ...]
    bos_id: int | None
    rule: str
    hash: str
    unknown_id: int | None = None

    @property
    def first(self) -> int:
        """Index of the first token of a text among the ids that the model gets."""
        return len(self.prefix)

    @property
    def words(self) -> str:
        """The rule about specials, for the record."""
        before = " ".join(str(self.backend.id_to_token(i)) for i in self.prefix) or "nothing"
        after = " ".join(str(self.backend.id_to_token(i)) for i in self.suffix) or "nothing"
        return f"{before} before, {after} after every text ({self.rule}); specials are never rows"


class Encoded(NamedTuple):
    """Token ids of one text with specials, and of each id its characters [start, end) without white space."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    pieces: tuple[str, ...]


def load_tokenizer(folder: str | Path, *, bos: Bos = "auto") -> Tokenizer:
    """Read `tokenizer.json` of a model folder; what is put around a text is the tokenizer's habit, or set by `bos`."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; write one with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelError(f"{path} cannot be read as a tokenizer ({error}); copy it again.") from None
    return make_tokenizer(backend, bos_token=_bos_token(Path(folder)), bos=bos)


def tokenizer_in_memory(tokenizer: Any, *, bos: Bos = "auto") -> Tokenizer:
    """Wrap a tokenizer object of `tokenizers` or transformers; it is copied, never changed.

    A tokenizer without a fast backend is read by decoding ever longer beginnings of a text.
    """
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return make_tokenizer(tokenizer, bos=bos)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    word = getattr(tokenizer, "bos_token", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        return make_tokenizer(SlowBackend(copy.deepcopy(tokenizer)), bos_token=word, bos=bos)
    return make_tokenizer(backend, bos_token=word, bos=bos)


def make_tokenizer(backend: Backend, *, bos_token: str | None = None, bos: Bos = "auto") -> Tokenizer:
    """Wrap a fast tokenizer (copied first); `bos_token` names its BOS where its habit does not show it."""
    definition = backend.to_str()
    if isinstance(backend, tokenizers.Tokenizer):
        backend = tokenizers.Tokenizer.from_str(definition)
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # merges left out at random, a device of training: other ids at every call
    prefix, suffix = _habit(backend)
    bos_id = backend.token_to_id(bos_token) if bos_token else None
    if bos_id is None and prefix:
        bos_id = prefix[0]
    digest = hashlib.sha256(definition.encode()).hexdigest()
    plain = Tokenizer(backend, prefix, suffix, prefix, bos_id, "auto", digest, _unknown_id(backend, definition))
    rule = str(bos).lower()
    return plain if rule == "auto" else with_bos(plain, rule == "true")


def with_bos(tokenizer: Tokenizer, wanted: bool) -> Tokenizer:
    """The same tokenizer with, or without, BOS in front of every text."""
    rule = "true" if wanted else "false"
    if not wanted:
        return replace(tokenizer, prefix=(), rule=rule)
    if tokenizer.bos_id is None:
        raise ModelError("bos: true, but the tokenizer declares no bos_token; name it in tokenizer_config.json.")
    return replace(tokenizer, prefix=tokenizer.habit or (tokenizer.bos_id,), rule=rule)


def agreed_bos(tokenizer: Tokenizer | None, dictionaries: Mapping[str, Any]) -> Tokenizer | None:
    """Dictionaries know whether their training texts began with BOS; they decide unless `bos` was set."""
    if tokenizer is None:
        return None
    wishes = {site: d.metadata.get("prepend_bos") for site, d in dictionaries.items()}
    wishes = {site: bool(wish) for site, wish in wishes.items() if wish is not None}
    if tokenizer.rule != "auto" or not wishes:
        return tokenizer
    if len(set(wishes.values())) > 1:
        words = ", ".join(f"{site} {'with' if wish else 'without'}" for site, wish in wishes.items())
        raise ModelError(f"the dictionaries disagree about BOS ({words}); set `model: {{bos: true}}` or false.")
    return with_bos(tokenizer, next(iter(wishes.values())))


def byte_tokenizer(*, bos: Bos = "auto") -> Tokenizer:
    """One token per UTF-8 byte (ids 0 to 255) and BOS 256: the tokenizer of toy models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>"])
    rule = str(bos).lower()
    return make_tokenizer(backend, bos_token="<bos>", bos=True if rule == "auto" else bos)


def _habit(backend: Backend) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the tokenizer puts before and after a text, read off a word that it knows and that is no special."""
    for text in _probes(backend):
        try:
            plain, full = (backend.encode(text, add_special_tokens=added).ids for added in (False, True))
        except DataError:
            raise
        except Exception:  # the Rust side raises bare Exception, for a word beyond a closed vocabulary
            continue
        places = [at for at in range(len(full) - len(plain) + 1) if full[at : at + len(plain)] == plain]
        if plain and len(places) == 1:  # no token, or one that equals a special, says nothing about before and after
            return tuple(full[: places[0]]), tuple(full[places[0] + len(plain) :])
    raise ModelError("the tokenizer changes a text when it adds its special tokens; set `bos: false`.")


def _probes(backend: Backend) -> Iterator[str]:
    yield "a"
    for i in sorted(backend.get_vocab().values()):  # a vocabulary without an a
        if word := backend.decode([i], skip_special_tokens=True).strip():
            yield word


def _unknown_id(backend: Backend, definition: str) -> int | None:
    if isinstance(backend, SlowBackend):
        return getattr(backend.tokenizer, "unk_token_id", None)
    model = json.loads(definition)["model"]
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    return backend.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _bos_token(folder: Path) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8")).get("bos_token")
        except (OSError, ValueError):
            continue
        if value:
            return value["content"] if isinstance(value, dict) else str(value)
    return None


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Encode whole texts.

    Examples
    --------
    >>> text = encode(byte_tokenizer(), ["a é"])[0]
    >>> text.starts.tolist(), text.ends.tolist()
    ([0, 0, 2, 2, 2], [0, 1, 2, 3, 3])
    """
    return [_encoded(tokenizer, text, e) for text, e in zip(texts, _encodings(tokenizer, texts), strict=True)]


def encode_ids(tokenizer: Tokenizer | None, lists: Sequence[Sequence[int]]) -> list[Encoded]:
    """Token ids in place of texts: what is a character elsewhere is a token here, so regions are ranges of tokens.

    Examples
    --------
    >>> text = encode_ids(None, [[7, 9, 4]])[0]
    >>> text.starts.tolist(), region_tokens(text, (1, 3), where="s").tolist()
    ([0, 1, 2], [1, 2])
    """
    before, after = (tokenizer.prefix, tokenizer.suffix) if tokenizer else ((), ())
    out = []
    for given in lists:
        n, own = len(given), [int(i) for i in given]
        starts = np.array([*[0] * len(before), *range(n), *[n] * len(after)], dtype=np.int64)
        ends = np.array([*[0] * len(before), *range(1, n + 1), *[n] * len(after)], dtype=np.int64)
        names = tuple(tokenizer.backend.id_to_token(i) or str(i) if tokenizer else str(i) for i in own)
        pieces = (*[""] * len(before), *names, *[""] * len(after))
        out.append(Encoded(np.array([*before, *own, *after], dtype=np.int64), starts, ends, pieces))
    return out


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], *, specials: bool = True) -> list[list[int]]:
    """Ids alone, many texts at once; with the specials of the rule unless told otherwise."""
    before, after = (list(tokenizer.prefix), list(tokenizer.suffix)) if specials else ([], [])
    return [before + e.ids + after for e in _encodings(tokenizer, texts)]


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of ids, special tokens left out."""
    return tokenizer.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def _encodings(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Any]:
    try:
        if len(texts) < 8:  # starting the threads of a batch costs more than a few texts do
            return [tokenizer.backend.encode(text, add_special_tokens=False) for text in texts]
        return tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
    except DataError:
        raise
    except Exception as error:  # bare Exception again
        raise DataError(
            f"the tokenizer cannot read these texts ({error}); use words of its vocabulary, or a tokenizer that has a "
            "token for unknown words."
        ) from None


def _encoded(tokenizer: Tokenizer, text: str, encoding: Any) -> Encoded:
    spans = []
    for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        part = text[start:end]
        if not part.strip() or not piece.strip(BLANK):
            spans.append((end, end))
        else:
            spans.append((start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())))
    n_before, n_after = len(tokenizer.prefix), len(tokenizer.suffix)
    spans = [(0, 0)] * n_before + spans + [(len(text), len(text))] * n_after
    array = np.array(spans, dtype=np.int64).reshape(-1, 2)
    ids = np.array([*tokenizer.prefix, *encoding.ids, *tokenizer.suffix], dtype=np.int64)
    special = tokenizer.backend.id_to_token
    pieces = [text[a:b] for a, b in encoding.offsets]
    names = [*(special(i) for i in tokenizer.prefix), *pieces, *(special(i) for i in tokenizer.suffix)]
    return Encoded(ids, array[:, 0], array[:, 1], tuple(names))


def region_tokens(encoded: Encoded, span: tuple[int, int], *, where: str, allow_straddle: bool = False) -> np.ndarray:
    """Indices, among all ids, of the tokens of a region.

    Parameters
    ----------
    encoded : one text
    span : characters [start, end) of the region
    where : stimulus and region, for the message
    allow_straddle : take a token that lies only partly inside instead of refusing it

    Raises
    ------
    DataError
        If a token straddles the border, or no token lies inside.

    Examples
    --------
    >>> text = encode(byte_tokenizer(bos=False), ["a cat"])[0]
    >>> region_tokens(text, (1, 5), where="stimulus 's', region 'noun'").tolist()
    [2, 3, 4]
    """
    start, end = span
    inside = np.flatnonzero(
        (np.maximum(encoded.starts, start) < np.minimum(encoded.ends, end)) & (encoded.starts < encoded.ends)
    )
    if not len(inside):
        raise DataError(f"{where}: no token lies in characters {start} to {end}; widen the region.")
    across = inside[(encoded.starts[inside] < start) | (encoded.ends[inside] > end)]
    if len(across) and not allow_straddle:
        i = across[0]
        raise DataError(
            f"{where}: token '{encoded.pieces[i]}' (characters {encoded.starts[i]} to {encoded.ends[i]}) straddles the "
            f"region's border ({start} to {end}); set `positions.allow_straddle: true`, or move the border to a blank."
        )
    return inside


def check_lengths(lengths: dict[str, int], n_ctx: int | None, *, model: str) -> None:
    """Refuse stimuli that are longer than the context: nothing is ever cut silently."""
    long = [(name, n) for name, n in lengths.items() if n_ctx is not None and n > n_ctx]
    if long:
        name, n = long[0]
        more = f" ({len(long)} stimuli are too long)" if len(long) > 1 else ""
        raise DataError(
            f"stimulus '{name}' has {n} tokens with specials, {model} takes at most {n_ctx}{more}; shorten the text."
        )


def replaced_token(tokenizer: Tokenizer, text: str, span: tuple[int, int], *, word: str) -> tuple[int | None, str]:
    """The id of the single token that stands for `word` in place of the span, in context; else None and the reason.

    The tokens before the span must be those of the original text, or the two continuations would be predicted from
    different contexts. A word of several tokens is never scored by its first piece.
    """
    start, end = span
    original, changed = encode(tokenizer, [text, text[:start] + word + text[end:]])
    first = first_token(changed, start)
    own = region_like(changed, start, start + len(word))
    if own != 1:
        return None, f"'{word}' is {own} tokens"
    if changed.starts[first] < start or changed.ends[first] > start + len(word):
        return None, f"'{word}' shares a token with its neighbours"
    if not np.array_equal(original.ids[:first], changed.ids[:first]):
        return None, f"the tokens before '{word}' change with it"
    return int(changed.ids[first]), ""


def first_token(encoded: Encoded, start: int) -> int:
    """Index of the first token that has a character at or after `start`; the one before it predicts it."""
    found = np.flatnonzero((encoded.ends > start) & (encoded.starts < encoded.ends))
    if not len(found):
        raise DataError(f"no token lies at or after character {start}.")
    return int(found[0])


def region_like(encoded: Encoded, start: int, end: int) -> int:
    """Number of tokens that overlap characters [start, end)."""
    inside = (np.maximum(encoded.starts, start) < np.minimum(encoded.ends, end)) & (encoded.starts < encoded.ends)
    return int(inside.sum())
