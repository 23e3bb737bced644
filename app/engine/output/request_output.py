"""What a sequence has to show: deltas of text for its reader, or the scores of a scored one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.engine.output.delta import Delta
from app.engine.output.detokenizer import Detokenizer
from app.engine.output.scoring import PathScores
from app.engine.sequence import FinishReason, Sequence

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.model.sampler import TokenLogprob


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
        self._end_ids = (
            params.stop_token_ids if params.ignore_eos else (*params.stop_token_ids, *backbone.eos_token_ids)
        )
        self._detokenizer = Detokenizer(
            backbone.tokenizer, sequence.token_ids, params.stop, include_stop=params.include_stop_str_in_output
        )
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
