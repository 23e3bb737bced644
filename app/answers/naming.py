"""Errors from lower layers name a field in their own terms; these rename it to what the request calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Conflict, InvalidInput, SoftswapError


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Every error inside is about this field, except a Conflict, which is about the If-Match header."""
    try:
        yield
    except Conflict:
        raise
    except SoftswapError as error:
        error.param = param
        raise


@contextmanager
def naming_text(param: str) -> Iterator[None]:
    """An error about the text, which the engine calls `prompt` as completions do, is about this field."""
    try:
        yield
    except InvalidInput as error:
        if error.param == "prompt":
            error.param = param
        raise
