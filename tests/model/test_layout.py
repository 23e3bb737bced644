"""The layout of a request."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput
from app.model.layout import Template, continue_prompt, encode_continuation, encode_text
from app.task_prompt import TaskPrompt
from tests.support.models import byte_tokenizer


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def tokenizer_with_end() -> PreTrainedTokenizerFast:
    """As T5's and some Llama finetunes' are: an end-of-sequence id after every text."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=type(byte_tokenizer().backend_tokenizer).from_str(byte_tokenizer().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
    )
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return fast


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{input}",
        "{target}",
        "{input}{input}{target}",
        "{target}{input}",
        "{input}{target} ",
        "{input}{target}{target}",
    ],
)
def test_a_template_without_one_input_and_one_last_target_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Template(text)
    assert caught.value.param == "template"


def test_the_input_is_put_in_as_it_is() -> None:
    template = Template("Review: {input}\nSentiment: {target}")
    assert template.render("good {target} {input} 100 %") == "Review: good {target} {input} 100 %\nSentiment:"


def test_blanks_in_front_of_the_target_belong_to_the_target() -> None:
    template = Template("{input}\nSentiment: {target}")
    assert template.encode_input(byte_tokenizer(), "ok") == [0, *ids_of("ok\nSentiment:")]
    assert template.encode_target(byte_tokenizer(), "positive") == ids_of(" positive")


@pytest.mark.parametrize(
    "text", ["{input}{target}", "{input} {target}", "{input}\n{target}", "Q: {input}\nA: {target}"]
)
def test_input_and_target_together_are_the_whole_text(text: str) -> None:
    template = Template(text)
    whole = [0, *ids_of(text.replace("{input}", "some text").replace("{target}", "yes"))]
    assert (
        template.encode_input(byte_tokenizer(), "some text") + template.encode_target(byte_tokenizer(), "yes") == whole
    )


def test_a_target_does_not_depend_on_the_input() -> None:
    template = Template("{input} {target}")
    assert (
        template.encode_target(byte_tokenizer(), "x") == template.encode_target(byte_tokenizer(), "x") == ids_of(" x")
    )


def test_the_end_that_a_tokenizer_adds_is_taken_off_and_the_beginning_kept() -> None:
    tokenizer = tokenizer_with_end()
    assert tokenizer("ab")["input_ids"][-1] == 1
    assert encode_text(tokenizer, "ab") == [0, *ids_of("ab")]
    assert encode_text(tokenizer, "ab</s>")[-1] == 1
    assert encode_text(tokenizer, "") == [0]


def test_a_text_without_anything_is_its_beginning_of_sequence() -> None:
    assert encode_text(byte_tokenizer(), "") == [0]


def test_a_continuation_has_no_special_tokens() -> None:
    assert encode_continuation(byte_tokenizer(), "a", "bc") == ids_of("bc")
    assert encode_continuation(tokenizer_with_end(), "a", "bc") == ids_of("bc")


def test_after_a_written_prompt_a_text_has_no_second_beginning_of_sequence() -> None:
    tokenizer = byte_tokenizer()
    text = encode_text(tokenizer, "abc")
    written = TaskPrompt.from_text("do this: ", encode_text(tokenizer, "do this: "), "f")
    trained = TaskPrompt.from_embeddings(torch.ones(2, 4), "f")
    assert continue_prompt(tokenizer, written, text) == text[1:]
    assert continue_prompt(tokenizer, trained, text) == text
    assert continue_prompt(tokenizer, None, text) == text
