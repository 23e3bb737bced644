"""The one layout of a request, shared by the engine's callers and the tuner: [prompt][BOS][text][target][EOS].

The prompt stands before the beginning-of-sequence token because PEFT concatenates it after tokenization
(`peft_model.py`, `PeftModelForCausalLM.forward`), and prompts must mean the same in both programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerFast

from app.errors import InvalidInput
from app.task_prompt import TaskPrompt

INPUT, TARGET = "{input}", "{target}"


@dataclass(frozen=True)
class Template:
    """How an input becomes text, and the place of the target: `{input}` once, `{target}` once and last.

    Blanks before `{target}` belong to the target, because that is how byte-level and sentencepiece vocabularies
    cut words: "Sentiment: {target}" asks with "Sentiment:" and expects " positive".
    """

    text: str = "{input}\n{target}"

    def __post_init__(self) -> None:
        if self.text.count(INPUT) != 1 or self.text.count(TARGET) != 1 or not self.text.endswith(TARGET):
            raise InvalidInput("template must contain {input} once and end with {target}", param="template")
        if self.text.index(INPUT) > self.text.index(TARGET):
            raise InvalidInput("template must have {input} before {target}", param="template")

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        before, rest = self.text.split(INPUT)
        between = rest.removesuffix(TARGET)
        asked = between.rstrip(" ")
        return before, asked, between[len(asked) :]

    def render(self, text: str) -> str:
        """The text before the target."""
        before, asked, _ = self._parts
        return f"{before}{text}{asked}"

    def encode_input(self, tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
        return encode_text(tokenizer, self.render(text))

    def encode_target(self, tokenizer: PreTrainedTokenizerFast, target: str) -> list[int]:
        """Ids of the target as they continue the template, without end-of-sequence.

        The ids do not depend on the input, so the labels of a task can be encoded once.
        """
        _, asked, _ = self._parts
        context = asked or "\n"
        return encode_continuation(tokenizer, context, self.write_target(target))

    def write_target(self, target: str) -> str:
        """The target as it follows the text that `render` gives, with the blank before it."""
        return self._parts[2] + target


BARE = Template("{input}{target}")
"""The bare input: of a task that has no template."""


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids with the special tokens that the tokenizer puts first (BOS), without one it may put last (EOS)."""
    token_ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if len(token_ids) > 1 and token_ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        return token_ids[:-1]
    return token_ids


def encode_continuation(tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> list[int]:
    """Ids that follow those of `context` when both are written together; no special tokens."""
    head: list[int] = tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]
    whole: list[int] = tokenizer(context + continuation, add_special_tokens=False, verbose=False)["input_ids"]
    if whole[: len(head)] == head:
        return whole[len(head) :]
    alone: list[int] = tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
    return alone


def continue_prompt(tokenizer: PreTrainedTokenizerFast, prompt: TaskPrompt | None, token_ids: list[int]) -> list[int]:
    """The ids of an encoded text as they follow `prompt`.

    A hand-written prompt begins with BOS itself, and a second one in the middle would tell the backbone that another
    document begins; after every other prompt the ids stay as they are.
    """
    is_written = prompt is not None and bool(prompt.token_ids)
    return token_ids[1:] if is_written and token_ids[:1] == [tokenizer.bos_token_id] else token_ids
