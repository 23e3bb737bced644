"""`/v1/files`, as in openai `types/file_object.py` and `types/file_deleted.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.answers.views.reply import Reply


class FileObject(Reply):
    """An upload, every line of which was checked, or the figures of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: None = None
    filename: str
    purpose: Literal["fine-tune", "user_data", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    status_details: str = Field(description="How many examples there are, and how many are duplicates of others.")


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
