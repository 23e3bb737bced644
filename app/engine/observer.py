"""Observer: what an engine tells the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from app.engine.config import EngineStats
from app.engine.scheduler import Batch
from app.engine.sequence import FinishReason, Sequence
from app.telemetry import Metrics


class Observer:
    """Args: clock: monotonic seconds, the engine's own."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock

    def finished(self, sequence: Sequence, reason: FinishReason) -> None:
        """A sequence ended. Stages it never reached have no times."""
        now_s = self._clock()
        scheduled_s, first_s = sequence.first_scheduled_s, sequence.first_token_s
        self._metrics.observe_finished(
            flow=sequence.flow,
            finish_reason=str(reason),
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_generation_tokens=sequence.num_generated_tokens,
            queue_s=None if scheduled_s is None else scheduled_s - sequence.arrival_s,
            prefill_s=None if scheduled_s is None or first_s is None else first_s - scheduled_s,
            decode_s=None if first_s is None else now_s - first_s,
            e2e_s=now_s - sequence.arrival_s,
            ttft_s=None if first_s is None else first_s - sequence.arrival_s,
            max_tokens=sequence.params.max_tokens,
        )

    def scheduled(self, batch: Batch, now_s: float) -> None:
        """A batch was planned, for some sequences the first one."""
        for item in batch.items:
            if isinstance(item.segment, Sequence) and item.segment.first_scheduled_s is None:
                item.segment.first_scheduled_s = now_s

    def chose(self, sequences: Iterable[Sequence]) -> None:
        """Sequences got a token each; the time since the previous one counts for those that had one."""
        now_s = self._clock()
        for sequence in sequences:
            if sequence.last_token_s is not None:
                self._metrics.inter_token.observe(now_s - sequence.last_token_s)
            sequence.first_token_s = now_s if sequence.first_token_s is None else sequence.first_token_s
            sequence.last_token_s = now_s

    def speculated(self, num_proposed: int, num_accepted: int) -> None:
        """Tokens of a step that were proposed, and those of them that the model chose too."""
        self._metrics.drafts.inc(num_proposed)
        self._metrics.accepted_drafts.inc(num_accepted)

    def warmed(self) -> None:
        """A prompt was computed, or read, before any request asked for it."""
        self._metrics.warmed.inc()

    def lent(self, duration_s: float) -> None:
        """The device worked for tuning that long."""
        self._metrics.tuning_seconds.inc(duration_s)

    def changed(self, stats: EngineStats) -> None:
        """Sequences came or went."""
        self._metrics.running.set(stats.num_running)
        self._metrics.waiting.set(stats.num_waiting)
        self._metrics.kv_usage.set(1 - stats.num_free_blocks / stats.num_blocks)

    def stepped(
        self,
        batch: Batch,
        stats: EngineStats,
        *,
        num_generated_tokens: int,
        num_preemptions: int,
        started_s: float,
    ) -> None:
        """A step ended. The last three arguments are of this step alone; the tokens are those that it handed out."""
        self.changed(stats)
        metrics = self._metrics
        metrics.prompt_tokens.inc(batch.num_text_tokens)
        metrics.generation_tokens.inc(num_generated_tokens)
        metrics.preemptions.inc(num_preemptions)
        metrics.prefix_queries.inc(batch.num_prefix_queries)
        metrics.prefix_hits.inc(batch.num_prefix_hits)
        metrics.prefix_loads.inc(sum(prefix.is_stored for prefix in batch.loads))
        metrics.prefix_bytes.set(stats.num_stored_bytes)
        metrics.iteration_tokens.observe(batch.num_text_tokens + num_generated_tokens)
        metrics.step_seconds.observe(self._clock() - started_s)
