"""Target: a version of a task, or the bare backbone, as something that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.model.layout import BARE, Template

if TYPE_CHECKING:
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt


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
        """As of an ensemble: those who answer."""
        return (self,)

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    @property
    def input_template(self) -> Template:
        """The task's template, or the bare input if it has none."""
        return self.template or BARE
