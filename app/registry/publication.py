"""Publication: a task prompt and what is said about it; it becomes a version when a registry gives it a number."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from app.errors import InvalidInput
from app.model.layout import Template
from app.registry.formats.initial_rows import INITIAL_FILE, encode_initial
from app.registry.formats.manifest import MANIFEST_FILE, BackboneName, Manifest, TensorFile
from app.registry.formats.model_card import CARD_FILE, render_card
from app.registry.formats.peft_checkpoint import TENSOR_FILE, encode_checkpoint
from app.task_prompt import TaskPrompt

if TYPE_CHECKING:
    import torch

    from app.model.backbone import Backbone

_JSON_FIELDS = ("sampling", "metrics", "tuning", "provenance")
_OTHER_FORM = ("prompt", "initial", "template")
"""What a manifest says in another form; every other field has the same name there."""


@dataclass(frozen=True, eq=False)
class Publication:
    """Attributes:
        prompt: what is published.
        initial: the rows tuning started from, of the prompt's shape; kept to show how far it moved them.
        label_temperature: of the labels' probabilities (`app.measure.calibration.fit_temperature`).
        sampling: defaults by the names of SamplingParams.
        data_sha256: of the training data.
        tuning: configuration of the tuning run.
        provenance: where the prompt comes from.

    Raises InvalidInput: a field holds something JSON cannot express.
    """

    prompt: TaskPrompt
    initial: torch.Tensor | None = None
    template: Template | None = None
    labels: Sequence[str] = ()
    label_temperature: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data_sha256: str | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        for name in _JSON_FIELDS:
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))

    def encode(self, task: str, number: int, backbone: Backbone) -> dict[str, bytes]:
        """Names to contents of the files of a version's folder. Raises InvalidInput: what Manifest refuses."""
        files = encode_checkpoint(self.prompt, backbone)
        if self.initial is not None:
            files[INITIAL_FILE] = encode_initial(self.initial, self.prompt)
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OTHER_FORM}
        manifest = Manifest.build(
            **said,
            task=task,
            number=number,
            digest=self.prompt.digest,
            kind=self.prompt.kind,
            num_virtual_tokens=self.prompt.num_virtual_tokens,
            backbone=BackboneName(fingerprint=self.prompt.backbone_fingerprint, name=backbone.name),
            tensor=TensorFile.of(files[TENSOR_FILE]) if TENSOR_FILE in files else None,
            initial=TensorFile.of(files[INITIAL_FILE]) if INITIAL_FILE in files else None,
            text=self.prompt.text,
            token_ids=self.prompt.token_ids,
            template=None if self.template is None else self.template.text,
            created_at=int(time.time()),
        )
        return files | {CARD_FILE: render_card(manifest).encode(), MANIFEST_FILE: manifest.encode()}


def _as_json(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON: lists for tuples, strings for the keys of `logit_bias`."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must hold what JSON can say, and finite numbers", param=name) from error
    return plain
