"""ServedPrompt: a prompt with everything that decides how it answers when it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.errors import InvalidInput
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, continue_prompt
from app.sampling import SamplingParams
from app.task_prompt import TaskPrompt

DEFAULT_MAX_NEW_TOKENS = 64
OF_A_TEXT = ("stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens")


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
    max_new_tokens: of a text.
    stop, stop_token_ids, include_stop_str_in_output, ignore_eos: where a text ends, as of SamplingParams.
    skip_special_tokens: whether they are left out of a text.
    """

    prompt: TaskPrompt | None
    template: Template = BARE
    labels: Sequence[str] = ()
    label_temperature: float | None = 1.0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS

    @classmethod
    def of(cls, prompt: TaskPrompt | None, described: Description) -> ServedPrompt:
        """As a version answers. Sampling defaults but for a text's end and form play no part: answers are greedy."""
        return cls(
            prompt,
            described.template or BARE,
            tuple(described.labels),
            described.label_temperature or 1.0,
            **of_a_text(described.sampling),
            max_new_tokens=int(described.sampling.get("max_tokens", DEFAULT_MAX_NEW_TOKENS)),
        )

    @property
    def params(self) -> SamplingParams:
        """How a text is written."""
        return SamplingParams(
            temperature=0.0,
            max_tokens=self.max_new_tokens,
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
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


def of_a_text(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a version's defaults that hold for greedy answers too: where a text ends, and what is left out of it."""
    chosen = {name: sampling[name] for name in OF_A_TEXT if name in sampling}
    if isinstance(chosen.get("stop"), str):
        chosen["stop"] = (chosen["stop"],)
    return chosen
