"""The fields of a `multipart/form-data` body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import InvalidInput
from app.http.protection.error_table import Refused

MAX_FIELDS = 8
"""More than any form has, so that an unknown field can be named."""


@asynccontextmanager
async def open_form(request: Request, fields: Collection[str], *, max_part_bytes: int) -> AsyncIterator[FormData]:
    """The form of a request, of which one field may be a file. It is closed on leaving, and its files deleted.

    Raises:
        Refused: the body is not a form (415).
        InvalidInput: the form cannot be read, or has other fields.
    """
    names = " and ".join(fields)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, f"Send a form with {names} as Content-Type: multipart/form-data (curl: -F)")
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=max_part_bytes)
    except HTTPException as error:
        raise InvalidInput(f"the form cannot be read: {error.detail}") from error
    try:
        unknown = next((name for name in form if name not in fields), None)
        if unknown is not None:
            raise InvalidInput(f"{unknown} is not a field of this form, which has {names}", param=unknown)
        yield form
    finally:
        await form.close()


async def read_file(form: FormData) -> tuple[str, bytes]:
    """Name and content of the form's field `file`. Raises InvalidInput."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidInput("file must be a file with a name (curl: -F file=@PATH)", param="file")
    return (file.filename or "").replace("\\", "/").rpartition("/")[2], await file.read()
