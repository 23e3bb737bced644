"""OutputProcessor: the outputs of all open sequences, and what they have given since it was last taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.engine.output.delta import Delta
from app.engine.output.request_output import ScoringOutput, TextOutput
from app.engine.output.scoring import PathScores
from app.engine.sequence import FinishReason, Sequence

if TYPE_CHECKING:
    from app.model.backbone import Backbone
    from app.model.sampler import TokenLogprob


class OutputProcessor:
    """A sequence is open from `open` to `close`; what is noted of one that is not changes nothing."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
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

    def note_scores(self, sequence: Sequence, index: int, id_to_score: dict[int, float]) -> None:
        """See `ScoringOutput.note_scores`."""
        output = self._id_to_output.get(sequence.sequence_id)
        if isinstance(output, ScoringOutput):
            output.note_scores(index, id_to_score)

    def note_prompt_logprob(self, sequence: Sequence, index: int, logprob: TokenLogprob) -> None:
        """See `TextOutput.note_prompt_logprob`."""
        output = self._id_to_output.get(sequence.sequence_id)
        if isinstance(output, TextOutput):
            output.note_prompt_logprob(index, logprob)

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

    def close(self, sequence: Sequence) -> None:
        del self._id_to_output[sequence.sequence_id]

    def take_deltas(self) -> list[tuple[int, Delta]]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def take_scores(self) -> list[tuple[int, PathScores]]:
        scores, self._scores = self._scores, []
        return scores
