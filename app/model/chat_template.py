"""ChatTemplate: how a checkpoint writes a conversation as text.

A template is a program that comes with the weights (Jinja, in transformers' sandbox). Whatever it raises is an answer
about the conversation or about the template, never a failure of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput

DEFAULT = "default"
MAX_REASON_CHARS = 200
MIN_HIDDEN_CHARS = 8
"""Texts of the conversation from this length on are left out of what a template says about it."""
TRIAL_TEXT = "softswap"

Turn = dict[str, str]
"""`role` and `content`."""


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer's own, or its absence."""

    tokenizer: PreTrainedTokenizerFast

    @cached_property
    def problem(self) -> str | None:
        """Why there is none to write conversations with, as the end of a sentence about the checkpoint; None: fine.

        Found without a conversation: there is none at all, several have names and none is the default, or the default
        is no template. What it says about a conversation is known when it is given one.
        """
        templates = self.tokenizer.chat_template
        if not templates:
            return "has no chat template"
        if isinstance(templates, dict) and DEFAULT not in templates:
            return f"has chat templates named {', '.join(sorted(templates))}, and none named {DEFAULT}"
        try:
            self._write([{"role": "user", "content": TRIAL_TEXT}], is_open=True)
        except TemplateSyntaxError as error:
            return f"has a chat template that cannot be read (line {error.lineno}: {_cut(error.message or '')})"
        except Exception:  # noqa: S110 - it may want something else than this one turn
            pass
        return None

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of the conversation and of what begins the answer. Raises InvalidInput with the template's reason."""
        assert self.problem is None
        try:
            text = self._write(turns, is_open=True)
            return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except Exception as error:
            reason = _reason(error, [turn["content"] for turn in turns])
            message = f"the model's chat template does not take this conversation: {reason}"
            raise InvalidInput(message, param="messages") from None

    def write(self, turns: Sequence[Turn]) -> str | None:
        """The conversation and what begins the answer, without thoughts; None if the template does not take it."""
        if self.problem is not None:
            return None
        try:
            return self._write(turns, is_open=True, enable_thinking=False)
        except Exception:  # whatever a program of the checkpoint raises
            return None

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The token of the vocabulary's own that the template writes after an answer; None if there is none.

        Some checkpoints name it nowhere else, and their models would continue with invented turns.
        """
        if self.problem is not None:
            return None
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": TRIAL_TEXT}]
        try:
            _, is_there, after = self._write(turns, is_open=False).rpartition(TRIAL_TEXT)
            token_ids = self.tokenizer(after.lstrip(), add_special_tokens=False, verbose=False)["input_ids"]
        except Exception:
            return None
        is_token = is_there and token_ids and token_ids[0] in self.tokenizer.added_tokens_decoder
        return token_ids[0] if is_token else None

    def _write(self, turns: Sequence[Turn], *, is_open: bool, **variables: object) -> str:
        """Raises whatever the template does. Args: is_open: an answer is to follow. variables: of the template."""
        text: str = self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=is_open, **variables
        )
        return text


def _reason(error: Exception, texts: Sequence[str]) -> str:
    """What a template raised, in one line without the conversation's own texts."""
    said = str(error)
    for text in texts:
        said = said.replace(text, "...") if len(text) >= MIN_HIDDEN_CHARS else said
    kind = type(error).__name__
    if not said.strip():
        return kind
    return _cut(said) if isinstance(error, TemplateError) else f"{kind}: {_cut(said)}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON_CHARS else f"{line[:MAX_REASON_CHARS]}..."
