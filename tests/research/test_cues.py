"""Claims about the texts with cues: where answers stand, what the lists of names say, how headings are made."""

from __future__ import annotations

import random
import re
from importlib.util import find_spec

import numpy as np
import pytest
from tokenizers import Tokenizer

from research.demo.corpus import Document
from research.demo.cue_layout import ANSWER_ENDS, ANSWER_OPENS, Cue, lay_out, split_answers
from research.demo.headings import heading_of
from research.demo.languages import read_messages
from research.demo.messages import TYPE_TO_CLASSES, MessageCues
from research.demo.spans import read_phrases
from research.demo.spoken import RequestCues
from research.demo.token_stream import encode, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Text: it was fine.\nAnswer: positive", "a plain text about nothing"] * 20, 300)


def test_answers_are_told_apart_from_the_text_they_stand_in() -> None:
    marked = f"<s>ab{ANSWER_OPENS} yes{ANSWER_ENDS}</s><s>c{ANSWER_OPENS}no{ANSWER_ENDS}</s>"
    clean, spans = split_answers(marked)
    assert clean == "<s>ab yes</s><s>cno</s>"
    assert [clean[first:last] for first, last in spans] == [" yes", "no"]


def test_the_flagged_tokens_are_the_answer_and_the_end_behind_it(tokenizer: Tokenizer) -> None:
    marked = f"<s>Text: a naïve 🎉 text\nAnswer:{ANSWER_OPENS} positive{ANSWER_ENDS}</s>"
    ids, is_answer = encode(tokenizer, [marked, "<s>a plain text</s>"])
    assert tokenizer.decode(list(ids[is_answer]), skip_special_tokens=False) == " positive</s>"
    assert ids.dtype == np.uint16
    assert tokenizer.decode(list(ids), skip_special_tokens=False).startswith("<s>Text: a naïve 🎉 text\nAnswer:")


def test_marks_change_no_token(tokenizer: Tokenizer) -> None:
    marked = f"<s>x\n\n{ANSWER_OPENS}positive{ANSWER_ENDS}</s>"
    assert encode(tokenizer, [marked])[0].tolist() == encode(tokenizer, [split_answers(marked)[0]])[0].tolist()


def test_every_shot_has_one_marked_answer() -> None:
    rng = random.Random(0)
    cue = Cue(("sentiment",), lambda: ("a text", "good"), ("good", "bad"), asks=("Tone",))
    for _ in range(200):
        written = lay_out(cue, rng)
        assert written.count(ANSWER_OPENS) == written.count(ANSWER_ENDS) == written.count("a text")


def message_cues(rng: random.Random) -> MessageCues:
    articles = {
        noun: [Document("encyclopedia", "", title=f"{kind.title()} {noun.title()}")]
        for kind, nouns in TYPE_TO_CLASSES.items()
        for noun in nouns.split()
    }
    return MessageCues(articles, lambda: "No one went to see Anna that day.", rng)


def test_the_listed_names_are_words_of_the_message_in_its_order() -> None:
    cues, num_none, num_named = message_cues(random.Random(1)), 0, 0
    for _ in range(100):
        text, answer = cues.entities().draw()
        num_none += answer == "none"
        at = 0
        for pair in answer.split("; ") if answer != "none" else []:
            name = pair.split(" = ")[1]
            assert text.find(name, at) >= at
            at, num_named = text.index(name, at), num_named + 1
    assert min(num_none, num_named) > 10


def test_no_slot_of_a_message_or_request_is_left_open() -> None:
    rng = random.Random(2)
    messages, requests = message_cues(rng), RequestCues(rng)
    for _ in range(200):
        for cue in (messages.entities(), requests.topic(), requests.action()):
            assert not re.search(r"[{}]", "".join(cue.draw()))


@pytest.mark.parametrize("name", ["tone", "messages", "requests"])
def test_written_phrases_are_distinct(name: str) -> None:
    def check(node: object) -> None:
        if isinstance(node, dict):
            for child in node.values():
                check(child)
        elif isinstance(node, list):
            assert len(set(filter(None, node))) == len(list(filter(None, node)))

    check(read_phrases(name))


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        (
            "The parliament of Norway voted on Tuesday to raise the tax on fuel, which surprised many. More follows.",
            "Parliament of Norway voted to raise tax on fuel",
        ),
        ("A fire has been put out in the old harbour after three hours of work.", "Fire put out in old harbour"),
        ("It rains.", ""),
    ],
)
def test_a_heading_is_the_main_clause_without_dates_and_articles(text: str, heading: str) -> None:
    assert heading_of(text) == heading


def test_the_lexicons_agree_about_clear_sentences() -> None:
    if find_spec("vaderSentiment") is None or find_spec("textblob") is None:
        pytest.skip("the lexicons are dependencies of pre-training alone")
    from research.demo.tone import Tone

    tone = Tone(random.Random(0))
    assert tone.of("It is a wonderful, charming and funny film.") == "positive"
    assert tone.of("It is a terrible, boring and ugly film.") == "negative"
    assert tone.of("The river flows to the town.") == "neutral"
    assert {tone.of(tone.review("positive")) for _ in range(50)} >= {"positive"}


def test_translated_messages_name_their_language() -> None:
    if find_spec("django") is None:
        pytest.skip("the translations are a dependency of pre-training alone")
    messages = read_messages()
    assert {"English", "German", "Turkish"} <= messages.keys()
    assert all(len(texts) > 50 for texts in messages.values())
    assert not set(messages["German"]) & set(messages["English"])
