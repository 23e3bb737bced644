"""TuneConfig: how a prompt is learned. The one table of hyperparameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, Self, cast

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from app.errors import InvalidInput, complain
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind

MAX_JOB_BATCH_SIZE: Final = 4096
MAX_JOB_EPOCHS: Final = 1000
MAX_JOB_UPDATES: Final = 1_000_000
MAX_JOB_TOKENS: Final = 131_072
MAX_BUDGET_S: Final = 7 * 24 * 3600.0
MIN_BUDGET_S: Final = 1.0
DEFAULT_BUDGET_S: Final = {"cpu": 600.0, "cuda": 300.0}
"""By kind of device, for whoever asks neither for a budget nor for a number of updates."""
DEFAULT_BATCH_SIZE = 32
DEFAULT_EPOCHS = 3
MIN_DEFAULT_STEPS = 50
DEFAULT_PATIENCE = 5
"""Of `softswap tune` and of jobs. A TuneConfig that says nothing never ends early."""


class Init(StrEnum):
    """Where the rows of a prompt start (Lester et al. 2021, section 3.2)."""

    LABELS = "labels"
    """One row per label, the mean of its tokens' embeddings; sampled vocabulary beyond."""
    VOCAB = "vocab"
    """Embeddings of tokens sampled from those that occur in the training inputs."""
    TEXT = "text"
    """Embeddings of `init_text`, repeated to length."""
    RANDOM = "random"
    """Normal numbers with the standard deviation of the vocabulary's embeddings."""
    PROMPT = "prompt"
    """The rows of another prompt (transfer, Vu et al. 2022)."""


class Loss(StrEnum):
    """What is minimized."""

    TOKENS = "tokens"
    """Mean negative log-likelihood of the target's tokens and the end of sequence."""
    LABELS = "labels"
    """Cross-entropy over the labels (log-likelihoods, normalized over all of them) plus `token_weight` times TOKENS."""
    AUTO = "auto"
    """LABELS if reading the label tree costs little (MAX_TREE_NODES), otherwise TOKENS."""


class Metric(StrEnum):
    """What decides which of two states is better, on validation."""

    AUTO = "auto"
    """ACCURACY if there are labels, otherwise LOSS."""
    LOSS = "loss"
    """The likelihood of the right answers: one forward, and every example counts."""
    ACCURACY = "accuracy"
    MACRO_F1 = "macro_f1"
    EXACT_MATCH = "exact_match"
    TOKEN_F1 = "token_f1"  # noqa: S105  no password
    ROUGE_L = "rouge_l"
    ENTITY_F1 = "entity_f1"


class OptimizerKind(StrEnum):
    ADAMW = "adamw"
    ADAFACTOR = "adafactor"


class Schedule(StrEnum):
    COSINE = "cosine"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """What is declared of one field.

    Attributes:
        type: bool, int, float, str or a StrEnum.
        low, high: the smallest and the largest value.
        unset: what is done without it, in words; empty if the default says it.
        is_offered: whether a job's request may set it.
        job_name: what it is called there.
        job_high: the largest value there, if that is lower.
        is_positive: whether 0 is refused there; `auto` says the same.
        is_duration: whether it is seconds, which the command line takes as 20m or 90s.
        option: of `softswap tune`, if it has one.
        axis: place among those that a search tries several values of. Members are numbered in this order, and saved
            runs know them by number, so places stay.
        choices: values of a StrEnum that may be asked for.
    """

    name: str
    type: Any
    description: str
    low: float | None = None
    high: float | None = None
    unset: str = ""
    is_offered: bool = True
    job_name: str = ""
    job_high: float | None = None
    is_positive: bool = False
    is_duration: bool = False
    option: str | None = None
    axis: int | None = None
    choices: tuple[str, ...] = ()

    @property
    def lowest(self) -> float:
        """That may be asked for; see `is_lowest_refused`."""
        return max(self.low or 0, int(self.is_positive and self.type is not float))

    @property
    def is_lowest_refused(self) -> bool:
        """Whether a value must be more than `lowest`."""
        return self.is_positive and self.type is float

    @property
    def plural(self) -> str:
        """What records call several values."""
        return self.name.replace("num_", "nums_", 1) if self.name.startswith("num_") else f"{self.name}s"


def declare(default: Any, description: str, *, low: float | None = None, high: float | None = None, **more: Any) -> Any:
    """The default of a field of a pydantic dataclass. Args: more: other attributes of Hyperparameter."""
    return Field(
        default, description=description, ge=low, le=high, json_schema_extra={"low": low, "high": high, **more}
    )


def declared_of(kind: type) -> tuple[Hyperparameter, ...]:
    """The declared fields of a pydantic dataclass, in order."""
    fields = cast(Any, kind).__pydantic_fields__
    return tuple(_read(name, info) for name, info in fields.items() if info.json_schema_extra)


@dataclass(frozen=True)
class Declared:
    """What is made of declared fields. Raises InvalidInput that names the field, instead of pydantic's own error."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_field(cls, values: Any, make: Callable[[Any], Self]) -> Self:
        try:
            return make(values)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            name = str(problem["loc"][0])
            raise InvalidInput(f"{name} {complain(problem)}", param=name) from None


def _read(name: str, info: Any) -> Hyperparameter:
    more = dict(info.json_schema_extra)
    left_out = ("auto", *more.pop("left_out", ()))
    choices: tuple[str, ...] = ()
    if isinstance(info.annotation, type) and issubclass(info.annotation, StrEnum):
        choices = tuple(each.value for each in info.annotation if each.value not in left_out)
    more = {"job_name": name, **more}
    return Hyperparameter(name, info.annotation, str(info.description), choices=choices, **more)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class TuneConfig(Declared):
    """The table of hyperparameters: the fields of a job's request, the options of `softswap tune` and what a search
    varies are all derived from these declarations. The defaults are meant to be left alone.

    Records and saved runs hold the fields in this order.
    """

    # fmt: off
    kind: PromptKind = declare(
        PromptKind.EMBEDDINGS,
        "What is learned: embeddings (prompt tuning), or kv, the keys and values of every layer (prefix tuning).",
        option="--kind", axis=0, left_out=(PromptKind.TEXT,))
    """Lester et al. 2021; Li and Liang 2021. Keys and values start as those of the rows that `init` names (Eyuboglu et
    al. 2025)."""
    num_virtual_tokens: int = declare(
        20, "Rows to learn.", low=1, high=MAX_VIRTUAL_TOKENS, unset="20,50; to distill: 20", option="--virtual-tokens",
        axis=3)
    init: Init = declare(
        Init.VOCAB, "What the rows start as: labels, vocab, text or random; prompt, if a job continues from a version.",
        option="--init", axis=1)
    init_text: str = declare("", "The text of init text.", option="--init-text")
    optimizer: OptimizerKind = declare(OptimizerKind.ADAMW, "Adafactor takes less memory.")
    learning_rate: float = declare(
        0.03, "In units of the vocabulary's scale.", low=0, high=1000, unset="0.03,0.1,0.3", is_positive=True,
        option="--learning-rate", axis=2)
    """In units of the root mean square of the vocabulary's embeddings (kv: of each layer's initial keys and values), so
    that one value fits backbones that differ in scale by orders of magnitude. AdamW moves a number by about this much
    in a step; Adafactor scales by the prompt's own root mean square."""
    weight_decay: float = declare(0.0, "Pulls toward zero, times the learning rate.", low=0, high=1000)
    warmup_share: float = declare(0.05, "Share of the updates over which the learning rate rises.", low=0, high=1)
    schedule: Schedule = declare(Schedule.COSINE, "Of the learning rate; cosine falls to 0 at the last update.")
    max_grad_norm: float = declare(
        0.0, "Gradients are scaled down to this norm, in the same units; 0 does not clip.", low=0, high=1e6)
    loss: Loss = declare(
        Loss.AUTO, "Of the target's tokens, or of the right label among all; labels if that costs little, without it.")
    token_weight: float = declare(0.1, "Weight of the tokens' loss next to the labels'.", low=0, high=100)
    metric: Metric = declare(
        Metric.AUTO, "What the best state is chosen by: loss; accuracy or macro_f1 of labels; exact_match, token_f1, "
        "rouge_l or entity_f1 of answers that are written.", unset="accuracy, or loss of texts", option="--metric")
    """Ties go to the lower loss. A metric of texts has the answers to at most MAX_WRITTEN_ROWS validation examples
    written at every measurement."""
    balance: bool = declare(
        False, "In every epoch, leave out what the commonest target has more than all others together.",
        option="--balance")
    """What is mostly "none" is otherwise learned as "none"."""
    batch_size: int = declare(
        0, "Examples in an update.", low=0, high=65_536, job_high=MAX_JOB_BATCH_SIZE, is_positive=True,
        unset="32, or what a budget has time for", option="--batch-size")
    """0 chooses."""
    micro_batch_size: int = declare(
        32, "Rows of one forward, over which gradients are accumulated.", low=1, high=65_536, is_offered=False)
    num_epochs: float = declare(
        0.0, "Passes over the examples, unless max_steps is given.", low=0, high=10_000, unset="3, at least 50 updates",
        job_name="n_epochs", job_high=MAX_JOB_EPOCHS, is_positive=True, option="--epochs")
    """0 chooses."""
    max_steps: int = declare(
        0, "Updates, whatever the size of the data.", low=0, high=10_000_000, job_high=MAX_JOB_UPDATES,
        is_positive=True, option="--max-steps")
    """0 leaves it to `num_epochs`."""
    eval_every: int = declare(
        0, "Updates between measurements on validation; 0 measures about 20 times.", low=0, high=10_000_000,
        is_offered=False)
    max_validation_rows: int = declare(
        500, "Examples to measure with during tuning; the last measurement uses all.", low=1, high=1_000_000)
    patience: int = declare(
        0, "Measurements without progress after which tuning ends; 0 never.", low=0, high=10_000_000,
        unset=str(DEFAULT_PATIENCE), job_high=1000, option="--patience")
    seed: int = declare(
        0, "Of initialization and order.", low=0, high=2**63 - 1, job_name="seeds", job_high=2**31 - 1, option="--seed",
        axis=4)
    """The same seed gives the same prompt on the same machine."""
    max_input_tokens: int = declare(
        0, "Longer inputs lose their end, in requests to the version too.", low=0, high=MAX_JOB_TOKENS,
        unset="as many as fit the backbone", is_positive=True, option="--max-input-tokens")
    """With the template. 0 takes as many as the backbone's positions allow."""
    max_target_tokens: int = declare(
        128, "Longer targets are refused. Labels, and texts that are all short, take less room.", low=1,
        high=MAX_JOB_TOKENS, option="--max-target-tokens")
    budget_s: float = declare(
        0.0, "Time until the result is published, loading included: 20m, 90s. In a job: seconds, from its start.",
        low=0, high=MAX_BUDGET_S, unset="10m on a CPU, 5m on a GPU; none if updates or epochs are given",
        is_positive=True, is_duration=True, option="--budget")
    """0 sets none."""
    # fmt: on

    def __post_init__(self) -> None:
        if self.kind is PromptKind.TEXT:
            raise InvalidInput("kind must be embeddings or kv: a text is written, not tuned", param="kind")
        if (self.init is Init.TEXT) != bool(self.init_text):
            raise InvalidInput('init_text is needed by init "text" and by nothing else', param="init_text")
        if 0 < self.budget_s < MIN_BUDGET_S:
            raise InvalidInput(f"budget_s must be at least {MIN_BUDGET_S:g} second", param="budget_s")

    def with_budget(self, device_type: str) -> TuneConfig:
        """With the default budget of that kind of device, if neither a budget nor a number of updates is asked for."""
        if self.budget_s or self.max_steps or self.num_epochs:
            return self
        return dataclasses.replace(cast(Any, self), budget_s=DEFAULT_BUDGET_S.get(device_type, DEFAULT_BUDGET_S["cpu"]))

    @property
    def rows_per_update(self) -> int:
        return self.batch_size or DEFAULT_BATCH_SIZE

    def num_steps(self, num_examples: int) -> int:
        """Updates of a whole run that has no budget."""
        return self.asked_steps(num_examples) or max(
            MIN_DEFAULT_STEPS, math.ceil(DEFAULT_EPOCHS * num_examples / self.rows_per_update)
        )

    def asked_steps(self, num_examples: int) -> int:
        """Updates that `max_steps` or `num_epochs` ask for; 0 if neither does."""
        return self.max_steps or math.ceil(self.num_epochs * num_examples / self.rows_per_update)

    def record(self) -> dict[str, Any]:
        """In JSON's types, as provenance and saved runs have it: without what was added later and is not used."""
        fields = dataclasses.asdict(cast(Any, self)) | {"batch_size": self.rows_per_update}
        return fields if self.budget_s else {name: value for name, value in fields.items() if name != "budget_s"}

    def num_steps_between_evals(self, num_steps: int) -> int:
        return self.eval_every or max(1, math.ceil(num_steps / 20))

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Args: step: 0 for the first update."""
        num_warmup = math.ceil(self.warmup_share * num_steps)
        if step < num_warmup:
            return self.learning_rate * (step + 1) / num_warmup
        if self.schedule is Schedule.CONSTANT:
            return self.learning_rate
        share_done = (step - num_warmup) / max(1, num_steps - num_warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share_done))


HYPERPARAMETERS: Final = declared_of(TuneConfig)
AXES: Final = tuple(
    sorted((each for each in HYPERPARAMETERS if each.axis is not None), key=lambda each: each.axis or 0)
)
"""What a search can vary."""
