"""Uploads: the fields of a `multipart/form-data` body, and how many bodies a server takes at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.errors import InvalidInput, Overloaded
from app.http.protection.error_table import Refused
from app.model.threads import begin_on_passing_thread

MAX_FIELDS = 8
"""More than any form has, so that an unknown field can be named."""
MAX_UPLOADS: Final = 4
MAX_FREE_BYTES: Final = 16 * 2**20
"""Prompts are this large or smaller on all but large backbones, and then are not counted among the uploads."""
RETRY_AFTER_S: Final = 5.0
Result = TypeVar("Result")


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


def describe_form(*required: str, file: str, **others: Any) -> dict[str, Any]:
    """OpenAPI's content of a body that is a form. Args: file: what its file is; others: schemas of its other fields."""
    properties = {"file": {"type": "string", "format": "binary", "description": file}, **others}
    schema = {"type": "object", "required": list(required), "additionalProperties": False, "properties": properties}
    return {"multipart/form-data": {"schema": schema}}


async def read_file(form: FormData) -> tuple[str, bytes]:
    """Name and content of the form's field `file`. Raises InvalidInput."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidInput("file must be a file with a name (curl: -F file=@PATH)", param="file")
    return (file.filename or "").replace("\\", "/").rpartition("/")[2], await file.read()


class UploadLimits:
    """At most MAX_UPLOADS bodies are held, and one of them is checked at a time.

    Attributes: num_uploads: bodies held now.
    """

    def __init__(self) -> None:
        self.num_uploads = 0
        self._turn = asyncio.Lock()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Enter it before a body is read; leave it once the body is no longer referenced.

        Raises Overloaded: as many bodies are held as may be.
        """
        if self.num_uploads >= MAX_UPLOADS:
            raise Overloaded(f"{MAX_UPLOADS} uploads are being taken already", retry_after_s=RETRY_AFTER_S)
        self.num_uploads += 1
        try:
            yield
        finally:
            self.num_uploads -= 1

    async def check(self, work: Callable[[], Result]) -> Result:
        """Run `work` on a passing thread, in turn: checking a large file takes several times its size in memory.

        An upload whose turn has not come waits in the event loop, so it keeps no thread from other requests; cancelled
        there, its work never begins. Work that has begun is awaited even when cancelled, because it holds the body.
        """
        async with self._turn:
            checking = asyncio.wrap_future(begin_on_passing_thread(work))
            try:
                await asyncio.wait({checking})
            except asyncio.CancelledError:
                await asyncio.gather(checking, return_exceptions=True)
                raise
            return checking.result()
