"""`/v1/files`: uploaded examples to tune with, as in openai `types/file_object.py` and `types/file_deleted.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BeforeValidator, Field, JsonValue
from starlette.responses import Response

from app.answers.views import Reply
from app.errors import InvalidInput
from app.http.dependencies import GuardDep, ReadinessDep, TuningDep
from app.http.fields import MAX_ID_CHARS
from app.http.protection.error_table import describe_statuses
from app.http.protection.guard import BODY_LIMIT, UPLOADS_LIMIT, GuardedRoute
from app.http.protection.uploads import MAX_UPLOADS, describe_form, open_form, read_file
from app.http.tuning.fine_tuning_schema import page_with_ends
from app.jobs.files import MAX_FILE_BYTES, MAX_FILES, Purpose

MAX_FILE_BODY_BYTES: Final = MAX_FILE_BYTES + 2**16
MAX_FIELD_BYTES: Final = 2**16
UPLOADED = (Purpose.TUNING, Purpose.INPUTS)
READ = describe_statuses(400, 401, 404, 500, 503)
WRITE = describe_statuses(408, 413, 415)
FileId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, examples=["file-abc123"])]
router = APIRouter(prefix="/v1/files", route_class=GuardedRoute, tags=["Tuning"], responses=READ)


def _without_status(look: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if look is None else {name: value for name, value in look.items() if name != "status"}


class FileObject(Reply):
    """An upload, every line of which was checked, or the figures of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(validation_alias="num_bytes")
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: None = None
    filename: str
    purpose: Literal["fine-tune", "user_data", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    status_details: str = Field(
        description="How many examples there are, how many are duplicates of others, and what was guessed or set aside."
    )
    reading: Annotated[dict[str, JsonValue] | None, BeforeValidator(_without_status)] = Field(
        validation_alias="look",
        description="How it was read: form, separator, fields, rows that are set aside; only `fields` if a job has to "
        "name those it wants. Null for figures.",
    )


class FileList(Reply):
    """Files by the time of their upload."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Reply):
    """What was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post(
    "",
    summary="Upload examples",
    response_model=FileObject,
    responses=WRITE,
    openapi_extra={
        BODY_LIMIT: MAX_FILE_BODY_BYTES,
        UPLOADS_LIMIT: MAX_UPLOADS,
        "requestBody": {
            "required": True,
            "content": describe_form(
                "file",
                "purpose",
                file="JSON lines, a JSON list, or CSV with any separator: `input` and `target`, `prompt` and "
                "`completion`, `text` and `label`, OpenAI's `messages`, or fields of other names, which are found or "
                "named in the job. With purpose user_data the input alone, or a .txt file with one per line.",
                purpose={"type": "string", "enum": list(UPLOADED)},
            ),
        },
    },
)
async def create_file(request: Request, readiness: ReadinessDep, tuning: TuningDep, guard: GuardDep) -> Any:
    """Every row is checked; a faulty file is refused with the line's number, and nothing of it is kept.

    curl -F purpose=fine-tune -F file=@reviews.jsonl .../v1/files
    """
    readiness.check_accepting()
    filename, content, purpose = await _read_form(request)
    return await guard.uploads.check(partial(tuning.files.add, filename, content, purpose))


@router.get("", summary="List uploads", response_model=FileList)
async def list_files(
    tuning: TuningDep,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS, description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES, description="Most entries to answer with.")] = MAX_FILES,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time of the upload.")] = "desc",
    purpose: Annotated[str | None, Query(max_length=64, description="Only files for this purpose.")] = None,
) -> Any:
    """Files by the time of their upload, the newest first unless asked otherwise."""
    if purpose is not None and purpose not in list(Purpose):
        return page_with_ends([], False)
    wanted = None if purpose is None else Purpose(purpose)
    page = partial(tuning.files.page, after, limit, is_ascending=order == "asc", purpose=wanted)
    return page_with_ends(*await asyncio.to_thread(page))


@router.get("/{file_id}", summary="Show an upload", response_model=FileObject)
async def retrieve_file(file_id: FileId, tuning: TuningDep) -> Any:
    """Its name, its size, and how many examples it has."""
    return await asyncio.to_thread(tuning.files.get, file_id)


@router.get(
    "/{file_id}/content",
    summary="Download an upload",
    response_class=Response,
    responses={
        200: {
            "description": "The bytes that were uploaded",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def download_file(file_id: FileId, tuning: TuningDep) -> Response:
    """The content, byte for byte."""
    file = await asyncio.to_thread(tuning.files.get, file_id)
    content = await asyncio.to_thread(tuning.files.read, file)
    return Response(content, media_type="application/octet-stream")


@router.delete("/{file_id}", summary="Delete an upload", response_model=FileDeleted, responses=WRITE)
async def delete_file(file_id: FileId, tuning: TuningDep) -> Any:
    """Refused while a job that has not ended needs it. What was learned from it stays."""
    await asyncio.to_thread(tuning.delete_file, file_id)
    return {"id": file_id}


async def _read_form(request: Request) -> tuple[str, bytes, Purpose]:
    """Name and content of the file, and what it is for. Raises InvalidInput."""
    async with open_form(request, ("purpose", "file"), max_part_bytes=MAX_FIELD_BYTES) as form:
        purpose = form.get("purpose")
        if purpose not in UPLOADED:
            raise InvalidInput(f"purpose must be {' or '.join(UPLOADED)}", param="purpose")
        return *await read_file(form), Purpose(purpose)
