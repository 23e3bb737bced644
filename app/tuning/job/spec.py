"""JobSpec: what a tuning job is asked to do, as the job's record keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobSpec:
    """In JSON's types, fixed when the job is created. Records of every earlier version are read, so fields stay.

    Attributes:
        task, alias: where the result is published, and the alias to move to it; None moves none.
        model: as asked for: the backbone's name, or what `init_version` was found by.
        init_version: pinned id of the version that tuning continues from.
        training_file, validation_file: ids of uploads.
        template, labels: None leaves them to the tuner.
        hyperparameters: fields of TuneConfig that were asked for.
        search: fields of Search that were asked for.
        learning_rate_multiplier: of the learning rates that are tried if none was asked for.
        method: OpenAI's `method` object, as it is shown again.
        seed: of the request; also in `search`.
        teacher_text: a written prompt to distill; the training file then holds inputs.
        teacher_version: or pinned id of a version to distill.
        metadata: the caller's own.
    """

    task: str
    alias: str | None
    model: str
    training_file: str
    method: Mapping[str, Any]
    validation_file: str | None = None
    init_version: str | None = None
    template: str | None = None
    labels: tuple[str, ...] | None = None
    description: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    learning_rate_multiplier: float = 1.0
    seed: int = 0
    teacher_text: str | None = None
    teacher_version: str | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def has_teacher(self) -> bool:
        return self.teacher_text is not None or self.teacher_version is not None

    @property
    def file_ids(self) -> tuple[str, ...]:
        """Of the uploads it needs."""
        return (self.training_file,) if self.validation_file is None else (self.training_file, self.validation_file)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> JobSpec:
        labels = fields["labels"]
        return cls(**{**fields, "labels": None if labels is None else tuple(labels)})
