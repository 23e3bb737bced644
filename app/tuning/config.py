"""TuneConfig: how a prompt is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from app.errors import InvalidInput
from app.task_prompt import MAX_VIRTUAL_TOKENS, PromptKind

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
    """What is minimised."""

    TOKENS = "tokens"
    """Mean negative log-likelihood of the target's tokens and the end of sequence."""
    LABELS = "labels"
    """Cross-entropy over the labels (log-likelihoods, normalised over all of them) plus `token_weight` times TOKENS."""
    AUTO = "auto"
    """LABELS where reading the label tree costs little (MAX_TREE_NODES), TOKENS elsewhere."""


class Metric(StrEnum):
    """What the better of two states does better on validation."""

    AUTO = "auto"
    """ACCURACY where there are labels, LOSS elsewhere."""
    LOSS = "loss"
    """The likelihood of the right answers: one forward, and every example tells something."""
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


@dataclass(frozen=True)
class TuneConfig:
    """The defaults are meant to be left alone.

    Attributes:
        kind: "embeddings" is prompt tuning (Lester et al. 2021); "kv" learns the keys and values of every layer (prefix
            tuning, Li and Liang 2021), which start as those of the rows that `init` names (Eyuboglu et al. 2025).
        num_virtual_tokens: rows to learn.
        init: where they start; `init_text` belongs to "text".
        learning_rate: in units of the root mean square of the vocabulary's embeddings (kv: of each layer's initial keys
            and values), so that one value fits backbones that differ in scale by orders of magnitude. AdamW moves a
            number by about this much in a step; Adafactor scales by the prompt's own root mean square.
        weight_decay: pulls towards zero, times the learning rate.
        warmup_share: share of the steps over which the learning rate rises from 0.
        schedule: "cosine" falls to 0 at the last step.
        max_grad_norm: gradients are scaled down to this norm, in units of the same root mean square; 0 does not clip.
        loss, token_weight: see Loss.
        metric: what the best state, and the better half of a search, are chosen by; ties go to the lower loss. A metric
            of texts has the answers to at most MAX_WRITTEN_ROWS validation examples written at every measurement.
        balance: every epoch leaves out as many random examples of the commonest target as it has more than all other
            targets together: what is mostly "none" is else learned as "none".
        batch_size: rows of an update.
        micro_batch_size: rows of one forward; gradients are accumulated over them. On CPU small ones are faster.
        num_epochs: passes over the training examples, unless `max_steps` says how many updates; 0 chooses: three
            passes, or 50 updates where these are more.
        eval_every: updates between two measurements on validation; 0 chooses about twenty measurements.
        max_validation_rows: rows used for these measurements; the final one uses all.
        patience: measurements without improvement after which tuning ends; 0 never ends early.
        seed: of initialisation and order; the same seed gives the same prompt on the same machine.
        max_input_tokens: longer inputs lose their end; 0 takes what the backbone's positions allow.
        max_target_tokens: longer targets are refused.
    """

    kind: PromptKind = PromptKind.EMBEDDINGS
    num_virtual_tokens: int = 20
    init: Init = Init.VOCAB
    init_text: str = ""
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    learning_rate: float = 0.03
    weight_decay: float = 0.0
    warmup_share: float = 0.05
    schedule: Schedule = Schedule.COSINE
    max_grad_norm: float = 0.0
    loss: Loss = Loss.AUTO
    token_weight: float = 0.1
    metric: Metric = Metric.AUTO
    balance: bool = False
    batch_size: int = 32
    micro_batch_size: int = 32
    num_epochs: float = 0.0
    max_steps: int = 0
    eval_every: int = 0
    max_validation_rows: int = 500
    patience: int = 0
    seed: int = 0
    max_input_tokens: int = 0
    max_target_tokens: int = 128

    def __post_init__(self) -> None:
        if self.kind is PromptKind.TEXT:
            raise InvalidInput("kind must be embeddings or kv: a text is written, not tuned", param="kind")
        _check("num_virtual_tokens", self.num_virtual_tokens, 1, MAX_VIRTUAL_TOKENS)
        _check("learning_rate", self.learning_rate, 0.0, 1000.0)
        _check("weight_decay", self.weight_decay, 0.0, 1000.0)
        _check("warmup_share", self.warmup_share, 0.0, 1.0)
        _check("max_grad_norm", self.max_grad_norm, 0.0, math.inf)
        _check("token_weight", self.token_weight, 0.0, 100.0)
        _check("batch_size", self.batch_size, 1, 65_536)
        _check("micro_batch_size", self.micro_batch_size, 1, 65_536)
        _check("num_epochs", self.num_epochs, 0.0, 10_000)
        _check("max_steps", self.max_steps, 0, 10_000_000)
        _check("eval_every", self.eval_every, 0, 10_000_000)
        _check("max_validation_rows", self.max_validation_rows, 1, 10_000_000)
        _check("patience", self.patience, 0, 10_000_000)
        _check("seed", self.seed, 0, 2**63 - 1)
        _check("max_input_tokens", self.max_input_tokens, 0, 1_000_000)
        _check("max_target_tokens", self.max_target_tokens, 1, 1_000_000)
        if (self.init is Init.TEXT) != bool(self.init_text):
            raise InvalidInput('init_text is needed by init "text" and by nothing else', param="init_text")

    def num_steps(self, num_examples: int) -> int:
        """Updates of a whole run."""
        num_steps = math.ceil((self.num_epochs or DEFAULT_EPOCHS) * num_examples / self.batch_size)
        return self.max_steps or max(1 if self.num_epochs else MIN_DEFAULT_STEPS, num_steps)

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


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{name} must be at least {low:g} and at most {high:g}", param=name)
