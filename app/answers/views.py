"""Documents that HTTP and `softswap --json` show alike: their base class, and what the registry holds.

`model_validate` reads each from the registry's object: Version, RecordedEvaluation, Gate, TaskRecord.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from app.model.layout import Template
from app.registry.aliases import AliasTarget


class Reply(BaseModel):
    """Over HTTP, or printed with --json."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)

    @classmethod
    def fields_of(cls, source: object) -> dict[str, Any]:
        """Its fields that `source` has under the same names."""
        return {name: getattr(source, name) for name in cls.model_fields if hasattr(source, name)}

    @classmethod
    def given_in(cls, source: object) -> dict[str, Any]:
        """As `fields_of`, but for those that are None or empty."""
        return {name: value for name, value in cls.fields_of(source).items() if value not in (None, (), {})}


def _text_of(template: Template | None) -> str | None:
    return None if template is None else template.text


class VersionObject(Reply):
    """One immutable publication of a task prompt."""

    id: str = Field(description="The pinned name, such as `sentiment@3`.")
    object: Literal["task.version"] = "task.version"
    task: str
    number: int
    digest: str = Field(description="sha256 over kind, backbone and values.")
    kind: Literal["embeddings", "kv", "text"]
    num_virtual_tokens: int
    num_bytes: int = Field(description="What its tensors take on disk.")
    backbone_fingerprint: str = Field(description="The only backbone that can serve it.")
    backbone_name: str = Field(description="What people call that backbone.")
    template: Annotated[str | None, BeforeValidator(_text_of)]
    max_input_tokens: Annotated[int | None, BeforeValidator(lambda number: number or None)] = Field(
        None,
        validation_alias=AliasPath("template", "max_input_tokens"),
        description="Longer inputs lose their end until the text has at most this many tokens; null cuts nothing.",
    )
    labels: list[str]
    label_temperature: float | None = Field(
        description="What the labels' log-likelihoods are divided by; null leaves their probabilities as they are."
    )
    sampling: dict[str, Any]
    metrics: dict[str, JsonValue]
    provenance: dict[str, JsonValue]
    description: str
    created_at: int = Field(description="Seconds since 1970.")


class RecordedEvaluationObject(Reply):
    """Figures of a version that were kept with it."""

    data_sha256: str = Field(description="Of the examples.")
    data_name: str
    metrics: dict[str, float]
    created_at: int = Field(description="Seconds since 1970.")


class GateObject(Reply):
    """What keeps an alias from moving to a version that scores lower than the one it means."""

    data_sha256: str = Field(description="Of its examples, which the task keeps.")
    metric: str
    tolerance: float


class TaskBackboneObject(Reply):
    """What a task has for one backbone."""

    name: str
    fingerprint: str
    num_versions: int
    live: VersionObject | None
    aliases: dict[str, AliasTarget]
    gates: dict[str, GateObject]


class TaskObject(Reply):
    """A task, and what its names mean now on the backbone that is served; in a folder, on the only one."""

    id: str = Field(validation_alias="task")
    object: Literal["task"] = "task"
    live: VersionObject | None = Field(description="What the bare name means; null if no alias says it.")
    num_versions: Annotated[int, BeforeValidator(len)] = Field(
        validation_alias="versions", description="For all backbones, which share the task's numbers."
    )
    aliases: dict[str, AliasTarget] = Field(
        description="Each alias's version number, or two numbers with the shares of requests they get."
    )
    gates: dict[str, GateObject] = Field(description="Of those aliases that have one.")
    backbones: list[TaskBackboneObject] = Field(description="All that the task has versions for.")
    missing: str | None = Field(description="Why the task cannot be used here, and what to do; null if it can.")
