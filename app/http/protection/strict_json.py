"""JSON as a server must read it: no duplicate keys, no NaN, no lone surrogates.

Numbers too large for a float become infinity here, which every schema refuses by the field's name (`fields.Strict`).
`pydantic_core.from_json` drops duplicate keys without a word; with the second pass that would find them it takes longer
than the standard library's parser (research/LOG.md).
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from app.http.protection.error_table import Refused


def parse_json(body: bytes) -> Any:
    """The value of a JSON document. Raises Refused with status 400; the message never quotes the document."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
        # In well-formed UTF-8 only an escape can write half a surrogate pair. One byte is found much faster than two.
        if b"\\" in body and b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as problem:
        message = f"The body is not valid JSON: {problem.msg} at position {problem.pos}"
    except UnicodeDecodeError:
        message = "The body is not valid UTF-8"
    except UnicodeEncodeError:
        message = "The body is not acceptable JSON: a string holds half of a surrogate pair"
    except _UnacceptableError as problem:
        message = f"The body is not acceptable JSON: {problem}"
    except ValueError:  # `sys.get_int_max_str_digits`
        message = "The body is not acceptable JSON: an integer has too many digits"
    except RecursionError:
        message = "The body is nested too deeply"
    else:
        return value
    raise Refused(400, message, code="invalid_json")


class _UnacceptableError(ValueError):
    """The document parses, but no request needs what it holds."""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    key_to_value = dict(pairs)
    if len(key_to_value) != len(pairs):
        raise _UnacceptableError("an object has the same key twice")
    return key_to_value


def _refuse_constant(_: str) -> NoReturn:
    raise _UnacceptableError("NaN and Infinity are not JSON numbers")
