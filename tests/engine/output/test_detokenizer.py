from __future__ import annotations

import random
import time

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from app.engine.output.detokenizer import Detokenizer, write_text
from app.sampling import SamplingParams
from tests.support.models import byte_tokenizer


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary as Llama 2 has it: words with blanks before them, and bytes for everything else."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁world", "a", "▁b"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def encode(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def stream(detokenizer: Detokenizer, ids: list[int]) -> tuple[list[str], str | None]:
    """What is shown after each token, and after the end; and the stop string."""
    shown: list[str] = []
    for token_id in ids:
        stop = detokenizer.add(token_id)
        if stop:
            return [*shown, detokenizer.finish()], stop
        shown.append(detokenizer.take())
    stop = detokenizer.flush()
    return [*shown, detokenizer.finish()], stop


def test_a_character_is_shown_once_all_its_bytes_are_there() -> None:
    shown, _ = stream(Detokenizer(byte_tokenizer(), [0]), encode("a😀é"))
    assert shown == ["a", "", "", "", "😀", "", "é", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    shown, _ = stream(Detokenizer(byte_tokenizer(), [0]), [*encode("ab"), *encode("😀")[:2]])
    assert shown == ["a", "b", "", "", "\ufffd"]


def test_a_character_begun_in_the_context_is_completed_and_the_context_not_repeated() -> None:
    head, tail = encode("see é")[:-1], encode("see é")[-1]
    shown, _ = stream(Detokenizer(byte_tokenizer(), head), [tail, *encode("!")])
    assert "".join(shown) == "é!"


def test_special_tokens_show_nothing_unless_they_are_kept() -> None:
    ids = [*encode("a"), 1, 2, *encode("b")]
    assert "".join(stream(Detokenizer(byte_tokenizer(), [0]), ids)[0]) == "ab"
    assert "".join(stream(Detokenizer(byte_tokenizer(), [0], skip_special_tokens=False), ids)[0]) == "a</s><pad>b"


@pytest.mark.parametrize("stop", [(), ("e", "t"), ("\ufffd",)])
@pytest.mark.parametrize("skip", [True, False])
def test_a_whole_text_is_what_a_stream_of_it_showed(stop: tuple[str, ...], skip: bool) -> None:
    generator = random.Random(2)
    params = SamplingParams(stop=stop, skip_special_tokens=skip)
    for _ in range(50):
        ids = [generator.randrange(259) for _ in range(30)]
        shown, _ = stream(Detokenizer.of(byte_tokenizer(), [0, 70], params), ids)
        assert write_text(byte_tokenizer(), [0, 70], ids, params) == "".join(shown)


def test_blanks_before_punctuation_stay_where_a_tokenizer_would_clean_them_up() -> None:
    """A stream has shown them before it knows what follows."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "not": 1, "good": 2, ".": 3}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", clean_up_tokenization_spaces=True)
    assert tokenizer.decode([1, 2, 3]) == "not good."
    assert write_text(tokenizer, [0], [1, 2, 3], SamplingParams()) == "not good ."


def test_sentencepiece_blanks_stand_between_words_but_not_in_front() -> None:
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["▁Hello", "▁world", "▁", "a", "▁b"])
    assert "".join(stream(Detokenizer(tokenizer, [1]), ids)[0]) == "Hello world a b"
    assert "".join(stream(Detokenizer(tokenizer, [1, ids[0]]), ids[1:])[0]) == " world a b"
    assert "".join(stream(Detokenizer(tokenizer, [1, *ids[:2]]), [2, ids[4]])[0]) == " b"


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_tokenizer])
def test_no_ids_at_all_make_it_fail(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    generator = random.Random(0)
    for _ in range(1500):
        ids = [generator.randrange(len(tokenizer) + 3) for _ in range(generator.randrange(1, 24))]
        context = [generator.randrange(len(tokenizer)) for _ in range(generator.randrange(12))]
        shown, _ = stream(Detokenizer(tokenizer, context, ("\ufffd\ufffdx", "ab")), ids)
        assert all(isinstance(text, str) for text in shown)


def test_any_text_comes_out_as_it_went_in() -> None:
    generator = random.Random(1)
    for _ in range(300):
        text = "".join(generator.choice("ab é日😀\n\t\u0301") for _ in range(30))
        assert "".join(stream(Detokenizer(byte_tokenizer(), [0, *encode("x ")]), encode(text))[0]) == text


def test_a_thousand_bytes_of_garbage_are_shown_as_they_come_and_cost_little() -> None:
    detokenizer = Detokenizer(byte_tokenizer(), [0])
    continuation = encode("é")[1]
    started_s = time.perf_counter()
    shown = ""
    for _ in range(1000):
        detokenizer.add(continuation)
        shown += detokenizer.take()
    assert len(shown) > 900
    assert time.perf_counter() - started_s < 2.0


def test_a_stop_string_across_tokens_ends_the_text_in_front_of_it() -> None:
    shown, stop = stream(Detokenizer(byte_tokenizer(), [0], ("\n\n", "END")), encode("one EN two END three"))
    assert "".join(shown) == "one EN two "
    assert stop == "END"


def test_what_could_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    shown, stop = stream(Detokenizer(byte_tokenizer(), [0], ("abc",)), encode("xabd"))
    assert shown == ["x", "", "", "abd", ""]
    assert stop is None


def test_what_was_held_back_is_shown_at_the_end() -> None:
    shown, stop = stream(Detokenizer(byte_tokenizer(), [0], ("abc",)), encode("xab"))
    assert shown == ["x", "", "", "ab"]
    assert stop is None


def test_the_stop_string_stays_where_asked_for() -> None:
    shown, stop = stream(Detokenizer(byte_tokenizer(), [0], ("END",), include_stop=True), encode("go END on"))
    assert "".join(shown) == "go END"
    assert stop == "END"


def test_the_stop_string_that_begins_first_wins() -> None:
    shown, stop = stream(Detokenizer(byte_tokenizer(), [0], ("bcd", "c")), encode("abxcbcd"))
    assert ("".join(shown), stop) == ("abx", "c")


def test_a_stop_string_in_the_bytes_left_at_the_end_is_found() -> None:
    detokenizer = Detokenizer(byte_tokenizer(), [0], ("\ufffd",))
    assert detokenizer.add(encode("é")[0]) is None
    assert detokenizer.take() == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.finish() == ""


def test_a_stop_string_is_not_sought_in_the_context() -> None:
    shown, stop = stream(Detokenizer(byte_tokenizer(), [0, *encode("EN")], ("END",)), encode("D of it"))
    assert ("".join(shown), stop) == ("D of it", None)
