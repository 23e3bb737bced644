"""What is wrong with a request: its JSON, or its fields.

JSON is read as a server must read it: no duplicate keys, no NaN, no lone surrogates. Numbers too large for a float
become infinity here, which every schema refuses by the field's name (`fields.Strict`). `pydantic_core.from_json` drops
duplicate keys without a word; with the second pass that would find them it takes longer than the standard library's
parser (research/LOG.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from app import errors
from app.http.protection.error_table import Failure, Refused

TASK_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
ALIAS_PATTERN = r"^[a-z][a-z0-9._-]{0,62}$"
VERSION_PATTERN = r"^[1-9][0-9]{0,8}$"
VOCABULARY_ID_PATTERN = r"^[0-9]{1,9}$"

PATTERN_TO_WORDS = {
    TASK_PATTERN: "must have 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit",
    ALIAS_PATTERN: "must have 1 to 63 of a-z 0-9 . _ - and begin with a letter",
    VERSION_PATTERN: "must be a version's number, as a string",
    VOCABULARY_ID_PATTERN: "must be a token's id, as a string",
}


def explain(problems: Iterable[Mapping[str, Any]], body: Any) -> Failure:
    """The most helpful of a request's problems, as a 400 that names the field and never shows its value.

    Args:
        problems: `ValidationError.errors()`, with locations that start with "body", "path", "query" or "header".
        body: what was validated; it tells field names from the names that pydantic gives to members of a union.
    """
    located = [(_field_path(problem["loc"], body), problem) for problem in problems]
    path, problem = max(located, key=lambda item: _helpfulness(*item))
    param = ".".join(map(str, path)) or None
    if problem["type"] == "extra_forbidden":
        return Failure(400, f"{param} is not a field of this request", "unknown_parameter", param)
    if problem["type"] == "none_required":
        return Failure(400, f"{param} is not supported by this server; leave it out", "unsupported_parameter", param)
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    complaint = _name_all_types(each for each_path, each in located if each_path == path) or _complain(problem)
    return Failure(400, f"{param or 'the body'} {complaint}", code, param)


def _complain(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return PATTERN_TO_WORDS.get(problem["ctx"]["pattern"], "is not valid")
    return errors.complain(problem)


def _name_all_types(problems: Iterable[Mapping[str, Any]]) -> str:
    """All types that a field takes, if all its problems are about the type; empty otherwise."""
    kinds = [str(problem["type"]) for problem in problems]
    if not all(kind in errors.TYPE_TO_NOUN for kind in kinds):
        return ""
    *others, last = dict.fromkeys(errors.TYPE_TO_NOUN[kind] for kind in kinds)
    return f"must be {', '.join(others)} or {last}" if others else f"must be {last}"


def _helpfulness(path: Sequence[str | int], problem: Mapping[str, Any]) -> tuple[bool, int]:
    """A union complains once for each member: the member that was meant got past the type check, or else deepest."""
    is_type_mismatch = str(problem["type"]).endswith("_type")
    return not is_type_mismatch, len(path)


def _field_path(location: Sequence[str | int], body: Any) -> list[str | int]:
    """Pydantic's location without what is not in the request: its first word, and names of union members."""
    source, *rest = location
    if source != "body":
        return list(rest)
    path: list[str | int] = ["items"] if isinstance(body, list) and rest else []
    value = body
    for step in rest:
        is_inside, inner = _step_into(value, step)
        if is_inside or (isinstance(value, dict) and step == rest[-1]):
            path.append(step)
        value = inner if is_inside else value
    return path


def _step_into(value: Any, step: str | int) -> tuple[bool, Any]:
    if isinstance(value, dict) and step in value:
        return True, value[step]
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return True, value[step]
    return False, None


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
