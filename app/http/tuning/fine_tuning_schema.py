"""`/v1/fine_tuning/jobs`, as in openai `types/fine_tuning/`, with `prompt_tuning` as a method of our own.

Its hyperparameters are derived from their declarations in `app.tuning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import AliasPath, BeforeValidator, ConfigDict, Field, JsonValue, create_model, model_validator

from app.answers.views import Reply
from app.http.fields import MAX_ID_CHARS, MAX_METADATA, FieldName, Metadata, ModelName, Strict, Text, Unsupported
from app.http.protection.validation import ALIAS_PATTERN, TASK_PATTERN
from app.registry.formats.bounds import MAX_DESCRIPTION_CHARS, MAX_LABEL_CHARS, MAX_LABELS, MAX_TEMPLATE_CHARS
from app.registry.reference import MAX_ENSEMBLE
from app.settings import MAX_CHECKPOINTS
from app.tuning.config import HYPERPARAMETERS, Hyperparameter
from app.tuning.search import MAX_MEMBERS, SEARCH_HYPERPARAMETERS

MAX_INIT_TEXT_CHARS: Final = 8192
OFFERED: Final = tuple(each for each in (*HYPERPARAMETERS, *SEARCH_HYPERPARAMETERS) if each.is_offered)
Value = TypeVar("Value")
MAX_SUFFIX_CHARS: Final = 63
FileId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


def _drop_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _listed(value: Any) -> Any:
    value = _drop_auto(value)
    return value if value is None or isinstance(value, list) else [value]


# "auto" becomes None before validation, so that a complaint about a number speaks of the number.
Auto = Annotated[Value | None, BeforeValidator(_drop_auto, json_schema_input_type=Value | Literal["auto"] | None)]
Values = Annotated[list[Value], Field(min_length=1, max_length=MAX_MEMBERS)]
Several = Annotated[
    Values[Value] | None,
    BeforeValidator(_listed, json_schema_input_type=Value | Values[Value] | Literal["auto"] | None),
]


def _field(each: Hyperparameter) -> Any:
    """Type and default as `create_model` takes them: one value or, if a search varies it, several."""
    description = f"{each.description} Without it: {each.unset}." if each.unset else each.description
    return _type_of(each), Field(None, description=description)


def _type_of(each: Hyperparameter) -> Any:
    if each.type is str and not each.choices:  # a text may well be "auto"
        return Annotated[str, Field(min_length=1, max_length=MAX_INIT_TEXT_CHARS)] | None
    low: dict[str, Any] = {"gt" if each.is_lowest_refused else "ge": each.lowest}
    bounded: Any = Annotated[each.type, Field(**low, le=each.job_high or each.high)]
    value = Literal[each.choices] if each.choices else bool if each.type is bool else bounded
    return (Several if each.axis is not None else Auto)[value]


if TYPE_CHECKING:
    PromptTuningHyperparameters = Strict
    SupervisedHyperparameters = Strict
else:
    PromptTuningHyperparameters = create_model(
        "PromptTuningHyperparameters",
        __base__=Strict,
        __doc__="How a prompt is learned. Lists are tried side by side, every combination; nothing needs to be given.",
        **{each.job_name: _field(each) for each in OFFERED},
    )
    SupervisedHyperparameters = create_model(
        "SupervisedHyperparameters",
        __base__=Strict,
        __doc__="OpenAI's three; what they leave open is searched for.",
        **{each.job_name: _field(each) for each in OFFERED if each.job_name in ("n_epochs", "batch_size")},
        learning_rate_multiplier=(
            Auto[Annotated[float, Field(gt=0, le=1000)]],
            Field(None, description="Factor on the learning rates tried."),
        ),
    )


class SupervisedMethod(Strict):
    """OpenAI's name for learning from examples."""

    hyperparameters: SupervisedHyperparameters | None = None


class PromptTuningMethod(Strict):
    """A soft prompt before the text of every request, on the frozen backbone."""

    hyperparameters: PromptTuningHyperparameters | None = None
    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] | None = Field(
        None, description="How an input becomes text: `{input}` once, and `{target}` once at the end."
    )
    labels: list[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]] | None = Field(
        None, max_length=MAX_LABELS, description="Every target is one of them; [] writes text; null finds out."
    )
    alias: Annotated[str, Field(pattern=ALIAS_PATTERN)] | None = Field(
        "live", description="The alias to move to the result; null moves none."
    )
    publish: Annotated[int, Field(ge=1, le=MAX_ENSEMBLE)] = Field(
        1, description="Publish this many of the best prompts, as an ensemble; the alias means the best of them."
    )
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] = Field("", description="For people.")
    keep_checkpoints: Annotated[int, Field(ge=1, le=MAX_CHECKPOINTS)] | None = Field(
        None, description="The newest checkpoints that stay; without it as many as the server's setting says."
    )
    keep_examples: bool | None = Field(
        None,
        description="Keep the examples with the task, for `softswap retune`; no route serves them.",
    )


class DistillationMethod(PromptTuningMethod):
    """A soft prompt that answers like a long written prompt; its inputs need no answers."""

    prompt: Annotated[Text, Field(min_length=1)] | None = Field(
        None, description="The written prompt: instructions, examples. Or name a `teacher`."
    )
    teacher: ModelName | None = Field(None, description="A version whose prompt is to be shortened.")

    @model_validator(mode="after")
    def _check_one(self) -> DistillationMethod:
        if (self.prompt is None) == (self.teacher is None):
            raise ValueError("needs either prompt or teacher")
        return self


class MethodObject(Strict):
    """A method, configured under its own name."""

    type: Literal["supervised", "prompt_tuning", "distillation"]
    supervised: SupervisedMethod | None = None
    prompt_tuning: PromptTuningMethod | None = None
    distillation: DistillationMethod | None = None
    dpo: Unsupported = None
    reinforcement: Unsupported = None


class JobRequest(Strict):
    """A prompt to learn from a file of examples."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2-135m-instruct", "training_file": "file-abc123", "suffix": "sentiment"},
                {
                    "model": "smollm2-135m-instruct",
                    "training_file": "file-abc123",
                    "suffix": "sentiment",
                    "method": {
                        "type": "prompt_tuning",
                        "prompt_tuning": {
                            "template": "Review: {input}\nSentiment: {target}",
                            "hyperparameters": {"learning_rate": [0.01, 0.03], "max_steps": 200},
                        },
                    },
                },
            ]
        }
    )

    model: ModelName = Field(
        description="The backbone's name, or a task or version whose prompt tuning continues from."
    )
    training_file: FileId = Field(description="Id of an upload.")
    validation_file: FileId | None = Field(
        None, description="More examples, to choose the best state by; a tenth of the training file without it."
    )
    input_field: FieldName | None = Field(
        None,
        description="The field, or column, of the files that holds the input; found by names and contents without it.",
    )
    target_field: FieldName | None = Field(None, description="The one that holds the target.")
    suffix: Annotated[str, Field(pattern=TASK_PATTERN, max_length=MAX_SUFFIX_CHARS)] | None = Field(
        None, description="The task to publish under; named after the training file without it."
    )
    method: MethodObject | None = None
    hyperparameters: SupervisedHyperparameters | None = Field(None, description="OpenAI's older place for them.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="Of initialization and order.")
    metadata: Annotated[Metadata, Field(max_length=MAX_METADATA)] | None = Field(
        None, description="Kept with the job, and a filter of the list."
    )
    promote: bool | None = Field(
        None, description="Move the alias also to a version that scores lower than the one it means."
    )
    integrations: Unsupported = None


def _spec(name: str) -> Any:
    """A field that is read from the job's specification."""
    return Field(validation_alias=AliasPath("spec", name))


def _supervised(method: Mapping[str, Any]) -> dict[str, Any]:
    return (method.get("supervised") or {}).get("hyperparameters") or {}


class JobErrorObject(Reply):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobObject(Reply):
    """A job. `task`, `step`, `total_steps` and `data` are our additions."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str = _spec("model")
    created_at: int
    finished_at: int | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobErrorObject | None
    fine_tuned_model: str | None = Field(
        validation_alias="version", description="The version it published, such as `sentiment@3`."
    )
    task: str = _spec("task")
    training_file: str = _spec("training_file")
    validation_file: str | None = _spec("validation_file")
    hyperparameters: Annotated[dict[str, JsonValue], BeforeValidator(_supervised)] = _spec("method")
    method: dict[str, JsonValue] = _spec("method")
    seed: int = _spec("seed")
    step: int = Field(description="Updates done.")
    total_steps: int | None = Field(validation_alias="num_steps")
    estimated_finish: int | None
    trained_tokens: Annotated[int | None, BeforeValidator(lambda number: number or None)] = Field(
        description="Tokens of the examples, input and answer, each as often as a prompt learned from it; of a job "
        "that tunes twelve prompts side by side those of all twelve."
    )
    result_files: Annotated[list[str], BeforeValidator(lambda name: [] if name is None else [name])] = Field(
        validation_alias="result_file", description="Id of a CSV file with the figures, once the job has succeeded."
    )
    integrations: list[str] = Field([], description="Always empty.")
    organization_id: Literal["softswap"] = "softswap"
    metadata: dict[str, str] | None = _spec("metadata")
    data: dict[str, JsonValue] | None = Field(
        None,
        validation_alias=AliasPath("spec", "data"),
        description="What the files hold: fields that were read, labels with counts, lengths, rows that are set aside.",
    )


class JobList(Reply):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class JobDeleted(Reply):
    """What was deleted."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True


class EventObject(Reply):
    """An event of a job. With type metrics, `data` has the figures of one update or measurement."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Annotated[
        Literal["message", "metrics"], BeforeValidator(lambda data: "message" if data is None else "metrics")
    ] = Field(validation_alias=AliasPath("data"))
    data: dict[str, JsonValue] | None


class EventList(Reply):
    """Events, newest first."""

    object: Literal["list"] = "list"
    data: list[EventObject]
    has_more: bool


class CheckpointObject(Reply):
    """A version published during the job; it can be called until it is deleted."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str = Field(validation_alias="job_id")
    fine_tuned_model_checkpoint: str = Field(validation_alias="version")
    step_number: int = Field(validation_alias="step")
    metrics: dict[str, float]


class CheckpointList(Reply):
    """Checkpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_with_ends(found: Sequence[Any], has_more: bool) -> dict[str, Any]:
    """The body of a list that also names its first and its last entry."""
    first_id, last_id = (found[0].id, found[-1].id) if found else (None, None)
    return {"data": found, "first_id": first_id, "last_id": last_id, "has_more": has_more}
