"""What a prompt is trained to do: the loss of a batch, and the measurement on validation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app.engine.threads.device_lease import Slices
from app.measure.encoding import EncodedExample, collate
from app.measure.label_tree import (
    LabelTree,
    exceeds_window,
    label_and_end_log_likelihoods,
    label_log_likelihoods,
    node_log_likelihoods,
)
from app.measure.metrics import accuracy, macro_f1, shares_of
from app.measure.plain_model import generate_in_slices
from app.model.backbone import Backbone
from app.model.layout import encode_labels
from app.model.prompted_forward import PaddedBatch, PromptPrefix, target_log_likelihoods
from app.sampling import SamplingParams
from app.tuning.config import Loss, Metric
from app.tuning.plan import WRITTEN_METRICS, TuningPlan
from app.tuning.run.rows import Chunk

MAX_TREE_NODES = 48
"""Inner nodes of the label tree up to which Loss.AUTO reads it: about the length of a short text."""
MAX_ROWS = 4096


@dataclass(frozen=True)
class Score:
    """One measurement on validation; higher `rank` is better."""

    metric: str
    value: float
    rank: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.rank))


class Objective:
    """Mean over rows of the mean negative log-likelihood of the target's tokens, in training and on validation.

    Rows of any number of prompts in one call: a chunk says which prompt of the prefix each row belongs to.

    Attributes:
        num_extra_tokens: tokens a row costs in addition to its own.
        max_rows: rows of one call that fit into memory.
        num_readings: forward passes of `judge` for each row.
    """

    num_extra_tokens = 0
    max_rows = MAX_ROWS
    num_readings = 1

    def __init__(self, backbone: Backbone, plan: TuningPlan | None = None) -> None:
        """Args: plan: says how answers are written; None if none are."""
        self._backbone = backbone
        self._most = plan.config.max_target_tokens if plan else 0
        self._skip_special_tokens = plan is None or plan.skip_special_tokens

    def loss_per_row(self, prefix: PromptPrefix, chunk: Chunk) -> torch.Tensor:
        """(num_rows,) float32, differentiable."""
        batch = collate(chunk.rows, self._backbone.device, chunk.prompt_index)
        log_likelihoods = target_log_likelihoods(self._backbone, prefix, batch)
        return -log_likelihoods.sum(dim=1) / (batch.row_lens - batch.text_lens)

    def judge(self, prefix: PromptPrefix, chunk: Chunk) -> Slices[torch.Tensor]:
        """(num_rows, num_figures) float32 on CPU: what `score` needs to know of each row."""
        losses = self.loss_per_row(prefix, chunk)[:, None].cpu()
        yield
        return losses

    @torch.no_grad()
    def time_answers(self, prefix: PromptPrefix, rows: Sequence[EncodedExample]) -> Slices[float]:
        """Seconds that a row's answer takes, as the result is asked for them; 0 if `judge` asks for the same."""
        began_s = time.perf_counter()
        yield from self._write(prefix, rows, self._most, None)
        return (time.perf_counter() - began_s) / len(rows)

    def _write(
        self, prefix: PromptPrefix, rows: Sequence[EncodedExample], most: int, prompt_index: Sequence[int] | None
    ) -> Slices[list[str]]:
        texts = [EncodedExample(row.text_ids, ()) for row in rows]
        params = SamplingParams(temperature=0.0, max_tokens=most, skip_special_tokens=self._skip_special_tokens)
        return (yield from generate_in_slices(self._backbone, prefix, texts, params, len(rows), prompt_index))

    def score(self, figures: torch.Tensor) -> Score:
        """Args: figures: (num_rows, num_figures), as `judge` gave them for all rows of one prompt."""
        loss = float(figures.double().mean())
        return Score("loss", loss, (-loss,))


class WritingObjective(Objective):
    """The same loss; on validation the answers are written and judged, with ties broken by the loss."""

    num_readings = 2

    def __init__(self, backbone: Backbone, plan: TuningPlan) -> None:
        super().__init__(backbone, plan)
        self._metric = plan.metric

    def judge(self, prefix: PromptPrefix, chunk: Chunk) -> Slices[torch.Tensor]:
        """Answers are cut at twice the longest target: a longer one is wrong, however it would end."""
        losses = yield from super().judge(prefix, chunk)
        rows = chunk.rows
        most = 2 * max(len(row.target_ids) for row in rows)
        written = yield from self._write(prefix, rows, most, chunk.prompt_index)
        pairs = zip(written, (row.target for row in rows), strict=True)
        shares = [shares_of(self._metric, *pair) for pair in pairs]
        return torch.cat([torch.tensor(shares, dtype=losses.dtype), losses], dim=1)

    def score(self, figures: torch.Tensor) -> Score:
        reached, possible, loss = figures.double().sum(dim=0).tolist()
        value = reached / possible if possible else 1.0
        return Score(self._metric.value, value, (value, -loss / len(figures)))


class LabelObjective(Objective):
    """One of Loss; on validation a metric of the likeliest labels, with ties broken by their cross-entropy."""

    def __init__(self, backbone: Backbone, plan: TuningPlan, *, reads_tree: bool) -> None:
        super().__init__(backbone, plan)
        self._labels, self._metric, self._token_weight = plan.labels, plan.metric, plan.config.token_weight
        self._reads_tree = reads_tree
        self._eos_ids = backbone.taught_eos_ids
        targets = [(*plan.template.encode_target(backbone.tokenizer, label), *self._eos_ids) for label in plan.labels]
        self._ids_to_label = {ids: label for label, ids in enumerate(targets)}
        scored = encode_labels(backbone, plan.template, plan.labels)
        self._tree = LabelTree.build(scored)
        """Of the labels as evaluation scores them."""
        self._open_labels = torch.tensor([len(ids) < len(whole) for ids, whole in zip(scored, targets, strict=True)])
        """Whether that leaves out their end."""
        self.num_extra_tokens = len(self._tree.inner) + bool(self._open_labels.any())
        self.max_rows = self._tree.max_rows(backbone.vocab_size)

    def loss_per_row(self, prefix: PromptPrefix, chunk: Chunk) -> torch.Tensor:
        if not self._reads_tree:
            return super().loss_per_row(prefix, chunk)
        labels = self._label_index(chunk.rows)
        scores, ends = self._scores_and_ends(prefix, chunk, labels)
        wanted = labels.to(scores.device)
        among_labels = F.cross_entropy(scores, wanted, reduction="none")
        lengths = torch.tensor([len(row.target_ids) for row in chunk.rows], device=scores.device)
        tokens = -(scores.gather(1, wanted[:, None])[:, 0] + ends) / lengths
        return among_labels + self._token_weight * tokens

    def time_answers(self, prefix: PromptPrefix, rows: Sequence[EncodedExample]) -> Slices[float]:
        yield
        return 0.0

    def judge(self, prefix: PromptPrefix, chunk: Chunk) -> Slices[torch.Tensor]:
        scores = label_log_likelihoods(self._backbone, prefix, self._texts(chunk), self._tree)
        wanted = self._label_index(chunk.rows).to(scores.device)
        figures = [scores.argmax(dim=1), wanted, F.cross_entropy(scores, wanted, reduction="none")]
        yield
        return torch.stack([figure.float() for figure in figures], dim=1).cpu()

    def score(self, figures: torch.Tensor) -> Score:
        said, wanted, losses = figures.double().unbind(dim=1)
        loss = float(losses.mean())
        if self._metric is Metric.LOSS:
            return Score("loss", loss, (-loss,))
        of_labels = macro_f1 if self._metric is Metric.MACRO_F1 else accuracy
        value = of_labels(*([self._labels[int(i)] for i in column] for column in (said, wanted)))
        return Score(self._metric.value, value, (value, -loss))

    def label_scores(self, prefix: PromptPrefix, chunk: Chunk) -> torch.Tensor:
        """(num_rows, num_labels) float32, log P(label | prompt, text), differentiable."""
        nodes = node_log_likelihoods(self._backbone, prefix, self._texts(chunk), self._tree)
        return nodes @ self._tree.membership(nodes.device)

    def _scores_and_ends(
        self, prefix: PromptPrefix, chunk: Chunk, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels' scores, and what the end of each row's own label adds to it: (num_rows,) float32."""
        if self._open_labels.any():
            texts = self._texts(chunk)
            [end_id] = self._eos_ids
            scores, ends = label_and_end_log_likelihoods(
                self._backbone, prefix, texts, self._tree, labels.tolist(), end_id
            )
            return scores, ends * self._open_labels[labels].to(ends.device)
        scores = self.label_scores(prefix, chunk)
        return scores, scores.new_zeros(len(chunk.rows))

    def _texts(self, chunk: Chunk) -> PaddedBatch:
        texts = [EncodedExample(row.text_ids, ()) for row in chunk.rows]
        return collate(texts, self._backbone.device, chunk.prompt_index)

    def _label_index(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        return torch.tensor([self._ids_to_label[row.target_ids] for row in rows])


class DistillationObjective(LabelObjective):
    """Divergence of the labels from a teacher's (see `distillation`); accuracy is agreement with the teacher.

    `token_weight` is that of the divergence in the probability of any label at all.
    """

    def __init__(self, backbone: Backbone, plan: TuningPlan, taught: dict[tuple[int, ...], torch.Tensor]) -> None:
        """Args: taught: token ids of a text to (num_labels,) log P(label | teacher, text), natural logarithm."""
        super().__init__(backbone, plan, reads_tree=True)
        self._taught = taught

    def loss_per_row(self, prefix: PromptPrefix, chunk: Chunk) -> torch.Tensor:
        scores = self.label_scores(prefix, chunk)
        taught = torch.stack([self._taught[row.text_ids] for row in chunk.rows]).to(scores.device)
        divergence = F.kl_div(scores.log_softmax(-1), taught.log_softmax(-1), reduction="none", log_target=True)
        return divergence.sum(dim=1) + self._token_weight * _binary_divergence(scores.logsumexp(1), taught.logsumexp(1))


def _binary_divergence(log_mass: torch.Tensor, taught_log_mass: torch.Tensor) -> torch.Tensor:
    """KL(taught || learned) of an event and its opposite, from the logarithms of its probability."""
    learned, taught = (each.clamp(max=-1e-6) for each in (log_mass, taught_log_mass))
    rest, taught_rest = torch.log(-torch.expm1(learned)), torch.log(-torch.expm1(taught))
    return taught.exp() * (taught - learned) + taught_rest.exp() * (taught_rest - rest)


def choose_objective(backbone: Backbone, plan: TuningPlan, train: Sequence[EncodedExample]) -> Objective:
    """The objective of a run; Loss.AUTO is decided here. Args: train: the plan's examples, encoded."""
    loss = plan.config.loss
    if not plan.labels:
        if plan.metric not in WRITTEN_METRICS:
            return Objective(backbone, plan)
        return WritingObjective(backbone, plan)
    if plan.teacher_scores is not None:
        taught = dict(zip((row.text_ids for row in train), plan.teacher_scores, strict=True))
        return DistillationObjective(backbone, plan, taught)
    if loss is Loss.AUTO:
        tree = LabelTree.build(encode_labels(backbone, plan.template, plan.labels))
        longest = max(member.num_virtual_tokens for member in plan.members) + max(row.num_tokens for row in train)
        is_cheap = len(tree.inner) <= MAX_TREE_NODES and not exceeds_window(backbone, longest)
        loss = Loss.LABELS if is_cheap else Loss.TOKENS
    return LabelObjective(backbone, plan, reads_tree=loss is Loss.LABELS)
