"""Targets: what the `model` of a request stands for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.answers.naming import naming
from app.errors import InvalidInput, NotFound
from app.model.layout import BARE, Template
from app.registry.reference import JOINT

if TYPE_CHECKING:
    from app.answers.readiness import Services
    from app.registry.version import Version
    from app.task_prompt import TaskPrompt

NUM_TRIES = 5


@dataclass(frozen=True)
class Target:
    """A version of a task with its prompt, or the backbone without one.

    Attributes:
        model_id: what the response's `model` says: "sentiment@3", or the backbone's name.
        flow: whose fair share the work counts against: the task's name, or the backbone's.
        sampling: defaults, by the names of SamplingParams.
        label_temperature: of the labels' probabilities.
    """

    model_id: str
    flow: str
    prompt: TaskPrompt | None
    template: Template | None
    labels: tuple[str, ...]
    sampling: dict[str, Any]
    label_temperature: float = 1.0

    @property
    def num_virtual_tokens(self) -> int:
        return self.prompt.num_virtual_tokens if self.prompt else 0

    @property
    def input_template(self) -> Template:
        """The task's template, or the bare input where it has none."""
        return self.template or BARE


async def find_target(services: Services, name: str, *, param: str = "model") -> Target:
    """What `name` means now. A request keeps the version it gets here, whatever is published meanwhile.

    Raises:
        NotFound, CorruptPrompt, BackboneMismatch: with `param`.
        InvalidInput: the name is an ensemble's.
    """
    if name == services.backbone.name:
        return Target(name, name, None, None, (), {})
    if JOINT in name:
        raise InvalidInput("an ensemble answers runs, decisions and evaluations, and nothing else", param=param)
    with naming(param):
        version, prompt = await _find_prompt(services, name)
    return version_target(version, prompt)


async def _find_prompt(services: Services, name: str) -> tuple[Version, TaskPrompt]:
    """Without a thread where the prompt is in memory."""
    version = services.registry.resolve(name)
    loaded = services.registry.loaded_prompt(version)
    if loaded is not None:
        return version, loaded
    return await asyncio.to_thread(resolve_prompt, services, name, version)


def version_target(version: Version, prompt: TaskPrompt) -> Target:
    return Target(
        version.id,
        version.task,
        prompt,
        version.template,
        version.labels,
        dict(version.sampling),
        version.label_temperature or 1.0,
    )


def resolve_prompt(services: Services, name: str, version: Version | None = None) -> tuple[Version, TaskPrompt]:
    """A version can be deleted between its name and its values; then the name means another version already.

    Args: version: what the name was found to mean a moment ago.
    """
    for _ in range(NUM_TRIES - 1):
        version = version or services.registry.resolve(name)
        try:
            return version, services.registry.prompt(version)
        except NotFound:
            version = None
    version = services.registry.resolve(name)
    return version, services.registry.prompt(version)
