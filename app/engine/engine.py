"""Engine: continuous batching over one backbone. Synchronous; one thread calls it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from app.engine.admission import Admission, EngineRequest
from app.engine.block_manager import BlockManager
from app.engine.config import EngineConfig, EngineStats
from app.engine.model_runner import ModelRunner
from app.engine.output.output import Delta, OutputProcessor, PathScores
from app.engine.output.readout import Choice, ReadOut
from app.engine.prefix.prefix_store import PrefixStore
from app.engine.prefix.warmer import Warmer
from app.engine.scheduler import Batch, Scheduler
from app.engine.sequence import FinishReason, Prefix, Sequence
from app.engine.speculation import Speculation
from app.errors import Overloaded
from app.model.attention import Attend
from app.model.backbone import Backbone
from app.model.kernels import Replacements
from app.task_prompt import TaskPrompt
from app.telemetry import Metrics


@dataclass(frozen=True, eq=False)
class _PendingStep:
    """A step that the device was given, and whose results have not been looked at yet.

    Attributes:
        ending: sequences that generate nothing and are computed to their end by this step.
    """

    batch: Batch
    read_out: ReadOut
    ending: list[Sequence]


class Engine:
    """Add requests, call `step` until nothing is unfinished, and hand out the deltas and `take_scores`.

    With `config.async_scheduling` a step is given to the device before the results of the previous one are looked at:
    its tokens stay on the device, and the device never waits for the host. What a sequence gets is the same, one call
    of `step` later; if it turns out to have ended already, what was computed for it since is dropped.

    Args:
        clock: monotonic seconds; tests give their own.
        attend: the attention implementation; None chooses the fastest.
        replacements: what computes the model's layers; None chooses the fastest.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EngineConfig,
        metrics: Metrics | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        attend: Attend | None = None,
        replacements: Replacements | None = None,
    ) -> None:
        assert not (config.prompt_lookup and config.async_scheduling), "speculation needs the previous tokens"
        self.backbone = backbone
        self.config = config
        self.admission = Admission(backbone, config)
        self.metrics = metrics or Metrics()
        self._clock = clock
        self.model_runner = ModelRunner(backbone, config, attend=attend, replacements=replacements)
        self.prefix_store = self._open_prefix_store()
        num_proposed = config.prompt_lookup
        self._speculation = Speculation(num_proposed, backbone.device.type) if num_proposed else None
        self.scheduler = Scheduler(
            BlockManager(num_blocks=config.num_blocks, block_size=config.block_size),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            is_text_kept=config.prefix_caching,
            store=self.prefix_store,
            speculation=self._speculation,
        )
        self.warmer = Warmer(self.scheduler, self.model_runner, self.prefix_store, max_model_len=config.max_model_len)
        self._pending: _PendingStep | None = None
        self._outputs = OutputProcessor(backbone, self.metrics, clock)
        self._ids = count()
        self._num_steps = 0

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished or self._pending is not None

    @property
    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_free_blocks=scheduler.block_manager.num_free_blocks,
            num_blocks=scheduler.block_manager.num_blocks,
            num_stored_bytes=0 if self.prefix_store is None else self.prefix_store.num_bytes,
            num_steps=self._num_steps,
            num_preemptions=scheduler.num_preemptions,
        )

    def add(self, token_ids: Ids[int], *, deadline_s: float | None = None, **request: Any) -> int:
        """Admit a request and queue it; see `EngineRequest` and `submit`. Raises what both raise."""
        admitted = self.admission.admit(EngineRequest(token_ids=token_ids, **request))
        return self.submit(admitted, deadline_s=deadline_s)

    def submit(self, request: EngineRequest, *, deadline_s: float | None = None, is_begun: bool = False) -> int:
        """Queue what was admitted; returns the sequence's id.

        Args:
            deadline_s: seconds from now after which the sequence ends.
            is_begun: belongs to a call of which a part was computed: the queue takes it however full it is.

        Raises: Overloaded.
        """
        sequence = Sequence(
            sequence_id=next(self._ids),
            token_ids=list(request.token_ids),
            num_prompt_tokens=len(request.token_ids),
            params=request.params,
            seed=random.getrandbits(63) if request.params.seed is None else request.params.seed,
            prompt=request.prompt,
            num_shared_tokens=request.num_shared_tokens,
            cache_salt=request.cache_salt,
            flow=request.flow,
            score_targets=request.score_targets,
            arrival_s=self._clock(),
        )
        if not is_begun:
            self.require_queue_room(1, sequence.num_tokens)
        sequence.deadline_s = None if deadline_s is None else sequence.arrival_s + deadline_s
        self._outputs.open(sequence)
        self.scheduler.add(sequence)
        return sequence.sequence_id

    def require_queue_room(self, num_requests: int = 1, num_tokens: int = 0) -> None:
        """Refuse before any work if the queue is full. Raises Overloaded."""
        waiting = self.scheduler.waiting
        is_full = len(waiting) + num_requests > self.config.max_waiting_requests
        # an empty queue takes any text, or a long one could never be queued
        if is_full or (waiting.num_tokens and waiting.num_tokens + num_tokens > self.config.max_waiting_tokens):
            raise Overloaded("the server's queue is full; try again later", retry_after_s=1.0)

    def abort(self, sequence_id: int) -> None:
        """End a sequence now; unknown or finished ids are fine. It gets no delta and no scores."""
        sequence = self._outputs.find(sequence_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.ABORT)
            self._observe_load(self.stats)  # there may be no step for a long time

    def step(self) -> list[tuple[int, Delta]]:
        """Compute one batch. Returns what it added to which sequence; when running ahead, what the previous one did."""
        started_s = self._clock()
        num_preemptions_before = self.scheduler.num_preemptions
        self._expire(started_s)
        given = self.begin_step(started_s)
        due: _PendingStep | None = given
        if self.config.async_scheduling:
            due, self._pending = self._pending, given if given.batch.items else None
        if due is not None:
            self._update_from(due)
        self._num_steps += 1
        deltas = self._outputs.take_deltas()
        stats, batch = self.stats, given.batch
        num_generated_tokens = sum(len(delta.token_ids) for _, delta in deltas)
        self._observe_load(stats)
        metrics = self.metrics
        metrics.prompt_tokens.inc(batch.num_text_tokens)
        metrics.generation_tokens.inc(num_generated_tokens)
        metrics.preemptions.inc(stats.num_preemptions - num_preemptions_before)
        metrics.prefix_queries.inc(batch.num_prefix_queries)
        metrics.prefix_hits.inc(batch.num_prefix_hits)
        metrics.prefix_loads.inc(sum(prefix.is_stored for prefix in batch.loads))
        metrics.prefix_bytes.set(stats.num_stored_bytes)
        metrics.iteration_tokens.observe(batch.num_text_tokens + num_generated_tokens)
        metrics.step_seconds.observe(self._clock() - started_s)
        return deltas

    def take_scores(self) -> list[tuple[int, PathScores]]:
        """What the scored sequences that ended since the last call have found."""
        return self._outputs.take_scores()

    def warm(self, prompt: TaskPrompt, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """See `Warmer.warm`; only while nothing is unfinished."""
        assert not self.has_unfinished, "requests go first"
        is_warm = self.warmer.warm(prompt, should_stop)
        if is_warm:
            self.metrics.warmed.inc()
        return is_warm

    def reset(self) -> list[tuple[int, Delta]]:
        """After a failed step: end every running sequence and forget what the cache holds.

        Returns: what the failed step had found before it failed, and the ends. Those of scored sequences are left to
            `take_scores`.
        """
        self._pending = None
        preempted = [sequence for sequence in self.scheduler.waiting if sequence.num_pending]
        for sequence in [*self.scheduler.running, *preempted]:
            self._end(sequence, FinishReason.ERROR)
        self.scheduler.prefix_cache.clear()
        return self._outputs.take_deltas()

    def close(self) -> None:
        """Finish what is being written."""
        if self.prefix_store is not None:
            self.prefix_store.close()

    def _open_prefix_store(self) -> PrefixStore | None:
        if self.config.prefix_store is None:
            return None
        return PrefixStore(
            self.config.prefix_store,
            max_bytes=self.config.prefix_store_bytes,
            row_size=self.backbone.kv_row_size,
            dtype=self.backbone.dtype,
            computed_by=self.model_runner.computed_by,
        )

    def _store_prefixes(self, batch: Batch) -> None:
        """Keep the task prompts that this batch computed to their end."""
        if self.prefix_store is None:
            return
        for item in batch.items:
            prefix = item.segment
            if isinstance(prefix, Prefix) and isinstance(prefix.content, TaskPrompt) and prefix.is_computed:
                self.prefix_store.keep(prefix.key, partial(self.model_runner.computed_rows, prefix))

    def _expire(self, now_s: float) -> None:
        for sequence in self._outputs.sequences:
            if sequence.deadline_s is not None and sequence.deadline_s <= now_s:
                self._end(sequence, FinishReason.DEADLINE)

    def begin_step(self, now_s: float) -> _PendingStep:
        """Give the device the next step."""
        batch = self.scheduler.schedule()
        for item in batch.items:
            if isinstance(item.segment, Sequence) and item.segment.first_scheduled_s is None:
                item.segment.first_scheduled_s = now_s
        chosen = None if self._pending is None else self._pending.read_out.chosen
        rows, logits = self.model_runner.run(batch, chosen)
        self.scheduler.advance(batch)
        self._store_prefixes(batch)
        read_out = ReadOut(rows, logits)
        for row, sequence in enumerate(read_out.choosers):
            sequence.num_pending += 1
            sequence.pending_row = row
        return _PendingStep(batch, read_out, _ending(batch))

    def _update_from(self, step: _PendingStep) -> None:
        """Look at what a step found: note log-probabilities, add tokens, end what failed or is at its end."""
        found = step.read_out.read()
        choices = self._settle(found.choices, step.batch)
        self.scheduler.keep(step.batch)
        for sequence in found.failed:
            if sequence in self._outputs:
                self._fail(sequence)
        self._outputs.note(found)
        self._add_tokens([choice for choice in choices if choice[0] in self._outputs])
        for sequence in step.ending:
            if sequence in self._outputs:
                self._end(sequence, FinishReason.LENGTH)

    def _settle(self, choices: list[Choice], batch: Batch) -> list[Choice]:
        """The choices that count; see `Speculation.settle`."""
        if self._speculation is None:
            return choices
        counting = self._speculation.settle(choices, batch.num_rejected)
        num_sequences = len({sequence for sequence, _, _ in counting})
        self.metrics.drafts.inc(len(choices) - num_sequences)
        self.metrics.accepted_drafts.inc(len(counting) - num_sequences)
        return counting

    def _add_tokens(self, choices: list[Choice]) -> None:
        self._outputs.note_times([sequence for sequence, _, _ in choices])
        for sequence, token_id, logprob in choices:
            if sequence in self._outputs:  # the previous token may have been its last
                reason = self._outputs.add(sequence, token_id, logprob)
                if reason is not None:
                    self._finish(sequence, reason)

    def _fail(self, sequence: Sequence) -> None:
        """The model gave values that are not finite: end the sequence, and let no other find its prefix."""
        parent = sequence.parent
        self.scheduler.block_manager.forget(sequence.block_table)
        self._end(sequence, FinishReason.ERROR)
        while parent is not None:
            above = parent.parent
            self.scheduler.prefix_cache.forget(parent)
            parent = above

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence without a new token."""
        self._outputs.end(sequence, reason)
        self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence)
        sequence.num_pending = 0
        self._outputs.close(sequence, reason)

    def _observe_load(self, stats: EngineStats) -> None:
        self.metrics.running.set(stats.num_running)
        self.metrics.waiting.set(stats.num_waiting)
        self.metrics.kv_usage.set(1 - stats.num_free_blocks / stats.num_blocks)


def _ending(batch: Batch) -> list[Sequence]:
    """Sequences that generate nothing and that this batch computes to their end."""
    segments = [item.segment for item in batch.items if item.segment.is_computed]
    return [each for each in segments if isinstance(each, Sequence) and each.params.max_tokens == 0]
