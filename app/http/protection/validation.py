"""Which of pydantic's problems with a request to report, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app import errors
from app.http.protection.error_table import Failure
from app.http.protection.patterns import PATTERN_TO_WORDS


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
