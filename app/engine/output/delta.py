"""Delta: what one step added to one sequence."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.sequence import FinishReason
from app.model.sampler import TokenLogprob


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
