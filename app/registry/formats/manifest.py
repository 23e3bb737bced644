"""Manifest: the content of `task.json`, which says what the tensors in a version's folder are and what they are for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator

from app.errors import InvalidInput
from app.model.layout import Template
from app.registry.formats.bounds import (
    MAX_DESCRIPTION_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_TEMPLATE_CHARS,
)
from app.registry.formats.json_file import SealedFile, Sha256, StrictModel, describe_fault
from app.registry.formats.peft_checkpoint import TENSOR_FILE
from app.registry.formats.safetensors_file import INITIAL_FILE
from app.sampling import SamplingParams
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind

MANIFEST_FILE = "task.json"
MAX_MANIFEST_BYTES = 2**20
MAX_NUMBER = 999_999_999
"""Of a version: nine digits."""
NUM_DIGITS = 12
"""Of a fingerprint, for people."""
MIN_LABEL_TEMPERATURE, MAX_LABEL_TEMPERATURE = 0.01, 100.0


class BackboneName(StrictModel):
    """The backbone a prompt belongs to. The name is for people; the fingerprint decides."""

    fingerprint: Sha256
    name: Annotated[str, Field(max_length=1_000)]


def tell_apart(fingerprint_to_name: Mapping[str, str]) -> dict[str, str]:
    """Names for people: with digits of the fingerprint if two backbones are called the same, digits alone for none."""
    counts = Counter(fingerprint_to_name.values())

    def describe(fingerprint: str, name: str) -> str:
        digits = fingerprint[:NUM_DIGITS] or "an unknown backbone"
        return digits if not name else name if counts[name] == 1 else f"{name} ({digits})"

    return {fingerprint: describe(fingerprint, name) for fingerprint, name in fingerprint_to_name.items()}


class TensorFile(StrictModel):
    """A safetensors file as it was written."""

    sha256: Sha256
    num_bytes: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, content: bytes) -> TensorFile:
        return cls(sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


class Manifest(SealedFile):
    """One version of a task.

    Attributes:
        digest: the TaskPrompt's own, over its values; the key of caches.
        tensor: `adapter_model.safetensors`; None for a text prompt.
        initial: `initial.safetensors`, the rows tuning started from; None if they were not kept.
        text, token_ids: of a text prompt; the ids include the beginning-of-sequence id.
        system: a system message that the template holds already: an input that brings it again is not given it twice.
        max_input_tokens: longer inputs lose their end until the text has at most this number of tokens; 0 cuts nothing.
        labels: what a labeled task answers with, in order; empty for one that generates.
        label_temperature: what the labels' log-likelihoods are divided by before they become probabilities (Guo et al.
            2017, section 4.2), fitted on validation; None leaves them as they are.
        sampling: defaults for requests that leave a parameter out, by the names of SamplingParams.
        metrics: figures of the evaluation, such as accuracy.
        data_sha256: of the training data.
        tuning: the configuration of the tuning run.
        provenance: where the prompt comes from: its source, its foreign format, what it was copied from.
        created_at: seconds since 1970, UTC.
    """

    file_name = MANIFEST_FILE
    task: str
    number: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    digest: Sha256
    kind: PromptKind
    num_virtual_tokens: Annotated[int, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]
    backbone: BackboneName
    tensor: TensorFile | None
    initial: TensorFile | None = None
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] | None = None
    system: Annotated[str, Field(max_length=16_384)] = ""
    max_input_tokens: Annotated[int, Field(ge=0)] = 0
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)], ...], Field(max_length=MAX_LABELS)
    ] = ()
    label_temperature: Annotated[float, Field(ge=MIN_LABEL_TEMPERATURE, le=MAX_LABEL_TEMPERATURE)] | None = None
    sampling: dict[str, JsonValue] = Field(default_factory=dict)
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    data_sha256: Sha256 | None = None
    tuning: dict[str, JsonValue] = Field(default_factory=dict)
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] = ""
    created_at: Annotated[int, Field(ge=0)]

    @classmethod
    def build(cls, **fields: Any) -> Manifest:
        """From a caller's values. Raises InvalidInput that names the field."""
        try:
            return cls(**fields)
        except ValidationError as error:
            field, fault = describe_fault(error)
            raise InvalidInput(fault, param=field) from error

    def encode(self) -> bytes:
        content = super().encode()
        if len(content) > MAX_MANIFEST_BYTES:
            raise InvalidInput(f"labels, metrics, text and the rest may take {MAX_MANIFEST_BYTES} bytes as JSON")
        return content

    @property
    def tensor_files(self) -> dict[str, TensorFile]:
        """File name to what was written under that name."""
        files = {TENSOR_FILE: self.tensor, INITIAL_FILE: self.initial}
        return {name: stored for name, stored in files.items() if stored is not None}

    @property
    def input_template(self) -> Template | None:
        """How an input becomes text; None if the prompt came without a template."""
        return None if self.template is None else Template(self.template, self.system, self.max_input_tokens)

    @model_validator(mode="after")
    def _require_consistency(self) -> Manifest:
        if (self.kind is PromptKind.TEXT) != (self.tensor is None) or (self.text is None) != (self.tensor is not None):
            raise InvalidInput("a text prompt has a text, any other a tensor", param="kind")
        if self.initial is not None and self.tensor is None:
            raise InvalidInput("a text prompt has no initial rows", param="initial")
        if len(set(self.labels)) != len(self.labels):
            raise InvalidInput("labels must differ from one another", param="labels")
        if self.label_temperature is not None and not self.labels:
            raise InvalidInput("only a task with labels has a label_temperature", param="label_temperature")
        if self.template is None and (self.system or self.max_input_tokens):
            raise InvalidInput("system and max_input_tokens belong to a template", param="template")
        _ = self.input_template  # raises if it could be none
        read_sampling(self.sampling)
        return self


def read_sampling(sampling: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Default parameters as SamplingParams takes them: tuples instead of lists, numbers as keys of `logit_bias`.

    Raises InvalidInput: a name or value SamplingParams does not know.
    """
    if not sampling:
        return {}
    unknown = sorted(set(sampling) - {field.name for field in dataclasses.fields(SamplingParams)})
    if unknown:
        raise InvalidInput(f"sampling.{unknown[0]} is not a sampling parameter", param=f"sampling.{unknown[0]}")
    try:
        params = _SAMPLING.validate_json(json.dumps(sampling), strict=True)
    except ValidationError as error:
        field, fault = describe_fault(error)
        raise InvalidInput(fault, param=f"sampling.{field}") from error
    except InvalidInput as error:
        raise InvalidInput(error.message, param=f"sampling.{error.param}") from error
    return {name: getattr(params, name) for name in sampling}


_SAMPLING: TypeAdapter[SamplingParams] = TypeAdapter(SamplingParams)
