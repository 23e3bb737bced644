"""Which rows of logits a step is asked for, and ReadOut: what they say, computed on the device and read when there."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from itertools import islice

import torch

from app.engine.scheduler import Item
from app.engine.sequence import Sequence
from app.model.kv_cache import to_device
from app.model.sampler import LogprobsOf, SampleRow, TokenLogprob, sample

Choice = tuple[Sequence, int, TokenLogprob | None]


@dataclass(frozen=True, slots=True)
class LogitRow:
    """A row of logits and why it was computed: it follows text token `index` of `sequence`.

    Attributes:
        is_choice: the next token of the sequence is chosen from it.
    """

    sequence: Sequence
    index: int
    is_choice: bool


@dataclass(eq=False)
class Findings:
    """What the rows of logits say.

    Attributes:
        failed: sequences with a row that is not finite; nothing else is said of them.
        scores: of scored sequences: id to its log-probability after a text token.
        prompt_logprobs: of text tokens, in order, each with the row of the one before it.
        choices: the next token of each sequence that wants one, with its log-probabilities if they are asked for;
            then one after each proposed token, which counts if those before it were right.
    """

    failed: set[Sequence] = field(default_factory=set)
    scores: list[tuple[LogitRow, dict[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[tuple[LogitRow, TokenLogprob]] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)


def logit_rows(items: Rows[Item]) -> tuple[list[LogitRow], list[int]]:
    """Which rows of logits are wanted, and their places in the packed batch."""
    rows, places, first = [], [], 0
    for item in items:
        if isinstance(item.segment, Sequence):
            start = item.start - item.segment.num_virtual_tokens
            for row in _wanted(item.segment, start, start + item.num_tokens):
                rows.append(row)
                places.append(first + row.index - start)
        first += item.num_tokens
    return rows, places


def _wanted(sequence: Sequence, start: int, end: int) -> list[LogitRow]:
    """Text tokens from `start` to before `end` after which logits are wanted."""
    if sequence.score_targets is not None:
        return [LogitRow(sequence, index, False) for index in range(start, end) if index in sequence.score_targets]
    wanted: list[LogitRow] = []
    if sequence.params.prompt_logprobs is not None:
        first = max(start, sequence.num_reported_logprobs)
        reported = range(first, min(end, sequence.num_prompt_tokens - 1))
        wanted += [LogitRow(sequence, index, False) for index in reported]
    if not sequence.has_all_tokens:
        last = len(sequence.token_ids) + sequence.num_pending - 1  # tokens of a speculation follow it
        wanted += [LogitRow(sequence, index, True) for index in range(max(start, last), end)]
    return wanted


class ReadOut:
    """Make it directly after the forward, and read it any time later.

    Args:
        logits: (num_rows, vocab_size) float32; not needed any more once this is made.

    Attributes:
        choosers: the sequence of each choice.
        chosen: (num_choosers,) int64 on the device: these tokens.
    """

    @torch.inference_mode()
    def __init__(self, rows: Rows[LogitRow], logits: torch.Tensor) -> None:
        self._rows = rows
        self._scored = [row for row in rows if row.sequence.score_targets is not None]
        self._reported = [row for row in rows if row.sequence.score_targets is None and not row.is_choice]
        choices = [row for row in rows if row.is_choice]
        self.choosers = [row.sequence for row in choices]
        place_of = {row: place for place, row in enumerate(rows)}

        def logits_of(some: Rows[LogitRow]) -> torch.Tensor:
            if not some or len(some) == len(rows):
                return logits[: len(some)]
            return logits.index_select(0, to_device([place_of[row] for row in some], logits.device))

        chosen_from = logits_of(choices)
        self.chosen = logits.new_empty(0, dtype=torch.int64)
        if choices:
            self.chosen = sample(chosen_from, [_sample_row(row) for row in choices])
        self._logprobs = (
            _choice_logprobs(self.choosers, chosen_from, self.chosen),
            _prompt_logprobs(self._reported, logits_of(self._reported)),
        )
        found = (
            torch.isfinite(logits.sum(-1)),
            self.chosen,
            _wanted_scores(self._scored, logits_of(self._scored)),
            *(tensor for each in self._logprobs if each is not None for tensor in each.tensors),
        )
        self._on_host = [tensor.to("cpu", non_blocking=True) for tensor in found]
        self._arrival = torch.cuda.Event() if logits.is_cuda else None
        if self._arrival is not None:
            self._arrival.record(torch.cuda.current_stream(logits.device))

    def read(self) -> Findings:
        """Waits for the device's work from before this was made, and for none given since."""
        if self._arrival is not None:
            self._arrival.synchronize()
        is_finite, chosen, scores, *logprobs = self._on_host
        failed = {row.sequence for row, finite in zip(self._rows, is_finite.tolist(), strict=True) if not finite}
        rest = iter(logprobs)
        choice_logprobs, prompt_logprobs = (
            [] if each is None else each.read(list(islice(rest, len(each.tensors)))) for each in self._logprobs
        )
        asked = iter(choice_logprobs)
        choices = [
            (sequence, token_id, None if sequence.params.logprobs is None else next(asked))
            for sequence, token_id in zip(self.choosers, chosen.tolist(), strict=True)
        ]
        return Findings(
            failed=failed,
            scores=[
                (row, dict(zip(_targets(row), values, strict=False)))
                for row, values in zip(self._scored, scores.tolist(), strict=True)
                if row.sequence not in failed
            ],
            prompt_logprobs=[
                pair for pair in zip(self._reported, prompt_logprobs, strict=True) if pair[0].sequence not in failed
            ],
            choices=[choice for choice in choices if choice[0] not in failed],
        )


def _choice_logprobs(sequences: Rows[Sequence], logits: torch.Tensor, chosen: torch.Tensor) -> LogprobsOf | None:
    wanting = [place for place, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
    if not wanting:
        return None
    params = [sequences[place].params for place in wanting]
    counts = [each.logprobs or 0 for each in params]
    if len(wanting) == len(sequences):
        return LogprobsOf(logits, chosen, params, counts)
    places = to_device(wanting, logits.device)
    return LogprobsOf(logits.index_select(0, places), chosen.index_select(0, places), params, counts)


def _prompt_logprobs(rows: Rows[LogitRow], logits: torch.Tensor) -> LogprobsOf | None:
    if not rows:
        return None
    params = [row.sequence.params for row in rows]
    next_ids = to_device([row.sequence.token_ids[row.index + 1] for row in rows], logits.device)
    return LogprobsOf(logits, next_ids, params, [each.prompt_logprobs or 0 for each in params])


def _wanted_scores(rows: Rows[LogitRow], logits: torch.Tensor) -> torch.Tensor:
    """(num_rows, most targets of a row): log-probabilities, padded with any."""
    width = max((len(_targets(row)) for row in rows), default=0)
    if not width:
        return logits[:, :0]
    wanted = [[*_targets(row), *[0] * (width - len(_targets(row)))] for row in rows]
    return logits.log_softmax(-1).gather(1, to_device(wanted, logits.device))


def _targets(row: LogitRow) -> tuple[int, ...]:
    targets = row.sequence.score_targets
    assert targets is not None
    return targets[row.index]


def _sample_row(row: LogitRow) -> SampleRow:
    sequence, num_prompt_tokens = row.sequence, row.sequence.num_prompt_tokens
    has_penalties = sequence.params.has_penalties
    assert not (has_penalties and sequence.num_pending), "penalties would not see a token that is on its way"
    return SampleRow(
        params=sequence.params,
        seed=sequence.seed,
        num_generated=row.index + 1 - num_prompt_tokens,
        prompt_ids=sequence.token_ids[:num_prompt_tokens] if has_penalties else (),
        generated_ids=sequence.token_ids[num_prompt_tokens:] if has_penalties else (),
    )
