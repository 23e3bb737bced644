"""Version: an immutable publication of a task prompt under a task, as the registry keeps it in memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.layout import Template
from app.model.loading.catalog.models import FINGERPRINT_TO_NAME
from app.registry.formats.binding import require_room
from app.registry.formats.manifest import Manifest, read_sampling
from app.task_prompt import PromptKind

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Version:
    """What requests and listings need of a manifest; the rest stays on disk (`Registry.manifest`).

    Attributes:
        digest: the TaskPrompt's.
        backbone_fingerprint: the only backbone that can serve it.
        backbone_name: what people call that backbone: of the catalog, or what it was called when this was published.
        template: None if the prompt came without one.
        num_bytes: what its tensors take on disk.
        labels: what a labeled task answers with; empty for one that generates.
        label_temperature: of the labels' probabilities; None leaves them as they are.
        sampling: defaults by the names of SamplingParams, typed as those are.
        metrics: figures of the evaluation.
        provenance: where the prompt comes from.
        created_at: seconds since 1970, UTC.
    """

    task: str
    number: int
    digest: str
    kind: PromptKind
    num_virtual_tokens: int
    num_bytes: int
    backbone_fingerprint: str
    backbone_name: str
    template: Template | None
    labels: tuple[str, ...]
    label_temperature: float | None
    sampling: Mapping[str, Any]
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    description: str
    created_at: int

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Version:
        backbone = manifest.backbone
        said = {each.name: getattr(manifest, each.name) for each in fields(cls) if each.name in Manifest.model_fields}
        return cls(
            **said
            | {
                "task": sys.intern(manifest.task),
                "num_bytes": sum(file.num_bytes for file in manifest.tensor_files.values()),
                "backbone_fingerprint": sys.intern(backbone.fingerprint),
                "backbone_name": sys.intern(FINGERPRINT_TO_NAME.get(backbone.fingerprint, backbone.name)),
                "template": manifest.input_template,
                "sampling": read_sampling(manifest.sampling) or _NOTHING,
                "metrics": manifest.metrics or _NOTHING,
                "provenance": manifest.provenance or _NOTHING,
            }
        )

    @property
    def id(self) -> str:
        """The pinned name, which is a response's `model`: `sentiment@3`."""
        return f"{self.task}@{self.number}"

    def find_fault(self, backbone: Backbone, max_positions: int) -> str | None:
        """Why it cannot be served there, by what the manifest says; None if it can, or if it is for another backbone.

        Args: max_positions: of one sequence, in the engine that serves.
        """
        if self.backbone_fingerprint != backbone.fingerprint:
            return None
        try:
            require_room(
                self.num_virtual_tokens,
                self.template,
                self.labels,
                is_written=self.kind is PromptKind.TEXT,
                backbone=backbone,
                max_positions=max_positions,
            )
        except InvalidInput as error:
            return error.message
        return None
