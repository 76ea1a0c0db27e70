"""Token ids, specials, and the tokens of a region: nothing may shift by one."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from neurosae.errors import DataError, ModelError
from neurosae.extraction.tokens import (
    byte_tokenizer,
    check_lengths,
    decode,
    encode,
    encode_ids,
    load_tokenizer,
    make_tokenizer,
    region_tokens,
    replaced_token,
    token_ids,
    tokenizer_in_memory,
    with_bos,
)

TEXTS = ["the keys to the café are old", "😀 naïve dogs near 😀😀 houses", "a  key", "été", " the dog"]
KINDS = [
    "bytes",
    "bytes without bos",
    "byte-level",
    "byte-level with bos",
    "sentencepiece",
    "sentencepiece without bos",
    "wordpiece",
    "characters",
    "slow bytes",
]


def words(text):
    """Character spans of the words of a text."""
    at = 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        yield start, at


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_region_tokens_recovers_every_word(tokenizer_of, kind, text):
    """The ids of each word decode to that word: leading blanks, BOS and multi-byte characters shift nothing."""
    tokenizer = tokenizer_of(kind)
    encoded = encode(tokenizer, [text])[0]
    seen = []
    for span in words(text):
        tokens = region_tokens(encoded, span, where=text)
        assert decode(tokenizer, encoded.ids[tokens]).strip() == text[slice(*span)]
        seen += tokens.tolist()
    assert len(seen) == len(set(seen))
    assert min(seen) >= tokenizer.first


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_invariant_to_how_many_texts(tokenizer_of, kind):
    """Many texts at once go another way into the tokenizer: its own specials are added by neither."""
    tokenizer = tokenizer_of(kind)
    alone = [token_ids(tokenizer, [text])[0] for text in TEXTS]
    assert token_ids(tokenizer, TEXTS * 3) == alone * 3
    assert [e.ids.tolist() for e in encode(tokenizer, TEXTS * 3)] == alone * 3


@pytest.mark.parametrize("text", [" the dog", "été"])
def test_region_tokens_leaves_out_a_dummy_blank(tokenizer_of, text):
    """A lone blank sign, which may share the offsets of the first letter, is no part of the word."""
    tokenizer = tokenizer_of("sentencepiece")
    encoded = encode(tokenizer, [text])[0]
    assert tokenizer.backend.id_to_token(int(encoded.ids[1])) == "▁"
    assert 1 not in region_tokens(encoded, (0, 4), where="s", allow_straddle=True)


@pytest.mark.parametrize(("kind", "first"), [("bytes", 3), ("slow bytes", 2)])
def test_region_tokens_takes_all_pieces_of_one_character(tokenizer_of, kind, first):
    """An emoji of four bytes is four tokens with the same characters."""
    encoded = encode(tokenizer_of(kind), ["a 😀 b"])[0]
    assert region_tokens(encoded, (2, 3), where="s").tolist() == [first, first + 1, first + 2, first + 3]


class Broken:
    """A tokenizer without a fast version that shows incomplete characters, or changes what it reads."""

    def __init__(self, change=str):
        self.change = change

    def encode(self, text, add_special_tokens=True):
        return [*[256] * add_special_tokens, *text.encode()]

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=True):
        return self.change(bytes(i for i in ids if i < 256).decode(errors="replace"))

    def convert_ids_to_tokens(self, i):
        return str(i)

    def get_vocab(self):
        return {str(i): i for i in range(257)}


def test_slow_tokenizers_recover_offsets():
    """Incomplete characters may be shown as a replacement sign; the special token is known from the habit."""
    theirs = Broken()
    tokenizer = tokenizer_in_memory(theirs)
    theirs.change = str.upper  # ours is a copy
    text = encode(tokenizer, ["é 😀"])[0]
    assert tokenizer.prefix == (256,)
    assert encode(tokenizer, ["a"])[0].pieces == ("256", "a")
    assert text.starts.tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    assert text.ends.tolist() == [0, 1, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("change", [str.lower, str.strip, lambda text: text + "!"])
def test_slow_tokenizers_that_change_a_text_are_refused(change):
    """What does not decode to the text itself gives no offsets."""
    with pytest.raises(DataError, match="does not give its text back"):
        encode(tokenizer_in_memory(Broken(change)), ["A b "])


def test_tokenizers_in_memory_are_copied(tokenizer_of):
    """What is changed in the user's object later does not reach ours, and ours changes nothing in it."""
    import transformers

    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer_of("byte-level").backend)
    theirs.add_special_tokens({"bos_token": "<|endoftext|>"})
    before = theirs.backend_tokenizer.to_str()
    ours = tokenizer_in_memory(theirs, bos=True)
    ids = token_ids(ours, ["the old keys near houses"])
    assert theirs.backend_tokenizer.to_str() == before
    theirs.backend_tokenizer.enable_truncation(2)
    assert token_ids(ours, ["the old keys near houses"]) == ids
    assert ids[0][0] == theirs.bos_token_id
    raw = tokenizer_of("byte-level").backend
    assert token_ids(tokenizer_in_memory(raw), ["the dog"]) == [raw.encode("the dog").ids]


def test_token_ids_as_stimuli_count_tokens(tokenizer_of):
    """Regions of id lists are ranges of tokens; specials go around them and shift nothing."""
    given = [[7, 9, 4], [5]]
    plain = encode_ids(None, given)
    assert region_tokens(plain[0], (1, 3), where="s").tolist() == [1, 2]
    special = encode_ids(tokenizer_of("sentencepiece"), given)
    assert special[0].ids.tolist() == [1, 7, 9, 4]
    assert region_tokens(special[0], (1, 3), where="s").tolist() == [2, 3]
    assert region_tokens(special[1], (0, 1), where="s").tolist() == [1]
    with pytest.raises(DataError, match="no token lies"):
        region_tokens(special[1], (1, 2), where="s")


def test_region_tokens_refuses_a_straddling_token(tokenizer_of):
    """The message names stimulus, region, token and both remedies; allow_straddle takes the token."""
    encoded = encode(tokenizer_of("byte-level"), ["the keys"])[0]
    with pytest.raises(DataError, match=r"item 'k', region 'stem': token ' keys' .*allow_straddle: true.*to a blank"):
        region_tokens(encoded, (4, 7), where="item 'k', region 'stem'")
    assert region_tokens(encoded, (4, 7), where="", allow_straddle=True).tolist() == [1]


def test_region_tokens_refuses_a_blank_region():
    """A region without a token is an error, not an empty row."""
    with pytest.raises(DataError, match="no token lies in characters 1 to 2"):
        region_tokens(encode(byte_tokenizer(), ["a b"])[0], (1, 2), where="s")


def test_specials_follow_the_recorded_rule(checkpoint, tokenizer_of):
    """BOS by habit, on demand, or not at all; [CLS] and [SEP] of encoders stay."""
    gpt2, llama, bert = (load_tokenizer(checkpoint(family)) for family in ("gpt2", "llama", "bert"))
    assert (gpt2.prefix, llama.prefix) == ((), (1,))
    assert len(bert.prefix) == len(bert.suffix) == 1
    assert (with_bos(gpt2, True).prefix, with_bos(llama, False).prefix) == ((0,), ())
    assert "<s> before" in llama.words
    assert with_bos(llama, False).rule == "false"
    with pytest.raises(ModelError, match="no bos_token"):
        with_bos(tokenizer_of("byte-level"), True)


@pytest.mark.parametrize("special", ["<s>", "<unk>"])
def test_the_habit_is_read_off_a_word_that_the_tokenizer_knows(special):
    """A vocabulary without an `a` drops it, or makes it the unknown token, which may be BOS too: BOS stays in front."""
    backend = Tokenizer(models.BPE(unk_token="<unk>" if special == "<unk>" else None))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(special_tokens=[special, "</s>"], show_progress=False)
    backend.train_from_iterator(["кошка видит собаку"], trainer)
    around = [(special, 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(single=f"{special} $A </s>", special_tokens=around)
    tokenizer = make_tokenizer(backend)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.bos_id) == ((0,), (1,), 0)
    assert token_ids(tokenizer, ["кошка"]) == [backend.encode("кошка").ids]


def test_a_closed_vocabulary_is_read_and_other_words_are_refused():
    """Words without a token for the unknown: specials are found all the same, and a foreign word is our error."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "кошка": 1}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = make_tokenizer(backend)
    assert token_ids(tokenizer, ["кошка"]) == [[0, 1]]
    with pytest.raises(DataError, match=r"cannot read these texts .* a token for unknown words"):
        encode(tokenizer, ["a"])


def test_merges_are_never_left_out_at_random(tokenizer_of):
    """A tokenizer saved with the dropout of its training gives the same ids at every call."""
    definition = json.loads(tokenizer_of("byte-level").backend.to_str())
    definition["model"]["dropout"] = 0.9
    text = "the old keys near houses"
    ids = token_ids(make_tokenizer(Tokenizer.from_str(json.dumps(definition))), [text] * 10)
    assert ids == token_ids(tokenizer_of("byte-level"), [text]) * 10


def test_token_ids_agree_with_transformers(checkpoint, shared_data):
    """The ids are those of AutoTokenizer on the same folder."""
    import transformers

    for folder in (checkpoint("gpt2"), checkpoint("bert"), shared_data("models/stories260K")):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
        assert token_ids(load_tokenizer(folder), TEXTS) == theirs


def test_tokenizer_never_truncates_or_pads(tokenizer_of):
    """Settings inside tokenizer.json that would cut or pad texts are switched off."""
    backend = Tokenizer.from_str(tokenizer_of("byte-level").backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    assert token_ids(make_tokenizer(backend), ["the old keys near houses"]) == token_ids(
        tokenizer_of("byte-level"), ["the old keys near houses"]
    )


def test_replaced_token_scores_single_tokens_only(tokenizer_of):
    """A word of one token in context has an id; several pieces, or a changed context, have a reason."""
    tokenizer = tokenizer_of("byte-level")
    text = "the keys are old"
    found, reason = replaced_token(tokenizer, text, (9, 12), word="is")
    assert tokenizer.backend.id_to_token(found) == "Ġis"
    assert reason == ""
    assert replaced_token(tokenizer, text, (9, 12), word="overtakes") == (None, "'overtakes' is 8 tokens")
    assert replaced_token(tokenizer, text, (4, 7), word="cabinet")[0] is None


def test_replaced_token_refuses_another_context():
    """Where a word changes the tokens before it, the two continuations would be predicted from different contexts."""
    vocab = {name: i for i, name in enumerate(("w", "x", "y", "z", "xy", "wx"))}
    tokenizer = make_tokenizer(Tokenizer(models.BPE(vocab=vocab, merges=[("x", "y"), ("w", "x")])))
    assert [e.ids.tolist() for e in encode(tokenizer, ["wxy", "wxz"])] == [[0, 4], [5, 3]]
    assert replaced_token(tokenizer, "wxy", (2, 3), word="z") == (None, "the tokens before 'z' change with it")
    assert replaced_token(tokenizer, "wxz", (2, 3), word="z") == (3, "")


def test_load_tokenizer_refuses_a_folder_without_one(tmp_path):
    """A missing or broken tokenizer.json is one sentence with the remedy."""
    with pytest.raises(ModelError, match=r"has no tokenizer\.json; write one"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_check_lengths_refuses_by_name():
    """A text beyond the context is named; nothing is cut."""
    with pytest.raises(DataError, match=r"stimulus 'b' has 9 tokens .* at most 8"):
        check_lengths({"a": 8, "b": 9}, 8, model="toy")
