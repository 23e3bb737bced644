"""The layout of a request."""

from __future__ import annotations

import torch

from app.model.layout import continue_prompt, encode_text
from app.task_prompt import TaskPrompt
from tests.models import byte_tokenizer


def test_behind_a_written_prompt_a_text_has_no_second_beginning_of_sequence() -> None:
    tokenizer = byte_tokenizer()
    text = encode_text(tokenizer, "abc")
    written = TaskPrompt.from_text("do this: ", encode_text(tokenizer, "do this: "), "f")
    trained = TaskPrompt.from_embeddings(torch.ones(2, 4), "f")
    assert continue_prompt(tokenizer, written, text) == text[1:]
    assert continue_prompt(tokenizer, trained, text) == text
    assert continue_prompt(tokenizer, None, text) == text
