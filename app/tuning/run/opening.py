"""The opening of a run with a budget: which of a few written prompts to start from, and with which template."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch

from app.measure.encoding import EncodedExample, collate
from app.measure.label_tree import LabelTree, label_log_likelihoods
from app.model.backbone import Backbone
from app.model.layout import encode_labels
from app.model.prompted_forward import PromptPrefix, target_log_likelihoods
from app.task_prompt import PromptKind
from app.tuning.budget import OPENING_SHARE
from app.tuning.plan import TuningPlan
from app.tuning.run.population import text_rows
from app.tuning.run.rows import Chunk, Chunker, encode_rows, fit_to_targets, spread
from app.tuning.run.timetable import Clock
from app.tuning.templates import WrittenPrompt

MAX_ROWS: Final = 200
MIN_BLOCK_SIZE, BLOCK_SIZE = 2, 8
"""Rows after which all candidates have been asked the same: few at first, which may be long."""


@dataclass(frozen=True)
class Opened:
    """How the written prompts of a plan did on `num_rows` validation examples, in their order.

    Attributes:
        losses: negative log-likelihood of the right answers, nats, mean over examples.
        accuracies: shares of right labels; empty for a task that writes.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    num_rows: int

    @property
    def number(self) -> int:
        """Of the prompt to start from: the one that makes the right answers likeliest.

        A few examples tell that much sooner than accuracy, and a template under which answers are likely asks for them.
        """
        return min(range(len(self.losses)), key=lambda number: self.losses[number])

    @property
    def strongest(self) -> int:
        """Number of the prompt that answers best, which a tuned one is to be compared with."""
        known = self.accuracies or [0.0] * len(self.losses)
        return max(range(len(known)), key=lambda number: (known[number], -self.losses[number]))

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Opened:
        return cls(tuple(record["losses"]), tuple(record["accuracies"]), record["num_rows"])

    def apply(self, plan: TuningPlan) -> TuningPlan:
        """The plan with the template of the prompt to start from."""
        return replace(plan, template=plan.written[self.number].template)


class Opening:
    """Asks every written prompt of the plan for the same validation rows, a block at a time, while there is time.

    Args:
        slice_s: seconds that a forward should take; None sets no bound.
        clock: monotonic seconds.
    """

    def __init__(self, backbone: Backbone, plan: TuningPlan, *, slice_s: float | None, clock: Clock) -> None:
        self._backbone = backbone
        self._plan = plan
        self._slice_s = slice_s
        self._clock = clock
        self._max_rows = BLOCK_SIZE if slice_s is None else 1
        self.opened: Opened | None = None

    def slices(self) -> Iterator[None]:
        """Sets `opened` at the end. Raises InvalidInput: an example cannot be encoded."""
        examples = spread(self._plan.validation, MAX_ROWS)
        random.Random(0).shuffle(examples)  # noqa: S311  an order, no secret
        askings = []
        for written in self._plan.written:
            askings.append(_Asking.of(self._backbone, self._plan, written))
            yield
        ends_s = self._clock() + OPENING_SHARE * self._plan.config.budget_s
        num_rows = 0
        while num_rows < len(examples) and (not num_rows or self._has_time(ends_s, num_rows)):
            block = examples[num_rows : num_rows + max(MIN_BLOCK_SIZE, min(BLOCK_SIZE, num_rows))]
            for asking in askings:
                num_virtual_tokens = asking.prefix.num_columns
                yield from self._ask(asking, encode_rows(self._backbone, asking.plan, block, num_virtual_tokens))
            num_rows += len(block)
        figures = [torch.cat(asking.figures).double().mean(dim=0).tolist() for asking in askings]
        accuracies = tuple(each[1] for each in figures) if self._plan.labels else ()
        self.opened = Opened(tuple(each[0] for each in figures), accuracies, num_rows)

    def _has_time(self, ends_s: float, num_rows: int) -> bool:
        """A prompt that is the only one is asked a few rows, so that its figure can be shown."""
        is_choice = len(self._plan.written) > 1
        return self._clock() < ends_s and (is_choice or num_rows < BLOCK_SIZE)

    def _ask(self, asking: _Asking, rows: Sequence[EncodedExample]) -> Iterator[None]:
        for chunk in Chunker(max_rows=self._max_rows, num_extra_tokens=0).chunks(rows, 1):
            began_s = time.perf_counter()
            asking.ask(self._backbone, chunk.rows)
            self._adapt(chunk, time.perf_counter() - began_s)
            yield

    def _adapt(self, chunk: Chunk, took_s: float) -> None:
        """More rows a forward as long as a slice has room for twice as many."""
        if self._slice_s is not None and took_s < self._slice_s / 2 and len(chunk.rows) == self._max_rows:
            self._max_rows = min(BLOCK_SIZE, 2 * self._max_rows)


@dataclass(eq=False)
class _Asking:
    """One written prompt, and what it answered so far.

    Attributes:
        label_ids: of a task with labels; empty for one that writes.
        figures: (num_rows, 2) float32 each: negative log-likelihood of the right answer, and whether it won.
    """

    plan: TuningPlan
    prefix: PromptPrefix
    label_ids: list[tuple[int, ...]]
    figures: list[torch.Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: Backbone, plan: TuningPlan, written: WrittenPrompt) -> _Asking:
        plan = fit_to_targets(backbone, replace(plan, template=written.template))
        prefix = PromptPrefix.of_embeddings(backbone, text_rows(backbone, PromptKind.KV, written.text)[None])
        label_ids = encode_labels(backbone, written.template, plan.labels) if plan.labels else []
        return cls(plan, prefix, label_ids, [])

    @torch.no_grad()
    def ask(self, backbone: Backbone, rows: Sequence[EncodedExample]) -> None:
        if not self.label_ids:
            likelihoods = target_log_likelihoods(backbone, self.prefix, collate(rows, backbone.device))
            losses = -likelihoods.sum(dim=1).cpu()
            self.figures.append(torch.stack([losses, torch.zeros_like(losses)], dim=1))
            return
        texts = collate([EncodedExample(row.text_ids, ()) for row in rows], backbone.device)
        scores = label_log_likelihoods(backbone, self.prefix, texts, LabelTree.build(self.label_ids)).cpu()
        right = torch.tensor([self._label_of(row) for row in rows])
        losses = -scores.gather(1, right[:, None]).squeeze(1)
        self.figures.append(torch.stack([losses, (scores.argmax(dim=1) == right).float()], dim=1))

    def _label_of(self, row: EncodedExample) -> int:
        """Targets have an end-of-sequence token that labels may lack."""
        ends = (row.target_ids, row.target_ids[:-1])
        return next(i for i, ids in enumerate(self.label_ids) if ids in ends)
