"""Errors from below name a field as their own layer calls it; a route says what its request calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import Conflict, InvalidInput, SoftswapError


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Whatever is wrong is wrong with this field, but for what a writer has seen, which stands in If-Match."""
    try:
        yield
    except Conflict:
        raise
    except SoftswapError as error:
        error.param = param
        raise


@contextmanager
def naming_text(param: str) -> Iterator[None]:
    """What is wrong with the text: in the engine it is `prompt`, as in completions."""
    try:
        yield
    except InvalidInput as error:
        if error.param == "prompt":
            error.param = param
        raise
