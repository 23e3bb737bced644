"""Population: prompts that are trained side by side, each with its own start, parameters, optimizer and best state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import Any

import torch

from app.errors import BackboneMismatch, InvalidInput
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.layout import encode_text
from app.model.prompted_forward import PromptPrefix
from app.task_prompt import PromptKind, TaskPrompt
from app.tuning.config import Init, OptimizerKind, TuneConfig
from app.tuning.plan import TuningPlan
from app.tuning.run.objective import Score
from app.tuning.search import MAX_MEMBERS

OPTIMIZER = "optimizer."


def make_optimizer(config: TuneConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """With torch's defaults for everything but the learning rate and the weight decay."""
    kind = torch.optim.Adafactor if config.optimizer is OptimizerKind.ADAFACTOR else torch.optim.AdamW
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


@dataclass(frozen=True, eq=False)
class BestState:
    """The state of a member that did best on validation.

    Attributes:
        rows: (num_virtual_tokens, width of the kind) float32.
        step: updates done when it was measured; 0 is the start.
    """

    rows: torch.Tensor
    step: int
    score: Score


class Member:
    """One prompt being learned.

    Attributes:
        number: its place in the population, which never changes.
        initial: (num_virtual_tokens, width of the kind) float32.
        unit: factor of the learned numbers; broadcasts over the rows.
        scaled: the parameter: the rows, in that unit.
        is_alive: whether it is still trained.
    """

    def __init__(self, number: int, config: TuneConfig, initial: torch.Tensor, unit: torch.Tensor) -> None:
        self.number = number
        self.config = config
        self.initial = initial
        self.unit = unit
        self.scaled = torch.nn.Parameter(initial / unit)
        self.optimizer = make_optimizer(config, [self.scaled])
        self.best: BestState | None = None
        self.is_alive = True

    @property
    def rows(self) -> torch.Tensor:
        """Differentiable."""
        return self.scaled * self.unit

    @property
    def start(self) -> tuple[object, ...]:
        """Equal for members whose rows start alike."""
        config = self.config
        return (config.kind, config.init, config.init_text, config.num_virtual_tokens, config.seed)

    @property
    def has_finite_gradient(self) -> bool:
        return self.scaled.grad is not None and bool(self.scaled.grad.isfinite().all())

    def update(self, step: int, num_steps: int) -> None:
        """One update from the present gradients. Args: step: 0 for the first."""
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([self.scaled], self.config.max_grad_norm)
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate_at(step, num_steps)
        self.optimizer.step()

    def keep_if_best(self, score: Score, step: int) -> None:
        """Keep the present state if it is the member's best."""
        if score.is_finite and score.rank > self.best_rank:
            self.best = BestState(self.rows.detach().clone(), step, score)

    @property
    def best_rank(self) -> tuple[float, ...]:
        return self.best.score.rank if self.best else (-math.inf,)

    def best_prompt(self, backbone: Backbone) -> TaskPrompt:
        """Its best state as a prompt; it must have been measured."""
        assert self.best is not None
        return TaskPrompt.from_rows(self.config.kind, self.best.rows, backbone.fingerprint)

    def record(self) -> dict[str, Any]:
        """What a saved run keeps of it, next to `tensors`."""
        best = self.best and {"step": self.best.step, "score": asdict(self.best.score)}
        return {"is_alive": self.is_alive, "best": best}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies on CPU."""
        named = {"initial": self.initial, "unit": self.unit, "scaled": self.scaled}
        named |= {f"{OPTIMIZER}{name}": value for name, value in self.optimizer.state[self.scaled].items()}
        if self.best is not None:
            named["best"] = self.best.rows
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items()}

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the saved values, bit for bit."""
        on_device = {name: tensor.to(self.scaled.device, copy=True) for name, tensor in tensors.items()}
        self.initial, self.unit, self.scaled.data = (on_device[name] for name in ("initial", "unit", "scaled"))
        self.optimizer.state[self.scaled] = {
            name.removeprefix(OPTIMIZER): tensor.cpu() if name == f"{OPTIMIZER}step" else tensor
            for name, tensor in on_device.items()
            if name.startswith(OPTIMIZER)
        }
        self.is_alive = record["is_alive"]
        if record["best"] is not None:
            score = Score(**record["best"]["score"] | {"rank": tuple(record["best"]["score"]["rank"])})
            self.best = BestState(on_device["best"], record["best"]["step"], score)


class Population:
    """All members of a run, and the keys and values of those alive, computed in as few forwards as possible."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.members: list[Member] = []

    @property
    def alive(self) -> list[Member]:
        """In the order that `prompt_index` counts: those of one kind and length stand together."""
        return sorted((member for member in self.members if member.is_alive), key=_shape)

    @property
    def leader(self) -> Member | None:
        """The member with the best state of all, alive or not."""
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> list[Member]:
        """Those that were measured, alive or not, by their best states."""
        measured = [member for member in self.members if member.best is not None]
        return sorted(measured, key=lambda member: member.best_rank, reverse=True)

    @property
    def different_starts(self) -> list[Member]:
        """One member alive for each start, in the same order."""
        return list({member.start: member for member in reversed(self.alive)}.values())[::-1]

    def prefixes(self, max_tokens: int | None, among: Sequence[Member] | None = None) -> Iterator[PromptPrefix]:
        """Of all members alive, differentiable, to be stacked; each is one forward of at most `max_tokens` tokens.

        Args: among: some of them, in their order.
        """
        for (_, length), group in groupby(self.alive if among is None else among, key=_shape):
            size = MAX_MEMBERS if max_tokens is None else max(1, max_tokens // length)
            while members := list(islice(group, size)):
                rows = torch.stack([member.rows for member in members])
                yield PromptPrefix.of_rows(self._backbone, members[0].config.kind, rows)

    def clear_gradients(self) -> None:
        for member in self.members:
            member.scaled.grad = None


def _shape(member: Member) -> tuple[str, int]:
    return member.config.kind.value, member.config.num_virtual_tokens


def embedding_rms(backbone: Backbone) -> float:
    """Root mean square of the vocabulary's embeddings as they enter the model: the unit of learning rates."""
    sample = torch.arange(min(backbone.vocab_size, 20_000), device=backbone.device)
    with torch.no_grad():
        return float(backbone.embed(sample).float().square().mean().sqrt())


def kv_rms(backbone: Backbone, rows: torch.Tensor) -> torch.Tensor:
    """Root mean square of each layer's keys and of its values: their unit of learning rates.

    Args: rows: (num_virtual_tokens, kv_row_size).

    Returns: (kv_row_size,), equal over the numbers that belong together.
    """
    width = backbone.kv_shape.num_kv_heads * backbone.kv_shape.head_dim
    sizes = rows.unflatten(1, (-1, width)).square().mean(dim=(0, 2)).sqrt()
    return sizes.clamp(min=1e-6).repeat_interleave(width)


def make_member(
    backbone: Backbone, number: int, config: TuneConfig, plan: TuningPlan, train: Sequence[EncodedExample]
) -> Member:
    """Member `number` of a run, as `config` says. Raises InvalidInput, BackboneMismatch."""
    rows = initial_rows(backbone, config, plan, train)
    if config.kind is PromptKind.EMBEDDINGS:
        return Member(number, config, rows, torch.tensor(embedding_rms(backbone), device=backbone.device))
    if config.init is not Init.PROMPT:
        with torch.no_grad():
            rows = PromptPrefix.of_embeddings(backbone, rows[None]).kv_rows()[0].float()
    return Member(number, config, rows, kv_rms(backbone, rows))


def initial_rows(
    backbone: Backbone, config: TuneConfig, plan: TuningPlan, train: Sequence[EncodedExample]
) -> torch.Tensor:
    """Embeddings, (num_virtual_tokens, hidden_size) float32 on the backbone's device; for init "prompt" its rows.

    Raises InvalidInput, BackboneMismatch.
    """
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer, num_rows = backbone.tokenizer, config.num_virtual_tokens
    match config.init:
        case Init.PROMPT:
            return _cycled(_rows_of(backbone, config.kind, plan.init_prompt), num_rows)
        case Init.TEXT:
            text_ids = start_ids(backbone, config.kind, config.init_text)
            if not text_ids:
                raise InvalidInput("init_text has no tokens", param="init_text")
            backbone.require_embedded(text_ids, "init_text", param="init_text")
            return _cycled(_embedded(backbone, text_ids), num_rows)
        case Init.LABELS:
            if not plan.labels:
                raise InvalidInput('init "labels" needs a task with labels', param="init")
            label_ids = [plan.template.encode_target(tokenizer, label) for label in plan.labels[:num_rows]]
            means = torch.stack([_embedded(backbone, token_ids).mean(dim=0) for token_ids in label_ids])
            return torch.cat([means, _sampled(backbone, num_rows - len(means), train, generator)])
        case Init.VOCAB:
            return _sampled(backbone, num_rows, train, generator)
        case Init.RANDOM:
            shape = (num_rows, backbone.hidden_size)
            return torch.randn(shape, generator=generator).to(backbone.device) * embedding_rms(backbone)


def start_ids(backbone: Backbone, kind: PromptKind, text: str) -> list[int]:
    """Token ids of a text that a prompt starts as.

    Keys and values are those the text has as a written prompt, after the beginning-of-sequence token if there is one.
    """
    if kind is PromptKind.KV:
        return encode_text(backbone.tokenizer, text)
    token_ids: list[int] = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    return token_ids


def text_rows(backbone: Backbone, kind: PromptKind, text: str) -> torch.Tensor:
    """(num_tokens, hidden_size) float32: the embeddings of `start_ids`."""
    return _embedded(backbone, start_ids(backbone, kind, text))


def _rows_of(backbone: Backbone, kind: PromptKind, prompt: TaskPrompt | None) -> torch.Tensor:
    if prompt is None or prompt.kind is not kind or prompt.rows is None:
        raise InvalidInput(f'init "prompt" needs a prompt of kind {kind}', param="init")
    if prompt.backbone_fingerprint != backbone.fingerprint:
        raise BackboneMismatch("the prompt to start from was made for another backbone", param="init")
    return prompt.rows.to(backbone.device)


def _sampled(
    backbone: Backbone, num_rows: int, train: Sequence[EncodedExample], generator: torch.Generator
) -> torch.Tensor:
    """Different tokens of the training inputs: tokens no text contains were never trained themselves."""
    seen = sorted({token_id for row in train for token_id in row.text_ids})
    order = torch.randperm(len(seen), generator=generator).tolist()
    return _cycled(_embedded(backbone, [seen[i] for i in order]), num_rows)


def _embedded(backbone: Backbone, token_ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.embed(torch.tensor(token_ids, device=backbone.device)).float()


def _cycled(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    return rows[torch.arange(num_rows, device=rows.device) % len(rows)].clone()
