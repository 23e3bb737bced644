"""ServedPrompt: a prompt with everything that decides how it answers when it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.errors import InvalidInput
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, continue_prompt
from app.task_prompt import TaskPrompt

DEFAULT_MAX_NEW_TOKENS = 64


class Description(Protocol):
    """What a version says about its prompt, and a publication that is to become one."""

    @property
    def template(self) -> Template | None: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def label_temperature(self) -> float | None: ...
    @property
    def sampling(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)
class ServedPrompt:
    """Attributes:
    prompt: of any kind; None asks the backbone alone.
    labels: what the task answers with; empty if it writes text.
    label_temperature: divides the labels' log-likelihoods; None fits it to the examples it is measured on.
    stop: strings that end a text and are not part of it.
    max_new_tokens: of a text.
    """

    prompt: TaskPrompt | None
    template: Template = BARE
    labels: Sequence[str] = ()
    label_temperature: float | None = 1.0
    stop: Sequence[str] = ()
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS

    @classmethod
    def of(cls, prompt: TaskPrompt | None, described: Description) -> ServedPrompt:
        """As a version answers. Sampling defaults but for the text's end play no part: answers are greedy."""
        stop = described.sampling.get("stop", ())
        return cls(
            prompt,
            described.template or BARE,
            tuple(described.labels),
            described.label_temperature or 1.0,
            (stop,) if isinstance(stop, str) else tuple(stop),
            int(described.sampling.get("max_tokens", DEFAULT_MAX_NEW_TOKENS)),
        )

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    def input_room(self, num_positions: int, num_answer_tokens: int) -> int:
        """Tokens of text that fit between prompt and answer. Raises InvalidInput: none do."""
        room = num_positions - self.num_virtual_tokens - num_answer_tokens
        if room < 1:
            raise InvalidInput("prompt and answer together are longer than the backbone's positions", param="prompt")
        return room

    def encode(
        self, backbone: Backbone, inputs: Sequence[str], max_tokens: int, *, num_before: int = 0
    ) -> list[EncodedExample]:
        """Rows without targets, as they continue the prompt; inputs of more than `max_tokens` lose their end.

        Args: num_before: inputs that come before these, for messages.

        Raises InvalidInput, with the example's number: a token that the backbone does not embed.
        """
        rows = []
        for index, text in enumerate(inputs, num_before):
            ids = self.template.encode_within(backbone.tokenizer, text, max_tokens)
            backbone.require_embedded(ids, f"the text of example {index + 1}", param=f"examples.{index}.input")
            rows.append(EncodedExample(tuple(continue_prompt(backbone.tokenizer, self.prompt, ids)), ()))
        return rows

    def cut(self, text: str) -> str:
        """The text before the first stop string in it, blanks trimmed."""
        places = [text.find(each) for each in self.stop if each in text]
        return text[: min(places, default=len(text))].strip()
