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
        now_s, latencies_s = self._clock(), []
        for sequence in sequences:
            if sequence.last_token_s is not None:
                latencies_s.append(now_s - sequence.last_token_s)
            sequence.first_token_s = now_s if sequence.first_token_s is None else sequence.first_token_s
            sequence.last_token_s = now_s
        if latencies_s:
            self._metrics.observe_inter_token(latencies_s)

    def speculated(self, num_proposed: int, num_accepted: int) -> None:
        """Tokens of a step that were proposed, and those of them that the model chose too."""
        self._metrics.observe_guesses(num_proposed, num_accepted)

    def warmed(self) -> None:
        """A prompt was computed, or read, before any request asked for it."""
        self._metrics.observe_warmed()

    def lent(self, duration_s: float) -> None:
        """The device worked for tuning that long."""
        self._metrics.observe_tuning(duration_s)

    def changed(self, stats: EngineStats) -> None:
        """Sequences came or went."""
        self._metrics.observe_load(
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            kv_cache_usage=1 - stats.num_free_blocks / stats.num_blocks,
        )

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
        self._metrics.observe_step(
            num_prompt_tokens=batch.num_text_tokens,
            num_generation_tokens=num_generated_tokens,
            num_preemptions=num_preemptions,
            num_prefix_queries=batch.num_prefix_queries,
            num_prefix_hits=batch.num_prefix_hits,
            num_prefix_loads=sum(prefix.is_stored for prefix in batch.loads),
            num_stored_bytes=stats.num_stored_bytes,
            step_s=self._clock() - started_s,
        )
