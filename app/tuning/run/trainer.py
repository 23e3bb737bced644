"""Trainer: the part of a tuning run that needs the device, in slices: updating every member, and measuring it.

All members answer the same examples in one forward. A prompt's keys and values are computed once for an update; the
chunks of the batch add up their gradients there, and the prompt's own backward runs once at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from app.engine.threads.device_lease import Slices
from app.errors import OutOfMemory
from app.measure.encoding import EncodedExample
from app.model.backbone import Backbone
from app.model.prompted_forward import PromptPrefix
from app.tuning.budget import Costs
from app.tuning.run.events import MicroBatchLowered, OnEvent
from app.tuning.run.objective import Objective, Score
from app.tuning.run.population import Member, Population
from app.tuning.run.rows import Chunk, Chunker

NUM_TRIALS = 4
NUM_ANSWERS = 4
"""Rows whose answers are timed."""


@dataclass(eq=False)
class Trainer:
    """Trains the members of a population together."""

    backbone: Backbone
    objective: Objective
    population: Population
    chunker: Chunker
    on_event: OnEvent
    num_tokens_computed: int = 0
    """Tokens the backbone computed, without padding; a backward pass counts like a forward one."""
    num_tokens_trained: int = 0
    """Tokens of the examples, text and answer, counted once for each member that learned from them."""

    def update(self, rows: Sequence[EncodedExample], step: int, num_steps: int) -> Slices[dict[Member, float]]:
        """One update of every member alive whose loss and gradient are finite.

        Args: step: 0 for the first.

        Returns: the mean loss of each member that was updated.

        Raises OutOfMemory.
        """
        while True:
            try:
                losses = yield from self._gradients(rows)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._lower_micro_batch(error)
        sound = {m: loss for m, loss in losses.items() if math.isfinite(loss) and m.has_finite_gradient}
        for member in sound:
            member.update(step, num_steps)
        self.num_tokens_trained += len(sound) * sum(row.num_tokens for row in rows)
        self.population.clear_gradients()
        return sound

    def measure(self, rows: Sequence[EncodedExample], *, is_start: bool = False) -> Slices[dict[Member, Score]]:
        """The score of every member alive on these rows.

        Args: is_start: before the first update, members that start alike are measured once.

        Raises OutOfMemory.
        """
        while True:
            try:
                return (yield from self._measure(rows, is_start=is_start))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._lower_micro_batch(error)

    @torch.no_grad()
    def _measure(self, rows: Sequence[EncodedExample], *, is_start: bool) -> Slices[dict[Member, Score]]:
        alive = self.population.alive
        asked = self.population.different_starts if is_start else alive
        prefixes = []
        for part in self.population.prefixes(self.chunker.max_tokens, asked):
            prefixes.append(part)
            yield
        prefix = PromptPrefix.stack(prefixes)
        figures: dict[tuple[int, int], torch.Tensor] = {}
        for chunk in self.chunker.chunks(rows, len(asked)):
            judged = yield from self.objective.judge(prefix, chunk)
            self.num_tokens_computed += self.objective.num_readings * self.chunker.num_tokens(chunk)
            figures |= zip(chunk.places, judged, strict=True)
        by_row = range(len(rows))
        start_to_score = {
            member.start if is_start else member: self.objective.score(torch.stack([figures[row, i] for row in by_row]))
            for i, member in enumerate(asked)
        }
        return {member: start_to_score[member.start if is_start else member] for member in alive}

    def calibrate(self, rows: Sequence[EncodedExample], slice_s: float) -> Slices[None]:
        """Find how many tokens a slice may have: double them until one takes half of it.

        The fastest of NUM_TRIALS passes counts: warm-up and other programs can only make one slower.
        """
        prefixes = []
        for part in self.population.prefixes(1):
            prefixes.append(part.detached())
            yield
        chunks = self.chunker.trial_chunks(rows, len(self.population.alive))
        tokens_per_s = 0.0
        for _ in range(NUM_TRIALS):
            for chunk in chunks:
                took_s = self._time(prefixes, chunk)
                tokens_per_s = max(tokens_per_s, self.chunker.num_padded_tokens(chunk) / took_s)
                yield
                if took_s > slice_s / 2:
                    break
        self.chunker.max_tokens = max(1, int(tokens_per_s * slice_s))

    def time_costs(self, rows: Sequence[EncodedExample], *, allowed_s: float) -> Slices[Costs]:
        """What a row of middle length takes one prompt, the first one alive: twice as many rows each time, as far as a
        chunk has room and until `allowed_s` is spent.
        """
        prefix = next(self.population.prefixes(1)).detached()
        by_length = sorted(rows, key=lambda row: row.num_tokens)
        began_s, size, most = time.perf_counter(), 1, min(len(rows), self.chunker.num_rows_within(rows))
        costs = yield from self._time_costs(prefix, _middle(by_length, size))
        while 2 * size <= most and time.perf_counter() - began_s < allowed_s:
            size *= 2
            try:
                costs = yield from self._time_costs(prefix, _middle(by_length, size))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                self._lower_micro_batch(error)
                break
        answer_s = yield from self.objective.time_answers(prefix, by_length[len(rows) // 2 :][:NUM_ANSWERS])
        return replace(costs, answer_s=answer_s)

    def _time_costs(self, prefix: PromptPrefix, chunk: Chunk) -> Slices[Costs]:
        learn_s = self._time([prefix], chunk)
        yield
        began_s = time.perf_counter()
        with torch.no_grad():
            yield from self.objective.judge(prefix, chunk)
        return Costs(learn_s / len(chunk.rows), (time.perf_counter() - began_s) / len(chunk.rows))

    def _gradients(self, rows: Sequence[EncodedExample]) -> Slices[dict[Member, float]]:
        """Adds up every member's gradient; returns the mean loss of each."""
        population = self.population
        population.clear_gradients()
        parts = []
        for part in population.prefixes(self.chunker.max_tokens):
            parts.append((part, part.detached()))
            yield
        leaves = [leaf for _, leaf in parts]
        losses = torch.zeros(len(population.alive), dtype=torch.float64)
        for chunk in self.chunker.chunks(rows, len(losses)):
            per_row = self.objective.loss_per_row(PromptPrefix.stack(leaves), chunk)
            (per_row.sum() / len(rows)).backward()
            self.num_tokens_computed += 2 * self.chunker.num_tokens(chunk)
            losses.index_add_(0, torch.tensor(chunk.prompt_index), per_row.detach().double().cpu() / len(rows))
            yield
        for part, leaf in parts:
            self.num_tokens_computed += 2 * sum(part.lengths)
            torch.autograd.backward(part.tensors(), [tensor.grad for tensor in leaf.tensors()])
            yield
        return dict(zip(population.alive, losses.tolist(), strict=True))

    def _time(self, prefixes: Sequence[PromptPrefix], chunk: Chunk) -> float:
        """Seconds of a forward and a backward, whose gradients are discarded."""
        began = time.perf_counter()
        self.objective.loss_per_row(PromptPrefix.stack(prefixes), chunk).sum().backward()
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)
        return time.perf_counter() - began

    def _lower_micro_batch(self, error: Exception) -> None:
        """Raises OutOfMemory if a forward has one row already, and the error itself if it is of another kind."""
        if not _is_out_of_memory(error):
            raise error
        self.population.clear_gradients()
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.chunker.max_rows == 1:
            raise OutOfMemory("tuning needs more memory than there is, even for a single example") from error
        self.chunker.halve()
        self.on_event(MicroBatchLowered(self.chunker.max_rows))


def _middle(by_length: Sequence[EncodedExample], size: int) -> Chunk:
    """Rows of middle length with the first prompt."""
    start = (len(by_length) - size) // 2
    return Chunk(list(by_length[start : start + size]), [(i, 0) for i in range(size)])


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has a class for it; the CPU's allocator raises a plain RuntimeError."""
    is_typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_typed or "can't allocate memory" in str(error) or "not enough memory" in str(error)
