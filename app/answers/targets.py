"""Target: a version of a task, or the bare backbone, as something that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from app.errors import InvalidInput
from app.model.layout import BARE, Template, continue_prompt, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from app.answers.ensembles import Combine
    from app.answers.generating.labels import LabelChances
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt

MAX_CHARS_AT_ONCE = 4096
"""A longer text is encoded in a thread, so that other requests need not wait for it."""


@dataclass(frozen=True)
class Target:
    """A version of a task with its prompt, or the backbone without one.

    Attributes:
        model_id: what the response's `model` says: "sentiment@3", or the backbone's name.
        flow: whose fair share the work counts against: the task's name, or the backbone's.
        sampling: defaults, by the names of SamplingParams.
        label_temperature: divides the labels' log-likelihoods.
    """

    model_id: str
    flow: str
    prompt: TaskPrompt | None
    template: Template | None
    labels: tuple[str, ...]
    sampling: dict[str, Any]
    label_temperature: float = 1.0
    is_ensemble: ClassVar = False

    @classmethod
    def of_backbone(cls, name: str) -> Target:
        return cls(name, name, None, None, (), {})

    @classmethod
    def of_version(cls, version: Version, prompt: TaskPrompt) -> Target:
        return cls(
            version.id,
            version.task,
            prompt,
            version.template,
            version.labels,
            dict(version.sampling),
            version.label_temperature or 1.0,
        )

    @property
    def members(self) -> tuple[Target, ...]:
        """As of an `Ensemble`, like the two methods below: who answers."""
        return (self,)

    def choose_combine(self, asked: Combine | None, *, param: str = "combine") -> Combine | None:
        """Raises InvalidInput: a request asks a single version to combine."""
        if asked is not None:
            raise InvalidInput("this belongs to an ensemble, such as sentiment@1+2+3", param=param)
        return None

    def combine_chances(self, chances: Sequence[LabelChances], how: Combine | None) -> tuple[int, LabelChances]:
        """Of a single version: its own."""
        [single] = chances
        return single.best, single

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    @property
    def input_template(self) -> Template:
        """The task's template, or the bare input if it has none."""
        return self.template or BARE

    async def encode(self, tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
        """Ids of a text after the prompt: [prompt][BOS][text]; a written prompt begins with the BOS itself."""
        if len(text) > MAX_CHARS_AT_ONCE:
            token_ids = await asyncio.to_thread(encode_text, tokenizer, text)
        else:
            token_ids = encode_text(tokenizer, text)
        return tuple(continue_prompt(tokenizer, self.prompt, token_ids))
