"""Publication: a task prompt and what is said about it; it becomes a version when a registry gives it a number."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from app.errors import InvalidInput
from app.model.backbone import Backbone
from app.model.layout import BARE, Template, encode_labels
from app.registry.formats.binding import require_fit, require_room
from app.registry.formats.manifest import MANIFEST_FILE, BackboneName, Manifest, TensorFile
from app.registry.formats.peft_checkpoint import CONFIG_FILE, TENSOR_FILE, encode_checkpoint
from app.registry.formats.safetensors_file import INITIAL_FILE, encode_initial
from app.registry.kept.examples import TunedOn
from app.task_prompt import PromptKind, TaskPrompt

_JSON_FIELDS = ("sampling", "metrics", "tuning", "provenance")
_OTHER_FORM = ("prompt", "initial", "template", "provenance", "examples")
"""What a manifest says in another form; every other field has the same name there."""
CARD_FILE = "README.md"
VERSION_FILES = (MANIFEST_FILE, CONFIG_FILE, TENSOR_FILE, INITIAL_FILE, CARD_FILE)
"""What a version's folder may hold."""
_KIND_TO_SENTENCE = {
    PromptKind.EMBEDDINGS: "A soft prompt: {n} virtual tokens before the text (Lester et al. 2021).",
    PromptKind.KV: "A key-value prefix: {n} virtual tokens in every layer's cache (Li and Liang 2021).",
    PromptKind.TEXT: "A text of {n} tokens before the input.",
}
_MAX_LABELS = 20


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
        examples: what it was tuned on, to be kept with the task; None keeps nothing.

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
    examples: TunedOn | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        for name in _JSON_FIELDS:
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))

    def require_answerable(self, backbone: Backbone, max_positions: int) -> None:
        """Whether it can answer once it is a version.

        Args: max_positions: of one sequence, in the engine that serves.

        Raises:
            BackboneMismatch: the prompt is another backbone's.
            InvalidInput: the prompt cannot be served, two labels cannot be told apart, or there is no room for a text.
        """
        require_fit(self.prompt, backbone)
        encode_labels(backbone, self.template or BARE, self.labels)
        require_room(
            self.prompt.num_virtual_tokens,
            self.template,
            self.labels,
            is_written=self.prompt.kind is PromptKind.TEXT,
            backbone=backbone,
            max_positions=max_positions,
        )

    def encode(self, task: str, number: int, backbone: Backbone) -> dict[str, bytes]:
        """Names to contents of the files of a version's folder. Raises InvalidInput: what Manifest refuses."""
        files = encode_checkpoint(self.prompt, backbone)
        if self.initial is not None:
            files[INITIAL_FILE] = encode_initial(self.initial, self.prompt)
        manifest = self.manifest(task, number, backbone, files)
        return files | {CARD_FILE: render_card(manifest).encode(), MANIFEST_FILE: manifest.encode()}

    def manifest(self, task: str, number: int, backbone: Backbone, files: Mapping[str, bytes]) -> Manifest:
        """Args: files: names to contents of those with tensors. Raises InvalidInput that names the field."""
        said = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OTHER_FORM}
        return Manifest.build(
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
            provenance={**self.provenance, **(self.examples.provenance if self.examples else {})},
            system="" if self.template is None else self.template.system,
            max_input_tokens=0 if self.template is None else self.template.max_input_tokens,
            created_at=int(time.time()),
        )


def _as_json(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON: lists for tuples, strings for the keys of `logit_bias`."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must hold what JSON can say, and finite numbers", param=name) from error
    return plain


def render_card(manifest: Manifest) -> str:
    """Markdown with the hub's front matter."""
    name, library = manifest.backbone.name, "softswap" if manifest.kind is PromptKind.TEXT else "peft"
    tags = "tags: [softswap, prompt-tuning]"
    sections = [
        f"---\nbase_model: {json.dumps(name)}\nlibrary_name: {library}\n{tags}\n---",
        f"# {manifest.task}, version {manifest.number}",
        manifest.description,
        _KIND_TO_SENTENCE[manifest.kind].format(n=manifest.num_virtual_tokens)
        + f" Made for `{name}` (fingerprint `{manifest.backbone.fingerprint[:12]}`); another backbone"
        " refuses it.",
        _template(manifest),
        _labels(manifest.labels, manifest.label_temperature),
        _table("Metrics", manifest.metrics),
        _table("Tuning", manifest.tuning),
        _table("Provenance", manifest.provenance),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _template(manifest: Manifest) -> str:
    if manifest.template is None:
        return ""
    limit = manifest.max_input_tokens
    cut = f"\n\nLonger inputs lose their end: a text has at most {limit} tokens." if limit else ""
    return f"## Template\n\n~~~~\n{manifest.template}\n~~~~{cut}"


def _labels(labels: tuple[str, ...], temperature: float | None) -> str:
    if not labels:
        return ""
    shown = ", ".join(f"`{label}`" for label in labels[:_MAX_LABELS])
    rest = len(labels) - _MAX_LABELS
    more = f" and {rest} more" if rest > 0 else ""
    tempered = "" if temperature is None else f"\n\nTheir probabilities have the temperature {temperature:.4g}."
    return f"## Labels\n\n{shown}{more}{tempered}"


def _table(title: str, name_to_value: Mapping[str, Any]) -> str:
    if not name_to_value:
        return ""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in name_to_value.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
