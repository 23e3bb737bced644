"""`/v1/files`: uploaded examples to tune with."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from app.errors import InvalidInput
from app.http.dependencies import GuardDep, ReadinessDep, TuningDep
from app.http.fields import MAX_ID_CHARS
from app.http.protection.error_table import describe_statuses
from app.http.protection.forms import open_form, read_file
from app.http.protection.guard import BODY_LIMIT, UPLOADS_LIMIT, GuardedRoute
from app.http.protection.upload_limits import MAX_UPLOADS
from app.http.tuning.files_schema import FileDeleted, FileList, FileObject
from app.http.tuning.tuning_objects import file_object
from app.jobs.files import MAX_FILE_BYTES, MAX_FILES, Purpose

MAX_FILE_BODY_BYTES: Final = MAX_FILE_BYTES + 2**16


router = APIRouter(prefix="/v1/files", route_class=GuardedRoute, tags=["Tuning"])
UPLOADED = (Purpose.TUNING, Purpose.INPUTS)
MAX_FIELD_BYTES = 2**16
FileId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, examples=["file-abc123"])]
READ = describe_statuses(400, 401, 404, 500, 503)
WRITE = describe_statuses(400, 401, 404, 408, 413, 415, 500, 503)


@router.post(
    "",
    operation_id="createFile",
    summary="Upload examples",
    response_model=FileObject,
    responses=WRITE,
    openapi_extra={
        BODY_LIMIT: MAX_FILE_BODY_BYTES,
        UPLOADS_LIMIT: MAX_UPLOADS,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "additionalProperties": False,
                        "properties": {
                            "file": {
                                "type": "string",
                                "format": "binary",
                                "description": "JSON lines, or CSV with a header if the name ends in .csv: `input` "
                                "and `target`, `prompt` and `completion`, `text` and `label`, or OpenAI's `messages`. "
                                "With purpose user_data the input alone, or a .txt file with one per line.",
                            },
                            "purpose": {"type": "string", "enum": list(UPLOADED)},
                        },
                    }
                }
            },
        },
    },
)
async def create_file(request: Request, readiness: ReadinessDep, tuning: TuningDep, guard: GuardDep) -> Any:
    """Every line is checked; a faulty file is refused with the line's number, and nothing of it is kept.

    curl -F purpose=fine-tune -F file=@reviews.jsonl .../v1/files
    """
    readiness.check_accepting()
    filename, content, purpose = await _read_form(request)
    return file_object(await guard.uploads.check(partial(tuning.files.add, filename, content, purpose)))


@router.get("", operation_id="listFiles", summary="List uploads", response_model=FileList, responses=READ)
async def list_files(
    tuning: TuningDep,
    after: Annotated[str | None, Query(max_length=MAX_ID_CHARS, description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES, description="Most entries to answer with.")] = MAX_FILES,
    order: Annotated[Literal["asc", "desc"], Query(description="By the time of the upload.")] = "desc",
    purpose: Annotated[str | None, Query(max_length=64, description="Only files for this purpose.")] = None,
) -> Any:
    """Files by the time of their upload, the newest first unless asked otherwise."""
    if purpose is not None and purpose not in list(Purpose):
        return FileList(data=[], first_id=None, last_id=None, has_more=False)
    files, has_more = await asyncio.to_thread(
        tuning.files.page,
        after,
        limit,
        is_ascending=order == "asc",
        purpose=None if purpose is None else Purpose(purpose),
    )
    return FileList(
        data=[file_object(file) for file in files],
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
        has_more=has_more,
    )


@router.get(
    "/{file_id}", operation_id="retrieveFile", summary="Show an upload", response_model=FileObject, responses=READ
)
async def retrieve_file(file_id: FileId, tuning: TuningDep) -> Any:
    """Its name, its size, and how many examples it has."""
    return file_object(await asyncio.to_thread(tuning.files.get, file_id))


@router.get(
    "/{file_id}/content",
    operation_id="downloadFile",
    summary="Download an upload",
    response_class=Response,
    responses={
        200: {
            "description": "The bytes that were uploaded",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **READ,
    },
)
async def download_file(file_id: FileId, tuning: TuningDep) -> Response:
    """The content, byte for byte."""
    file = await asyncio.to_thread(tuning.files.get, file_id)
    content = await asyncio.to_thread(tuning.files.read, file)
    return Response(content, media_type="application/octet-stream")


@router.delete(
    "/{file_id}", operation_id="deleteFile", summary="Delete an upload", response_model=FileDeleted, responses=WRITE
)
async def delete_file(file_id: FileId, tuning: TuningDep) -> Any:
    """Refused while a job that has not ended needs it. What was learned from it stays."""
    await asyncio.to_thread(tuning.delete_file, file_id)
    return FileDeleted(id=file_id)


async def _read_form(request: Request) -> tuple[str, bytes, Purpose]:
    """Name and content of the file, and what it is for. Raises InvalidInput."""
    async with open_form(request, ("purpose", "file"), max_part_bytes=MAX_FIELD_BYTES) as form:
        purpose = form.get("purpose")
        if purpose not in UPLOADED:
            raise InvalidInput(f"purpose must be {' or '.join(UPLOADED)}", param="purpose")
        return *await read_file(form), Purpose(purpose)
