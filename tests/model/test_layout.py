"""The layout of a request."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.layout import (
    Template,
    continue_prompt,
    encode_continuation,
    encode_labels,
    encode_text,
    find_prefix_clash,
)
from app.task_prompt import TaskPrompt
from tests.support.models import build_backbone, byte_tokenizer, character_tokenizer, tiny_backbone


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def tokenizer_with_end(*, is_named: bool = True) -> PreTrainedTokenizerFast:
    """As T5's and some Llama finetunes' are: an end-of-sequence id after every text."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=type(byte_tokenizer().backend_tokenizer).from_str(byte_tokenizer().backend_tokenizer.to_str()),
        bos_token="<s>",
        **{"eos_token": "</s>"} if is_named else {"pad_token": "</s>"},
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


@pytest.mark.parametrize("is_named", [True, False])
def test_the_end_that_a_tokenizer_adds_is_taken_off_and_the_beginning_kept(is_named: bool) -> None:
    tokenizer = tokenizer_with_end(is_named=is_named)
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


# --- labels

QUESTION = Template("Text: {input}\nAnswer: {target}")


def backbone_of(tokenizer: PreTrainedTokenizerFast) -> Backbone:
    return replace(tiny_backbone(), tokenizer=tokenizer)


def test_end_of_sequence_counts_only_where_one_label_begins_another() -> None:
    backbone = tiny_backbone()
    eos_id = backbone.tokenizer.eos_token_id
    assert all(ids[-1] == eos_id for ids in encode_labels(backbone, QUESTION, ["a", "ab", "abc"]))
    assert not any(eos_id in ids for ids in encode_labels(backbone, QUESTION, ["no", "yes"]))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["no", "yes", "no"], '"no" and "no" are the same'),
        (["no", "\N{SLIGHTLY SMILING FACE}", "yes", "\N{FROWNING FACE WITH OPEN MOUTH}"], "are the same"),
        (["caf\xe9", "cafe", "caf\xfc"], '"caf\xe9" and "caf\xfc" are the same'),
        (["\xe9", "\xfc\xfc"], '"\xe9" and "\xfc\xfc" are the same'),
        (["x\xe9\xe9y", "x\xfcy"], "are the same"),
        (["\xe9" * 300, "\xfc"], '"' + "\xe9" * 40 + '..." and "\xfc" are the same'),
    ],
)
def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused_by_name(labels: list[str], reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_labels(backbone_of(character_tokenizer()), QUESTION, labels)
    assert reason in caught.value.message
    assert caught.value.param == "labels"


def test_labels_with_different_known_tokens_are_told_apart_whatever_is_unknown_in_them() -> None:
    encoded = encode_labels(backbone_of(character_tokenizer()), QUESTION, ["\xe9", "a\xe9", "\xe9a", "a\xe9b\xe9"])
    assert len(set(encoded)) == 4


def test_a_label_that_is_nothing_to_the_tokenizer_is_refused_by_name() -> None:
    backbone = backbone_of(character_tokenizer(unknown=None))
    with pytest.raises(InvalidInput, match='"\xe9" is nothing to the tokenizer'):
        encode_labels(backbone, Template("{input}{target}"), ["no", "\xe9"])


def test_a_label_that_begins_another_is_refused_where_nothing_can_end_it() -> None:
    backbone = build_backbone(tokenizer=character_tokenizer(end=None), eos_token_id=None)
    assert len(encode_labels(backbone, QUESTION, ["no", "yes"])) == 2
    with pytest.raises(InvalidInput, match='"no" begins "nope" to the tokenizer'):
        encode_labels(backbone, QUESTION, ["nope", "yes", "no"])


def test_a_label_of_a_token_that_the_embedding_lacks_is_refused_by_name() -> None:
    tokenizer = character_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(300)])
    with pytest.raises(InvalidInput, match=r'"<299>" has the token .<299>.'):
        encode_labels(backbone_of(tokenizer), QUESTION, ["<1>", "<299>"])
    assert len(encode_labels(backbone_of(tokenizer), QUESTION, ["<1>", "<2>"])) == 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, unique=True))
def test_a_prefix_clash_is_found_wherever_it_is(sequences: list[tuple[int, ...]]) -> None:
    clashing = {(i, j) for i, a in enumerate(sequences) for j, b in enumerate(sequences) if a != b and b[: len(a)] == a}
    found = find_prefix_clash(sequences)
    assert found in clashing if clashing else found is None
