"""`/v1/tasks`: what the registry holds, how it changes, and the prompt that a request carries."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import ConfigDict, Field, JsonValue, ValidationError
from starlette.requests import Request

from app.answers.views import GateObject, RecordedEvaluationObject, Reply, TaskObject, VersionObject
from app.errors import InvalidInput
from app.http.fields import Strict, Text
from app.http.protection.error_table import Refused
from app.http.protection.uploads import MAX_FREE_BYTES, UploadLimits, open_form, read_file
from app.http.protection.validation import ALIAS_PATTERN, VERSION_PATTERN, explain, parse_json
from app.http.tasks.examples import ExampleSource
from app.model.backbone import Backbone
from app.model.layout import Template
from app.registry.aliases import AliasTarget
from app.registry.formats.binding import bind_text
from app.registry.formats.bounds import MAX_DESCRIPTION_CHARS, MAX_LABEL_CHARS, MAX_LABELS, MAX_TEMPLATE_CHARS
from app.registry.formats.foreign_file import max_upload_bytes, read_upload
from app.registry.formats.manifest import MAX_LABEL_TEMPERATURE, MAX_MANIFEST_BYTES, MIN_LABEL_TEMPERATURE
from app.registry.publication import Publication
from app.task_prompt import PromptKind, TaskPrompt

MAX_FIGURES: Final = 64
MAX_SOURCE_TASK: Final = 999_999
MAX_ALIAS_TARGETS: Final = 2
VersionNumber = Annotated[int, Field(ge=1, le=999_999_999)]
Metadata = TypeVar("Metadata", bound="VersionMetadata")


class VersionList(Reply):
    """Versions, newest first."""

    object: Literal["list"] = "list"
    data: list[VersionObject]
    has_more: bool


class EvaluationList(Reply):
    """Figures that were kept, oldest first."""

    object: Literal["list"] = "list"
    data: list[RecordedEvaluationObject]


class GateRequestObject(ExampleSource):
    """Examples that every version the alias moves to is compared on with the one it means."""

    metric: Literal["accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "entity_f1"] | None = Field(
        None, description="The figure that must not fall; accuracy without it, entity_f1 or rouge_l for texts."
    )
    tolerance: float | None = Field(None, ge=0, le=1, description="How much lower a version may score; 0 without it.")


class TaskList(Reply):
    """Tasks by name."""

    object: Literal["list"] = "list"
    data: list[TaskObject]
    has_more: bool


class AliasRequest(Strict):
    """What an alias is to mean: one version, or two by weight."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"version": 3}, {"weights": {"3": 0.9, "4": 0.1}}],
            "oneOf": [{"required": ["version"]}, {"required": ["weights"]}],
        }
    )

    version: VersionNumber | None = None
    weights: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=VERSION_PATTERN)],
                Annotated[float, Field(gt=0, le=1)],
            ],
            Field(min_length=MAX_ALIAS_TARGETS, max_length=MAX_ALIAS_TARGETS),
        ]
        | None
    ) = Field(None, description="Version number to its share of the requests; the two add up to 1.")
    gate: GateRequestObject | None = Field(
        None, description="From now on, and for this move already; without it the alias keeps the gate it has."
    )
    force: bool | None = Field(None, description="Move the alias whatever its gate says, and without measuring.")


class AliasObject(Reply):
    """An alias as it stands now."""

    object: Literal["task.alias"] = "task.alias"
    task: str
    alias: str
    target: AliasTarget
    gate: GateObject | None


class VersionMetadata(Strict):
    """What a version is for. With an uploaded tensor it is the form's `metadata` field, as JSON."""

    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] | None = Field(
        None, description="How an input becomes text: `{input}` once, and `{target}` once at the end."
    )
    labels: list[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]] | None = Field(
        None, max_length=MAX_LABELS, description="What the task answers with; none for one that generates."
    )
    label_temperature: Annotated[float, Field(ge=MIN_LABEL_TEMPERATURE, le=MAX_LABEL_TEMPERATURE)] | None = Field(
        None, description="Divides the labels' log-likelihoods, so that their probabilities can be trusted."
    )
    sampling: Annotated[dict[str, JsonValue], Field(max_length=MAX_FIGURES)] | None = Field(
        None, description="Defaults for requests that leave a sampling parameter out."
    )
    metrics: Annotated[dict[str, JsonValue], Field(max_length=MAX_FIGURES)] | None = None
    provenance: Annotated[dict[str, JsonValue], Field(max_length=MAX_FIGURES)] | None = None
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = None
    alias: Annotated[str, Field(pattern=ALIAS_PATTERN)] | None = Field(
        "live", description="The alias that means this version from now on; null moves none."
    )
    force: bool | None = Field(None, description="Move the alias whatever its gate says.")

    def publication(self, prompt: TaskPrompt) -> Publication:
        """The prompt with what is said about it. Raises InvalidInput."""
        return Publication(
            prompt,
            template=None if self.template is None else Template(self.template),
            labels=self.labels or (),
            label_temperature=self.label_temperature,
            sampling=self.sampling or {},
            metrics=self.metrics or {},
            provenance=self.provenance or {},
            description=self.description or "",
        )


class UploadMetadata(VersionMetadata):
    """The form's `metadata` field."""

    kind: Literal["embeddings", "kv"] | None = Field(
        None,
        description="What the rows are: embeddings, or keys and values of every layer; else their width says.",
    )
    source_task: Annotated[int, Field(ge=0, le=MAX_SOURCE_TASK)] | None = Field(
        None, description="Which task of a file that PEFT's multitask prompt tuning wrote, starting at 0."
    )

    def publication(self, prompt: TaskPrompt) -> Publication:
        said = super().publication(prompt)
        chosen = {} if self.source_task is None else {"source_task": self.source_task}
        return replace(said, provenance={**chosen, **said.provenance})


class TextVersionRequest(VersionMetadata):
    """A hand-written prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "text": "Decide whether a film review is positive or negative.\n",
                    "template": "Review: {input}\nSentiment: {target}",
                    "labels": ["negative", "positive"],
                }
            ]
        }
    )

    text: Text


class DeletedObject(Reply):
    """What is gone."""

    id: str
    object: Literal["task", "task.version", "task.alias", "task.gate"]
    deleted: Literal[True] = True


def max_prompt_body_bytes(backbone: Backbone) -> int:
    """Of a body with the largest prompt there can be, and what is said about it."""
    return max_upload_bytes(backbone) + MAX_MANIFEST_BYTES


async def read_version(
    request: Request, backbone: Backbone, uploads: UploadLimits
) -> tuple[Publication, VersionMetadata]:
    """The prompt of a request, bound to the backbone, and what the request says about it.

    Raises:
        InvalidInput: what was sent is no prompt for this backbone, or its description is wrong.
        Refused: the media type is neither of the two.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        written = _validate(TextVersionRequest, parse_json(await request.body()))
        prompt = await asyncio.to_thread(bind_text, written.text, backbone)
        return written.publication(prompt), written
    if media_type == "multipart/form-data":
        data, metadata = await _read_form(request)
        kind = None if metadata.kind is None else PromptKind(metadata.kind)
        read = partial(read_upload, data, backbone, kind=kind, source_task=metadata.source_task)
        prompt = await (uploads.check(read) if len(data) > MAX_FREE_BYTES else asyncio.to_thread(read))
        return metadata.publication(prompt), metadata
    raise Refused(415, "Send multipart/form-data with a file, or application/json with a text")


async def _read_form(request: Request) -> tuple[bytes, UploadMetadata]:
    """The tensor's bytes, and what the form says about them."""
    async with open_form(request, ("file", "metadata"), max_part_bytes=MAX_MANIFEST_BYTES) as form:
        text = form.get("metadata", "{}")
        if not isinstance(text, str):
            raise InvalidInput("metadata must be JSON in a plain form field", param="metadata")
        _, content = await read_file(form)
        return content, _validate(UploadMetadata, _parse_metadata(text))


def _parse_metadata(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except Refused as error:
        raise InvalidInput(error.detail.replace("The body", "metadata"), param="metadata") from None


def _validate(schema: type[Metadata], value: Any) -> Metadata:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        failure = explain(problems, value)
        raise InvalidInput(failure.message, param=failure.param) from None
