"""What sequences have to show: deltas of text for their readers, and the scores of scored ones; times for metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.engine.output.detokenizer import Detokenizer
from app.engine.output.readout import Findings
from app.engine.sequence import FinishReason, Sequence
from app.model.backbone import Backbone
from app.model.sampler import TokenLogprob
from app.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Delta:
    """The last delta of a sequence, and only that one, has a finish reason.

    Attributes:
        text: text that became certain; later than its tokens while a character or stop string is unfinished.
        token_ids: tokens generated in this step.
        logprobs: one for each token, if the request asked for them.
        prompt_logprobs: one for each token of the request's text, once, if asked for; None for the first one,
            which has no text before it.
        stop_reason: the stop string or token id that ended the text.
        num_cached_tokens: tokens of prefixes that did not have to be computed for this sequence.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PathScores:
    """What one scored sequence found. Made once, when the sequence ends.

    Attributes:
        logprobs: (index of a text token, id after it) to log-probability.
        num_cached_tokens: tokens of prefixes that did not have to be computed for this sequence.
    """

    logprobs: dict[tuple[int, int], float]
    finish_reason: FinishReason
    num_cached_tokens: int


class ScoringOutput:
    """Of a scored sequence, which has nothing to show before its end."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self._logprobs: dict[tuple[int, int], float] = {}

    def note_scores(self, index: int, id_to_score: dict[int, float]) -> None:
        """How likely ids are after the text token of this index."""
        self._logprobs.update({(index, token_id): score for token_id, score in id_to_score.items()})

    def end(self, reason: FinishReason) -> PathScores:
        return PathScores(self._logprobs, reason, self.sequence.num_cached_tokens)


class TextOutput:
    """Of a generating sequence. Each call of `add` or `end` makes a delta; the one with a finish reason is the last."""

    def __init__(self, sequence: Sequence, backbone: Backbone) -> None:
        params = sequence.params
        self.sequence = sequence
        self._end_ids = backbone.end_ids(params)
        self._detokenizer = Detokenizer.of(backbone.tokenizer, sequence.token_ids, params)
        self._prompt_logprobs: list[TokenLogprob | None] = [None]

    def note_prompt_logprob(self, index: int, logprob: TokenLogprob) -> None:
        """Of the text token after the one of this index; shown with the next delta."""
        # a sequence that was preempted in the meantime may ask for a row again before this one is known
        if index >= self.sequence.num_reported_logprobs:
            self._prompt_logprobs.append(logprob)
            self.sequence.num_reported_logprobs = index + 1

    def add(self, token_id: int, logprob: TokenLogprob | None) -> Delta:
        """Add a token to the sequence."""
        self.sequence.append(token_id)
        is_end = token_id in self._end_ids
        stop = None if is_end else self._detokenizer.add(token_id)
        reason = _finish_reason(self.sequence, is_end=is_end, stop=stop)
        if reason is FinishReason.LENGTH or is_end:
            stop = self._detokenizer.flush() or stop
        return Delta(
            text=self._detokenizer.finish() if reason else self._detokenizer.take(),
            token_ids=(token_id,),
            logprobs=(logprob,) if logprob is not None else None,
            prompt_logprobs=self._take_prompt_logprobs(),
            finish_reason=FinishReason.STOP if stop else reason,
            stop_reason=stop or (token_id if token_id in self.sequence.params.stop_token_ids else None),
            num_cached_tokens=self.sequence.num_cached_tokens,
        )

    def end(self, reason: FinishReason) -> Delta:
        """Without a new token."""
        self._detokenizer.flush()
        return Delta(
            text=self._detokenizer.finish(),
            prompt_logprobs=self._take_prompt_logprobs(),
            finish_reason=reason,
            num_cached_tokens=self.sequence.num_cached_tokens,
        )

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        if self.sequence.params.prompt_logprobs is None or not self._prompt_logprobs:
            return None
        found = tuple(self._prompt_logprobs)
        self._prompt_logprobs = []
        return found


def _finish_reason(sequence: Sequence, *, is_end: bool, stop: str | None) -> FinishReason | None:
    if is_end or stop is not None:
        return FinishReason.STOP
    if sequence.num_generated_tokens >= sequence.params.max_tokens:
        return FinishReason.LENGTH
    return None


class OutputProcessor:
    """A sequence is open from `open` to `close`; what is noted of one that is not changes nothing.

    Args: clock: monotonic seconds, the engine's own.
    """

    def __init__(self, backbone: Backbone, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._backbone, self._metrics, self._clock = backbone, metrics, clock
        self._id_to_output: dict[int, TextOutput | ScoringOutput] = {}
        self._deltas: list[tuple[int, Delta]] = []
        self._scores: list[tuple[int, PathScores]] = []

    @property
    def sequences(self) -> list[Sequence]:
        return [output.sequence for output in self._id_to_output.values()]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.sequence_id in self._id_to_output

    def find(self, sequence_id: int) -> Sequence | None:
        output = self._id_to_output.get(sequence_id)
        return None if output is None else output.sequence

    def open(self, sequence: Sequence) -> None:
        is_scored = sequence.score_targets is not None
        output = ScoringOutput(sequence) if is_scored else TextOutput(sequence, self._backbone)
        self._id_to_output[sequence.sequence_id] = output

    def note(self, findings: Findings) -> None:
        """What the model says of texts; see `ScoringOutput.note_scores` and `TextOutput.note_prompt_logprob`."""
        for row, id_to_score in findings.scores:
            scored = self._id_to_output.get(row.sequence.sequence_id)
            if isinstance(scored, ScoringOutput):
                scored.note_scores(row.index, id_to_score)
        for row, logprob in findings.prompt_logprobs:
            output = self._id_to_output.get(row.sequence.sequence_id)
            if isinstance(output, TextOutput):
                output.note_prompt_logprob(row.index, logprob)

    def note_times(self, sequences: Iterable[Sequence]) -> None:
        """Each of these gets a token now; the time since the previous one counts for those that had one."""
        now_s = self._clock()
        for sequence in sequences:
            if sequence.last_token_s is not None:
                self._metrics.inter_token.observe(now_s - sequence.last_token_s)
            sequence.first_token_s = now_s if sequence.first_token_s is None else sequence.first_token_s
            sequence.last_token_s = now_s

    def add(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> FinishReason | None:
        """Add a token to an open sequence. Returns why the sequence ends with it, if it does."""
        output = self._id_to_output[sequence.sequence_id]
        assert isinstance(output, TextOutput)
        delta = output.add(token_id, logprob)
        self._deltas.append((sequence.sequence_id, delta))
        return delta.finish_reason

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Give what there is of an open sequence that ends without a new token."""
        output = self._id_to_output[sequence.sequence_id]
        if isinstance(output, ScoringOutput):
            self._scores.append((sequence.sequence_id, output.end(reason)))
        else:
            self._deltas.append((sequence.sequence_id, output.end(reason)))

    def close(self, sequence: Sequence, reason: FinishReason) -> None:
        """The sequence has ended."""
        del self._id_to_output[sequence.sequence_id]
        self._metrics.observe_finished(
            flow=sequence.flow,
            finish_reason=reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_generation_tokens=sequence.num_generated_tokens,
            max_tokens=sequence.params.max_tokens,
            arrival_s=sequence.arrival_s,
            scheduled_s=sequence.first_scheduled_s,
            first_token_s=sequence.first_token_s,
            end_s=self._clock(),
        )

    def take_deltas(self) -> list[tuple[int, Delta]]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def take_scores(self) -> list[tuple[int, PathScores]]:
        scores, self._scores = self._scores, []
        return scores
