"""Uploads: a request that carries a prompt, as a tensor in a form or as a text in JSON."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from app.errors import InvalidInput
from app.http.protection.error_table import Refused
from app.http.protection.forms import open_form, read_file
from app.http.protection.strict_json import parse_json
from app.http.protection.validation import explain
from app.http.tasks.tasks_schema import TextVersionRequest, UploadMetadata, VersionMetadata
from app.model.backbone import Backbone
from app.registry.formats.binding import MAX_UPLOAD_BYTES, bind_text, read_upload
from app.registry.publication import Publication
from app.task_prompt import PromptKind

MAX_UPLOAD_BODY_BYTES: Final = MAX_UPLOAD_BYTES + 2**16


Metadata = TypeVar("Metadata", bound=VersionMetadata)


async def read_version(request: Request, backbone: Backbone) -> tuple[Publication, VersionMetadata]:
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
        prompt = await asyncio.to_thread(read_upload, data, backbone, kind=PromptKind(metadata.kind))
        return metadata.publication(prompt), metadata
    raise Refused(415, "Send multipart/form-data with a file, or application/json with a text")


async def _read_form(request: Request) -> tuple[bytes, UploadMetadata]:
    """The tensor's bytes, and what the form says about them."""
    async with open_form(request, ("file", "metadata"), max_part_bytes=MAX_UPLOAD_BYTES) as form:
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
