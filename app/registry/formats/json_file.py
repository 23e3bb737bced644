"""The registry's JSON files: the last field is a sha256 over every other byte; faults are told by field."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import CorruptPrompt, InvalidInput, SoftswapError, complain

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SCHEMA_VERSION = 1
_BLANK = "0" * 64
_SEAL = re.compile(rb',\n  "checksum": "([0-9a-f]{64})"\n}\n\Z')


class StrictModel(BaseModel):
    """Nothing is converted, and nothing unknown is accepted."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class SealedFile(StrictModel):
    """A file's fields, in the order in which it holds them."""

    file_name: ClassVar[str]
    schema_version: Literal[1] = 1

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Raises CorruptPrompt: damaged, cut short, or of a schema this program does not know."""
        try:
            return cls.model_validate_json(unseal(content))
        except (SoftswapError, ValidationError) as error:
            refuse_newer_schema(content)
            reason = describe_fault(error)[1] if isinstance(error, ValidationError) else error.message
            raise CorruptPrompt(f"{cls.file_name}: {reason}") from error

    def encode(self) -> bytes:
        return seal(self.model_dump(mode="json"))


def seal(fields: Mapping[str, Any]) -> bytes:
    """The fields as JSON for people to read, followed by `checksum`.

    Args: fields: at least one.

    Raises InvalidInput: a number is not finite, or a string has half a surrogate pair.
    """
    try:
        text = json.dumps({**fields, "checksum": _BLANK}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        content = text.encode()
    except (ValueError, TypeError) as error:
        raise InvalidInput("must be JSON: finite numbers and valid Unicode", param=_unfit_field(fields)) from error
    return content.removesuffix(_tail(_BLANK)) + _tail(hashlib.sha256(content).hexdigest())


def unseal(content: bytes) -> bytes:
    """The JSON text without its checksum. Raises CorruptPrompt: these are not the bytes that were written."""
    match = _SEAL.search(content)
    if match is None:
        raise CorruptPrompt("the file is cut short or damaged: its checksum is missing")
    body = content[: match.start()]
    if hashlib.sha256(body + _tail(_BLANK)).hexdigest().encode() != match[1]:
        raise CorruptPrompt("the file is damaged: its checksum does not fit its content")
    return body + b"}"


def describe_fault(error: ValidationError) -> tuple[str, str]:
    """The first field that is not as its model says, and a sentence about it that never quotes its value."""
    problem = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"][:2])
    return field, f"{field or 'it'} {complain(problem)}"


def is_sealed(content: bytes) -> bool:
    """False for a file written by hand; a damaged checksum still counts as one."""
    return b'"checksum"' in content


def refuse_newer_schema(content: bytes, known: int = SCHEMA_VERSION) -> None:
    """Raises CorruptPrompt: a newer softswap wrote the file, which may say things this one does not know."""
    try:
        schema_version = json.loads(content)["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    if isinstance(schema_version, int) and schema_version > known:
        raise CorruptPrompt(
            f"written by a newer softswap (schema {schema_version}, known here {known}): upgrade to serve it"
        )


def _tail(checksum: str) -> bytes:
    return f',\n  "checksum": "{checksum}"\n}}\n'.encode()


def _unfit_field(fields: Mapping[str, Any]) -> str | None:
    for name, value in fields.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError):
            return name
    return None
