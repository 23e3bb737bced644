"""Every error that softswap raises on purpose, as one tree, and how it is worded for the request at hand.

HTTP statuses are not here: they are a table in `app.http.protection.error_table`.

SoftswapError
 ├── InvalidInput          what the caller sent is wrong; names the field
 │    ├── BackboneMismatch     a prompt made for another backbone
 │    └── UnsupportedModel     a checkpoint this program cannot serve
 ├── NotFound              no such task, version or alias
 │    ├── NoSuchTask           not even the task
 │    ├── NoSuchFile           no such uploaded file
 │    └── NoSuchJob            no such tuning job, event or checkpoint
 ├── Conflict              the thing changed since the caller last read it
 ├── GateFailed            a version scores lower than the one the alias means now
 ├── CorruptPrompt         stored bytes are not what was published
 ├── CorruptState          an uploaded file or a job's saved state is not what was written
 ├── ModelUnavailable      a model of the catalog cannot be fetched now; says what to do
 ├── RegistryUnavailable   the registry's folder cannot be written, or is gone
 ├── Overloaded            the queue is full; try again after retry_after_s
 ├── Draining              the server is stopping
 ├── DeadlineExceeded      the request's deadline passed
 ├── NumericalError        the model produced values that are not finite
 ├── OutOfMemory           tuning needs more memory than the device has
 ├── TuningUnavailable     this server takes no files and runs no jobs
 └── EngineDead            the engine thread ended; the process must be restarted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class SoftswapError(Exception):
    """Base of the tree.

    Args:
        message: one sentence that says what is wrong and, if possible, what to do. Never the offending input.
        param: public name of the field at fault, dotted if nested.
        quote: the offending input, shortened, for a terminal whose user gave it; never sent anywhere.
    """

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, quote: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.quote = quote


class InvalidInput(SoftswapError):
    code = "invalid_value"


class BackboneMismatch(InvalidInput):
    code = "backbone_mismatch"


class UnsupportedModel(InvalidInput):
    code = "unsupported_model"


class NotFound(SoftswapError):
    code = "model_not_found"


class NoSuchTask(NotFound):
    """Where the names are listed is for HTTP and the command line to say: each has its own way."""

    def pointing_to(self, where: str) -> str:
        """The message with that."""
        return f"{self.message}{' ' if self.message.endswith('?') else '; '}{where}"


class NoSuchFile(NotFound):
    code = "file_not_found"


class NoSuchJob(NotFound):
    code = "job_not_found"


class Conflict(SoftswapError):
    code = "conflict"


class GateFailed(SoftswapError):
    code = "gate_failed"


class CorruptPrompt(SoftswapError):
    code = "corrupt_prompt"


class CorruptState(SoftswapError):
    code = "corrupt_state"


class ModelUnavailable(SoftswapError):
    code = "model_unavailable"


class RegistryUnavailable(SoftswapError):
    code = "registry_unavailable"


class Overloaded(SoftswapError):
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Draining(SoftswapError):
    code = "draining"


class DeadlineExceeded(SoftswapError):
    code = "deadline_exceeded"


class NumericalError(SoftswapError):
    code = "numerical_error"


class OutOfMemory(SoftswapError):
    code = "out_of_memory"


class TuningUnavailable(SoftswapError):
    code = "tuning_unavailable"


class EngineDead(SoftswapError):
    code = "engine_dead"


# From here on: how an error is worded for the request at hand.

MAX_QUOTED_CHARS = 60


def shorten(text: str) -> str:
    """A text to quote: on one line, and cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTED_CHARS else f"{line[: MAX_QUOTED_CHARS - 3]}..."


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


def first_line(error: BaseException) -> str:
    """What an error says first; some have pages. A line that only introduces the next one comes with it."""
    line, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{line} {others[0].strip()}" if others and line.endswith(":") else line


TYPE_TO_NOUN = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "byte_size": "a number of bytes, such as 2147483648, 512MiB or 4GB",
    "byte_size_unit": "a number of bytes, such as 2147483648, 512MiB or 4GB",
}
TYPE_TO_COMPLAINT = {
    "missing": "is required",
    "json_invalid": "is not valid JSON",
    "finite_number": "must be finite",
    "string_unicode": "must be valid Unicode",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "union_tag_not_found": "needs a {discriminator}",
    "union_tag_invalid": "has a {discriminator} that is none of {expected_tags}",
    "int_parsing": "must be an integer",
    "float_parsing": "must be a number",
    "int_parsing_size": "is too large",
    "bool_parsing": "must be true or false",
}


def complain(problem: Mapping[str, Any]) -> str:
    """What follows a field's name in a message: words made of the schema's own bounds, never of the refused value.

    Args: problem: one entry of pydantic's `ValidationError.errors()`.
    """
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if kind in TYPE_TO_NOUN:
        return f"must be {TYPE_TO_NOUN[kind]}"
    if kind == "value_error":
        return str(context.get("error", "is not valid"))
    if kind in TYPE_TO_COMPLAINT:
        return TYPE_TO_COMPLAINT[kind].format_map({name: _plain(value) for name, value in context.items()})
    return "is not valid"


def _plain(value: Any) -> Any:
    """A bound as one writes it: pydantic makes 0 of a number with a fraction 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
