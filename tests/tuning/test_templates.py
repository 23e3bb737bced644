"""Templates and written prompts are made of what the columns and the labels are called."""

from __future__ import annotations

import copy

import pytest

from app.measure.reading.columns import CHAT, Columns
from app.model.layout import Template
from app.tuning.candidates import default_candidates
from app.tuning.templates import (
    WrittenPrompt,
    candidate_templates,
    chat_form,
    default_template,
    written_candidates,
    written_prompt,
)
from tests.support.models import byte_tokenizer

LABELS = ("billing", "delivery", "other")


@pytest.mark.parametrize(
    ("columns", "labels", "first"),
    [
        (Columns("message", "category"), LABELS, "Message: {input}\nCategory: {target}"),
        (Columns("customer_message", "ticketType"), LABELS, "Customer message: {input}\nTicket type: {target}"),
        (Columns("article", "headline"), (), "Article: {input}\nHeadline: {target}"),
        (Columns("text", "category"), LABELS, "Text: {input}\nCategory: {target}"),
        (Columns("Nachricht", "Größe"), LABELS, "Nachricht: {input}\nGröße: {target}"),
        (Columns("FAQ", "HTTP code"), LABELS, "FAQ: {input}\nHTTP code: {target}"),
        (Columns("{input}", "{Ziel}"), LABELS, "Text: {input}\nZiel: {target}"),
        (Columns("0", "1"), LABELS, "{input}\n{target}"),
        (Columns("text", "label"), LABELS, "{input}\n{target}"),
        (Columns("Input", "TARGET"), LABELS, "{input}\n{target}"),
        (CHAT, (), "{input}\n{target}"),
        (None, LABELS, "{input}\n{target}"),
    ],
)
def test_the_default_template_says_what_the_columns_say(
    columns: Columns | None, labels: tuple[str, ...], first: str
) -> None:
    assert default_template(columns, labels) == Template(first)


@pytest.mark.parametrize("columns", [Columns("message", "category"), Columns("text", "label"), None])
def test_two_templates_are_tried_and_a_third_if_there_is_a_chat_template(columns: Columns | None) -> None:
    plain = candidate_templates(columns, LABELS)
    assert len(set(plain)) == 2
    assert Template() in plain
    without = written_candidates(columns, LABELS, byte_tokenizer(has_chat_template=False))
    assert tuple(each.template for each in without) == plain
    titled = ("Message", "Category") if columns == Columns("message", "category") else ("Text", "Label")
    conversation = Template(f"{titled[0]}: {{input}}\nassistant:{titled[1]}: {{target}}")
    with_chat = written_candidates(columns, LABELS, byte_tokenizer())
    assert tuple(each.template for each in with_chat) == (*plain, conversation)


def test_a_conversation_has_one_beginning_of_sequence() -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = "{{ bos_token }}[{{ messages[0].content }}]"
    assert chat_form(tokenizer) == Template("[{input}]{target}")


@pytest.mark.parametrize(
    "chat_template",
    [
        "{{ messages[0].content[:3] }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].nothing.at_all }}",
        "{{ 'a' * 9000 }}",
    ],
)
def test_a_chat_template_that_cannot_hold_an_input_is_no_candidate(chat_template: str) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = chat_template
    assert chat_form(tokenizer) is None
    assert len(written_candidates(None, LABELS, tokenizer)) == 2


@pytest.mark.parametrize(
    ("columns", "labels", "prompt"),
    [
        (Columns("message", "category"), LABELS, "Classify the message as billing, delivery or other.\n\n"),
        (Columns("text", "label"), ("no", "yes"), "Classify the text as no or yes.\n\n"),
        (Columns("FAQ", "topic"), LABELS, "Classify the FAQ as billing, delivery or other.\n\n"),
        (
            Columns("request", "intent"),
            tuple(f"intent number {n}" for n in range(150)),
            "Give the intent of the request.\n\n",
        ),
        (Columns("article", "headline"), (), "Write the headline of the article.\n\n"),
        (None, (), "Write the answer of the text.\n\n"),
    ],
)
def test_a_written_prompt_names_the_columns_and_the_labels(
    columns: Columns | None, labels: tuple[str, ...], prompt: str
) -> None:
    assert written_prompt(columns, labels) == prompt


def test_every_candidate_says_a_system_message_that_all_examples_have() -> None:
    columns, system = Columns("message", "category"), "Be brief."
    plain, bare = candidate_templates(columns, LABELS, system=system)
    assert plain == Template("Be brief.\nMessage: {input}\nCategory: {target}", system)
    assert bare == Template("Be brief.\n{input}\n{target}", system)
    assert plain.render("Be brief.\nhello") == plain.render("hello") == "Be brief.\nMessage: hello\nCategory:"
    assert plain.render("Be kind.\nhello") == "Be brief.\nMessage: Be kind.\nhello\nCategory:"
    assert Template("Be brief. {input}\n{target}").after_system(system).text == "Be brief. {input}\n{target}"


def test_a_written_prompt_is_the_system_message_of_a_conversation_or_begins_the_users_turn() -> None:
    columns, tokenizer = Columns("message", "category"), byte_tokenizer()
    instruction = written_prompt(columns, LABELS)
    *plain, chat = written_candidates(columns, LABELS, tokenizer)
    assert plain == [WrittenPrompt(instruction, template) for template in candidate_templates(columns, LABELS)]
    after = Template("Message: {input}\nassistant:Category: {target}")
    assert chat == WrittenPrompt(f"system: {instruction.strip()}\nuser: ", after)
    [*_, spoken] = written_candidates(columns, LABELS, tokenizer, system="Be brief.")
    assert spoken.text == f"system: Be brief.\nuser: {instruction}"
    assert spoken.template.render("Be brief.\nhello") == "Message: hello\nassistant:Category:"
    assert len(written_candidates(columns, LABELS, byte_tokenizer(has_chat_template=False))) == 2
    given = written_candidates(columns, LABELS, tokenizer, template=Template(), text="Say it.")
    assert given == (WrittenPrompt("Say it.", Template()),)


def test_a_large_backbone_tries_the_written_prompts_keys_and_values_at_three_rates_first() -> None:
    small, large = (default_candidates("Say it.", 3, has_labels=True, is_large=is_large) for is_large in (False, True))
    assert [each["learning_rate"] for each in large[:3]] == [0.01, 0.004, 0.025]
    assert {each.get("init_text") for each in large[:3]} == {"Say it."}
    assert [each["kind"] for each in large] == sorted((each["kind"] for each in large), reverse=True)  # kv first
    assert [each["kind"] for each in small[:4]] == ["kv", "kv", "embeddings", "embeddings"]
    assert all(each in large for each in small)
