"""JSON as a server must read it: no NaN, no duplicate keys, no lone surrogates, no numbers without bound."""

from __future__ import annotations

import json
import math
from typing import Any

from app.http.protection.error_table import Refused
from app.http.protection.limits import MAX_INTEGER_DIGITS


def parse_json(body: bytes) -> Any:
    """The value of a JSON document. Raises Refused with status 400; the message never quotes the document."""
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_unique,
            parse_int=_bounded_integer,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
        if b"\\u" in body:  # in well-formed UTF-8 only an escape can hide half a surrogate pair
            _encode(value)
    except _UnacceptableError as problem:
        raise Refused(400, f"The body is not acceptable JSON: {problem}", code="invalid_json") from None
    except UnicodeDecodeError:
        raise Refused(400, "The body is not valid UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as problem:
        raise Refused(
            400, f"The body is not valid JSON: {problem.msg} at position {problem.pos}", code="invalid_json"
        ) from None
    except RecursionError:
        raise Refused(400, "The body is nested too deeply", code="invalid_json") from None
    return value


class _UnacceptableError(ValueError):
    """JSON that parses, but that no request needs."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise _UnacceptableError("a key stands twice in one object")
    return unique


def _bounded_integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise _UnacceptableError(f"an integer has more than {MAX_INTEGER_DIGITS} digits")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _UnacceptableError("a number is too large")
    return value


def _no_constant(_: str) -> float:
    raise _UnacceptableError("NaN and Infinity are no JSON numbers")


def _encode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _UnacceptableError("a string holds half of a surrogate pair") from None
