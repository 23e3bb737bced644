"""Every error softswap raises on purpose, as one tree. HTTP statuses are a table of the API, not a property here.

SoftswapError
 ├── InvalidInput          what the caller sent is wrong; names the field
 │    ├── BackboneMismatch     a prompt made for another backbone
 │    └── UnsupportedModel     a checkpoint this program cannot serve
 ├── NotFound              no such task, version or alias
 │    ├── NoSuchFile           no such uploaded file
 │    └── NoSuchJob            no such tuning job, event or checkpoint
 ├── Conflict              the thing changed since the caller last read it
 ├── GateFailed            a version scores lower than the one an alias means now
 ├── CorruptPrompt         stored bytes are not what was published
 ├── CorruptState          an uploaded file or a job's saved state is not what was written
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


class SoftswapError(Exception):
    """Base of the tree.

    Args:
        message: one sentence that says what is wrong and, where possible, what to do. Never the offending input.
        param: public name of the field at fault, dotted where nested.
    """

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidInput(SoftswapError):
    code = "invalid_value"


class BackboneMismatch(InvalidInput):
    code = "backbone_mismatch"


class UnsupportedModel(InvalidInput):
    code = "unsupported_model"


class NotFound(SoftswapError):
    code = "model_not_found"


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
