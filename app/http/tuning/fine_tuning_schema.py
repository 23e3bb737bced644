"""`/v1/fine_tuning/jobs`, as in openai `types/fine_tuning/`, with `prompt_tuning` as a method of our own."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from app.answers.ensembles import MAX_ENSEMBLE
from app.http.fields import (
    MAX_DESCRIPTION_CHARS,
    MAX_ID_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_METADATA,
    MAX_TEMPLATE_CHARS,
    MAX_TOKENS,
    Metadata,
    ModelName,
    Reply,
    Strict,
    Text,
    Unsupported,
)
from app.http.protection.patterns import ALIAS_PATTERN, TASK_PATTERN
from app.task_prompt import MAX_VIRTUAL_TOKENS
from app.tuning.search import MAX_MEMBERS

MAX_SUFFIX_CHARS: Final = 63
MAX_INIT_TEXT_CHARS: Final = 8192
MAX_EPOCHS: Final = 1000
MAX_UPDATES: Final = 1_000_000
MAX_BATCH_SIZE: Final = 4096


Value = TypeVar("Value")
FileId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Epochs = Annotated[float, Field(gt=0, le=MAX_EPOCHS)]
BatchSize = Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]
Positive = Annotated[float, Field(gt=0, le=1000)]


def _drop_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _listed(value: Any) -> Any:
    return value if value is None or value == "auto" or isinstance(value, list) else [value]


# "auto" becomes None before validation, so that a complaint about a number speaks of the number.
Auto = Annotated[Value | None, BeforeValidator(_drop_auto, json_schema_input_type=Value | Literal["auto"] | None)]
Several = Annotated[
    Annotated[list[Value], Field(min_length=1, max_length=MAX_MEMBERS)] | None,
    BeforeValidator(_drop_auto),
    BeforeValidator(
        _listed,
        json_schema_input_type=Value
        | Annotated[list[Value], Field(min_length=1, max_length=MAX_MEMBERS)]
        | Literal["auto"]
        | None,
    ),
]


class SupervisedHyperparameters(Strict):
    """OpenAI's three; what they leave open is searched for."""

    n_epochs: Auto[Epochs] = Field(None, description="Passes over the examples.")
    batch_size: Auto[BatchSize] = Field(None, description="Examples in an update.")
    learning_rate_multiplier: Auto[Positive] = Field(None, description="Factor on the learning rates tried.")


class SupervisedMethod(Strict):
    """OpenAI's name for learning from examples."""

    hyperparameters: SupervisedHyperparameters | None = None


class PromptTuningHyperparameters(Strict):
    """How a prompt is learned. Lists are tried side by side, every combination; nothing needs to be given."""

    kind: Several[Literal["embeddings", "kv"]] = Field(None, description="Prompt tuning, or prefix tuning.")
    num_virtual_tokens: Several[Annotated[int, Field(ge=1, le=MAX_VIRTUAL_TOKENS)]] = Field(
        None, description="Rows to learn."
    )
    init: Several[Literal["labels", "vocab", "text", "random", "prompt"]] = Field(
        None, description="Where the rows start; `prompt` takes those of the version that `model` names."
    )
    init_text: Annotated[str, Field(min_length=1, max_length=MAX_INIT_TEXT_CHARS)] | None = Field(
        None, description="For init `text`."
    )
    learning_rate: Several[Positive] = Field(None, description="In units of the vocabulary's scale.")
    seeds: Several[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(None, description="Of initialisation and order.")
    num_cuts: Auto[Annotated[int, Field(ge=0, le=10)]] = Field(
        None, description="How often the worse half of the combinations is given up."
    )
    n_epochs: Auto[Epochs] = Field(None, description="Passes over the examples, where max_steps does not say.")
    max_steps: Auto[Annotated[int, Field(ge=1, le=MAX_UPDATES)]] = Field(None, description="Updates.")
    batch_size: Auto[BatchSize] = Field(None, description="Examples in an update.")
    patience: Auto[Annotated[int, Field(ge=0, le=1000)]] = Field(
        None, description="Measurements without progress after which tuning ends; 0 never."
    )
    max_validation_rows: Auto[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        None, description="Examples used to measure on the way; the last measurement uses all."
    )
    optimizer: Auto[Literal["adamw", "adafactor"]] = None
    schedule: Auto[Literal["cosine", "constant"]] = Field(None, description="Of the learning rate.")
    warmup_share: Auto[Annotated[float, Field(ge=0, le=1)]] = Field(
        None, description="Share of the updates over which the learning rate rises."
    )
    weight_decay: Auto[Annotated[float, Field(ge=0, le=1000)]] = None
    max_grad_norm: Auto[Annotated[float, Field(ge=0, le=1_000_000)]] = Field(None, description="0 does not clip.")
    loss: Auto[Literal["tokens", "labels"]] = Field(
        None, description="Of the target's tokens, or of the right label among all."
    )
    token_weight: Auto[Annotated[float, Field(ge=0, le=100)]] = Field(
        None, description="What the tokens' loss counts beside the labels'."
    )
    metric: Auto[Literal["loss", "accuracy", "macro_f1", "exact_match", "token_f1", "rouge_l", "entity_f1"]] = Field(
        None, description="What the best state is chosen by; accuracy, or the loss of a task that writes text."
    )
    balance: Auto[bool] = Field(None, description="Leave out what the commonest target has more than all others.")
    max_input_tokens: Auto[Annotated[int, Field(ge=1, le=MAX_TOKENS)]] = Field(
        None, description="Longer inputs lose their end."
    )
    max_target_tokens: Auto[Annotated[int, Field(ge=1, le=MAX_TOKENS)]] = Field(
        None, description="Longer targets are refused."
    )


class PromptTuningMethod(Strict):
    """A soft prompt in front of the frozen backbone."""

    hyperparameters: PromptTuningHyperparameters | None = None
    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] | None = Field(
        None, description="How an input becomes text: `{input}` once, and `{target}` once at the end."
    )
    labels: list[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]] | None = Field(
        None, max_length=MAX_LABELS, description="Every target is one of them; [] writes text; null finds out."
    )
    alias: Annotated[str, Field(pattern=ALIAS_PATTERN)] | None = Field(
        "live", description="The alias that shall mean the result; null moves none."
    )
    publish: Annotated[int, Field(ge=1, le=MAX_ENSEMBLE)] = Field(
        1, description="Publish the best so many prompts, an ensemble; the alias means the best of them."
    )
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] = Field("", description="For people.")


class DistillationMethod(PromptTuningMethod):
    """A soft prompt that answers as a long written prompt does; its inputs need no answers."""

    prompt: Annotated[Text, Field(min_length=1)] | None = Field(
        None, description="The written prompt: instructions, examples. Or name a `teacher`."
    )
    teacher: ModelName | None = Field(None, description="A version whose prompt is the one to be shortened.")

    @model_validator(mode="after")
    def _check_one(self) -> DistillationMethod:
        if (self.prompt is None) == (self.teacher is None):
            raise ValueError("needs either prompt or teacher")
        return self


class Method(Strict):
    """What `type` names may be configured beside it."""

    type: Literal["supervised", "prompt_tuning", "distillation"]
    supervised: SupervisedMethod | None = None
    prompt_tuning: PromptTuningMethod | None = None
    distillation: DistillationMethod | None = None
    dpo: Unsupported = None
    reinforcement: Unsupported = None


class JobRequest(Strict):
    """A prompt to be learned from a file of examples."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "backbone", "training_file": "file-abc123", "suffix": "sentiment"},
                {
                    "model": "backbone",
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

    model: ModelName = Field(description="The backbone's name, or a task or version whose prompt tuning goes on from.")
    training_file: FileId = Field(description="Id of an upload.")
    validation_file: FileId | None = Field(
        None, description="More examples, to choose the best state by; a tenth of the training file without it."
    )
    suffix: Annotated[str, Field(pattern=TASK_PATTERN, max_length=MAX_SUFFIX_CHARS)] | None = Field(
        None, description="The task to publish under; named after the training file without it."
    )
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = Field(None, description="OpenAI's older place for them.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="Of initialisation and order.")
    metadata: Annotated[Metadata, Field(max_length=MAX_METADATA)] | None = Field(
        None, description="Kept with the job, and a filter of the list."
    )
    integrations: Unsupported = None


class JobErrorObject(Reply):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobObject(Reply):
    """A job. `task`, `step` and `total_steps` are our additions."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    created_at: int
    finished_at: int | None
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobErrorObject | None
    fine_tuned_model: str | None = Field(description="The version it published, such as `sentiment@3`.")
    task: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, JsonValue]
    method: dict[str, JsonValue]
    seed: int
    step: int = Field(description="Updates done.")
    total_steps: int | None
    estimated_finish: int | None
    trained_tokens: int | None = Field(
        description="Tokens of the examples, input and answer, each as often as a prompt learned from it; of a job "
        "that tunes twelve prompts side by side those of all twelve."
    )
    result_files: list[str] = Field(description="Id of a CSV file with the figures, once the job has succeeded.")
    integrations: list[str] = Field([], description="Always empty.")
    organization_id: Literal["softswap"] = "softswap"
    metadata: dict[str, str] | None


class JobList(Reply):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class JobDeleted(Reply):
    """What is gone."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True


class EventObject(Reply):
    """Something that happened to a job. `data` of type metrics has the figures of one update or measurement."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, JsonValue] | None


class EventList(Reply):
    """Events, newest first."""

    object: Literal["list"] = "list"
    data: list[EventObject]
    has_more: bool


class CheckpointObject(Reply):
    """A version published on the way; it can be called as long as nobody deletes it."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, float]


class CheckpointList(Reply):
    """Checkpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
