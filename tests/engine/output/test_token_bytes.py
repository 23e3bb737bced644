from __future__ import annotations

from app.engine.output.detokenizer import token_bytes
from tests.engine.output.test_detokenizer import sentencepiece_tokenizer
from tests.support.models import byte_tokenizer


def test_byte_level_tokens_are_their_bytes() -> None:
    tokenizer = byte_tokenizer()
    for text in ("a", " ", "\n", "é", "😀", "\x00", "\u00ad"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(token_bytes(tokenizer, token_id) for token_id in ids) == text.encode()


def test_every_byte_has_its_token() -> None:
    tokenizer = byte_tokenizer()
    assert {token_bytes(tokenizer, i) for i in range(3, 259)} == {bytes([byte]) for byte in range(256)}


def test_sentencepiece_tokens_show_their_blanks_and_byte_tokens_their_byte() -> None:
    tokenizer = sentencepiece_tokenizer()
    found = {
        word: token_bytes(tokenizer, tokenizer.convert_tokens_to_ids(word)) for word in ("▁Hello", "a", "<0xE9>", "▁")
    }
    assert found == {"▁Hello": b" Hello", "a": b"a", "<0xE9>": b"\xe9", "▁": b" "}


def test_special_tokens_are_shown_as_they_are_written() -> None:
    assert [token_bytes(byte_tokenizer(), i) for i in range(3)] == [b"<s>", b"</s>", b"<pad>"]


def test_ids_beyond_the_vocabulary_are_nothing() -> None:
    assert token_bytes(byte_tokenizer(), 10_000) == b""


def test_bytes_that_are_no_character_are_replaced_in_texts() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert [token_bytes(tokenizer, token_id).decode(errors="replace") for token_id in ids] == ["\ufffd", "\ufffd"]
