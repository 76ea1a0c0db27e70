"""Tokenizers without a fast backend: characters of each token by decoding ever longer beginnings of a text.

Decoding one token at a time would lose blanks and break characters of several tokens. A beginning that ends inside a
character decodes to a replacement sign there, or to nothing: such tokens all belong to the character. What does not
decode back to the text exactly is refused, because then no offset can be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from neurosae.errors import DataError

BROKEN = "\ufffd"  # what an incomplete character decodes to


class SlowEncoding(NamedTuple):
    """Ids of a text, the tokens by name, and the characters [start, end) of each."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


class Added(NamedTuple):
    """A token beside the learned vocabulary, and whether texts end or begin with it, or it stands for nothing."""

    content: str
    special: bool


class SlowBackend:
    """The part of a fast tokenizer that is needed here, around a tokenizer object of transformers without one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool = False) -> SlowEncoding:
        """Ids and offsets of a text; without offsets where special tokens are added."""
        ids = [int(i) for i in self.tokenizer.encode(text, add_special_tokens=add_special_tokens)]
        offsets = [(0, 0)] * len(ids) if add_special_tokens else self._offsets(text, ids)
        return SlowEncoding(ids, [self.id_to_token(i) for i in ids], offsets)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False) -> list[SlowEncoding]:
        """Many texts."""
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids, exactly as it was."""
        words = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **words))

    def id_to_token(self, i: int) -> str:
        """Name of a token."""
        return str(self.tokenizer.convert_ids_to_tokens(int(i)))

    def token_to_id(self, token: str) -> int | None:
        """Id of a token, None if there is none of this name."""
        return self.get_vocab().get(token)

    def get_vocab(self) -> dict[str, int]:
        """All tokens by name."""
        return self.tokenizer.get_vocab()

    def get_added_tokens_decoder(self) -> dict[int, Added]:
        """Special tokens and others that were added to the vocabulary, by id."""
        special = set(self.tokenizer.all_special_ids)  # those of ByT5 are no specials by their own flag
        every = sorted({*self.tokenizer.added_tokens_decoder, *special})
        return {i: Added(self.id_to_token(i), i in special) for i in every}

    def get_vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokenizer)

    def to_str(self) -> str:
        """What its ids depend on, for the hash."""
        return json.dumps([type(self.tokenizer).__qualname__, sorted(self.get_vocab().items())])

    def _offsets(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        offsets, done = [], 0
        for n in range(1, len(ids) + 1):
            seen = self.decode(ids[:n])
            whole = seen.rstrip(BROKEN)
            if not text.startswith(whole) or (n == len(ids) and seen != text):
                raise DataError(
                    f"the tokenizer does not give its text back: '{text}' decodes to '{self.decode(ids)}', so no token "
                    "can be placed; use its fast version (tokenizer.json)."
                )
            # a token that ends inside a character belongs to that character; some decoders show it, some drop it
            inside = seen != whole or len(whole) == done
            offsets.append((done, min(len(whole) + inside, len(text))))
            done = len(whole)
        return offsets
