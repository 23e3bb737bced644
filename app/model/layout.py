"""The one layout of a request, shared by the engine's callers and the tuner: [prompt][BOS][text][target][EOS].

The prompt stands before the beginning-of-sequence token because PEFT concatenates it after tokenization
(`peft_model.py`, `PeftModelForCausalLM.forward`), and prompts must mean the same in both programs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from app.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from app.model.backbone import Backbone
    from app.task_prompt import TaskPrompt

INPUT, TARGET = "{input}", "{target}"
MAX_QUOTED_CHARS = 40
"""Of a label in a message."""


@dataclass(frozen=True)
class Template:
    """How an input becomes text, and the place of the target: `{input}` once, `{target}` once and last.

    Blanks before `{target}` belong to the target, because that is how byte-level and sentencepiece vocabularies
    cut words: "Sentiment: {target}" asks with "Sentiment:" and expects " positive".

    Attributes:
        system: a system message that `text` holds already: an input that brings it again, on lines of its own before
            the rest, is not given it twice.
        max_input_tokens: longer inputs lose their end, until the text has at most this number of tokens; 0 cuts
            nothing.
    """

    text: str = "{input}\n{target}"
    system: str = ""
    max_input_tokens: int = 0

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

    def after_system(self, system: str) -> Template:
        """With a system message before everything else, on lines of its own, unless the text says it already."""
        if not system:
            return self
        text = self.text if system in self.text else f"{system}\n{self.text}"
        return replace(self, text=text, system=system)

    def render(self, text: str) -> str:
        """The text before the target."""
        before, asked, _ = self._parts
        own = text.removeprefix(f"{self.system}\n") if self.system else text
        return f"{before}{own}{asked}"

    def encode_input(self, tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
        """Raises InvalidInput: there is a limit, and the template alone is longer."""
        if self.max_input_tokens:
            return self.encode_within(tokenizer, text, self.max_input_tokens)
        return encode_text(tokenizer, self.render(text))

    def encode_within(self, tokenizer: PreTrainedTokenizerFast, text: str, max_tokens: int) -> list[int]:
        """As `fit_input`, the ids alone."""
        return self.fit_input(tokenizer, text, max_tokens)[0]

    def fit_input(self, tokenizer: PreTrainedTokenizerFast, text: str, max_tokens: int) -> tuple[list[int], int]:
        """As `encode_input`, with the end of the input cut off until at most `max_tokens` ids are left, or fewer if the
        template says so; and how many are lost.

        What the template writes after the input stays, because the prompt was tuned with it.

        Raises InvalidInput: the template alone is longer.
        """
        limit = min(max_tokens, self.max_input_tokens or max_tokens)
        text = text.removeprefix(f"{self.system}\n") if self.system else text
        token_ids = encode_text(tokenizer, self.render(text))
        num_whole = len(token_ids)
        while len(token_ids) > limit and text:
            keep = max(0, int(len(text) * limit / len(token_ids)) - 1)
            text = text[: min(keep, len(text) - 1)]
            token_ids = encode_text(tokenizer, self.render(text))
        if len(token_ids) > limit:
            raise InvalidInput(f"the template alone is longer than {limit} tokens", param="max_input_tokens")
        return token_ids, num_whole - len(token_ids)

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
    end = _end_of(tokenizer, token_ids[-1]) if len(token_ids) > 1 else None
    return token_ids if end is None or text.endswith(end) else token_ids[:-1]


def _end_of(tokenizer: PreTrainedTokenizerFast, token_id: int) -> str | None:
    """The token, if it is end-of-sequence; of a tokenizer that does not name one, any special token."""
    if tokenizer.eos_token_id is not None:
        return str(tokenizer.eos_token) if token_id == tokenizer.eos_token_id else None
    added = tokenizer.added_tokens_decoder.get(token_id)
    return None if added is None or not added.special else added.content


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
    return _without_bos(tokenizer, token_ids) if is_written else token_ids


def _without_bos(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> list[int]:
    return token_ids[1:] if token_ids[:1] == [tokenizer.bos_token_id] else token_ids


def num_positions_after_prompt(
    backbone: Backbone, template: Template, labels: Sequence[str], *, is_written: bool
) -> int:
    """What the shortest request takes: the template around one token, and an answer of one, or any of the labels.

    The last token of a label need not be put in to know how likely it is.

    Args: is_written: whether the prompt is a text, which begins with BOS itself.

    Raises InvalidInput: as `encode_labels`.
    """
    token_ids = template.encode_input(backbone.tokenizer, "")
    around = _without_bos(backbone.tokenizer, token_ids) if is_written else token_ids
    longest = max((len(ids) - 1 for ids in encode_labels(backbone, template, labels)), default=1)
    return len(around) + 1 + longest


def encode_labels(backbone: Backbone, template: Template, labels: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of each label as it continues the template.

    If the ids of one label begin another's, all get the end-of-sequence id, or the longer one could never win.

    Raises InvalidInput that names the labels: two are the same to the tokenizer, one is nothing to it or has a token
    that is not embedded, or one begins another and there is no end-of-sequence token to tell where it ends.
    """
    encoded = [tuple(template.encode_target(backbone.tokenizer, label)) for label in labels]
    _require_own_ids(backbone, labels, encoded)
    if find_prefix_clash(encoded) is None:
        return encoded
    backbone.require_embedded(backbone.taught_eos_ids, "what ends a label", param="labels")
    ended = [(*ids, *backbone.taught_eos_ids) for ids in encoded]
    if clash := find_prefix_clash(ended):
        shorter, longer = (_quote(labels[index]) for index in clash)
        raise InvalidInput(
            f"{shorter} begins {longer} to the tokenizer, and the backbone has no end-of-sequence token", param="labels"
        )
    return ended


def find_prefix_clash(sequences: Sequence[tuple[int, ...]]) -> tuple[int, int] | None:
    """Indexes of a sequence that begins another, and of that one; None if there is none."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    clashes = ((a, b) for a, b in pairwise(order) if sequences[b][: len(sequences[a])] == sequences[a])
    return next(clashes, None)


def _require_own_ids(backbone: Backbone, labels: Sequence[str], encoded: Sequence[tuple[int, ...]]) -> None:
    known: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, encoded, strict=True):
        if not ids:
            raise InvalidInput(f"{_quote(label)} is nothing to the tokenizer", param="labels")
        backbone.require_embedded(ids, _quote(label), param="labels")
        seen = _without_repeated_unknown(ids, backbone.tokenizer.unk_token_id)
        if seen in known:
            both = f"{_quote(known[seen])} and {_quote(label)}"
            raise InvalidInput(f"{both} are the same to the tokenizer", param="labels")
        known[seen] = label


def _without_repeated_unknown(ids: tuple[int, ...], unknown_id: int | None) -> tuple[int, ...]:
    """Unknown tokens in a row count as one, as nothing is left of what they stood for but how many there were."""
    return tuple(each for i, each in enumerate(ids) if each != unknown_id or i == 0 or ids[i - 1] != unknown_id)


def _quote(label: str) -> str:
    return json.dumps(label if len(label) <= MAX_QUOTED_CHARS else f"{label[:MAX_QUOTED_CHARS]}...", ensure_ascii=False)
